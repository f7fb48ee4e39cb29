"""Division of the members of a class into structural states, at given poses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.analysis.aligned_spectra import AlignedSpectra
from ralib.analysis.component_em import expectation_maximisation, initial_components, ordered_and_shrunk
from ralib.analysis.latent_mixture import LatentMixture, ScoreLikelihood
from ralib.analysis.matched import MatchedParticles
from ralib.analysis.probabilistic_pca import masked_spectra
from ralib.types import ParticleSet, RalibError

MOST_STATES = 4
MOST_COMPONENTS = 6
EM_ROUNDS = 10
LEAST_MEMBERS = 60
FOLDS = 5
SIGNIFICANCE = 3.0
"""Held-out gain over one state, in its own standard errors, below which a class stays whole."""

LINE_SIGNIFICANCE = 3.0
"""The same over one state that varies along a line."""

LEAST_SEPARATION = (5.5, 6.3)
"""Distance of two states, in standard deviations within one, that a split must reach: in classes of fewer than
`MANY_MEMBERS`, and of more. In homogeneous classes it grows with the members, and with the range of views."""

MANY_MEMBERS = 300


@dataclass(frozen=True)
class StateSplit:
    """States of one class with n members.

    Attributes
    ----------
    n_states : int
        Number of states K; 1 where the class is not divided.
    responsibilities : ndarray of shape (n, K)
        Probability of each state for each member.
    averages : ndarray of shape (K, h, w)
        CTF-corrected averages, weighted by the responsibilities.
    halves : ndarray of shape (2, K, h, w)
        The same of even and odd members.
    difference : ndarray of shape (K, h, w)
        Each state less the class mean, from the components, and so with little noise.
    gain : float
        Held-out log likelihood of a particle over that of one state, of the states tested.
    gain_error : float
        Its standard error.
    gain_over_line : float
        The same gain over one state that varies along a line.
    gain_over_line_error : float
        Its standard error.
    separation : float
        Smallest distance of two states, in standard deviations within one.
    n_above_noise : int
        Number of components above the noise edge.
    contrast : ndarray of shape (n,)
        Contrast of each member.
    tried : list of dict
        The same figures for every number of states tested.
    """

    n_states: int
    responsibilities: np.ndarray
    averages: np.ndarray
    halves: np.ndarray
    difference: np.ndarray
    gain: float
    gain_error: float
    gain_over_line: float
    gain_over_line_error: float
    separation: float
    n_above_noise: int
    contrast: np.ndarray
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def labels(self) -> np.ndarray:
        """The most probable state (n,) of each member, from 0."""
        return self.responsibilities.argmax(axis=1)


SHOWN = ("gain", "gain_error", "gain_over_line", "gain_over_line_error", "separation")
"""Figures of the states tested that a `StateSplit` has."""


@dataclass(frozen=True)
class _Subspace:
    """Mean and components (1 + k, 2, d) with the contrast's standard deviation."""

    model: Tensor
    contrast_sd: float
    n_above: int
    contrast: Tensor


