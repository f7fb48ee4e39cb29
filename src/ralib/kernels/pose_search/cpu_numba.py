"""Numba forms of functions of `reference` for single precision on a CPU; those that are not here are its own."""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.lanes_numba import LANES, load, pick_greater_equal, spread, store
from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.cpu_newton_numba import newton
from ralib.kernels.pose_search.reference import gather_taps, grid_candidates, shifted_parts, shortlist
from ralib.kernels.pose_search.tile_llvm import ROWS, tile
from ralib.kernels.threads import on_cores, shares

__all__ = ["gather_taps", "grid_candidates", "newton", "rotational_max", "shifted_parts", "shortlist"]

BLOCK = 2 * LANES
"""Particles side by side."""
GROUP = 8
"""Pairings at a time."""


def rotational_max(
    spectra: Tensor, cosine: Tensor, sine: Tensor, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the maximum over rotations of cross spectra; see `reference.rotational_max`.

    Sums over orders stay in registers and the angles' scores in a core's cache. What is found for a particle does not
    depend on the others.
    """
    n_orders, n_pairs, _, n_particles = spectra.shape
    n_half = len(cosine)
    rows = -(-n_half // ROWS) * ROWS
    tables = np.zeros((2, rows, n_orders), np.float32)
    tables[0, :n_half], tables[1, :n_half] = cosine.numpy(), sine.numpy()
    added = np.full((1 if penalty is None else len(penalty), 2, rows), -np.inf, np.float32)
    added[:, :, :n_half] = 0.0 if penalty is None else penalty.numpy()
    value, index = torch.empty(n_pairs, 2, n_particles), torch.empty(n_pairs, 2, n_particles, dtype=torch.int32)
    given = spectra.float().contiguous().numpy()
    cosines, sines = tables[0].ravel(), tables[1].ravel()

    def part(pairs: slice) -> None:
        room = [torch.empty(size * BLOCK).numpy() for size in (2 * GROUP * n_orders, ROWS, ROWS, 2, 2)]
        _maxima(given, pairs.start, pairs.stop, cosines, sines, added, tuple(room), value.numpy(), index.numpy())

    on_cores(part, shares(n_pairs))
    return value, index


@kept
@numba.njit(nogil=True)
@no_type_check
def _maxima(
    spectra: Any, start: Any, stop: Any, cosine: Any, sine: Any, penalty: Any, room: Any, value: Any, index: Any
) -> None:
    """The pairings from `start` to `stop`, BLOCK particles at a time; `room`, blocks of orders, sums and maxima."""
    orders, _, _, top, place = room
    n_orders, n_particles = spectra.shape[0], spectra.shape[3]
    size = n_orders * BLOCK
    for group in range(start, stop, GROUP):
        for first in range(0, n_particles, BLOCK):
            _gathered(spectra, group, min(group + GROUP, stop), first, orders)
            for g in range(group, min(group + GROUP, stop)):
                x = 2 * (g - group) * size
                _block_maxima(cosine, sine, n_orders, penalty[g % len(penalty)], orders, x, x + size, room)
                for sign in range(2):
                    for b in range(min(BLOCK, n_particles - first)):
                        value[g, sign, first + b] = top[sign * BLOCK + b]
                        index[g, sign, first + b] = np.int32(place[sign * BLOCK + b])


@numba.njit(nogil=True)
@no_type_check
def _gathered(spectra: Any, group: Any, end: Any, first: Any, orders: Any) -> None:
    """Copy X and Y of a few pairings and a block of particles, an order after the other: they are far apart."""
    n_orders, n_pairs, _, n_particles = spectra.shape
    flat, count = spectra.ravel(), min(BLOCK, n_particles - first)
    for m in range(n_orders):
        for i in range(2 * (end - group)):
            source, to = (2 * (m * n_pairs + group) + i) * n_particles + first, (i * n_orders + m) * BLOCK
            if count == BLOCK:
                store(orders, to, load(flat, source))
                store(orders, to + LANES, load(flat, source + LANES))
            else:
                for b in range(count):
                    orders[to + b] = flat[source + b]
                for b in range(count, BLOCK):
                    orders[to + b] = 0


@numba.njit(nogil=True)
@no_type_check
def _block_maxima(cosine: Any, sine: Any, n_orders: Any, penalty: Any, orders: Any, x: Any, y: Any, room: Any) -> None:
    """Maxima over +psi and -psi of a block of particles, whose X and Y begin at x and y, and the first such angles."""
    _, even, odd, top, place = room
    for i in range(0, 2 * BLOCK, LANES):
        store(top, i, spread(np.float32(-np.inf)))
        store(place, i, spread(np.float32(0)))
    for j in range(0, penalty.shape[1], ROWS):
        tile(cosine, j * n_orders, orders, x, BLOCK, LANES, n_orders, even, 0, BLOCK, LANES)
        tile(sine, j * n_orders, orders, y, BLOCK, LANES, n_orders, odd, 0, BLOCK, LANES)
        for lot in range(0, BLOCK, LANES):
            best_plus, best_minus = load(top, lot), load(top, BLOCK + lot)
            at_plus, at_minus = load(place, lot), load(place, BLOCK + lot)
            for row in range(ROWS):
                angle = spread(np.float32(j + row))
                e, o = load(even, row * BLOCK + lot), load(odd, row * BLOCK + lot)
                plus, minus = e + o + spread(penalty[0, j + row]), e - o + spread(penalty[1, j + row])
                at_plus = pick_greater_equal(best_plus, plus, at_plus, angle)
                best_plus = pick_greater_equal(best_plus, plus, best_plus, plus)
                at_minus = pick_greater_equal(best_minus, minus, at_minus, angle)
                best_minus = pick_greater_equal(best_minus, minus, best_minus, minus)
            store(top, lot, best_plus)
            store(top, BLOCK + lot, best_minus)
            store(place, lot, at_plus)
            store(place, BLOCK + lot, at_minus)
