"""All that knows Triton and Numba: each kernel beside a plain PyTorch reference of the same signature.

`interpolation_samples(images)` prefilters once what is to be turned in every iteration; its result goes in for images.
`implementation` alone chooses the form of a kernel. An error in one is an error: nothing falls back silently. The
references are the oracles of the tests.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ralib.kernels.compile_cache import choose_places
from ralib.kernels.interpolation.reference import Samples, compute_dtype

__all__ = ["Samples", "implementation", "interpolation_samples", "rotate_shift_images", "rotate_shift_sum"]


choose_places(os.environ, Path(__file__).parent)


def implementation(folder: str, data: Tensor | Samples) -> Any:
    """The one dispatch rule: which module of a folder of kernels computes on such data.

    Parameters
    ----------
    folder : str
        'interpolation' or 'pose_search'.
    data : Tensor or Samples
        What the kernel is given.

    Returns
    -------
    module
        `gpu_triton` on a GPU, `cpu_numba` for single precision on a CPU where the folder has it, else `reference`.
    """
    form = "reference"
    if data.device.type == "cuda":
        form = "gpu_triton"
    elif folder == "interpolation" and data.device.type == "cpu" and compute_dtype(data) == torch.float32:
        form = "cpu_numba"
    return import_module(f"ralib.kernels.{folder}.{form}")


def interpolation_samples(images: Tensor, *, method: str = "cubic", boundary: str = "zero") -> Samples:
    """Images (b, n, n) made ready for interpolation, to be turned many times; they take the place of images below."""
    samples: Samples = implementation("interpolation", images).interpolation_samples(
        images, method=method, boundary=boundary
    )
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
    """Particles (b, n, n) in the frame of their class average; see `interpolation.reference.rotate_shift_images`."""
    turned: Tensor = implementation("interpolation", images).rotate_shift_images(
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
    """Class sums (k, n, n), or (2, k, n, n) by half, of such images; see `interpolation.reference.rotate_shift_sum`."""
    pose = (psi_deg, origin_xy_px, mirror, class_index)
    options = {"weights": weights, "half_index": half_index, "out": out, "method": method, "boundary": boundary}
    sums: Tensor = implementation("interpolation", images).rotate_shift_sum(images, *pose, n_classes, **options)
    return sums
