"""Triton form of `phase`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.ops.phase import part_norm


@triton.jit
def _shifted_parts(
    samples, shift, basis, scale, out, n_particles, n_points, n_inner, HAS_SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    """One program: a block of samples of one particle, read as (real, imaginary) pairs, written as two planes."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    particle = tl.program_id(1).to(tl.int64)
    inside = p < n_inner
    norm = tl.load(scale + particle)
    at = samples + (particle * n_points + p) * 2
    real = tl.load(at, mask=inside, other=0.0) / norm
    imag = tl.load(at + 1, mask=inside, other=0.0) / norm
    if HAS_SHIFT:
        fx = tl.load(basis + p, mask=inside, other=0.0)
        fy = tl.load(basis + n_points + p, mask=inside, other=0.0)
        turn = fx * tl.load(shift + 2 * particle) + fy * tl.load(shift + 2 * particle + 1)
        co = tl.cos(turn)
        si = tl.sin(turn)
        moved = real * co + imag * si
        imag = imag * co - real * si
        real = moved
    to = out + particle * n_inner + p
    tl.store(to, real.to(out.dtype.element_ty), mask=inside)
    tl.store(to + n_particles.to(tl.int64) * n_inner, imag.to(out.dtype.element_ty), mask=inside)


def shifted_parts_triton(
    samples: Tensor, shift_xy_px: Tensor | None, basis: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """See `phase.shifted_parts`."""
    n_particles, n_all, n_half = samples.shape
    if n_particles > 65_535:
        raise ValueError(f"{n_particles} particles at once exceed a launch's 65,535: search in smaller batches")
    out = torch.empty(2, n_particles, n_radii, n_half, dtype=dtype, device=samples.device)
    scale = part_norm(samples, n_radii)
    block = 1024
    grid = (triton.cdiv(n_radii * n_half, block), n_particles)
    _shifted_parts[grid](
        torch.view_as_real(samples.contiguous()),
        scale if shift_xy_px is None else shift_xy_px.contiguous(),
        basis,
        scale,
        out,
        n_particles,
        n_all * n_half,
        n_radii * n_half,
        HAS_SHIFT=shift_xy_px is not None,
        BLOCK=block,
    )
    return out
