"""Numbers that judge a result: ring correlation, resolution, pose errors, their lower bound, balance."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from ralib.conventions import pose_error, wrap_deg
from ralib.types import Poses


@functools.lru_cache(maxsize=8)
def ring_index(box: int, device: torch.device | str = "cpu") -> Tensor:
    """Ring 0..n//2 of every sample of rfft2's layout (n, n//2+1); the corners beyond get n//2+1."""
    fy = torch.fft.fftfreq(box, device=device) * box
    fx = torch.fft.rfftfreq(box, device=device) * box
    radius = torch.sqrt(fy[:, None] ** 2 + fx[None, :] ** 2)
    return torch.clamp(torch.round(radius), max=box // 2 + 1).long()


@functools.lru_cache(maxsize=8)
def _hermitian_weight(box: int, device: torch.device | str) -> Tensor:
    """How many samples of the full transform each column of the half transform stands for: (n//2+1,)."""
    weight = torch.full((box // 2 + 1,), 2.0, device=device, dtype=torch.float64)
    weight[0] = 1.0
    if box % 2 == 0:
        weight[-1] = 1.0
    return weight


def ring_sums(values: Tensor) -> Tensor:
    """Sums over Fourier rings of the full plane: real (..., n, n//2+1) -> float64 (..., n//2+1)."""
    box = values.shape[-2]
    ring = ring_index(box, values.device).flatten()
    weighted = (values.double() * _hermitian_weight(box, values.device)).flatten(-2)
    sums = torch.zeros(*values.shape[:-2], box // 2 + 2, dtype=torch.float64, device=values.device)
    return sums.index_add_(-1, ring, weighted)[..., : box // 2 + 1]


@functools.lru_cache(maxsize=8)
def ring_counts(box: int, device: torch.device | str = "cpu") -> Tensor:
    """Samples of the full transform in each ring: (n//2+1,) float64."""
    return ring_sums(torch.ones(box, box // 2 + 1, device=device))


def spread_rings(curve: Tensor, box: int) -> Tensor:
    """A curve over rings (..., n//2+1) on every sample of rfft2's layout; the corners take the last ring's
    value.
    """
    index = ring_index(box, curve.device).clamp(max=box // 2)
    return curve[..., index]


def squared(values: Tensor) -> Tensor:
    """Squared magnitudes of complex values, whose `abs` PyTorch would compile at run time on a GPU: seconds, once."""
    return values.real.square() + values.imag.square()


def frc(first: Tensor, second: Tensor, mask: Tensor | None = None) -> Tensor:
    """Fourier ring correlation of two sets of images (k, n, n): (k, n//2+1), ring r at r/n cycles per pixel.

    Saxton and Baumeister 1982. A mask (n, n) is multiplied first; a ring without power counts as 0.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two sets have shapes {tuple(first.shape)} and {tuple(second.shape)}")
    if mask is not None:
        first, second = first * mask, second * mask
    a, b = torch.fft.rfft2(first), torch.fft.rfft2(second)
    cross = ring_sums((a * b.conj()).real)
    power = ring_sums(squared(a)) * ring_sums(squared(b))
    return torch.where(power > 0, cross / torch.sqrt(power).clamp_min(1e-300), 0.0).to(first.dtype)


def ssnr(frc_curve: Tensor) -> Tensor:
    """Signal to noise ratio per ring of the whole average, from the FRC of its halves: 2 F / (1 - F), not
    below 0.
    """
    clipped = frc_curve.clamp(0.0, 0.999)
    return 2.0 * clipped / (1.0 - clipped)


def resolution_frequency(frc_curve: Tensor, threshold: float = 0.143) -> Tensor:
    """Where each curve (k, n//2+1) first falls below the threshold, cycles per pixel; 0.5 where it never
    does.

    Linear between rings. 0.143 belongs to halves of independent noise (Rosenthal and Henderson 2003); here
    both halves were aligned to one reference, so the number is an optimistic one.
    """
    box = 2 * (frc_curve.shape[-1] - 1)
    below = frc_curve < threshold
    below[..., 0] = False
    first = torch.where(below.any(-1), below.int().argmax(-1), box // 2)
    value = frc_curve.gather(-1, first[..., None])[..., 0]
    before = frc_curve.gather(-1, (first[..., None] - 1).clamp_min(0))[..., 0]
    step = ((before - threshold) / (before - value).clamp_min(1e-6)).clamp(0.0, 1.0)
    crossing = (first - 1 + step) / box
    return torch.where(below.any(-1), crossing, torch.full_like(crossing, 0.5))


def effective_classes(sizes: Tensor) -> float:
    """exp of the entropy of the class sizes (k,): k for equal classes, 1 when one holds everything, 0 for
    none.
    """
    share = sizes.double() / sizes.sum().clamp_min(1)
    share = share[share > 0]
    return float(torch.exp(-(share * share.log()).sum())) if len(share) else 0.0


def pixel_error(poses: Poses, previous: Poses, outer_radius: float) -> Tensor:
    """Root mean square move of a particle's disc between two poses, pixels, (n,); NaN where the mirror
    changed.

    Exact for a disc of `outer_radius`: |origin change|^2 + R^2 (1 - cos(angle)) about the particle's own
    centre.
    """
    psi = torch.deg2rad(wrap_deg(poses.psi_deg - previous.psi_deg))
    _, distance = pose_error(
        (poses.psi_deg, poses.origin_xy_px, poses.mirror),
        (previous.psi_deg, previous.origin_xy_px, previous.mirror),
    )
    rms = torch.sqrt(distance**2 + outer_radius**2 * (1.0 - torch.cos(psi)))
    return torch.where(poses.mirror == previous.mirror, rms, torch.full_like(rms, float("nan")))


def pose_bound(reference: Tensor, noise_sd: float, outer_radius: float | None = None) -> tuple[float, float, float]:
    """Cramer-Rao bound of the pose of one particle: standard deviations (angle in degrees, x and y in
    pixels).

    reference     (n, n) the noiseless particle; `noise_sd` the white noise's standard deviation per pixel
    outer_radius  only pixels within it are used, as a search inside a mask does

    The Fisher information is J^T J / sd^2 with J the image's derivatives by angle, x and y.
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
    """Median absolute angle error (deg) and median shift distance (px) of an estimator that meets the bound.

    Half the normal's quartile range for the angle; for the shift, the median length of a normal vector of two
    unequal standard deviations, by Monte Carlo with a fixed seed.
    """
    angle, x, y = bound
    normal = np.random.default_rng(0).standard_normal((200_000, 2)) * np.array([x, y])
    return 0.674489750 * angle, float(np.median(np.hypot(normal[:, 0], normal[:, 1])))


def spread_within_classes(poses: Poses, truth: Poses, n_classes: int) -> tuple[Tensor, Tensor]:
    """Errors of each particle's pose against the truth once each class's own offset is taken out.

    A class average may be rotated or shifted against the true view as a whole. Returns angle (n,) degrees and
    shift (n,) pixels; NaN for particles without a class. Mirrors must have been brought to agree.
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
    """Counts (classes found, true classes) of two labelings (n,), each from 0; negative labels are left
    out.
    """
    keep = (labels >= 0) & (truth >= 0)
    labels, truth = labels[keep].long(), truth[keep].long()
    rows, columns = int(labels.max()) + 1, int(truth.max()) + 1
    return torch.bincount(labels * columns + truth, minlength=rows * columns).view(rows, columns)


def purity(labels: Tensor, truth: Tensor) -> float:
    """Share of particles that belong to the commonest true class of their class."""
    table = contingency(labels, truth)
    return float(table.max(dim=1).values.sum() / table.sum())


def adjusted_rand_index(labels: Tensor, truth: Tensor) -> float:
    """Agreement of two labelings, 1 for the same partition and 0 on average for chance (Hubert and Arabie
    1985).
    """
    table = contingency(labels, truth).double()

    def pairs(counts: Tensor) -> float:
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    total = pairs(table.sum())
    expected = rows * columns / total if total else 0.0
    span = (rows + columns) / 2 - expected
    return 1.0 if span == 0 else (both - expected) / span
