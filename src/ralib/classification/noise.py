"""What surrounds the particles: noise spectrum per group, and how large a particle is."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ralib.images.fourier import squared
from ralib.images.masks import BACKGROUND_RADIUS

HOT_PIXEL = 5.0
"""An image whose brightest pixel exceeds the typical brightest pixel so many times says nothing of the particles."""

POOL = 10.0
"""A group's noise spectrum counts as many particles as it has, the average over all groups as this many."""


def background_power(images: Tensor, background: Tensor, rings_per_px: Tensor, spacing_per_px: float) -> Tensor:
    """Power per pixel of the background of images (b, n, n) at rings (R,) of the Fourier plane: (b, R)."""
    n = images.shape[-1]
    frequency = torch.hypot(
        torch.fft.fftfreq(n, device=images.device)[:, None], torch.fft.rfftfreq(n, device=images.device)[None, :]
    ).flatten()
    # A triangle as wide as two rings of the coarser of the two grids: every ring gets some samples.
    width = max(spacing_per_px, 1.5 / n)
    near = (1 - (frequency[:, None] - rings_per_px).abs() / width).clamp_min(0)
    near[0] = 0  # the mean was taken out
    power = squared(torch.fft.rfft2(images * background)).flatten(1) / background.sum()
    return (power @ near) / near.sum(0)


def noise_spectra(power: np.ndarray, group: np.ndarray, passed: np.ndarray | None = None) -> np.ndarray:
    """Noise power (n, R) of each particle's group: the group's mean, pooled with that of all particles.

    power   (n, R) background power of each particle
    group   (n,) its micrograph or optics group
    passed  (n, R) share of the noise's power left in an image that was filtered before; None: all of it
    """
    names, index = np.unique(group, return_inverse=True)
    sums = np.zeros((len(names), power.shape[1]))
    np.add.at(sums, index, power)
    count: np.ndarray = np.bincount(index, minlength=len(names))[:, None]
    pool: float | np.ndarray = POOL
    if passed is not None:
        count = np.zeros((len(names), power.shape[1]))
        np.add.at(count, index, passed)
        pool = np.maximum(POOL * passed.mean(0), 1e-3)
    spectrum = (sums + POOL * power.mean(0)) / (count + pool)
    return np.maximum(spectrum, 1e-3 * spectrum.max())[index].astype(np.float32)


def particle_radius_px(images: Tensor, *, fraction: float = 0.95) -> float | None:
    """Radius that holds `fraction` of what the particles add to the variance of their images (b, n, n); or None.

    The images' background has variance 1. The variance at a radius, averaged over all particles and angles, exceeds
    the background's where there is particle. None where the excess is lost in the noise. Images with a pixel far
    brighter than others have (hot pixels) do not count.
    """
    peak = images.abs().flatten(1).amax(1)
    images = images[peak <= HOT_PIXEL * peak.median()]
    n = images.shape[-1]
    c = torch.arange(n, device=images.device, dtype=torch.float32) - n // 2
    ring = torch.hypot(c[:, None], c[None, :]).round().long().flatten().cpu().numpy()
    mean_square = images.double().square().mean(0).flatten().cpu().numpy()
    count = np.bincount(ring)[: n // 2]
    profile = np.bincount(ring, weights=mean_square)[: n // 2] / count
    excess = profile - mean_square[ring > BACKGROUND_RADIUS * n].mean()
    total = np.cumsum(excess * count)
    error = math.sqrt(2.0 / len(images) * count.sum())
    if total.max() < 5 * error:
        return None
    return float(np.argmax(total > fraction * total.max()))
