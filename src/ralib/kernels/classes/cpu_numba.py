"""Numba form of the search over poses in every class on a CPU; the other functions are those of `reference`.

Products and rotations are of sixteen particles side by side. A template is a class average at one of its shifts. Its
four products with a particle, Re Re, Re Im, Im Re and Im Im of each angular order summed over the rings, serve the
template and its mirror image, and a quarter of the circle serves all of it; see
`ralib.kernels.pose_search.cpu_grid_numba`, whose layout of sums this is.
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
from ralib.kernels.pose_search.cpu_grid_numba import GROUP, NOTHING, ORDER_STEP, fill_sums
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
    tables = rows, begins, _turns(n_orders, n_half).ravel(), particles.shape[1], n_half, added, mirror

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


def _turns(n_orders: int, n_half: int) -> np.ndarray:
    """Cosines of even and odd orders, then sines (4, J / 2, m / 2), at psi_j = pi (j + 1/2) / J."""
    psi = (torch.arange(n_half // 2, dtype=torch.float64) + 0.5) * (math.pi / n_half)
    orders = torch.arange(n_orders)
    turns: np.ndarray = torch.stack(
        [f(psi[:, None] * m) for f in (torch.cos, torch.sin) for m in (orders[::2], orders[1::2])]
    ).float().numpy()  # fmt: skip
    return turns


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
    sums = np.empty(4 * n_half * LANES, np.float32)
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
            fill_sums(products, (i - first) * 4 * LANES, turns, n_orders // 2, n_half // 2, sums)
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
def _fill_best(sums: Any, n_half: Any, mirror: Any, best: Any) -> None:
    """Maximum over all rotations, and the q at which it is, of the template and its mirror image: flat (4, LANES)."""
    apart = n_half * LANES
    top, top_mirrored = spread(np.float32(NOTHING)), spread(np.float32(NOTHING))
    place, place_mirrored = spread(np.float32(0)), spread(np.float32(0))
    for q in range(n_half // 2):
        at, here = 2 * q * LANES, spread(np.float32(q))
        ec, ec_im = load(sums, at), load(sums, at + LANES)
        oc, oc_im = load(sums, apart + at), load(sums, apart + at + LANES)
        es, es_im = load(sums, 2 * apart + at), load(sums, 2 * apart + at + LANES)
        os, os_im = load(sums, 3 * apart + at), load(sums, 3 * apart + at + LANES)
        score = _highest(ec + ec_im, oc + oc_im, es - es_im, os - os_im)
        place = pick_greater_equal(top, score, place, here)
        top = pick_greater_equal(top, score, top, score)
        if mirror:
            score = _highest(ec - ec_im, oc - oc_im, es + es_im, os + os_im)
            place_mirrored = pick_greater_equal(top_mirrored, score, place_mirrored, here)
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
    at, apart, sign = 2 * q * LANES + b, n_half * LANES, np.float32(1 - 2 * mirror)
    even_c, odd_c = sums[at] + sign * sums[at + LANES], sums[apart + at] + sign * sums[apart + at + LANES]
    at += 2 * apart
    even_s, odd_s = sums[at] - sign * sums[at + LANES], sums[apart + at] - sign * sums[apart + at + LANES]
    e, o, far_e, far_o = even_c + odd_c, even_s + odd_s, even_c - odd_c, odd_s - even_s
    near = e + abs(o) >= far_e + abs(far_o)
    j, odd = (q, o) if near else (n_half - 1 - q, far_o)
    angle = (np.float32(j) + np.float32(0.5)) * np.float32(180.0 / n_half)
    return angle if odd >= 0 else -angle
