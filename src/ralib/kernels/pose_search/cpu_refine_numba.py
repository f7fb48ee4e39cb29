"""Refinement of a particle's candidate poses on a CPU: all Newton steps in one compiled loop.

The steps are those of `reference.newton`, on thinned samples; the first two of a candidate, which only serve to rank
it, leave out the outer radii. After each step the next candidate is chosen anew: the one whose score may still become
the highest, from its score and the largest gain seen among candidates after as many steps. The loop ends when the best
candidate has converged and no other can exceed it; most candidates never take a step.
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
from ralib.kernels.pose_search.cpu_grid_numba import FAST, NOTHING
from ralib.kernels.pose_search.cpu_samples import ThinGrid
from ralib.kernels.pose_search.fine_templates import FINE_ROTATIONS
from ralib.kernels.trig_numba import cos_sin

N_THINNED_MOMENTS = 10
ROUGH_STEPS = 2
"""So many steps of a candidate only have to rank it: they use the radii of the grid search."""


@dataclass(frozen=True)
class CandidateRule:
    """Rules by which candidates continue.

    Attributes
    ----------
    slack : tuple of float
        Fraction of the best score by which a candidate that took 0, 1, 2, 3 or more steps may still rise.
    most : int, default 6
        Steps of a candidate, on average.
    arrived : float, default 0.0002
        A candidate has converged when a full step raised its score by less than this fraction.
    same_deg, same_px : float
        Candidates of one template closer than this, in degrees and pixels, count as one maximum.
    """

    slack: tuple[float, float, float, float]
    most: int = 6
    arrived: float = 2e-4
    same_deg: float = 0.6
    same_px: float = 0.2

    @classmethod
    def after_grid(cls, loss: float) -> CandidateRule:
        """Return the rule for a grid whose shift step may cost a pose the fraction `loss` of its score.

        The values are the smallest with which 99.9 % of the best poses are found, for ribosomes at SNR 0.02 and 0.05.
        """
        return cls((0.03 + 0.45 * loss, 0.02, 0.005, 0.001))


def refine_candidates(
    parts: Tensor,
    thin: ThinGrid,
    table: Tensor,
    row: Tensor,
    pose: Tensor,
    rule: CandidateRule,
    limit_xy_px: tuple[float, float],
    bound: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Refine the candidates of each particle and return the best.

    Parameters
    ----------
    parts : Tensor of shape (b, 2, P)
        Real and imaginary parts of thinned samples.
    thin : ThinGrid
        The thinned polar grid.
    table : Tensor of shape (t, L)
        Templates at fine rotations; see `ThinGrid.table`.
    row : Tensor of shape (b, c)
        Template of each candidate.
    pose : Tensor of shape (b, c, 4)
        psi in degrees, x and y in pixels, score.
    rule : CandidateRule
        When candidates continue.
    limit_xy_px : tuple of float
        Largest offset along x and y, pixels.
    bound : tuple of float
        Largest change by one step, degrees and pixels.

    Returns
    -------
    Tensor of shape (b,)
        Template of the best candidate.
    Tensor of shape (b, 4)
        Its pose: psi in degrees, x and y in pixels, score.
    """
    out_row = torch.zeros(len(parts), dtype=torch.int64)
    out_pose = torch.zeros(len(parts), 5)
    rules = ((*rule.slack, 0.0), limit_xy_px, bound, (rule.same_deg, rule.same_px))
    _refine(
        *(t.numpy() for t in (parts, thin.frequency, table)),
        thin.layout,
        thin.inner,
        *(t.numpy() for t in (row, pose)),
        *(np.array(r, np.float32) for r in rules),
        np.float32(rule.arrived),
        rule.most,
        out_row.numpy(),
        out_pose.numpy(),
    )
    return out_row, out_pose[:, :4]


@kept
@numba.njit(fastmath=FAST, nogil=True)
@no_type_check
def _refine(
    parts: Any, frequency: Any, table: Any, layout: Any, inner: Any, row: Any, pose: Any, slack: Any, limit: Any,
    bound: Any, same: Any, done: Any, most: Any, out_row: Any, out_pose: Any,
) -> None:  # fmt: skip
    """Fill out_row (b,) and out_pose (b, 5): the pose, and what its last step gained."""
    step_deg = np.float32(180.0 / (layout[0, 2] * layout[0, 3] * FINE_ROTATIONS))
    arrived = len(slack) - 1
    moments = np.empty(N_THINNED_MOMENTS, np.float32)
    mine = np.empty((row.shape[1], 5), np.float32)
    whose, stage = np.empty(row.shape[1], np.int64), np.empty(row.shape[1], np.int64)
    for b in range(len(parts)):
        n = 0
        while n < row.shape[1] and pose[b, n, 3] > np.float32(NOTHING):
            whose[n], stage[n] = row[b, n], 0
            mine[n, :4] = pose[b, n]
            n += 1
        if n == 0:
            continue
        for _ in range(most * row.shape[1]):
            c = _may_become_best(mine, stage, n, slack)
            if stage[c] == arrived:
                break
            rough = stage[c] < ROUGH_STEPS
            groups = layout[:inner] if rough else layout
            position = np.int64(np.floor(mine[c, 0] / step_deg + np.float32(0.5)))
            _fill_moments(parts[b], frequency, table[whose[c]], groups, position, mine[c, 1], mine[c, 2], moments)
            _step(moments, mine[c], np.float32(position * step_deg), step_deg * FINE_ROTATIONS, limit, bound)
            stage[c] = min(stage[c] + 1, arrived - 1)
            if not rough and mine[c, 4] < done * abs(mine[c, 3]):
                stage[c] = arrived
            n = _without_duplicates(whose, mine, stage, n, c, same, arrived)
        c = _furthest(mine, stage, n)
        out_row[b] = whose[c]
        out_pose[b] = mine[c]


