"""Score of a particle against a posed template, with what a Newton step in the shift needs."""

from __future__ import annotations

import torch
from torch import Tensor

N_MOMENTS = 6


def pose_moments(
    samples: Tensor,
    particle: Tensor,
    phase_xy: Tensor,
    table: Tensor,
    row: Tensor,
    position: Tensor,
    basis: Tensor,
) -> Tensor:
    """Moments (c, 6) of particles against rotated templates: S, dS/dx, dS/dy, d2S/dx2, d2S/dxdy, d2S/dy2.

    samples    (b, K, H) complex64 polar Fourier samples of the particles
    particle   (c,) which particle each of the c candidates is about
    phase_xy   (c, 2) shift of the particle (pixels), applied as a phase
    table      (t, F, K, A + H) complex64: templates at angles (a + f / F) of the grid; columns past A repeat the first
    row        (c,) which template
    position   (c,) rotation in units of the fine grid (1 / F of an angular sample), any integer
    basis      (8, K, H): frequency x and y (radians per pixel), then weight w times 1, fx, fy, fx fx, fx fy, fy fy

    The score is S = sum w Re[F exp(-i (fx x + fy y)) conj(T)], and its derivatives in (x, y) are exact.
    """
    if samples.is_cuda:
        from ralib.ops.pose_moments_triton import pose_moments_triton

        return pose_moments_triton(samples, particle, phase_xy, table, row, position, basis)
    return pose_moments_plain(samples, particle, phase_xy, table, row, position, basis)


def pose_moments_plain(
    samples: Tensor,
    particle: Tensor,
    phase_xy: Tensor,
    table: Tensor,
    row: Tensor,
    position: Tensor,
    basis: Tensor,
) -> Tensor:
    """The plain form of `pose_moments`, a chunk of candidates at a time."""
    n_half = samples.shape[-1]
    n_fine, n_angles = table.shape[1], 2 * n_half
    real_basis = basis[[2, 5, 6, 7]].flatten(1).T
    imag_basis = basis[[3, 4]].flatten(1).T
    out = basis.new_empty(len(particle), N_MOMENTS)
    column = torch.arange(n_half, device=samples.device)
    chunk = max(1, 400_000 // samples[0].numel())
    for c in range(0, len(particle), chunk):
        cut = slice(c, c + chunk)
        turn = torch.tensordot(phase_xy[cut], basis[:2], dims=1)
        moved = samples[particle[cut]] * torch.polar(torch.ones_like(turn), -turn)
        fine = position[cut] % (n_angles * n_fine)
        start = fine // n_fine
        templates = table[row[cut], fine % n_fine]
        window = templates.gather(2, (start[:, None, None] + column).expand(-1, templates.shape[1], -1))
        product = (moved * window.conj()).flatten(1)
        even = product.real @ real_basis
        odd = product.imag @ imag_basis
        # d/dx of Re[P exp(-i fx x)] is fx Im[P], the second derivative -fx fx Re[P].
        out[cut] = torch.stack(
            [even[:, 0], odd[:, 0], odd[:, 1], -even[:, 1], -even[:, 2], -even[:, 3]], dim=1
        )
    return out
