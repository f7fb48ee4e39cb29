"""Fits of poses, the classes a particle is shared between, and its own contribution, as plain PyTorch functions.

They describe what the names of `ralib.kernels.likelihood` do, and are the oracle of their tests. On a GPU each is one
kernel, as launching its operations takes longer than they do.

Poses are given by their fields, in this order: cross terms x, norms p, in-plane rotations (degrees), origin shifts
(pixels, with a last dimension of 2) and mirrors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.conventions import wrap_deg

SCALE_SD = 0.35
"""Standard deviation of the particles' scales around their mean: ice thickness and defocus leave about a third."""

ANYWHERE = 0.01
"""Share of the particles that may lie anywhere in the searched disc: bad picks, and junk."""

FITS_AT_ONCE = 2**25
"""Particles times classes that are computed at once: more are taken in parts."""


def log_likelihood(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Return the log-likelihood relative to pure noise, at the best scale under its prior.

    Parameters
    ----------
    cross : Tensor of shape (...)
        Cross term x.
    norm : Tensor of shape (...)
        Norm p.
    mean_scale : Tensor of shape ()
        Mean scale.

    Returns
    -------
    Tensor of shape (...)
        Log-likelihood.
    """
    precision = 1.0 / (SCALE_SD * mean_scale) ** 2
    return 0.5 * ((cross + precision * mean_scale).square() / (norm + precision) - precision * mean_scale**2)


def log_prior(origin_xy_px: Tensor, spread_px: Tensor, radius_px: float) -> Tensor:
    """Compute the logarithm of the prior of origins, relative to that of the centre.

    Parameters
    ----------
    origin_xy_px : Tensor of shape (..., 2)
        Origins, pixels.
    spread_px : Tensor of shape ()
        Standard deviation of the origins along x and y, pixels.
    radius_px : float
        Radius of the searched disc, pixels.

    Returns
    -------
    Tensor of shape (...)
        Log prior.
    """
    variance = spread_px**2
    anywhere = ANYWHERE / (1 - ANYWHERE) * 2 * variance / radius_px**2
    near = torch.exp(-0.5 * origin_xy_px.square().sum(-1) / variance)
    return torch.log((near + anywhere) / (1 + anywhere))


def log_posterior(
    cross: Tensor, norm: Tensor, mean_scale: Tensor, origin_xy_px: Tensor, spread_px: Tensor, radius_px: float
) -> Tensor:
    """Return the log-likelihood with the log prior of the origin; see `log_likelihood` and `log_prior`."""
    return log_likelihood(cross, norm, mean_scale) + log_prior(origin_xy_px, spread_px, radius_px)


def best_scale(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Return the scale of maximum likelihood, at least a tenth of the mean; see `log_likelihood` for the arguments."""
    precision = 1.0 / (SCALE_SD * mean_scale) ** 2
    scale = (cross + precision * mean_scale) / (norm + precision)
    return torch.maximum(scale, 0.1 * mean_scale)


def pick(fields: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    """Return the poses in one class of each particle, or in several.

    Parameters
    ----------
    fields : tuple of Tensor
        Fields of the poses (n, k).
    index : Tensor of shape (n,) or (c, n)
        Classes.

    Returns
    -------
    tuple of Tensor
        Fields like the index.
    """
    row = torch.arange(index.shape[-1], device=index.device)
    return tuple(f[row, index] for f in fields)


def reordered(fields: tuple[Tensor, ...], order: Tensor) -> tuple[Tensor, ...]:
    """Return the poses in candidate classes in another order of each particle's.

    Parameters
    ----------
    fields : tuple of Tensor
        Fields of the poses (c, n).
    order : Tensor of shape (c, n)
        Number of the candidate in each place.

    Returns
    -------
    tuple of Tensor
        Fields (c, n).
    """
    row = torch.arange(order.shape[-1], device=order.device)
    return tuple(f[order, row] for f in fields)


@dataclass(frozen=True)
class SharingRule:
    """How particles are shared between classes.

    Attributes
    ----------
    temperature : float
        1 is Bayes' rule, above it responsibilities are softer.
    count : int
        Classes of a particle, at most.
    least : float
        Smaller responsibilities count as 0.
    """

    temperature: float
    count: int
    least: float


def class_posterior(fit: Tensor, price: Tensor, temperature: float) -> Tensor:
    """Compute the responsibilities: the probability of each class for each particle.

    Parameters
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class.
    price : Tensor of shape (k,)
        Added to the fit of each class.
    temperature : float
        1 is Bayes' rule, above it responsibilities are softer.

    Returns
    -------
    Tensor of shape (n, k)
        Responsibilities.
    """
    return torch.softmax((fit + price) / temperature, dim=1)


def best_classes(
    fit: Tensor, price: Tensor, rule: SharingRule, among: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the best classes of each particle, and share it between them.

    Parameters
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class.
    price : Tensor of shape (k,)
        Added to the fit of each class.
    rule : SharingRule
        The rule.
    among : Tensor of shape (n, m), optional
        Classes to choose from; by default all.

    Returns
    -------
    Tensor of shape (n,)
        Responsibility of the best class, among all.
    Tensor of shape (c, n)
        Responsibilities of the best classes, the largest first; they add up to 1.
    Tensor of shape (c, n)
        Columns of `among`, or classes.
    """
    rows = max(1, FITS_AT_ONCE // fit.shape[1])
    weights, columns = [], []
    for first in range(0, max(1, len(fit)), rows):
        posterior = class_posterior(fit[first : first + rows], price, rule.temperature)
        posterior = posterior if among is None else posterior.gather(1, among[first : first + rows])
        weight, at = posterior.topk(min(rule.count, posterior.shape[1]), dim=1)
        weights.append(weight)
        columns.append(at)
    weight, at = (parts[0] if len(parts) == 1 else torch.cat(parts) for parts in (weights, columns))
    return weight[:, 0], _shared(weight / weight.sum(1, keepdim=True), rule), at.T.contiguous()


def ranked_classes(fit: Tensor, index: Tensor, price: Tensor, rule: SharingRule) -> tuple[Tensor, Tensor, Tensor]:
    """Share each particle between its candidate classes, by new fits.

    Parameters
    ----------
    fit : Tensor of shape (c, n)
        Log-likelihood of each candidate.
    index : Tensor of shape (c, n)
        Classes.
    price : Tensor of shape (k,)
        Added to the fit of each class.
    rule : SharingRule
        The rule.

    Returns
    -------
    Tensor of shape (n,)
        Responsibility of the best class.
    Tensor of shape (c, n)
        Responsibilities, the largest first; they add up to 1.
    Tensor of shape (c, n)
        Number of the candidate in each place; of equal ones the first comes first.
    """
    posterior = class_posterior(fit.T.contiguous(), price[index.T], rule.temperature)
    weight, order = posterior.sort(dim=1, descending=True, stable=True)
    return weight[:, 0], _shared(weight, rule), order.T.contiguous()


def _shared(weight: Tensor, rule: SharingRule) -> Tensor:
    """Responsibilities (c, n) that add up to 1, from some (n, c) of which small ones are left out."""
    weight = weight * (weight >= rule.least)
    return (weight / weight.sum(1, keepdim=True)).T.contiguous()


@dataclass(frozen=True)
class AverageNoise:
    """What of a particle's power in a class average is its noise.

    Attributes
    ----------
    inside : Tensor of shape (k,)
        Share of the pixels that the mask of each average leaves.
    power : Tensor of shape (k, r)
        Ring power of the averages.
    gain : Tensor of shape (k, r)
        Factor of the sums in them.
    ring_weight : Tensor of shape (R,)
        Weight of at least these rings in sums over the plane.
    n_half : int
        Number of angles.
    """

    inside: Tensor
    power: Tensor
    gain: Tensor
    ring_weight: Tensor
    n_half: int


def self_share(
    power: Tensor,
    energy: Tensor,
    class_index: Tensor,
    weight: Tensor,
    scale: Tensor,
    mean_scale: Tensor,
    averages: AverageNoise,
) -> Tensor:
    """Compute what the noise of particles adds to their own cross terms with the averages they are in.

    Parameters
    ----------
    power : Tensor of shape (n, R)
        Factor of a template's ring power in the norm, on at least the averages' rings.
    energy : Tensor of shape (n, R)
        Sum over the angles of the particles' squared samples.
    class_index : Tensor of shape (n,)
        Class of each particle.
    weight : Tensor of shape (n,)
        Responsibility.
    scale : Tensor of shape (n,)
        Contrast relative to the mean.
    mean_scale : Tensor of shape ()
        Mean contrast.
    averages : AverageNoise
        The averages.

    Returns
    -------
    Tensor of shape (n, r)
        Shares.
    """
    rings = averages.gain.shape[1]
    contrast = (scale * mean_scale)[:, None]
    signal = (contrast * power[:, :rings]).square() * averages.power[class_index] / averages.n_half
    noise = (energy[:, :rings] - signal).clamp_min(0)
    share = averages.inside[class_index][:, None] * (weight * scale)[:, None]
    return share * noise * averages.gain[class_index] / averages.ring_weight[:rings]


@dataclass(frozen=True)
class OwnNoise:
    """How a particle's noise agrees with itself at another pose.

    Attributes
    ----------
    rings : int
        Number of rings compared.
    frequency : Tensor of shape ()
        That of the last ring, 1/pixel.
    correlated : float
        Times the finest wavelength: moved by this much, noise agrees with itself to exp(-1/2).
    radius_px : float
        Radius of the mask.
    """

    rings: int
    frequency: Tensor
    correlated: float
    radius_px: float


def without_own(
    fields: tuple[Tensor, ...], own: tuple[Tensor, ...], noise: OwnNoise, index: Tensor | None = None
) -> Tensor:
    """Subtract each particle's own contribution from the cross term of its old class.

    Parameters
    ----------
    fields : tuple of Tensor
        Fields of the poses in all classes, (n, k), or in candidate classes, (c, n); the cross terms may be changed.
    own : tuple of Tensor
        Class to which each particle contributed, (n,), or -1; the pose at which it did: in-plane rotation (n,), origin
        (n, 2) and mirror (n,); what its noise adds to its cross term in that pose on each ring, (n, R).
    noise : OwnNoise
        How the contribution fades at other poses.
    index : Tensor of shape (c, n), optional
        The candidate classes; by default poses are those in all classes.

    Returns
    -------
    Tensor of shape (n, k) or (c, n)
        Corrected cross terms.
    """
    cross, _, *pose = fields
    if index is not None:
        return cross.sub_(_own_cross(pose, own, noise) * (index == own[0]))
    column = own[0].clamp_min(0)
    part = _own_cross(pick(tuple(pose), column), own, noise)
    return cross.scatter_add_(1, column[:, None], -part[:, None])


def _own_cross(pose: Sequence[Tensor], own: tuple[Tensor, ...], noise: OwnNoise) -> Tensor:
    """What a particle's own contribution adds to its cross terms at poses (..., n) in its old class, (..., n)."""
    psi_deg, origin_xy_px, mirror = pose
    class_index, own_psi_deg, own_origin_xy_px, own_mirror, share = own
    turn = torch.deg2rad(wrap_deg(psi_deg - own_psi_deg))
    # A turn moves the pixels of the mask by its angle times their distance from the centre: on average, half of R^2.
    apart = (origin_xy_px - own_origin_xy_px).square().sum(-1) + 0.5 * (noise.radius_px * turn).square()
    correlation = torch.exp(-0.5 * apart * (noise.frequency / noise.correlated).square())
    there = (mirror == own_mirror) & (class_index >= 0)
    return share[:, : noise.rings].sum(1) * correlation * there
