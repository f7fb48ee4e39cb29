"""Score of a particle against a posed template, with what a Newton step in the shift needs."""

from __future__ import annotations

import torch
from torch import Tensor

N_MOMENTS = 6


def pose_moments(
    samples: Tensor,
    particle: Tensor,
    shift_xy_px: Tensor,
    table: Tensor,
    row: Tensor,
    position: Tensor,
    stride: int,
    basis: Tensor,
) -> Tensor:
    """Moments (c, 3, 6) of particles against rotated templates: S, dS/dx, dS/dy, d2S/dx2, d2S/dxdy, d2S/dy2.

    samples      (b, K, H) complex64 polar Fourier samples of the particles
    particle     (c,) which particle each of the c candidates is about
    shift_xy_px  (c, 2) shift of the particle (pixels), applied as a phase
    table        (t, F, K, A + H) complex64: templates at angles a + f / F of the grid; columns past A repeat the first
    row          (c,) which template
    position     (c,) rotation in fine steps (1 / F of an angular sample); the three are position - stride, position,
                 position + stride
    basis        (3, K, H): frequency x and y in radians per pixel, and the weight w of each sample

    The score is S = sum w Re[F exp(-i (fx x + fy y)) conj(T)]; its derivatives in (x, y) are exact.
    """
    if samples.is_cuda:
        from ralib.ops.pose_moments_triton import pose_moments_triton

        return pose_moments_triton(samples, particle, shift_xy_px, table, row, position, stride, basis)
    return pose_moments_plain(samples, particle, shift_xy_px, table, row, position, stride, basis)


def pose_moments_plain(
    samples: Tensor,
    particle: Tensor,
    shift_xy_px: Tensor,
    table: Tensor,
    row: Tensor,
    position: Tensor,
    stride: int,
    basis: Tensor,
) -> Tensor:
    """The plain form of `pose_moments`, a chunk of candidates at a time."""
    n_half = samples.shape[-1]
    n_fine, n_angles = table.shape[1], 2 * n_half
    fx, fy, w = (f.flatten() for f in basis)
    even_basis = torch.stack([w, -w * fx * fx, -w * fx * fy, -w * fy * fy], dim=1)
    odd_basis = torch.stack([w * fx, w * fy], dim=1)
    out = basis.new_empty(len(particle), 3, N_MOMENTS)
    column = torch.arange(n_half, device=samples.device)
    chunk = max(1, 400_000 // samples[0].numel())
    for c in range(0, len(particle), chunk):
        cut = slice(c, c + chunk)
        turn = torch.tensordot(shift_xy_px[cut], basis[:2], dims=1)
        moved = samples[particle[cut]] * torch.polar(torch.ones_like(turn), -turn)
        for i in range(3):
            fine = (position[cut] + (i - 1) * stride) % (n_angles * n_fine)
            templates = table[row[cut], fine % n_fine]
            start = (fine // n_fine)[:, None, None] + column
            window = templates.gather(2, start.expand(-1, templates.shape[1], -1))
            # d/dx of Re[P exp(-i fx x)] is fx Im[P], the second derivative -fx fx Re[P].
            product = (moved * window.conj()).flatten(1)
            s, xx, xy, yy = (product.real @ even_basis).unbind(1)
            x, y = (product.imag @ odd_basis).unbind(1)
            out[cut, i] = torch.stack([s, x, y, xx, xy, yy], dim=1)
    return out
