"""Writer of particle STAR files as RELION 3.1 and later read them: optics table, poses in Angstrom, and the mirror.

RELION's 2D classification has no mirror, but its Euler angles have: a mirrored image lies at rlnAngleTilt 180 with the
same psi and origin, p_ref = Ry(180) R(psi)(p + origin). A run is written so, and its classes keep their numbers.
RELION's 2D programs ignore the tilt; for these `mirror_as_class` makes a mirrored member of class k one of class K + k,
whose average is class k's mirrored (pixel column 0 of an even box stays): then p_ref = R(psi)(p + origin) holds for
every particle without any mirror. Columns ralibClass and ralibMirror hold the original class and mirror; our reader
uses those first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib import conventions
from ralib.io.atomic import PathLike
from ralib.io.cryosparc import image_paths
from ralib.io.cryosparc_write import FIELDS_BLOCK, MICROGRAPH, half_sets, star_columns
from ralib.io.paths import name_for_project
from ralib.io.picks import star_places
from ralib.io.relion import STATE_COLUMNS, particle_block, stated_pixel_sizes_A, turned_over
from ralib.io.stacks import file_references
from ralib.io.star import Table, text_column, write_star
from ralib.io.viewing import VIEW_COLUMNS, viewing_directions
from ralib.types import CtfState, ParticleSet, Poses, RalibError

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
_WHOLE = ("rlnImageSize", *STATE_COLUMNS)
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
        Number of classes K, for the classes K + k of mirrored members; by default from the poses.
    mirror_as_class : bool, default True
        False keeps mirrored members in class k, with rlnAngleTilt 180.
    project : Path | None, optional
        Folder in which RELION runs, by default the current one; image names inside it become relative.
    image_names : list of str, optional
        `000001@stack.mrcs` of each particle, for sources that are not files.
    columns : mapping of shape (n,), optional
        Further columns by name, such as scores.
    """
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
        columns["rlnMicrographName"] = [f"group{g + 1:06d}.mrc" for g in particles.group.tolist()]
    if particles.ctf is not None:
        own = {c: name for c, name in _SHARED.items() if c in table.columns and "optics" in kept}
        columns |= {c: getattr(particles.ctf, name) for c, name in (_OWN | own).items()}
    optics, group = _optics(particles, kept.get("optics"), table)
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
    moved = (*_REPLACED, *_SHARED, *STATE_COLUMNS, *_OF_IMAGES) if "optics" not in kept else (*_REPLACED, *_OF_IMAGES)
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
    k = n_classes if n_classes is not None else int(poses.class_index.max()) + 1 if len(poses) else 1
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


