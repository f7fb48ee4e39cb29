"""The transform between angular orders on rings and the pixels of a disc as two matrices, for a GPU.

On a GPU, a few class averages at a time are limited by the launches of kernels: one product, though it computes more
than it must, takes less time than the thirty operations of a transform with symmetries. A CPU uses Bessel functions
(`kernels.classes.cpu_disc_numba`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 2**25
"""Numbers of the unit images transformed at once."""


@dataclass(frozen=True)
class DiscMatrices:
    """Matrices of a disc, of the same interface as `DiscWaves`.

    Attributes
    ----------
    box : int
        Image size n, pixels.
    pixel : Tensor of shape (P,)
        Flat indices of the disc's pixels.
    place : Tensor of shape (n * n,)
        Which of the disc's pixels each of the image is, P outside it.
    to_image : Tensor of shape (r, m, 2, Q)
        Value at each pixel of a unit real or imaginary part of each order, and 0 beyond the P pixels: Q is a multiple
        of 8, for which products are faster.
    to_orders : Tensor of shape (P, r, m, 2)
        Orders of an image of one pixel.
    """

    box: int
    pixel: Tensor
    place: Tensor
    to_image: Tensor
    to_orders: Tensor

    @classmethod
    def of(
        cls,
        box: int,
        pixel: Tensor,
        shape: tuple[int, int],
        image: Callable[[Tensor], Tensor],
        orders: Callable[[Tensor], Tensor],
    ) -> DiscMatrices:
        """Compute the matrices from unit images and unit orders.

        Parameters
        ----------
        box : int
            Image size n, pixels.
        pixel : Tensor of shape (P,)
            Flat indices of the disc's pixels.
        shape : tuple of int
            Numbers of rings r and angular orders m.
        image : Callable[[Tensor], Tensor]
            Returns images (b, n, n) of angular orders (b, r, m).
        orders : Callable[[Tensor], Tensor]
            Returns angular orders (b, r, m) of images.

        Returns
        -------
        DiscMatrices
            The matrices.
        """
        n = shape[0] * shape[1] * 2
        each = max(1, AT_ONCE // box**2)
        rows = []
        for first in range(0, n, each):
            unit = torch.zeros(min(each, n - first), n, device=pixel.device)
            unit[:, first : first + each].fill_diagonal_(1.0)
            rows.append(image(torch.view_as_complex(unit.view(-1, *shape, 2))).flatten(1)[:, pixel])
        columns = []
        for some in pixel.split(each):
            unit = torch.zeros(len(some), box * box, device=pixel.device)
            unit[torch.arange(len(some), device=pixel.device), some] = 1.0
            columns.append(torch.view_as_real(orders(unit.view(-1, box, box))))
        place = torch.full((box * box,), len(pixel), device=pixel.device)
        place[pixel] = torch.arange(len(pixel), device=pixel.device)
        to_image = torch.nn.functional.pad(torch.cat(rows), (0, 8 - len(pixel) % 8))
        return cls(box, pixel, place, to_image.view(*shape, 2, -1), torch.cat(columns))

    def images(self, orders: Tensor) -> Tensor:
        """Compute images (b, n, n) from angular orders (b, r, m) of real images; they are zero outside the disc."""
        pixels = torch.view_as_real(orders.resolve_conj()).flatten(1) @ self.to_image.flatten(0, 2)
        return pixels.index_select(1, self.place).unflatten(1, (self.box, self.box))

    def orders(self, images: Tensor) -> Tensor:
        """Compute the angular orders (b, r, m) of images (b, n, n); pixels outside the disc do not count."""
        found = images.flatten(1)[:, self.pixel] @ self.to_orders.flatten(1)
        return torch.view_as_complex(found.unflatten(1, self.to_orders.shape[1:]))
