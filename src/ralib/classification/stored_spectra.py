"""Spectra of more particles than fit in single precision: in half precision, on the device, in main memory, or on disk.

Samples are kept as pairs of half-precision numbers, scaled for each particle and ring. Whitening and later changes of
the noise are factors of that scale: the numbers stay as they were written. They are read a group of particles at a
time, in single precision, with no more rings than are compared; where a group was kept changes none of its bits.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ralib.classification.likelihood import Spectra
from ralib.classification.memory_plan import BLOCK, GROUP_BYTES, SpectraPlan, plan_sample
from ralib.kernels.complex_numbers import squared
from ralib.kernels.threads import Threads
from ralib.types import RalibError

LARGEST = 2.0**14
"""Largest number of a particle's ring after scaling: half precision ends at 65,504."""


class Block(Protocol):
    """Samples (rings, b, angles, 2) of up to BLOCK particles, half precision."""

    def write(self, samples: Tensor) -> None:
        """Store all rings of the samples, which are on the device."""
        ...

    def fetch(self, rings: int) -> Tensor:
        """Return the first rings; may run in another thread than the computation."""
        ...


class MemoryBlock:
    """Samples in the device's memory, or in pinned main memory, from which a GPU reads directly.

    Parameters
    ----------
    device : torch.device
        Where the samples are held.
    pinned : bool, default False
        Whether main memory is pinned.
    """

    def __init__(self, device: torch.device, *, pinned: bool = False) -> None:
        self._device, self._pinned = device, pinned

    def write(self, samples: Tensor) -> None:
        """See `Block`."""
        held = torch.empty(samples.shape, dtype=torch.float16, device=self._device, pin_memory=self._pinned)
        self._samples = held.copy_(samples)

    def fetch(self, rings: int) -> Tensor:
        """See `Block`."""
        return self._samples[:rings]


class ScratchFile:
    """A temporary file without a name, which the system removes when the process ends.

    Parameters
    ----------
    pinned : bool
        Whether samples are read into pinned memory.
    """

    def __init__(self, *, pinned: bool) -> None:
        try:
            self._file, path = tempfile.mkstemp(prefix="ralib-")
        except OSError as error:
            raise _disk_full(error) from error
        Path(path).unlink()
        weakref.finalize(self, os.close, self._file)
        self._pinned = pinned
        self._end = 0
        self._buffers: list[Tensor] = []

    def append(self, samples: Tensor) -> int:
        """Write samples, and return where they begin."""
        raw, start = memoryview(samples.cpu().view(torch.uint8).numpy().ravel().data), self._end
        try:
            while len(raw):
                done = os.pwrite(self._file, raw, self._end)
                self._end, raw = self._end + done, raw[done:]
        except OSError as error:
            raise _disk_full(error) from error
        return start

    def read(self, start: int, shape: tuple[int, ...]) -> Tensor:
        """Return samples, valid until the second next call.

        Parameters
        ----------
        start : int
            Where they begin.
        shape : tuple of int
            Their shape.

        Returns
        -------
        Tensor
            Samples in half precision, in main memory.
        """
        count = int(torch.Size(shape).numel())
        buffer = self._buffers.pop(0) if len(self._buffers) > 1 else None
        if buffer is None or len(buffer) < count:
            buffer = torch.empty(count, dtype=torch.float16, pin_memory=self._pinned)
        self._buffers.append(buffer)
        raw, at = memoryview(buffer[:count].view(torch.uint8).numpy().data), 0
        while at < len(raw):
            done = os.preadv(self._file, [raw[at:]], start + at)
            if done == 0:
                raise RalibError("the scratch file of the spectra ended early: the disk may have failed")
            at += done
        return buffer[:count].view(shape)


def _disk_full(error: OSError) -> RalibError:
    return RalibError(
        f"scratch file of the spectra in {tempfile.gettempdir()}: {error.strerror}: set TMPDIR to a larger disk"
    )


class FileBlock:
    """Samples in a scratch file.

    Parameters
    ----------
    file : ScratchFile
        The file.
    """

    def __init__(self, file: ScratchFile) -> None:
        self._file = file

    def write(self, samples: Tensor) -> None:
        """See `Block`."""
        self._shape = samples.shape
        self._start = self._file.append(samples)

    def fetch(self, rings: int) -> Tensor:
        """See `Block`."""
        return self._file.read(self._start, (rings, *self._shape[1:]))


