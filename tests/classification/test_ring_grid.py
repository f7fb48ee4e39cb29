"""Transforms between images and rings."""

from __future__ import annotations

import pytest
import torch

from ralib.classification.ring_grid import RingGrid


@pytest.mark.parametrize("box", [24, 33])
def test_matrices_of_a_gpu_agree_with_the_transform_of_a_cpu(box: int) -> None:
    """Images of angular orders and orders of images, of all rings and of the first ones."""
    grid = RingGrid.create(box, radius_px=9.0, partner_radius_px=10.0, n_rings=8, device="cpu")
    random = torch.Generator().manual_seed(box)
    for rings in (8, 5):
        n_orders = grid.orders(rings, 9.0)
        some = grid.matrices(rings, n_orders)
        orders = torch.randn(3, rings, n_orders, dtype=torch.complex64, generator=random)
        orders[..., 0] = orders[..., 0].real
        torch.testing.assert_close(some.images(orders), grid.image_of_orders(orders), rtol=0, atol=1e-4)
        images = torch.randn(3, box, box, generator=random)
        found, expected = some.orders(images), grid.orders_of_image(images, rings, n_orders)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        assert expected.abs().max() > 0.5
