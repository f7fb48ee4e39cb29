"""Numba form of samples on rings turned into angular orders, and of their sums over the members of classes.

A particle's samples are moved, folded and transformed while they are in a core's cache. With F(phi + pi) = conj F(phi),
an even order is the sum over the half circle of Re F exp(-i m phi), an odd one of i Im F exp(-i m phi); the angles phi
and pi - phi share cosine and sine up to a sign. So a sum of the two and a difference, over a quarter of the circle, are
multiplied by cosines and sines: four real products of small matrices.
"""

from __future__ import annotations

import functools
import math
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.classes.reference import PosedParticles, PosedTerms, Rings
from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.cpu_grid_numba import FAST
from ralib.kernels.pose_search.cpu_newton_numba import move_ring
from ralib.kernels.pose_search.tile_llvm import LANES, ROWS, tile
from ralib.kernels.threads import on_cores, shares
from ralib.kernels.trig_numba import cos_sin

__all__ = ["add_posed", "moved_orders", "ring_crosses"]


def moved_orders(
    samples: Tensor, shift_xy_px: Tensor, rings: Rings, n_orders: int, row: Tensor | None = None
) -> Tensor:
    """Compute the angular orders of shifted samples; see `reference.moved_orders`."""
    row = torch.arange(len(shift_xy_px)) if row is None else row
    out = torch.empty(len(row), rings.n_rings, n_orders, dtype=torch.complex64)
    given = torch.view_as_real(samples.contiguous()).numpy()
    shifts, rows, result = shift_xy_px.contiguous().numpy(), row.numpy(), torch.view_as_real(out).numpy()
    tables = _tables(rings, n_orders)

    def part(some: slice) -> None:
        _moved_orders(given, rows[some], shifts[some], tables, result[some])

    on_cores(part, shares(len(row)))
    return out


def add_posed(samples: Tensor, power: Tensor, terms: PosedTerms, rings: Rings, sums: tuple[Tensor, Tensor]) -> None:
    """Add posed particles to sums; see `reference.add_posed`."""
    numerator, weight = (t.numpy() for t in sums)
    n_orders = numerator.shape[2]
    given = torch.view_as_real(samples.contiguous()).numpy(), power.contiguous().numpy()
    fields = tuple(t.contiguous().numpy() for t in (*terms.places.fields(), terms.weight, terms.scale))
    anchors = tuple(t.numpy() for t in terms.anchors)
    _add_posed(*given, fields, anchors, _tables(rings, n_orders), numerator, weight)


def ring_crosses(samples: Tensor, places: PosedParticles, references: Tensor, rings: Rings) -> Tensor:
    """Compute cross terms of posed particles with classes on each ring; see `reference.ring_crosses`."""
    out = torch.empty(len(places.row), rings.n_rings)
    given, classes = (torch.view_as_real(t.contiguous()).numpy() for t in (samples, references))
    fields, result = tuple(t.contiguous().numpy() for t in places.fields()), out.numpy()
    tables = _tables(rings, references.shape[2])

    def part(some: slice) -> None:
        _ring_crosses(given, tuple(f[some] for f in fields), classes, tables, result[some])

    on_cores(part, shares(len(out)))
    return out


def _tables(rings: Rings, n_orders: int) -> tuple[Any, ...]:
    """Radii, cosines and sines of the angles, and the waves of the transform, as the compiled loops take them."""
    frequency, angle = (t.contiguous().numpy() for t in (rings.frequency, rings.angle_rad))
    return frequency, *_waves(tuple(angle.tolist()), n_orders)


