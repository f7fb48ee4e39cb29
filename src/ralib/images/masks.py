"""Masks: discs with hard and soft edges, rings, and what images are worth under them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ralib.types import RalibError

BACKGROUND_RADIUS = 0.45
"""The background of an image lies beyond this fraction of its box from the centre."""


def background_mask(box: int, device: torch.device | str) -> Tensor:
    """1.0 where an image shows background only: (n, n)."""
    c = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    return (torch.hypot(c[:, None], c[None, :]) > BACKGROUND_RADIUS * box).float()


def soft_circle(box: int, radius_px: float, edge_px: float) -> Float[Tensor, "{box} {box}"]:
    """1 inside the radius, falling to 0 as a raised cosine over `edge_px`: (box, box)."""
    grid = torch.arange(box, dtype=torch.float32) - box // 2
    distance = torch.hypot(grid[:, None], grid[None, :])
    fade = ((distance - radius_px) / max(edge_px, 1e-6)).clamp(0.0, 1.0)
    return 0.5 + 0.5 * torch.cos(torch.pi * fade)


def soft_mask(box: int, radius_px: float, edge_px: float, device: torch.device | str) -> Tensor:
    """1 inside the radius, falling as a cosine to 0 at radius + edge: (n, n)."""
    c = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    beyond = ((torch.hypot(c[:, None], c[None, :]) - radius_px) / edge_px).clamp(0, 1)
    return 0.5 + 0.5 * torch.cos(math.pi * beyond)


def ring_mask(
    box: int, inner_radius: float, outer_radius: float, *, device: torch.device | str = "cpu", soft_px: float = 3.0
) -> Tensor:
    """A disc (n, n) of `outer_radius` with a cosine edge of `soft_px` inside it, and a hole of `inner_radius`."""
    axis = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    r = torch.hypot(axis[:, None], axis[None, :])
    mask = 0.5 + 0.5 * torch.cos(math.pi * ((r - outer_radius + soft_px) / soft_px).clamp(0, 1))
    if inner_radius > 1:
        mask = mask * (r >= inner_radius)
    return mask


def circle_mask(box: int, radius_px: float, *, device: torch.device | str = "cpu") -> Tensor:
    """True inside the circle of that radius about pixel (box // 2, box // 2): (box, box) bool."""
    grid = torch.arange(box, device=device) - box // 2
    return grid[:, None] ** 2 + grid[None, :] ** 2 <= radius_px**2


def model_circle(radius: float, n: int, device: torch.device | str = "cpu") -> Tensor:
    """A disc of ones (n, n), |x - n // 2| <= radius (utilities.model_circle)."""
    axis = torch.arange(n, device=device, dtype=torch.float32) - n // 2
    return (axis[:, None] ** 2 + axis[None, :] ** 2 <= radius * radius).float()


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
