"""One iteration of alignment, shared by the multi-reference and the reference-free loop.

search all batches -> assign -> half sums -> averages -> FRC -> low-pass -> mask -> centre -> new references
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ralib import assign
from ralib.average import (
    ClassSums,
    ReferencePlan,
    class_averages,
    ctf_power_in_class_frame,
    prepare_references,
    shift_averages,
    shift_limit_px,
    shift_poses,
)
from ralib.batches import Batch, ParticleBatches, free_memory
from ralib.figures import iteration_figures
from ralib.loop_state import LoopState
from ralib.prepare import soft_circle
from ralib.ranks import Ranks, SingleProcess, shard
from ralib.search import PoseSearch
from ralib.types import ArraySource, ClassAverages, ParticleSet, Poses, RalibError

UserFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]
MASK_EDGE_PX = 3.0
BATCH_BYTES = {"cpu": 2**22, "cuda": 2**30}
"""Images of one batch: a CPU works within its cache, a GPU is kept busy."""


class Observer(Protocol):
    """What a loop tells while it runs; an exception raised here stops it."""

    def batch(self, done: int, total: int) -> None:
        """`done` of this rank's `total` particles have been searched in this iteration."""
        ...

    def iteration(self, state: LoopState) -> None:
        """An iteration is complete."""
        ...


class Silent:
    """An observer that looks away."""

    def batch(self, done: int, total: int) -> None:
        return None

    def iteration(self, state: LoopState) -> None:
        return None


@dataclass(frozen=True)
class AlignmentOptions:
    """Options both loops share; lengths in pixels. None means: chosen from the data."""

    outer_radius: float | None = None
    inner_radius: float = 1
    mirror: bool = True
    center: int = 1
    mask: np.ndarray | Tensor | None = None
    min_members: int | None = None
    equal_sizes: bool = False
    ctf: str = "off"
    snr: float | None = None
    user_function: UserFunction | None = None
    fourier_variance: bool = False
    strict: bool = False
    device: torch.device | str = "cpu"
    batch_size: int | None = None

    def checked(self, box: int) -> AlignmentOptions:
        """The options with every None filled in for images of this box; RalibError for what cannot be."""
        radius = self.outer_radius
        radius = box // 2 - 2 if radius is None or radius < 0 else radius
        if not 0 < self.inner_radius <= radius or radius > box // 2:
            raise RalibError(
                f"radii {self.inner_radius:g} to {radius:g} px do not fit in a box of {box} px: "
                f"use 1 <= --ir <= --ou <= {box // 2 - 1}"
            )
        if self.snr is not None and not self.snr > 0:
            raise RalibError(f"--snr {self.snr:g} must be above 0")
        if self.center not in range(-1, 8):
            raise RalibError(f"--center {self.center} is unknown: choose -1 (average shift), 0 (none) or 1 to 7")
        if self.batch_size is not None and self.batch_size < 1:
            raise RalibError(f"a batch of {self.batch_size} particles is too small: use at least 1")
        return replace(self, outer_radius=float(radius), device=torch.device(self.device))


@dataclass(frozen=True)
class Stage:
    """A pose search, and the shift range (x, y) in pixels it was made for."""

    search: PoseSearch
    shift_range_xy_px: tuple[float, float]


