"""One iteration of classification: E-step, balance, M-step, masked references."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ralib.classification import e_step as lk
from ralib.classification.leave_one_out import SelfContribution, self_cross, self_share, without_self
from ralib.classification.m_step import (
    RingAverages,
    RingSums,
    average_classes,
    follow_centres,
    masked_references,
    moved_averages,
    signal_share,
    sum_classes,
)
from ralib.classification.priors import class_posterior, class_prices, log_prior, origin_spread
from ralib.classification.state import IterationSettings, State
from ralib.classification.whitening import WhitenedParticles
from ralib.conventions import mirror_x, rotate_xy
from ralib.runtime.memory import within_memory

T = TypeVar("T")

CANDIDATES = 3
"""Classes a particle is shared between; later ones have no weight that matters."""

STEP_DETAIL = 0.22
"""Shift grid step times the highest frequency: half a step off costs a tenth of the score at that frequency."""

WIDE_STEP = 1.5
"""Times coarser where all shifts are searched; the shifts next to the winner follow in the next iteration."""

WINDOW = 0.1
"""Of the particle's radius: the Gaussian window in which the halves of an average are compared place by place."""

PICKED_WITHIN = 3.0
"""Standard deviations within which the search radius lies, before any place is known."""

LEAST_NOISE = 0.02
"""Of a ring's power: what is noise, at least."""

