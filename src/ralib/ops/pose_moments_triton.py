"""Triton form of `pose_moments`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.ops.pose_moments import N_MOMENTS


@triton.jit
def _accumulate(acc, real, imag, fx, fy):
    """Add one product P = real + i imag (already weighted) to the six sums held in a tuple."""
    s, x, y, xx, xy, yy = acc
    gx = fx * real
    return s + real, x + fx * imag, y + fy * imag, xx - fx * gx, xy - fy * gx, yy - fy * fy * real


@triton.jit
def _pose_moments(
    samples, particle, shift, table, row, position, basis, out,
    stride, n_radii, n_half, n_fine,
    N_BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one candidate, all samples, three rotations. Complex arrays are (real, imaginary) pairs."""
    c = tl.program_id(0)
    n_points = n_radii * n_half
    n_angles = 2 * n_half
    n_columns = 3 * n_half
    x = tl.load(shift + 2 * c)
    y = tl.load(shift + 2 * c + 1)
    mine = samples + tl.load(particle + c).to(tl.int64) * n_points * 2
    template = table + tl.load(row + c).to(tl.int64) * n_fine * n_radii * n_columns * 2
    turn = n_angles * n_fine
    at = tl.load(position + c).to(tl.int32)
    below = (at - stride) % turn
    here = at % turn
    above = (at + stride) % turn
    # The remainder keeps the sign of the dividend.
    below = tl.where(below < 0, below + turn, below)
    here = tl.where(here < 0, here + turn, here)
    above = tl.where(above < 0, above + turn, above)
    start_0 = (below % n_fine) * n_radii * n_columns + below // n_fine
    start_1 = (here % n_fine) * n_radii * n_columns + here // n_fine
    start_2 = (above % n_fine) * n_radii * n_columns + above // n_fine
    zero = tl.zeros((BLOCK,), tl.float32)
    acc_0 = (zero, zero, zero, zero, zero, zero)
    acc_1 = (zero, zero, zero, zero, zero, zero)
    acc_2 = (zero, zero, zero, zero, zero, zero)
    for j in range(N_BLOCKS):
        p = j * BLOCK + tl.arange(0, BLOCK)
        inside = p < n_points
        fx = tl.load(basis + p, mask=inside, other=0.0)
        fy = tl.load(basis + n_points + p, mask=inside, other=0.0)
        w = tl.load(basis + 2 * n_points + p, mask=inside, other=0.0)
        fr = tl.load(mine + 2 * p, mask=inside, other=0.0) * w
        fi = tl.load(mine + 2 * p + 1, mask=inside, other=0.0) * w
        angle = fx * x + fy * y
        co = tl.cos(angle)
        si = tl.sin(angle)
        mr = fr * co + fi * si
        mi = fi * co - fr * si
        column = ((p // n_half) * n_columns + p % n_half) * 2
        t = template + column
        tr = tl.load(t + 2 * start_0, mask=inside, other=0.0)
        ti = tl.load(t + 2 * start_0 + 1, mask=inside, other=0.0)
        acc_0 = _accumulate(acc_0, mr * tr + mi * ti, mi * tr - mr * ti, fx, fy)
        tr = tl.load(t + 2 * start_1, mask=inside, other=0.0)
        ti = tl.load(t + 2 * start_1 + 1, mask=inside, other=0.0)
        acc_1 = _accumulate(acc_1, mr * tr + mi * ti, mi * tr - mr * ti, fx, fy)
        tr = tl.load(t + 2 * start_2, mask=inside, other=0.0)
        ti = tl.load(t + 2 * start_2 + 1, mask=inside, other=0.0)
        acc_2 = _accumulate(acc_2, mr * tr + mi * ti, mi * tr - mr * ti, fx, fy)
    to = out + c.to(tl.int64) * 18
    for i in tl.static_range(6):
        tl.store(to + i, tl.sum(acc_0[i], axis=0))
        tl.store(to + 6 + i, tl.sum(acc_1[i], axis=0))
        tl.store(to + 12 + i, tl.sum(acc_2[i], axis=0))


def pose_moments_triton(
    samples: Tensor,
    particle: Tensor,
    shift_xy_px: Tensor,
    table: Tensor,
    row: Tensor,
    position: Tensor,
    stride: int,
    basis: Tensor,
) -> Tensor:
    """See `pose_moments.pose_moments`."""
    _, n_radii, n_half = samples.shape
    out = torch.empty(len(particle), 3, N_MOMENTS, dtype=torch.float32, device=samples.device)
    block = 512
    _pose_moments[(len(particle),)](
        torch.view_as_real(samples.contiguous()),
        particle.contiguous(),
        shift_xy_px.contiguous(),
        torch.view_as_real(table),
        row.contiguous(),
        position.contiguous(),
        basis,
        out,
        stride, n_radii, n_half, table.shape[1],
        N_BLOCKS=triton.cdiv(n_radii * n_half, block),
        BLOCK=block,
        num_warps=4,
    )  # fmt: skip
    return out
