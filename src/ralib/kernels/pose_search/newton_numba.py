"""CPU form of `newton`: the moments in one pass over the samples, in vector registers.

One core; the search gives each core its own particles.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.pose_search.newton import N_MOMENTS, Step, climbed, stepped
from ralib.kernels.trig_numba import cos_sin

TURN = 1.0 / (2.0 * math.pi)


@numba.njit(fastmath=True, cache=True, nogil=True)
@no_type_check
def _moments(
    samples: Any, shift: Any, row: Any, position: Any, table: Any, radius: Any, weight: Any, ca: Any, sa: Any, out: Any
) -> None:
    """Fill out (c, 12); candidate i is about particle i mod b. The inner loop, over angles, is contiguous."""
    n_candidates, n_half, n_fine = len(row), len(ca), table.shape[1]
    n_particles, turn = len(samples), 2 * n_half * n_fine
    for c in range(n_candidates):
        fine = position[c] % turn
        start = fine // n_fine
        templates = table[row[c], fine % n_fine]
        along = (shift[c, 0] * ca + shift[c, 1] * sa) * np.float32(TURN)
        total = np.zeros(N_MOMENTS, np.float32)
        for k in range(len(radius)):
            r, w = radius[k], weight[k]
            mine = samples[c % n_particles, k]
            re, im = templates[0, k, start : start + n_half + 2], templates[1, k, start : start + n_half + 2]
            s0 = s1 = s2 = x0 = x1 = x2 = y0 = y1 = y2 = xx = xy = yy = np.float32(0.0)
            for h in range(n_half):
                co, si = cos_sin(r * along[h])
                fr, fi = mine[2 * h], mine[2 * h + 1]
                mr = fr * co + fi * si
                mi = fi * co - fr * si
                s0 += mr * re[h] + mi * im[h]
                odd = mi * re[h] - mr * im[h]
                x0 += odd * ca[h]
                y0 += odd * sa[h]
                even = mr * re[h + 1] + mi * im[h + 1]
                odd = mi * re[h + 1] - mr * im[h + 1]
                s1 += even
                x1 += odd * ca[h]
                y1 += odd * sa[h]
                xx += even * ca[h] * ca[h]
                xy += even * ca[h] * sa[h]
                yy += even * sa[h] * sa[h]
                s2 += mr * re[h + 2] + mi * im[h + 2]
                odd = mi * re[h + 2] - mr * im[h + 2]
                x2 += odd * ca[h]
                y2 += odd * sa[h]
            wr = w * r
            wrr = wr * r
            total[0] += w * s0
            total[1] += wr * x0
            total[2] += wr * y0
            total[3] += w * s1
            total[4] += wr * x1
            total[5] += wr * y1
            total[6] += w * s2
            total[7] += wr * x2
            total[8] += wr * y2
            total[9] -= wrr * xx
            total[10] -= wrr * xy
            total[11] -= wrr * yy
        out[c] = total


def newton_numba(
    samples: Tensor,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    table: Tensor,
    radius: Tensor,
    angle: Tensor,
    weight: Tensor,
    stops: tuple[int, int, int],
    limit_xy_px: tuple[float, float],
    bound: tuple[float, float],
    slack: float = math.inf,
    steps: int = 1,
) -> Tensor:
    """See `newton.newton`. All angles are used: skipping some would cost more than it saves."""
    step_deg = 180.0 / (table.shape[1] * len(angle))
    parts = torch.view_as_real(samples.contiguous()).flatten(2).numpy()
    used = [part[: stops[-1]].contiguous().numpy() for part in (radius, weight)]
    basis = (table.numpy(), *used, torch.cos(angle).numpy(), torch.sin(angle).numpy())

    def one_step(pose: Tensor) -> Step:
        position = torch.floor(pose[..., 0] / step_deg + 0.5).long()
        moments = torch.empty(row.numel(), N_MOMENTS)
        shift = (centre + pose[..., 1:3]).flatten(0, 1).contiguous().numpy()
        _moments(parts, shift, row.flatten().numpy(), position.flatten().numpy(), *basis, moments.numpy())
        moments = moments.view(*position.shape, -1)
        return stepped(moments, pose, position, step_deg, table.shape[1], limit_xy_px, bound)

    return climbed(one_step, pose, slack, steps)
