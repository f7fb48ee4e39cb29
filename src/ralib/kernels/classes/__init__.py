"""Functions of the classification, each dispatched to the form for the device of its arguments.

`reference` describes them; the names below run the Triton form on a GPU and the plain one elsewhere.
"""

from __future__ import annotations

from torch import Tensor

from ralib.kernels import implementation
from ralib.kernels.classes.reference import AddUp, PoseGrid, PriceRule, ThinningRule

__all__ = ["AddUp", "PoseGrid", "PriceRule", "ThinningRule", "best_in_classes", "class_prices", "thin"]


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
