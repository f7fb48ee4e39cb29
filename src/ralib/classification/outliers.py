"""Detection of outlier images before the classification: beads, ice, carbon edges, hot pixels.

Strong features of a micrograph dominate sums of powers and squares, and so the initialisation of classes. Such an image
is recognised by its own numbers: the power of its spectrum in a few bands, its brightest pixel, its gradient. Their
logarithms are close to normal for particles, so that the median and the median deviation over all images define what is
usual, as long as most images are particles. Both tails count: a gold bead has too much power in all bands, ice and
carbon too little in the finest ones, as the background they were normalised by is their own.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ralib.images.masks import background_mask
from ralib.kernels.complex_numbers import squared

BAND_EDGES = 0.5, 1.6, 3.2, 6.0, 12.0
"""Periods across the box that part the bands; the last band reaches to Nyquist."""

FEATURES = (*(f"log_power_{i}" for i in range(len(BAND_EDGES) + 1)), "log_peak", "log_gradient")
"""Columns of `Outliers.features`."""

OUTLYING = 4.0
"""Robust standard deviations from the median, in any feature, beyond which an image is an outlier. Of particles about
one in a hundred lies there, of gold beads and crystalline ice nearly all, of carbon edges most."""

LEAST_SPREAD = 0.02
"""Lower limit of a feature's standard deviation: images of one phantom without noise are no outliers of each other."""


FEWEST = 8
"""Images that show what is usual, at least: of two the median is one, and the other would lie infinitely far off."""


@dataclass(frozen=True)
class Outliers:
    """Outlier features of n images.

    Attributes
    ----------
    features : Tensor of shape (n, f)
        Features; see FEATURES.
    deviation : Tensor of shape (n, f)
        Their deviations in robust standard deviations.
    score : Tensor of shape (n,)
        Largest deviation of a usable image, in either direction; 0 for others.
    found : Tensor of shape (n,)
        True beyond OUTLYING.
    """

    features: Tensor
    deviation: Tensor
    score: Tensor
    found: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Outliers:
        return Outliers(self.features[rows], self.deviation[rows], self.score[rows], self.found[rows])


def image_features(images: Tensor) -> Tensor:
    """Return the `Outliers.features` (b, f) of images (b, n, n) whose background has mean 0 and variance 1."""
    n = images.shape[-1]
    windows = _windows(n, images.device)
    inside = images * windows.disc
    power = squared(torch.fft.rfft2(inside)) / windows.disc.sum()
    bands = [(power * band).sum((1, 2)) / size for band, size in windows.bands]
    slope = [(inside * axis).sum((1, 2)) / moment for axis, moment in windows.axes]
    gradient = torch.hypot(*slope) * n
    peak = images.flatten(1).abs().amax(1)
    return torch.stack([*bands, peak, gradient], dim=1).clamp_min(1e-12).log()


@dataclass(frozen=True)
class _Windows:
    """What the features of images of n pixels are sums over.

    Attributes
    ----------
    disc : Tensor of shape (n, n)
        1 where there is no background, else 0.
    bands : tuple of pairs of Tensor
        1 for the frequencies of each band, else 0, (n, n // 2 + 1), and their number ().
    axes : tuple of pairs of Tensor
        Distance from the centre along x and y, (n,) and (n, 1), and the disc's second moment along it ().
    """

    disc: Tensor
    bands: tuple[tuple[Tensor, Tensor], ...]
    axes: tuple[tuple[Tensor, Tensor], ...]


@functools.lru_cache(maxsize=4)
def _windows(n: int, device: torch.device) -> _Windows:
    disc = 1 - background_mask(n, device)
    fy, fx = torch.fft.fftfreq(n, 1 / n, device=device), torch.fft.rfftfreq(n, 1 / n, device=device)
    periods = torch.hypot(fy[:, None], fx[None, :])
    edges = [0.0, *BAND_EDGES, max(n / 2, BAND_EDGES[-1] + 1)]
    bands = [((periods >= a) & (periods < b)).float() for a, b in pairwise(edges)]
    line = torch.arange(n, device=device, dtype=torch.float32) - n // 2
    return _Windows(
        disc=disc,
        bands=tuple((band, band.sum().clamp_min(1)) for band in bands),
        axes=tuple((axis, (disc * axis.square()).sum()) for axis in (line, line[:, None])),
    )


def find_outliers(features: Tensor, usable: Tensor) -> Outliers:
    """Detect the outliers among images, relative to the usable ones; among fewer than FEWEST there are none.

    Parameters
    ----------
    features : Tensor of shape (n, f)
        Features of the images.
    usable : Tensor of shape (n,)
        True for usable images.

    Returns
    -------
    Outliers
        The outliers.
    """
    if not bool(usable.any()):
        zero = torch.zeros(len(features), device=features.device)
        return Outliers(features, torch.zeros_like(features), zero, zero.bool())
    known = features[usable]
    middle = known.median(dim=0).values
    spread = 1.4826 * (known - middle).abs().median(dim=0).values
    deviation = (features - middle) / spread.clamp_min(LEAST_SPREAD)
    score = torch.where(usable, deviation.abs().amax(1), 0.0)
    return Outliers(features, deviation, score, (score > OUTLYING) & (len(known) >= FEWEST))
