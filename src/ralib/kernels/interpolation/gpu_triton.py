# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Rotated, shifted and mirrored images by interpolation, and their class sums: the Triton form of `reference`.

Every pixel of the class frame gathers its taps directly from the particle through the L1 cache. The 32 threads of a
warp take a patch of 4 x 8 pixels instead of a line of 32: a line at an angle crosses up to 32 rows, one cache line
each, the patch at most nine; on an H100 a line takes a quarter longer. Nothing here is specific to NVIDIA.

For class sums, particles are sorted by class and divided into runs of equal length. One program for each (run, tile of
pixels) accumulates the tile in registers and stores it where the class changes; a second kernel adds the partial sums
of a class in their order. There are no atomic operations and the order is fixed, so that the same input gives the same
bits. Particles are read once and only sums are written. No step synchronises with the host.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div, next_power_of_2
from ralib.kernels.interpolation import reference
from ralib.kernels.interpolation.reference import (
    OMOMS_CENTRE,
    OMOMS_SIDE,
    PAD,
    TABLE_COLUMNS,
    Samples,
    chunk_pixels,
    empty_like,
    new_sums,
    sampled_chunks,
    sum_row,
)
from ralib.kernels.pose_search.gpu_newton_triton import pair

# Rows that a thread solves in a step, and rows ahead of them: what lies further off has 3e-7 of its influence left.
_STEP_ROWS, _AHEAD_ROWS = 12, 14
# From here on the elimination's factors are those of an endless line, to 1e-15.
_SETTLED = 16


@dataclass(frozen=True)
class Tiling:
    """Assignment of pixels to programs; all numbers are powers of two.

    The defaults are the best of sixteen on an H100, by a small margin.

    Attributes
    ----------
    tile_x, tile_y : int
        Pixels of a program along x and y.
    patch_x : int, default 4
        Columns of the patch that 32 neighbouring threads take.
    num_warps : int, default 4
        Warps of a program.
    """

    tile_x: int = 16
    tile_y: int = 32
    patch_x: int = 4
    num_warps: int = 4

    def options(self) -> dict[str, int]:
        """Return keyword arguments of a kernel launch."""
        shape = {"TILE_X": self.tile_x, "TILE_Y": self.tile_y, "PATCH_X": self.patch_x}
        return {**shape, "num_warps": self.num_warps}

    def tiles(self, n: int) -> int:
        """Return the number of tiles of an image of n x n pixels."""
        across = ceil_div(n, self.tile_x)
        down = ceil_div(n, self.tile_y)
        return across * down


DEFAULT_TILING = Tiling()


def rotate_shift_images(
    images: Tensor | Samples,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    *,
    method: str = "cubic",
    boundary: str = "zero",
    tiling: Tiling = DEFAULT_TILING,
) -> Tensor:
    """Transform particles into the frame of their class average; see `reference.rotate_shift_images`."""
    out = empty_like(images)
    n = out.shape[-1]
    for part, samples in sampled_chunks(images, method, boundary, chunk_pixels(images), solved):
        table = pose_table(samples, psi_deg[part], origin_xy_px[part], mirror[part], None)
        _images_kernel[(len(samples) * tiling.tiles(n),)](
            samples.values, table, out[part], tiling.tiles(n), n, PAD, samples.method, samples.boundary,
            **tiling.options(),
        )  # fmt: skip
    return out


def interpolation_samples(images: Tensor, *, method: str = "cubic", boundary: str = "zero") -> Samples:
    """Prefilter images that are interpolated many times; see `reference.interpolation_samples`."""
    return reference.interpolation_samples(images, method=method, boundary=boundary, pad=solved)


def pose_table(
    samples: Samples, psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, weights: Tensor | None
) -> Tensor:
    """Compute the pose table in one launch instead of a dozen; see `reference.pose_table`."""
    weights = samples.weighted(weights)
    table = torch.empty(len(samples), len(TABLE_COLUMNS), dtype=reference.compute_dtype(samples), device=samples.device)
    block = 256
    _table_kernel[(ceil_div(len(samples), block),)](
        psi_deg.contiguous(), origin_xy_px.contiguous(), mirror.contiguous(),
        table if weights is None else weights.contiguous(), table if samples.mean is None else samples.mean,
        table, len(samples), samples.box, weights is not None, samples.mean is not None, block,
    )  # fmt: skip
    return table


