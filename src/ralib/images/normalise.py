"""Normalisation of particle images: background plane off, background standard deviation 1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ralib.types import RalibError


def normalise_background(images: Float[Tensor, "b n n"], radius_px: float | None = None) -> Float[Tensor, "b n n"]:
    """Images (b, n, n) less the plane fitted outside the circle, over the standard deviation about it there.

    radius_px None is three quarters of half the box. A constant background leaves the image unscaled.
    """
    box = images.shape[-1]
    radius_px = 0.75 * box / 2 if radius_px is None else radius_px
    grid = torch.arange(box, dtype=images.dtype, device=images.device) - box // 2
    outside = grid[:, None] ** 2 + grid[None, :] ** 2 > radius_px**2
    if int(outside.sum()) < 4:
        raise RalibError(f"--background-radius {radius_px}: no background is left in a box of {box} px")
    plane = torch.stack([torch.ones_like(outside, dtype=images.dtype), *torch.meshgrid(grid, grid, indexing="ij")])
    # Least squares by the pseudo-inverse of the plane's three functions, one matrix product for all images.
    fit = images[:, outside] @ torch.linalg.pinv(plane[:, outside])
    flat = images - torch.einsum("bc,chw->bhw", fit, plane)
    return divided_by_sd(flat, flat[:, outside].std(1), images)


def divided_by_sd(
    images: Float[Tensor, "b n n"], sd: Float[Tensor, " b"], raw: Float[Tensor, "b n n"]
) -> Float[Tensor, "b n n"]:
    """Images (b, n, n) over sd (b,); a spread that is only rounding of the raw values is not blown up."""
    real = sd > 1e-6 * raw.abs().amax((1, 2))
    return images / torch.where(real, sd, torch.ones_like(sd))[:, None, None]
