"""The CTF of particles on the Fourier rings: the factor still to multiply by, and the noise after earlier treatment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ralib.classification.ring_grid import RingGrid
from ralib.images.ctf import ctf_2d, ctf_polar, matched_filter, noise_gain
from ralib.particles.batches import AT_ONCE
from ralib.runtime.chunks import in_gpu_chunks
from ralib.types import CtfParameters, CtfState, ParticleSet


@dataclass(frozen=True)
class RingCtf:
    """The CTF of every particle on the rings, 0 for those that are not usable.

    Attributes
    ----------
    ctf : CtfParameters
        CTF parameters.
    grid : RingGrid
        The ring grid.
    per_A : float
        Cycles per Angstrom for a ring's cycles per pixel.
    usable : Tensor of shape (n,)
        True for usable images.
    """

    ctf: CtfParameters
    grid: RingGrid
    per_A: float
    usable: Tensor

    def of(self, cut: slice) -> Tensor:
        """Return the CTF (b, R, A) of the particles `cut`."""
        transfer = ctf_polar(self.ctf[cut], self.grid.frequency * self.per_A, self.grid.angle_rad)
        return torch.where(self.usable[cut, None, None], transfer, 0.0)

    def left(self, cut: slice, transfer: Tensor) -> Tensor:
        """Return the factor by which the particles `cut` are still to be multiplied.

        Parameters
        ----------
        cut : slice
            Some of the particles.
        transfer : Tensor of shape (b, R, A)
            Their CTF.

        Returns
        -------
        Tensor of shape (b, R, A)
            The factor.
        """
        return torch.where(self.usable[cut, None, None], matched_filter(self.ctf[cut], transfer), 0.0)

    def noise_power(self) -> np.ndarray:
        """Return the share of the noise's power (n, R) left in images multiplied by their CTF, 1 in others."""
        multiplied = self.ctf.state == CtfState.PREMULTIPLIED
        passed = np.ones((len(multiplied), self.grid.n_rings))
        for first in range(0, len(multiplied), 1024):
            cut = slice(first, first + 1024)
            mean = mean_square(self.of(cut)).double().cpu().numpy()
            passed[cut] = np.where(multiplied[cut, None], mean, 1.0)
        return passed


def ring_ctf(
    particles: ParticleSet, rows: slice, grid: RingGrid, scale: float, usable: Tensor, ctf: str
) -> RingCtf | None:
    """Return the CTF of some particles on the rings.

    Parameters
    ----------
    particles : ParticleSet
        All particles.
    rows : slice
        Which n of them.
    grid : RingGrid
        The ring grid.
    scale : float
        Working pixels for each pixel of the input.
    usable : Tensor of shape (n,)
        True for usable images.
    ctf : str
        'off' or 'on'.

    Returns
    -------
    RingCtf or None
        None where there is no CTF to correct for.
    """
    if ctf == "off" or particles.ctf is None or particles.pixel_size_A is None:
        return None
    return RingCtf(particles.ctf[rows], grid, scale / particles.pixel_size_A, usable)


def mean_square(transfer: Tensor) -> Tensor:
    """Return the mean square (b, R) of a CTF (b, R, A) over the angles."""
    return in_gpu_chunks(lambda part: part.square().mean(-1), transfer, AT_ONCE)


def noise_sd(particles: ParticleSet, index: np.ndarray, usable: Tensor) -> Tensor:
    """Return the standard deviation of the background of images whose CTF was treated before.

    Parameters
    ----------
    particles : ParticleSet
        All particles.
    index : ndarray of shape (b,)
        Numbers of the images among them.
    usable : Tensor of shape (b,)
        True for usable images.

    Returns
    -------
    Tensor of shape (b, 1, 1)
        Standard deviation, where that of the micrograph is 1; 1 for images that cannot be used.
    """
    assert particles.ctf is not None
    assert particles.pixel_size_A is not None
    own = particles.ctf[index]
    gain = noise_gain(own, ctf_2d(own, particles.box, particles.pixel_size_A, device=usable.device))
    return torch.where(usable, gain, 1.0)[:, None, None]
