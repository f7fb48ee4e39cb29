"""Image transformation as SPARX's rot_shift2D and fshift do it: quadratic or linear, on batches.

Follows fundamentals.rot_shift2D and EMData::rot_scale_trans2D (EMAN2 2.99). Coordinates are computed in float32 in
EMAN2's order of operations: its quadratic kernel is discontinuous at integer coordinates, so that another rounding
gives another image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ralib.sparx.resample_numba import rotate_shift_quadratic
from ralib.sparx.transforms import Params
from ralib.types import RalibError

METHODS = ("quadratic", "linear")
MODES = ("background", "cyclic")
COMPILED = ("quadratic", "background")
"""What SPARX's alignments use, and what is compiled for a CPU."""


def rot_shift2D(
    images: Tensor, params: Params, *, interpolation_method: str = "quadratic", mode: str = "background"
) -> Tensor:
    """Rotate images, shift, then mirror them.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    params : Params of shape (b, 4)
        Rows of alpha in degrees, sx and sy in pixels, mirror.
    interpolation_method : str, default 'quadratic'
        'quadratic' or 'linear'.
    mode : str, default 'background'
        'background' keeps the image's own pixel where the source lies outside; 'cyclic' wraps around.

    Returns
    -------
    Tensor of shape (b, n, n)
        Transformed images.
    """
    if interpolation_method not in METHODS or mode not in MODES:
        raise RalibError(
            f"rot_shift2D knows the methods {', '.join(METHODS)} and the modes {', '.join(MODES)}, "
            f"not {interpolation_method!r} with {mode!r}: choose from those"
        )
    if images.ndim != 3 or len(images) != len(params):
        raise RalibError(f"rot_shift2D got images {tuple(images.shape)} and {len(params)} rows: give one row an image")
    if images.device.type == "cpu" and images.dtype == torch.float32 and (interpolation_method, mode) == COMPILED:
        return rotate_shift_quadratic(images, *_turn_and_shift(params, images), params[:, 3].cpu() > 0.5)
    n = images.shape[-1]
    x, y = _put_inside(*_source_coordinates(params, images), n, mode)
    if interpolation_method == "linear":
        return mirror_images(_linear(images, x, y), params[:, 3] > 0.5)
    # EMAN2 counts the pixels of the quadratic kernel from 1, which costs it a bit of precision.
    return mirror_images(_quadratic(images, x + 1.0, y + 1.0), params[:, 3] > 0.5)


def mirror_images(images: Tensor, mirror: Tensor) -> Tensor:
    """Mirror images, x -> -x about pixel n // 2; column 0 of an even image stays, as in EMAN2.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    mirror : Tensor of shape (b,)
        True to mirror.

    Returns
    -------
    Tensor of shape (b, n, n)
        Images.
    """
    columns = torch.arange(images.shape[-1], device=images.device)
    flipped = images[..., (2 * (images.shape[-1] // 2) - columns) % images.shape[-1]]
    return torch.where(mirror[:, None, None].to(images.device), flipped, images)


def _turn_and_shift(params: Params, images: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine (b, 2) of the angles, and shifts (b, 2) within the box, float32."""
    n = images.shape[-1]
    angle = (params[:, 0].to(images.device).float().double() * math.pi / 180.0).float()
    shift = params[:, 1:3].to(images.device).float()
    shift = torch.where(shift.abs() >= n, torch.fmod(shift, n), shift)
    return torch.stack([torch.cos(angle), torch.sin(angle)], dim=-1), shift


def _source_coordinates(params: Params, images: Tensor) -> tuple[Tensor, Tensor]:
    """Where each output pixel comes from, (b, n, n) float32 each, in EMAN2's order of operations."""
    n, device = images.shape[-1], images.device
    turn, shift = _turn_and_shift(params, images)
    centre = n // 2
    c, s = turn[:, 0, None, None], turn[:, 1, None, None]
    index = torch.arange(n, device=device, dtype=torch.float32)
    x = index[None, None, :] - (centre + shift[:, 0, None, None])
    y = index[None, :, None] - (centre + shift[:, 1, None, None])
    return x * c + (-y * s + centre), x * s + (y * c + centre)


def _put_inside(x: Tensor, y: Tensor, n: int, mode: str) -> tuple[Tensor, Tensor]:
    """Coordinates in [0, n): wrapped around, or the output pixel itself where the source lies outside."""
    if mode == "cyclic":
        return _wrap(x, n), _wrap(y, n)
    outside = (x < 0) | (x >= n) | (y < 0) | (y >= n)
    index = torch.arange(n, device=x.device, dtype=torch.float32)
    return torch.where(outside, index[None, None, :], x), torch.where(outside, index[None, :, None], y)


def _wrap(x: Tensor, n: int) -> Tensor:
    x = torch.remainder(x, n)
    return torch.where(x >= n, torch.zeros_like(x), x)  # a tiny negative number rounds up to n


def _corners(
    images: Tensor, x: Tensor, y: Tensor, *, first: int = 0
) -> tuple[Callable[[int, int], Tensor], Tensor, Tensor]:
    """A reader of the pixel (dx, dy) away from the floor of (x, y), and the fractions; pixels count from `first`."""
    n = images.shape[-1]
    i, j = x.floor(), y.floor()
    flat = images.flatten(1)
    ii, jj = i.long() - first, j.long() - first

    def pixel(dx: int, dy: int) -> Tensor:
        index = ((jj + dy) % n) * n + (ii + dx) % n
        return flat.gather(1, index.flatten(1)).view(x.shape)

    return pixel, (x - i).to(images.dtype), (y - j).to(images.dtype)


def _quadratic(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """SPIDER's six-point quadratic interpolation (Util::quadri); coordinates count from 1 and wrap around."""
    pixel, dx, dy = _corners(images, x, y, first=1)
    f0, right, above = pixel(0, 0), pixel(1, 0), pixel(0, 1)
    c1, c3 = right - f0, above - f0
    c2 = (c1 - f0 + pixel(-1, 0)) * 0.5
    c4 = (c3 - f0 + pixel(0, -1)) * 0.5
    c5 = pixel(1, 1) - f0 - c1 - c3
    return f0 + dx * (c1 + (dx - 1) * c2 + dy * c5) + dy * (c3 + (dy - 1) * c4)


def _linear(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Bilinear interpolation, wrapping around."""
    pixel, dx, dy = _corners(images, x, y)
    p00, p10, p01, p11 = pixel(0, 0), pixel(1, 0), pixel(0, 1), pixel(1, 1)
    return p00 + dy * (p01 - p00) + dx * (p10 - p00 + dy * (p11 - p10 - p01 + p00))
