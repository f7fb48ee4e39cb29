"""Rotated, shifted and mirrored images, and their class sums, on a CPU: the Numba form of `reference`.

Each line of the class frame is computed in two passes: coordinates in vector registers into buffers of one line, then
the interpolation. The plain form writes and reads some sixty temporary arrays. Lines are distributed over threads, so
that each line's sum belongs to one thread and is added in the particles' order: the result has the same bits for any
number of threads.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.interpolation import reference
from ralib.kernels.interpolation.cubic_llvm import LINE, POINTS, cubic_points, fetch_soon
from ralib.kernels.interpolation.reference import (
    BOUNDARIES,
    EDGE_PX,
    METHODS,
    OMOMS_CENTRE,
    OMOMS_SIDE,
    PAD,
    Samples,
    chunk_pixels,
    empty_like,
    new_sums,
    pose_table,
    sampled_chunks,
    sum_row,
)
from ralib.kernels.numba_cache import kept
from ralib.kernels.threads import on_cores, shares

_CUBIC, _QUADRATIC = METHODS.index("cubic"), METHODS.index("quadratic")
_CYCLIC, _BACKGROUND = (BOUNDARIES.index(name) for name in ("cyclic", "background"))
# In the samples' own precision, so that float32 stays float32.
_NUMBERS = (0.5, 1.0, -EDGE_PX)
# The plain form's chunks, times this: threads are started for each.
CHUNKS = 8


@numba.njit(fastmath=True)
@no_type_check
def _place_line(pose: Any, across: Any, down: Any, numbers: Any, boundary: Any, px: Any, py: Any) -> None:
    """Box coordinates px, py (n,) of the line `down` of the class frame."""
    n = len(px)
    cos, sin = pose[0], pose[1]
    start_x, start_y = sin * down + pose[2], cos * down + pose[3]
    box, edge, centre = numbers[1] * n, numbers[2], numbers[1] * (n // 2)
    for x in range(n):
        px[x] = cos * across[x] + start_x
        py[x] = start_y - sin * across[x]
    if boundary == _CYCLIC:
        for x in range(n):
            px[x] -= box * np.floor(px[x] / box)
            py[x] -= box * np.floor(py[x] / box)
    if boundary == _BACKGROUND:
        for x in range(n):
            inside = (px[x] > edge) & (px[x] < box) & (py[x] > edge) & (py[x] < box)
            px[x] = px[x] if inside else across[x] + centre
            py[x] = py[x] if inside else down + centre


@numba.njit(fastmath=True)
@no_type_check
def _split_line(px: Any, py: Any, first: Any) -> None:
    """Coordinates into the address of the sample before them, in flat padded samples, and what is left over."""
    n = len(px)
    width, lowest, highest = n + 2 * PAD, np.int32(-3), np.int32(n + 1)
    for x in range(n):
        fx, fy = np.floor(px[x]), np.floor(py[x])
        # Clamped as integers: beyond, every tap is padding, and what a NaN becomes stays in memory that is ours.
        jx, jy = min(max(np.int32(fx), lowest), highest), min(max(np.int32(fy), lowest), highest)
        first[x] = np.uint32((jy + PAD) * width + (jx + PAD))
        px[x] -= fx
        py[x] -= fy


@numba.njit(fastmath=True)
@no_type_check
def _add_cubic(f: Any, first: Any, t: Any, u: Any, scale: Any, offset: Any, value: Any, out: Any) -> None:
    n = len(out)
    for x in range(0, n, POINTS):
        cubic_points(f, first, np.int64(n + 2 * PAD), t, u, value, np.int64(x))
    for x in range(n):
        out[x] += scale * (value[x] + offset)


@numba.njit(fastmath=True)
@no_type_check
def _add_quadratic(f: Any, first: Any, t: Any, u: Any, c: Any, scale: Any, offset: Any, out: Any) -> None:
    """EMAN2's quadri."""
    n = len(first)
    w, one = np.uint64(n + 2 * PAD), np.uint64(1)
    for x in range(n):
        k = np.uint64(first[x])
        centre = f[k]
        right, left = f[k + one] - centre, f[k - one] - centre
        below, above = f[k + w] - centre, f[k - w] - centre
        mixed = f[k + w + one] - centre - right - below
        along_x = right + (t[x] - c[1]) * (right + left) * c[0] + u[x] * mixed
        along_y = below + (u[x] - c[1]) * (below + above) * c[0]
        out[x] += scale * (centre + t[x] * along_x + u[x] * along_y + offset)


