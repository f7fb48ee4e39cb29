"""Image stacks on disk, read when they are needed: one file (`RawStack`), or particles in many files (`FilesSource`).

Images are read by positional reads, not through a memory map: a mapped file that vanishes or shrinks (a network disk, a
second program) kills the process, whereas a read raises an error. Only the images requested are in memory.
"""

from __future__ import annotations

import copy
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
_ROUNDING = 1e-4  # of an image's standard deviation: what rounding to single precision may change
_READ_LIMIT = 1 << 30  # Linux reads at most 2 GiB - 4 KiB in one call


class StackFile(Protocol):
    """One file of square images.

    Attributes
    ----------
    n_images : int
        Number of images.
    box : int
        Image size, pixels.
    pixel_size_A : float or None
        Pixel size, Angstrom, or None.
    """

    n_images: int
    box: int
    pixel_size_A: float | None

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return images (b, n, n), float32, in the order of `index` (b,)."""
        ...


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


@dataclass(frozen=True)
class RawLayout:
    """Position of the pixels of a stack: image i starts at `offset + i * stride` and is (ny, nx) of `dtype`.

    Attributes
    ----------
    n_images : int
        Number of images.
    ny, nx : int
        Height and width, pixels.
    dtype : np.dtype
        Type of a pixel.
    offset : int
        Of the first image, bytes.
    stride : int
        From image to image, bytes.
    pixel_size_A : float | None, optional
        Pixel size, Angstrom.
    volume : bool, default False
        Whether the header says that the images are the sections of one volume.
    transposed : bool, default False
        Whether the pixels of a line run along y.
    pixel_size_y_A : float | None, optional
        Pixel size along y, Angstrom, where it is another than `pixel_size_A` along x.
    """

    n_images: int
    ny: int
    nx: int
    dtype: np.dtype
    offset: int
    stride: int
    pixel_size_A: float | None = None
    volume: bool = False
    transposed: bool = False
    pixel_size_y_A: float | None = None


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


def in_single_precision(pixels: np.ndarray) -> np.ndarray:
    """Return images in single precision, which holds seven digits.

    Images of more digits (float64, 32-bit integers) that lie so far from zero that rounding would change their contrast
    first have their mean taken off; what is computed of them does not depend on a constant.

    Parameters
    ----------
    pixels : ndarray of shape (..., n, n)
        Images of any type of number.

    Returns
    -------
    ndarray of shape (..., n, n)
        Images, float32.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # the loops name images that are not finite
        if pixels.dtype.itemsize < 4 or pixels.dtype == np.float32:
            return pixels.astype(np.float32)
        wide = pixels.astype(np.float64)
        mean, sd = wide.mean((-2, -1), keepdims=True), wide.std((-2, -1), keepdims=True)
        rounded = np.abs(mean) * np.finfo(np.float32).eps > _ROUNDING * sd
        return np.where(rounded & np.isfinite(mean), wide - mean, wide).astype(np.float32)


def plausible_pixel_size(size_A: float) -> bool:
    """Return whether a number can be a pixel size in Angstrom: neither metres (1e-10) nor what was never set."""
    return 0.01 <= size_A <= 1000


def check_square(path: Path, ny: int, nx: int) -> None:
    """Refuse images that are not square or of implausible size.

    Parameters
    ----------
    path : Path
        The file, for the error.
    ny, nx : int
        Height and width, pixels.

    Raises
    ------
    RalibError
        With the size.
    """
    if ny != nx:
        raise RalibError(f"{path} holds images of {nx} x {ny} px: particles must be square; extract or crop them again")
    if not 1 <= nx <= MAX_BOX:
        raise RalibError(f"{path}: its header says a box of {nx} px, which cannot be right (1 to {MAX_BOX} px)")


