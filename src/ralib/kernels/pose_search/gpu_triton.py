"""Triton forms of the functions of `reference`; that of `newton` is in `gpu_newton_triton`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.pose_search.gpu_newton_triton import cos_sin, newton

__all__ = ["gather_taps", "newton", "rotational_max", "shifted_parts", "shortlist"]


# Rows of orders and of particles are read in wide words where their lengths are round: compiled for either.
@triton.jit(do_not_specialize=["n_pairs", "n_half", "n_penalty", "n_angle_blocks"])
def _rotational_max(
    spectra, cosine, sine, penalty, value, index,
    n_orders, n_pairs, n_particles, n_half, n_penalty, n_angle_blocks,
    HAS_PENALTY: tl.constexpr, PRECISION: tl.constexpr, N_ORDER_BLOCKS: tl.constexpr,
    ANGLES: tl.constexpr, ORDERS: tl.constexpr, PARTICLES: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One program: PAIRS pairings of a block of particles, all angles.

    Products are (angles, orders) @ (orders, particles); the running maximum over angles stays in registers.
    """
    b = tl.program_id(1) * PARTICLES + tl.arange(0, PARTICLES)
    m = tl.arange(0, ORDERS)
    a = tl.arange(0, ANGLES)
    order_stride = tl.cast(n_pairs, tl.int64) * 2 * n_particles
    for i in range(PAIRS):
        g = tl.program_id(0) * PAIRS + i
        particles_here = tl.where(g < n_pairs, n_particles, 0)
        column = spectra + g.to(tl.int64) * 2 * n_particles + b[None, :]
        best_plus = tl.full((PARTICLES,), float("-inf"), tl.float32)
        best_minus = tl.full((PARTICLES,), float("-inf"), tl.float32)
        at_plus = tl.zeros((PARTICLES,), tl.int32)
        at_minus = tl.zeros((PARTICLES,), tl.int32)
        for j in range(n_angle_blocks):
            angle = j * ANGLES + a
            even = tl.zeros((ANGLES, PARTICLES), tl.float32)
            odd = tl.zeros((ANGLES, PARTICLES), tl.float32)
            for k in tl.static_range(N_ORDER_BLOCKS):
                order = k * ORDERS + m
                here = (order[:, None] < n_orders) & (b[None, :] < particles_here)
                x = tl.load(column + order[:, None] * order_stride, mask=here, other=0.0)
                y = tl.load(column + order[:, None] * order_stride + n_particles, mask=here, other=0.0)
                table_ok = (angle[:, None] < n_half) & (order[None, :] < n_orders)
                c = tl.load(cosine + angle[:, None] * n_orders + order[None, :], mask=table_ok, other=0.0)
                s = tl.load(sine + angle[:, None] * n_orders + order[None, :], mask=table_ok, other=0.0)
                even = tl.dot(c, x, even, input_precision=PRECISION)
                odd = tl.dot(s, y, odd, input_precision=PRECISION)
            penalty_plus = tl.where(angle < n_half, 0.0, float("-inf"))
            penalty_minus = penalty_plus
            if HAS_PENALTY:
                row = penalty + (g % n_penalty) * 2 * n_half + angle
                penalty_plus = tl.load(row, mask=angle < n_half, other=float("-inf"))
                penalty_minus = tl.load(row + n_half, mask=angle < n_half, other=float("-inf"))
            plus = even + odd + penalty_plus[:, None]
            minus = even - odd + penalty_minus[:, None]
            # The lowest index among equals, so that the answer does not depend on the blocks.
            top = tl.max(plus, axis=0)
            at = tl.min(tl.where(plus == top[None, :], angle[:, None], 2147483647), axis=0)
            at_plus = tl.where(top > best_plus, at, at_plus)
            best_plus = tl.maximum(top, best_plus)
            top = tl.max(minus, axis=0)
            at = tl.min(tl.where(minus == top[None, :], angle[:, None], 2147483647), axis=0)
            at_minus = tl.where(top > best_minus, at, at_minus)
            best_minus = tl.maximum(top, best_minus)
        to = g.to(tl.int64) * 2 * n_particles + b
        tl.store(value + to, best_plus, mask=b < particles_here)
        tl.store(value + to + n_particles, best_minus, mask=b < particles_here)
        tl.store(index + to, at_plus, mask=b < particles_here)
        tl.store(index + to + n_particles, at_minus, mask=b < particles_here)


