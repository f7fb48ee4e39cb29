"""The best poses of the grid on a CPU: maxima over rotation of sixteen particles at once, interpolated, as poses.

As in `rotational_score`, S(+-psi_j) = E_j +- O_j at psi_j = pi (j + 1/2) / J; around the circle, position j stands for
psi_j and position -1 - j for -psi_j. Even and odd orders stay apart: at pi - psi the cosines of odd orders and the
sines of even ones change sign, so that a quarter of the circle tells all of it. So do a pairing and its mirror image:
the one takes the sum, the other the difference of the same products.

Sums are flat (4, J / 2, 2, LANES): even orders by cosines, odd ones by cosines, even by sines, odd by sines; of the
products Re Re and Im Im of template and particle by cosines, of Re Im and Im Re by sines.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np

from ralib.kernels.pose_search.tile_numba import LANES
from ralib.kernels.trig_numba import cos_sin

FAST = {"contract", "reassoc", "arcp", "nsz"}
"""Fast arithmetic, in which minus infinity keeps its meaning."""
NOTHING = -3.0e38
"""The score of no pose."""


@numba.njit(fastmath=FAST)
@no_type_check
def fill_maxima(sums: Any, toll: Any, mirror: Any, value: Any) -> None:
    """Maxima (2, LANES) over positive and over negative rotations, less the tolls (2, J)."""
    n_half = toll.shape[1]
    apart, sign = n_half * LANES, np.float32(1 - 2 * mirror)
    plus, minus = value[0], value[1]
    plus[:] = np.float32(NOTHING)
    minus[:] = np.float32(NOTHING)
    for q in range(n_half // 2):
        at, far = 2 * q * LANES, n_half - 1 - q
        toll_p, toll_m, far_p, far_m = toll[0, q], toll[1, q], toll[0, far], toll[1, far]
        ec, oc = sums[at : at + 2 * LANES], sums[apart + at : apart + at + 2 * LANES]
        es, os = sums[2 * apart + at : 2 * apart + at + 2 * LANES], sums[3 * apart + at : 3 * apart + at + 2 * LANES]
        for b in range(LANES):
            even_c, odd_c = ec[b] + sign * ec[LANES + b], oc[b] + sign * oc[LANES + b]
            even_s, odd_s = es[b] - sign * es[LANES + b], os[b] - sign * os[LANES + b]
            e, o, far_e, far_o = even_c + odd_c, even_s + odd_s, even_c - odd_c, odd_s - even_s
            plus[b] = max(plus[b], max(e + o + toll_p, far_e + far_o + far_p))
            minus[b] = max(minus[b], max(e - o + toll_m, far_e - far_o + far_m))


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
def interpolated(sums: Any, b: Any, mirror: Any, sign: Any, toll: Any, value: Any) -> Any:
    """Where the parabola through the maximum over half of the circle and its neighbours has its top, and how high.

    In steps of the grid; NOTHING where there is no maximum: at the end of a half circle it lies in the other half.
    """
    n_half, turned = toll.shape[1], np.float32(1 - 2 * sign)
    at, highest = 0, np.float32(NOTHING)
    for q in range(n_half // 2):
        even_c, odd_c, even_s, odd_s = _cosines_sines(sums, b, mirror, q, n_half)
        near = even_c + odd_c + turned * (even_s + odd_s) + toll[sign, q]
        far = even_c - odd_c + turned * (odd_s - even_s) + toll[sign, n_half - 1 - q]
        if max(near, far) > highest:
            highest, at = max(near, far), q if near > far else n_half - 1 - q
    position = at if sign == 0 else -1 - at
    below = _score(sums, b, mirror, n_half, position - 1)
    above = _score(sums, b, mirror, n_half, position + 1)
    bend, lean = 2 * value - below - above, np.float32(0.0)
    if below <= value and above <= value and bend > 0:
        lean = np.float32(0.5) * (above - below) / bend
        value += np.float32(0.25) * (above - below) * lean
    elif bend == 0 or toll.min() == 0:  # nobody else has the maximum at the end of an allowed arc
        value = np.float32(NOTHING)
    return np.float32(position) + lean + np.float32(0.5), value


@numba.njit(fastmath=FAST)
@no_type_check
def set_pose(half_turns: Any, shift: Any, mirror: Any, score: Any, pose: Any) -> None:
    """Fill pose (psi in degrees, x, y, score): the template's shift, seen from the particle."""
    co, si = cos_sin(half_turns * np.float32(0.5))
    x, y = -shift[0] if mirror == 1 else shift[0], shift[1]
    pose[0], pose[1] = half_turns * np.float32(180.0), co * x + si * y
    pose[2], pose[3] = co * y - si * x, score


@numba.njit
@no_type_check
def lowest_of(pose: Any) -> Any:
    """The pose of the lowest score."""
    at = 0
    for c in range(1, len(pose)):
        if pose[c, 3] < pose[at, 3]:
            at = c
    return at
