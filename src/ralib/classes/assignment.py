"""Scores to classes: the best, or equal-sized by a transport problem; and what happens to a class that
starves.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ralib.types import RalibError


def best(scores: Tensor) -> Tensor:
    """The class of the highest score, (n, k) -> (n,); the lowest number wins a tie."""
    return torch.argmax(scores, dim=1)


_CHUNK = 2**22
"""Scores of a class's members with all classes that are looked at at a time."""


@dataclass(frozen=True)
class Shortlists:
    """What balancing the classes needs to know of n particles: a few classes each, in memory that k does not enter.

    index (n, c) classes, in order, and score (n, c) with them: those whose scores, less the prices (k,), are highest
    floor (n,)   what any other class's score, less its price, is at most
    """

    index: Tensor
    score: Tensor
    floor: Tensor
    price: Tensor

    @classmethod
    def of(cls, scores: Tensor, price: Tensor, listed: int) -> Shortlists:
        """From scores (n, k): at most so many classes of each particle."""
        reduced = scores - price
        best, index = reduced.topk(min(listed, scores.shape[1]), dim=1)
        index = index.sort(dim=1).values
        return cls(index, scores.gather(1, index), best[:, -1], price)

    @property
    def complete(self) -> bool:
        return self.index.shape[1] == len(self.price)


def equal_sizes(scores: Tensor) -> Tensor:
    """Classes (n,) whose sizes differ by at most one and whose total score is the highest possible; scores (n, k).

    Rows with a score that is not finite raise.
    """
    return balanced(Shortlists.of(scores, torch.zeros_like(scores[0]), scores.shape[1]))


def balanced(lists: Shortlists) -> Tensor:
    """Classes (n,) whose sizes differ by at most one; of the highest total score where the lists hold all classes.

    This is a transport problem. Prices per class from an annealed entropic transport (Cuturi 2013) bring the sizes
    near; shortest augmenting paths between classes make them exact, each path keeping the assignment the best one for
    its own sizes. A class that is not on a particle's list counts as the best it could be.
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
    """Prices (k,) under which buyers spread about evenly: Sinkhorn's iteration at a falling temperature."""
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
        """Bellman-Ford over the classes; there is no negative cycle, for the assignment is best for its
        sizes.
        """
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
    """Which particles changed class, and why, in words.

    class_index  (n,) the classes after it; former members of a starved class wait in class -1 for the next
    search
    events       one (starved class, its members before, donor class, members given) for each reseeded class
    """

    class_index: Tensor
    events: list[tuple[int, int, int, int]]


def reseed_small_classes(class_index: Tensor, score: Tensor, n_classes: int, min_members: int) -> Reseeding:
    """Give every class below `min_members` the worst-fitting members of the largest class.

    class_index (n,), score (n,) the fit of each particle to its class. A starved class gets up to half of the
    largest one, at most an average share. A class too small to be halved is left alone, so few particles in
    many classes stay as they are. Deterministic: ties go to the lowest class and the lowest particle.
    """
    labels = class_index.clone()
    sizes = torch.bincount(labels[labels >= 0], minlength=n_classes)
    share = max(min_members, int(sizes.sum()) // n_classes)
    events = []
    for starved in torch.nonzero(sizes < min_members)[:, 0].tolist():
        donor = int(sizes.argmax())
        give = min(int(sizes[donor]) // 2, share)
        if give < min_members:
            break
        members = torch.nonzero(labels == donor)[:, 0]
        worst = members[torch.argsort(score[members], stable=True)[:give]]
        labels[labels == starved] = -1
        labels[worst] = starved
        events.append((starved, int(sizes[starved]), donor, give))
        sizes[donor] -= give
        sizes[starved] = give
    return Reseeding(labels, events)
