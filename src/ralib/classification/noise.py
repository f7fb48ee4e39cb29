"""Noise spectrum of each group of particles, measured on the disc that holds the particle.

The corners of a box do not show the noise under the particle on its coarsest rings: the plane fitted to them was
subtracted there, while the level, the gradient and slow variations of the ice remain inside, and would count as signal
if they were not known as noise. So the spectrum is that of the disc itself, which holds the particle. At first all of
it counts as noise, as in RELION's first iteration; once there are classes, the signal they explain is subtracted
(`Model.noise_ratio`).
"""

from __future__ import annotations

import numpy as np

POOL = 10.0
"""A group's noise spectrum counts as many particles as it has, the average over all groups as this many."""


def noise_spectra(
    power: np.ndarray, group: np.ndarray, typical: np.ndarray, passed: np.ndarray | None = None
) -> np.ndarray:
    """Compute the noise power of each particle's group: the group's mean, pooled with that of all particles.

    Parameters
    ----------
    power : ndarray of shape (n, R)
        Power of each image on the rings.
    group : ndarray of shape (n,)
        Micrograph or optics group of each.
    typical : ndarray of shape (n,)
        Whether an image counts: one gold bead has the power of hundreds of particles.
    passed : ndarray | None of shape (n, R), optional
        Share of the noise's power left in images that were filtered before; by default all of it.

    Returns
    -------
    ndarray of shape (n, R)
        Noise power.
    """
    typical = typical if typical.any() else np.ones_like(typical)
    names, index = np.unique(group, return_inverse=True)
    sums = np.zeros((len(names), power.shape[1]))
    np.add.at(sums, index[typical], power[typical])
    count: np.ndarray = np.bincount(index[typical], minlength=len(names))[:, None]
    pool: float | np.ndarray = POOL
    if passed is not None:
        count = np.zeros((len(names), power.shape[1]))
        np.add.at(count, index[typical], passed[typical])
        pool = np.maximum(POOL * passed[typical].mean(0), 1e-3)
    spectrum = (sums + POOL * power[typical].mean(0)) / (count + pool)
    return np.maximum(spectrum, 1e-3 * spectrum.max())[index].astype(np.float32)
