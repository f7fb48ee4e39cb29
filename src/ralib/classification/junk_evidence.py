"""Measurements that tell particles from junk, and the odds that follow from them.

An image by itself (`image_statistics`), the fit of a particle to its class (`class_fit`), and the class averages
(`class_statistics`) are measured; a small model that was fitted to simulated sets turns them into the probability that
a particle is junk (`junk_model`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ralib.classification.class_fit import class_fit
from ralib.classification.class_statistics import class_statistics
from ralib.classification.junk_model import OWN_NAMES, SCALAR_NAMES, Evidence, deviations, junk_log_odds
from ralib.classification.model import Model
from ralib.classification.residuals import ring_crosses
from ralib.classification.sharding import Shard
from ralib.classification.state import State
from ralib.classification.typical_class import typical_power
from ralib.classification.validation import Stability
from ralib.classification.whitening import WhitenedParticles
from ralib.types import Poses

FINE_DETAIL = 3.5
"""Details across the particle from which on they count as fine: coarser ones a blob has too."""

WORST = 10.0
"""No particle's quality, a logarithm of odds, lies beyond."""

SURELY = 0.9
"""Probability from which on a particle counts as junk without doubt, and is shown in a class of junk."""

PROBABLY = 0.5
"""Probability from which on a particle leaves the averages that are made: one that was true costs them little, one that
was junk makes classes of its own. `bench/junk_aside.py` compares both."""

FAR_TOO_STRONG = 4.5
"""Standard deviations of the first of CAUSES from which on it counts without the learned model."""

CAUSES = {
    "far stronger than the others where detail is coarse: bead, ice, carbon": (
        "power_inside_1", "power_inside_2", "power_outside_1", "darkest_inside", "darkest_outside",
    ),
    "more than one particle, or an edge, within the mask": (
        "near_centre", "second_near", "left_inside_1", "left_outside_1", "left_outside_2",
    ),
    "little or nothing at the centre of the box: empty, or off centre": ("-at_centre", "-log_fit", "-log_explained"),
    "fits its class badly": ("-missing_1", "-missing_2", "-share_1", "-share_2", "-posterior", "-agreement"),
}  # fmt: skip
"""What is wrong with junk, in words, and the features whose deviation (negative: in the other direction) says so."""


def measure(
    model: Model, state: State, references: Tensor, poses: Poses, stability: Stability, image: Tensor
) -> tuple[Evidence, dict[str, np.ndarray]]:
    """Measure what the junk model looks at, and the figures of the particles.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Final poses and classes.
    references : Tensor of shape (k, r, m)
        References of the last iteration, masked.
    poses : Poses
        Poses of all particles, on the model's device.
    stability : Stability
        Result of the validation.
    image : Tensor of shape (n, f)
        `image_statistics` of the particles.

    Returns
    -------
    Evidence
        What the junk model looks at.
    dict of ndarray of shape (n,)
        Figures of the particles by name.
    """
    whitened, everyone = model.particles, model.shard.gather
    particles = {
        "posterior": everyone(state.posterior),
        "fit": poses.score,
        "scale": everyone(state.scale),
        "explained": everyone(explained_ratio(whitened, state, references)),
        "quality": torch.zeros_like(poses.score),  # keeps its column; filled by the verdict
        "detail": everyone(detail_ratio(model, state, references)),
        "off_centre": everyone(stability.away_px / whitened.particle_radius_px),
        "agreement": everyone(stability.agreement),
    }
    evidence = Evidence(
        image=everyone(image),
        fit=everyone(class_fit(model, state, references.shape[1])),
        scalars=_scalars(particles),
        classes=class_statistics(model, state),
        index=poses.class_index,
    )
    return evidence, {name: values.double().cpu().numpy() for name, values in particles.items()}


def _scalars(particles: dict[str, Tensor]) -> Tensor:
    """Columns (n, 6) of `junk_model.SCALAR_NAMES`."""
    logs = torch.log1p(particles["fit"].clamp_min(0)), torch.log(particles["explained"].clamp_min(0.02))
    return torch.stack([*logs, *(particles[name] for name in SCALAR_NAMES[2:])], dim=1).float()


def explained_ratio(whitened: WhitenedParticles, state: State, references: Tensor) -> Tensor:
    """Return the square root of a particle's log-likelihood over that of a typical particle with its CTF; 1 is typical.

    Parameters
    ----------
    whitened : WhitenedParticles
        The particles.
    state : State
        Poses, classes and fits.
    references : Tensor of shape (k, r, m)
        References of the last iteration, masked.

    Returns
    -------
    Tensor of shape (n,)
        Ratios.
    """
    typical = typical_power(references, state.members)
    expected = 0.5 * state.mean_scale**2 * (whitened.spectra.power[:, : len(typical)] @ typical)
    best = state.fit.gather(1, state.class_index[:, None])[:, 0]
    return torch.sqrt(best.clamp_min(0) / expected.clamp_min(1e-12))


