"""SPARX's quadratic rot_shift2D as a compiled loop on a CPU: the same operations in the same order, to the bit."""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.lanes_numba import LANES, corners, load, pick_greater_equal, spread, store, truncate
from ralib.kernels.numba_cache import kept
from ralib.kernels.threads import on_cores, shares


def rotate_shift_quadratic(images: Tensor, turn: Tensor, shift_xy_px: Tensor, mirror: Tensor) -> Tensor:
    """Rotate images, shift, then mirror them; what would come from outside keeps the image's own pixel.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images, float32.
    turn : Tensor of shape (b, 2)
        Cosine and sine of each angle, float32.
    shift_xy_px : Tensor of shape (b, 2)
        Shifts, float32, pixels.
    mirror : Tensor of shape (b,)
        Whether mirrored.

    Returns
    -------
    Tensor of shape (b, n, n)
        Transformed images.
    """
    given = [a.detach().contiguous().numpy() for a in (images, turn, shift_xy_px, mirror)]
    out = np.empty_like(given[0])
    on_cores(lambda at: _turned(*(a[at] for a in given), out[at]), shares(len(images)))
    return torch.from_numpy(out)


@kept
@numba.njit(nogil=True)
@no_type_check
def _turned(images: Any, turn: Any, shift: Any, mirror: Any, out: Any) -> None:
    """All images (b, n, n), LANES pixels of a line at a time."""
    n = images.shape[1]
    width = n + 3
    padded, nowhere = np.empty((width, width), np.float32), np.zeros(LANES, np.int64)
    pixels, line, count = padded.ravel(), np.empty(n + LANES, np.float32), np.arange(n + LANES).astype(np.float32)
    zero, one, size, centre = (
        spread(np.float32(0)),
        spread(np.float32(1)),
        spread(np.float32(n)),
        spread(np.float32(n // 2)),
    )
    for b in range(len(images)):
        _pad(images[b], padded)
        c, s = spread(turn[b, 0]), spread(turn[b, 1])
        from_x, from_y = centre + spread(shift[b, 0]), centre + spread(shift[b, 1])
        for row in range(n):
            here_y = spread(count[row])
            y = here_y - from_y
            y_s, y_c = -y * s + centre, y * c + centre
            for first in range(0, n, LANES):
                here_x = load(count, first)
                x = here_x - from_x
                u, v = x * c + y_s, x * s + y_c
                inside = pick_greater_equal(u, zero, pick_greater_equal(v, zero, one, zero), zero)
                inside = pick_greater_equal(u, size, zero, pick_greater_equal(v, size, zero, inside))
                u, v = pick_greater_equal(inside, one, u, here_x), pick_greater_equal(inside, one, v, here_y)
                store(line, first, _quadratic(pixels, nowhere, u, v, width))
            for column in range(n):
                out[b, row, (2 * (n // 2) - column) % n if mirror[b] else column] = line[column]


@numba.njit(nogil=True)
@no_type_check
def _pad(image: Any, padded: Any) -> None:
    """Continue an image (n, n) cyclically, one line before it and two after it."""
    n = len(image)
    for j in range(n + 3):
        for i in range(n):
            padded[j, i + 1] = image[(j - 1) % n, i]
        padded[j, 0], padded[j, n + 1], padded[j, n + 2] = padded[j, n], padded[j, 1], padded[j, 2]


@numba.njit(nogil=True, inline="always")
@no_type_check
def _quadratic(pixels: Any, base: Any, x: Any, y: Any, width: Any) -> Any:
    """SPIDER's six-point quadratic interpolation (Util::quadri) at LANES points of a padded image."""
    one, half = spread(np.float32(1)), spread(np.float32(0.5))
    # EMAN2 counts the pixels of the quadratic kernel from 1, which costs it a bit of precision.
    x, y = x + one, y + one
    i, j = truncate(x), truncate(y)
    dx, dy = x - i, y - j
    f0, right, above, across = corners(pixels, base, 0, i, j, width)
    _, below, left, _ = corners(pixels, base, 0, i - one, j - one, width)
    c1, c3 = right - f0, above - f0
    c2, c4 = (c1 - f0 + left) * half, (c3 - f0 + below) * half
    c5 = across - f0 - c1 - c3
    return f0 + dx * (c1 + (dx - one) * c2 + dy * c5) + dy * (c3 + (dy - one) * c4)
