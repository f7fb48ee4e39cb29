"""Pose support of a class: whether its members were aligned by their detail, or only share the shape of a blob.

Averages of blobs have halves that agree, and members that are assigned to them again: coarse shape is reproducible, but
determines neither view nor rotation. Detail does, so only rings of detail are used. A particle's rotation and mirror
are searched with every other ring, in the average of its class from the other half of the data; the agreement is then
computed on the rings between, which took no part in the search. A class may have any symmetry: the rotation need not be
the only one. Noise reaches about 3 standard deviations, since class and origin were found with all rings.

A particle that looks round, a shell or a ball, has detail that no rotation changes: its rotation is unknown, although
the average is no blob. So the round part of the same rings is used as well, where it is finer than a blob's.

The principle is cross-validation, as in the free R value: data that a pose was fitted to do not validate it (Brünger
1992, "Free R value: a novel statistical quantity for assessing the accuracy of crystal structures", Nature 355,
472-475).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ralib.classification.half_precision_search import ranks_in_half
from ralib.classification.model import Model
from ralib.classification.pose_search import search_poses
from ralib.classification.residuals import ring_crosses
from ralib.classification.state import State
from ralib.kernels.averages import ring_power

DETAIL = 2.0
"""Details across the particle from which on rings are used: size and elongation, which blobs have too, are coarser."""

ROUND_DETAIL = 3.0
"""Details across the particle from which on the round part is used: a blob's profile is coarser."""

OF_A_CLASS, AT_MOST = 50, 5000
"""Members of a class that are looked at, and particles of all classes, at most."""

FEWEST = 5
"""Members from which on their mean says something."""

CHUNK = 512
"""Particles whose samples are compared at a time."""


@dataclass(frozen=True)
class PoseSupport:
    """By how many standard deviations of the noise in one image unused rings agree with a member's class.

    Attributes
    ----------
    turned : ndarray of shape (k,)
        What changes as the average turns, from DETAIL on: support of the rotation that the other rings found. Mean over
        members of each class; NaN where there are fewer than FEWEST.
    round : ndarray of shape (k,)
        What does not, from ROUND_DETAIL on: 0 on average where an average shows no such detail.
    """

    turned: np.ndarray
    round: np.ndarray


def pose_support(model: Model, state: State, rings: int, candidates: Tensor, generator: torch.Generator) -> PoseSupport:
    """Return how far rings that had no part in it support the rotations of each class's members.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Final poses and classes.
    rings : int
        Number of rings compared.
    candidates : Tensor of shape (n,)
        Particles that may be looked at: those that are not junk.
    generator : torch.Generator
        Random numbers of the choice among them.

    Returns
    -------
    PoseSupport
        For each class.
    """
    assert state.averages is not None
    n_classes, everyone = len(state.members), model.shard.gather
    index = everyone(state.class_index).cpu()
    chosen = _some_of_each(index, candidates.cpu(), n_classes, generator)
    half, device = everyone(model.half).cpu(), model.particles.grid.device
    total, count = torch.zeros(n_classes, 2, dtype=torch.float64), torch.zeros(n_classes, 1, dtype=torch.float64)
    for h, orders in enumerate(state.averages.halves):
        references = model.masked(replace(state.averages, orders=orders), rings)
        rows = chosen[half[chosen] != h]
        part, own = model.of(rows.to(device)), state.of(model.shard.held(rows.to(device)))
        support = part.shard.gather(_support(part, own, references)).cpu().double()
        total.index_add_(0, index[rows], support)
        count.index_add_(0, index[rows], torch.ones_like(support[:, :1]))
    mean = torch.where(count >= FEWEST, total / count, torch.nan).numpy()
    return PoseSupport(mean[:, 0], mean[:, 1])


def _some_of_each(index: Tensor, candidates: Tensor, n_classes: int, generator: torch.Generator) -> Tensor:
    """Ascending numbers (m,) of some candidates of each class, at random."""
    able = torch.nonzero(candidates & (index >= 0))[:, 0]
    able = able[torch.randperm(len(able), generator=generator)]
    able = able[torch.argsort(index[able], stable=True)]
    size = torch.bincount(index[able], minlength=n_classes)
    place = torch.arange(len(able)) - (size.cumsum(0) - size)[index[able]]
    return able[place < min(OF_A_CLASS, max(1, AT_MOST // n_classes))].sort().values


def _support(model: Model, state: State, references: Tensor) -> Tensor:
    """Support (b, 2) of each particle's rotation, and of its round part, by the rings that did not find it."""
    rings = references.shape[1]
    ring = torch.arange(rings, device=references.device)
    turns = torch.arange(references.shape[2], device=references.device) > 0
    first_rings = (min(model.particles.rings_for(detail), rings - 2) for detail in (DETAIL, ROUND_DETAIL))
    parts = [(ring >= first)[:, None] & part for first, part in zip(first_rings, (turns, ~turns), strict=True)]
    agreement, power = torch.zeros(2, len(state.psi_deg), len(parts), device=references.device)
    for first in (0, 1):
        searched = (ring % 2 == first)[:, None]
        posed = _posed(model, state, references * searched)
        for column, part in enumerate(parts if len(agreement) else ()):
            compared = references * (~searched & part)
            agreement[:, column] += ring_crosses(model, compared, posed, CHUNK).sum(1)
            expected = model.particles.single.power[:, :rings] * ring_power(compared)[state.class_index]
            power[:, column] += expected.sum(1)
    return agreement / power.sqrt().clamp_min(1e-9)


def _posed(model: Model, state: State, references: Tensor) -> State:
    """The state with the poses that particles have in their own classes by these references."""
    if not model.align:
        return state
    spectra, index, psi = model.particles.single, state.class_index, state.psi_deg.clone()
    origin, mirror = state.origin_xy_px.clone(), state.mirror.clone()
    together = ranks_in_half(references.device)  # a GPU searches all classes in one operation
    for k in range(1 if together else len(references)):
        rows = torch.arange(len(index), device=index.device) if together else torch.nonzero(index == k)[:, 0]
        classes, column = (references, index) if together else (references[k : k + 1], torch.zeros_like(index[rows]))
        if len(rows):
            known, at_once = state.origin_xy_px[rows], model.at_once
            found = search_poses(model, spectra[rows], known, classes, state, wide=False, at_once=at_once).pick(column)
            psi[rows], origin[rows], mirror[rows] = found.psi_deg, found.origin_xy_px, found.mirror
    return replace(state, psi_deg=psi, origin_xy_px=origin, mirror=mirror)
