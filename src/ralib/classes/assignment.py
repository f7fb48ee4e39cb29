"""Assignment of particles by their scores: the best class, or classes of equal size; reseeding of small classes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ralib.types import RalibError


def best(scores: Tensor) -> Tensor:
    """Return the class (n,) of the highest score (n, k); the lowest class wins a tie."""
    return torch.argmax(scores, dim=1)


_CHUNK = 2**22
"""Scores of a class's members with all classes that are processed at a time."""


@dataclass(frozen=True)
class Shortlists:
    """The best classes of n particles, for balancing the class sizes in memory that does not grow with k.

    Attributes
    ----------
    index : Tensor of shape (n, c)
        Classes, ascending: those of highest score less price.
    score : Tensor of shape (n, c)
        Scores with them.
    floor : Tensor of shape (n,)
        Upper bound of any other class's score less its price.
    price : Tensor of shape (k,)
        Prices of the classes.
    """

    index: Tensor
    score: Tensor
    floor: Tensor
    price: Tensor

    @classmethod
    def of(cls, scores: Tensor, price: Tensor, listed: int) -> Shortlists:
        """Make the lists.

        Parameters
        ----------
        scores : Tensor of shape (n, k)
            Scores.
        price : Tensor of shape (k,)
            Prices of the classes.
        listed : int
            Classes of each particle at most.

        Returns
        -------
        Shortlists
            The lists.
        """
        reduced = scores - price
        best, index = reduced.topk(min(listed, scores.shape[1]), dim=1)
        index = index.sort(dim=1).values
        return cls(index, scores.gather(1, index), best[:, -1], price)

    @property
    def complete(self) -> bool:
        """Whether the lists hold all classes."""
        return self.index.shape[1] == len(self.price)


def equal_sizes(scores: Tensor) -> Tensor:
    """Assign particles to classes whose sizes differ by at most one, with the highest possible total score.

    Parameters
    ----------
    scores : Tensor of shape (n, k)
        Scores.

    Returns
    -------
    Tensor of shape (n,)
        Classes.

    Raises
    ------
    ValueError
        If a score is not finite.
    """
    return balanced(Shortlists.of(scores, torch.zeros_like(scores[0]), scores.shape[1]))


def balanced(lists: Shortlists) -> Tensor:
    """Assign particles to classes whose sizes differ by at most one, from their lists.

    This is a transport problem. Prices of the classes by annealed entropic transport bring the sizes close; shortest
    augmenting paths between classes make them exact, each path keeping the assignment optimal for its own sizes. A
    class that is not on a particle's list counts as the best it could be. The total score is the highest possible where
    the lists hold all classes.

    Parameters
    ----------
    lists : Shortlists
        The best classes of each particle.

    Returns
    -------
    Tensor of shape (n,)
        Classes.

    References
    ----------
    Cuturi 2013, "Sinkhorn distances: lightspeed computation of optimal transport", Advances in Neural Information
    Processing Systems 26.
    """
    n, k = len(lists.index), len(lists.price)
    if not bool(torch.isfinite(lists.score).all()):
        raise RalibError("equal-sized classes need finite scores for every particle and reference")
    if n < k:
        raise RalibError(f"{n} particles cannot fill {k} classes of equal size: ask for at most {n} classes")
    price = prices(lists)
    best, at = (lists.score.double() - price[lists.index]).max(dim=1)
    labels = lists.index.gather(1, at[:, None])[:, 0]
    if not lists.complete:
        bonus, other = (lists.price.double() - price).max(dim=0)
        labels = torch.where(best >= lists.floor + bonus, labels, other)
    return _Balancer(lists, labels).run().to(lists.score.device)


def prices(lists: Shortlists, steps: int = 30) -> Tensor:
    """Compute prices at which the classes are about equally popular, by Sinkhorn's iteration at decreasing temperature.

    Parameters
    ----------
    lists : Shortlists
        The best classes of each particle.
    steps : int, default 30
        Number of iterations.

    Returns
    -------
    Tensor of shape (k,)
        Prices.
    """
    (n, _), k = lists.index.shape, len(lists.price)
    score, index = lists.score.double(), lists.index.flatten()
    spread = float(score.max() - score.min()) or 1.0
    price = lists.price.double()
    # Prices that were good enough to make the lists are not thrown away by a high temperature.
    for temperature in spread * np.logspace(-1 if lists.complete else -2, -5, 9):
        for _ in range(steps):
            share = torch.softmax((score - price[lists.index]) / temperature, dim=1)
            demand = torch.zeros_like(price).index_add_(0, index, share.flatten())
            step = torch.log(demand.clamp_min(1e-12) * k / n)
            price = price + temperature * step
            if float(step.abs().max()) < 0.01:
                break
    return price


