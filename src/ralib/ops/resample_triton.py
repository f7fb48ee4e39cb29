# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Rotated, shifted and mirrored images by interpolation: the Triton twin of `resample_plain`.

Every pixel of the class frame gathers its taps straight from the particle, through the L1 cache. The 32 threads of
a warp take a patch of 8 x 4 pixels rather than a line of 32: a line at an angle touches up to 32 rows, one cache
line each, the patch at most nine. Nothing here is special to NVIDIA.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ralib.ops.resample_plain import (
    PAD,
    Samples,
    chunk_pixels,
    empty_like,
    interpolation_samples,  # noqa: F401  matrix products, which every GPU has a library for
    pose_table,
    sampled_chunks,
)


@dataclass(frozen=True)
class Tiling:
    """How pixels are dealt to programs: powers of two.

    tile_x, tile_y    pixels of a program
    patch_x           columns of the patch that 32 neighbouring threads take
    num_warps         warps of a program
    """

    tile_x: int = 32
    tile_y: int = 32
    patch_x: int = 8
    num_warps: int = 4


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
    """Particles seen in the frame of their class average; `resample_plain` describes arguments and result."""
    out = empty_like(images)
    n = out.shape[-1]
    n_tiles = triton.cdiv(n, tiling.tile_x) * triton.cdiv(n, tiling.tile_y)
    for part, samples in sampled_chunks(images, method, boundary, chunk_pixels(images)):
        table = pose_table(samples, psi_deg[part], origin_xy_px[part], mirror[part], None)
        _images_kernel[(len(samples) * n_tiles,)](
            samples.values, table, out[part], n_tiles, n, PAD, samples.method, samples.boundary,
            **launch_options(tiling),
        )  # fmt: skip
    return out


def launch_options(tiling: Tiling) -> dict[str, int]:
    """The tiling as keyword arguments of a kernel launch."""
    return {
        "TILE_X": tiling.tile_x,
        "TILE_Y": tiling.tile_y,
        "PATCH_X": tiling.patch_x,
        "num_warps": tiling.num_warps,
    }


@triton.jit
def tile_pixels(tile, N: tl.constexpr, TILE_X: tl.constexpr, TILE_Y: tl.constexpr, PATCH_X: tl.constexpr):
    """Column and row of the pixels of a tile, neighbouring threads in patches of 32 pixels."""
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
    """Weighted value of one particle (pointers to its samples and its table row) at pixels of the class frame."""
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
    left = x[0] * tl.load(here - 1) + x[1] * tl.load(here)
    return left + x[2] * tl.load(here + 1) + x[3] * tl.load(here + 2)


@triton.jit
def _cubic_weights(t):
    """Cubic o-Moms at distances 1 + t, t, 1 - t, 2 - t; see `resample_plain`."""
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
