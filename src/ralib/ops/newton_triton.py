"""Triton form of `newton`: moments and the step they give, one candidate a program."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


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
def _newton(
    samples, centre, row, pose, table, radius, angle, weight, out,
    n_particles, n_all_radii, n_radii, n_half, n_fine, limit_x, limit_y, bound_deg, bound_px,
    STRIDE: tl.constexpr, K_BLOCKS: tl.constexpr, K_BLOCK: tl.constexpr, H_BLOCKS: tl.constexpr, H_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one candidate. Sums over radii stay per angle until the end, where cos and sin of it join."""
    c = tl.program_id(0)
    particle = c % n_particles
    n_angles = 2 * n_half
    n_columns = 3 * n_half + 2
    plane = n_all_radii * n_columns
    psi = tl.load(pose + 4 * c)
    offset_x = tl.load(pose + 4 * c + 1)
    offset_y = tl.load(pose + 4 * c + 2)
    x = (tl.load(centre + 2 * particle) + offset_x) * 0.15915494309189535
    y = (tl.load(centre + 2 * particle + 1) + offset_y) * 0.15915494309189535
    mine = samples + particle.to(tl.int64) * n_all_radii * n_half * 2
    turn = n_angles * n_fine
    step_deg = 360.0 / turn
    position = tl.floor(psi / step_deg + 0.5).to(tl.int32)
    fine = position % turn
    # The remainder keeps the sign of the dividend.
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
    # The negative Hessian in (psi, x, y), by central differences in psi; then the step as in `newton.newton_step`.
    h = n_fine * step_deg
    gp = (s2 - s0) / (2 * h)
    pp = (2 * s1 - s0 - s2) / (h * h)
    px = (x0 - x2) / (2 * h)
    py = (y0 - y2) / (2 * h)
    xx, xy, yy = -xx, -xy, -yy
    # A coordinate at its limit that would go on outwards is out of the problem.
    free_x = ((tl.abs(offset_x) < limit_x) | (offset_x * x1 < 0)).to(tl.float32)
    free_y = ((tl.abs(offset_y) < limit_y) | (offset_y * y1 < 0)).to(tl.float32)
    x1, y1, px, py, xy = x1 * free_x, y1 * free_y, px * free_x, py * free_y, xy * free_x * free_y
    c00, c01, c02 = xx * yy - xy * xy, py * xy - px * yy, px * xy - py * xx
    c11, c12, c22 = pp * yy - py * py, px * py - pp * xy, pp * xx - px * px
    det = pp * c00 + px * c01 + py * c02
    dp, dx, dy = tl.maximum(tl.abs(pp), 1e-12), tl.maximum(tl.abs(xx), 1e-12), tl.maximum(tl.abs(yy), 1e-12)
    definite = (pp > 0) & (c22 > 0) & (det > 1e-6 * dp * dx * dy)
    safe = tl.where(definite, det, 1.0)
    step_p = tl.where(definite, (c00 * gp + c01 * x1 + c02 * y1) / safe, gp / dp)
    step_x = tl.where(definite, (c01 * gp + c11 * x1 + c12 * y1) / safe, x1 / dx)
    step_y = tl.where(definite, (c02 * gp + c12 * x1 + c22 * y1) / safe, y1 / dy)
    shrink = tl.minimum(bound_deg / tl.maximum(tl.abs(step_p), 1e-12), bound_px / tl.maximum(tl.abs(step_x), 1e-12))
    shrink = tl.minimum(tl.minimum(shrink, bound_px / tl.maximum(tl.abs(step_y), 1e-12)), 1.0)
    new_x = tl.minimum(tl.maximum(offset_x + shrink * step_x, -limit_x), limit_x)
    new_y = tl.minimum(tl.maximum(offset_y + shrink * step_y, -limit_y), limit_y)
    step_p, step_x, step_y = shrink * step_p, new_x - offset_x, new_y - offset_y
    bent = pp * step_p * step_p + xx * step_x * step_x + yy * step_y * step_y
    bent = 0.5 * bent + px * step_p * step_x + py * step_p * step_y + xy * step_x * step_y
    tl.store(out + 4 * c, position * step_deg + step_p)
    tl.store(out + 4 * c + 1, new_x)
    tl.store(out + 4 * c + 2, new_y)
    tl.store(out + 4 * c + 3, s1 + gp * step_p + x1 * step_x + y1 * step_y - bent)


def newton_triton(
    samples: Tensor,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    table: Tensor,
    radius: Tensor,
    angle: Tensor,
    weight: Tensor,
    limit_xy_px: tuple[float, float],
    bound: tuple[float, float],
    angle_stride: int = 1,
    *,
    k_block: int = 4,
    h_block: int = 32,
    num_warps: int = 1,
) -> Tensor:
    """See `newton.newton`."""
    n_particles, n_all_radii, n_half = samples.shape
    out = torch.empty_like(pose)
    _newton[(row.numel(),)](
        torch.view_as_real(samples.contiguous()),
        centre.contiguous(),
        row.contiguous(),
        pose.contiguous(),
        table,
        radius.contiguous(),
        angle,
        weight.contiguous(),
        out,
        n_particles, n_all_radii, len(radius), n_half, table.shape[1], *limit_xy_px, *bound,
        STRIDE=angle_stride,
        K_BLOCKS=triton.cdiv(len(radius), k_block),
        K_BLOCK=k_block,
        H_BLOCKS=triton.cdiv(n_half, h_block * angle_stride),
        H_BLOCK=h_block,
        num_warps=num_warps,
    )  # fmt: skip
    return out
