"""The particles of a classification, and what its E-step and M-step share: searched shifts, priors, parts, masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from ralib.classification.likelihood import ClassPoses, Spectra
from ralib.classification.m_step import RingAverages, masked_references, signal_share
from ralib.classification.memory_plan import Budget, particles_at_once
from ralib.classification.sharding import Shard
from ralib.classification.state import State
from ralib.classification.templates import disc_of_shifts
from ralib.classification.whitening import WhitenedParticles
from ralib.kernels import likelihood as kernels
from ralib.kernels.likelihood import FITS_AT_ONCE
from ralib.runtime.memory import within_memory

T = TypeVar("T")

STEP_DETAIL = 0.22
"""Shift grid step times the highest frequency: half a step off costs a tenth of the score at that frequency."""

WIDE_STEP = 1.5
"""Times coarser where all shifts are searched; the shifts next to the winner follow in the next iteration."""

WINDOW = 0.1
"""Standard deviation, in particle radii, of the Gaussian window in which an average's halves are compared locally."""

PICKED_WITHIN = 3.0
"""Standard deviations within which the search radius lies, before any origin is known."""


@dataclass(frozen=True)
class Model:
    """The particles of this rank and the settings that all iterations share.

    Attributes
    ----------
    particles : WhitenedParticles
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

    particles: WhitenedParticles
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
        """Return the model of some of all particles, ascending numbers (m,), their spectra in single precision."""
        return self._of(rows, self.particles.of(self.shard.held(rows)))

    def sample(self, rows: Tensor) -> Model:
        """Return the model of a sample, ascending numbers (m,); a large one's spectra stay in half precision."""
        return self._of(rows, self.particles.sample(self.shard.held(rows), len(rows)))

    def _of(self, rows: Tensor, particles: WhitenedParticles) -> Model:
        own = self.shard.held(rows)
        return replace(
            self, particles=particles, shard=self.shard.of(rows), half=self.half[own], held_out=self.held_out[own]
        )

    @cached_property
    def joins(self) -> Tensor:
        """Particles (n,) that averages are made of."""
        return self.particles.typical & ~self.held_out

    @cached_property
    def typical_shard(self) -> Shard:
        """Distribution of the typical particles, over which classes compete."""
        return self.shard.among(int(self.particles.typical.sum()))

    def eligible(self) -> Tensor:
        """Return the numbers (m,) of all particles that averages are made of, ascending, in main memory."""
        return torch.nonzero(self.shard.gather(self.joins).cpu())[:, 0]

    def shift_step_px(self, rings: int) -> float:
        """Return the step of the shift grid at a resolution: a working pixel or more, as the best poses are refined."""
        return max(1.0, STEP_DETAIL / (rings * self.particles.grid.spacing))

    def blank(self) -> State:
        """Return the state of particles of which nothing is known."""
        return State.blank(
            len(self.shard), torch.tensor(self.search_px / PICKED_WITHIN, device=self.particles.grid.device)
        )

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
        return disc_of_shifts(self.search_px if wide else 1.5 * step, step, self.particles.grid.device)

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
        return kernels.log_prior(origin_xy_px, state.spread_px, self.search_px)

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
        data = found.cross, found.norm, state.mean_scale
        if not self.align:
            return kernels.log_likelihood(*data)
        return kernels.log_posterior(*data, found.origin_xy_px, state.spread_px, self.search_px)

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
        for rows, spectra in self.particles.spectra.blocks(rings, FITS_AT_ONCE // n_classes, self.budget.group_bytes):
            if len(spectra) == len(self.half) and isinstance(self.particles.spectra, Spectra):
                yield rows, self
            else:
                particles = self.particles.part(rows, spectra)
                yield rows, replace(self, particles=particles, half=self.half[rows], held_out=self.held_out[rows])

    def within(self, work: Callable[[float], T]) -> T:
        """Run a function of the bytes it may take, and repeat it with less where memory runs out."""
        return within_memory(lambda: work(self.budget.step_bytes), self.budget.shrink)

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
        return self.shard.counts(class_index, n_classes, self.particles.usable).float()

    def mask(self, averages: RingAverages) -> Tensor:
        """Return what of each average counts as signal, (k, n, n): inside the mask, where its halves agree."""
        if averages.signal is not None:
            return averages.signal
        window = WINDOW * self.particles.particle_radius_px
        return self.particles.mask * signal_share(self.particles.grid, averages.halves, window)

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
        grid, rings = self.particles.grid, min(rings, self.particles.grid.n_rings)
        return masked_references(grid, averages.orders, self.mask(averages), rings, self.particles.orders(rings))

    def references(self, state: State, rings: int) -> Tensor:
        """Return references (k, r, m) of `rings` rings from the state's averages; see `masked`."""
        assert state.averages is not None
        return self.masked(state.averages, rings)
