"""Writer of cryoSPARC .cs files, which carries their fields through a STAR file and back without loss.

In a STAR file every .cs field is a column `cs/<field>` (`cs/<field>/0`, /1 ... for vectors), and the block
data_cryosparc_fields keeps their types. Values that another program has changed since (poses, CTF) are recognised by
comparing both copies, and the changed rows are used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ralib import conventions
from ralib.io.atomic import PathLike, atomic_path
from ralib.io.carried import are_group_names, column_numbers, star_table
from ralib.io.cryosparc import STATE_FIELD, _ctf, poses_of
from ralib.io.cryosparc_table import image_paths
from ralib.io.npy import doubles
from ralib.io.paths import leads_to, parents_of, text_of
from ralib.io.stacks import file_references
from ralib.io.star import Table, text_column
from ralib.io.text import ERRORS
from ralib.types import CtfParameters, ParticleSet, Poses, RalibError

PREFIX = "cs/"
FIELDS_BLOCK = "cryosparc_fields"
MICROGRAPH = f"{PREFIX}location/micrograph_path"
_CTF_FIELDS = {
    "ctf/df1_A": ("defocus_u_A", 1.0),
    "ctf/df2_A": ("defocus_v_A", 1.0),
    "ctf/df_angle_rad": ("astigmatism_angle_deg", np.pi / 180),
    "ctf/accel_kv": ("voltage_kV", 1.0),
    "ctf/cs_mm": ("spherical_aberration_mm", 1.0),
    "ctf/amp_contrast": ("amplitude_contrast", 1.0),
    "ctf/phase_shift_rad": ("phase_shift_deg", np.pi / 180),
    "ctf/bfactor": ("bfactor_A2", 1.0),
}


def write_particles_cs(
    path: PathLike,
    particles: ParticleSet,
    poses: Poses | None = None,
    *,
    n_classes: int | None = None,
    mirror_as_class: bool = True,
    scores: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write particles as a .cs file that cryosparc-tools loads.

    cryoSPARC has no mirror: a mirrored member of class k becomes a member of class K + k (see `relion_write`); the
    fields ralib/class, ralib/mirror and ralib/pose keep the original, and our reader uses them first.

    Nor has it a mark for particles of no class: its class numbers are unsigned, and its own jobs give every particle
    one. Ours are written into class 0 with class_posterior 0, and have ralib/class -1: who takes class 0 by its number
    should leave them out.

    Parameters
    ----------
    path : PathLike
        The file.
    particles : ParticleSet
        The particles.
    poses : Poses | None, optional
        Their poses; by default the particles' own.
    n_classes : int | None, optional
        Number of classes K, above every class of the poses; by default from these.
    mirror_as_class : bool, default True
        Whether mirrored members are in classes K + k.
    scores : mapping of shape (n,), optional
        Scores by name, for fields ralib/<name>.

    Raises
    ------
    RalibError
        If a particle's class is none of `n_classes`, or poses or scores are not one a particle.
    """
    scores = one_a_particle("scores", scores, len(particles))
    if poses is not None and len(poses) != len(particles):
        raise RalibError(f"{len(poses)} poses for {len(particles)} particles: they must come from the same file")
    rows = _base_rows(particles, Path(path))
    new = particles.metadata.source_format != "cryosparc" and "ctf/df1_A" not in (rows.dtype.names or ())
    if particles.ctf is not None:
        rows = _with_ctf(rows, particles.ctf)
    if new:
        rows = _with_star_columns(rows, particles)
    chosen = particles.poses if poses is None else poses
    if chosen is not None:
        size_A = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
        rows = _with_poses(rows, chosen, size_A, n_classes, mirror_as_class, poses is not None)
    if scores:
        rows = _with_fields(rows, [(f"ralib/{name}", "f4") for name in scores])
        for name, values in scores.items():
            rows[f"ralib/{name}"] = values
        if "posterior" in scores and chosen is not None:
            rows["alignments2D/class_posterior"] = np.nan_to_num(scores["posterior"])
    save_cs(path, rows)


def class_count(poses: Poses, n_classes: int | None) -> int:
    """Return the number of classes K, as given or from the poses.

    Parameters
    ----------
    poses : Poses
        Poses.
    n_classes : int or None
        K, if given.

    Returns
    -------
    int
        K.

    Raises
    ------
    RalibError
        If a particle's class is none of K: those of class K would be taken for mirrored ones of class 0.
    """
    least = int(poses.class_index.max()) + 1 if len(poses) else 1
    if n_classes is not None and n_classes < least:
        raise RalibError(
            f"`n_classes` {n_classes}: particles are in classes 0 to {least - 1}, and class {n_classes} would be the "
            f"mirrored class 0; give {least} or more"
        )
    return least if n_classes is None else n_classes


