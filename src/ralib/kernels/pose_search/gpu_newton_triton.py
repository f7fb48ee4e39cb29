"""Triton form of `reference.newton`: moments and Newton steps, a few candidates of one particle for each program."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.pose_search.fine_templates import FineTemplates
from ralib.kernels.pose_search.reference_newton import SETTLED, NewtonRule

MANY, FEW = (4, 4, 8, 1), (1, 8, 8, 1)
"""Candidates of a program, which share its samples; radii and angles that it takes at a time; its warps."""


@triton.jit
def cos_sin(cycles):
    """Return cosine and sine of 2 pi times the argument, to 6e-7, from Chebyshev fits on [-1/2, 1/2]."""
    # Adding 1.5 * 2^23 leaves no bits for a fraction: the nearest whole number, on the fast pipe.
    r = cycles - ((cycles + 12582912.0) - 12582912.0)
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


if torch.version.cuda and not triton.knobs.runtime.interpret:

    @triton.jit
    def _phase(radians):
        """Cosine and sine by the hardware's own instructions, to 4e-7 near 0 and 3e-6 at eight turns."""
        co = tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $1;", "=f,f", [radians], dtype=tl.float32, is_pure=True, pack=1
        )
        si = tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [radians], dtype=tl.float32, is_pure=True, pack=1
        )
        return co, si

else:

    @triton.jit
    def _phase(radians):
        """Cosine and sine, where there are no such instructions."""
        return cos_sin(radians * 0.15915494309189535)


@triton.jit
def _pair(word):
    """The two half-precision numbers of 32-bit words, in single precision."""
    low = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    return low, high


@triton.jit
def _total(values):
    """Sums (candidate,) over radii and angles."""
    return tl.sum(tl.sum(values, axis=2), axis=1)


