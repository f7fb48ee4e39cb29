"""Writer of particle STAR files as RELION 3.1 and later read them: optics table, poses in Angstrom, and the mirror.

RELION's 2D classification has no mirror, but its Euler angles have: a mirrored image lies at rlnAngleTilt 180 with the
same psi and origin, p_ref = Ry(180) R(psi)(p + origin). A run is written so, and its classes keep their numbers.
RELION's 2D programs ignore the tilt; for these `mirror_as_class` makes a mirrored member of class k one of class K + k,
whose average is class k's mirrored (pixel column 0 of an even box stays): then p_ref = R(psi)(p + origin) holds for
every particle without any mirror. Columns ralibClass and ralibMirror hold the original class and mirror; our reader
uses those first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib import conventions
from ralib.io.atomic import PathLike
from ralib.io.carried import group_name
from ralib.io.cryosparc_table import image_paths
from ralib.io.cryosparc_write import FIELDS_BLOCK, MICROGRAPH, class_count, half_sets, one_a_particle, star_columns
from ralib.io.paths import name_for_project
from ralib.io.picks import star_places
from ralib.io.relion import STATE_COLUMNS, stated_pixel_sizes_A, turned_over
from ralib.io.relion_optics import SHARED, optics_of, pixel_sizes_A
from ralib.io.relion_table import particle_block
from ralib.io.stacks import file_references
from ralib.io.star import Table, text_column, write_star
from ralib.io.viewing import VIEW_COLUMNS, viewing_directions
from ralib.types import ParticleSet, Poses, RalibError

_OWN = {
    "rlnDefocusU": "defocus_u_A",
    "rlnDefocusV": "defocus_v_A",
    "rlnDefocusAngle": "astigmatism_angle_deg",
    "rlnPhaseShift": "phase_shift_deg",
    "rlnCtfBfactor": "bfactor_A2",
}
_OF_IMAGES = ("rlnImagePixelSize", "rlnImageSize", "rlnImageDimensionality")
_REPLACED = (
    "rlnOriginX",
    "rlnOriginY",
    "rlnOriginXPrior",
    "rlnOriginYPrior",
    "rlnMagnification",
    "rlnDetectorPixelSize",
    "rlnPixelSize",
)


def write_particles_star(
    path: PathLike,
    particles: ParticleSet,
    poses: Poses | None = None,
    *,
    n_classes: int | None = None,
    mirror_as_class: bool = True,
    project: Path | None = None,
    image_names: list[str] | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write particles as a RELION particle file; unknown columns and blocks are written unchanged.

    Parameters
    ----------
    path : PathLike
        The file.
    particles : ParticleSet
        The particles.
    poses : Poses | None, optional
        Their poses; by default the particles' own.
    n_classes : int | None, optional
        Number of classes K, for the classes K + k of mirrored members, above every class of the poses; by default
        from these.
    mirror_as_class : bool, default True
        False keeps mirrored members in class k, with rlnAngleTilt 180.
    project : Path | None, optional
        Folder in which RELION runs, by default the current one; image names inside it become relative.
    image_names : list of str, optional
        `000001@stack.mrcs` of each particle, for sources that are not files.
    columns : mapping of shape (n,), optional
        Further columns by name, such as scores, in the order of the particles.

    Raises
    ------
    RalibError
        If a particle's class is none of `n_classes`, or poses or columns are not one a particle.
    """
    columns = one_a_particle("columns", columns, len(particles))
    tables = particle_tables(particles, poses, n_classes, mirror_as_class, project, image_names, path)
    if columns:
        table = tables["particles"]
        assert isinstance(table, pd.DataFrame)
        tables["particles"] = table.assign(**columns)
    write_star(path, tables)


