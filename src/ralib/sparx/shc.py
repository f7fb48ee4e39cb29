"""Stochastic hill climbing: take the first better pose found in random order (--random_method SHC).

Follows Util::shc and Crosrng_rand_ms: shifts are visited in random order, at each the angles and mirrors in random
order, until a score above the particle's best so far. (EMAN2 2.99 itself cannot run it from ali2d: the call lacks an
argument that Util::shc was given later.) SPARX's random numbers are its own; ours come from a seeded generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.sparx.search import MEMORY_BYTES, Found, ReferenceRings, absolute_params, shift_grid


def random_order(
    generator: torch.Generator, particles: int, range_xy_px: tuple[float, float], step_px: float
) -> Tensor:
    """Draw the order in which shifts are visited, and which of its better angles each particle takes.

    Parameters
    ----------
    generator : torch.Generator
        Random numbers.
    particles : int
        Number of particles n.
    range_xy_px : tuple of float
        Range along x and y, pixels.
    step_px : float
        Step, pixels.

    Returns
    -------
    Tensor of shape (n, s + 1)
        Random numbers.
    """
    shifts = 1
    for range_px in range_xy_px:
        shifts *= 2 * int(range_px / step_px) + 1
    return torch.rand(particles, shifts + 1, generator=generator, dtype=torch.float64)


def first_improvement(
    target: ReferenceRings,
    images: Tensor,
    centre_xy_px: Tensor,
    range_xy_px: tuple[float, float],
    step_px: float,
    previous_peak: Tensor,
    order: Tensor,
) -> Found:
    """Find the first better pose of each particle.

    Parameters
    ----------
    target : ReferenceRings
        The reference.
    images : Tensor of shape (b, n, n)
        Images.
    centre_xy_px : Tensor of shape (b, 2)
        Origin of each particle from the image's centre, pixels.
    range_xy_px : tuple of float
        Range along x and y, pixels.
    step_px : float
        Step, pixels.
    previous_peak : Tensor of shape (b,)
        Best score so far.
    order : Tensor of shape (b, s + 1)
        Result of `random_order`.

    Returns
    -------
    Found
        Rows and scores; a peak of -inf where there is no better pose.
    """
    grid = shift_grid(images.shape[-1], target.rings, centre_xy_px, range_xy_px, step_px)
    previous, order = previous_peak.to(images.device), order.to(images.device)
    at_once = max(1, MEMORY_BYTES // (64 * len(grid.offsets_xy_px) * target.spectra[0].numel()))
    parts = []
    for at in torch.arange(len(images), device=images.device).split(at_once):
        curves = target.correlations(images[at], centre_xy_px[at], grid.offsets_xy_px)[:, :, 0]
        shift, mirror, angle, met = _first_better(curves, grid.allowed[at], previous[at], order[at])
        row, length = torch.arange(len(at), device=images.device), curves.shape[-1]
        curve = curves[row, shift, mirror].double()
        around = curve.gather(1, (angle[:, None] + torch.arange(-1, 2, device=images.device)) % length)
        alpha = torch.remainder((angle + _three_point_peak(around)) / length + 1.0, 1.0) * target.rings.period_deg
        params = absolute_params(alpha, grid.offsets_xy_px[shift], mirror > 0, centre_xy_px[at])
        parts.append(Found(params, torch.zeros_like(angle), around[:, 1].masked_fill(~met, -torch.inf)))
    return Found.cat(parts)


def _first_better(
    curves: Tensor, allowed: Tensor, previous: Tensor, order: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Shift, mirror, angle (b,) of the first score above `previous` in curves (b, s, v, l), and if any is."""
    length = curves.shape[-1]
    better = ((curves > previous[:, None, None, None]) & allowed[:, :, None, None]).flatten(2)
    met = better.any(dim=2)
    shift = torch.where(met, order[:, :-1], torch.inf).argmin(dim=1)
    choices = better[torch.arange(len(curves), device=curves.device), shift]
    wanted = (order[:, -1] * choices.sum(dim=1)).long() + 1
    place = ((choices.cumsum(dim=1) == wanted[:, None]) & choices).int().argmax(dim=1)
    return shift, torch.div(place, length, rounding_mode="floor"), place % length, met.any(dim=1)


def _three_point_peak(around: Tensor) -> Tensor:
    """Offset (b,) of the peak of three values (b, 3); 0 off a maximum. SPARX's formula has a misprint."""
    before, middle, after = around.unbind(dim=1)
    bend = before - 2 * middle + after
    peak = (middle >= before) & (middle >= after) & (bend < 0)
    return torch.where(peak, 0.5 * (before - after) / torch.where(peak, bend, -1.0), 0.0)