def split_states(
    particles: ParticleSet,
    n_states: int | str = "auto",
    *,
    radius_px: float | None = None,
    max_frequency_per_px: float = 0.35,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> StateSplit:
    """Divide the members of one class into states, or leave the class whole.

    The class's CTF-corrected mean and the components above the noise edge span a subspace, in which the members are a
    mixture of Gaussians with a common covariance, each member known with the precision that its CTF and noise allow. A
    division is accepted under four conditions: some component rises above the noise edge; states fitted to four fifths
    of the members give the last fifth a higher likelihood than one Gaussian does, and than one state that varies along
    a line does, each by three standard errors, which distinguishes states from a spread of views and from a continuous
    movement; and the states are `LEAST_SEPARATION` standard deviations apart.

    Parameters
    ----------
    particles : ParticleSet
        Members of one class, with poses (and CTF).
    n_states : int or str, default 'auto'
        Number of states to test for; 'auto' tests 2 to 4.
    radius_px : float, optional
        Radius of the mask, pixels; by default measured.
    max_frequency_per_px : float, default 0.35
        Band limit, cycles per pixel.
    seed : int, default 0
        Of initialisations and folds.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Returns
    -------
    StateSplit
        The states.

    Raises
    ------
    RalibError
        For fewer than 60 members, or a number of states that is not 1 to 4.
    """
    candidates = _candidates(n_states)
    if len(particles) < LEAST_MEMBERS:
        raise RalibError(f"{len(particles)} members are too few to divide: give a class of at least {LEAST_MEMBERS}")
    matched = MatchedParticles(particles, device=device)
    data = masked_spectra(matched, max_frequency_per_px, radius_px)
    whole = _subspace(data, None, seed)
    tried: list[dict[str, Any]] = []
    best: LatentMixture | None = None
    likelihood = score_likelihood(data, whole.model, whole.contrast_sd)
    if whole.n_above:
        one, line = _rivals(likelihood, seed)
        for k in candidates:
            mixture = LatentMixture.fit(likelihood, k, seed=seed)
            held_out = held_out_log_likelihood(likelihood, partial(LatentMixture.fit, n_states=k, seed=seed), seed)
            figures = _figures(mixture, held_out - one, held_out - line)
            figures["stands"] = _is_supported(figures, tried, len(data))
            tried.append(figures)
            if figures["stands"]:
                best = mixture
    return _result(matched, data, whole, likelihood, best, tried)


def _candidates(n_states: int | str) -> list[int]:
    if n_states == "auto":
        return list(range(2, MOST_STATES + 1))
    if not isinstance(n_states, int) or not 2 <= n_states <= MOST_STATES:
        raise RalibError(f"{n_states} states: give 2 to {MOST_STATES}, or auto")
    return [n_states]


def _rivals(likelihood: ScoreLikelihood, seed: int) -> tuple[Tensor, Tensor]:
    """Held-out log likelihood of each particle under one Gaussian, and under one state that varies along a line."""
    one = held_out_log_likelihood(likelihood, partial(LatentMixture.fit, n_states=1, seed=seed), seed)
    return one, held_out_log_likelihood(likelihood, partial(LatentMixture.fit_line, seed=seed), seed)


def _figures(mixture: LatentMixture, over_one: Tensor, over_line: Tensor) -> dict[str, Any]:
    root = len(over_one) ** 0.5
    return {
        "n_states": len(mixture.share),
        "gain": float(over_one.mean()),
        "gain_error": float(over_one.std() / root),
        "gain_over_line": float(over_line.mean()),
        "gain_over_line_error": float(over_line.std() / root),
        "separation": mixture.separation(),
        "least_share": float(mixture.share.min()),
    }


def _is_supported(figures: dict[str, Any], before: list[dict[str, Any]], n: int) -> bool:
    """Whether a split of n members is better than one state, and than the splits before it that stand."""
    rival = max((f["gain"] for f in before if f["stands"]), default=0.0)
    return bool(
        figures["gain"] - rival > SIGNIFICANCE * figures["gain_error"]
        and figures["gain_over_line"] > LINE_SIGNIFICANCE * figures["gain_over_line_error"]
        and figures["separation"] > LEAST_SEPARATION[n >= MANY_MEMBERS]
        and figures["least_share"] > 0.05
    )


def _subspace(data: AlignedSpectra, n_components: int | None, seed: int) -> _Subspace:
    """Components above the noise's edge, at least one."""
    generator = torch.Generator(device=data.matched.device).manual_seed(seed)
    start, spectrum, edge = initial_components(data, generator=generator)
    above = int((spectrum > edge).sum())
    k = n_components or min(max(above, 1), MOST_COMPONENTS)
    model, latent, contrast_sd = expectation_maximisation(data, start[: k + 1], max_iter=EM_ROUNDS)
    model, _ = ordered_and_shrunk(data, model, edge)
    return _Subspace(model, contrast_sd, above, latent.mean[:, 0])


def score_likelihood(data: AlignedSpectra, model: Tensor, contrast_sd: float) -> ScoreLikelihood:
    """Compute the likelihood of each particle as a function of its scores, marginalised over its contrast.

    Parameters
    ----------
    data : AlignedSpectra
        Matched filters.
    model : Tensor of shape (1 + k, 2, d)
        Mean and components.
    contrast_sd : float
        Standard deviation of the contrast.

    Returns
    -------
    ScoreLikelihood
        The likelihood.
    """
    k = len(model)
    row, column = torch.tril_indices(k, k)
    pairs = (model[row] * model[column]).sum(1) * data.weight
    lower = data.ctf2 @ pairs.T
    information = torch.empty(len(data), k, k, device=model.device)
    information[:, row, column] = lower
    information[:, column, row] = lower
    projection = data.matched.flatten(1) @ (model * data.weight).flatten(1).T
    prior = 1 / max(contrast_sd, 1e-3) ** 2
    own, cross = information[:, 0, 0] + prior, information[:, 1:, 0]
    rest = information[:, 1:, 1:] - cross[:, :, None] * cross[:, None, :] / own[:, None, None]
    return ScoreLikelihood(projection[:, 1:] - cross * ((projection[:, 0] + prior) / own)[:, None], rest)


def held_out_log_likelihood(
    likelihood: ScoreLikelihood, fit: Callable[[ScoreLikelihood], LatentMixture], seed: int
) -> Tensor:
    """Compute the log likelihood of each particle under a model fitted without it, by five-fold cross-validation.

    Parameters
    ----------
    likelihood : ScoreLikelihood
        Likelihood of the particles.
    fit : callable
        Fits a mixture to some of them.
    seed : int
        Of the folds.

    Returns
    -------
    Tensor of shape (n,)
        Log likelihood of each particle.
    """
    n, device = len(likelihood), likelihood.projection.device
    fold = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) % FOLDS).to(device)
    found = torch.zeros(n, device=device)
    for k in range(FOLDS):
        found[fold == k] = fit(likelihood[fold != k]).log_likelihood(likelihood[fold == k])
    return found


