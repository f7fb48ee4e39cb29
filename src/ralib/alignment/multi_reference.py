"""Multi-reference alignment: every particle against every reference, class averages as the next references.

Follows SPARX's `mref_ali2d` (method of Penczek, Radermacher and Frank 1992), with three changes: references of equal
norm, poses off the grid, and small classes are reseeded with a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.alignment.iteration import Alignment
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.references import given_references
from ralib.alignment.state import LoopState
from ralib.classes.iteration_figures import class_figures
from ralib.interop.estimator import ClusterEstimator
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import Observer
from ralib.runtime.distributed import Ranks
from ralib.types import ParticleSet, Poses, RalibError, RunResult, as_particles


class MultiReferenceAligner(ClusterEstimator):
    """Align particles to several references and average them class by class, iteratively.

    Parameters
    ----------
    references : int or array_like of shape (k, n, n)
        Initial references; or their number k, for averages of random particles.
    outer_radius, inner_radius : float or None
        Radii of the area compared, pixels; an outer radius of None is box // 2 - 2.
    shift_range_xy_px : tuple[float, float], default (3.0, 3.0)
        How far a particle may move from its last centre in one iteration along x and y, pixels.
    shift_step_px : float, optional
        Step of the shift grid, pixels; by default as the templates need.
    iterations : int, default 10
        Number of iterations, at least 1.
    mirror : bool, default True
        Whether mirrored poses are searched.
    center : int, default 1
        SPARX's method to centre averages, -1 to 7; see `ralib.images.centering`.
    mask : ndarray or Tensor of shape (n, n), optional
        Mask of the averages; by default a soft disc.
    min_members : int, optional
        Smaller classes are reseeded with the worst-fitting members of the largest one. None is a twentieth of an equal
        share, at least 4; 0 reseeds none.
    equal_sizes : bool, default False
        Whether class sizes may differ by at most one.
    ctf : str, default 'off'
        CTF correction: 'off', 'wiener' or 'flip'.
    snr : float, optional
        Signal to noise ratio of one particle for the Wiener average; by default measured.
    user_function : Any, optional
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
    class_averages_ : ClassAverages
        The class averages.
    references_ : Tensor of shape (k, n, n)
        References of a next iteration.
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
        references: int | np.ndarray | Tensor,
        outer_radius: float | None = None,
        inner_radius: float = 1,
        shift_range_xy_px: tuple[float, float] = (3.0, 3.0),
        shift_step_px: float | None = None,
        iterations: int = 10,
        mirror: bool = True,
        center: int = 1,
        mask: np.ndarray | Tensor | None = None,
        min_members: int | None = None,
        equal_sizes: bool = False,
        ctf: str = "off",
        snr: float | None = None,
        user_function: Any = None,
        seed: int = 1000,
        strict: bool = False,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        resident_bytes: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        if iterations < 1:
            raise RalibError(f"{iterations} iterations: multi-reference alignment needs --maxit 1 or more")
        self.references, self.iterations, self.seed, self.ranks = references, iterations, seed, ranks
        self.shift_range_xy_px, self.shift_step_px = shift_range_xy_px, shift_step_px
        self.outer_radius, self.inner_radius, self.mirror, self.center = outer_radius, inner_radius, mirror, center
        self.mask, self.min_members, self.equal_sizes = mask, min_members, equal_sizes
        self.ctf, self.snr, self.user_function, self.strict = ctf, snr, user_function, strict
        self.device, self.batch_size, self.resident_bytes = device, batch_size, resident_bytes

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
    ) -> MultiReferenceAligner:
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
        MultiReferenceAligner
            The aligner itself.

        Raises
        ------
        RalibError
            If particles, references and options do not fit together.
        """
        run = Alignment(as_particles(particles), self.options, ranks=self.ranks, observer=observer)
        state = self._start(run) if resume is None else LoopState.from_checkpoint(resume, run.device)
        stage = run.stage(self.shift_range_xy_px, self.shift_step_px)
        while state.iteration < self.iterations:
            state = run.iterate(stage, state, last=state.iteration + 1 == self.iterations)
        return self._finish(run, state)

    def predict_poses(self, particles: ParticleSet | np.ndarray | Tensor) -> Poses:
        """Poses of new particles against the references that `fit` found, which stay as they are.

        Parameters
        ----------
        particles : ParticleSet or array (n, box, box)
            In the box of those that were fitted; searched around the poses they come with, as in `fit`.

        Returns
        -------
        Poses
            Of each particle onto its best reference; class -1 where the image cannot be used.
        """
        return posed(self, particles, [(self.shift_range_xy_px, self.shift_step_px)], self.iterations)

    def _start(self, run: Alignment) -> LoopState:
        poses = starting_poses(run.particles)
        if isinstance(self.references, int | np.integer):
            references = random_averages(run, poses, int(self.references), self.seed, max(self.shift_range_xy_px))
        else:
            references = given_references(self.references, run.box, run.device)
        return LoopState(0, references, poses.to(run.device))

    def _finish(self, run: Alignment, state: LoopState) -> MultiReferenceAligner:
        if state.averages is None:
            raise RalibError("no iteration was done: nothing to write")
        self.result_ = finished_result("mref", run, state, {"seed": self.seed})
        self.poses_, self.class_averages_ = self.result_.poses, self.result_.averages
        self.references_, self.iterations_ = state.references, state.figures
        self.warnings_, self.bad_particles_ = self.result_.warnings, self.result_.extra["bad_particles"]
        return self


def options_of(aligner: Any) -> AlignmentOptions:
    """The options that both loops share, from the arguments of either aligner."""
    return AlignmentOptions(
        **{f.name: getattr(aligner, f.name) for f in fields(AlignmentOptions) if f.name in vars(aligner)}
    )


def posed(
    aligner: Any,
    particles: ParticleSet | np.ndarray | Tensor,
    stages: Sequence[tuple[tuple[float, float], float | None]],
    most: int,
) -> Poses:
    """Poses of new particles against a fitted aligner's references: each stage until nothing moves, `most` times."""
    if not hasattr(aligner, "references_"):
        raise RalibError(f"this {type(aligner).__name__} is not fitted yet: call fit first")
    run = Alignment(as_particles(particles), aligner.options, ranks=aligner.ranks)
    references = given_references(aligner.references_, run.box, run.device)
    poses = starting_poses(run.particles).to(run.device)
    for span, step in stages:
        poses = run.search_until_still(run.stage(span, step), references, poses, most)
    return poses.to("cpu")


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


