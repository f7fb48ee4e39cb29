"""Weighted sums of a few samples of a Hermitian half transform, at fixed places: the gridding step of `polar`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag


def gather_taps(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """out[b, p] = sum_t weight[p, t] * values[b, index[p, t]]; a negative index i reads conj(values[b, -1 - i]).

    values (b, f) complex64, index (p, t) int32, weight (p, t) float32; returns (b, p) complex64.
    """
    if values.is_cuda:
        from ralib.kernels.pose_search.taps_triton import gather_taps_triton

        return gather_taps_triton(values, index, weight)
    return gather_taps_plain(values, index, weight)


def gather_taps_plain(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """The plain form: two weighted sums over bags of rows, one for the real and one for the imaginary parts."""
    sign = index >> 31  # -1 where the conjugate is meant, else 0
    row, signed = index ^ sign, weight * (1 + 2 * sign)
    table = values.T
    real, imag = (
        embedding_bag(row, part.contiguous(), mode="sum", per_sample_weights=w)
        for part, w in ((table.real, weight), (table.imag, signed))
    )
    return torch.complex(real, imag).T.contiguous()
