"""Particle STAR files as RELION 3.1 and later read them: optics table, poses in Angstrom, mirrors as classes
of their own.

RELION has no mirror. A mirrored member of class k keeps psi and origin and becomes a member of class K + k,
whose average is class k's mirrored (pixel column 0 of an even box stays): then p_ref = R(psi)(p + origin)
holds for every particle without any mirror. Columns ralibClass and ralibMirror hold the original class and
mirror; our reader takes those first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib import conventions
from ralib.io.atomic import PathLike
from ralib.io.cryosparc import image_paths
from ralib.io.cryosparc_write import FIELDS_BLOCK, MICROGRAPH, star_columns
from ralib.io.paths import name_for_project
from ralib.io.relion import particle_block
from ralib.io.stacks import file_references
from ralib.io.star import Table, write_star
from ralib.types import ParticleSet, Poses, RalibError

_SHARED = {  # columns RELION >= 3.1 keeps in data_optics
    "rlnVoltage": "voltage_kV",
    "rlnSphericalAberration": "spherical_aberration_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
}
_UNKNOWN = {"rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
_OWN = {
    "rlnDefocusU": "defocus_u_A",
    "rlnDefocusV": "defocus_v_A",
    "rlnDefocusAngle": "astigmatism_angle_deg",
    "rlnPhaseShift": "phase_shift_deg",
    "rlnCtfBfactor": "bfactor_A2",
}
_REPLACED = ["rlnOriginX", "rlnOriginY", "rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize"]


def write_particles_star(
    path: PathLike,
    particles: ParticleSet,
    poses: Poses | None = None,
    *,
    n_classes: int | None = None,
    mirror_as_class: bool = True,
    project: Path | None = None,
    image_names: list[str] | None = None,
) -> None:
    """Write `particles` with `poses` (the particles' own if None) as a RELION particle file.

    n_classes        K, for the classes K + k of mirrored members; from the poses if None
    mirror_as_class  False keeps mirrored members in class k: only for readers that know ralibMirror
    project          folder RELION runs in (the current one): image names inside it become relative
    image_names      `000001@stack.mrcs` of each particle, for sources that are not files
    Columns and blocks we do not know are written back as they came.
    """
    write_star(path, particle_tables(particles, poses, n_classes, mirror_as_class, project, image_names))


def particle_tables(
    particles: ParticleSet,
    poses: Poses | None,
    n_classes: int | None,
    mirror_as_class: bool,
    project: Path | None,
    image_names: list[str] | None = None,
) -> dict[str, Table]:
    """The blocks that `write_particles_star` writes."""
    poses = particles.poses if poses is None else poses
    if poses is not None and len(poses) != len(particles):
        raise RalibError(f"{len(poses)} poses for {len(particles)} particles: they must come from the same file")
    kept = _kept_tables(particles)
    block = particle_block(kept)
    old = kept[block] if block is not None else pd.DataFrame(index=range(len(particles)))
    assert isinstance(old, pd.DataFrame)
    table = old.reset_index(drop=True).copy(deep=False)
    names = image_names or _image_names(particles, old, project)
    columns: dict[str, Any] = {"rlnImageName": names}
    if particles.group is not None and "rlnMicrographName" not in table.columns:
        columns["rlnMicrographName"] = [f"group{g + 1:06d}.mrc" for g in particles.group.tolist()]
    if particles.ctf is not None:
        columns |= {c: getattr(particles.ctf, name) for c, name in _OWN.items()}
    optics, pixel_size_A = _optics(particles, kept.get("optics"), table)
    columns["rlnOpticsGroup"] = optics.pop("group_of_particle")
    if poses is not None:
        columns |= pose_columns(poses, pixel_size_A, n_classes, mirror_as_class)
    moved = (*_REPLACED, *_SHARED) if "optics" not in kept else _REPLACED
    table = table.drop(columns=[c for c in moved if c in table.columns])
    table = table.assign(**columns)
    rest = {n: t for n, t in kept.items() if n not in (block, "optics")}
    return {"optics": pd.DataFrame(optics["table"]), "particles": table, **rest}


def _kept_tables(particles: ParticleSet) -> dict[str, Any]:
    """The blocks the particles came with; a .cs table becomes columns cs/... of a particle table."""
    metadata = particles.metadata
    if metadata.source_format == "relion":
        return metadata.tables
    if metadata.source_format != "cryosparc":
        return {}
    rows = metadata.tables["cs"]
    columns, types = star_columns(rows)
    slices = (rows["blob/idx"].astype(np.int64) + 1).tolist()
    names = [f"{i:06d}@{p}" for i, p in zip(slices, image_paths(rows), strict=True)]
    known = {"rlnImageName": names}
    if MICROGRAPH in columns:
        known["rlnMicrographName"] = columns[MICROGRAPH]
    return {"particles": pd.DataFrame({**known, **columns}), FIELDS_BLOCK: types}


def pose_columns(
    poses: Poses, pixel_size_A: np.ndarray, n_classes: int | None, mirror_as_class: bool
) -> dict[str, np.ndarray]:
    """The pose columns; pixel_size_A (n,)."""
    poses = poses.to("cpu")
    k = n_classes if n_classes is not None else int(poses.class_index.max()) + 1 if len(poses) else 1
    relion_class = poses.class_index
    if mirror_as_class:
        relion_class = conventions.mirror_to_class(poses.class_index, poses.mirror, k)
    origin_A = poses.origin_xy_px.double().numpy() * pixel_size_A[:, None]
    columns = {
        "rlnAnglePsi": np.round(poses.psi_deg.double().numpy(), 6),
        "rlnOriginXAngst": np.round(origin_A[:, 0], 6),
        "rlnOriginYAngst": np.round(origin_A[:, 1], 6),
        "rlnClassNumber": relion_class.numpy() + 1,
        "ralibClass": poses.class_index.numpy() + 1,
        "ralibMirror": poses.mirror.numpy().astype(np.int64),
    }
    if bool((poses.score == poses.score).any()):
        columns["ralibScore"] = poses.score.double().numpy()
    return columns


def _image_names(particles: ParticleSet, old: pd.DataFrame, project: Path | None) -> list[str]:
    files = file_references(particles.images)
    if files is not None:
        names = [name_for_project(p, project) for p in files[0]]
        return [f"{i + 1:06d}@{names[f]}" for i, f in zip(files[2].tolist(), files[1].tolist(), strict=True)]
    if "rlnImageName" in old.columns:
        return old["rlnImageName"].tolist()
    raise RalibError("these particles are in memory only: write the images first (write_mrcs), then open that file")


def _optics(particles: ParticleSet, old: Any, table: pd.DataFrame) -> tuple[dict[str, Any], np.ndarray]:
    """The optics table, each particle's group, and each particle's pixel size (1 where none is known).

    RELION refuses a table without voltage and spherical aberration; where no CTF is known they have usual values,
    which nothing uses without a defocus.
    """
    n = len(particles)
    if isinstance(old, pd.DataFrame) and len(old):
        return _kept_optics(particles, old, table)
    size = particles.pixel_size_A or 1.0
    shared = {c: getattr(particles.ctf, a) for c, a in _SHARED.items()} if particles.ctf is not None else _UNKNOWN
    columns = [np.broadcast_to(np.asarray(v, dtype=np.float64), (n,)) for v in shared.values()]
    rows, group = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    optics = pd.DataFrame({"rlnOpticsGroupName": [f"opticsGroup{i + 1}" for i in range(len(rows))]})
    optics["rlnOpticsGroup"] = np.arange(1, len(rows) + 1)
    for j, column in enumerate(shared):
        optics[column] = rows[:, j]
    optics["rlnMicrographOriginalPixelSize"] = size
    optics["rlnImagePixelSize"] = size
    optics["rlnImageSize"] = particles.box
    optics["rlnImageDimensionality"] = 2
    return {"table": optics, "group_of_particle": group.reshape(-1) + 1}, np.full(n, size)


def _kept_optics(particles: ParticleSet, old: pd.DataFrame, table: pd.DataFrame) -> tuple[dict[str, Any], np.ndarray]:
    """The optics table that came with the particles, completed; pixel size and box are those of the images
    now."""
    optics = old.copy()
    n = len(particles)
    if "rlnOpticsGroup" not in optics.columns:
        optics["rlnOpticsGroup"] = np.arange(1, len(optics) + 1)
    group = table["rlnOpticsGroup"].to_numpy() if "rlnOpticsGroup" in table.columns else np.ones(n, dtype=np.int64)
    for column, value in _UNKNOWN.items():
        if column not in optics.columns:
            own: Any = table.groupby(group)[column].first() if column in table.columns else {}
            optics[column] = [own.get(g, value) for g in optics["rlnOpticsGroup"].tolist()]
    if "rlnImagePixelSize" not in optics.columns:
        optics["rlnImagePixelSize"] = particles.pixel_size_A or 1.0
    elif particles.pixel_size_A is not None and not (optics["rlnImagePixelSize"] == particles.pixel_size_A).any():
        optics["rlnImagePixelSize"] = particles.pixel_size_A  # the images were rescaled
    if particles.box:
        optics["rlnImageSize"] = particles.box
    optics["rlnImageDimensionality"] = 2
    sizes = dict(zip(optics["rlnOpticsGroup"].tolist(), optics["rlnImagePixelSize"].astype(float), strict=True))
    return {"table": optics, "group_of_particle": group}, np.array([sizes[g] for g in group.tolist()])
