"""Particles in the frame of their class average, as an image source that aligns what it reads."""

from __future__ import annotations

import numpy as np
import torch

from ralib.ops import rotate_shift_images
from ralib.types import ImageSource, ParticleSet, Poses, RalibError


class AlignedImages:
    """The images of `particles`, each brought onto its class average by `poses` (default: the particles' own).

    An `ImageSource`: what the estimators here, and everything else that reads particles, can take.
    """

    def __init__(
        self,
        particles: ParticleSet | ImageSource,
        poses: Poses | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        self._source = particles.images if isinstance(particles, ParticleSet) else particles
        own = particles.poses if isinstance(particles, ParticleSet) else None
        chosen = poses if poses is not None else own
        if chosen is None:
            raise RalibError("the particles have no poses: align them first, or pass poses")
        if len(chosen) != self._source.n_images:
            raise RalibError(f"{len(chosen)} poses for {self._source.n_images} particles: they must be as many")
        self._poses, self._device = chosen, torch.device(device)
        self.n_images, self.box = self._source.n_images, self._source.box

    def read(self, index: np.ndarray) -> np.ndarray:
        """Aligned float32 images (len(index), box, box)."""
        images = torch.from_numpy(self._source.read(index)).to(self._device)
        pose = self._poses[torch.as_tensor(index, device=self._poses.psi_deg.device)].to(self._device)
        aligned = rotate_shift_images(images, pose.psi_deg, pose.origin_xy_px, pose.mirror)
        return aligned.cpu().numpy()
