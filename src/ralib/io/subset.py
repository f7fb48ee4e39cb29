"""Some of the particles, in any order, with all that is known of them."""

from __future__ import annotations

import numpy as np

from ralib.types import ParticleSet


def take(particles: ParticleSet, index: np.ndarray) -> ParticleSet:
    """Particles `index` (m,) of the set: images, CTF, poses, groups and the rows of their file's tables."""
    return particles[np.asarray(index, dtype=np.int64).reshape(-1)]
