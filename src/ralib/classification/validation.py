"""Validation of classes: a fast test against noise in every run, and a comparison of independent runs.

The fast test keeps some particles out of all averages. Averages of pure noise show the reference they were aligned to,
and correlate with their members only through the members' own noise. Held-out particles are scored against the classes
without earlier poses, and so are synthetic images of pure noise of the same spectra: where particles fit no better than
those, either the classes or the particles are noise.

The comparison of runs follows ISAC (Yang, Fang, Chittuluru, Asturias and Penczek 2012, "Iterative stable alignment and
clustering of 2D transmission electron microscope images", Structure 20, 237-247): members of a class are stable where
another, independently initialised run brings them together again in the same relative poses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ralib.classification.e_step import score_fixed
from ralib.classification.half_precision_search import places_in_own_class, ranks_in_half
from ralib.classification.likelihood import Spectra
from ralib.classification.memory_plan import particles_at_once
from ralib.classification.model import Model
from ralib.classification.pose_search import search_poses
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.state import State
from ralib.conventions import compose, invert, wrap_deg
from ralib.runtime.chunks import on_rows
from ralib.types import ClassificationResult, Notice, Poses

ABOVE_NOISE = 0.2
"""Share of the held-out particles that must fit better than 90% of images of pure noise do; of noise, a tenth does."""

BELIEVED, SPREAD_WEIGHT = 0.75, 0.6
"""What that share and the weighted spread of all fits must add up to. The spread is the standard deviation of
sqrt(2 fit): of signal in noise the noise's own, 1, and what contrast and defocus add; of fits that are the largest of
many chances it is less. So noise that a template picked is recognised, although its averages show the template: all
of it lies just above what the picking asked for. On 17 sets of white and coloured noise, empty ice and noise picked
by templates the sum was 0.43 to 0.65; on four of small proteins whose views are as by chance, 0.84 to 0.98."""

CHANCE = 1.64
"""Standard errors by which that share of few particles may fall short of what it must be with TESTED of them."""

LEAST_TESTED, TESTED, NOISE_IMAGES = 10, 200, 400
"""Number of held-out particles in the test, at least and at most, and of images of noise at least: the nine tenths of
too few of them are known worse than the particles' share above."""

COARSE_DETAIL = 1.5
"""Details across the particle up to which rings are left out of the test: the error of an image's background level is
coarse structure that even empty images share."""


@dataclass(frozen=True)
class Stability:
    """Reliability of n particles and of the run.

    Attributes
    ----------
    agreement : Tensor of shape (n,)
        Share of the tests a particle passed: the same class from either half of the data, or from other runs.
    away_px : Tensor of shape (n,)
        Distance from the centre of its box at which a particle fits its class best, without a prior.
    believable : bool
        Whether held-out particles fit the classes better than noise does.
    summary : dict
        Figures of the run.
    """

    agreement: Tensor
    away_px: Tensor
    believable: bool
    summary: dict[str, Any]


def quick_estimate(
    model: Model, schedule: ClassificationSchedule, state: State, generator: torch.Generator
) -> Stability:
    """Compare held-out particles with noise, and every particle's classes from either half of the data.

    Parameters
    ----------
    model : Model
        The particles and the model.
    schedule : ClassificationSchedule
        The schedule.
    state : State
        Final state.
    generator : torch.Generator
        Random numbers of the noise images.

    Returns
    -------
    Stability
        The result.
    """
    grid, references = model.particles.grid, schedule.references
    assert references is not None
    assert state.averages is not None
    rings = references.shape[1]
    held = torch.nonzero(model.shard.gather(model.held_out & model.particles.typical))[:TESTED, 0]
    tested = len(held) >= LEAST_TESTED
    separation, above = _separation(model, schedule, state, held, generator) if tested else (math.nan, math.nan)
    typical = model.shard.gather(model.particles.typical)
    spread = fit_spread(model.shard.gather(state.fit.amax(1))[typical])
    agreement, away = torch.zeros(2, len(state.psi_deg), device=grid.device)
    halves = [model.masked(replace(state.averages, orders=orders), rings) for orders in state.averages.halves]
    for part, some in model.parts(rings, len(references)):
        own = state.part(part)
        for h, half in enumerate(halves):
            rows = torch.nonzero(some.half != h)[:, 0]
            centre = (own.psi_deg[rows], own.origin_xy_px[rows], own.mirror[rows])
            spectra = some.particles.spectra[rows]
            _, index = _best_fit(some, own, spectra, half, centre, some.at_once, wide=False)
            agreement[part][rows] = (index == own.class_index[rows]).float()
            away[part][rows] = _away_px(some, own, rows, spectra, half)
    enough = above >= least_above(len(held)) and above + SPREAD_WEIGHT * spread >= BELIEVED
    believable = enough if tested else spread >= 1.0
    summary = {
        "held_out_particles": len(held),
        "fit_better_than_noise": separation,
        "fit_above_noise": above,
        "fit_spread": spread,
        "same_class_from_other_half": float(model.shard.sum(agreement, most=1.0)) / model.shard.n,
        "believable": believable,
    }
    return Stability(agreement, away, believable, summary)


