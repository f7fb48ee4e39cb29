"""A classification that begins with class averages given by the user instead of single particles.

They may be from any program, of any box and pixel size and in any grey scale. Each is normalised to unit power within
the mask; one factor for all of them, from a comparison with some of the particles, gives them the particles' contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ralib.classification.model import Model
from ralib.classification.pose_search import search_all, search_poses
from ralib.classification.state import IterationSettings, State
from ralib.images.fourier import resample
from ralib.kernels.averages import ring_power
from ralib.types import RalibError

COMPARED = 1000
"""Particles, at most, that decide the contrast."""


@dataclass(frozen=True)
class StartReferences:
    """Class averages to begin with.

    Attributes
    ----------
    images : Tensor of shape (k, n, n)
        Finite, none constant.
    pixel_ratio : float
        Their pixel size over that of the particles.
    """

    images: Tensor
    pixel_ratio: float

    @classmethod
    def of(
        cls, images: np.ndarray | Tensor, *, box: int, pixel_size_A: float | None, particle_pixel_size_A: float | None
    ) -> StartReferences:
        """Check the images against the particles they are to be compared with.

        Parameters
        ----------
        images : ndarray or Tensor of shape (k, n, n)
            Class averages.
        box : int
            Of the particles, pixels.
        pixel_size_A, particle_pixel_size_A : float or None
            Of the images and of the particles; where one is unknown both must have the same box.

        Returns
        -------
        StartReferences
            The images.
        """
        tensor = torch.as_tensor(images, dtype=torch.float32)
        if tensor.ndim != 3 or tensor.shape[-1] != tensor.shape[-2] or len(tensor) == 0:
            raise RalibError(f"`references` must be square images (k, box, box), not of shape {tuple(tensor.shape)}")
        flat = tensor.flatten(1)
        bad = ~torch.isfinite(flat).all(1) | (flat.amax(1) == flat.amin(1))
        if bool(bad.any()):
            raise RalibError(
                f"image {int(bad.int().argmax()) + 1} of `references` is constant or not finite: leave it out"
            )
        if pixel_size_A is not None and particle_pixel_size_A is not None:
            return cls(tensor, pixel_size_A / particle_pixel_size_A)
        if tensor.shape[-1] != box:
            raise RalibError(
                f"`references` are {tensor.shape[-1]} px, particles {box} px, and a pixel size is unknown: give it, "
                "or bring one to the other's box with 'ralib prepare --box'"
            )
        return cls(tensor, 1.0)

    def orders(self, model: Model, rings: int) -> Tensor:
        """Bring the images onto the rings of a model.

        Parameters
        ----------
        model : Model
            The particles and their mask.
        rings : int
            Number of rings compared.

        Returns
        -------
        Tensor of shape (k, r, m)
            Angular orders, of unit power within the mask.
        """
        particles = model.particles
        images = self.images.to(particles.grid.device)
        images = images - images.median(-1).values.median(-1).values[:, None, None]
        magnification = 1 / (self.pixel_ratio * particles.scale)  # working pixels over those of the images
        # Outside its box an image is zero; the trigonometric polynomial through its pixels would be periodic.
        images = _padded(images, math.ceil(particles.grid.box * magnification) + 2)
        masked = resample(images, particles.grid.box, magnification) * particles.mask
        orders = particles.grid.orders_of_image(masked, rings, particles.orders(rings))
        power = ring_power(orders) @ (particles.grid.weight[:rings] * particles.grid.n_half)
        return orders / power.clamp_min(1e-30).sqrt()[:, None, None]

    def matched(self, model: Model, state: State, rings: int) -> Tensor:
        """Return the same with the contrast that the particles have.

        Parameters
        ----------
        model : Model
            The particles.
        state : State
            What is known of them.
        rings : int
            Number of rings r.

        Returns
        -------
        Tensor of shape (k, r, m)
            Angular orders of the references.
        """
        orders = self.orders(model, rings)
        eligible = torch.nonzero(model.shard.gather(model.joins))[:, 0]
        chosen = torch.linspace(0, len(eligible) - 1, min(COMPARED, len(eligible))).long()
        rows = eligible[chosen.to(eligible.device)]
        some, part = model.of(rows), state.of(model.shard.held(rows))
        if model.align:
            found = search_poses(some, some.particles.spectra[:], part.origin_xy_px, orders, None, wide=True)
        else:
            found = search_all(some, orders, part, IterationSettings(rings, 1.0))
        norm = found.norm.clamp_min(1e-30)
        best = (found.cross / norm.sqrt()).argmax(1, keepdim=True)
        contrast = some.shard.median((found.cross / norm).gather(1, best)[:, 0])
        return orders * contrast.clamp_min(1e-12)


def _padded(images: Tensor, box: int) -> Tensor:
    """Return images (k, n, n) in a box of at least so many pixels, with zeros around; pixel n // 2 stays the centre."""
    n = images.shape[-1]
    if n >= box:
        return images
    before = box // 2 - n // 2
    return torch.nn.functional.pad(images, (before, box - n - before) * 2)
