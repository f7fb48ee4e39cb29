"""A classification that begins with the classes that some of its particles have already.

Particles that arrive while micrographs are still recorded join the classification of those before them. Poses and
classes of the earlier particles are all that is known: an M-step makes the class averages of them, in the units of the
larger set, and each earlier particle's contribution to them is known as in every iteration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ralib.classification.em import average_groups
from ralib.classification.leave_one_out import SelfContribution
from ralib.classification.m_step import RingAverages
from ralib.classification.model import Model
from ralib.classification.particle_extent import ParticleExtent
from ralib.classification.state import State
from ralib.classification.whitening import WhitenedParticles
from ralib.types import Poses, RalibError


@dataclass(frozen=True)
class EarlierClasses:
    """Poses and classes of the first particles of a set that has grown since.

    Attributes
    ----------
    poses : Poses
        Of the first particles, in the order of the set; class -1 where an image could not be used.
    n_classes : int
        Number of classes.
    size : ParticleExtent
        Extent of the particle, as measured on them.
    finest_per_px : float
        Finest detail compared, cycles per pixel of the input.
    most_detail : tuple of float and int, optional
        Details across the particle, and rings beyond, to which the grid was limited.
    figures : list of dict
        Figures of the iterations that the next ones are counted after.
    """

    poses: Poses
    n_classes: int
    size: ParticleExtent
    finest_per_px: float
    most_detail: tuple[float, int] | None
    figures: list[dict[str, Any]]

    def rings(self, particles: WhitenedParticles) -> int:
        """Return the number of rings that hold the detail compared, on the grid of `particles`."""
        return max(
            3, min(particles.grid.n_rings, round(self.finest_per_px / (particles.grid.spacing * particles.scale)))
        )

    def known(self, model: Model, state: State) -> State:
        """Return the state with the earlier particles' poses and classes; the others have class -1.

        Parameters
        ----------
        model : Model
            All particles.
        state : State
            Their state before anything is known.

        Returns
        -------
        State
            The state.
        """
        new = model.shard.n - len(self.poses)
        if new < 0:
            raise RalibError(f"{len(self.poses)} particles were there, {model.shard.n} are left: a set may only grow")
        everyone = Poses.cat([self.poses, Poses.identity(new, self.poses.psi_deg.device)])
        index = torch.cat([self.poses.class_index, torch.full((new,), -1, device=self.poses.psi_deg.device)])
        own = everyone.replace(class_index=index)[model.shard.rows].to(state.psi_deg.device)
        return replace(
            state,
            psi_deg=own.psi_deg.float(),
            origin_xy_px=own.origin_xy_px.float() * model.particles.scale,
            mirror=own.mirror,
            class_index=own.class_index,
        )

    def averages(self, model: Model, state: State, rings: int) -> tuple[RingAverages, SelfContribution]:
        """Average the members that each class has.

        Parameters
        ----------
        model : Model
            All particles, or some of them.
        state : State
            Their `known` state.
        rings : int
            Number of rings.

        Returns
        -------
        RingAverages
            The averages.
        SelfContribution
            Contribution of each particle, none of the new ones.
        """
        k = self.n_classes
        # Those without a class form one more, which is left out again.
        index = torch.where(state.class_index < 0, k, state.class_index)
        found, own = average_groups(model, state, index, k + 1, rings)
        keep = torch.arange(k, device=index.device)
        return found.restricted(keep), own.restricted(keep, k + 1)

    def new_particles(self, model: Model, state: State) -> Tensor:
        """Find the particles that have no class yet.

        Parameters
        ----------
        model : Model
            All particles, or some of them.
        state : State
            Their `known` state.

        Returns
        -------
        Tensor of shape (m,)
            Their numbers, ascending.
        """
        return torch.nonzero(model.shard.gather(state.class_index < 0))[:, 0]