def _result(
    matched: MatchedParticles,
    data: AlignedSpectra,
    whole: _Subspace,
    likelihood: ScoreLikelihood,
    best: LatentMixture | None,
    tried: list[dict[str, Any]],
) -> StateSplit:
    one = torch.ones(len(data), 1, device=data.matched.device)
    responsibilities = one if best is None else best.responsibilities(likelihood)
    centre = torch.zeros(1, len(whole.model) - 1, device=one.device) if best is None else best.centre
    if best is not None:  # the largest state first
        order = responsibilities.sum(0).argsort(descending=True)
        responsibilities, centre = responsibilities[:, order], centre[order]
    away = (centre @ whole.model[1:].flatten(1)).unflatten(1, whole.model.shape[1:])
    averages, halves = state_averages(matched, responsibilities)
    shown = next((f for f in reversed(tried) if f["stands"]), tried[0] if tried else {})
    figures = {name: shown.get(name, 0.0) for name in SHOWN}
    return StateSplit(
        n_states=responsibilities.shape[1],
        responsibilities=responsibilities.cpu().numpy(),
        averages=averages.cpu().numpy(),
        halves=halves.cpu().numpy(),
        difference=data.plane.images(away).cpu().numpy(),
        **figures,
        n_above_noise=whole.n_above,
        contrast=whole.contrast.cpu().numpy(),
        tried=tried,
    )


def state_averages(matched: MatchedParticles, responsibilities: Tensor) -> tuple[Tensor, Tensor]:
    """Compute CTF-corrected averages of the states.

    Parameters
    ----------
    matched : MatchedParticles
        Particles.
    responsibilities : Tensor of shape (n, K)
        Probability of each state.

    Returns
    -------
    Tensor of shape (K, h, w)
        Averages.
    Tensor of shape (2, K, h, w)
        Averages of even and odd members.
    """
    box, k = matched.box, responsibilities.shape[1]
    planes = torch.zeros(2, k, box, box // 2 + 1, dtype=torch.complex64, device=matched.device)
    weights = torch.zeros(2, k, box, box // 2 + 1, device=matched.device)
    for index in matched.index_batches():
        spectrum, precision = matched.aligned(index)
        for half in (0, 1):
            rows = torch.from_numpy(np.flatnonzero(index % 2 == half)).to(matched.device)
            share = responsibilities[index[0] : index[-1] + 1][rows]
            planes[half] += torch.einsum("nk,nyx->kyx", share.to(planes.dtype), spectrum[rows])
            weights[half] += torch.einsum("nk,nyx->kyx", share, precision[rows])

    def images(plane: Tensor, weight: Tensor) -> Tensor:
        # The precision of one particle is added, which bounds the quotient at zeros of the CTF.
        floor = weight.mean(dim=(-2, -1), keepdim=True) / responsibilities.sum(0)[:, None, None].clamp_min(1)
        restored = plane / (weight + floor)
        image = torch.fft.irfft2(restored, s=(box, box), norm="ortho")
        return torch.fft.fftshift(image, dim=(-2, -1))

    return images(planes.sum(0), weights.sum(0)), torch.stack([images(planes[h], weights[h]) for h in (0, 1)])
