"""One iteration of alignment, shared by the multi-reference and the reference-free loop.

search all batches -> assign -> half sums -> averages -> FRC -> low-pass -> mask -> centre -> new references
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ralib.alignment.equal_sizes import EqualClasses
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.references import (
    ReferencePlan,
    prepare_references,
    reference_mask,
    shift_limit_px,
    user_references,
)
from ralib.alignment.sample_cache import SampleCache
from ralib.alignment.stage import Stage, make_stage
from ralib.alignment.state import LoopState
from ralib.classes import assignment as assign
from ralib.classes.averages import ClassSums, class_averages, ctf_power_in_class_frame, shift_averages, shift_poses
from ralib.classes.iteration_figures import iteration_figures
from ralib.classes.kernels_ahead import average_calls
from ralib.images.ctf import ctf_2d
from ralib.images.fourier import filter_images, ring_counts, ring_sums, spread_rings
from ralib.io import for_computing
from ralib.io.selections import spread_rows
from ralib.kernels.threads import one_thread
from ralib.particles.batches import Batch, ParticleBatches, usual_batch_size
from ralib.results.observer import IterationDone, Observer, SilentObserver
from ralib.runtime import compilers
from ralib.runtime.distributed import Ranks, SingleProcess, gather_rows, shard
from ralib.types import ClassAverages, Notice, ParticleSet, Poses, RalibError

BATCH_BYTES = {"cpu": 2**25, "cuda": 2**30}
"""Images of one batch: enough to keep every core, or the GPU, busy. Its transforms take twenty times as much."""
BATCH_SHARE = 1 / 64
"""Share of a GPU's memory that a batch takes at most."""

TYPICAL_OF = 300
"""Particles whose CTFs tell how strongly images show each ring of a reference."""

STILL_PX = 0.5
"""A particle whose origin moves by less keeps its place on the grid that is searched."""


