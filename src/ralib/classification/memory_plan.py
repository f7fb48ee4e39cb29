"""Memory of a run: where spectra are kept, and of how many particles a step computes everything at once.

Spectra are kept in single precision on the device where they fit, else in half precision, or elsewhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ralib.classification.ring_grid import RingGrid
from ralib.runtime.memory import free_memory, total_memory

BLOCK = 4096
"""Particles whose samples are stored together."""

COMFORTABLE = 0.45
"""Share of the device's free memory that spectra may take where they all fit. A step of the search, the fits of all
classes and the other tables of the particles need the rest."""

PART = 0.3
"""Share of the device's free memory that spectra take where they do not fit; the others are read in groups."""

SAMPLE_PART = 0.15
"""Share of the device's free memory, and of what spectra take of it, that those of a sample take at most."""

MAIN_PART = 0.4
"""Share of the free main memory that they take then."""

MAIN_MOST_BYTES = 5 << 30
"""Limit of that, however much is free: a run of a million particles takes as much again for everything else."""

REPORTED_BYTES = 1 << 30
"""Spectra of so many bytes, or more, have a line in the log."""

STEP_BYTES = 4e9
"""Device memory that a step may take beside the particles, where there is so much."""

STEP_SHARE = 0.15
"""Share of a GPU's memory that a step takes at most."""

GROUP_BYTES = 1e9
"""Most bytes of a group of particles in single precision, where all are kept in half; there are two at a time."""

GROUP_SHARE = 0.25
"""Share of the memory of a step that a group takes at most."""

LEAST_BYTES = 3e7
"""A step that cannot allocate this much has nothing left to shrink."""

PARTICLES_AT_ONCE = 4096
"""Particles that are computed at once on a GPU, at most; see `particles_at_once`."""


@dataclass
class Budget:
    """Memory that a step of an iteration may take; halved for the rest of the run where it is not available.

    Attributes
    ----------
    step_bytes : float, default STEP_BYTES
        Bytes.
    """

    step_bytes: float = STEP_BYTES

    @classmethod
    def of(cls, device: torch.device) -> Budget:
        """Return the usual memory, less on a small GPU."""
        usual = STEP_BYTES
        return cls(min(usual, STEP_SHARE * total_memory(device)) if device.type == "cuda" else usual)

    @property
    def group_bytes(self) -> float:
        """Bytes of a group of particles in single precision."""
        return min(GROUP_BYTES, GROUP_SHARE * self.step_bytes)

    def shrink(self) -> bool:
        """Halve the memory, and return whether that was possible."""
        self.step_bytes /= 2
        return self.step_bytes >= LEAST_BYTES


@dataclass(frozen=True)
class SpectraPlan:
    """Where the spectra of n particles are kept.

    Attributes
    ----------
    n : int
        Number of particles of this rank.
    bytes_each : int
        Bytes of one particle, as it is kept.
    half : bool
        Whether in half precision; in single precision all are on the device.
    on_device, in_main : int
        Particles on the device, and in main memory; all others are in a scratch file.
    """

    n: int
    bytes_each: int
    half: bool
    on_device: int
    in_main: int = 0

    @property
    def on_device_bytes(self) -> int:
        """Bytes on the device."""
        return self.on_device * self.bytes_each

    @property
    def precision(self) -> str:
        """The precision in a word."""
        return "half" if self.half else "single"

    def __str__(self) -> str:
        """Return the line of the log."""
        counts = {
            "on the device": self.on_device,
            "in main memory": self.in_main,
            "in a scratch file": self.n - self.on_device - self.in_main,
        }
        parts = [f"{n * self.bytes_each / 2**30:.3g} GiB {where}" for where, n in counts.items() if n]
        return f"spectra in {self.precision} precision: {', '.join(parts)}"

    @property
    def reported(self) -> bool:
        """Whether there is a line in the log: they are large, or not in single precision on the device."""
        return self.half or self.n * self.bytes_each >= REPORTED_BYTES


def plan_spectra(
    n: int, n_samples: int, device: torch.device, *, half: bool = False, taken_bytes: int = 0
) -> SpectraPlan:
    """Decide where spectra are kept.

    Parameters
    ----------
    n : int
        Number of particles of this rank.
    n_samples : int
        Complex samples of each.
    device : torch.device
        Where is computed.
    half : bool, default False
        Whether they are to be in half precision in any case, as in the run that is continued.
    taken_bytes : int, default 0
        Of the device's free memory: what images that are kept there will take.

    Returns
    -------
    SpectraPlan
        The plan.
    """
    free, single = max(0, free_memory(device) - taken_bytes), 8 * n_samples
    if n == 0 or (not half and n * single <= COMFORTABLE * free):
        return SpectraPlan(n, single, half=False, on_device=n)
    fits = n * single // 2 <= COMFORTABLE * free
    return _plan_in_half(n, n_samples, device, (COMFORTABLE if fits else PART) * free)


def plan_sample(n: int, n_samples: int, device: torch.device, others_bytes: int) -> SpectraPlan:
    """Decide where the spectra of a sample are kept, in half precision, beside those of all particles.

    Parameters
    ----------
    n, n_samples, device
        See `plan_spectra`.
    others_bytes : int
        Spectra of all particles that are on the device.

    Returns
    -------
    SpectraPlan
        The plan.
    """
    return _plan_in_half(n, n_samples, device, SAMPLE_PART * (free_memory(device) + others_bytes))


def _plan_in_half(n: int, n_samples: int, device: torch.device, room_bytes: float) -> SpectraPlan:
    """The plan of spectra in half precision that may take so much of the device's memory."""
    each = 4 * n_samples
    if n * each <= room_bytes:
        return SpectraPlan(n, each, half=True, on_device=n)
    on_device = min(n, _blocks(room_bytes, each))
    main_bytes = min(MAIN_MOST_BYTES, MAIN_PART * free_memory(torch.device("cpu"))) if device.type == "cuda" else 0.0
    return SpectraPlan(n, each, half=True, on_device=on_device, in_main=min(n - on_device, _blocks(main_bytes, each)))


def _blocks(free_bytes: float, bytes_each: int) -> int:
    """Particles of the whole blocks that fit."""
    return int(free_bytes / (bytes_each * BLOCK)) * BLOCK


def particles_at_once(n: int) -> int:
    """Return of how many particles a GPU computes everything at once, as far as memory allows.

    Libraries round a product's rows otherwise where there are more or fewer of them. So chunks have one size, which
    follows from the number of all particles: no rank's share of them, and no free memory changes a bit of a particle.

    Parameters
    ----------
    n : int
        Number of all particles.

    Returns
    -------
    int
        Number of particles of a chunk, a multiple of 128.
    """
    return 128 * max(1, math.ceil(n / (128 * math.ceil(n / PARTICLES_AT_ONCE)))) if n else 128


def samples_at_once(grid: RingGrid, rings: int, most: int, memory_bytes: float) -> int:
    """Return the number of particles, at most `most`, of which a step may hold all samples a dozen times.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    rings : int
        Number of rings.
    most : int
        Upper limit.
    memory_bytes : float
        Memory of a step.

    Returns
    -------
    int
        Number of particles.
    """
    return max(16, min(most, int(memory_bytes / (100.0 * rings * grid.n_half))))
