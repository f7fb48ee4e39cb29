"""Triton form of `pose_moments`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.ops.pose_moments import N_MOMENTS


@triton.jit
def _cos_sin(cycles):
    """cos and sin of 2 pi times the argument, to 6e-7, from Chebyshev fits of the argument reduced to [-1/2, 1/2]."""
    r = cycles - tl.floor(cycles + 0.5)
    q = r * r
    co = 6.5286492
    co = co * q - 25.967593
    co = co * q + 60.167629
    co = co * q - 85.450139
    co = co * q + 64.939117
    co = co * q - 19.739204
    co = co * q + 1.0
    si = -12.471224
    si = si * q + 41.342871
    si = si * q - 76.61447
    si = si * q + 81.599943
    si = si * q - 41.341589
    si = si * q + 6.2831849
    return co, si * r


@triton.jit
def _pose_moments(
    samples, particle, shift, table, row, position, radius, angle, weight, out,
    n_all_radii, n_radii, n_half, n_fine,
    STRIDE: tl.constexpr, K_BLOCKS: tl.constexpr, K_BLOCK: tl.constexpr, H_BLOCKS: tl.constexpr, H_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one candidate. Sums over radii stay per angle until the end, where cos and sin of it join."""
    c = tl.program_id(0)
    n_angles = 2 * n_half
    n_columns = 3 * n_half + 2
    plane = n_all_radii * n_columns
    x = tl.load(shift + 2 * c) * 0.15915494309189535
    y = tl.load(shift + 2 * c + 1) * 0.15915494309189535
    mine = samples + tl.load(particle + c).to(tl.int64) * n_all_radii * n_half * 2
    turn = n_angles * n_fine
    fine = tl.load(position + c).to(tl.int32) % turn
    fine = tl.where(fine < 0, fine + turn, fine)
    template = table + (tl.load(row + c).to(tl.int64) * n_fine + fine % n_fine) * 2 * plane + fine // n_fine
    s0, s1, s2, x0, x1, x2, y0, y1, y2 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    xx, xy, yy = 0.0, 0.0, 0.0
    for j in range(H_BLOCKS):
        h = (j * H_BLOCK + tl.arange(0, H_BLOCK)) * STRIDE
        a = tl.load(angle + h, mask=h < n_half, other=0.0)
        ca, sa = tl.cos(a), tl.sin(a)
        along = x * ca + y * sa
        e0 = tl.zeros((K_BLOCK, H_BLOCK), tl.float32)
        e1, e2, o0, o1, o2, d1 = e0, e0, e0, e0, e0, e0
        for i in range(K_BLOCKS):
            k = i * K_BLOCK + tl.arange(0, K_BLOCK)
            inside = (k[:, None] < n_radii) & (h[None, :] < n_half)
            r = tl.load(radius + k, mask=k < n_radii, other=0.0)[:, None]
            w = tl.load(weight + k, mask=k < n_radii, other=0.0)[:, None] * STRIDE
            at = (k[:, None] * n_half + h[None, :]) * 2
            fr = tl.load(mine + at, mask=inside, other=0.0) * w
            fi = tl.load(mine + at + 1, mask=inside, other=0.0) * w
            co, si = _cos_sin(r * along[None, :])
            mr = fr * co + fi * si
            mi = fi * co - fr * si
            t = template + k[:, None] * n_columns + h[None, :]
            tr = tl.load(t, mask=inside, other=0.0)
            ti = tl.load(t + plane, mask=inside, other=0.0)
            e0 += mr * tr + mi * ti
            o0 += r * (mi * tr - mr * ti)
            tr = tl.load(t + 1, mask=inside, other=0.0)
            ti = tl.load(t + plane + 1, mask=inside, other=0.0)
            even = mr * tr + mi * ti
            e1 += even
            d1 -= r * r * even
            o1 += r * (mi * tr - mr * ti)
            tr = tl.load(t + 2, mask=inside, other=0.0)
            ti = tl.load(t + plane + 2, mask=inside, other=0.0)
            e2 += mr * tr + mi * ti
            o2 += r * (mi * tr - mr * ti)
        s0 += tl.sum(e0)
        s1 += tl.sum(e1)
        s2 += tl.sum(e2)
        odd = tl.sum(o0, axis=0)
        x0 += tl.sum(odd * ca)
        y0 += tl.sum(odd * sa)
        odd = tl.sum(o1, axis=0)
        x1 += tl.sum(odd * ca)
        y1 += tl.sum(odd * sa)
        odd = tl.sum(o2, axis=0)
        x2 += tl.sum(odd * ca)
        y2 += tl.sum(odd * sa)
        second = tl.sum(d1, axis=0)
        xx += tl.sum(second * ca * ca)
        xy += tl.sum(second * ca * sa)
        yy += tl.sum(second * sa * sa)
    to = out + c.to(tl.int64) * 12
    tl.store(to, s0)
    tl.store(to + 1, x0)
    tl.store(to + 2, y0)
    tl.store(to + 3, s1)
    tl.store(to + 4, x1)
    tl.store(to + 5, y1)
    tl.store(to + 6, s2)
    tl.store(to + 7, x2)
    tl.store(to + 8, y2)
    tl.store(to + 9, xx)
    tl.store(to + 10, xy)
    tl.store(to + 11, yy)


def pose_moments_triton(
    samples: Tensor,
    particle: Tensor,
    shift_xy_px: Tensor,
    table: Tensor,
    row: Tensor,
    position: Tensor,
    radius: Tensor,
    angle: Tensor,
    weight: Tensor,
    angle_stride: int = 1,
    *,
    k_block: int = 8,
    h_block: int = 32,
    num_warps: int = 1,
) -> Tensor:
    """See `pose_moments.pose_moments`."""
    _, n_all_radii, n_half = samples.shape
    out = torch.empty(len(particle), N_MOMENTS, dtype=torch.float32, device=samples.device)
    _pose_moments[(len(particle),)](
        torch.view_as_real(samples.contiguous()),
        particle.contiguous(),
        shift_xy_px.contiguous(),
        table,
        row.contiguous(),
        position.contiguous(),
        radius.contiguous(),
        angle,
        weight.contiguous(),
        out,
        n_all_radii, len(radius), n_half, table.shape[1],
        STRIDE=angle_stride,
        K_BLOCKS=triton.cdiv(len(radius), k_block),
        K_BLOCK=k_block,
        H_BLOCKS=triton.cdiv(n_half, h_block * angle_stride),
        H_BLOCK=h_block,
        num_warps=num_warps,
    )  # fmt: skip
    return out
