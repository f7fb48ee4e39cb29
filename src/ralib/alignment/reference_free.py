"""Reference-free alignment: all particles onto their own average, in stages of falling shift range.

Follows SPARX's ali2d (Penczek, Radermacher and Frank 1992), with poses off the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ralib.alignment.iteration import Alignment
from ralib.alignment.multi_reference import finished_result, starting_poses
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.references import UserFunction
from ralib.alignment.state import LoopState, Observer
from ralib.conventions import wrap_deg
from ralib.runtime.distributed import Ranks
from ralib.types import ParticleSet, Poses, RalibError, as_particles

AUTOMATIC_ITERATIONS = 10


class ReferenceFreeAligner:
    """Aligns particles to their common average.

    stages              (x range, y range, step or None) in pixels of each stage, run one after the other
    iterations          per stage; 0 means up to 10, and a stage ends once the criterion falls
    randomize           start from random rotations and mirrors instead of the particles' own poses
    fourier_variance    weight the average's rings by one over their noise (SPARX's --Fourvar)
    center              SPARX's centring, -1 (average shift of the particles) to 7
    The other options are those of `MultiReferenceAligner`.

    After `fit`: poses_, average_ (n, n), class_averages_ (one class), iterations_, warnings_, bad_particles_, result_.
    """

    def __init__(
        self,
        *,
        stages: Sequence[tuple[float, float, float | None]] = (
            (4.0, 4.0, None),
            (2.0, 2.0, None),
            (1.0, 1.0, None),
            (1.0, 1.0, None),
        ),
        iterations: int = 0,
        outer_radius: float | None = None,
        inner_radius: float = 1,
        mirror: bool = True,
        center: int = -1,
        mask: np.ndarray | Tensor | None = None,
        ctf: str = "off",
        snr: float | None = None,
        fourier_variance: bool = False,
        randomize: bool = False,
        user_function: UserFunction | None = None,
        seed: int = 1000,
        strict: bool = False,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        resident_bytes: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if not stages:
            raise RalibError("no stage to run: give at least one shift range with --xr")
        if iterations < 0:
            raise RalibError(f"{iterations} iterations do nothing: use --maxit 1 or more, or 0 for automatic")
        self.stages, self.iterations, self.randomize, self.seed = list(stages), iterations, randomize, seed
        self.ranks = ranks
        self.options = AlignmentOptions(
            outer_radius=outer_radius,
            inner_radius=inner_radius,
            mirror=mirror,
            center=center,
            mask=mask,
            ctf=ctf,
            snr=snr,
            user_function=user_function,
            fourier_variance=fourier_variance,
            strict=strict,
            device=device,
            batch_size=batch_size,
            resident_bytes=resident_bytes,
        )

    def fit(
        self,
        particles: ParticleSet | np.ndarray | Tensor,
        *,
        observer: Observer | None = None,
        resume: LoopState | None = None,
    ) -> ReferenceFreeAligner:
        """Align; `resume` goes on from the state after some iteration, to the bit as if never interrupted."""
        run = Alignment(as_particles(particles), self.options, ranks=self.ranks, observer=observer)
        state = resume or self._start(run)
        while state.stage < len(self.stages):
            state = self._stage(run, state)
        return self._finish(run, state)

    def _start(self, run: Alignment) -> LoopState:
        poses = starting_poses(run.particles)
        if self.randomize:
            poses = _random_poses(poses, self.seed, self.options.mirror)
        averages = run.average(poses, 1)
        references, _ = run.references_from(averages, poses, max(self.stages[0][:2]))
        return LoopState(0, references, poses.to(run.device))

    def _stage(self, run: Alignment, state: LoopState) -> LoopState:
        """The iterations of one stage that are still to do."""
        x, y, step = self.stages[state.stage]
        stage = run.stage((x, y), step)
        limit = self.iterations or AUTOMATIC_ITERATIONS
        number = state.stage
        while state.stage == number:
            state = run.iterate(stage, state, last=True, closing=lambda done: self._closed(done, limit))
        return state

    def _closed(self, state: LoopState, limit: int) -> LoopState:
        """The state with its stage advanced where this iteration was the stage's last."""
        figures = state.figures[-1]
        figures["stage"] = state.stage + 1
        done = sum(f.get("stage") == state.stage + 1 for f in state.figures)
        fell = not self.iterations and figures["criterion"] < state.best_criterion
        best = max(state.best_criterion, figures["criterion"])
        if done >= limit or fell:
            return replace(state, stage=state.stage + 1, best_criterion=-float("inf"))
        return replace(state, best_criterion=best)

    def _finish(self, run: Alignment, state: LoopState) -> ReferenceFreeAligner:
        self.result_ = finished_result("reffree", run, state, {"seed": self.seed})
        self.poses_, self.class_averages_ = self.result_.poses, self.result_.averages
        self.average_ = self.class_averages_.images[0]
        self.iterations_, self.warnings_ = self.result_.iterations, self.result_.warnings
        self.bad_particles_ = self.result_.extra["bad_particles"]
        return self


def _random_poses(poses: Poses, seed: int, mirror: bool) -> Poses:
    """The poses with a random rotation, and a random mirror where mirrors are searched."""
    rng = np.random.default_rng(seed)
    psi = torch.from_numpy(rng.uniform(0, 360, len(poses))).float()
    flip = torch.from_numpy(rng.random(len(poses)) < 0.5) & mirror
    return poses.replace(psi_deg=wrap_deg(psi), mirror=flip)
