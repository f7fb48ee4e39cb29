"""Reference-free alignment: all particles to their common average, in stages of decreasing shift range.

Follows SPARX's `ali2d` (Penczek, Radermacher and Frank 1992), with poses off the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.alignment.iteration import Alignment
from ralib.alignment.multi_reference import finished_result, options_of, posed, starting_poses
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.references import UserFunction
from ralib.alignment.state import LoopState
from ralib.conventions import wrap_deg
from ralib.interop.estimator import ClusterEstimator
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import Observer
from ralib.runtime.distributed import Ranks
from ralib.types import ParticleSet, Poses, RalibError, as_particles

AUTOMATIC_ITERATIONS = 10


class ReferenceFreeAligner(ClusterEstimator):
    """Align particles to their common average, iteratively.

    Parameters
    ----------
    stages : Sequence[tuple[float, float, float | None]], optional
        Shift range along x and y and its step (None: as needed) in pixels of each stage, in order.
    iterations : int, default 0
        Iterations of each stage; 0 is up to 10, ending a stage when the criterion decreases.
    outer_radius, inner_radius : float or None
        Radii of the area compared, pixels; an outer radius of None is box // 2 - 2.
    mirror : bool, default True
        Whether mirrored poses are searched.
    center : int, default -1
        SPARX's method to centre the average, -1 (average shift of the particles) to 7.
    mask : ndarray or Tensor of shape (n, n), optional
        Mask of the average; by default a soft disc.
    ctf : str, default 'off'
        CTF correction: 'off', 'wiener' or 'flip'.
    snr : float, optional
        Signal to noise ratio of one particle for the Wiener average; by default measured.
    fourier_variance : bool, default False
        Whether to weight the average's rings by one over their noise (SPARX's `--Fourvar`).
    randomize : bool, default False
        Whether to start from random rotations and mirrors instead of the particles' own poses.
    user_function : UserFunction, optional
        Function (average, mask, frc) -> reference or (reference, (dx, dy)), in place of low-pass, centring and mask.
    seed : int, default 1000
        Of the random start.
    strict : bool, default False
        Whether an unusable image raises an error.
    device : torch.device or str, default 'cpu'
        Where to compute.
    batch_size : int, optional
        Particles processed at a time.
    resident_bytes : int, optional
        Bytes of particles kept on the device between iterations; by default 0.45 of its free memory.
    ranks : Ranks, optional
        The processes of the run; by default only this one.

    Attributes
    ----------
    poses_ : Poses
        Pose of each particle.
    labels_ : ndarray of shape (n,)
        Class of each particle, -1 where it has none.
    average_ : Tensor of shape (n, n)
        The average.
    class_averages_ : ClassAverages
        The same as averages of one class.
    iterations_ : list of dict
        Figures of each iteration.
    warnings_ : list of dict
        What a user should know, with advice.
    bad_particles_ : list of int
        Unusable particles.
    result_ : RunResult
        All of these.

    References
    ----------
    Penczek, Radermacher and Frank 1992, "Three-dimensional reconstruction of single particles embedded in ice",
    Ultramicroscopy 40, 33-53.
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
        self.stages, self.iterations, self.randomize, self.seed = stages, iterations, randomize, seed
        self.outer_radius, self.inner_radius, self.mirror, self.center = outer_radius, inner_radius, mirror, center
        self.mask, self.ctf, self.snr, self.fourier_variance = mask, ctf, snr, fourier_variance
        self.user_function, self.strict, self.device = user_function, strict, device
        self.batch_size, self.resident_bytes, self.ranks = batch_size, resident_bytes, ranks

    @property
    def options(self) -> AlignmentOptions:
        """The options shared by both loops."""
        return options_of(self)

    def fit(
        self,
        particles: ParticleSet | np.ndarray | Tensor,
        y: Any = None,
        *,
        observer: Observer | None = None,
        resume: Checkpoint | None = None,
    ) -> ReferenceFreeAligner:
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
        ReferenceFreeAligner
            The aligner itself.

        Raises
        ------
        RalibError
            If particles and options do not fit together.
        """
        run = Alignment(as_particles(particles), self.options, ranks=self.ranks, observer=observer)
        state = self._start(run) if resume is None else LoopState.from_checkpoint(resume, run.device)
        while state.stage < len(self.stages):
            state = self._stage(run, state)
        return self._finish(run, state)

    def predict_poses(self, particles: ParticleSet | np.ndarray | Tensor) -> Poses:
        """Return poses of new particles on the fitted average; see `MultiReferenceAligner.predict_poses`."""
        stages = [((x, y), step) for x, y, step in self.stages]
        return posed(self, particles, stages, self.iterations or AUTOMATIC_ITERATIONS)

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
        self.average_, self.references_ = self.class_averages_.images[0], state.references
        self.iterations_, self.warnings_ = self.result_.iterations, self.result_.warnings
        self.bad_particles_ = self.result_.extra["bad_particles"]
        return self


def _random_poses(poses: Poses, seed: int, mirror: bool) -> Poses:
    """The poses with a random rotation, and a random mirror where mirrors are searched."""
    rng = np.random.default_rng(seed)
    psi = torch.from_numpy(rng.uniform(0, 360, len(poses))).float()
    flip = torch.from_numpy(rng.random(len(poses)) < 0.5) & mirror
    return poses.replace(psi_deg=wrap_deg(psi), mirror=flip)
