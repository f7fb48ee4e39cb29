"""The background of particle images: its noise spectrum, its level and slope, and normalisation by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

PLANE_EXCESS = 10.0
"""A background's offset and slopes vary this many times more than white noise before each image has its own."""

SCALE_EXCESS = 4.0
"""The same for its standard deviation."""


@dataclass(frozen=True)
class NoiseSpectrum:
    """Power of the noise on the rings of the Fourier plane.

    Attributes
    ----------
    power : Tensor of shape (R,)
        Power at the frequencies 0, 1 / box, 2 / box, ...
    box : int
        Image size, pixels.
    """

    power: Tensor
    box: int

    def at(self, frequency_per_px: Tensor) -> Tensor:
        """Return the power at any frequencies (cycles per pixel), linear between rings."""
        ring = (frequency_per_px * self.box).clamp(0, len(self.power) - 1)
        low = ring.floor().long().clamp_max(len(self.power) - 2)
        part = ring - low
        return self.power[low] * (1 - part) + self.power[low + 1] * part


@dataclass(frozen=True)
class BackgroundNormalisation:
    """Subtraction and scaling after which the background of images has mean 0 and variance 1.

    A plane fitted to the corners of one image has an error that extends into the particle, and so has a standard
    deviation: each is measured on every image only where images differ by more than noise explains, and on all of them
    together where a stack was normalised before.

    Attributes
    ----------
    each_plane : bool
        Whether every image has its own plane.
    each_scale : bool
        Whether every image has its own standard deviation.
    offset : float
        Mean of the whole stack's background.
    scale : float
        Standard deviation of the whole stack's background.
    """

    each_plane: bool
    each_scale: bool
    offset: float
    scale: float

    @classmethod
    def measure(cls, images: Tensor) -> BackgroundNormalisation:
        """Measure the normalisation on some images (b, h, h) of a stack."""
        inside, plane = _background_plane(images.shape[-1], images.device)
        values = images.flatten(1)[:, inside]
        fitted = values @ plane
        residual = values - fitted @ plane.T
        variance = residual.square().mean(1)
        mean_variance = float(variance.median())
        spread = (fitted - fitted.median(0).values).square().median(0).values / 0.455 / max(mean_variance, 1e-30)
        expected = 2.0 / residual.shape[1]
        scale_spread = float((variance / max(mean_variance, 1e-30) - 1).abs().median()) ** 2 / 0.455
        return cls(
            each_plane=bool((spread > PLANE_EXCESS).any()),
            each_scale=scale_spread > SCALE_EXCESS * expected,
            offset=float(values.mean(1).median()),
            scale=max(mean_variance, 1e-30) ** 0.5,
        )

    def apply(self, images: Tensor) -> Tensor:
        """Return normalised images (b, h, h)."""
        images = images - self.offset
        if not (self.each_plane or self.each_scale):
            return images / self.scale
        inside, plane = _background_plane(images.shape[-1], images.device)
        flat = images.flatten(1)
        fitted = flat[:, inside] @ plane
        scale = torch.full((len(images), 1), self.scale, device=images.device)
        if self.each_scale:
            scale = (flat[:, inside] - fitted @ plane.T).std(dim=1, keepdim=True).clamp_min(1e-30)
        if self.each_plane:
            whole = _plane_everywhere(images.shape[-1], images.device)
            flat = flat - fitted @ (torch.linalg.pinv(whole[inside]) @ plane).T @ whole.T
        return (flat / scale).unflatten(1, images.shape[1:])


def _plane_everywhere(box: int, device: torch.device) -> Tensor:
    """Columns 1, x, y (h * h, 3), about the centre."""
    centred = torch.arange(box, device=device).float() - box // 2
    y, x = torch.meshgrid(centred, centred, indexing="ij")
    return torch.stack([torch.ones_like(x), x, y], dim=-1).flatten(0, 1)


def _background_plane(box: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels outside the inscribed circle, and an orthonormal basis (p, 3) of the planes on them."""
    whole = _plane_everywhere(box, device)
    inside = (whole[:, 1:].norm(dim=1) > box / 2).nonzero()[:, 0]
    return inside, torch.linalg.qr(whole[inside])[0]
