"""MRC and MRCS stacks: modes 0, 1, 2, 6 and 12, both byte orders; written as mode 2 or 12 (MRC2014).

The header is `mrcfile`'s, the images are not: `mrcfile.mmap` gives a memory map, and a mapped file that vanishes or
shrinks (a network disk, a second program) kills the process where a read raises an error. Positional reads also go
straight into pinned buffers from several threads, and a stack is written piece by piece without being held. `mrcfile`
is the oracle of the tests.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE

from ralib.io.atomic import PathLike, atomic_path
from ralib.io.raw_stack import RawStack
from ralib.io.stack_file import MAX_BOX, RawLayout, check_pixel_size, image_array
from ralib.io.text import packed
from ralib.types import RalibError

_HEADER_BYTES = 1024
_MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_MODE_OF = {np.dtype("f4"): 2, np.dtype("f2"): 12}
_VOLUME_STACK = 401  # the first of MRC2014's space groups for stacks of volumes
_IMOD_STAMP = 1146047817
_SAME_SCALE = 1e-3  # relative difference of pixel sizes along x and y that rounding explains


def open_stack(path: PathLike) -> RawStack:
    """Open the images of an MRC file, whatever its space group: a .mrc that is a stack is read as one.

    Parameters
    ----------
    path : PathLike
        The file.

    Returns
    -------
    RawStack
        The stack.

    Raises
    ------
    RalibError
        If the file is not MRC, is truncated, or holds no square images or several volumes.
    """
    path = Path(path)
    header, order = _read_header(path)
    mode, nx, ny, nz = (int(header[k]) for k in ("mode", "nx", "ny", "nz"))
    dtype = np.dtype(order + _MODES[mode])
    if mode == 0 and _unsigned_bytes(header, order):
        dtype = np.dtype("u1")
    offset = _HEADER_BYTES + int(header["nsymbt"])
    group, sections = int(header["ispg"]), int(header["mz"])
    if group >= _VOLUME_STACK and sections > 1:
        raise RalibError(
            f"{path} is a stack of volumes by its header (space group {group}): two-dimensional images are needed"
        )
    volume = 0 < group < _VOLUME_STACK and nx == ny == nz == sections > 1
    size_A, along_y_A = _pixel_size_A(header, "x"), _pixel_size_A(header, "y")
    same = size_A is None or along_y_A is None or abs(along_y_A / size_A - 1) < _SAME_SCALE
    layout = RawLayout(
        *(nz, ny, nx, dtype, offset, ny * nx * dtype.itemsize, size_A, volume, _transposed(header, path)),
        pixel_size_y_A=None if same else along_y_A,
    )
    return RawStack(path, layout)


def _transposed(header: np.void, path: Path) -> bool:
    """Whether columns lie along y and rows along x (mapc 2, mapr 1), as EMAN2 and CCP4 take it; 0 stands for unset."""
    axes = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    if sorted(axes) == [1, 2, 3] and axes[2] != 3:
        raise RalibError(
            f"{path}: its header says that sections are stacked along {'?xyz'[axes[2]]}, not z (mapc, mapr, maps are "
            f"{axes[0]}, {axes[1]}, {axes[2]}): write it again with the axes in the order 1, 2, 3"
        )
    return axes == (2, 1, 3)


def _read_header(path: Path) -> tuple[np.void, str]:
    """The header record and its byte order: the one that makes mode and size plausible."""
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER_BYTES)
    except OSError as error:
        raise RalibError(f"cannot read {path}: {error.strerror}") from error
    if what := packed(raw):
        raise RalibError(f"{path} is no MRC file: {what}")
    if len(raw) < _HEADER_BYTES:
        raise RalibError(f"{path} is no MRC file: {len(raw)} bytes, its header alone would be {_HEADER_BYTES}")
    for order in "<>":
        header = np.frombuffer(raw, dtype=HEADER_DTYPE.newbyteorder(order))[0]
        nx, ny, nz, skip = (int(header[k]) for k in ("nx", "ny", "nz", "nsymbt"))
        if int(header["mode"]) in _MODES and min(nx, ny) >= 1 and max(nx, ny) <= MAX_BOX and nz >= 0 and skip >= 0:
            return header, order
    header = np.frombuffer(raw, dtype=HEADER_DTYPE)[0]
    raise RalibError(
        f"{path} is no MRC stack ralib can read: mode {header['mode']}, size {header['nx']} x {header['ny']} x "
        f"{header['nz']} (modes 0, 1, 2, 6 and 12 are read)"
    )


def _unsigned_bytes(header: np.void, order: str) -> bool:
    """Whether bytes are unsigned: by IMOD's stamp at byte 152 (bit 0 of its flags means signed), else by the range.

    MRC2014's bytes are signed; those of older programs are not, and their headers' maximum may say so.
    """
    stamp, flags = np.frombuffer(bytes(header["extra2"])[40:48], dtype=order + "i4")
    if stamp == _IMOD_STAMP:
        return not flags & 1
    return bool(header["dmin"] >= 0 and 127 < header["dmax"] <= 255)


def _pixel_size_A(header: np.void, axis: str) -> float | None:
    """Length of the cell over samples along an axis where both make sense, else None."""
    cell, samples = float(header["cella"][axis]), int(header[f"m{axis}"])
    if samples <= 0 or not math.isfinite(cell) or cell <= 0:
        return None
    return float(np.float32(cell / samples)) or None  # the smallest numbers become 0


class MrcsWriter:
    """Writer of a stack in batches; used through `stack_writer`.

    Parameters
    ----------
    path : Path
        The file.
    pixel_size_A : float or None
        Pixel size, Angstrom.
    dtype : np.dtype
        float32 or float16.
    """

    def __init__(self, path: Path, pixel_size_A: float | None, dtype: np.dtype) -> None:
        self._file = path.open("wb")
        self._file.write(bytes(_HEADER_BYTES))
        self._pixel_size_A = pixel_size_A
        self._dtype = dtype
        self._box = 0
        self._count = 0
        self._range = [math.inf, -math.inf]
        self._sums = [0.0, 0.0]

    def append(self, images: Any) -> None:
        """Add images (b, n, n), or one (n, n)."""
        images = image_array(images)
        images = images[None] if images.ndim == 2 else images
        if images.ndim != 3 or images.shape[1] != images.shape[2]:
            raise RalibError(f"images of shape {images.shape} cannot go into a stack: (k, n, n) is needed")
        if self._box not in (0, images.shape[-1]):
            raise RalibError(f"images of {images.shape[-1]} px cannot join a stack of {self._box} px")
        self._box = images.shape[-1]
        data = np.ascontiguousarray(images, dtype=self._dtype)
        self._file.write(data.data)
        if data.size:
            self._count += len(data)
            self._range = [min(self._range[0], float(data.min())), max(self._range[1], float(data.max()))]
            self._sums[0] += float(data.sum(dtype=np.float64))
            self._sums[1] += float(np.square(data, dtype=np.float64).sum())

    def __enter__(self) -> MrcsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._file.seek(0)
                self._file.write(self._header().tobytes())
        finally:
            self._file.close()

    def _header(self) -> np.ndarray:
        header = np.zeros((), dtype=HEADER_DTYPE.newbyteorder("<"))
        n, box, pixels = self._count, self._box, max(1, self._count * self._box**2)
        mean = self._sums[0] / pixels
        size = self._pixel_size_A or 0.0
        values: dict[str, Any] = {
            "nx": box, "ny": box, "nz": n, "mode": _MODE_OF[self._dtype], "mx": box, "my": box, "mz": 1,
            "cella": (size * box, size * box, size), "cellb": (90, 90, 90), "mapc": 1, "mapr": 2, "maps": 3,
            "dmin": self._range[0] if n else 0, "dmax": self._range[1] if n else 0, "dmean": mean,
            "rms": math.sqrt(max(0.0, self._sums[1] / pixels - mean**2)),
            "ispg": 0, "nversion": 20140, "map": b"MAP ", "nlabl": 1,
        }  # fmt: skip
        for name, value in values.items():
            header[name] = value
        header["machst"][:] = (0x44, 0x44, 0, 0)
        header["label"][0] = b"Written by ralib"
        return header


@contextlib.contextmanager
def stack_writer(path: PathLike, pixel_size_A: float | None, *, dtype: Any = np.float32) -> Iterator[MrcsWriter]:
    """Write a stack larger than memory in batches, complete or not at all.

        with stack_writer(path, 1.3) as stack:
            stack.append(images)

    Parameters
    ----------
    path : PathLike
        The file.
    pixel_size_A : float or None
        Pixel size, Angstrom.
    dtype : Any, default np.float32
        float32 (mode 2) or float16 (mode 12).

    Yields
    ------
    MrcsWriter
        The writer.
    """
    if np.dtype(dtype) not in _MODE_OF:
        raise RalibError(f"MRC stacks are written as float32 or float16, not {np.dtype(dtype)}")
    check_pixel_size(pixel_size_A)
    with atomic_path(path) as temporary, MrcsWriter(temporary, pixel_size_A, np.dtype(dtype)) as writer:
        yield writer


def write_mrcs(path: PathLike, images: Any, pixel_size_A: float | None, *, dtype: Any = np.float32) -> None:
    """Write images as an MRC image stack (space group 0), complete or not at all.

    Parameters
    ----------
    path : PathLike
        The file.
    images : array_like of shape (k, n, n)
        Images.
    pixel_size_A : float or None
        Pixel size, Angstrom.
    dtype : Any, default np.float32
        float32 (mode 2) or float16 (mode 12).
    """
    with stack_writer(path, pixel_size_A, dtype=dtype) as writer:
        writer.append(images)
