"""Classification from scratch: options, measurement of the particle, the schedule, and the result.

The E-step is in `e_step` (its model in `likelihood`), the M-step in `m_step`, priors and responsibilities in `priors`,
one iteration in `em`, and the schedule from the initialisation to the final classes in `schedule`. Here the options are
resolved, and the outcome becomes a `RunResult`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.classes.iteration_figures import class_figures
from ralib.classification.diameter import Measured, measure_radius
from ralib.classification.earlier_classes import EarlierClasses
from ralib.classification.em import Budget, Model
from ralib.classification.final_classes import (
    equalised,
    fewer_classes,
    unusable_images,
    with_class_of_junk,
    without_class,
)
from ralib.classification.image_statistics import StatisticsTable
from ralib.classification.junk_model import Evidence
from ralib.classification.noise_substitution import corrected_frc, substituted_ssnr
from ralib.classification.pose_support import pose_support
from ralib.classification.prediction import FittedClasses
from ralib.classification.quality import judge, junk_odds, measure, surely_junk
from ralib.classification.results import (
    coarse_averages,
    filtered,
    full_averages,
    on_host,
    schedule_figures,
    state_poses,
)
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.schedule_checkpoint import HALF, checkpoint_of, resume_schedule
from ralib.classification.schedule_settings import ScheduleSettings, default_classes
from ralib.classification.sharding import Shard
from ralib.classification.start_references import StartReferences
from ralib.classification.state import State
from ralib.classification.validation import Stability, quick_estimate
from ralib.classification.whitening import FINEST, LARGEST_RADIUS, WhitenedParticles, whiten_particles
from ralib.images.frc import masked_frc
from ralib.interop.estimator import ClusterEstimator
from ralib.io import for_computing, take
from ralib.kernels.threads import all_on_cores
from ralib.particles.batches import RESIDENT_SHARE, ParticleBatches
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import IterationDone, Observer, SilentObserver
from ralib.runtime.distributed import Ranks, SingleProcess
from ralib.runtime.memory import free_memory
from ralib.types import ClassificationResult, CtfState, ParticleSet, Poses, RalibError, as_particles

CTF_CHOICES = ("auto", "on", "off", "flipped")


class Classifier(ClusterEstimator):
    """Classify particles from scratch, without references, and align them within their classes.

    Supports scikit-learn's protocol: `get_params`, `set_params`, `clone`, `fit_predict`, `predict`, `score`.

    Parameters
    ----------
    n_classes : int | None, optional
        Number of classes in the end; by default as many as references, or one for each hundred particles up to 50, then
        for each four hundred up to 100.
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
        Largest distance of a particle from the centre of its box, pixels; by default a tenth of the box.
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
    warnings_ : list of dict
        What a user should know, with advice.
    result_ : RunResult
        All of these.
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
        if n_classes is not None and n_classes < 1:
            raise RalibError(f"`n_classes` {n_classes}: ask for at least 1")
        if not 0 <= balance <= 1:
            raise RalibError(f"`balance` {balance:g} must lie between 0 (free) and 1 (equal)")
        if ctf not in CTF_CHOICES:
            raise RalibError(f"`ctf` {ctf!r} is unknown: choose one of {', '.join(CTF_CHOICES)}")
        if references is not None and n_classes is not None and len(references) != n_classes:
            raise RalibError(f"{len(references)} `references` make {len(references)} classes, not {n_classes}")
        for name, value in (("`diameter_A`", diameter_A), ("`resolution_A`", resolution_A), ("`lowest_A`", lowest_A)):
            if value is not None and not 0 < value < float("inf"):
                raise RalibError(f"{name} {value:g} A must be above 0")
        if search_px is not None and not search_px >= 0:
            raise RalibError(f"`search_px` {search_px:g} px must not be below 0")
        self.n_classes, self.balance, self.equal_sizes = n_classes, balance, equal_sizes
        self.diameter_A, self.resolution_A, self.lowest_A = diameter_A, resolution_A, lowest_A
        self.mirror, self.ctf, self.search_px, self.skip_align = mirror, ctf, search_px, skip_align
        self.seed, self.plan, self.batch_size, self.device = seed, plan, batch_size, device
        self.ranks = ranks
        self.references, self.references_pixel_size_A = references, references_pixel_size_A
        self._budget = Budget()
        self._earlier: EarlierClasses | None = None

    @property
    def _device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def _plan(self) -> ScheduleSettings:
        return self.plan or ScheduleSettings()

    @property
    def _ranks(self) -> Ranks:
        return self.ranks or SingleProcess()

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
        with all_on_cores(self._device):
            return self._fitted(as_particles(particles), observer or SilentObserver(), resume, earlier)

    def _fitted(
        self, particles: ParticleSet, observer: Observer, resume: Checkpoint | None, earlier: EarlierClasses | None
    ) -> Classifier:
        particles = self._admitted(particles)
        self._timings: dict[str, float] = {}
        self._last: _Examined | None = None
        self._budget = Budget.of(self._device)
        self._earlier = earlier
        start = time.perf_counter()
        shard = Shard.of_all(len(particles), self.ranks)
        batches = self._batches(particles, shard)
        field = self._load(particles, batches, shard, half=resume is not None and bool(resume.meta.get(HALF)))
        if (usable := int(shard.count(field.usable))) < 2:
            raise RalibError(f"{usable} of {len(particles)} images can be used: the others are constant or not finite")
        if usable < 2 * (n_classes := self._class_count(len(particles))):
            raise RalibError(
                f"{usable} of {len(particles)} images can be used, too few for {n_classes} classes: ask for at most "
                f"{usable // 2}"
            )
        self._lap("prepare_s", start)
        start = time.perf_counter()
        state, figures, schedule = self._search(particles, field, shard, observer, resume)
        self._lap("search_s", start)
        start = time.perf_counter()
        self._finish(particles, batches, state, figures, schedule)
        self._last = None
        self._lap("average_s", start)
        return self

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
        self.fitted_.check(particles)
        particles = self._admitted(particles)
        shard = Shard.of_all(len(particles), self.ranks)
        field = self.fitted_.whitened(
            whiten_particles(
                particles,
                self._batches(particles, shard),
                shard,
                n_classes=self.n_classes_,
                radius_px=self.fitted_.radius_px,
                particle_radius_px=self.fitted_.particle_radius_px,
                ctf=self._ctf_mode(particles),
                most_detail=self._most_detail,
                half=False,
                **self._limits_px(particles),
            )
        )
        schedule, state = self._begin(particles, field, shard)
        return state_poses(self.fitted_.assign(schedule.model, state), field, shard).to("cpu")

    def _class_count(self, n: int) -> int:
        """The number of classes of n particles."""
        if n < 2:
            raise RalibError(f"{n} particle{'s' * (n != 1)} cannot be classified: give at least 2")
        n_classes = self.n_classes
        if n_classes is None:
            n_classes = default_classes(n) if self.references is None else len(self.references)
        if n < 2 * n_classes:
            raise RalibError(f"{n} particles are too few for {n_classes} classes: ask for at most {n // 2}")
        return n_classes

    def _check(self, particles: ParticleSet) -> None:
        if self.ctf in ("on", "flipped") and particles.ctf is None:
            raise RalibError(
                f"`ctf={self.ctf}`: the particles have no CTF parameters: use `ctf=off`, or a file with them"
            )
        if self.ctf in ("on", "flipped") and particles.pixel_size_A is None:
            raise RalibError(f"`ctf={self.ctf}`: no file says the pixel size: give it with `ParticleSet.pixel_size_A`")
        lengths = (self.diameter_A, self.resolution_A, self.lowest_A)
        if particles.pixel_size_A is None and any(v is not None for v in lengths):
            raise RalibError(
                "lengths in A need a pixel size and no file says it: give one with `ParticleSet.pixel_size_A`"
            )
        if self.skip_align and particles.poses is None:
            raise RalibError("`skip_align`: the particles have no poses: give them with `ParticleSet.poses`")

    def _admitted(self, particles: ParticleSet) -> ParticleSet:
        """The particles as they can be classified, with what a user should know of them in `warnings`."""
        self._check(particles)
        if self.ctf == "auto" and particles.ctf is not None and particles.pixel_size_A is None:
            particles = particles.warned(
                "the particles have CTF parameters, but their pixel size is not known: the CTF is left out",
                "CTF",
                "give the pixel size with `ParticleSet.pixel_size_A`, or `ctf=off` if that is what you want",
            )
        if self.ctf == "flipped" and particles.ctf is not None:
            flipped = np.maximum(particles.ctf.state, CtfState.PHASE_FLIPPED)
            particles = particles.replace(ctf=particles.ctf.with_state(flipped))
        particles = for_computing(particles, ctf=self._ctf_mode(particles) == "on")
        return self._notes_on_options(particles)

    def _notes_on_options(self, particles: ParticleSet) -> ParticleSet:
        """Options that the images cannot honour are cut, with a warning."""
        box, pixel = particles.box, particles.pixel_size_A
        if pixel is not None and self.diameter_A is not None and self.diameter_A > 2 * LARGEST_RADIUS * box * pixel:
            particles = particles.warned(
                f"`diameter_A` {self.diameter_A:g} A was cut to {2 * LARGEST_RADIUS * box * pixel:.0f} A: the box is "
                f"{box * pixel:.0f} A wide, and some background must be left",
                "`diameter_A`",
                "give a smaller diameter, or extract the particles in a larger box",
            )
        if pixel is not None and self.resolution_A is not None and self.resolution_A * FINEST < pixel:
            particles = particles.warned(
                f"`resolution_A` {self.resolution_A:g} A was cut to {pixel / FINEST:.3g} A: pixels of {pixel:g} A hold "
                f"nothing beyond {2 * pixel:g} A (Nyquist)",
                "`resolution_A`",
                "leave it out, or extract the particles with smaller pixels",
            )
        if pixel is not None and self.resolution_A is not None and self.resolution_A > box * pixel / 2:
            raise RalibError(
                f"`resolution_A` {self.resolution_A:g} A leaves nothing to compare: the box is {box * pixel:.0f} A wide"
            )
        if self.search_px is not None and self.search_px > box / 2:
            raise RalibError(
                f"`search_px` {self.search_px:g} px: a particle lies within {box // 2} px of the box's centre"
            )
        if pixel is not None and self.lowest_A is not None and self.lowest_A < 2 * pixel:
            raise RalibError(f"`lowest_A` {self.lowest_A:g} A leaves nothing to compare: pixels are {pixel:g} A")
        return particles

    def _ctf_mode(self, particles: ParticleSet) -> str:
        known = particles.ctf is not None and particles.pixel_size_A is not None
        return "off" if not known or self.ctf == "off" else "on"

    def _batches(self, particles: ParticleSet, shard: Shard) -> ParticleBatches:
        default = 1024 if self._device.type == "cpu" else max(256, 2**28 // (particles.box**2 * 4))
        # Spectra are read a dozen times, images twice: they stay only where all of them do.
        all_bytes, room_bytes = 2 * len(shard) * particles.box**2, RESIDENT_SHARE * free_memory(self._device)
        return ParticleBatches(
            particles,
            range(shard.rows.start, shard.rows.stop),
            batch_size=self.batch_size or default,
            device=self._device,
            background_radius=0.45 * particles.box,
            resident_bytes=int(room_bytes) if all_bytes <= room_bytes else 0,
        )

    def _limits_px(self, particles: ParticleSet) -> dict[str, float | None]:
        """Finest and coarsest detail compared, pixels of the input."""
        pixel = particles.pixel_size_A or 1.0
        return {
            "resolution_px": self.resolution_A / pixel if self.resolution_A else None,
            "lowest_px": self.lowest_A / pixel if self.lowest_A else None,
        }

    def _load(
        self, particles: ParticleSet, batches: ParticleBatches, shard: Shard, *, half: bool = False
    ) -> WhitenedParticles:
        self.n_classes_ = self._class_count(len(particles))
        if self._earlier is not None and self._plan.exchanges == 0:  # they join classes on the same grid
            self._size, self._most_detail = self._earlier.size, self._earlier.most_detail
        else:
            self._size, plan = self._measured(particles), self._plan
            large = plan.joint > 0 and plan.takes_sample(len(particles), self.n_classes_)
            self._most_detail = plan.most_detail if large else None
        return whiten_particles(
            particles,
            batches,
            shard,
            n_classes=self.n_classes_,
            radius_px=self._size.mask_radius_px,
            particle_radius_px=self._size.radius_px,
            ctf=self._ctf_mode(particles),
            most_detail=self._most_detail,
            half=half,
            **self._limits_px(particles),
        )

    def _search_px(self, particles: ParticleSet) -> float:
        return self.search_px or 0.1 * particles.box

    def _measured(self, particles: ParticleSet) -> Measured:
        """The particle's radius: as asked for, or measured."""
        if self.diameter_A:
            mask_px = self.diameter_A / (particles.pixel_size_A or 1.0) / 2
            return Measured.of_mask(mask_px)
        found = measure_radius(
            particles, device=self._device, search_px=self._search_px(particles), ctf=self._ctf_mode(particles),
            mirror=self.mirror, budget=self._budget, at_most=self._plan.measured,
        )  # fmt: skip
        # All ranks measured the same few particles; were their devices unlike, rank 0's word counts.
        measured = torch.tensor([found.radius_px, found.rim_px, float(found.crowded)], dtype=torch.float64)
        radius, rim, crowded = self._ranks.broadcast_(measured).tolist()
        return Measured(radius, rim, bool(crowded))

    def _search(
        self,
        particles: ParticleSet,
        field: WhitenedParticles,
        shard: Shard,
        observer: Observer,
        resume: Checkpoint | None,
    ) -> tuple[State, list[dict[str, Any]], ClassificationSchedule]:
        schedule, state = self._begin(particles, field, shard, self._earlier)
        figures = [] if self._earlier is None else list(self._earlier.figures)
        previous, saved, exchanged = None, schedule.position.steps, 0
        if resume is not None:
            some, found, figures = resume_schedule(schedule, resume, self._device)
            previous, saved = state_poses(found, some.model.field, some.model.shard), some.position.steps
            state = found if some is schedule else state
        clock, pixel = time.perf_counter(), particles.pixel_size_A
        n_announced = 0 if resume is None else len(schedule.log)

        def announce() -> None:
            """Hand the observer the lines of the log that are new."""
            nonlocal n_announced
            for line in schedule.log[n_announced:]:
                observer.found(line)
            n_announced = len(schedule.log)

        def observe(at: ClassificationSchedule, stage: str, state: State) -> None:
            nonlocal clock, previous, saved, exchanged
            announce()
            field, shard = at.model.field, at.model.shard  # perhaps of a sample
            poses = state_poses(state, field, shard)
            if previous is not None and len(previous) != len(poses):
                previous = None
            now = time.perf_counter()
            number = len(figures) + 1
            figures.append(schedule_figures(stage, number, state, poses, previous, field, pixel, now - clock))
            clock, previous = now, poses
            ends_step = at.position.steps != saved and not at.finished
            expected = None
            if at.position.begun and (ends_step or at.position.exchanged < exchanged):  # fewer: begun anew without junk
                expected = number - (not ends_step) + self._plan.remaining_iterations(at.position, at.k)
            saved, exchanged = at.position.steps, at.position.exchanged
            checkpoint = partial(checkpoint_of, at, state, figures, half=schedule.model.field.plan.half)
            saves = ends_step
            if saves and shard.ranks.size > 1:  # every rank gives its part, also where none is written
                made = checkpoint()
                checkpoint = partial(lambda known: known, made)
            observer.iteration(
                IterationDone(
                    figures,
                    partial(coarse_averages, field, state, pixel),
                    checkpoint if saves else None,
                    ends_step=ends_step,
                    expected=expected,
                )
            )

        announce()
        schedule.observe = observe
        if not self.equal_sizes:
            schedule.recognise = partial(self._recognised_junk, particles)
        state = schedule.run(state)
        announce()
        return state, figures, schedule

    def _recognised_junk(self, particles: ParticleSet, at: ClassificationSchedule, state: State) -> Tensor:
        """Which particles (n,) of a schedule in its final state are surely junk."""
        if at.rows is not None:
            particles = take(particles, at.rows.cpu().numpy())
        return torch.from_numpy(self._examined(self._batches(particles, at.model.shard), at, state).junk)

    def _examined(
        self,
        batches: ParticleBatches,
        schedule: ClassificationSchedule,
        state: State,
        image: StatisticsTable | None = None,
    ) -> _Examined:
        """What the verdict needs of a final state; without `image` the images' statistics are computed.

        It is measured once where no junk was set aside after it.
        """
        if self._last is not None and self._last.state is state:
            return self._last
        model = schedule.model
        if image is None:
            image = StatisticsTable(batches, model.field.particle_radius_px / model.field.scale)
            for batch in batches:
                image.add(batch)
        stability = quick_estimate(model, schedule, state, torch.Generator().manual_seed(self.seed))
        poses = state_poses(state, model.field, model.shard).to("cpu")
        assert schedule.references is not None
        evidence, figures = measure(model, state, schedule.references, poses, stability, image.values)
        odds = junk_odds(evidence, stability, self._device)
        self._last = _Examined(state, stability, evidence, figures, odds, surely_junk(evidence, stability, odds))
        return self._last

    def _begin(
        self, particles: ParticleSet, field: WhitenedParticles, shard: Shard, earlier: EarlierClasses | None = None
    ) -> tuple[ClassificationSchedule, State]:
        """A schedule at its beginning, and the particles as they come."""
        generator = torch.Generator().manual_seed(self.seed)
        n = len(particles)
        half = _halves(particles, generator)
        held = _held_out(n, generator)
        half, held = (table[shard.rows].to(self._device) for table in (half, held))
        search_px = self._search_px(particles) * field.scale
        model = Model(field, shard, half, held, self.balance, self.mirror, search_px, not self.skip_align, self._budget)
        schedule = ClassificationSchedule(
            model, self._plan, self.n_classes_, generator, earlier or self._given(particles)
        )
        schedule.log += self._findings(particles, field, shard)
        state = model.blank() if earlier is None else earlier.known(model, model.blank())
        if self.skip_align and particles.poses is not None:
            given = particles.poses[shard.rows].to(self._device)
            origin = given.origin_xy_px.float() * field.scale
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

    def _findings(self, particles: ParticleSet, field: WhitenedParticles, shard: Shard) -> list[str]:
        """What was found out about the images before they are classified, in words."""
        unit, per_px = ("A", particles.pixel_size_A) if particles.pixel_size_A else ("px", 1.0)
        particle, mask = (2 * per_px * px / field.scale for px in (field.particle_radius_px, field.radius_px))
        found = f"particle diameter {particle:.0f} {unit}, mask {mask:.0f} {unit}"
        how = "as asked for" if self.diameter_A else "from coarse class averages"
        if self._size.crowded:
            how += ", neighbours begin right behind"
        outliers = int(shard.count(field.outliers.found))
        share = 100 * outliers / len(particles)
        return [
            f"{found}: {how}",
            *([str(field.plan)] if field.plan.reported else []),
            f"{outliers} images ({share:.1f}%) are outliers by their spectrum, brightest pixel or gradient: no class "
            "begins from them, and no average holds them",
        ]

    def _finish(
        self,
        particles: ParticleSet,
        batches: ParticleBatches,
        state: State,
        figures: list[dict[str, Any]],
        schedule: ClassificationSchedule,
    ) -> None:
        model, field, shard = schedule.model, schedule.model.field, schedule.model.shard
        notices, generator = [], torch.Generator().manual_seed(self.seed)
        state = equalised(model, schedule, state) if self.equal_sizes else schedule.filled(state)
        if (empty := int((state.members < 1).sum())) > 0:
            state = schedule.without_empty(state)
            notices.append(fewer_classes(self.n_classes_, empty))
        n_classes = len(state.members)
        poses = state_poses(state, field, shard).to("cpu")
        shown, of_junk = poses, None
        image = StatisticsTable(batches, field.particle_radius_px / field.scale)
        known = self._last is not None and self._last.state is state
        if schedule.k < self.n_classes_:  # one is left to junk
            known, junk = True, self._examined(batches, schedule, state).junk
            shown, of_junk = with_class_of_junk(poses, junk, n_classes)
            if len(of_junk) == n_classes:
                notices.append(fewer_classes(self.n_classes_, 1))
            n_classes = len(of_junk)
        left_out = shard.gather(field.outliers.found).cpu()
        if of_junk is not None:
            left_out |= shard.gather(field.aside).cpu() & ~of_junk[shown.class_index]
        averages = on_host(
            full_averages(
                particles, batches, without_class(shown, left_out).to(self._device),
                _halves(particles, generator), ctf=self._ctf_mode(particles), n_classes=n_classes, ranks=self._ranks,
                look=(lambda _: None) if known else image.add,
            )
        )  # fmt: skip
        assert schedule.references is not None
        curve, by_noise = masked_frc(averages, field.radius_px / field.scale), torch.Generator().manual_seed(self.seed)
        of_noise = substituted_ssnr(model, state, schedule.references, by_noise).cpu()
        averages = replace(
            averages,
            members=torch.bincount(shown.class_index[shown.class_index >= 0], minlength=n_classes),
            frc=corrected_frc(curve, of_noise, averages.members),
        )
        classes = class_figures(averages, shown, None)
        bad = torch.nonzero(~shard.gather(field.usable))[:, 0].tolist()
        found = self._examined(batches, schedule, state, image)
        index = shown.class_index.numpy()
        by_choice = torch.Generator().manual_seed(self.seed)
        support = pose_support(model, state, schedule.references.shape[1], found.odds < 0, by_choice).numpy()
        verdict = judge(
            found.evidence, found.figures, field, averages, classes, index, found.stability, found.odds, support
        )
        self.evidence_, self.fitted_ = verdict.evidence, FittedClasses.of(schedule, state, particles)
        finest = schedule.references.shape[1] * field.grid.spacing * field.scale
        self.earlier_ = EarlierClasses(poses, len(state.members), self._size, float(finest), self._most_detail, figures)
        warnings = [*particles.warnings, *notices, *unusable_images(particles, bad), *verdict.warnings]
        self.result_ = ClassificationResult(
            "classify",
            shown,
            averages,
            figures,
            self._options(),
            warnings,
            classes=verdict.classes,
            references=filtered(averages),
            bad_particles=bad,
            timings=self._timings,
            particle_scores=verdict.particles,
            log=schedule.log,
            stability=found.stability.summary,
            diameter_A=2 * field.radius_px / field.scale * (particles.pixel_size_A or 1.0),
        )
        self.poses_, self.class_averages_, self.classes_ = shown, averages, verdict.classes
        self.warnings_ = warnings

    def _options(self) -> dict[str, Any]:
        names = "n_classes diameter_A resolution_A lowest_A balance equal_sizes mirror ctf search_px skip_align seed"
        return {name: getattr(self, name) for name in names.split()}

    def _lap(self, name: str, start: float) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._timings[name] = time.perf_counter() - start


@dataclass(frozen=True)
class _Examined:
    """What the verdict needs of a final state: how stable it is, the junk model's evidence, and what follows from both.

    Figures, log-odds of being junk, and which are surely junk have a row for each particle.
    """

    state: State
    stability: Stability
    evidence: Evidence
    figures: dict[str, np.ndarray]
    odds: np.ndarray
    junk: np.ndarray


def _halves(particles: ParticleSet, generator: torch.Generator) -> Tensor:
    """Which half (n,) of the data each particle is in; one image that is there more than once is in one."""
    half = torch.randperm(len(particles), generator=generator) % 2
    return half if particles.same_as is None else half[torch.from_numpy(particles.same_as)]


def _held_out(n: int, generator: torch.Generator) -> Tensor:
    """A twentieth of the particles, 20 to 500; none of fewer than 160, which cannot spare them."""
    held = torch.zeros(n, dtype=torch.bool)
    if n >= 160:
        held[torch.randperm(n, generator=generator)[: min(500, max(20, n // 20))]] = True
    return held
