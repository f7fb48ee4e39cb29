"""Particles in the frame of their class average: stored poses applied to images as they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ralib.images.normalise import finite_images, without_offset
from ralib.kernels import rotate_shift_images
from ralib.kernels.interpolation.reference import METHODS
from ralib.types import ImageSource, ParticleSet, Poses, RalibError


def align_particles(
    particles: ParticleSet, *, method: str = "cubic", device: torch.device | str = "cpu"
) -> ParticleSet:
    """Apply the stored poses to particles when they are read (SPARX's `transform2d`).

    Poses become the identity (classes stay), and the direction of astigmatism is rotated with the image.

    Parameters
    ----------
    particles : ParticleSet
        Particles with poses.
    method : str, default 'cubic'
        Interpolation; see `ralib.kernels.rotate_shift_images`.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Returns
    -------
    ParticleSet
        Aligned particles.

    Raises
    ------
    RalibError
        If there are no poses.
    """
    if method not in METHODS:
        raise RalibError(f"`method` {method!r} is no interpolation: choose one of {', '.join(METHODS)}")
    poses = particles.poses
    if poses is None:
        raise RalibError("these particles have no poses to apply: give the particles.star of an alignment")
    ctf = particles.ctf
    if ctf is not None:
        turned = ctf.astigmatism_angle_deg + poses.psi_deg.numpy()
        ctf = replace(ctf, astigmatism_angle_deg=np.where(poses.mirror.numpy(), -turned, turned) % 180.0)
    identity = Poses.identity(len(poses)).replace(class_index=poses.class_index, score=poses.score)
    source = AlignedSource(particles.images, poses, method, torch.device(device))
    return particles.replace(images=source, poses=identity, ctf=ctf)


@dataclass
class AlignedSource:
    """An image source that transforms images into the frame of their class average when they are read.

    Attributes
    ----------
    source : ImageSource
        Where images are read from.
    poses : Poses
        Pose of each image.
    method : str
        Interpolation; see `ralib.kernels.rotate_shift_images`.
    device : torch.device
        Where to compute.
    bad : set of int, optional
        Where given, images that are not finite become zeros, and their numbers are added; else they stay.
    """

    source: ImageSource
    poses: Poses
    method: str
    device: torch.device
    bad: set[int] | None = None

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.source.n_images

    @property
    def box(self) -> int:
        """Image size, pixels."""
        return self.source.box

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return aligned images (b, n, n) in the order of `index` (b,)."""
        images = torch.from_numpy(self.source.read(index)).to(self.device)
        if self.bad is not None:
            finite = finite_images(images)
            self.bad.update(index[~finite.cpu().numpy()].tolist())
            images = torch.where(finite[:, None, None], images, 0.0)
        images, offset = without_offset(images)
        p = self.poses[torch.as_tensor(index)].to(self.device)
        turned = rotate_shift_images(images, p.psi_deg, p.origin_xy_px, p.mirror, method=self.method, boundary="mean")
        return (turned.float() + offset).cpu().numpy()
