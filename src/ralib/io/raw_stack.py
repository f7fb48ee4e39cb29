"""One file of uncompressed images, read when they are needed (`RawStack`).

Images are read by positional reads, not through a memory map: a mapped file that vanishes or shrinks (a network disk, a
second program) kills the process, whereas a read raises an error. Only the images requested are in memory.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np

from ralib.io.stack_file import RAW_DTYPES, RawLayout, RawStackFile, check_index, check_square, in_single_precision
from ralib.io.stacks import FilesSource, images_of_file
from ralib.types import ImageSource, RalibError

_READ_LIMIT = 1 << 30  # Linux reads at most 2 GiB - 4 KiB in one call


class _Descriptor:
    """An open file that is closed when nothing refers to it (also while another thread still reads)."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        try:
            self.number = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise RalibError(f"cannot read {path}: {error.strerror}") from error

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class RawStack:
    """A stack of uncompressed images (MRC, SPIDER, IMAGIC, NPY).

    Parameters
    ----------
    path : Path
        The file.
    layout : RawLayout
        Where its pixels are.

    Attributes
    ----------
    n_beyond : int
        Images for which the file has room beyond those that its header counts.
    """

    def __init__(self, path: Path, layout: RawLayout) -> None:
        check_square(path, layout.ny, layout.nx)
        needed = layout.offset + (layout.n_images - 1) * layout.stride + layout.ny * layout.nx * layout.dtype.itemsize
        if not path.is_file():
            raise RalibError(f"cannot read {path}: it is no ordinary file")
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
        self.n_beyond = (present - layout.offset) // layout.stride - layout.n_images
        self._file = _Descriptor(path)
        self.raw_dtype = layout.dtype if layout.dtype in RAW_DTYPES else np.dtype(np.float32)

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return images (b, n, n), float32, in the order of `index` (b,)."""
        out = np.empty((len(index), self.box, self.box), dtype=np.float32)
        self.read_raw(index, out)
        return out

    def taken(self, index: np.ndarray) -> FilesSource:
        """Return the images `index` (m,) only, unread."""
        return images_of_file(self, self.path, index)

    def read_raw(self, index: np.ndarray, out: np.ndarray) -> None:
        """Read images into an array; see `ralib.particles.prefetch.RawSource.read_raw`."""
        index = check_index(self.path, index, self.n_images)
        direct = out.dtype == self.layout.dtype and not self.layout.transposed
        raw = out if direct else np.empty(out.shape, dtype=self.layout.dtype)
        for first, last in _runs(index, contiguous=self.layout.stride == raw[:1].nbytes):
            self._fill(raw[first:last], self.layout.offset + int(index[first]) * self.layout.stride)
        if raw is not out:
            turned = raw.swapaxes(-2, -1) if self.layout.transposed else raw
            out[...] = turned if out.dtype == raw.dtype else in_single_precision(turned)

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


def _runs(index: np.ndarray, *, contiguous: bool) -> list[tuple[int, int]]:
    """(first, last) positions of stretches of `index` that one read serves."""
    if not len(index):
        return []
    breaks = np.flatnonzero(np.diff(index) != 1) + 1 if contiguous else np.arange(1, len(index))
    edges = [0, *breaks.tolist(), len(index)]
    return list(itertools.pairwise(edges))


def volumes_among(source: ImageSource) -> list[Path]:
    """Return the files of a source whose headers say that they are volumes."""
    if isinstance(source, FilesSource):
        return source.volumes
    return [source.path] if isinstance(source, RawStackFile) and source.layout.volume else []


def anisotropic_among(source: ImageSource) -> list[RawStackFile]:
    """Return the files of a source whose headers say other pixel sizes along y than along x."""
    if isinstance(source, FilesSource):
        return source.anisotropic
    return [source] if isinstance(source, RawStackFile) and source.layout.pixel_size_y_A is not None else []