class _Balancer:
    """Moves particles along shortest paths between classes until every size is n // k or one more."""

    def __init__(self, lists: Shortlists, labels: Tensor) -> None:
        self.index, self.score = lists.index.cpu().numpy(), lists.score.double().cpu().numpy()
        self.floor, self.price = (part.double().cpu().numpy() for part in (lists.floor, lists.price))
        self.labels = labels.cpu().numpy().copy()
        n, self.k = len(self.index), len(self.price)
        self.low = n // self.k
        self.high = self.low + (n % self.k > 0)
        self.sizes = np.bincount(self.labels, minlength=self.k)
        # cost[a, b]: the least loss of score by which one member of a can move to b; mover[a, b]: that
        # member.
        self.cost = np.full((self.k, self.k), np.inf)
        self.mover = np.full((self.k, self.k), -1)
        for a in range(self.k):
            self._refresh(a)

    def run(self) -> Tensor:
        """Move particles until all sizes are equal; return the classes."""
        while True:
            sources, sinks, must = self._ends()
            path, loss = self._shortest_path(sources, sinks)
            if not must and loss >= -1e-12:
                return torch.from_numpy(self.labels)
            for a, b in itertools.pairwise(path):
                self.labels[self.mover[a, b]] = b
            self.sizes[path[0]] -= 1
            self.sizes[path[-1]] += 1
            for a in path:
                self._refresh(a)

    def _ends(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """Classes to take one particle from, classes to give it to, and whether it has to happen."""
        over, under = self.sizes > self.high, self.sizes < self.low
        if over.any():
            return over, self.sizes < self.high, True
        if under.any():
            return self.sizes > self.low, under, True
        # Sizes are right; where one class may be larger than another, the choice of which is still open.
        larger = (self.sizes == self.high) & (self.high > self.low)
        return larger, self.sizes < self.high, False

    def _refresh(self, a: int) -> None:
        members = np.flatnonzero(self.labels == a)
        self.cost[a], self.mover[a] = np.inf, -1
        parts = -(-len(members) * self.k // _CHUNK)
        for part in np.array_split(members, parts) if parts else ():
            score = self.floor[part, None] + self.price
            np.put_along_axis(score, self.index[part], self.score[part], axis=1)
            loss = score[:, [a]] - score
            nearest = loss.argmin(axis=0)
            least = loss[nearest, np.arange(self.k)]
            self.mover[a] = np.where(least < self.cost[a], part[nearest], self.mover[a])
            self.cost[a] = np.minimum(least, self.cost[a])
        self.cost[a, a] = np.inf

    def _shortest_path(self, sources: np.ndarray, sinks: np.ndarray) -> tuple[list[int], float]:
        """Find the shortest path by Bellman-Ford over the classes; an optimal assignment has no negative cycle."""
        distance = np.where(sources, 0.0, np.inf)
        before = np.full(self.k, -1)
        for _ in range(self.k):
            through = distance[:, None] + self.cost
            last = through.argmin(axis=0)
            shorter = through[last, np.arange(self.k)] < distance - 1e-12
            if not shorter.any():
                break
            distance = np.where(shorter, through[last, np.arange(self.k)], distance)
            before = np.where(shorter, last, before)
        end = int(np.where(sinks, distance, np.inf).argmin())
        path = [end]
        while before[path[-1]] >= 0 and len(path) <= self.k:
            path.append(int(before[path[-1]]))
        return path[::-1], float(distance[end]) if sinks[end] else np.inf


@dataclass(frozen=True)
class Reseeding:
    """Particles that changed class because some class was too small.

    Attributes
    ----------
    class_index : Tensor of shape (n,)
        Classes afterwards; former members of a small class are in class -1 until the next search.
    events : list of tuple of int
        For each reseeded class: its number, its members before, the donor class, and the members taken from it.
    """

    class_index: Tensor
    events: list[tuple[int, int, int, int]]


def reseed_small_classes(class_index: Tensor, score: Tensor, n_classes: int, min_members: int) -> Reseeding:
    """Give every small class the worst-fitting members of the largest class.

    A small class gets up to half of the largest one, at most an average share. Where the largest class is too small to
    be halved nothing changes, so that few particles in many classes stay as they are. Deterministic: the lowest class
    and the lowest particle win ties.

    Parameters
    ----------
    class_index : Tensor of shape (n,)
        Class of each particle, or -1.
    score : Tensor of shape (n,)
        Its score with that class.
    n_classes : int
        Number of classes.
    min_members : int
        Classes with fewer members are small.

    Returns
    -------
    Reseeding
        Classes afterwards, and what was done.
    """
    labels = class_index.clone()
    sizes = torch.bincount(labels[labels >= 0], minlength=n_classes)
    share = max(min_members, int(sizes.sum()) // n_classes)
    events = []
    for small in torch.nonzero(sizes < min_members)[:, 0].tolist():
        donor = int(sizes.argmax())
        give = min(int(sizes[donor]) // 2, share)
        if give < min_members:
            break
        members = torch.nonzero(labels == donor)[:, 0]
        worst = members[torch.argsort(score[members], stable=True)[:give]]
        labels[labels == small] = -1
        labels[worst] = small
        events.append((small, int(sizes[small]), donor, give))
        sizes[donor] -= give
        sizes[small] = give
    return Reseeding(labels, events)
