"""The rooms that know Triton: each kernel beside a plain PyTorch twin of the same signature.

A function of this package runs the Triton form for tensors on a GPU and the plain form otherwise. An error in one
is an error: nothing falls back silently. The twins are importable from `*_plain` and `*_triton`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor


def rotate_shift_images(images: Tensor, *pose: Tensor, **options: Any) -> Tensor:
    """Particles in the frame of their class average; see `resample_plain.rotate_shift_images`."""
    from ralib.ops.resample_plain import rotate_shift_images as form

    return form(images, *pose, **options)


def rotate_shift_sum(images: Tensor, *args: Any, **options: Any) -> Tensor:
    """Class sums of such images; see `accumulate_plain.rotate_shift_sum`."""
    from ralib.ops.accumulate_plain import rotate_shift_sum as form

    return form(images, *args, **options)
