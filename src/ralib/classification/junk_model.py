"""The junk model: probability that a particle is junk, from features of the particle and of its class.

Boosted regression trees (Friedman 2001, "Greedy function approximation: a gradient boosting machine", Ann. Stat. 29,
1189-1232), fitted by `bench/train_verdict.py` on simulated sets of other molecules and stored as plain arrays in
`junk_model.npz`. Every feature is free of scale: in standard deviations of noise, in particle radii, or as a deviation
from the run's own particles in robust standard deviations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ralib.classification.class_fit import FIT_NAMES
from ralib.classification.class_statistics import CLASS_NAMES
from ralib.classification.image_statistics import IMAGE_NAMES
from ralib.classification.sharding import Shard

MODEL_FILE = Path(__file__).with_name("junk_model.npz")

SCALAR_NAMES = ("log_fit", "log_explained", "off_centre", "agreement", "posterior", "scale")
"""Figures of a particle from the classification itself; the first two as logarithms."""

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

MEDIAN_OF = 20_000
"""Particles, at least, that medians are taken of where there are more: right to a hundredth of a deviation."""

BISECTIONS = 20
"""Halvings of the interval in which the share of junk lies: it is then known to a millionth."""

FARTHEST, LEAST_SPREAD = 20.0, 0.02
"""Deviations are cut off at this many standard deviations, which are never taken to be smaller than this."""


@dataclass(frozen=True)
class BoostedTrees:
    """Regression trees as arrays: a node with `feature` -1 is a leaf with its `value`, else x <= threshold goes left.

    Attributes
    ----------
    feature : ndarray of shape (t, nodes)
        Feature compared, or -1 for a leaf.
    threshold : ndarray of shape (t, nodes)
        Threshold of the feature.
    left, right : ndarray of shape (t, nodes)
        Child nodes.
    value : ndarray of shape (t, nodes)
        Value of a leaf.
    baseline : float
        Log-odds with which the trees begin.
    prior : float
        Share of junk in the training data.
    names : tuple of str
        Names of the features.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    baseline: float
    prior: float
    names: tuple[str, ...]

    def log_odds(self, x: Tensor) -> Tensor:
        """Return the log-odds of features: the baseline and one leaf of every tree.

        Parameters
        ----------
        x : Tensor of shape (n, f)
            Features in the order of `names`.

        Returns
        -------
        Tensor of shape (n,)
            Log-odds, float64.
        """
        trees = _FlatTrees.of(self, x.device)
        return self.baseline + torch.cat([trees.leaf_sums(part) for part in x.float().split(trees.at_once)])


@dataclass(frozen=True)
class _FlatTrees:
    """Trees on a device, flat, in which a leaf is its own child: after `depth` steps every row has reached its leaf."""

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    first: Tensor
    depth: int

    @classmethod
    def of(cls, trees: BoostedTrees, device: torch.device | str) -> _FlatTrees:
        """Put trees on a device."""
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
        """Number of rows processed at a time."""
        return 4096 if self.first.device.type == "cpu" else 65_536

    def leaf_sums(self, x: Tensor) -> Tensor:
        """Return the sum (n,) of the leaves that rows (n, f) fall into."""
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
    """Load the trees of the package."""
    with np.load(path, allow_pickle=False) as saved:
        arrays = {name: saved[name] for name in ("feature", "threshold", "left", "right", "value")}
        baseline, prior = float(saved["baseline"]), float(saved["prior"])
        return BoostedTrees(**arrays, baseline=baseline, prior=prior, names=tuple(saved["names"].tolist()))


@dataclass(frozen=True)
class Evidence:
    """Measurements of n particles and k classes, on the device that measured them.

    Attributes
    ----------
    image : Tensor of shape (n, a)
        Statistics of the images.
    fit : Tensor of shape (n, b)
        Fit to the class, in bands.
    scalars : Tensor of shape (n, c)
        Further figures of each particle.
    classes : Tensor of shape (k, d)
        Statistics of the classes.
    index : Tensor of shape (n,)
        Class of each particle, -1 for unusable images.
    """

    image: Tensor
    fit: Tensor
    scalars: Tensor
    classes: Tensor
    index: Tensor

    @functools.cached_property
    def own(self) -> Tensor:
        """All measurements of a particle by itself, (n, len(OWN_NAMES))."""
        return torch.cat([self.image, self.fit, self.scalars], dim=1)


