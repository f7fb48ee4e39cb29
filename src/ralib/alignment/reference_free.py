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

from ralib.alignment.aligner import Aligner, starting_poses
from ralib.alignment.iteration import Alignment
from ralib.alignment.options import check_shifts
from ralib.alignment.references import UserFunction
from ralib.alignment.state import LoopState
from ralib.conventions import wrap_deg
from ralib.runtime.distributed import Ranks
from ralib.types import ParticleSet, Poses, RalibError, check_whole_number

AUTOMATIC_ITERATIONS = 10


class ReferenceFreeAligner(Aligner):
    """Align particles to their common average, iteratively.

    After `fit`, the attributes of `ralib.alignment.aligner.Aligner` are set; `average_` (n, n) is the average.

    Parameters
    ----------
    stages : sequence of tuple, optional
        Shift range along x and y and its step (None: as needed) in pixels of each stage, in order. Ranges are cut to
        max(1, box // 2 - 1 - outer_radius), so that the disc compared stays inside the box: to 1 px with an
        `outer_radius` of None, as the default stages then are. `warnings_` tells where this happened.
    iterations : int, default 0
        Iterations of each stage; 0 is up to 10, ending a stage when the criterion decreases.
    center : int, default -1
        SPARX's method to centre the average, -1 (average shift of the particles) to 7.
    fourier_variance : bool, default False
        Whether to weight the average's rings by one over their noise (SPARX's `--Fourvar`).
    randomize : bool, default False
        Whether to start from random rotations and mirrors instead of the particles' own poses.
    outer_radius, inner_radius, mirror, mask, ctf, snr, user_function, seed, strict, device, batch_size
        As in `MultiReferenceAligner`.
    resident_bytes, ranks
        As in `MultiReferenceAligner`.

    References
    ----------
    Penczek, Radermacher and Frank 1992, "Three-dimensional reconstruction of single particles embedded in ice",
    Ultramicroscopy 40, 33-53.
    """

    _kind = "reffree"

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
        _check_stages(stages)
        check_whole_number("iterations", iterations, 0)
        check_whole_number("seed", seed, 0)
        self.stages, self.iterations, self.randomize, self.seed = stages, iterations, randomize, seed
        self.outer_radius, self.inner_radius, self.mirror, self.center = outer_radius, inner_radius, mirror, center
        self.mask, self.ctf, self.snr, self.fourier_variance = mask, ctf, snr, fourier_variance
        self.user_function, self.strict, self.device = user_function, strict, device
        self.batch_size, self.resident_bytes, self.ranks = batch_size, resident_bytes, ranks

    def predict_poses(self, particles: ParticleSet | np.ndarray | Tensor) -> Poses:
        """Return poses of new particles on the fitted average; see `MultiReferenceAligner.predict_poses`."""
        stages = [((x, y), step) for x, y, step in self.stages]
        return self._posed(particles, stages, self.iterations or AUTOMATIC_ITERATIONS)

    def _start(self, run: Alignment) -> LoopState:
        poses = starting_poses(run.particles)
        if self.randomize:
            poses = _random_poses(poses, self.seed, self.options.mirror)
        averages = run.average(poses, 1)
        references, _ = run.references_from(averages, poses, max(self.stages[0][:2]))
        return LoopState(0, references, poses.to(run.device))

    def _iterate(self, run: Alignment, state: LoopState) -> LoopState:
        while state.stage < len(self.stages):
            state = self._stage(run, state)
        return state

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

    def _finish(self, run: Alignment, state: LoopState) -> None:
        super()._finish(run, state)
        self.average_ = self.class_averages_.images[0]


def _check_stages(stages: Any) -> None:
    """Refuse anything but stages of two shift ranges and a step."""
    if not isinstance(stages, Sequence | np.ndarray) or len(stages) == 0:
        raise RalibError("no stage to run: give at least one shift range with `stages`")
    for stage in stages:
        if not isinstance(stage, Sequence | np.ndarray) or len(stage) != 3:
            raise RalibError(f"`stages`: {stage} is no stage: give shift ranges along x and y, and a step or None")
        check_shifts(stage[:2], stage[2], range_option="stages", step_option="stages")


def _random_poses(poses: Poses, seed: int, mirror: bool) -> Poses:
    """The poses with a random rotation, and a random mirror where mirrors are searched."""
    rng = np.random.default_rng(seed)
    psi = torch.from_numpy(rng.uniform(0, 360, len(poses))).float()
    flip = torch.from_numpy(rng.random(len(poses)) < 0.5) & mirror
    return poses.replace(psi_deg=wrap_deg(psi), mirror=flip)