def one_a_particle(option: str, columns: Mapping[str, Any] | None, n: int) -> dict[str, Any]:
    """Return columns in the order of the particles, whatever the index of a pandas column.

    Parameters
    ----------
    option : str
        Name of the argument, for errors.
    columns : mapping or None
        Columns by name.
    n : int
        Number of particles.

    Returns
    -------
    dict
        Columns by name, (n,).

    Raises
    ------
    RalibError
        If one is of another shape.
    """
    for name, values in (columns or {}).items():
        if np.shape(values) != (n,):
            raise RalibError(f"`{option}`: {name} has shape {np.shape(values)} for {n} particles: give one value each")
    return {name: getattr(values, "array", values) for name, values in (columns or {}).items()}


def save_cs(path: PathLike, rows: np.ndarray) -> None:
    """Write a structured array as a .cs file, complete or not at all.

    Parameters
    ----------
    path : PathLike
        The file.
    rows : ndarray
        The structured array.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array(file, rows, allow_pickle=False)


def star_columns(rows: np.ndarray) -> tuple[dict[str, Any], pd.DataFrame]:
    """Return the columns that carry every field of a .cs table, and the table of their types."""
    columns: dict[str, Any] = {}
    types = []
    for name in rows.dtype.names or ():
        dtype = rows.dtype[name]
        size = int(np.prod(dtype.shape, dtype=int)) if dtype.shape else 0
        types.append({"csField": name, "csType": dtype.base.str.lstrip("|<>="), "csSize": size})
        flat = rows[name].reshape(len(rows), -1) if dtype.shape else rows[name]
        if not dtype.shape:
            columns[PREFIX + name] = _plain(flat)
        else:
            columns |= {f"{PREFIX}{name}/{i}": _plain(flat[:, i]) for i in range(flat.shape[1])}
    return columns, pd.DataFrame(types)


def half_sets(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return RELION's column of the half sets of a refinement; {} where the table tells of none."""
    for name in ("alignments3D/split", "alignments2D/split"):
        if name in (rows.dtype.names or ()) and set(np.unique(rows[name]).tolist()) == {0, 1}:
            return {"rlnRandomSubset": rows[name].astype(np.int64) + 1}
    return {}


def _plain(values: np.ndarray) -> Any:
    if values.dtype.kind == "S":
        return text_column(np.char.decode(values, "utf-8", ERRORS).tolist())
    return doubles(values) if values.dtype.kind == "f" else values


def rows_from_star(table: pd.DataFrame, types: Table | None) -> np.ndarray | None:
    """Return the .cs table that `star_columns` put into a STAR file, or None where there is none.

    Parameters
    ----------
    table : pd.DataFrame
        Particle table of the STAR file.
    types : Table or None
        The block of types, or None.

    Returns
    -------
    ndarray or None
        Structured array.
    """
    if not isinstance(types, pd.DataFrame) or not {"csField", "csType", "csSize"} <= set(types.columns):
        return None
    described = list(zip(types["csField"], types["csType"], types["csSize"].astype(int), strict=True))
    try:
        rows = np.zeros(len(table), dtype=[(f, t, (s,)) if s else (f, t) for f, t, s in described])
        for name, kind, size in described:
            if not size:
                rows[name] = _packed(table[PREFIX + name], kind)
            for i in range(size):
                rows[name][:, i] = _packed(table[f"{PREFIX}{name}/{i}"], kind)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise RalibError(f"the cryoSPARC columns of the STAR file are incomplete or damaged: {error}") from error
    return rows


def _packed(column: pd.Series, kind: str) -> np.ndarray:
    if kind.startswith("S"):
        return np.array([str(v).encode("utf-8", ERRORS) for v in column])
    return column.to_numpy()


def _base_rows(particles: ParticleSet, out: Path) -> np.ndarray:
    """Return the .cs table the particles came from, directly or through a STAR file, or a new one."""
    tables = particles.metadata.tables
    if particles.metadata.source_format == "cryosparc":
        return tables["cs"].copy()
    for table in tables.values():
        if isinstance(table, pd.DataFrame) and PREFIX + "uid" in table.columns:
            rows = rows_from_star(table, tables.get(FIELDS_BLOCK))
            if rows is not None:
                return _of_these_images(rows, particles, out)
    return _new_rows(particles, out)


