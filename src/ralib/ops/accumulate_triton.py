# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Class sums of rotated, shifted and mirrored images: the Triton twin of `accumulate_plain`.

Particles are sorted by class, each class is cut into runs, and one program a (run, tile of pixels) walks over the
run's particles with the tile's sums in registers; a second kernel adds the runs of a class in their order. No
atomics and a fixed order: the same input gives the same bits. The particles are read once and only sums are written.
No step waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.ops.accumulate_plain import new_sums, sum_row
from ralib.ops.resample_plain import PAD, Samples, pose_table, sampled_chunks
from ralib.ops.resample_triton import (
    DEFAULT_TILING,
    Tiling,
    class_frame_value,
    launch_options,
    tile_pixels,
)

# Members of a run: long enough that writing its sums is little beside reading its members, short enough that even
# one class fills a GPU with runs.
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
    tiling: Tiling = DEFAULT_TILING,
    run_length: int = RUN_LENGTH,
    batch_pixels: int = BATCH_PIXELS,
) -> Tensor:
    """Sum of each class's images in the class frame; `accumulate_plain` describes arguments and result."""
    row = sum_row(class_index, half_index, n_classes)
    sums = new_sums(images, half_index, n_classes) if out is None else out
    rows_of_sums = sums.view(-1, *sums.shape[-2:])
    for part, samples in sampled_chunks(images, method, boundary, batch_pixels):
        weight = None if weights is None else weights[part]
        table = pose_table(samples, psi_deg[part], origin_xy_px[part], mirror[part], weight)
        _add_batch(rows_of_sums, samples, table, row[part], tiling, run_length)
    return sums


class _Runs(NamedTuple):
    """Sorted members cut into runs of one row each; `first[r]` is the first run of row r."""

    order: Tensor
    start: Tensor
    stop: Tensor
    first: Tensor


def _cut_runs(row: Tensor, n_rows: int, length: int) -> _Runs:
    """Runs of at most `length` members; as many as could be needed, the last ones empty, so nothing is counted
    on the host."""
    sorted_row, order = torch.sort(row, stable=True)
    begin = torch.searchsorted(sorted_row, torch.arange(n_rows + 1, device=row.device))
    runs_of_row = (begin.diff() + length - 1) // length
    first = torch.nn.functional.pad(runs_of_row.cumsum(0), (1, 0))
    run = torch.arange(len(row) // length + min(n_rows, len(row)), device=row.device)
    owner = (torch.searchsorted(first, run, right=True) - 1).clamp(max=n_rows - 1)
    stop_of_row = begin[owner + 1]
    start = torch.minimum(begin[owner] + (run - first[owner]) * length, stop_of_row)
    return _Runs(order, start, torch.minimum(start + length, stop_of_row), first)


def _add_batch(sums: Tensor, samples: Samples, table: Tensor, row: Tensor, tiling: Tiling, run_length: int) -> None:
    """Adds a batch of particles to the sums (n_rows, n, n)."""
    n = samples.box
    runs = _cut_runs(row, len(sums), run_length)
    n_runs = len(runs.start)
    partial = torch.empty(n_runs, n, n, dtype=samples.values.dtype, device=sums.device)
    n_tiles = triton.cdiv(n, tiling.tile_x) * triton.cdiv(n, tiling.tile_y)
    # Tiles of one run are neighbours in the launch order: they read the same particles while L2 holds them.
    _runs_kernel[(n_runs * n_tiles,)](
        samples.values, table, runs.order, runs.start, runs.stop, partial, n_tiles, n, PAD,
        samples.method, samples.boundary, **launch_options(tiling),
    )  # fmt: skip
    block = 1024
    n_blocks = triton.cdiv(n * n, block)
    _add_runs_kernel[(len(sums) * n_blocks,)](partial, runs.first, sums, n * n, n_blocks, block)


@triton.jit
def _runs_kernel(
    samples_ptr,
    table_ptr,
    order_ptr,
    start_ptr,
    stop_ptr,
    partial_ptr,
    n_tiles,
    N: tl.constexpr,
    PAD: tl.constexpr,
    METHOD: tl.constexpr,
    BOUNDARY: tl.constexpr,
    TILE_X: tl.constexpr,
    TILE_Y: tl.constexpr,
    PATCH_X: tl.constexpr,
):
    """One program a (run, tile): the run's members summed in registers."""
    pid = tl.program_id(0)
    run = (pid // n_tiles).to(tl.int64)
    start, stop = tl.load(start_ptr + run), tl.load(stop_ptr + run)
    column, row = tile_pixels(pid % n_tiles, N, TILE_X, TILE_Y, PATCH_X)
    total = tl.zeros([TILE_X * TILE_Y], dtype=partial_ptr.dtype.element_ty)
    for member in range(start, stop):
        particle = tl.load(order_ptr + member)  # int64: stacks pass 2^31 pixels
        samples = samples_ptr + particle * ((N + 2 * PAD) * (N + 2 * PAD))
        total += class_frame_value(samples, table_ptr + particle * 7, column, row, N, PAD, METHOD, BOUNDARY)
    inside = (row < N) & (column < N)
    tl.store(partial_ptr + run * (N * N) + row * N + column, total, mask=inside)


@triton.jit
def _add_runs_kernel(partial_ptr, first_ptr, sums_ptr, n_pixels, n_blocks, BLOCK: tl.constexpr):
    """One program a (row of sums, block of pixels): its runs added in their order."""
    pid = tl.program_id(0)
    row = (pid // n_blocks).to(tl.int64)
    pixel = (pid % n_blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < n_pixels
    total = tl.load(sums_ptr + row * n_pixels + pixel, mask=inside, other=0.0)
    for run in range(tl.load(first_ptr + row), tl.load(first_ptr + row + 1)):
        total += tl.load(partial_ptr + run * n_pixels + pixel, mask=inside, other=0.0)
    tl.store(sums_ptr + row * n_pixels + pixel, total, mask=inside)