def least_above(n: int) -> float:
    """Return which share of n held-out particles must fit better than 90% of images of noise do."""
    error = math.sqrt(ABOVE_NOISE * (1 - ABOVE_NOISE))
    return ABOVE_NOISE - CHANCE * error * max(0.0, 1 / math.sqrt(max(n, 1)) - 1 / math.sqrt(TESTED))


def _away_px(model: Model, state: State, rows: Tensor, spectra: Spectra, references: Tensor) -> Tensor:
    """Return how far from their boxes' centres some particles (b,) fit their classes best without a prior.

    Junk fits anywhere, and only the prior has kept it near the centre. On a GPU all classes are searched together.
    """
    away = torch.linalg.vector_norm(state.origin_xy_px, dim=1)
    if model.align and ranks_in_half(model.particles.grid.device):
        index, known = state.class_index[rows], state.origin_xy_px[rows]
        shifts = model.shifts(references.shape[1], wide=True)
        given = model.particles.grid, spectra, index, references, shifts
        place = model.within(
            lambda memory_bytes: places_in_own_class(
                *given, mirror=model.mirror, memory_bytes=memory_bytes, at_once=model.at_once
            )
        )
        elsewhere = (place - known).norm(dim=1) > 2 * model.shift_step_px(references.shape[1])
        return torch.where(elsewhere, place.norm(dim=1), away[rows])
    for k in range(len(references) if model.align else 0):
        mine = rows[state.class_index[rows] == k]
        if len(mine):
            known = state.origin_xy_px[mine]
            found = search_poses(model, model.particles.spectra[mine], known, references[k : k + 1], None, wide=True)
            place = found.origin_xy_px[:, 0]
            elsewhere = (place - known).norm(dim=1) > 2 * model.shift_step_px(references.shape[1])
            away[mine] = torch.where(elsewhere, place.norm(dim=1), away[mine])
    return away[rows]


def fit_spread(fit: Tensor) -> float:
    """Return the robust standard deviation of sqrt(2 fit), the fits (n,) in standard deviations of noise."""
    quartile = torch.quantile(
        torch.sqrt(2 * fit.clamp_min(0)).double(), torch.tensor([0.25, 0.75]).double().to(fit.device)
    )
    return float(quartile[1] - quartile[0]) / 1.349


def _separation(
    model: Model, schedule: ClassificationSchedule, state: State, held: Tensor, generator: torch.Generator
) -> tuple[float, float]:
    """Compare held-out particles with images of noise, each in its best class.

    How often a particle fits better than such an image, and the share of the particles that fit better than nine tenths
    of them.
    """
    assert schedule.references is not None
    rings = schedule.references.shape[1]
    references = schedule.references.clone()
    references[:, : min(model.particles.rings_for(COARSE_DETAIL), rings - 1)] = 0
    own, tested = model.shard.held(held), model.shard.of(held)
    centre = (state.psi_deg[own], state.origin_xy_px[own], state.mirror[own])

    def fits(spectra: Spectra) -> Tensor:
        at_once = particles_at_once(len(held))
        return tested.gather(_best_fit(model, state, spectra, references, centre, at_once, wide=True)[0])

    times = math.ceil(NOISE_IMAGES / len(held))
    noise = torch.cat([fits(noise_like(model, held, generator, rings)) for _ in range(times)])
    particles = fits(model.particles.spectra[own])
    limit = torch.quantile(noise, 0.9)
    return float((particles[:, None] > noise).float().mean()), float((particles > limit).float().mean())