def _of_these_images(rows: np.ndarray, particles: ParticleSet, out: Path) -> np.ndarray:
    """Return the rows with the particles' present images where the rows name others.

    Those are new files of 'ralib prepare', whose box and pixel size may be new, too.
    """
    files = file_references(particles.images)
    if files is None or "blob/path" not in (rows.dtype.names or ()):
        return rows
    names = [text_of(p) for p in files[0]]
    same = all(
        Path(old).name == Path(names[f]).name for old, f in zip(image_paths(rows), files[1].tolist(), strict=True)
    )
    if same and np.array_equal(rows["blob/idx"], files[2]):
        return rows
    new = _new_rows(particles, out)
    blob = [n for n in new.dtype.names or () if n.startswith("blob/")]
    kept = [(n, *d) for n, *d in rows.dtype.descr if n not in blob]
    joined = np.zeros(len(rows), dtype=[*kept, *((n, new.dtype[n]) for n in blob)])
    for name in joined.dtype.names or ():
        joined[name] = (new if name in blob else rows)[name]
    if "blob/sign" in (rows.dtype.names or ()):
        joined["blob/sign"] = rows["blob/sign"]
    return joined


def _new_rows(particles: ParticleSet, out: Path) -> np.ndarray:
    """Return rows of the images alone, whose files are named so that they are found from the folder of `out`."""
    files = file_references(particles.images)
    if files is None:
        raise RalibError("these particles are in memory only: write the images first (write_mrcs), then open that file")
    names, homes = [text_of(p) for p in files[0]], parents_of(out)
    named = zip(names, files[0], strict=True)
    found = [name if leads_to(name, file, homes) else text_of(Path(os.path.abspath(file))) for name, file in named]
    path, index = [names[f] for f in files[1].tolist()], files[2]
    raw = [found[f].encode("utf-8", ERRORS) for f in files[1].tolist()]
    rows = np.zeros(
        len(particles),
        dtype=[("uid", "u8"), ("blob/path", f"S{max(map(len, raw))}"), ("blob/idx", "u4"),
               ("blob/shape", "u4", (2,)), ("blob/psize_A", "f4"), ("blob/sign", "f4"), ("blob/import_sig", "u8")],
    )  # fmt: skip
    rows["uid"] = _uids_of_images(path, index)
    rows["blob/path"] = raw
    boxes = getattr(particles.images, "boxes", None)
    rows["blob/idx"], rows["blob/shape"] = index, particles.box if boxes is None else boxes[:, None]
    rows["blob/sign"] = 1.0
    rows["blob/psize_A"] = (
        (particles.pixel_size_A or 1.0) if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    )
    return rows


def _with_star_columns(rows: np.ndarray, particles: ParticleSet) -> np.ndarray:
    """`rows` with what else cryoSPARC has fields for: micrograph, exposure group, scale of the CTF, half set."""
    table = star_table(particles)
    if table is None:
        return rows
    micrographs = [str(name) for name in table.get("rlnMicrographName", [])]
    if not are_group_names(micrographs):
        names = [name.encode("utf-8", ERRORS) for name in micrographs]
        rows = _with_fields(rows, [(MICROGRAPH.removeprefix(PREFIX), f"S{max(1, *map(len, names))}")])
        rows[MICROGRAPH.removeprefix(PREFIX)] = names
    group, scale = column_numbers(table, "rlnOpticsGroup"), column_numbers(table, "rlnCtfScalefactor")
    if particles.ctf is not None and group is not None and ((group >= 0) & (group < 2**32)).all():
        rows["ctf/exp_group_id"] = group.astype(np.uint32)
    if particles.ctf is not None and scale is not None:
        rows["ctf/scale"] = scale
    half = column_numbers(table, "rlnRandomSubset")
    if particles.poses is not None and half is not None and np.isin(half, (1, 2)).all():
        rows = _with_fields(rows, [("alignments2D/split", "u4")])
        rows["alignments2D/split"] = half.astype(np.uint32) - 1
    return rows


def _uids_of_images(paths: list[str], index: np.ndarray) -> np.ndarray:
    """Numbers (n,) that are unique across a project: of the image itself, so that parts of one stack share none."""
    names = pd.Series(
        [f"{i}@{p}".encode("utf-8", ERRORS) for i, p in zip(index.tolist(), paths, strict=True)], dtype=object
    )
    again = names.groupby(names).cumcount().to_numpy(dtype=np.uint64)  # an image that is listed twice is two particles
    hashed = pd.util.hash_array(names.to_numpy(), categorize=False).astype(np.uint64)
    return (hashed + again * np.uint64(0x9E3779B97F4A7C15)) % np.uint64(2**63 - 1) + np.uint64(1)


