"""The base of both aligners: initial poses, `fit`, new particles, and the result with its warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from ralib.alignment.iteration import Alignment
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.references import given_references
from ralib.alignment.state import LoopState
from ralib.classes.iteration_figures import class_figures
from ralib.images.normalise import usable_images
from ralib.interop.estimator import ClusterEstimator
from ralib.kernels.threads import all_on_cores
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import Observer
from ralib.runtime.distributed import Ranks
from ralib.runtime.precision import in_single_precision
from ralib.types import ClassAverages, Notice, ParticleSet, Poses, RalibError, RunResult, as_particles


class Aligner(ClusterEstimator):
    """An alignment in scikit-learn's form; a subclass initialises the references and runs its iterations.

    Attributes
    ----------
    poses_ : Poses
        Pose of each particle.
    class_averages_ : ClassAverages
        The class averages.
    references_ : Tensor of shape (k, n, n)
        References of a next iteration.
    iterations_ : list of dict
        Figures of each iteration.
    warnings_ : list of Notice
        What a user should know, with advice.
    bad_particles_ : list of int
        Unusable particles.
    result_ : RunResult
        All of these.
    """

    _kind: ClassVar[str]
    ranks: Ranks | None
    seed: int
    poses_: Poses
    class_averages_: ClassAverages
    references_: Tensor
    iterations_: list[dict[str, Any]]
    warnings_: list[Notice]
    bad_particles_: list[int]
    result_: RunResult
    _pixel_size_A: float | None

    @property
    def options(self) -> AlignmentOptions:
        """The options shared by both loops."""
        known = vars(self)
        return AlignmentOptions(**{f.name: known[f.name] for f in fields(AlignmentOptions) if f.name in known})

    @in_single_precision()
    def fit(
        self,
        particles: ParticleSet | np.ndarray | Tensor,
        y: Any = None,
        *,
        observer: Observer | None = None,
        resume: Checkpoint | None = None,
    ) -> Self:
        """Align particles.

        Parameters
        ----------
        particles : ParticleSet, ndarray or Tensor of shape (n, m, m)
            A particle set, or images.
        y : None
            Ignored, as scikit-learn passes it.
        observer : Observer, optional
            Is called after every batch and iteration.
        resume : Checkpoint, optional
            Of an iteration, to continue from; the result has the same bits as without the interruption.

        Returns
        -------
        Self
            The aligner itself.

        Raises
        ------
        RalibError
            If particles, references and options do not fit together.
        """
        run = Alignment(as_particles(particles), self.options, ranks=self.ranks, observer=observer)
        with all_on_cores(run.device):
            state = self._start(run) if resume is None else LoopState.from_checkpoint(resume, run.device)
            self._finish(run, self._iterate(run, state))
        return self

    def _start(self, run: Alignment) -> LoopState:
        """The state before the first iteration."""
        raise NotImplementedError

    def _iterate(self, run: Alignment, state: LoopState) -> LoopState:
        """The state after the last iteration."""
        raise NotImplementedError

    def _finish(self, run: Alignment, state: LoopState) -> None:
        self.result_ = finished_result(self._kind, run, state, {"seed": self.seed})
        self.poses_, self.class_averages_ = self.result_.poses, self.result_.averages
        self.references_, self.iterations_ = state.references, state.figures
        self.warnings_, self.bad_particles_ = self.result_.warnings, self.result_.bad_particles
        self._pixel_size_A = run.particles.pixel_size_A

    @in_single_precision()
    def _posed(
        self,
        particles: ParticleSet | np.ndarray | Tensor,
        stages: Sequence[tuple[tuple[float, float], float | None]],
        most: int,
    ) -> Poses:
        """Poses of new particles on the fitted references: each stage until nothing moves, at most `most` times."""
        if not hasattr(self, "references_"):
            raise RalibError(f"this {type(self).__name__} is not fitted yet: call fit first")
        run = Alignment(as_particles(particles), self.options, ranks=self.ranks)
        run.particles.check_pixel_size(self._pixel_size_A, "references")
        # An empty class has a reference of zeros, which no particle fits; the others keep their numbers.
        there = (self.class_averages_.members > 0) & usable_images(self.references_).cpu()
        number = torch.nonzero(there)[:, 0]
        references = given_references(self.references_[number], run.box, run.device)
        poses = starting_poses(run.particles).to(run.device)
        with all_on_cores(run.device):
            for span, step in stages:
                poses = run.search_until_still(run.stage(span, step), references, poses, most)
        poses = poses.to("cpu")
        return poses.replace(class_index=torch.where(poses.class_index < 0, -1, number[poses.class_index]))


def starting_poses(particles: ParticleSet) -> Poses:
    """Return the input's poses as far as they centre the particle, with class 0 for all."""
    n = len(particles)
    if particles.poses is None:
        return Poses.identity(n)
    given = particles.poses.to("cpu")
    if not bool(torch.isfinite(given.psi_deg).all() and torch.isfinite(given.origin_xy_px).all()):
        raise RalibError("the poses of the input are not all finite: repair the file or remove its pose columns")
    return Poses(
        psi_deg=given.psi_deg.float(),
        origin_xy_px=given.origin_xy_px.float(),
        mirror=given.mirror,
        class_index=torch.zeros(n, dtype=torch.int64),
        score=torch.full((n,), float("nan")),
    )


