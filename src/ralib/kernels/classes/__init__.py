"""Functions of the classification, each dispatched to the form for the device of its arguments.

`reference` describes them; the names below run the Triton form on a GPU, and on a CPU what `cpu_numba` has compiled, or
the plain form.
"""

from __future__ import annotations

from torch import Tensor

from ralib.kernels import implementation
from ralib.kernels.classes.reference import (
    AddUp,
    GridPoses,
    PosedParticles,
    PosedTerms,
    PoseGrid,
    PriceRule,
    Rings,
    ThinningRule,
    angular_orders,
    order_numbers,
    padded_classes,
    phase_factor,
    posed_orders,
    turned_orders,
)

__all__ = [
    "AddUp",
    "GridPoses",
    "PoseGrid",
    "PosedParticles",
    "PosedTerms",
    "PriceRule",
    "Rings",
    "ThinningRule",
    "add_posed",
    "angular_orders",
    "best_in_classes",
    "best_poses",
    "class_prices",
    "half_columns",
    "half_rows",
    "moved_orders",
    "order_numbers",
    "padded_classes",
    "phase_factor",
    "posed_orders",
    "ring_crosses",
    "sum_bounds",
    "thin",
    "turned_orders",
]


def best_poses(
    particles: Tensor,
    templates: Tensor,
    n_half: int,
    *,
    mirror: bool,
    favour: Tensor | None = None,
    from_ring: Tensor | None = None,
) -> GridPoses:
    """Find the best pose on a grid of every particle in every class; see `reference.best_poses`."""
    form = implementation("classes", particles)
    found: GridPoses = form.best_poses(particles, templates, n_half, mirror=mirror, favour=favour, from_ring=from_ring)
    return found


def moved_orders(
    samples: Tensor, shift_xy_px: Tensor, rings: Rings, n_orders: int, row: Tensor | None = None
) -> Tensor:
    """Compute the angular orders of shifted samples; see `reference.moved_orders`."""
    orders: Tensor = implementation("classes", samples).moved_orders(samples, shift_xy_px, rings, n_orders, row)
    return orders


def ring_crosses(samples: Tensor, places: PosedParticles, references: Tensor, rings: Rings) -> Tensor:
    """Compute the cross terms of particles with their classes on each ring; see `reference.ring_crosses`."""
    found: Tensor = implementation("classes", samples).ring_crosses(samples, places, references, rings)
    return found


def add_posed(
    samples: Tensor, power: Tensor, terms: PosedTerms, rings: Rings, sums: tuple[Tensor, Tensor], at_once: int
) -> None:
    """Add posed particles to sums of their angular orders; see `reference.add_posed`."""
    implementation("classes", samples).add_posed(samples, power, terms, rings, sums, at_once)


def sum_bounds(energy: Tensor, power: Tensor, weight: Tensor, scale: Tensor, n_half: int) -> Tensor:
    """Return upper bounds of what posed particles add to sums; see `reference.sum_bounds`."""
    bounds: Tensor = implementation("classes", energy).sum_bounds(energy, power, weight, scale, n_half)
    return bounds


def half_columns(
    samples: Tensor, shift_xy_px: Tensor, rings: Rings, n_orders: int, multiple: int
) -> tuple[Tensor, Tensor]:
    """Compute the scaled angular orders of shifted samples in half precision; see `reference.half_columns`."""
    form = implementation("classes", samples)
    columns, strength = form.half_columns(samples, shift_xy_px, rings, n_orders, multiple)
    return columns, strength


def half_rows(orders: Tensor, mirror: bool, multiple: int) -> tuple[Tensor, Tensor]:
    """Make the rows of the scoring product in half precision; see `reference.half_rows`."""
    rows, height = implementation("classes", orders).half_rows(orders, mirror, multiple)
    return rows, height


def best_in_classes(
    cross: Tensor,
    height: Tensor,
    strength: Tensor,
    origin_xy_px: Tensor,
    grid: PoseGrid,
    out: tuple[Tensor, ...],
    favour: Tensor | None = None,
) -> None:
    """Find the best pose of particles in every class; see `reference.best_in_classes`."""
    implementation("classes", cross).best_in_classes(cross, height, strength, origin_xy_px, grid, out, favour)


def class_prices(fit: Tensor, rule: PriceRule, add_up: AddUp) -> Tensor:
    """Approach the prices at which class sizes are balanced; see `reference.class_prices`."""
    price: Tensor = implementation("classes", fit).class_prices(fit, rule, add_up)
    return price


def thin(fit: Tensor, nats: Tensor, keep: int, rule: ThinningRule, add_up: AddUp) -> Tensor:
    """Drop classes one by one; see `reference.thin`."""
    alive: Tensor = implementation("classes", fit).thin(fit, nats, keep, rule, add_up)
    return alive
