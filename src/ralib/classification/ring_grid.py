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
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ralib.classification.disc_matrices import DiscMatrices
from ralib.classification.quarter_waves import QuarterWaves
from ralib.kernels.averages import circle_spectra
from ralib.kernels.classes import Rings, angular_orders, moved_orders
from ralib.runtime.chunks import on_gpu, on_rows

if TYPE_CHECKING:  # with it comes Numba, for which a run on a GPU need not wait
    from ralib.kernels.classes.cpu_disc_numba import DiscWaves

CENTRE_CORRECTION = (0.8920, 1.0094, 0.9993)
"""Factors on the weights of the first three rings. The integrand k F(k) starts at k = 0 with a slope, for which the
midpoint rule must be corrected (Euler and Maclaurin); F(0) and its curvature are extrapolated from those rings."""


BEYOND = 8
"""Orders of an image that are computed beyond those of `RingGrid.orders`, the last of which are not quite zero."""

DISC_BYTES, MATRIX_BYTES = 2**28, 2**27
"""Memory of Bessel functions, and of a matrix that takes their place on a GPU, at most."""

MOST_DISCS = 10
"""Numbers of rings and orders for which they are kept."""


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
    n_pixels : int
        Number of pixels of the disc.
    """

    box: int
    radius_px: float
    spacing: float
    frequency: Tensor
    angle_rad: Tensor
    weight: Tensor
    n_pixels: int
    _waves: QuarterWaves

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
        waves = QuarterWaves.of(box, radius_px, frequency, angle, device)
        return cls(
            box=box,
            radius_px=radius_px,
            spacing=spacing,
            frequency=frequency.float().to(device),
            angle_rad=angle.float().to(device),
            weight=weight.float().to(device),
            n_pixels=waves.n_pixels,
            _waves=waves,
        )

    @property
    def n_rings(self) -> int:
        """Number of rings R."""
        return len(self.frequency)

    @property
    def n_half(self) -> int:
        """Number of angles H of the half circle."""
        return len(self.angle_rad)

    @cached_property
    def half_weight(self) -> Tensor:
        """Weights (R,) of the whole half circle, H times those of its samples."""
        return self.weight * self.n_half

    @property
    def device(self) -> torch.device:
        """Where the grid is."""
        return self.weight.device

    def rings(self, rings: int) -> Rings:
        """Return radii and angles of the first rings."""
        known = self._rings
        if rings not in known:
            known[rings] = Rings(self.frequency[:rings], self.angle_rad)
        return known[rings]

    @cached_property
    def _rings(self) -> dict[int, Rings]:
        return {}

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

    def first_rings(self, rings: int, n_orders: int) -> Tensor:
        """Return the first ring on which an image has each angular order.

        Parameters
        ----------
        rings : int
            Number of rings r.
        n_orders : int
            Number of angular orders m.

        Returns
        -------
        Tensor of shape (m,)
            Ring, at most the last.
        """
        known = torch.tensor([self.orders(r + 1, self.radius_px) for r in range(rings)])
        return (known[:, None] <= torch.arange(n_orders)).sum(0).clamp_max(rings - 1)

    def transform(self, images: Tensor, rings: int | None = None) -> Tensor:
        """Return samples of images on the first rings; pixels outside the disc do not count.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images.
        rings : int, optional
            Number of rings r, by default all.

        Returns
        -------
        Tensor of shape (b, r, H)
            Samples, complex64.
        """
        rings = self.n_rings if rings is None else rings
        if on_gpu(images):  # all rings, whatever is wanted: a product of another size would round otherwise
            return self._waves.samples(images, 0, self.n_rings)[:, :rings]
        within = min(rings, self._whole_rings)
        parts = [] if within == rings else [self._waves.samples(images, within, rings)]
        if within:
            n_orders = self.orders(within, self.radius_px) + BEYOND
            parts.insert(0, self.samples_of(self.orders_of_image(images, within, n_orders)))
        return torch.cat(parts, dim=1)

    @cached_property
    def _whole_rings(self) -> int:
        """First rings whose angles hold all orders of an image that fills the disc; 0 without Bessel functions."""
        if self._disc is None:
            return 0
        return sum(self.orders(r, self.radius_px) + BEYOND <= self.n_half for r in range(1, self.n_rings + 1))

    def image(self, samples: Tensor) -> Tensor:
        """Return images (b, n, n) of samples (b, r, H) on the first r rings, zero outside the disc."""
        rings = samples.shape[1]
        if not on_gpu(samples) and self._disc is not None:
            n_orders = min(self.orders(rings, self.radius_px) + BEYOND, self.n_half)
            nowhere = samples.real.new_zeros(len(samples), 2)
            return self.image_of_orders(self.moved_orders(samples, nowhere, rings, n_orders))
        return self._waves.images(samples * self.weight[:rings, None])

    def image_of_orders(self, orders: Tensor) -> Tensor:
        """Return images (b, n, n) of angular orders (b, r, m) of real images, zero outside the disc."""
        rings, n_orders = orders.shape[1:]
        disc = self._disc_of(rings, n_orders)
        return self.image(self.samples_of(orders)) if disc is None else disc.images(orders)

    def orders_of_image(self, images: Tensor, rings: int, n_orders: int) -> Tensor:
        """Return the angular orders of images; pixels outside the disc do not count.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images.
        rings : int
            Number of rings r.
        n_orders : int
            Number of angular orders m.

        Returns
        -------
        Tensor of shape (b, r, m)
            Angular orders.
        """
        disc = self._disc_of(rings, n_orders)
        return self.orders_of(self.transform(images, rings), n_orders) if disc is None else disc.orders(images)

    @cached_property
    def _disc(self) -> DiscWaves | None:
        """What a CPU computes images with in place of matrices; None on a GPU, and where it takes too much memory."""
        n_orders = min(self.orders(self.n_rings, self.radius_px) + BEYOND, self.n_half)
        n_bytes = 4 * n_orders * self.n_rings * self.radius_px * self.radius_px / 2  # half as many distances, at most
        if self.device.type != "cpu" or n_bytes > DISC_BYTES:
            return None
        from ralib.kernels.classes.cpu_disc_numba import DiscWaves

        return DiscWaves.of(self.box, self.radius_px, self.frequency, self.half_weight, n_orders)

    def matrices(self, rings: int, n_orders: int) -> DiscMatrices:
        """Return the transform between the orders of the first rings and the disc's pixels as matrices, for a GPU.

        Parameters
        ----------
        rings : int
            Number of rings.
        n_orders : int
            Number of angular orders.

        Returns
        -------
        DiscMatrices
            The matrices.
        """
        return DiscMatrices.of(
            self.box,
            self._waves.pixel.unique(),
            (rings, n_orders),
            lambda orders: self.image(self.samples_of(orders)),
            lambda images: self.orders_of(self.transform(images, rings), n_orders),
        )

    @cached_property
    def _discs(self) -> dict[tuple[int, int], DiscWaves | DiscMatrices | None]:
        return {}

    def _disc_of(self, rings: int, n_orders: int) -> DiscWaves | DiscMatrices | None:
        """What images of the first rings and orders are computed with; None where samples take less memory."""
        known = self._discs
        if (rings, n_orders) in known:
            known[rings, n_orders] = known.pop((rings, n_orders))  # the latest used is the last
        else:
            disc: DiscWaves | DiscMatrices | None = None
            if self._disc is not None:
                disc = self._disc.first_rings(rings, n_orders)
            elif self.device.type != "cpu" and 8 * rings * n_orders * self.n_pixels <= MATRIX_BYTES:
                disc = self.matrices(rings, n_orders)
            if len(known) >= MOST_DISCS:
                known.pop(next(iter(known)))
            known[rings, n_orders] = disc
        return known[rings, n_orders]

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
        return self.rings(rings).phase(shift_xy_px)

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
        return angular_orders(samples, n_orders)

    def moved_orders(
        self, samples: Tensor, shift_xy_px: Tensor, rings: int, n_orders: int, row: Tensor | None = None
    ) -> Tensor:
        """Return the angular orders of shifted samples.

        Parameters
        ----------
        samples : Tensor of shape (n, R, H)
            Samples.
        shift_xy_px : Tensor of shape (b, 2)
            Shifts, pixels.
        rings : int
            Number of rings r.
        n_orders : int
            Number of angular orders m.
        row : Tensor of shape (b,), optional
            Which of the samples are shifted; by default the first, the second and so on.

        Returns
        -------
        Tensor of shape (b, r, m)
            Angular orders.
        """
        return moved_orders(samples, shift_xy_px, self.rings(rings), n_orders, row)

    def samples_of(self, orders: Tensor) -> Tensor:
        """Return samples (..., r, H) of the angular orders (..., r, m) of a real image: F_-m = (-1)^m conj(F_m)."""
        flat = on_rows(self._circles, orders.flatten(0, -2), most=1024)
        return flat.unflatten(0, orders.shape[:-1])

    def _circles(self, orders: Tensor) -> Tensor:
        """Samples (b, H) of the angular orders (b, m) of rings."""
        spectrum = circle_spectra(orders, self.n_half)
        if not spectrum.numel():
            return spectrum[..., : self.n_half]
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
