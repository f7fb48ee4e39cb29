"""Particles of the same view: nearest neighbours by features invariant to in-plane rotation, then aligned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.analysis.covariance_wiener import CovarianceWienerFilter
from ralib.analysis.pca import krylov_spectrum
from ralib.runtime.devices import computing_device
from ralib.types import Poses, RalibError

FEATURES = 300
TRIPLES = 4000
CANDIDATES_A_NEIGHBOUR = 16
BLOCK = 256
WORKING_NUMBERS = 1 << 25
EXHAUSTIVE_UP_TO = 4000
ROUNDS = 2
AVERAGED = 8


@dataclass(frozen=True)
class Neighbours:
    """The k nearest particles of each of n, in order of decreasing correlation.

    Attributes
    ----------
    index : ndarray of shape (n, k)
        Numbers of the neighbours.
    psi_deg : ndarray of shape (n, k)
        Rotation that maps the neighbour onto the particle, applied first, degrees.
    mirror : ndarray of shape (n, k)
        Whether the neighbour is mirrored after that rotation.
    correlation : ndarray of shape (n, k)
        Correlation of the denoised images.
    """

    index: np.ndarray
    psi_deg: np.ndarray
    mirror: np.ndarray
    correlation: np.ndarray

    def poses_of(self, particle: int) -> Poses:
        """Return the poses of the neighbours of one particle in its frame."""
        return Poses.identity(self.index.shape[1]).replace(
            psi_deg=torch.from_numpy(self.psi_deg[particle]).float(),
            mirror=torch.from_numpy(self.mirror[particle]),
        )


def find_neighbours(
    scores: np.ndarray,
    order: np.ndarray,
    n_neighbours: int = 50,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Neighbours:
    """Find the particles of the nearest views from steerable scores, as `CovarianceWienerFilter.transform` gives them.

    Up to 4,000 particles all pairs are compared over all in-plane rotations and reflections. Beyond, candidates are
    found first by the bispectrum (Zhao and Singer 2014) and then aligned. Each further round repeats the comparison
    with particles averaged with their nearest neighbours.

    Parameters
    ----------
    scores : ndarray of shape (n, c)
        Complex scores over their standard deviations, so that detail counts as much as the outline.
    order : ndarray of shape (c,)
        Their angular orders, from 0.
    n_neighbours : int, default 50
        Number of neighbours of each particle.
    rounds : int, default ROUNDS
        Number of comparisons; 1 does not average.
    seed : int, default 0
        Of the random triples of the bispectrum.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Returns
    -------
    Neighbours
        The neighbours.

    References
    ----------
    Zhao and Singer 2014, "Rotationally invariant image representation for viewing direction classification in cryo-EM",
    J. Struct. Biol. 186, 153-166, doi 10.1016/j.jsb.2014.03.003.
    """
    n = len(scores)
    if not 1 <= n_neighbours < n:
        raise RalibError(f"{n_neighbours} neighbours among {n} particles: give 1 to {n - 1}")
    where = computing_device(device)
    orders = torch.from_numpy(np.asarray(order)).to(where)
    current = torch.from_numpy(np.asarray(scores)).to(where, torch.complex64)
    found: Neighbours | None = None
    for _ in range(max(1, rounds)):
        if found is not None:
            current = averaged_with_neighbours(current, orders, found, min(AVERAGED, n_neighbours))
        unit = _unit(current, orders)
        candidates = None
        if n > EXHAUSTIVE_UP_TO:
            features = bispectrum_features(unit, orders, seed=seed)
            candidates = _nearest(features, min(n - 1, CANDIDATES_A_NEIGHBOUR * n_neighbours))
        found = _aligned(unit, orders, candidates, n_neighbours)
    assert found is not None
    return found


def averaged_with_neighbours(scores: Tensor, order: Tensor, found: Neighbours, count: int) -> Tensor:
    """Average the scores of particles with those of their nearest neighbours, weighted by correlation.

    Parameters
    ----------
    scores : Tensor of shape (n, c)
        Complex scores.
    order : Tensor of shape (c,)
        Their angular orders.
    found : Neighbours
        The neighbours.
    count : int
        Number of neighbours averaged.

    Returns
    -------
    Tensor of shape (n, c)
        Scores.
    """
    total = scores.clone()
    weights = torch.ones(len(scores), 1, device=scores.device)
    for j in range(count):
        other = scores[torch.from_numpy(found.index[:, j]).to(scores.device)]
        psi = torch.from_numpy(np.deg2rad(found.psi_deg[:, j])).to(scores.device, torch.float32)
        other = other * torch.polar(torch.ones_like(psi)[:, None], -psi[:, None] * order)
        mirrored = torch.from_numpy(found.mirror[:, j]).to(scores.device)[:, None]
        other = torch.where(mirrored, _mirrored(other, order), other)
        weight = torch.from_numpy(found.correlation[:, j]).to(scores.device, torch.float32).clamp_min(0)[:, None]
        total = total + weight * other
        weights = weights + weight
    return total / weights


def _mirrored(scores: Tensor, order: Tensor) -> Tensor:
    """Scores of images with x turned to -x: theta becomes pi - theta."""
    return torch.where(order % 2 == 0, 1.0, -1.0) * scores.conj()


def _unit(scores: Tensor, order: Tensor) -> Tensor:
    """Scores so scaled that each image has length 1 and an inner product is the real part of a plain one."""
    weight = torch.where(order == 0, 1.0, 2.0).sqrt()
    weighted = scores * weight
    return weighted / weighted.abs().square().sum(1, keepdim=True).sqrt().clamp_min(1e-12)


def _aligned(unit: Tensor, order: Tensor, candidates: Tensor | None, count: int) -> Neighbours:
    """The best of all particles, or of each one's candidates (n, m), over rotations and reflections."""
    n, device = len(unit), unit.device
    angles = angle_count(int(order.max()))
    mirrored = _mirrored(unit, order)
    parts: list[tuple[Tensor, ...]] = []
    width = n if candidates is None else candidates.shape[1]
    block = max(1, min(BLOCK, WORKING_NUMBERS // (width * angles)))
    for start in range(0, n, block):
        rows = torch.arange(start, min(start + block, n), device=device)
        chosen = None if candidates is None else candidates[rows]
        best, turn = _best_angle(unit[rows], unit, order, chosen, angles)
        other, other_turn = _best_angle(unit[rows], mirrored, order, chosen, angles)
        flipped = other > best
        best, turn = torch.where(flipped, other, best), torch.where(flipped, other_turn, turn)
        if chosen is None:
            best[torch.arange(len(rows), device=device), rows] = -2.0
        top = best.topk(count, dim=1)
        which = top.indices if chosen is None else chosen.gather(1, top.indices)
        parts.append((which, turn.gather(1, top.indices), flipped.gather(1, top.indices), top.values))
    index, turns, mirror, correlation = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    # Here a mirrored neighbour is turned after it is mirrored; a pose turns first, which runs the other way.
    psi = turns * (360.0 / angles)
    return Neighbours(index, np.where(mirror, -psi, psi) % 360.0, mirror, correlation)


def angle_count(highest_order: int) -> int:
    """Return the number of angles at which rotations are compared: twice the band limit, a power of two."""
    return 1 << max(5, int(np.ceil(np.log2(2 * highest_order + 2))))


def _best_angle(
    mine: Tensor, others: Tensor, order: Tensor, candidates: Tensor | None, angles: int
) -> tuple[Tensor, Tensor]:
    """Return the largest correlation (rows, others) over rotations of the others, and the angle's number.

    Rotating by psi multiplies a score of order m by exp(-i m psi): the correlation is a Fourier series.
    """
    width = len(others) if candidates is None else candidates.shape[1]
    series = torch.zeros(len(mine), width, angles // 2 + 1, dtype=torch.complex64, device=mine.device)
    for m in torch.unique(order).tolist():
        columns = (order == m).nonzero()[:, 0]
        if candidates is None:
            product = mine[:, columns] @ others[:, columns].conj().T
        else:
            product = torch.einsum("rc,rjc->rj", mine[:, columns], others[:, columns][candidates].conj())
        series[:, :, m] = product if m == 0 else product / 2
    value, turn = torch.fft.irfft(series, n=angles, dim=2, norm="forward").max(dim=2)
    return value, turn


def bispectrum_features(unit: Tensor, order: Tensor, *, seed: int = 0) -> Tensor:
    """Compute features invariant to in-plane rotation: leading components of a random part of the bispectrum.

    A product a_p a_q conj(a_r) of scores whose orders satisfy m_p + m_q = m_r is invariant. Amplitudes enter by their
    cube roots, so that the strongest scores do not dominate.

    Parameters
    ----------
    unit : Tensor of shape (n, c)
        Complex scores of unit norm.
    order : Tensor of shape (c,)
        Their angular orders.
    seed : int, default 0
        Of the random triples.

    Returns
    -------
    Tensor of shape (n, f)
        Features.
    """
    rng = np.random.default_rng(seed)
    orders = order.cpu().numpy()
    power = unit.abs().square().mean(0).cpu().numpy()
    chosen = rng.choice(len(orders), size=(4 * TRIPLES, 2), p=power / power.sum())
    triples = []
    for p, q in chosen:
        partners = np.flatnonzero(orders == orders[p] + orders[q])
        if len(partners):
            triples.append((p, q, rng.choice(partners, p=power[partners] / power[partners].sum())))
    table = torch.from_numpy(np.unique(np.array(triples), axis=0)[:TRIPLES]).to(unit.device)
    amplitude = unit.abs().clamp_min(1e-12)
    tamed = unit / amplitude ** (2 / 3)
    rows = []
    for start in range(0, len(unit), BLOCK):
        part = tamed[start : start + BLOCK]
        triple = part[:, table[:, 0]] * part[:, table[:, 1]] * part[:, table[:, 2]].conj()
        rows.append(torch.cat([triple.real, triple.imag], dim=1))
    whole = torch.cat(rows)
    whole = whole - whole.mean(0)
    k = min(FEATURES, len(whole) - 1, whole.shape[1])
    generator = torch.Generator(device=unit.device).manual_seed(seed)
    axes = krylov_spectrum(_Rows(whole), whole.new_zeros(whole.shape[1]), k, n_iter=3, generator=generator).axes
    return torch.nn.functional.normalize(whole @ axes.T, dim=1)


class _Rows:
    def __init__(self, rows: Tensor) -> None:
        self.n_rows, self._rows = len(rows), rows

    def chunks(self) -> Any:
        yield self._rows


def _nearest(features: Tensor, count: int) -> Tensor:
    """The nearest others (n, count) by inner product."""
    found = []
    for start in range(0, len(features), BLOCK):
        similarity = features[start : start + BLOCK] @ features.T
        own = torch.arange(start, start + len(similarity), device=features.device)
        similarity[torch.arange(len(similarity), device=features.device), own] = -2.0
        found.append(similarity.topk(count, dim=1).indices)
    return torch.cat(found)


def standardised_scores(model: CovarianceWienerFilter, scores: np.ndarray) -> np.ndarray:
    """Divide scores by the standard deviation of each component, as `find_neighbours` needs them.

    Parameters
    ----------
    model : CovarianceWienerFilter
        The fitted filter.
    scores : ndarray of shape (n, k)
        Complex scores.

    Returns
    -------
    ndarray of shape (n, k)
        Standardised scores.
    """
    variance = model.explained_variance_ / np.where(model.order_ == 0, 1.0, 2.0)
    return scores / np.sqrt(variance)
