"""The schedule of a classification, from the initialisation by single particles to convergence at the final classes.

- start: many random particles as references, at a resolution of a few details across the particle, at high temperature
- thin: the least useful classes are dropped, down to the number wanted
- exchange: the largest classes are split in two, all compete, and the K most useful stay; several rounds
- sharpen: more rings as long as the halves agree there, poses refined off the grid
- clean: where much junk is recognised in these classes, it leaves the averages and gets a class of its own in the end;
  exchange and sharpen again with the other classes

A single particle at low dose is a poor reference, but its signal already exceeds its noise where an exhaustive search
chooses the pose. The start must not be at the lowest resolution, where all views look alike.

Most iterations search only the shifts next to each particle's last origin. A particle that early, poor references moved
off centre would stay there and end in a class of another view, so that exchange and sharpening begin with a search over
all shifts from the box centre.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.centering import centre_classes
from ralib.classification.earlier_classes import EarlierClasses
from ralib.classification.em import average_groups, e_step, iterate
from ralib.classification.leave_one_out import SelfContribution
from ralib.classification.m_step import RingAverages
from ralib.classification.model import Model
from ralib.classification.priors import class_prices
from ralib.classification.residuals import noise_ratio
from ralib.classification.schedule_settings import GROWTH, WORTH, ScheduleProgress, ScheduleSettings
from ralib.classification.seeding import keep_most_useful, particles_as_references, poorly_explained
from ralib.classification.start_references import StartReferences
from ralib.classification.state import IterationSettings, State

STRANGE_SEEDS = 20
"""Seeds among poorly explained particles, at least: a tenth of them is then found nine times in ten."""

OUTLYING_SHARE = 5
"""One in so many particles counts as poorly explained in the first exchange, half as many in every further one: first a
view that shares a class with others is found, then one so rare that few of the many seeds would fall on it."""

FEWEST, SMALL_SHARE = 8, 0.2
"""A class of fewer members than either, the second times the mean, is refilled while classes are sharpened: no view
that is kept for being rare has fewer."""

TOLERANCE = 0.005
"""Share of the mean log-likelihood that a step may lose: fits leave out a particle's own share, so that a converged
classification rises and falls by a little."""


CLEANED_FROM, CLEANED_TO = 0.05, 0.3
"""Share of recognised junk from which the classes are made again without it, half a class's share at least, and share
of the particles that must be left. Less junk takes no class worth having; if nearly all were junk, it is rather the
judgement that errs."""


Observe = Callable[["ClassificationSchedule", str, State], None]
Recognise = Callable[["ClassificationSchedule", State], Tensor]


def _no_observer(schedule: ClassificationSchedule, stage: str, state: State) -> None:
    """Does nothing, until an observer is set."""


class ClassificationSchedule:
    """Runs the stages of a classification until convergence.

    `position` and the state of the same iteration, saved, let another schedule continue from there.

    Parameters
    ----------
    model : Model
        The particles and the model.
    plan : ScheduleSettings
        Settings.
    n_classes : int
        Number of classes wanted.
    generator : torch.Generator
        Random numbers.
    given : StartReferences | EarlierClasses | None, optional
        References to begin with, or classes that some of the particles have already; by default single particles.

    Attributes
    ----------
    observe : Callable[[ClassificationSchedule, str, State], None]
        Called after every iteration with the schedule, the stage's name and the state; does nothing until it is set.
    recognise : Callable[[ClassificationSchedule, State], Tensor], optional
        Which of all particles (n,) are surely junk, called with the schedule and its state at the end of its stages.
    until : int
        Iterations of the last stage that it runs.
    rows : Tensor of shape (m,), optional
        Numbers of its particles among all, where they are a sample of them.
    sample : tuple of ClassificationSchedule and State, optional
        The schedule and state of the sample on which the stages run at present.
    """

    def __init__(
        self,
        model: Model,
        plan: ScheduleSettings,
        n_classes: int,
        generator: torch.Generator,
        given: StartReferences | EarlierClasses | None = None,
    ) -> None:
        self.model, self.plan, self.k, self.generator, self.given = model, plan, n_classes, generator, given
        self.observe: Observe = _no_observer
        self.recognise: Recognise | None = None
        self.log: list[str] = []
        self.references: Tensor | None = None
        self.noise: list[Tensor] = []
        self.position = ScheduleProgress(rings=self._rings(plan.exchange_details))
        self.until = plan.final + 1
        self.rows: Tensor | None = None
        self.sample: tuple[ClassificationSchedule, State] | None = None

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self.position.sharpened >= self.until

    def run(self, state: State) -> State:
        """Run all stages from the present position; the first starts from single particles. Returns the final state."""
        if self.sample is None and not self.position.begun:
            able = self._able()
            if self.plan.takes_sample(len(able), self.k):
                self.sample = self._of_sample(self._chosen(able, self.plan.least_of_sample(self.k)), state)
        if self.sample is not None:
            state = self._after_sample(state)
        elif not self.position.begun:
            state = self._begin(state)
        state = self._refined(state)
        return self._refined(state) if self._cleaned(state) else state

    def _refined(self, state: State) -> State:
        """The state after the rounds of exchange and iterations of sharpening that are left."""
        at, plan = self.position, self.plan
        for _ in range(at.exchanged, plan.exchanges if self.k > 1 else 0):
            state = self._with_noise_left(self._exchange(state, self.model.references(state, at.rings)))
            at.exchanged += 1
            at.steps += 1
            self._done("exchange", state)
        while not self.finished:
            state = self._sharpen(state)
            at.sharpened += 1
            at.steps += 1
            self._done("sharpen", state)
        return state

    def _cleaned(self, state: State) -> bool:
        """Set recognised junk aside, and return whether there is so much that the last stages are run again."""
        at, plan, model = self.position, self.plan, self.model
        if at.cleaned or self.recognise is None or self.k == 1 or min(plan.exchanges, plan.cleaned_exchanges) == 0:
            return False
        at.cleaned = True
        junk = self.recognise(self, state)[model.shard.rows].to(model.field.grid.device) & model.field.typical
        count, before = int(model.shard.count(junk)), int(model.shard.count(model.field.typical))
        if not max(CLEANED_FROM, 0.5 / self.k) * before <= count <= (1 - CLEANED_TO) * before:
            return False
        self.set_aside(junk)
        at.exchanged, at.sharpened = max(0, plan.exchanges - plan.cleaned_exchanges), 0
        share = 100 * count / model.shard.n
        self.log.append(f"{count} particles ({share:.1f}%) are junk: they leave the averages, exchange begins anew")
        return True

    def set_aside(self, junk: Tensor) -> None:
        """Leave `junk` (n,) out of all averages from now on, and a class to it in the end."""
        self.model = replace(self.model, field=self.model.field.setting_aside(junk))
        self.k -= 1

    def part(self, rows: Tensor) -> ClassificationSchedule:
        """Return the schedule of a sample, ascending numbers (m,) of particles, up to where all join it."""
        some = ClassificationSchedule(self.model.of(rows), self.plan, self.k, self.generator, self.given)
        some.log, some.observe, some.recognise, some.rows = self.log, self.observe, self.recognise, rows
        some.until = max(0, self.until - self.plan.joint)
        return some

    def enough(self, state: State) -> int:
        """Return how many particles the sample of this schedule, whose classes have begun, should have."""
        model, rings = self.model, self.position.rings
        poses = len(model.shifts(rings, wide=False)) * 2 * model.field.orders(rings) * (2 if model.mirror else 1)
        members = members_wanted(float(model.shard.median(state.fit.amax(1))), self.k * poses, self.plan.sample_nats)
        return max(model.shard.n, members * self.k)

    def _of_sample(self, rows: Tensor, state: State) -> tuple[ClassificationSchedule, State]:
        """The schedule of a sample, and the sample's state among that of all."""
        return self.part(rows), state.of(self.model.shard.held(rows))

    def _after_sample(self, state: State) -> State:
        """The state after all stages that are for a sample, and the iteration in which all particles join it."""
        assert self.sample is not None
        (some, part), self.sample = self.sample, None
        some.observe, some.recognise = self.observe, self.recognise
        if not some.position.begun:
            part = some._begin(part)
        first = replace(some.position, begun=False, steps=0) == ScheduleProgress(rings=some.position.rings)
        least = self.plan.least_of_sample(self.k)
        if first and some.model.shard.n == least:
            wanted, able = some.enough(part), self._able()
            if WORTH * wanted > len(able):
                return self._joined(*self._taken_over(some, part, state))
            if wanted > WORTH * least:
                larger, others = self._of_sample(self._chosen(able, wanted), state)
                some, part = larger, larger._joined(*larger._taken_over(some, part, others))
        references, state = self._taken_over(some, some.run(part), state)
        del some, part  # and with them the memory of the sample's spectra
        return self._joined(references, state)

    def _begin(self, state: State) -> State:
        """The first stage, and the noise that its classes leave."""
        state = self._with_noise_left(self._initialized(state))
        self.position.begun = True
        self.position.steps += 1
        self._done("classes", state)
        return state

    def _done(self, stage: str, state: State) -> None:
        self.observe(self, stage, state)

    def _taken_over(self, some: ClassificationSchedule, found: State, state: State) -> tuple[Tensor, State]:
        """References of the classes of a sample, and the state of all particles with what the sample's says of them."""
        for ratio in some.noise:
            self.use_noise(ratio)
        self.k = some.k
        self.position = replace(some.position, sharpened=min(some.position.sharpened, some.until))
        own = None
        if self.rows is None and some.rows is not None and found.own is not None:
            # The sample's members have their noise in the references that all are compared with.
            own = found.own.among(self.model.shard.held(some.rows), len(self.model.shard))
        self.log.append(f"{some.model.shard.n} particles made classes, and {self.model.shard.n} joined them")
        state = replace(state, mean_scale=found.mean_scale, spread_px=found.spread_px, own=own)
        return some.model.references(found, self.position.rings), state

    def _joined(self, references: Tensor, state: State) -> State:
        """The state after all particles, whose poses are not known, have joined the classes of a sample."""
        at = self.position
        if self.model.align:
            state = self._placed(self.model, references, state)
        sharpening = 0 < at.sharpened < self.until
        state, _ = self._iterate(references, state, at.rings, 1.0, newton=2 if sharpening else 1, centre=False)
        at.sharpened += sharpening
        at.steps += 1
        self._done("all", state)
        return state

    def _placed(self, model: Model, references: Tensor, state: State) -> State:
        """The state with the places that a search over all shifts finds, at little detail, which is enough for them."""
        rings = min(self.position.rings, self._rings(self.plan.start_details))
        coarse = references[:, :rings, : model.field.orders(rings)].contiguous()
        expected = e_step(model, coarse, state, IterationSettings(rings, 1.0, wide=True))
        return replace(state, origin_xy_px=expected.poses[0].origin_xy_px)

    def _with_noise_left(self, state: State) -> State:
        """The state after the noise is what the classes leave of the particles."""
        ratio = noise_ratio(self.model, state)
        self.use_noise(ratio)
        assert state.own is not None
        share = state.own.share / ratio[: state.own.share.shape[1]]
        return replace(state, own=replace(state.own, share=share))

    def use_noise(self, ratio: Tensor) -> None:
        """Assume `ratio` (R,) times the noise power from now on."""
        self.noise.append(ratio)
        self.model = replace(self.model, field=self.model.field.with_noise(ratio))

    def _initialized(self, state: State) -> State:
        """The state after the first stage: from single particles, from references, or from earlier classes."""
        if self.given is None:
            return self.initialize(state)
        if isinstance(self.given, StartReferences):
            return self._initialize_with_given(self.given, state)
        return self._initialize_with_earlier(self.given, state)

    def _initialize_with_given(self, given: StartReferences, state: State) -> State:
        """The first stage from references that are given."""
        rings = self.position.rings
        references = given.matched(self.model, state, rings)
        for wide in (True, False):
            state, references = self._iterate(references, state, rings, self.plan.temperatures[1], wide=wide, newton=1)
            if wide:
                self._done("start", state)
        return state

    def _initialize_with_earlier(self, earlier: EarlierClasses, state: State) -> State:
        """The first stage from classes that some of the particles have; the others are placed among them."""
        model, at = self.model, self.position
        if self.plan.exchanges == 0:
            at.rings = max(at.rings, earlier.rings(model.field))
        averages, own = earlier.averages(model, state, at.rings)
        references, rows = model.masked(averages, at.rings), earlier.new_particles(model, state)
        if model.align and len(rows):
            new, origin = model.shard.held(rows), state.origin_xy_px.clone()
            origin[new] = self._placed(model.of(rows), references, state.of(new)).origin_xy_px
            state = replace(state, origin_xy_px=origin)
        state = replace(state, own=own)
        state, _ = self._iterate(references, state, at.rings, self.plan.temperatures[1], newton=1)
        return state

    def _chosen(self, able: Tensor, count: int) -> Tensor:
        """Numbers of `count` random ones of some particles (m,), ascending, on the device."""
        chosen = torch.randperm(len(able), generator=self.generator)[:count].sort().values
        return able[chosen].to(self.model.field.grid.device)

    def _able(self) -> Tensor:
        """Numbers (m,) of all particles from which classes may begin."""
        return torch.nonzero(self.model.shard.gather(self.model.joins).cpu())[:, 0]

    def initialize(self, state: State) -> State:
        """Initialise the classes: from single particles as references to the number of classes wanted."""
        plan, rings, middle = self.plan, self.position.rings, self._rings(self.plan.start_details)
        usable = self._able()
        seeds = min(len(usable), max(self.k + 1, round(plan.surplus * self.k)))
        chosen = usable[torch.randperm(len(usable), generator=self.generator)[:seeds]]
        references = self._seeds(state, chosen, middle)
        for i in range(3):
            state, references = self._iterate(references, state, middle, plan.temperatures[0], wide=i < 2)
            self._done("start", state)
        # Many narrow classes are pure; few at a time go, so that those that stay can take over their neighbours.
        while len(references) > self.k:
            keep = self._most_useful(state, max(self.k, int(plan.thinning * len(references))))
            state, references = self._restricted(state, keep), references[keep]
            state, _ = self._iterate(references, state, middle, plan.temperatures[0])
            self._done("thin", state)
            middle = min(middle + 1, rings)
            references = self.model.references(state, middle)
        for i in range(2):
            if i:
                self._done("classes", state)
            state, references = self._iterate(references, state, rings, plan.temperatures[1], newton=1)
        return state

    def _exchange(self, state: State, references: Tensor) -> State:
        """One round: split and outlying classes compete with those there are, and as many as were asked for stay."""
        at, plan, k = self.position, self.plan, len(state.members)
        extra = min(k, max(1, round(plan.split_share * self.k), self.k - k))
        largest = torch.argsort(state.members, descending=True, stable=True)[:extra]
        candidates, own = self._split(state, [(old, k + i) for i, old in enumerate(largest.tolist())], k + extra)
        state = replace(state, own=own)
        if plan.outlying_share > 0:
            count = max(1, round(plan.outlying_share * self.k))
            candidates = torch.cat([candidates, self._outlying_classes(state, references, count)])
        for i in range(2):
            wide = i == 0 and at.exchanged < plan.wide
            state, candidates = self._iterate(candidates, state, at.rings, plan.temperatures[1], newton=1, wide=wide)
            self._done("exchange", state)
        keep = self._most_useful(state, min(self.k, len(candidates)))
        split, outlying = int(((keep >= k) & (keep < k + extra)).sum()), int((keep >= k + extra).sum())
        line = f"{_counted(extra)} split, {split} of the new ones stay for others"
        if len(candidates) > k + extra:
            came = len(candidates) - k - extra
            line += f"; {_counted(came)} of poorly explained particles came, {outlying} of them stay"
        self.log.append(f"exchange {at.exchanged + 1}: {line}")
        state, _ = self._iterate(
            candidates[keep], self._restricted(state, keep), at.rings, plan.temperatures[1], newton=1
        )
        return state

    def _sharpen(self, state: State) -> State:
        """Run one iteration of the last stage: the resolution grows with the agreement of the halves.

        The stage ends with the previous state if particles fit worse afterwards, as with more rings than the data
        support.
        """
        at, plan, before = self.position, self.plan, replace(self.position)
        if at.sharpened > 0:
            at.rings = self._grown(state, at.rings)
        step, few = state, self._too_small(state) if at.sharpened < plan.final - 1 else []
        if few:
            step, references = self._refilled(state, few)
        else:
            references = self.model.references(state, at.rings)
        step, _ = self._iterate(
            references, step, at.rings, plan.temperatures[1],
            wide=at.sharpened == 0 and plan.wide > 0, centre=at.sharpened < 3,
            newton=2 if at.sharpened in (0, plan.final - 1, plan.final) else 1,
        )  # fmt: skip
        # The first two iterations differ in how far they search: their fits are not to be compared.
        if few or before.sharpened < 2 or self._objective(step) >= (1 - TOLERANCE) * self._objective(state):
            return step
        self.log.append(f"sharpening ended after {before.sharpened} iterations: particles fitted worse in the next")
        self.references = self.model.references(state, before.rings)
        at.rings, at.sharpened = before.rings, plan.final
        return state

    def filled(self, state: State) -> State:
        """Return the final state with all classes in use: empty ones take the worse fitting halves of the largest.

        Where views differ by less than the noise, as those of a nearly round particle do, one class explains as much as
        two, and the smaller loses its members to the larger, however often both are initialised.
        """
        few = self._too_small(state)
        pairs = self._shared(state, few)
        if not pairs:
            return state
        self.log.append(f"{_counted(len(pairs))} ran empty in the end and took halves of the largest")
        index = self._halved(state, pairs)
        fit = state.fit.clone()
        for old, new in pairs:
            moved = (index == new) & (state.class_index == old)
            fit[moved, new] = state.fit[moved, old]
        averages, own = average_groups(self.model, state, index, len(state.members), self.position.rings)
        self.references = self.model.masked(averages, self.position.rings)
        members = self.model.members(index, len(state.members))
        return replace(state, class_index=index, fit=fit, members=members, averages=averages, own=own)

    def without_empty(self, state: State) -> State:
        """Return the final state without the classes that have no particle, and without their references."""
        assert self.references is not None
        assert state.averages is not None
        keep = torch.nonzero(state.members >= 1)[:, 0]
        self.references = self.references[keep]
        self.log.append(f"{_counted(len(state.members) - len(keep))} without particles left out")
        averages = state.averages
        kept = RingAverages(averages.orders[keep], averages.halves[:, keep], averages.frc[keep], averages.gain[keep])
        return replace(self._restricted(state, keep), averages=kept)

    def _objective(self, state: State) -> float:
        """Mean log-likelihood of the particles in their classes."""
        return float(self.model.shard.mean(state.fit.amax(1), self.model.field.typical))

    def _too_small(self, state: State) -> list[int]:
        """Classes that too few particles are left in to be of use."""
        counted = self.model.shard.counts(state.class_index[self.model.joins], len(state.members))
        least = min(FEWEST, SMALL_SHARE * float(counted.sum()) / len(counted))
        return torch.nonzero(counted < least)[:, 0].tolist()

    def _refilled(self, state: State, few: list[int]) -> tuple[State, Tensor]:
        """References of all classes where those of `few` members begin anew with halves of the largest."""
        pairs = self._shared(state, few)
        line = f"{_counted(len(pairs))} ran empty, refilled from the largest"
        self.log.append(f"sharpen {self.position.sharpened + 1}: {line}")
        references, own = self._split(state, pairs, len(state.members))
        return replace(state, own=own), references

    def _iterate(
        self,
        references: Tensor,
        state: State,
        rings: int,
        temperature: float,
        *,
        wide: bool = False,
        newton: int = 0,
        centre: bool = True,
    ) -> tuple[State, Tensor]:
        """One iteration; `wide` searches all shifts, from the box centre."""
        model = self.model
        state = iterate(model, references, state, IterationSettings(rings, temperature, wide=wide, newton=newton))
        if centre:
            state = centre_classes(model, state)
        self.references = model.references(state, rings)
        return state, self.references

    def _rings(self, details: float) -> int:
        return self.model.field.rings_for(details)

    def _seeds(self, state: State, index: Tensor, rings: int) -> Tensor:
        """References (b, r, m) from single particles of all, behind the mask."""
        grid, mask = self.model.field.grid, self.model.field.mask

        def centred(own: Tensor) -> Tensor:
            samples = particles_as_references(grid, self.model.field.spectra[own], rings)
            return samples * grid.phase(state.origin_xy_px[own], rings)

        samples = self.model.shard.from_holders(index.to(grid.device), centred)
        return grid.orders_of_image(grid.image(samples) * mask, rings, self.model.field.orders(rings))

    def _most_useful(self, state: State, keep: int) -> Tensor:
        """Which classes to keep; fits count less what balance charges the members of large classes."""
        fit, shard = state.fit[self.model.field.typical], self.model.shard
        return keep_most_useful(fit + class_prices(fit, 1.0, self.model.balance, shard), keep, shard)

    def _shared(self, state: State, few: list[int]) -> list[tuple[int, int]]:
        """(largest class, class of few members) for all of the latter for which there is a class large enough."""
        largest = torch.argsort(state.members, descending=True, stable=True)[: len(few)].tolist()
        enough = [int(state.members[old]) >= 4 and old not in few for old in largest]
        return [(old, new) for old, new, large in zip(largest, few, enough, strict=True) if large]

    def _split(self, state: State, pairs: list[tuple[int, int]], n_classes: int) -> tuple[Tensor, SelfContribution]:
        """References of `n_classes` where the worse fitting half of some classes makes others; who is in them."""
        index = self._halved(state, pairs)
        averages, own = average_groups(self.model, state, index, n_classes, self.position.rings)
        return self.model.masked(averages, self.position.rings), own

    def _halved(self, state: State, pairs: list[tuple[int, int]]) -> Tensor:
        """Return classes (n,) after the worse fitting half of some went to others; pairs are (class to split, other).

        Where a class mixes two views, those of the rarer one fit its average worse.
        """
        index, shard = state.class_index.clone(), self.model.shard
        scale, where = shard.gather(state.scale), shard.gather(torch.where(self.model.joins, state.class_index, -1))
        for old, new in pairs:
            middle = torch.where(where == old, scale, torch.nan).nanmedian()
            index = torch.where((state.class_index == old) & (state.scale < middle), new, index)
        return index

    def _outlying_classes(self, state: State, references: Tensor, count: int) -> Tensor:
        """Return references of `count` candidate classes that the worst explained particles form among themselves.

        From more initial particles than usual, thinned faster, so that a rare view gets a class; few particles take
        little time.
        """
        model, rings = self.model, self.position.rings
        outlying = max(4 * count, model.shard.n // (OUTLYING_SHARE * 2**self.position.exchanged))
        rows = poorly_explained(model.field.spectra, state, references, model.joins, outlying, model.shard)
        sub = model.of(rows)
        plan = replace(self.plan, surplus=max(2 * self.plan.surplus, STRANGE_SEEDS / count), thinning=0.6)
        schedule = ClassificationSchedule(sub, plan, count, self.generator)
        own = model.shard.held(rows)
        part = State.blank(len(own), state.spread_px) if model.align else state.of(own)
        return sub.references(schedule.initialize(part), rings)

    def _grown(self, state: State, rings: int) -> int:
        """As many rings as the halves agree on, at most GROWTH more than now."""
        assert state.averages is not None
        frc, members = state.averages.frc, state.members
        mean = (frc * members[:, None]).sum(0) / members.sum().clamp_min(1)
        agree = torch.cumprod((mean > self.plan.agreement).int(), 0)
        return max(rings, min(int(agree.sum()), rings + GROWTH, self.model.field.grid.n_rings))

    def _restricted(self, state: State, keep: Tensor) -> State:
        """A state of which only some classes remain; particles move to the best of them."""
        fit = state.fit[:, keep]
        index = fit.argmax(1)
        members = self.model.shard.counts(index, len(keep)).float()
        own = None if state.own is None else state.own.restricted(keep, state.fit.shape[1])
        return replace(state, fit=fit, class_index=index, members=members, own=own)


def members_wanted(fit: float, n_poses: int, nats: float) -> int:
    """Return how many members a class needs so that its average is much better than one of its particles.

    The SSNR of an average is the sum of its members'. A particle's is measured by its log-likelihood, less what noise
    reaches by chance: the best of N poses, the logarithm of N.

    Parameters
    ----------
    fit : float
        Log-likelihood of the usual particle in its class.
    n_poses : int
        Number of poses compared, in all classes.
    nats : float
        What the members are to have together.

    Returns
    -------
    int
        Number of members.
    """
    return math.ceil(nats / max(fit - math.log(n_poses), 1.0))


def _counted(n: int) -> str:
    return "1 class" if n == 1 else f"{n} classes"