LEAST_BYTES = 3e7
"""A step that finds no room for this much has nothing left to shrink."""


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
    held_out   (n,) particles that join no average, so that the classes can be tested on them; nor do outliers
    search_px  how far from the box centre a particle may lie, working pixels
    budget     of memory, shared with the models of some of the particles
    """

    field: WhitenedParticles
    half: Tensor
    held_out: Tensor
    balance: float
    mirror: bool
    search_px: float
    align: bool = True
    budget: Budget = dataclasses.field(default_factory=Budget)

    def of(self, rows: Tensor) -> Model:
        """The same for some of the particles."""
        return replace(self, field=self.field.of(rows), half=self.half[rows], held_out=self.held_out[rows])

    @property
    def joins(self) -> Tensor:
        """Particles (n,) of which averages are made."""
        return self.field.typical & ~self.held_out

    def shift_step_px(self, rings: int) -> float:
        """Grid step of the shifts at a resolution; a working pixel is fine enough, since winners are refined."""
        return max(1.0, STEP_DETAIL / (rings * self.field.grid.spacing))

    def blank(self, n: int) -> State:
        """The state of n particles of which nothing is known."""
        return State.blank(n, torch.tensor(self.search_px / PICKED_WITHIN, device=self.field.grid.device))

    def shifts(self, rings: int, *, wide: bool) -> Tensor:
        """Shifts within the searched disc, or the neighbours on the grid."""
        step = self.shift_step_px(rings) * (WIDE_STEP if wide else 1.0)
        return lk.disc_of_shifts(self.search_px if wide else 1.5 * step, step, self.field.grid.device)

    def search(
        self, spectra: lk.Spectra, origin_xy_px: Tensor, references: Tensor, state: State | None, *, wide: bool
    ) -> lk.ClassPoses:
        """Best pose of particles in every class: near their origins (b, 2), or (`wide`) anywhere that is searched.

        What the state tells of the particles' places counts; without one, all places are as likely.
        """
        shifts, favour = self.shifts(references.shape[1], wide=wide), None
        if wide:
            origin_xy_px = torch.zeros_like(origin_xy_px)
            favour = None if state is None else self.log_prior(shifts, state) / state.mean_scale
        return self.within(
            lambda most: lk.score_classes(
                self.field.grid, spectra, origin_xy_px, references, shifts,
                favour=favour, mirror=self.mirror, memory_bytes=most,
            )
        )  # fmt: skip

    def log_prior(self, origin_xy_px: Tensor, state: State) -> Tensor:
        """Logarithm of the prior (...) of origins (..., 2)."""
        return log_prior(origin_xy_px, state.spread_px, self.search_px)

    def fit(self, found: lk.ClassPoses, state: State) -> Tensor:
        """Log-likelihood with the prior, of the shape of the poses."""
        fit = lk.log_likelihood(found.cross, found.norm, state.mean_scale)
        return fit + self.log_prior(found.origin_xy_px, state) if self.align else fit

    def expect(self, references: Tensor, state: State, step: IterationSettings) -> lk.ClassPoses:
        """E-step's search: the best pose of every particle in every class, fits without the particles' own share."""
        grid, spectra = self.field.grid, self.field.spectra
        if self.align:
            found = self.search(spectra, state.origin_xy_px, references, state, wide=step.wide)
        else:
            found = lk.score_fixed(grid, spectra, state.psi_deg, state.origin_xy_px, state.mirror, references)
        return found if state.own is None else without_self(self.field, state.own, found, references.shape[1])

    def iterate(self, references: Tensor, state: State, step: IterationSettings) -> State:
        """E-step and M-step; the new averages reach a few rings beyond those that were compared."""
        found = self.expect(references, state, step)
        fit = self.fit(found, state)
        price = class_prices(fit, step.temperature, self.balance)
        weight, index = class_posterior(fit, price, step.temperature).topk(min(CANDIDATES, fit.shape[1]), dim=1)
        posterior, weight = weight[:, 0], weight / weight.sum(1, keepdim=True)
        poses = [found.pick(index[:, j]) for j in range(index.shape[1])]
        if step.newton and self.align:
            poses = [self.refined(references, p, index[:, j], step, state.own) for j, p in enumerate(poses)]
            # The class a particle was in has the advantage of a refined centre on the grid; now all have.
            better = torch.stack([self.fit(p, state) for p in poses], dim=1)
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
            spread_px=origin_spread(poses[0].origin_xy_px),
        )
        weight = weight * self.joins[:, None]
        columns = [index[:, j] for j in range(index.shape[1])], [weight[:, j] for j in range(index.shape[1])]
        return self._maximise(state, poses, *columns, [s / mean for s in scale], step, fit.shape[1])

    def refined(
        self,
        references: Tensor,
        poses: lk.ClassPoses,
        index: Tensor,
        step: IterationSettings,
        own: SelfContribution | None,
    ) -> lk.ClassPoses:
        """Poses (n,) in their classes after Newton steps off the grid, without the particles' own share."""
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
        share = self_cross(self.field, own, poses, references.shape[1])
        return replace(poses, cross=poses.cross - torch.where(index == own.class_index, share, 0.0))

    def _maximise(
        self,
        state: State,
        poses: list[lk.ClassPoses],
        index: list[Tensor],
        weight: list[Tensor],
        scale: list[Tensor],
        step: IterationSettings,
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

    def _own(self, state: State, class_index: Tensor, weight: Tensor, averages: RingAverages) -> SelfContribution:
        scale = state.scale * state.mean_scale
        share = self_share(self.field, averages, self.mask(averages), class_index, weight * state.scale, scale)
        return SelfContribution(class_index, state.psi_deg, state.origin_xy_px, state.mirror, share)

    def averages(
        self, state: State, class_index: Tensor, n_classes: int, rings: int
    ) -> tuple[RingAverages, SelfContribution]:
        """Averages of other groups (n,) of the particles, posed as they are, and what each gave to them."""
        zero = torch.zeros_like(state.scale)
        pose = lk.ClassPoses(zero, zero, state.psi_deg, state.origin_xy_px, state.mirror)
        weight = self.joins.float()
        sums = self._sums([pose], [class_index], [weight], [state.scale], n_classes, rings)
        averages = average_classes(sums, torch.nn.functional.one_hot(class_index, n_classes).float().T @ weight)
        return averages, self._own(state, class_index, weight, averages)

    def mask(self, averages: RingAverages) -> Tensor:
        """What of each average is taken for signal, (k, n, n): inside the mask, where its halves agree."""
        window = WINDOW * self.field.particle_radius_px
        return self.field.mask * signal_share(self.field.grid, averages.halves, window)

    def masked(self, averages: RingAverages, rings: int) -> Tensor:
        """References (k, r, m) from class averages."""
        grid, rings = self.field.grid, min(rings, self.field.grid.n_rings)
        return masked_references(grid, averages.orders, self.mask(averages), rings, self.field.orders(rings))

    def references(self, state: State, rings: int) -> Tensor:
        """References (k, r, m) from the state's averages."""
        assert state.averages is not None
        return self.masked(state.averages, rings)

    def centred(self, state: State) -> State:
        """The averages where the boxes of their members have their centres on average, and the particles with them.

        All classes then share one frame, so that a particle has the same place in all of them. Centres of mass differ
        from view to view, and those of noisy averages from iteration to iteration.
        """
        assert state.averages is not None
        if not self.align:
            return state
        there = mirror_x(rotate_xy(state.psi_deg, state.origin_xy_px), state.mirror)
        belongs = torch.nn.functional.one_hot(state.class_index, len(state.members)).to(there.dtype)
        belongs = belongs * self.field.usable[:, None]
        move = -(belongs.T @ there) / belongs.sum(0).clamp_min(1)[:, None]
        origin = follow_centres(state.psi_deg, state.origin_xy_px, state.mirror, move[state.class_index])
        own = None if state.own is None else replace(state.own, origin_xy_px=origin)
        averages = moved_averages(self.field.grid, state.averages, move)
        return replace(state, origin_xy_px=origin, averages=averages, own=own)

    def noise_ratio(self, state: State) -> Tensor:
        """Noise power (R,) by what the classes leave of the particles, over what it has been taken for.

        As in RELION's M-step, the residuals of particles against their posed classes; but of the class without the
        particle (`leave_one_out`), and with the best scale of each ring. So neither a particle's own noise in its
        average makes the noise look too small, nor the noise of the others too large.
        """
        assert state.averages is not None
        assert state.own is not None
        rings = state.averages.gain.shape[1]
        references = self.references(state, rings)
        use = self.field.typical.float()[:, None]
        cross, norm = torch.zeros(2, rings, device=use.device)
        chunk = lk.samples_at_once(self.field.grid, rings, 1024, self.budget.step_bytes)
        for first in range(0, len(use), chunk):
            cut = slice(first, first + chunk)
            scale = state.scale[cut, None] * use[cut]
            found = self.ring_cross(references, state, cut) - state.own.share[cut]
            cross += (scale * found).sum(0)
            power = lk.ring_power(references)[state.class_index[cut]]
            norm += (scale.square() * self.field.spectra.power[cut, :rings] * power).sum(0)
        explained = cross.clamp_min(0).square() / norm.clamp_min(1e-12)
        total = (self.field.observed * use).sum(0)
        left = total.clone()
        grid = self.field.grid
        left[:rings] -= explained / (grid.weight[:rings] * grid.n_half * grid.n_pixels)
        return torch.maximum(left, LEAST_NOISE * total) / use.sum().clamp_min(1)

    def ring_cross(self, references: Tensor, state: State, cut: slice) -> Tensor:
        """Cross terms (b, r) of some particles with their classes, ring by ring."""
        grid = self.field.grid
        mirrored = lk.mirrored_references(references, state.class_index[cut], state.mirror[cut])
        posed = lk.turned_samples(grid, mirrored, state.psi_deg[cut])
        rings = references.shape[1]
        moved = self.field.spectra.data[cut, :rings] * grid.phase(state.origin_xy_px[cut], rings)
        return (moved * posed.conj()).real.sum(2)
