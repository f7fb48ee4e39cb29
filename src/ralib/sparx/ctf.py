"""SPARX's use of the CTF: images filtered in a doubled box, and the squared profile without astigmatism.

Follows Util::tf, filter.filt_ctf, morphology.ctf_img and ctf_2 (EMAN2 2.99). `ralib.images.ctf` is the CTF of the rest
of the package; this one keeps EMAN2's rounded electron wavelength (4e-5 smaller) and its Nyquist row at +1/2.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ralib.types import CtfParameters


def ctf_img(params: CtfParameters, box: int, pixel_size_A: float, device: torch.device | str = "cpu") -> Tensor:
    """Compute the CTF on the rfft2 grid.

    Parameters
    ----------
    params, box, pixel_size_A, device : as in `ralib.images.ctf.ctf_2d`
        CTF parameters of b particles, image size n, pixel size, device.

    Returns
    -------
    Tensor of shape (b, n, n // 2 + 1)
        CTF, float64; low frequencies are positive for underfocus.
    """
    index = torch.arange(box, device=device, dtype=torch.float64)
    ky = torch.where(index > box // 2, index - box, index)[:, None] / (box * pixel_size_A)
    kx = torch.arange(box // 2 + 1, device=device, dtype=torch.float64)[None, :] / (box * pixel_size_A)
    return _ctf(params, kx, ky)


def ctf_2(params: CtfParameters, box: int, pixel_size_A: float, device: torch.device | str = "cpu") -> Tensor:
    """Compute the squared CTF along a radius, without astigmatism.

    Parameters
    ----------
    params, box, pixel_size_A, device : as in `ctf_img`
        CTF parameters of b particles, image size n, pixel size, device.

    Returns
    -------
    Tensor of shape (b, m)
        Squared CTF at i / n cycles per pixel, beyond the corner of the square.
    """
    length = int(1.7321 * (box // 2)) + 2
    frequency = torch.arange(length, device=device, dtype=torch.float64) / (box * pixel_size_A)
    return _ctf(params, frequency[None, :], torch.zeros_like(frequency)[None, :], astigmatic=False)[:, 0] ** 2


def filt_ctf(
    images: Tensor, params: CtfParameters, pixel_size_A: float, *, binary: bool = False, dopad: bool = True
) -> Tensor:
    """Multiply images by their CTF, or flip their phases.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    params : CtfParameters
        Their CTF parameters.
    pixel_size_A : float
        Pixel size, Angstrom.
    binary : bool, default False
        Whether only to flip phases.
    dopad : bool, default True
        Whether to filter in a doubled box.

    Returns
    -------
    Tensor of shape (b, n, n)
        Filtered images.
    """
    n = images.shape[-1]
    work = pad_with_edge_mean(images) if dopad else images
    ctf = ctf_img(params, work.shape[-1], pixel_size_A, images.device)
    if binary:
        ctf = torch.where(ctf < 0, -1.0, 1.0)
    return torch.fft.irfft2(torch.fft.rfft2(work) * ctf.to(images.dtype), s=work.shape[-2:])[:, :n, :n]


def pad_with_edge_mean(images: Tensor) -> Tensor:
    """Put images (b, n, n) in the first corner of a box twice as wide, filled with the mean of their edge pixels."""
    n = images.shape[-1]
    edge = torch.ones(n, n, dtype=torch.bool, device=images.device)
    edge[1:-1, 1:-1] = False
    mean = images[:, edge].double().mean(dim=1).to(images.dtype)
    padded = mean[:, None, None].expand(-1, 2 * n, 2 * n).clone()
    padded[:, :n, :n] = images
    return padded


def _ctf(params: CtfParameters, kx_per_A: Tensor, ky_per_A: Tensor, *, astigmatic: bool = True) -> Tensor:
    """EMAN2's CTF at the points (kx, ky): (b, h, w)."""

    def column(values: np.ndarray) -> Tensor:
        return torch.as_tensor(np.asarray(values, np.float64), device=kx_per_A.device)[:, None, None]

    voltage = column(params.voltage_kV)
    wavelength_A = 12.398 / torch.sqrt(voltage * (1022.0 + voltage))
    k2 = kx_per_A**2 + ky_per_A**2
    u_A, v_A = column(params.defocus_u_A), column(params.defocus_v_A)
    defocus_A = 0.5 * (u_A + v_A)
    if astigmatic:
        angle = torch.atan2(ky_per_A.expand_as(k2), kx_per_A.expand_as(k2))
        turn = 2.0 * (angle - torch.deg2rad(column(params.astigmatism_angle_deg)))
        defocus_A = defocus_A + 0.5 * (u_A - v_A) * torch.cos(turn)
    cs_A = column(params.spherical_aberration_mm) * 1e7
    constant = torch.deg2rad(column(params.phase_shift_deg)) + torch.asin(column(params.amplitude_contrast))
    phase = torch.pi * (wavelength_A * defocus_A * k2 - 0.5 * cs_A * wavelength_A**3 * k2**2) + constant
    return torch.sin(phase) * torch.exp(-0.25 * column(params.bfactor_A2) * k2)