def rotational_max(
    spectra: Tensor,
    cosine: Tensor,
    sine: Tensor,
    penalty: Tensor | None = None,
    *,
    angles: int = 32,
    particles: int = 64,
    pairs: int = 8,
    num_warps: int = 4,
    rough: bool = False,
) -> tuple[Tensor, Tensor]:
    """Find the maximum over rotations of cross spectra; see `reference.rotational_max`.

    Two matrix products and a maximum, without storing the products.
    """
    n_orders, n_pairs, _, n_particles = spectra.shape
    n_half = len(cosine)
    value = torch.empty(n_pairs, 2, n_particles, dtype=torch.float32, device=spectra.device)
    index = torch.empty(n_pairs, 2, n_particles, dtype=torch.int32, device=spectra.device)
    orders = min(64 if spectra.dtype == torch.float16 else 32, max(16, triton.next_power_of_2(n_orders)))
    grid = (triton.cdiv(n_pairs, pairs), triton.cdiv(n_particles, particles))
    _rotational_max[grid](
        spectra, cosine, sine, cosine if penalty is None else penalty.contiguous(), value, index,
        n_orders, n_pairs, n_particles, n_half, 1 if penalty is None else len(penalty), triton.cdiv(n_half, angles),
        HAS_PENALTY=penalty is not None,
        ORDERS=orders,
        ANGLES=angles,
        N_ORDER_BLOCKS=triton.cdiv(n_orders, orders),
        PARTICLES=particles,
        PAIRS=pairs,
        PRECISION="ieee" if spectra.dtype == torch.float32 and not rough else "tf32",
        num_warps=num_warps,
    )  # fmt: skip
    return value, index


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
    block = max(16, triton.next_power_of_2(n_candidates))
    _shortlist[(n_particles,)](
        row.contiguous(), pose.contiguous(), row_out, pose_out, n_candidates, n_particles, n, *(same or (0.0, 0.0)),
        DISTINCT=same is not None, BLOCK=block, num_warps=1,
    )  # fmt: skip
    return row_out, pose_out


@triton.jit
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
        grid = (triton.cdiv(n_points, block), len(part))
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


@triton.jit
def _shifted_parts(samples, shift, basis, out, n_points, n_inner, HAS_SHIFT: tl.constexpr, BLOCK: tl.constexpr):
    """One program: one particle, read twice as pairs (real, imaginary): for its norm, and to be written as planes."""
    particle = tl.program_id(0).to(tl.int64)
    mine = samples + particle * n_points * 2
    total = tl.zeros((2 * BLOCK,), tl.float32)
    for i in range(0, 2 * n_inner, 2 * BLOCK):
        p = i + tl.arange(0, 2 * BLOCK)
        value = tl.load(mine + p, mask=p < 2 * n_inner, other=0.0)
        total += value * value
    scale = 1.0 / tl.maximum(tl.sqrt(tl.sum(total, axis=0)), 1e-30)
    for i in range(0, n_inner, BLOCK):
        p = i + tl.arange(0, BLOCK)
        inside = p < n_inner
        both = tl.load(mine + 2 * p[:, None] + tl.arange(0, 2)[None, :], mask=inside[:, None], other=0.0) * scale
        real, imag = tl.split(both)
        if HAS_SHIFT:
            fx = tl.load(basis + p, mask=inside, other=0.0)
            fy = tl.load(basis + n_points + p, mask=inside, other=0.0)
            turn = fx * tl.load(shift + 2 * particle) + fy * tl.load(shift + 2 * particle + 1)
            co, si = cos_sin(turn * 0.15915494309189535)
            moved = real * co + imag * si
            imag = imag * co - real * si
            real = moved
        to = out + particle * n_inner + p
        tl.store(to, real.to(out.dtype.element_ty), mask=inside)
        tl.store(to + tl.num_programs(0).to(tl.int64) * n_inner, imag.to(out.dtype.element_ty), mask=inside)


def shifted_parts(
    samples: Tensor, shift_xy_px: Tensor | None, basis: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """Compute real and imaginary parts of shifted samples, of unit norm; see `reference.shifted_parts`."""
    n_particles, n_all, n_half = samples.shape
    out = torch.empty(2, n_particles, n_radii, n_half, dtype=dtype, device=samples.device)
    _shifted_parts[(n_particles,)](
        torch.view_as_real(samples.contiguous()),
        basis if shift_xy_px is None else shift_xy_px.contiguous(),
        basis,
        out,
        n_all * n_half,
        n_radii * n_half,
        HAS_SHIFT=shift_xy_px is not None,
        BLOCK=1024,
    )
    return out
