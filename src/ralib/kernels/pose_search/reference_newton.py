"""Newton steps off the grid in plain PyTorch: their definition, and the oracle of the compiled forms.

The score of a pose (`reference`) is exact in the shift and quadratic in the rotation: from its moments at three
rotations follow gradient and curvature, and from these a step in (psi, x, y).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ralib.kernels.pose_search.fine_templates import FineTemplates

N_MOMENTS = 12
SETTLED = 3e-5
"""A step that changes the score by less, by its quadratic form and as a fraction of the score, is a pose's last."""


@dataclass(frozen=True)
class NewtonRule:
    """Samples used by a Newton step, bounds of the step, and number of steps.

    Attributes
    ----------
    stops : tuple of int
        Below the first of these radii every third angle is used, from there to the second every second one, from there
        to the last all of them; none beyond. See `ralib.alignment.search.extent.angle_stops`.
    limit_xy_px : tuple of float
        Largest offset along x and y, pixels.
    most_deg, most_px : float
        Largest change by one step, degrees and pixels.
    slack : float, default math.inf
        A pose whose score is lower than the particle's first one by more than this fraction takes no step.
    steps : int, default 1
        Largest number of steps. A single step ends at the score it predicts; with several, a pose continues until a
        step changes next to nothing.
    """

    stops: tuple[int, int, int]
    limit_xy_px: tuple[float, float]
    most_deg: float
    most_px: float
    slack: float = math.inf
    steps: int = 1


NewtonStep = tuple[Tensor, Tensor, Tensor]
"""Poses (c, b, 4) after a step, by how much it changes the score (c, b), and the score before it (c, b)."""


def newton(
    samples: Tensor,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    templates: FineTemplates,
    rule: NewtonRule,
    particle: Tensor | None = None,
) -> Tensor:
    """Refine poses off the grid by one or several Newton steps in (psi, x, y).

    With several steps, a step that lowers the score is halved; a pose that does not converge ends at its highest score.
    A pose too far behind (`NewtonRule.slack`) is left unchanged, with a score of minus infinity.

    Parameters
    ----------
    samples : Tensor of shape (n, K, H)
        Polar Fourier samples of the particles, complex64.
    centre : Tensor of shape (b, 2)
        Origin from which the offsets x, y count, pixels.
    row : Tensor of shape (c, b)
        Template of each candidate.
    pose : Tensor of shape (c, b, 4)
        psi in degrees, x and y in pixels, score.
    templates : FineTemplates
        Templates at fine rotations.
    rule : NewtonRule
        Samples used, bounds and number of steps.
    particle : Tensor of shape (b,), optional
        Whose samples the poses are for; by default those of the first, the second and so on.

    Returns
    -------
    Tensor of shape (c, b, 4)
        Refined poses.
    """
    samples = samples if particle is None else samples[particle]
    particle = torch.arange(len(samples), device=samples.device).expand_as(row).flatten()

    def one_step(pose: Tensor) -> NewtonStep:
        position = torch.floor(pose[..., 0] / templates.step_deg + 0.5).long()
        shift = (centre + pose[..., 1:3]).flatten(0, 1)
        moments = pose_moments(samples, particle, shift, row.flatten(), position.flatten(), templates, rule.stops)
        return stepped(moments.view(*position.shape, -1), pose, position, templates, rule)

    return repeated_steps(one_step, pose, rule.slack, rule.steps)


def repeated_steps(one_step: Callable[[Tensor], NewtonStep], pose: Tensor, slack: float, steps: int) -> Tensor:
    """Repeat Newton steps; see `newton`.

    Parameters
    ----------
    one_step : callable
        Computes a step from poses (c, b, 4).
    pose : Tensor of shape (c, b, 4)
        psi in degrees, x and y in pixels, score.
    slack : float
        See `NewtonRule.slack`.
    steps : int
        Largest number of steps.

    Returns
    -------
    Tensor of shape (c, b, 4)
        Poses after the steps.
    """
    if steps == 1:
        return _only_within_reach(one_step(pose)[0], pose, slack)
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
    return _only_within_reach(highest, pose, slack)


def _only_within_reach(stepped: Tensor, pose: Tensor, slack: float) -> Tensor:
    """Stepped poses; where the score before lay too far behind the first one's, the pose before, without a score."""
    score = pose[..., 3]
    behind = (score < score[0] - slack * score[0].abs())[..., None]
    return torch.where(behind, torch.cat([pose[..., :3], torch.full_like(pose[..., 3:], -math.inf)], dim=-1), stepped)