@numba.njit(fastmath=FAST)
@no_type_check
def _may_become_best(pose: Any, stage: Any, n: Any, slack: Any) -> Any:
    """Which of n candidates may become the best: the highest by its score and the slack of its stage."""
    top = np.float32(NOTHING)
    for c in range(n):
        top = max(top, pose[c, 3])
    best, most = 0, np.float32(NOTHING)
    for c in range(n):
        worth = pose[c, 3] + slack[stage[c]] * abs(top)
        if worth > most:
            best, most = c, worth
    return best


@numba.njit(fastmath=FAST)
@no_type_check
def _furthest(pose: Any, stage: Any, n: Any) -> Any:
    """The best of those that took most steps."""
    best = 0
    for c in range(1, n):
        if stage[c] > stage[best] or (stage[c] == stage[best] and pose[c, 3] > pose[best, 3]):
            best = c
    return best


@numba.njit(fastmath=FAST)
@no_type_check
def _without_duplicates(row: Any, pose: Any, stage: Any, n: Any, c: Any, same: Any, arrived: Any) -> Any:
    """Of c and each candidate on its way to the same maximum, only the one further on; how many are left of n."""
    d = 0
    while d < n:
        twin = d != c and row[c] == row[d]
        twin = twin and abs(pose[c, 1] - pose[d, 1]) < same[1] and abs(pose[c, 2] - pose[d, 2]) < same[1]
        turn = abs(pose[c, 0] - pose[d, 0]) % np.float32(360.0)
        twin = twin and min(turn, np.float32(360.0) - turn) < same[0]
        out, stays = (d, c) if stage[d] <= stage[c] else (c, d)
        # A candidate whose expected score exceeds one already reached leads to another maximum.
        if not twin or (stage[stays] == arrived and pose[out, 3] > pose[stays, 3]):
            d += 1
            continue
        n -= 1
        row[out], stage[out] = row[n], stage[n]
        pose[out] = pose[n]
        if out == c:
            break
        if c == n:
            c = out
    return n


