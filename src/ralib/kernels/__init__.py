"""The rooms that know Triton and Numba: each kernel beside a plain PyTorch twin of the same signature.

`interpolation_samples(images)` prefilters once what is to be turned in every iteration; its result goes in for images.
A function of this package runs the Triton form for tensors on a GPU, the Numba form in float32 on a CPU, and
the plain form elsewhere. An error in one is an error: nothing falls back silently. The plain twins are the oracles.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ralib.kernels.compile_cache import choose_places
from ralib.kernels.interpolation.resample_plain import Samples, compute_dtype

__all__ = ["Samples", "interpolation_samples", "rotate_shift_images", "rotate_shift_sum", "twin"]


choose_places(os.environ, Path(__file__).parent)


def twin(room: str, images: Tensor | Samples) -> Any:
    """The module of a room that serves these images: _triton on a GPU, _numba for float32 on a CPU, else _plain."""
    form = "plain"
    if images.device.type == "cuda":
        form = "triton"
    elif images.device.type == "cpu" and compute_dtype(images) == torch.float32:
        form = "numba"
    return import_module(f"ralib.kernels.interpolation.{room}_{form}")


def interpolation_samples(images: Tensor, *, method: str = "cubic", boundary: str = "zero") -> Samples:
    """Images (b, n, n) made ready for interpolation, to be turned many times; they take the place of images below."""
    samples: Samples = twin("resample", images).interpolation_samples(images, method=method, boundary=boundary)
    return samples


def rotate_shift_images(
    images: Tensor | Samples,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    *,
    method: str = "cubic",
    boundary: str = "zero",
) -> Tensor:
    """Particles (b, n, n) in the frame of their class average; see `resample_plain.rotate_shift_images`."""
    turned: Tensor = twin("resample", images).rotate_shift_images(
        images, psi_deg, origin_xy_px, mirror, method=method, boundary=boundary
    )
    return turned


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
) -> Tensor:
    """Class sums (k, n, n), or (2, k, n, n) by half, of such images; see `accumulate_plain.rotate_shift_sum`."""
    pose = (psi_deg, origin_xy_px, mirror, class_index)
    options = {"weights": weights, "half_index": half_index, "out": out, "method": method, "boundary": boundary}
    sums: Tensor = twin("accumulate", images).rotate_shift_sum(images, *pose, n_classes, **options)
    return sums
