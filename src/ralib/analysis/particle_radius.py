"""The radius of the particles, measured on their variance or on an image, and the mask that holds it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ralib.analysis.matched import BATCH, MatchedParticles
from ralib.images.masks import BACKGROUND_RADIUS, centre_distance, soft_disc

MASK_EDGE_PX = 4.0
LARGEST_RADIUS = 0.47
RADIUS_MARGIN = 1.1


def measured_radius_px(data: MatchedParticles, *, at_most: int = 2000, fraction: float = 0.98) -> float:
    """Measure the radius that holds a fraction of the particles' contribution to the images' variance, plus a tenth.

    It follows from the variance of the matched filter at each radius over that of the background; where the difference
    is lost in noise, it is the largest radius that leaves a background.

    Parameters
    ----------
    data : MatchedParticles
        Particles.
    at_most : int, default 2000
        Number of particles used, spread evenly over the stack.
    fraction : float, default 0.98
        Fraction of the contribution.

    Returns
    -------
    float
        Radius, pixels.
    """
    box = data.box
    chosen = data.some(at_most)
    square = torch.zeros(box, box, dtype=torch.float64, device=data.device)
    for start in range(0, len(chosen), BATCH):
        square += data.filtered(chosen[start : start + BATCH]).double().square().sum(0)
    ring = centre_distance(box, data.device).round().long().flatten()
    count = torch.bincount(ring).double()
    profile = torch.zeros_like(count).index_add_(0, ring, square.flatten()) / count / len(chosen)
    outside = profile[int(BACKGROUND_RADIUS * box) : box // 2].mean()
    excess = ((profile - outside) * count)[: int(BACKGROUND_RADIUS * box)].cumsum(0).cpu().numpy()
    largest = LARGEST_RADIUS * box
    if excess.max() <= 5 * float(outside) * np.sqrt(2.0 / len(chosen) * box**2 / 2):
        return largest
    return float(min(largest, RADIUS_MARGIN * (np.argmax(excess > fraction * excess.max()) + 1)))


def radius_of_image(image: Tensor, *, fraction: float = 0.97) -> float:
    """Return the radius that holds a fraction of an image's power above that of its rim.

    Parameters
    ----------
    image : Tensor of shape (h, h)
        Image.
    fraction : float, default 0.97
        Fraction of the power.

    Returns
    -------
    float
        Radius, pixels.
    """
    box = image.shape[-1]
    ring = centre_distance(box, image.device).round().long().flatten()
    count = torch.bincount(ring).to(image.dtype)
    total = torch.zeros_like(count).index_add_(0, ring, image.square().flatten())
    rim = slice(int(0.42 * box), max(int(0.42 * box) + 1, int(BACKGROUND_RADIUS * box)))
    excess = (total - total[rim].sum() / count[rim].sum() * count)[: rim.stop].cumsum(0)
    return float((excess < fraction * excess.max()).sum()) + 1.0


def disc_mask(box: int, radius_px: float, device: torch.device | str) -> Tensor:
    """Return a soft disc that falls from 1 to 0 within four pixels beyond the radius.

    Parameters
    ----------
    box : int
        Image size h, pixels.
    radius_px : float
        Radius, pixels.
    device : torch.device or str
        Where the result is.

    Returns
    -------
    Tensor of shape (h, h)
        The mask.
    """
    return soft_disc(box, min(radius_px, box / 2 - MASK_EDGE_PX), MASK_EDGE_PX, device=device)
