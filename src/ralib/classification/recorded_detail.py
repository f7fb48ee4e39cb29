"""The finest detail that images hold: those that were low-pass filtered, or enlarged, hold nothing beyond a frequency.

There the whitened rings would show only what a particle's disc lets through of its coarse detail, which both halves
have in common, with another CTF than the ring's. Images without noise end where their signal has faded.
"""

from __future__ import annotations

import numpy as np
import torch

from ralib.images.fourier import ring_index
from ralib.io import take
from ralib.particles.batches import ParticleBatches
from ralib.types import ParticleSet

LOOKED_AT = 500
"""Images whose power is averaged, at most, spread evenly over the set."""

NOTHING = 3e-3
"""Power of a ring, over that of the strongest one, below which it holds nothing. The noise of real detectors falls to
some hundredths; what a disc lets through of coarse detail has a hundredth to a thousandth."""

COARSEST = 3
"""Rings that are no measure of the others' power: ice and carbon are a hundred times stronger there."""


def recorded_per_px(particles: ParticleSet, device: torch.device) -> float:
    """Return the frequency beyond which images hold nothing.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    device : torch.device
        Where to compute.

    Returns
    -------
    float
        Cycles per pixel; 0.5 where they hold all detail, or are no images at all.
    """
    few, box = take(particles, spread_rows(len(particles), LOOKED_AT)), particles.box
    batches = ParticleBatches(
        few, range(len(few)), batch_size=LOOKED_AT, device=device, background_radius=0.45 * box, resident_bytes=0
    )
    power = torch.zeros(box, box // 2 + 1, dtype=torch.float64, device=device)
    for batch in batches:
        power += torch.fft.rfft2(batch.images).abs().double().square().sum(0)
    return _last_frequency(power.cpu().numpy())


def spread_rows(n: int, at_most: int) -> np.ndarray:
    """Return the numbers of particles spread evenly over a set.

    Parameters
    ----------
    n : int
        Number of all particles.
    at_most : int
        How many are taken, at most.

    Returns
    -------
    ndarray of shape (m,)
        Numbers, ascending.
    """
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64))


def _last_frequency(power: np.ndarray) -> float:
    """Frequency at which the power (n, n // 2 + 1) of images ends."""
    box, ring = len(power), ring_index(len(power)).numpy()
    # The edges of a box are on the axes of its transform: a median leaves them out.
    profile = np.array([np.median(power[ring == r]) for r in range(box // 2 + 1)])
    there = np.flatnonzero(profile > NOTHING * profile[min(COARSEST, box // 2) :].max())
    if not len(there) or there[-1] >= box // 2 - 1:
        return 0.5
    return float((there[-1] + 0.5) / box)
