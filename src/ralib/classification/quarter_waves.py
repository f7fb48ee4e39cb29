"""Fourier transform between the pixels of a disc and samples on rings, as products of matrices.

The four pixels (+-x, +-y) and the angles phi and pi - phi share their waves, products of cos or sin of 2 pi k x cos phi
and of 2 pi k y sin phi: a quarter of the disc and half of the angles make the matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.kernels.averages import Waves, half_circle, quarter_circle, quarter_pixels, whole_images


@dataclass(frozen=True)
class QuarterWaves:
    """Waves at the Q pixels of a disc where x and y are 0 or more, and at the angles up to pi / 2.

    Attributes
    ----------
    box : int
        Image size n, pixels.
    n_half : int
        Number of angles H of the half circle, from 0 up to (not including) pi.
    pixel : Tensor of shape (4, Q)
        Flat indices of (x, y), (-x, y), (x, -y) and (-x, -y).
    share : Tensor of shape (Q,)
        1, less where some of the four are the same pixel.
    cos_cos, sin_sin, sin_cos, cos_sin : Tensor of shape (Q, R * (H / 2 + 1))
        Products of cos or sin of 2 pi k x cos phi and of 2 pi k y sin phi.
    """

    box: int
    n_half: int
    pixel: Tensor
    share: Tensor
    cos_cos: Tensor
    sin_sin: Tensor
    sin_cos: Tensor
    cos_sin: Tensor

    @classmethod
    def of(
        cls, box: int, radius_px: float, frequency: Tensor, angle: Tensor, device: torch.device | str
    ) -> QuarterWaves:
        """Make the waves of rings and angles.

        Parameters
        ----------
        box : int
            Image size, pixels.
        radius_px : float
            Radius of the disc, pixels.
        frequency : Tensor of shape (R,)
            Radii of the rings, float64, cycles per pixel.
        angle : Tensor of shape (H,)
            Angles of the half circle, float64, radians.
        device : torch.device or str
            Where the result is.

        Returns
        -------
        QuarterWaves
            The waves.
        """
        c = torch.arange(min(math.floor(radius_px), box // 2 - 1) + 1)
        y, x = (grid.flatten() for grid in torch.meshgrid(c, c, indexing="ij"))
        inside = x * x + y * y <= radius_px * radius_px
        x, y = x[inside], y[inside]
        pixel = torch.stack([(box // 2 + sy * y) * box + box // 2 + sx * x for sy in (1, -1) for sx in (1, -1)])
        share = 1.0 / ((1 + (x == 0).int()) * (1 + (y == 0).int()))
        quarter = angle[: len(angle) // 2 + 1]
        turn_x, turn_y = (
            (2 * math.pi * place.double()[:, None, None] * frequency[:, None] * along).flatten(1).to(device)
            for place, along in ((x, torch.cos(quarter)), (y, torch.sin(quarter)))
        )
        cos_x, sin_x, cos_y, sin_y = (f(turn) for turn in (turn_x, turn_y) for f in (torch.cos, torch.sin))
        waves = ((a * b).float() for a, b in ((cos_x, cos_y), (sin_x, sin_y), (sin_x, cos_y), (cos_x, sin_y)))
        return cls(box, len(angle), pixel.to(device), share.to(device), *waves)

    @property
    def n_pixels(self) -> int:
        """Number of pixels of the whole disc."""
        return round(4 * float(self.share.sum()))

    def samples(self, images: Tensor, first: int, stop: int) -> Tensor:
        """Return samples of images on some rings.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images; pixels outside the disc do not count.
        first, stop : int
            The rings from `first` up to (not including) `stop`.

        Returns
        -------
        Tensor of shape (b, stop - first, H)
            Samples, complex64.
        """
        some = slice(first * (self.n_half // 2 + 1), stop * (self.n_half // 2 + 1))
        parts = quarter_pixels(images, self.pixel, self.share)
        parts = tuple(part @ waves[:, some] for part, waves in zip(parts, self._waves, strict=True))
        return half_circle(parts, stop - first)

    def images(self, weighted: Tensor) -> Tensor:
        """Return the images that weighted samples add up to.

        Parameters
        ----------
        weighted : Tensor of shape (b, r, H)
            Samples on the first r rings, times the weights of the sum over the plane.

        Returns
        -------
        Tensor of shape (b, n, n)
            Images, zero outside the disc.
        """
        n = weighted.shape[1] * (self.n_half // 2 + 1)
        parts = quarter_circle(weighted)
        parts = tuple(part @ waves[:, :n].T for part, waves in zip(parts, self._waves, strict=True))
        return whole_images(parts, self.pixel, self.box)

    @property
    def _waves(self) -> Waves:
        return self.cos_cos, self.sin_sin, self.sin_cos, self.cos_sin
