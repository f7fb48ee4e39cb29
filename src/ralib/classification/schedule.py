"""The schedule of a classification, from the initialisation by single particles to convergence at the final classes.

- start: many random particles as references, at a resolution of a few details across the particle, at high temperature
- thin: the least useful classes are dropped, down to the number wanted
- exchange: the largest classes are split in two, all compete, and the K most useful stay; several rounds
- sharpen: more rings as long as the halves agree there, poses refined off the grid
- clean: where much junk is recognised in these classes, it leaves the averages and gets a class of its own in the end;
  exchange and sharpen again with the other classes

The first two are in `initialisation` with `thinning`, the third in `exchange`.

Most iterations search only the shifts next to each particle's last origin. A particle that early, poor references moved
off centre would stay there and end in a class of another view, so that exchange and sharpening begin with a search over
all shifts from the box centre.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.earlier_classes import EarlierClasses
from ralib.classification.em import average_groups, iterate, iterate_centred
from ralib.classification.exchange import (
    counted,
    exchange_classes,
    pairs_with_largest,
    split_classes,
    split_references,
    too_small,
)
from ralib.classification.initialisation import (
    initialize_from_earlier,
    initialize_from_particles,
    initialize_from_references,
    place_particles,
)
from ralib.classification.model import Model
from ralib.classification.residuals import noise_ratio
from ralib.classification.schedule_settings import GROWTH, WORTH, ScheduleProgress, ScheduleSettings, members_wanted
from ralib.classification.start_references import StartReferences
from ralib.classification.state import IterationSettings, State

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
        self.position = ScheduleProgress(rings=model.particles.rings_for(plan.exchange_details))
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
            eligible = self.model.eligible()
            if self.plan.takes_sample(len(eligible), self.k):
                self.sample = self._of_sample(self._chosen(eligible, self.plan.first_sample(self.k)), state)
        if self.sample is not None:
            state = self._after_sample(state)
        elif not self.position.begun:
            state = self._begin(state)
        state = self._refined(state)
        return self._refined(state) if self._cleaned(state) else state

    def _refined(self, state: State) -> State:
        """The state after the rounds of exchange and iterations of sharpening that are left."""
        state, at = self._exchanged(state), self.position
        while not self.finished:
            state = self._sharpen(state)
            at.sharpened += 1
            at.steps += 1
            self._done("sharpen", state)
        self.references = self.model.references(state, at.rings)
        return state

    def _exchanged(self, state: State) -> State:
        """The state after the rounds of exchange that are left."""
        at = self.position
        for _ in range(at.exchanged, self.plan.exchanges if self.k > 1 else 0):
            state = self._with_noise_left(self._exchange(state))
            at.exchanged += 1
            at.steps += 1
            self._done("exchange", state)
        return state

    def _cleaned(self, state: State) -> bool:
        """Set recognised junk aside, and return whether there is so much that the last stages are run again."""
        at, plan, model = self.position, self.plan, self.model
        if at.cleaned or self.recognise is None or self.k == 1 or min(plan.exchanges, plan.cleaned_exchanges) == 0:
            return False
        at.cleaned = True
        junk = self.recognise(self, state)[model.shard.rows].to(model.particles.grid.device) & model.particles.typical
        count, before = int(model.shard.count(junk)), int(model.shard.count(model.particles.typical))
        if not max(CLEANED_FROM, 0.5 / self.k) * before <= count <= (1 - CLEANED_TO) * before:
            return False
        self.set_aside(junk)
        at.exchanged, at.sharpened = max(0, plan.exchanges - plan.cleaned_exchanges), 0
        share = 100 * count / model.shard.n
        self.log.append(f"{count} particles ({share:.1f}%) are junk: they leave the averages, exchange begins anew")
        return True

    def set_aside(self, junk: Tensor) -> None:
        """Leave `junk` (n,) out of all averages from now on, and a class to it in the end."""
        self.model = replace(self.model, particles=self.model.particles.setting_aside(junk))
        self.k -= 1

    def part(self, rows: Tensor) -> ClassificationSchedule:
        """Return the schedule of a sample, ascending numbers (m,) of particles, up to where all join it."""
        some = ClassificationSchedule(self.model.sample(rows), self.plan, self.k, self.generator, self.given)
        some.log, some.observe, some.recognise, some.rows = self.log, self.observe, self.recognise, rows
        some.until = max(0, self.until - self.plan.joint)
        return some

    def sample_size(self, state: State) -> int:
        """Return how many particles the sample of this schedule, whose classes have begun, should have."""
        model, rings = self.model, self.position.rings
        poses = len(model.shifts(rings, wide=False)) * 2 * model.particles.orders(rings) * (2 if model.mirror else 1)
        members = members_wanted(float(model.shard.median(state.fit.amax(1))), self.k * poses, self.plan.sample_nats)
        return max(model.shard.n, members * self.k)

    def _of_sample(self, rows: Tensor, state: State) -> tuple[ClassificationSchedule, State]:
        """The schedule of a sample, and the sample's state among that of all."""
        return self.part(rows), state.of(self.model.shard.held(rows))

    def _after_sample(self, state: State) -> State:
        """The state after all stages that are for samples, and the iteration in which all particles join them."""
        assert self.sample is not None
        (some, part), self.sample = self.sample, None
        some.observe, some.recognise = self.observe, self.recognise
        if not some.position.begun:
            part = some._begin(part)
        first = replace(some.position, begun=False, steps=0) == ScheduleProgress(rings=some.position.rings)
        if first and some.model.shard.n == self.plan.first_sample(self.k):
            some, part = self._enlarged(some, part, some.sample_size(part), state)
        if some is not self and some.model.shard.n < self.plan.least_of_sample(self.k) and not some.position.cleaned:
            some, part = self._enlarged(some, some._exchanged(part), self.plan.least_of_sample(self.k), state)
        if some is self:
            return part
        references, state = self._taken_over(some, some.run(part), state)
        del some, part  # and with them the memory of the sample's spectra
        return self._joined(references, state)

    def _enlarged(
        self, some: ClassificationSchedule, part: State, wanted: int, state: State
    ) -> tuple[ClassificationSchedule, State]:
        """The sample and its state, enlarged to the particles wanted; this schedule itself where it has few more."""
        eligible = self.model.eligible()
        if WORTH * wanted > len(eligible):
            return self, self._joined(*self._taken_over(some, part, state))
        if wanted <= WORTH * some.model.shard.n:
            return some, part
        larger, others = self._of_sample(self._chosen(eligible, wanted), state)
        return larger, larger._joined(*larger._taken_over(some, part, others))

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
            state = place_particles(self.model, self.plan, references, state, at.rings)
        sharpening = 0 < at.sharpened < self.until
        settings = IterationSettings(at.rings, 1.0, newton=2 if sharpening else 1)
        state = iterate(self.model, references, state, settings)
        at.sharpened += sharpening
        at.steps += 1
        self._done("all", state)
        return state

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
        self.model = replace(self.model, particles=self.model.particles.with_noise(ratio))

    def _initialized(self, state: State) -> State:
        """The state after the first stage: from single particles, from references, or from earlier classes."""
        model, plan, at, given = self.model, self.plan, self.position, self.given
        if given is None:
            return initialize_from_particles(model, plan, self.k, self.generator, state, self._done)
        if isinstance(given, StartReferences):
            return initialize_from_references(model, plan, given, state, self._done)
        if plan.exchanges == 0:
            at.rings = max(at.rings, given.rings(model.particles))
        return initialize_from_earlier(model, plan, given, state, at.rings)

    def _chosen(self, eligible: Tensor, count: int) -> Tensor:
        """Numbers of `count` random ones of some particles (m,), ascending, on the device."""
        chosen = torch.randperm(len(eligible), generator=self.generator)[:count].sort().values
        return eligible[chosen].to(self.model.particles.grid.device)

    def _exchange(self, state: State) -> State:
        """The state after one round of exchange."""
        at = self.position
        state, line = exchange_classes(self.model, self.plan, self.k, self.generator, at, state, self._done)
        self.log.append(f"exchange {at.exchanged + 1}: {line}")
        return state

    def _sharpen(self, state: State) -> State:
        """Run one iteration of the last stage: the resolution grows with the agreement of the halves.

        The stage ends with the previous state if particles fit worse afterwards, as with more rings than the data
        support.
        """
        at, plan, before = self.position, self.plan, replace(self.position)
        if at.sharpened > 0:
            at.rings = self._grown(state, at.rings)
        few = too_small(self.model, state) if at.sharpened < plan.final - 1 else []
        begun, references = self._refilled(state, few) if few else (state, self.model.references(state, at.rings))
        settings = IterationSettings(
            at.rings,
            plan.temperatures[1],
            wide=at.sharpened == 0 and plan.wide > 0,
            newton=2 if at.sharpened in (0, plan.final - 1, plan.final) else 1,
        )
        after = (iterate_centred if at.sharpened < 3 else iterate)(self.model, references, begun, settings)
        # The first two iterations differ in how far they search: their fits are not to be compared.
        if few or before.sharpened < 2 or self._no_worse(after, state):
            return after
        self.log.append(f"sharpening ended after {before.sharpened} iterations: particles fitted worse in the next")
        at.rings, at.sharpened = before.rings, plan.final
        return state

    def _no_worse(self, after: State, before: State) -> bool:
        """Whether particles fit as well as before, within TOLERANCE."""
        fit = self._objective(before)
        return self._objective(after) >= fit - TOLERANCE * abs(fit)

    def _refilled(self, state: State, few: list[int]) -> tuple[State, Tensor]:
        """References of all classes where those of `few` members begin anew with halves of the largest."""
        pairs = pairs_with_largest(state, few)
        line = f"{counted(len(pairs))} ran empty, refilled from the largest"
        self.log.append(f"sharpen {self.position.sharpened + 1}: {line}")
        references, own = split_references(self.model, state, pairs, len(state.members), self.position.rings)
        return replace(state, own=own), references

    def filled(self, state: State) -> State:
        """Return the final state with all classes in use: empty ones take the worse fitting halves of the largest.

        Where views differ by less than the noise, as those of a nearly round particle do, one class explains as much as
        two, and the smaller loses its members to the larger, however often both are initialised.
        """
        pairs = pairs_with_largest(state, too_small(self.model, state))
        if not pairs:
            return state
        self.log.append(f"{counted(len(pairs))} ran empty in the end and took halves of the largest")
        index = split_classes(self.model, state, pairs)
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
        keep = torch.nonzero(state.members >= 1)[:, 0]
        self.references = self.references[keep]
        self.log.append(f"{counted(len(state.members) - len(keep))} without particles left out")
        return state.of_classes(keep)

    def _objective(self, state: State) -> float:
        """Mean log-likelihood of the particles in their classes."""
        return float(self.model.shard.mean(state.fit.amax(1), self.model.particles.typical))

    def _grown(self, state: State, rings: int) -> int:
        """As many rings as the halves agree on, at most GROWTH more than now."""
        assert state.averages is not None
        frc, members = state.averages.frc, state.members
        mean = (frc * members[:, None]).sum(0) / members.sum().clamp_min(1)
        agree = torch.cumprod((mean > self.plan.agreement).int(), 0)
        return max(rings, min(int(agree.sum()), rings + GROWTH, self.model.particles.grid.n_rings))
