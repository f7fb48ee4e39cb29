"""What particle files say of the optics beyond the CTF used here: it is kept in the files, not corrected, and said.

RELION's symbols: anisotropic magnification (a matrix), beam tilt and higher aberrations (phases), and a factor on each
particle's CTF. cryoSPARC's ctf/anisomag is the same matrix without the identity, its ctf/tilt_A beam tilt times Cs,
ctf/shift_A a phase of 2 pi k times a shift, ctf/trefoil_A and ctf/tetra_A aberrations of three- and fourfold symmetry.
"""

from __future__ import annotations

import ast
from collections.abc import Callable

import numpy as np

from ralib.io.npy import doubles
from ralib.types import ParticleSet
from ralib.types.ctf import electron_wavelength_A

_LEAST_MAGNIFICATION = 1e-3
_LEAST_PHASE_DEG = 45.0
_LEAST_SCALE = 1e-3
_LEAST_ASTIGMATISM_A = 10.0
_MATRIX = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
_ZERNIKE = ("rlnEvenZernike", "rlnOddZernike")
_CS_HIGHER = {"ctf/trefoil_A": 2, "ctf/tetra_A": 4}
"""cryoSPARC's aberrations beyond beam tilt, with the number of values of each."""


def star_optics_noted(
    particles: ParticleSet, labels: list[str], numbers: Callable[[str], np.ndarray], text: Callable[[str], list[str]]
) -> ParticleSet:
    """Return the set with a warning for each of these that a STAR file states.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    labels : list of str
        Columns of the file, those of the optics groups included.
    numbers : callable
        Returns a column (n,) as numbers.
    text : callable
        Returns a column as text.

    Returns
    -------
    ParticleSet
        The set.
    """
    if set(_MATRIX) <= set(labels):
        matrix = np.stack([numbers(label) for label in _MATRIX], axis=1) - [1, 0, 0, 1]
        particles = _magnification_noted(particles, matrix, "rlnMagMat")
    if particles.ctf is None:
        return particles
    if {"rlnBeamTiltX", "rlnBeamTiltY"} <= set(labels):
        tilt_rad = np.hypot(numbers("rlnBeamTiltX"), numbers("rlnBeamTiltY")) * 1e-3
        tilt_A = tilt_rad * particles.ctf.spherical_aberration_mm * 1e7
        particles = _beam_tilt_noted(particles, tilt_A, "rlnBeamTiltX/Y")
    higher = [label for label in _ZERNIKE if label in labels and any(map(_any_number, set(text(label))))]
    particles = _aberrations_noted(particles, higher)
    if "rlnCtfScalefactor" in labels:
        particles = _scale_noted(particles, numbers("rlnCtfScalefactor"), "rlnCtfScalefactor")
    if "rlnDefocusAngle" not in labels:
        particles = _missing_angle_noted(particles, "rlnDefocusAngle")
    return particles


def cs_optics_noted(particles: ParticleSet, rows: np.ndarray) -> ParticleSet:
    """Return the set with a warning for each of these that a .cs table states.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    rows : ndarray of shape (n,)
        The table.

    Returns
    -------
    ParticleSet
        The set.
    """

    def field(name: str, *width: int) -> np.ndarray | None:
        known = name in (rows.dtype.names or ()) and rows[name].dtype.kind == "f"
        return doubles(rows[name]) if known and rows[name].shape == (len(rows), *width) else None

    matrix, tilt_A = field("ctf/anisomag", 4), field("ctf/tilt_A", 2)
    if matrix is not None:
        identity = np.array([1.0, 0, 0, 1])
        whole = np.abs(matrix - identity).max(axis=1) < np.abs(matrix).max(axis=1)  # the identity included
        particles = _magnification_noted(particles, np.where(whole[:, None], matrix - identity, matrix), "ctf/anisomag")
    if particles.ctf is None:
        return particles
    if "ctf/df_angle_rad" not in (rows.dtype.names or ()):
        particles = _missing_angle_noted(particles, "ctf/df_angle_rad")
    if tilt_A is not None:
        particles = _beam_tilt_noted(particles, np.hypot(*tilt_A.T), "ctf/tilt_A")
    shift_A, scale, constant = field("ctf/shift_A", 2), field("ctf/scale"), field("ctf/scale_const")
    if shift_A is not None:
        particles = _shift_noted(particles, np.hypot(*shift_A.T), "ctf/shift_A")
    values = {name: field(name, width) for name, width in _CS_HIGHER.items()}
    particles = _aberrations_noted(particles, [name for name, v in values.items() if v is not None and v.any()])
    if scale is not None and scale.any():  # 0 throughout was never set
        particles = _scale_noted(particles, scale, "ctf/scale")
    if constant is not None and constant.any():
        particles = particles.warned(
            f"ctf/scale_const is not 0 for {int((constant != 0).sum())} of {len(constant)} particles: it is kept in "
            "the files, and not used",
            "CTF",
            "nothing, if the defocus was fitted without it",
        )
    return particles


