"""Correction of the eigenvalues of a sample covariance for noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def noise_edge(aspect: float) -> float:
    """Return the largest eigenvalue of the sample covariance of unit noise, for dimensions over samples.

    The edge of the distribution of Marchenko and Pastur.
    """
    return (1 + math.sqrt(aspect)) ** 2


def shrink_eigenvalues(eigenvalues: Tensor, aspect: float) -> Tensor:
    """Return signal variances from eigenvalues of signal plus unit noise: zero up to the noise edge.

    The shrinker that is optimal for the Frobenius norm of the covariance: the eigenvalue's bias is subtracted, and the
    rest is weighted by the squared cosine between the sample's eigenvector and the true one.

    Parameters
    ----------
    eigenvalues : Tensor of shape (k,)
        Eigenvalues of the covariance of whitened data.
    aspect : float
        Dimensions over samples.

    Returns
    -------
    Tensor of shape (k,)
        Signal variances.

    References
    ----------
    Donoho, Gavish and Johnstone 2018, "Optimal shrinkage of eigenvalues in the spiked covariance model", Ann. Stat. 46,
    1742-1778.
    """
    above = eigenvalues > noise_edge(aspect)
    shifted = eigenvalues + 1 - aspect
    spike = (shifted + (shifted.square() - 4 * eigenvalues).clamp_min(0).sqrt()) / 2 - 1
    spike = spike.clamp_min(1e-12)
    cosine2 = (1 - aspect / spike.square()) / (1 + aspect / spike)
    return torch.where(above, spike * cosine2.clamp_min(0), torch.zeros_like(eigenvalues))
