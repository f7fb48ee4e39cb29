"""The contrast transfer function (CTF) on the Fourier grid of an image and on polar rings, and its correction.

Sign and phase follow RELION and EMAN2 (verified against both), for images in which protein is bright:

    CTF(k) = sin(pi lambda d(theta) k^2 - pi/2 Cs lambda^3 k^4 + phase shift + asin(Q0)) exp(-B k^2 / 4),
    d(theta) = mean defocus + half the difference * cos(2 (theta - astigmatism angle)),

so that an underfocused image (d > 0) starts at +Q0 at k = 0, and low frequencies keep their sign. The angle theta runs
from the x axis (columns) towards y (rows), as every angle in `ralib.conventions`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ralib.images.fourier import filter_images, frequency_grid
from ralib.types import CtfParameters, CtfState, RalibError
from ralib.types.ctf import electron_wavelength_A


def ctf_2d(
    params: CtfParameters,
    box: int,
    pixel_size_A: float,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b {box} {box}//2+1"]:
    """Compute the CTF of each particle in the layout of `torch.fft.rfft2`.

    Parameters
    ----------
    params : CtfParameters
        CTF parameters of b particles.
    box : int
        Image size n, pixels.
    pixel_size_A : float
        Pixel size, Angstrom.
    device : torch.device or str, default 'cpu'
        Where to compute.
    dtype : torch.dtype, default torch.float32
        Floating point type of the result; computed is in single precision at least, as phases are large.

    Returns
    -------
    Tensor of shape (b, n, n // 2 + 1)
        The CTF, zero frequency at [0, 0].

    Raises
    ------
    RalibError
        If the pixel size is not above 0.
    """
    if not (pixel_size_A or 0) > 0:
        raise RalibError(
            f"the CTF needs a pixel size above 0 A, not {pixel_size_A}: give it with `ParticleSet.pixel_size_A`"
        )
    kx, ky = frequency_grid(box, device=device, dtype=torch.promote_types(dtype, torch.float32))
    return _ctf(params, kx / pixel_size_A, ky / pixel_size_A).to(dtype)


def ctf_polar(
    params: CtfParameters, radial_frequency_per_A: Float[Tensor, " k"], angle_rad: Float[Tensor, " a"]
) -> Float[Tensor, "b k a"]:
    """Compute the CTF of each particle on a polar grid.

    Parameters
    ----------
    params : CtfParameters
        CTF parameters of b particles.
    radial_frequency_per_A : Tensor of shape (k,)
        Radii, 1/Angstrom.
    angle_rad : Tensor of shape (a,)
        Angles from the x axis towards y, radians.

    Returns
    -------
    Tensor of shape (b, k, a)
        The CTF.
    """
    radius = radial_frequency_per_A[:, None]
    return _ctf(params, radius * torch.cos(angle_rad), radius * torch.sin(angle_rad))


def apply_ctf(images: Float[Tensor, "b n n"], ctf: Float[Tensor, "#b n n//2+1"]) -> Float[Tensor, "b n n"]:
    """Multiply the transform of images by a CTF.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    ctf : Tensor of shape (b, n, n//2+1)
        CTF of each image, or one for all.

    Returns
    -------
    Tensor of shape (b, n, n)
        Filtered images.
    """
    return filter_images(images, ctf)


def phase_flip(images: Float[Tensor, "b n n"], ctf: Float[Tensor, "#b n n//2+1"]) -> Float[Tensor, "b n n"]:
    """Multiply the transform of images by the sign of their CTF; amplitudes stay.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images as taken, with contrast inverted where the CTF is negative.
    ctf : Tensor of shape (b, n, n//2+1)
        CTF of each image, or one for all; only its sign counts.

    Returns
    -------
    Tensor of shape (b, n, n)
        Phase-flipped images.
    """
    return apply_ctf(images, phase_signs(ctf))


def phase_signs(ctf: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
    """Return the factor by which `phase_flip` multiplies: -1 where the CTF is negative, else 1, shape (b, n, m)."""
    return torch.where(ctf < 0, -1.0, 1.0).to(ctf.dtype)


def correct_ctf(
    images: Float[Tensor, "b n n"],
    params: CtfParameters,
    pixel_size_A: float,
    *,
    phases_only: bool = False,
    noise_as_taken: bool = False,
) -> Float[Tensor, "b n n"]:
    """Apply what is left to do about the CTF of images, whatever their `CtfState`.

    Either they are multiplied by `matched_filter`, so that their CTF is applied once in all, or their phases are
    flipped where they are not flipped yet.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images in any `CtfState`.
    params : CtfParameters
        Their CTF parameters, with the state.
    pixel_size_A : float
        Pixel size, Angstrom.
    phases_only : bool, default False
        Whether to flip phases rather than to multiply.
    noise_as_taken : bool, default False
        Whether to scale premultiplied images first; see `scale_to_noise_as_taken`.

    Returns
    -------
    Tensor of shape (b, n, n)
        Corrected images.
    """
    ctf = ctf_2d(params, images.shape[-1], pixel_size_A, device=images.device)
    if noise_as_taken:
        images = scale_to_noise_as_taken(images, params, ctf)
    if phases_only:
        return phase_flip(images, remaining_flip(params, ctf))
    return apply_ctf(images, matched_filter(params, ctf))


def flipped_and_matched(
    images: Float[Tensor, "b n n"], params: CtfParameters, pixel_size_A: float
) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b n n"]]:
    """Return both results of `correct_ctf`, with their noise as it was taken, by one evaluation of the CTF.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images in any `CtfState`.
    params : CtfParameters
        Their CTF parameters, with the state.
    pixel_size_A : float
        Pixel size, Angstrom.

    Returns
    -------
    Tensor of shape (b, n, n)
        Images with flipped phases.
    Tensor of shape (b, n, n)
        Images to which their CTF is applied once in all.
    """
    ctf = ctf_2d(params, images.shape[-1], pixel_size_A, device=images.device)
    images = scale_to_noise_as_taken(images, params, ctf)
    return phase_flip(images, remaining_flip(params, ctf)), apply_ctf(images, matched_filter(params, ctf))


def scale_to_noise_as_taken(
    images: Float[Tensor, "b n n"], params: CtfParameters, ctf: Float[Tensor, "b n m"]
) -> Float[Tensor, "b n n"]:
    """Scale images of background variance 1 so that their noise has the variance it had before a CTF was applied.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images of background variance 1.
    params : CtfParameters
        Their CTF parameters, with the state.
    ctf : Tensor of shape (b, n, m)
        Their CTF.

    Returns
    -------
    Tensor of shape (b, n, n)
        The images, scaled by `noise_gain` where any state is not NONE.
    """
    return images * noise_gain(params, ctf)[:, None, None] if params.state.any() else images


def matched_filter(params: CtfParameters, ctf: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """Return the factor by which images are still to be multiplied for their CTF to be applied once, by `CtfState`.

    The factor is the CTF for images as they were taken, its absolute value where phases are flipped, and 1 where images
    are multiplied by it already. The sum of such images over the sum of CTF^2 is the Wiener average for all three.

    Parameters
    ----------
    params : CtfParameters
        CTF parameters of b particles, with the state.
    ctf : Tensor of shape (b, ...)
        Their CTF, on any grid.

    Returns
    -------
    Tensor of shape (b, ...)
        The factor.
    """
    if not params.state.any():
        return ctf
    state = torch.as_tensor(params.state, device=ctf.device).reshape(-1, *[1] * (ctf.ndim - 1))
    left = torch.where(state == CtfState.PHASE_FLIPPED, ctf.abs(), ctf)
    return torch.where(state == CtfState.PREMULTIPLIED, torch.ones_like(ctf), left)


def remaining_flip(params: CtfParameters, ctf: Float[Tensor, "b n m"]) -> Float[Tensor, "b n m"]:
    """Return a CTF with which `phase_flip` changes only images whose phases are not flipped yet.

    Parameters
    ----------
    params : CtfParameters
        CTF parameters of b particles, with the state.
    ctf : Tensor of shape (b, n, m)
        Their CTF.

    Returns
    -------
    Tensor of shape (b, n, m)
        The CTF, or ones for images of correct phases.
    """
    if not params.state.any():
        return ctf
    right = torch.as_tensor(params.state != CtfState.NONE, device=ctf.device)
    return torch.where(right[:, None, None], torch.ones_like(ctf), ctf)


def noise_gain(params: CtfParameters, ctf: Float[Tensor, "b n m"]) -> Float[Tensor, " b"]:
    """Compute the standard deviation that white noise of variance 1 has after the recorded CTF treatment.

    Parameters
    ----------
    params : CtfParameters
        CTF parameters of b particles, with the state.
    ctf : Tensor of shape (b, n, m)
        Their CTF.

    Returns
    -------
    Tensor of shape (b,)
        Root mean square of the CTF for premultiplied images, 1 for others.
    """
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
    """Convert CTF parameters of EMAN2/SPARX.

    SPARX's defocus along theta is mean - difference / 2 * sin(2 (theta + angle)). Its amplitude contrast is a
    percentage that continues to -200 and 200 where a phase plate adds more than 90 degrees; that part becomes
    `phase_shift_deg`. SPARX's electron wavelength is smaller than ours by 4e-5, because of a rounded constant.

    Parameters
    ----------
    defocus_um : sequence of float or ndarray of shape (n,)
        Mean defocus, micrometre; positive for underfocus.
    cs_mm : sequence of float or ndarray of shape (n,)
        Spherical aberration, mm.
    voltage_kV : sequence of float or ndarray of shape (n,)
        Acceleration voltage, kV.
    amplitude_contrast_percent : sequence of float or ndarray of shape (n,)
        Amplitude contrast, percent.
    bfactor_A2 : sequence of float or ndarray of shape (n,)
        B-factor, Angstrom^2.
    astigmatism_um : sequence of float or ndarray of shape (n,), optional
        Defocus difference, micrometre; none by default.
    astigmatism_angle_deg : sequence of float or ndarray of shape (n,), optional
        SPARX's angle of astigmatism, degrees.

    Returns
    -------
    CtfParameters
        The same in the package's conventions.
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
    with np.errstate(invalid="ignore", over="ignore"):
        twice_angle = 2.0 * np.deg2rad(params.astigmatism_angle_deg)
        difference_A = 0.5 * (u_A - v_A)
        cosine_A, sine_A = difference_A * np.cos(twice_angle), difference_A * np.sin(twice_angle)
    # k^2 cos(2 (theta - alpha)) without an arctangent: it is a quadratic form in (kx, ky).
    k2 = kx_per_A**2 + ky_per_A**2
    defocus_k2 = (
        column(0.5 * (u_A + v_A)) * k2
        + column(cosine_A) * (kx_per_A**2 - ky_per_A**2)
        + column(sine_A) * (2.0 * kx_per_A * ky_per_A)
    )
    cs_A = np.asarray(params.spherical_aberration_mm, np.float64) * 1e7
    with np.errstate(invalid="ignore"):
        constant = np.deg2rad(params.phase_shift_deg) + np.arcsin(params.amplitude_contrast)
    phase = (
        column(np.pi * wavelength_A) * defocus_k2
        - column(0.5 * np.pi * cs_A * wavelength_A**3) * k2**2
        + column(constant)
    )
    return torch.sin(phase) * torch.exp(column(-0.25 * np.asarray(params.bfactor_A2, np.float64)) * k2)
