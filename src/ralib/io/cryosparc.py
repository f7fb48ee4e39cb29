"""cryoSPARC .cs files: NumPy structured arrays with a row for each particle and fields like `alignments2D/pose`.

A job writes what it computed, and passes the rest through in a second file; the two are joined by `uid`. For the signs
see `ralib.conventions.cryosparc_to_pose`.

NumPy reads the file; what is done here is to say what its fields mean. `cryosparc-tools` reads the same array as a
`Dataset`, which means nothing by itself either, needs a compiled extension for each Python version (none for 3.14 yet),
and adds fields that a round trip would have to take out again. It is the oracle of the tests.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ralib import conventions
from ralib.io.atomic import PathLike
from ralib.io.cryosparc_table import field_names, floats, image_paths, load_cs, passthrough_files, with_passthrough
from ralib.io.npy import doubles
from ralib.io.paths import resolve_images
from ralib.io.plausible import (
    check_pixel_sizes,
    one_or_many,
    with_header_scales_noted,
    with_incomplete_ctf_noted,
    with_stated_boxes_noted,
)
from ralib.io.stack_file import MAX_BOX, StackFile
from ralib.io.stacks import FilesSource, MissingImages
from ralib.io.uncorrected import cs_optics_noted
from ralib.types import CtfParameters, CtfState, ImageSource, Metadata, ParticleSet, Poses, RalibError

CTF_FIELDS = ("ctf/df1_A", "ctf/df2_A", "ctf/accel_kv", "ctf/cs_mm")
"""Without any of these there is no CTF."""
_POSES = ("alignments2D", "alignments3D")
_LARGEST_ANGLE_RAD = 4 * np.pi
STATE_FIELD = "ralib/ctf_state"
"""cryoSPARC's files have no field for images whose phases are flipped or that are multiplied by the CTF: ours."""


def open_cs(
    path: PathLike,
    open_stack: Callable[[Path], StackFile],
    *,
    datadir: PathLike | None = None,
    require_images: bool = True,
    passthrough: Sequence[PathLike] | None = None,
) -> ParticleSet:
    """Open a particle .cs file; `Metadata.tables["cs"]` is the structured array of all fields.

    Parameters
    ----------
    path : PathLike
        The file.
    open_stack : callable
        Opens an image file.
    datadir : PathLike | None, optional
        Folder of the image files, if they are not where the file says.
    require_images : bool, default True
        False opens a file whose images are missing for its metadata.
    passthrough : sequence of PathLike, optional
        Files with the fields that it lacks; by default those beside it with `passthrough` in their names that hold all
        its uids.

    Returns
    -------
    ParticleSet
        The particles.

    Raises
    ------
    RalibError
        If a file cannot be read or does not fit.
    """
    path = Path(path)
    rows = load_cs(path)
    if not len(rows):
        raise RalibError(f"{path} holds no particles")
    unused: list[str] = []
    for extra in passthrough_files(path, passthrough):
        rows = with_passthrough(rows, extra, unused, must_match=passthrough is not None)
    for name in ("blob/path", "blob/idx"):
        if name not in field_names(rows):
            raise RalibError(
                f"{path} has no field {name}: give its passthrough file too, or export the particles again"
                + "".join(f"; {why}" for why in unused)
            )
    images, header_pixel_A = _images(path, rows, open_stack, datadir, require_images)
    stated = _pixel_size_A(rows, path)
    pixel_size_A, sizes_A = one_or_many(header_pixel_A if stated is None else stated)
    particles = ParticleSet(
        images=images,
        pixel_size_A=pixel_size_A,
        pixel_sizes_A=sizes_A,
        ctf=_ctf(rows),
        poses=poses_of(rows, pixel_size_A if sizes_A is None else sizes_A),
        group=_groups(rows),
        metadata=Metadata("cryosparc", str(path), {"cs": rows}),
    )
    particles = with_stated_boxes_noted(with_header_scales_noted(particles, stated), _stated_boxes(rows))
    if require_images:
        _check_signs(rows, path)
    particles = cs_optics_noted(particles, rows)
    return _noted(with_incomplete_ctf_noted(particles, CTF_FIELDS, field_names(rows)), rows, unused)


def _check_signs(rows: np.ndarray, path: Path) -> None:
    """RalibError where images are dark on light and light on dark: averages of both would cancel."""
    sign = floats(rows, "blob/sign", 1.0)
    dark = int((sign < 0).sum())
    if 0 < dark < len(rows):
        raise RalibError(
            f"{path}: blob/sign says that {dark} of {len(rows)} images are dark on light and the others light on dark: "
            "export both parts by themselves, and bring them to one contrast with 'ralib prepare --invert'"
        )


