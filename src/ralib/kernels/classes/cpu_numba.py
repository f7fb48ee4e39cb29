"""Numba form of the search over poses in every class on a CPU; the other functions are those of `reference`.

Products and rotations are of sixteen particles side by side. A template is a class average at one of its shifts. Its
four products with a particle, Re Re, Re Im, Im Re and Im Im of each angular order summed over the rings, serve the
template and its mirror image; a quarter of the circle serves all of it, for even orders an eighth. Compare
`ralib.kernels.pose_search.cpu_grid_numba`.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.classes.cpu_rings_numba import add_posed, moved_orders, ring_crosses
from ralib.kernels.classes.reference import GridPoses, best_in_classes, class_prices, thin
from ralib.kernels.lanes_numba import load, pick_greater_equal, spread, store
from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.cpu_grid_numba import GROUP, NOTHING, ORDER_STEP
from ralib.kernels.pose_search.tile_llvm import LANES, ROWS, tile
from ralib.kernels.threads import on_cores, shares

__all__ = ["add_posed", "best_in_classes", "best_poses", "class_prices", "moved_orders", "ring_crosses", "thin"]


def best_poses(
    particles: Tensor,
    templates: Tensor,
    n_half: int,
    *,
    mirror: bool,
    favour: Tensor | None = None,
    from_ring: Tensor | None = None,
) -> GridPoses:
    """Find the best rotation, mirror and shift of every particle in every class; see `reference.best_poses`.

    What is found for a particle in a class depends neither on other particles nor on other classes.
    """
    k, n_shifts = templates.shape[:2]
    n_orders = particles.shape[2] + particles.shape[2] % 2
    first = np.zeros(particles.shape[2], np.int64) if from_ring is None else from_ring.numpy()
    rows, begins = _template_rows(templates.flatten(0, 1), n_orders, first)
    given = torch.view_as_real(particles.contiguous()).numpy()
    added = np.zeros(n_shifts, np.float32) if favour is None else favour.numpy()
    n = len(particles)
    value, turn = torch.empty(n, k), torch.empty(n, k)
    shift, mirrored = torch.empty(n, k, dtype=torch.int64), torch.empty(n, k, dtype=torch.bool)
    out = tuple(t.numpy() for t in (value, turn, shift, mirrored))
    tables = rows, begins, _turns(n_orders, n_half), particles.shape[1], n_half, added, mirror

    def part(blocks: slice) -> None:
        some = slice(blocks.start * LANES, blocks.stop * LANES)
        _search(given[some], tables, tuple(t[some] for t in out))

    on_cores(part, shares(-(-n // LANES)))
    return GridPoses(value, turn, shift, mirrored)


def _template_rows(templates: Tensor, n_orders: int, from_ring: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of templates (i, r, m), flat, and for each row of orders its first ring, and where its templates begin.

    Even orders come first, then as many odd ones; of each order (i, 2, r - first ring), i padded to whole tiles.
    """
    n, rings, given = templates.shape
    whole, orders = ROWS // 2 * -(-n // (ROWS // 2)), np.r_[0:n_orders:2, 1:n_orders:2]
    first = np.where(orders < given, from_ring[np.minimum(orders, given - 1)], 0)
    size = whole * 2 * (rings - first)
    begins = np.stack([first, np.cumsum(size) - size], axis=1)
    rows, parts = np.zeros(size.sum(), np.float32), torch.view_as_real(templates.contiguous()).numpy()
    on_cores(lambda some: _fill_rows(parts[some], some.start, begins, rows), shares(n))
    return rows, begins


