"""Newton steps of candidate poses, off the grid: exact in the shift, quadratic in the rotation.

The score of a pose is S = sum w Re[F exp(-i r (x cos a + y sin a)) conj(T)] over polar samples of radius r and angle
a: F the particle's, T the rotated template's, (x, y) the particle's shift.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

N_MOMENTS = 12
SETTLED = 3e-5
"""A step that changes the score by less, by its quadratic form and as a fraction of the score, is a pose's last."""


def newton(
    samples: Tensor,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    table: Tensor,
    radius: Tensor,
    angle: Tensor,
    weight: Tensor,
    stops: tuple[int, int, int],
    limit_xy_px: tuple[float, float],
    bound: tuple[float, float],
    slack: float = math.inf,
    steps: int = 1,
) -> Tensor:
    """Poses (c, b, 4), psi in degrees, x, y in pixels, score, after a step or a climb from such poses.

    One step ends at the score that it promises. With more, a pose climbs until a step changes next to nothing, halving
    steps that lost; one that does not get there ends where its score was highest, with what that was.

    A pose whose score lies behind the particle's first one's by more than the fraction `slack` takes no step: it keeps
    its place and loses its score, to minus infinity.

    samples      (b, K, H) complex64 polar Fourier samples of the particles
    centre       (b, 2) origin the offsets x, y count from
    row          (c, b) which template
    table        (t, F, 2, K, A + H + 2) real and imaginary parts of templates at angles (a + f / F); column 0 is angle
                 -1, columns past A + 1 repeat the first. On a GPU its `half_pairs`
    radius       (K,) radians per pixel; weight (K,) of the samples; angle (H,) radians
    stops        below the first of these radii every third angle is used, from there to the second every second one,
                 from there to the last all; none beyond. See `angle_stops`
    limit_xy_px  how far offsets may go; bound: degrees and pixels that one step may go
    """
    given = (samples, centre, row, pose, table, radius, angle, weight, stops, limit_xy_px, bound)
    if samples.is_cuda:
        from ralib.kernels.pose_search.newton_triton import newton_triton

        return newton_triton(*given, slack, steps)
    from ralib.kernels.pose_search.newton_numba import newton_numba

    return newton_numba(*given, slack, steps)


Step = tuple[Tensor, Tensor, Tensor]
"""Poses (c, b, 4) after a step, by how much it changes the score (c, b), and the score before it (c, b)."""


def climbed(one_step: Callable[[Tensor], Step], pose: Tensor, slack: float, steps: int) -> Tensor:
    """Poses (c, b, 4) after the steps of `newton`; the hopeless keep their place."""
    if steps == 1:
        return _only_hopeful(one_step(pose)[0], pose, slack)
    going, now = torch.ones_like(pose[..., 3], dtype=torch.bool), pose
    highest = torch.cat([pose[..., :3], torch.full_like(pose[..., 3:], -math.inf)], dim=-1)
    for _ in range(steps):
        after, change, score = one_step(now)
        lost = score < highest[..., 3]
        settled = ~lost & (change <= SETTLED * score.abs())
        risen = torch.where(settled[..., None], after, torch.cat([now[..., :3], score[..., None]], dim=-1))
        now = torch.where(lost[..., None], 0.5 * (highest + now), after)
        highest = torch.where((going & ~lost)[..., None], risen, highest)
        going &= ~settled
        if not going.any():
            break
    return _only_hopeful(highest, pose, slack)


def _only_hopeful(stepped: Tensor, pose: Tensor, slack: float) -> Tensor:
    """Stepped poses; where the score before lay too far behind the first one's, the pose before, without a score."""
    score = pose[..., 3]
    behind = (score < score[0] - slack * score[0].abs())[..., None]
    return torch.where(behind, torch.cat([pose[..., :3], torch.full_like(pose[..., 3:], -math.inf)], dim=-1), stepped)


def half_pairs(table: Tensor) -> Tensor:
    """A table (t, F, 2, K, C) with both parts of an entry in one word: (t, F, K, C) int32, each part half precision.

    Templates have unit norm, so that no entry overflows; rounding moves a score by less than 10^-4 of it.
    """
    return table.movedim(2, -1).half().contiguous().view(torch.int32)[..., 0]


