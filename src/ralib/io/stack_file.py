"""What every image file tells: number of images, box, position of the pixels; checks of what its header says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ralib.types import RalibError

MAX_BOX = 1 << 15
RAW_DTYPES = tuple(np.dtype(kind) for kind in ("f4", "f2", "i1", "u1", "i2"))
"""Numbers that can leave a file as they are and be converted on the device: of this machine's byte order."""
_ROUNDING = 1e-4  # of an image's standard deviation: what rounding to single precision may change


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


@runtime_checkable
class RawStackFile(StackFile, Protocol):
    """A file whose images lie uncompressed and can be read as they are.

    Attributes
    ----------
    path : Path
        The file.
    layout : RawLayout
        Where its pixels are.
    """

    path: Path
    layout: RawLayout

    def read_raw(self, index: np.ndarray, out: np.ndarray) -> None:
        """Read images into an array; see `ralib.particles.prefetch.RawSource.read_raw`."""
        ...


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


def image_array(images: Any) -> np.ndarray:
    """Return images to be written, an array or a tensor, as an array; RalibError where they are no real numbers."""
    array = images.detach().cpu().numpy() if hasattr(images, "detach") else np.asarray(images)
    if array.dtype.kind not in "biuf":
        raise RalibError(f"images must be real numbers, not {array.dtype}: write real and imaginary part by themselves")
    return array


def check_pixel_size(pixel_size_A: float | None) -> None:
    """Refuse a pixel size for a header that is no number above 0."""
    if pixel_size_A is not None and not 0 < pixel_size_A < float("inf"):
        raise RalibError(f"`pixel_size_A` {pixel_size_A}: give a number above 0, or None where it is not known")


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
