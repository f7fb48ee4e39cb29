"""NumPy .npy files, read without pickles: the header alone, and stacks of images."""

from __future__ import annotations

import io
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ralib.io.atomic import PathLike
from ralib.io.raw_stack import RawStack
from ralib.io.stack_file import RawLayout
from ralib.types import RalibError

_LONGEST_HEADER = 1 << 20

DAMAGED_HEADER = (
    *(ValueError, KeyError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError),
    tokenize.TokenError,
)
"""Errors of NumPy on the header of an array that is no longer what was written."""

DAMAGED_ARCHIVE = (
    *DAMAGED_HEADER,
    *(EOFError, OSError, zipfile.BadZipFile, zlib.error, struct.error),
    RuntimeError,  # of zipfile: an archive that is encrypted or packed by another method
)
"""Errors of NumPy and zipfile on such an .npz archive."""


def read_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Return shape, Fortran order, dtype and offset of the data of a .npy file; objects (pickles) are refused."""
    try:
        if not path.is_file():  # a named pipe would wait for ever
            raise RalibError(f"cannot read {path}: {'it is no ordinary file' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            raw = file.read(12)
            width = {1: 2, 2: 4, 3: 4}.get(raw[6] if len(raw) == 12 else 0)
            if raw[:6] != np.lib.format.MAGIC_PREFIX or width is None:
                raise RalibError(f"{path} holds no NumPy array: it does not begin like one")
            offset = 8 + width + int.from_bytes(raw[8 : 8 + width], "little")
            if offset > min(_LONGEST_HEADER, path.stat().st_size):
                raise RalibError(f"{path} holds no NumPy array: its header claims {offset} bytes")
            header = io.BytesIO(raw[8:] + file.read(offset - 12))
        read = np.lib.format.read_array_header_1_0 if width == 2 else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers of Python 2 are parsed with a warning
            # The size of the header is bounded above: numpy's own bound is too small for hundreds of fields.
            shape, fortran, dtype = read(header, max_header_size=_LONGEST_HEADER)
    except OSError as error:
        raise RalibError(f"cannot read {path}: {error.strerror}") from error
    except DAMAGED_HEADER as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise RalibError(f"{path} holds no NumPy array: {reason}") from error
    if dtype.hasobject or dtype.itemsize < 1 or any(size < 0 for size in shape):
        raise RalibError(f"{path} holds an array of {dtype.str}, {shape}: objects (pickles) are never loaded")
    return shape, fortran, dtype, offset


def doubles(values: np.ndarray) -> np.ndarray:
    """Return numbers of a file as float64, without NumPy's warning about those that are none (a signalling NaN).

    Parameters
    ----------
    values : ndarray
        Numbers of any type.

    Returns
    -------
    ndarray
        The same, float64.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(values).astype(np.float64)


def open_npy(path: PathLike) -> RawStack:
    """Open an array (k, n, n) of numbers in a .npy file as a stack."""
    path = Path(path)
    shape, fortran, dtype, offset = read_header(path)
    if fortran and len(shape) > 1:
        raise RalibError(f"{path} holds an array in Fortran order: save numpy.ascontiguousarray of it")
    if len(shape) != 3 or dtype.kind not in "fiu":
        raise RalibError(f"{path} holds an array {shape} of {dtype.str}: images (k, n, n) of numbers are needed")
    return RawStack(path, RawLayout(*shape, dtype, offset, shape[1] * shape[2] * dtype.itemsize))
