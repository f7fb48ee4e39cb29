"""One iteration of expectation maximisation (EM): E-step, balance of class sizes, M-step, masked references."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ralib.classification.e_step import score_classes, score_fixed
from ralib.classification.leave_one_out import SelfContribution, self_cross, self_share, without_self
from ralib.classification.likelihood import (
    ClassPoses,
    Spectra,
    best_scale,
    in_order,
    joined,
    log_likelihood,
    ring_power,
)
from ralib.classification.m_step import (
    RingAverages,
    RingSums,
    average_classes,
    follow_centres,
    masked_references,
    moved_averages,
    signal_share,
    sum_classes,
    sum_limits,
)
from ralib.classification.memory_plan import STEP_BYTES, particles_at_once, samples_at_once
from ralib.classification.pose_refinement import refine_candidates
from ralib.classification.priors import best_classes, class_posterior, class_prices, log_prior, origin_spread
from ralib.classification.sharding import Shard
from ralib.classification.state import IterationSettings, State
from ralib.classification.templates import disc_of_shifts, mirrored_references, turned_samples
from ralib.classification.whitening import WhitenedParticles
from ralib.conventions import mirror_x, rotate_xy
from ralib.kernels.classes import PosedParticles, ring_crosses
from ralib.runtime.chunks import gpu_chunks
from ralib.runtime.memory import total_memory, within_memory

T = TypeVar("T")

CANDIDATES = 3
"""Classes a particle is shared between; later ones have no weight that matters."""

LEAST_WEIGHT = 1e-3
"""Smaller responsibilities count as 0, as RELION leaves out what lies beyond 99.9 % of the probability."""

BEYOND = 2
"""Rings of the averages beyond those compared: on these it is seen whether the halves agree."""

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

AT_ONCE = 2**25
"""Particles times classes of which everything is computed at once: more are taken in parts."""

SHORTLIST = 16
"""Classes a particle of which the poses are kept where particles are taken in parts; the fits of all are."""

STEP_SHARE = 0.15
"""Of a GPU's memory: what a step takes at most."""

LEAST_BYTES = 3e7
"""A step that finds no room for this much has nothing left to shrink."""


@dataclass
class Budget:
    """Memory that a step of an iteration may take; halved for the rest of the run where it is not available.

    Attributes
    ----------
    step_bytes : float, default STEP_BYTES
        Bytes.
    """

    step_bytes: float = STEP_BYTES

    @classmethod
    def of(cls, device: torch.device) -> Budget:
        """Return the usual memory, less on a small GPU."""
        usual = STEP_BYTES
        return cls(min(usual, STEP_SHARE * total_memory(device)) if device.type == "cuda" else usual)

    def shrink(self) -> bool:
        """Halve the memory, and return whether that was possible."""
        self.step_bytes /= 2
        return self.step_bytes >= LEAST_BYTES


@dataclass(frozen=True)
class Expectation:
    """Result of the E-step for n particles: the fit of every class, and responsibilities of the best classes.

    Attributes
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class at its best pose, with the prior of the origin.
    posterior : Tensor of shape (n,)
        Responsibility of the best class.
    poses : list[ClassPoses]
        For each candidate class the poses (n,), the best candidate first.
    class_index : list[Tensor]
        For each candidate the class (n,).
    weight : list[Tensor]
        For each candidate the responsibility (n,); they add up to 1.
    """

    fit: Tensor
    posterior: Tensor
    poses: list[ClassPoses]
    class_index: list[Tensor]
    weight: list[Tensor]


@dataclass(frozen=True)
class Found:
    """Fits of n particles in all classes, and their poses in those that may become theirs.

    Attributes
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class at its best pose, with the prior of the origin.
    poses : ClassPoses
        Poses, fields (n, c).
    among : Tensor of shape (n, c), optional
        Classes of these poses; by default all.
    """

    fit: Tensor
    poses: ClassPoses
    among: Tensor | None = None