def newton_plain(
    samples: Tensor,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    table: Tensor,
    radius: Tensor,
    angle: Tensor,
    weight: Tensor,
    stops: tuple[int, int, int],
    limit_xy_px: tuple[float, float],
    bound: tuple[float, float],
    slack: float = math.inf,
    steps: int = 1,
) -> Tensor:
    """The plain form of `newton`."""
    step_deg = 180.0 / (table.shape[1] * len(angle))
    particle = torch.arange(len(samples), device=samples.device).expand_as(row).flatten()

    def one_step(pose: Tensor) -> Step:
        position = torch.floor(pose[..., 0] / step_deg + 0.5).long()
        shift = (centre + pose[..., 1:3]).flatten(0, 1)
        which = (samples, particle, shift, table, row.flatten(), position.flatten())
        moments = pose_moments(*which, radius, angle, weight, stops).view(*position.shape, -1)
        return stepped(moments, pose, position, step_deg, table.shape[1], limit_xy_px, bound)

    return climbed(one_step, pose, slack, steps)


def stepped(
    moments: Tensor,
    pose: Tensor,
    position: Tensor,
    step_deg: float,
    n_fine: int,
    limit_xy_px: tuple[float, float],
    bound: tuple[float, float],
) -> Step:
    """The step that moments (c, b, 12) at the fine angular positions (c, b) next to poses (c, b, 4) call for."""
    gradient, curvature = derivatives(moments, n_fine * step_deg)
    limit = pose.new_tensor(limit_xy_px)
    gradient, curvature = held_at_limit(gradient, curvature, pose[..., 1:3], limit)
    step = newton_step(gradient, curvature)
    most = step.new_tensor([bound[0], bound[1], bound[1]])
    step = step * (most / step.abs().clamp(min=1e-12)).amin(-1, keepdim=True).clamp(max=1.0)
    offset = torch.clamp(pose[..., 1:3] + step[..., 1:], -limit, limit)
    step = torch.cat([step[..., :1], offset - pose[..., 1:3]], dim=-1)
    score = moments[..., 3] + expected_gain(gradient, curvature, step)
    after = torch.cat([(position * step_deg + step[..., 0])[..., None], offset, score[..., None]], dim=-1)
    # By the diagonal of the quadratic form, also where that is no maximum's.
    bend = torch.stack([curvature[0], curvature[3], curvature[5]], dim=-1).abs()
    change = 0.5 * (bend * (after - pose)[..., :3].square()).sum(-1)
    off = pose[..., 0] - position * step_deg
    return after, change, moments[..., 3] + off * (gradient[..., 0] + 0.5 * off * curvature[0])


