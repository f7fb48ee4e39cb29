"""Particles in many files, of which each is one image of one file (`FilesSource`), read when they are needed."""

from __future__ import annotations

import copy
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ralib.io.stack_file import RawStackFile, StackFile, plausible_pixel_size
from ralib.types import ImageSource, RalibError

MAX_OPEN_FILES = 64


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
        self.anisotropic: list[RawStackFile] = []
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
            if isinstance(stack, RawStackFile) and here.stop - here.start == len(where) and np.all(np.diff(where) == 1):
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
            if isinstance(stack, RawStackFile) and stack.layout.volume:
                self.volumes.append(self.paths[number])
            if isinstance(stack, RawStackFile) and stack.layout.pixel_size_y_A is not None:
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
