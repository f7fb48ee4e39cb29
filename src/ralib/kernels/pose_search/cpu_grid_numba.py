"""The grid stage of the pose search on a CPU: matrix products and rotations of sixteen particles side by side.

A pairing is a reference, a shift and a mirror. With a = a_m(k) of the particle and b = b_m(k) of the template, its
spectra are sums over k: of Re a Re b + Im a Im b, the coefficients of cosines, and of Im a Re b - Re a Im b, the
coefficients of sines. Those of its mirror image are the difference and the sum of the same products.

As in `reference.rotational_max`, S(+-psi_j) = E_j +- O_j at psi_j = pi (j + 1/2) / J; around the circle, position j
stands for psi_j and position -1 - j for -psi_j. Even and odd orders are kept apart: at pi - psi the cosines of odd
orders and the sines of even ones change sign, so that a quarter of the circle suffices. Sums are flat (4, J / 2, 2,
LANES): even orders by cosines, odd ones by cosines, even by sines, odd by sines; of the products Re Re and Im Im of
template and particle by cosines, of Re Im and Im Re by sines.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.cpu_samples import ThinGrid
from ralib.kernels.pose_search.tile_llvm import LANES, ROWS, tile
from ralib.kernels.trig_numba import cos_sin

FAST = {"contract", "reassoc", "arcp", "nsz"}
"""Fast arithmetic, in which minus infinity keeps its meaning."""
NOTHING = -3.0e38
"""The score of no pose."""
GROUP = 8
"""References times shifts whose products are made at a time: with the particles' orders they fill half of a cache."""
ORDER_STEP = (4 * GROUP + 1) * LANES
"""From one order's products to the next's: no power of two, whose addresses would share a few lines of a cache."""


