"""One iteration of classification: E-step, balance, M-step, masked references; and the state it hands on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from dataclasses import field as made_by
from typing import TypeVar

import torch
from torch import Tensor

from ralib import likelihood as lk
from ralib.leave_out import Own, own_cross, own_share, without_own
from ralib.maximization import (
    RingAverages,
    RingSums,
    average_classes,
    follow_centres,
    masked_references,
    moved_averages,
    off_centre,
    sum_classes,
)
from ralib.memory import within_memory
from ralib.particle_spectra import Field
from ralib.posterior import class_posterior, class_prices

T = TypeVar("T")

CANDIDATES = 3
"""Classes a particle is shared between; later ones have no weight that matters."""

STEP_DETAIL = 0.22
"""Shift grid step times the highest frequency: half a step off costs a tenth of the score at that frequency."""


WIDE_STEP = 1.5
"""Times coarser where all shifts are searched; the shifts next to the winner follow in the next iteration."""

CENTRING_LIMIT_PX = 2.0
"""Working pixels by which a class moves at once, each way: an early average's centre of mass is not to be trusted."""

LEAST_BYTES = 3e7
"""A step that finds no room for this much has nothing left to shrink."""


@dataclass(frozen=True)
class State:
    """Where every particle stands (n,), and the classes as the last M-step left them.

    fit          (n, k) log-likelihood of each class at its best pose, without balance
    second       (n,) the second best class; posterior (n,) probability of the best
    scale        (n,) contrast of each particle relative to the median
    mean_scale   () median scale before that division: the references' own contrast
    members      (k,) particles whose best class it is
    own          what each particle gave to the averages, which its next fit does without
    """

    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    class_index: Tensor
    fit: Tensor
    posterior: Tensor
    scale: Tensor
    mean_scale: Tensor
    members: Tensor
    averages: RingAverages | None
    own: Own | None = None

    def of(self, rows: Tensor) -> State:
        """The state of some particles; classes as they are, made of others as well."""
        own = ("psi_deg", "origin_xy_px", "mirror", "class_index", "fit", "posterior", "scale")
        return replace(self, own=None, **{name: getattr(self, name)[rows] for name in own})

    @classmethod
    def blank(cls, n: int, origin_xy_px: Tensor) -> State:
        device = origin_xy_px.device
        zero = torch.zeros(n, device=device)
        index = torch.zeros(n, dtype=torch.int64, device=device)
        one = torch.ones(n, device=device)
        return cls(zero, origin_xy_px, index.bool(), index, zero[:, None], one, one, one[0], one[:1], None)


@dataclass(frozen=True)
class Step:
    """How an iteration is done.

    rings         how many rings count: the resolution
    temperature   of the posterior: 1 is Bayes' rule, above it classes stay soft
    shifts_xy_px  (S, 2) tried around each particle's last centre, working pixels
    newton        refinement steps off the grid
    """

    rings: int
    temperature: float
    shifts_xy_px: Tensor
    newton: int = 0


@dataclass
class Budget:
    """Memory that a step of an iteration may take; halved, for good, where that much is not to be had."""

    step_bytes: float = lk.STEP_BYTES

    def shrink(self) -> bool:
        self.step_bytes /= 2
        return self.step_bytes >= LEAST_BYTES