def _optics(particles: ParticleSet, old: Any, table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the optics table, and each particle's group (n,).

    RELION refuses a table without voltage and spherical aberration; where no CTF is known they have usual values, which
    nothing uses without a defocus. Particles of another pixel size, box or CTF state are another group.
    """
    if isinstance(old, pd.DataFrame) and len(old):
        return _kept_optics(particles, old, table)
    n = len(particles)
    shared = {c: getattr(particles.ctf, a) for c, a in _SHARED.items()} if particles.ctf is not None else _UNKNOWN
    shared = shared | _image_columns(particles)
    columns = [np.broadcast_to(np.asarray(v, dtype=np.float64), (n,)) for v in shared.values()]
    first, group = _distinct([*columns, _exposure_groups(particles)])
    rows = np.stack(columns, axis=1)[first]
    optics = pd.DataFrame({"rlnOpticsGroupName": [f"opticsGroup{i + 1}" for i in range(len(rows))]})
    optics["rlnOpticsGroup"] = np.arange(1, len(rows) + 1)
    for j, column in enumerate(shared):
        optics[column] = rows[:, j].astype(np.int64) if column in _WHOLE else rows[:, j]
    if "rlnCoordinateX" not in table.columns:  # else it would say in which pixels they count, which is not known
        optics["rlnMicrographOriginalPixelSize"] = optics.get("rlnImagePixelSize", 1.0)
    if "rlnImagePixelSize" not in optics.columns:
        optics["rlnImagePixelSize"] = 1.0
    optics["rlnImageDimensionality"] = 2
    return optics, group + 1


def _exposure_groups(particles: ParticleSet) -> np.ndarray:
    """CryoSPARC's number (n,) for what RELION calls optics groups; zeros for other files."""
    rows = particles.metadata.tables.get("cs") if particles.metadata.source_format == "cryosparc" else None
    names = rows.dtype.names or () if isinstance(rows, np.ndarray) else ()
    if rows is None or "ctf/exp_group_id" not in names or rows["ctf/exp_group_id"].dtype.kind not in "iu":
        return np.zeros(len(particles))
    return np.asarray(rows["ctf/exp_group_id"], dtype=np.float64)


def _distinct(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """First row of each kind (k,), and kind of each row (n,); rows without a number are of one kind."""
    frame = pd.DataFrame(dict(enumerate(columns)))
    which = frame.groupby(list(frame.columns), dropna=False, sort=True).ngroup().to_numpy()
    return np.unique(which, return_index=True)[1], which


def count_optics_groups(particles: ParticleSet) -> int:
    """Return the number of optics groups that the particles are written with; RELION 4 and 5 compare it to the model's.

    Parameters
    ----------
    particles : ParticleSet
        The particles.

    Returns
    -------
    int
        Rows of data_optics.
    """
    kept = particles.metadata.tables if particles.metadata.source_format == "relion" else {}
    block = particle_block(kept)
    table = kept[block] if block is not None else pd.DataFrame(index=range(len(particles)))
    assert isinstance(table, pd.DataFrame)
    return len(_optics(particles, kept.get("optics"), table)[0])


def _image_columns(particles: ParticleSet) -> dict[str, Any]:
    """What data_optics says of the images themselves, as they are now: one value, or one a particle (n,)."""
    size_A = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    boxes = getattr(particles.images, "boxes", None)
    columns: dict[str, Any] = {} if size_A is None else {"rlnImagePixelSize": size_A}
    if particles.box:
        columns["rlnImageSize"] = particles.box if boxes is None else boxes
    if particles.ctf is not None and particles.ctf.state.any():
        for column, state in zip(STATE_COLUMNS, (CtfState.PHASE_FLIPPED, CtfState.PREMULTIPLIED), strict=True):
            columns[column] = (particles.ctf.state == state).astype(np.int64)
    return columns


def _kept_optics(particles: ParticleSet, old: pd.DataFrame, table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the optics table of the particles' own file, completed for the present images.

    Pixel size, box and CTF state are those of the images now. A group whose images differ in them becomes several.
    """
    optics = old.copy()
    n = len(particles)
    if "rlnOpticsGroup" not in optics.columns:
        optics["rlnOpticsGroup"] = np.arange(1, len(optics) + 1)
    group = (
        table["rlnOpticsGroup"].to_numpy()
        if "rlnOpticsGroup" in table.columns
        else np.full(n, optics["rlnOpticsGroup"].iloc[0])
    )
    for column, value in _UNKNOWN.items():
        if column not in optics.columns:
            own: Any = table.groupby(group)[column].first() if column in table.columns else {}
            optics[column] = [own.get(g, value) for g in optics["rlnOpticsGroup"].tolist()]
    current = _image_columns(particles) | _changed_optics(particles, optics, group, table)
    now = {c: np.broadcast_to(np.asarray(v, dtype=np.float64), (n,)) for c, v in current.items()}
    optics, group = _split_groups(optics, np.asarray(group), now)
    for column in STATE_COLUMNS:  # a CTF state that was taken off again
        if column in optics.columns and column not in now and particles.ctf is not None:
            optics[column] = 0
    if "rlnImagePixelSize" not in optics.columns:
        optics["rlnImagePixelSize"] = particles.pixel_size_A or 1.0
    optics["rlnImageDimensionality"] = 2
    return optics, group


def _changed_optics(
    particles: ParticleSet, optics: pd.DataFrame, group: np.ndarray, table: pd.DataFrame
) -> dict[str, np.ndarray]:
    """What the particles' CTF now says otherwise than their optics groups: voltage, Cs, amplitude contrast."""
    changed = {}
    row = pd.Index(optics["rlnOpticsGroup"]).get_indexer(group)
    for column, name in _SHARED.items() if particles.ctf is not None else ():
        own = np.asarray(getattr(particles.ctf, name), dtype=np.float64)
        kept = pd.to_numeric(optics[column], errors="coerce").to_numpy(dtype=np.float64)[row]
        if column not in table.columns and not np.allclose(own, kept, rtol=1e-6, atol=0, equal_nan=True):
            changed[column] = own
    return changed


def _split_groups(
    optics: pd.DataFrame, group: np.ndarray, now: dict[str, np.ndarray]
) -> tuple[pd.DataFrame, np.ndarray]:
    """The table with the columns `now` (n,) of the particles in each group; one more group for each other value."""
    keys = [pd.factorize(group)[0].astype(np.float64), *now.values()]
    first, which = _distinct(keys)
    values = np.stack(keys, axis=1)[first]
    position = pd.Index(optics["rlnOpticsGroup"]).get_indexer(group[first])
    used: set[int] = set()
    taken: list[int] = []
    next_number = int(pd.to_numeric(optics["rlnOpticsGroup"]).max()) + 1
    numbers: list[Any] = []
    names: dict[int, str] = {}
    for row in position.tolist():
        number = optics["rlnOpticsGroup"].iloc[row]
        if row in used:
            number, next_number = next_number, next_number + 1
            names[len(taken)] = f"_{number}"  # RELION takes groups of one name for one group
        used.add(row)
        numbers.append(number)
        taken.append(row)
    rest = [i for i in range(len(optics)) if i not in used]
    new = optics.iloc[taken + rest].reset_index(drop=True)
    if "rlnOpticsGroupName" in new.columns:
        new["rlnOpticsGroupName"] = [f"{n}{names.get(i, '')}" for i, n in enumerate(new["rlnOpticsGroupName"].tolist())]
    new["rlnOpticsGroup"] = [*numbers, *optics["rlnOpticsGroup"].iloc[rest].tolist()]
    for j, column in enumerate(now, 1):
        kept = list(optics[column].iloc[rest]) if column in optics.columns else [values[0, j]] * len(rest)
        new[column] = [*values[:, j].tolist(), *kept]
        if column in _WHOLE:
            new[column] = pd.to_numeric(new[column]).astype(np.int64)
    order = np.argsort(pd.to_numeric(new["rlnOpticsGroup"]).to_numpy(), kind="stable")
    return new.iloc[order].reset_index(drop=True), np.array(numbers)[which]


def pixel_sizes_A(particles: ParticleSet, optics: pd.DataFrame, group: np.ndarray) -> np.ndarray:
    """Return the pixel size by which each particle's origin becomes Angstrom; 1 where none is known.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    optics : pd.DataFrame
        Optics table.
    group : ndarray of shape (n,)
        Group of each particle.

    Returns
    -------
    ndarray of shape (n,)
        Pixel size, Angstrom.
    """
    if particles.pixel_sizes_A is not None:
        return particles.pixel_sizes_A
    if particles.pixel_size_A is not None:
        return np.full(len(particles), particles.pixel_size_A)
    sizes = dict(zip(optics["rlnOpticsGroup"].tolist(), pd.to_numeric(optics["rlnImagePixelSize"]), strict=True))
    return np.array([float(sizes[g]) for g in group.tolist()])
