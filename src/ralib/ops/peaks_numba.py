"""The best poses of the grid on a CPU: the maximum over rotation of each pairing, interpolated, and the best of those.

A pairing is a reference, a shift and a mirror. As in `rotational_score`, S(+-psi_j) = E_j +- O_j at
psi_j = pi (j + 1/2) / J; around the circle, position j stands for psi_j and position -1 - j for -psi_j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

FAST = {"contract", "reassoc", "arcp", "nsz"}
"""Fast arithmetic, in which minus infinity keeps its meaning."""
NOTHING = -3.0e38
"""The score of no pose."""


@dataclass(frozen=True)
class Peaks:
    """The best poses of b particles so far, at most c each, best first.

    row    (b, c) template: the reference, plus the number of references where mirrored
    pose   (b, c, 4): psi in degrees, offset x and y in pixels, score; NOTHING beyond the last
    found  (b,) how many
    """

    row: Tensor
    pose: Tensor
    found: Tensor

    @classmethod
    def none(cls, n_particles: int, most: int) -> Peaks:
        pose = torch.full((n_particles, most, 4), NOTHING)
        return cls(torch.zeros(pose.shape[:2], dtype=torch.int64), pose, torch.zeros(n_particles, dtype=torch.int64))

    def merge_(
        self,
        value: Tensor,
        even: Tensor,
        odd: Tensor,
        penalty: Tensor,
        shifts: Tensor,
        first: int,
        n_references: int,
        class_index: Tensor,
        behind: float,
    ) -> None:
        """Take in the pairings g = (reference from `first` on, shift, mirror) of some of the references.

        value (g, 2, b) as `rotation_maxima` gives it for even, odd and penalty; shifts (s, 2) of the templates;
        class_index (b,): the only reference allowed, or -1. Poses whose score is more than the fraction `behind` below
        the best have no hope.
        """
        if bool((class_index >= 0).any()):
            reference = first + torch.arange(len(value)) // len(penalty)
            value = value.masked_fill((reference[:, None] != class_index)[:, None] & (class_index >= 0), NOTHING)
        pairings = (value, even, odd, penalty, shifts)
        found = (self.row, self.pose, self.found)
        _select(*(t.numpy() for t in pairings), first, n_references, behind, *(t.numpy() for t in found))


def rotation_maxima(even: Tensor, odd: Tensor, penalty: Tensor) -> Tensor:
    """Maxima (g, 2, b) over positive and over negative rotations of cosine and sine sums (g, J, b).

    penalty (p, 2, J) is added to those of pairing g from row g mod p: minus infinity forbids.
    """
    value = torch.empty(len(even), 2, even.shape[2])
    _maxima(even.numpy(), odd.numpy(), penalty.numpy(), value.numpy())
    return value


@numba.njit(fastmath=FAST, cache=True, nogil=True)
@no_type_check
def _maxima(even: Any, odd: Any, penalty: Any, value: Any) -> None:
    for g in range(len(even)):
        plus, minus, toll = value[g, 0], value[g, 1], penalty[g % len(penalty)]
        plus[:] = np.float32(NOTHING)
        minus[:] = np.float32(NOTHING)
        for j in range(even.shape[1]):
            e, o, toll_plus, toll_minus = even[g, j], odd[g, j], toll[0, j], toll[1, j]
            for b in range(len(e)):
                plus[b] = max(plus[b], e[b] + o[b] + toll_plus)
                minus[b] = max(minus[b], e[b] - o[b] + toll_minus)


@numba.njit(fastmath=FAST)
@no_type_check
def _score(even: Any, odd: Any, position: Any, b: Any) -> Any:
    """S at a position around the circle."""
    n_half = len(even)
    position %= 2 * n_half
    if position < n_half:
        return even[position, b] + odd[position, b]
    position = 2 * n_half - 1 - position
    return even[position, b] - odd[position, b]


@numba.njit(fastmath=FAST)
@no_type_check
def _where(even: Any, odd: Any, penalty: Any, sign: Any, b: Any) -> Any:
    """The position of the maximum over half of the circle."""
    best, at = np.float32(NOTHING), 0
    for j in range(len(even)):
        here = (even[j, b] + odd[j, b] if sign == 0 else even[j, b] - odd[j, b]) + penalty[sign, j]
        if here > best:
            best, at = here, j
    return at if sign == 0 else -1 - at


@numba.njit(fastmath=FAST)
@no_type_check
def _interpolated(even: Any, odd: Any, position: Any, best: Any, b: Any) -> Any:
    """Where, in positions, the parabola through a maximum and its neighbours has its top, how high, and if it has."""
    below, above = _score(even, odd, position - 1, b), _score(even, odd, position + 1, b)
    bend = 2 * best - below - above
    if below > best or above > best or not bend > 0:
        return np.float32(position), best, False
    lean = np.float32(0.5) * (above - below) / bend
    return np.float32(position) + lean, best + np.float32(0.25) * (above - below) * lean, True


@numba.njit(fastmath=FAST, cache=True, nogil=True)
@no_type_check
def _select(
    value: Any, even: Any, odd: Any, penalty: Any, shifts: Any, first: Any, n_references: Any, behind: Any,
    row: Any, pose: Any, found: Any,
) -> None:  # fmt: skip
    """See `Peaks.merge_`."""
    n_half, most, n_mirror = even.shape[1], row.shape[1], len(penalty) // len(shifts)
    floor = pose[:, 0, 3].copy()
    for g in range(len(even)):
        for b in range(len(floor)):
            floor[b] = max(floor[b], value[g, 0, b], value[g, 1, b])
    for b in range(len(floor)):
        floor[b] = max(floor[b] - np.float32(behind) * abs(floor[b]), pose[b, most - 1, 3], np.float32(NOTHING))
    for g in range(len(even)):
        mirror, shift, reference = g % n_mirror, g // n_mirror % len(shifts), first + g // len(penalty)
        toll = penalty[g % len(penalty)]
        free = toll.min() == 0
        x, y = -shifts[shift, 0] if mirror == 1 else shifts[shift, 0], shifts[shift, 1]
        for sign in range(2):
            for b in range(even.shape[2]):
                best = value[g, sign, b]
                if best <= floor[b]:
                    continue
                position = _where(even[g], odd[g], toll, sign, b)
                position, best, maximum = _interpolated(even[g], odd[g], position, best, b)
                # At the end of a half circle, the other half has the maximum; at that of an allowed arc, nobody else.
                if free and not maximum:
                    continue
                at = min(found[b], most - 1)
                found[b] = at + 1
                while at > 0 and pose[b, at - 1, 3] < best:
                    row[b, at] = row[b, at - 1]
                    pose[b, at] = pose[b, at - 1]
                    at -= 1
                psi = (position + np.float32(0.5)) * np.float32(math.pi / n_half)
                co, si = np.cos(psi), np.sin(psi)
                row[b, at] = reference + n_references * mirror
                pose[b, at, 0] = psi * np.float32(180.0 / math.pi)
                # The template's shift, seen from the particle.
                pose[b, at, 1] = co * x + si * y
                pose[b, at, 2] = co * y - si * x
                pose[b, at, 3] = best
                floor[b] = max(floor[b], pose[b, most - 1, 3])
