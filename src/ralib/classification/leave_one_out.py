"""Leave-one-out correction: a particle's own contribution to the average it is compared with, and its fit without it.

A class average contains every member's noise, transformed by the member's pose. In the next comparison a member fits
its own noise: its old class and pose look better than they are, the more so the fewer members a class has. Particles
would keep their first classes, and small classes of anything would look useful. The contribution of a particle's noise
to its own cross term is known: probability times scale, times the energy of its noise, over what the sums were divided
by; it decreases with the distance of the new pose from the old one. It is subtracted, at almost no cost; a comparison
with the other half's averages would do the same with half of the signal. The particle's signal is kept: an average made
without it would have as much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.likelihood import ClassPoses
from ralib.classification.m_step import RingAverages
from ralib.classification.whitening import WhitenedParticles
from ralib.kernels import likelihood as kernels
from ralib.kernels.averages import ring_power
from ralib.kernels.likelihood import AverageNoise, OwnNoise

CORRELATED = 0.3
"""Times the finest wavelength: a particle's noise agrees with itself, moved by this much, to about exp(-1/2)."""


@dataclass(frozen=True)
class SelfContribution:
    """Contribution of each particle to the references of the next iteration.

    Attributes
    ----------
    class_index : Tensor of shape (n,)
        Class to which it contributed; -1 where that class no longer exists.
    psi_deg : Tensor of shape (n,)
        Pose at which it contributed: in-plane rotation, degrees.
    origin_xy_px : Tensor of shape (n, 2)
        Origin shift, pixels.
    mirror : Tensor of shape (n,)
        True where mirrored.
    share : Tensor of shape (n, r)
        What its noise adds to its cross term in that pose, on each ring.
    """

    class_index: Tensor
    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    share: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        """Return all fields."""
        return self.class_index, self.psi_deg, self.origin_xy_px, self.mirror, self.share

    def among(self, rows: Tensor, n: int) -> SelfContribution:
        """Return the contributions of n particles, of which only these contributed.

        Parameters
        ----------
        rows : Tensor of shape (m,)
            Rows of these particles.
        n : int
            Number of all.

        Returns
        -------
        SelfContribution
            Contributions, of class -1 where there are none.
        """

        def spread(values: Tensor, other: int = 0) -> Tensor:
            every = values.new_full((n, *values.shape[1:]), other)
            every[rows] = values
            return every

        pose = spread(self.psi_deg), spread(self.origin_xy_px), spread(self.mirror)
        return SelfContribution(spread(self.class_index, -1), *pose, spread(self.share))

    def part(self, rows: slice) -> SelfContribution:
        """Return the contributions of some particles."""
        return SelfContribution(*(f[rows] for f in self.fields()))

    def restricted(self, keep: Tensor, n_classes: int) -> SelfContribution:
        """Return the contributions where only some of the classes remain.

        Parameters
        ----------
        keep : Tensor of shape (m,)
            Classes that remain, in their new order.
        n_classes : int
            Number of classes before.

        Returns
        -------
        SelfContribution
            Contributions.
        """
        new = torch.full((n_classes,), -1, dtype=torch.int64, device=keep.device)
        new[keep] = torch.arange(len(keep), device=keep.device)
        return replace(self, class_index=torch.where(self.class_index >= 0, new[self.class_index.clamp_min(0)], -1))


def self_share(
    particles: WhitenedParticles,
    averages: RingAverages,
    mask: Tensor,
    class_index: Tensor,
    weight: Tensor,
    scale: Tensor,
    mean_scale: Tensor,
) -> Tensor:
    """Compute the `SelfContribution.share` of particles in averages.

    Parameters
    ----------
    particles : WhitenedParticles
        The particles.
    averages : RingAverages
        Class averages.
    mask : Tensor of shape (k, n, n)
        Mask of each average.
    class_index : Tensor of shape (n,)
        Class of each particle.
    weight : Tensor of shape (n,)
        Responsibility.
    scale : Tensor of shape (n,)
        Contrast relative to the mean.
    mean_scale : Tensor of shape ()
        Mean contrast.

    Returns
    -------
    Tensor of shape (n, r)
        Shares.
    """
    grid, spectra = particles.grid, particles.spectra
    # References are behind their masks (k, n, n), and so is the noise in them.
    inside = mask.sum((1, 2)) / grid.n_pixels
    noise = AverageNoise(inside, ring_power(averages.orders), averages.gain, grid.weight, grid.n_half)
    return kernels.self_share(spectra.power, spectra.energy, class_index, weight, scale, mean_scale, noise)


def without_self(
    particles: WhitenedParticles, own: SelfContribution, found: ClassPoses, rings: int, index: Tensor | None = None
) -> ClassPoses:
    """Subtract each particle's own contribution from the cross term of its old class, in place.

    Parameters
    ----------
    particles : WhitenedParticles
        The particles.
    own : SelfContribution
        Their contributions.
    found : ClassPoses
        Poses in all classes, fields (n, k), or in candidate classes, fields (c, n).
    rings : int
        Number of rings compared.
    index : Tensor of shape (c, n), optional
        The candidate classes.

    Returns
    -------
    ClassPoses
        Corrected poses.
    """
    noise = OwnNoise(rings, particles.grid.frequency[rings - 1], CORRELATED, particles.radius_px)
    return replace(found, cross=kernels.without_own(found.fields(), own.fields(), noise, index))
