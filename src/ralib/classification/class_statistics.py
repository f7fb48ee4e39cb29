"""Statistics of a class average by itself: agreement of its halves, distribution of its power, size of the class."""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.classification.class_fit import BANDS, ring_bands
from ralib.classification.model import Model
from ralib.classification.state import State
from ralib.classification.typical_class import weighted_median
from ralib.images.centering import centre_of_mass
from ralib.images.masks import soft_disc
from ralib.kernels.averages import ring_power

CLASS_NAMES = (
    *(f"class_frc_{i}" for i in range(len(BANDS) - 1)),
    *(f"class_power_{i}" for i in range(len(BANDS) - 1)),
    "class_size",
    "class_compact",
    "class_around",
    "class_off_centre",
    "class_bright",
    "class_peaked",
)
"""Columns of `class_statistics`.

class_frc_i      mean FRC of the halves in a band of detail
class_power_i    logarithm of the power the halves share there, over the typical class's
class_size       logarithm of the members over those of classes of equal size
class_compact    share of the average's power within 0.6 particle radii;  class_around: beyond 1.15
class_off_centre of its centre of mass, particle radii
class_bright     (brightest - darkest extreme) over their sum: what is dark is no protein
class_peaked     logarithm of the brightest pixel over the standard deviation inside the particle
"""


def class_statistics(model: Model, state: State) -> Tensor:
    """Compute the statistics of all classes; see CLASS_NAMES.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Poses, classes and averages.

    Returns
    -------
    Tensor of shape (k, f)
        Statistics.
    """
    averages = state.averages
    assert averages is not None
    grid, radius = model.particles.grid, model.particles.particle_radius_px
    rings = averages.frc.shape[1]
    band = ring_bands(model, rings)
    frc = (averages.frc.nan_to_num(0.0) @ band.T) / band.sum(1)
    power = ring_power(averages.halves.mean(0)) * grid.weight[:rings]
    over = torch.log(
        ((power @ band.T) / (weighted_median(power, state.members) @ band.T).clamp_min(1e-12)).clamp_min(1e-4)
    )
    share = state.members / state.members.sum().clamp_min(1)
    size = torch.log((share * len(share)).clamp_min(1e-2))
    images = grid.image_of_orders(averages.orders)
    disc = soft_disc(grid.box, 1.15 * radius, 0.1 * radius, device=grid.device)
    inside = images * disc
    energy = images.square().sum((1, 2)).clamp_min(1e-12)
    core = soft_disc(grid.box, 0.6 * radius, 0.1 * radius, device=grid.device)
    compact = (images * core).square().sum((1, 2)) / inside.square().sum((1, 2)).clamp_min(1e-12)
    around = 1 - inside.square().sum((1, 2)) / energy
    off = centre_of_mass(images, disc).norm(dim=1) / radius
    high, low = inside.amax((1, 2)), -inside.amin((1, 2))
    bright = (high - low) / (high + low).clamp_min(1e-12)
    spread = torch.sqrt(inside.square().sum((1, 2)) / disc.sum()).clamp_min(1e-12)
    columns = [size, compact, around, off, bright, torch.log((high / spread).clamp_min(0.1))]
    return torch.cat([frc, over, torch.stack(columns, dim=1)], dim=1).nan_to_num(0.0)
