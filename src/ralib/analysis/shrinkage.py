"""Eigenvalues of a sample covariance, freed from what noise adds to them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def noise_edge(aspect: float) -> float:
    """Largest eigenvalue of the sample covariance of unit noise (Marchenko and Pastur); aspect: dimensions a sample."""
    return (1 + math.sqrt(aspect)) ** 2


def shrink_eigenvalues(eigenvalues: Tensor, aspect: float) -> Tensor:
    """Signal variances for eigenvalues of signal plus unit noise: zero up to the noise's edge.

    The shrinker that is optimal for the Frobenius norm of the covariance (Donoho, Gavish and Johnstone 2018): the
    eigenvalue's bias is taken off, and what remains is weighted by the squared cosine between the sample's eigenvector
    and the true one.

    Parameters
    ----------
    eigenvalues : (k,) of the covariance of whitened data
    aspect : dimensions over samples
    """
    above = eigenvalues > noise_edge(aspect)
    shifted = eigenvalues + 1 - aspect
    spike = (shifted + (shifted.square() - 4 * eigenvalues).clamp_min(0).sqrt()) / 2 - 1
    spike = spike.clamp_min(1e-12)
    cosine2 = (1 - aspect / spike.square()) / (1 + aspect / spike)
    return torch.where(above, spike * cosine2.clamp_min(0), torch.zeros_like(eigenvalues))
