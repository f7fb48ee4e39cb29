"""Shift polar Fourier samples and split them into real and imaginary parts, ready for matrix products."""

from __future__ import annotations

import torch
from torch import Tensor


def shifted_parts(
    samples: Tensor, shift_xy_px: Tensor | None, basis: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """Real and imaginary parts (2, b, n_radii, H) of the innermost radii, moved by a shift and scaled to unit norm.

    samples (b, K, H) complex64; shift (b, 2) pixels or None; basis (2, K, H): frequency x and y, radians per pixel.
    The scale of each particle, its root sum of squares, is `part_norm`; without it half precision could overflow.
    """
    if samples.is_cuda:
        from ralib.kernels.pose_search.phase_triton import shifted_parts_triton

        return shifted_parts_triton(samples, shift_xy_px, basis, n_radii, dtype)
    from ralib.kernels.pose_search.phase_numba import shifted_parts_numba

    return shifted_parts_numba(samples, shift_xy_px, basis, n_radii, dtype)


def part_norm(samples: Tensor, n_radii: int) -> Tensor:
    """Root sum of squares (b,) of the innermost radii of each particle; shifts do not change it."""
    inner = torch.view_as_real(samples[:, :n_radii]).flatten(1)
    return torch.linalg.vector_norm(inner, dim=1).clamp(min=1e-30)


def shifted_parts_plain(
    samples: Tensor, shift_xy_px: Tensor | None, basis: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """The plain form of `shifted_parts`."""
    inner = samples[:, :n_radii] / part_norm(samples, n_radii)[:, None, None]
    if shift_xy_px is not None:
        turn = torch.tensordot(shift_xy_px, basis[:2, :n_radii], dims=1)
        co, si = torch.cos(turn), torch.sin(turn)
        real = inner.real * co + inner.imag * si
        imag = inner.imag * co - inner.real * si
    else:
        real, imag = inner.real, inner.imag
    return torch.stack([real, imag]).to(dtype)
