"""An average's place is that of its outline: neither its thickness nor its background moves it."""

from __future__ import annotations

import pytest
import torch

from ralib.images.centering import centre_of_outline
from ralib.images.masks import soft_disc

BOX = 64


def disc(x0: float, y0: float) -> torch.Tensor:
    """An image of a disc of radius 10 about (x0, y0), twice as dense at its right as at its left."""
    y, x = torch.meshgrid(*[torch.arange(BOX).float() - BOX // 2] * 2, indexing="ij")
    inside = torch.hypot(x - x0, y - y0) < 10
    return inside * (2 + (x - x0) / 15)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_centre_of_outline_uneven_density_on_a_background_keeps_the_centre(sign: float) -> None:
    images = sign * torch.stack([disc(0, 0) + 0.5, disc(6, -3) - 0.5])
    found = centre_of_outline(images, soft_disc(BOX, 22.0, 4.0), 1.1)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [6.0, -3.0]]), atol=0.6, rtol=0)
