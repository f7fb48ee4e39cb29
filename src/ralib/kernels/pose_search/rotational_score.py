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
    spectra: Tensor, cosine: Tensor, sine: Tensor, penalty: Tensor | None = None, *, rough: bool = False
) -> tuple[Tensor, Tensor]:
    """Best value over positive, and over negative, rotations of each cross spectrum, and where.

    spectra   (m, g, 2, b): real and imaginary parts of order m, for g pairings of b particles
    penalty   (p, 2, n_half) added to S(+psi) and S(-psi) of pairing g from row g mod p: minus infinity forbids
    rough     products may round their factors to 11 bits (TF32) where the device has units for that
    returns   value (g, 2, b) float32 and index j (g, 2, b) int32 of the rotations +psi_j and -psi_j,

    of S(psi) = sum_m X_m cos(m psi) + Y_m sin(m psi). With E the cosine and O the sine sum at psi >= 0,
    S(+-psi) = E +- O: half the angles give all.
    """
    if spectra.is_cuda:
        from ralib.kernels.pose_search.rotational_score_triton import rotational_max_triton

        return rotational_max_triton(spectra, cosine, sine, penalty, rough=rough)
    return rotational_max_plain(spectra, cosine, sine, penalty)


def rotational_max_plain(
    spectra: Tensor, cosine: Tensor, sine: Tensor, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The plain form of `rotational_max`, in chunks that stay in a core's cache."""
    n_orders, n_pairs, _, n_particles = spectra.shape
    value = spectra.new_empty(n_pairs, 2, n_particles)
    index = torch.empty(n_pairs, 2, n_particles, dtype=torch.int32, device=spectra.device)
    chunk = max(1, 200_000 // (len(cosine) * n_particles))
    for g in range(0, n_pairs, chunk):
        part = spectra[:, g : g + chunk]
        even = cosine @ part[:, :, 0].reshape(n_orders, -1)
        odd = sine @ part[:, :, 1].reshape(n_orders, -1)
        row = torch.arange(g, g + part.shape[1], device=spectra.device)
        for sign, score in enumerate((even + odd, even - odd)):
            score = score.view(len(cosine), -1, n_particles)
            if penalty is not None:
                score = score + penalty[row % len(penalty), sign].T[..., None]
            best, at = score.max(dim=0)
            value[g : g + chunk, sign] = best
            index[g : g + chunk, sign] = at.to(torch.int32)
    return value, index


def angle_deg(index: Tensor, sign: Tensor, n_half: int) -> Tensor:
    """The rotation that entry `index` of `rotational_max` stands for, degrees; sign 0 means +psi, 1 means -psi."""
    angle = (index + 0.5) * (180.0 / n_half)
    return torch.where(sign == 1, -angle, angle)
