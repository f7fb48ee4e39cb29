"""Numba form of the Newton steps on templates at fine rotations: all steps of a pose in one compiled loop.

A particle's samples, its moved samples and a template's row stay in a core's cache; sums run over the angles of a ring
side by side. What is found for a pose does not depend on the others.
"""

from __future__ import annotations

import math
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.cpu_grid_numba import FAST
from ralib.kernels.pose_search.cpu_refine_numba import solved
from ralib.kernels.pose_search.fine_templates import FineTemplates
from ralib.kernels.pose_search.reference_newton import N_MOMENTS, SETTLED, NewtonRule
from ralib.kernels.threads import on_cores, shares
from ralib.kernels.trig_numba import cos_sin

_solved = numba.njit(solved)


def newton(
    samples: Tensor,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    templates: FineTemplates,
    rule: NewtonRule,
    particle: Tensor | None = None,
) -> Tensor:
    """Refine candidate poses by Newton steps; see `reference.newton`."""
    out = torch.empty_like(pose)
    particle = torch.arange(len(samples)) if particle is None else particle
    bounds = np.array([*rule.limit_xy_px, rule.most_deg, rule.most_px, rule.slack, SETTLED], np.float32)
    layout, result = _layout(templates), out.numpy()
    given = torch.view_as_real(samples.contiguous()).numpy(), particle.numpy(), centre.contiguous().numpy()
    rows, poses = row.contiguous().numpy(), pose.contiguous().numpy()

    def part(some: slice) -> None:
        _newton(*given, rows, poses, some.start, some.stop, layout, rule.stops, bounds, rule.steps, result)

    on_cores(part, shares(len(particle)))
    return out


def _layout(templates: FineTemplates) -> tuple[np.ndarray, ...]:
    """The table, radii in cycles per pixel, weights, and cosines and sines of the angles."""
    angle = templates.angle
    tables = templates.table, templates.radius / (2 * math.pi), templates.weight, torch.cos(angle), torch.sin(angle)
    return tuple(t.contiguous().numpy() for t in tables)


@kept
@numba.njit(nogil=True)
@no_type_check
def _newton(
    samples: Any, particle: Any, centre: Any, row: Any, pose: Any, start: Any, stop: Any, layout: Any, stops: Any,
    bounds: Any, steps: Any, out: Any,
) -> None:  # fmt: skip
    """Fill out (c, b, 4) from `start` to `stop` for some of the particles of samples (n, K, H, 2)."""
    moments, step = np.empty(N_MOMENTS, np.float32), np.empty(6, np.float32)
    mine, slack = np.empty((2, samples.shape[1], samples.shape[2]), np.float32), bounds[4]
    for b in range(start, stop):
        for k in range(stops[2]):
            for part in range(2):
                mine[part, k] = samples[particle[b], k, :, part]
        for c in range(len(pose)):
            out[c, b] = pose[c, b]
            if pose[c, b, 3] < pose[0, b, 3] - slack * abs(pose[0, b, 3]):
                out[c, b, 3] = np.float32(-np.inf)
            else:
                _climb(mine, centre[b], row[c, b], layout, stops, bounds, steps, moments, step, out[c, b])


@numba.njit
@no_type_check
def _climb(
    samples: Any, centre: Any, row: Any, layout: Any, stops: Any, bounds: Any, steps: Any, moments: Any, step: Any,
    pose: Any,
) -> None:  # fmt: skip
    """All steps of a pose (4,), in place: see `reference_newton.repeated_steps`."""
    now, highest = pose[:3].copy(), pose[:3].copy()
    top, table = np.float32(-np.inf), layout[0][row]
    turn = 2 * samples.shape[2] * table.shape[0]
    step_deg = np.float32(360.0 / turn)
    for _ in range(steps):
        position = np.int64(np.floor(now[0] / step_deg + np.float32(0.5)))
        x, y = centre[0] + now[1], centre[1] + now[2]
        moments[:] = np.float32(0.0)
        for stride in range(1, 4):
            first = 0 if stride == 3 else stops[2 - stride]
            _add_moments(samples, table, layout, position % turn, x, y, first, stops[3 - stride], stride, moments)
        _step(moments, now, position * step_deg, table.shape[0] * step_deg, bounds, step)
        score, expected, change = step[3], step[4], step[5]
        if steps == 1:
            highest[:], top = step[:3], expected
        elif score < top:
            for i in range(3):
                now[i] = np.float32(0.5) * (highest[i] + now[i])
        elif change <= bounds[5] * abs(score):
            highest[:], top = step[:3], expected
            break
        else:
            highest[:], top = now, score
            now[:] = step[:3]
    pose[:3], pose[3] = highest, top


