"""Numba form of the search over poses in every class on a CPU; the other functions are those of `reference`.

Products and rotations are of sixteen particles side by side. A template is a class average at one of its shifts. Its
four products with a particle, Re Re, Re Im, Im Re and Im Im of each angular order summed over the rings, serve the
template and its mirror image; an eighth of the circle serves all of it. Compare
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
from ralib.kernels.classes.reference import (
    GridPoses,
    best_in_classes,
    class_prices,
    half_columns,
    half_rows,
    sum_bounds,
    thin,
)
from ralib.kernels.lanes_numba import load, pick_greater_equal, spread, store
from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.cpu_grid_numba import GROUP, NOTHING, ORDER_STEP
from ralib.kernels.pose_search.tile_llvm import LANES, TALL, tall_tile
from ralib.kernels.threads import on_cores, shares

__all__ = [
    "add_posed",
    "best_in_classes",
    "best_poses",
    "class_prices",
    "half_columns",
    "half_rows",
    "moved_orders",
    "ring_crosses",
    "sum_bounds",
    "thin",
]


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
    # Where what is compared is no number, nothing is the best, and poses stay as they are here.
    value, turn = torch.zeros(n, k), torch.zeros(n, k)
    shift, mirrored = torch.zeros(n, k, dtype=torch.int64), torch.zeros(n, k, dtype=torch.bool)
    out = tuple(t.numpy() for t in (value, turn, shift, mirrored))
    tables = rows, begins, _turns(n_orders, n_half), particles.shape[1], n_half, added, mirror

    def part(blocks: slice) -> None:
        some = slice(blocks.start * LANES, blocks.stop * LANES)
        _search(given[some], tables, tuple(t[some] for t in out))

    on_cores(part, shares(-(-n // LANES)))
    return GridPoses(value, turn, shift, mirrored)


def _template_rows(templates: Tensor, n_orders: int, from_ring: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of templates (i, r, m), flat, and of each order its first ring, and where it begins in a group of templates.

    A group follows a group, so that they are read from memory in the order of their places. In each, even orders come
    first, then as many odd ones; of each order (i, 2, r - first ring).
    """
    n, rings, given = templates.shape
    orders = np.r_[0:n_orders:2, 1:n_orders:2]
    first = np.where(orders < given, from_ring[np.minimum(orders, given - 1)], 0)
    size = GROUP * 2 * (rings - first)
    begins = np.stack([first, np.cumsum(size) - size], axis=1)
    rows = np.zeros(-(-n // GROUP) * size.sum(), np.float32)
    parts = torch.view_as_real(templates.contiguous()).numpy()
    on_cores(lambda some: _fill_rows(parts[some], some.start, begins, rows), shares(n))
    return rows, begins


@kept
@numba.njit(nogil=True)
@no_type_check
def _fill_rows(templates: Any, start: Any, begins: Any, rows: Any) -> None:
    """Rows of templates (i, r, m, 2), the first of which has the number `start`."""
    n, rings, given, _ = templates.shape
    half, size = len(begins) // 2, _group_size(begins, rings)
    for i in range(start, start + n):
        for m in range(given):
            first, at = begins[m // 2 + m % 2 * half]
            for part in range(2):
                place = i // GROUP * size + at + (2 * (i % GROUP) + part) * (rings - first) - first
                for k in range(first, rings):
                    rows[place + k] = templates[i - start, k, m, part]


@numba.njit
@no_type_check
def _group_size(begins: Any, rings: Any) -> Any:
    """Numbers in the rows of a group of templates."""
    return begins[-1, 1] + GROUP * 2 * (rings - begins[-1, 0])


def _turns(n_orders: int, n_half: int) -> tuple[np.ndarray, np.ndarray]:
    """Tables of an eighth of the circle, flat, and cosines of a quarter of it, at psi_j = pi (j + 1/2) / J.

    Of orders 4 p and 4 p + 2 cosines, then sines, in whole tiles; at last cosines of both times 2, of order 0 times 1,
    for what `_fold` makes of odd orders.
    """
    psi = (torch.arange(n_half // 2, dtype=torch.float64)[:, None] + 0.5) * (math.pi / n_half)
    eighth = psi[torch.arange(TALL * -(-n_half // (4 * TALL))).clamp_max(n_half // 2 - 1)]
    even = torch.arange(0, n_orders, 2)
    groups = [(f, m) for f in (torch.cos, torch.sin) for m in (even[::2], even[1::2])]
    twice = [torch.where(m == 0, 1.0, 2.0) * torch.cos(eighth * m) for m in (even[::2], even[1::2])]
    tables = [*(f(eighth * m) for f, m in groups), *twice]
    return torch.cat([t.flatten() for t in tables]).float().numpy(), psi.cos().flatten().float().numpy()


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
    step, size = (rings + 1) * LANES, _group_size(begins, rings)
    columns = np.zeros(2 * n_orders * step, np.float32)
    products = np.empty(n_orders * ORDER_STEP, np.float32)
    sums = np.zeros(8 * 2 * LANES * TALL * ((n_half // 4 + TALL - 1) // TALL), np.float32)
    best = np.empty(4 * LANES, np.float32)
    value[:] = np.float32(NOTHING)
    _fill_columns(particles, n_orders, columns)
    for first in range(0, n, GROUP):
        last = min(first + GROUP, n)
        for m in range(n_orders):
            ring, begin = begins[m]
            begin += first // GROUP * size
            for i in range(0, last - first, TALL // 2):
                tall_tile(
                    rows, begin + i * 2 * (rings - ring), columns, 2 * m * step + ring * LANES, LANES, step,
                    rings - ring,
                    products, m * ORDER_STEP + i * 4 * LANES, 2 * LANES, LANES,
                )  # fmt: skip
        for i in range(first, last):
            k, s = i // n_shifts, i % n_shifts
            _fold(products, (i - first) * 4 * LANES, n_orders // 2)
            _fill_sums(products, (i - first) * 4 * LANES, turns[0], n_orders // 2, sums)
            _fill_best(sums, turns[1], mirror, best)
            for b in range(len(particles)):
                for flipped in range(1 + mirror):
                    score = best[2 * flipped * LANES + b] + favour[s]
                    if score > value[b, k]:
                        q = np.int64(best[(2 * flipped + 1) * LANES + b])
                        value[b, k], turn[b, k] = score, _rotation(sums, turns[1], b, flipped, q)
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
def _fold(products: Any, first: Any, n_half_orders: Any) -> None:
    """Write a template's sums over odd orders as sums over even ones, in place.

        cos (2 p + 1) psi = 2 cos psi cos 2 p psi - cos (2 p - 1) psi
        sin (2 p + 1) psi = 2 sin psi cos 2 p psi + sin (2 p - 1) psi

    from the highest p down leave cos psi, or sin psi, times a sum of cosines of 2 p psi, for which an eighth of the
    circle suffices.
    """
    for m in range(2 * n_half_orders - 2, n_half_orders - 1, -1):
        at, above = first + m * ORDER_STEP, first + (m + 1) * ORDER_STEP
        for lot in range(4):
            here, there = load(products, at + lot * LANES), load(products, above + lot * LANES)
            # By cosines Re Re and Im Im, the first and the last of four; by sines Re Im and Im Re.
            store(products, at + lot * LANES, here - there if lot % 3 == 0 else here + there)


@numba.njit
@no_type_check
def _fill_sums(products: Any, first: Any, turns: Any, n_half_orders: Any, sums: Any) -> None:
    """Sums, flat (8, eighth, 2, LANES): of orders 4 p and 4 p + 2 by cosines, by sines, and of the folded odd ones.

    At pi / 2 - psi the cosines of orders 4 p + 2 and the sines of orders 4 p change sign: an eighth of the circle
    suffices. Products are laid out as for `ralib.kernels.pose_search.cpu_grid_numba.fill_sums`.
    """
    n_eighth = len(sums) // (16 * LANES)
    for kind in range(8):
        second, apart = (first, 3 * LANES) if kind // 2 % 2 == 0 else (first + LANES, LANES)
        depth = (n_half_orders + 1 - kind % 2) // 2
        if depth == 0:
            continue
        second += kind // 4 * n_half_orders * ORDER_STEP + kind % 2 * ORDER_STEP
        table = min(kind // 2, 2) * n_half_orders + kind % 2 * ((n_half_orders + 1) // 2)  # folded ones share cosines
        for q in range(0, n_eighth, TALL):
            tall_tile(
                turns, table * n_eighth + q * depth, products, second, 2 * ORDER_STEP, apart, depth,
                sums, (kind * n_eighth + q) * 2 * LANES, 2 * LANES, LANES,
            )  # fmt: skip


@numba.njit
@no_type_check
def _fill_best(sums: Any, cosines: Any, mirror: Any, best: Any) -> None:
    """Maximum over all rotations, and the q at which it is, of the template and its mirror image: flat (4, LANES)."""
    n_quarter = len(cosines)
    top, top_mirrored = spread(np.float32(NOTHING)), spread(np.float32(NOTHING))
    place, place_mirrored = spread(np.float32(0)), spread(np.float32(0))
    for q in range(n_quarter // 2):
        c0, c0_im = _pair(sums, q, 0)
        c2, c2_im = _pair(sums, q, 1)
        s0, s0_im = _pair(sums, q, 2)
        s2, s2_im = _pair(sums, q, 3)
        oc0, oc0_im = _pair(sums, q, 4)
        oc2, oc2_im = _pair(sums, q, 5)
        os0, os0_im = _pair(sums, q, 6)
        os2, os2_im = _pair(sums, q, 7)
        for far in range(2):
            here = n_quarter - 1 - q if far else q
            cosine, sine = spread(cosines[here]), spread(cosines[n_quarter - 1 - here])
            ec, ec_im = (c0 - c2, c0_im - c2_im) if far else (c0 + c2, c0_im + c2_im)
            es, es_im = (s2 - s0, s2_im - s0_im) if far else (s0 + s2, s0_im + s2_im)
            oc, oc_im = (oc0 - oc2, oc0_im - oc2_im) if far else (oc0 + oc2, oc0_im + oc2_im)
            os, os_im = (os0 - os2, os0_im - os2_im) if far else (os0 + os2, os0_im + os2_im)
            there = spread(np.float32(here))
            score = _highest(ec + ec_im, cosine * (oc + oc_im), es - es_im, sine * (os - os_im))
            place = pick_greater_equal(top, score, place, there)
            top = pick_greater_equal(top, score, top, score)
            if mirror:
                score = _highest(ec - ec_im, cosine * (oc - oc_im), es + es_im, sine * (os + os_im))
                place_mirrored = pick_greater_equal(top_mirrored, score, place_mirrored, there)
                top_mirrored = pick_greater_equal(top_mirrored, score, top_mirrored, score)
    store(best, 0, top)
    store(best, LANES, place)
    store(best, 2 * LANES, top_mirrored)
    store(best, 3 * LANES, place_mirrored)


@numba.njit
@no_type_check
def _pair(sums: Any, q: Any, kind: Any) -> Any:
    """Sums of one kind at one rotation, with the particle's real and with its imaginary parts."""
    at = kind * (len(sums) // 8) + 2 * q * LANES
    return load(sums, at), load(sums, at + LANES)


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
def _rotation(sums: Any, cosines: Any, b: Any, mirror: Any, q: Any) -> Any:
    """The rotation in degrees, of the four that q stands for, whose score is the highest."""
    n_quarter, apart, sign = len(cosines), len(sums) // 8, np.float32(1 - 2 * mirror)
    far = q >= n_quarter // 2
    at, by_kind = 2 * (n_quarter - 1 - q if far else q) * LANES + b, np.empty(8, np.float32)
    for kind in range(8):
        turned = -sign if kind // 2 % 2 else sign
        by_kind[kind] = sums[kind * apart + at] + turned * sums[kind * apart + at + LANES]
    c0, c2, s0, s2, oc0, oc2, os0, os2 = by_kind
    even_c, even_s = (c0 - c2, s2 - s0) if far else (c0 + c2, s0 + s2)
    odd_c = cosines[q] * (oc0 - oc2 if far else oc0 + oc2)
    odd_s = cosines[n_quarter - 1 - q] * (os0 - os2 if far else os0 + os2)
    e, o, far_e, far_o = even_c + odd_c, even_s + odd_s, even_c - odd_c, odd_s - even_s
    near = e + abs(o) >= far_e + abs(far_o)
    j, odd = (q, o) if near else (2 * n_quarter - 1 - q, far_o)
    angle = (np.float32(j) + np.float32(0.5)) * np.float32(90.0 / n_quarter)
    return angle if odd >= 0 else -angle