def deviations(own: Tensor, typical: Tensor) -> Tensor:
    """Return deviations from the median in robust standard deviations, both of typical rows.

    Parameters
    ----------
    own : Tensor of shape (n, f)
        Measurements.
    typical : Tensor of shape (n,)
        True for typical rows.

    Returns
    -------
    Tensor of shape (n, f)
        Deviations.
    """
    known = own[typical] if typical.any() else own
    known = known[:: max(1, len(known) // MEDIAN_OF)]
    middle = _median(known)
    spread = 1.4826 * _median((known - middle).abs()) + LEAST_SPREAD
    return ((own - middle) / spread).clamp(-FARTHEST, FARTHEST)


def features(evidence: Evidence, typical: Tensor) -> Tensor:
    """Return the features of the junk model.

    Parameters
    ----------
    evidence : Evidence
        Measurements.
    typical : Tensor of shape (n,)
        True for the particles that define what is usual in this run.

    Returns
    -------
    Tensor of shape (n, len(NAMES))
        Features.
    """
    own, classes, index = evidence.own, evidence.classes, evidence.index
    deviation = deviations(own, typical & (index >= 0))
    middle = own.new_zeros(max(len(classes), 1), own.shape[1])
    for k, members in _by_class(index):
        middle[k] = _median(deviation[members])
    at = index.clamp_min(0)
    return torch.cat([own[:, len(IMAGE_NAMES) :], deviation, middle[at], classes[at]], dim=1)


def _median(values: Tensor) -> Tensor:
    """Median (f,) of rows (m, f), the mean of the two in the middle where their number is even."""
    ordered = values.sort(dim=0).values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def _by_class(index: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The classes that have members, and the rows (m,) of these, ascending; a negative class (n,) is none."""
    order = torch.argsort(index, stable=True)
    classes, members = torch.unique_consecutive(index[order], return_counts=True)
    rows = order.split(members.tolist())
    yield from ((k, own) for k, own in zip(classes.tolist(), rows, strict=True) if k >= 0)


def junk_log_odds(evidence: Evidence, model: BoostedTrees | None = None, shard: Shard | None = None) -> Tensor:
    """Compute the log-odds that each particle is junk.

    Computed twice: first all particles define what is usual, then those more likely particles than junk; so a set of
    mostly junk is judged by the particles in it.

    Parameters
    ----------
    evidence : Evidence
        Measurements.
    model : BoostedTrees | None, optional
        Trees; by default those of the package.
    shard : Shard, optional
        The particles of which this rank follows the trees; by default all.

    Returns
    -------
    Tensor of shape (n,)
        Log-odds, float64.
    """
    model, shard = model or load_model(), shard or Shard.of_all(len(evidence.index))
    column = [NAMES.index(name) for name in model.names]
    usable = evidence.index >= 0

    def odds_by(typical: Tensor) -> Tensor:
        own = features(evidence, typical)[shard.rows, column]
        return with_prior_of_set(shard.gather(model.log_odds(own)), usable, model.prior)

    odds = odds_by(usable)
    typical = usable & (odds < 0)
    if int(typical.sum()) >= max(20, 0.1 * int(usable.sum())):
        odds = odds_by(typical)
    return odds


def with_prior_of_set(odds: Tensor, usable: Tensor, prior: float) -> Tensor:
    """Correct log-odds for a set with less junk than the training data.

    The share of junk that explains the odds of this set best, the fixed point of expectation maximisation, is found by
    bisection. It is only lowered:
    where much is junk the odds show it by themselves, and a share that rises on weak ones diverges.

    Parameters
    ----------
    odds : Tensor of shape (n,)
        Log-odds.
    usable : Tensor of shape (n,)
        True for usable images.
    prior : float
        Share of junk in the training data.

    Returns
    -------
    Tensor of shape (n,)
        Log-odds.

    References
    ----------
    Saerens, Latinne and Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori probabilities: a
    simple procedure", Neural Comput. 14, 21-41.
    """
    there = odds[usable] - _log_odds(prior)

    def rises(share: float) -> bool:
        """Whether a step of expectation maximisation from this share leads to a higher one."""
        return float(torch.sigmoid(there + _log_odds(share)).mean()) > share

    least, share = LEAST_SHARE, prior
    if len(there) and not rises(prior):
        # The likelihood is concave in the share: the steps change their direction where it is largest, and only there.
        for _ in range(BISECTIONS):
            middle = 0.5 * (least + share)
            least, share = (middle, share) if rises(middle) else (least, middle)
    return odds + _log_odds(share) - _log_odds(prior)


def _log_odds(probability: float) -> float:
    return math.log(probability / (1 - probability))
