"""Contrast transfer functions: their parameters, what was done to the images, and what a run does."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum, StrEnum

import numpy as np


class CtfState(IntEnum):
    """What was already done to an image about its CTF: nothing, phases flipped, or multiplied by the CTF."""

    NONE = 0
    PHASE_FLIPPED = 1
    PREMULTIPLIED = 2


class CtfCorrection(StrEnum):
    """What a run does about the CTF: nothing, flip phases, or multiply by the CTF and divide by its square (Wiener)."""

    NONE = "none"
    FLIP = "flip"
    WIENER = "wiener"


def electron_wavelength_A(voltage_kV: np.ndarray) -> np.ndarray:
    """Compute the relativistic electron wavelength.

    Parameters
    ----------
    voltage_kV : ndarray of shape (n,)
        Acceleration voltage, kV.

    Returns
    -------
    ndarray of shape (n,)
        Wavelength, Angstrom (0.0197 at 300 kV).
    """
    voltage_V = np.asarray(voltage_kV, dtype=np.float64) * 1e3
    with np.errstate(divide="ignore", invalid="ignore"):  # particles of implausible numbers are left out elsewhere
        return 12.2643247 / np.sqrt(voltage_V * (1.0 + 0.978466e-6 * voltage_V))


@dataclass(frozen=True)
class CtfParameters:
    """Contrast transfer function of n particles.

    Attributes
    ----------
    defocus_u_A : ndarray of shape (n,)
        Larger defocus, Angstrom; positive for underfocus.
    defocus_v_A : ndarray of shape (n,)
        Smaller defocus, Angstrom.
    astigmatism_angle_deg : ndarray of shape (n,)
        Angle from the x axis to the direction of `defocus_u_A`, degrees.
    voltage_kV : ndarray of shape (n,)
        Acceleration voltage, kV.
    spherical_aberration_mm : ndarray of shape (n,)
        Spherical aberration, mm.
    amplitude_contrast : ndarray of shape (n,)
        Amplitude contrast, a fraction.
    phase_shift_deg : ndarray of shape (n,)
        Phase shift of a phase plate, degrees.
    bfactor_A2 : ndarray of shape (n,)
        B-factor, Angstrom^2.
    state : ndarray of shape (n,), optional
        `CtfState` of the image; by default NONE for all.
    """

    defocus_u_A: np.ndarray
    defocus_v_A: np.ndarray
    astigmatism_angle_deg: np.ndarray
    voltage_kV: np.ndarray
    spherical_aberration_mm: np.ndarray
    amplitude_contrast: np.ndarray
    phase_shift_deg: np.ndarray
    bfactor_A2: np.ndarray
    state: np.ndarray = None  # type: ignore[assignment]  # made by __post_init__

    def __post_init__(self) -> None:
        if self.state is None:
            object.__setattr__(self, "state", np.zeros(np.shape(self.defocus_u_A), dtype=np.int8))

    def __len__(self) -> int:
        return len(self.defocus_u_A)

    def __getitem__(self, index: np.ndarray | slice) -> CtfParameters:
        return CtfParameters(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def with_state(self, state: CtfState | np.ndarray) -> CtfParameters:
        """Return the same CTF for images of another state."""
        shape = np.shape(self.defocus_u_A)
        return replace(self, state=np.broadcast_to(np.asarray(state, dtype=np.int8), shape).copy())

    def in_pixels_of(self, pixel_size_A: np.ndarray, common_A: float) -> CtfParameters:
        """Return a CTF for another pixel size, the same at every frequency in cycles per pixel.

        The phase is pi lambda d k^2 - pi / 2 Cs lambda^3 k^4: where k is scaled, d and Cs scale with its inverse
        powers.

        Parameters
        ----------
        pixel_size_A : ndarray of shape (n,)
            Pixel size of the images, Angstrom.
        common_A : float
            Pixel size that they are taken to have, Angstrom.

        Returns
        -------
        CtfParameters
            The parameters.
        """
        ratio = (common_A / np.asarray(pixel_size_A, dtype=np.float64)) ** 2
        return replace(
            self,
            defocus_u_A=self.defocus_u_A * ratio,
            defocus_v_A=self.defocus_v_A * ratio,
            spherical_aberration_mm=self.spherical_aberration_mm * ratio**2,
            bfactor_A2=self.bfactor_A2 * ratio,
        )
