"""Numba form of the transform between angular orders on rings and the pixels of a disc, sixteen images side by side.

With F(k, phi) = sum_m A_m(k) exp(i m phi), a wave exp(2 pi i k r cos(phi - theta)) = sum_m i^m J_m(2 pi k r) exp(i m
(phi - theta)) makes one product over the rings for each order and each distance of a pixel from the centre, and a sum
over the orders for each pixel (the Fourier-Bessel or Hankel transform). Pixels (+-x, +-y) share cosines and sines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.lanes_numba import load, multiply_add, spread, store
from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.tile_llvm import LANES, TALL, tall_tile
from ralib.kernels.threads import on_cores

__all__ = ["DiscWaves"]

AT_ONCE = 2**22
"""Waves of which Bessel functions are computed at a time."""
NEGLIGIBLE = 1e-8
"""A Bessel function below it is left out of sums in single precision: J_m(z) is, where z is well below m."""


@dataclass(frozen=True)
class DiscWaves:
    """Bessel functions at the distances of a disc's pixels, and cosines and sines of their directions.

    Attributes
    ----------
    box : int
        Image size n, pixels.
    pixel : ndarray of shape (Q, 4)
        Flat indices of (x, y), (-x, y), (x, -y) and (-x, -y) for x and y of 0 or more, the nearest first.
    share : ndarray of shape (Q,)
        1, less where some of the four are the same pixel.
    first : ndarray of shape (D + 1,)
        First pixel of each distance, and the number of pixels for those that fill the last tile.
    turns : ndarray of shape (Q, m, 2)
        Cosine and sine of each order.
    bessel : ndarray of shape (m, D, r)
        J_m at every distance and ring; D is a multiple of a tile's rows.
    weight : Tensor of shape (r,)
        Weight of each ring in the sum over the plane, in which an order counts as its mean over the circle.
    """

    box: int
    pixel: np.ndarray
    share: np.ndarray
    first: np.ndarray
    turns: np.ndarray
    bessel: np.ndarray
    weight: Tensor

    @classmethod
    def of(cls, box: int, radius_px: float, frequency: Tensor, weight: Tensor, n_orders: int) -> DiscWaves:
        """Compute the functions of a disc.

        Parameters
        ----------
        box : int
            Image size n, pixels.
        radius_px : float
            Radius of the disc, pixels.
        frequency : Tensor of shape (r,)
            Radii of the rings, cycles per pixel.
        weight : Tensor of shape (r,)
            Their weights.
        n_orders : int
            Number of angular orders m.

        Returns
        -------
        DiscWaves
            The functions.
        """
        line = np.arange(min(math.floor(radius_px), box // 2 - 1) + 1)
        y, x = (grid.ravel() for grid in np.meshgrid(line, line, indexing="ij"))
        square = x * x + y * y
        order = np.argsort(square, kind="stable")
        order = order[square[order] <= radius_px * radius_px]
        x, y, square = x[order], y[order], square[order]
        distances, first = np.unique(square, return_index=True)
        whole = TALL * -(-len(distances) // TALL)
        first = np.concatenate([first, np.full(whole + 1 - len(first), len(x))])
        pixel = np.stack([(box // 2 + sy * y) * box + box // 2 + sx * x for sy in (1, -1) for sx in (1, -1)], axis=1)
        share = (1.0 / ((1 + (x == 0)) * (1 + (y == 0)))).astype(np.float32)
        theta = np.arctan2(y, x)[:, None] * np.arange(n_orders)
        turns = np.stack([np.cos(theta), np.sin(theta)], axis=2).astype(np.float32)
        bessel = np.zeros((n_orders, whole, len(frequency)), np.float32)
        cycles = np.sqrt(distances)[:, None] * frequency.double().numpy()
        bessel[:, : len(distances)] = _bessel(2 * math.pi * cycles, n_orders)
        return cls(box, pixel, share, first, turns, bessel, weight)

    def first_rings(self, rings: int, n_orders: int) -> DiscWaves:
        """Return the functions of the first rings and orders.

        Parameters
        ----------
        rings : int
            Number of rings r.
        n_orders : int
            Number of angular orders m.

        Returns
        -------
        DiscWaves
            The functions.
        """
        some = np.ascontiguousarray(self.bessel[:n_orders, :, :rings])
        turns, weight = self.turns[:, :n_orders], self.weight[:rings]
        return DiscWaves(self.box, self.pixel, self.share, self.first, turns, some, weight)

    def images(self, orders: Tensor) -> Tensor:
        """Compute images from angular orders.

        Parameters
        ----------
        orders : Tensor of shape (b, r, m)
            Angular orders of real images, complex64.

        Returns
        -------
        Tensor of shape (b, n, n)
            Images, zero outside the disc.
        """
        out = torch.zeros(len(orders), self.box * self.box)
        given, result = torch.view_as_real((orders * self.weight[:, None]).contiguous()).numpy(), out.numpy()
        tables = self.pixel, self.first, self._flat_turns, *self._by_distance, self.bessel.shape

        def block(first: int) -> None:
            _fill_images(given[first : first + LANES], tables, result[first : first + LANES])

        on_cores(block, range(0, len(orders), LANES))
        return out.unflatten(1, (self.box, self.box))

    def orders(self, images: Tensor) -> Tensor:
        """Compute the angular orders of images; pixels outside the disc do not count.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images.

        Returns
        -------
        Tensor of shape (b, r, m)
            Angular orders.
        """
        out = torch.empty(len(images), self.bessel.shape[2], len(self.bessel), dtype=torch.complex64)
        given, result = images.flatten(1).contiguous().numpy(), torch.view_as_real(out).numpy()
        tables = self.pixel, self.share, self.first, self._flat_turns, *self._by_ring, self.bessel.shape

        def block(first: int) -> None:
            _fill_orders(given[first : first + LANES], tables, result[first : first + LANES])

        on_cores(block, range(0, len(images), LANES))
        return out

    @cached_property
    def _flat_turns(self) -> np.ndarray:
        return self.turns.ravel()

    @cached_property
    def _by_distance(self) -> tuple[np.ndarray, np.ndarray]:
        return _tiles(self.bessel)

    @cached_property
    def _by_ring(self) -> tuple[np.ndarray, np.ndarray]:
        n_orders, whole, rings = self.bessel.shape
        rows = np.zeros((n_orders, TALL * -(-rings // TALL), whole), np.float32)
        rows[:, :rings] = self.bessel.transpose(0, 2, 1)
        return _tiles(rows)


def _tiles(functions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bessel functions (m, rows, terms) as tiles of rows, flat, without the first terms where they are negligible.

    And of each tile (m, tiles, 2) its first term, and where it begins.
    """
    n_orders, rows, n_terms = functions.shape
    tiles = functions.reshape(n_orders, rows // TALL, TALL, n_terms)
    needed = np.logical_or.accumulate(np.abs(tiles).max(2) > NEGLIGIBLE, axis=2)
    size = TALL * needed.sum(2)
    begins = np.stack([n_terms - needed.sum(2), size.cumsum().reshape(size.shape) - size], axis=2)
    return tiles[np.broadcast_to(needed[:, :, None], tiles.shape)], begins


def _bessel(z: np.ndarray, n_orders: int) -> np.ndarray:
    """Bessel functions J_m (m, d, r) at z (d, r).

    Of exp(i z cos phi) = sum_m i^m J_m(z) exp(i m phi) the real part has the even orders, the imaginary part the odd
    ones, so that the transform of the sum of both, an even function, gives them all.
    """
    half = math.ceil((float(z.max()) + n_orders) / 2) + 32
    cosine, m = np.cos(np.arange(half + 1) * (math.pi / half)), np.arange(n_orders)
    out = np.empty((n_orders, *z.shape), np.float32)
    step = max(1, AT_ONCE // (z.shape[1] * half))
    for first in range(0, len(z), step):
        wave = math.sqrt(2) * np.sin(z[first : first + step, :, None] * cosine + math.pi / 4)
        circle = np.concatenate([wave, wave[..., -2:0:-1]], axis=-1)
        found = np.fft.rfft(circle, norm="forward").real[..., :n_orders]
        out[:, first : first + step] = np.moveaxis(found * np.where(m % 4 < 2, 1.0, -1.0), -1, 0)
    return out


@kept
@numba.njit(nogil=True)
@no_type_check
def _fill_images(orders: Any, tables: Any, out: Any) -> None:
    """Images (b, n * n) of weighted orders (b, r, m, 2), at most LANES of them."""
    pixel, first, turns, bessel, begins, (n_orders, whole, rings) = tables
    columns = np.zeros(n_orders * rings * 2 * LANES, np.float32)
    apart = TALL * 2 * LANES
    products, image = np.empty(n_orders * apart, np.float32), np.empty(4 * LANES, np.float32)
    for b in range(len(orders)):
        for m in range(n_orders):
            times = np.float32(1.0 if m == 0 else 2.0)
            for k in range(rings):
                re, im = _times_i(times * orders[b, k, m, 0], times * orders[b, k, m, 1], m)
                at = (m * rings + k) * 2 * LANES + b
                columns[at], columns[at + LANES] = re, im
    for d in range(0, whole, TALL):
        stop = 0
        while stop < n_orders and begins[stop, d // TALL, 0] < rings:
            ring, begin = begins[stop, d // TALL]
            tall_tile(
                bessel, begin, columns, (stop * rings + ring) * 2 * LANES, 2 * LANES, LANES, rings - ring,
                products, stop * apart, 2 * LANES, LANES,
            )  # fmt: skip
            stop += 1
        for row in range(TALL):
            for q in range(first[d + row], first[d + row + 1]):
                _fill_pixels(products, row * 2 * LANES, apart, turns, q * n_orders * 2, stop, image)
                for b in range(len(out)):
                    for corner in range(4):
                        out[b, pixel[q, corner]] = image[corner * LANES + b]


@numba.njit
@no_type_check
def _fill_pixels(products: Any, at: Any, apart: Any, turns: Any, turn: Any, n_orders: Any, image: Any) -> None:
    """Values, flat (4, LANES), at the four pixels of one direction."""
    nothing = spread(np.float32(0.0))
    even_c, even_s, odd_c, odd_s = nothing, nothing, nothing, nothing
    for m in range(0, n_orders, 2):
        here, there = at + m * apart, turn + 2 * m
        even_c = multiply_add(load(products, here), spread(turns[there]), even_c)
        even_s = multiply_add(load(products, here + LANES), spread(turns[there + 1]), even_s)
        if m + 1 < n_orders:
            here, there = here + apart, there + 2
            odd_c = multiply_add(load(products, here), spread(turns[there]), odd_c)
            odd_s = multiply_add(load(products, here + LANES), spread(turns[there + 1]), odd_s)
    store(image, 0, (even_c - even_s) + (odd_c - odd_s))
    store(image, LANES, (even_c + even_s) - (odd_c + odd_s))
    store(image, 2 * LANES, (even_c + even_s) + (odd_c + odd_s))
    store(image, 3 * LANES, (even_c - even_s) - (odd_c - odd_s))


@kept
@numba.njit(nogil=True)
@no_type_check
def _fill_orders(images: Any, tables: Any, out: Any) -> None:
    """Orders (b, r, m, 2) of images (b, n * n), at most LANES of them."""
    pixel, share, first, turns, bessel, begins, (n_orders, whole, rings) = tables
    sums = np.zeros(n_orders * whole * 2 * LANES, np.float32)
    corners, products = np.zeros(4 * LANES, np.float32), np.empty(TALL * 2 * LANES, np.float32)
    stop = 0
    for d in range(whole):
        while stop < n_orders and begins[stop, -1, 0] <= d:  # the last rings have each order at the least distance
            stop += 1
        for q in range(first[d], first[d + 1]):
            for b in range(len(images)):
                for corner in range(4):
                    corners[corner * LANES + b] = share[q] * images[b, pixel[q, corner]]
            _add_pixels(corners, turns, q * n_orders * 2, stop, sums, d * 2 * LANES, whole * 2 * LANES)
    for m in range(n_orders):
        for k in range(0, rings, TALL):
            d, begin = begins[m, k // TALL]
            if d < whole:
                tall_tile(
                    bessel, begin, sums, (m * whole + d) * 2 * LANES, 2 * LANES, LANES, whole - d,
                    products, 0, 2 * LANES, LANES,
                )  # fmt: skip
            else:
                products[:] = np.float32(0.0)
            for row in range(min(TALL, rings - k)):
                for b in range(len(out)):
                    at = row * 2 * LANES + b
                    re, im = _times_i(products[at], -products[at + LANES], m)
                    out[b, k + row, m, 0], out[b, k + row, m, 1] = re, -im


@numba.njit
@no_type_check
def _add_pixels(corners: Any, turns: Any, turn: Any, n_orders: Any, sums: Any, at: Any, apart: Any) -> None:
    """Add the four pixels of one direction to the sums over their distance: real parts, then imaginary ones."""
    a, b, c, d = load(corners, 0), load(corners, LANES), load(corners, 2 * LANES), load(corners, 3 * LANES)
    even_c, even_s, odd_c, odd_s = (a + b) + (c + d), (b + c) - (a + d), (a + c) - (b + d), (c + d) - (a + b)
    for m in range(n_orders):
        here, there = at + m * apart, turn + 2 * m
        by_cos, by_sin = (even_c, even_s) if m % 2 == 0 else (odd_c, odd_s)
        store(sums, here, multiply_add(by_cos, spread(turns[there]), load(sums, here)))
        store(sums, here + LANES, multiply_add(by_sin, spread(turns[there + 1]), load(sums, here + LANES)))


@numba.njit
@no_type_check
def _times_i(re: Any, im: Any, m: Any) -> Any:
    """A number times i^m."""
    if m % 2 == 1:
        re, im = -im, re
    return (re, im) if m % 4 < 2 else (-re, -im)
