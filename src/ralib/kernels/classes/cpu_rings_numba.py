"""Numba form of samples on rings turned into angular orders, and of their sums over the members of classes.

A particle's samples are moved, folded and transformed while they are in a core's cache. With F(phi + pi) = conj F(phi),
an even order is the sum over the half circle of Re F exp(-i m phi), an odd one of i Im F exp(-i m phi); the angles phi
and pi - phi share cosine and sine up to a sign. So a sum of the two and a difference, over a quarter of the circle, are
multiplied by cosines and sines: four real products of small matrices. These are the planes: real and imaginary parts of
even orders, then of odd ones.
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
from ralib.kernels.lanes_numba import (
    cos_sin_lanes,
    load,
    load_pairs,
    multiply_add,
    spread,
    store,
    sum_lanes,
    turn_round,
)
from ralib.kernels.numba_cache import kept
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
    shifts, rows, result = shift_xy_px.contiguous().numpy(), row.numpy(), torch.view_as_real(out).numpy()
    given, tables = _flat(samples), _tables(rings, n_orders)

    def part(some: slice) -> None:
        _moved_orders(*given, rows[some], shifts[some], tables, result[some])

    on_cores(part, shares(len(row)))
    return out


def ring_crosses(samples: Tensor, places: PosedParticles, references: Tensor, rings: Rings) -> Tensor:
    """Compute cross terms of posed particles with classes on each ring; see `reference.ring_crosses`."""
    out = torch.empty(len(places.row), rings.n_rings)
    tables = _tables(rings, references.shape[2])
    weighted = references * (2.0 * len(rings.angle_rad))
    weighted[..., 0] *= 0.5
    classes = _planes(weighted, tables[-1]).numpy()
    given, fields, result = _flat(samples), tuple(t.contiguous().numpy() for t in places.fields()), out.numpy()

    def part(some: slice) -> None:
        _ring_crosses(*given, tuple(f[some] for f in fields), classes, tables, result[some])

    on_cores(part, shares(len(out)))
    return out


def add_posed(
    samples: Tensor, power: Tensor, terms: PosedTerms, rings: Rings, sums: tuple[Tensor, Tensor], at_once: int
) -> None:
    """Add posed particles, one at a time, to sums; see `reference.add_posed`."""
    numerator, weight = sums
    n_orders = numerator.shape[2]
    tables = _tables(rings, n_orders)
    fields = tuple(t.contiguous().numpy() for t in (*terms.places.fields(), terms.weight, terms.scale))
    anchors = tuple(t.numpy() for t in terms.anchors)
    own = torch.zeros(*numerator.shape[:2], 4, tables[-1], dtype=torch.float64)
    _add_posed(*_flat(samples), power.contiguous().numpy(), fields, anchors, tables, own.numpy(), weight.numpy())
    for parity in (0, 1):
        some = numerator[:, :, parity::2]
        some += own[:, :, 2 * parity : 2 * parity + 2, : some.shape[2]].transpose(2, 3)


def _flat(samples: Tensor) -> tuple[np.ndarray, int, int]:
    """Real and imaginary parts of samples (n, R, H), flat; R and H."""
    return torch.view_as_real(samples.contiguous()).flatten().numpy(), samples.shape[1], samples.shape[2]


def _planes(orders: Tensor, width: int) -> Tensor:
    """Angular orders (k, r, m) as planes (k, r, 4, width): real and imaginary parts of even, then of odd orders."""
    planes = orders.real.new_zeros(*orders.shape[:2], 4, width)
    for parity in (0, 1):
        some = torch.view_as_real(orders[..., parity::2])
        planes[:, :, 2 * parity : 2 * parity + 2, : some.shape[2]] = some.transpose(2, 3)
    return planes


def _tables(rings: Rings, n_orders: int) -> tuple[Any, ...]:
    """Radii, cosines and sines of the angles, and the waves of the transform, as the compiled loops take them."""
    frequency, angle = (t.contiguous().numpy() for t in (rings.frequency, rings.angle_rad))
    return frequency, *_waves(tuple(angle.tolist()), n_orders)


@functools.lru_cache(maxsize=64)
def _waves(angle: tuple[float, ...], n_orders: int) -> tuple[Any, ...]:
    """Cosines and sines of the angles (H,); the waves (4, H / 2 + 1, width) over H that make the planes; the width."""
    n_half, count = len(angle), -(-n_orders // 2)
    width = 2 * LANES * -(-count // (2 * LANES))
    phi = torch.arange(n_half // 2 + 1, dtype=torch.float64)[:, None] * (math.pi / n_half)
    even, odd = 2 * torch.arange(width) * phi, (2 * torch.arange(width) + 1) * phi
    waves = torch.stack([torch.cos(even), -torch.sin(even), torch.sin(odd), torch.cos(odd)]) / n_half
    waves[:2, :, count:] = 0
    waves[2:, :, n_orders // 2 :] = 0
    given = torch.tensor(angle)
    return torch.cos(given).numpy(), torch.sin(given).numpy(), waves.float().numpy().ravel(), width


@kept
@numba.njit(nogil=True)
@no_type_check
def _moved_orders(samples: Any, n_rings: Any, n_half: Any, row: Any, shift: Any, tables: Any, out: Any) -> None:
    """Fill out (b, r, m, 2) from samples (n, R, H, 2), flat, of rows (b,) and their shifts (b, 2)."""
    work, width = _work(n_half, out.shape[1], tables[4]), tables[4]
    planes, rings = work[2], out.shape[1]
    apart = len(planes) // 4
    for b in range(len(row)):
        _fill_planes(samples, row[b] * n_rings * n_half, n_half, rings, shift[b], tables, work)
        for k in range(rings):
            for m in range(out.shape[2]):
                at = 2 * (m % 2) * apart + k * width + m // 2
                out[b, k, m, 0], out[b, k, m, 1] = planes[at], planes[at + apart]


@kept
@numba.njit(nogil=True)
@no_type_check
def _ring_crosses(
    samples: Any, n_rings: Any, n_half: Any, fields: Any, references: Any, tables: Any, out: Any
) -> None:  # fmt: skip
    """Fill out (b, r) for particles at their poses and planes of references (k, r, 4, width)."""
    row, shift, psi_deg, mirror, to = fields
    rings, width = references.shape[1], tables[4]
    work, turn, posed = _work(n_half, rings, width), np.empty(4 * width, np.float32), np.empty(4 * width, np.float32)
    flat = references.ravel()
    for b in range(len(row)):
        _fill_planes(samples, row[b] * n_rings * n_half, n_half, rings, shift[b], tables, work)
        _fill_turn(psi_deg[b], width, turn)
        for k in range(rings):
            _pose_ring(work[2], k * width, width, turn, np.float32(1.0), mirror[b], posed)
            at, total = (to[b] * rings + k) * 4 * width, spread(np.float32(0.0))
            for first in range(0, 4 * width, LANES):
                total = multiply_add(load(posed, first), load(flat, at + first), total)
            out[b, k] = sum_lanes(total)


@kept
@numba.njit(nogil=True)
@no_type_check
def _add_posed(
    samples: Any, n_rings: Any, n_half: Any, power: Any, fields: Any, anchors: Any, tables: Any, numerator: Any,
    total: Any,
) -> None:  # fmt: skip
    """Add the terms of `fields` to the planes of numerators (c, r, 4, width), and to the weights (c, r)."""
    row, shift, psi_deg, mirror, to, weight, scale = fields
    rings, width = numerator.shape[1], tables[4]
    work, turn, posed = _work(n_half, rings, width), np.empty(4 * width, np.float32), np.empty(4 * width, np.float32)
    for b in range(len(row)):
        _fill_planes(samples, row[b] * n_rings * n_half, n_half, rings, shift[b], tables, work)
        _fill_turn(psi_deg[b], width, turn)
        factor = weight[b] * scale[b]
        for k in range(rings):
            _pose_ring(work[2], k * width, width, turn, factor, mirror[b], posed)
            _add_quanta(posed, anchors[0][k], numerator[to[b], k].ravel())
            term = np.float64(power[row[b], k] * (factor * scale[b]))
            total[to[b], k] += (term + anchors[1][k]) - anchors[1][k]


@numba.njit
@no_type_check
def _add_quanta(values: Any, anchor: Any, out: Any) -> None:
    """Add values as multiples of the anchor's quantum."""
    for i in range(len(values)):
        out[i] += (np.float64(values[i]) + anchor) - anchor


