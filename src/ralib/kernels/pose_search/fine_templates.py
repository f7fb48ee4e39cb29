"""Templates at fine rotations, the table from which Newton steps read: one layout for all forms of the kernels."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

FINE_ROTATIONS = 2
"""Fine rotations per angular sample of the polar grid, at which templates are tabulated."""
TABLE_BYTES = 2**25
"""Templates tabulated at a time, as complex numbers: what that needs besides is several times as much."""


@dataclass(frozen=True)
class FineTemplates:
    """Templates tabulated at fine rotations, with their polar samples.

    Attributes
    ----------
    table : Tensor of shape (t, F, 2, K, A + H + 2)
        Real and imaginary parts of templates at angles (a + f / F), float32; column 0 is angle -1, columns beyond A + 1
        repeat the first. For the Triton form its `half_pairs`.
    radius : Tensor of shape (K,)
        Radii, radians per pixel.
    angle : Tensor of shape (H,)
        Angles of the half circle, radians.
    weight : Tensor of shape (K,)
        Quadrature weights of the radii.
    """

    table: Tensor
    radius: Tensor
    angle: Tensor
    weight: Tensor

    @property
    def step_deg(self) -> float:
        """Degrees between two fine rotations."""
        return 180.0 / (self.table.shape[1] * len(self.angle))


def half_pairs(table: Tensor) -> Tensor:
    """Pack real and imaginary part of each table entry into one word, in half precision.

    Templates have unit norm, so that no entry overflows; rounding changes a score by less than 10^-4 of it.

    Parameters
    ----------
    table : Tensor of shape (t, F, 2, K, C)
        Table of templates.

    Returns
    -------
    Tensor of shape (t, F, K, C)
        Packed table, int32.
    """
    return table.movedim(2, -1).half().contiguous().view(torch.int32)[..., 0]


def rotated_table(spectrum: Tensor, n_half: int, *, mirror: bool, packed: bool = False) -> Tensor:
    """Tabulate templates at fine rotations, in the layout of `newton`.

    Parameters
    ----------
    spectrum : Tensor of shape (k, K, m)
        Angular orders of the templates from 0, at most `n_half`, complex64.
    n_half : int
        Angles H of the half circle; the full one has A = 2 H.
    mirror : bool
        Whether the mirror images of all templates follow.
    packed : bool, default False
        Whether to pack as `half_pairs`.

    Returns
    -------
    Tensor of shape (t, F, 2, K, A + H + 2)
        Float32, t = k or 2 k with mirror images, F = FINE_ROTATIONS; packed (t, F, K, A + H + 2).
    """
    n_angles, n_radii, device = 2 * n_half, spectrum.shape[1], spectrum.device
    spectrum = torch.nn.functional.pad(spectrum, (0, n_half - spectrum.shape[2]))
    turn, sign = _fine_turns(n_half, device)
    planes, dtype = ((), torch.int32) if packed else ((2,), torch.float32)
    shape = ((1 + mirror) * len(spectrum), FINE_ROTATIONS, *planes, n_radii, n_angles + n_half + 2)
    table = torch.empty(shape, dtype=dtype, device=device)
    both = torch.cat([spectrum, spectrum.conj()]) if mirror else spectrum
    group = max(1, TABLE_BYTES // (FINE_ROTATIONS * n_radii * n_angles * 8))
    for i in range(0, len(both), group):
        positive = both[i : i + group, None] * turn
        # A real image: order -m is (-1)^m times the conjugate of order m.
        negative = (positive[..., 1:].conj() * sign).flip(-1)
        full = torch.cat([positive, torch.zeros_like(positive[..., :1]), negative], dim=-1)
        circle = torch.fft.ifft(full, dim=-1, norm="forward")
        wrapped = torch.cat([circle[..., -1:], circle, circle[..., : n_half + 1]], dim=-1)
        parts = torch.view_as_real(wrapped).movedim(-1, 2)
        table[i : i + group] = half_pairs(parts) if packed else parts
    return table


@functools.lru_cache(maxsize=8)
def _fine_turns(n_half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Phase factors (F, 1, H) of the fine rotations at each angular order, and (-1)^m (H - 1,) of the orders m > 0."""
    m = torch.arange(n_half, device=device)
    fraction = torch.arange(FINE_ROTATIONS, device=device) * (math.pi / (FINE_ROTATIONS * n_half))
    turn = torch.polar(torch.ones(FINE_ROTATIONS, n_half, device=device), fraction[:, None] * m)
    return turn[:, None], 1.0 - 2.0 * (m[1:] % 2)