@triton.jit
def _band(
    sums, mine, template, radius, angle, weight, x, y, first, stop, n_half,
    STRIDE: tl.constexpr, EVEN: tl.constexpr,
    CANDIDATES: tl.constexpr, K_BLOCK: tl.constexpr, H_BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds the radii from `first` to `stop`, at every STRIDE-th angle, to the sums.

    Sums over radii stay per angle until the angle's cos and sin join.
    """
    n_columns = 3 * n_half + 2
    s0, s1, s2, x0, x1, x2, y0, y1, y2, xx, xy, yy = sums
    for j in range(0, n_half, H_BLOCK * STRIDE):
        h = j + tl.arange(0, H_BLOCK) * STRIDE
        ca, sa = cos_sin(tl.load(angle + h, mask=h < n_half, other=0.0) * 0.15915494309189535)
        ca, sa = ca[None, None, :], sa[None, None, :]
        along = x * ca + y * sa
        o0 = tl.zeros((CANDIDATES, K_BLOCK, H_BLOCK), tl.float32)
        o1, o2, d1 = o0, o0, o0
        for i in range(first, stop, K_BLOCK):
            k = i + tl.arange(0, K_BLOCK)
            at = k[None, :, None] * n_half + h[None, None, :]
            of = k[None, :, None] * n_columns + h[None, None, :]
            # One sample, real and imaginary part, is one 64-bit word; one of a template, in half precision, 32 bits.
            if EVEN:
                r, w = tl.load(radius + k), tl.load(weight + k)
                word = tl.load(mine + at)
                below, here, above = tl.load(template + of), tl.load(template + of + 1), tl.load(template + of + 2)
            else:
                r, w = tl.load(radius + k, mask=k < stop, other=0.0), tl.load(weight + k, mask=k < stop, other=0.0)
                inside = (k[None, :, None] < stop) & (h[None, None, :] < n_half)
                word = tl.load(mine + at, mask=inside, other=0)
                below = tl.load(template + of, mask=inside, other=0)
                here = tl.load(template + of + 1, mask=inside, other=0)
                above = tl.load(template + of + 2, mask=inside, other=0)
            r, w = r[None, :, None], w[None, :, None] * STRIDE
            fr = word.to(tl.int32).to(tl.float32, bitcast=True) * w
            fi = (word >> 32).to(tl.int32).to(tl.float32, bitcast=True) * w
            co, si = _phase(r * along)
            even_r = fr * co + fi * si
            even_i = fi * co - fr * si
            odd_r, odd_i = r * even_r, r * even_i
            tr, ti = _pair(below)
            s0 = (s0 + even_r * tr) + even_i * ti
            o0 = (o0 + odd_i * tr) - odd_r * ti
            tr, ti = _pair(here)
            even = even_r * tr + even_i * ti
            s1 += even
            d1 -= r * r * even
            o1 = (o1 + odd_i * tr) - odd_r * ti
            tr, ti = _pair(above)
            s2 = (s2 + even_r * tr) + even_i * ti
            o2 = (o2 + odd_i * tr) - odd_r * ti
        x0 += o0 * ca
        y0 += o0 * sa
        x1 += o1 * ca
        y1 += o1 * sa
        x2 += o2 * ca
        y2 += o2 * sa
        xx += d1 * (ca * ca)
        xy += d1 * (ca * sa)
        yy += d1 * (sa * sa)
    return s0, s1, s2, x0, x1, x2, y0, y1, y2, xx, xy, yy


# Counts that differ from step to step, from batch to batch, or from grid to grid, are compiled for once.
@triton.jit(
    do_not_specialize=[
        "n_candidates", "n_particles", "n_fine", "n_radii", "n_units", "stop_third", "stop_second", "stop", "steps"
    ]
)  # fmt: skip
def _newton(
    samples, centre, row, pose, table, radius, angle, weight, out,
    n_candidates, n_particles, n_fine, n_radii, n_units, stop_third, stop_second, stop,
    limit_x, limit_y, bound_deg, bound_px, slack, steps, settled,
    EVEN: tl.constexpr, CANDIDATES: tl.constexpr, K_BLOCK: tl.constexpr, H_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: CANDIDATES poses of one particle, whose samples they share; tensors are (candidate, radius, angle).

    Programs of one particle follow each other, so that its samples come from the cache after the first. EVEN says
    that blocks leave no rest, so that no load needs a mask, and counts angles by the block, so that words of a row are
    aligned; otherwise `n_units` is the number of angles.
    """
    n_half = n_units * H_BLOCK if EVEN else n_units
    n_groups = (n_candidates + CANDIDATES - 1) // CANDIDATES
    particle = (tl.program_id(0) // n_groups).to(tl.int64)
    number = tl.program_id(0) % n_groups * CANDIDATES + tl.arange(0, CANDIDATES)
    # A group's tail repeats the last candidate: the same value is written twice.
    c = tl.minimum(number, n_candidates - 1).to(tl.int64) * n_particles + particle
    psi = tl.load(pose + 4 * c)
    offset_x = tl.load(pose + 4 * c + 1)
    offset_y = tl.load(pose + 4 * c + 2)
    score = tl.load(pose + 4 * c + 3)
    best = tl.load(pose + 4 * particle + 3)
    behind = score < best - slack * tl.abs(best)
    if tl.min(behind.to(tl.int32), axis=0) == 1:
        tl.store(out + 4 * c, psi)
        tl.store(out + 4 * c + 1, offset_x)
        tl.store(out + 4 * c + 2, offset_y)
        tl.store(out + 4 * c + 3, tl.full((CANDIDATES,), float("-inf"), tl.float32))
        return
    centre_x, centre_y = tl.load(centre + 2 * particle), tl.load(centre + 2 * particle + 1)
    turn = 2 * n_half * n_fine
    step_deg = 360.0 / turn
    mine = samples + particle * (n_radii * n_half)
    templates = table + tl.load(row + c).to(tl.int64) * n_fine * (n_radii * (3 * n_half + 2))
    zero = tl.zeros((CANDIDATES, K_BLOCK, H_BLOCK), tl.float32)
    going, climbs = ~behind, steps > 1
    # Where the score was highest so far, and that score.
    top_psi, top_x, top_y = psi, offset_x, offset_y
    top = tl.full((CANDIDATES,), float("-inf"), tl.float32)
    while steps > 0:
        x = (centre_x + offset_x)[:, None, None]
        y = (centre_y + offset_y)[:, None, None]
        position = tl.floor(psi / step_deg + 0.5).to(tl.int32)
        fine = position % turn
        # The remainder keeps the sign of the dividend.
        fine = tl.where(fine < 0, fine + turn, fine)
        template = templates + fine % n_fine * (n_radii * (3 * n_half + 2)) + fine // n_fine
        template = template[:, None, None]
        sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
        sums = _band(sums, mine, template, radius, angle, weight, x, y, 0, stop_third,
                     n_half, 3, EVEN, CANDIDATES, K_BLOCK, H_BLOCK)  # fmt: skip
        sums = _band(sums, mine, template, radius, angle, weight, x, y, stop_third, stop_second,
                     n_half, 2, EVEN, CANDIDATES, K_BLOCK, H_BLOCK)  # fmt: skip
        sums = _band(sums, mine, template, radius, angle, weight, x, y, stop_second, stop,
                     n_half, 1, EVEN, CANDIDATES, K_BLOCK, H_BLOCK)  # fmt: skip
        # Lanes are added up only here.
        s0, s1, s2, x0, x1, x2, y0, y1, y2, xx, xy, yy = sums
        s0, s1, s2 = _total(s0), _total(s1), _total(s2)
        x0, x1, x2 = _total(x0), _total(x1), _total(x2)
        y0, y1, y2 = _total(y0), _total(y1), _total(y2)
        xx, xy, yy = _total(xx), _total(xy), _total(yy)
        # The negative Hessian in (psi, x, y), by central differences in psi; then `reference_newton.newton_step`.
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
        new_psi = position * step_deg + step_p
        bent = pp * step_p * step_p + xx * step_x * step_x + yy * step_y * step_y
        bent = 0.5 * bent + px * step_p * step_x + py * step_p * step_y + xy * step_x * step_y
        expected = s1 + gp * step_p + x1 * step_x + y1 * step_y - bent
        change = dp * (new_psi - psi) * (new_psi - psi) + dx * step_x * step_x + dy * step_y * step_y
        off = psi - position * step_deg
        here = s1 + off * (gp - 0.5 * off * pp)
        lost = here < top
        ends = ~lost & ((0.5 * change <= settled * tl.abs(here)) | (not climbs))
        rises = going & ~lost
        next_psi = tl.where(lost, 0.5 * (top_psi + psi), new_psi)
        next_x = tl.where(lost, 0.5 * (top_x + offset_x), new_x)
        next_y = tl.where(lost, 0.5 * (top_y + offset_y), new_y)
        top_psi = tl.where(rises, tl.where(ends, new_psi, psi), top_psi)
        top_x = tl.where(rises, tl.where(ends, new_x, offset_x), top_x)
        top_y = tl.where(rises, tl.where(ends, new_y, offset_y), top_y)
        top = tl.where(rises, tl.where(ends, expected, here), top)
        psi, offset_x, offset_y = next_psi, next_x, next_y
        going = going & ~ends
        steps = tl.where(tl.max(going.to(tl.int32), axis=0) == 1, steps - 1, 0)
    tl.store(out + 4 * c, top_psi)
    tl.store(out + 4 * c + 1, top_x)
    tl.store(out + 4 * c + 2, top_y)
    tl.store(out + 4 * c + 3, top)


def newton(
    samples: Tensor,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    templates: FineTemplates,
    rule: NewtonRule,
    particle: Tensor | None = None,
) -> Tensor:
    """Refine candidate poses by Newton steps; see `reference.newton`. The templates' table is its `half_pairs`."""
    samples = samples if particle is None else samples[particle]
    candidates, k_block, h_block, num_warps = MANY if len(row) > 2 else FEW
    n_particles, n_radii, n_half = samples.shape
    out = torch.empty_like(pose, memory_format=torch.contiguous_format)
    strides = [s for s, (first, stop) in zip((3, 2, 1), pairwise((0, *rule.stops)), strict=True) if stop > first]
    even = all(stop % k_block == 0 for stop in rule.stops) and all(n_half % (h_block * s) == 0 for s in strides)
    _newton[(n_particles * triton.cdiv(len(row), candidates),)](
        samples.contiguous().view(torch.int64), centre.contiguous(), row.contiguous(), pose.contiguous(),
        templates.table, templates.radius, templates.angle, templates.weight, out,
        len(row), n_particles, templates.table.shape[1], n_radii, n_half // h_block if even else n_half, *rule.stops,
        *rule.limit_xy_px, rule.most_deg, rule.most_px, rule.slack, rule.steps, SETTLED,
        EVEN=even, CANDIDATES=candidates, K_BLOCK=k_block, H_BLOCK=h_block, num_warps=num_warps,
    )  # fmt: skip
    return out
