"""What an alignment makes of its references, dispatched to the form for their device; see `reference`."""

from __future__ import annotations

from torch import Tensor

from ralib.kernels import implementation

__all__ = ["masked_unit_norm", "nearest_filter", "product_rows", "template_extent"]


def masked_unit_norm(references: Tensor, mask: Tensor) -> Tensor:
    """Make templates of references; see `reference.masked_unit_norm`."""
    templates: Tensor = implementation("references", references).masked_unit_norm(references, mask)
    return templates


def nearest_filter(curve: Tensor, filters: Tensor) -> Tensor:
    """Find the filter nearest to each FRC curve; see `reference.nearest_filter`."""
    best: Tensor = implementation("references", curve).nearest_filter(curve, filters)
    return best


def template_extent(spectrum: Tensor, weight: Tensor, radius: Tensor, share: Tensor) -> Tensor:
    """Measure how far templates reach; see `reference.template_extent`."""
    measured: Tensor = implementation("references", spectrum).template_extent(spectrum, weight, radius, share)
    return measured


def product_rows(orders: Tensor, weight: Tensor, largest: Tensor, out: Tensor) -> None:
    """Write the left factors of the grid's products; see `reference.product_rows`."""
    implementation("references", orders).product_rows(orders, weight, largest, out)
