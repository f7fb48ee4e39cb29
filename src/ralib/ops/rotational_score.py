"""The best rotation of many cross spectra at once: the inner loop of the pose search."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def angular_tables(orders: Tensor, n_half: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos(m psi_j) and sin(m psi_j), each (n_half, m), for psi_j = pi (j + 1/2) / n_half."""
    psi = (torch.arange(n_half, device=orders.device, dtype=torch.float64) + 0.5) * (math.pi / n_half)
    turn = psi[:, None] * orders
    return torch.cos(turn).to(dtype), torch.sin(turn).to(dtype)


def rotational_max(
    spectra: Tensor, cosine: Tensor, sine: Tensor, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Best value over rotations of each cross spectrum, and where.

    spectra   (m, g, 2, b): real and imaginary parts of order m, for g pairings of b particles
    penalty   (p, 2, n_half) added to S(+psi) and S(-psi) of pairing g from row g mod p: minus infinity forbids
    returns   value (g, b) float32 and code (g, b) int32: code = 2 j + 1 where the rotation is -psi_j, 2 j where +psi_j,

    of S(psi) = sum_m X_m cos(m psi) + Y_m sin(m psi). With E the cosine and O the sine sum at psi >= 0,
    S(+-psi) = E +- O: half the angles give all.
    """
    if spectra.is_cuda:
        from ralib.ops.rotational_score_triton import rotational_max_triton

        return rotational_max_triton(spectra, cosine, sine, penalty)
    return rotational_max_plain(spectra, cosine, sine, penalty)


def rotational_max_plain(
    spectra: Tensor, cosine: Tensor, sine: Tensor, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The plain form of `rotational_max`, in chunks that stay in a core's cache."""
    n_orders, n_pairs, _, n_particles = spectra.shape
    value = spectra.new_empty(n_pairs, n_particles)
    code = torch.empty(n_pairs, n_particles, dtype=torch.int32, device=spectra.device)
    chunk = max(1, 200_000 // (len(cosine) * n_particles))
    for g in range(0, n_pairs, chunk):
        part = spectra[:, g : g + chunk]
        even = cosine @ part[:, :, 0].reshape(n_orders, -1)
        odd = sine @ part[:, :, 1].reshape(n_orders, -1)
        if penalty is None:
            best, at = (even + odd.abs()).max(dim=0)
            negative = odd.gather(0, at[None])[0] < 0
        else:
            row = torch.arange(g, g + part.shape[1], device=spectra.device) % len(penalty)
            toll = penalty[row].permute(1, 2, 0)[..., None].expand(-1, -1, -1, n_particles).flatten(2)
            plus, minus = even + odd + toll[0], even - odd + toll[1]
            best, at = torch.maximum(plus, minus).max(dim=0)
            negative = minus.gather(0, at[None])[0] > plus.gather(0, at[None])[0]
        value[g : g + chunk] = best.view(-1, n_particles)
        code[g : g + chunk] = (2 * at + negative).view(-1, n_particles).to(torch.int32)
    return value, code


def decode_angle_deg(code: Tensor, n_half: int) -> Tensor:
    """The rotation a code of `rotational_max` stands for, degrees."""
    angle = (code // 2 + 0.5) * (180.0 / n_half)
    return torch.where(code % 2 == 1, -angle, angle)
