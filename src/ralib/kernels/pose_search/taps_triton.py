"""Triton form of `taps`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


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


def gather_taps_triton(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """See `taps.gather_taps`."""
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
