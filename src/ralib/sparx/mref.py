"""SPARX's multi-reference alignment, mref_ali2d (EMAN2 2.99, applications.py), on batches.

One iteration: references to mean 0 under the mask; every particle against every reference over shifts, angles and
mirror; half sums of the particles where they fit best; averages, FRC, ref_ali2d or the user's function; centring.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.classes.iteration_figures import iteration_figures
from ralib.images.fourier import fshift
from ralib.images.masks import mean_under
from ralib.images.normalise import finite_images
from ralib.results.observer import Observer, SilentObserver
from ralib.sparx.filters import filt_table, fsc
from ralib.sparx.particles import Input, ParityParticles, as_particle_set, ring_mask
from ralib.sparx.references import HalfSums, UserFunction, prepare
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
from ralib.sparx.search import Found, ReferenceRings
from ralib.sparx.transforms import (
    Params,
    combine_params2,
    origins,
    params_rows,
    params_to_poses,
    poses_to_params,
)
from ralib.types import ClassAverages, RalibError

SMALLEST_CLASS = 4


@dataclass(frozen=True)
class _Options:
    """Options of the loop."""

    rings: Rings
    range_xy_px: tuple[float, float]
    step_px: float
    center: int
    ctf: bool
    snr: float
    mirror: bool
    user_function: UserFunction | None


def mref_ali2d(
    particles: Input,
    references: np.ndarray | Tensor,
    *,
    mask: np.ndarray | Tensor | None = None,
    ir: int = 1,
    ou: int = -1,
    rs: int = 1,
    xr: float = 0,
    yr: float | None = None,
    ts: float = 1,
    center: int = 1,
    maxit: int = 10,
    CTF: bool = False,
    snr: float = 1.0,
    user_function: UserFunction | None = None,
    rand_seed: int = 1000,
    nomirror: bool = False,
    EQ: bool = False,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    observer: Observer | None = None,
) -> SparxResult:
    """Align particles to several references as sxmref_ali2d does; options have that program's names and defaults.

    Parameters
    ----------
    particles : Input of shape (n, box, box)
        A ParticleSet, whose poses are the initial ones, or images.
    references : ndarray or Tensor of shape (k, box, box)
        References.
    mask : ndarray or Tensor of shape (box, box), optional
        Mask of the averages; by default a circle.
    ir, ou, rs : int
        First and last ring and their step, pixels; ou -1 is box // 2 - 2.
    xr, yr, ts : float or None
        Shift range along x and y and step, pixels; yr None is xr.
    center : int, default 1
        Centring method, -1 to 7.
    maxit : int, default 10
        Number of iterations; 0 is up to 10, stopping when the criterion decreases.
    CTF : bool, default False
        Whether to correct for the CTF.
    snr : float, default 1.0
        Signal to noise ratio of the Wiener average.
    user_function : UserFunction, optional
        Function (average, mask, frc) -> reference or (reference, (dx, dy)), instead of ref_ali2d.
    rand_seed : int, default 1000
        Seed for classes that lose their members.
    nomirror : bool, default False
        Whether mirrored poses are left out.
    EQ : bool, default False
        Whether classes have equal sizes.
    device : torch.device or str, default 'cpu'
        Where to compute.
    batch_size : int, optional
        Particles processed at a time.
    observer : Observer, optional
        Is called after every batch and iteration.

    Returns
    -------
    SparxResult
        The averages are the prepared references as SPARX writes them, centred as the poses are.

    Raises
    ------
    RalibError
        If options or particles do not fit.
    """
    if EQ:
        raise RalibError("SPARX's mref_ali2d has no classes of equal size: leave `EQ` out")
    given, where = as_particle_set(particles), torch.device(device)
    radius = outer_ring(ou, given.box)
    rings = make_rings(ir, radius, rs)
    yr = xr if yr is None or yr < 0 else yr
    if ts <= 0 or xr < 0 or snr <= 0:
        raise RalibError(f"`ts` and `snr` are above 0, `xr` not below: got {ts:g}, {snr:g}, {xr:g}")
    options = _Options(
        rings, (float(xr), float(yr)), float(ts), check_center(center), CTF, snr, not nomirror, user_function
    )
    stack = ParityParticles(given, ring_mask(mask, radius, given.box, where), True, CTF, where, batch_size)
    images = _checked_references(references, given.box, where)
    return _Loop(stack, options, random.Random(rand_seed), observer or SilentObserver()).run(
        images, *iterations_of(maxit)
    )


def _checked_references(references: np.ndarray | Tensor, box: int, device: torch.device) -> Tensor:
    images = torch.as_tensor(references, dtype=torch.float32, device=device)
    if images.ndim != 3 or len(images) == 0 or images.shape[-2:] != (box, box):
        raise RalibError(f"references are {tuple(images.shape)}, particles {box} px: give k images of that box")
    if not bool(finite_images(images).all()):
        raise RalibError("a reference has values that are not finite: leave it out")
    return images


class _Loop:
    """The iterations over one stack, with the rows that SPARX keeps in the image headers."""

    def __init__(self, stack: ParityParticles, options: _Options, chance: random.Random, observer: Observer) -> None:
        self.stack, self.options, self.chance, self.observer = stack, options, chance, observer
        poses = stack.particles.poses
        zero = torch.zeros(len(stack), 4, dtype=torch.float64)
        self.header = (zero if poses is None else poses_to_params(poses)).to(stack.device)

    def run(self, references: Tensor, iterations: int, auto_stop: bool) -> SparxResult:
        """Run the iterations."""
        history, best = History(), -1.0
        arrays: SparxArrays | None = None
        for number in range(1, iterations + 1):
            start = time.perf_counter()
            found, sums, ctf2 = self._search(references)
            averages, curves = self._averages(sums, ctf2)
            references, off = prepare(
                self.options.user_function, averages.images, self.stack.mask, curves, self.options.center
            )
            references, off = self._centred(references, off, found)
            references, off = self._refilled(references, off, averages.members)
            arrays = self._sparx_arrays(found, off, averages.images)
            criterion = float((references.double() ** 2 * (self.stack.mask > 0.5)).mean(dim=(1, 2)).sum())
            history.add(
                self._result(number, references, off, found, averages, history, start, criterion), self.observer
            )
            if auto_stop and criterion < best:
                break
            best = max(best, criterion)
        assert arrays is not None
        return history.result("mref", self._used(iterations), arrays)

    def _used(self, iterations: int) -> dict[str, Any]:
        o = self.options
        return {
            "sparx": True,
            "ir": o.rings.radius_px[0],
            "ou": o.rings.radius_px[-1],
            "xr": o.range_xy_px[0],
            "yr": o.range_xy_px[1],
            "ts": o.step_px,
            "center": o.center,
            "maxit": iterations,
            "CTF": o.ctf,
            "snr": o.snr,
            "nomirror": not o.mirror,
        }

    def _search(self, references: Tensor) -> tuple[Found, HalfSums, Tensor | None]:
        """Best alignment of every particle, half sums by class, and sums of the squared CTF (2, k, m)."""
        references = references - mean_under(references, self.stack.mask)[:, None, None].float()
        target = ReferenceRings(references, self.options.rings, normalise=True, mirror=self.options.mirror)
        k, n = references.shape[0], references.shape[-1]
        sums, ctf2, parts = HalfSums.empty(k, n, self.stack.device), None, []
        for index, images in self.stack:
            found = target.search(images, self._centres(index), self.options.range_xy_px, self.options.step_px)
            sums.add(index, images, found.params, found.reference)
            if self.options.ctf:
                ctf2 = _add_ctf2(ctf2, index, self.stack.ctf_squared(index), found.reference, k)
            parts.append(found)
            self.observer.batch(int(index[-1]) + 1, len(self.stack))
        return Found.cat(parts), sums, ctf2

    def _centres(self, index: Tensor) -> Tensor:
        """Where (b, 2) the header says the particle is, pixels from the image's centre; far ones start from 0."""
        centre = origins(self.header[index])
        limit = self.stack.particles.box // 2 + 1 - self.options.rings.radius_px[-1] - 2
        outside = (centre.abs() > limit).any(dim=1, keepdim=True)
        return torch.where(outside, torch.zeros_like(centre), centre)

    def _averages(self, sums: HalfSums, ctf2: Tensor | None) -> tuple[ClassAverages, tuple[Tensor, Tensor]]:
        """Raw averages and halves, and frequency and FRC of the halves."""
        members = sums.members.sum(dim=0)
        if ctf2 is None:
            halves = sums.images / sums.members.clamp_min(1)[:, :, None, None]
            whole = sums.images.sum(dim=0) / members.clamp_min(1)[:, None, None]
        else:
            floor = 1.0 / self.options.snr
            halves = torch.stack([filt_table(s, 1.0 / (c + floor)) for s, c in zip(sums.images, ctf2, strict=True)])
            whole = filt_table(sums.images.sum(dim=0), 1.0 / (ctf2.sum(dim=0) + floor))
        frequency, frc, _ = fsc(halves[0], halves[1])
        averages = ClassAverages(whole.float(), members.long(), halves.float(), frc, self.stack.particles.pixel_size_A)
        return averages, (frequency, frc)

    def _centred(self, references: Tensor, off: Tensor, found: Found) -> tuple[Tensor, Tensor]:
        """--center -1: references moved by the mean shift of their members; else as they are."""
        if self.options.center != -1:
            return references, off
        off = mean_shift_of_classes(found.params, found.reference, len(references))
        return fshift(references, -off), off

    def _refilled(self, references: Tensor, off: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """A class of fewer than four becomes one random particle as it is, which is how SPARX's classes collapse."""
        references, off = references.clone(), off.clone()
        for k in torch.nonzero(members < SMALLEST_CLASS)[:, 0].tolist():
            chosen = self.chance.randint(0, len(self.stack) - 1)
            references[k] = self.stack.read(torch.tensor([chosen]))[0]
            off[k] = 0.0
        return references, off

    def _sparx_arrays(self, found: Found, off: Tensor, raw: Tensor) -> SparxArrays:
        """SPARX's arrays of this iteration; the header rows follow the centred references."""
        self.header = moved_with_reference(found.params, off[found.reference])
        return SparxArrays(
            params=params_table(found.params, found.reference, found.peak),
            raw_averages=raw.cpu(),
            params_header=params_table(self.header, found.reference),
        )

    def _result(
        self,
        number: int,
        references: Tensor,
        off: Tensor,
        found: Found,
        averages: ClassAverages,
        history: History,
        start: float,
        criterion: float,
    ) -> IterationResult:
        """What the iteration gave, on the host; halves moved as the references and poses were."""
        poses = params_to_poses(self.header, found.reference, found.peak).to("cpu")
        assert averages.half_images is not None
        assert averages.frc is not None
        halves = torch.stack([fshift(half, -off) for half in averages.half_images])
        centred = ClassAverages(
            references.cpu(), averages.members.cpu(), halves.cpu(), averages.frc.float().cpu(), averages.pixel_size_A
        )
        previous = history.last.poses if history.last is not None else None
        radius = self.options.rings.radius_px[-1]
        figures = iteration_figures(number, poses, previous, centred, radius, time.perf_counter() - start)
        return IterationResult(figures | {"criterion": criterion}, centred, poses, references)


def mean_shift_of_classes(params: Params, class_index: Tensor, n_classes: int) -> Tensor:
    """Compute the mean shift of each class's members, with x reversed where mirrored.

    Parameters
    ----------
    params : Params of shape (n, 4)
        Rows of the particles.
    class_index : Tensor of shape (n,)
        Their classes.
    n_classes : int
        Number of classes k.

    Returns
    -------
    Tensor of shape (k, 2)
        Mean shift, pixels; 0 for an empty class.
    """
    sign = torch.where(params[:, 3] > 0.5, -1.0, 1.0).double()
    shift = torch.stack([sign * params[:, 1], params[:, 2]], dim=-1)
    one_hot = torch.nn.functional.one_hot(class_index, n_classes).double()
    return (one_hot.T @ shift) / one_hot.sum(dim=0).clamp_min(1)[:, None]


def moved_with_reference(params: Params, off_xy_px: Tensor) -> Params:
    """Return rows (n, 4) onto references that were moved by -off.

    Parameters
    ----------
    params : Params of shape (n, 4)
        Rows of the particles.
    off_xy_px : Tensor of shape (n, 2)
        Offset removed from each particle's reference, pixels.

    Returns
    -------
    Params of shape (n, 4)
        Rows.
    """
    zero = torch.zeros_like(params[:, 0])
    return combine_params2(params, params_rows(zero, -off_xy_px, zero))


def _add_ctf2(total: Tensor | None, index: Tensor, squared: Tensor, class_index: Tensor, n_classes: int) -> Tensor:
    one_hot = torch.nn.functional.one_hot((index % 2) * n_classes + class_index, 2 * n_classes).double()
    added = (one_hot.T @ squared).view(2, n_classes, -1)
    return added if total is None else total + added