class Alignment:
    """The particles of one run, and the passes over them.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    options : AlignmentOptions
        Options of the alignment.
    ranks : Ranks, optional
        The processes of the run; by default only this one.
    observer : Observer, optional
        Is called after every batch and iteration.
    """

    def __init__(
        self,
        particles: ParticleSet,
        options: AlignmentOptions,
        *,
        ranks: Ranks | None = None,
        observer: Observer | None = None,
    ) -> None:
        if len(particles) == 0:
            raise RalibError("the stack holds no particles: nothing to align")
        particles = for_computing(particles, ctf=options.ctf != "off")
        self.options = options.checked(particles.box)
        self.particles, self.box = particles, particles.box
        self.device = torch.device(self.options.device)
        self.ranks: Ranks = ranks or SingleProcess()
        self.observer: Observer = observer or SilentObserver()
        self.outer_radius = float(self.options.outer_radius or 0)
        most = BATCH_BYTES.get(self.device.type, 2**26)
        usual = usual_batch_size(self.device, self.box, most, gpu_share=BATCH_SHARE)
        self.batches = ParticleBatches(
            particles,
            shard(len(particles), self.ranks),
            batch_size=self.options.batch_size or usual,
            device=self.device,
            background_radius=max(self.outer_radius, self.box // 4),
            ctf=self.options.ctf,
            strict=self.options.strict,
            resident_bytes=self.options.resident_bytes,
        )
        # All ranks round alike.
        rounded = self.ranks.all_reduce_(torch.tensor(float(self.batches.rounded)))
        self.batches.round_images(bool(rounded > 0))
        self.plan = ReferencePlan(
            mask=reference_mask(self.options.mask, self.box, self.outer_radius, self.device),
            center=self.options.center,
            outer_radius=self.outer_radius,
            fourier_variance=self.options.fourier_variance,
        )
        self._typical_ctf = _typical_ctf(particles, self.device) if self.options.ctf == "wiener" else None
        self.timings = dict.fromkeys(("prepare_s", "search_s", "average_s"), 0.0)
        self.warnings: list[Notice] = []
        self.sample_cache = SampleCache(self.batches)
        # Random references are averages, which come before there is a search.
        compilers.submit(average_calls(self.box, rounded=True))

    def stage(self, shift_range_xy_px: tuple[float, float], step_px: float | None = None) -> Stage:
        """Make a pose search for these particles, with shifts limited so that the disc remains inside the box.

        Parameters
        ----------
        shift_range_xy_px : tuple of float
            Shift range along x and y, pixels.
        step_px : float, optional
            Step of the shift grid, pixels; by default as the templates need.

        Returns
        -------
        Stage
            The search and its shift range.
        """
        made, notices = make_stage(self.options, self.box, shift_range_xy_px, step_px)
        self.warnings += notices
        return made

    def iterate(
        self,
        stage: Stage,
        state: LoopState,
        *,
        last: bool,
        closing: Callable[[LoopState], LoopState] | None = None,
    ) -> LoopState:
        """Run one iteration: poses and references of the state in, the next ones out, the same on every rank.

        Parameters
        ----------
        stage : Stage
            The pose search.
        state : LoopState
            State after the previous iteration.
        last : bool
            Whether this is the last iteration.
        closing : callable, optional
            Changes the state before the observer gets it.

        Returns
        -------
        LoopState
            State after this iteration.
        """
        start = time.perf_counter()
        if state.figures:  # begun with images rounded, or not
            self.batches.round_images(state.figures[-1].get("half_precision", self.batches.rounded))
        self.sample_cache.fitting(stage.search, lambda: stage.search.set_references(self._as_imaged(state.references)))
        target = self._equal_classes(stage, state) if self.options.equal_sizes else None
        poses, sums = self._search_and_sum(stage, state.poses, len(state.references), target)
        # A class too small in the last iteration is reported, not reseeded with members that would not be searched.
        poses, warnings = (poses, []) if last else self._reseed(poses, sums)
        sums.all_reduce_(self.ranks)
        with one_thread():
            averages = self._averages_of(sums)
            references, move = self.references_from(averages, poses, max(stage.shift_range_xy_px))
        # The figures wait for the device: what the next search begins with is under way before.
        self.sample_cache.fitting(None, lambda: stage.search.expect_references(self._as_imaged(references)))
        centred = self.plan.center != 0 or self.options.user_function is not None
        poses = shift_poses(poses, move) if centred else poses
        warnings, self.sample_cache.notices = [*self.sample_cache.notices, *warnings], []
        previous = state.poses if state.averages is not None else None
        seconds = time.perf_counter() - start
        figures = iteration_figures(state.iteration + 1, poses, previous, averages, self.outer_radius, seconds)
        if figures["largest"] == 0:
            raise RalibError(f"none of the {len(poses)} images can be used: constant, not finite, or left out")
        figures["half_precision"] = self.batches.rounded
        done = replace(
            state,
            iteration=state.iteration + 1,
            references=references,
            poses=poses,
            previous=previous,
            averages=shift_averages(averages, move) if centred else averages,
            figures=[*state.figures, figures],
            warnings=[*state.warnings, *warnings],
        )
        done = closing(done) if closing else done
        self.observer.iteration(_reported(done))
        return done

    def search_until_still(self, stage: Stage, references: Tensor, poses: Poses, most: int) -> Poses:
        """Search poses with fixed references, around the last origins, until none moves.

        Parameters
        ----------
        stage : Stage
            The pose search.
        references : Tensor of shape (k, n, n)
            References.
        poses : Poses
            Initial poses.
        most : int
            Largest number of searches.

        Returns
        -------
        Poses
            Poses.
        """
        self.sample_cache.fitting(stage.search, lambda: stage.search.set_references(self._as_imaged(references)))
        for _ in range(most):
            before, (poses, _) = poses, self._search_and_sum(stage, poses, len(references), None)
            if bool((poses.origin_xy_px - before.origin_xy_px).abs().amax() < STILL_PX):
                break
        return poses

    def references_from(self, averages: ClassAverages, poses: Poses, shift_range_px: float) -> tuple[Tensor, Tensor]:
        """Make the next references from averages, by the user's function where there is one.

        All ranks take those of rank 0.

        Parameters
        ----------
        averages : ClassAverages
            Class averages.
        poses : Poses
            Poses of all particles.
        shift_range_px : float
            Shift range of the search, pixels.

        Returns
        -------
        Tensor of shape (k, n, n)
            References.
        Tensor of shape (k, 2)
            Shift that centred each of them, pixels.
        """
        if self.options.user_function is None:
            largest_shift_px = max(0.0, shift_limit_px(self.box, self.outer_radius) - shift_range_px)
            references, move = prepare_references(averages, self.plan, poses, largest_shift_px)
        else:
            references, move = user_references(self.options.user_function, averages, self.plan)
        return self.ranks.broadcast_(references.contiguous()), self.ranks.broadcast_(move.contiguous())

    def average(self, poses: Poses, n_classes: int) -> ClassAverages:
        """Compute class averages of all particles over all ranks.

        Parameters
        ----------
        poses : Poses
            Poses of all particles.
        n_classes : int
            Number of classes.

        Returns
        -------
        ClassAverages
            The averages.
        """
        index = torch.nonzero(poses.class_index >= 0)[:, 0].numpy()

        def summed() -> ClassSums:
            sums = self._empty_sums(n_classes)
            # Reading everything goes by the batches that later iterations keep.
            for batch in self.batches if 2 * len(index) > len(poses) else self.batches.select(index):
                self._add(sums, batch, poses[torch.from_numpy(batch.index)].to(self.device))
            return sums

        sums = self.sample_cache.fitting(None, summed)
        sums.all_reduce_(self.ranks)
        return self._averages_of(sums)

    def smallest_class(self, n_classes: int) -> int:
        """Return the size below which a class is reseeded: the option, or a twentieth of an equal share, at least 4."""
        if self.options.min_members is not None:
            return self.options.min_members
        return max(4, round(0.05 * len(self.particles) / n_classes))

    # -- passes over this rank's particles --------------------------------------------------------------------------

    def _search_and_sum(
        self, stage: Stage, previous: Poses, n_classes: int, target: Tensor | None
    ) -> tuple[Poses, ClassSums]:
        """Poses of all particles, gathered over the ranks, and this rank's class sums under them."""
        local, sums = self.sample_cache.fitting(stage.search, lambda: self._pass(stage, previous, n_classes, target))
        return self._gather(local), sums

    def _pass(self, stage: Stage, previous: Poses, n_classes: int, target: Tensor | None) -> tuple[Poses, ClassSums]:
        """Poses of this rank's particles, and their class sums."""
        sums = self._empty_sums(n_classes)
        found = []
        clock = _Clock(self.timings)
        for batch in self.batches:
            samples = self.sample_cache.samples(stage.search, batch)
            clock.lap("prepare_s")
            centre = self._centre(stage, previous, batch)
            if target is None:
                poses = stage.search.search(samples, centre)
            else:
                poses = stage.search.search_within(samples, target[batch.rows].to(self.device), centre)
            poses = poses.replace(class_index=torch.where(batch.usable, poses.class_index, -1))
            clock.lap("search_s")
            self._add(sums, batch, poses)
            found.append(poses)
            clock.lap("average_s")
            self.observer.batch(int(batch.index[-1]) + 1 - self.batches.rows.start, len(self.batches.rows))
        return Poses.cat(found) if found else Poses.identity(0, self.device), sums

    def _averages_of(self, sums: ClassSums) -> ClassAverages:
        mask, pixel_size_A = self.plan.mask, self.particles.pixel_size_A
        return self.sample_cache.fitting(
            None, lambda: class_averages(sums, snr=self.options.snr, mask=mask, pixel_size_A=pixel_size_A)
        )

    def _equal_classes(self, stage: Stage, state: LoopState) -> Tensor:
        """Balanced classes (n,), the same on every rank; unusable particles take no place."""

        def scores(batch: Batch) -> Tensor:
            samples = self.sample_cache.samples(stage.search, batch)
            return stage.search.scores(samples, self._centre(stage, state.poses, batch))

        equal = EqualClasses(
            self.batches, self.ranks, scores, lambda work: self.sample_cache.fitting(stage.search, work)
        )
        return equal.assign(len(state.references))

    def _reseed(self, poses: Poses, sums: ClassSums) -> tuple[Poses, list[Notice]]:
        """Reseed small classes; sums are linear, so that only the particles that moved are subtracted and added."""
        smallest = self.smallest_class(sums.n_classes)
        if self.options.equal_sizes or sums.n_classes == 1 or smallest < 1:
            return poses, []
        on_device, poses = poses, poses.to("cpu")
        result = assign.reseed_small_classes(poses.class_index, poses.score, sums.n_classes, smallest)
        if not result.events:
            return on_device, []
        after = poses.replace(class_index=result.class_index)
        moved = torch.nonzero(result.class_index != poses.class_index)[:, 0].numpy()
        for batch in self.batches.select(moved):
            at = torch.from_numpy(batch.index)
            self._add(sums, batch, poses[at].to(self.device), sign=-1)
            self._add(sums, batch, after[at].to(self.device))
        return after.to(self.device), [
            Notice(
                what=f"class {small + 1} had {had} members and was reseeded with the {given} "
                f"worst-fitting members of class {donor + 1}",
                where=f"class {small + 1}",
                remedy="ask for fewer classes, or for equal ones (`equal_sizes`), if this goes on to the end",
            )
            for small, had, donor, given in result.events
        ]

    def _add(self, sums: ClassSums, batch: Batch, poses: Poses, sign: int = 1) -> None:
        poses = poses.replace(class_index=torch.where(batch.usable, poses.class_index, -1))
        ctf = self.batches.ctf_parameters(batch.index)
        power = None
        if ctf is not None and self.particles.pixel_size_A is not None:
            power = ctf_power_in_class_frame(ctf, poses, self.box, self.particles.pixel_size_A)
        sums.add_(batch.turnable, poses, batch.half, power, sign, rounded=self.batches.rounds_samples)

    def _as_imaged(self, references: Tensor) -> Tensor:
        """References as images with flipped phases show them, where averages are divided by the CTF."""
        return references if self._typical_ctf is None else filter_images(references, self._typical_ctf)

    def _empty_sums(self, n_classes: int) -> ClassSums:
        return ClassSums.empty(n_classes, self.box, self.device, ctf=self.options.ctf == "wiener")

    def _centre(self, stage: Stage, previous: Poses, batch: Batch) -> Tensor:
        """Where to search around: the last origin, held back so that no shift takes the disc out of the box."""
        limit = shift_limit_px(self.box, self.outer_radius)
        rows = batch.rows if batch.number >= 0 else torch.from_numpy(batch.index).to(self.device)
        largest_px = (max(0.0, limit - span) for span in stage.shift_range_xy_px)
        origin = previous.origin_xy_px[rows].unbind(-1)
        return torch.stack([part.clamp(-most, most) for part, most in zip(origin, largest_px, strict=True)], dim=-1)

    def _gather(self, local: Poses) -> Poses:
        """All ranks' poses in the order of the particles."""
        n = len(self.particles)
        return Poses(**{name: gather_rows(part, n, self.ranks) for name, part in vars(local).items()})


def _typical_ctf(particles: ParticleSet, device: torch.device) -> Tensor | None:
    """Root mean square of the CTFs of the particles, ring by ring, in rfft2's layout."""
    if particles.ctf is None or particles.pixel_size_A is None:
        return None
    sound = np.arange(len(particles)) if particles.usable is None else np.flatnonzero(particles.usable)
    if not len(sound):
        return None
    some, box = sound[spread_rows(len(sound), TYPICAL_OF)], particles.box
    power = ctf_2d(particles.ctf[some], box, particles.pixel_size_A, device=device).double().square().mean(0)
    return spread_rings((ring_sums(power) / ring_counts(box, power.device)).sqrt(), box).float()


def _reported(state: LoopState) -> IterationDone:
    """The state as an observer gets it."""
    averages = state.averages
    assert averages is not None
    return IterationDone(state.figures, lambda: averages.to("cpu"), state.checkpoint, state.warnings)


class _Clock:
    """Adds the time since the last lap to a named sum, as the host sees it."""

    def __init__(self, sums: dict[str, float]) -> None:
        self.sums, self.last = sums, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.sums[name] += now - self.last
        self.last = now