@dataclass(frozen=True)
class GridTables:
    """Templates and tables in the layout of the compiled loops; order m, radius k, and i = (reference, shift).

    Attributes
    ----------
    layout, analysis : ndarray
        Layout of the thinned samples, and their transform to angular orders; see `ThinGrid.analysis`.
    rows : ndarray of shape (m, i, 2, k)
        Real and imaginary parts of the templates, with all weights; i is padded to whole tiles.
    turns : ndarray of shape (4, J / 2, m / 2)
        Cosines of even and odd orders, sines of even and odd orders.
    penalty : ndarray of shape (s * mirror, 2, J)
        Minus infinity where the particle would leave its shift range.
    shifts : ndarray of shape (s, 2)
        Shifts of the templates in their own frame, pixels.
    n_references : int
        Number of references.
    """

    layout: np.ndarray
    analysis: np.ndarray
    rows: np.ndarray
    turns: np.ndarray
    penalty: np.ndarray
    shifts: np.ndarray
    n_references: int

    @classmethod
    def create(
        cls, thin: ThinGrid, orders: Tensor, templates: Tensor, penalty: Tensor, shifts: Tensor, n_references: int
    ) -> GridTables:
        """Build the tables from templates.

        Parameters
        ----------
        thin : ThinGrid
            The thinned polar grid.
        orders : Tensor of shape (m,)
            Angular orders, even ones first.
        templates : Tensor of shape (i, m, 2, k)
            Weighted orders of the shifted templates, real and imaginary parts.
        penalty : Tensor of shape (s * mirror, 2, J)
            Minus infinity where the particle would leave its shift range.
        shifts : Tensor of shape (s, 2)
            Shifts of the templates in their own frame, pixels.
        n_references : int
            Number of references.

        Returns
        -------
        GridTables
            The tables.
        """
        n_half = penalty.shape[-1]
        rows = torch.zeros(templates.shape[1], ROWS // 2 * -(-len(templates) // (ROWS // 2)), *templates.shape[2:])
        rows[:, : len(templates)] = templates.transpose(0, 1)
        psi = (torch.arange(n_half // 2, dtype=torch.float64) + 0.5) * (math.pi / n_half)
        even, odd = orders.view(2, 1, -1)
        turns = torch.stack([f(psi[:, None] * m) for f in (torch.cos, torch.sin) for m in (even, odd)]).float()
        return cls(
            thin.layout[: thin.inner],
            thin.analysis(orders),
            rows.numpy(),
            turns.numpy(),
            penalty.numpy(),
            shifts.contiguous().numpy(),
            n_references,
        )

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The tables as the compiled loops take them."""
        flat = (self.analysis, self.rows.ravel(), self.turns.ravel())
        return (self.layout, *flat, self.rows.shape, self.penalty, self.shifts, self.n_references)


def angular_orders(parts: Tensor, thin: ThinGrid, orders: Tensor) -> Tensor:
    """Compute the angular orders of particles at the radii of the grid search.

    Parameters
    ----------
    parts : Tensor of shape (b, 2, P)
        Real and imaginary parts of thinned samples.
    thin : ThinGrid
        The thinned polar grid.
    orders : Tensor of shape (m,)
        Angular orders, even ones first, then as many odd ones.

    Returns
    -------
    Tensor of shape (b, m, 2, k)
        Real and imaginary parts of each order.
    """
    out = torch.empty(len(parts), len(orders), 2, thin.n_radii)
    _all_orders(parts.numpy(), thin.layout[: thin.inner], thin.analysis(orders), out.numpy())
    return out


def best_poses(
    parts: Tensor, tables: GridTables, class_index: Tensor, most: int, behind: float
) -> tuple[Tensor, Tensor]:
    """Find the best poses of each particle on the grid.

    Parameters
    ----------
    parts : Tensor of shape (b, 2, P)
        Real and imaginary parts of thinned samples.
    tables : GridTables
        Templates and tables.
    class_index : Tensor of shape (b,)
        The only reference allowed, or -1 for all.
    most : int
        Number of poses c kept for a particle.
    behind : float
        Poses whose score is lower than the best by more than this fraction may be left out.

    Returns
    -------
    Tensor of shape (b, c)
        Templates in any order: the reference, plus the number of references where mirrored.
    Tensor of shape (b, c, 4)
        Poses: psi in degrees, offset x and y in pixels, score; the score is NOTHING beyond the last.
    """
    row, pose = torch.zeros(len(parts), most, dtype=torch.int64), torch.empty(len(parts), most, 4)
    arrays = (t.numpy() for t in (class_index, row, pose, torch.empty(len(parts), 0)))
    _search(parts.numpy(), tables.arguments, np.float32(behind), *arrays)
    return row, pose


def best_scores(parts: Tensor, tables: GridTables) -> Tensor:
    """Find the best score on the grid of each particle with each reference.

    Parameters
    ----------
    parts : Tensor of shape (b, 2, P)
        Real and imaginary parts of thinned samples.
    tables : GridTables
        Templates and tables.

    Returns
    -------
    Tensor of shape (b, k)
        Scores.
    """
    row, pose = torch.zeros(len(parts), 1, dtype=torch.int64), torch.empty(len(parts), 1, 4)
    best = torch.empty(len(parts), tables.n_references)
    arrays = (t.numpy() for t in (torch.full((len(parts),), -1), row, pose, best))
    _search(parts.numpy(), tables.arguments, np.float32(0.0), *arrays)
    return best


@kept
@numba.njit(nogil=True)
@no_type_check
def _search(parts: Any, tables: Any, behind: Any, wanted: Any, row: Any, pose: Any, best: Any) -> None:
    for i in range(0, len(parts), LANES):
        j = i + LANES
        _search_block(parts[i:j], tables, behind, wanted[i:j], row[i:j], pose[i:j], best[i:j])


@kept
@numba.njit(nogil=True)
@no_type_check
def _all_orders(parts: Any, layout: Any, analysis: Any, out: Any) -> None:
    b, n_orders, _, n_radii = out.shape
    columns = np.empty(2 * n_orders * (n_radii + 1) * LANES, np.float32)
    for first in range(0, b, LANES):
        _fill_columns(parts[first : first + LANES], layout, analysis, n_orders, n_radii, columns)
        for m in range(2 * n_orders):
            for k in range(n_radii):
                for i in range(min(LANES, b - first)):
                    out[first + i, m // 2, m % 2, k] = columns[(m * (n_radii + 1) + k) * LANES + i]


@numba.njit
@no_type_check
def _fill_columns(parts: Any, layout: Any, analysis: Any, n_orders: Any, n_radii: Any, columns: Any) -> None:
    """Angular orders of at most LANES particles: columns, flat (m, 2, k + 1, LANES), from parts (b, 2, P).

    The last radius of each is padding for the excess of a tile.
    """
    most = 0
    for g in range(len(layout)):
        most = max(most, layout[g, 1] * layout[g, 3])
    lanes = np.zeros((most + 1) * LANES, np.float32)
    row_step, at = (n_radii + 1) * LANES, 0
    for g in range(len(layout)):
        first, count, n_angles, start = layout[g, 0], layout[g, 1], layout[g, 3], layout[g, 4]
        for part in range(2):
            for p in range(n_angles * count):
                for b in range(len(parts)):
                    lanes[p * LANES + b] = parts[b, part, start + p]
            for k in range(0, count, 2):
                for row in range(0, n_orders, ROWS):
                    place = (part * n_orders + row) * row_step + (first + k) * LANES
                    tile(
                        analysis, at + row * n_angles, lanes, k * LANES, count * LANES, LANES, n_angles,
                        columns, place, row_step, LANES,
                    )  # fmt: skip
            at += n_orders * n_angles


@numba.njit(fastmath=FAST)
@no_type_check
def _search_block(parts: Any, tables: Any, behind: Any, wanted: Any, row: Any, pose: Any, best: Any) -> None:
    """See `best_poses` and, where `best` (b, k) is not empty, `best_scores`; of at most LANES particles."""
    layout, analysis, rows, turns, (n_orders, padded, _, n_radii), penalty, shifts, n_references = tables
    n_mirror, n_half, n_shifts = len(penalty) // len(shifts), penalty.shape[2], len(shifts)
    n, step = n_references * n_shifts, (n_radii + 1) * LANES
    columns = np.empty(2 * n_orders * step, np.float32)
    products = np.empty(n_orders * ORDER_STEP, np.float32)
    sums = np.empty(4 * n_half * LANES, np.float32)
    value = np.empty((2, LANES), np.float32)
    found, top = np.zeros(len(parts), np.int64), np.full(len(parts), NOTHING, np.float32)
    floor, lowest = top.copy(), found.copy()
    pose[:] = np.float32(NOTHING)
    best[:] = np.float32(NOTHING)
    _fill_columns(parts, layout, analysis, n_orders, n_radii, columns)
    for first in range(0, n, GROUP):
        last = min(first + GROUP, n)
        if not _any_scored(wanted, first // n_shifts, (last - 1) // n_shifts):
            continue
        for m in range(n_orders):
            for i in range(first, last, ROWS // 2):
                tile(
                    rows, (m * padded + i) * 2 * n_radii, columns, 2 * m * step, LANES, step, n_radii,
                    products, m * ORDER_STEP + (i - first) * 4 * LANES, 2 * LANES, LANES,
                )  # fmt: skip
        for i in range(first, last):
            reference, shift = i // n_shifts, i % n_shifts
            fill_sums(products, (i - first) * 4 * LANES, turns, n_orders // 2, n_half // 2, sums)
            for mirror in range(n_mirror):
                penalties = penalty[shift * n_mirror + mirror]
                fill_maxima(sums, penalties, mirror, value)
                for b in range(len(parts)):
                    here = max(value[0, b], value[1, b])
                    if best.shape[1] > 0:
                        best[b, reference] = max(best[b, reference], here)
                    if here <= floor[b] or 0 <= wanted[b] != reference:
                        continue
                    for sign in range(2):
                        if value[sign, b] <= floor[b]:
                            continue
                        position, score = interpolated(sums, b, mirror, sign, penalties, value[sign, b])
                        if score <= floor[b]:
                            continue
                        at = lowest[b]
                        row[b, at] = reference + mirror * n_references
                        set_pose(position / np.float32(n_half), shifts[shift], mirror, score, pose[b, at])
                        found[b], top[b] = found[b] + 1, max(top[b], score)
                        lowest[b] = found[b] if found[b] < pose.shape[1] else lowest_of(pose[b])
                        floor[b] = max(top[b] - behind * abs(top[b]), pose[b, lowest[b], 3])


@numba.njit
@no_type_check
def _any_scored(wanted: Any, first: Any, last: Any) -> Any:
    """Whether a particle may belong to a reference from the first to the last."""
    found_one = False
    for b in range(len(wanted)):
        found_one |= wanted[b] < 0 or first <= wanted[b] <= last
    return found_one


@numba.njit
@no_type_check
def fill_sums(products: Any, first: Any, turns: Any, n_half_orders: Any, n_quarter: Any, sums: Any) -> None:
    """Compute sums over even and odd orders, by cosines, then by sines, of the products that need them.

    Parameters
    ----------
    products : array_like
        Products of one pairing, flat: of order m from first + m ORDER_STEP on, Re Re, Re Im, Im Re and Im Im of
        template and particle.
    first : Any
        Where those of order 0 begin.
    turns : array_like of shape (4, J / 2, m / 2)
        Cosines and sines, flat; see `GridTables`.
    n_half_orders : Any
        Number of even orders.
    n_quarter : Any
        Rotations of a quarter of the circle, J / 2.
    sums : array_like of shape (4, J / 2, 2, LANES)
        The sums, flat; changed in place.
    """
    for kind in range(4):
        # By cosines Re Re and Im Im, the first and the last of four; by sines Re Im and Im Re.
        second, apart = (first, 3 * LANES) if kind < 2 else (first + LANES, LANES)
        second += kind % 2 * n_half_orders * ORDER_STEP
        for q in range(0, n_quarter, ROWS):
            row = kind * n_quarter + q
            tile(
                turns, row * n_half_orders, products, second, ORDER_STEP, apart, n_half_orders,
                sums, row * 2 * LANES, 2 * LANES, LANES,
            )  # fmt: skip


@numba.njit(fastmath=FAST)
@no_type_check
def fill_maxima(sums: Any, penalty: Any, mirror: Any, value: Any) -> None:
    """Compute the maxima over positive and over negative rotations.

    Parameters
    ----------
    sums : array_like of shape (4, J / 2, 2, LANES)
        Sums of one pairing, flat; see the module.
    penalty : array_like of shape (2, J)
        Added to the scores.
    mirror : Any
        1 for the mirror image of the template, else 0.
    value : array_like of shape (2, LANES)
        Maxima, changed in place.
    """
    n_half = penalty.shape[1]
    apart, sign = n_half * LANES, np.float32(1 - 2 * mirror)
    plus, minus = value[0], value[1]
    plus[:] = np.float32(NOTHING)
    minus[:] = np.float32(NOTHING)
    for q in range(n_half // 2):
        at, far = 2 * q * LANES, n_half - 1 - q
        penalty_p, penalty_m = penalty[0, q], penalty[1, q]
        far_penalty_p, far_penalty_m = penalty[0, far], penalty[1, far]
        ec, oc = sums[at : at + 2 * LANES], sums[apart + at : apart + at + 2 * LANES]
        es, os = sums[2 * apart + at : 2 * apart + at + 2 * LANES], sums[3 * apart + at : 3 * apart + at + 2 * LANES]
        for b in range(LANES):
            even_c, odd_c = ec[b] + sign * ec[LANES + b], oc[b] + sign * oc[LANES + b]
            even_s, odd_s = es[b] - sign * es[LANES + b], os[b] - sign * os[LANES + b]
            e, o, far_e, far_o = even_c + odd_c, even_s + odd_s, even_c - odd_c, odd_s - even_s
            plus[b] = max(plus[b], max(e + o + penalty_p, far_e + far_o + far_penalty_p))
            minus[b] = max(minus[b], max(e - o + penalty_m, far_e - far_o + far_penalty_m))


@numba.njit(fastmath=FAST)
@no_type_check
def _cosines_sines(sums: Any, b: Any, mirror: Any, q: Any, n_half: Any) -> Any:
    """Sums of even and odd orders by cosines, then by sines, at psi_q of one particle."""
    at, apart, sign = 2 * q * LANES + b, n_half * LANES, np.float32(1 - 2 * mirror)
    even_c, odd_c = sums[at] + sign * sums[at + LANES], sums[apart + at] + sign * sums[apart + at + LANES]
    at += 2 * apart
    even_s, odd_s = sums[at] - sign * sums[at + LANES], sums[apart + at] - sign * sums[apart + at + LANES]
    return even_c, odd_c, even_s, odd_s


@numba.njit(fastmath=FAST)
@no_type_check
def _score(sums: Any, b: Any, mirror: Any, n_half: Any, position: Any) -> Any:
    """S at a position around the circle."""
    position %= 2 * n_half
    j = min(position, 2 * n_half - 1 - position)
    q = min(j, n_half - 1 - j)
    even_c, odd_c, even_s, odd_s = _cosines_sines(sums, b, mirror, q, n_half)
    e, o = (even_c + odd_c, even_s + odd_s) if q == j else (even_c - odd_c, odd_s - even_s)
    return e + o if j == position else e - o


@numba.njit(fastmath=FAST)
@no_type_check
def interpolated(sums: Any, b: Any, mirror: Any, sign: Any, penalty: Any, value: Any) -> Any:
    """Find the vertex of the parabola through the maximum over half of the circle and its neighbours.

    Parameters
    ----------
    sums : array_like of shape (4, J / 2, 2, LANES)
        Sums of one pairing, flat; see the module.
    b : Any
        Lane of the particle.
    mirror : Any
        1 for the mirror image of the template, else 0.
    sign : Any
        0 for positive, 1 for negative rotations.
    penalty : array_like of shape (2, J)
        Added to the scores.
    value : Any
        Score of the maximum on the grid.

    Returns
    -------
    tuple of float
        Position in steps of the grid, and score; NOTHING where the maximum lies at the end of a half circle and so
        belongs to the other half.
    """
    n_half, turned = penalty.shape[1], np.float32(1 - 2 * sign)
    at, highest = 0, np.float32(NOTHING)
    for q in range(n_half // 2):
        even_c, odd_c, even_s, odd_s = _cosines_sines(sums, b, mirror, q, n_half)
        near = even_c + odd_c + turned * (even_s + odd_s) + penalty[sign, q]
        far = even_c - odd_c + turned * (odd_s - even_s) + penalty[sign, n_half - 1 - q]
        if max(near, far) > highest:
            highest, at = max(near, far), q if near > far else n_half - 1 - q
    position = at if sign == 0 else -1 - at
    below = _score(sums, b, mirror, n_half, position - 1)
    above = _score(sums, b, mirror, n_half, position + 1)
    bend, lean = 2 * value - below - above, np.float32(0.0)
    if below <= value and above <= value and bend > 0:
        lean = np.float32(0.5) * (above - below) / bend
        value += np.float32(0.25) * (above - below) * lean
    elif bend == 0 or penalty.min() == 0:  # the maximum at the end of an allowed arc belongs to no other half
        value = np.float32(NOTHING)
    return np.float32(position) + lean + np.float32(0.5), value


@numba.njit(fastmath=FAST)
@no_type_check
def set_pose(half_turns: Any, shift: Any, mirror: Any, score: Any, pose: Any) -> None:
    """Store a pose seen from the particle.

    Parameters
    ----------
    half_turns : Any
        In-plane rotation, half turns.
    shift : array_like of shape (2,)
        Shift of the template in its own frame, pixels.
    mirror : Any
        1 for the mirror image of the template, else 0.
    score : Any
        Score of the pose.
    pose : array_like of shape (4,)
        psi in degrees, x and y in pixels, score; changed in place.
    """
    co, si = cos_sin(half_turns * np.float32(0.5))
    x, y = -shift[0] if mirror == 1 else shift[0], shift[1]
    pose[0], pose[1] = half_turns * np.float32(180.0), co * x + si * y
    pose[2], pose[3] = co * y - si * x, score


@numba.njit
@no_type_check
def lowest_of(pose: Any) -> Any:
    """Return the index of the pose of lowest score."""
    at = 0
    for c in range(1, len(pose)):
        if pose[c, 3] < pose[at, 3]:
            at = c
    return at