def with_contrast_inverted(particles: ParticleSet) -> ParticleSet:
    """Return the set for images of the other sign: cryoSPARC's blob/sign, in a .cs table or a STAR file, follows."""
    tables = dict(particles.metadata.tables)
    for name, table in tables.items():
        if isinstance(table, np.ndarray) and "blob/sign" in field_names(table):
            tables[name] = table.copy()
            tables[name]["blob/sign"] *= -1
        elif isinstance(table, pd.DataFrame) and "cs/blob/sign" in table.columns:
            tables[name] = table.assign(**{"cs/blob/sign": -pd.to_numeric(table["cs/blob/sign"])})
    return particles.replace(metadata=replace(particles.metadata, tables=tables))


def _noted(particles: ParticleSet, rows: np.ndarray, unused: list[str]) -> ParticleSet:
    """The particles with warnings about unused passthrough files, half a pose, and helical segments."""
    if unused:
        lost = "" if particles.ctf is not None else "; the particles have no CTF now"
        particles = particles.warned(
            "; ".join(unused) + lost, "passthrough", "export the particles again, with all their fields in one job"
        )
    half = [f"{kind}/{part}" for kind in _POSES for part in ("pose", "shift") if f"{kind}/{part}" in field_names(rows)]
    if particles.poses is None and half:
        particles = particles.warned(
            f"of the alignments there is only {' and '.join(half)}: a pose has a rotation and a shift, none is read",
            "alignments",
            "export the particles again, with all their fields, where their poses are needed",
        )
    if any(name.startswith("filament/") for name in field_names(rows)):
        particles = particles.warned(
            "these are segments of helical filaments (filament/...): they are treated as single particles, without "
            "helical priors",
            "particles",
            "nothing, if that is what you want; angles along the filament are searched like all others",
        )
    return particles


def _images(
    path: Path, rows: np.ndarray, open_stack: Callable, datadir: PathLike | None, required: bool
) -> tuple[ImageSource, np.ndarray | float | None]:
    try:
        file_index, names = pd.factorize(np.array(image_paths(rows), dtype=object))
        files = resolve_images(names.tolist(), path, datadir)
        number = floats(rows, "blob/idx")
        whole = (number >= 0) & (number < 2**31) & (number == np.floor(number))
        if not whole.all():
            wrong = number[~whole][0]
            raise RalibError(
                f"{path}: blob/idx {wrong:g} of particle {int(np.argmin(whole)) + 1}: image numbers from 0 are needed"
            )
        slices = number.astype(np.int64)
        source = FilesSource(files, file_index, slices, open_stack)
    except RalibError as error:
        if required:
            raise
        shape = rows["blob/shape"][0] if "blob/shape" in field_names(rows) else np.zeros(1)
        side = float(np.ravel(shape)[0])
        return MissingImages(len(rows), int(side) if 0 < side <= MAX_BOX else 0, str(error)), None
    except (TypeError, ValueError) as error:
        raise RalibError(f"{path}: blob/path or blob/idx hold something else than paths and numbers") from error
    return source, source.pixel_sizes_A


def _stated_boxes(rows: np.ndarray) -> np.ndarray:
    """Box of each image (n,) as blob/shape has it, pixels; 0 where it does not say."""
    shape = rows["blob/shape"] if "blob/shape" in field_names(rows) else None
    if shape is None or shape.ndim != 2 or not shape.shape[1] or shape.dtype.kind not in "fiu":
        return np.zeros(len(rows))
    return doubles(shape[:, 0])


def _pixel_size_A(rows: np.ndarray, path: Path) -> np.ndarray | None:
    """(n,) pixel size of each particle's image, or None where the file does not say."""
    if "blob/psize_A" not in field_names(rows):
        return None
    return check_pixel_sizes(floats(rows, "blob/psize_A"), f"{path} (blob/psize_A)")


def _ctf(rows: np.ndarray) -> CtfParameters | None:
    """CTF of each particle, or None where its fields are missing. Radians become degrees."""
    if any(name not in field_names(rows) for name in CTF_FIELDS):
        return None
    return CtfParameters(
        defocus_u_A=floats(rows, "ctf/df1_A"),
        defocus_v_A=floats(rows, "ctf/df2_A"),
        astigmatism_angle_deg=np.rad2deg(floats(rows, "ctf/df_angle_rad")),
        voltage_kV=floats(rows, "ctf/accel_kv"),
        spherical_aberration_mm=floats(rows, "ctf/cs_mm"),
        amplitude_contrast=floats(rows, "ctf/amp_contrast", 0.1),
        phase_shift_deg=np.rad2deg(floats(rows, "ctf/phase_shift_rad")),
        bfactor_A2=floats(rows, "ctf/bfactor"),
        state=floats(rows, STATE_FIELD).astype(np.int8).clip(0, max(CtfState)),
    )


