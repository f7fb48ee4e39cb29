"""Triton form of `reference.newton`: moments and Newton steps, a few candidates of one particle for each program.

A thread takes four radii of one candidate at a time and goes from angle to angle, over a part of the half circle: what
it has read of the template for one angle serves for the next. Its sums meet those of other threads only at the end.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div
from ralib.kernels.pose_search.fine_templates import QUARTERS, PackedSamples, PackedTemplates, PolarSamples
from ralib.kernels.pose_search.gpu_packing_triton import packed_samples
from ralib.kernels.pose_search.reference_newton import SETTLED, NewtonRule

MANY, FEW = (4, 4, 2, False), (1, 8, 4, True)
"""Candidates of a program, of 32 threads; parts of the half circle, and fours of radii, that it takes at a time; and
whether threads may have no radii left in the last round."""


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
    def phase(radians):
        """Return cosine and sine by the hardware's own instructions, to 4e-7 near 0 and 3e-6 at eight turns."""
        co = tl.inline_asm_elementwise(
            "cos.approx.ftz.f32 $0, $1;", "=f,f", [radians], dtype=tl.float32, is_pure=True, pack=1
        )
        si = tl.inline_asm_elementwise(
            "sin.approx.ftz.f32 $0, $1;", "=f,f", [radians], dtype=tl.float32, is_pure=True, pack=1
        )
        return co, si

    @triton.jit
    def pair(word):
        """Return the two half-precision numbers of 32-bit words, in single precision."""
        return tl.inline_asm_elementwise(
            "{ .reg .b16 low, high; mov.b32 {low, high}, $2; cvt.f32.f16 $0, low; cvt.f32.f16 $1, high; }",
            "=f,=f,r", [word], dtype=(tl.float32, tl.float32), is_pure=True, pack=1,
        )  # fmt: skip

else:

    @triton.jit
    def phase(radians):
        """Return cosine and sine, where there are no such instructions."""
        return cos_sin(radians * 0.15915494309189535)

    @triton.jit
    def pair(word):
        """Return the two half-precision numbers of 32-bit words, in single precision."""
        low = word.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        high = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
        return low, high


@triton.jit
def _total(values):
    """Sums (candidate,) over all threads of a candidate."""
    return tl.sum(tl.sum(values, axis=2), axis=1)


@triton.jit
def _scaled(sums, factor):
    """All sums times a factor."""
    s0, s1, s2, x1, y1, xd, yd, xx, xy, rr = sums
    s0, s1, s2, x1, y1 = factor * s0, factor * s1, factor * s2, factor * x1, factor * y1
    return s0, s1, s2, x1, y1, factor * xd, factor * yd, factor * xx, factor * xy, factor * rr


@triton.jit
def _four(values, CANDIDATES: tl.constexpr, PARTS: tl.constexpr, FOURS: tl.constexpr):
    """The four values (candidate, part, four) side by side in a thread."""
    even, odd = tl.split(tl.reshape(values, (CANDIDATES, PARTS, FOURS, 2, 2)))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def _numbers(words, CANDIDATES: tl.constexpr, PARTS: tl.constexpr, FOURS: tl.constexpr):
    """Real and imaginary parts at four radii."""
    first, second, third, fourth = _four(words, CANDIDATES, PARTS, FOURS)
    return pair(first), pair(second), pair(third), pair(fourth)


@triton.jit
def _angle(sums, mine, below, here, above, radii, along, ca, sa):
    """Adds one angle at four radii: the particle's samples, moved, times the template at three rotations.

    The sums are those of the score at the three rotations; of its slope along x and y, then by how much that differs
    between the outer rotations; and of its curvature xx, xy and xx + yy.
    """
    s0, s1, s2, x1, y1, xd, yd, xx, xy, rr = sums
    slope, apart, bend = tl.zeros_like(s1), tl.zeros_like(s1), tl.zeros_like(s1)
    for u in tl.static_range(4):
        r = radii[u]
        real, imag = mine[u]
        co, si = phase(r * along)
        even_r, even_i = real * co + imag * si, imag * co - real * si
        odd_r, odd_i = r * even_r, r * even_i
        tr, ti = below[u]
        s0 = (s0 + even_r * tr) + even_i * ti
        apart = (apart + odd_i * tr) - odd_r * ti
        tr, ti = above[u]
        s2 = (s2 + even_r * tr) + even_i * ti
        apart = (apart - odd_i * tr) + odd_r * ti
        tr, ti = here[u]
        even = even_r * tr + even_i * ti
        s1 += even
        slope = (slope + odd_i * tr) - odd_r * ti
        bend += r * r * even
    x1 += slope * ca
    y1 += slope * sa
    xd += apart * ca
    yd += apart * sa
    xx += bend * ca * ca
    xy += bend * ca * sa
    return s0, s1, s2, x1, y1, xd, yd, xx, xy, rr + bend


