"""Masks with hard and soft edges, and image statistics under a mask."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ralib.types import RalibError

BACKGROUND_RADIUS = 0.45
"""The background of an image lies beyond this fraction of its box from the centre."""


def centre_distance(box: int, device: torch.device | str = "cpu") -> Float[Tensor, "{box} {box}"]:
    """Return the distance of every pixel from the centre, pixel (n // 2, n // 2).

    Parameters
    ----------
    box : int
        Image size n, pixels.
    device : torch.device or str, default 'cpu'
        Where the result is.

    Returns
    -------
    Tensor of shape (n, n)
        Distance, pixels.
    """
    c = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    return torch.hypot(c[:, None], c[None, :])


def background_mask(box: int, device: torch.device | str) -> Tensor:
    """Return a mask of the background: 1 beyond `BACKGROUND_RADIUS` times the box.

    Parameters
    ----------
    box : int
        Image size n, pixels.
    device : torch.device or str
        Where the result is.

    Returns
    -------
    Tensor of shape (n, n)
        1.0 in the background, 0.0 elsewhere.
    """
    return (centre_distance(box, device) > BACKGROUND_RADIUS * box).float()


def soft_disc(
    box: int,
    radius_px: float,
    edge_px: float,
    *,
    hole_radius_px: float = 0.0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "{box} {box}"]:
    """Return a disc with a raised-cosine edge, the soft mask of class averages and templates.

    Parameters
    ----------
    box : int
        Image size n, pixels.
    radius_px : float
        Radius within which the mask is 1, pixels.
    edge_px : float
        Width beyond the radius over which it falls to 0, pixels.
    hole_radius_px : float, default 0.0
        Radius of a hole in the centre, where the mask is 0, pixels.
    device : torch.device or str, default 'cpu'
        Where the result is.

    Returns
    -------
    Tensor of shape (n, n)
        The mask, 0 to 1.
    """
    distance = centre_distance(box, device)
    beyond = ((distance - radius_px) / max(edge_px, 1e-6)).clamp(0.0, 1.0)
    disc = 0.5 + 0.5 * torch.cos(math.pi * beyond)
    return disc * (distance >= hole_radius_px) if hole_radius_px > 0 else disc


def circle_mask(box: int, radius_px: float, *, device: torch.device | str = "cpu") -> Tensor:
    """Return the pixels inside a circle about pixel (n // 2, n // 2).

    Parameters
    ----------
    box : int
        Image size n, pixels.
    radius_px : float
        Radius, pixels; the circle itself belongs to the inside.
    device : torch.device or str, default 'cpu'
        Where the result is.

    Returns
    -------
    Tensor of shape (n, n)
        True inside.
    """
    grid = torch.arange(box, device=device) - box // 2
    return grid[:, None] ** 2 + grid[None, :] ** 2 <= radius_px**2


def model_circle(radius: float, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return a hard disc as SPARX makes it (`utilities.model_circle`).

    Parameters
    ----------
    radius : float
        Radius, pixels.
    n : int
        Image size, pixels.
    device : torch.device or str, default 'cpu'
        Where the result is.

    Returns
    -------
    Tensor of shape (n, n)
        1.0 inside, 0.0 outside.
    """
    return circle_mask(n, radius, device=device).float()


def mean_under(images: Tensor, mask: Tensor, inside: bool = True) -> Tensor:
    """Return the mean (k,) of each image inside or outside a mask, float64; see `statistics_under`."""
    return _values_under(images, mask, inside).mean(dim=1)


def statistics_under(images: Tensor, mask: Tensor, inside: bool = True) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each image inside or outside a mask (`Util.infomask`).

    Parameters
    ----------
    images : Tensor of shape (k, n, n)
        Images.
    mask : Tensor of shape (n, n)
        Inside where above 0.5.
    inside : bool, default True
        Whether the inside or the outside counts.

    Returns
    -------
    Tensor of shape (k,)
        Means in double precision.
    Tensor of shape (k,)
        Standard deviations, with n - 1 degrees of freedom.

    Raises
    ------
    RalibError
        If fewer than two pixels count.
    """
    values = _values_under(images, mask, inside)
    return values.mean(dim=1), values.std(dim=1)


def _values_under(images: Tensor, mask: Tensor, inside: bool) -> Tensor:
    """The pixels (k, m) that count, float64."""
    chosen = (mask > 0.5) == inside
    count = int(chosen.sum())
    if count < 2:
        where = "inside" if inside else "outside"
        raise RalibError(f"the mask has {count} pixels {where} it: give one with pixels on both sides of 0.5")
    return images[:, chosen.to(images.device)].double()
