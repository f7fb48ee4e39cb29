"""Normalisation of particle images: background plane subtracted, background standard deviation 1."""

from __future__ import annotations

import functools

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ralib.images.row_sums import row_sd
from ralib.types import RalibError

LARGE_OFFSET_SD = 3.0
"""Mean over standard deviation of an image above which the mean is taken off before anything is computed: no image with
a normalised background has so much."""

LARGEST_PIXEL = 1e15
"""Beyond this, squares summed over an image leave single precision; no camera counts so many electrons."""


LEAST_RANGE = 1e-18
"""Range of an image's pixels below which their squares are nothing in single precision."""


def finite_images(images: Float[Tensor, "b n n"]) -> Bool[Tensor, " b"]:
    """Return which images have pixels that can be computed with: finite, and no larger than LARGEST_PIXEL.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.

    Returns
    -------
    Tensor of shape (b,)
        True for those.
    """
    return images.flatten(1).abs().amax(1) <= LARGEST_PIXEL  # NaN is no larger and no smaller


def usable_images(images: Float[Tensor, "b n n"]) -> Bool[Tensor, " b"]:
    """Return which images are finite (see `finite_images`) and not constant, as far as single precision tells.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.

    Returns
    -------
    Tensor of shape (b,)
        True for those.
    """
    flat = images.flatten(1)
    return finite_images(images) & (flat.amax(1) - flat.amin(1) > LEAST_RANGE)


def normalise_background(images: Float[Tensor, "b n n"], radius_px: float | None = None) -> Float[Tensor, "b n n"]:
    """Subtract the plane fitted to the background and divide by the background's standard deviation.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Particle images.
    radius_px : float, optional
        The background lies outside this radius, pixels; by default three quarters of half the box.

    Returns
    -------
    Tensor of shape (b, n, n)
        Images of background mean 0 and standard deviation 1; one of constant background is not scaled.

    Raises
    ------
    RalibError
        If fewer than four pixels lie outside the radius.
    """
    box = images.shape[-1]
    radius_px = 0.75 * box / 2 if radius_px is None else radius_px
    raw = images
    images, _ = without_offset(images)
    pixels, plane, inverse = _background(box, radius_px, images.dtype, images.device)
    fit = images.flatten(1).index_select(1, pixels) @ inverse
    flat = images - torch.einsum("bc,chw->bhw", fit, plane)
    return divided_by_sd(flat, row_sd(flat.flatten(1).index_select(1, pixels)), raw)


@functools.lru_cache(maxsize=4)
def _background(
    box: int, radius_px: float, dtype: torch.dtype, device: torch.device
) -> tuple[Int[Tensor, " p"], Float[Tensor, "3 n n"], Float[Tensor, "p 3"]]:
    """Pixels of the background, the three functions of a plane, and their pseudo-inverse there for least squares."""
    grid = torch.arange(box, dtype=torch.float64) - box // 2
    outside = grid[:, None] ** 2 + grid[None, :] ** 2 > radius_px**2
    if int(outside.sum()) < 4:
        raise RalibError(f"`background_radius_px` {radius_px}: no background is left in a box of {box} px")
    plane = torch.stack([torch.ones_like(outside, dtype=torch.float64), *torch.meshgrid(grid, grid, indexing="ij")])
    pixels = torch.nonzero(outside.flatten())[:, 0]
    inverse = torch.linalg.pinv(plane[:, outside])
    return pixels.to(device), plane.to(device, dtype), inverse.to(device, dtype)


def divided_by_sd(
    images: Float[Tensor, "b n n"], sd: Float[Tensor, " b"], raw: Float[Tensor, "b n n"]
) -> Float[Tensor, "b n n"]:
    """Divide images by standard deviations, unless these are only rounding errors of the raw values.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    sd : Tensor of shape (b,)
        Standard deviation of each.
    raw : Tensor of shape (b, n, n)
        The images before anything was subtracted.

    Returns
    -------
    Tensor of shape (b, n, n)
        Scaled images.
    """
    real = sd > 0.5 * torch.finfo(raw.dtype).eps * raw.abs().amax((1, 2))
    return images / torch.where(real, sd, torch.ones_like(sd))[:, None, None]


def without_offset(images: Float[Tensor, "b n n"]) -> tuple[Float[Tensor, "b n n"], Float[Tensor, "b 1 1"]]:
    """Subtract the mean of images where zeros beyond their edges would stand out against it.

    With raw counts of 1e7 and a signal of 1, single precision would lose the signal, too. The mean is summed in double
    precision; the difference of two near numbers is exact in single precision.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.

    Returns
    -------
    Tensor of shape (b, n, n)
        The images; those of moderate mean are unchanged.
    Tensor of shape (b, 1, 1)
        What was subtracted, 0 for unchanged images.
    """
    mean = images.mean((1, 2), keepdim=True, dtype=torch.float64)
    sd = row_sd(images.flatten(1))[:, None, None]
    offset = torch.where(mean.abs() > LARGE_OFFSET_SD * sd, mean, 0.0).to(images.dtype)
    return images - offset, offset