def _with_fields(rows: np.ndarray, wanted: list[tuple]) -> np.ndarray:
    """`rows` with the fields of `wanted` that are missing added, as zeros."""
    missing = [w for w in wanted if w[0] not in (rows.dtype.names or ())]
    if not missing:
        return rows
    out = np.zeros(len(rows), dtype=rows.dtype.descr + missing)
    for name in rows.dtype.names or ():
        out[name] = rows[name]
    return out


def _with_ctf(rows: np.ndarray, ctf: CtfParameters) -> np.ndarray:
    old = _ctf(rows)
    if old is None:
        rows = _with_fields(rows, [("ctf/type", "S8"), ("ctf/exp_group_id", "u4"), *[(n, "f4") for n in _CTF_FIELDS]])
        rows = _with_fields(rows, [("ctf/scale", "f4"), ("ctf/scale_const", "f4")])
        rows["ctf/type"], rows["ctf/scale"] = b"imported", 1.0
    changed = np.ones(len(rows), dtype=bool)
    if old is not None:
        pairs = [(getattr(old, f.name), getattr(ctf, f.name)) for f in fields(CtfParameters)]
        changed = ~np.logical_and.reduce([np.isclose(a, b, rtol=1e-5, atol=2e-5) for a, b in pairs])
    for name, (attribute, factor) in _CTF_FIELDS.items():
        if name in (rows.dtype.names or ()):
            rows[name][changed] = getattr(ctf, attribute)[changed] * factor
    if ctf.state.any() or STATE_FIELD in (rows.dtype.names or ()):
        rows = _with_fields(rows, [(STATE_FIELD, "u4")])
        rows[STATE_FIELD] = ctf.state
    return rows


def _with_poses(
    rows: np.ndarray,
    poses: Poses,
    pixel_size_A: np.ndarray | float | None,
    n_classes: int | None,
    mirror_as_class: bool,
    new: bool,
) -> np.ndarray:
    old = None if new else poses_of(rows, pixel_size_A)
    poses = poses.to("cpu")
    k = class_count(poses, n_classes)
    mirror, none = poses.mirror.numpy(), (poses.class_index < 0).numpy()
    changed = np.ones(len(rows), dtype=bool) if old is None else _pose_changed(old, poses)
    if old is not None and "alignments2D/class" in (rows.dtype.names or ()):
        in_place = rows["alignments2D/class"] == poses.class_index.numpy()
        changed |= mirror & ~none & (in_place == mirror_as_class)
    if not changed.any():
        return rows
    index = conventions.mirror_to_class(poses.class_index, poses.mirror, k) if mirror_as_class else poses.class_index
    pose_rad, shift = conventions.pose_to_cryosparc(poses.psi_deg.double(), poses.origin_xy_px.double())
    name = "alignments2D"
    added = f"{name}/psize_A" not in (rows.dtype.names or ())
    rows = _with_fields(
        rows,
        [(f"{name}/split", "u4"), (f"{name}/shift", "f4", (2,)), (f"{name}/pose", "f4"), (f"{name}/psize_A", "f4"),
         (f"{name}/class", "u4"), (f"{name}/class_posterior", "f4"), ("ralib/class", "i4"), ("ralib/mirror", "u4"),
         ("ralib/pose", "f4")],
    )  # fmt: skip
    rows[f"{name}/pose"][changed] = pose_rad.numpy()[changed]
    size_A = np.broadcast_to(1.0 if pixel_size_A is None else np.asarray(pixel_size_A), len(rows))
    rows[f"{name}/psize_A"][changed] = size_A[changed]
    rows[f"{name}/shift"][changed] = shift.numpy()[changed]
    numbered = changed | (mirror & ~none)  # all mirrored members by the same K
    rows[f"{name}/class"][numbered] = index.numpy()[numbered].clip(min=0)
    rows["ralib/class"], rows["ralib/mirror"] = poses.class_index.numpy(), mirror
    rows["ralib/pose"] = rows[f"{name}/pose"]
    if added:
        rows[f"{name}/class_posterior"] = ~none
    rows[f"{name}/class_posterior"][changed & none] = 0
    return rows


def _pose_changed(old: Poses, new: Poses) -> np.ndarray:
    """Rows whose poses differ by more than the digits of a STAR file."""
    angle = conventions.wrap_deg(old.psi_deg - new.psi_deg).abs() > 1e-3
    shift = (old.origin_xy_px - new.origin_xy_px).abs().amax(dim=1) > 1e-3
    other = (old.class_index != new.class_index) | (old.mirror != new.mirror)
    return (angle | shift | other | torch.isnan(new.psi_deg)).numpy()