def derivatives(moments: Tensor, h_deg: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradient (..., 3) in (psi, x, y), and second derivatives psi psi, psi x, psi y, x x, x y, y y, from moments."""
    below, here, above, second = moments.split(3, dim=-1)
    per_deg = 1.0 / h_deg
    gradient = torch.stack([0.5 * per_deg * (above[..., 0] - below[..., 0]), here[..., 1], here[..., 2]], dim=-1)
    psi_psi = per_deg**2 * (above[..., 0] - 2 * here[..., 0] + below[..., 0])
    psi_x = 0.5 * per_deg * (above[..., 1] - below[..., 1])
    psi_y = 0.5 * per_deg * (above[..., 2] - below[..., 2])
    return gradient, (psi_psi, psi_x, psi_y, *second.unbind(-1))


def held_at_limit(
    gradient: Tensor, curvature: tuple[Tensor, ...], offset: Tensor, limit: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same where an offset at its limit would go on outwards: that coordinate is out of the problem."""
    free = ((offset.abs() < limit) | (offset * gradient[..., 1:] < 0)).to(gradient.dtype)
    x, y = free.unbind(-1)
    pp, px, py, xx, xy, yy = curvature
    gradient = torch.cat([gradient[..., :1], gradient[..., 1:] * free], dim=-1)
    return gradient, (pp, px * x, py * y, xx, xy * x * y, yy)


def newton_step(gradient: Tensor, curvature: tuple[Tensor, ...]) -> Tensor:
    """-H^-1 g by cofactors where H is negative definite; elsewhere each coordinate steps by itself."""
    a, b, c, d, e, f = (-h for h in curvature)
    c00, c01, c02 = d * f - e * e, c * e - b * f, b * e - c * d
    c11, c12, c22 = a * f - c * c, b * c - a * e, a * d - b * b
    det = a * c00 + b * c01 + c * c02
    x, y, z = gradient.unbind(-1)
    adjugate = torch.stack([c00 * x + c01 * y + c02 * z, c01 * x + c11 * y + c12 * z, c02 * x + c12 * y + c22 * z], -1)
    diagonal = torch.stack([a, d, f], dim=-1).abs().clamp(min=1e-12)
    definite = (a > 0) & (c22 > 0) & (det > 1e-6 * diagonal.prod(-1))
    full = adjugate / torch.where(definite, det, 1.0)[..., None]
    return torch.where(definite[..., None], full, gradient / diagonal)


def expected_gain(gradient: Tensor, curvature: tuple[Tensor, ...], step: Tensor) -> Tensor:
    """What the local quadratic promises for a step."""
    pp, px, py, xx, xy, yy = curvature
    p, x, y = step.unbind(-1)
    bent = 0.5 * (pp * p * p + xx * x * x + yy * y * y) + px * p * x + py * p * y + xy * x * y
    return (gradient * step).sum(-1) + bent


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
    stops: tuple[int, int, int],
) -> Tensor:
    """Moments (c, 12) of c candidates: (S, dS/dx, dS/dy) at three rotations, then d2S/dx2, d2S/dxdy, d2S/dy2.

    particle (c,), shift_xy_px (c, 2), row (c,) of the table, position (c,) in fine steps: the rotations are one whole
    angular sample below it, at it, and one above. The rest as in `newton`.
    """
    n_half, n_fine = samples.shape[-1], table.shape[1]
    k, h, stride = used_samples(stops, n_half, samples.device)
    fx, fy = radius[k] * torch.cos(angle[h]), radius[k] * torch.sin(angle[h])
    w = weight[k] * stride
    even_basis = torch.stack([w, -w * fx * fx, -w * fx * fy, -w * fy * fy], dim=1)
    odd_basis = torch.stack([w * fx, w * fy], dim=1)
    out = weight.new_empty(len(particle), N_MOMENTS)
    chunk = max(1, 400_000 // samples[0].numel())
    for c in range(0, len(particle), chunk):
        cut = slice(c, c + chunk)
        turn = shift_xy_px[cut, :1] * fx + shift_xy_px[cut, 1:] * fy
        mine = samples[particle[cut]][:, k, h]
        co, si = torch.cos(turn), torch.sin(turn)
        moved_re, moved_im = mine.real * co + mine.imag * si, mine.imag * co - mine.real * si
        fine = position[cut] % (2 * n_half * n_fine)
        template = table[row[cut], fine % n_fine]
        one = torch.arange(len(fine), device=fine.device)[:, None]
        for i in range(3):
            re, im = template[one, :, k, (fine // n_fine + i)[:, None] + h].unbind(-1)
            # d/dx of Re[P exp(-i fx x)] is fx Im[P], the second derivative -fx fx Re[P].
            even = (moved_re * re + moved_im * im) @ even_basis
            odd = (moved_im * re - moved_re * im) @ odd_basis
            out[cut, 3 * i] = even[:, 0]
            out[cut, 3 * i + 1 : 3 * i + 3] = odd
            if i == 1:
                out[cut, 9:] = even[:, 1:]
    return out


def used_samples(stops: tuple[int, int, int], n_half: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Radius and angle index of the samples used, and how many each stands for: (p,) each. `stops`: see `newton`."""
    parts = []
    for step, (first, stop) in zip((3, 2, 1), pairwise((0, *stops)), strict=True):
        k, h = torch.arange(first, stop, device=device), torch.arange(0, n_half, step, device=device)
        grid = torch.cartesian_prod(k, h)
        parts.append(torch.cat([grid, torch.full_like(grid[:, :1], step)], dim=1))
    k, h, stride = torch.cat(parts).unbind(1)
    return k, h, stride