@numba.njit
@no_type_check
def _add_moments(
    samples: Any, table: Any, layout: Any, fine: Any, x: Any, y: Any, first: Any, stop: Any, stride: Any, out: Any
) -> None:
    """Add the moments (`reference_newton.pose_moments`) of radii from `first` to `stop` at every `stride`-th angle."""
    _, frequency, weight, cosine, sine = layout
    n_fine, n_half = table.shape[0], samples.shape[2]
    template, at = table[fine % n_fine], fine // n_fine
    wave = np.float32(2 * math.pi)
    sums = np.empty(N_MOMENTS, np.float32)
    for k in range(first, stop):
        fr, fi, real, imag = samples[0, k], samples[1, k], template[0, k, at:], template[1, k, at:]
        fx, fy = x * frequency[k], y * frequency[k]
        if stride == 1:  # contiguous, and so many at a time
            _ring(
                fr, fi, real[:n_half], imag[:n_half], real[1 : n_half + 1], imag[1 : n_half + 1], real[2 : n_half + 2],
                imag[2 : n_half + 2], fx, fy, cosine, sine, sums,
            )  # fmt: skip
        else:
            _ring(
                fr[::stride], fi[::stride], real[:n_half:stride], imag[:n_half:stride], real[1 : n_half + 1 : stride],
                imag[1 : n_half + 1 : stride], real[2 : n_half + 2 : stride], imag[2 : n_half + 2 : stride], fx, fy,
                cosine[::stride], sine[::stride], sums,
            )  # fmt: skip
        w, f = weight[k] * np.float32(stride), wave * frequency[k]
        for i in range(3):
            out[3 * i] += w * sums[3 * i]
            out[3 * i + 1] += w * f * sums[3 * i + 1]
            out[3 * i + 2] += w * f * sums[3 * i + 2]
            out[9 + i] -= w * f * f * sums[9 + i]


@numba.njit(fastmath=FAST)
@no_type_check
def _ring(
    fr: Any, fi: Any, re0: Any, im0: Any, re1: Any, im1: Any, re2: Any, im2: Any, x: Any, y: Any, cosine: Any,
    sine: Any, out: Any,
) -> None:  # fmt: skip
    """Sums over the angles of a ring: score and its slopes at three rotations, then its curvatures at the second."""
    s0 = s1 = s2 = x0 = x1 = x2 = y0 = y1 = y2 = xx = xy = yy = np.float32(0.0)
    for h in range(len(fr)):
        ca, sa = cosine[h], sine[h]
        co, si = cos_sin(x * ca + y * sa)
        re, im = fr[h] * co + fi[h] * si, fi[h] * co - fr[h] * si
        s0 += re * re0[h] + im * im0[h]
        odd = im * re0[h] - re * im0[h]
        x0 += odd * ca
        y0 += odd * sa
        even = re * re1[h] + im * im1[h]
        odd = im * re1[h] - re * im1[h]
        s1 += even
        x1 += odd * ca
        y1 += odd * sa
        xx += even * ca * ca
        xy += even * ca * sa
        yy += even * sa * sa
        s2 += re * re2[h] + im * im2[h]
        odd = im * re2[h] - re * im2[h]
        x2 += odd * ca
        y2 += odd * sa
    out[0], out[1], out[2], out[3], out[4], out[5] = s0, x0, y0, s1, x1, y1
    out[6], out[7], out[8], out[9], out[10], out[11] = s2, x2, y2, xx, xy, yy


@numba.njit
@no_type_check
def _step(m: Any, now: Any, psi: Any, h_deg: Any, bounds: Any, out: Any) -> None:
    """A Newton step: out (6,) is the pose after it, the score before, the one expected, and the change.

    See `reference_newton.stepped`. psi is the rotation of the moments, in whose neighbourhood the step begins.
    """
    half, limit_x, limit_y = np.float32(0.5), bounds[0], bounds[1]
    gp, gx, gy = half * (m[6] - m[0]) / h_deg, m[4], m[5]
    pp = (m[6] - 2 * m[3] + m[0]) / (h_deg * h_deg)
    px, py = half * (m[7] - m[1]) / h_deg, half * (m[8] - m[2]) / h_deg
    xx, xy, yy = m[9], m[10], m[11]
    off, slope, bend = now[0] - psi, gp, pp
    if not (abs(now[1]) < limit_x or now[1] * gx < 0):
        gx = px = xy = np.float32(0.0)
    if not (abs(now[2]) < limit_y or now[2] * gy < 0):
        gy = py = xy = np.float32(0.0)
    sp, sx, sy = _solved(gp, gx, gy, -pp, -px, -py, -xx, -xy, -yy)
    tiny = np.float32(1e-12)
    cut = min(bounds[2] / max(abs(sp), tiny), bounds[3] / max(abs(sx), tiny), bounds[3] / max(abs(sy), tiny))
    cut = min(cut, np.float32(1.0))
    x, y = min(max(now[1] + cut * sx, -limit_x), limit_x), min(max(now[2] + cut * sy, -limit_y), limit_y)
    sp, sx, sy = cut * sp, x - now[1], y - now[2]
    gain = gp * sp + gx * sx + gy * sy + half * (pp * sp * sp + xx * sx * sx + yy * sy * sy)
    gain += px * sp * sx + py * sp * sy + xy * sx * sy
    turned = psi + sp - now[0]
    out[0], out[1], out[2] = psi + sp, x, y
    out[3] = m[3] + off * (slope + half * off * bend)
    out[4] = m[3] + gain
    out[5] = half * (abs(pp) * turned * turned + abs(xx) * sx * sx + abs(yy) * sy * sy)
