"""SPARX's reference-free alignment, ali2d (EMAN2 2.99, applications.ali2d_base), on batches.

One iteration: the average of all particles under their parameters, its FRC, ref_ali2d or the user's function, centring;
then every particle is aligned to it. The last iteration only averages.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ralib.classes.iteration_figures import iteration_figures
from ralib.images.fourier import fshift
from ralib.results.observer import Observer, SilentObserver
from ralib.sparx.filters import fsc_mask
from ralib.sparx.mref import mean_shift_of_classes, moved_with_reference
from ralib.sparx.particles import Input, ParityParticles, as_particle_set, ring_mask
from ralib.sparx.references import HalfSums, UserFunction, prepare
from ralib.sparx.resample import rot_shift2D
from ralib.sparx.rings import Rings, make_rings
from ralib.sparx.run import (
    History,
    IterationResult,
    SparxArrays,
    SparxResult,
    check_center,
    iterations_of,
    outer_ring,
    params_table,
)
from ralib.sparx.scf import SelfCorrelationSearch
from ralib.sparx.search import Found, ReferenceRings
from ralib.sparx.shc import first_improvement, random_order
from ralib.sparx.stages import Stage, refuse_unused, stages_of
from ralib.sparx.transforms import origins, params_to_poses
from ralib.types import ClassAverages, Notice, RalibError

ALWAYS_FINE = 10  # iterations at the end, in which --dst does not hold


def ali2d(
    particles: Input,
    *,
    mask: np.ndarray | Tensor | None = None,
    ir: int = 1,
    ou: int = -1,
    rs: int = 1,
    xr: str | float | Sequence[float] = "4 2 1 1",
    yr: str | float | Sequence[float] = "-1",
    ts: str | float | Sequence[float] = "2 1 0.5 0.25",
    nomirror: bool = False,
    dst: float = 0.0,
    center: int = -1,
    maxit: int = 0,
    CTF: bool = False,
    snr: float = 1.0,
    Fourvar: bool = False,
    user_function: UserFunction | None = None,
    mode: str = "F",
    randomize: bool = False,
    random_method: str = "",
    rand_seed: int = 1000,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    observer: Observer | None = None,
) -> SparxResult:
    """Align particles to their average as sxali2d does; options have that program's names and defaults.

    Options that SPARX's ali2d accepts and then does not use are refused with the reason.

    Parameters
    ----------
    particles : Input of shape (n, box, box)
        A ParticleSet or images; their poses are not used, as in SPARX.
    mask : ndarray or Tensor of shape (box, box), optional
        Mask of the average; by default a circle.
    ir, ou, rs : int
        First and last ring and their step, pixels; ou -1 is box // 2 - 2.
    xr, yr, ts : str, float or sequence of float
        Shift range along x and y and step, a number for each stage ("4 2 1 1"), pixels; yr -1 is xr.
    nomirror : bool, default False
        Whether mirrored poses are left out.
    dst : float, default 0.0
        In every fourth iteration except the last ten, search only angles on this grid, degrees.
    center : int, default -1
        Centring method, -1 to 7.
    maxit : int, default 0
        Iterations of each stage; 0 is up to 10, going to the next stage when the criterion decreases.
    CTF : bool, default False
        Whether to flip phases, which is all SPARX does with the CTF here.
    snr : float, default 1.0
        Not used by SPARX; only its default is accepted.
    Fourvar : bool, default False
        Whether to weight the average by its Fourier variance.
    user_function : UserFunction, optional
        Function (average, mask, frc) -> reference or (reference, (dx, dy)), instead of ref_ali2d.
    mode : str, default 'F'
        'F' for full rings.
    randomize : bool, default False
        Not used by SPARX; only its default is accepted.
    random_method : str, default ''
        '' exhaustive, 'SHC' stochastic hill climbing, 'SCF' by self-correlation functions.
    rand_seed : int, default 1000
        Seed of stochastic hill climbing.
    device : torch.device or str, default 'cpu'
        Where to compute.
    batch_size : int, optional
        Particles processed at a time.
    observer : Observer, optional
        Is called after every batch and iteration.

    Returns
    -------
    SparxResult
        The poses, the average and SPARX's own arrays.

    Raises
    ------
    RalibError
        If options or particles do not fit.
    """
    refuse_unused(nomirror, dst, snr, mode, randomize, random_method)
    given, where = as_particle_set(particles), torch.device(device)
    stages = stages_of(xr, yr, ts)
    radius = outer_ring(ou, given.box)
    furthest = max(max(s.range_xy_px) for s in stages)
    if radius + furthest > (given.box - 1) // 2:
        raise RalibError(
            f"`ou` {radius} and a shift of {furthest:g} px cross the edge of a box of {given.box} px: "
            f"their sum may be {(given.box - 1) // 2}"
        )
    stack = ParityParticles(given, ring_mask(mask, radius, given.box, where), False, CTF, where, batch_size)
    rings = make_rings(ir, radius, rs, "H" if random_method == "SCF" else "F")
    loop = _Loop(stack, check_center(center), Fourvar, user_function, observer or SilentObserver())
    loop.aligner = _Aligner(rings, not nomirror, random_method, rand_seed, len(stack))
    loop.dst = dst
    return loop.run(stages, *iterations_of(maxit))


class _Aligner:
    """Alignment of batches to the reference of the iteration, by the method chosen."""

    def __init__(self, rings: Rings, mirror: bool, method: str, seed: int, particles: int) -> None:
        self.rings, self.mirror, self.method = rings, mirror, method
        self.generator = torch.Generator().manual_seed(seed)
        self.previous_peak = torch.full((particles,), 1e-23, dtype=torch.float64)
        self.particles = particles

    def set_reference(self, reference: Tensor, stage: Stage, delta_deg: float) -> None:
        """Set the reference of the iteration."""
        self.stage = stage
        if self.method == "SCF":
            self.scf = SelfCorrelationSearch(reference, self.rings)
            return
        self.target = ReferenceRings(
            reference[None], self.rings, normalise=False, mirror=self.mirror, delta_deg=delta_deg
        )
        if self.method == "SHC":
            self.order = random_order(self.generator, self.particles, stage.range_xy_px, stage.step_px)

    def align(self, index: Tensor, images: Tensor, centre_xy_px: Tensor) -> Found:
        """Return new rows of the particles `index`; for SHC a peak of -inf means that nothing better was found."""
        if self.method == "SCF":
            return self.scf.search(images, self.stage.range_xy_px)
        if self.method == "":
            return self.target.search(images, centre_xy_px, self.stage.range_xy_px, self.stage.step_px)
        at = index.cpu()
        found = first_improvement(
            self.target,
            images,
            centre_xy_px,
            self.stage.range_xy_px,
            self.stage.step_px,
            self.previous_peak[at],
            self.order[at],
        )
        self.previous_peak[at] = torch.maximum(self.previous_peak[at], found.peak.cpu())
        return found


class _Loop:
    """The stages and iterations over one stack, with the rows that SPARX keeps in the image headers."""

    aligner: _Aligner
    dst: float

    def __init__(
        self,
        stack: ParityParticles,
        center: int,
        fourier_variance: bool,
        user_function: UserFunction | None,
        observer: Observer,
    ) -> None:
        self.stack, self.center, self.fourier_variance = stack, center, fourier_variance
        self.user_function, self.observer = user_function, observer
        self.header = torch.zeros(len(stack), 4, dtype=torch.float64, device=stack.device)
        self.peak = torch.full((len(stack),), float("nan"), dtype=torch.float64, device=stack.device)
        self.mean_shift = torch.zeros(1, 2, dtype=torch.float64, device=stack.device)
        self.delta_deg = 0.0

    def run(self, stages: list[Stage], iterations: int, auto_stop: bool) -> SparxResult:
        """Run all stages."""
        history, total, every = History(), 0, iterations * len(stages)
        if self.dst and every <= ALWAYS_FINE:
            history.warnings.append(_dst_unused(every))
        for stage in stages:
            # SPARX keeps the best criterion from stage to stage: after one fall no later stage would do a thing.
            best = -float("inf")
            for number in range(iterations):
                total += 1
                start = time.perf_counter()
                averages, criterion = self._average()
                reference, off = self._reference(averages)
                history.add(self._result(total, reference, off, averages, criterion, history, start), self.observer)
                if auto_stop and criterion < best:
                    break
                best = max(best, criterion)
                if total == every:
                    break
                coarse = number % 4 == 0 and total <= every - ALWAYS_FINE
                self.delta_deg = self.dst if coarse else 0.0
                if not self._align(reference[0], off, stage):
                    break  # hill climbing met nothing better for any particle
        zeros = torch.zeros(len(self.stack), dtype=torch.int64, device=self.header.device)
        arrays = SparxArrays(params_table(self.header, zeros), averages.images.cpu())
        used = {
            "sparx": True,
            "ir": self.aligner.rings.radius_px[0],
            "ou": self.aligner.rings.radius_px[-1],
            "xr": [s.range_xy_px[0] for s in stages],
            "yr": [s.range_xy_px[1] for s in stages],
            "ts": [s.step_px for s in stages],
            "center": self.center,
            "maxit": iterations,
            "CTF": self.stack.ctf,
            "Fourvar": self.fourier_variance,
            "random_method": self.aligner.method,
            "nomirror": not self.aligner.mirror,
            "dst": self.dst,
        }
        return history.result("reffree", used, arrays)

    def _average(self) -> tuple[ClassAverages, float]:
        """Average, halves and masked FRC of the particles as they lie; the criterion is the average's power."""
        sums = HalfSums.empty(1, self.stack.particles.box, self.stack.device)
        power: Tensor | None = None
        for index, images in self.stack:
            moved = rot_shift2D(images, self.header[index])
            sums.add_images(index, moved, torch.zeros_like(index))
            if self.fourier_variance:
                batch = (torch.fft.rfft2((moved * self.stack.mask).double()).abs() ** 2).sum(dim=0)
                power = batch if power is None else power + batch
        _, frc, _ = fsc_mask(sums.images[0], sums.images[1], self.stack.mask)
        halves = sums.images / sums.members.clamp_min(1)[:, :, None, None]
        whole = sums.images.sum(dim=0) / len(self.stack)
        if power is not None:
            whole = _over_variance(whole, power / max(1, len(self.stack) - 1))
        criterion = float((whole[0] ** 2)[self.stack.mask > 0.5].mean())
        members = torch.tensor([len(self.stack)])
        averages = ClassAverages(whole.float(), members, halves.float(), frc, self.stack.particles.pixel_size_A)
        return averages, criterion

    def _reference(self, averages: ClassAverages) -> tuple[Tensor, Tensor]:
        """The prepared average (1, n, n), and how far (1, 2) it was off centre."""
        assert averages.frc is not None
        n = averages.images.shape[-1]
        frequency = torch.arange(n // 2 + 1, device=averages.frc.device, dtype=torch.float64) / (2 * (n // 2))
        # SPARX does not centre after an iteration on the coarse angles of --dst.
        center = 0 if self.center == -1 or self.delta_deg else self.center
        curves = (frequency, averages.frc)
        reference, off = prepare(self.user_function, averages.images, self.stack.mask, curves, center)
        if self.center != -1:
            return reference, off
        return fshift(reference, -self.mean_shift), self.mean_shift

    def _align(self, reference: Tensor, off: Tensor, stage: Stage) -> bool:
        """New rows of every particle against the reference; False if hill climbing moved none."""
        self.aligner.set_reference(reference, stage, self.delta_deg)
        followed = moved_with_reference(self.header, off.expand(len(self.header), 2))  # the average moved
        limit = self.stack.particles.box // 2 + 1 - self.aligner.rings.radius_px[-1] - 2
        centre = origins(followed).clamp(-limit, limit)
        parts = []
        for index, images in self.stack:
            parts.append(self.aligner.align(index, images, centre[index]))
            self.observer.batch(int(index[-1]) + 1, len(self.stack))
        found = Found.cat(parts)
        better = torch.isfinite(found.peak)
        self.header = torch.where(better[:, None], found.params, followed)
        self.peak = torch.where(better, found.peak, self.peak)
        # A particle that stayed counts as no shift in SPARX's mean.
        counted = torch.where(better[:, None], found.params, torch.zeros_like(found.params))
        self.mean_shift = mean_shift_of_classes(counted, torch.zeros_like(found.reference), 1)
        return bool(better.any())

    def _result(
        self,
        number: int,
        reference: Tensor,
        off: Tensor,
        averages: ClassAverages,
        criterion: float,
        history: History,
        start: float,
    ) -> IterationResult:
        """What the iteration gave, on the host: poses and halves follow the centred average."""
        assert averages.half_images is not None
        assert averages.frc is not None
        rows = moved_with_reference(self.header, off.expand(len(self.header), 2))
        poses = params_to_poses(rows, score=self.peak).to("cpu")
        halves = torch.stack([fshift(half, -off) for half in averages.half_images]).cpu()
        centred = ClassAverages(
            reference.cpu(), averages.members, halves, averages.frc.float().cpu(), averages.pixel_size_A
        )
        previous = history.last.poses if history.last is not None else None
        radius = self.aligner.rings.radius_px[-1]
        figures = iteration_figures(number, poses, previous, centred, radius, time.perf_counter() - start)
        return IterationResult(figures | {"criterion": criterion}, centred, poses, reference)


def _over_variance(average: Tensor, variance: Tensor) -> Tensor:
    """--Fourvar: the average's transform over the variance (n, n // 2 + 1) of the particles'."""
    weight = torch.where(variance > 0, 1.0 / variance.clamp_min(1e-300), torch.zeros_like(variance))
    return torch.fft.irfft2(torch.fft.rfft2(average) * weight, s=average.shape[-2:])


def _dst_unused(every: int) -> Notice:
    return Notice(
        what=f"`dst` had no effect: SPARX leaves it out of the last {ALWAYS_FINE} of all iterations, here {every}",
        where="options",
        remedy="ask for more iterations or stages, or leave `dst` out",
    )
