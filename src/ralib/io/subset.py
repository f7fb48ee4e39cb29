"""Selections of particles, in any order, with all that is known of them."""

from __future__ import annotations

import numpy as np

from ralib.types import ParticleSet


def take(particles: ParticleSet, index: np.ndarray) -> ParticleSet:
    """Select particles: images, CTF, poses, groups and the rows of their file's tables.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    index : ndarray of shape (m,)
        Numbers of those selected, in any order.

    Returns
    -------
    ParticleSet
        The selection.
    """
    return particles[np.asarray(index, dtype=np.int64).reshape(-1)]
