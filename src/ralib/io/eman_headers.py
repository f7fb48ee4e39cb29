"""What EMAN2's image attributes say of particles, in HDF stacks and in lists: pixel size, CTF and alignment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ralib import conventions
from ralib.io.eman_ctf import STATE_ATTRIBUTE, ctf_of_headers, ctf_pixel_sizes_A
from ralib.io.plausible import named, one_or_many
from ralib.io.stacks import file_references
from ralib.types import CtfParameters, CtfState, ParticleSet, Poses, RalibError

FLIPPED_NAME, _WIENER_NAME = re.compile(r"__ctf_flip(_|$)"), re.compile(r"__ctf_wiener(_|$)")
_SAME_SCALE = 1e-3
_NUMBERS = ("apix_x", "apix_y", "ctf_applied", "assign", STATE_ATTRIBUTE)
_IDENTITY = np.eye(3, 4).reshape(-1)


def with_headers(particles: ParticleSet, headers: list[dict[str, Any]]) -> ParticleSet:
    """Return the set with pixel size, CTF and poses of its images' EMAN2 attributes, and a word about what they lack.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    headers : list of dict
        Attributes of each image; {} for images of other files, which keep the set's pixel size.

    Returns
    -------
    ParticleSet
        The set.
    """
    headers = _checked(headers, particles.metadata.path or "the particles")
    stated, matrices = ctf_of_headers(headers), [h.get("xform.align2d") for h in headers]
    particles, ctf = _corrected_by_name(_odd_pixel_sizes_noted(particles, headers), stated, headers)
    poses = poses_of_matrices(matrices, [int(h.get("assign", 0)) for h in headers])
    found = particles.replace(ctf=ctf, poses=poses or particles.poses, **_pixel_sizes(particles, headers))
    without = np.array(["ctf" not in h for h in headers])
    if ctf is not None and without.any():
        found = found.warned(
            f"{named(without)} without a CTF in the header", "CTF", "fit the CTF of all particles, or leave it out"
        )
    unreadable = np.array(["ctf" in h for h in headers])
    if stated is None and unreadable.any():
        found = found.warned(
            f"{named(unreadable)} with a CTF in the header that is none, and is not used",
            "CTF",
            "fit the CTF again if it is to be corrected",
        )
    if poses is not None:
        found = with_missing_poses_noted(found, np.array([m is None for m in matrices]))
    return _oblong_pixels_noted(_other_ctf_scale_noted(found, headers), headers)


def _checked(headers: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The headers with numbers that were written as text as numbers; flags and classes that are none are refused."""
    checked = []
    for number, header in enumerate(headers, start=1):
        header = {**header, **{name: as_number(header[name]) for name in _NUMBERS if isinstance(header.get(name), str)}}
        applied, index = header.get("ctf_applied", 0), header.get("assign", 0)
        if not (isinstance(applied, int | float) and applied in (0, 1)):
            raise RalibError(f"{where}: ctf_applied is {applied!r} in image {number}: write 1 for yes, 0 for no")
        if not (isinstance(index, int | float) and abs(index) < 2**31 and index == int(index)):
            raise RalibError(f"{where}: assign is {index!r} in image {number}: it should be the number of a class")
        checked.append(header)
    return checked


def as_number(text: str) -> float | str:
    """Return the number that a text is, or the text where it is none."""
    try:
        return float(text)
    except ValueError:
        return text


def _odd_pixel_sizes_noted(particles: ParticleSet, headers: list[dict[str, Any]]) -> ParticleSet:
    odd = np.array([h.get("apix_x", 1.0) is not None and positive(h.get("apix_x", 1.0)) is None for h in headers])
    unset = np.array([isinstance(h.get("apix_x"), int | float) and h["apix_x"] == 0 for h in headers])
    odd &= ~unset
    if not odd.any():
        return particles
    return particles.warned(
        f"{named(odd)} of a pixel size (apix_x) that cannot be meant: {headers[int(np.argmax(odd))]['apix_x']!r}; it "
        "is not used",
        "pixel size",
        "correct the headers, or give the pixel size as an option",
    )