@dataclass(frozen=True)
class Model:
    """The particles of this rank and the settings that all iterations share.

    Attributes
    ----------
    field : WhitenedParticles
        The particles.
    shard : Shard
        Which of all particles these are.
    half : Tensor of shape (n,)
        Half data set of each particle, 0 or 1.
    held_out : Tensor of shape (n,)
        Particles that join no average, on which the classes are tested; outliers join none either.
    balance : float
        Pressure towards equal class sizes, 0 to 1.
    mirror : bool
        Whether mirrored views share a class.
    search_px : float
        Largest distance of a particle from the centre of its box, working pixels.
    align : bool, default True
        Whether poses are searched.
    budget : Budget, default dataclasses.field(default_factory=Budget)
        Memory of a step, shared with models of some of the particles.
    """

    field: WhitenedParticles
    shard: Shard
    half: Tensor
    held_out: Tensor
    balance: float
    mirror: bool
    search_px: float
    align: bool = True
    budget: Budget = dataclasses.field(default_factory=Budget)

    @property
    def at_once(self) -> int:
        """Particles of a chunk on a GPU, the same on every rank."""
        return particles_at_once(self.shard.n)

    def of(self, rows: Tensor) -> Model:
        """Return the model of some of all particles, ascending numbers (m,)."""
        own = self.shard.held(rows)
        return replace(
            self, field=self.field.of(own), shard=self.shard.of(rows), half=self.half[own], held_out=self.held_out[own]
        )

    @property
    def joins(self) -> Tensor:
        """Particles (n,) that averages are made of."""
        return self.field.typical & ~self.held_out

    def shift_step_px(self, rings: int) -> float:
        """Return the step of the shift grid at a resolution, at most a working pixel, as the best poses are refined."""
        return max(1.0, STEP_DETAIL / (rings * self.field.grid.spacing))

    def blank(self) -> State:
        """Return the state of particles of which nothing is known."""
        return State.blank(len(self.shard), torch.tensor(self.search_px / PICKED_WITHIN, device=self.field.grid.device))

    def shifts(self, rings: int, *, wide: bool) -> Tensor:
        """Return the shifts to search.

        Parameters
        ----------
        rings : int
            Number of rings compared.
        wide : bool
            Whether to return all shifts of the searched disc, or only the neighbours on the grid.

        Returns
        -------
        Tensor of shape (S, 2)
            Shifts, working pixels.
        """
        step = self.shift_step_px(rings) * (WIDE_STEP if wide else 1.0)
        return disc_of_shifts(self.search_px if wide else 1.5 * step, step, self.field.grid.device)

    def search(
        self,
        spectra: Spectra,
        origin_xy_px: Tensor,
        references: Tensor,
        state: State | None,
        *,
        wide: bool,
        at_once: int | None = None,
    ) -> ClassPoses:
        """Find the best pose of particles in every class.

        Parameters
        ----------
        spectra : Spectra
            Spectra of b particles.
        origin_xy_px : Tensor of shape (b, 2)
            Their origins, working pixels.
        references : Tensor of shape (k, r, m)
            Angular orders of the masked class averages.
        state : State or None
            Gives the prior of the origins; without it all are equally probable.
        wide : bool
            Whether all shifts are searched, or only those next to the origins.
        at_once : int, optional
            Particles of a chunk on a GPU, where they are few of the model's.

        Returns
        -------
        ClassPoses
            Poses, fields (b, k).
        """
        shifts, favour = self.shifts(references.shape[1], wide=wide), None
        if wide:
            origin_xy_px = torch.zeros_like(origin_xy_px)
            favour = None if state is None else self.log_prior(shifts, state) / state.mean_scale
        return self.within(
            lambda most: score_classes(
                self.field.grid, spectra, origin_xy_px, references, shifts,
                favour=favour, mirror=self.mirror, memory_bytes=most, at_once=at_once or self.at_once,
            )
        )  # fmt: skip

    def log_prior(self, origin_xy_px: Tensor, state: State) -> Tensor:
        """Return the log prior of origins.

        Parameters
        ----------
        origin_xy_px : Tensor of shape (..., 2)
            Origins, working pixels.
        state : State
            Gives the spread of the origins.

        Returns
        -------
        Tensor of shape (...)
            Log prior.
        """
        return log_prior(origin_xy_px, state.spread_px, self.search_px)

    def fit(self, found: ClassPoses, state: State) -> Tensor:
        """Return the log-likelihood with the prior of the origin.

        Parameters
        ----------
        found : ClassPoses
            Poses.
        state : State
            Gives contrast and spread of the origins.

        Returns
        -------
        Tensor
            Fits, of the shape of the poses.
        """
        fit = log_likelihood(found.cross, found.norm, state.mean_scale)
        return fit + self.log_prior(found.origin_xy_px, state) if self.align else fit

    def parts(self, rings: int, n_classes: int = 1) -> Iterator[tuple[slice, Model]]:
        """Iterate over the particles, all at once where spectra and fits of `n_classes` allow.

        Parameters
        ----------
        rings : int
            Number of rings that the spectra of a part need.
        n_classes : int, default 1
            Number of classes that each particle is compared with.

        Yields
        ------
        slice
            Rows of the particles.
        Model
            The model of them. Its shard is that of all particles, and not for sums over the part.
        """
        for rows, spectra in self.field.spectra.blocks(rings, AT_ONCE // n_classes):
            if len(spectra) == len(self.half) and isinstance(self.field.spectra, Spectra):
                yield rows, self
            else:
                field = self.field.part(rows, spectra)
                yield rows, replace(self, field=field, half=self.half[rows], held_out=self.held_out[rows])

    def search_all(self, references: Tensor, state: State, step: IterationSettings) -> ClassPoses:
        """Find the best pose of every particle in every class, without its own contribution; see `iterate`."""
        k, rings = references.shape[:2]
        found = [part._search_all(references, state.part(rows), step) for rows, part in self.parts(rings, k)]
        return joined(found)

    def _search_all(self, references: Tensor, state: State, step: IterationSettings) -> ClassPoses:
        grid, spectra = self.field.grid, self.field.single
        if self.align:
            found = self.search(spectra, state.origin_xy_px, references, state, wide=step.wide)
        else:
            pose = state.psi_deg, state.origin_xy_px, state.mirror
            found = score_fixed(grid, spectra, *pose, references, self.at_once)
        return found if state.own is None else without_self(self.field, state.own, found, references.shape[1])

    def found(self, references: Tensor, state: State, step: IterationSettings) -> Found:
        """Find the fits of all classes, and the poses in those that matter; see `iterate` for the arguments."""
        k, rings = references.shape[:2]
        fits, poses, among = [], [], []
        for rows, part in self.parts(rings, k):
            own = state.part(rows)
            found = part._search_all(references, own, step)
            fit = part.fit(found, own)
            if part is self and self.shard.n * k <= AT_ONCE:  # whatever this rank's share of them is
                return Found(fit, found)
            index = fit.topk(min(SHORTLIST, k), dim=1).indices.sort(dim=1).values
            fits.append(fit)
            poses.append(found.gathered(index))
            among.append(index)
        return Found(torch.cat(fits), joined(poses), torch.cat(among))

    def iterate(self, references: Tensor, state: State, step: IterationSettings) -> State:
        """Run one iteration: E-step and M-step. The new averages reach a few rings beyond those compared.

        Parameters
        ----------
        references : Tensor of shape (k, r, m)
            Angular orders of the masked class averages.
        state : State
            State before the iteration.
        step : IterationSettings
            Settings of the iteration.

        Returns
        -------
        State
            State after the iteration.
        """
        return self.m_step(self.e_step(references, state, step), state, step)

    def e_step(self, references: Tensor, state: State, step: IterationSettings) -> Expectation:
        """E-step: compute responsibilities, and the poses in the classes; see `iterate` for the arguments."""
        found = self.found(references, state, step)
        fit = found.fit
        price = class_prices(fit, step.temperature, self.balance, self.shard)
        weight, at = best_classes(fit, price, step.temperature, CANDIDATES, found.among)
        index = at if found.among is None else found.among.gather(1, at)
        posterior, weight = weight[:, 0], weight / weight.sum(1, keepdim=True)
        poses = [found.poses.pick(at[:, j]) for j in range(at.shape[1])]
        if step.newton and self.align:
            poses = self.refined(references, poses, list(index.unbind(1)), step, state.own)
            # The class a particle was in has the advantage of a refined centre on the grid; now all have.
            better = torch.stack([self.fit(p, state) for p in poses], dim=1)
            fit = fit.scatter_(1, index, better)
            weight, order = class_posterior(better, price[index], step.temperature).sort(
                dim=1, descending=True, stable=True
            )
            posterior, index = weight[:, 0], index.gather(1, order)
            poses = in_order(poses, order)
        weight = torch.where(weight < LEAST_WEIGHT, 0.0, weight)
        weight = weight / weight.sum(1, keepdim=True)
        return Expectation(fit, posterior, poses, list(index.unbind(1)), list(weight.unbind(1)))

    def m_step(self, expected: Expectation, state: State, step: IterationSettings) -> State:
        """M-step: maximise the likelihood given the responsibilities, over averages, contrasts and spread of origins.

        Parameters
        ----------
        expected : Expectation
            Result of the E-step.
        state : State
            State before the iteration.
        step : IterationSettings
            Settings of the iteration.

        Returns
        -------
        State
            State after the iteration.
        """
        best, index = expected.poses[0], expected.class_index[0]
        scale = [best_scale(p.cross, p.norm, state.mean_scale) for p in expected.poses]
        mean = self.shard.median(scale[0])
        state = replace(
            state,
            psi_deg=best.psi_deg,
            origin_xy_px=best.origin_xy_px,
            mirror=best.mirror,
            class_index=index,
            fit=expected.fit,
            posterior=expected.posterior,
            scale=scale[0] / mean,
            mean_scale=mean,
            spread_px=origin_spread(best.origin_xy_px, self.shard),
            members=self.members(index, expected.fit.shape[1]),
        )
        weight = [w * self.joins for w in expected.weight]
        rings = min(step.rings + BEYOND, self.field.grid.n_rings)
        sums = self._sums(
            expected.poses, expected.class_index, weight, [s / mean for s in scale], len(state.members), rings
        )
        averages = average_classes(self.field.grid, sums, state.members)
        return replace(state, averages=averages, own=self._own(state, index, weight[0], averages))

    def members(self, class_index: Tensor, n_classes: int) -> Tensor:
        """Return the number of usable particles of each class.

        Parameters
        ----------
        class_index : Tensor of shape (n,)
            Classes.
        n_classes : int
            Number of classes k.

        Returns
        -------
        Tensor of shape (k,)
            Numbers, as floating point.
        """
        return self.shard.counts(class_index[self.field.usable], n_classes).float()

    def refined(
        self,
        references: Tensor,
        poses: list[ClassPoses],
        index: list[Tensor],
        step: IterationSettings,
        own: SelfContribution | None,
    ) -> list[ClassPoses]:
        """Refine poses off the grid by Newton steps, corrected for the particle's own contribution.

        Parameters
        ----------
        references : Tensor of shape (k, r, m)
            Angular orders of the masked class averages.
        poses : list of ClassPoses
            For each candidate the poses (n,).
        index : list of Tensor
            For each candidate the classes (n,).
        step : IterationSettings
            Settings of the iteration.
        own : SelfContribution or None
            Contributions of the particles to the references, or None.

        Returns
        -------
        list of ClassPoses
            For each candidate the refined poses (n,).
        """
        refined: list[list[ClassPoses]] = []
        for rows, part in self.parts(self.field.grid.n_rings):
            share = None if own is None else own.part(rows)
            some = [p.rows(rows) for p in poses]
            refined.append(part._refined(references, some, [i[rows] for i in index], step, share))
        return [joined(list(parts)) for parts in zip(*refined, strict=True)]

    def _refined(
        self,
        references: Tensor,
        found: list[ClassPoses],
        index: list[Tensor],
        step: IterationSettings,
        own: SelfContribution | None,
    ) -> list[ClassPoses]:
        grid, spectra, spacing = self.field.grid, self.field.single, self.shift_step_px(step.rings)
        poses = self.within(
            lambda most: refine_candidates(
                grid, spectra, references, found, index, steps=step.newton,
                limit_deg=60.0 / references.shape[2], limit_px=0.6 * WIDE_STEP * spacing, memory_bytes=most,
                at_once=self.at_once,
            )
        )  # fmt: skip
        return (
            poses
            if own is None
            else [self._without_own(p, i, own, references.shape[1]) for p, i in zip(poses, index, strict=True)]
        )

    def _without_own(self, poses: ClassPoses, index: Tensor, own: SelfContribution, rings: int) -> ClassPoses:
        """Poses (n,) in classes (n,) without the particle's own contribution."""
        share = self_cross(self.field, own, poses, rings)
        return replace(poses, cross=poses.cross - torch.where(index == own.class_index, share, 0.0))

    def _sums(
        self,
        poses: list[ClassPoses],
        index: list[Tensor],
        weight: list[Tensor],
        scale: list[Tensor],
        n_classes: int,
        rings: int,
    ) -> RingSums:
        """Sums over all particles of the classes they are shared between."""
        limits = sum_limits(self.field.grid, self.field.spectra, weight, scale, self.shard)
        numerator: Tensor | float = 0.0
        total: Tensor | float = 0.0
        for rows, part in self.parts(rings):
            some = [p.rows(rows) for p in poses]
            to, w, a = ([table[rows] for table in tables] for tables in (index, weight, scale))
            own = part._part_sums(some, to, w, a, n_classes, rings, limits)
            numerator, total = own.numerator + numerator, own.weight + total  # exact: see `in_quanta`
        assert isinstance(numerator, Tensor)
        assert isinstance(total, Tensor)
        return RingSums(self.shard.add_up(numerator), self.shard.add_up(total))

    def _part_sums(
        self,
        poses: list[ClassPoses],
        index: list[Tensor],
        weight: list[Tensor],
        scale: list[Tensor],
        n_classes: int,
        rings: int,
        limits: tuple[Tensor, Tensor],
    ) -> RingSums:
        grid, spectra = self.field.grid, self.field.single
        return self.within(
            lambda most: sum_classes(
                grid, spectra, poses, index, weight, scale, self.half,
                n_classes=n_classes, rings=rings, n_orders=self.field.orders(rings), limits=limits, memory_bytes=most,
                at_once=self.at_once,
            )
        )  # fmt: skip

    def within(self, work: Callable[[float], T]) -> T:
        """Run a function of the bytes it may take, and repeat it with less where memory runs out."""
        return within_memory(lambda: work(self.budget.step_bytes), self.budget.shrink)

    def _own(self, state: State, class_index: Tensor, weight: Tensor, averages: RingAverages) -> SelfContribution:
        scale = state.scale * state.mean_scale
        share = self_share(self.field, averages, self.mask(averages), class_index, weight * state.scale, scale)
        return SelfContribution(class_index, state.psi_deg, state.origin_xy_px, state.mirror, share)

    def averages(
        self, state: State, class_index: Tensor, n_classes: int, rings: int
    ) -> tuple[RingAverages, SelfContribution]:
        """Average other groups of the particles at their present poses.

        Parameters
        ----------
        state : State
            The poses.
        class_index : Tensor of shape (n,)
            Groups.
        n_classes : int
            Number of groups.
        rings : int
            Number of rings.

        Returns
        -------
        RingAverages
            The averages.
        SelfContribution
            Contribution of each particle.
        """
        zero = torch.zeros_like(state.scale)
        pose = ClassPoses(zero, zero, state.psi_deg, state.origin_xy_px, state.mirror)
        weight = self.joins.float()
        sums = self._sums([pose], [class_index], [weight], [state.scale], n_classes, rings)
        members = self.shard.counts(class_index[self.joins], n_classes).float()
        averages = average_classes(self.field.grid, sums, members)
        return averages, self._own(state, class_index, weight, averages)

    def mask(self, averages: RingAverages) -> Tensor:
        """Return what of each average counts as signal, (k, n, n): inside the mask, where its halves agree."""
        window = WINDOW * self.field.particle_radius_px
        return self.field.mask * signal_share(self.field.grid, averages.halves, window)

    def masked(self, averages: RingAverages, rings: int) -> Tensor:
        """Return references from class averages.

        Parameters
        ----------
        averages : RingAverages
            Class averages.
        rings : int
            Number of rings r.

        Returns
        -------
        Tensor of shape (k, r, m)
            Angular orders of the masked averages.
        """
        grid, rings = self.field.grid, min(rings, self.field.grid.n_rings)
        return masked_references(grid, averages.orders, self.mask(averages), rings, self.field.orders(rings))

    def references(self, state: State, rings: int) -> Tensor:
        """Return references (k, r, m) of `rings` rings from the state's averages; see `masked`."""
        assert state.averages is not None
        return self.masked(state.averages, rings)

    def centred(self, state: State) -> State:
        """Centre the averages where their members' boxes have their centres on average.

        The particles' origins follow. All classes then share one frame, so that a particle has the same origin in all
        of them. Centres of mass differ between views, and those of noisy averages between iterations.
        """
        assert state.averages is not None
        if not self.align:
            return state
        there = mirror_x(rotate_xy(state.psi_deg, state.origin_xy_px), state.mirror)
        there = there * self.field.usable[:, None]
        total = self.shard.sum_by(state.class_index, there, len(state.members)).float()
        move = -total / state.members.clamp_min(1)[:, None]
        origin = follow_centres(state.psi_deg, state.origin_xy_px, state.mirror, move[state.class_index])
        own = None if state.own is None else replace(state.own, origin_xy_px=origin)
        averages = moved_averages(self.field.grid, state.averages, move)
        return replace(state, origin_xy_px=origin, averages=averages, own=own)

    def noise_ratio(self, state: State) -> Tensor:
        """Return the noise power (R,) from the residuals, over the noise power assumed.

        As in RELION's M-step, from the residuals of particles against their posed classes; but against the class
        without the particle (`leave_one_out`), and with the best scale on each ring. So neither a particle's own noise
        in its average lowers the estimate, nor the noise of the others raises it.
        """
        assert state.averages is not None
        assert state.own is not None
        rings = state.averages.gain.shape[1]
        references = self.references(state, rings)
        use = self.field.typical
        scale = torch.where(use, state.scale, 0.0)[:, None]
        most = 1024 if self.field.grid.device.type == "cpu" else self.at_once
        chunk = samples_at_once(self.field.grid, rings, most, self.budget.step_bytes)
        found = self.ring_crosses(references, state, chunk)
        cross = self.shard.sum(scale * (found - state.own.share[:, :rings]))
        power = self.field.spectra.power[:, :rings] * ring_power(references)[state.class_index]
        norm = self.shard.sum(scale.square() * power)
        explained = cross.clamp_min(0).square() / norm.clamp_min(1e-12)
        total = self.shard.sum(self.field.observed * use[:, None])
        left = total.clone()
        grid = self.field.grid
        left[:rings] -= explained / (grid.weight[:rings] * grid.n_half * grid.n_pixels)
        return (torch.maximum(left, LEAST_NOISE * total) / self.shard.count(use).clamp_min(1)).float()

    def ring_crosses(self, references: Tensor, state: State, chunk: int) -> Tensor:
        """Return cross terms of all particles with their classes on each ring.

        Parameters
        ----------
        references : Tensor of shape (k, r, m)
            Angular orders of the masked class averages.
        state : State
            Poses and classes.
        chunk : int
            Particles at a time.

        Returns
        -------
        Tensor of shape (n, r)
            Cross terms.
        """
        found = []
        for rows, part in self.parts(references.shape[1]):
            own = state.part(rows)
            n, cuts = len(part.half), gpu_chunks(len(part.half), chunk, self.field.grid.device)
            found.append(torch.cat([part._ring_cross(references, own, cut) for cut in cuts])[:n])
        return torch.cat(found)

    def _ring_cross(self, references: Tensor, state: State, cut: slice | Tensor) -> Tensor:
        """Cross terms (b, r) of some particles."""
        grid, spectra, rings = self.field.grid, self.field.single, references.shape[1]
        if grid.device.type == "cpu":
            every = torch.arange(len(spectra))
            pose = state.origin_xy_px, state.psi_deg, state.mirror, state.class_index
            places = PosedParticles(*(f[cut] for f in (every, *pose)))
            return ring_crosses(spectra.data, places, references, grid.rings(rings))
        mirrored = mirrored_references(references, state.class_index[cut], state.mirror[cut])
        posed = turned_samples(grid, mirrored, state.psi_deg[cut])
        moved = spectra.data[cut, :rings] * grid.phase(state.origin_xy_px[cut], rings)
        return (moved * posed.conj()).real.sum(2)