def check_index(path: Path, index: np.ndarray, n_images: int) -> np.ndarray:
    """Return `index` as int64, after checking that it is within the stack.

    Parameters
    ----------
    path : Path
        The file, for the error.
    index : ndarray of shape (b,)
        Numbers of images.
    n_images : int
        Number of images in the file.

    Returns
    -------
    ndarray of shape (b,)
        The numbers.

    Raises
    ------
    RalibError
        If one is out of range.
    """
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
    """Particles in many stacks: particle i is image `slice_index[i]` of file `file_index[i]`.

    Every header is read once when it is made (the number of images is checked for all); then at most `MAX_OPEN_FILES`
    files stay open, and the least recently used one is closed first. Safe to read from several threads; one `read` is
    of one box.

    Parameters
    ----------
    paths : sequence of Path
        The files.
    file_index : ndarray of shape (n,)
        File of each particle.
    slice_index : ndarray of shape (n,)
        Image of that file, from 0; -1 for the only image of a file.
    open_stack : callable
        Opens an image file.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        file_index: np.ndarray,
        slice_index: np.ndarray,
        open_stack: Callable[[Path], StackFile],
    ) -> None:
        if not len(slice_index):
            raise RalibError("the particle file holds no particles")
        self.paths = list(paths)
        self.file_index = np.asarray(file_index, dtype=np.int32)
        self.slice_index = np.array(slice_index, dtype=np.int32)
        self._open_stack = open_stack
        self._open: OrderedDict[int, StackFile] = OrderedDict()
        self._lock = threading.Lock()
        self._box_of_file = np.zeros(len(self.paths), dtype=np.int64)
        self._size_of_file = np.full(len(self.paths), np.nan)
        self.odd_sizes: list[tuple[Path, float]] = []
        self.volumes: list[Path] = []
        self.anisotropic: list[RawStack] = []
        self.raw_dtype = self._check_all()
        self.slice_index[self.slice_index < 0] = 0

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.slice_index)

    @property
    def box(self) -> int:
        """Size of the first image, pixels."""
        return int(self._box_of_file[self.file_index[0]])

    @property
    def boxes(self) -> np.ndarray | None:
        """Size of each image (n,) where files differ, else None."""
        boxes = self._box_of_file[self.file_index]
        return None if (boxes == boxes[0]).all() else boxes

    @property
    def pixel_sizes_A(self) -> float | np.ndarray | None:
        """Pixel size in the headers: one number, (n,) where they differ, or None."""
        sizes = self._size_of_file[self.file_index]
        known = sizes[np.isfinite(sizes)]
        if not len(known):
            return None
        if np.allclose(known, known[0], rtol=1e-5, atol=0):  # a header's single precision
            return float(known[0])
        return np.where(np.isfinite(sizes), sizes, np.median(known))

    @property
    def header_sizes_A(self) -> np.ndarray:
        """Pixel size in the header of each particle's file (n,), NaN where it says none."""
        return self._size_of_file[self.file_index]

    @property
    def pixel_size_A(self) -> float | None:
        """Pixel size in the headers if they agree, else None."""
        sizes = self.pixel_sizes_A
        return sizes if sizes is None or isinstance(sizes, float) else float(sizes[0])

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return images (b, n, n), float32, in the order of `index` (b,)."""
        index = np.asarray(index, dtype=np.int64).reshape(-1)
        boxes = self._box_of_file[self.file_index[index]]
        box = int(boxes[0]) if len(boxes) else self.box
        if not (boxes == box).all():
            raise RalibError(mixed_boxes(boxes))
        out = np.empty((len(index), box, box), dtype=np.float32)
        self.read_raw(index, out)
        return out

    def read_raw(self, index: np.ndarray, out: np.ndarray) -> None:
        """Read images into an array; see `ralib.particles.prefetch.RawSource.read_raw`."""
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
        """Return the same source of the particles `index` (m,) only."""
        chosen = copy.copy(self)
        chosen.file_index, chosen.slice_index = self.file_index[index], self.slice_index[index]
        chosen._open, chosen._lock = OrderedDict(), threading.Lock()
        return chosen

    def same_as(self) -> np.ndarray | None:
        """Return the first particle (n,) that is the same image of the same file; None where no image occurs twice."""
        identity: dict[tuple[int, int], int] = {}
        file = np.array([identity.setdefault(_inode(path), len(identity)) for path in self.paths])
        key = file[self.file_index].astype(np.int64) << 32 | self.slice_index
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        return None if len(first) == len(key) else first[inverse.reshape(-1)]

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

    def _check_all(self) -> np.dtype:
        """Read every header, check what is listed against it; the type of number that all files share."""
        highest = np.full(len(self.paths), -2, dtype=np.int64)
        np.maximum.at(highest, self.file_index, self.slice_index)
        alone = np.zeros(len(self.paths), dtype=bool)
        alone[self.file_index[self.slice_index < 0]] = True
        kinds = set()
        for number, top in enumerate(highest):
            if top < -1:
                continue
            stack = self._stack(number)
            self._box_of_file[number] = stack.box
            size_A = stack.pixel_size_A
            if size_A is not None and not plausible_pixel_size(size_A):
                self.odd_sizes.append((self.paths[number], size_A))
                size_A = None
            self._size_of_file[number] = np.nan if size_A is None else size_A
            kinds.add(getattr(stack, "raw_dtype", np.dtype(np.float32)))
            if isinstance(stack, RawStack) and stack.layout.volume:
                self.volumes.append(self.paths[number])
            if isinstance(stack, RawStack) and stack.layout.pixel_size_y_A is not None:
                self.anisotropic.append(stack)
            if top >= stack.n_images:
                raise RalibError(
                    f"image {top + 1} of {self.paths[number]} is listed, but that stack holds {stack.n_images} images"
                )
            if alone[number] and stack.n_images != 1:
                raise RalibError(
                    f"{self.paths[number]} is listed without a number before @, but holds {stack.n_images} images: a "
                    "volume or a tilt series is no particle; name one image of a stack as 000001@stack.mrcs"
                )
        # files of several kinds meet in single precision
        return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def volumes_among(source: ImageSource) -> list[Path]:
    """Return the files of a source whose headers say that they are volumes."""
    if isinstance(source, FilesSource):
        return source.volumes
    return [source.path] if isinstance(source, RawStack) and source.layout.volume else []


def anisotropic_among(source: ImageSource) -> list[RawStack]:
    """Return the files of a source whose headers say other pixel sizes along y than along x."""
    if isinstance(source, FilesSource):
        return source.anisotropic
    return [source] if isinstance(source, RawStack) and source.layout.pixel_size_y_A is not None else []


def mixed_boxes(boxes: np.ndarray) -> str:
    """Return the error text for images (n,) of several boxes, with advice."""
    sizes = sorted(set(boxes.tolist()))
    sizes_text = " and ".join(map(str, sizes[:4]))
    return (
        f"the particles have boxes of {sizes_text} px: bring them to one box with 'ralib prepare "
        f"STACK OUT.star --clip {sizes[0]}' (or to one scale with --to-pixel-size), and use OUT.star"
    )


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def images_of_file(stack: StackFile, path: Path, index: np.ndarray) -> FilesSource:
    """Return images of one open file as a source that knows their positions.

    Parameters
    ----------
    stack : StackFile
        The open file.
    path : Path
        Its path.
    index : ndarray of shape (m,)
        Numbers of the images.

    Returns
    -------
    FilesSource
        The source.
    """
    return FilesSource([path], np.zeros(len(index), dtype=np.int32), index, lambda _: stack)


def file_references(source: ImageSource) -> tuple[list[Path], np.ndarray, np.ndarray] | None:
    """Return the files, and file and slice of each image, of images that are in files; None for those in memory."""
    if isinstance(source, FilesSource):
        return source.paths, source.file_index, source.slice_index
    path = getattr(source, "path", None)
    if path is None:
        return None
    return [Path(path)], np.zeros(source.n_images, dtype=np.int32), np.arange(source.n_images, dtype=np.int32)


class MissingImages:
    """The images of a particle file opened for its metadata alone; reading one is an error that says so.

    Parameters
    ----------
    n_images : int
        Number of images.
    box : int
        Image size, pixels; 0 where unknown.
    why : str
        The error.
    """

    def __init__(self, n_images: int, box: int, why: str) -> None:
        self.n_images = n_images
        self.box = box
        self.why = why

    def read(self, index: np.ndarray) -> np.ndarray:
        """Raise the error."""
        raise RalibError(self.why)
