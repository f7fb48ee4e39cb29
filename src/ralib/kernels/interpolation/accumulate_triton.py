# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Class sums of rotated, shifted and mirrored images: the Triton twin of `accumulate_plain`.

Particles are sorted by class and cut into runs of one length. One program a (run, tile of pixels) walks over the run
with the tile's sum in registers and writes it out where the class changes; a second kernel adds up what the runs left
for a class, in their order. No atomics and a fixed order: the same input gives the same bits. The particles are read
once and only sums are written. No step waits for the device.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.interpolation.accumulate_plain import new_sums, sum_row
from ralib.kernels.interpolation.resample_plain import PAD, Samples, sampled_chunks
from ralib.kernels.interpolation.resample_triton import (
    DEFAULT_TILING,
    Tiling,
    class_frame_value,
    pose_table,
    solved,
    tile_pixels,
)

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
    tiling: Tiling = DEFAULT_TILING,
    run_length: int = RUN_LENGTH,
    batch_pixels: int = BATCH_PIXELS,
) -> Tensor:
    """Sum of each class's images in the class frame; `accumulate_plain` describes arguments and result."""
    row = sum_row(class_index, half_index, n_classes).int()
    sums = new_sums(images, half_index, n_classes) if out is None else out
    rows_of_sums = sums.view(-1, *sums.shape[-2:])
    for part, samples in sampled_chunks(images, method, boundary, batch_pixels, solved):
        weight = None if weights is None else weights[part]
        table = pose_table(samples, psi_deg[part], origin_xy_px[part], mirror[part], weight)
        _add_batch(rows_of_sums, samples, table, row[part], tiling, run_length)
    return sums


def _add_batch(sums: Tensor, samples: Samples, table: Tensor, row: Tensor, tiling: Tiling, run_length: int) -> None:
    """Adds a batch of particles to the sums (n_rows, n, n); a particle of a larger row is left out."""
    n, n_rows = samples.box, len(sums)
    row, order = torch.sort(row, stable=True)
    begin = torch.searchsorted(row, torch.arange(n_rows + 1, device=row.device, dtype=row.dtype))
    n_runs = triton.cdiv(len(row), run_length)
    # Run and row both only grow along the sorted particles: their sum numbers what is left without gaps to look up.
    partial = torch.empty(n_runs + n_rows, n, n, dtype=samples.values.dtype, device=sums.device)
    # Tiles of one run are neighbours in the launch order: they read the same particles while L2 holds them.
    _runs_kernel[(n_runs * tiling.tiles(n),)](
        samples.values, table, order, row, begin, partial, tiling.tiles(n), n_rows, run_length, n, PAD,
        samples.method, samples.boundary, **tiling.options(),
    )  # fmt: skip
    block = 1024
    n_blocks = triton.cdiv(n * n, block)
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
