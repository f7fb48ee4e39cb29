"""Where particles lie in their boxes: most within a few pixels of the centre, where they were picked, a few anywhere.

What is known of a particle's place is a prior on its origin. A wrong class or a wrong rotation fits best where noise
happens to, which is rarely near the centre; so the prior, broad as it is, tells them from the right ones. It holds for
one frame only: classes must stand where their members' boxes have their centres (`Model.centred`), not each at a centre
of mass of its own. Scheres et al. 2005 (ML2D) has the normal part; the rest is for what was picked badly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ANYWHERE = 0.01
"""Share of the particles that may lie anywhere in the searched disc: bad picks, and junk."""

LEAST_SPREAD_PX = 0.5
"""Places are not known better than this."""


def pick_spread(origin_xy_px: Tensor) -> Tensor:
    """Standard deviation () along x and y of origins (n, 2), from their median length, which few bad ones change."""
    length = torch.linalg.vector_norm(origin_xy_px, dim=1)
    return (length.median() / math.sqrt(2 * math.log(2))).clamp_min(LEAST_SPREAD_PX)


def log_prior(origin_xy_px: Tensor, spread_px: Tensor, radius_px: float) -> Tensor:
    """Logarithm of the prior (...) of origins (..., 2) over that of the centre; `radius_px` is the searched disc's."""
    anywhere = ANYWHERE / (1 - ANYWHERE) * 2 * spread_px**2 / radius_px**2
    near = torch.exp(-0.5 * origin_xy_px.square().sum(-1) / spread_px**2)
    return torch.log((near + anywhere) / (1 + anywhere))
