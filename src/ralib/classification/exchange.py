"""Exchange: split and outlying classes compete with those there are, and as many as are wanted stay.

The largest classes are split in two, the particles that are explained worst form classes among themselves, and all
compete for all particles; the most useful stay (`thinning`). So a view that shares a class with others, or that no
initial particle had, gets a class of its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.em import average_groups, iterate_centred
from ralib.classification.initialisation import Report, initialize_from_particles
from ralib.classification.leave_one_out import SelfContribution
from ralib.classification.likelihood import Spectra
from ralib.classification.model import Model
from ralib.classification.schedule_settings import ScheduleProgress, ScheduleSettings
from ralib.classification.sharding import Shard
from ralib.classification.state import IterationSettings, State
from ralib.classification.stored_spectra import StoredSpectra
from ralib.classification.thinning import most_useful, restrict_classes
from ralib.classification.typical_class import typical_power

OUTLYING_SEEDS = 20
"""Initial particles among the poorly explained ones, at least: a tenth of them is then found nine times in ten."""

POORLY_EXPLAINED_ONE_IN = 5
"""One in so many particles counts as poorly explained in the first exchange, half as many in every further one: first a
view that shares a class with others is found, then one so rare that few of the many initial particles would show it."""

FEWEST, SMALL_SHARE = 8, 0.2
"""A class of fewer members than both, the second times the mean, is refilled while classes are sharpened: no view
that is kept for being rare has fewer."""


def exchange_classes(
    model: Model,
    plan: ScheduleSettings,
    n_classes: int,
    generator: torch.Generator,
    at: ScheduleProgress,
    state: State,
    report: Report,
) -> tuple[State, str]:
    """Run one round of exchange.

    Parameters
    ----------
    model, plan, n_classes, generator
        See `ralib.classification.initialisation.initialize_from_particles`.
    at : ScheduleProgress
        Rings compared, and rounds of exchange before this one.
    state : State
        State of the particles.
    report : Callable[[str, State], None]
        Called with the stage's name and the state after every iteration but the last.

    Returns
    -------
    State
        State with the classes that stay.
    str
        A line for the log: how many classes were split, came and stay.
    """
    k, temperature = len(state.members), plan.temperatures[1]
    references = model.references(state, at.rings)
    extra = min(k, max(1, round(plan.split_share * n_classes), n_classes - k))
    largest = torch.argsort(state.members, descending=True, stable=True)[:extra]
    pairs = [(old, k + i) for i, old in enumerate(largest.tolist())]
    candidates, own = split_references(model, state, pairs, k + extra, at.rings)
    state = replace(state, own=own)
    if plan.outlying_share > 0:
        count = max(1, round(plan.outlying_share * n_classes))
        outlying = outlying_classes(model, plan, generator, at, state, references, count)
        candidates = torch.cat([candidates, outlying])
    for i in range(2):
        wide = i == 0 and at.exchanged < plan.wide
        settings = IterationSettings(at.rings, temperature, wide=wide, newton=1)
        state = iterate_centred(model, candidates, state, settings)
        candidates = model.references(state, at.rings)
        report("exchange", state)
    keep = most_useful(model, state, min(n_classes, len(candidates)))
    line = _exchange_line(keep, k, extra, len(candidates))
    state = restrict_classes(model, state, keep)
    settings = IterationSettings(at.rings, temperature, newton=1)
    return iterate_centred(model, candidates[keep], state, settings), line


def _exchange_line(keep: Tensor, k: int, split: int, n_candidates: int) -> str:
    """What became of k classes, of those split from them, and of outlying ones."""
    kept_split = int(((keep >= k) & (keep < k + split)).sum())
    line = f"{counted(split)} split, {kept_split} of the halves kept in place of others"
    if (outlying := n_candidates - k - split) > 0:
        kept = int((keep >= k + split).sum())
        line += f"; {counted(outlying)} made of poorly explained particles, {kept} kept"
    return line


def split_references(
    model: Model, state: State, pairs: list[tuple[int, int]], n_classes: int, rings: int
) -> tuple[Tensor, SelfContribution]:
    """Return references where the worse fitting half of some classes makes others.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Poses and classes.
    pairs : list of tuple of int
        (class to split, class that its worse fitting half makes).
    n_classes : int
        Number of classes k afterwards.
    rings : int
        Number of rings r.

    Returns
    -------
    Tensor of shape (k, r, m)
        Angular orders of the masked averages.
    SelfContribution
        Contribution of each particle to them.
    """
    averages, own = average_groups(model, state, split_classes(model, state, pairs), n_classes, rings)
    return model.masked(averages, rings), own


def split_classes(model: Model, state: State, pairs: list[tuple[int, int]]) -> Tensor:
    """Return the classes of the particles after the worse fitting half of some classes went to others.

    Where a class mixes two views, those of the rarer one fit its average worse.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Classes and contrasts.
    pairs : list of tuple of int
        (class to split, class that its worse fitting half makes).

    Returns
    -------
    Tensor of shape (n,)
        Classes.
    """
    index, shard = state.class_index, model.shard
    scale, where = shard.gather(state.scale), shard.gather(torch.where(model.joins, index, -1))
    new, middle = torch.full_like(state.members, -1, dtype=index.dtype), class_medians(scale, where, len(state.members))
    new[[old for old, _ in pairs]] = index.new_tensor([new for _, new in pairs])
    return torch.where((new[index] >= 0) & (state.scale < middle[index]), new[index], index)


def class_medians(values: Tensor, index: Tensor, n_classes: int) -> Tensor:
    """Return the median, the lower of two in the middle, over the members of every class.

    Parameters
    ----------
    values : Tensor of shape (n,)
        Values.
    index : Tensor of shape (n,)
        Class of each, negative for those of none.
    n_classes : int
        Number of classes k.

    Returns
    -------
    Tensor of shape (k,)
        Medians, NaN for a class without members.
    """
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(index[order], stable=True)]
    last = torch.searchsorted(index[order], torch.arange(-1, n_classes, device=index.device), right=True)
    members = last.diff()
    middle = values[order[(last[:-1] + (members - 1) // 2).clamp(0, len(values) - 1)]]
    return torch.where(members > 0, middle, torch.nan)


def outlying_classes(
    model: Model,
    plan: ScheduleSettings,
    generator: torch.Generator,
    at: ScheduleProgress,
    state: State,
    references: Tensor,
    count: int,
) -> Tensor:
    """Return references of candidate classes that the worst explained particles form among themselves.

    From more initial particles than usual, thinned faster, so that a rare view gets a class; few particles take little
    time.

    Parameters
    ----------
    model : Model
        The particles and the model.
    plan : ScheduleSettings
        Settings of the schedule.
    generator : torch.Generator
        Random numbers.
    at : ScheduleProgress
        Rings compared, and rounds of exchange before this one.
    state : State
        Poses, classes and fits.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages.
    count : int
        Number of candidate classes c.

    Returns
    -------
    Tensor of shape (c, r, m)
        Angular orders of the masked averages.
    """
    outlying = max(4 * count, model.shard.n // (POORLY_EXPLAINED_ONE_IN * 2**at.exchanged))
    rows = worst_fitting(model.particles.spectra, state, references, model.joins, outlying, model.shard)
    some, own = model.of(rows), model.shard.held(rows)
    plan = replace(plan, surplus=max(2 * plan.surplus, OUTLYING_SEEDS / count), thinning=0.6)
    part = State.blank(len(own), state.spread_px) if model.align else state.of(own)
    return some.references(initialize_from_particles(some, plan, count, generator, part), at.rings)


def worst_fitting(
    spectra: Spectra | StoredSpectra, state: State, references: Tensor, eligible: Tensor, count: int, shard: Shard
) -> Tensor:
    """Return the numbers of the particles of smallest log-likelihood over that expected for their CTF and noise.

    Parameters
    ----------
    spectra : Spectra or StoredSpectra
        Spectra of n particles.
    state : State
        Poses, classes and fits.
    references : Tensor of shape (k, r, m)
        Angular orders of the references.
    eligible : Tensor of shape (n,)
        Particles to choose from.
    count : int
        How many are returned.
    shard : Shard
        Which of all particles the tables are of.

    Returns
    -------
    Tensor of shape (count,)
        Numbers of particles among all.
    """
    typical = typical_power(references, state.members)
    expected = (spectra.power[:, : len(typical)] * typical).sum(1)
    share = torch.where(eligible, state.fit.amax(1) / expected.clamp_min(1e-12), torch.inf)
    worst = torch.argsort(shard.gather(share), stable=True)
    return worst[: min(count, int(shard.count(eligible)))].sort().values


def too_small(model: Model, state: State) -> list[int]:
    """Return the numbers of the classes that too few particles are left in to be of use.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Classes.

    Returns
    -------
    list of int
        Numbers of classes.
    """
    members = model.shard.counts(state.class_index, len(state.members), model.joins)
    least = min(FEWEST, SMALL_SHARE * float(members.sum()) / len(members))
    return torch.nonzero(members < least)[:, 0].tolist()


def pairs_with_largest(state: State, few: list[int]) -> list[tuple[int, int]]:
    """Return for each class of few members the large class that it takes half of, where there is one large enough.

    Parameters
    ----------
    state : State
        Class sizes.
    few : list of int
        Classes of few members.

    Returns
    -------
    list of tuple of int
        (class to split, class of few members).
    """
    largest = torch.argsort(state.members, descending=True, stable=True)[: len(few)].tolist()
    enough = [int(state.members[old]) >= 4 and old not in few for old in largest]
    return [(old, new) for old, new, large in zip(largest, few, enough, strict=True) if large]


def counted(n: int) -> str:
    """Return a number of classes in words."""
    return "1 class" if n == 1 else f"{n} classes"
