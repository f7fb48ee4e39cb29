"""What a particle itself gave to the average it is compared with, and its fit without that.

A class average holds every member's noise, turned and moved by the member's own pose. Compared again, a member finds
its noise there: its old class and its old pose look better than they are, the more so the fewer members a class has.
Particles would stay where they fell, and small classes of anything would look useful. The share is known: in its old
pose a particle adds weight * |F / sigma^2|^2 / (what the average was divided by) to its own cross term, and the less
the further the new pose is from the old one. It is taken out (cross-validation leaving one out), which costs next to
nothing; comparing with the other half's averages would do the same at the price of half the signal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.conventions import wrap_deg
from ralib.likelihood import ClassPoses
from ralib.particle_spectra import Field

CORRELATED = 0.3
"""Times the finest wavelength: a particle's noise agrees with itself, moved by this much, to about exp(-1/2)."""


@dataclass(frozen=True)
class Own:
    """What each particle (n,) gave to the references it will meet next.

    class_index and the pose as it was; -1 where that class is gone
    weight      (n,) probability times scale, as it was summed; 0 for particles that join no average
    gain        (k, r) of the averages: what the sums were divided by, inverted
    """

    class_index: Tensor
    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    weight: Tensor
    gain: Tensor

    def restricted(self, keep: Tensor) -> Own:
        """The same where only some of the classes remain."""
        new = torch.full((len(self.gain),), -1, dtype=torch.int64, device=keep.device)
        new[keep] = torch.arange(len(keep), device=keep.device)
        index = torch.where(self.class_index >= 0, new[self.class_index.clamp_min(0)], -1)
        return replace(self, class_index=index, gain=self.gain[keep])


def own_cross(field: Field, own: Own, poses: ClassPoses, rings: int) -> Tensor:
    """What each particle's own share adds to its cross term (n,) at poses (n,) in its old class."""
    grid, rings = field.grid, min(rings, own.gain.shape[1])
    gain = own.gain[own.class_index.clamp_min(0), :rings] / grid.weight[:rings]
    inside = float(field.mask.sum()) / grid.n_pixels  # references are masked, and the noise in them
    share = inside * own.weight * (field.spectra.energy[:, :rings] * gain).sum(1)
    turn = torch.deg2rad(wrap_deg(poses.psi_deg - own.psi_deg))
    # A turn moves the pixels of the mask by its angle times their distance from the centre: on average, half of R^2.
    apart = (poses.origin_xy_px - own.origin_xy_px).square().sum(1) + 0.5 * (field.radius_px * turn).square()
    alike = torch.exp(-0.5 * apart * (grid.frequency[rings - 1] / CORRELATED).square())
    return torch.where((poses.mirror == own.mirror) & (own.class_index >= 0), share * alike, 0.0)


def without_own(field: Field, own: Own, found: ClassPoses, rings: int) -> ClassPoses:
    """Poses in all classes, fields (n, k), with the own share taken out of the old class's cross term."""
    column = own.class_index.clamp_min(0)
    share = own_cross(field, own, found.pick(column), rings)
    return replace(found, cross=found.cross.scatter_add(1, column[:, None], -share[:, None]))
