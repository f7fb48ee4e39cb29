"""The particles of a parity run: read, checked and prepared in batches as mref_ali2d and ali2d prepare them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ralib.images.masks import mean_under, model_circle, statistics_under
from ralib.images.normalise import usable_images
from ralib.io import for_computing
from ralib.runtime.memory import free_memory
from ralib.sparx.ctf import ctf_2, filt_ctf
from ralib.types import ArraySource, ParticleSet, RalibError

BATCH_PIXELS = 2**22
KEPT_SHARE = 0.3
"""Of the free memory: what prepared particles may take between iterations."""
Input = ParticleSet | np.ndarray | Tensor


def as_particle_set(given: Input) -> ParticleSet:
    """Return a particle set of a set, or of images (n, box, box)."""
    if isinstance(given, ParticleSet):
        return given
    images = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if images.ndim != 3 or images.shape[-1] != images.shape[-2]:
        raise RalibError(f"particles are square images (n, box, box), not {images.shape}")
    return ParticleSet(ArraySource(images))


def ring_mask(mask: np.ndarray | Tensor | None, outer_radius: int, box: int, device: torch.device) -> Tensor:
    """Return the mask given, or the disc of the outer radius.

    Parameters
    ----------
    mask : ndarray, Tensor of shape (box, box) or None
        The mask, or None.
    outer_radius : int
        Radius of the disc, pixels.
    box : int
        Image size, pixels.
    device : torch.device
        Where the result is.

    Returns
    -------
    Tensor of shape (box, box)
        The mask.
    """
    if mask is None:
        return model_circle(outer_radius, box, device)
    given = torch.as_tensor(mask, dtype=torch.float32, device=device)
    if given.shape != (box, box):
        raise RalibError(f"the mask is {tuple(given.shape)} px, the particles {box}: bring one to the other's box")
    return given


@dataclass(frozen=True)
class ParityParticles:
    """Particles in batches on a device.

    Attributes
    ----------
    particles : ParticleSet
        The particles.
    mask : Tensor of shape (n, n)
        Mask under which SPARX computes image statistics.
    scaled : bool
        mref: mean 0 and standard deviation 1 under the mask; else (ali2d) only the mean outside the mask is subtracted.
    ctf : bool
        Whether the CTF is used: mref multiplies by it, ali2d flips phases.
    device : torch.device
        Where the batches are put.
    batch_size : int, optional
        Particles of a batch; by default as memory allows.
    """

    particles: ParticleSet
    mask: Tensor
    scaled: bool
    ctf: bool
    device: torch.device
    batch_size: int | None = None
    _kept: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _keep: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if len(self.particles) == 0:
            raise RalibError("the stack holds no particles: nothing to align")
        if self.batch_size is not None and self.batch_size < 1:
            raise RalibError(f"a batch of {self.batch_size} particles is too small: use at least 1")
        if self.ctf and (self.particles.ctf is None or self.particles.pixel_size_A is None):
            raise RalibError("`CTF` needs CTF parameters and a pixel size: give a file that has them, or leave it out")
        object.__setattr__(self, "particles", for_computing(self.particles, ctf=self.ctf))
        if self.ctf and self.particles.ctf is not None and self.particles.ctf.state.any():
            raise RalibError(
                "`CTF`: the phases of these images are flipped, or they are multiplied by their CTF, already (the file "
                "says so), and SPARX takes only images as they were taken: leave `CTF` out"
            )
        if self.particles.usable is not None and not self.particles.usable.all():
            raise RalibError(f"{self.particles.warnings[-1].what}, and SPARX leaves out none: take them out")
        needed_bytes = 4 * len(self.particles) * self.particles.box**2
        object.__setattr__(self, "_keep", needed_bytes < KEPT_SHARE * free_memory(self.device))

    def __len__(self) -> int:
        return len(self.particles)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Particle numbers (b,) on the device and their prepared images (b, n, n)."""
        size = self.batch_size or max(1, min(256, BATCH_PIXELS // self.particles.box**2))
        for number, index in enumerate(torch.arange(len(self)).split(size)):
            images = self._kept[number] if number in self._kept else self.read(index)
            if self._keep:
                self._kept[number] = images
            yield index.to(self.device), images

    def read(self, index: Tensor) -> Tensor:
        """Return prepared images (b, n, n) of the particles `index` (b,)."""
        rows = index.cpu().numpy()
        images = torch.from_numpy(self.particles.images.read(rows)).to(self.device, torch.float32)
        bad = ~usable_images(images)
        if bool(bad.any()):
            first = int(rows[int(bad.int().argmax())]) + 1
            raise RalibError(f"particle {first} is constant or not finite, and SPARX has no use for it: take it out")
        if self.ctf or not self.scaled:
            images = images - mean_under(images, self.mask, inside=False)[:, None, None].float()
        if self.ctf:
            images = self._ctf_applied(images, rows)
        if self.scaled:
            mean, sd = statistics_under(images, self.mask)
            images = (images - mean[:, None, None].float()) / sd[:, None, None].float()
        return images

    def ctf_squared(self, index: Tensor) -> Tensor:
        """Return squared CTF profiles (b, m) of the particles `index` (b,)."""
        ctf, pixel_size_A = self.particles.ctf, self.particles.pixel_size_A
        assert ctf is not None
        assert pixel_size_A is not None
        return ctf_2(ctf[index.cpu().numpy()], self.particles.box, pixel_size_A, self.device)

    def _ctf_applied(self, images: Tensor, rows: np.ndarray) -> Tensor:
        ctf, pixel_size_A = self.particles.ctf, self.particles.pixel_size_A
        assert ctf is not None
        assert pixel_size_A is not None
        return filt_ctf(images, ctf[rows], pixel_size_A, binary=not self.scaled)