@numba.njit(fastmath=True)
@no_type_check
def _add_linear(f: Any, first: Any, t: Any, u: Any, scale: Any, offset: Any, out: Any) -> None:
    n = len(first)
    w, one = np.uint64(n + 2 * PAD), np.uint64(1)
    for x in range(n):
        k = np.uint64(first[x])
        upper = f[k] + t[x] * (f[k + one] - f[k])
        lower = f[k + w] + t[x] * (f[k + w + one] - f[k + w])
        out[x] += scale * (upper + u[x] * (lower - upper) + offset)


@kept
@numba.njit(fastmath=True, nogil=True)
@no_type_check
def _add_turned(
    samples: Any, table: Any, row: Any, column: Any, numbers: Any, method: Any, boundary: Any, start: Any, stop: Any,
    sums: Any,
) -> None:  # fmt: skip
    """Add the lines from `start` to `stop` of particle i, turned, to sums[row[i]] where there is such a row.

    samples (b, w * w); table (b, 7), see pose_table; column (2, n), the columns and their mirror images, from the
    centre; numbers, _NUMBERS; sums (rows, n, n).
    """
    n = sums.shape[-1]
    # Whole blocks of points: what is past the line are some points of the image.
    capacity = (n + POINTS - 1) // POINTS * POINTS
    all_x, all_y, value = (
        np.zeros(capacity, samples.dtype),
        np.zeros(capacity, samples.dtype),
        np.zeros(capacity, samples.dtype),
    )
    all_first = np.full(capacity, PAD * (n + 2 * PAD) + PAD, np.uint32)
    px, py, first = all_x[:n], all_y[:n], all_first[:n]
    share = LINE * (samples.shape[1] // (LINE * (stop - start)) + 1)
    for i in range(len(samples)):
        if row[i] >= len(sums):
            continue
        f, pose, scale, offset = samples[i], table[i], table[i, 5], table[i, 6]
        across = column[1] if pose[4] != 0 else column[0]
        following = samples[min(i + 1, len(samples) - 1)]
        for y in range(start, stop):
            out = sums[row[i], y]
            # Rotated lines are scattered in memory, which no prefetcher predicts: they are prefetched a particle ahead.
            for p in range((y - start) * share, min((y - start + 1) * share, len(following)), LINE):
                fetch_soon(following, np.int64(p))
            _place_line(pose, across, column[0, y], numbers, boundary, px, py)
            _split_line(px, py, first)
            if method == _CUBIC:
                _add_cubic(f, all_first, all_x, all_y, scale, offset, value, out)
            elif method == _QUADRATIC:
                _add_quadratic(f, first, px, py, numbers, scale, offset, out)
            else:
                _add_linear(f, first, px, py, scale, offset, out)


def rotate_shift_images(
    images: Tensor | Samples,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    *,
    method: str = "cubic",
    boundary: str = "zero",
) -> Tensor:
    """Transform particles into the frame of their class average; see `reference.rotate_shift_images`."""
    out = empty_like(images).zero_()
    for part, samples in sampled_chunks(images, method, boundary, CHUNKS * chunk_pixels(images), solved):
        samples = samples.single()
        table = pose_table(samples, psi_deg[part], origin_xy_px[part], mirror[part], None)
        add_turned(samples, table, torch.arange(len(samples)), out[part])
    return out


def interpolation_samples(images: Tensor, *, method: str = "cubic", boundary: str = "zero") -> Samples:
    """Prefilter images that are interpolated many times; see `reference.interpolation_samples`."""
    return reference.interpolation_samples(images, method=method, boundary=boundary, pad=solved)


@numba.njit(fastmath=True)
@no_type_check
def _solve_lines(lines: Any, scale: Any, side: Any) -> None:
    """In place, along the first axis: the tridiagonal system of the prefilter, by elimination."""
    n = len(lines)
    for x in range(lines.shape[1]):
        lines[0, x] *= scale[0]
    for k in range(1, n):
        for x in range(lines.shape[1]):
            lines[k, x] = (lines[k, x] - side * lines[k - 1, x]) * scale[k]
    for k in range(n - 2, -1, -1):
        for x in range(lines.shape[1]):
            lines[k, x] -= side * scale[k] * lines[k + 1, x]


@kept
@numba.njit(fastmath=True, nogil=True)
@no_type_check
def _solve(images: Any, scale: Any, side: Any, out: Any) -> None:
    """Prefilter images (b, n, n) into the inside of out (b, w, w): columns of the transposed image, then columns."""
    n = images.shape[-1]
    turned = np.empty((n, n), out.dtype)
    for i in range(len(images)):
        for y in range(n):
            for x in range(n):
                turned[x, y] = images[i, y, x]
        _solve_lines(turned, scale, side)
        inside = out[i, PAD : PAD + n, PAD : PAD + n]
        for y in range(n):
            for x in range(n):
                inside[y, x] = turned[x, y]
        _solve_lines(inside, scale, side)


def solved(images: Tensor, matrix: Tensor | None, boundary: str) -> tuple[Tensor, Tensor | None]:
    """Pad and prefilter images by recursions, a quarter of the matrix products' time; see `reference.padded`."""
    if matrix is None or boundary != "zero":
        return reference.padded(images, matrix, boundary)
    n = images.shape[-1]
    scale = [1 / OMOMS_CENTRE]
    while len(scale) < n:
        scale.append(1 / (OMOMS_CENTRE - OMOMS_SIDE**2 * scale[-1]))
    out = torch.zeros(len(images), n + 2 * PAD, n + 2 * PAD)
    contiguous, factors = images.to(torch.float32).contiguous(), np.array(scale, np.float32)
    on_cores(
        lambda part: _solve(contiguous[part].numpy(), factors, np.float32(OMOMS_SIDE), out[part].numpy()),
        shares(len(images)),
    )
    return out, None


def add_turned(samples: Samples, table: Tensor, row: Tensor, sums: Tensor) -> None:
    """Add each transformed particle to its row of the sums.

    Parameters
    ----------
    samples : Samples
        Samples of b particles.
    table : Tensor of shape (b, 7)
        Pose table; see `reference.pose_table`.
    row : Tensor of shape (b,)
        Row of the sums for each particle; one beyond the last is skipped.
    sums : Tensor of shape (rows, n, n)
        Sums, changed in place.
    """
    n, dtype = samples.box, samples.values.dtype
    index = torch.arange(n)
    column = torch.stack([index, (2 * (n // 2) - index) % n]).sub(n // 2).to(dtype)
    given = (
        samples.values.view(len(samples), -1).numpy(),
        table.contiguous().numpy(),
        row.numpy(),
        column.numpy(),
        torch.tensor(_NUMBERS, dtype=dtype).numpy(),
        METHODS.index(samples.method),
        BOUNDARIES.index(samples.boundary),
    )
    on_cores(
        lambda lines: _add_turned(*given, lines.start, lines.stop, sums.numpy()),
        shares(n, each=1),
    )


def rotate_shift_sum(
    images: Tensor | Samples,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    class_index: Tensor,
    n_classes: int,
    *,
    weights: Tensor | None = None,
    half_index: Tensor | None = None,
    out: Tensor | None = None,
    method: str = "cubic",
    boundary: str = "zero",
    rounded: bool = False,
) -> Tensor:
    """Sum the images of each class in the class frame; see `reference.rotate_shift_sum`."""
    row = sum_row(class_index, half_index, n_classes)
    sums = new_sums(images, half_index, n_classes) if out is None else out
    rows_of_sums = sums.view(-1, *sums.shape[-2:])
    # Samples need no temporaries: all of them at once.
    pixels = len(images) * images.box**2 if isinstance(images, Samples) else CHUNKS * chunk_pixels(images)
    for part, samples in sampled_chunks(images, method, boundary, pixels, solved):
        samples = samples.rounded().single() if rounded else samples.single()
        weight = None if weights is None else weights[part]
        table = pose_table(samples, psi_deg[part], origin_xy_px[part], mirror[part], weight)
        add_turned(samples, table, row[part], rows_of_sums)
    return sums
