"""Classification from scratch: options, measurement of the particle, the schedule, and the result.

One iteration of E-step and M-step is in `em` (its likelihood in `likelihood`), and the schedule of iterations, from the
initialisation to the final classes, in `schedule`. Here the particles are prepared, the schedule runs, and its outcome
becomes a `ClassificationResult`.
"""

from __future__ import annotations

import time
from copy import copy
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.classification.earlier_classes import EarlierClasses
from ralib.classification.examination import Examiner
from ralib.classification.final_result import final_result
from ralib.classification.kernels_ahead import calls_ahead
from ralib.classification.loading import findings, held_out, particle_extent, random_halves, resident_batches
from ralib.classification.memory_plan import Budget
from ralib.classification.model import Model
from ralib.classification.options import ClassificationOptions
from ralib.classification.results import state_poses
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.schedule_checkpoint import HALF, resume_schedule
from ralib.classification.schedule_reports import ScheduleReports
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.sharding import Shard
from ralib.classification.start_references import StartReferences
from ralib.classification.state import State
from ralib.classification.whitening import WhitenedParticles, whiten_particles
from ralib.interop.estimator import ClusterEstimator
from ralib.io import take
from ralib.kernels.threads import all_on_cores
from ralib.particles.batches import ParticleBatches
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import Observer, SilentObserver
from ralib.runtime.ahead import CallAhead, called_ahead
from ralib.runtime.devices import computing_device
from ralib.runtime.distributed import Ranks, SingleProcess
from ralib.runtime.precision import in_single_precision
from ralib.types import ParticleSet, Poses, RalibError, as_particles

LEAST_RINGS = 3
"""Rings that are compared when classes are begun, at least."""


