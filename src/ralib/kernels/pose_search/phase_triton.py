"""Triton form of `phase`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.pose_search.newton_triton import cos_sin


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


def shifted_parts_triton(
    samples: Tensor, shift_xy_px: Tensor | None, basis: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """See `phase.shifted_parts`."""
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
