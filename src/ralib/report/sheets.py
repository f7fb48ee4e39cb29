"""Many small grey images as a few WebP sheets: one decoding in the browser instead of thousands."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, WebPImagePlugin  # noqa: F401

# The formats are loaded with this module: else the first thread to draw a sheet loads all, and the others wait for it.
Image.preinit()

BLOCK_PX = 16
"""WebP codes 16 px blocks; tiles on that grid do not bleed into their neighbours."""
MAX_SHEET_PX = 1024
"""Side of the largest sheet: several are written and decoded at once, and every phone can."""


def grey_levels(images: np.ndarray, *, clip_percent: float = 0.5) -> np.ndarray:
    """Convert images to 8 bits, each stretched between percentiles of its own.

    Parameters
    ----------
    images : ndarray of shape (n, s, s)
        Images.
    clip_percent : float, default 0.5
        Percent of the pixels clipped at either end.

    Returns
    -------
    ndarray of shape (n, s, s)
        Grey levels, uint8.
    """
    finite = np.nan_to_num(np.asarray(images, dtype=np.float32), posinf=0.0, neginf=0.0)
    low, high = (_percentile(finite, percent) for percent in (clip_percent, 100 - clip_percent))
    span = np.where(high > low, high - low, np.float32(1))
    return np.asarray(np.clip((finite - low) / span, 0, 1) * 255).round().astype(np.uint8)


def _percentile(images: np.ndarray, percent: float) -> np.ndarray:
    """A percentile of each image, (n, s, s) -> (n, 1, 1), as `np.percentile` interpolates it.

    NumPy has vector instructions to partition at one place, as here, but not at several at once.
    """
    rows = images.reshape(len(images), images.shape[1] * images.shape[2])
    place = percent / 100 * (rows.shape[1] - 1)
    below = int(place)
    parted = np.partition(rows, below, axis=1)
    lower, upper = parted[:, below], parted[:, min(below + 1, rows.shape[1] - 1) :].min(axis=1)
    return np.asarray(lower + (upper - lower) * np.float32(place - below))[:, None, None]


def layout(count: int, size: int) -> list[dict[str, int]]:
    """Arrange images on sheets, in reading order.

    Parameters
    ----------
    count : int
        Number of images.
    size : int
        Their size, pixels.

    Returns
    -------
    list of dict
        For each sheet {first, count, columns, stride, size}: image `first + i` of the sheet's `count` is the
        size x size square at column i % columns and row i // columns of the stride grid.
    """
    stride = -(-size // BLOCK_PX) * BLOCK_PX
    per_side = max(1, MAX_SHEET_PX // stride)
    sheets = []
    for first in range(0, count, per_side * per_side):
        here = min(count - first, per_side * per_side)
        columns = min(per_side, int(np.ceil(np.sqrt(here))))
        sheets.append({"first": first, "count": here, "columns": columns, "stride": stride, "size": size})
    return sheets


def draw(images: np.ndarray, sheet: dict[str, int]) -> np.ndarray:
    """Draw a sheet.

    Parameters
    ----------
    images : ndarray of shape (n, s, s)
        All images, of which the sheet shows some.
    sheet : dict
        One sheet of `layout`.

    Returns
    -------
    ndarray of shape (h, w)
        Grey levels of the whole sheet, uint8.
    """
    count, columns, stride, size = (sheet[key] for key in ("count", "columns", "stride", "size"))
    levels = grey_levels(images[sheet["first"] : sheet["first"] + count])
    rows = -(-count // columns)
    padding = ((0, rows * columns - count), (0, stride - size), (0, stride - size))
    # The image's own edge fills the padding: a black border would cost bytes and ring into the picture.
    tiles = np.pad(levels, (padding[0], (0, 0), (0, 0)))
    tiles = np.pad(tiles, ((0, 0), padding[1], padding[2]), mode="edge")
    return tiles.reshape(rows, columns, stride, stride).swapaxes(1, 2).reshape(rows * stride, columns * stride)


def encode(levels: np.ndarray, *, quality: int = 85, kind: str = "WEBP") -> str:
    """Return an image as base64 of a WebP or PNG file.

    Parameters
    ----------
    levels : ndarray of shape (h, w)
        Grey levels, uint8.
    quality : int, default 85
        WebP quality.
    kind : str, default 'WEBP'
        'WEBP' or 'PNG'.

    Returns
    -------
    str
        Base64 text.
    """
    buffer = io.BytesIO()
    # Effort 0 of 6: a third of the time of the default 4; a whole page is smaller, and truer, than with 2.
    Image.fromarray(levels).save(buffer, format=kind, quality=quality, method=0)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