def _corrected_by_name(
    particles: ParticleSet, ctf: CtfParameters | None, headers: list[dict[str, Any]]
) -> tuple[ParticleSet, CtfParameters | None]:
    """The CTF with what EMAN2's e2ctf did to the images, which it says in their files' names alone, and a warning.

    Of m__ctf_flip.hdf, m__ctf_flip_lp7.hdf ... phases are flipped; m__ctf_wiener.hdf has no CTF left that is known.
    """
    flipped = files_named(particles, FLIPPED_NAME)
    if ctf is None or not len(flipped):
        return particles, ctf
    if (wiener := files_named(particles, _WIENER_NAME)).any():
        return particles.warned(
            f"{named(wiener)} in files named __ctf_wiener: their CTF is corrected already, and is not used",
            "CTF",
            "give the particles named __ctf_flip, or those as they were taken",
        ), None
    open_ = np.array([STATE_ATTRIBUTE not in h and not h.get("ctf_applied") for h in headers]) & flipped
    if not open_.any():
        return particles, ctf
    warned = particles.warned(
        f"{named(open_)} in files named __ctf_flip: their phases are taken as flipped",
        "CTF",
        "rename the files if they are not",
    )
    return warned, ctf.with_state(np.where(open_, CtfState.PHASE_FLIPPED, ctf.state))


def _pixel_sizes(particles: ParticleSet, headers: list[dict[str, Any]]) -> dict[str, Any]:
    """Pixel size of each image: apix_x, or that of its CTF where apix_x is missing or EMAN2's value for unknown, 1."""
    given = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    size = np.full(len(headers), np.nan) if given is None else np.broadcast_to(given, len(headers)).astype(np.float64)
    stated = np.array([positive(h.get("apix_x")) or np.nan for h in headers])
    size = np.where(np.isfinite(stated), stated, size)
    fitted = ctf_pixel_sizes_A(headers)
    size = np.where(np.isfinite(fitted) & (np.isnan(size) | (size == 1.0)), fitted, size)
    if np.isnan(size).all():
        return {"pixel_size_A": None}
    one_A, many_A = one_or_many(np.where(np.isnan(size), np.nanmedian(size), size))
    return {"pixel_size_A": one_A, "pixel_sizes_A": many_A}


def _other_ctf_scale_noted(particles: ParticleSet, headers: list[dict[str, Any]]) -> ParticleSet:
    """The set with a warning where the header's CTF was fitted at another pixel size than the image's."""
    size = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    fitted, stated = ctf_pixel_sizes_A(headers), np.array([positive(h.get("apix_x")) or np.nan for h in headers])
    with np.errstate(invalid="ignore"):
        differs = np.abs(fitted / stated - 1) > _SAME_SCALE
    if size is None or not differs.any():
        return particles
    row = int(np.argmax(differs))
    used = float(np.broadcast_to(size, len(headers))[row])
    return particles.warned(
        f"{named(differs)} of two pixel sizes: apix_x {stated[row]:g} A/px, the CTF's {fitted[row]:g} A/px; "
        f"{used:g} is taken",
        "pixel size",
        "correct the header that is wrong, or give the pixel size as an option",
    )


def _oblong_pixels_noted(particles: ParticleSet, headers: list[dict[str, Any]]) -> ParticleSet:
    """The set with a warning where pixels are not square, as the MRC reader's."""
    x_A, y_A = (np.array([positive(h.get(name)) or np.nan for h in headers]) for name in ("apix_x", "apix_y"))
    with np.errstate(invalid="ignore"):
        oblong = np.abs(y_A / x_A - 1) > _SAME_SCALE
    if not oblong.any():
        return particles
    row = int(np.argmax(oblong))
    return particles.warned(
        f"{named(oblong)} of pixels of {x_A[row]:g} A along x (apix_x) and {y_A[row]:g} A along y (apix_y): they are "
        "taken as square",
        "pixel size",
        "correct the header, or resample the images to square pixels",
    )


def files_named(particles: ParticleSet, pattern: re.Pattern[str]) -> np.ndarray:
    """Return which particles are in files of such names.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    pattern : re.Pattern
        Searched in the name without its suffix.

    Returns
    -------
    ndarray of shape (n,)
        True where the name matches; (0,) for images in memory.
    """
    files, file_index, _ = file_references(particles.images) or ([], np.zeros(0, dtype=np.int64), np.zeros(0))
    return np.array([pattern.search(path.stem) is not None for path in files], dtype=bool)[file_index]


