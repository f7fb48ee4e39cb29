"""Triton forms of the functions of `reference`; that of `newton` is in `gpu_newton_triton`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment, var-annotated"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div, next_power_of_2
from ralib.kernels.pose_search.fine_templates import QUARTERS, PackedSamples
from ralib.kernels.pose_search.gpu_newton_triton import cos_sin, newton, pair, phase
from ralib.kernels.pose_search.gpu_packing_triton import packed_samples, packed_templates, word_offset

__all__ = [
    "gather_taps",
    "grid_candidates",
    "newton",
    "packed_samples",
    "packed_templates",
    "rotational_max",
    "shifted_parts",
    "shortlist",
]


MOST_HELD = 4
"""Blocks of angles whose tables a program holds."""


@triton.jit
def _tables(cosine, sine, angle, order, n_orders):
    """Cosines and sines of a block (angle, order)."""
    inside = order[None, :] < n_orders
    at = angle[:, None] * n_orders + order[None, :]
    return tl.load(cosine + at, mask=inside, other=0.0), tl.load(sine + at, mask=inside, other=0.0)


@triton.jit
def _spectra(column, order, order_stride, n_orders, n_particles, inside):
    """X and Y of a block (order, particle)."""
    here = (order[:, None] < n_orders) & inside[None, :]
    at = column + order[:, None] * order_stride
    return tl.load(at, mask=here, other=0.0), tl.load(at + n_particles, mask=here, other=0.0)


@triton.jit
def _marked(score, angle, low_bits):
    """Scores whose lowest bits say the angle; of excluded rotations no number, which no maximum takes."""
    bits = score.to(tl.int32, bitcast=True)
    return ((bits & ~low_bits) | angle[:, None]).to(tl.float32, bitcast=True)


@triton.jit
def _raised(best, even, odd, angle, row, n_half, low_bits, HAS_PENALTY: tl.constexpr):
    """The maxima over blocks of angles so far, one for each place in a block, with a block more."""
    best_plus, best_minus = best
    plus, minus = even + odd, even - odd
    if HAS_PENALTY:
        plus += tl.load(row + angle)[:, None]
        minus += tl.load(row + n_half + angle)[:, None]
    plus, minus = _marked(plus, angle, low_bits), _marked(minus, angle, low_bits)
    return tl.maximum(plus, best_plus), tl.maximum(minus, best_minus)


# Rows of orders and of particles are read in wide words where their lengths are round: compiled for either.
@triton.jit(do_not_specialize=["n_pairs", "n_half", "n_penalty", "n_angle_blocks", "low_bits"])
def _rotational_max(
    spectra, cosine, sine, penalty, value, index,
    n_orders, n_pairs, n_particles, n_half, n_penalty, n_angle_blocks, low_bits,
    HAS_PENALTY: tl.constexpr, PRECISION: tl.constexpr, N_ORDER_BLOCKS: tl.constexpr, HELD: tl.constexpr,
    ANGLES: tl.constexpr, ORDERS: tl.constexpr, PARTICLES: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One program: PAIRS pairings of a block of particles, all angles.

    Products are (angles, orders) @ (orders, particles); the running maximum over angles stays in registers. Where all
    orders are one block, the tables of HELD blocks of angles stay for all pairings, and spectra for all angles. The
    last block is filled up with the last angle.
    """
    b = tl.program_id(1) * PARTICLES + tl.arange(0, PARTICLES)
    m = tl.arange(0, ORDERS)
    a = tl.arange(0, ANGLES)
    order_stride = tl.cast(n_pairs, tl.int64) * 2 * n_particles
    tables = ()
    for j in tl.static_range(HELD):
        angle = tl.minimum(j * ANGLES + a, n_half - 1)
        tables = tables + (_tables(cosine, sine, angle, m, n_orders),)  # noqa: RUF005
    for i in range(PAIRS):
        g = tl.program_id(0) * PAIRS + i
        inside = b < tl.where(g < n_pairs, n_particles, 0)
        to = g.to(tl.int64) * 2 * n_particles + b
        row = penalty + (g % n_penalty) * 2 * n_half
        low = tl.full((ANGLES, PARTICLES), float("-inf"), tl.float32)
        best = (low, low)
        if HELD > 0:
            x, y = _spectra(spectra + to[None, :], m, order_stride, n_orders, n_particles, inside)
            for j in tl.static_range(HELD):
                angle = tl.minimum(j * ANGLES + a, n_half - 1)
                c, s = tables[j]
                even, odd = tl.dot(c, x, input_precision=PRECISION), tl.dot(s, y, input_precision=PRECISION)
                best = _raised(best, even, odd, angle, row, n_half, low_bits, HAS_PENALTY)
        else:
            for j in range(n_angle_blocks):
                angle = tl.minimum(j * ANGLES + a, n_half - 1)
                even = tl.zeros((ANGLES, PARTICLES), tl.float32)
                odd = tl.zeros((ANGLES, PARTICLES), tl.float32)
                for k in tl.static_range(N_ORDER_BLOCKS):
                    order = k * ORDERS + m
                    x, y = _spectra(spectra + to[None, :], order, order_stride, n_orders, n_particles, inside)
                    c, s = _tables(cosine, sine, angle, order, n_orders)
                    even = tl.dot(c, x, even, input_precision=PRECISION)
                    odd = tl.dot(s, y, odd, input_precision=PRECISION)
                best = _raised(best, even, odd, angle, row, n_half, low_bits, HAS_PENALTY)
        for sign in tl.static_range(2):
            bits = tl.max(best[sign], axis=0).to(tl.int32, bitcast=True)
            tl.store(value + to + sign * n_particles, (bits & ~low_bits).to(tl.float32, bitcast=True), mask=inside)
            tl.store(index + to + sign * n_particles, bits & low_bits, mask=inside)


