"""Statistics of an image by itself, before any class exists: power, extremes, uniformity.

Beads, ice crystals and carbon edges are far stronger than a molecule, and visible where a molecule has nothing: at
detail coarser than the particle, outside its radius, in single extreme pixels, in shot noise that varies across the
image. Lengths are measured in particle radii and powers relative to the image's own background, so that the same values
mean the same for another box, pixel size or dose.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ralib.images.fourier import frequency_radius
from ralib.images.masks import soft_disc
from ralib.images.row_sums import Regions, row_mean, row_sd
from ralib.kernels.complex_numbers import squared
from ralib.particles.batches import Batch, ParticleBatches
from ralib.runtime.chunks import in_gpu_chunks

DETAILS = 0.0, 1.0, 2.0, 4.0, 8.0
"""Details (full periods) across the particle that bound the bands of the power; the last ends at the next doubling."""

IMAGE_NAMES = (
    *(f"power_inside_{i}" for i in range(len(DETAILS))),
    *(f"power_outside_{i}" for i in range(len(DETAILS))),
    "fine_noise_inside",
    "fine_noise_outside",
    "brightest_inside",
    "darkest_inside",
    "brightest_outside",
    "darkest_outside",
    "brightest_fine",
    "darkest_fine",
    "sides",
    "kurtosis",
)
"""Columns of `image_statistics`; logarithms where the quantity is a power or an extreme."""

MARGIN = 1.15
"""Times the particle's radius: where inside ends, and outside begins."""


AT_ONCE = 1024
"""Images of a batch whose transforms are made at once: a GPU's batches are larger, and it may be nearly full."""


class StatisticsTable:
    """The `image_statistics` of all particles, batch after batch.

    Parameters
    ----------
    batches : ParticleBatches
        The particles.
    radius_px : float
        Radius of the particle, pixels.

    Attributes
    ----------
    values : Tensor of shape (n, f)
        Statistics, on the device of the batches.
    """

    def __init__(self, batches: ParticleBatches, radius_px: float) -> None:
        self.values = torch.zeros(len(batches.rows), len(IMAGE_NAMES), device=batches.device)
        self._start, self._radius_px = batches.rows.start, radius_px

    def add(self, batch: Batch) -> None:
        """Compute the statistics of a batch."""
        found = in_gpu_chunks(partial(image_statistics, radius_px=self._radius_px), batch.images, AT_ONCE)
        self.values[batch.rows_from(self._start)] = found


@dataclass(frozen=True)
class _Places:
    """Regions of an image and of its transform, as windows and as pixel numbers.

    Attributes
    ----------
    windows : tuple of Tensor of shape (n, n)
        Soft windows of the particle and of what surrounds it, which is never less than the corners.
    pixels : tuple of Tensor
        Pixels inside and outside.
    sectors : Regions
        Pixels outside in each eighth, seen from the centre.
    bands : Regions
        Frequencies of each band, and last those of the noise beyond all bands.
    low_passes : tuple of Tensor of shape (n, n // 2 + 1)
        Gaussian filters that leave coarse and fine detail.
    """

    windows: tuple[Tensor, Tensor]
    pixels: tuple[Tensor, Tensor]
    sectors: Regions
    bands: Regions
    low_passes: tuple[Tensor, Tensor]


@functools.lru_cache(maxsize=2)
def _places(n: int, radius_px: float, device: torch.device) -> _Places:
    """The regions of images of n pixels."""

    def chosen(where: Tensor) -> Tensor:
        return torch.nonzero(where.flatten())[:, 0]

    inside, outside = _regions(n, radius_px, device)
    frequency = frequency_radius(n, device) * (2 * radius_px)
    edges = [*DETAILS, 2 * DETAILS[-1]]
    bands = [(frequency >= low) & (frequency < high) for low, high in itertools.pairwise(edges)]
    bands = [band if band.any() else torch.ones_like(band) for band in bands]
    c = torch.arange(n, device=device, dtype=torch.float32) - n // 2
    sector = ((torch.atan2(c[:, None], c[None, :]) + torch.pi) / (torch.pi / 4)).long() % 8
    far, noise = outside > 0.5, frequency >= 0.7 * frequency.max() / 2**0.5
    coarse, fine = (torch.exp(-((frequency / detail) ** 2)) for detail in (4.0, 16.0))
    return _Places(
        windows=(inside, outside),
        pixels=(chosen(inside > 0.5), chosen(far)),
        sectors=Regions(tuple(chosen(far & (sector == s)) for s in range(8)), n * n),
        bands=Regions((*map(chosen, bands), chosen(noise)), noise.numel()),
        low_passes=(coarse, fine),
    )


def image_statistics(images: Tensor, radius_px: float) -> Tensor:
    """Compute the statistics of images; see IMAGE_NAMES.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images whose background has mean 0 and standard deviation 1.
    radius_px : float
        Radius of the particle, pixels.

    Returns
    -------
    Tensor of shape (b, f)
        Statistics.
    """
    n, places = images.shape[-1], _places(images.shape[-1], radius_px, images.device)
    powers = [_band_powers(images, window, places.bands) for window in places.windows]
    transform = torch.fft.rfft2(images)
    coarse, fine = (torch.fft.irfft2(transform * keep, s=(n, n)).flatten(1) for keep in places.low_passes)
    parts = (coarse.index_select(1, region) for region in places.pixels)
    extremes = [f for part in parts for f in (part.amax(1), -part.amin(1))]
    extremes += [fine.amax(1), -fine.amin(1)]
    logs = torch.log(torch.cat([*powers, torch.stack(extremes, dim=1).clamp_min(1e-3)], dim=1))
    pixels = images.flatten(1)
    spread = row_sd(pixels).clamp_min(1e-6)
    kurtosis = row_mean(((pixels - row_mean(pixels)[:, None]) / spread[:, None]).pow(4))
    sides = _sides(coarse, places.sectors)
    return torch.cat([*_in_order(logs), sides[:, None], torch.log(kurtosis.clamp_min(1e-3))[:, None]], dim=1)


def _in_order(logs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The bands inside and outside, the fine noise inside and outside, the extremes."""
    b = len(DETAILS)
    bands = torch.cat([logs[:, :b], logs[:, b + 1 : 2 * b + 1]], dim=1)
    return bands, logs[:, [b, 2 * b + 1]], logs[:, 2 * b + 2 :]


def _regions(n: int, radius_px: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Soft windows (n, n) of the particle and of what surrounds it, which is never less than the corners."""
    radius = min(MARGIN * radius_px, 0.45 * n)
    inside = soft_disc(n, radius - 0.1 * radius_px, 0.2 * radius_px, device=device)
    rim = soft_disc(n, 0.70 * n, 0.02 * n, device=device)
    return inside, (1 - inside) * rim


def _band_powers(images: Tensor, window: Tensor, bands: Regions) -> Tensor:
    """Mean power per pixel (b, bands + 1) in a window; the last column is the noise beyond all bands."""
    power = (squared(torch.fft.rfft2(images * window)) / window.square().sum()).flatten(1)
    return bands.means(power).clamp_min(1e-12)


def _sides(coarse: Tensor, sectors: Regions) -> Tensor:
    """Difference (b,) between the brightest and the darkest eighth of the surroundings, seen from the centre."""
    means = sectors.means(coarse)
    return means.amax(1) - means.amin(1)