class Alignment:
    """The particles of one run and the passes over them."""

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
        self.options = options.checked(particles.box)
        self.particles, self.box = particles, particles.box
        self.device = torch.device(self.options.device)
        self.ranks: Ranks = ranks or SingleProcess()
        self.observer: Observer = observer or Silent()
        self.outer_radius = float(self.options.outer_radius or 0)
        self.batches = ParticleBatches(
            particles,
            shard(len(particles), self.ranks),
            batch_size=self.options.batch_size or _default_batch(self.device, self.box),
            device=self.device,
            background_radius=max(self.outer_radius, self.box // 4),
            ctf=self.options.ctf,
            strict=self.options.strict,
        )
        self.plan = ReferencePlan(
            mask=_mask(self.options.mask, self.box, self.outer_radius, self.device),
            center=self.options.center,
            outer_radius=self.outer_radius,
            fourier_variance=self.options.fourier_variance,
        )
        self.timings = dict.fromkeys(("prepare_s", "search_s", "average_s"), 0.0)
        self._samples: dict[int, Tensor] = {}
        self._samples_of: PoseSearch | None = None

    def stage(self, shift_range_xy_px: tuple[float, float], step_px: float | None = None) -> Stage:
        """A pose search for these particles; shifts stay where the disc remains inside the box."""
        limit = shift_limit_px(self.box, self.outer_radius)
        span = (min(float(shift_range_xy_px[0]), limit), min(float(shift_range_xy_px[1]), limit))
        search = PoseSearch(
            box=self.box,
            outer_radius=self.outer_radius,
            inner_radius=self.options.inner_radius,
            shift_range_xy_px=span,
            shift_step_px=step_px,
            mirror=self.options.mirror,
            device=self.device,
        )
        return Stage(search, span)

    def iterate(
        self,
        stage: Stage,
        state: LoopState,
        *,
        last: bool,
        closing: Callable[[LoopState], LoopState] | None = None,
    ) -> LoopState:
        """One iteration: `state.references` and poses in, the next ones out; the same on every rank.

        `closing` may change the state before the observer sees it.
        """
        start = time.perf_counter()
        stage.search.set_references(state.references)
        target = self._equal_classes(stage, state) if self.options.equal_sizes else None
        poses, sums = self._search_and_sum(stage, state.poses, len(state.references), target)
        # A class found starving in the last iteration is reported, not refilled with members never searched.
        poses, warnings = (poses, []) if last else self._reseed(poses, sums)
        sums.all_reduce_(self.ranks)
        averages = class_averages(
            sums, snr=self.options.snr, mask=self.plan.mask, pixel_size_A=self.particles.pixel_size_A
        )
        references, move = self.references_from(averages, poses, max(stage.shift_range_xy_px))
        poses = shift_poses(poses, move)
        previous = state.poses if state.averages is not None else None
        figures = iteration_figures(
            state.iteration + 1,
            poses,
            previous,
            averages,
            self.outer_radius,
            time.perf_counter() - start,
        )
        done = replace(
            state,
            iteration=state.iteration + 1,
            references=references,
            poses=poses,
            previous=previous,
            averages=shift_averages(averages, move),
            figures=[*state.figures, figures],
            warnings=[*state.warnings, *warnings],
        )
        done = closing(done) if closing else done
        self.observer.iteration(done)
        return done

    def references_from(self, averages: ClassAverages, poses: Poses, shift_range_px: float) -> tuple[Tensor, Tensor]:
        """The next references and the shift (k, 2) that centred them, by the user's function where there is one."""
        if self.options.user_function is None:
            room = max(0.0, shift_limit_px(self.box, self.outer_radius) - shift_range_px)
            return prepare_references(averages, self.plan, poses, room)
        return _user_references(self.options.user_function, averages, self.plan)

    def average(self, poses: Poses, n_classes: int) -> ClassAverages:
        """Class averages of all particles under the poses given, over all ranks."""
        sums = self._empty_sums(n_classes)
        index = torch.nonzero(poses.class_index >= 0)[:, 0].numpy()
        for batch in self.batches.select(index):
            self._add(sums, batch, poses[torch.from_numpy(batch.index)].to(self.device))
        sums.all_reduce_(self.ranks)
        return class_averages(sums, snr=self.options.snr, mask=self.plan.mask, pixel_size_A=self.particles.pixel_size_A)

    def smallest_class(self, n_classes: int) -> int:
        """Classes below it count as starved: the option, else a twentieth of an equal share, at least 4."""
        if self.options.min_members is not None:
            return self.options.min_members
        return max(4, round(0.05 * len(self.particles) / n_classes))

    # -- passes over this rank's particles --------------------------------------------------------------------------

    def _search_and_sum(
        self, stage: Stage, previous: Poses, n_classes: int, target: Tensor | None
    ) -> tuple[Poses, ClassSums]:
        """Poses of all particles, gathered over the ranks, and this rank's class sums under them."""
        sums = self._empty_sums(n_classes)
        found = []
        clock = _Clock(self.timings)
        for batch in self.batches:
            samples = self._polar_samples(stage.search, batch)
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
        local = Poses.cat(found) if found else Poses.identity(0, self.device)
        return self._gather(local), sums

    def _equal_classes(self, stage: Stage, state: LoopState) -> Tensor:
        """Balanced classes (n,), the same on every rank; unusable particles take no place."""
        scores = torch.zeros(len(self.particles), len(state.references), device=self.device)
        usable = torch.zeros(len(self.particles), device=self.device)
        for batch in self.batches:
            samples = self._polar_samples(stage.search, batch)
            scores[batch.rows] = stage.search.scores(samples, self._centre(stage, state.poses, batch))
            usable[batch.rows] = batch.usable.float()
        self.ranks.all_reduce_(scores)
        keep = self.ranks.all_reduce_(usable) > 0
        target = torch.zeros(len(self.particles), dtype=torch.int64, device=self.device)
        target[keep] = assign.equal_sizes(scores[keep])
        return self.ranks.broadcast_(target)

    def _reseed(self, poses: Poses, sums: ClassSums) -> tuple[Poses, list[dict[str, str]]]:
        """Feed starving classes; sums are linear, so only the particles that moved are taken out and put in."""
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
            {
                "what": f"class {starved + 1} had {had} members and was reseeded with the {given} "
                f"worst-fitting members of class {donor + 1}",
                "where": f"class {starved + 1}",
                "do": "ask for fewer classes, or --EQ for equal sizes, if this goes on to the end",
            }
            for starved, had, donor, given in result.events
        ]

    def _add(self, sums: ClassSums, batch: Batch, poses: Poses, sign: int = 1) -> None:
        half = torch.from_numpy(batch.index % 2).to(self.device)
        ctf = self.batches.ctf_parameters(batch.index)
        power = None
        if ctf is not None and self.particles.pixel_size_A is not None:
            power = ctf_power_in_class_frame(ctf, poses, self.box, self.particles.pixel_size_A)
        sums.add_(batch.turnable, poses, half, power, sign)

    def _empty_sums(self, n_classes: int) -> ClassSums:
        return ClassSums.empty(n_classes, self.box, self.device, ctf=self.options.ctf == "wiener")

    def _polar_samples(self, search: PoseSearch, batch: Batch) -> Tensor:
        """The batch as the search wants it, kept on the device between iterations while there is room."""
        if self._samples_of is not search:
            self._samples, self._samples_of = {}, search
        if batch.number in self._samples:
            return self._samples[batch.number]
        samples = search.prepare(batch.images)
        size = samples.numel() * samples.element_size()
        if size * (len(self.batches) - len(self._samples)) < 0.4 * free_memory(self.device):
            self._samples[batch.number] = samples
        return samples

    def _centre(self, stage: Stage, previous: Poses, batch: Batch) -> Tensor:
        """Where to search around: the last origin, held back so that no shift takes the disc out of the box."""
        limit = shift_limit_px(self.box, self.outer_radius)
        room = (limit - torch.tensor(stage.shift_range_xy_px, device=self.device)).clamp_min(0.0)
        origin = previous.origin_xy_px[batch.rows]
        return torch.maximum(torch.minimum(origin, room), -room)

    def _gather(self, local: Poses) -> Poses:
        """All ranks' poses in the order of the particles."""
        if self.ranks.size == 1:
            return local
        n, rows = len(self.particles), self.batches.rows

        def whole(part: Tensor) -> Tensor:
            full = torch.zeros(n, *part.shape[1:], dtype=torch.float64, device=self.device)
            full[rows.start : rows.stop] = part.to(full)
            return self.ranks.all_reduce_(full).to(part.dtype)

        return Poses(
            psi_deg=whole(local.psi_deg),
            origin_xy_px=whole(local.origin_xy_px),
            mirror=whole(local.mirror.float()) > 0.5,
            class_index=whole(local.class_index),
            score=whole(local.score),
        )