@dataclass(frozen=True)
class StoredSpectra:
    """Spectra of n particles as `Spectra` has them, kept in blocks.

    Attributes
    ----------
    blocks_kept : list of Block
        The samples, BLOCK particles in each but the last.
    scale : Tensor of shape (n, R)
        What a stored number is multiplied by.
    power : Tensor of shape (n, R)
        As in `Spectra`.
    energy : Tensor of shape (n, R)
        As in `Spectra`.
    on_device_bytes : int
        What the samples take of the device's memory.
    """

    blocks_kept: list[Block]
    scale: Tensor
    power: Tensor
    energy: Tensor
    on_device_bytes: int

    def __len__(self) -> int:
        return len(self.power)

    def divided(self, ratio: Tensor) -> StoredSpectra:
        """Return the spectra for `ratio` (R,) times the noise power."""
        return replace(self, scale=self.scale / ratio, power=self.power / ratio, energy=self.energy / ratio.square())

    def without(self, rings: Tensor) -> StoredSpectra:
        """Return the spectra with nothing on some rings (R,)."""
        keep = ~rings
        return replace(self, scale=self.scale * keep, power=self.power * keep, energy=self.energy * keep)

    def blocks(self, rings: int, most: int, most_bytes: float) -> Iterator[tuple[slice, Spectra]]:
        """Iterate over groups of particles, in single precision with the first rings.

        Parameters
        ----------
        rings : int
            Number of rings r.
        most : int
            Particles of a group at most, or BLOCK where that is more.
        most_bytes : float
            Bytes of their spectra at most, or those of BLOCK particles.

        Yields
        ------
        slice
            The particles of a group.
        Spectra
            Their spectra, data (b, r, H), power (b, R).
        """
        per_particle = 8 * rings * self._angles
        count = max(1, min(most, int(most_bytes / per_particle)) // BLOCK)
        fetched = _ahead(self.blocks_kept, rings)
        for first in range(0, len(self.blocks_kept), count):
            rows = slice(first * BLOCK, min((first + count) * BLOCK, len(self)))
            data = self._empty(rows.stop - rows.start, rings)
            for at in range(0, len(data), BLOCK):
                data[at : at + BLOCK] = self._single(next(fetched), rows.start + at)
            yield rows, Spectra(data, self.power[rows])

    def __getitem__(self, rows: Tensor | slice) -> Spectra:
        """Return some particles with all rings, in single precision."""
        every = torch.arange(len(self), device=self.power.device)
        wanted = every[rows]
        data = self._empty(len(wanted), self.power.shape[1])
        number = wanted // BLOCK
        for b in number.unique().tolist():
            at = torch.nonzero(number == b)[:, 0]
            block = self._single(self.blocks_kept[b].fetch(self.power.shape[1]), b * BLOCK)
            data[at] = block[wanted[at] - b * BLOCK]
        return Spectra(data, self.power[rows])

    def sample(self, rows: Tensor, n: int) -> Spectra | StoredSpectra:
        """Return a sample: in single precision, or as it is kept where that is more than a group.

        Parameters
        ----------
        rows : Tensor of shape (m,)
            Numbers of its particles, ascending.
        n : int
            How many of them all ranks have together: the precision depends on that.

        Returns
        -------
        Spectra or StoredSpectra
            Their spectra.
        """
        rings, device = self.power.shape[1], self.power.device
        if not len(rows) or 8 * n * rings * self._angles <= GROUP_BYTES:
            return self[rows]
        plan = plan_sample(len(rows), rings * self._angles, device, self.on_device_bytes)
        writer = BlockWriter(plan, device)
        for first, samples in zip(itertools.count(0, BLOCK), _ahead(self.blocks_kept, rings), strict=False):
            own = rows[(rows >= first) & (rows < first + BLOCK)] - first
            writer.add(samples.to(device)[:, own].permute(1, 0, 2, 3))
        return StoredSpectra(writer.done(), self.scale[rows], self.power[rows], self.energy[rows], plan.on_device_bytes)

    @cached_property
    def _angles(self) -> int:
        return self.blocks_kept[0].fetch(1).shape[2]

    def _empty(self, n: int, rings: int) -> Tensor:
        return torch.empty(n, rings, self._angles, dtype=torch.complex64, device=self.power.device)

    def _single(self, samples: Tensor, start: int) -> Tensor:
        """Samples (b, r, H) in single precision of those stored (r, b, H, 2) that begin with particle `start`."""
        there = samples.to(self.power.device)
        scale = self.scale[start : start + there.shape[1], : there.shape[0], None]
        return torch.view_as_complex(there.permute(1, 0, 2, 3).float().contiguous()).mul_(scale)


def _ahead(blocks: list[Block], rings: int) -> Iterator[Tensor]:
    """The first rings of all blocks, each fetched while the one before is computed with."""
    with Threads(1) as pool:
        coming: Future[Tensor] = pool.submit(blocks[0].fetch, rings)
        for after in range(1, len(blocks) + 1):
            here = coming.result()
            if after < len(blocks):
                coming = pool.submit(blocks[after].fetch, rings)
            yield here


def empty_blocks(plan: SpectraPlan, device: torch.device) -> Iterator[Block]:
    """Make the blocks of samples one after the other: on the device, then in main memory, then in one file.

    Parameters
    ----------
    plan : SpectraPlan
        The plan.
    device : torch.device
        Where is computed.

    Returns
    -------
    Iterator of Block
        Empty blocks.
    """
    gpu, file = device.type == "cuda", None
    for first in itertools.count(0, BLOCK):
        if first < plan.on_device:
            yield MemoryBlock(device)
        elif first < plan.on_device + plan.in_main:
            yield MemoryBlock(torch.device("cpu"), pinned=gpu)
        else:
            file = file or ScratchFile(pinned=gpu)
            yield FileBlock(file)


class BlockWriter:
    """Keeps samples in half precision in blocks, batch after batch, by a plan.

    Parameters
    ----------
    plan : SpectraPlan
        The plan.
    device : torch.device
        Where is computed.
    """

    def __init__(self, plan: SpectraPlan, device: torch.device) -> None:
        self._empty_blocks = empty_blocks(plan, device)
        self._blocks: list[Block] = []
        self._pending: list[Tensor] = []

    def add(self, samples: Tensor) -> None:
        """Add the samples (b, R, H, 2) of the next particles."""
        self._pending.append(samples)
        if sum(map(len, self._pending)) >= BLOCK:
            whole = torch.cat(self._pending)
            for part in whole[: len(whole) // BLOCK * BLOCK].split(BLOCK):
                self._keep(part)
            self._pending = [whole[len(whole) // BLOCK * BLOCK :].clone()]

    def done(self) -> list[Block]:
        """Return the blocks of all samples."""
        if rest := [part for part in self._pending if len(part)]:
            self._keep(torch.cat(rest))
        return self._blocks

    def _keep(self, samples: Tensor) -> None:
        block = next(self._empty_blocks)
        block.write(samples.permute(1, 0, 2, 3).contiguous())
        self._blocks.append(block)


class SpectraWriter:
    """Stores samples, batch after batch, by a plan.

    Parameters
    ----------
    plan : SpectraPlan
        The plan.
    device : torch.device
        Where is computed.
    """

    def __init__(self, plan: SpectraPlan, device: torch.device) -> None:
        self._plan, self._blocks = plan, BlockWriter(plan, device)
        self._scales: list[Tensor] = []
        self._energies: list[Tensor] = []

    def add(self, samples: Tensor) -> None:
        """Add the samples (b, R, H) of the next particles; those that are not finite become 0."""
        samples = torch.nan_to_num(torch.view_as_real(samples), nan=0.0, posinf=0.0, neginf=0.0)
        scale = samples.abs().amax((2, 3)).clamp_min(1e-30) / LARGEST
        scaled = (samples / scale[..., None, None]).half()
        self._scales.append(scale)
        self._energies.append(squared(torch.view_as_complex(scaled.float())).sum(2))
        self._blocks.add(scaled)

    def done(self, weight: Tensor, power: Tensor) -> StoredSpectra:
        """Return the spectra of all particles.

        Parameters
        ----------
        weight : Tensor of shape (n, R)
            What all samples of a ring are multiplied by.
        power : Tensor of shape (n, R)
            As in `Spectra`.

        Returns
        -------
        StoredSpectra
            The spectra.
        """
        scale = torch.cat(self._scales) * weight
        energy = torch.cat(self._energies) * scale.square()
        return StoredSpectra(self._blocks.done(), scale, power, energy, self._plan.on_device_bytes)
