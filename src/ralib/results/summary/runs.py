"""A finished run as read from its files: the package's run folder, or a RELION 2D classification job."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib.io import one_row, open_images, open_particles, read_star
from ralib.io.class_averages import iterations_not_read, job_data_file, relion_iterations
from ralib.io.text import read_numbers
from ralib.results.particle_scores import SCORES_FILE, class_scores, read_particle_scores, table_scores
from ralib.results.run_record import check_finished, read_record
from ralib.types import ParticleSet, Poses, RalibError, RunResult


@dataclass(frozen=True)
class RunFiles:
    """The files of a run, read but not evaluated.

    Attributes
    ----------
    path : Path
        The run's folder.
    record : dict[str, Any]
        run.json, or the same keys as far as another program's files give them.
    averages : ndarray of shape (k, n, n)
        Class averages.
    particles : ParticleSet
        The particles.
    poses : Poses
        Their poses, with class_index from 0.
    history : list[tuple[int, Path]]
        (iteration, file of its averages) in order.
    frc_frequency_per_px : ndarray | None of shape (f,), optional
        Frequencies of the FRC, cycles per pixel.
    frc : ndarray | None of shape (k, f), optional
        FRC of each class.
    scores : dict[str, ndarray] of shape (n,)
        Posterior, junk, quality ... by name; see `ralib.results.particle_scores`.
    """

    path: Path
    record: dict[str, Any]
    averages: np.ndarray
    particles: ParticleSet
    poses: Poses
    history: list[tuple[int, Path]] = field(default_factory=list)
    frc_frequency_per_px: np.ndarray | None = None
    frc: np.ndarray | None = None
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def n_classes(self) -> int:
        """Number of classes k."""
        return len(self.averages)

    @property
    def members(self) -> np.ndarray:
        """Particles in each class (k,), counted from the poses."""
        index = self.poses.class_index.numpy()
        return np.bincount(index[index >= 0], minlength=self.n_classes)


def open_run(path: Path | str, *, datadir: Path | str | None = None) -> RunFiles:
    """Open a run: the package's OUTDIR, a Class2D job of RELION or cryoSPARC, or such a job's particle file.

    Parameters
    ----------
    path : Path or str
        Folder or file; of a RELION job its _optimiser.star or _model.star too.
    datadir : Path or str, optional
        Folder of the image files, if they are not where the particle file says.

    Returns
    -------
    RunFiles
        The run.

    Raises
    ------
    RalibError
        If it is no run.
    """
    path = Path(path)
    if path.is_dir() and (path / "run.json").is_file():
        return _open_ralib(path, datadir)
    if path.is_file() and (path.parent / "run.json").is_file():  # one of the files for RELION of a run of ours
        check_finished(read_record(path.parent), path.parent)
    if path.is_dir():
        found = relion_iterations(path) or sorted(path.glob("*_data.star"))
        if found:
            complete = [file for file in found if _classes_of(file).is_file()]
            return _open_relion((complete or found)[-1], datadir, iterations_not_read(found, (complete or found)[-1]))
    elif (data := job_data_file(path)) is not None:
        return _open_relion(data, datadir)
    if path.is_dir() or path.suffix.lower() == ".cs":
        found = sorted(path.glob("*_particles.cs")) if path.is_dir() else [path] * path.is_file()
        classified = [file for file in found if _class_stack(file).is_file()]
        if classified:
            return _open_cryosparc(classified[-1], datadir)
    raise RalibError(
        f"{path} is no run: expected a folder with run.json (written by ralib), with RELION's *_itNNN_data.star, or "
        "with cryoSPARC's *_particles.cs and *_class_averages.mrc"
    )


def finished_run(path: Path, record: dict[str, Any], result: RunResult, particles: ParticleSet) -> RunFiles:
    """Return the run that just ended, without reading back what is still in memory.

    Parameters
    ----------
    path : Path
        Its folder.
    record : dict[str, Any]
        Its record.
    result : RunResult
        Its result.
    particles : ParticleSet
        The particles.

    Returns
    -------
    RunFiles
        The run.
    """
    averages = result.averages
    frc = None if averages.frc is None else averages.frc.double().cpu().numpy()
    frequency = None if frc is None else np.arange(frc.shape[1]) / averages.images.shape[-1]
    images, poses = averages.images.cpu().numpy(), result.poses.to("cpu")
    scores = {name: np.asarray(values) for name, values in result.particle_scores.items()}
    by_class = class_scores(poses.class_index.numpy(), record.get("classes") or [])
    if by_class is not None:
        scores["class_score"] = by_class
    return RunFiles(path, record, images, particles, poses, iteration_averages(path), frequency, frc, scores)


def _open_ralib(path: Path, datadir: Path | str | None) -> RunFiles:
    record = read_record(path)
    check_finished(record, path)
    for needed in ("class_averages.mrcs", "particles.star"):
        if not (path / needed).is_file():
            raise RalibError(f"{path}: {needed} is missing, the run has not finished; go on with `resume`")
    averages = open_images(path / "class_averages.mrcs")
    averages = averages[: len(record.get("classes") or averages)]  # mirrored copies may follow the classes
    particles = open_particles(path / "particles.star", datadir=datadir, require_images=False)
    poses = _poses_of(particles, len(averages), path / "particles.star")
    frequency, frc = frc_curves(path / "frc.txt", len(averages))
    scores = _scores_of(path, particles, poses, record)
    return RunFiles(path, record, averages, particles, poses, iteration_averages(path), frequency, frc, scores)


def _scores_of(path: Path, particles: ParticleSet, poses: Poses, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """Scores of particle_scores.txt, and those that only the particle file holds."""
    table = particle_table(particles)
    scores = {} if table is None else table_scores(table)
    scores |= read_particle_scores(path / SCORES_FILE, len(particles))
    by_class = class_scores(poses.class_index.numpy(), record.get("classes") or [])
    return scores if by_class is None else {**scores, "class_score": by_class}


def particle_table(particles: ParticleSet) -> pd.DataFrame | None:
    """Return the table of a STAR file with a row for each particle; None for other sources."""
    tables = particles.metadata.tables.values()
    return next((t for t in tables if isinstance(t, pd.DataFrame) and "rlnImageName" in t.columns), None)


def iteration_averages(path: Path) -> list[tuple[int, Path]]:
    """Return the averages after each iteration of a run of the package."""
    return [
        (int(folder.name), folder / "averages.mrcs")
        for folder in sorted((path / "iterations").glob("[0-9]*"))
        if folder.name.isdecimal() and (folder / "averages.mrcs").is_file()
    ]


def _poses_of(particles: ParticleSet, n_classes: int, path: Path) -> Poses:
    if particles.poses is None:
        raise RalibError(f"{path} has no poses (rlnAnglePsi, rlnClassNumber): there is nothing to report")
    highest = int(particles.poses.class_index.max()) + 1
    if highest > n_classes:
        raise RalibError(f"{path} has class {highest}, but there are {n_classes} class averages: files of two runs?")
    return particles.poses.to("cpu")


def frc_curves(path: Path, n_classes: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Read FRC curves of a frc.txt.

    Parameters
    ----------
    path : Path
        The run's folder.
    n_classes : int
        Number of classes.

    Returns
    -------
    ndarray of shape (f,) or None
        Frequencies, cycles per pixel; None where there is no file.
    ndarray of shape (k, f) or None
        Curves; None where there is no file.
    """
    if not path.is_file():
        return None, None
    table = read_numbers(path, "table of numbers")
    if table.shape[1] < n_classes + 1:
        raise RalibError(f"{path} has {table.shape[1] - 1} curves for {n_classes} classes: files of two runs?")
    return table[:, 0], table[:, 1 : n_classes + 1].T