def _any_number(text: str) -> bool:
    """Whether a list written as text, such as [0,0.3,0], holds a number other than 0."""
    try:
        return bool(np.any(np.asarray(ast.literal_eval(text), dtype=np.float64)))
    except (ValueError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError):
        return False


def _missing_angle_noted(particles: ParticleSet, label: str) -> ParticleSet:
    if particles.ctf is None:
        return particles
    differs = np.abs(particles.ctf.defocus_u_A - particles.ctf.defocus_v_A) > _LEAST_ASTIGMATISM_A
    if not differs.any():
        return particles
    return particles.warned(
        f"{int(differs.sum())} of {len(particles)} particles have two defoci, and {label}, the direction of the first, "
        "is missing: 0 is taken",
        "CTF",
        f"add {label} to {particles.metadata.path or 'the file'}",
    )


def _magnification_noted(particles: ParticleSet, deviation: np.ndarray, label: str) -> ParticleSet:
    largest = float(np.nan_to_num(np.abs(deviation), nan=np.inf).max())
    if largest <= _LEAST_MAGNIFICATION:
        return particles
    return particles.warned(
        f"anisotropic magnification ({label}, up to {100 * largest:.2g} %) is kept in the files, and not corrected",
        "pixel size",
        "nothing where that is less than the resolution wanted; else extract from corrected micrographs",
    )


def _beam_tilt_noted(particles: ParticleSet, tilt_A: np.ndarray, label: str) -> ParticleSet:
    """Phase at frequency k: 2 pi Cs lambda^2 k^3 tilt."""
    ctf, size_A = particles.ctf, particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    if ctf is None or size_A is None:
        return particles
    with np.errstate(all="ignore"):
        turns = tilt_A * electron_wavelength_A(ctf.voltage_kV) ** 2 / (2 * np.asarray(size_A)) ** 3
        worst_deg = float(np.nan_to_num(360 * turns).max())
    if worst_deg < _LEAST_PHASE_DEG:
        return particles
    return particles.warned(
        f"beam tilt ({label}) turns phases by up to {worst_deg:.0f} degrees at Nyquist: it is kept in the files, and "
        "not corrected",
        "CTF",
        "nothing, at the resolution of class averages",
    )


def _aberrations_noted(particles: ParticleSet, labels: list[str]) -> ParticleSet:
    if not labels:
        return particles
    return particles.warned(
        f"higher-order aberrations ({', '.join(labels)}) are kept in the files, and not corrected",
        "CTF",
        "nothing, at the resolution of class averages",
    )


def _shift_noted(particles: ParticleSet, shift_A: np.ndarray, label: str) -> ParticleSet:
    """Phase at frequency k: 2 pi k times the shift."""
    size_A = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    if size_A is None:
        return particles
    farthest_px = float(np.nan_to_num(shift_A / np.asarray(size_A)).max())
    if 180 * farthest_px < _LEAST_PHASE_DEG:
        return particles
    return particles.warned(
        f"{label} shifts images by up to {farthest_px:.2g} px: it is kept in the files, and not used",
        "CTF",
        "nothing where particles are aligned anew; averages under the file's own poses move by as much",
    )


def _scale_noted(particles: ParticleSet, scale: np.ndarray, label: str) -> ParticleSet:
    other = ~(np.abs(scale - 1) <= _LEAST_SCALE)
    if not other.any():
        return particles
    return particles.warned(
        f"{label} is not 1 for {int(other.sum())} of {len(scale)} particles: it is kept in the files, and not used",
        "CTF",
        "nothing: 'ralib classify' estimates the scale of each particle itself",
    )
