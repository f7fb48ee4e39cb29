"""The learned verdict: from features of a particle and its class to the probability that it is junk.

Boosted regression trees (Friedman 2001), fitted by `bench/train_verdict.py` on simulated sets of other molecules and
kept as plain arrays in `junk_model.npz`. Every feature is free of scale: told in standard deviations of noise, in
particle radii, or as a deviation from the run's own particles in robust standard deviations.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ralib.classification.class_fit import FIT_NAMES
from ralib.classification.class_statistics import CLASS_NAMES
from ralib.classification.image_statistics import IMAGE_NAMES

MODEL_FILE = Path(__file__).with_name("junk_model.npz")

SCALAR_NAMES = ("log_fit", "log_explained", "off_centre", "agreement", "posterior", "scale")
"""What the classification itself says of a particle; the first two as logarithms."""

OWN_NAMES = (*IMAGE_NAMES, *FIT_NAMES, *SCALAR_NAMES)

NAMES = (
    *FIT_NAMES,
    *SCALAR_NAMES,
    *(f"deviation_{name}" for name in OWN_NAMES),
    *(f"class_{name}" for name in OWN_NAMES),
    *CLASS_NAMES,
)
"""Columns of `features`: as they are, as deviations from the run's particles, those of the class's median member, and
the statistics of the class average."""

LEAST_SHARE = 0.02
"""Share of junk that every set is taken to have at least."""

FARTHEST, LEAST_SPREAD = 20.0, 0.02
"""Deviations are cut off at this many standard deviations, which are never taken to be smaller than this."""


@dataclass(frozen=True)
class BoostedTrees:
    """Trees as arrays (t, nodes): where `feature` is -1 a leaf with its `value`, else x <= threshold goes left.

    prior is the share of junk in what the trees were fitted on, baseline its logarithm of odds as they begin with it.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    baseline: float
    prior: float
    names: tuple[str, ...]

    def log_odds(self, x: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
        """Logarithm of the odds (n,) of features (n, len(names)): the baseline and one leaf of every tree."""
        walk = _Walk.of(self, device)
        rows = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        parts = [walk.leaf_sums(part.to(device)).cpu() for part in rows.split(walk.at_once)]
        return self.baseline + torch.cat(parts).numpy() if parts else np.zeros(0)


@dataclass(frozen=True)
class _Walk:
    """Trees on a device, flat, in which a leaf is its own child: after `depth` steps every row stands in its leaf.

    first (t,) is each tree's root.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    first: Tensor
    depth: int

    @classmethod
    def of(cls, trees: BoostedTrees, device: torch.device | str) -> _Walk:
        count, size = trees.feature.shape
        node, first = np.arange(size), np.arange(count)[:, None] * size
        leaf = trees.feature < 0

        def flat(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array.ravel())).to(device)

        return cls(
            feature=flat(np.maximum(trees.feature, 0).astype(np.int64)),
            threshold=flat(trees.threshold),
            left=flat(np.where(leaf, node, trees.left) + first),
            right=flat(np.where(leaf, node, trees.right) + first),
            value=flat(trees.value),
            first=flat(first),
            depth=_depth(trees),
        )

    @property
    def at_once(self) -> int:
        return 4096 if self.first.device.type == "cpu" else 65_536

    def leaf_sums(self, x: Tensor) -> Tensor:
        """Sum (n,) of the leaves that rows (n, f) fall into."""
        at = self.first.expand(len(x), -1)
        for _ in range(self.depth):
            goes_left = x.gather(1, self.feature.take(at)) <= self.threshold.take(at)
            at = torch.where(goes_left, self.left.take(at), self.right.take(at))
        return self.value.take(at).double().sum(1)


def _depth(trees: BoostedTrees) -> int:
    """Steps from a root to the farthest leaf of any tree."""
    inner, depth = trees.feature >= 0, 0
    here = np.zeros_like(inner)
    here[:, 0] = True
    while (here & inner).any():
        tree, node = np.nonzero(here & inner)
        here = np.zeros_like(inner)
        here[tree, trees.left[tree, node]] = here[tree, trees.right[tree, node]] = True
        depth += 1
    return depth


@functools.lru_cache(maxsize=1)
def load_model(path: Path = MODEL_FILE) -> BoostedTrees:
    """The trees in the package."""
    with np.load(path, allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in ("feature", "threshold", "left", "right", "value")}
        baseline, prior = float(saved["baseline"]), float(saved["prior"])
        return BoostedTrees(**arrays, baseline=baseline, prior=prior, names=tuple(saved["names"].tolist()))


@dataclass(frozen=True)
class Evidence:
    """What is measured of particles (n, .) and classes (k, .); index (n,) is the class, -1 for unusable images."""

    image: np.ndarray
    fit: np.ndarray
    scalars: np.ndarray
    classes: np.ndarray
    index: np.ndarray

    @property
    def own(self) -> np.ndarray:
        """All that is told of a particle by itself, (n, len(OWN_NAMES))."""
        return np.concatenate([self.image, self.fit, self.scalars], axis=1).astype(np.float32)


def deviations(own: np.ndarray, typical: np.ndarray) -> np.ndarray:
    """own (n, f) in robust standard deviations from the median of the rows where `typical` (n,) holds."""
    known = own[typical] if typical.any() else own
    middle = np.median(known, axis=0)
    spread = 1.4826 * np.median(np.abs(known - middle), axis=0) + LEAST_SPREAD
    limited: np.ndarray = np.clip((own - middle) / spread, -FARTHEST, FARTHEST)
    return limited


def features(evidence: Evidence, typical: np.ndarray) -> np.ndarray:
    """Features (n, len(NAMES)) where the particles with `typical` (n,) say what is usual in this run."""
    index, own = evidence.index, evidence.own
    deviation = deviations(own, typical & (index >= 0))
    middle = np.zeros((max(len(evidence.classes), 1), own.shape[1]), np.float32)
    for k in np.unique(index[index >= 0]):
        middle[k] = np.median(deviation[index == k], axis=0)
    at = np.maximum(index, 0)
    direct = own[:, len(IMAGE_NAMES) :]
    return np.concatenate([direct, deviation, middle[at], evidence.classes[at]], axis=1).astype(np.float32)


def junk_log_odds(
    evidence: Evidence, model: BoostedTrees | None = None, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Logarithm of the odds (n,) that a particle is junk; trees are walked on the device.

    Twice: first all particles say what is usual, then those that were more likely particles than junk; so a set of
    which most is junk is judged by the particles in it.
    """
    model = model or load_model()
    column = [NAMES.index(name) for name in model.names]
    usable = evidence.index >= 0

    def seen_from(typical: np.ndarray) -> np.ndarray:
        return with_own_prior(model.log_odds(features(evidence, typical)[:, column], device), usable, model.prior)

    odds = seen_from(usable)
    typical = usable & (odds < 0)
    if typical.sum() >= max(20, 0.1 * usable.sum()):
        odds = seen_from(typical)
    return odds


def with_own_prior(odds: np.ndarray, usable: np.ndarray, prior: float) -> np.ndarray:
    """Log-odds (n,) as they are where less is junk than in the sets of the fit, whose share was `prior`.

    The share that explains the odds of this set best is found by expectation maximisation (Saerens et al. 2002). It
    only falls: where much is junk, the odds say so by themselves, and a share that grows on faint ones runs away.
    """
    there = odds[usable] - _log_odds(prior)
    share = prior
    for _ in range(200):
        found = float(np.clip((1 / (1 + np.exp(-(there + _log_odds(share))))).mean(), LEAST_SHARE, prior))
        if abs(found - share) < 1e-5:
            break
        share = found
    return odds + _log_odds(share) - _log_odds(prior)


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))
