"""Denoised particles as an image source, and class averages of neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ralib.analysis.covariance_wiener import CovarianceWienerFilter
from ralib.analysis.neighbours import Neighbours
from ralib.images.ctf import apply_ctf, ctf_2d
from ralib.types import ParticleSet


@dataclass(frozen=True)
class DenoisedSource:
    """Particles restored by a covariance Wiener filter when they are read.

    Attributes
    ----------
    model : CovarianceWienerFilter
        The fitted filter.
    scores : ndarray of shape (n, k)
        Scores of the particles.
    particles : ParticleSet
        The particles themselves.
    keep_ctf : bool
        Whether images are multiplied by their CTF again (its absolute value where phases were flipped), so that the
        particles' metadata stay true.
    """

    model: CovarianceWienerFilter
    scores: np.ndarray
    particles: ParticleSet
    keep_ctf: bool

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.scores)

    @property
    def box(self) -> int:
        """Image size, pixels."""
        return self.particles.box

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return denoised images (b, h, h) in the order of `index` (b,)."""
        images = self.model.images(self.scores[index]).astype(np.float32)
        ctf, pixel_size_A = self.particles.ctf, self.particles.pixel_size_A
        if not self.keep_ctf or ctf is None or pixel_size_A is None:
            return images
        plane = ctf_2d(ctf[index], self.box, pixel_size_A)
        flipped = torch.from_numpy(ctf.state[index] != 0)[:, None, None]
        return apply_ctf(torch.from_numpy(images), torch.where(flipped, plane.abs(), plane)).numpy()


def neighbour_averages(
    model: CovarianceWienerFilter, scores: np.ndarray, found: Neighbours, particles: np.ndarray
) -> np.ndarray:
    """Average particles with their neighbours, aligned.

    Rotations and mirrors act on the scores, so that nothing is interpolated.

    Parameters
    ----------
    model : CovarianceWienerFilter
        The fitted filter.
    scores : ndarray of shape (n, k)
        Scores of all particles.
    found : Neighbours
        Neighbours of all particles.
    particles : ndarray of shape (m,)
        Particles to average.

    Returns
    -------
    ndarray of shape (m, h, w)
        Averages of denoised images.
    """
    total = scores[particles].astype(np.complex64)
    sign = np.where(model.order_ % 2 == 0, 1.0, -1.0)
    for j in range(found.index.shape[1]):
        other = model.rotate(scores[found.index[particles, j]], found.psi_deg[particles, j])
        total += np.where(found.mirror[particles, j][:, None], sign * other.conj(), other)
    return model.images((total / (1 + found.index.shape[1])).astype(np.complex64)).astype(np.float32)