def poses_of(rows: np.ndarray, pixel_size_A: np.ndarray | float | None) -> Poses | None:
    """Return the poses of alignments2D, else the in-plane part of alignments3D (its third Euler angle), else None.

    Parameters
    ----------
    rows : ndarray
        Structured array.
    pixel_size_A : ndarray, float or None
        Pixel size of the particles, Angstrom.

    Returns
    -------
    Poses or None
        Poses.
    """
    names = field_names(rows)
    kind = next((k for k in _POSES if f"{k}/pose" in names and f"{k}/shift" in names), None)
    if kind is None:
        return None
    if any(rows[f"{kind}/{part}"].dtype.kind not in "fiu" for part in ("pose", "shift")):
        raise RalibError(f"{kind}/pose or shift of the .cs file hold something else than numbers")
    pose, shift = doubles(rows[f"{kind}/pose"]), doubles(rows[f"{kind}/shift"])
    if shift.shape != (len(rows), 2) or pose.shape != ((len(rows),) if kind == "alignments2D" else (len(rows), 3)):
        raise RalibError(f"{kind}/pose or shift of the .cs file have the shape {pose.shape}, {shift.shape}")
    if kind == "alignments3D":
        pose = _inplane_rad(pose)
    pose = np.where(np.abs(pose) <= _LARGEST_ANGLE_RAD, pose, np.nan)  # degrees, perhaps: found by `plausible`
    size_A = np.broadcast_to(1.0 if pixel_size_A is None else np.asarray(pixel_size_A), len(rows))
    stated = floats(rows, f"{kind}/psize_A") if f"{kind}/psize_A" in names else size_A
    scale = np.where(stated > 0, stated / size_A, np.nan)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is found by `plausible`
        shift_px = shift * scale[:, None]
    psi_deg, origin, mirror = conventions.cryosparc_to_pose(torch.tensor(pose), torch.tensor(shift_px))
    index = torch.tensor(_class_index(floats(rows, f"{kind}/class"), f"{kind}/class"))
    if "ralib/mirror" in names and "ralib/class" in names:
        original = torch.tensor(_class_index(floats(rows, "ralib/class"), "ralib/class"))
        mirrored = floats(rows, "ralib/mirror") != 0
        # In class k itself, a member is mirrored only if no other program has aligned it since.
        as_written = mirrored & (floats(rows, "ralib/pose", np.nan) == pose)
        index, mirror = conventions.restore_mirror(index, original, torch.tensor(mirrored), torch.tensor(as_written))
    score = torch.full((len(rows),), float("nan"))
    return Poses(psi_deg.float(), origin.float(), mirror, index, score)


def _class_index(number: np.ndarray, name: str) -> np.ndarray:
    if not (np.isfinite(number) & (np.abs(number) < 2**32)).all():
        raise RalibError(f"the field {name} of the .cs file should hold class numbers from 0")
    return np.where(number < 2**31, number, -1).astype(np.int64).clip(min=-1)  # an unsigned -1 is no class


def euler_zyz_rad(rotation_vector: np.ndarray) -> np.ndarray:
    """Return RELION's angles (rot, tilt, psi), radians (n, 3), of cryoSPARC's rotation vectors (n, 3)."""
    from scipy.spatial.transform import Rotation

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tilt 0: rot and psi are one angle, scipy puts it all into rot
        angles: np.ndarray = Rotation.from_rotvec(np.nan_to_num(rotation_vector)).as_euler("ZYZ")
    return angles


def _inplane_rad(rotation_vector: np.ndarray) -> np.ndarray:
    """The in-plane angle psi of RELION's (rot, tilt, psi) for cryoSPARC's rotation vectors (n, 3)."""
    angles = euler_zyz_rad(rotation_vector)
    straight = np.abs(np.sin(angles[:, 1])) < 1e-6
    return np.where(straight, angles[:, 0] + angles[:, 2], angles[:, 2])


def _groups(rows: np.ndarray) -> np.ndarray:
    """Micrograph of each particle, else its stack, else its exposure group."""
    for name in ("location/micrograph_path", "location/micrograph_uid", "blob/path", "ctf/exp_group_id"):
        if name in field_names(rows):
            group = np.unique(rows[name], return_inverse=True)[1].reshape(-1)
            if group.max() > 0 or name == "ctf/exp_group_id":
                return group.astype(np.int64)
    return np.zeros(len(rows), dtype=np.int64)