@triton.jit
def _band(
    sums, mine, template, radius, x, y, column, first, stop, n_quarter, n_wide,
    STRIDE: tl.constexpr, TAIL: tl.constexpr, CANDIDATES: tl.constexpr, PARTS: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """Adds the radii from `first` to `stop`, counted in fours, at every STRIDE-th angle.

    TAIL says that threads may have no radii left in the last round: these take the last ones' addresses, and nothing.
    Words lie as `fine_templates` says: eight radii, 4 quarters of the samples or 13 of a template (32 and 104 words),
    all radii (`n_wide` times as many), then the next angle. `column` is the template's at the particle's angle 0.
    """
    SHARE: tl.constexpr = PARTS // 4
    part = n_quarter // SHARE
    quarter = tl.arange(0, PARTS) // SHARE
    start = tl.arange(0, PARTS) % SHARE * part
    next_row = _place(1, 0, n_wide)
    one_angle = 0.125 / n_quarter  # of a turn
    c_step, s_step = cos_sin(STRIDE * one_angle)
    c_start, s_start = cos_sin((quarter * n_quarter + start) * one_angle)
    # As large as the template's for each candidate, though alike: so that threads hold both alike.
    all_alike = tl.zeros((CANDIDATES, PARTS, FOURS, 4), tl.int32)
    for i in range(first, stop, FOURS):
        four = i + tl.arange(0, FOURS)
        inside = (four < stop)[None, None, :, None]
        if TAIL:
            four = tl.minimum(four, stop - 1)
        radii = _four(tl.load(radius + (4 * four)[:, None] + tl.arange(0, 4)[None, :])[None, None, :, :], 1, 1, FOURS)
        within = (four % 2 * 4)[:, None] + tl.arange(0, 4)[None, :]
        at = mine + all_alike + (
            ((start * (n_wide * 4) + quarter) * 8)[None, :, None, None] + ((four // 2) * 32)[None, None, :, None]
            + within[None, None, :, :]
        )  # fmt: skip
        of = template + all_alike + (
            (quarter * 8)[None, :, None, None] + ((four // 2) * 104)[None, None, :, None] + within[None, None, :, :]
        )  # fmt: skip
        ahead = column[:, None, None, None] + start[None, :, None, None]
        row, place = ahead % n_quarter, _place(ahead % n_quarter, ahead // n_quarter, n_wide)
        ca, sa = c_start[None, :, None], s_start[None, :, None]
        if STRIDE < 3:
            below = _numbers(tl.load(of + 8 * place), CANDIDATES, PARTS, FOURS)
        if STRIDE == 1:
            here = _numbers(tl.load(of + 8 * (place + next_row)), CANDIDATES, PARTS, FOURS)
        for _ in range(0, part, STRIDE):
            words = tl.load(at, mask=inside, other=0) if TAIL else tl.load(at)
            if STRIDE == 3:
                below = _numbers(tl.load(of + 8 * place), CANDIDATES, PARTS, FOURS)
            if STRIDE > 1:
                here = _numbers(tl.load(of + 8 * (place + next_row)), CANDIDATES, PARTS, FOURS)
            above = _numbers(tl.load(of + 8 * (place + 2 * next_row)), CANDIDATES, PARTS, FOURS)
            samples = _numbers(words, CANDIDATES, PARTS, FOURS)
            sums = _angle(sums, samples, below, here, above, radii, x * ca + y * sa, ca, sa)
            if STRIDE == 2:
                below = above
            if STRIDE == 1:
                below, here = here, above
            at += STRIDE * n_wide * 32
            row += STRIDE
            ends = row >= n_quarter
            row = tl.where(ends, row - n_quarter, row)
            place += tl.where(ends, _place(STRIDE - n_quarter, 1, n_wide), _place(STRIDE, 0, n_wide))
            ca, sa = ca * c_step - sa * s_step, sa * c_step + ca * s_step
    return sums


@triton.jit
def _place(row, quarter, n_wide):
    """How far apart two places of the templates are, in eights of words: a row is 13 quarters of `n_wide` eights."""
    return row * (n_wide * 13) + quarter


# Counts that differ from step to step, from batch to batch, or from grid to grid, are compiled for once.
@triton.jit(
    do_not_specialize=[
        "n_candidates", "n_particles", "n_fine", "n_quarter", "n_wide", "stop_third", "stop_second", "stop", "steps"
    ]
)  # fmt: skip
def _newton(
    samples, scale, centre, row, pose, table, radius, out,
    n_candidates, n_particles, n_fine, n_quarter, n_wide, stop_third, stop_second, stop,
    limit_x, limit_y, bound_deg, bound_px, slack, steps, settled, unit,
    THINNED: tl.constexpr, TAIL: tl.constexpr, CANDIDATES: tl.constexpr, PARTS: tl.constexpr, FOURS: tl.constexpr,
):  # fmt: skip
    """One program: CANDIDATES poses of one particle, whose samples they share; tensors are (candidate, part, four).

    Programs of one particle follow each other, so that its samples come from the cache after the first. Angles and
    radii are counted in quarters of the half circle and in eights, so that words are known to be aligned.
    """
    n_groups = (n_candidates + CANDIDATES - 1) // CANDIDATES
    particle = (tl.program_id(0) // n_groups).to(tl.int64)
    number = tl.program_id(0) % n_groups * CANDIDATES + tl.arange(0, CANDIDATES)
    # A group's tail repeats the last candidate: the same value is written twice.
    c = tl.minimum(number, n_candidates - 1).to(tl.int64) * n_particles + particle
    # One load of all fields, and one store: for each that there is, Triton goes through the whole kernel.
    field = 2 * tl.arange(0, 2)[:, None] + tl.arange(0, 2)[None, :]
    fields = 4 * c[:, None, None] + field[None, :, :]
    even, odd = tl.split(tl.load(pose + fields))
    psi, offset_y = tl.split(even)
    offset_x, score = tl.split(odd)
    best = tl.load(pose + 4 * particle + 3)
    behind = score < best - slack * tl.abs(best)
    steps = tl.where(tl.min(behind.to(tl.int32), axis=0) == 1, 0, steps)
    centre_x, centre_y = tl.load(centre + 2 * particle), tl.load(centre + 2 * particle + 1)
    turn = 8 * n_quarter * n_fine
    step_deg = 360.0 / turn
    mine = samples + particle * n_quarter * (n_wide * 32)
    templates = table + tl.load(row + c).to(tl.int64) * n_fine * (n_quarter + 2) * (n_wide * 104)
    zero = tl.zeros((CANDIDATES, PARTS, FOURS), tl.float32)
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
        template = (templates + fine % n_fine * (n_quarter + 2) * (n_wide * 104))[:, None, None, None]
        column = fine // n_fine
        sums = (zero, zero, zero, zero, zero, zero, zero, zero, zero, zero)
        if THINNED:
            sums = _band(sums, mine, template, radius, x, y, column, 0, stop_third,
                         n_quarter, n_wide, 3, TAIL, CANDIDATES, PARTS, FOURS)  # fmt: skip
            # Of every third angle, each stands for three; of every second, for two.
            sums = _band(_scaled(sums, 1.5), mine, template, radius, x, y, column, stop_third, stop_second,
                         n_quarter, n_wide, 2, TAIL, CANDIDATES, PARTS, FOURS)  # fmt: skip
            sums = _scaled(sums, 2.0)
        sums = _band(sums, mine, template, radius, x, y, column, stop_second, stop,
                     n_quarter, n_wide, 1, TAIL, CANDIDATES, PARTS, FOURS)  # fmt: skip
        s0, s1, s2, x1, y1, xd, yd, xx, xy, rr = sums
        s0, s1, s2 = _total(s0), _total(s1), _total(s2)
        x1, y1, xd, yd = _total(x1), _total(y1), _total(xd), _total(yd)
        xx, xy, rr = _total(xx), _total(xy), _total(rr)
        # The negative Hessian in (psi, x, y), by central differences in psi; then `reference_newton.newton_step`.
        h = n_fine * step_deg
        gp = (s2 - s0) / (2 * h)
        pp = (2 * s1 - s0 - s2) / (h * h)
        px, py, yy = xd / (2 * h), yd / (2 * h), rr - xx
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
    top *= tl.load(scale + particle) * unit
    tl.store(out + fields, tl.join(tl.join(top_psi, top_y), tl.join(top_x, top)))


def newton(
    samples: PolarSamples,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    templates: PackedTemplates,
    rule: NewtonRule,
    particle: Tensor | None = None,
) -> Tensor:
    """Refine candidate poses by Newton steps; see `reference.newton`.

    Angles and stops come in the blocks that the kernel takes: multiples of 24 angles, or of 8 where none is left out;
    stops that are multiples of 8 radii, or of 4 for up to two candidates. Only the last stop is rounded up, to radii
    at which templates are zero.

    Raises
    ------
    ValueError
        If they do not.
    """
    samples = samples if isinstance(samples, PackedSamples) else packed_samples(samples)
    samples = samples if particle is None else samples[particle]
    candidates, parts, fours, tail = MANY if len(row) > 2 else FEW
    n_particles, n_quarter, n_wide = samples.words.shape[:3]
    n_half = QUARTERS * n_quarter
    block = 4 if tail else 4 * fours
    strides = [s for s, (first, stop) in zip((3, 2, 1), pairwise((0, *rule.stops)), strict=True) if stop > first]
    if any(stop % block for stop in rule.stops[:2]) or any(n_half % (parts * s) for s in strides):
        raise ValueError(f"stops {rule.stops} of {n_half} angles: not in the blocks that the kernel takes")
    stops = [block // 4 * ceil_div(stop, block) for stop in rule.stops]
    out = torch.empty_like(pose, memory_format=torch.contiguous_format)
    _newton[(n_particles * ceil_div(len(row), candidates),)](
        samples.words, samples.scale, centre.contiguous(), row.contiguous(), pose.contiguous(),
        templates.table, templates.radius, out,
        len(row), n_particles, templates.table.shape[1], n_quarter, n_wide, *stops,
        *rule.limit_xy_px, rule.most_deg, rule.most_px, rule.slack, rule.steps, SETTLED, templates.unit,
        THINNED=stops[1] > 0, TAIL=tail, CANDIDATES=candidates, PARTS=parts, FOURS=fours, num_warps=1, maxnreg=72,
    )  # fmt: skip
    return out
