"""The finest detail that images hold: those that were low-pass filtered, or enlarged, hold nothing beyond a frequency.

There the whitened rings would show only what a particle's disc lets through of its coarse detail, which both halves
have in common, with another CTF than the ring's. Images without noise end where their signal has faded.
"""

from __future__ import annotations

import numpy as np
import torch

from ralib.images.fourier import ring_index
from ralib.io.selections import spread_rows, take
from ralib.kernels.complex_numbers import squared
from ralib.particles.batches import ParticleBatches
from ralib.types import ParticleSet

LOOKED_AT = 500
"""Images whose power is averaged, where no others are looked at."""

NOTHING = 3e-3
"""Power of a ring, over that of the strongest one, below which it holds nothing. The noise of real detectors falls to
some hundredths; what a disc lets through of coarse detail has a hundredth to a thousandth."""

COARSEST = 3
"""Rings that are no measure of the others' power: ice and carbon are a hundred times stronger there."""


def spread_batches(particles: ParticleSet, at_most: int, device: torch.device) -> ParticleBatches:
    """Return some of the particles, spread evenly over the set, to be looked at before all are read.

    Parameters
    ----------
    particles : ParticleSet
        All particles.
    at_most : int
        How many are taken, at most.
    device : torch.device
        Where to compute.

    Returns
    -------
    ParticleBatches
        Those particles.
    """
    few = take(particles, spread_rows(len(particles), at_most))
    return ParticleBatches(
        few, range(len(few)), batch_size=1024, device=device, background_radius=0.45 * few.box, turned_often=False
    )


def recorded_per_px(batches: ParticleBatches) -> float:
    """Return the frequency beyond which images hold nothing.

    Parameters
    ----------
    batches : ParticleBatches
        Some of the particles.

    Returns
    -------
    float
        Cycles per pixel; 0.5 where they hold all detail, or are no images at all.
    """
    box = batches.particles.box
    power = torch.zeros(box, box // 2 + 1, dtype=torch.float64, device=batches.device)
    for batch in batches:
        power += squared(torch.fft.rfft2(batch.images)).sum(0, dtype=torch.float64)
    return _last_frequency(power.cpu().numpy())


def _last_frequency(power: np.ndarray) -> float:
    """Frequency at which the power (n, n // 2 + 1) of images ends."""
    box, ring = len(power), ring_index(len(power)).numpy()
    # The edges of a box are on the axes of its transform: a median leaves them out.
    profile = np.array([np.median(power[ring == r]) for r in range(box // 2 + 1)])
    there = np.flatnonzero(profile > NOTHING * profile[min(COARSEST, box // 2) :].max())
    if not len(there) or there[-1] >= box // 2 - 1:
        return 0.5
    return float((there[-1] + 0.5) / box)
