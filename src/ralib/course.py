"""The course of a classification: from single particles as references to the final classes.

    start      many random particles as references, at a resolution of a few details across the particle, soft
    thin       the least useful of them are dropped, down to the number of classes asked for
    exchange   the largest classes are split in two, all compete, the K most useful stay; several rounds
    sharpen    Bayes' rule as it is, more rings as long as the halves agree there, poses off the grid

A single particle at low dose is a poor reference, but its signal already outweighs its noise where an exhaustive
search may choose the pose. Starting beyond the lowest resolution matters: there all views look alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.expectation import Model, State, Step
from ralib.posterior import class_prices
from ralib.starts import keep_most_useful, particles_as_references


@dataclass(frozen=True)
class Plan:
    """The numbers of a course. Resolutions are details (full periods) across a particle.

    start_details, exchange_details   resolution of the first stages: at 6 a particle has its shape but no detail that
                              a single noisy particle could not show; at 10 views a few degrees from a mirror image of
                              each other come apart
    surplus                   seeds for every class asked for: a class needs a seed among its members
    temperatures              of start, exchange and end
    exchanges                 rounds; each splits the `newcomers` times K largest classes
    agreement                 rings are added while the halves' mean FRC there exceeds it
    final                     iterations of the last stage
    """

    start_details: float = 6.6
    exchange_details: float = 10.5
    surplus: float = 2.5
    temperatures: tuple[float, float, float] = (4.0, 2.0, 1.0)
    exchanges: int = 3
    newcomers: float = 0.3
    agreement: float = 0.2
    final: int = 6


class Course:
    """Runs a plan; `run` yields the state after every iteration with the name of its stage."""

    def __init__(self, model: Model, plan: Plan, n_classes: int, search_px: float, generator: torch.Generator) -> None:
        self.model, self.plan, self.k, self.generator = model, plan, n_classes, generator
        self.search_px = search_px
        self.log: list[str] = []
        self.references: Tensor | None = None

    def run(self, state: State) -> Iterator[tuple[str, State]]:
        """All stages from single particles on."""
        plan, rings = self.plan, self._rings(self.plan.start_details)
        usable = torch.nonzero((self.model.field.usable & ~self.model.held_out).cpu())[:, 0]
        seeds = min(len(usable), max(self.k + 1, round(plan.surplus * self.k)))
        chosen = usable[torch.randperm(len(usable), generator=self.generator)[:seeds]]
        references = self._seeds(state, chosen, rings)
        for i in range(3):
            radius = self.search_px if i < 2 else None
            state, references = self._iterate(references, state, rings, plan.temperatures[0], radius=radius)
            yield "start", state
        # Many narrow classes are pure; few at a time go, so that those that stay can take over their neighbours.
        middle, rings = rings, self._rings(plan.exchange_details)
        while len(references) > self.k:
            references, state = self._thin(references, state, max(self.k, round(0.75 * len(references))))
            state, references = self._iterate(references, state, middle, plan.temperatures[0])
            yield "thin", state
            middle = min(middle + 1, rings)
            references, state = self.model.references(state, middle)
        for _ in range(2):
            state, references = self._iterate(references, state, rings, plan.temperatures[1], newton=1)
            yield "classes", state
        yield from self.exchange(references, state, rings)

    def exchange(self, references: Tensor, state: State, rings: int) -> Iterator[tuple[str, State]]:
        """Rounds of newcomers, then the sharpening; also where a course begins from given classes."""
        plan, k = self.plan, self.k
        extra = max(1, round(plan.newcomers * k))
        for round_ in range(plan.exchanges if k > 1 else 0):
            largest = torch.argsort(state.members, descending=True, stable=True)[:extra]
            crowd = self._split(state, largest, rings)
            for _ in range(2):
                state, crowd = self._iterate(crowd, state, rings, plan.temperatures[1], newton=1)
                yield "exchange", state
            keep = keep_most_useful(self._priced(state), k)
            came = int((keep >= k).sum())
            told = f"{extra} classes were split, {came} of the new ones stay for others"
            self.log.append(f"exchange {round_ + 1}: {told}")
            references, state = crowd[keep], _restricted(state, keep)
            state, references = self._iterate(references, state, rings, plan.temperatures[1], newton=1)
            yield "exchange", state
        yield from self.sharpen(references, state, rings)

    def sharpen(self, references: Tensor, state: State, rings: int) -> Iterator[tuple[str, State]]:
        """The last stage: resolution grows with the agreement of the halves."""
        plan, last = self.plan, self.plan.temperatures[2]
        state, references = self._iterate(references, state, rings, last, radius=0.5 * self.search_px)
        yield "sharpen", state
        for i in range(plan.final):
            rings = self._grown(state, rings)
            references, state = self.model.references(state, rings, centre=False)
            newton = 1 if i < plan.final - 2 else 2
            state, references = self._iterate(references, state, rings, last, newton=newton, centre=i < 2)
            yield "sharpen", state

    def _iterate(
        self,
        references: Tensor,
        state: State,
        rings: int,
        temperature: float,
        *,
        radius: float | None = None,
        newton: int = 0,
        centre: bool = True,
    ) -> tuple[State, Tensor]:
        model = self.model
        step = Step(rings, temperature, model.shifts(rings, radius), newton=newton)
        state = model.iterate(references, state, step)
        references, following = model.references(state, rings, centre=centre)
        self.references = references
        return following, references

    def _rings(self, details: float) -> int:
        return self.model.field.rings_for(details)

    def _seeds(self, state: State, index: Tensor, rings: int) -> Tensor:
        """References (b, r, m) from single particles, behind the mask."""
        grid, mask = self.model.field.grid, self.model.field.mask
        index = index.to(grid.device)
        samples = particles_as_references(grid, self.model.field.spectra[index], rings)
        samples = samples * grid.phase(state.origin_xy_px[index], rings)
        masked = grid.transform(grid.image(samples) * mask)[:, :rings]
        return grid.orders_of(masked, self.model.field.orders(rings))

    def _thin(self, references: Tensor, state: State, keep: int) -> tuple[Tensor, State]:
        if len(references) <= keep:
            return references, state
        index = keep_most_useful(self._priced(state), keep)
        return references[index], _restricted(state, index)

    def _priced(self, state: State) -> Tensor:
        """Fits (n, k) less what balance charges the members of large classes."""
        return state.fit + class_prices(state.fit, 1.0, self.model.balance)

    def _split(self, state: State, classes: Tensor, rings: int) -> Tensor:
        """References of all classes, and of new ones: the worse fitting half of the members of some.

        Where a class mixes two views, those of the rarer one fit its average worse.
        """
        index = state.class_index.clone()
        for new, old in enumerate(classes.tolist()):
            member = state.class_index == old
            middle = torch.where(member, state.scale, torch.nan).nanmedian()
            index = torch.where(member & (state.scale < middle), self.k + new, index)
        averages = self.model.averages(state, index, self.k + len(classes), rings)
        return self.model.masked(averages.orders, rings)

    def _grown(self, state: State, rings: int) -> int:
        """As many rings as the halves agree on, at most two more than now."""
        assert state.averages is not None
        frc, members = state.averages.frc, state.members
        mean = (frc * members[:, None]).sum(0) / members.sum().clamp_min(1)
        agree = torch.cumprod((mean > self.plan.agreement).int(), 0)
        return max(rings, min(int(agree.sum()), rings + 2, self.model.field.grid.n_rings))


def _restricted(state: State, keep: Tensor) -> State:
    """A state of which only some classes remain; particles move to the best of them."""
    fit = state.fit[:, keep]
    index = fit.argmax(1)
    members = torch.nn.functional.one_hot(index, len(keep)).float().sum(0)
    return replace(state, fit=fit, class_index=index, members=members)