def with_missing_poses_noted(particles: ParticleSet, without: np.ndarray) -> ParticleSet:
    """Return the set with a warning that counts and names particles without an alignment.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    without : ndarray of shape (n,)
        True for those without.

    Returns
    -------
    ParticleSet
        The set.
    """
    if not without.any():
        return particles
    return particles.warned(
        f"{named(without)} without an alignment (xform.align2d), and in no class",
        "poses",
        "align all particles, if their poses are needed",
    )


def matrix_to_align2d(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Convert EMAN2's 3 x 4 matrices to parameters; a scale is removed.

    Rows are M (R_e(alpha) | t), R_e = [[c, s], [-s, c]], M: the first row changes sign.

    Parameters
    ----------
    matrix : ndarray of shape (n, 12)
        The matrices.

    Returns
    -------
    ndarray of shape (n,)
        alpha, degrees.
    ndarray of shape (n, 2)
        Shift, pixels.
    ndarray of shape (n,)
        True where mirrored.
    """
    m = matrix.reshape(-1, 3, 4).astype(np.float64)
    mirror = m[:, 0, 0] * m[:, 1, 1] - m[:, 0, 1] * m[:, 1, 0] < 0
    sign = np.where(mirror, -1.0, 1.0)
    alpha = np.degrees(np.arctan2(-m[:, 1, 0], m[:, 1, 1]))
    return np.mod(alpha, 360.0), np.stack([sign * m[:, 0, 3], m[:, 1, 3]], axis=1), mirror


def align2d_to_matrix(alpha_deg: np.ndarray, shift_xy_px: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """Convert parameters to EMAN2's 3 x 4 matrices, the inverse of `matrix_to_align2d`.

    Parameters
    ----------
    alpha_deg : ndarray of shape (n,)
        alpha, degrees.
    shift_xy_px : ndarray of shape (n, 2)
        Shift, pixels.
    mirror : ndarray of shape (n,)
        True where mirrored.

    Returns
    -------
    ndarray of shape (n, 12)
        The matrices, float32.
    """
    c, s = np.cos(np.radians(alpha_deg)), np.sin(np.radians(alpha_deg))
    sign = np.where(mirror, -1.0, 1.0)
    zero, one = np.zeros_like(c), np.ones_like(c)
    rows = [sign * c, sign * s, zero, sign * shift_xy_px[:, 0], -s, c, zero, shift_xy_px[:, 1], zero, zero, one, zero]
    return np.stack(rows, axis=1).astype(np.float32)


def poses_of_matrices(matrices: Sequence[Any], class_index: Sequence[int]) -> Poses | None:
    """Return poses of EMAN2 transforms, one a particle; None where no particle has one.

    Parameters
    ----------
    matrices : sequence of array_like of shape (12,), or None
        The transforms; None for a particle without one, whose class becomes -1.
    class_index : sequence of int
        Classes.

    Returns
    -------
    Poses or None
        Poses, NaN where a transform holds no twelve numbers.
    """
    if all(m is None for m in matrices):
        return None
    rows = np.full((len(matrices), 12), np.nan)
    rows[[m is None for m in matrices]] = _IDENTITY
    for row, matrix in zip(rows, matrices, strict=True):
        if matrix is not None:
            row[:] = matrix if np.shape(matrix) == (12,) and np.isfinite(matrix).all() else np.nan
    with np.errstate(invalid="ignore"):
        alpha, shift, mirror = matrix_to_align2d(rows)
    psi, origin, flipped = conventions.eman2_to_pose(torch.tensor(alpha), torch.tensor(shift), torch.tensor(mirror))
    index = torch.tensor([-1 if m is None else k for m, k in zip(matrices, class_index, strict=True)])
    return Poses(psi.float(), origin.float(), flipped, index, torch.full((len(rows),), float("nan")))


def positive(value: Any) -> float | None:
    """Return a pixel size, or None where the value cannot be one."""
    good = isinstance(value, int | float) and 0 < value < 1e4
    return float(value) if good else None
