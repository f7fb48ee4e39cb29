"""The E-step beside its search, each function dispatched to the form for the device of its arguments.

`reference` describes them, and is what runs on a CPU; the names below run the Triton form on a GPU.
"""

from __future__ import annotations

from torch import Tensor

from ralib.kernels import implementation
from ralib.kernels.likelihood.reference import (
    FITS_AT_ONCE,
    SCALE_SD,
    AverageNoise,
    OwnNoise,
    SharingRule,
    class_posterior,
)

__all__ = [
    "FITS_AT_ONCE",
    "SCALE_SD",
    "AverageNoise",
    "OwnNoise",
    "SharingRule",
    "best_classes",
    "best_scale",
    "class_posterior",
    "log_likelihood",
    "log_posterior",
    "log_prior",
    "pick",
    "ranked_classes",
    "reordered",
    "self_share",
    "without_own",
]


def log_likelihood(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Compute log-likelihoods at the best scale; see `reference.log_likelihood`."""
    fit: Tensor = implementation("likelihood", cross).log_likelihood(cross, norm, mean_scale)
    return fit


def log_prior(origin_xy_px: Tensor, spread_px: Tensor, radius_px: float) -> Tensor:
    """Compute the log prior of origins; see `reference.log_prior`."""
    prior: Tensor = implementation("likelihood", origin_xy_px).log_prior(origin_xy_px, spread_px, radius_px)
    return prior


def log_posterior(
    cross: Tensor, norm: Tensor, mean_scale: Tensor, origin_xy_px: Tensor, spread_px: Tensor, radius_px: float
) -> Tensor:
    """Compute log-likelihoods with the log prior of the origin; see `reference.log_posterior`."""
    given = cross, norm, mean_scale, origin_xy_px, spread_px, radius_px
    fit: Tensor = implementation("likelihood", cross).log_posterior(*given)
    return fit


def best_scale(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Compute scales of maximum likelihood; see `reference.best_scale`."""
    scale: Tensor = implementation("likelihood", cross).best_scale(cross, norm, mean_scale)
    return scale


def pick(fields: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    """Return the poses in some of the classes of each particle; see `reference.pick`."""
    picked: tuple[Tensor, ...] = implementation("likelihood", fields[0]).pick(fields, index)
    return picked


def reordered(fields: tuple[Tensor, ...], order: Tensor) -> tuple[Tensor, ...]:
    """Return the poses in candidate classes in another order; see `reference.reordered`."""
    found: tuple[Tensor, ...] = implementation("likelihood", fields[0]).reordered(fields, order)
    return found


def best_classes(
    fit: Tensor, price: Tensor, rule: SharingRule, among: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Share particles between their best classes; see `reference.best_classes`."""
    found: tuple[Tensor, Tensor, Tensor] = implementation("likelihood", fit).best_classes(fit, price, rule, among)
    return found


def ranked_classes(fit: Tensor, index: Tensor, price: Tensor, rule: SharingRule) -> tuple[Tensor, Tensor, Tensor]:
    """Share particles between candidate classes by new fits; see `reference.ranked_classes`."""
    found: tuple[Tensor, Tensor, Tensor] = implementation("likelihood", fit).ranked_classes(fit, index, price, rule)
    return found


def self_share(
    power: Tensor,
    energy: Tensor,
    class_index: Tensor,
    weight: Tensor,
    scale: Tensor,
    mean_scale: Tensor,
    averages: AverageNoise,
) -> Tensor:
    """Compute what particles add to their own cross terms with averages; see `reference.self_share`."""
    given = power, energy, class_index, weight, scale, mean_scale, averages
    share: Tensor = implementation("likelihood", power).self_share(*given)
    return share


def without_own(
    fields: tuple[Tensor, ...], own: tuple[Tensor, ...], noise: OwnNoise, index: Tensor | None = None
) -> Tensor:
    """Subtract particles' own contributions from their cross terms; see `reference.without_own`."""
    cross: Tensor = implementation("likelihood", fields[0]).without_own(fields, own, noise, index)
    return cross
