"""SPARX's exhaustive search as compiled loops on a CPU: sixteen shifts, of one particle or of several, side by side.

The same as `ralib.sparx.search` does with PyTorch, step by step: bilinear samples on rings (to the bit), their
transforms, products with all references, transforms back and the last highest score. A product of straight and mirrored
particle with a reference has the same four real products; a transform of N real numbers is one of N / 2 complex ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.lanes_numba import (
    LANES,
    corners,
    load,
    multiply_add,
    pick_greater_equal,
    spread,
    store,
    truncate,
)
from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.tile_llvm import ROWS, tile
from ralib.kernels.threads import on_cores, shares
from ralib.sparx.rings import Rings, circle_points

GROUP = 4
"""References whose products are made at a time."""
NEAR = 7
"""Scores kept around the highest."""
PAIR = 2 * LANES
"""Numbers of a complex row: real parts, then imaginary parts."""


@dataclass(frozen=True)
class RingTables:
    """Rings in the layout of the compiled loops.

    Attributes
    ----------
    length : ndarray of shape (r,)
        Samples of each ring.
    points : ndarray of shape (p, 2)
        Points of all rings about the centre, pixels.
    area : ndarray of shape (r,)
        Weight of a sample in mean and standard deviation.
    turn : ndarray of shape (2, longest)
        Cosines and sines of the angles of the longest ring.
    order : ndarray of shape (2 * longest,)
        From half a length on, where each frequency lies after a transform of that length.
    inner : ndarray of shape (m,)
        First ring that has each frequency.
    first_row : ndarray of shape (m + 1,)
        Where the rings of each frequency begin.
    """

    length: np.ndarray
    points: np.ndarray
    area: np.ndarray
    turn: np.ndarray
    order: np.ndarray
    inner: np.ndarray
    first_row: np.ndarray

    @classmethod
    def of(cls, rings: Rings) -> RingTables:
        """Make the tables of some rings."""
        length = np.array(rings.length, np.int64)
        circles = [circle_points(r, n, rings.period_deg) for r, n in zip(rings.radius_px, rings.length, strict=True)]
        angle = 2.0 * math.pi * np.arange(rings.longest) / rings.longest
        inner = np.searchsorted(length, 2 * np.arange(rings.longest // 2 + 1))
        order = np.zeros(2 * rings.longest, np.int64)
        half = 1
        while half <= rings.longest // 2:
            order[half : 2 * half] = _transform_order(half)
            half *= 2
        return cls(
            length,
            torch.cat(circles).float().numpy(),
            np.array([r * 2.0 * math.pi / n for r, n in zip(rings.radius_px, rings.length, strict=True)], np.float32),
            np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32),
            order,
            inner,
            np.concatenate([[0], np.cumsum(len(length) - inner)]),
        )


def _transform_order(n: int) -> np.ndarray:
    """Where each frequency of a transform of n points lies after `_transform`."""
    place = _places(n)
    order = np.empty(n, np.int64)
    order[place] = np.arange(n)
    return order


def _places(n: int) -> np.ndarray:
    """The frequency that lies in each place."""
    if n <= 2:
        return np.arange(n)
    return np.concatenate([4 * _places(n // 4) + q for q in range(4)])


class CompiledSearch:
    """References, to be searched.

    Parameters
    ----------
    spectra : Tensor of shape (k, r, m)
        Weighted half-spectra of the references.
    rings : Rings
        The rings.
    normalise, mirror : bool
        As for `ralib.sparx.search.ReferenceRings`.
    """

    def __init__(self, spectra: Tensor, rings: Rings, *, normalise: bool, mirror: bool) -> None:
        self.tables, self.normalise, self.mirror = RingTables.of(rings), normalise, mirror
        self.n_references = len(spectra)
        # Both transforms leave out factors of 2, exact in the references: half of one, 1 / N of the other.
        scaled = torch.view_as_real(spectra / (2.0 * rings.longest)).float().numpy()
        padded = -(-len(spectra) // (ROWS // 2)) * (ROWS // 2)
        rows = np.zeros((self.tables.first_row[-1], padded, 2), np.float32)
        for m, ring in enumerate(self.tables.inner):
            rows[self.tables.first_row[m] : self.tables.first_row[m + 1], : len(spectra)] = scaled[
                :, ring:, m
            ].transpose(1, 0, 2)
        # Of a frequency: reference, part, ring.
        parts = np.split(rows, self.tables.first_row[1:-1])
        self.rows = np.concatenate([part.transpose(1, 2, 0).ravel() for part in parts])

    def search(self, images: Tensor, where: Tensor, allowed: Tensor, angle_step: int) -> tuple[Tensor, ...]:
        """Find the best shift, angle, mirror and reference of each particle.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images, float32.
        where : Tensor of shape (b, s, 2)
            Centres of the rings, pixel coordinates from 0.
        allowed : Tensor of shape (b, s)
            Whether a particle may take each shift.
        angle_step : int
            Samples from one angle tried to the next.

        Returns
        -------
        tuple of Tensor
            Each (b,): score, angle sample, shift, mirror, reference; and the NEAR scores around it (b, NEAR).
        """
        b = len(images)
        peak, around = np.empty(b, np.float32), np.empty((b, NEAR), np.float32)
        found = np.empty((b, 4), np.int64)
        t, flat = self.tables, images.contiguous().numpy().reshape(b, -1)
        references = (self.rows, self.n_references, self.normalise, self.mirror, angle_step)

        def part(at: slice) -> None:
            tables = (t.length, t.points, t.area, t.turn, t.order, t.inner, t.first_row, _scratch(t))
            centres, tried = where[at].contiguous().numpy(), allowed[at].contiguous().numpy()
            _search(flat[at], images.shape[-1], centres, tried, tables, references, peak[at], around[at], found[at])

        on_cores(part, shares(b))
        angle, shift, mirror, reference = torch.from_numpy(found).unbind(1)
        return torch.from_numpy(peak), angle, shift, mirror > 0, reference, torch.from_numpy(around)


def _scratch(tables: RingTables) -> tuple[np.ndarray, ...]:
    """Room of one thread, aligned as PyTorch aligns: samples, spectra, products, two transforms."""
    longest = tables.turn.shape[1]
    rows = (len(tables.points), 2 * tables.first_row[-1], GROUP * ROWS * len(tables.inner), 2 * longest)
    return tuple(torch.empty(int(n) * LANES).numpy() for n in rows)


@kept
@numba.njit(nogil=True)
@no_type_check
def _search(
    images: Any, n: Any, where: Any, allowed: Any, tables: Any, references: Any, peak: Any, around: Any, found: Any
) -> None:
    """All particles (b, n * n): their centres `where` (b, s, 2), LANES of those `allowed` (b, s) at a time."""
    pixels, (rows, n_references, normalise, mirror, angle_step) = images.ravel(), references
    base, centre = np.zeros(LANES, np.int64), np.zeros(2 * LANES, np.float32)
    particle, shift = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    best, near = np.empty(LANES, np.float32), np.empty((LANES, NEAR), np.float32)
    which = np.empty((LANES, 3), np.int64)
    peak[:] = -np.inf
    count, n_shifts, last = 0, where.shape[1], where.shape[0] * where.shape[1] - 1
    for i in range(last + 1):
        p, s = i // n_shifts, i % n_shifts
        if allowed[p, s]:
            particle[count], shift[count], base[count] = p, s, p * n * n
            centre[count], centre[LANES + count] = where[p, s, 0], where[p, s, 1]
            count += 1
        if count == LANES or (i == last and count > 0):
            for lane in range(count, LANES):  # as good as any
                base[lane], centre[lane], centre[LANES + lane] = base[0], centre[0], centre[LANES]
            _ring_spectra(pixels, n, base, centre, tables, normalise)
            _best_of_references(tables, rows, n_references, mirror, angle_step, best, which, near)
            for lane in range(count):
                p = particle[lane]
                if best[lane] >= peak[p]:
                    peak[p], around[p] = best[lane], near[lane]
                    found[p, 0], found[p, 1] = which[lane, 0], shift[lane]
                    found[p, 2], found[p, 3] = which[lane, 1], which[lane, 2]
            count = 0


@numba.njit(nogil=True)
@no_type_check
def _ring_spectra(pixels: Any, n: Any, base: Any, centre: Any, tables: Any, normalise: Any) -> None:
    """Twice the half-spectra of all rings around LANES centres, by frequency and ring."""
    length, points, area, turn, order, inner, first_row, scratch = tables
    samples, spectra = scratch[0], scratch[1]
    _sample(pixels, n, base, centre, points, samples)
    if normalise:
        _normalise(samples, length, area)
    begin = 0
    for ring in range(len(length)):
        half = length[ring] // 2
        _transform(samples, begin * LANES, half, turn)
        _unpack(samples, begin * LANES, half, turn, order[half : 2 * half], spectra, ring, inner, first_row)
        begin += length[ring]


@numba.njit(nogil=True)
@no_type_check
def _sample(pixels: Any, n: Any, base: Any, centre: Any, points: Any, samples: Any) -> None:
    """Bilinear samples in the order of operations of `rings.sample_rings`."""
    x0, y0 = load(centre, 0), load(centre, LANES)
    zero, edge, inside = spread(np.float32(0)), spread(np.float32(n - 1)), spread(np.float32(n - 2))
    for j in range(len(points)):
        x, y = x0 + spread(points[j, 0]), y0 + spread(points[j, 1])
        x, y = pick_greater_equal(x, zero, x, zero), pick_greater_equal(y, zero, y, zero)
        x, y = pick_greater_equal(x, edge, edge, x), pick_greater_equal(y, edge, edge, y)
        column, row = truncate(x), truncate(y)
        column, row = pick_greater_equal(column, inside, inside, column), pick_greater_equal(row, inside, inside, row)
        dx, dy = x - column, y - row
        p00, p10, p01, p11 = corners(pixels, base, 0, column, row, n)
        store(samples, j * LANES, p00 + dy * (p01 - p00) + dx * (p10 - p00 + dy * (p11 - p10 - p01 + p00)))


@numba.njit(nogil=True)
@no_type_check
def _normalise(samples: Any, length: Any, area: Any) -> None:
    """Mean 0 and standard deviation 1 under the area weight; an empty image stays zero."""
    first, second = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    total, begin = np.float64(0), 0
    for ring in range(len(length)):
        ring_first, ring_second = spread(np.float32(0)), spread(np.float32(0))
        for j in range(begin, begin + length[ring]):
            value = load(samples, j * LANES)
            ring_first = ring_first + value
            ring_second = multiply_add(value, value, ring_second)
        begin += length[ring]
        total += np.float64(area[ring]) * length[ring]
        store(first, 0, load(first, 0) + spread(area[ring]) * ring_first)
        store(second, 0, load(second, 0) + spread(area[ring]) * ring_second)
    for lane in range(LANES):
        first[lane] = first[lane] / total
        variance = second[lane] / total - first[lane] * first[lane]
        second[lane] = 1.0 / math.sqrt(variance) if variance > 0 else 1.0
    mean, scale = load(first, 0), load(second, 0)
    for j in range(begin):
        store(samples, j * LANES, (load(samples, j * LANES) - mean) * scale)


@numba.njit(nogil=True)
@no_type_check
def _transform(data: Any, at: Any, n: Any, turn: Any) -> None:
    """Fourier transform of n complex rows in place, by radix 4 (2 at the end); frequencies end in `_places`."""
    quarter = n // 4
    step = turn.shape[1] // n
    while quarter >= 1:
        for j in range(quarter):
            c1, s1 = spread(turn[0, j * step]), spread(turn[1, j * step])
            c2, s2 = spread(turn[0, 2 * j * step]), spread(turn[1, 2 * j * step])
            c3, s3 = spread(turn[0, 3 * j * step]), spread(turn[1, 3 * j * step])
            for first in range(j, n, 4 * quarter):
                a = at + first * PAIR
                b = a + quarter * PAIR
                c = b + quarter * PAIR
                d = c + quarter * PAIR
                ar, ai, br, bi = load(data, a), load(data, a + LANES), load(data, b), load(data, b + LANES)
                cr, ci, dr, di = load(data, c), load(data, c + LANES), load(data, d), load(data, d + LANES)
                tr, ti, ur, ui = ar + cr, ai + ci, ar - cr, ai - ci
                vr, vi, wr, wi = br + dr, bi + di, bi - di, dr - br
                store(data, a, tr + vr)
                store(data, a + LANES, ti + vi)
                _store_turned(data, b, ur + wr, ui + wi, c1, s1)
                _store_turned(data, c, tr - vr, ti - vi, c2, s2)
                _store_turned(data, d, ur - wr, ui - wi, c3, s3)
        step *= 4
        if quarter == 2:
            break
        quarter //= 4
    if quarter == 2 or n == 2:
        for first in range(0, n, 2):
            a = at + first * PAIR
            b = a + PAIR
            ar, ai, br, bi = load(data, a), load(data, a + LANES), load(data, b), load(data, b + LANES)
            store(data, a, ar + br)
            store(data, a + LANES, ai + bi)
            store(data, b, ar - br)
            store(data, b + LANES, ai - bi)


@numba.njit(nogil=True, inline="always")
@no_type_check
def _store_turned(data: Any, at: Any, real: Any, imaginary: Any, c: Any, s: Any) -> None:
    """Store a complex row times c - i s."""
    store(data, at, multiply_add(real, c, imaginary * s))
    store(data, at + LANES, multiply_add(imaginary, c, -(real * s)))


@numba.njit(nogil=True)
@no_type_check
def _unpack(
    data: Any, at: Any, half: Any, turn: Any, order: Any, spectra: Any, ring: Any, inner: Any, first_row: Any
) -> None:
    """From the transform of even samples + i odd samples to twice the half-spectrum of all."""
    step = turn.shape[1] // (2 * half)
    for k in range(half // 2 + 1):
        a, b = at + order[k] * PAIR, at + order[(half - k) % half] * PAIR
        ar, ai, br, bi = load(data, a), load(data, a + LANES), load(data, b), load(data, b + LANES)
        c, s = spread(turn[0, k * step]), spread(turn[1, k * step])
        pr, pi, qr, qi = ar + br, ai - bi, ar - br, ai + bi
        u, v = multiply_add(c, qi, -(s * qr)), multiply_add(c, qr, s * qi)
        near, far = (first_row[k] + ring - inner[k]) * PAIR, (first_row[half - k] + ring - inner[half - k]) * PAIR
        store(spectra, near, pr + u)
        store(spectra, near + LANES, pi - v)
        store(spectra, far, pr - u)
        store(spectra, far + LANES, -(pi + v))


@numba.njit(nogil=True)
@no_type_check
def _best_of_references(
    tables: Any, rows: Any, n_references: Any, mirror: Any, angle_step: Any, best: Any, which: Any, near: Any
) -> None:
    """The last highest score of each lane: its angle sample, mirror, reference, and the scores around it."""
    _length, _points, _area, turn, order, inner, first_row, scratch = tables
    products, straight, mirrored = (
        scratch[2],
        scratch[3][: turn.size // 2 * LANES],
        scratch[3][turn.size // 2 * LANES :],
    )
    longest, padded = turn.shape[1], -(-n_references // (ROWS // 2)) * (ROWS // 2)
    order = order[longest // 2 : longest]
    value, angle = np.empty(2 * LANES, np.float32), np.empty(2 * LANES, np.float32)
    best[:] = -np.inf
    for group in range(0, n_references, GROUP):
        _products(rows, scratch[1], inner, first_row, padded, group, products)
        for reference in range(group, min(group + GROUP, n_references)):
            _pack(products, reference - group, len(inner), turn, order, straight, mirrored)
            _transform(straight, 0, longest // 2, turn)
            _last_highest(straight, order, angle_step, value, angle, 0)
            if mirror:
                _transform(mirrored, 0, longest // 2, turn)
                _last_highest(mirrored, order, angle_step, value, angle, LANES)
            for lane in range(LANES):
                turned = mirror and value[LANES + lane] > value[lane]  # equal scores stay straight
                here = LANES + lane if turned else lane
                if value[here] >= best[lane]:
                    best[lane], which[lane, 0] = value[here], int(angle[here])
                    which[lane, 1], which[lane, 2] = int(turned), reference
                    curve = mirrored if turned else straight
                    for i in range(NEAR):
                        j = (int(angle[here]) + i - NEAR // 2) % longest
                        near[lane, i] = curve[_at_angle(order, j) + lane]


@numba.njit(nogil=True)
@no_type_check
def _products(rows: Any, spectra: Any, inner: Any, first_row: Any, padded: Any, group: Any, products: Any) -> None:
    """Sums over rings of the four real products of a group of references (k, 2) and particles (2,), by frequency."""
    n_rings = first_row[1] + inner[0]
    for m in range(len(inner)):
        depth = n_rings - inner[m]
        for k in range(group, min(group + GROUP, padded), ROWS // 2):
            left = 2 * (first_row[m] * padded + k * depth)
            out = ((k - group) // (ROWS // 2) * len(inner) + m) * 2 * ROWS * LANES
            tile(rows, left, spectra, first_row[m] * PAIR, PAIR, LANES, depth, products, out, PAIR, LANES)


@numba.njit(nogil=True)
@no_type_check
def _pack(
    products: Any, reference: Any, n_frequencies: Any, turn: Any, order: Any, straight: Any, mirrored: Any
) -> None:
    """The transform of even + i odd scores of the straight and of the mirrored particle, its parts exchanged.

    A transform forward of the exchanged parts is one backward, exchanged.
    """
    half = n_frequencies - 1
    first = (reference // (ROWS // 2) * n_frequencies * 2 * ROWS + reference % (ROWS // 2) * ROWS) * LANES
    for k in range(half // 2 + 1):
        a, b = first + k * 2 * ROWS * LANES, first + (half - k) * 2 * ROWS * LANES
        c, s = spread(turn[0, k]), spread(turn[1, k])
        # Re Re, Re Im, Im Re, Im Im of reference and particle.
        a0, a1, a2, a3 = (
            load(products, a),
            load(products, a + LANES),
            load(products, a + 2 * LANES),
            load(products, a + 3 * LANES),
        )
        b0, b1, b2, b3 = (
            load(products, b),
            load(products, b + LANES),
            load(products, b + 2 * LANES),
            load(products, b + 3 * LANES),
        )
        here, there = k * PAIR, (half - k) % half * PAIR
        _store_packed(straight, here, there, a0 + a3, a2 - a1, b0 + b3, b2 - b1, c, s)
        _store_packed(mirrored, here, there, a0 - a3, -(a2 + a1), b0 - b3, -(b2 + b1), c, s)


@numba.njit(nogil=True, inline="always")
@no_type_check
def _store_packed(data: Any, here: Any, there: Any, ar: Any, ai: Any, br: Any, bi: Any, c: Any, s: Any) -> None:
    """Store coefficients k and N / 2 - k of the transform of even + i odd numbers, given those of all numbers."""
    pr, pi, qr, qi = ar + br, ai - bi, ar - br, ai + bi
    tr, ti = multiply_add(c, qr, -(s * qi)), multiply_add(s, qr, c * qi)
    store(data, there, tr - pi)
    store(data, there + LANES, pr + ti)
    store(data, here, pi + tr)
    store(data, here + LANES, pr - ti)


@numba.njit(nogil=True)
@no_type_check
def _last_highest(data: Any, order: Any, angle_step: Any, value: Any, angle: Any, at: Any) -> None:
    """The last highest score of each lane and its angle sample."""
    best, place = spread(np.float32(-np.inf)), spread(np.float32(0))
    for j in range(0, 2 * len(order), angle_step):
        score = load(data, _at_angle(order, j))
        place = pick_greater_equal(score, best, spread(np.float32(j)), place)
        best = pick_greater_equal(score, best, score, best)
    store(value, at, best)
    store(angle, at, place)


@numba.njit(nogil=True, inline="always")
@no_type_check
def _at_angle(order: Any, j: Any) -> Any:
    """Where the score of an angle sample lies: real and imaginary parts are exchanged."""
    return order[j // 2] * PAIR + (1 - j % 2) * LANES
