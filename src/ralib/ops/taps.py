"""Weighted sums of a few samples of a Hermitian half transform, at fixed places: the gridding step of `polar`."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_taps(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """out[b, p] = sum_t weight[p, t] * values[b, index[p, t]]; a negative index i reads conj(values[b, -1 - i]).

    values (b, f) complex64, index (p, t) int32, weight (p, t) float32; returns (b, p) complex64.
    """
    if values.is_cuda:
        from ralib.ops.taps_triton import gather_taps_triton

        return gather_taps_triton(values, index, weight)
    return gather_taps_plain(values, index, weight)


def gather_taps_plain(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """The plain form: two products with a sparse matrix, one for the real and one for the imaginary parts."""
    n_points, n_taps = index.shape
    conjugate = index < 0
    column = torch.where(conjugate, -1 - index, index).flatten().long()
    start = torch.arange(0, n_points * n_taps + 1, n_taps, device=index.device)
    size = (n_points, values.shape[1])
    signed = torch.where(conjugate, -weight, weight)
    real, imag = (
        torch.sparse_csr_tensor(start, column, w.flatten(), size=size, check_invariants=False) @ part.T.contiguous()
        for w, part in ((weight, values.real), (signed, values.imag))
    )
    return torch.complex(real, imag).T.contiguous()