def solved(images: Tensor, matrix: Tensor | None, boundary: str) -> tuple[Tensor, Tensor | None]:
    """Pad and prefilter images; see `reference.padded`.

    The prefilter along x is one large matrix product, for which every GPU has a library. Along y, where a library would
    multiply image by image, the columns' tridiagonal systems are solved by elimination in registers.
    """
    if matrix is None or boundary != "zero":
        return reference.padded(images, matrix, boundary)
    b, n = images.shape[:2]
    along_x = images.to(matrix.dtype) @ matrix.T
    width = n + 2 * PAD
    out = torch.empty(b, width, width, dtype=matrix.dtype, device=images.device)
    lanes = next_power_of_2(width)
    _solve_kernel[(b,)](
        along_x, out, _factors(matrix.dtype, images.device), n, PAD, _STEP_ROWS, _AHEAD_ROWS, _SETTLED, OMOMS_SIDE,
        lanes, num_warps=max(1, min(lanes // 32, 16)),
    )  # fmt: skip
    return out, None


@functools.lru_cache(maxsize=8)
def _factors(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Factors of the elimination in the first rows of the box, up to the last, which is that of all others."""
    factors = [1 / OMOMS_CENTRE]
    while len(factors) <= _SETTLED:
        factors.append(1 / (OMOMS_CENTRE - OMOMS_SIDE**2 * factors[-1]))
    return torch.tensor(factors, dtype=dtype, device=device)


@triton.jit(do_not_specialize=["n"])
def _solve_kernel(
    in_ptr, out_ptr, factor_ptr, n, PAD: tl.constexpr, STEP: tl.constexpr, AHEAD: tl.constexpr,
    SETTLED: tl.constexpr, SIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Solve the tridiagonal systems of an image (n, w), one thread a column, by elimination; outside the box is zero.

    Elimination runs down, some rows at a time and those ahead of them; substitution runs up from the last of these,
    where the rest no longer matters, and leaves the rows of the step.
    """
    width = n + 2 * PAD
    image = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, LANES)
    inside = column < width
    source, out = in_ptr + image * n * width + column, out_ptr + image * width * width + column
    above = tl.zeros([LANES], dtype=out_ptr.dtype.element_ty)
    for first in range(-PAD, n + PAD, STEP):
        value = above
        eliminated, scales = (), ()
        for i in tl.static_range(STEP + AHEAD):
            row = first + i + column * 0
            in_box = (row >= 0) & (row < n)
            sample = tl.load(source + row * width, mask=inside & in_box, other=0.0)
            scale = tl.load(factor_ptr + tl.minimum(tl.maximum(first + i, 0), SETTLED))
            value = tl.where(in_box, (sample - SIDE * value) * scale, 0.0)
            eliminated, scales = eliminated + (value,), scales + (tl.where(in_box, SIDE * scale, 0.0),)  # noqa: RUF005
            if i == STEP - 1:
                above = value
        value = tl.zeros([LANES], dtype=out_ptr.dtype.element_ty)
        for i in tl.static_range(STEP + AHEAD - 1, -1, -1):
            value = eliminated[i] - scales[i] * value
            if i < STEP:
                row = first + i + column * 0
                tl.store(out + (row + PAD) * width, value, mask=inside & (row < n + PAD))


@triton.jit(
    do_not_specialize=["n_particles"],
    do_not_specialize_on_alignment=["psi_ptr", "origin_ptr", "mirror_ptr", "weight_ptr", "mean_ptr"],
)
def _table_kernel(
    psi_ptr, origin_ptr, mirror_ptr, weight_ptr, mean_ptr, table_ptr, n_particles,
    N: tl.constexpr, WEIGHTED: tl.constexpr, OFFSET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """TABLE_COLUMNS of a block of particles."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < n_particles
    kind: tl.constexpr = table_ptr.dtype.element_ty
    psi = tl.load(psi_ptr + i, mask=there).to(kind) * (3.141592653589793 / 180.0)
    row = table_ptr + i * 7
    tl.store(row, tl.cos(psi), mask=there)
    tl.store(row + 1, tl.sin(psi), mask=there)
    tl.store(row + 2, N // 2 - tl.load(origin_ptr + 2 * i, mask=there).to(kind), mask=there)
    tl.store(row + 3, N // 2 - tl.load(origin_ptr + 2 * i + 1, mask=there).to(kind), mask=there)
    tl.store(row + 4, tl.load(mirror_ptr + i, mask=there).to(kind), mask=there)
    one = psi * 0 + 1
    tl.store(row + 5, tl.load(weight_ptr + i, mask=there).to(kind) if WEIGHTED else one, mask=there)
    tl.store(row + 6, tl.load(mean_ptr + i, mask=there).to(kind) if OFFSET else one - 1, mask=there)


@triton.jit
def tile_pixels(tile, N: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, PATCH_X: tl.constexpr):
    """Return column and row of a tile's pixels, ordered so that neighbouring threads have patches of 32 pixels.

    Parameters
    ----------
    tile
        Number of the tile.
    N : tl.constexpr
        Image size, pixels.
    TILE_X, TILE_Y : tl.constexpr
        Pixels of a tile along x and y.
    PATCH_X : tl.constexpr
        Columns of a patch.

    Returns
    -------
    tuple of blocks
        Column and row of each pixel.
    """
    PATCH_Y: tl.constexpr = 32 // PATCH_X
    ACROSS: tl.constexpr = TILE_X // PATCH_X
    i = tl.arange(0, TILE_X * TILE_Y)
    patch = i // 32
    column = (patch % ACROSS) * PATCH_X + i % PATCH_X
    row = (patch // ACROSS) * PATCH_Y + (i // PATCH_X) % PATCH_Y
    n_across = (N + TILE_X - 1) // TILE_X
    return (tile % n_across) * TILE_X + column, (tile // n_across) * TILE_Y + row


@triton.jit
def class_frame_value(
    samples, table, column, row, N: tl.constexpr, PAD: tl.constexpr, METHOD: tl.constexpr, BOUNDARY: tl.constexpr
):
    """Interpolate one particle at pixels of the class frame.

    Parameters
    ----------
    samples
        Pointer to the particle's samples.
    table
        Pointer to its row of the pose table.
    column, row
        Pixels of the class frame.
    N : tl.constexpr
        Image size, pixels.
    PAD : tl.constexpr
        Width of the samples' border, pixels.
    METHOD : tl.constexpr
        Number of the interpolation method.
    BOUNDARY : tl.constexpr
        Number of the boundary rule.

    Returns
    -------
    block
        Values, times the particle's weight.
    """
    cos, sin = tl.load(table), tl.load(table + 1)
    start_x, start_y = tl.load(table + 2), tl.load(table + 3)
    mirrored = tl.load(table + 4) != 0
    source = tl.where(mirrored, (2 * (N // 2) - column + N) % N, column)
    u, v = (source - N // 2).to(cos.dtype), (row - N // 2).to(cos.dtype)
    x = cos * u + (sin * v + start_x)
    y = cos * v - sin * u + start_y
    if BOUNDARY == "cyclic":
        x -= N * tl.floor(x / N)
        y -= N * tl.floor(y / N)
    if BOUNDARY == "background":
        inside = (x > -1e-4) & (x < N) & (y > -1e-4) & (y < N)  # EDGE_PX of the plain form
        x = tl.where(inside, x, source.to(cos.dtype))
        y = tl.where(inside, y, row.to(cos.dtype))
    # Where the clamp moves a point all its taps are padding; where a shift is NaN it keeps the address in range.
    x = tl.minimum(tl.maximum(x, -3.0), N + 1.0)
    y = tl.minimum(tl.maximum(y, -3.0), N + 1.0)
    x0, y0 = tl.floor(x), tl.floor(y)
    # One address a pixel; the taps lie at offsets known at compile time, which cost no instruction.
    W: tl.constexpr = N + 2 * PAD
    here = samples + ((y0.to(tl.int32) + PAD) * W + x0.to(tl.int32) + PAD)
    if METHOD == "cubic":
        value = _cubic(here, x - x0, y - y0, W)
    elif METHOD == "quadratic":
        value = _quadratic(here, x - x0, y - y0, W)
    else:
        tl.static_assert(METHOD == "linear")
        value = _linear(here, x - x0, y - y0, W)
    return tl.load(table + 5) * (value + tl.load(table + 6))


@triton.jit
def _linear(here, t, u, W: tl.constexpr):
    upper = tl.load(here) * (1 - t) + tl.load(here + 1) * t
    lower = tl.load(here + W) * (1 - t) + tl.load(here + W + 1) * t
    return upper * (1 - u) + lower * u


@triton.jit
def _cubic(here, t, u, W: tl.constexpr):
    x, y = _cubic_weights(t), _cubic_weights(u)
    value = y[0] * _cubic_row(here - W, x)
    value += y[1] * _cubic_row(here, x)
    value += y[2] * _cubic_row(here + W, x)
    value += y[3] * _cubic_row(here + 2 * W, x)
    return value


@triton.jit
def _cubic_row(here, x):
    if here.dtype.element_ty == tl.int32:
        first, second = pair(tl.load(here - 1))
        third, fourth = pair(tl.load(here + 1))
    else:
        first, second = tl.load(here - 1), tl.load(here)
        third, fourth = tl.load(here + 1), tl.load(here + 2)
    return x[0] * first + x[1] * second + x[2] * third + x[3] * fourth


@triton.jit
def _cubic_weights(t):
    """Cubic o-Moms at distances 1 + t, t, 1 - t, 2 - t; see `reference`."""
    s = 1 - t
    before, after = s * (s * s * (1 / 6) + 1 / 42), t * (t * t * (1 / 6) + 1 / 42)
    middle = t * (t * (t * 0.5 - 1) + 1 / 14) + 13 / 21
    return before, middle, 1 - before - middle - after, after


@triton.jit
def _quadratic(here, t, u, W: tl.constexpr):
    """EMAN2's quadri."""
    centre = tl.load(here)
    right, left = tl.load(here + 1) - centre, tl.load(here - 1) - centre
    below, above = tl.load(here + W) - centre, tl.load(here - W) - centre
    mixed = tl.load(here + W + 1) - centre - right - below
    along_x = right + (t - 1) * (right + left) * 0.5 + u * mixed
    along_y = below + (u - 1) * (below + above) * 0.5
    return centre + t * along_x + u * along_y


@triton.jit
def _images_kernel(
    samples_ptr,
    table_ptr,
    out_ptr,
    n_tiles,
    N: tl.constexpr,
    PAD: tl.constexpr,
    METHOD: tl.constexpr,
    BOUNDARY: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    PATCH_X: tl.constexpr,
):
    """One program a (particle, tile)."""
    pid = tl.program_id(0)
    particle = (pid // n_tiles).to(tl.int64)  # int64: stacks pass 2^31 pixels
    column, row = tile_pixels(pid % n_tiles, N, TILE_X, TILE_Y, PATCH_X)
    samples = samples_ptr + particle * ((N + 2 * PAD) * (N + 2 * PAD))
    value = class_frame_value(samples, table_ptr + particle * 7, column, row, N, PAD, METHOD, BOUNDARY)
    tl.store(out_ptr + particle * (N * N) + row * N + column, value, mask=(row < N) & (column < N))


# Long enough that writing a run's sum is little beside reading its members, short enough that one class alone fills
# a GPU with runs: from 16 to 128 an H100 sees no difference.
RUN_LENGTH = 64
# Pixels prefiltered and summed at a time: it bounds the memory (two buffers of 512 MiB in float32).
BATCH_PIXELS = 1 << 27


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
    tiling: Tiling = DEFAULT_TILING,
    run_length: int = RUN_LENGTH,
    batch_pixels: int = BATCH_PIXELS,
) -> Tensor:
    """Sum the images of each class in the class frame; see `reference.rotate_shift_sum`."""
    row = sum_row(class_index, half_index, n_classes).int()
    sums = new_sums(images, half_index, n_classes) if out is None else out
    rows_of_sums = sums.view(-1, *sums.shape[-2:])
    for part, samples in sampled_chunks(images, method, boundary, batch_pixels, solved):
        samples = samples.rounded() if rounded else samples
        weight = None if weights is None else weights[part]
        table = pose_table(samples, psi_deg[part], origin_xy_px[part], mirror[part], weight)
        _add_batch(rows_of_sums, samples, table, row[part], tiling, run_length)
    return sums


def _add_batch(sums: Tensor, samples: Samples, table: Tensor, row: Tensor, tiling: Tiling, run_length: int) -> None:
    """Adds a batch of particles to the sums (n_rows, n, n); a particle of a larger row is left out."""
    n, n_rows = samples.box, len(sums)
    row, order = torch.sort(row, stable=True)
    begin = torch.searchsorted(row, torch.arange(n_rows + 1, device=row.device, dtype=row.dtype))
    n_runs = ceil_div(len(row), run_length)
    # Run and row both only grow along the sorted particles: their sum numbers what is left without gaps to look up.
    partial = torch.empty(n_runs + n_rows, n, n, dtype=table.dtype, device=sums.device)
    # Tiles of one run are neighbours in the launch order: they read the same particles while L2 holds them.
    _runs_kernel[(n_runs * tiling.tiles(n),)](
        samples.values, table, order, row, begin, partial, tiling.tiles(n), n_rows, run_length, n, PAD,
        samples.method, samples.boundary, **tiling.options(),
    )  # fmt: skip
    block = 1024
    n_blocks = ceil_div(n * n, block)
    _add_runs_kernel[(n_rows * n_blocks,)](partial, begin, sums, n * n, n_blocks, run_length, block)


@triton.jit(do_not_specialize=["n_rows"])
def _runs_kernel(
    samples_ptr,
    table_ptr,
    order_ptr,
    row_ptr,
    begin_ptr,
    partial_ptr,
    n_tiles,
    n_rows,
    run_length,
    N: tl.constexpr,
    PAD: tl.constexpr,
    METHOD: tl.constexpr,
    BOUNDARY: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    PATCH_X: tl.constexpr,
):
    """One program a (run, tile): the run's members of each class summed in registers."""
    pid = tl.program_id(0)
    run = (pid // n_tiles).to(tl.int64)
    x, y = tile_pixels(pid % n_tiles, N, TILE_X, TILE_Y, PATCH_X)
    inside = (y < N) & (x < N)
    partial = partial_ptr + run * (N * N) + y * N + x
    start = run * run_length
    stop = tl.minimum(start + run_length, tl.load(begin_ptr + n_rows))  # beyond: particles of no row
    current = tl.load(row_ptr + start).to(tl.int64)
    total = tl.zeros([TILE_X * TILE_Y], dtype=partial_ptr.dtype.element_ty)
    for member in range(start, stop):
        row = tl.load(row_ptr + member).to(tl.int64)
        if row != current:
            tl.store(partial + current * (N * N), total, mask=inside)
            total = tl.zeros([TILE_X * TILE_Y], dtype=partial_ptr.dtype.element_ty)
            current = row
        particle = tl.load(order_ptr + member)  # int64: stacks pass 2^31 pixels
        samples = samples_ptr + particle * ((N + 2 * PAD) * (N + 2 * PAD))
        total += class_frame_value(samples, table_ptr + particle * 7, x, y, N, PAD, METHOD, BOUNDARY)
    if start < stop:
        tl.store(partial + current * (N * N), total, mask=inside)


@triton.jit
def _add_runs_kernel(partial_ptr, begin_ptr, sums_ptr, n_pixels, n_blocks, run_length, BLOCK: tl.constexpr):
    """One program a (row of sums, block of pixels): what the runs left for it, in their order."""
    pid = tl.program_id(0)
    row = (pid // n_blocks).to(tl.int64)
    pixel = (pid % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < n_pixels
    start, stop = tl.load(begin_ptr + row), tl.load(begin_ptr + row + 1)
    total = tl.load(sums_ptr + row * n_pixels + pixel, mask=inside, other=0.0)
    if start < stop:
        for run in range(start // run_length, (stop - 1) // run_length + 1):
            total += tl.load(partial_ptr + (run + row) * n_pixels + pixel, mask=inside, other=0.0)
    tl.store(sums_ptr + row * n_pixels + pixel, total, mask=inside)