def particle_tables(
    particles: ParticleSet,
    poses: Poses | None,
    n_classes: int | None,
    mirror_as_class: bool,
    project: Path | None,
    image_names: list[str] | None = None,
    star: PathLike | None = None,
) -> dict[str, Table]:
    """Return the blocks that `write_particles_star` writes.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    poses : Poses or None
        Their poses; None for the particles' own.
    n_classes : int or None
        Number of classes K; None from the poses.
    mirror_as_class : bool
        Whether mirrored members are in classes K + k.
    project : Path or None
        Folder in which RELION runs.
    image_names : list of str, optional
        Name of each image, for sources that are not files.
    star : PathLike | None, optional
        The file they are for.

    Returns
    -------
    dict
        Tables by block name.
    """
    poses = particles.poses if poses is None else poses
    if poses is not None and len(poses) != len(particles):
        raise RalibError(f"{len(poses)} poses for {len(particles)} particles: they must come from the same file")
    kept = _kept_tables(particles)
    block = particle_block(kept)
    old = kept[block] if block is not None else pd.DataFrame(index=range(len(particles)))
    assert isinstance(old, pd.DataFrame)
    table = old.reset_index(drop=True).copy(deep=False)
    names = image_names or _image_names(particles, old, project, star)
    columns: dict[str, Any] = {"rlnImageName": text_column(names)}
    if particles.group is not None and "rlnMicrographName" not in table.columns:
        columns["rlnMicrographName"] = [group_name(g + 1) for g in particles.group.tolist()]
    if particles.ctf is not None:
        own = {c: name for c, name in SHARED.items() if c in table.columns and "optics" in kept}
        columns |= {c: getattr(particles.ctf, name) for c, name in (_OWN | own).items()}
    optics, group = optics_of(particles, kept.get("optics"), table)
    columns["rlnOpticsGroup"] = group
    pixel_size_A = pixel_sizes_A(particles, optics, group)
    if poses is not None:
        columns |= pose_columns(poses, pixel_size_A, n_classes, mirror_as_class)
        if mirror_as_class and turned_over(table, Path(particles.metadata.path)).any():
            columns["rlnAngleTilt"] = 0.0  # or who reads the tilt would mirror the images of class K + k again
        if (view_deg := viewing_directions(particles)) is not None:  # which rot and tilt no longer tell
            columns |= dict(zip(VIEW_COLUMNS, view_deg.round(6).T, strict=True))
    priors_A = _priors_A(table, particles)
    table, columns = table.drop(columns=[c.removesuffix("Angst") for c in priors_A]), columns | priors_A
    moved = (*_REPLACED, *SHARED, *STATE_COLUMNS, *_OF_IMAGES) if "optics" not in kept else (*_REPLACED, *_OF_IMAGES)
    table = table.drop(columns=[c for c in moved if c in table.columns])
    table = table.assign(**columns)
    rest = {n: t for n, t in kept.items() if n not in (block, "optics")}
    return {"optics": optics, "particles": table, **rest}


def _priors_A(table: pd.DataFrame, particles: ParticleSet) -> dict[str, np.ndarray]:
    """RELION 3.0's priors of the origins, which count in pixels of the images as they were, in Angstrom."""
    old = [f"rlnOrigin{axis}Prior" for axis in "XY" if f"rlnOrigin{axis}Prior" in table.columns]
    size_A = stated_pixel_sizes_A(particles.metadata) if old else None
    if size_A is None:
        return {}
    return {f"{c}Angst": pd.to_numeric(table[c], errors="coerce").to_numpy(np.float64) * size_A for c in old}


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
    known: dict[str, Any] = {"rlnImageName": text_column(names)}
    if MICROGRAPH in columns:
        known |= {"rlnMicrographName": columns[MICROGRAPH], **star_places(particles)}
    known |= half_sets(rows)
    return {"particles": pd.DataFrame({**known, **columns}), FIELDS_BLOCK: types}


def pose_columns(
    poses: Poses, pixel_size_A: np.ndarray, n_classes: int | None, mirror_as_class: bool
) -> dict[str, np.ndarray]:
    """Return the columns of poses.

    Parameters
    ----------
    poses : Poses
        Poses.
    pixel_size_A : ndarray of shape (n,)
        Pixel size of each particle, Angstrom.
    n_classes : int or None
        Number of classes K; None from the poses.
    mirror_as_class : bool
        Whether mirrored members are in classes K + k.

    Returns
    -------
    dict
        Columns by name.
    """
    poses = poses.to("cpu")
    k = class_count(poses, n_classes)
    relion_class = poses.class_index
    if mirror_as_class:
        relion_class = conventions.mirror_to_class(poses.class_index, poses.mirror, k)
    origin_A = poses.origin_xy_px.double().numpy() * pixel_size_A[:, None]
    turned_over = {} if mirror_as_class else {"rlnAngleRot": 0.0, "rlnAngleTilt": 180.0 * poses.mirror.double().numpy()}
    columns = {
        **turned_over,
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


def _image_names(particles: ParticleSet, old: pd.DataFrame, project: Path | None, star: PathLike | None) -> list[str]:
    files = file_references(particles.images)
    if files is not None:
        names = [name_for_project(p, project, star) for p in files[0]]
        return [f"{i + 1:06d}@{names[f]}" for i, f in zip(files[2].tolist(), files[1].tolist(), strict=True)]
    if "rlnImageName" in old.columns:
        return old["rlnImageName"].tolist()
    raise RalibError("these particles are in memory only: write the images first (write_mrcs), then open that file")