@numba.njit
@no_type_check
def _fill_turn(psi_deg: Any, width: Any, turn: Any) -> None:
    """Cosines and sines, flat (4, width), by which even, then odd orders are turned."""
    cycles, lane = psi_deg / np.float32(360.0), np.arange(LANES).astype(np.float32)
    for parity in range(2):
        for first in range(0, width, LANES):
            order = spread(np.float32(2.0)) * (load(lane, 0) + spread(np.float32(first))) + spread(np.float32(parity))
            co, si = cos_sin_lanes(order * spread(cycles))
            store(turn, 2 * parity * width + first, co)
            store(turn, (2 * parity + 1) * width + first, si)


@numba.njit
@no_type_check
def _pose_ring(planes: Any, at: Any, width: Any, turn: Any, factor: Any, mirror: Any, posed: Any) -> None:
    """Planes of a ring, flat (4, width), turned, mirrored and times a factor."""
    apart, real_factor = len(planes) // 4, spread(factor)
    imag_factor = spread(-factor if mirror else factor)
    for plane in range(0, 4, 2):
        for first in range(0, width, LANES):
            here = plane * apart + at + first
            re, im = load(planes, here), load(planes, here + apart)
            co, si = load(turn, plane * width + first), load(turn, (plane + 1) * width + first)
            store(posed, plane * width + first, multiply_add(re, co, im * si) * real_factor)
            store(posed, (plane + 1) * width + first, (im * co - re * si) * imag_factor)


