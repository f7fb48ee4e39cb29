"""Image stacks on disk, read when asked for: one file (`RawStack`), or particles spread over many
(`FilesSource`).

Images are fetched by positional reads, not through a memory map: a mapped file that vanishes or shrinks (a
network disk, a second program) kills the process, a read gives an error that can be told. Nothing but the
images asked for is ever held.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ralib.types import ImageSource, RalibError

MAX_OPEN_FILES = 64
MAX_BOX = 1 << 15
RAW_DTYPES = tuple(np.dtype(kind) for kind in ("f4", "f2", "i1", "u1", "i2"))
"""Numbers that can leave a file as they are and be converted on the device: of this machine's byte order."""
_READ_LIMIT = 1 << 30  # Linux reads at most 2 GiB - 4 KiB in one call


class StackFile(Protocol):
    """One file of square images."""

    n_images: int
    box: int
    pixel_size_A: float | None

    def read(self, index: np.ndarray) -> np.ndarray:
        """float32 images (len(index), box, box), in the order of `index`."""
        ...


class _Descriptor:
    """An open file that closes itself when nobody uses it any more (also while another thread still
    reads)."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        try:
            self.number = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise RalibError(f"cannot read {path}: {error.strerror}") from error

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


@dataclass(frozen=True)
class RawLayout:
    """Where the pixels of a stack lie: image i starts at `offset + i * stride` and is (ny, nx) of `dtype`."""

    n_images: int
    ny: int
    nx: int
    dtype: np.dtype
    offset: int
    stride: int
    pixel_size_A: float | None = None


class RawStack:
    """A stack of uncompressed images (MRC, SPIDER, IMAGIC, NPY): `layout` says where they lie."""

    def __init__(self, path: Path, layout: RawLayout) -> None:
        check_square(path, layout.ny, layout.nx)
        needed = layout.offset + (layout.n_images - 1) * layout.stride + layout.ny * layout.nx * layout.dtype.itemsize
        present = path.stat().st_size
        if layout.n_images < 1:
            raise RalibError(f"{path} holds no images (its header says {layout.n_images})")
        if present < needed:
            held = max(0, (present - layout.offset) // layout.stride)
            raise RalibError(
                f"{path} is truncated: its header says {layout.n_images} images ({needed} bytes), the file has "
                f"{held} ({present} bytes); copy or extract it again"
            )
        self.path = path
        self.layout = layout
        self.n_images = layout.n_images
        self.box = layout.nx
        self.pixel_size_A = layout.pixel_size_A
        self._file = _Descriptor(path)
        self.raw_dtype = layout.dtype if layout.dtype in RAW_DTYPES else np.dtype(np.float32)

    def read(self, index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), self.box, self.box), dtype=np.float32)
        self.read_raw(index, out)
        return out

    def read_raw(self, index: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` (len(index), box, box), of `raw_dtype` or float32, with images in the order of `index`."""
        index = check_index(self.path, index, self.n_images)
        raw = out if out.dtype == self.layout.dtype else np.empty(out.shape, dtype=self.layout.dtype)
        for first, last in _runs(index, contiguous=self.layout.stride == raw[:1].nbytes):
            self._fill(raw[first:last], self.layout.offset + int(index[first]) * self.layout.stride)
        if raw is not out:
            with np.errstate(invalid="ignore", over="ignore"):  # the loops name images that are not finite
                out[...] = raw

    def _fill(self, out: np.ndarray, offset: int) -> None:
        view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        while len(view):
            try:
                got = os.preadv(self._file.number, [view[:_READ_LIMIT]], offset)
            except OSError as error:
                raise RalibError(f"reading {self.path} failed: {error.strerror}") from error
            if got == 0:
                raise RalibError(f"{self.path} has become shorter while it was read; is another program writing it?")
            view, offset = view[got:], offset + got


def check_square(path: Path, ny: int, nx: int) -> None:
    """Refuse boxes that are not square or not plausible."""
    if ny != nx:
        raise RalibError(f"{path} holds images of {nx} x {ny} px: particles must be square; extract or crop them again")
    if not 1 <= nx <= MAX_BOX:
        raise RalibError(f"{path}: its header says a box of {nx} px, which cannot be right (1 to {MAX_BOX} px)")


def check_index(path: Path, index: np.ndarray, n_images: int) -> np.ndarray:
    """`index` as int64, all within the stack."""
    index = np.asarray(index, dtype=np.int64).reshape(-1)
    if len(index) and (index.min() < 0 or index.max() >= n_images):
        bad = index.min() if index.min() < 0 else index.max()
        raise RalibError(f"image {bad + 1} of {path} was asked for, the stack holds {n_images} images")
    return index


