"""Noise spectrum of each group of particles, measured on the disc that holds the particle.

The corners of a box do not show the noise under the particle on its coarsest rings: the plane fitted to them was
subtracted there, while the level, the gradient and slow variations of the ice remain inside, and would count as signal
if they were not known as noise. So the spectrum is that of the disc itself, which holds the particle. At first all of
it counts as noise, as in RELION's first iteration; once there are classes, the signal they explain is subtracted
(`residuals.noise_ratio`).
"""

from __future__ import annotations

import numpy as np
import torch

from ralib.classification.sharding import Shard

POOL = 10.0
"""Weight, in particles, of the mean spectrum of all groups when a group's own is pooled with it."""


def noise_spectra(
    power: np.ndarray,
    group: np.ndarray,
    typical: np.ndarray,
    passed: np.ndarray | None = None,
    shard: Shard | None = None,
) -> np.ndarray:
    """Compute the noise power of each particle's group: the group's mean, pooled with that of all particles.

    Parameters
    ----------
    power : ndarray of shape (n, R)
        Power of each image on the rings.
    group : ndarray of shape (m,)
        Micrograph or optics group of all m particles.
    typical : ndarray of shape (n,)
        Whether an image counts: one gold bead has the power of hundreds of particles.
    passed : ndarray | None of shape (n, R), optional
        Share of the noise's power left in images that were filtered before; by default all of it.
    shard : Shard, optional
        Which n of all particles these are; by default all of them.

    Returns
    -------
    ndarray of shape (n, R)
        Noise power.
    """
    shard = shard or Shard.of_all(len(power))
    chosen = torch.from_numpy(typical)
    if not int(shard.count(chosen)):
        chosen = torch.ones_like(chosen)
    names, index = np.unique(group, return_inverse=True)
    own = torch.from_numpy(index)[shard.rows]
    share = torch.ones(power.shape, dtype=torch.float64) if passed is None else torch.from_numpy(passed)
    sums = shard.sum_by(own[chosen], torch.from_numpy(power)[chosen], len(names)).numpy()
    count = shard.sum_by(own[chosen], share[chosen], len(names)).numpy()
    total, everyone = sums.sum(0), int(shard.count(chosen))
    pool = np.maximum(POOL * count.sum(0) / everyone, 1e-3)
    spectrum = (sums + POOL * total / everyone) / (count + pool)
    return np.maximum(spectrum, 1e-3 * spectrum.max())[own.numpy()].astype(np.float32)
