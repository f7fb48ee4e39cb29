"""The noise that particles are weighed against: a spectrum for each group, measured where the particles are.

The corners of a box do not tell the noise under the particle in its coarsest rings: the plane that was fitted to them
has been taken out there, while the level, the gradient and the slow glow of the ice remain inside, and count as signal
if they are not known as noise. So the spectrum is that of the disc itself, in which the particle stands. At first all
of it counts as noise, as in RELION's first iteration; once there are classes, what they explain is taken out
(`Model.noise_ratio`).
"""

from __future__ import annotations

import numpy as np

POOL = 10.0
"""A group's noise spectrum counts as many particles as it has, the average over all groups as this many."""


def noise_spectra(
    power: np.ndarray, group: np.ndarray, typical: np.ndarray, passed: np.ndarray | None = None
) -> np.ndarray:
    """Noise power (n, R) of each particle's group: the group's mean, pooled with that of all particles.

    power   (n, R) power of each particle's image on the rings
    group   (n,) its micrograph or optics group
    typical (n,) whether it counts: one gold bead has the power of hundreds of particles
    passed  (n, R) share of the noise's power left in an image that was filtered before; None: all of it
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
