"""Figures of merit of a result: pose errors and their lower bound, balance and purity of classes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ralib.conventions import wrap_deg
from ralib.types import Poses


def effective_classes(sizes: Tensor) -> float:
    """Return exp of the entropy of class sizes (k,): k for equal classes, 1 for a single one, 0 for none."""
    share = sizes.double() / sizes.sum().clamp_min(1)
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum())) if len(share) else 0.0


def pose_bound(reference: Tensor, noise_sd: float, outer_radius: float | None = None) -> tuple[float, float, float]:
    """Compute the Cramer-Rao lower bound of the pose error of one particle.

    The Fisher information is J^T J / sd^2 with J the image's derivatives by angle, x and y.

    Parameters
    ----------
    reference : Tensor of shape (n, n)
        The noiseless particle.
    noise_sd : float
        Standard deviation of the white noise of a pixel.
    outer_radius : float, optional
        Only pixels within this radius count, as in a search inside a mask.

    Returns
    -------
    tuple of float
        Standard deviations of angle in degrees, and of x and y in pixels.
    """
    n = reference.shape[-1]
    image = reference.double()
    spectrum = torch.fft.fft2(image)
    k = torch.fft.fftfreq(n, dtype=torch.float64, device=image.device)
    if n % 2 == 0:
        k[n // 2] = 0.0  # the Nyquist column has no odd derivative
    dx = torch.fft.ifft2(spectrum * (2j * math.pi * k[None, :])).real
    dy = torch.fft.ifft2(spectrum * (2j * math.pi * k[:, None])).real
    c = torch.arange(n, dtype=torch.float64, device=image.device) - n // 2
    x, y = c[None, :], c[:, None]
    jacobian = torch.stack([x * dy - y * dx, dx, dy])
    if outer_radius is not None:
        jacobian = jacobian * (x**2 + y**2 <= outer_radius**2)
    rows = jacobian.flatten(1)
    covariance = torch.linalg.inv(rows @ rows.T) * noise_sd**2
    sd = covariance.diagonal().sqrt()
    return math.degrees(float(sd[0])), float(sd[1]), float(sd[2])


def median_of_bound(bound: tuple[float, float, float]) -> tuple[float, float]:
    """Return the median errors of an estimator that meets the bound.

    Half the interquartile range of the normal distribution for the angle; for the shift the median length of a normal
    vector of two unequal standard deviations, by Monte Carlo with a fixed seed.

    Parameters
    ----------
    bound : tuple of float
        Result of `pose_bound`.

    Returns
    -------
    tuple of float
        Median absolute angle error in degrees, and median shift error in pixels.
    """
    angle, x, y = bound
    normal = np.random.default_rng(0).standard_normal((200_000, 2)) * np.array([x, y])
    return 0.674489750 * angle, float(np.median(np.hypot(normal[:, 0], normal[:, 1])))


def spread_within_classes(poses: Poses, truth: Poses, n_classes: int) -> tuple[Tensor, Tensor]:
    """Compute the pose errors of particles after removing each class's common offset.

    A class average may be rotated or shifted against the true view as a whole. Mirrors must agree already.

    Parameters
    ----------
    poses : Poses
        Poses of n particles.
    truth : Poses
        Their true poses.
    n_classes : int
        Number of classes.

    Returns
    -------
    Tensor of shape (n,)
        Angle error, degrees; NaN for particles without a class.
    Tensor of shape (n,)
        Shift error, pixels; NaN for particles without a class.
    """
    angle = torch.full_like(poses.psi_deg, float("nan"))
    shift = torch.full_like(poses.psi_deg, float("nan"))
    for k in range(n_classes):
        member = torch.nonzero(poses.class_index == k)[:, 0]
        if len(member) == 0:
            continue
        difference = torch.deg2rad(poses.psi_deg[member] - truth.psi_deg[member])
        mean = torch.atan2(torch.sin(difference).mean(), torch.cos(difference).mean())
        angle[member] = wrap_deg(torch.rad2deg(difference - mean)).abs()
        moved = poses.origin_xy_px[member] - truth.origin_xy_px[member]
        shift[member] = torch.linalg.vector_norm(moved - moved.median(dim=0).values, dim=-1)
    return angle, shift


def contingency(labels: Tensor, truth: Tensor) -> Tensor:
    """Count particles by class and true class.

    Parameters
    ----------
    labels : Tensor of shape (n,)
        Classes from 0; negative ones are left out.
    truth : Tensor of shape (n,)
        True classes from 0; negative ones are left out.

    Returns
    -------
    Tensor of shape (k, t)
        Counts.
    """
    keep = (labels >= 0) & (truth >= 0)
    labels, truth = labels[keep].long(), truth[keep].long()
    rows, columns = int(labels.max()) + 1, int(truth.max()) + 1
    return torch.bincount(labels * columns + truth, minlength=rows * columns).view(rows, columns)


def purity(labels: Tensor, truth: Tensor) -> float:
    """Return the share of particles that belong to the most frequent true class of their class.

    Parameters
    ----------
    labels : Tensor of shape (n,)
        Classes from 0.
    truth : Tensor of shape (n,)
        True classes from 0.

    Returns
    -------
    float
        0 to 1.
    """
    table = contingency(labels, truth)
    return float(table.max(dim=1).values.sum() / table.sum())


def adjusted_rand_index(labels: Tensor, truth: Tensor) -> float:
    """Return the agreement of two partitions: 1 for the same partition, 0 on average by chance.

    Parameters
    ----------
    labels : Tensor of shape (n,)
        Classes from 0, in any order; particles below 0 are left out.
    truth : Tensor of shape (n,)
        True classes from 0, of any number.

    Returns
    -------
    float
        The index.

    References
    ----------
    Hubert and Arabie 1985, "Comparing partitions", J. Classification 2, 193-218.
    """
    table = contingency(labels, truth).double()

    def pairs(counts: Tensor) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    total = pairs(table.sum())
    expected = rows * columns / total if total else 0.0
    span = (rows + columns) / 2 - expected
    return 1.0 if span == 0 else (both - expected) / span
