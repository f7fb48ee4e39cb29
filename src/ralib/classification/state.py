"""What an iteration of classification hands on to the next, and how the next is to be done."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.leave_one_out import SelfContribution
from ralib.classification.m_step import RingAverages


@dataclass(frozen=True)
class State:
    """Where every particle stands (n,), and the classes as the last M-step left them.

    fit          (n, k) log-likelihood of each class at its best pose, with the prior of its place, without balance
    posterior    (n,) probability of the best class
    scale        (n,) contrast of each particle relative to the median
    mean_scale   () median scale before that division: the references' own contrast
    spread_px    () standard deviation of the particles' places along x and y
    members      (k,) particles whose best class it is
    own          what each particle gave to the averages, which its next fit does without
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
        """The state of some particles; classes as they are, made of others as well."""
        own = ("psi_deg", "origin_xy_px", "mirror", "class_index", "fit", "posterior", "scale")
        return replace(self, own=None, **{name: getattr(self, name)[rows] for name in own})

    @classmethod
    def blank(cls, n: int, spread_px: Tensor) -> State:
        """Nothing known of n particles but how far from the centres of their boxes they lie."""
        device = spread_px.device
        zero = torch.zeros(n, device=device)
        index = torch.zeros(n, dtype=torch.int64, device=device)
        one = torch.ones(n, device=device)
        origin = torch.zeros(n, 2, device=device)
        return cls(zero, origin, index.bool(), index, zero[:, None], one, one, one[0], spread_px, one[:1], None)


@dataclass(frozen=True)
class IterationSettings:
    """How an iteration is done.

    rings         how many rings count: the resolution
    temperature   of the posterior: 1 is Bayes' rule, above it classes stay soft
    wide          all shifts are tried, from the box centre; else those next to each particle's last centre
    newton        refinement steps off the grid
    """

    rings: int
    temperature: float
    wide: bool = False
    newton: int = 0