def _runs(index: np.ndarray, *, contiguous: bool) -> list[tuple[int, int]]:
    """(first, last) positions of stretches of `index` that one read serves."""
    if not len(index):
        return []
    breaks = np.flatnonzero(np.diff(index) != 1) + 1 if contiguous else np.arange(1, len(index))
    edges = [0, *breaks.tolist(), len(index)]
    return list(itertools.pairwise(edges))


class FilesSource:
    """Particles spread over many stacks: particle i is image `slice_index[i]` of `paths[file_index[i]]`.

    Every header is read once when it is made (box and number of images are checked for all), then at most
    `MAX_OPEN_FILES` files stay open; the least recently used one goes first. Safe to read from several
    threads.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        file_index: np.ndarray,
        slice_index: np.ndarray,
        open_stack: Callable[[Path], StackFile],
        *,
        check: bool = True,
        raw_dtype: np.dtype | None = None,
    ) -> None:
        if not len(slice_index):
            raise RalibError("the particle file holds no particles")
        self.paths = list(paths)
        self.file_index = np.asarray(file_index, dtype=np.int32)
        self.slice_index = np.asarray(slice_index, dtype=np.int32)
        self.n_images = len(self.slice_index)
        self._open_stack = open_stack
        self._open: OrderedDict[int, StackFile] = OrderedDict()
        self._lock = threading.Lock()
        first = self._stack(int(self.file_index[0]))
        self.box = first.box
        self.pixel_size_A = first.pixel_size_A
        self.raw_dtype = getattr(first, "raw_dtype", np.dtype(np.float32)) if raw_dtype is None else raw_dtype
        if check:
            self._check_all()

    def read(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index, dtype=np.int64).reshape(-1)
        out = np.empty((len(index), self.box, self.box), dtype=np.float32)
        self.read_raw(index, out)
        return out

    def read_raw(self, index: np.ndarray, out: np.ndarray) -> None:
        """Fill `out` (len(index), box, box), of `raw_dtype` or float32, with images in the order of `index`."""
        files, slices = self.file_index[index], self.slice_index[index]
        order = np.lexsort((slices, files))  # one pass through each file, forwards
        edges = [0, *(np.flatnonzero(np.diff(files[order])) + 1).tolist(), len(order)]
        for first, last in itertools.pairwise(edges):
            where = order[first:last]
            if not len(where):
                continue
            stack, here = self._stack(int(files[where[0]])), slice(int(where[0]), int(where[-1]) + 1)
            if isinstance(stack, RawStack) and here.stop - here.start == len(where) and np.all(np.diff(where) == 1):
                stack.read_raw(slices[where], out[here])
            else:
                out[where] = stack.read(slices[where])

    def taken(self, index: np.ndarray) -> FilesSource:
        """The same source of the particles `index` only."""
        return FilesSource(
            self.paths,
            self.file_index[index],
            self.slice_index[index],
            self._open_stack,
            check=False,
            raw_dtype=self.raw_dtype,
        )

    def _stack(self, number: int) -> StackFile:
        with self._lock:
            stack = self._open.get(number)
            if stack is None:
                stack = self._open_stack(self.paths[number])
            self._open[number] = stack
            self._open.move_to_end(number)
            if len(self._open) > MAX_OPEN_FILES:
                self._open.popitem(last=False)
            return stack

    def _check_all(self) -> None:
        highest = np.full(len(self.paths), -1, dtype=np.int64)
        np.maximum.at(highest, self.file_index, self.slice_index)
        for number, top in enumerate(highest):
            if top < 0:
                continue
            stack = self._stack(number)
            if stack.box != self.box:
                raise RalibError(
                    f"{self.paths[number]} holds {stack.box} px images, {self.paths[int(self.file_index[0])]} "
                    f"{self.box} px: bring all to one box with 'ralib prepare --box'"
                )
            if getattr(stack, "raw_dtype", None) != self.raw_dtype:
                self.raw_dtype = np.dtype(np.float32)  # files of several kinds meet in single precision
            if top >= stack.n_images:
                raise RalibError(
                    f"image {top + 1} of {self.paths[number]} is listed, but that stack holds {stack.n_images} images"
                )


def file_references(source: ImageSource) -> tuple[list[Path], np.ndarray, np.ndarray] | None:
    """(files, file of each image, slice of each image) of images that lie in files, None for those in memory."""
    if isinstance(source, FilesSource):
        return source.paths, source.file_index, source.slice_index
    path = getattr(source, "path", None)
    if path is None:
        return None
    return [Path(path)], np.zeros(source.n_images, dtype=np.int32), np.arange(source.n_images, dtype=np.int32)


class MissingImages:
    """The images of a particle file opened for its metadata alone; reading one is an error that says so."""

    def __init__(self, n_images: int, box: int, why: str) -> None:
        self.n_images = n_images
        self.box = box
        self.why = why

    def read(self, index: np.ndarray) -> np.ndarray:
        raise RalibError(self.why)