def rotational_max(
    spectra: Tensor,
    cosine: Tensor,
    sine: Tensor,
    penalty: Tensor | None = None,
    *,
    angles: int = 16,
    particles: int = 64,
    pairs: int | None = None,
    num_warps: int = 2,
    num_stages: int = 3,
) -> tuple[Tensor, Tensor]:
    """Find the maximum over rotations of cross spectra; see `reference.rotational_max`.

    Two matrix products and a maximum, without storing the products. Scores are rounded to some 2^-16 of themselves:
    their last bits tell the rotation.
    """
    n_orders, n_pairs, _, n_particles = spectra.shape
    n_half = len(cosine)
    pairs = pairs or (32 if n_pairs >= 1024 else 8)
    value = torch.empty(n_pairs, 2, n_particles, dtype=torch.float32, device=spectra.device)
    index = torch.empty(n_pairs, 2, n_particles, dtype=torch.int32, device=spectra.device)
    orders = min(64 if spectra.dtype == torch.float16 else 32, max(16, next_power_of_2(n_orders)))
    n_angle_blocks = ceil_div(n_half, angles)
    held = n_angle_blocks if n_orders <= orders and n_angle_blocks <= MOST_HELD else 0
    grid = (ceil_div(n_pairs, pairs), ceil_div(n_particles, particles))
    _rotational_max[grid](
        spectra, cosine, sine, cosine if penalty is None else penalty.contiguous(), value, index,
        n_orders, n_pairs, n_particles, n_half, 1 if penalty is None else len(penalty), n_angle_blocks,
        next_power_of_2(n_half) - 1,
        HAS_PENALTY=penalty is not None,
        HELD=held,
        ORDERS=orders,
        ANGLES=angles,
        N_ORDER_BLOCKS=ceil_div(n_orders, orders),
        PARTICLES=particles,
        PAIRS=pairs,
        PRECISION="ieee" if spectra.dtype == torch.float32 else "tf32",
        num_warps=num_warps,
        num_stages=num_stages,
    )  # fmt: skip
    return value, index


MOST_ROWS = 8192
"""Grid poses of a particle that one program chooses from: as many as registers hold."""


