"""RELION `_model.star` tables of a 2D classification, and the files of RELION's External job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ralib.io.atomic import PathLike, write_text
from ralib.io.mrc import write_mrcs
from ralib.io.paths import name_for_project
from ralib.io.star import Table, write_star
from ralib.types import ClassAverages, Poses, RalibError

_NO_RESOLUTION_A = 999.0
MOST_GROUP_SPECTRA = 500
_NODE_NUMBERS = {"ParticlesData": 3, "Image2DStack": 5, "ModelData": 8, "ProcessData": 9, "LogFile": 13}


def write_model_star(
    path: PathLike,
    averages: ClassAverages,
    *,
    averages_path: PathLike,
    poses: Poses | None = None,
    resolution_A: Sequence[float] | None = None,
    log_likelihood: float = 0.0,
    mean_posterior: float = 1.0,
    rotation_accuracy_deg: Sequence[float] | None = None,
    shift_accuracy_A: Sequence[float] | None = None,
    noise_power: np.ndarray | None = None,
    groups: Mapping[str, int] | None = None,
    n_optics: int = 1,
    project: Path | None = None,
) -> None:
    """Write the tables of RELION's run_it025_model.star: general figures, a row for each class, a table for each class.

    Parameters
    ----------
    path : PathLike
        The file.
    averages : ClassAverages
        Class averages.
    averages_path : PathLike
        Stack of class averages that the rows name.
    poses : Poses | None, optional
        Where given, classes K + 1 ... 2K of mirrored members are listed too (see `relion_write`); `averages_path` must
        then hold 2K images, as `write_class_stack` writes them.
    resolution_A : sequence of float of shape (K,), optional
        Resolution of each class, Angstrom; by default from the FRC at 0.143.
    log_likelihood : float, default 0.0
        Log likelihood of the model.
    mean_posterior : float, default 1.0
        Mean probability of the best class.
    rotation_accuracy_deg, shift_accuracy_A : sequence of float of shape (K,), optional
        Spread of the members' poses; by default RELION's 999 for unknown.
    noise_power : ndarray | None of shape (n // 2 + 1,), optional
        Noise power on each ring in RELION's scale (see `relion_job`); by default 1.
    groups : mapping, optional
        Particles of each micrograph, in order of appearance; RELION 3.1 reads a noise spectrum of each. With very many
        they are left out: RELION then opens the file for display and selection, but does not continue from it.
    n_optics : int, default 1
        Number of optics groups, of which RELION 4 and 5 read a noise spectrum each.
    project : Path | None, optional
        Folder in which RELION runs, by default the current one; names inside it become relative.
    """
    k, n = averages.images.shape[0], averages.images.shape[-1]
    pixel_A = averages.pixel_size_A or 1.0
    frc = None if averages.frc is None else averages.frc.double().cpu().numpy()
    resolution = list(resolution_A or [_resolution_A(frc, i, n, pixel_A) for i in range(k)])
    members = averages.members.cpu().numpy().astype(np.float64)
    if poses is not None and bool(poses.mirror.any()):
        counts = [_count(poses, k, mirrored) for mirrored in (False, True)]
        members, resolution = np.concatenate(counts), resolution * 2
    resolution = [_known(value) for value in resolution]
    accuracy = {"rlnAccuracyRotations": rotation_accuracy_deg, "rlnAccuracyTranslationsAngst": shift_accuracy_A}
    known = {name: [_known(v) for v in values] for name, values in accuracy.items() if values is not None}
    general = _general(n, pixel_A, len(members), min(resolution, default=_NO_RESOLUTION_A), log_likelihood)
    noise = np.ones(n // 2 + 1) if noise_power is None else noise_power
    stack = name_for_project(Path(averages_path), project, path)
    tables: dict[str, Table] = {
        "model_general": general | {"rlnAveragePmax": f"{mean_posterior:.6f}"},
        "model_classes": _classes(stack, members, resolution).assign(**known),
    }
    for i in range(len(members)):
        tables[f"model_class_{i + 1}"] = _class_table(frc, i % k, n, pixel_A)
    groups = groups or {"all": int(members.sum())}
    tables["model_groups"] = pd.DataFrame(
        {
            "rlnGroupNumber": np.arange(1, len(groups) + 1),
            "rlnGroupName": list(groups),
            "rlnGroupNrParticles": list(groups.values()),
            "rlnGroupScaleCorrection": 1.0,
        }
    )
    tables["model_general"]["rlnNrGroups"] = str(len(groups))
    tables["model_general"]["rlnNrOpticsGroups"] = str(n_optics)
    ring = np.arange(n // 2 + 1)
    spectrum = pd.DataFrame({"rlnSpectralIndex": ring, "rlnResolution": ring / (n * pixel_A), "rlnSigma2Noise": noise})
    names = [f"model_optics_group_{i + 1}" for i in range(n_optics)]
    if len(groups) <= MOST_GROUP_SPECTRA:
        names += [f"model_group_{i + 1}" for i in range(len(groups))]
    tables |= dict.fromkeys(names, spectrum)
    write_star(path, tables)


def _known(value: float | None) -> float:
    """RELION's 999 for what is not known."""
    return float(value) if value is not None and np.isfinite(value) else _NO_RESOLUTION_A


def write_class_stack(path: PathLike, images: torch.Tensor, pixel_size_A: float | None) -> None:
    """Write averages (K, n, n) followed by their mirror images: the references of RELION's classes 1 ... 2K.

    x -> -x about pixel n // 2: for even n column 0 stays, all others change sides.

    Parameters
    ----------
    path : PathLike
        The file.
    images : torch.Tensor of shape (K, n, n)
        Averages.
    pixel_size_A : float or None
        Pixel size, Angstrom.
    """
    write_mrcs(path, torch.cat([images, mirrored(images)]), pixel_size_A)


def mirrored(images: torch.Tensor) -> torch.Tensor:
    """Return images (..., n, n) under x -> -x about the centre pixel n // 2 (column 0 of an even box stays)."""
    flipped = images.flip(-1)
    return flipped.roll(1, dims=-1) if images.shape[-1] % 2 == 0 else flipped


def write_output_nodes(folder: PathLike, nodes: Mapping[str, str]) -> None:
    """Write RELION_OUTPUT_NODES.star, the outputs of a job.

    Parameters
    ----------
    folder : PathLike
        The job's folder.
    nodes : mapping
        Label by file name as RELION's project folder sees it, e.g. {'particles.star': 'ParticlesData.star.relion'}.
        RELION 4 and 5 read the label, RELION 3.1 only its number.
    """
    names, kinds = list(nodes), list(nodes.values())
    numbers = [_NODE_NUMBERS.get(kind.split(".")[0], 0) for kind in kinds]
    table = pd.DataFrame(
        {"rlnPipeLineNodeName": names, "rlnPipeLineNodeTypeLabel": kinds, "rlnPipeLineNodeType": numbers}
    )
    write_star(Path(folder) / "RELION_OUTPUT_NODES.star", {"output_nodes": table})


def write_job_exit(folder: PathLike, *, ok: bool) -> None:
    """Write the empty file by which RELION's pipeliner recognises the end of an External job.

    Parameters
    ----------
    folder : PathLike
        The job's folder.
    ok : bool
        Whether it succeeded.
    """
    write_text(Path(folder) / f"RELION_JOB_EXIT_{'SUCCESS' if ok else 'FAILURE'}", "")


def _general(n: int, pixel_A: float, k: int, best_A: float, log_likelihood: float) -> dict[str, str]:
    values = {
        "rlnReferenceDimensionality": 2, "rlnDataDimensionality": 2, "rlnOriginalImageSize": n,
        "rlnCurrentResolution": best_A, "rlnCurrentImageSize": n, "rlnPaddingFactor": 2.0, "rlnIsHelix": 0,
        "rlnFourierSpaceInterpolator": 1, "rlnMinRadiusNnInterpolation": 10, "rlnPixelSize": pixel_A,
        "rlnNrClasses": k, "rlnNrBodies": 1, "rlnNrGroups": 1, "rlnNrOpticsGroups": 1, "rlnTau2FudgeFactor": 1.0,
        "rlnNormCorrectionAverage": 1.0, "rlnSigmaOffsetsAngst": 10.0, "rlnOrientationalPriorMode": 0,
        "rlnSigmaPriorRotAngle": 0.0, "rlnSigmaPriorTiltAngle": 0.0, "rlnSigmaPriorPsiAngle": 0.0,
        "rlnLogLikelihood": log_likelihood, "rlnAveragePmax": 1.0,
    }  # fmt: skip
    return {name: f"{v:.6f}" if isinstance(v, float) else str(v) for name, v in values.items()}


def _classes(stack: str, members: np.ndarray, resolution_A: list[float]) -> pd.DataFrame:
    """One row a class: its image, its share of the particles, its resolution."""
    return pd.DataFrame(
        {
            "rlnReferenceImage": [f"{i + 1:06d}@{stack}" for i in range(len(members))],
            "rlnClassDistribution": members / max(1.0, members.sum()),
            "rlnAccuracyRotations": _NO_RESOLUTION_A,
            "rlnAccuracyTranslationsAngst": _NO_RESOLUTION_A,
            "rlnEstimatedResolution": resolution_A,
            "rlnOverallFourierCompleteness": np.where(members > 0, 1.0, 0.0),
            "rlnClassPriorOffsetX": 0.0,
            "rlnClassPriorOffsetY": 0.0,
        }
    )


def _class_table(frc: np.ndarray | None, index: int, n: int, pixel_A: float) -> pd.DataFrame:
    """Return a row for each Fourier ring: FRC of half averages, and the SSNR of the average, 2 FRC / (1 - FRC)."""
    ring = np.arange(n // 2 + 1)
    curve = np.zeros(n // 2 + 1)
    if frc is not None:
        if frc.shape[-1] != len(ring):
            raise RalibError(f"FRC curves of {frc.shape[-1]} rings do not fit averages of {n} px ({len(ring)} rings)")
        curve = np.nan_to_num(frc[index]).clip(-1, 1)
    inside = curve.clip(0, 0.9999)
    per_A = ring / (n * pixel_A)
    return pd.DataFrame(
        {
            "rlnSpectralIndex": ring,
            "rlnResolution": per_A,
            "rlnAngstromResolution": np.where(ring > 0, 1 / np.where(ring > 0, per_A, 1), _NO_RESOLUTION_A),
            "rlnSsnrMap": 2 * inside / (1 - inside),
            "rlnGoldStandardFsc": curve,
            "rlnFourierCompleteness": 1.0,
            "rlnReferenceSigma2": 1.0,
            "rlnReferenceTau2": 2 * inside / (1 - inside),
            "rlnSpectralOrientabilityContribution": 0.0,
        }
    )


def _resolution_A(frc: np.ndarray | None, index: int, n: int, pixel_A: float) -> float:
    """The last ring before the FRC first falls below 0.143."""
    if frc is None:
        return _NO_RESOLUTION_A
    below = np.flatnonzero(np.nan_to_num(frc[index][1:]) < 0.143)
    ring = int(below[0]) if len(below) else n // 2
    return n * pixel_A / ring if ring else _NO_RESOLUTION_A


def _count(poses: Poses, k: int, mirrored_members: bool) -> np.ndarray:
    index = poses.class_index[(poses.mirror == mirrored_members) & (poses.class_index >= 0)].cpu()
    return torch.bincount(index, minlength=k)[:k].double().numpy()
