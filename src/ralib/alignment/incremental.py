"""Incremental multi-reference classification of particles that arrive over time.

Earlier particles keep their number and pose, and the references continue from their state. The number of classes grows
with the particles: n particles have n // per_class classes, up to the number asked for, and a new class begins with the
worst-fitting members of the largest one. So early classes are few and well populated, and no iteration is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch

from ralib.alignment.aligner import finished_result, starting_poses
from ralib.alignment.iteration import Alignment
from ralib.alignment.multi_reference import random_averages
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.state import LoopState
from ralib.classes import assignment as assign
from ralib.classes.averages import shift_averages, shift_poses
from ralib.results.observer import Observer
from ralib.types import ParticleSet, Poses, RalibError, RunResult


@dataclass(frozen=True)
class WatchOptions:
    """Options of an incremental classification.

    Attributes
    ----------
    classes : int
        Number of classes in the end.
    per_class : int, default 100
        Particles needed for each class.
    shift_range_xy_px : tuple of float, default (3.0, 3.0)
        How far a particle may move in one iteration along x and y, pixels.
    rounds : int, default 3
        Iterations after each arrival of particles.
    seed : int, default 1000
        Of the random start.
    """

    classes: int
    per_class: int = 100
    shift_range_xy_px: tuple[float, float] = (3.0, 3.0)
    rounds: int = 3
    seed: int = 1000

    def __post_init__(self) -> None:
        if min(self.classes, self.rounds) < 1 or self.per_class < 2:
            raise RalibError(
                f"{self.classes} classes, {self.per_class} particles for each, {self.rounds} rounds: "
                "give at least 1, 2 and 1"
            )

    def classes_for(self, particles: int) -> int:
        """Return the number of classes for a number of particles."""
        return max(1, min(self.classes, particles // self.per_class))


class GrowingClassification:
    """A classification that continues whenever more particles are given to `take`.

    Parameters
    ----------
    options : WatchOptions
        Number of classes and iterations.
    alignment : AlignmentOptions
        Options of the alignment.
    observer : Observer, optional
        Is called after every batch and iteration.
    state : LoopState, optional
        State to continue from.

    Attributes
    ----------
    state : LoopState or None
        State after the last iteration, None before the first.
    """

    def __init__(
        self,
        options: WatchOptions,
        alignment: AlignmentOptions,
        *,
        observer: Observer | None = None,
        state: LoopState | None = None,
    ) -> None:
        # Small classes grow; they are not refilled behind the watcher's back.
        self.options, self.alignment = options, replace(alignment, min_members=0)
        self.observer, self.state = observer, state
        self._run: Alignment | None = None

    def take(self, particles: ParticleSet) -> None:
        """Run some iterations over all particles, of which those of the state come first, in the same order."""
        known = 0 if self.state is None else len(self.state.poses)
        if len(particles) < known:
            raise RalibError(f"{known} particles were there, {len(particles)} are left: what is watched may only grow")
        run = Alignment(particles, self.alignment, observer=self.observer)
        stage, self._run = run.stage(self.options.shift_range_xy_px), run
        state = self._begun(run) if self.state is None else _joined(self.state, particles, run)
        for round_ in range(self.options.rounds):
            closing = partial(self._grown, run) if round_ == 0 else None
            state = run.iterate(stage, state, last=True, closing=closing)
        self.state = state

    def result(self) -> RunResult:
        """Return the result as if the run ended here."""
        if self._run is None or self.state is None:
            raise RalibError("no particles have arrived: nothing to write")
        return finished_result("mref", self._run, self.state, {"seed": self.options.seed})

    def _begun(self, run: Alignment) -> LoopState:
        poses, k = starting_poses(run.particles), self.options.classes_for(len(run.particles))
        references = random_averages(run, poses, k, self.options.seed, max(self.options.shift_range_xy_px))
        return LoopState(0, references, poses.to(run.device))

    def _grown(self, run: Alignment, state: LoopState) -> LoopState:
        """The state with more classes, where there are particles for them."""
        k, before = self.options.classes_for(len(run.particles)), len(state.references)
        if k <= before:
            return state
        poses = state.poses.to("cpu")
        seeded = assign.reseed_small_classes(poses.class_index, poses.score, k, max(2, self.options.per_class // 4))
        poses, k = poses.replace(class_index=seeded.class_index), max(before, int(seeded.class_index.max()) + 1)
        averages = run.average(poses, k)
        references, move = run.references_from(averages, poses.to(run.device), max(self.options.shift_range_xy_px))
        return replace(
            state,
            references=references,
            poses=shift_poses(poses.to(run.device), move),
            averages=shift_averages(averages, move),
        )


def _joined(state: LoopState, particles: ParticleSet, run: Alignment) -> LoopState:
    """The state with the new particles appended: no class yet, and their own poses."""
    known = len(state.poses)
    if known == len(particles):
        return state
    new = starting_poses(particles)[known:].to(run.device)
    new = new.replace(class_index=torch.full_like(new.class_index, -1))
    previous = None if state.previous is None else Poses.cat([state.previous, new])
    # More particles may have to be kept in half precision where fewer had not.
    figures = [{k: v for k, v in f.items() if k != "half_precision"} for f in state.figures]
    return replace(state, poses=Poses.cat([state.poses, new]), previous=previous, figures=figures)