def _classes_of(data_star: Path) -> Path:
    """run_it025_data.star -> run_it025_classes.mrcs."""
    return data_star.with_name(data_star.name.removesuffix("_data.star") + "_classes.mrcs")


def _open_relion(data_star: Path, datadir: Path | str | None, not_read: Sequence[Path] = ()) -> RunFiles:
    """A RELION 2D classification: *_data.star, *_classes.mrcs and, where it is there, *_model.star."""
    stem = data_star.name.removesuffix("_data.star")
    classes = _classes_of(data_star)
    if not classes.is_file():
        raise RalibError(f"{classes} is missing beside {data_star.name}: copy it there")
    averages = open_images(classes)
    particles = open_particles(data_star, datadir=datadir, require_images=False)
    if not_read:
        particles = particles.warned(
            f"{data_star} is read, not {', '.join(file.name for file in not_read)}",
            "run",
            "give that file itself if its classes are meant",
        )
    poses = _poses_of(particles, len(averages), data_star)
    prefix = re.sub(r"_it\d+$", "", stem)
    history, iterations = [], []
    for model in sorted(data_star.parent.glob(f"{prefix}*_model.star")):
        number = re.search(r"_it(\d+)_model\.star$", model.name)
        if number:
            iterations.append({"iteration": int(number[1]), **_relion_model(model, len(poses), len(averages))})
            history.append((int(number[1]), model.with_name(model.name.replace("_model.star", "_classes.mrcs"))))
    model = data_star.with_name(f"{stem}_model.star")
    last = _relion_model(model, len(poses), len(averages)) if model.is_file() else {}
    resolutions = last.get("resolution_A") or [None] * len(averages)
    record: dict[str, Any] = {
        "program": "RELION",
        "kind": "Class2D",
        "input": {"path": str(data_star), "particles": len(poses), "box": averages.shape[-1]},
        "iterations": iterations,
        "classes": [{"class": k + 1, "resolution_A": resolutions[k]} for k in range(len(averages))],
    }
    record["input"]["pixel_size_A"] = particles.pixel_size_A
    return RunFiles(data_star, record, averages, particles, poses, [h for h in history if h[1].is_file()])


