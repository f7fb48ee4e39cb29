"""CPU form of `phase`: cosines and sines from polynomials, in vector registers."""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.pose_search.newton_numba import TURN
from ralib.kernels.pose_search.phase import part_norm
from ralib.kernels.trig_numba import cos_sin


@numba.njit(fastmath=True, cache=True, nogil=True)
@no_type_check
def _move(samples: Any, shift: Any, basis: Any, norm: Any, out: Any) -> None:
    """Fill out (2, b, p) from samples (b, p) given as pairs, moved by shift (b, 2), over norm (b,)."""
    n_particles, n_points = out.shape[1], out.shape[2]
    for b in range(n_particles):
        x, y, scale = shift[b, 0] * np.float32(TURN), shift[b, 1] * np.float32(TURN), np.float32(1.0) / norm[b]
        mine, real, imag = samples[b], out[0, b], out[1, b]
        for p in range(n_points):
            co, si = cos_sin(basis[0, p] * x + basis[1, p] * y)
            re, im = mine[2 * p] * scale, mine[2 * p + 1] * scale
            real[p] = re * co + im * si
            imag[p] = im * co - re * si


def shifted_parts_numba(
    samples: Tensor, shift_xy_px: Tensor | None, basis: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """See `phase.shifted_parts`."""
    n_particles, _, n_half = samples.shape
    out = torch.empty(2, n_particles, n_radii, n_half)
    shift = torch.zeros(n_particles, 2) if shift_xy_px is None else shift_xy_px
    _move(
        torch.view_as_real(samples).flatten(1).numpy(),
        shift.contiguous().numpy(),
        basis[:2, :n_radii].flatten(1).numpy(),
        part_norm(samples, n_radii).numpy(),
        out.flatten(2).numpy(),
    )
    return out.to(dtype)