@functools.lru_cache(maxsize=64)
def _waves(angle: tuple[float, ...], n_orders: int) -> tuple[Any, ...]:
    """Cosines and sines of the angles (H,); waves (4, H / 2 + 1, width) of even and of odd orders over H; the width."""
    n_half, count = len(angle), -(-n_orders // 2)
    width = 2 * LANES * -(-count // (2 * LANES))
    phi = torch.arange(n_half // 2 + 1, dtype=torch.float64)[:, None] * (math.pi / n_half)
    even, odd = 2 * torch.arange(width), 2 * torch.arange(width) + 1
    waves = torch.stack([f(phi * m) / n_half for m in (even, odd) for f in (torch.cos, torch.sin)])
    waves[..., count:] = 0
    given = torch.tensor(angle)
    return torch.cos(given).numpy(), torch.sin(given).numpy(), waves.float().numpy().ravel(), width


@kept
@numba.njit(nogil=True)
@no_type_check
def _moved_orders(samples: Any, row: Any, shift: Any, tables: Any, out: Any) -> None:
    """Fill out (b, r, m, 2) from samples (n, R, H, 2) of rows (b,) and their shifts (b, 2)."""
    work = _work(samples.shape[2], out.shape[1], tables[4])
    for b in range(len(row)):
        _fill_orders(samples[row[b]], shift[b, 0], shift[b, 1], tables, work, out[b])


@kept
@numba.njit(nogil=True)
@no_type_check
def _add_posed(samples: Any, power: Any, fields: Any, anchors: Any, tables: Any, numerator: Any, total: Any) -> None:
    """Add the terms of `fields` to numerator (c, r, m, 2) and total (c, r)."""
    row, shift, psi_deg, mirror, to, weight, scale = fields
    rings, n_orders = numerator.shape[1], numerator.shape[2]
    work = _work(samples.shape[2], rings, tables[4])
    orders, turn = np.empty((rings, n_orders, 2), np.float32), np.empty((2, n_orders), np.float32)
    for b in range(len(row)):
        _fill_orders(samples[row[b]], shift[b, 0], shift[b, 1], tables, work, orders)
        _fill_turn(psi_deg[b], turn)
        sign = np.float32(-1 if mirror[b] else 1)
        factor = weight[b] * scale[b]
        for k in range(rings):
            _add_ring(orders[k], turn, factor, sign, anchors[0][k], numerator[to[b], k])
            term = np.float64(power[row[b], k] * (factor * scale[b]))
            total[to[b], k] += (term + anchors[1][k]) - anchors[1][k]


@kept
@numba.njit(nogil=True)
@no_type_check
def _ring_crosses(samples: Any, fields: Any, references: Any, tables: Any, out: Any) -> None:
    """Fill out (b, r) for particles at their poses and references (k, r, m, 2)."""
    row, shift, psi_deg, mirror, to = fields
    rings, n_orders = references.shape[1], references.shape[2]
    work = _work(samples.shape[2], rings, tables[4])
    orders, turn = np.empty((rings, n_orders, 2), np.float32), np.empty((2, n_orders), np.float32)
    for b in range(len(row)):
        _fill_orders(samples[row[b]], shift[b, 0], shift[b, 1], tables, work, orders)
        _fill_turn(psi_deg[b], turn)
        sign = np.float32(-1 if mirror[b] else 1)
        for k in range(rings):
            out[b, k] = np.float32(samples.shape[2]) * _cross(orders[k], turn, sign, references[to[b], k])


@numba.njit(fastmath=FAST)
@no_type_check
def _cross(orders: Any, turn: Any, sign: Any, reference: Any) -> Any:
    """Sum over all orders, of which the first (m, 2) are given, of a turned and mirrored ring times the reference's."""
    total = np.float32(0.0)
    for m in range(len(orders)):
        co, si, re, im = turn[0, m], turn[1, m], orders[m, 0], orders[m, 1]
        real, imag = re * co + im * si, (im * co - re * si) * sign
        total += real * reference[m, 0] + imag * reference[m, 1]
    first = orders[0, 0] * reference[0, 0] + sign * orders[0, 1] * reference[0, 1]
    return np.float32(2.0) * total - first


@numba.njit
@no_type_check
def _fill_turn(psi_deg: Any, turn: Any) -> None:
    """Cosines and sines (2, m) by which each order is turned."""
    for m in range(turn.shape[1]):
        turn[0, m], turn[1, m] = cos_sin(np.float32(m) * psi_deg / np.float32(360.0))


@numba.njit
@no_type_check
def _add_ring(orders: Any, turn: Any, factor: Any, sign: Any, anchor: Any, out: Any) -> None:
    """Add the orders (m, 2) of a ring, turned, mirrored and weighted, as multiples of the anchor's quantum."""
    for m in range(len(orders)):
        co, si, re, im = turn[0, m], turn[1, m], orders[m, 0], orders[m, 1]
        real = np.float64((re * co + im * si) * factor)
        imag = np.float64((im * co - re * si) * sign * factor)
        out[m, 0] += (real + anchor) - anchor
        out[m, 1] += (imag + anchor) - anchor


@numba.njit
@no_type_check
def _work(n_half: Any, rings: Any, width: Any) -> Any:
    """A moved ring; sums and differences (4, r, H / 2 + 1) and products (4, r, width), flat, r of whole tiles."""
    padded = ROWS * ((rings + ROWS - 1) // ROWS)
    folded, products = np.zeros(4 * padded * (n_half // 2 + 1), np.float32), np.empty(4 * padded * width, np.float32)
    return np.empty((2, n_half), np.float32), folded, products


@numba.njit
@no_type_check
def _fill_orders(samples: Any, x: Any, y: Any, tables: Any, work: Any, out: Any) -> None:
    """Angular orders out (r, m, 2) of samples (R, H, 2) shifted by x, y."""
    frequency, cosine, sine, waves, width = tables
    moved, folded, products = work
    rings, depth = out.shape[0], samples.shape[1] // 2 + 1
    padded = ROWS * ((rings + ROWS - 1) // ROWS)
    for k in range(rings):
        move_ring(samples[k], x * frequency[k], y * frequency[k], cosine, sine, moved)
        for part in range(2):
            _fold(moved[part], folded, ((2 * part) * padded + k) * depth, ((2 * part + 1) * padded + k) * depth, depth)
    for t in range(4):
        source = t if t < 2 else 5 - t  # of odd orders the cosines go with the difference, the sines with the sum
        for k in range(0, rings, ROWS):
            for first in range(0, width, 2 * LANES):
                tile(
                    folded, (source * padded + k) * depth, waves, t * depth * width + first, width, LANES, depth,
                    products, (t * padded + k) * width + first, width, LANES,
                )  # fmt: skip
    for k in range(rings):
        even_c, even_s = products[k * width :], products[(padded + k) * width :]
        odd_c, odd_s = products[(2 * padded + k) * width :], products[(3 * padded + k) * width :]
        for m in range(0, out.shape[1] - 1, 2):
            p = m // 2
            out[k, m, 0], out[k, m, 1], out[k, m + 1, 0], out[k, m + 1, 1] = even_c[p], -even_s[p], odd_s[p], odd_c[p]
        if out.shape[1] % 2:
            p = out.shape[1] // 2
            out[k, 2 * p, 0], out[k, 2 * p, 1] = even_c[p], -even_s[p]


@numba.njit
@no_type_check
def _fold(ring: Any, folded: Any, plus: Any, minus: Any, depth: Any) -> None:
    """Sums and differences of a ring (H,) at phi and pi - phi, from `plus` and from `minus` on."""
    n_half, middle = len(ring), depth - 1
    folded[plus], folded[minus] = ring[0], ring[0]
    folded[plus + middle], folded[minus + middle] = ring[middle], np.float32(0.0)
    for h in range(1, middle):
        folded[plus + h], folded[minus + h] = ring[h] + ring[n_half - h], ring[h] - ring[n_half - h]