class Classifier(ClusterEstimator):
    """Classify particles from scratch, without references, and align them within their classes.

    Supports scikit-learn's protocol: `get_params`, `set_params`, `clone`, `fit_predict`, `predict`, `score`.

    Parameters
    ----------
    n_classes : int | None, optional
        Number of classes in the end, fewer where particles are left for no more; by default as many as references, or
        one for each hundred particles up to 50, then for each four hundred up to 100.
    diameter_A : float | None, optional
        Diameter of the mask of class averages, Angstrom; by default measured.
    resolution_A : float | None, optional
        Finest detail compared, Angstrom; by default what the number of classes and the data support.
    lowest_A : float | None, optional
        Coarsest detail compared, Angstrom, e.g. to ignore gradients; by default no limit.
    balance : float, default 0.3
        Pressure towards equal class sizes, 0 (none) to 1 (equal).
    equal_sizes : bool, default False
        Whether final class sizes may differ by at most one.
    mirror : bool, default True
        Whether mirrored views share a class.
    ctf : str, default 'auto'
        CTF correction: 'auto' (on where the input has CTF parameters), 'on', 'off', or 'flipped' (phases are flipped
        already).
    search_px : float | None, optional
        Radius of the disc of shifts from the centre of the box that is searched, pixels; by default a tenth of the box.
        From the best of them a particle may go further in small steps, which the prior of the origins makes unlikely.
    skip_align : bool, default False
        Whether to keep the particles' own poses, and find only classes.
    seed : int, default 1000
        Of all random numbers.
    plan : ScheduleSettings | None, optional
        Settings of the schedule.
    batch_size : int | None, optional
        Particles processed at a time.
    device : torch.device or str, default 'cpu'
        Where to compute.
    ranks : Ranks | None, optional
        The processes that share the particles; each has the same result after `fit`.
    references : ndarray or Tensor of shape (k, n, n), optional
        Class averages to begin with; by default single particles. They have the particles' box, or any where both pixel
        sizes are known.
    references_pixel_size_A : float | None, optional
        Pixel size of the references, Angstrom.

    Attributes
    ----------
    poses_ : Poses
        Pose and class of each particle.
    labels_ : ndarray of shape (n,)
        Class of each particle, -1 where it has none.
    n_classes_ : int
        Number of classes asked for, or taken by default.
    class_averages_ : ClassAverages
        The class averages.
    classes_ : list of dict
        Figures of each class.
    warnings_ : list of Notice
        What a user should know, with advice.
    result_ : ClassificationResult
        All of these.
    evidence_ : Evidence
        What junk was recognised by.
    fitted_ : FittedClasses
        What `predict_poses` compares particles with.
    earlier_ : EarlierClasses
        What `fit` of a larger set, of which these particles are the first, can begin with.
    """

    def __init__(
        self,
        *,
        n_classes: int | None = None,
        diameter_A: float | None = None,
        resolution_A: float | None = None,
        lowest_A: float | None = None,
        balance: float = 0.3,
        equal_sizes: bool = False,
        mirror: bool = True,
        ctf: str = "auto",
        search_px: float | None = None,
        skip_align: bool = False,
        seed: int = 1000,
        plan: ScheduleSettings | None = None,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        ranks: Ranks | None = None,
        references: np.ndarray | Tensor | None = None,
        references_pixel_size_A: float | None = None,
    ) -> None:
        if references is not None and n_classes is not None and len(references) != n_classes:
            raise RalibError(f"{len(references)} `references` make {len(references)} classes, not {n_classes}")
        self.n_classes, self.balance, self.equal_sizes = n_classes, balance, equal_sizes
        self.diameter_A, self.resolution_A, self.lowest_A = diameter_A, resolution_A, lowest_A
        self.mirror, self.ctf, self.search_px, self.skip_align = mirror, ctf, search_px, skip_align
        self.seed, self.plan, self.batch_size, self.device = seed, plan, batch_size, device
        self.ranks = ranks
        self.references, self.references_pixel_size_A = references, references_pixel_size_A
        self._budget = Budget()
        self._earlier: EarlierClasses | None = None
        _ = self._options  # refuses what is out of range

    @property
    def _device(self) -> torch.device:
        return computing_device(self.device)

    @property
    def _options(self) -> ClassificationOptions:
        return ClassificationOptions(**{f.name: getattr(self, f.name) for f in fields(ClassificationOptions)})

    @property
    def _plan(self) -> ScheduleSettings:
        return self.plan or ScheduleSettings()

    @property
    def _ranks(self) -> Ranks:
        return self.ranks or SingleProcess()

    @in_single_precision()
    def fit(
        self,
        particles: ParticleSet | np.ndarray | Tensor,
        y: Any = None,
        *,
        observer: Observer | None = None,
        resume: Checkpoint | None = None,
        earlier: EarlierClasses | None = None,
    ) -> Classifier:
        """Classify particles.

        Parameters
        ----------
        particles : ParticleSet, ndarray or Tensor of shape (n, m, m)
            A particle set, or images.
        y : Any, optional
            Ignored, as scikit-learn passes it.
        observer : Observer | None, optional
            Is called after every iteration.
        resume : Checkpoint | None, optional
            Checkpoint of an iteration to continue from; the result has the same bits as without the interruption.
        earlier : EarlierClasses | None, optional
            Classes that the first of the particles have already (`earlier_` of the fit before), to begin with.

        Returns
        -------
        Classifier
            The classifier itself.

        Raises
        ------
        RalibError
            If particles and options do not fit together.
        """
        run = copy(self)  # what was fitted before stays whole if this fails
        with all_on_cores(self._device), called_ahead(self._device) as ahead:
            run._fitted(as_particles(particles), observer or SilentObserver(), resume, earlier, ahead)
        vars(self).update(vars(run))
        return self

    def _fitted(
        self,
        particles: ParticleSet,
        observer: Observer,
        resume: Checkpoint | None,
        earlier: EarlierClasses | None,
        ahead: CallAhead,
    ) -> None:
        particles = self._options.checked(particles)
        n_references = None if self.references is None else len(self.references)
        self.n_classes_ = self._options.class_count(len(particles), n_references)
        ahead(calls_ahead(particles.box, self.n_classes_, self._plan, self.mirror))
        self._timings: dict[str, float] = {}
        self._examiner = Examiner(self.seed)
        self._budget = Budget.of(self._device)
        self._earlier = earlier
        start = time.perf_counter()
        shard = Shard.of_all(len(particles), self.ranks)
        batches = self._batches(particles, shard)
        whitened = self._load(particles, batches, shard, half=resume is not None and bool(resume.meta.get(HALF)))
        if (usable := int(shard.count(whitened.usable))) < 2:
            raise RalibError(f"{usable} of {len(particles)} images can be used: the others are constant or not finite")
        if usable < 2 * self.n_classes_:
            raise RalibError(
                f"{usable} of {len(particles)} images can be used, too few for {self.n_classes_} classes: "
                f"ask for at most {usable // 2}"
            )
        self._lap("prepare_s", start)
        start = time.perf_counter()
        state, figures, schedule = self._search(particles, batches, whitened, shard, observer, resume)
        self._lap("search_s", start)
        start = time.perf_counter()
        final = final_result(
            particles, batches, schedule, state, figures,
            options=self._options, n_classes=self.n_classes_, extent=self._size, most_detail=self._most_detail,
            examiner=self._examiner, timings=self._timings,
        )  # fmt: skip
        self.result_, self.evidence_ = final.result, final.evidence
        self.fitted_, self.earlier_ = final.fitted, final.earlier
        self.poses_, self.class_averages_ = final.result.poses, final.result.averages
        self.classes_, self.warnings_ = final.result.classes, final.result.warnings
        del self._examiner
        self._lap("average_s", start)

    @in_single_precision()
    def predict_poses(self, particles: ParticleSet | np.ndarray | Tensor) -> Poses:
        """Assign new particles to the fitted classes, which stay unchanged.

        Parameters
        ----------
        particles : ParticleSet, ndarray or Tensor of shape (n, m, m)
            Particles of the box, pixel size and CTF treatment of those fitted. Their noise is measured among
            themselves, so that they are to be given together, not one by one.

        Returns
        -------
        Poses
            Pose and class of each; `score` is the log-likelihood ratio against pure noise, in nats; class -1 for an
            unusable image. Junk is not recognised here: where `fit` left a class to it, no new particle joins that one.
        """
        if not hasattr(self, "fitted_"):
            raise RalibError("this Classifier is not fitted yet: call fit first")
        with all_on_cores(self._device):
            return self._predicted(as_particles(particles))

    def _predicted(self, particles: ParticleSet) -> Poses:
        if len(particles) == 0:
            raise RalibError("the stack holds no particles: nothing to assign")
        self.fitted_.check(particles, self._options.ctf_mode(particles))
        particles = self._options.checked(particles)
        shard = Shard.of_all(len(particles), self.ranks)
        radii_px = self.fitted_.radius_px, self.fitted_.particle_radius_px
        whitened = self.fitted_.whitened(self._whiten(particles, self._batches(particles, shard), shard, *radii_px))
        if not int(shard.count(whitened.usable)):  # no noise to compare with
            poses = Poses.identity(len(particles))
            return poses.replace(class_index=torch.full_like(poses.class_index, -1))
        schedule, state = self._begin(particles, whitened, shard)
        return state_poses(self.fitted_.assign(schedule.model, state), whitened, shard).to("cpu")

    def _batches(self, particles: ParticleSet, shard: Shard, *, once: bool = False) -> ParticleBatches:
        return resident_batches(particles, shard, self._device, self.batch_size, once=once)

    def _load(
        self, particles: ParticleSet, batches: ParticleBatches, shard: Shard, *, half: bool = False
    ) -> WhitenedParticles:
        if self._earlier is not None and self._plan.exchanges == 0:  # they join classes on the same grid
            self._size, self._most_detail = self._earlier.size, self._earlier.most_detail
        else:
            plan = self._plan
            self._size = particle_extent(
                particles, self._options, device=self._device, ranks=self._ranks, budget=self._budget,
                at_most=plan.measured,
            )  # fmt: skip
            large = plan.joint > 0 and plan.takes_sample(len(particles), self.n_classes_)
            self._most_detail = plan.most_detail if large else None
        radii_px = self._size.mask_radius_px, self._size.radius_px
        return self._whiten(particles, batches, shard, *radii_px, half=half)

    def _whiten(
        self,
        particles: ParticleSet,
        batches: ParticleBatches,
        shard: Shard,
        mask_radius_px: float,
        radius_px: float,
        *,
        half: bool = False,
    ) -> WhitenedParticles:
        whitened = whiten_particles(
            particles,
            batches,
            shard,
            n_classes=self.n_classes_,
            radius_px=mask_radius_px,
            particle_radius_px=radius_px,
            ctf=self._options.ctf_mode(particles),
            recorded_per_px=self._size.recorded_per_px,
            most_detail=self._most_detail,
            half=half,
            **self._options.detail_limits_px(particles),
        )
        self._refuse_too_little_detail(whitened, particles.pixel_size_A or 1.0)
        return whitened

    def _refuse_too_little_detail(self, whitened: WhitenedParticles, pixel_size_A: float) -> None:
        """Raise RalibError where `lowest_A` leaves nothing of what classes are begun with."""
        if self.lowest_A is None:
            return
        compared = whitened.grid.frequency[: whitened.rings_for(self._plan.start_details)] * whitened.scale
        if int((compared >= pixel_size_A / self.lowest_A).sum()) < LEAST_RINGS:
            raise RalibError(
                f"`lowest_A` {self.lowest_A:g} A leaves too little to compare: classes are begun with details of "
                f"{pixel_size_A / float(compared[-1]):.0f} A and coarser"
            )

    def _search(
        self,
        particles: ParticleSet,
        batches: ParticleBatches,
        whitened: WhitenedParticles,
        shard: Shard,
        observer: Observer,
        resume: Checkpoint | None,
    ) -> tuple[State, list[dict[str, Any]], ClassificationSchedule]:
        schedule, state = self._begin(particles, whitened, shard, self._earlier)
        figures = [] if self._earlier is None else list(self._earlier.figures)
        previous, saved, n_announced = None, schedule.position.steps, 0
        if resume is not None:
            some, found, figures = resume_schedule(schedule, resume, self._device)
            previous, saved = state_poses(found, some.model.particles, some.model.shard), some.position.steps
            state = found if some is schedule else state
            n_announced = len(schedule.log)
        reports = ScheduleReports(
            schedule, observer, figures, particles.pixel_size_A,
            previous=previous, saved=saved, n_announced=n_announced,
        )  # fmt: skip
        reports.announce()
        schedule.observe = reports.iteration
        if not self.equal_sizes:
            schedule.recognise = partial(self._recognised_junk, particles, batches)
        state = schedule.run(state)
        reports.announce()
        return state, figures, schedule

    def _recognised_junk(
        self, particles: ParticleSet, batches: ParticleBatches, at: ClassificationSchedule, state: State
    ) -> Tensor:
        """Which particles (n,) of a schedule in its final state are probably junk."""
        if at.rows is not None:
            batches = self._batches(take(particles, at.rows.cpu().numpy()), at.model.shard, once=True)
        return self._examiner.examined(batches, at, state).probably_junk

    def _begin(
        self, particles: ParticleSet, whitened: WhitenedParticles, shard: Shard, earlier: EarlierClasses | None = None
    ) -> tuple[ClassificationSchedule, State]:
        """A schedule at its beginning, and the state of the particles before it."""
        generator = torch.Generator().manual_seed(self.seed)
        half, held = random_halves(particles, generator), held_out(particles, generator)
        half, held = (table[shard.rows].to(self._device) for table in (half, held))
        search_px = self._options.search_radius_px(particles) * whitened.scale
        model = Model(
            whitened, shard, half, held, self.balance, self.mirror, search_px, not self.skip_align, self._budget
        )
        schedule = ClassificationSchedule(
            model, self._plan, self.n_classes_, generator, earlier or self._given(particles)
        )
        schedule.log += findings(particles, whitened, shard, self._size, asked=bool(self.diameter_A))
        state = model.blank() if earlier is None else earlier.known(model, model.blank())
        if self.skip_align and particles.poses is not None:
            given = particles.poses[shard.rows].to(self._device)
            origin = given.origin_xy_px.float() * whitened.scale
            state = replace(state, psi_deg=given.psi_deg.float(), origin_xy_px=origin, mirror=given.mirror)
        return schedule, state

    def _given(self, particles: ParticleSet) -> StartReferences | None:
        """The references to begin with, where there are some."""
        if self.references is None:
            return None
        return StartReferences.of(
            self.references,
            box=particles.box,
            pixel_size_A=self.references_pixel_size_A,
            particle_pixel_size_A=particles.pixel_size_A,
        )

    def _lap(self, name: str, start: float) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._timings[name] = time.perf_counter() - start