def _class_stack(particles: Path) -> Path:
    """J12_020_particles.cs -> J12_020_class_averages.mrc, as cryoSPARC's 2D classification names them."""
    return particles.with_name(particles.name.removesuffix("_particles.cs") + "_class_averages.mrc")


def _open_cryosparc(cs: Path, datadir: Path | str | None) -> RunFiles:
    """A cryoSPARC 2D classification: *_particles.cs with alignments2D, and *_class_averages.mrc beside it."""
    averages = open_images(_class_stack(cs))
    particles = open_particles(cs, datadir=datadir, require_images=False)
    poses = _poses_of(particles, len(averages), cs)
    source = {"path": str(cs), "particles": len(poses), "box": averages.shape[-1]}
    record = {"program": "cryoSPARC", "kind": "Class2D", "input": source, "iterations": [], "classes": []}
    source["pixel_size_A"] = particles.pixel_size_A
    return RunFiles(cs, record, averages, particles, poses)


def _relion_model(path: Path, n_particles: int, n_classes: int) -> dict[str, Any]:
    """Class sizes and resolutions of one iteration's model file; a share that is no number counts as none."""
    table = read_star(path).get("model_classes")
    table = one_row(table) if isinstance(table, dict) else table
    if table is None or "rlnClassDistribution" not in table.columns:
        return {}
    share = np.nan_to_num(_model_numbers(table, "rlnClassDistribution", path, n_classes), posinf=0.0).clip(0, 1)
    sizes = np.round(share * n_particles).astype(int)
    filled = share[share > 0]
    figures: dict[str, Any] = {
        "class_sizes": sizes.tolist(),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
        "effective_classes": float(np.exp(-(filled * np.log(filled)).sum())),
    }
    if "rlnEstimatedResolution" in table.columns:
        resolution = _model_numbers(table, "rlnEstimatedResolution", path, n_classes)
        known = np.isfinite(resolution) & (resolution > 0) & (resolution < 900)
        figures["resolution_A"] = [float(r) if good else None for r, good in zip(resolution, known, strict=True)]
        figures["median_resolution_A"] = float(np.median(resolution[known])) if known.any() else None
    return figures


def _model_numbers(table: pd.DataFrame, column: str, path: Path, n_classes: int) -> np.ndarray:
    """A column (k,) of a model file's classes."""
    try:
        values = pd.to_numeric(table[column]).to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise RalibError(f"{path}: the column {column} should hold numbers; {error}") from error
    if len(values) != n_classes:
        raise RalibError(
            f"{path} has {len(values)} classes, and there are {n_classes} class averages: files of two runs?"
        )
    return np.asarray(values)