@triton.jit(do_not_specialize=["n_rows", "n_chunk", "n_particles", "stride", "n_kept"])
def _top_rows(value, out, n_rows, n_chunk, n_particles, stride, n_kept, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """One program: the rows of the n_kept highest values of one particle, in a chunk of n_chunk rows.

    The lowest of these values is found by halving an interval: how many values lie above is counted in registers. It
    begins with the lowest of the maxima of GROUPS parts, at least n_kept, if there are as many rows. Of values equal to
    the lowest the first are taken.
    """
    particle = tl.program_id(0)
    chunk = tl.program_id(1)
    i = tl.arange(0, BLOCK)
    row = chunk * n_chunk + i
    here = (i < n_chunk) & (row < n_rows)
    bits = tl.load(value + row.to(tl.int64) * stride + particle, mask=here, other=0.0).to(tl.int32, bitcast=True)
    # Integers in the order of the numbers.
    key = tl.where(here, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), -2147483648)
    if GROUPS > 0:
        low = tl.min(tl.max(tl.reshape(key, (BLOCK // GROUPS, GROUPS)), axis=0), axis=0).to(tl.int64)
    else:
        low = tl.min(tl.where(here, key, 2147483647), axis=0).to(tl.int64)
    high = tl.max(key, axis=0).to(tl.int64)
    while low < high:
        middle = low + (high - low + 1) // 2
        above = tl.sum((key >= middle.to(tl.int32)).to(tl.int32), axis=0)
        enough = above >= n_kept
        high = tl.where(above == n_kept, middle, tl.where(enough, high, middle - 1))
        low = tl.where(enough, middle, low)
    threshold = low.to(tl.int32)
    over = key > threshold
    level = here & (key == threshold)
    left = n_kept - tl.sum(over.to(tl.int32), axis=0)
    chosen = over | (level & (tl.cumsum(level.to(tl.int32), axis=0) <= left))
    place = chunk * n_kept + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(out + place.to(tl.int64) * n_particles + particle, row, mask=chosen)


@triton.jit(do_not_specialize=["n", "n_particles", "stride", "index_stride", "n_pairings", "first", "n_references"])
def _grid_poses(
    at, value, index, pairings, row_out, pose_out,
    n, n_particles, stride, index_stride, n_pairings, first, n_references, step_deg, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK of the (candidate, particle) poses chosen."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < n
    particle = i % n_particles
    row = tl.load(at + i, mask=here, other=0).to(tl.int64)
    score = tl.load(value + row * stride + particle, mask=here)
    angle = tl.load(index + row * index_stride + particle, mask=here, other=0)
    pairing = pairings + 4 * (row % n_pairings)
    x, y = tl.load(pairing, mask=here, other=0.0), tl.load(pairing + 1, mask=here, other=0.0)
    mirror, sign = tl.load(pairing + 2, mask=here, other=0.0), tl.load(pairing + 3, mask=here, other=0.0)
    psi = (angle.to(tl.float32) + 0.5) * step_deg
    psi = tl.where(sign == 1.0, -psi, psi)
    co, si = cos_sin(psi / 360.0)
    tl.store(row_out + i, first + row // n_pairings + n_references * mirror.to(tl.int64), mask=here)
    tl.store(pose_out + 4 * i, psi, mask=here)
    tl.store(pose_out + 4 * i + 1, co * x + si * y, mask=here)
    tl.store(pose_out + 4 * i + 2, co * y - si * x, mask=here)
    tl.store(pose_out + 4 * i + 3, score, mask=here)


def grid_candidates(
    value: Tensor, index: Tensor, pairings: Tensor, n: int, *, n_half: int, first: int, n_references: int
) -> tuple[Tensor, Tensor]:
    """Select the best grid poses of every particle; see `reference.grid_candidates`."""
    value, index = value.flatten(0, 1), index.flatten(0, 1)
    n_rows, n_particles = value.shape
    n = min(n, n_rows)
    n_chunks = ceil_div(n_rows, MOST_ROWS)
    n_chunk = ceil_div(n_rows, n_chunks)
    block = next_power_of_2(n_chunk)
    groups = next_power_of_2(n)
    if groups > n_rows - (n_chunks - 1) * n_chunk:  # of the last chunk, which is the smallest
        groups = 0
    at = torch.empty(n_chunks * n, n_particles, dtype=torch.int32, device=value.device)
    _top_rows[(n_particles, n_chunks)](
        value, at, n_rows, n_chunk, n_particles, value.stride(0), n, GROUPS=groups, BLOCK=block,
        num_warps=min(max(block // 1024, 1), 8), maxnreg=80,
    )  # fmt: skip
    row = torch.empty(at.shape, dtype=torch.int64, device=value.device)
    pose = torch.empty(*at.shape, 4, dtype=torch.float32, device=value.device)
    _grid_poses[(ceil_div(at.numel(), 256),)](
        at, value, index, pairings.contiguous(), row, pose,
        at.numel(), n_particles, value.stride(0), index.stride(0), len(pairings), first, n_references, 180.0 / n_half,
        BLOCK=256,
    )  # fmt: skip
    return row, pose


@triton.jit
def _wrapped(degrees):
    return degrees - 360.0 * tl.floor(degrees / 360.0 + 0.5)


@triton.jit(do_not_specialize=["n_candidates", "n_particles", "n_kept"])
def _shortlist(
    row, pose, row_out, pose_out, n_candidates, n_particles, n_kept, same_deg, same_px,
    DISTINCT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one particle. A candidate's place is the number of those before it, counted one by one."""
    particle = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    here = i < n_candidates
    at = i.to(tl.int64) * n_particles + particle
    template = tl.load(row + at, mask=here, other=-1)
    psi = tl.load(pose + 4 * at, mask=here, other=0.0)
    x = tl.load(pose + 4 * at + 1, mask=here, other=0.0)
    y = tl.load(pose + 4 * at + 2, mask=here, other=0.0)
    score = tl.load(pose + 4 * at + 3, mask=here, other=float("-inf"))
    score = tl.where(score == score, score, float("-inf"))
    if DISTINCT:
        lost = i < 0
        for j in range(n_candidates):
            other = tl.cast(j, tl.int64) * n_particles + particle
            near = template == tl.load(row + other)
            near &= tl.abs(_wrapped(psi - tl.load(pose + 4 * other))) < same_deg
            near &= tl.abs(x - tl.load(pose + 4 * other + 1)) < same_px
            near &= tl.abs(y - tl.load(pose + 4 * other + 2)) < same_px
            its = tl.load(pose + 4 * other + 3)
            lost |= near & ((its > score) | ((its == score) & (j < i)))
        score = tl.where(lost, float("-inf"), score)
    place = tl.zeros((BLOCK,), tl.int32)
    for j in range(n_candidates):
        its = tl.max(tl.where(i == j, score, float("-inf")), axis=0)
        place += ((its > score) | ((its == score) & (j < i))).to(tl.int32)
    kept = here & (place < n_kept)
    to = place.to(tl.int64) * n_particles + particle
    tl.store(row_out + to, template, mask=kept)
    tl.store(pose_out + 4 * to, psi, mask=kept)
    tl.store(pose_out + 4 * to + 1, x, mask=kept)
    tl.store(pose_out + 4 * to + 2, y, mask=kept)
    tl.store(pose_out + 4 * to + 3, score, mask=kept)


def shortlist(row: Tensor, pose: Tensor, n: int, same: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """Select the best few of every particle's candidate poses; see `reference.shortlist`."""
    n_candidates, n_particles = row.shape
    n = min(n, n_candidates)
    row_out, pose_out = row.new_empty(n, n_particles), pose.new_empty(n, n_particles, 4)
    block = max(16, next_power_of_2(n_candidates))
    _shortlist[(n_particles,)](
        row.contiguous(), pose.contiguous(), row_out, pose_out, n_candidates, n_particles, n, *(same or (0.0, 0.0)),
        DISTINCT=same is not None, BLOCK=block, num_warps=1,
    )  # fmt: skip
    return row_out, pose_out


@triton.jit(do_not_specialize=["n_values"])
def _gather_taps(values, index, weight, out, n_values, n_points, N_TAPS: tl.constexpr, BLOCK: tl.constexpr):
    """One program: BLOCK points of one image. `values` and `out` are interleaved (real, imaginary) pairs."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    image = tl.program_id(1).to(tl.int64)
    inside = p < n_points
    real = tl.zeros((BLOCK,), tl.float32)
    imag = tl.zeros((BLOCK,), tl.float32)
    base = values + image * n_values * 2
    for t in range(N_TAPS):
        i = tl.load(index + t * n_points + p, mask=inside, other=0)
        w = tl.load(weight + t * n_points + p, mask=inside, other=0.0)
        at = tl.where(i < 0, -1 - i, i) * 2
        real += w * tl.load(base + at, mask=inside, other=0.0)
        imag += tl.where(i < 0, -w, w) * tl.load(base + at + 1, mask=inside, other=0.0)
    to = out + (image * n_points + p) * 2
    tl.store(to, real, mask=inside)
    tl.store(to + 1, imag, mask=inside)


def gather_taps(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Compute weighted sums of a few samples of a half transform; see `reference.gather_taps`."""
    n_images, n_values = values.shape
    n_points, n_taps = index.shape
    out = torch.empty(n_images, n_points, dtype=torch.complex64, device=values.device)
    block = 256
    # The grid's second axis holds at most 65,535 programs.
    for i in range(0, n_images, 65_535):
        part = torch.view_as_real(values[i : i + 65_535].contiguous())
        grid = (ceil_div(n_points, block), len(part))
        _gather_taps[grid](
            part,
            index.T.contiguous(),
            weight.T.contiguous(),
            torch.view_as_real(out[i : i + 65_535]),
            n_values,
            n_points,
            N_TAPS=n_taps,
            BLOCK=block,
        )
    return out


# Radii and angles in blocks: read with radii side by side, written with angles.
@triton.jit(do_not_specialize=["n_radii", "n_quarter", "n_wide", "n_particles"])
def _shifted_parts(
    words, shift, radius, out, n_radii, n_quarter, n_wide, n_particles, factor,
    HAS_SHIFT: tl.constexpr, K_BLOCK: tl.constexpr, H_BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one particle."""
    particle = tl.program_id(0).to(tl.int64)
    n_half = 4 * n_quarter
    mine = words + particle * (n_wide * 8) * n_half
    if HAS_SHIFT:
        x, y = tl.load(shift + 2 * particle), tl.load(shift + 2 * particle + 1)
    for j in range(0, n_half, H_BLOCK):
        h = j + tl.arange(0, H_BLOCK)
        if HAS_SHIFT:
            ca, sa = cos_sin(h * (0.5 / n_half))
            along = x * ca + y * sa
        for i in range(0, n_radii, K_BLOCK):
            k = i + tl.arange(0, K_BLOCK)
            inside = (h[:, None] < n_half) & (k[None, :] < n_radii)
            word = tl.load(mine + word_offset(h[:, None], k[None, :], n_quarter, n_wide), mask=inside, other=0)
            real, imag = pair(word)
            if HAS_SHIFT:
                r = tl.load(radius + k, mask=k < n_radii, other=0.0)
                co, si = phase(along[:, None] * r[None, :])
                moved = real * co + imag * si
                imag = imag * co - real * si
                real = moved
            to = out + (particle * n_radii + k[:, None]) * n_half + h[None, :]
            inside = (h[None, :] < n_half) & (k[:, None] < n_radii)
            tl.store(to, tl.trans((real * factor).to(out.dtype.element_ty)), mask=inside)
            to += tl.cast(n_particles, tl.int64) * n_radii * n_half
            tl.store(to, tl.trans((imag * factor).to(out.dtype.element_ty)), mask=inside)


def shifted_parts(
    samples: PackedSamples, shift_xy_px: Tensor | None, radius: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """Compute real and imaginary parts of shifted samples, of about unit norm; see `reference.shifted_parts`."""
    n_particles, n_quarter, n_wide = samples.words.shape[:3]
    n_half = QUARTERS * n_quarter
    out = torch.empty(2, n_particles, n_radii, n_half, dtype=dtype, device=samples.words.device)
    _shifted_parts[(n_particles,)](
        samples.words, radius if shift_xy_px is None else shift_xy_px.contiguous(), radius, out,
        n_radii, n_quarter, n_wide, n_particles, (n_radii * n_half) ** -0.5,
        HAS_SHIFT=shift_xy_px is not None, K_BLOCK=16, H_BLOCK=64,
    )  # fmt: skip
    return out