def finished_result(kind: str, run: Alignment, state: LoopState, options: dict[str, Any]) -> RunResult:
    """Assemble the result of a run: averages in main memory, class figures, warnings.

    Parameters
    ----------
    kind : str
        Name of the command.
    run : Alignment
        The particles and passes.
    state : LoopState
        State after the last iteration.
    options : dict
        Options to record.

    Returns
    -------
    RunResult
        The result.
    """
    averages = state.averages
    if averages is None:
        raise RalibError("no iteration was done: nothing to write")
    # The last iteration reseeds nothing, so that a particle without a class was not usable.
    bad = torch.nonzero(state.poses.class_index < 0)[:, 0].tolist()
    warnings = [*run.particles.warnings, *run.warnings, *state.warnings, *closing_warnings(run, state, bad)]
    return RunResult(
        kind,
        state.poses.to("cpu"),
        averages.to("cpu"),
        state.figures,
        options,
        warnings,
        classes=class_figures(averages, state.poses, state.previous),
        references=state.references.cpu(),
        bad_particles=bad,
        timings=run.timings | run.batches.reading.figures(),
    )


def closing_warnings(run: Alignment, state: LoopState, bad: list[int]) -> list[Notice]:
    """Return warnings about unusable images and small classes.

    Parameters
    ----------
    run : Alignment
        The particles and passes.
    state : LoopState
        State after the last iteration.
    bad : list of int
        Unusable particles.

    Returns
    -------
    list of Notice
        Warnings.
    """
    warnings = []
    if run.particles.usable is not None:  # those are in the input's warnings
        bad = [i for i in bad if run.particles.usable[i]]
    if bad:
        shown = _few([i + 1 for i in bad], 10)
        warnings.append(
            Notice(
                what=f"{len(bad)} images are not finite or constant and were left out: {shown}",
                where="input",
                remedy="repair or remove them; `strict` stops at the first one",
            )
        )
    sizes = state.figures[-1]["class_sizes"]
    smallest = run.smallest_class(len(sizes))
    small = [k + 1 for k, size in enumerate(sizes) if size < smallest]
    empty = [k + 1 for k, size in enumerate(sizes) if size == 0]
    if empty:
        warnings.append(
            Notice(
                what=f"{len(empty)} of {len(sizes)} classes without particles, averages of zeros: {_few(empty)}",
                where="classes",
                remedy="ask for fewer classes, or for equal ones (`equal_sizes`)",
            )
        )
    if small and len(sizes) > 1:
        warnings.append(
            Notice(
                what=f"{len(small)} of {len(sizes)} classes with fewer than {smallest} members: {_few(small)}",
                where="classes",
                remedy="ask for fewer classes, or for equal ones (`equal_sizes`)",
            )
        )
    return warnings


def _few(numbers: list[int], at_most: int = 20) -> str:
    """The first of some numbers."""
    return ", ".join(map(str, numbers[:at_most])) + (" ..." if len(numbers) > at_most else "")
