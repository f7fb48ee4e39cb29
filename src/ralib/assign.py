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


def equal_sizes(scores: Tensor) -> Tensor:
    """Classes (n,) whose sizes differ by at most one and whose total score is the highest possible; scores
    (n, k).

    This is a transport problem. Prices per class from an annealed entropic transport (Cuturi 2013) bring the
    sizes near; shortest augmenting paths between classes make them exact, each path keeping the assignment
    the best one for its own sizes. Rows with a score that is not finite raise.
    """
    if not bool(torch.isfinite(scores).all()):
        raise RalibError("equal-sized classes need finite scores for every particle and reference")
    n, k = scores.shape
    if n < k:
        raise RalibError(f"{n} particles cannot fill {k} classes of equal size: ask for at most {n} classes")
    priced = scores.double() - _entropic_prices(scores.double())
    labels = torch.argmax(priced, dim=1)
    return _Balancer(scores.double().cpu().numpy(), labels.cpu().numpy()).run().to(scores.device)


def _entropic_prices(scores: Tensor, steps: int = 30) -> Tensor:
    """Prices (k,) under which buyers spread about evenly: Sinkhorn's iteration at a falling temperature."""
    n, k = scores.shape
    spread = float(scores.max() - scores.min()) or 1.0
    price = torch.zeros(k, dtype=scores.dtype, device=scores.device)
    for temperature in spread * torch.logspace(-1, -5, 9, dtype=torch.float64).numpy():
        for _ in range(steps):
            demand = torch.softmax((scores - price) / float(temperature), dim=1).sum(0)
            step = torch.log(demand.clamp_min(1e-12) * k / n)
            price = price + float(temperature) * step
            if float(step.abs().max()) < 0.01:
                break
    return price


class _Balancer:
    """Moves particles along shortest paths between classes until every size is n // k or one more."""

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        self.scores, self.labels = scores, labels.copy()
        n, self.k = scores.shape
        self.low = n // self.k
        self.high = self.low + (n % self.k > 0)
        self.sizes = np.bincount(labels, minlength=self.k)
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
        if len(members):
            loss = self.scores[members, a][:, None] - self.scores[members]
            nearest = loss.argmin(axis=0)
            self.cost[a] = loss[nearest, np.arange(self.k)]
            self.mover[a] = members[nearest]
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
