"""Normalisation of particle images: background plane off, background standard deviation 1."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ralib.types import RalibError

LARGE_OFFSET_SD = 100.0
"""Mean over standard deviation of an image above which the mean is taken off before anything is computed."""


def normalise_background(images: Float[Tensor, "b n n"], radius_px: float | None = None) -> Float[Tensor, "b n n"]:
    """Images (b, n, n) less the plane fitted outside the circle, over the standard deviation about it there.

    radius_px None is three quarters of half the box. A constant background leaves the image unscaled.
    """
    box = images.shape[-1]
    radius_px = 0.75 * box / 2 if radius_px is None else radius_px
    raw = images
    images, _ = without_offset(images)
    grid = torch.arange(box, dtype=images.dtype, device=images.device) - box // 2
    outside = grid[:, None] ** 2 + grid[None, :] ** 2 > radius_px**2
    if int(outside.sum()) < 4:
        raise RalibError(f"--background-radius {radius_px}: no background is left in a box of {box} px")
    plane = torch.stack([torch.ones_like(outside, dtype=images.dtype), *torch.meshgrid(grid, grid, indexing="ij")])
    # Least squares by the pseudo-inverse of the plane's three functions, one matrix product for all images.
    fit = images[:, outside] @ torch.linalg.pinv(plane[:, outside])
    flat = images - torch.einsum("bc,chw->bhw", fit, plane)
    return divided_by_sd(flat, flat[:, outside].std(1), raw)


def divided_by_sd(
    images: Float[Tensor, "b n n"], sd: Float[Tensor, " b"], raw: Float[Tensor, "b n n"]
) -> Float[Tensor, "b n n"]:
    """Images (b, n, n) over sd (b,); a spread that is only rounding of the raw values is not blown up."""
    real = sd > 0.5 * torch.finfo(raw.dtype).eps * raw.abs().amax((1, 2))
    return images / torch.where(real, sd, torch.ones_like(sd))[:, None, None]


def without_offset(images: Float[Tensor, "b n n"]) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b 1 1"]]:
    """Images less their mean where it is so large that single precision would lose the signal in what follows, and
    what was taken off: raw counts of 1e7 with a signal of 1. Others come back as they are, with 0.

    The mean is summed in double precision; the difference of two near numbers is exact in single precision.
    """
    mean = images.mean((1, 2), keepdim=True, dtype=torch.float64)
    sd = images.flatten(1).std(1)[:, None, None]
    offset = torch.where(mean.abs() > LARGE_OFFSET_SD * sd, mean, 0.0).to(images.dtype)
    return images - offset, offset