def _default_batch(device: torch.device, box: int) -> int:
    return max(64, BATCH_BYTES.get(device.type, 2**26) // (4 * box**2))


class _Clock:
    """Adds the time since the last lap to a named sum, as the host sees it."""

    def __init__(self, sums: dict[str, float]) -> None:
        self.sums, self.last = sums, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.sums[name] += now - self.last
        self.last = now


def as_particles(particles: ParticleSet | np.ndarray | Tensor) -> ParticleSet:
    """A particle set of whatever holds images (n, m, m)."""
    if isinstance(particles, ParticleSet):
        return particles
    images = particles.detach().cpu().numpy() if isinstance(particles, Tensor) else np.asarray(particles)
    if images.ndim != 3 or images.shape[1] != images.shape[2]:
        raise RalibError(f"particles must be square images (n, box, box), not an array of shape {images.shape}")
    return ParticleSet(ArraySource(images))


def _mask(mask: np.ndarray | Tensor | None, box: int, outer_radius: float, device: torch.device) -> Tensor:
    if mask is None:
        return soft_circle(box, outer_radius, MASK_EDGE_PX).to(device)
    tensor = torch.as_tensor(mask, dtype=torch.float32, device=device).squeeze()
    if tensor.shape != (box, box):
        raise RalibError(
            f"the mask is {tuple(tensor.shape)} px, the particles {box} px: make one of the particles' box"
        )
    if not float(tensor.abs().sum()) > 0:
        raise RalibError("the mask is zero everywhere: nothing would be left to align")
    return tensor


def _user_references(function: UserFunction, averages: ClassAverages, plan: ReferencePlan) -> tuple[Tensor, Tensor]:
    """References by the user's function(average, mask, frc) -> reference, or (reference, (dx, dy) it was moved by)."""
    mask = plan.mask.cpu().numpy()
    references, moves = [], []
    curves = averages.frc if averages.frc is not None else torch.zeros(len(averages.images), 1)
    for k, (image, curve) in enumerate(zip(averages.images.cpu().numpy(), curves.cpu().numpy(), strict=True)):
        answer = function(image.copy(), mask.copy(), curve.copy())
        reference, move = answer if isinstance(answer, tuple) else (answer, (0.0, 0.0))
        reference = np.asarray(reference, dtype=np.float32)
        if reference.shape != image.shape or not np.isfinite(reference).all():
            raise RalibError(
                f"--function returned {reference.shape} values, finite or not, for class {k + 1}: "
                f"it must return a finite image of {image.shape}"
            )
        references.append(torch.from_numpy(reference))
        moves.append([float(move[0]), float(move[1])])
    device = averages.images.device
    return torch.stack(references).to(device), torch.tensor(moves, device=device)
