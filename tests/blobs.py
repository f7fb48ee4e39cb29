"""Particles with exactly known poses: sums of Gaussian blobs, evaluated where the pose puts them, plus white noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ralib.conventions import apply_pose
from ralib.types import Poses


@dataclass(frozen=True)
class Truth:
    """images (n, m, m) float32, references (k, m, m), the poses, and the noise's standard deviation."""

    images: np.ndarray
    references: Tensor
    poses: Poses
    noise_sd: float


def blob_centres(n_views: int, radius: float, seed: int) -> Tensor:
    """(k, blobs, 2) places, (x, y) pixels from the centre, lopsided enough to tell rotations and mirrors apart."""
    g = np.random.default_rng(seed)
    r, t = radius * np.sqrt(g.random((n_views, 14))), 2 * np.pi * g.random((n_views, 14))
    return torch.from_numpy(np.stack([r * np.cos(t), r * np.sin(t)], -1))


def draw(centres: Tensor, xy: Tensor, width: float = 1.6) -> Tensor:
    """Blobs at centres (..., blobs, 2) seen at points xy (..., p, 2): (..., p)."""
    squared = ((xy[..., :, None, :] - centres[..., None, :, :]) ** 2).sum(-1)
    return torch.exp(-squared / (2 * width**2)).sum(-1)


def grid(box: int) -> Tensor:
    c = torch.arange(box, dtype=torch.float64) - box // 2
    y, x = torch.meshgrid(c, c, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def make(
    n: int,
    *,
    box: int = 48,
    n_views: int = 4,
    snr: float = 0.1,
    shift_px: float = 2.0,
    seed: int = 0,
    mirror: bool = True,
) -> Truth:
    """n particles; `snr` is the variance of the signal inside the disc of 0.4 box over the noise's."""
    g = np.random.default_rng(seed)
    centres, xy = blob_centres(n_views, 0.28 * box, seed), grid(box)
    references = draw(centres, xy).view(n_views, box, box)
    poses = Poses(
        psi_deg=torch.from_numpy(g.uniform(-180, 180, n)),
        origin_xy_px=torch.from_numpy(g.uniform(-shift_px, shift_px, (n, 2))),
        mirror=torch.from_numpy(g.random(n) < 0.5) & mirror,
        class_index=torch.from_numpy(g.integers(0, n_views, n)),
        score=torch.full((n,), float("nan")),
    )
    on_view = apply_pose(poses.psi_deg[:, None], poses.origin_xy_px[:, None], poses.mirror[:, None], xy)
    clean = draw(centres[poses.class_index], on_view).view(n, box, box)
    disc = (xy**2).sum(-1).view(box, box) <= (0.4 * box) ** 2
    noise_sd = float((references[:, disc].var() / snr).sqrt())
    noise = noise_sd * g.standard_normal((n, box, box))
    return Truth((clean.numpy() + noise).astype(np.float32), references.float(), poses, noise_sd)
