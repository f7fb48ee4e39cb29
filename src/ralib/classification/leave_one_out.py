"""What a particle itself gave to the average it is compared with, and its fit without that.

A class average holds every member's noise, turned and moved by the member's own pose. Compared again, a member finds
its noise there: its old class and its old pose look better than they are, the more so the fewer members a class has.
Particles would stay where they fell, and small classes of anything would look useful. How much a particle's noise adds
to its own cross term is known: probability times scale, times the energy of its noise, over what the sums were divided
by; the less the further the new pose is from the old one. It is taken out (cross-validation leaving one out), which
costs next to nothing; comparing with the other half's averages would do the same at the price of half the signal. The
particle's signal stays: an average made without it would have as much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.e_step import ClassPoses, ring_power
from ralib.classification.m_step import RingAverages
from ralib.classification.whitening import WhitenedParticles
from ralib.conventions import wrap_deg

CORRELATED = 0.3
"""Times the finest wavelength: a particle's noise agrees with itself, moved by this much, to about exp(-1/2)."""


@dataclass(frozen=True)
class SelfContribution:
    """What each particle (n,) gave to the references it will meet next.

    class_index and the pose as it was; -1 where that class is gone
    share       (n, r) what its noise adds to its cross term in that pose, ring by ring
    """

    class_index: Tensor
    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    share: Tensor

    def restricted(self, keep: Tensor, n_classes: int) -> SelfContribution:
        """The same where only some of the classes remain."""
        new = torch.full((n_classes,), -1, dtype=torch.int64, device=keep.device)
        new[keep] = torch.arange(len(keep), device=keep.device)
        return replace(self, class_index=torch.where(self.class_index >= 0, new[self.class_index.clamp_min(0)], -1))


def self_share(
    field: WhitenedParticles, averages: RingAverages, mask: Tensor, class_index: Tensor, weight: Tensor, scale: Tensor
) -> Tensor:
    """`SelfContribution.share` of particles summed with a weight (n,) into averages; scale (n,) is their contrast."""
    grid, spectra, rings = field.grid, field.spectra, averages.gain.shape[1]
    # References are behind their masks (k, n, n), and so is the noise in them.
    inside = (mask.sum((1, 2)) / grid.n_pixels)[class_index][:, None]
    power = spectra.power[:, :rings]
    signal = (scale[:, None] * power).square() * ring_power(averages.orders)[class_index] / grid.n_half
    noise = (spectra.energy[:, :rings] - signal).clamp_min(0)
    return inside * weight[:, None] * noise * averages.gain[class_index] / grid.weight[:rings]


def self_cross(field: WhitenedParticles, own: SelfContribution, poses: ClassPoses, rings: int) -> Tensor:
    """What each particle's own share adds to its cross term (n,) at poses (n,) in its old class."""
    turn = torch.deg2rad(wrap_deg(poses.psi_deg - own.psi_deg))
    # A turn moves the pixels of the mask by its angle times their distance from the centre: on average, half of R^2.
    apart = (poses.origin_xy_px - own.origin_xy_px).square().sum(1) + 0.5 * (field.radius_px * turn).square()
    alike = torch.exp(-0.5 * apart * (field.grid.frequency[rings - 1] / CORRELATED).square())
    there = (poses.mirror == own.mirror) & (own.class_index >= 0)
    return torch.where(there, own.share[:, :rings].sum(1) * alike, 0.0)


def without_self(field: WhitenedParticles, own: SelfContribution, found: ClassPoses, rings: int) -> ClassPoses:
    """Poses in all classes, fields (n, k), with the own share taken out of the old class's cross term."""
    column = own.class_index.clamp_min(0)
    share = self_cross(field, own, found.pick(column), rings)
    return replace(found, cross=found.cross.scatter_add(1, column[:, None], -share[:, None]))