@kept
@numba.njit(nogil=True)
@no_type_check
def _fill_rows(templates: Any, start: Any, begins: Any, rows: Any) -> None:
    """Rows of templates (i, r, m, 2), the first of which has the number `start`."""
    n, rings, given, _ = templates.shape
    half = len(begins) // 2
    for i in range(n):
        for m in range(given):
            first, at = begins[m // 2 + m % 2 * half]
            for part in range(2):
                place = at + (2 * (start + i) + part) * (rings - first) - first
                for k in range(first, rings):
                    rows[place + k] = templates[i, k, m, part]


def _turns(n_orders: int, n_half: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines, flat, at psi_j = pi (j + 1/2) / J: of even orders, and of odd ones.

    Of orders 4 p, then of 4 p + 2, for an eighth of the circle, in whole tiles; of odd orders for a quarter.
    """
    psi = (torch.arange(n_half // 2, dtype=torch.float64)[:, None] + 0.5) * (math.pi / n_half)
    eighth = psi[torch.arange(ROWS * -(-n_half // (4 * ROWS))).clamp_max(n_half // 2 - 1)]
    even, odd = (torch.arange(first, n_orders, 2) for first in (0, 1))
    groups = [(f, m, eighth) for f in (torch.cos, torch.sin) for m in (even[::2], even[1::2])]
    tables = [f(at * m).flatten() for f, m, at in [*groups, (torch.cos, odd, psi), (torch.sin, odd, psi)]]
    return torch.cat(tables[:4]).float().numpy(), torch.cat(tables[4:]).float().numpy()


@kept
@numba.njit(nogil=True)
@no_type_check
def _search(particles: Any, tables: Any, out: Any) -> None:
    """Poses of particles (b, r, m, 2), LANES at a time."""
    value, turn, shift, mirrored = out
    for first in range(0, len(particles), LANES):
        last = min(first + LANES, len(particles))
        _search_block(
            particles[first:last], tables, value[first:last], turn[first:last], shift[first:last], mirrored[first:last]
        )


@numba.njit
@no_type_check
def _search_block(particles: Any, tables: Any, value: Any, turn: Any, shift: Any, mirrored: Any) -> None:
    """The same of at most LANES particles."""
    rows, begins, turns, rings, n_half, favour, mirror = tables
    n_orders, n_shifts, n = len(begins), len(favour), value.shape[1] * len(favour)
    step = (rings + 1) * LANES
    columns = np.zeros(2 * n_orders * step, np.float32)
    products = np.empty(n_orders * ORDER_STEP, np.float32)
    even = np.zeros(4 * 2 * LANES * ROWS * ((n_half // 4 + ROWS - 1) // ROWS), np.float32)
    odd = np.empty(2 * n_half * LANES, np.float32)
    sums = even, odd
    best = np.empty(4 * LANES, np.float32)
    value[:] = np.float32(NOTHING)
    _fill_columns(particles, n_orders, columns)
    for first in range(0, n, GROUP):
        last = min(first + GROUP, n)
        for m in range(n_orders):
            ring, begin = begins[m]
            for i in range(first, last, ROWS // 2):
                tile(
                    rows, begin + i * 2 * (rings - ring), columns, 2 * m * step + ring * LANES, LANES, step,
                    rings - ring,
                    products, m * ORDER_STEP + (i - first) * 4 * LANES, 2 * LANES, LANES,
                )  # fmt: skip
        for i in range(first, last):
            k, s = i // n_shifts, i % n_shifts
            _fill_sums(products, (i - first) * 4 * LANES, turns, n_orders // 2, n_half // 2, sums)
            _fill_best(sums, n_half, mirror, best)
            for b in range(len(particles)):
                for flipped in range(1 + mirror):
                    score = best[2 * flipped * LANES + b] + favour[s]
                    if score > value[b, k]:
                        q = np.int64(best[(2 * flipped + 1) * LANES + b])
                        value[b, k], turn[b, k] = score, _rotation(sums, b, flipped, q, n_half)
                        shift[b, k], mirrored[b, k] = s, flipped == 1
    for b in range(len(particles)):
        for k in range(value.shape[1]):
            value[b, k] -= favour[shift[b, k]]


@numba.njit
@no_type_check
def _fill_columns(particles: Any, n_orders: Any, columns: Any) -> None:
    """Columns, flat (m, 2, r + 1, LANES), from particles (b, r, m, 2): even orders, then odd ones."""
    rings = particles.shape[1]
    for b in range(len(particles)):
        for k in range(rings):
            for m in range(particles.shape[2]):
                row = m // 2 + m % 2 * (n_orders // 2)
                for part in range(2):
                    columns[((2 * row + part) * (rings + 1) + k) * LANES + b] = particles[b, k, m, part]


@numba.njit
@no_type_check
def _fill_sums(products: Any, first: Any, turns: Any, n_half_orders: Any, n_quarter: Any, sums: Any) -> None:
    """Sums, flat, of orders 4 p and 4 p + 2 by cosines, then by sines (4, eighth, 2, LANES); of odd ones (2, quarter).

    At pi / 2 - psi the cosines of orders 4 p + 2 and the sines of orders 4 p change sign: of even orders an eighth of
    the circle suffices. Products are laid out as for `ralib.kernels.pose_search.cpu_grid_numba.fill_sums`.
    """
    even, odd = sums
    n_eighth = len(even) // (8 * LANES)
    at = 0
    for kind in range(4):
        # By cosines Re Re and Im Im, the first and the last of four; by sines Re Im and Im Re.
        second, apart = (first, 3 * LANES) if kind < 2 else (first + LANES, LANES)
        depth = (n_half_orders + 1 - kind % 2) // 2
        if depth == 0:
            continue
        for q in range(0, n_eighth, ROWS):
            tile(
                turns[0], at + q * depth, products, second + kind % 2 * ORDER_STEP, 2 * ORDER_STEP, apart, depth,
                even, (kind * n_eighth + q) * 2 * LANES, 2 * LANES, LANES,
            )  # fmt: skip
        at += n_eighth * depth
    for kind in range(2):
        second, apart = (first, 3 * LANES) if kind == 0 else (first + LANES, LANES)
        second += n_half_orders * ORDER_STEP
        for q in range(0, n_quarter, ROWS):
            row = kind * n_quarter + q
            tile(
                turns[1], row * n_half_orders, products, second, ORDER_STEP, apart, n_half_orders,
                odd, row * 2 * LANES, 2 * LANES, LANES,
            )  # fmt: skip


@numba.njit
@no_type_check
def _fill_best(sums: Any, n_half: Any, mirror: Any, best: Any) -> None:
    """Maximum over all rotations, and the q at which it is, of the template and its mirror image: flat (4, LANES)."""
    even, odd = sums
    apart, n_quarter = len(even) // 4, n_half // 2
    top, top_mirrored = spread(np.float32(NOTHING)), spread(np.float32(NOTHING))
    place, place_mirrored = spread(np.float32(0)), spread(np.float32(0))
    for q in range(n_quarter // 2):
        at = 2 * q * LANES
        c0, c0_im, c2, c2_im = (
            load(even, at),
            load(even, at + LANES),
            load(even, apart + at),
            load(even, apart + at + LANES),
        )
        at += 2 * apart
        s0, s0_im, s2, s2_im = (
            load(even, at),
            load(even, at + LANES),
            load(even, apart + at),
            load(even, apart + at + LANES),
        )
        for far in range(2):
            here = n_quarter - 1 - q if far else q
            ec, ec_im = (c0 - c2, c0_im - c2_im) if far else (c0 + c2, c0_im + c2_im)
            es, es_im = (s2 - s0, s2_im - s0_im) if far else (s0 + s2, s0_im + s2_im)
            at = 2 * here * LANES
            oc, oc_im = load(odd, at), load(odd, at + LANES)
            at += n_half * LANES
            os, os_im = load(odd, at), load(odd, at + LANES)
            there = spread(np.float32(here))
            score = _highest(ec + ec_im, oc + oc_im, es - es_im, os - os_im)
            place = pick_greater_equal(top, score, place, there)
            top = pick_greater_equal(top, score, top, score)
            if mirror:
                score = _highest(ec - ec_im, oc - oc_im, es + es_im, os + os_im)
                place_mirrored = pick_greater_equal(top_mirrored, score, place_mirrored, there)
                top_mirrored = pick_greater_equal(top_mirrored, score, top_mirrored, score)
    store(best, 0, top)
    store(best, LANES, place)
    store(best, 2 * LANES, top_mirrored)
    store(best, 3 * LANES, place_mirrored)


@numba.njit
@no_type_check
def _highest(even_c: Any, odd_c: Any, even_s: Any, odd_s: Any) -> Any:
    """The highest of the scores at psi, -psi, pi - psi and psi - pi."""
    e, o, far_e, far_o = even_c + odd_c, even_s + odd_s, even_c - odd_c, odd_s - even_s
    plus, minus, far_plus, far_minus = e + o, e - o, far_e + far_o, far_e - far_o
    near, far = (
        pick_greater_equal(plus, minus, plus, minus),
        pick_greater_equal(far_plus, far_minus, far_plus, far_minus),
    )
    return pick_greater_equal(near, far, near, far)


@numba.njit
@no_type_check
def _rotation(sums: Any, b: Any, mirror: Any, q: Any, n_half: Any) -> Any:
    """The rotation in degrees, of the four that q stands for, whose score is the highest."""
    even, odd = sums
    apart, sign, far = len(even) // 4, np.float32(1 - 2 * mirror), q >= n_half // 4
    at = 2 * (n_half // 2 - 1 - q if far else q) * LANES + b
    c0, c2 = even[at] + sign * even[at + LANES], even[apart + at] + sign * even[apart + at + LANES]
    at += 2 * apart
    s0, s2 = even[at] - sign * even[at + LANES], even[apart + at] - sign * even[apart + at + LANES]
    even_c, even_s = (c0 - c2, s2 - s0) if far else (c0 + c2, s0 + s2)
    at = 2 * q * LANES + b
    odd_c = odd[at] + sign * odd[at + LANES]
    at += n_half * LANES
    odd_s = odd[at] - sign * odd[at + LANES]
    e, o, far_e, far_o = even_c + odd_c, even_s + odd_s, even_c - odd_c, odd_s - even_s
    near = e + abs(o) >= far_e + abs(far_o)
    j, odd = (q, o) if near else (n_half - 1 - q, far_o)
    angle = (np.float32(j) + np.float32(0.5)) * np.float32(180.0 / n_half)
    return angle if odd >= 0 else -angle
