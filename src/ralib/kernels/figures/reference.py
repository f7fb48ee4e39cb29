"""The figures of an iteration in plain PyTorch: their definition, and the oracle of the Triton forms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ralib.kernels.complex_numbers import squared

PoseFields = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""In-plane rotation (n,), degrees, origin (n, 2), pixels, mirror (n,), class (n,), -1 for none, and score (n,)."""


def pose_sums(
    now: PoseFields, before: PoseFields | None, counted: Tensor | None, radius_px: float, n_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the scores of particles in classes, and what changed since the iteration before.

    Parameters
    ----------
    now : PoseFields
        Poses of n particles.
    before : PoseFields or None
        Their poses before, where there are any.
    counted : Tensor of shape (n,) or None
        Particles whose scores count; by default all.
    radius_px : float
        Radius of the particle's disc, pixels.
    n_classes : int
        Number of classes k.

    Returns
    -------
    Tensor of shape (4,)
        Sums, float64, of the score; of the pixel error, among those that kept class and mirror; of 1 for another class,
        among those that have one in both; of 1 for another mirror, among those that kept their class.
    Tensor of shape (4,)
        Of how many particles each is, float64.
    Tensor of shape (k,)
        Members of each class, float64.
    """
    *_, mirror, index, score = now
    assigned = index >= 0
    if before is None:
        nothing = torch.zeros_like(mirror)
        pairs = [(score, nothing)] * 3
    else:
        both = assigned & (before[3] >= 0)
        kept = both & (index == before[3])
        turned = mirror != before[2]
        pairs = [(pixel_error(now, before, radius_px), kept & ~turned), (~kept, both), (turned, kept)]
    pairs.insert(0, (score, assigned if counted is None else assigned & counted))
    values, where = (torch.stack(part) for part in zip(*((v.double(), w) for v, w in pairs), strict=True))
    members = torch.zeros(n_classes + 1, dtype=torch.float64, device=score.device)
    members.index_add_(0, index + 1, torch.ones_like(score, dtype=torch.float64))
    return torch.where(where, values, 0.0).sum(1), where.sum(1).double(), members[1:]


def pixel_error(now: PoseFields, before: PoseFields, radius_px: float) -> Tensor:
    """Compute the root mean square displacement of a particle's disc between two poses.

    Exact for a disc of radius R: |origin change|^2 + R^2 (1 - cos(angle)), about the particle's own centre.

    Parameters
    ----------
    now, before : PoseFields
        Poses of n particles.
    radius_px : float
        Radius R of the disc, pixels.

    Returns
    -------
    Tensor of shape (n,)
        Pixels; NaN where the mirror changed.
    """
    turned = 1.0 - torch.cos(torch.deg2rad(now[0] - before[0]))
    moved = (now[1] - before[1]).square().sum(-1)
    rms = torch.sqrt(moved + radius_px**2 * turned)
    return torch.where(now[2] == before[2], rms, math.nan)


def ring_sums(values: Tensor, ring: Tensor, weight: Tensor) -> Tensor:
    """Sum real values (..., n, m) of half transforms ring by ring; see `ring_correlation`.

    Parameters
    ----------
    values : Tensor of shape (..., n, m)
        Values.
    ring : Tensor of shape (n, m)
        Ring of each sample.
    weight : Tensor of shape (m,)
        How many samples of the full transform a column stands for.

    Returns
    -------
    Tensor of shape (..., m)
        Sums, float64.
    """
    weighted = (values.double() * weight).flatten(-2)
    sums = torch.zeros(*values.shape[:-2], len(weight) + 1, dtype=torch.float64, device=values.device)
    return sums.index_add_(-1, ring.flatten(), weighted)[..., : len(weight)]


def ring_correlation(spectra: Tensor, ring: Tensor, weight: Tensor) -> Tensor:
    """Correlate two sets of half transforms ring by ring.

    Parameters
    ----------
    spectra : Tensor of shape (2, k, n, m)
        Half transforms of both sets, as of rfft2.
    ring : Tensor of shape (n, m)
        Ring of each sample, int64; those from m on count nowhere.
    weight : Tensor of shape (m,)
        How many samples of the full transform a column stands for, float64.

    Returns
    -------
    Tensor of shape (k, m)
        Correlation, of the type of the real parts; a ring without power counts as 0.
    """
    products = (spectra[0] * spectra[1].conj()).real, *squared(spectra)
    cross, *own = ring_sums(torch.stack(products), ring, weight)
    power = own[0] * own[1]
    return torch.where(power > 0, cross / torch.sqrt(power).clamp_min(1e-300), 0.0).to(spectra.real.dtype)
