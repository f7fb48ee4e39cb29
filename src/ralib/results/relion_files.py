"""A run as RELION's Class2D job writes it: data, model, optimiser and sampling, which name each other.

Class numbers are the run's own; a mirrored particle lies at rlnAngleTilt 180 (see `ralib.io.relion_write`). The
particle file and the class averages are linked, not copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ralib import io
from ralib.images.fourier import ring_counts, ring_sums
from ralib.types import ClassAverages, ParticleSet, Poses, RalibError

NOISE_SAMPLE = 200
PSI_STEP_DEG = 6.0
_BRIGHTER = 1e3
"""Power of an image over the median's from which it is no particle's."""


def write_relion_files(
    root: Path,
    averages: ClassAverages,
    poses: Poses,
    particles: ParticleSet,
    record: Mapping[str, Any],
    *,
    particle_file: Path,
    average_file: Path,
    posterior: np.ndarray | None = None,
    iteration: int | None = None,
) -> list[Path]:
    """Write root + _data.star, _model.star, _optimiser.star and _sampling.star.

    Parameters
    ----------
    root : Path
        Beginning of the file names, e.g. RUN/relion, or Class2D/job007/run_it025.
    averages : ClassAverages
        Class averages.
    poses : Poses
        Poses of all particles.
    particles : ParticleSet
        The particles.
    record : Mapping[str, Any]
        The run's record.
    particle_file : Path
        The file that _data.star is linked to.
    average_file : Path
        The stack that the model names.
    posterior : ndarray | None of shape (n,), optional
        Responsibility of each particle's class.
    iteration : int | None, optional
        Number of the iteration in the files; by default the run's own.

    Returns
    -------
    list[Path]
        The files, in this order.
    """
    data, model, optimiser, sampling = (
        Path(f"{root}_{part}.star") for part in ("data", "model", "optimiser", "sampling")
    )
    options, figures = record.get("options") or {}, list(record.get("iterations") or [])
    last = figures[-1] if figures else {}
    pixel_A = averages.pixel_size_A or 1.0
    box = averages.images.shape[-1]
    io.link_or_copy(particle_file, data)
    log_likelihood = float(np.nansum(poses.score.double().numpy()))
    mean_posterior = 1.0 if posterior is None else float(np.mean(posterior))
    _write_model(model, averages, particles, record, average_file, (log_likelihood, mean_posterior))
    number = iteration if iteration is not None else int(last.get("iteration") or len(figures))
    ctf = options.get("ctf_mode", options.get("ctf"))
    reach_px = record.get("search_range_px") or 0.1 * box
    io.write_sampling_star(
        sampling, psi_step_deg=PSI_STEP_DEG, offset_range_A=float(reach_px) * pixel_A, offset_step_A=2 * pixel_A
    )
    io.write_optimiser_star(
        optimiser,
        root=str(root).removesuffix(f"_it{number:03d}"),
        model=model,
        data=data,
        sampling=sampling,
        iteration=number,
        particle_diameter_A=float(record.get("diameter_A") or 0.9 * box * pixel_A),
        ctf=particles.ctf is not None and ctf not in (None, False, "off"),
        phase_flipped=ctf == "flipped",
        seed=int(options.get("seed") or record.get("seed") or 0),
        skip_align=bool(options.get("skip_align")),
        class_changes=_number(last.get("class_changes")),
        shift_changes_A=_number(last.get("pixel_error_px")) * pixel_A,
    )
    return [data, model, optimiser, sampling]


def _write_model(
    path: Path,
    averages: ClassAverages,
    particles: ParticleSet,
    record: Mapping[str, Any],
    average_file: Path,
    fit: tuple[float, float],
) -> None:
    """_model.star; `fit` is the log-likelihood of all particles, and the mean responsibility of their classes."""
    classes, pixel_A = list(record.get("classes") or []), averages.pixel_size_A or 1.0
    shift_px = _values(classes, "shift_spread_px")
    io.write_model_star(
        path,
        averages,
        averages_path=average_file,
        resolution_A=_values(classes, "resolution_A"),
        log_likelihood=fit[0],
        mean_posterior=fit[1],
        rotation_accuracy_deg=_values(classes, "inplane_spread_deg"),
        shift_accuracy_A=None if shift_px is None else [np.nan if v is None else v * pixel_A for v in shift_px],
        noise_power=noise_power(particles, averages.images.shape[-1]),
        groups=group_sizes(particles),
        n_optics=io.count_optics_groups(particles),
    )


def noise_power(particles: ParticleSet, box: int) -> np.ndarray | None:
    """Return the mean power of real and imaginary parts of some particles on each ring, in RELION's scale.

    That of rlnSigma2Noise, of transforms divided by the number of pixels. Single particles are nearly all noise, so
    this is what RELION itself starts with. Images that are not finite, or far brighter than the others, do not count.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    box : int
        Image size, pixels.

    Returns
    -------
    ndarray of shape (box // 2 + 1,) or None
        Power; None where no image can be read.
    """
    if not len(particles) or particles.box != box:
        return None
    rows = np.unique(np.linspace(0, len(particles) - 1, min(NOISE_SAMPLE, len(particles))).astype(np.int64))
    try:
        images = torch.from_numpy(particles.images.read(rows)).double()
    except (RalibError, OSError):
        return None
    power = ring_sums((torch.fft.rfft2(images) / box**2).abs().square()) / ring_counts(box)
    power = power[power.isfinite().all(dim=1)]
    if not len(power):
        return None
    total = power.sum(dim=1)
    power = power[total <= _BRIGHTER * total.median()]
    return np.asarray(power.mean(dim=0).numpy() / 2, dtype=np.float64)


def group_sizes(particles: ParticleSet) -> dict[str, int] | None:
    """Return the particles of each micrograph in order of appearance; None where no file names them."""
    if particles.group is None:
        return None
    names: list[str] = []
    for table in particles.metadata.tables.values():
        if isinstance(table, pd.DataFrame) and "rlnMicrographName" in table.columns:
            names = [str(name) for name in pd.unique(table["rlnMicrographName"])]
    sizes = np.bincount(particles.group).tolist()
    if len(names) != len(sizes):
        names = [f"group{g + 1:06d}.mrc" for g in range(len(sizes))]
    return dict(zip(names, sizes, strict=True))


def _values(classes: Sequence[Mapping[str, Any]], name: str) -> list[Any] | None:
    """One figure of all classes; None where no class has it."""
    values = [row.get(name) for row in classes]
    return values if any(isinstance(v, (int, float)) and np.isfinite(v) for v in values) else None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else 0.0
