"""Initialisation: the first classes, from single particles, from references, or from classes of earlier particles.

A single particle at low dose is a poor reference, but its signal already exceeds its noise where an exhaustive search
chooses the pose. The resolution must not be the lowest, where all views look alike; the temperature of the
responsibilities is high (annealing).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.earlier_classes import EarlierClasses
from ralib.classification.em import e_step, iterate_centred
from ralib.classification.likelihood import Spectra
from ralib.classification.model import Model
from ralib.classification.ring_grid import RingGrid
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.start_references import StartReferences
from ralib.classification.state import IterationSettings, State
from ralib.classification.thinning import most_useful, restrict_classes

Report = Callable[[str, State], None]


def _no_report(stage: str, state: State) -> None:
    """Do nothing, where nobody follows the iterations."""


def initialize_from_particles(
    model: Model,
    plan: ScheduleSettings,
    n_classes: int,
    generator: torch.Generator,
    state: State,
    report: Report = _no_report,
) -> State:
    """Initialise the classes by many single particles as references, thinned to the number of classes wanted.

    Parameters
    ----------
    model : Model
        The particles and the model.
    plan : ScheduleSettings
        Settings of the schedule.
    n_classes : int
        Number of classes wanted.
    generator : torch.Generator
        Random numbers.
    state : State
        State of the particles, of which nothing but a pose need be known.
    report : Callable[[str, State], None], optional
        Called with the stage's name and the state after every iteration but the last.

    Returns
    -------
    State
        State with the classes.
    """
    rings, coarse = model.particles.rings_for(plan.exchange_details), model.particles.rings_for(plan.start_details)
    eligible = model.eligible()
    seeds = min(len(eligible), max(n_classes + 1, round(plan.surplus * n_classes)))
    chosen = eligible[torch.randperm(len(eligible), generator=generator)[:seeds]]
    references = seed_references(model, state, chosen, coarse)
    hot, cold = plan.temperatures
    for i in range(3):
        state = iterate_centred(model, references, state, IterationSettings(coarse, hot, wide=i < 2))
        references = model.references(state, coarse)
        report("start", state)
    # Many narrow classes are pure. Few at a time are dropped, so that the others can absorb their members.
    while len(references) > n_classes:
        keep = most_useful(model, state, max(n_classes, int(plan.thinning * len(references))))
        state, references = restrict_classes(model, state, keep), references[keep]
        state = iterate_centred(model, references, state, IterationSettings(coarse, hot))
        report("thin", state)
        coarse = min(coarse + 1, rings)
        references = model.references(state, coarse)
    state = iterate_centred(model, references, state, IterationSettings(rings, cold, newton=1))
    report("classes", state)
    references = model.references(state, rings)
    return iterate_centred(model, references, state, IterationSettings(rings, cold, newton=1))


def initialize_from_references(
    model: Model, plan: ScheduleSettings, given: StartReferences, state: State, report: Report = _no_report
) -> State:
    """Initialise the classes by references.

    Parameters
    ----------
    model : Model
        The particles and the model.
    plan : ScheduleSettings
        Settings of the schedule.
    given : StartReferences
        The references.
    state : State
        State of the particles.
    report : Callable[[str, State], None], optional
        Called with the stage's name and the state after every iteration but the last.

    Returns
    -------
    State
        State with the classes.
    """
    rings, temperature = model.particles.rings_for(plan.exchange_details), plan.temperatures[1]
    references = given.matched(model, state, rings)
    state = iterate_centred(model, references, state, IterationSettings(rings, temperature, wide=True, newton=1))
    report("start", state)
    references = model.references(state, rings)
    return iterate_centred(model, references, state, IterationSettings(rings, temperature, newton=1))


def initialize_from_earlier(
    model: Model, plan: ScheduleSettings, earlier: EarlierClasses, state: State, rings: int
) -> State:
    """Initialise the classes by those that some of the particles have; the others are placed among them.

    Parameters
    ----------
    model : Model
        The particles and the model.
    plan : ScheduleSettings
        Settings of the schedule.
    earlier : EarlierClasses
        Poses and classes of the earlier particles.
    state : State
        State in which they are known.
    rings : int
        Number of rings compared.

    Returns
    -------
    State
        State with the classes.
    """
    averages, own = earlier.averages(model, state, rings)
    references, rows = model.masked(averages, rings), earlier.new_particles(model, state)
    if model.align and len(rows):
        new, origin = model.shard.held(rows), state.origin_xy_px.clone()
        some = state.of(new)
        origin[new] = place_particles(model.of(rows), plan, references, some, rings).origin_xy_px
        state = replace(state, origin_xy_px=origin)
    settings = IterationSettings(rings, plan.temperatures[1], newton=1)
    return iterate_centred(model, references, replace(state, own=own), settings)


def place_particles(model: Model, plan: ScheduleSettings, references: Tensor, state: State, rings: int) -> State:
    """Find the origins of particles by a search over all shifts, at little detail, which is enough for them.

    Parameters
    ----------
    model : Model
        The particles and the model.
    plan : ScheduleSettings
        Settings of the schedule.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages.
    state : State
        State of the particles.
    rings : int
        Number of rings, at most.

    Returns
    -------
    State
        The state with these origins.
    """
    rings = min(rings, model.particles.rings_for(plan.start_details))
    coarse = references[:, :rings, : model.particles.orders(rings)].contiguous()
    expected = e_step(model, coarse, state, IterationSettings(rings, 1.0, wide=True))
    return replace(state, origin_xy_px=expected.poses.origin_xy_px[0])


def seed_references(model: Model, state: State, index: Tensor, rings: int) -> Tensor:
    """Return references from single particles, masked.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Gives their origins.
    index : Tensor of shape (b,)
        Numbers of the particles among all.
    rings : int
        Number of rings r.

    Returns
    -------
    Tensor of shape (b, r, m)
        Angular orders.
    """
    grid, mask = model.particles.grid, model.particles.mask

    def centred(own: Tensor) -> Tensor:
        samples = particles_as_references(grid, model.particles.spectra[own], rings)
        return samples * grid.phase(state.origin_xy_px[own], rings)

    samples = model.shard.from_holders(index.to(grid.device), centred)
    return grid.orders_of_image(grid.image(samples) * mask, rings, model.particles.orders(rings))


def particles_as_references(grid: RingGrid, spectra: Spectra, rings: int) -> Tensor:
    """Deconvolve single particles by their CTF as far as their noise allows.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Spectra of b particles.
    rings : int
        Number of rings r.

    Returns
    -------
    Tensor of shape (b, r, H)
        Samples.
    """
    data = spectra.data[:, :rings] / grid.weight[:rings, None]
    power = spectra.power[:, :rings] / (grid.weight[:rings] * grid.n_half)
    return data / (power + 0.5)[..., None]
