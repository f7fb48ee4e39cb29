"""Masks: discs with hard and soft edges, rings, and what images are worth under them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ralib.types import RalibError

BACKGROUND_RADIUS = 0.45
"""The background of an image lies beyond this fraction of its box from the centre."""


def centre_distance(box: int, device: torch.device | str = "cpu") -> Float[Tensor, "{box} {box}"]:
    """Distance (n, n) of every pixel from pixel (n // 2, n // 2), pixels."""
    c = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    return torch.hypot(c[:, None], c[None, :])


def background_mask(box: int, device: torch.device | str) -> Tensor:
    """1.0 where an image shows background only: (n, n)."""
    return (centre_distance(box, device) > BACKGROUND_RADIUS * box).float()


def soft_disc(
    box: int,
    radius_px: float,
    edge_px: float,
    *,
    hole_radius_px: float = 0.0,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "{box} {box}"]:
    """1 inside the radius, falling as a raised cosine to 0 at radius + edge; 0 in the hole: (n, n)."""
    distance = centre_distance(box, device)
    beyond = ((distance - radius_px) / max(edge_px, 1e-6)).clamp(0.0, 1.0)
    disc = 0.5 + 0.5 * torch.cos(math.pi * beyond)
    return disc * (distance >= hole_radius_px) if hole_radius_px > 0 else disc


def circle_mask(box: int, radius_px: float, *, device: torch.device | str = "cpu") -> Tensor:
    """True inside the circle of that radius about pixel (box // 2, box // 2): (box, box) bool."""
    grid = torch.arange(box, device=device) - box // 2
    return grid[:, None] ** 2 + grid[None, :] ** 2 <= radius_px**2


def model_circle(radius: float, n: int, device: torch.device | str = "cpu") -> Tensor:
    """A disc of ones (n, n), |x - n // 2| <= radius (utilities.model_circle)."""
    return circle_mask(n, radius, device=device).float()


def mean_under(images: Tensor, mask: Tensor, inside: bool = True) -> Tensor:
    """Mean (k,) of each image where mask > 0.5 (or, outside, where it is not), float64."""
    return statistics_under(images, mask, inside)[0]


def statistics_under(images: Tensor, mask: Tensor, inside: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (n - 1) of each image under or outside the mask (Util.infomask), (k,) float64."""
    chosen = (mask > 0.5) == inside
    count = int(chosen.sum())
    if count < 2:
        where = "inside" if inside else "outside"
        raise RalibError(f"the mask has {count} pixels {where} it: give one with pixels on both sides of 0.5")
    values = images[:, chosen.to(images.device)].double()
    return values.mean(dim=1), values.std(dim=1)