@numba.njit(fastmath=FAST)
@no_type_check
def _fill_moments(parts: Any, frequency: Any, table: Any, layout: Any, position: Any, x: Any, y: Any, out: Any) -> None:
    """Moments (10,), see `_add_moments`, of parts (2, P) and a template (L,) at a fine rotation and a shift."""
    out[:] = np.float32(0.0)
    n_half = layout[0, 2] * layout[0, 3] * FINE_ROTATIONS
    # A template half a turn on is its conjugate.
    sign = np.float32(1.0) if position // n_half % 2 == 0 else np.float32(-1.0)
    position %= n_half
    for g in range(len(layout)):
        count, start, end = layout[g, 1], layout[g, 4], layout[g, 4] + layout[g, 5]
        base, lanes, turns = layout[g, 6], layout[g, 7], FINE_ROTATIONS * layout[g, 2]
        below = base + (position - FINE_ROTATIONS) % turns * lanes + ((position - FINE_ROTATIONS) // turns + 1) * count
        here = base + position % turns * lanes + (position // turns + 1) * count
        above = base + (position + FINE_ROTATIONS) % turns * lanes + ((position + FINE_ROTATIONS) // turns + 1) * count
        n, imag = end - start, turns * lanes
        _add_moments(
            parts[0, start:end], parts[1, start:end], frequency[0, start:end], frequency[1, start:end],
            table[below : below + n], table[here : here + n], table[above : above + n],
            table[imag + below : imag + below + n], table[imag + here : imag + here + n],
            table[imag + above : imag + above + n], x, y, sign, out,
        )  # fmt: skip


@numba.njit(fastmath=FAST)
@no_type_check
def _add_moments(
    fr: Any, fi: Any, kx: Any, ky: Any, below_re: Any, here_re: Any, above_re: Any, below_im: Any, here_im: Any,
    above_im: Any, x: Any, y: Any, sign: Any, out: Any,
) -> None:  # fmt: skip
    """Add to out (10,): S, S_x, S_y, -S_xx, -S_xy, -S_yy in cycles; S, S_x, S_y above less below; S above and below.

    fr, fi (p,) the particle at frequencies kx, ky, and templates at three rotations; sign -1 takes their conjugates.
    """
    s = sx = sy = sxx = sxy = syy = d = dx = dy = both = np.float32(0.0)
    for p in range(len(fr)):
        co, si = cos_sin(x * kx[p] + y * ky[p])
        re = fr[p] * co + fi[p] * si
        im = sign * (fi[p] * co - fr[p] * si)
        even = re * here_re[p] + im * here_im[p]
        odd = im * here_re[p] - re * here_im[p]
        s += even
        sx += odd * kx[p]
        sy += odd * ky[p]
        even_x, even_y = even * kx[p], even * ky[p]
        sxx += even_x * kx[p]
        sxy += even_x * ky[p]
        syy += even_y * ky[p]
        diff_re, diff_im = above_re[p] - below_re[p], above_im[p] - below_im[p]
        d += re * diff_re + im * diff_im
        odd = im * diff_re - re * diff_im
        dx += odd * kx[p]
        dy += odd * ky[p]
        both += re * (above_re[p] + below_re[p]) + im * (above_im[p] + below_im[p])
    out[0] += s
    out[1] += sign * sx
    out[2] += sign * sy
    out[3] += sxx
    out[4] += sxy
    out[5] += syy
    out[6] += d
    out[7] += sign * dx
    out[8] += sign * dy
    out[9] += both


@numba.njit(fastmath=FAST)
@no_type_check
def _step(m: Any, pose: Any, psi: Any, h_deg: Any, limit: Any, bound: Any) -> None:
    """A Newton step of one pose (psi, x, y, score, gain) in place, from its moments at psi: `reference_newton.stepped`.

    A step that had to be cut short gains all of the score: it was not the last.
    """
    wave = np.float32(2.0 * math.pi)
    gp, gx, gy = m[6] / (2 * h_deg), wave * m[1], wave * m[2]
    pp, px, py = (m[9] - 2 * m[0]) / (h_deg * h_deg), wave * m[7] / (2 * h_deg), wave * m[8] / (2 * h_deg)
    xx, xy, yy = -wave * wave * m[3], -wave * wave * m[4], -wave * wave * m[5]
    # An offset at its limit that would go on outwards is out of the problem.
    if abs(pose[1]) >= limit[0] and pose[1] * gx >= 0:
        gx = px = xy = np.float32(0.0)
    if abs(pose[2]) >= limit[1] and pose[2] * gy >= 0:
        gy = py = xy = np.float32(0.0)
    sp, sx, sy = _solved(gp, gx, gy, -pp, -px, -py, -xx, -xy, -yy)
    cut = max(abs(sp) / bound[0], abs(sx) / bound[1], abs(sy) / bound[1], np.float32(1.0))
    sp, sx, sy = sp / cut, sx / cut, sy / cut
    x, y = min(max(pose[1] + sx, -limit[0]), limit[0]), min(max(pose[2] + sy, -limit[1]), limit[1])
    whole = cut == 1 and abs(x - pose[1] - sx) + abs(y - pose[2] - sy) < np.float32(1e-3)
    sx, sy = x - pose[1], y - pose[2]
    gain = gp * sp + gx * sx + gy * sy + px * sp * sx + py * sp * sy + xy * sx * sy
    gain += np.float32(0.5) * (pp * sp * sp + xx * sx * sx + yy * sy * sy)
    pose[0], pose[1], pose[2], pose[3] = psi + sp, x, y, m[0] + gain
    pose[4] = gain if whole else abs(pose[3])


@no_type_check
def solved(gp: Any, gx: Any, gy: Any, a: Any, b: Any, c: Any, d: Any, e: Any, f: Any) -> Any:
    """Return H^-1 g for H = (a b c, b d e, c e f) by cofactors where it is positive definite; else by its diagonal.

    Parameters
    ----------
    gp, gx, gy : float32
        g.
    a, b, c, d, e, f : float32
        H.

    Returns
    -------
    tuple of float32
        The step.
    """
    c00, c01, c02 = d * f - e * e, c * e - b * f, b * e - c * d
    c11, c12, c22 = a * f - c * c, b * c - a * e, a * d - b * b
    det = a * c00 + b * c01 + c * c02
    small = np.float32(1e-12)
    da, dd, df = max(abs(a), small), max(abs(d), small), max(abs(f), small)
    if a > 0 and c22 > 0 and det > np.float32(1e-6) * da * dd * df:
        return (
            (c00 * gp + c01 * gx + c02 * gy) / det,
            (c01 * gp + c11 * gx + c12 * gy) / det,
            (c02 * gp + c12 * gx + c22 * gy) / det,
        )
    return gp / da, gx / dd, gy / df


_solved = numba.njit(fastmath=FAST)(solved)
