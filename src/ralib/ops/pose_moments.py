"""Score of a particle against a posed template, with what a Newton step in rotation and shift needs."""

from __future__ import annotations

import torch
from torch import Tensor

N_MOMENTS = 12


def pose_moments(
    samples: Tensor,
    particle: Tensor,
    shift_xy_px: Tensor,
    table: Tensor,
    row: Tensor,
    position: Tensor,
    radius: Tensor,
    angle: Tensor,
    weight: Tensor,
    angle_stride: int = 1,
) -> Tensor:
    """Moments (c, 12) of c candidates: (S, dS/dx, dS/dy) at three rotations, then d2S/dx2, d2S/dxdy, d2S/dy2.

    samples      (b, K, H) complex64 polar Fourier samples of the particles
    particle     (c,) which particle each candidate is about
    shift_xy_px  (c, 2) shift of the particle, pixels, applied as a phase
    table        (t, F, 2, K, A + H + 2) real and imaginary parts of templates at angles (a + f / F); column 0 is angle
                 -1, columns past A + 1 repeat the first
    row          (c,) which template
    position     (c,) rotation in fine steps (1 / F of an angular sample); the three rotations are one whole sample
                 below it, at it, and one above
    radius       (k,) of the k <= K innermost radii to use, radians per pixel; weight (k,) of their samples
    angle        (H,) radians; of them every `angle_stride`-th is used

    S = sum w Re[F exp(-i r (x cos a + y sin a)) conj(T)]; derivatives in (x, y) are exact.
    """
    if samples.is_cuda:
        from ralib.ops.pose_moments_triton import pose_moments_triton as compute
    else:
        compute = pose_moments_plain
    return compute(samples, particle, shift_xy_px, table, row, position, radius, angle, weight, angle_stride)


def pose_moments_plain(
    samples: Tensor,
    particle: Tensor,
    shift_xy_px: Tensor,
    table: Tensor,
    row: Tensor,
    position: Tensor,
    radius: Tensor,
    angle: Tensor,
    weight: Tensor,
    angle_stride: int = 1,
) -> Tensor:
    """The plain form of `pose_moments`, a chunk of candidates at a time."""
    n_half, n_radii, n_fine = samples.shape[-1], len(radius), table.shape[1]
    angle = angle[::angle_stride]
    fx = (radius[:, None] * torch.cos(angle)).flatten()
    fy = (radius[:, None] * torch.sin(angle)).flatten()
    w = (angle_stride * weight[:, None]).expand(-1, len(angle)).flatten()
    even_basis = torch.stack([w, -w * fx * fx, -w * fx * fy, -w * fy * fy], dim=1)
    odd_basis = torch.stack([w * fx, w * fy], dim=1)
    out = weight.new_empty(len(particle), N_MOMENTS)
    column = torch.arange(0, n_half, angle_stride, device=samples.device)
    chunk = max(1, 400_000 // samples[0].numel())
    for c in range(0, len(particle), chunk):
        cut = slice(c, c + chunk)
        turn = shift_xy_px[cut, :1] * fx + shift_xy_px[cut, 1:] * fy
        mine = samples[particle[cut], :n_radii, ::angle_stride].flatten(1)
        co, si = torch.cos(turn), torch.sin(turn)
        moved_re, moved_im = mine.real * co + mine.imag * si, mine.imag * co - mine.real * si
        fine = position[cut] % (2 * n_half * n_fine)
        template = table[row[cut], fine % n_fine, :, :n_radii]
        for i in range(3):
            at = (fine // n_fine + i)[:, None, None, None] + column
            re, im = template.gather(3, at.expand(-1, 2, n_radii, -1)).flatten(2).unbind(1)
            # d/dx of Re[P exp(-i fx x)] is fx Im[P], the second derivative -fx fx Re[P].
            even = (moved_re * re + moved_im * im) @ even_basis
            odd = (moved_im * re - moved_re * im) @ odd_basis
            out[cut, 3 * i] = even[:, 0]
            out[cut, 3 * i + 1 : 3 * i + 3] = odd
            if i == 1:
                out[cut, 9:] = even[:, 1:]
    return out