def noise_like(model: Model, rows: Tensor, generator: torch.Generator, rings: int) -> Spectra:
    """Make images of pure noise with the CTFs and all the power of some particles.

    Power is no evidence of signal: only what particles have in common is. So it does not matter how much of it was
    estimated to be noise, which the search for the best poses underestimates where all of it is.

    Parameters
    ----------
    model : Model
        The particles.
    rows : Tensor of shape (m,)
        Numbers of the particles imitated, of all.
    generator : torch.Generator
        Random numbers.
    rings : int
        Number of rings that are compared; there is nothing on others.

    Returns
    -------
    Spectra
        Spectra of the images that imitate particles of this rank.
    """
    particles, shard = model.particles, model.shard
    grid, power = particles.grid, particles.spectra.power[shard.held(rows)]
    white = torch.randn(len(rows), grid.box, grid.box, generator=_on_device(generator, grid.device), device=grid.device)
    observed = shard.mean(particles.observed, particles.typical).float()
    amplitude = torch.sqrt(power * grid.weight / grid.n_half * observed)
    samples = on_rows(lambda images: grid.transform(images, rings), white)
    samples = torch.nn.functional.pad(samples, (0, 0, 0, grid.n_rings - rings))
    return Spectra(samples[shard.of(rows).rows] * amplitude[..., None], power)


def _on_device(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator of many numbers on a device, seeded by one from main memory."""
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


def _best_fit(
    model: Model,
    state: State,
    spectra: Spectra,
    references: Tensor,
    pose: tuple[Tensor, Tensor, Tensor],
    at_once: int,
    *,
    wide: bool,
) -> tuple[Tensor, Tensor]:
    """Fit of the best class of some particles around (not aligned: at) their poses, and which it is."""
    if model.align:
        found = search_poses(model, spectra, pose[1], references, state, wide=wide, at_once=at_once)
    else:
        found = score_fixed(model.particles.grid, spectra, *pose, references, at_once)
    return model.fit(found, state).max(dim=1)


def with_stability(result: ClassificationResult, others: Sequence[Poses]) -> ClassificationResult:
    """Add to a result what runs from other starts agree on.

    Parameters
    ----------
    result : ClassificationResult
        Of this run.
    others : sequence of Poses
        Poses of the same particles, found from other starts.

    Returns
    -------
    ClassificationResult
        With the particles' score `stable`, the classes' `stable_members`, `stable_particles` in `stability`, and a
        notice where hardly any particle is stable.
    """
    radius_px = 0.5 * result.diameter_A / (result.averages.pixel_size_A or 1.0)
    stable = compare_runs(result.poses, others, radius_px, limit_px=0.15 * radius_px).numpy()
    share, index = float(stable.mean()), result.poses.class_index.numpy()
    classes = []
    for row in result.classes:
        member = index == row["class"] - 1
        classes.append(row | {"stable_members": float(stable[member].mean()) if member.any() else 0.0})
    unstable = Notice(
        what=f"only {100 * share:.0f}% of the particles are stable from start to start",
        where="classes",
        remedy="do not trust the classes: ask for fewer, or check whether there is signal at all",
    )
    return replace(
        result,
        classes=classes,
        particle_scores=result.particle_scores | {"stable": stable},
        stability=result.stability | {"stable_particles": share},
        warnings=[*result.warnings, unstable] if share < 0.1 else result.warnings,
    )


def compare_runs(first: Poses, others: Sequence[Poses], radius_px: float, limit_px: float) -> Tensor:
    """Return the share of the other runs in which each particle is stable.

    Stable means: the particle's class there shares more particles with its class here than any other does and than by
    chance, and within the shared ones its pose relative to theirs moves a disc of `radius_px` by less than `limit_px`.

    Parameters
    ----------
    first : Poses
        Poses of this run.
    others : sequence of Poses
        Poses of the other runs.
    radius_px : float
        Radius of the disc, pixels.
    limit_px : float
        Largest displacement, pixels.

    Returns
    -------
    Tensor of shape (n,)
        Shares.
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