def stepped(moments: Tensor, pose: Tensor, position: Tensor, templates: FineTemplates, rule: NewtonRule) -> NewtonStep:
    """Compute the Newton step of poses from their moments.

    Parameters
    ----------
    moments : Tensor of shape (c, b, 12)
        See `pose_moments`.
    pose : Tensor of shape (c, b, 4)
        psi in degrees, x and y in pixels, score.
    position : Tensor of shape (c, b)
        Fine angular positions nearest to psi.
    templates : FineTemplates
        Templates at fine rotations.
    rule : NewtonRule
        Bounds of the step.

    Returns
    -------
    NewtonStep
        The step, and the score it predicts.
    """
    step_deg = templates.step_deg
    gradient, curvature = derivatives(moments, templates.table.shape[1] * step_deg)
    limit = pose.new_tensor(rule.limit_xy_px)
    gradient, curvature = held_at_limit(gradient, curvature, pose[..., 1:3], limit)
    step = newton_step(gradient, curvature)
    most = step.new_tensor([rule.most_deg, rule.most_px, rule.most_px])
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
    """Compute the derivatives of the score from its moments.

    Parameters
    ----------
    moments : Tensor of shape (..., 12)
        See `pose_moments`.
    h_deg : float
        Distance of the three rotations, degrees.

    Returns
    -------
    Tensor of shape (..., 3)
        Gradient in (psi, x, y).
    tuple of Tensor of shape (...)
        Second derivatives psi psi, psi x, psi y, x x, x y, y y.
    """
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
    """Remove coordinates from the problem whose offset is at its limit and would continue outwards.

    Parameters
    ----------
    gradient : Tensor of shape (..., 3)
        Gradient in (psi, x, y).
    curvature : tuple of Tensor of shape (...)
        Second derivatives; see `derivatives`.
    offset : Tensor of shape (..., 2)
        Offsets, pixels.
    limit : Tensor of shape (2,)
        Largest offsets, pixels.

    Returns
    -------
    Tensor of shape (..., 3)
        Gradient, 0 for a fixed coordinate.
    tuple of Tensor of shape (...)
        Second derivatives without coupling to a fixed coordinate.
    """
    free = ((offset.abs() < limit) | (offset * gradient[..., 1:] < 0)).to(gradient.dtype)
    x, y = free.unbind(-1)
    pp, px, py, xx, xy, yy = curvature
    gradient = torch.cat([gradient[..., :1], gradient[..., 1:] * free], dim=-1)
    return gradient, (pp, px * x, py * y, xx, xy * x * y, yy)


def newton_step(gradient: Tensor, curvature: tuple[Tensor, ...]) -> Tensor:
    """Return -H^-1 g by cofactors where the Hessian H is negative definite; elsewhere step each coordinate by itself.

    Parameters
    ----------
    gradient : Tensor of shape (..., 3)
        Gradient in (psi, x, y).
    curvature : tuple of Tensor of shape (...)
        Second derivatives; see `derivatives`.

    Returns
    -------
    Tensor of shape (..., 3)
        The step.
    """
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
    """Return the increase of the score that the local quadratic predicts for a step.

    Parameters
    ----------
    gradient : Tensor of shape (..., 3)
        Gradient in (psi, x, y).
    curvature : tuple of Tensor of shape (...)
        Second derivatives; see `derivatives`.
    step : Tensor of shape (..., 3)
        The step.

    Returns
    -------
    Tensor of shape (...)
        Increase of the score.
    """
    pp, px, py, xx, xy, yy = curvature
    p, x, y = step.unbind(-1)
    bent = 0.5 * (pp * p * p + xx * x * x + yy * y * y) + px * p * x + py * p * y + xy * x * y
    return (gradient * step).sum(-1) + bent


def pose_moments(
    samples: Tensor,
    particle: Tensor,
    shift_xy_px: Tensor,
    row: Tensor,
    position: Tensor,
    templates: FineTemplates,
    stops: tuple[int, int, int],
) -> Tensor:
    """Compute the moments of candidates from which score and derivatives follow.

    These are (S, dS/dx, dS/dy) at three rotations, then d2S/dx2, d2S/dxdy, d2S/dy2. The rotations are one whole angular
    sample below the position, at it, and one above.

    Parameters
    ----------
    samples : Tensor of shape (b, K, H)
        Polar Fourier samples of the particles, complex64.
    particle : Tensor of shape (c,)
        Particle of each candidate.
    shift_xy_px : Tensor of shape (c, 2)
        Its shift, pixels.
    row : Tensor of shape (c,)
        Its template.
    position : Tensor of shape (c,)
        Its rotation in fine steps.
    templates : FineTemplates
        Templates at fine rotations.
    stops : tuple of int
        See `NewtonRule.stops`.

    Returns
    -------
    Tensor of shape (c, 12)
        Moments.
    """
    table, radius, angle, weight = templates.table, templates.radius, templates.angle, templates.weight
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
    """Return radius and angle index of the samples used, and how many samples each stands for.

    Parameters
    ----------
    stops : tuple of int
        See `NewtonRule.stops`.
    n_half : int
        Angles of the half circle.
    device : torch.device
        Where the result is.

    Returns
    -------
    Tensor of shape (p,)
        Radius indices.
    Tensor of shape (p,)
        Angle indices.
    Tensor of shape (p,)
        Number of samples each stands for.
    """
    parts = []
    for step, (first, stop) in zip((3, 2, 1), pairwise((0, *stops)), strict=True):
        k, h = torch.arange(first, stop, device=device), torch.arange(0, n_half, step, device=device)
        grid = torch.cartesian_prod(k, h)
        parts.append(torch.cat([grid, torch.full_like(grid[:, :1], step)], dim=1))
    k, h, stride = torch.cat(parts).unbind(1)
    return k, h, stride
