"""The contrast transfer function, on the Fourier grid of an image and on polar rings.

Sign and phase follow RELION and EMAN2 (checked against both), for protein-bright images:

    CTF(k) = sin(pi lambda d(theta) k^2 - pi/2 Cs lambda^3 k^4 + phase shift + asin(Q0)) exp(-B k^2 / 4),
    d(theta) = mean defocus + half the difference * cos(2 (theta - astigmatism angle)),

so an underfocused image (d > 0) of bright protein starts at +Q0 at k = 0: low frequencies keep their sign.
theta runs from the x axis (columns) towards y (rows), as every angle in `conventions`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ralib.images.fourier import filter_images, frequency_grid
from ralib.types import CtfParameters, CtfState, RalibError


def electron_wavelength_A(voltage_kV: np.ndarray) -> np.ndarray:
    """Relativistic electron wavelength; (n,) kV -> (n,) Angstrom (0.0197 at 300 kV)."""
    voltage_V = np.asarray(voltage_kV, dtype=np.float64) * 1e3
    return 12.2643247 / np.sqrt(voltage_V * (1.0 + 0.978466e-6 * voltage_V))


def ctf_2d(
    params: CtfParameters,
    box: int,
    pixel_size_A: float,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b {box} {box}//2+1"]:
    """CTF of each particle in rfft2's layout: (b, box, box // 2 + 1), zero frequency at [0, 0]."""
    if not pixel_size_A > 0:
        raise RalibError(f"the CTF needs a pixel size above 0 A, not {pixel_size_A}: give it with --pixel-size")
    kx, ky = frequency_grid(box, device=device, dtype=dtype)
    return _ctf(params, kx / pixel_size_A, ky / pixel_size_A)


def ctf_polar(
    params: CtfParameters, radial_frequency_per_A: Float[Tensor, " k"], angle_rad: Float[Tensor, " a"]
) -> Float[Tensor, "b k a"]:
    """CTF of each particle on a polar grid: radii (K,) in 1/A and angles (A,) in radians -> (b, K, A)."""
    radius = radial_frequency_per_A[:, None]
    return _ctf(params, radius * torch.cos(angle_rad), radius * torch.sin(angle_rad))


def apply_ctf(images: Float[Tensor, "b n n"], ctf: Float[Tensor, "#b n n//2+1"]) -> Float[Tensor, "b n n"]:
    """Images (b, n, n) filtered by a CTF (b, n, n // 2 + 1)."""
    return filter_images(images, ctf)


def phase_flip(images: Float[Tensor, "b n n"], ctf: Float[Tensor, "#b n n//2+1"]) -> Float[Tensor, "b n n"]:
    """Images (b, n, n) with the sign of every frequency set right; amplitudes stay as they are."""
    return apply_ctf(images, torch.where(ctf < 0, -1.0, 1.0).to(images.dtype))


def multiply_remaining_ctf(
    images: Float[Tensor, "b n n"], params: CtfParameters, pixel_size_A: float, *, noise_as_taken: bool = False
) -> Float[Tensor, "b n n"]:
    """Images (b, n, n) with their CTF applied once in all, whatever their `CtfState`; see `matched_filter`.

    noise_as_taken   first scale images multiplied by their CTF so that white noise has the power it was taken with
    """
    ctf = ctf_2d(params, images.shape[-1], pixel_size_A, device=images.device)
    if noise_as_taken:
        images = scale_to_noise_as_taken(images, params, ctf)
    return apply_ctf(images, matched_filter(params, ctf))


def flip_remaining_phases(
    images: Float[Tensor, "b n n"], params: CtfParameters, pixel_size_A: float, *, noise_as_taken: bool = False
) -> Float[Tensor, "b n n"]:
    """Images (b, n, n) with the sign of every frequency set right, where their `CtfState` does not say it is."""
    ctf = ctf_2d(params, images.shape[-1], pixel_size_A, device=images.device)
    if noise_as_taken:
        images = scale_to_noise_as_taken(images, params, ctf)
    return phase_flip(images, remaining_flip(params, ctf))


def scale_to_noise_as_taken(
    images: Float[Tensor, "b n n"], params: CtfParameters, ctf: Float[Tensor, "b n m"]
) -> Float[Tensor, "b n n"]:
    """Images of background variance 1 scaled so that their noise has the variance it had before any CTF was applied."""
    return images * noise_gain(params, ctf)[:, None, None] if params.state.any() else images


