"""SPARX's Fourier ring correlation, the low-pass fitted to it, and radial filters; batches of images (k, n, n).

Follows statistics.fsc / fsc_mask, filter.fit_tanh / filt_tanl / filt_table and utilities.amoeba (EMAN2 2.99).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ralib.images.masks import mean_under, model_circle
from ralib.types import RalibError


def frequency_px(n: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the spatial frequency of each rfft2 coefficient.

    Parameters
    ----------
    n : int
        Image size, pixels.
    device : torch.device or str, default 'cpu'
        Where the result is.
    dtype : torch.dtype, default torch.float64
        Floating point type.

    Returns
    -------
    Tensor of shape (n, n // 2 + 1)
        Cycles per pixel.
    """
    ky = torch.fft.fftfreq(n, device=device, dtype=dtype)
    kx = torch.fft.rfftfreq(n, device=device, dtype=dtype)
    return torch.sqrt(ky[:, None] ** 2 + kx[None, :] ** 2)


def fsc(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the Fourier ring correlation of images.

    Parameters
    ----------
    first : Tensor of shape (k, n, n)
        Images.
    second : Tensor of shape (k, n, n)
        Images.

    Returns
    -------
    Tensor of shape (n // 2 + 1,)
        Frequencies, cycles per pixel.
    Tensor of shape (k, n // 2 + 1)
        Correlation, float64; 0 for a ring without power (an empty half).
    Tensor of shape (n // 2 + 1,)
        Twice the coefficients of each ring, as SPARX counts them.
    """
    if first.shape != second.shape or first.ndim != 3:
        raise RalibError(
            f"fsc compares stacks of one shape (k, n, n), got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    n = first.shape[-1]
    ring, counted = _rings(n, first.device)
    a = torch.fft.rfft2(first.double())[:, counted]
    b = torch.fft.rfft2(second.double())[:, counted]

    order, sizes = torch.argsort(ring, stable=True), torch.bincount(ring, minlength=n // 2 + 1).tolist()

    def ring_sum(values: Tensor) -> Tensor:
        # Ring by ring, not scattered: the same bits on a GPU every time.
        return torch.stack([part.sum(dim=1) for part in values[:, order].split(sizes, dim=1)], dim=1)

    power = ring_sum(a.abs() ** 2) * ring_sum(b.abs() ** 2)
    cross = ring_sum((a * b.conj()).real)
    correlation = torch.where(power > 0, cross / power.clamp_min(1e-300).sqrt(), torch.zeros_like(cross))
    count = 2.0 * torch.tensor(sizes, dtype=torch.float64, device=first.device)
    frequency = torch.arange(n // 2 + 1, device=first.device, dtype=torch.float64) / (2 * (n // 2))
    return frequency, correlation, count


def fsc_mask(first: Tensor, second: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the Fourier ring correlation under a mask, of images less their mean inside it; see `fsc`.

    Parameters
    ----------
    first : Tensor of shape (k, n, n)
        Images.
    second : Tensor of shape (k, n, n)
        Images.
    mask : Tensor of shape (n, n), optional
        Inside where above 0.5; by default a circle of radius n // 2.

    Returns
    -------
    Tensor of shape (n // 2 + 1,)
        Frequencies, cycles per pixel.
    Tensor of shape (k, n // 2 + 1)
        Correlation, float64.
    Tensor of shape (n // 2 + 1,)
        Twice the coefficients of each ring.
    """
    n = first.shape[-1]
    if mask is None:
        mask = model_circle(n // 2, n, first.device)
    if mask.shape != first.shape[-2:]:
        raise RalibError(f"the mask is {tuple(mask.shape)} px, the images {tuple(first.shape[-2:])}: they must agree")

    def centred(images: Tensor) -> Tensor:
        return (images.double() - mean_under(images, mask)[:, None, None]) * mask.double()

    return fsc(centred(first), centred(second))


def filt_tanl(images: Tensor, cutoff_per_px: Tensor | float, fall_off: Tensor | float) -> Tensor:
    """Filter images by a hyperbolic tangent low-pass.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    cutoff_per_px : Tensor or float
        Frequency of half height, a number or (k,), cycles per pixel.
    fall_off : Tensor or float
        Fall-off, a number or (k,).

    Returns
    -------
    Tensor of shape (k, n, n)
        Filtered images.
    """
    f = frequency_px(images.shape[-1], images.device)
    cutoff = torch.as_tensor(cutoff_per_px, dtype=torch.float64, device=images.device).reshape(-1, 1, 1)
    width = torch.as_tensor(fall_off, dtype=torch.float64, device=images.device).reshape(-1, 1, 1)
    slope = 0.5 * math.pi / (width * cutoff)
    return filter_fourier(images, 0.5 * (torch.tanh(slope * (f + cutoff)) - torch.tanh(slope * (f - cutoff))))


def filt_table(images: Tensor, table: Tensor) -> Tensor:
    """Multiply images by a radial table, by ring index with linear interpolation, zero beyond the table.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    table : Tensor of shape (k, m) or (m,)
        The table.

    Returns
    -------
    Tensor of shape (k, n, n)
        Filtered images.
    """
    n = images.shape[-1]
    table = torch.atleast_2d(table).to(images.device, torch.float64)
    table = torch.nn.functional.pad(table, (0, n + 2))  # longer than any ring index of the square
    radius = frequency_px(n, images.device) * n
    index = radius.floor().long()
    low, high = table[:, index], table[:, index + 1]
    return filter_fourier(images, low + (radius - index) * (high - low))


def filter_fourier(images: Tensor, response: Tensor) -> Tensor:
    """Multiply images by a real response in the rfft2 layout.

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    response : Tensor of shape (n, n // 2 + 1) or (k, n, n // 2 + 1)
        The response.

    Returns
    -------
    Tensor of shape (k, n, n)
        Filtered images.
    """
    return torch.fft.irfft2(torch.fft.rfft2(images) * response.to(images.dtype), s=images.shape[-2:])


def fit_tanh(frequency_per_px: Tensor, correlation: Tensor, low: float = 0.1) -> tuple[Tensor, Tensor]:
    """Fit the tanh low-pass to each FRC curve.

    The half-set FRC r is converted to that of the whole set by 2r / (1 + r), and set to zero from where that first
    falls below `low`.

    Parameters
    ----------
    frequency_per_px : Tensor of shape (m,)
        Frequencies, cycles per pixel.
    correlation : Tensor of shape (k, m)
        FRC curves.
    low : float, default 0.1
        FRC below which a curve counts as zero.

    Returns
    -------
    Tensor of shape (k,)
        Cut-offs, cycles per pixel.
    Tensor of shape (k,)
        Fall-offs.
    """
    frequency = frequency_per_px.detach().cpu().double().numpy()
    rows = torch.atleast_2d(correlation).detach().cpu().double().numpy()
    fitted = np.array([_fit_tanh_one(frequency, row, low) for row in rows]).reshape(-1, 2)
    result = torch.from_numpy(fitted).to(correlation.device)
    return result[:, 0], result[:, 1]


def _fit_tanh_one(frequency: np.ndarray, correlation: np.ndarray, low: float) -> tuple[float, float]:
    full = _to_whole_set(correlation)
    below = np.flatnonzero(full[1:] < low)
    if len(below):
        full[1 + below[0] :] = 0.0
    half = np.flatnonzero(full[1:-1] < 0.5)
    if not len(half):
        return 0.4, 0.2  # the curve never falls: SPARX's own fallback
    start = frequency[half[0]]
    full[0] = _to_whole_set(np.abs(correlation[:1]))[0]  # SPARX fits |r| at the origin

    def goodness(point: np.ndarray) -> float:
        cutoff, width = point
        if cutoff == 0 or width == 0:
            return 0.0  # SPARX takes the residual as nothing there, so the fit may end on a zero cut-off
        slope = 0.5 * math.pi / width / cutoff
        model = 0.5 * (np.tanh(slope * (frequency + cutoff)) - np.tanh(slope * (frequency - cutoff)))
        return -float(np.sum((full - model) ** 2))

    cutoff, width = _simplex_maximum(goodness, np.array([start, 0.1]), step=0.05)
    return float(cutoff), float(width)


def _to_whole_set(correlation: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(2.0 * correlation / (1.0 + correlation), nan=0.0, neginf=-1e6, posinf=1e6)


def _simplex_maximum(
    function: Callable[[np.ndarray], float], start: np.ndarray, step: float, tolerance: float = 1e-4
) -> np.ndarray:
    """Find the maximum by Nelder and Mead's simplex with SPARX's steps: reflect, expand by 3, or shrink to the best.

    SPARX's own stopping rule is kept (relative range of the values and size of the simplex, both below 1e-4, or 500
    steps): its cut-off is where this iteration stops, not the exact maximum.
    """
    d = len(start)
    simplex = np.vstack([start, start + step * np.eye(d)])
    value = np.array([function(p) for p in simplex])
    for _ in range(500):
        best, worst = int(value.argmax()), int(value.argmin())
        centre = np.delete(simplex, worst, axis=0).mean(axis=0)
        size = np.abs(centre - simplex[worst]).mean() / step
        scale = 0.5 * (abs(value[best]) + abs(value[worst]))
        spread = abs(value[best] - value[worst]) / scale if scale else 0.0
        if spread < tolerance and size < tolerance:
            break
        point = 2.0 * centre - simplex[worst]
        reached = function(point)
        if reached <= value[worst]:
            for i in set(range(d + 1)) - {best, worst}:
                simplex[i] = 0.5 * (simplex[best] + simplex[i])
                value[i] = function(simplex[i])
            point = 0.5 * (simplex[best] + simplex[worst])
            reached = function(point)
        elif reached >= value[best]:
            further = 3.0 * centre - 2.0 * simplex[worst]
            if (far := function(further)) > reached:
                point, reached = further, far
        simplex[worst], value[worst] = point, reached
    return simplex[int(value.argmax())]


def _rings(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ring index of the coefficients that count, and which of (n, n // 2 + 1) do.

    Of the column kx = 0 only one of each Friedel pair counts; the column of the Nyquist frequency counts whole.
    """
    index = torch.arange(n, device=device)
    ky = torch.where(index > n // 2, index - n, index)
    kx = torch.arange(n // 2 + 1, device=device)
    radius = torch.sqrt((ky[:, None] ** 2 + kx[None, :] ** 2).double())
    ring = torch.floor(radius + 0.5).long()
    counted = (ring <= n // 2) & ((kx[None, :] > 0) | (ky[:, None] >= 0))
    return ring[counted], counted
