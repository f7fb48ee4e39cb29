"""Thinning: which of too many classes are kept, and the state of the particles in those."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.model import Model
from ralib.classification.priors import class_prices
from ralib.classification.sharding import Shard, quantum_anchor
from ralib.classification.state import State
from ralib.kernels import classes as kernels
from ralib.kernels.classes import ThinningRule
from ralib.runtime.chunks import on_gpu

NEIGHBOURS = 3, 10
"""Best classes within which a particle's spread is measured, at least and at most: a quarter of all, so that few lie in
another species; ten are two shells around one's own class where views lie evenly on a sphere."""

LEAST_SPREAD = 2.0
"""Nats: classes that differ by less are the same to a particle."""

DISTINCT = 8, 1.4
"""Members that a rare view must have at least, and times the typical loss a member, in nats, that makes it one."""


def keep_most_useful(fit: Tensor, keep: int, shard: Shard | None = None) -> Tensor:
    """Select the classes to keep so that particles lose the least fit.

    Classes are dropped one by one, each time the one whose particles lose least by going to their second best (backward
    elimination for the facility location problem): duplicates go first. A particle counts by the share of its spread
    that it would lose, the spread being the difference between its best class and one some places further down, so that
    neither particles of high contrast decide nor a species whose views differ more than another's. A class whose
    members lose many more nats than those of others stays, however few they are: it holds a rare view that nothing else
    explains. Nats are measured relative to a typical particle, as strong junk would otherwise pass for rare views.

    Parameters
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class.
    keep : int
        Number of classes to keep.
    shard : Shard, optional
        Distribution of the particles; by default all are here.

    Returns
    -------
    Tensor of shape (keep,)
        Their numbers.
    """
    k = fit.shape[1]
    everyone = shard or Shard.of_all(len(fit))
    top = fit.topk(min(k, max(NEIGHBOURS[0], min(NEIGHBOURS[1], k // 4))), dim=1).values
    spread = (top[:, :1] - top[:, -1:]).clamp_min(LEAST_SPREAD)
    # In nats, what is strong loses most: a particle of twice the typical fit counts as a typical one.
    strength = (top[:, 0] / everyone.median(top[:, 0]).clamp_min(LEAST_SPREAD)).clamp_min(1)
    nats = spread[:, 0] / strength
    fit = fit / spread
    if on_gpu(fit):
        lost = fit.amax(1) - fit.amin(1)
        most = everyone.largest(torch.stack([lost, lost * nats], dim=1)) * everyone.n
        rule = ThinningRule(quantum_anchor(most), DISTINCT[0], DISTINCT[1], float(everyone.n))
        alive = kernels.thin(fit, nats, keep, rule, everyone.add_up)
        return torch.argsort((~alive).int(), stable=True)[:keep]
    alive = torch.ones(k, dtype=torch.bool, device=fit.device)
    for left in range(k, keep, -1):
        two, owner = fit.topk(2, dim=1)
        lost = two[:, 0] - two[:, 1]
        loss, lost_nats = everyone.sum_by(owner[:, 0], torch.stack([lost, lost * nats], dim=1), k).float().unbind(1)
        members = everyone.counts(owner[:, 0], k)
        each = lost_nats / members.clamp_min(1)
        known = torch.where(alive, each, -torch.inf).sort(descending=True).values
        # What more than a third of all classes have is no exception.
        special = torch.maximum(DISTINCT[1] * known[left // 2], known[keep // 3])
        loss = loss + torch.where((members >= DISTINCT[0]) & (each > special), float(everyone.n), 0.0)
        drop = torch.where(alive, loss, torch.inf).argmin()
        alive[drop] = False
        fit[:, drop] = -torch.inf
    return torch.argsort((~alive).int(), stable=True)[:keep]


def most_useful(model: Model, state: State, keep: int) -> Tensor:
    """Select the classes to keep; fits count less what balance charges the members of large classes.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Gives the fits.
    keep : int
        Number of classes to keep.

    Returns
    -------
    Tensor of shape (keep,)
        Their numbers.
    """
    fit, shard = model.typical_shard.together(state.fit[model.particles.typical])
    return keep_most_useful(fit + class_prices(fit, 1.0, model.balance, shard), keep, shard)


def restrict_classes(model: Model, state: State, keep: Tensor) -> State:
    """Return the state of which only some classes remain; particles move to the best of them.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        State of the particles.
    keep : Tensor of shape (k,)
        Numbers of the classes that remain.

    Returns
    -------
    State
        State with k classes.
    """
    fit = state.fit[:, keep]
    index = fit.argmax(1)
    members = model.members(index, len(keep))
    own = None if state.own is None else state.own.restricted(keep, state.fit.shape[1])
    return replace(state, fit=fit, class_index=index, members=members, own=own)
