"""Particles in batches on the device: read ahead, checked, normalised, CTF applied; kept there if they fit."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ralib.ctf import apply_ctf, ctf_2d, phase_flip
from ralib.memory import free_memory
from ralib.ops import Samples, interpolation_samples
from ralib.prepare import normalise_background
from ralib.types import CtfParameters, ParticleSet, RalibError

READ_AHEAD = 2
CTF_MODES = ("off", "wiener", "flip")


_Raw = tuple[Tensor, torch.cuda.Event | None]
"""Images as they were read, and what to wait for where they are still on their way to the device."""


@dataclass(frozen=True)
class Batch:
    """A few particles: which ones (b,) on the host, their images (b, n, n) and whether each is usable (b,).

    turnable   what `rotate_shift_sum` takes: the images, or their interpolation samples where they are kept
    """

    number: int
    index: np.ndarray
    images: Tensor
    turnable: Tensor | Samples
    usable: Tensor

    @property
    def rows(self) -> slice:
        return slice(int(self.index[0]), int(self.index[-1]) + 1)


@runtime_checkable
class TensorSource(Protocol):
    """An image source whose images are, or are made, on the device: nothing to read ahead."""

    def read_tensor(self, index: np.ndarray) -> Tensor:
        """Images (len(index), box, box), in the order of `index`."""
        ...


@dataclass
class Reading:
    """What the reading of images took: bytes and seconds in the reader, seconds that others waited for it."""

    bytes: int = 0
    read_s: float = 0.0
    waited_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """As run.json has them among its timings."""
        speed = self.bytes / self.read_s if self.read_s else 0.0
        return {
            "read_s": self.read_s,
            "read_bytes": self.bytes,
            "read_bytes_per_s": speed,
            "waited_for_reading_s": self.waited_s,
        }


class ParticleBatches:
    """One rank's particles, batch after batch, the same each time.

    From each image the plane fitted to its background (outside `background_radius`) is taken off, and the background's
    standard deviation becomes 1. With
    ctf='wiener' they are multiplied by their CTF (the matched filter; the averages divide by the sum of CTF^2),
    with 'flip' only the phases are turned. Images that are not finite or constant come out as zeros, not usable;
    `bad` holds their numbers, and strict=True raises instead.

    Where `resident_bytes` (None: two fifths of the free memory) hold all images they stay on the device: with their
    interpolation samples, alone, or in half precision, whichever is the first to fit; `resident` says which. Otherwise
    they are read anew for every pass, a few batches ahead.
    """

    def __init__(
        self,
        particles: ParticleSet,
        rows: range,
        *,
        batch_size: int,
        device: torch.device,
        background_radius: float,
        ctf: str = "off",
        strict: bool = False,
        resident_bytes: int | None = None,
    ) -> None:
        if ctf not in CTF_MODES:
            raise RalibError(f"ctf {ctf!r} is unknown: choose one of {', '.join(CTF_MODES)}")
        if ctf != "off" and particles.ctf is None:
            raise RalibError("the particles have no CTF parameters: leave --CTF out, or give a file that has them")
        if ctf != "off" and particles.pixel_size_A is None:
            raise RalibError("the CTF needs a pixel size and no file says it: give one with --pixel-size")
        self.particles, self.rows, self.device = particles, rows, device
        self.batch_size, self.ctf, self.strict = batch_size, ctf, strict
        self.bad: set[int] = set()
        self.background_radius = background_radius
        self.reading = Reading()
        self.resident = _residence(
            len(rows) * particles.box**2 * 4,
            particles.box,
            int(0.4 * free_memory(device)) if resident_bytes is None else resident_bytes,
        )
        self._kept: dict[int, Batch] | None = None if self.resident == "none" else {}
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        blocks = [
            np.arange(start, min(start + self.batch_size, self.rows.stop))
            for start in range(self.rows.start, self.rows.stop, self.batch_size)
        ]
        missing = [i for i in range(len(blocks)) if self._kept is None or i not in self._kept]
        made_here = isinstance(self.particles.images, TensorSource)
        read = (map if made_here else _read_ahead)(lambda i: self._read(blocks[i]), missing)
        for number, block in enumerate(blocks):
            if self._kept is None:
                yield self._batch(number, block, self._awaited(read))
                continue
            if number not in self._kept:
                self._kept[number] = self._batch(number, block, self._awaited(read))
            yield _in_single_precision(self._kept[number])

    def select(self, index: np.ndarray) -> Iterator[Batch]:
        """Only the particles of this rank among `index` (sorted), in batches of any size."""
        mine = index[(index >= self.rows.start) & (index < self.rows.stop)]
        if self._kept is None or len(self._kept) < len(self):
            for start in range(0, len(mine), self.batch_size):
                block = mine[start : start + self.batch_size]
                yield _in_single_precision(self._batch(-1, block, self._read(block)))
            return
        for batch in self._kept.values():
            wanted = np.flatnonzero(np.isin(batch.index, mine))
            if len(wanted):
                at = torch.from_numpy(wanted).to(self.device)
                part = Batch(-1, batch.index[wanted], batch.images[at], batch.turnable[at], batch.usable[at])
                yield _in_single_precision(part)

    def ctf_parameters(self, index: np.ndarray) -> CtfParameters | None:
        """CTF of these particles where averages are to be corrected for it."""
        return None if self.particles.ctf is None or self.ctf != "wiener" else self.particles.ctf[index]

    def _read(self, block: np.ndarray) -> _Raw:
        source = self.particles.images
        if isinstance(source, TensorSource):
            return source.read_tensor(block), None
        start = time.perf_counter()
        images = torch.from_numpy(source.read(block))
        self.reading.bytes += images.numel() * images.element_size()
        self.reading.read_s += time.perf_counter() - start
        if self._copies is None:
            return images, None
        # Through pinned memory on a stream of its own, so that the copy runs beside the computing.
        with torch.cuda.device(self.device), torch.cuda.stream(self._copies):
            there = images.pin_memory().to(self.device, non_blocking=True)
            return there, self._copies.record_event()

    def _awaited(self, read: Iterator[_Raw]) -> _Raw:
        start = time.perf_counter()
        raw = next(read)
        self.reading.waited_s += time.perf_counter() - start
        return raw

    def _batch(self, number: int, block: np.ndarray, raw: _Raw) -> Batch:
        images, arrived = raw
        if arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(arrived)
            images.record_stream(torch.cuda.current_stream(self.device))
        images, usable = self._prepare(block, images)
        if self.resident == "half":
            images = images.half()
        turnable = interpolation_samples(images) if self.resident == "samples" else images
        return Batch(number, block, images, turnable, usable)

    def _prepare(self, block: np.ndarray, raw: Tensor) -> tuple[Tensor, Tensor]:
        images = raw.to(self.device, torch.float32, non_blocking=True)
        usable = torch.isfinite(images).flatten(1).all(1)
        usable &= images.flatten(1).amax(1) > images.flatten(1).amin(1)
        images = normalise_background(images.masked_fill(~usable[:, None, None], 0.0), self.background_radius)
        if not bool(usable.all()):
            self._note_bad(block[~usable.cpu().numpy()])
        if self.ctf != "off" and self.particles.ctf is not None and self.particles.pixel_size_A is not None:
            ctf = ctf_2d(self.particles.ctf[block], images.shape[-1], self.particles.pixel_size_A, device=self.device)
            images = apply_ctf(images, ctf) if self.ctf == "wiener" else phase_flip(images, ctf)
        return images, usable

    def _note_bad(self, numbers: np.ndarray) -> None:
        if self.strict:
            raise RalibError(
                f"particle {numbers[0] + 1} is not a usable image (not finite, or constant): "
                "repair the stack, or leave --strict out to go on without it"
            )
        self.bad.update(int(i) for i in numbers)


def _residence(single_bytes: int, box: int, budget: int) -> str:
    """How images that take so many bytes in single precision are kept."""
    ways = {"samples": single_bytes * (2 + 16 / box), "single": single_bytes, "half": single_bytes // 2}
    return next((way for way, size in ways.items() if size <= budget), "none")


def _in_single_precision(batch: Batch) -> Batch:
    """The batch as the loops compute with it."""
    if batch.images.dtype != torch.float16:
        return batch
    images = batch.images.float()
    return replace(batch, images=images, turnable=images)


def _read_ahead(read: Callable[[int], _Raw], numbers: list[int]) -> Iterator[_Raw]:
    """Results of read(number), made by a thread that stays READ_AHEAD blocks in front."""
    results: queue.Queue[_Raw | BaseException] = queue.Queue(READ_AHEAD)
    stop = threading.Event()

    def work() -> None:
        for number in numbers:
            try:
                item: _Raw | BaseException = read(number)
            except BaseException as error:  # handed to the consumer, whoever's it is
                item = error
            while not stop.is_set():
                try:
                    results.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or isinstance(item, BaseException):
                return

    thread = threading.Thread(target=work, name="ralib-read-ahead", daemon=True)
    if numbers:
        thread.start()
    try:
        for _ in numbers:
            item = results.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        if numbers:
            thread.join()
