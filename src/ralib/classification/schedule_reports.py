"""A schedule's iterations and the lines of its log, passed to the observer of the run."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from ralib.classification.results import coarse_averages, schedule_figures, state_poses
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.schedule_checkpoint import checkpoint_of
from ralib.classification.state import State
from ralib.results.observer import IterationDone, Observer
from ralib.types import Poses


class ScheduleReports:
    """Reports a schedule to an observer; `iteration` is the schedule's `observe`.

    Parameters
    ----------
    schedule : ClassificationSchedule
        The schedule of all particles, before it runs.
    observer : Observer
        The observer.
    figures : list of dict
        Figures of the iterations so far, to which those of each further one are added.
    pixel_size_A : float or None
        Pixel size of the particles, Angstrom.
    previous : Poses, optional
        Poses before the first iteration, where it resumes a run.
    saved : int, default 0
        Steps of the schedule that have ended.
    n_announced : int, default 0
        Lines of the log that the observer has.
    """

    def __init__(
        self,
        schedule: ClassificationSchedule,
        observer: Observer,
        figures: list[dict[str, Any]],
        pixel_size_A: float | None,
        *,
        previous: Poses | None = None,
        saved: int = 0,
        n_announced: int = 0,
    ) -> None:
        self.schedule, self.observer, self.figures, self.pixel_size_A = schedule, observer, figures, pixel_size_A
        self._previous, self._saved, self._exchanged, self._n_announced = previous, saved, 0, n_announced
        self._clock = time.perf_counter()

    def announce(self) -> None:
        """Report the lines of the log that are new."""
        for line in self.schedule.log[self._n_announced :]:
            self.observer.found(line)
        self._n_announced = len(self.schedule.log)

    def iteration(self, at: ClassificationSchedule, stage: str, state: State) -> None:
        """Report an iteration.

        Parameters
        ----------
        at : ClassificationSchedule
            The schedule that did it, perhaps that of a sample of the particles.
        stage : str
            Stage of the schedule.
        state : State
            State after the iteration.
        """
        self.announce()
        particles, shard = at.model.particles, at.model.shard
        poses = state_poses(state, particles, shard)
        previous = self._previous if self._previous is not None and len(self._previous) == len(poses) else None
        now = time.perf_counter()
        number = len(self.figures) + 1
        duration_s, counted = now - self._clock, shard.gather(particles.typical)
        self.figures.append(
            schedule_figures(stage, number, state, poses, previous, particles, self.pixel_size_A, duration_s, counted)
        )
        self._clock, self._previous = now, poses
        ends_step = at.position.steps != self._saved and not at.finished
        expected = None
        begun_anew = at.position.exchanged < self._exchanged  # without junk
        if at.position.begun and (ends_step or begun_anew):
            expected = number - (not ends_step) + at.plan.remaining_iterations(at.position, at.k)
        self._saved, self._exchanged = at.position.steps, at.position.exchanged
        checkpoint = partial(checkpoint_of, at, state, self.figures, half=self.schedule.model.particles.plan.half)
        if ends_step and shard.ranks.size > 1:  # every rank gives its part, also where none is written
            made = checkpoint()
            checkpoint = partial(lambda known: known, made)
        self.observer.iteration(
            IterationDone(
                list(self.figures),  # a thread may still be writing this iteration when the next one is added
                partial(coarse_averages, particles, state, self.pixel_size_A),
                checkpoint if ends_step else None,
                ends_step=ends_step,
                expected=expected,
            )
        )
