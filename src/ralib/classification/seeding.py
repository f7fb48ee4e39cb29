"""Initialisation: single particles as first references, and which of too many classes are kept."""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.classification.likelihood import Spectra, ring_power
from ralib.classification.ring_grid import RingGrid
from ralib.classification.sharding import Shard, quantum_anchor
from ralib.classification.state import State
from ralib.classification.stored_spectra import StoredSpectra
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


def particles_as_references(grid: RingGrid, spectra: Spectra, rings: int) -> Tensor:
    """Deconvolve single particles by their CTF as far as their noise allows.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Spectra of b particles.
    rings : int
        Number of rings r.

    Returns
    -------
    Tensor of shape (b, r, H)
        Samples.
    """
    data = spectra.data[:, :rings] / grid.weight[:rings, None]
    power = spectra.power[:, :rings] / (grid.weight[:rings] * grid.n_half)
    return data / (power + 0.5)[..., None]


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
        With it the rows are those of some of its particles, and those of all ranks count.

    Returns
    -------
    Tensor of shape (keep,)
        Their numbers.
    """
    k = fit.shape[1]
    shard = shard or Shard.of_all(len(fit))
    everyone = shard.among(len(fit))
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


def weighted_median(values: Tensor, weight: Tensor) -> Tensor:
    """Return the median over classes weighted by their members; a few strong classes do not shift it.

    Parameters
    ----------
    values : Tensor of shape (k, r)
        A row for each class.
    weight : Tensor of shape (k,)
        Weight of each class.

    Returns
    -------
    Tensor of shape (r,)
        Median.
    """
    ordered, order = values.sort(dim=0)
    share = weight[order].cumsum(0) / weight.sum().clamp_min(1e-12)
    return ordered.gather(0, (share < 0.5).sum(0, keepdim=True).clamp_max(len(values) - 1))[0]


def typical_power(references: Tensor, members: Tensor) -> Tensor:
    """Return the ring power of the typical class, weighted by members.

    A mean would be dominated by strong junk: a bead has some hundred times the power of a molecule.

    Parameters
    ----------
    references : Tensor of shape (k, r, m)
        Angular orders of the references.
    members : Tensor of shape (k,)
        Number of members.

    Returns
    -------
    Tensor of shape (r,)
        Power.
    """
    return weighted_median(ring_power(references), members)


def poorly_explained(
    spectra: Spectra | StoredSpectra, state: State, references: Tensor, eligible: Tensor, count: int, shard: Shard
) -> Tensor:
    """Return the numbers of the particles that their classes explain worst, given their CTF and noise.

    Parameters
    ----------
    spectra : Spectra or StoredSpectra
        Spectra of n particles.
    state : State
        Poses, classes and fits.
    references : Tensor of shape (k, r, m)
        Angular orders of the references.
    eligible : Tensor of shape (n,)
        Particles to choose from.
    count : int
        How many are returned.
    shard : Shard
        Which of all particles the tables are of.

    Returns
    -------
    Tensor of shape (count,)
        Numbers of particles among all.
    """
    typical = typical_power(references, state.members)
    expected = (spectra.power[:, : len(typical)] * typical).sum(1)
    share = torch.where(eligible, state.fit.amax(1) / expected.clamp_min(1e-12), torch.inf)
    worst = torch.argsort(shard.gather(share), stable=True)
    return worst[: min(count, int(shard.count(eligible)))].sort().values