def random_averages(run: Alignment, poses: Poses, n_classes: int, seed: int, shift_range_px: float) -> Tensor:
    """Average equal random parts of the particles as first references, as SPARX's `generate_random_averages`.

    Parameters
    ----------
    run : Alignment
        The particles.
    poses : Poses
        Their initial poses.
    n_classes : int
        Number of references k.
    seed : int
        Of the random partition.
    shift_range_px : float
        Shift range of the search, pixels.

    Returns
    -------
    Tensor of shape (k, n, n)
        References.
    """
    n = len(poses)
    if not 1 <= n_classes <= n:
        raise RalibError(f"{n_classes} references cannot be made from {n} particles: ask for 1 to {n}")
    order = np.random.default_rng(seed).permutation(n)
    label = np.empty(n, dtype=np.int64)
    label[order] = np.arange(n) % n_classes
    poses = poses.replace(class_index=torch.from_numpy(label))
    averages = run.average(poses, n_classes)
    return run.references_from(averages, poses, shift_range_px)[0]


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
    options : dict[str, Any]
        Options to record.

    Returns
    -------
    RunResult
        The result.
    """
    averages = state.averages
    if averages is None:
        raise RalibError("no iteration was done: nothing to write")
    # The last iteration reseeds nothing, so who has no class there was not usable.
    bad = torch.nonzero(state.poses.class_index < 0)[:, 0].tolist()
    warnings = [*run.particles.warnings, *run.warnings, *state.warnings, *closing_warnings(run, state, bad)]
    extra = {
        "references": state.references.cpu(),
        "classes": class_figures(averages, state.poses, state.previous),
        "bad_particles": bad,
        "timings": run.timings | run.batches.reading.figures(),
    }
    return RunResult(kind, state.poses.to("cpu"), averages.to("cpu"), state.figures, options, warnings, extra)


def closing_warnings(run: Alignment, state: LoopState, bad: list[int]) -> list[dict[str, str]]:
    """Return warnings about unusable images and small classes.

    Parameters
    ----------
    run : Alignment
        The particles and passes.
    state : LoopState
        State after the last iteration.
    bad : list[int]
        Unusable particles.

    Returns
    -------
    list[dict[str, str]]
        Warnings.
    """
    warnings = []
    if run.particles.usable is not None:  # those have been told
        bad = [i for i in bad if run.particles.usable[i]]
    if bad:
        shown = ", ".join(str(i + 1) for i in bad[:10]) + (" ..." if len(bad) > 10 else "")
        warnings.append(
            {
                "what": f"{len(bad)} images are not finite or constant and were left out: {shown}",
                "where": "input",
                "do": "repair or remove them; --strict stops at the first one",
            }
        )
    sizes = state.figures[-1]["class_sizes"]
    smallest = run.smallest_class(len(sizes))
    small = [k + 1 for k, size in enumerate(sizes) if size < smallest]
    empty = [k + 1 for k, size in enumerate(sizes) if size == 0]
    if empty:
        warnings.append(
            {
                "what": f"{len(empty)} classes are empty, their averages are all zero: "
                + ", ".join(map(str, empty[:20])),
                "where": "classes",
                "do": "ask for fewer classes, or --EQ for equal sizes",
            }
        )
    if small and len(sizes) > 1:
        warnings.append(
            {
                "what": f"{len(small)} classes ended below {smallest} members: " + ", ".join(map(str, small[:20])),
                "where": "classes",
                "do": "ask for fewer classes, or --EQ for equal sizes",
            }
        )
    return warnings
