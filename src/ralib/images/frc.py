"""Fourier ring correlation (FRC) of half averages, and the resolution and signal to noise ratio derived from it."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ralib.images.fourier import hermitian_weight, ring_index
from ralib.images.masks import soft_disc
from ralib.kernels.averages import smoothed
from ralib.kernels.figures import ring_correlation
from ralib.kernels.threads import on_cores, shares
from ralib.types import ClassAverages

STRONG = 0.8
"""FRC down to which rings have so strong a signal that a mask may spread it over others."""


def frc(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the Fourier ring correlation of two sets of images.

    Parameters
    ----------
    first : Tensor of shape (k, n, n)
        First half averages.
    second : Tensor of shape (k, n, n)
        Second half averages.
    mask : Tensor of shape (n, n), optional
        Multiplied to both first.

    Returns
    -------
    Tensor of shape (k, n // 2 + 1)
        Correlation; ring r lies at r / n cycles per pixel. A ring without power counts as 0.

    Raises
    ------
    ValueError
        If the shapes differ.

    References
    ----------
    Saxton and Baumeister 1982, "The correlation averaging of a regularly arranged bacterial cell envelope protein", J.
    Microsc. 127, 127-138.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two sets have shapes {tuple(first.shape)} and {tuple(second.shape)}")
    halves = torch.stack([first, second])
    return _correlation(torch.fft.rfft2(halves if mask is None else halves * mask))


def _correlation(spectra: Tensor) -> Tensor:
    """The FRC (k, n // 2 + 1) of the spectra (2, k, n, n // 2 + 1) of both halves."""
    box, device = spectra.shape[-2], spectra.device
    return ring_correlation(spectra, ring_index(box, device), hermitian_weight(box, device))


def ssnr(frc_curve: Tensor) -> Tensor:
    """Return the spectral signal to noise ratio of whole averages, 2 F / (1 - F), from the FRC F of their halves.

    Parameters
    ----------
    frc_curve : Tensor of shape (..., r)
        FRC on each ring.

    Returns
    -------
    Tensor of shape (..., r)
        Ratio, not below 0.
    """
    clipped = frc_curve.clamp(0.0, 0.999)
    return 2.0 * clipped / (1.0 - clipped)


def signal_power_share(frc_curve: Tensor) -> Tensor:
    """Return the share of signal in the power of whole averages, 2 F / (1 + F), from the FRC F of their halves.

    Parameters
    ----------
    frc_curve : Tensor of shape (..., r)
        FRC on each ring.

    Returns
    -------
    Tensor of shape (..., r)
        Share, 0 to 1.
    """
    clipped = frc_curve.clamp(0.0, 1.0)
    return 2 * clipped / (1 + clipped)


def resolution_frequency(frc_curve: Tensor, threshold: float = 0.143, *, box: int | None = None) -> Tensor:
    """Return the frequency at which each FRC curve first falls below a threshold, linear between rings.

    A threshold of 0.143 belongs to halves of independent noise. Here both halves were aligned to one reference, so that
    the resolution is an optimistic one.

    Parameters
    ----------
    frc_curve : Tensor of shape (k, n // 2 + 1)
        FRC curves.
    threshold : float, default 0.143
        FRC at the resolution.
    box : int, optional
        Size n of the images, pixels; by default the even one of as many rings.

    Returns
    -------
    Tensor of shape (k,)
        Cycles per pixel; 0.5 where the curve never falls below. What is no number counts as below.

    References
    ----------
    Rosenthal and Henderson 2003, "Optimal determination of particle orientation, absolute hand, and contrast loss in
    single-particle electron cryomicroscopy", J. Mol. Biol. 333, 721-745.
    """
    box = 2 * (frc_curve.shape[-1] - 1) if box is None else box
    frc_curve = frc_curve.nan_to_num(0.0)
    below = frc_curve < threshold
    below[..., 0] = False
    first = torch.where(below.any(-1), below.int().argmax(-1), box // 2)
    value = frc_curve.gather(-1, first[..., None])[..., 0]
    before = frc_curve.gather(-1, (first[..., None] - 1).clamp_min(0))[..., 0]
    step = ((before - threshold) / (before - value).clamp_min(1e-6)).clamp(0.0, 1.0)
    crossing = (first - 1 + step) / box
    return torch.where(below.any(-1), crossing, torch.full_like(crossing, 0.5))


def masked_frc(averages: ClassAverages, radius_px: float) -> Tensor:
    """Compute the FRC of masked half averages, without what the mask makes correlate.

    A mask spreads strong coarse signal over finer rings. So beyond the ring where the unmasked FRC falls below 0.8, the
    halves are masked without what lies within it. Random phases (Chen et al. 2013) expect the same, but on the few
    samples that a ring has in 2D they add far more noise. Rings finer than the mask resolves are not independent: the
    curve is smoothed over neighbours, so that one of them does not decide on the resolution, and rings coarser than the
    mask, where offsets and gradients of the background are, have the FRC of the first that is not.

    Parameters
    ----------
    averages : ClassAverages
        Class averages with half images.
    radius_px : float
        Radius of the soft mask, pixels.

    Returns
    -------
    Tensor of shape (k, n // 2 + 1)
        FRC, -1 to 1.

    References
    ----------
    Chen et al. 2013, "High-resolution noise substitution to measure overfitting and validate resolution in 3D structure
    determination by single particle electron cryomicroscopy", Ultramicroscopy 135, 24-35.
    """
    halves = averages.half_images
    assert halves is not None
    box, device = halves.shape[-1], halves.device
    given = _mask(box, radius_px, device), ring_index(box, device), min(math.ceil(box / (2 * radius_px)), box // 2)
    if not halves.is_cpu:
        return _masked(halves, *given)
    return torch.cat(on_cores(lambda some: _masked(halves[:, some], *given), shares(len(halves[0]))))


def _masked(halves: Tensor, mask: Tensor, ring: Tensor, first: int) -> Tensor:
    """`masked_frc` of some classes, from half averages (2, k, n, n); rings before `first` are coarser than the mask."""
    plain = torch.fft.rfft2(halves)
    strong = torch.cumprod((_correlation(plain) > STRONG).int(), dim=1).sum(1)[:, None]
    masked = torch.fft.rfft2(halves * mask)
    within = torch.fft.irfft2(torch.where(ring < strong[..., None], plain, 0.0), s=mask.shape)
    beyond = masked - torch.fft.rfft2(within * mask)
    rings = torch.arange(masked.shape[-1], device=halves.device)
    curve = torch.where(rings < strong + 2, _correlation(masked), _correlation(beyond))
    return smoothed(curve[:, rings.clamp_min(first)])


@functools.lru_cache(maxsize=4)
def _mask(box: int, radius_px: float, device: torch.device) -> Tensor:
    return soft_disc(box, radius_px, 4.0, device=device)
