"""The number of components that the data support."""

from __future__ import annotations

import math

from torch import Tensor


def gic_rank(variance: Tensor, n_samples: int, *, at_most: int | None = None) -> int:
    """Return the number of components by the generalised information criterion, at least 1.

    The criterion of Hung, Huang and Ing, which 2SDR uses in its second stage. Unlike BIC it counts the parameters
    without assuming equal noise eigenvalues; for equal ones both agree.

    Parameters
    ----------
    variance : Tensor of shape (p,)
        All eigenvalues of the sample covariance, descending.
    n_samples : int
        Number of images.
    at_most : int, optional
        Largest rank.

    Returns
    -------
    int
        The rank.

    References
    ----------
    Hung, Huang and Ing 2020, "On a generalized information criterion for rank selection in PCA".
    """
    scale = variance[0].clamp_min(1e-300)
    values = (variance.double() / scale).clamp_min(1e-12)
    p = len(values)
    candidates = range(1, max(2, min(at_most or p, p - 1, n_samples - 1) + 1)) if p > 1 else range(1, 2)
    tail = values.flip(0).cumsum(0).flip(0)
    best, best_rank = math.inf, 1
    for r in candidates:
        if r >= p:
            break
        criterion = _gic(values, float(tail[r]), r, n_samples)
        if criterion < best:
            best, best_rank = criterion, r
    return best_rank


def _gic(values: Tensor, tail_sum: float, r: int, n_samples: int) -> float:
    p = len(values)
    signal, noise = values[:r], values[r:]
    sigma2 = tail_sum / (p - r)
    gap = (signal[:, None] - noise[None, :]).clamp_min(1e-12)
    coupling = (noise[None, :] * (signal[:, None] - sigma2) / (sigma2 * gap)).sum()
    spread = noise.square().mean() / sigma2**2
    parameters = r * (r - 1) / 2 + r + float(coupling + spread)
    fit = float(signal.log().sum()) + (p - r) * math.log(sigma2)
    return fit + math.log(n_samples) / n_samples * parameters