def matched_filter(params: CtfParameters, ctf: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """What images are still to be multiplied by to have their CTF applied once, by their `CtfState`: (b, ...).

    The CTF for images as they were taken, its absolute value where the phases are flipped, 1 where they are multiplied
    by it already. Sums of these over sums of CTF^2 are Wiener's average for all three.
    """
    if not params.state.any():
        return ctf
    state = torch.as_tensor(params.state, device=ctf.device).reshape(-1, *[1] * (ctf.ndim - 1))
    left = torch.where(state == CtfState.PHASE_FLIPPED, ctf.abs(), ctf)
    return torch.where(state == CtfState.PREMULTIPLIED, torch.ones_like(ctf), left)


def remaining_flip(params: CtfParameters, ctf: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
    """A CTF of which `phase_flip` leaves images alone whose phases are right already."""
    if not params.state.any():
        return ctf
    right = torch.as_tensor(params.state != CtfState.NONE, device=ctf.device)
    return torch.where(right[:, None, None], torch.ones_like(ctf), ctf)


def noise_gain(params: CtfParameters, ctf: Float[Tensor, "b n m"]) -> Float[Tensor, " b"]:
    """Standard deviation of white noise of variance 1 after what was done to the images: (b,)."""
    multiplied = torch.as_tensor(params.state == CtfState.PREMULTIPLIED, device=ctf.device)
    return torch.where(multiplied, ctf.square().mean((1, 2)).sqrt(), 1.0)


def ctf_from_eman2(
    *,
    defocus_um: Sequence[float] | np.ndarray,
    cs_mm: Sequence[float] | np.ndarray,
    voltage_kV: Sequence[float] | np.ndarray,
    amplitude_contrast_percent: Sequence[float] | np.ndarray,
    bfactor_A2: Sequence[float] | np.ndarray,
    astigmatism_um: Sequence[float] | np.ndarray | None = None,
    astigmatism_angle_deg: Sequence[float] | np.ndarray | None = None,
) -> CtfParameters:
    """SPARX's CTF numbers, each (n,), as ours.

    SPARX's defocus along theta is mean - difference / 2 * sin(2 (theta + angle)). Its amplitude contrast is a
    percentage that runs on to -200 and 200 where a phase plate adds more than 90 degrees; that part becomes
    `phase_shift_deg`. (SPARX's electron wavelength is smaller than ours by 4e-5, a rounded constant.)
    """
    defocus_A = np.asarray(defocus_um, dtype=np.float64) * 1e4
    zeros = np.zeros_like(defocus_A)
    half_difference_A = zeros if astigmatism_um is None else np.asarray(astigmatism_um, np.float64) * 0.5e4
    angle_deg = zeros if astigmatism_angle_deg is None else np.asarray(astigmatism_angle_deg, np.float64)
    amplitude, phase_deg = _split_amplitude(np.asarray(amplitude_contrast_percent, np.float64) / 100.0)
    return CtfParameters(
        defocus_u_A=defocus_A + half_difference_A,
        defocus_v_A=defocus_A - half_difference_A,
        astigmatism_angle_deg=135.0 - angle_deg,
        voltage_kV=np.asarray(voltage_kV, np.float64) + zeros,
        spherical_aberration_mm=np.asarray(cs_mm, np.float64) + zeros,
        amplitude_contrast=amplitude + zeros,
        phase_shift_deg=phase_deg + zeros,
        bfactor_A2=np.asarray(bfactor_A2, np.float64) + zeros,
    )


def _split_amplitude(contrast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SPARX's contrast in [-2, 2] as (fraction in [-1, 1], phase shift in degrees)."""
    beyond = np.abs(contrast) > 1.0
    folded = np.sign(contrast) * (np.pi - np.arcsin(np.clip(2.0 - np.abs(contrast), -1.0, 1.0)))
    return np.where(beyond, 0.0, contrast), np.where(beyond, np.rad2deg(folded), 0.0)


def _ctf(params: CtfParameters, kx_per_A: Tensor, ky_per_A: Tensor) -> Tensor:
    """CTF at the points (kx, ky), broadcast to (h, w); returns (b, h, w)."""

    def column(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=kx_per_A.dtype, device=kx_per_A.device)[:, None, None]

    u_A, v_A = (np.asarray(d, np.float64) for d in (params.defocus_u_A, params.defocus_v_A))
    wavelength_A = electron_wavelength_A(params.voltage_kV)
    twice_angle = 2.0 * np.deg2rad(params.astigmatism_angle_deg)
    # k^2 cos(2 (theta - alpha)) without an arctangent: it is a quadratic form in (kx, ky).
    k2 = kx_per_A**2 + ky_per_A**2
    defocus_k2 = (
        column(0.5 * (u_A + v_A)) * k2
        + column(0.5 * (u_A - v_A) * np.cos(twice_angle)) * (kx_per_A**2 - ky_per_A**2)
        + column(0.5 * (u_A - v_A) * np.sin(twice_angle)) * (2.0 * kx_per_A * ky_per_A)
    )
    cs_A = np.asarray(params.spherical_aberration_mm, np.float64) * 1e7
    constant = np.deg2rad(params.phase_shift_deg) + np.arcsin(params.amplitude_contrast)
    phase = (
        column(np.pi * wavelength_A) * defocus_k2
        - column(0.5 * np.pi * cs_A * wavelength_A**3) * k2**2
        + column(constant)
    )
    return torch.sin(phase) * torch.exp(column(-0.25 * np.asarray(params.bfactor_A2, np.float64)) * k2)