@numba.njit
@no_type_check
def _work(n_half: Any, rings: Any, width: Any) -> Any:
    """A moved ring; sums and differences (4, r, H / 2 + 1) and planes (4, r, width); all flat, r of whole tiles."""
    padded = ROWS * ((rings + ROWS - 1) // ROWS)
    folded, planes = np.zeros(4 * padded * (n_half // 2 + 1), np.float32), np.empty(4 * padded * width, np.float32)
    return np.empty(2 * n_half, np.float32), folded, planes


@numba.njit
@no_type_check
def _fill_planes(samples: Any, at: Any, n_half: Any, rings: Any, shift: Any, tables: Any, work: Any) -> None:
    """Planes of the angular orders of samples (R, H, 2) from `at` on, shifted."""
    frequency, cosine, sine, waves, width = tables
    moved, folded, planes = work
    depth = n_half // 2 + 1
    padded = ROWS * ((rings + ROWS - 1) // ROWS)
    for k in range(rings):
        _move(samples, 2 * (at + k * n_half), shift[0] * frequency[k], shift[1] * frequency[k], cosine, sine, moved)
        for part in range(2):
            _fold(moved, part * n_half, n_half, folded, (2 * part * padded + k) * depth, padded * depth)
    for plane in range(4):
        for k in range(0, rings, ROWS):
            row = plane * padded + k
            for first in range(0, width, 2 * LANES):
                tile(
                    folded, row * depth, waves, plane * depth * width + first, width, LANES, depth,
                    planes, row * width + first, width, LANES,
                )  # fmt: skip


@numba.njit
@no_type_check
def _move(samples: Any, at: Any, x: Any, y: Any, cosine: Any, sine: Any, moved: Any) -> None:
    """Samples (H, 2) of a ring times the phases of a shift in cycles: real parts, then imaginary ones."""
    n_half = len(cosine)
    if n_half < LANES:
        for h in range(n_half):
            co, si = cos_sin(x * cosine[h] + y * sine[h])
            re, im = samples[at + 2 * h], samples[at + 2 * h + 1]
            moved[h], moved[n_half + h] = re * co + im * si, im * co - re * si
        return
    for start in range(0, n_half, LANES):
        h = min(start, n_half - LANES)
        co, si = cos_sin_lanes(multiply_add(spread(x), load(cosine, h), spread(y) * load(sine, h)))
        re, im = load_pairs(samples, at + 2 * h)
        store(moved, h, multiply_add(re, co, im * si))
        store(moved, n_half + h, im * co - re * si)


@numba.njit
@no_type_check
def _fold(ring: Any, at: Any, n_half: Any, folded: Any, plus: Any, apart: Any) -> None:
    """Sums, and `apart` from them differences, of a ring (H,) at phi and pi - phi."""
    middle, minus = n_half // 2, plus + apart
    folded[plus], folded[minus] = ring[at], ring[at]
    folded[plus + middle], folded[minus + middle] = ring[at + middle], np.float32(0.0)
    if middle - 1 < LANES:
        for h in range(1, middle):
            near, far = ring[at + h], ring[at + n_half - h]
            folded[plus + h], folded[minus + h] = near + far, near - far
        return
    for start in range(1, middle, LANES):
        h = min(start, middle - LANES)
        near, far = load(ring, at + h), turn_round(load(ring, at + n_half - h - (LANES - 1)))
        store(folded, plus + h, near + far)
        store(folded, minus + h, near - far)