def detail_ratio(model: Model, state: State, references: Tensor) -> Tensor:
    """Return the fine detail a particle shares with its class over that expected of a typical class; 1 is typical.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Poses, classes and fits.
    references : Tensor of shape (k, r, m)
        References of the last iteration, masked.

    Returns
    -------
    Tensor of shape (n,)
        Ratios.
    """
    whitened, rings = model.particles, references.shape[1]
    first = min(whitened.rings_for(FINE_DETAIL), rings - 1)
    expected = whitened.spectra.power[:, first:rings] @ typical_power(references, state.members)[first:]
    shared = ring_crosses(model, references, state, 512)[:, first:].sum(1)
    return shared / (expected * state.mean_scale).clamp_min(1e-12)


def junk_odds(evidence: Evidence, stability: Stability, shard: Shard) -> Tensor:
    """Compute the log-odds of being junk, WORST for what cannot be used and where nothing is believed.

    Parameters
    ----------
    evidence : Evidence
        The measurements.
    stability : Stability
        Result of the validation.
    shard : Shard
        Distribution of the particles over ranks.

    Returns
    -------
    Tensor of shape (n,)
        Log-odds, float64.
    """
    odds = torch.maximum(junk_log_odds(evidence, shard=shard), _far_too_strong(evidence)).clamp(-WORST, WORST)
    return torch.where((evidence.index >= 0) & stability.believable, odds, WORST)


def taken_for_junk(evidence: Evidence, stability: Stability, odds: Tensor, least: float) -> Tensor:
    """Return which particles (n,) are junk with more than a probability; none where nothing is believed.

    Parameters
    ----------
    evidence : Evidence
        The measurements.
    stability : Stability
        Result of the validation.
    odds : Tensor of shape (n,)
        Result of `junk_odds`.
    least : float
        The probability, such as SURELY.

    Returns
    -------
    Tensor of shape (n,)
        True for junk.
    """
    return (evidence.index >= 0) & (odds > math.log(least / (1 - least))) & stability.believable


def _strengths(evidence: Evidence, typical: Tensor) -> Tensor:
    """How far (causes, n) each of CAUSES sets a particle apart, in robust standard deviations of the typical ones."""
    column = {name: i for i, name in enumerate(name for names in CAUSES.values() for name in names)}
    own = evidence.own[:, [OWN_NAMES.index(name.lstrip("-")) for name in column]]
    deviation = deviations(own, typical & (evidence.index >= 0)).T.contiguous()
    strengths = []
    for names in CAUSES.values():
        signed = [(-1 if name.startswith("-") else 1) * deviation[column[name]] for name in names]
        largest, second = torch.maximum(*signed[:2]), torch.minimum(*signed[:2])
        for more in signed[2:]:
            largest, second = torch.maximum(largest, more), torch.maximum(second, torch.minimum(largest, more))
        strengths.append(second)  # one feature alone may err
    return torch.stack(strengths)


def _far_too_strong(evidence: Evidence) -> Tensor:
    """Return the least log-odds (n,) of being junk for images far stronger than the others, however well they fit.

    No true particle of the sets that the model was fitted on lies 4.5 standard deviations out.
    """
    strength = _strengths(evidence, evidence.index >= 0)[0].double() - FAR_TOO_STRONG
    return torch.where(strength > 0, strength, -torch.inf)


def oddness(evidence: Evidence) -> Tensor:
    """Return by how many standard deviations (n,) the worst of CAUSES applies: rules without a fit, for comparison."""
    return _strengths(evidence, evidence.index >= 0).amax(0)


def class_causes(evidence: Evidence, junk: np.ndarray, index: np.ndarray, n_classes: int) -> list[str]:
    """Return for each class what sets its junk apart, in words of CAUSES; '' where there is none.

    Parameters
    ----------
    evidence : Evidence
        The measurements.
    junk : ndarray of shape (n,)
        Probability of being junk.
    index : ndarray of shape (n,)
        Classes as they are written.
    n_classes : int
        Number of classes.

    Returns
    -------
    list of str
        Words.
    """
    typical, words = torch.from_numpy(junk < 0.5).to(evidence.index.device), list(CAUSES)
    main, bad = _strengths(evidence, typical).cpu().numpy().argmax(0), (index >= 0) & (junk > 0.5)
    times = np.bincount(index[bad] * len(words) + main[bad], minlength=n_classes * len(words))
    return [words[of_class.argmax()] if of_class.any() else "" for of_class in times.reshape(n_classes, len(words))]
