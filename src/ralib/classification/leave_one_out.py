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
from ralib.conventions import wrap_deg
from ralib.kernels.averages import ring_power

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
        pose = self.psi_deg[rows], self.origin_xy_px[rows], self.mirror[rows]
        return SelfContribution(self.class_index[rows], *pose, self.share[rows])

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
        Weight in the sums.
    scale : Tensor of shape (n,)
        Contrast.

    Returns
    -------
    Tensor of shape (n, r)
        Shares.
    """
    grid, spectra, rings = particles.grid, particles.spectra, averages.gain.shape[1]
    # References are behind their masks (k, n, n), and so is the noise in them.
    inside = (mask.sum((1, 2)) / grid.n_pixels)[class_index][:, None]
    power = spectra.power[:, :rings]
    signal = (scale[:, None] * power).square() * ring_power(averages.orders)[class_index] / grid.n_half
    noise = (spectra.energy[:, :rings] - signal).clamp_min(0)
    return inside * weight[:, None] * noise * averages.gain[class_index] / grid.weight[:rings]


def self_cross(particles: WhitenedParticles, own: SelfContribution, poses: ClassPoses, rings: int) -> Tensor:
    """Compute what each particle's own contribution adds to its cross term in its old class.

    Parameters
    ----------
    particles : WhitenedParticles
        The particles.
    own : SelfContribution
        Their contributions.
    poses : ClassPoses
        Poses in the old class, fields (..., n).
    rings : int
        Number of rings compared.

    Returns
    -------
    Tensor of shape (..., n)
        Cross terms.
    """
    turn = torch.deg2rad(wrap_deg(poses.psi_deg - own.psi_deg))
    # A turn moves the pixels of the mask by its angle times their distance from the centre: on average, half of R^2.
    apart = (poses.origin_xy_px - own.origin_xy_px).square().sum(-1) + 0.5 * (particles.radius_px * turn).square()
    correlation = torch.exp(-0.5 * apart * (particles.grid.frequency[rings - 1] / CORRELATED).square())
    there = (poses.mirror == own.mirror) & (own.class_index >= 0)
    return own.share[:, :rings].sum(1) * correlation * there


def without_self(particles: WhitenedParticles, own: SelfContribution, found: ClassPoses, rings: int) -> ClassPoses:
    """Subtract each particle's own contribution from the cross term of its old class.

    Parameters
    ----------
    particles : WhitenedParticles
        The particles.
    own : SelfContribution
        Their contributions.
    found : ClassPoses
        Poses in all classes, fields (n, k).
    rings : int
        Number of rings compared.

    Returns
    -------
    ClassPoses
        Corrected poses.
    """
    column = own.class_index.clamp_min(0)
    share = self_cross(particles, own, found.pick(column), rings)
    return replace(found, cross=found.cross.scatter_add(1, column[:, None], -share[:, None]))
