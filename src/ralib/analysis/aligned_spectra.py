"""Spectra of aligned particles in a half plane, matched to their CTF: the data of components and states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.analysis.half_plane import HalfPlane
from ralib.analysis.matched import MatchedParticles

CHUNK = 4096


@dataclass
class AlignedSpectra:
    """Matched filters of aligned particles in a half plane.

    Attributes
    ----------
    plane : HalfPlane
        The half plane.
    matched : Tensor of shape (n, 2, d)
        Matched filters, without the noise.
    ctf2 : Tensor of shape (n, d)
        C^2, without the noise.
    noise_power : Tensor of shape (R,)
        Noise power of each ring, which divides both; it is estimated with the components.
    """

    plane: HalfPlane
    matched: Tensor
    ctf2: Tensor
    noise_power: Tensor

    def __len__(self) -> int:
        return len(self.matched)

    @property
    def weight(self) -> Tensor:
        """The precision 1 / sigma^2 (d,)."""
        return self.plane.spread(1 / self.noise_power)

    def mean_precision(self) -> Tensor:
        """Return the mean of C^2 / sigma^2 (d,) over the particles."""
        return self.ctf2.mean(0) * self.weight

    def chunks(self) -> Iterator[slice]:
        """Iterate over the particles in slices."""
        for start in range(0, len(self), CHUNK):
            yield slice(start, min(start + CHUNK, len(self)))


def aligned_spectra(matched: MatchedParticles, plane: HalfPlane, noise_power: Tensor | None = None) -> AlignedSpectra:
    """Read all particles into a half plane.

    Parameters
    ----------
    matched : MatchedParticles
        Particles.
    plane : HalfPlane
        The half plane.
    noise_power : Tensor of shape (R,), optional
        Initial noise power; by default the background's spectrum.

    Returns
    -------
    AlignedSpectra
        Matched filters.
    """
    ring = torch.arange(plane.n_rings, device=matched.device) / plane.box
    background = matched.noise.at(ring)
    weight = plane.spread(background)
    spectra = torch.empty(matched.n, 2, len(plane.index), device=matched.device)
    ctf2 = torch.empty(matched.n, len(plane.index), device=matched.device)
    for index in matched.index_batches():
        rows = slice(index[0], index[-1] + 1)
        spectrum, precision = matched.aligned(index)
        spectra[rows] = plane.vector(spectrum) * weight
        ctf2[rows] = precision.flatten(1)[:, plane.index] * weight
    return AlignedSpectra(plane, spectra, ctf2, background if noise_power is None else noise_power)
