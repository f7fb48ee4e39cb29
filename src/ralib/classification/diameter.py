"""Measurement of the particle's diameter on a few coarse class averages, before the classification.

The variance of single images does not show a particle's edge where boxes hold neighbours: these are as strong, and
begin where the particle ends. In averages of aligned particles neighbours lie anywhere around a particle and average
out. So a thousand particles are classified at low resolution, within a mask of the size that boxes usually leave to
their particle, and the signal common to the two halves of each class falls from the particle outwards to its first
minimum: the edge. Where that gives a clearly smaller mask, the measurement is repeated. Where it finds a wide rim,
others, up to five, have to find it as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor

from ralib.classification.initialisation import initialize_from_particles
from ralib.classification.memory_plan import Budget
from ralib.classification.model import Model
from ralib.classification.particle_extent import ParticleExtent
from ralib.classification.recorded_detail import recorded_per_px, spread_batches
from ralib.classification.ring_grid import RingGrid
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.sharding import Shard
from ralib.classification.typical_class import weighted_median
from ralib.classification.whitening import LARGEST_RADIUS, MASK_MARGIN, WhitenedParticles, whiten_particles
from ralib.images.masks import centre_distance
from ralib.types import ParticleSet

PARTICLES, CLASSES = 1000, 6
"""How many, spread evenly over the set, and into how many classes."""

USUAL_RADIUS = 0.3
"""Of the box: the first mask. Boxes are one and a half to two times as wide as their particles."""

SMALLEST_RADIUS = 0.08
"""Of the box: no particle is smaller, only what is left of noise."""

DETAILS = 9.0
"""Periods across that mask up to which images are compared."""

EDGE, RIM, MINIMUM = 0.05, 0.02, 0.1
"""Of the profile's maximum: the particle's radius is where the profile falls to the first, the rim of its faintest
parts where it falls to the second; both end at a minimum below the third."""

GAP, RISE = 0.25, 2.0
"""A minimum below the first, behind which the profile rises to the second times as much, is the gap to neighbours: of
real apoferritin it reached 0.101 on one machine and less than MINIMUM on another."""

BEHIND = 0.15
"""Of the maximum: a profile that rises above this again, behind the edge, is that of neighbours."""

CHANGED = 0.75
"""A mask smaller than this share of the one before is measured again."""

FAINT, MEASUREMENTS = 1.25, 5
"""A rim further out, times the radius, is that of faint parts, or of neighbours in a class that was aligned badly: of
many measurements on sets of ACE2 the largest were of this kind. It counts if others, up to so many, find it as well."""


def measure_radius(
    particles: ParticleSet,
    *,
    device: torch.device,
    search_px: float,
    ctf: str,
    mirror: bool,
    budget: Budget,
    at_most: int = PARTICLES,
) -> ParticleExtent:
    """Measure the radius of the particles on `CLASSES` class averages.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    device : torch.device
        Where to compute.
    search_px : float
        Largest distance of a particle from the centre of its box, pixels.
    ctf : str
        CTF correction, 'on' or 'off'.
    mirror : bool
        Whether mirrored views share a class.
    budget : Budget
        Memory of a step.
    at_most : int, default PARTICLES
        Particles that are looked at.

    Returns
    -------
    ParticleExtent
        The radius, and the finest detail that the images hold.
    """
    batches = spread_batches(particles, at_most, device)
    few = batches.particles
    n_classes, recorded = max(1, min(CLASSES, len(few) // 20)), recorded_per_px(batches)
    measured = ParticleExtent.of_mask(USUAL_RADIUS * few.box)
    for _ in range(2):
        mask_px = measured.mask_radius_px
        whitened = whiten_particles(
            few, batches, Shard.of_all(len(few)),
            n_classes=n_classes, radius_px=mask_px, particle_radius_px=mask_px / MASK_MARGIN,
            resolution_px=2 * mask_px / DETAILS, lowest_px=None, recorded_per_px=recorded, ctf=ctf,
        )  # fmt: skip
        if int(whitened.typical.sum()) < 2 * n_classes:
            break
        measured = _trusted(partial(_measured, whitened, n_classes, search_px, mirror, budget))
        if measured.mask_radius_px > CHANGED * mask_px:
            break
    return replace(measured, recorded_per_px=recorded)


def _trusted(measure: Callable[[int], ParticleExtent]) -> ParticleExtent:
    """The first of a few measurements (by their seeds) whose rim is not far; where all are far, the middle one."""
    found = []
    for seed in range(MEASUREMENTS):
        found.append(measure(seed))
        if found[-1].rim_px <= FAINT * found[-1].radius_px:
            return found[-1]
    return sorted(found, key=attrgetter("mask_radius_px"))[MEASUREMENTS // 2]


def _measured(
    whitened: WhitenedParticles, n_classes: int, search_px: float, mirror: bool, budget: Budget, seed: int
) -> ParticleExtent:
    n, device = len(whitened.usable), whitened.grid.device
    half = (torch.arange(n) % 2).to(device)
    none = torch.zeros(n, dtype=torch.bool, device=device)
    model = Model(whitened, Shard.of_all(n), half, none, 0.3, mirror, search_px * whitened.scale, budget=budget)
    generator = torch.Generator().manual_seed(seed)
    state = initialize_from_particles(model, ScheduleSettings(), n_classes, generator, model.blank())
    assert state.averages is not None
    profile = radial_profile(whitened.grid, state.averages.halves, state.members)
    (radius, crowded), (rim, _) = edge_px(profile), edge_px(profile, RIM)
    box = whitened.grid.box
    radius, rim = (min(max(r, SMALLEST_RADIUS * box), LARGEST_RADIUS * box) / whitened.scale for r in (radius, rim))
    return ParticleExtent(radius, rim, crowded)


def radial_profile(grid: RingGrid, halves: Tensor, members: Tensor) -> Tensor:
    """Compute the signal common to the halves of class averages at each distance from the centre.

    The product of the halves, averaged over angles: noise and neighbours, which differ between halves, cancel. Of the
    classes' profiles, each over its maximum, the median weighted by members is taken, so that a class of aggregates or
    of ice counts no more than others.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    halves : Tensor of shape (2, k, r, m)
        Angular orders of the half averages.
    members : Tensor of shape (k,)
        Number of members.

    Returns
    -------
    Tensor of shape (n // 2,)
        Profile.
    """
    first, second = grid.image_of_orders(halves.flatten(0, 1)).unflatten(0, halves.shape[:2])
    n = grid.box
    distance = centre_distance(n, grid.device)
    ring = torch.arange(n // 2, device=grid.device)
    share = (1 - (distance.flatten()[:, None] - ring).abs()).clamp_min(0)  # of each pixel, between two rings
    common = ((first * second).flatten(1) @ share) / share.sum(0)
    return weighted_median(common / common.amax(1, keepdim=True).clamp_min(1e-20), members)


def edge_px(profile: Tensor, level: float = EDGE) -> tuple[float, bool]:
    """Locate the end of a radial profile, from its maximum outwards.

    Parameters
    ----------
    profile : Tensor of shape (r,)
        The profile.
    level : float
        Share of the profile's maximum at which it ends.

    Returns
    -------
    tuple
        Radius, pixels, between the two rings where the profile falls to `level`, or at its first low minimum; and
        whether it rises again beyond.
    """
    curve = profile.cpu() / profile.max().clamp_min(1e-20).cpu()
    at = int(curve.argmax())
    while at + 1 < len(curve) and curve[at] > level and not _ends(curve, at):
        at += 1
    crowded = bool((curve[at:] > BEHIND).any())
    if curve[at] < level and at > 0 and curve[at - 1] > level:
        return at - 1 + float((curve[at - 1] - level) / (curve[at - 1] - curve[at])), crowded
    return float(at), crowded and bool(curve[at] < GAP)


def _ends(curve: Tensor, at: int) -> bool:
    """Whether a ring is a minimum so low, or with so much behind it, that the particle ends there."""
    here, behind = float(curve[at]), float(curve[at:].max())
    is_minimum = here < float(curve[at + 1])
    return is_minimum and (here < MINIMUM or (here < GAP and behind > max(BEHIND, RISE * here)))
