"""Images as samples on rings of the Fourier plane, and back: the domain in which classification works.

An image I(p), p = (x, y) from the centre pixel, becomes F(k, phi) = sum_p I(p) exp(-2 pi i k (x cos phi + y sin phi))
on equally spaced radii and angles. Here a shift is a phase factor, a rotation an offset in angle, and a lower
resolution fewer rings. Both directions are matrix products over the pixels of a disc, exact at every sample; sums over
the plane use the midpoint rule, whose aliases lie `1 / spacing` pixels away and so outside the correlation of particle
and template.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CENTRE_CORRECTION = (0.8920, 1.0094, 0.9993)
"""Factors on the weights of the first three rings. The integrand k F(k) starts at k = 0 with a slope, for which the
midpoint rule must be corrected (Euler and Maclaurin); F(0) and its curvature are extrapolated from those rings."""


@dataclass(frozen=True)
class RingGrid:
    """Rings, angles and quadrature weights, with the transform matrices from a disc of pixels.

    Attributes
    ----------
    box : int
        Image size, pixels.
    radius_px : float
        Radius of the disc whose pixels count, pixels.
    spacing : float
        Distance of the rings, cycles per pixel; the first ring lies half of it from zero.
    frequency : Tensor of shape (R,)
        Radii of the rings, cycles per pixel.
    angle_rad : Tensor of shape (H,)
        Angles of the stored half circle, from 0 up to (not including) pi; the rest is the conjugate.
    weight : Tensor of shape (R,)
        Weights with which sum_k w_k sum_phi Re[F conj(G)] is the inner product of the two images.
    """

    box: int
    radius_px: float
    spacing: float
    frequency: Tensor
    angle_rad: Tensor
    weight: Tensor
    _pixel: Tensor  # (P,) the disc's pixels: the j-th last lies opposite the j-th
    _cosine: Tensor  # (P // 2, R * H)
    _sine: Tensor

    @classmethod
    def create(
        cls, box: int, *, radius_px: float, partner_radius_px: float, n_rings: int, device: torch.device | str
    ) -> RingGrid:
        """Make the rings for images in one disc that are compared with images in another.

        Parameters
        ----------
        box : int
            Image size, pixels.
        radius_px : float
            Radius of the disc, pixels.
        partner_radius_px : float
            Radius of the other disc, pixels.
        n_rings : int
            Number of rings.
        device : torch.device or str
            Where the grid is.

        Returns
        -------
        RingGrid
            The grid.
        """
        radius_px = min(radius_px, box // 2 - 1)
        spacing = ring_spacing(radius_px, partner_radius_px)
        frequency = (torch.arange(n_rings, dtype=torch.float64) + 0.5) * spacing
        highest_order = 2 * math.pi * float(frequency[-1]) * (radius_px + partner_radius_px)
        n_half = 8 * math.ceil((highest_order + 12) / 16)
        angle = torch.arange(n_half, dtype=torch.float64) * (math.pi / n_half)
        weight = 2 * frequency * spacing * (math.pi / n_half)
        weight[:3] *= torch.tensor(CENTRE_CORRECTION, dtype=torch.float64)
        pixel, xy = _disc_pixels(box, radius_px)
        half = xy[: len(xy) // 2].double()
        turn = 2 * math.pi * (half @ torch.stack([torch.cos(angle), torch.sin(angle)]))
        turn = (turn[:, None, :].to(device) * frequency[:, None].to(device)).flatten(1)
        return cls(
            box=box,
            radius_px=radius_px,
            spacing=spacing,
            frequency=frequency.float().to(device),
            angle_rad=angle.float().to(device),
            weight=weight.float().to(device),
            _pixel=pixel.to(device),
            _cosine=torch.cos(turn).float(),
            _sine=-torch.sin(turn).float(),
        )

    @property
    def n_rings(self) -> int:
        """Number of rings R."""
        return len(self.frequency)

    @property
    def n_half(self) -> int:
        """Number of angles H of the half circle."""
        return len(self.angle_rad)

    @property
    def n_pixels(self) -> int:
        """Number of pixels of the disc."""
        return len(self._pixel)

    @property
    def device(self) -> torch.device:
        """Where the grid is."""
        return self.weight.device

    def orders(self, rings: int, radius_px: float) -> int:
        """Return the number of angular orders that an image has on the first rings.

        Parameters
        ----------
        rings : int
            Number of rings.
        radius_px : float
            Radius that holds the image, pixels.

        Returns
        -------
        int
            Number of orders.
        """
        needed = math.ceil(2 * math.pi * (rings - 0.5) * self.spacing * radius_px) + 4
        return min(needed, self.n_half)

    def transform(self, images: Tensor) -> Tensor:
        """Return samples (b, R, H), complex64, of images (b, n, n); pixels outside the disc do not count."""
        values = images.flatten(1)[:, self._pixel]
        half = values.shape[1] // 2
        first, last = values[:, :half], values[:, half + 1 :].flip(1)
        real = (first + last) @ self._cosine + values[:, half : half + 1]
        imag = (first - last) @ self._sine
        return torch.complex(real, imag).unflatten(1, (self.n_rings, self.n_half))

    def image(self, samples: Tensor) -> Tensor:
        """Return images (b, n, n) of samples (b, r, H) on the first r rings, zero outside the disc."""
        rings = samples.shape[1]
        weighted = (samples * self.weight[:rings, None]).flatten(1)
        cosine, sine = (m[:, : rings * self.n_half] for m in (self._cosine, self._sine))
        even, odd = weighted.real @ cosine.T, weighted.imag @ sine.T
        centre = weighted.real.sum(1, keepdim=True)
        out = samples.real.new_zeros(len(samples), self.box * self.box)
        out[:, self._pixel] = torch.cat([even + odd, centre, (even - odd).flip(1)], dim=1)
        return out.unflatten(1, (self.box, self.box))

    def phase(self, shift_xy_px: Tensor, rings: int) -> Tensor:
        """Return exp(-2 pi i k.s), (b, r, H): multiplied to samples it shifts the image by s.

        Parameters
        ----------
        shift_xy_px : Tensor of shape (b, 2)
            Shift s, pixels.
        rings : int
            Number of rings r.

        Returns
        -------
        Tensor of shape (b, r, H)
            Phase factors.
        """
        along = shift_xy_px[:, :1] * torch.cos(self.angle_rad) + shift_xy_px[:, 1:] * torch.sin(self.angle_rad)
        turn = -2 * math.pi * along[:, None, :] * self.frequency[:rings, None]
        return torch.polar(torch.ones_like(turn), turn)

    def orders_of(self, samples: Tensor, n_orders: int) -> Tensor:
        """Return the coefficients F_m, m = 0..n_orders-1, of F(k, phi) = sum_m F_m exp(i m phi).

        Parameters
        ----------
        samples : Tensor of shape (..., r, H)
            Samples.
        n_orders : int
            Number of angular orders.

        Returns
        -------
        Tensor of shape (..., r, n_orders)
            Angular orders.
        """
        circle = torch.cat([samples, samples.conj()], dim=-1)
        if not circle.numel():  # of the particles looked at, a rank may hold none, and cuFFT takes no empty batch
            return circle[..., :n_orders]
        return torch.fft.fft(circle, dim=-1, norm="forward")[..., :n_orders]

    def samples_of(self, orders: Tensor) -> Tensor:
        """Return samples (..., r, H) of the angular orders (..., r, m) of a real image: F_-m = (-1)^m conj(F_m)."""
        m = torch.arange(orders.shape[-1], device=orders.device)
        negative = torch.where(m % 2 == 0, 1.0, -1.0) * orders.conj()
        spectrum = orders.new_zeros(*orders.shape[:-1], 2 * self.n_half)
        spectrum[..., : orders.shape[-1]] = orders
        spectrum[..., 2 * self.n_half - orders.shape[-1] + 1 :] = negative[..., 1:].flip(-1)
        return torch.fft.ifft(spectrum, dim=-1, norm="forward")[..., : self.n_half]


def ring_spacing(radius_px: float, partner_radius_px: float) -> float:
    """Return the distance of rings whose aliases stay outside the correlation of two discs.

    Parameters
    ----------
    radius_px : float
        Radius of one disc, pixels.
    partner_radius_px : float
        Radius of the other disc, pixels.

    Returns
    -------
    float
        Cycles per pixel.
    """
    return 1.0 / (radius_px + partner_radius_px + 4.0)


def _disc_pixels(box: int, radius_px: float) -> tuple[Tensor, Tensor]:
    """Flat index (P,) and (x, y) (P, 2) of the pixels within the radius; opposite pixels mirror the order."""
    c = torch.arange(box) - box // 2
    y, x = torch.meshgrid(c, c, indexing="ij")
    inside = (x * x + y * y <= radius_px * radius_px).flatten().nonzero()[:, 0]
    return inside, torch.stack([x.flatten()[inside], y.flatten()[inside]], dim=1)
