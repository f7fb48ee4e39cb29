"""How far classes can be believed: a fast test of every run, and a comparison of independent runs.

The fast test keeps some particles out of all averages. A class average made of pure noise looks like whatever it was
aligned to, and the particles in it agree with it because they are in it; particles that never were in it do not. They
are scored against the classes, and against decoys: the same averages with their phases drawn at random. Where the
classes hold signal, held-out particles prefer them; where they are noise, decoys do as well.

The comparison of runs follows ISAC (Yang et al. 2012): members of a class are stable where another run from another
start, knowing nothing of the first, brings them together again in the same relative poses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ralib import likelihood as lk
from ralib.conventions import compose, invert, wrap_deg
from ralib.course import Course
from ralib.expectation import Model, State
from ralib.types import Poses

PREFERENCE = 0.75
"""Share of held-out particles that must prefer the classes to decoys; noise gives about a half."""


COARSE_DETAIL = 3.5
"""Details across the particle up to which the test looks away: the level and slope of an image's background, wrong by
the noise they were measured in, are coarse structure that even empty images share."""


@dataclass(frozen=True)
class Stability:
    """What is known of each particle, (n,), and of the run in a few numbers.

    agreement   (n,) share of the tests a particle passed: same class from either half of the data, or from other runs
    believable  whether held-out particles prefer the classes to decoys
    """

    agreement: Tensor
    believable: bool
    summary: dict[str, Any]


def quick_estimate(model: Model, course: Course, state: State, generator: torch.Generator) -> Stability:
    """Held-out particles against decoys, and every particle against classes made of the other half of the data."""
    grid, references = model.field.grid, course.references
    assert references is not None
    assert state.averages is not None
    rings = references.shape[1]
    shifts = model.shifts(rings)
    held = torch.nonzero(model.held_out)[:, 0]
    fine = references.clone()
    fine[:, : model.field.rings_for(COARSE_DETAIL)] = 0
    decoys = scrambled(fine, generator)
    both = [_best_fit(model, state, held, r, shifts)[0] if len(held) else state.posterior[:0] for r in (fine, decoys)]
    prefer = (both[0] > both[1]).float()
    share = float(prefer.mean()) if len(held) else math.nan
    gain = float((both[0] - both[1]).mean()) if len(held) else math.nan
    agreement = torch.zeros(len(state.psi_deg), device=grid.device)
    for h in (0, 1):
        rows = torch.nonzero(model.half != h)[:, 0]
        half = model.masked(state.averages.halves[h], rings)
        _, index = _best_fit(model, state, rows, half, shifts)
        agreement[rows] = (index == state.class_index[rows]).float()
    believable = len(held) < 20 or share >= PREFERENCE
    summary = {
        "held_out_particles": len(held),
        "prefer_classes_to_decoys": share,
        "mean_gain_over_decoys": gain,
        "same_class_from_other_half": float(agreement.mean()),
        "believable": believable,
    }
    return Stability(agreement, believable, summary)


def _best_fit(model: Model, state: State, rows: Tensor, references: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood of the best class of some particles, and which it is."""
    grid, spectra = model.field.grid, model.field.spectra[rows]
    if model.align:
        found = lk.score_classes(grid, spectra, state.origin_xy_px[rows], references, shifts, mirror=model.mirror)
    else:
        pose = (state.psi_deg[rows], state.origin_xy_px[rows], state.mirror[rows])
        found = lk.score_fixed(grid, spectra, *pose, references)
    return lk.log_likelihood(found.cross, found.norm, state.mean_scale).max(dim=1)


def scrambled(references: Tensor, generator: torch.Generator) -> Tensor:
    """Decoys (k, r, m): every order of every ring keeps its power and gets a random phase.

    Order 0 of a real image is real: it gets a random sign, which is another blob but as strong a one.
    """
    shape = references.shape
    turn = 2 * math.pi * torch.rand(shape, generator=generator).to(references.device)
    turn[..., 0] = (turn[..., 0] > math.pi).float() * math.pi
    return references * torch.polar(torch.ones_like(turn), turn)


def compare_runs(first: Poses, others: list[Poses], radius_px: float, limit_px: float) -> Tensor:
    """Share of the other runs (n,) in which each particle is stable.

    Stable: the particle's class there shares more particles with its class here than any other does or than chance
    would, and within the shared ones its pose, relative to theirs, moves a disc of `radius_px` by less than `limit_px`.
    """
    passed = torch.zeros(len(first), dtype=torch.float64)
    for other in others:
        passed += _stable(first, other, radius_px, limit_px).double()
    return passed / max(1, len(others))


def _stable(first: Poses, other: Poses, radius_px: float, limit_px: float) -> Tensor:
    n, k1, k2 = len(first), int(first.class_index.max()) + 1, int(other.class_index.max()) + 1
    keep = (first.class_index >= 0) & (other.class_index >= 0)
    pair = torch.where(keep, first.class_index * k2 + other.class_index, -1)
    table = torch.bincount(pair[keep], minlength=k1 * k2).view(k1, k2)
    chance = table.sum(1, keepdim=True).double() * table.sum(0) / max(1, int(keep.sum()))
    enough = (table >= 3) & (table > 2 * chance + 2 * chance.sqrt())
    stable = torch.zeros(n, dtype=torch.bool)
    for a, b in torch.nonzero(enough).tolist():
        rows = torch.nonzero(pair == a * k2 + b)[:, 0]
        stable[rows] = _consistent(first[rows], other[rows], radius_px, limit_px)
    return stable


def _consistent(first: Poses, other: Poses, radius_px: float, limit_px: float) -> Tensor:
    """Which particles keep their pose relative to the others that share both classes with them."""
    back = invert((first.psi_deg, first.origin_xy_px, first.mirror))
    psi, shift, mirror = compose(back, (other.psi_deg, other.origin_xy_px, other.mirror))
    common = mirror.float().mean() > 0.5
    same = mirror == common
    angle = torch.deg2rad(psi)
    mean = torch.rad2deg(torch.atan2(torch.sin(angle[same]).sum(), torch.cos(angle[same]).sum()))
    turn = torch.deg2rad(wrap_deg(psi - mean))
    off = shift - shift[same].median(dim=0).values
    error = torch.sqrt(off.square().sum(1) + radius_px**2 * (1 - torch.cos(turn)))
    return same & (error < limit_px)
