"""State of the classification between iterations, and the settings of an iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.leave_one_out import SelfContribution
from ralib.classification.m_step import RingAverages

OF_PARTICLES = "psi_deg", "origin_xy_px", "mirror", "class_index", "fit", "posterior", "scale"
"""Fields of a state that have a row for each particle."""


@dataclass(frozen=True)
class State:
    """Poses and classes of n particles, and the averages of the last M-step.

    Attributes
    ----------
    psi_deg : Tensor of shape (n,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (n, 2)
        Origin shift, working pixels.
    mirror : Tensor of shape (n,)
        True where mirrored.
    class_index : Tensor of shape (n,)
        Best class.
    fit : Tensor of shape (n, k)
        Log-likelihood of each class at its best pose, with the prior of the origin, without the balance of class sizes.
    posterior : Tensor of shape (n,)
        Responsibility of the best class.
    scale : Tensor of shape (n,)
        Contrast of each particle relative to the median.
    mean_scale : Tensor of shape ()
        Median contrast before that division: that of the references.
    spread_px : Tensor of shape ()
        Standard deviation of the origins along x and y, working pixels.
    members : Tensor of shape (k,)
        Usable particles whose best class it is.
    averages : RingAverages or None
        Class averages.
    own : SelfContribution | None, optional
        Contribution of each particle to the averages, left out of its next fit.
    """

    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    class_index: Tensor
    fit: Tensor
    posterior: Tensor
    scale: Tensor
    mean_scale: Tensor
    spread_px: Tensor
    members: Tensor
    averages: RingAverages | None
    own: SelfContribution | None = None

    def of(self, rows: Tensor) -> State:
        """Return the state of some particles (rows); classes and averages are unchanged, and made of others as well."""
        return replace(self, own=None, **{name: getattr(self, name)[rows] for name in OF_PARTICLES})

    def part(self, rows: slice) -> State:
        """Return the state of some particles in a row, with their own contributions."""
        if rows == slice(0, len(self.psi_deg)):
            return self
        share = None if self.own is None else self.own.part(rows)
        return replace(self, own=share, **{name: getattr(self, name)[rows] for name in OF_PARTICLES})

    def of_classes(self, keep: Tensor) -> State:
        """Return the state with only some classes (k,), which all usable particles are in; none of them moves."""
        number = torch.zeros(len(self.members), dtype=torch.int64, device=keep.device)
        number[keep] = torch.arange(len(keep), device=keep.device)
        return replace(
            self,
            class_index=number[self.class_index],
            fit=self.fit[:, keep],
            members=self.members[keep],
            averages=None if self.averages is None else self.averages.restricted(keep),
            own=None if self.own is None else self.own.restricted(keep, len(self.members)),
        )

    @classmethod
    def blank(cls, n: int, spread_px: Tensor) -> State:
        """Return the state of particles of which nothing is known but the spread of their origins.

        Parameters
        ----------
        n : int
            Number of particles.
        spread_px : Tensor of shape ()
            Standard deviation of their origins, working pixels.

        Returns
        -------
        State
            The state.
        """
        device = spread_px.device
        zero = torch.zeros(n, device=device)
        index = torch.zeros(n, dtype=torch.int64, device=device)
        one = torch.ones(n, device=device)
        origin = torch.zeros(n, 2, device=device)
        return cls(zero, origin, index.bool(), index, zero[:, None], one, one, one[0], spread_px, one[:1], None)


@dataclass(frozen=True)
class IterationSettings:
    """Settings of an iteration.

    Attributes
    ----------
    rings : int
        Number of rings: the resolution.
    temperature : float
        Of the responsibilities (annealing): 1 is Bayes' rule, above it classes are softer.
    wide : bool, default False
        Whether all shifts are searched, from the box centre; else those next to each particle's last origin.
    newton : int, default 0
        Refinement steps off the grid.
    """

    rings: int
    temperature: float
    wide: bool = False
    newton: int = 0
