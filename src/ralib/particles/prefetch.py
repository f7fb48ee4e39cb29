"""Images read from their source to the device, ahead of the computation.

file -> pinned memory (a few readers in parallel) -> device (copies on their own stream) -> queue of batches

Numbers are transferred in the type of the file and converted to single precision on the device, so that a stack in half
precision needs half the bandwidth. Main memory holds only the pinned buffers, however large stack and batches are.
"""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ralib.kernels.threads import Threads, as_here
from ralib.types import ImageSource

READ_AHEAD = 2
"""Batches that wait on the device while one is worked on."""
READERS = 8
"""Reads requested at a time from a disk or a network file system."""
BUFFER_BYTES = 2**24
BUFFERS = 2 * READERS
"""A reader fills one pinned buffer while the other one's copy is under way."""

Loaded = tuple[Tensor, torch.cuda.Event | None]
"""Images as they were read, and what to wait for where they are still on their way to the device."""


@runtime_checkable
class TensorSource(Protocol):
    """An image source whose images are on the device, or made there: nothing is read ahead."""

    def read_tensor(self, index: np.ndarray) -> Tensor:
        """Return images (b, n, n) in the order of `index` (b,)."""


@runtime_checkable
class RawSource(Protocol):
    """An image source that several threads may read at a time, and that gives the numbers of its files unconverted."""

    @property
    def raw_dtype(self) -> np.dtype:
        """Type of the numbers."""

    def read_raw(self, index: np.ndarray, out: np.ndarray) -> None:
        """Read images into an array.

        Parameters
        ----------
        index : ndarray of shape (b,)
            Numbers of the images.
        out : ndarray of shape (b, n, n)
            Filled in the order of `index`, of type `raw_dtype` or float32.
        """


@dataclass
class Reading:
    """Bytes and time of reading images.

    Attributes
    ----------
    bytes : int, default 0
        Bytes read.
    read_s : float, default 0.0
        Time in the readers, s.
    waited_s : float, default 0.0
        Time that the computation waited for them, s.
    """

    bytes: int = 0
    read_s: float = 0.0
    waited_s: float = 0.0

    def figures(self) -> dict[str, float]:
        """Return the numbers as run.json lists them among its timings."""
        speed = self.bytes / self.read_s if self.read_s else 0.0
        return {
            "read_s": self.read_s,
            "read_bytes": self.bytes,
            "read_bytes_per_s": speed,
            "waited_for_reading_s": self.waited_s,
        }


@dataclass
class _Buffer:
    """A place in (pinned) main memory, and the copy out of it that may still be under way."""

    images: Tensor
    copied: torch.cuda.Event | None = None

    def free(self) -> Tensor:
        """Wait for the last copy out of the buffer, and return it."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.images


class Loader:
    """Blocks of images of a source, on the device.

    Parameters
    ----------
    source : ImageSource
        Where images are read from.
    device : torch.device
        Where they are put.
    staged : bool, optional
        Whether images go through pinned buffers; by default on a GPU.
    """

    def __init__(self, source: ImageSource, device: torch.device, *, staged: bool | None = None) -> None:
        self.source, self.device = source, device
        self.reading = Reading()
        self._raw = isinstance(source, RawSource)
        self._dtype = source.raw_dtype if isinstance(source, RawSource) else np.dtype(np.float32)
        self._kind = torch.from_numpy(np.empty(0, self._dtype)).dtype
        self._at_once = max(1, min(source.n_images, BUFFER_BYTES // (source.box**2 * self._dtype.itemsize)))
        self._copies = _copy_stream(device) if device.type == "cuda" else None
        self._staged = self._copies is not None if staged is None else staged
        self._buffers: queue.Queue[_Buffer] = queue.Queue()
        self._made = 0

    def blocks(self, blocks: list[np.ndarray]) -> Iterator[Loaded]:
        """Iterate over blocks of images, reading some blocks ahead.

        Parameters
        ----------
        blocks : list of ndarray of shape (b,)
            Numbers of the images of each block.

        Yields
        ------
        Loaded
            Images (b, n, n), and the event of their arrival.
        """
        if isinstance(self.source, TensorSource):
            yield from map(self.block, blocks)
            return
        read = _read_ahead(self.block, blocks)
        for _ in blocks:
            start = time.perf_counter()
            loaded = next(read)
            self.reading.waited_s += time.perf_counter() - start
            yield loaded

    def block(self, index: np.ndarray) -> Loaded:
        """Read one block of images now."""
        if isinstance(self.source, TensorSource):
            return self.source.read_tensor(index), None
        start, box = time.perf_counter(), self.source.box
        with self._copying():
            images = torch.empty(len(index), box, box, dtype=self._kind, device=self.device)
        parts = [slice(i, i + self._at_once) for i in range(0, len(index), self._at_once)]
        self._make_buffers(min(len(parts), BUFFERS) if self._staged else 0)
        # Others may not bear to be read by several threads at once.
        with Threads(READERS if self._raw else 1) as pool:
            for _ in pool.map(lambda part: self._load(index[part], images[part]), parts):
                pass
        self.reading.bytes += images.numel() * images.element_size()
        self.reading.read_s += time.perf_counter() - start
        return images, self._copies.record_event() if self._copies is not None else None

    def _load(self, index: np.ndarray, images: Tensor) -> None:
        if not self._staged:
            self._fill(index, images.numpy())
            return
        buffer = self._buffers.get()
        try:
            here = buffer.free()[: len(index)]
            self._fill(index, here.numpy())
            with self._copying():
                images.copy_(here, non_blocking=True)
            buffer.copied = self._copies.record_event() if self._copies is not None else None
        finally:
            self._buffers.put(buffer)

    def _fill(self, index: np.ndarray, out: np.ndarray) -> None:
        if isinstance(self.source, RawSource):
            self.source.read_raw(index, out)
        else:
            out[...] = self.source.read(index)

    def _make_buffers(self, n: int) -> None:
        shape = (self._at_once, self.source.box, self.source.box)
        for _ in range(n - self._made):
            self._buffers.put(_Buffer(torch.empty(shape, dtype=self._kind, pin_memory=self._copies is not None)))
        self._made = max(n, self._made)

    def _copying(self) -> torch.cuda.StreamContext:
        """On the stream of the copies, in whichever thread."""
        return torch.cuda.stream(self._copies)  # does nothing for None


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all: PyTorch keeps the memory that was taken on a stream for that stream."""
    return torch.cuda.Stream(device)


def _read_ahead(read: Callable[[np.ndarray], Loaded], blocks: list[np.ndarray]) -> Iterator[Loaded]:
    """Results of read(block), made by a thread that stays READ_AHEAD blocks in front."""
    results: queue.Queue[Loaded | BaseException] = queue.Queue(READ_AHEAD)
    stop = threading.Event()

    def work() -> None:
        for block in blocks:
            try:
                item: Loaded | BaseException = read(block)
            except BaseException as error:  # raised again in the consumer
                item = error
            while not stop.is_set():
                try:
                    results.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or isinstance(item, BaseException):
                return

    thread = threading.Thread(target=as_here(work), name="ralib-read-ahead", daemon=True)
    if blocks:
        thread.start()
    try:
        for _ in blocks:
            item = results.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        if blocks:
            thread.join()