@dataclass(frozen=True)
class Model:
    """What stays the same from iteration to iteration.

    half       (n,) which half of the data a particle is in, 0 or 1
    held_out   (n,) particles that join no average, so that the classes can be tested on them
    budget     of memory, shared with the models of some of the particles
    """

    field: Field
    half: Tensor
    held_out: Tensor
    balance: float
    mirror: bool
    align: bool = True
    budget: Budget = made_by(default_factory=Budget)

    def of(self, rows: Tensor) -> Model:
        """The same for some of the particles."""
        return replace(self, field=self.field.of(rows), half=self.half[rows], held_out=self.held_out[rows])

    def shift_step_px(self, rings: int) -> float:
        """Grid step of the shifts at a resolution; a working pixel is fine enough, since winners are refined."""
        return max(1.0, STEP_DETAIL / (rings * self.field.grid.spacing))

    def shifts(self, rings: int, radius_px: float | None = None) -> Tensor:
        """Shifts within a radius (None: the neighbours on the grid)."""
        step = self.shift_step_px(rings) * (1.0 if radius_px is None else WIDE_STEP)
        return lk.disc_of_shifts(1.5 * step if radius_px is None else radius_px, step, self.field.grid.device)

    def expect(self, references: Tensor, state: State, step: Step) -> lk.ClassPoses:
        """E-step's search: the best pose of every particle in every class, fits without the particles' own share."""
        grid, spectra = self.field.grid, self.field.spectra
        if self.align:
            found = self.within(
                lambda most: lk.score_classes(
                    grid, spectra, state.origin_xy_px, references, step.shifts_xy_px,
                    mirror=self.mirror, memory_bytes=most,
                )
            )  # fmt: skip
        else:
            found = lk.score_fixed(grid, spectra, state.psi_deg, state.origin_xy_px, state.mirror, references)
        return found if state.own is None else without_own(self.field, state.own, found, references.shape[1])

    def iterate(self, references: Tensor, state: State, step: Step) -> State:
        """E-step and M-step; the new averages reach a few rings beyond those that were compared."""
        found = self.expect(references, state, step)
        fit = lk.log_likelihood(found.cross, found.norm, state.mean_scale)
        price = class_prices(fit, step.temperature, self.balance)
        weight, index = class_posterior(fit, price, step.temperature).topk(min(CANDIDATES, fit.shape[1]), dim=1)
        posterior, weight = weight[:, 0], weight / weight.sum(1, keepdim=True)
        poses = [found.pick(index[:, j]) for j in range(index.shape[1])]
        if step.newton and self.align:
            poses = [self._refined(references, p, index[:, j], step, state.own) for j, p in enumerate(poses)]
            # The class a particle was in has the advantage of a refined centre on the grid; now all have.
            better = torch.stack([lk.log_likelihood(p.cross, p.norm, state.mean_scale) for p in poses], dim=1)
            fit = fit.scatter(1, index, better)
            weight, order = class_posterior(better, price[index], step.temperature).sort(
                dim=1, descending=True, stable=True
            )
            posterior, index = weight[:, 0], index.gather(1, order)
            poses = lk.in_order(poses, order)
        scale = [lk.best_scale(p.cross, p.norm, state.mean_scale) for p in poses]
        mean = scale[0].median()
        state = replace(
            state,
            psi_deg=poses[0].psi_deg,
            origin_xy_px=poses[0].origin_xy_px,
            mirror=poses[0].mirror,
            class_index=index[:, 0],
            fit=fit,
            posterior=posterior,
            scale=scale[0] / mean,
            mean_scale=mean,
        )
        weight = weight * (~self.held_out)[:, None]
        columns = [index[:, j] for j in range(index.shape[1])], [weight[:, j] for j in range(index.shape[1])]
        return self._maximise(state, poses, *columns, [s / mean for s in scale], step, fit.shape[1])

    def _refined(
        self, references: Tensor, poses: lk.ClassPoses, index: Tensor, step: Step, own: Own | None
    ) -> lk.ClassPoses:
        grid, spacing = self.field.grid, self.shift_step_px(step.rings)
        found = poses
        poses = self.within(
            lambda most: lk.refine_poses(
                grid, self.field.spectra, references, found, index, steps=step.newton,
                limit_deg=60.0 / references.shape[2], limit_px=0.6 * WIDE_STEP * spacing, memory_bytes=most,
            )
        )  # fmt: skip
        if own is None:
            return poses
        share = own_cross(self.field, own, poses, references.shape[1])
        return replace(poses, cross=poses.cross - torch.where(index == own.class_index, share, 0.0))

    def _maximise(
        self,
        state: State,
        poses: list[lk.ClassPoses],
        index: list[Tensor],
        weight: list[Tensor],
        scale: list[Tensor],
        step: Step,
        n_classes: int,
    ) -> State:
        grid = self.field.grid
        rings = min(step.rings + 2, grid.n_rings)
        sums = self._sums(poses, index, weight, scale, n_classes, rings)
        usable = self.field.usable.to(torch.float32)
        members = torch.nn.functional.one_hot(state.class_index, n_classes).to(torch.float32).T @ usable
        averages = average_classes(sums, members)
        own = self._own(state, state.class_index, weight[0], averages)
        return replace(state, averages=averages, members=members, own=own)

    def _sums(
        self,
        poses: list[lk.ClassPoses],
        index: list[Tensor],
        weight: list[Tensor],
        scale: list[Tensor],
        n_classes: int,
        rings: int,
    ) -> RingSums:
        return self.within(
            lambda most: sum_classes(
                self.field.grid, self.field.spectra, poses, index, weight, scale, self.half,
                n_classes=n_classes, rings=rings, n_orders=self.field.orders(rings), memory_bytes=most,
            )
        )  # fmt: skip

    def within(self, work: Callable[[float], T]) -> T:
        """work(bytes it may take), with less and less where memory runs out."""
        return within_memory(lambda: work(self.budget.step_bytes), self.budget.shrink)

    def _own(self, state: State, class_index: Tensor, weight: Tensor, averages: RingAverages) -> Own:
        scale = state.scale * state.mean_scale
        share = own_share(self.field, averages, class_index, weight * state.scale, scale)
        return Own(class_index, state.psi_deg, state.origin_xy_px, state.mirror, share)

    def averages(self, state: State, class_index: Tensor, n_classes: int, rings: int) -> tuple[RingAverages, Own]:
        """Averages of other groups (n,) of the particles, posed as they are, and what each gave to them."""
        zero = torch.zeros_like(state.scale)
        pose = lk.ClassPoses(zero, zero, state.psi_deg, state.origin_xy_px, state.mirror)
        weight = (~self.held_out).float()
        sums = self._sums([pose], [class_index], [weight], [state.scale], n_classes, rings)
        averages = average_classes(sums, torch.nn.functional.one_hot(class_index, n_classes).float().T @ weight)
        return averages, self._own(state, class_index, weight, averages)

    def masked(self, orders: Tensor, rings: int) -> Tensor:
        """References (k, r, m) from orders of class averages, behind the mask where they stand."""
        field = self.field
        rings = min(rings, field.grid.n_rings)
        return masked_references(field.grid, orders, field.mask, rings, field.orders(rings))

    def references(self, state: State, rings: int) -> Tensor:
        """Masked references (k, r, m) from the averages."""
        assert state.averages is not None
        return self.masked(state.averages.orders, rings)

    def centred(self, state: State) -> State:
        """The averages at their centres of mass, and the particles where they still fit them."""
        assert state.averages is not None
        if not self.align:
            return state
        grid = self.field.grid
        move = off_centre(grid, state.averages.orders, self.field.mask, CENTRING_LIMIT_PX)
        origin = follow_centres(state.psi_deg, state.origin_xy_px, state.mirror, move[state.class_index])
        own = None if state.own is None else replace(state.own, origin_xy_px=origin)
        return replace(state, origin_xy_px=origin, averages=moved_averages(grid, state.averages, move), own=own)
