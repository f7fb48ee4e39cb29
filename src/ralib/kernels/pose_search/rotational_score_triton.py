"""Triton form of `rotational_score`: two matrix products and a maximum that never leaves the chip."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


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
            toll_plus = tl.where(angle < n_half, 0.0, float("-inf"))
            toll_minus = toll_plus
            if HAS_PENALTY:
                row = penalty + (g % n_penalty) * 2 * n_half + angle
                toll_plus = tl.load(row, mask=angle < n_half, other=float("-inf"))
                toll_minus = tl.load(row + n_half, mask=angle < n_half, other=float("-inf"))
            plus = even + odd + toll_plus[:, None]
            minus = even - odd + toll_minus[:, None]
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


def rotational_max_triton(
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
    """See `rotational_score.rotational_max`."""
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
