"""The rooms that know Triton: each kernel beside a plain PyTorch twin of the same signature.

A function of this package runs the Triton form for tensors on a GPU and the plain form otherwise. An error in one is
an error: nothing falls back silently. The twins are importable from `*_plain` and `*_triton`.
"""

from __future__ import annotations

from torch import Tensor


def rotate_shift_images(
    images: Tensor,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    *,
    method: str = "cubic",
    boundary: str = "zero",
) -> Tensor:
    """Particles (b, n, n) in the frame of their class average; see `resample_plain.rotate_shift_images`."""
    if images.is_cuda:
        from ralib.ops.resample_triton import rotate_shift_images as form
    else:
        from ralib.ops.resample_plain import rotate_shift_images as form
    return form(images, psi_deg, origin_xy_px, mirror, method=method, boundary=boundary)


def rotate_shift_sum(
    images: Tensor,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    class_index: Tensor,
    n_classes: int,
    *,
    weights: Tensor | None = None,
    half_index: Tensor | None = None,
    method: str = "cubic",
    boundary: str = "zero",
) -> Tensor:
    """Class sums (k, n, n), or (2, k, n, n) by half, of such images; see `accumulate_plain.rotate_shift_sum`."""
    if images.is_cuda:
        from ralib.ops.accumulate_triton import rotate_shift_sum as form
    else:
        from ralib.ops.accumulate_plain import rotate_shift_sum as form
    return form(
        images, psi_deg, origin_xy_px, mirror, class_index, n_classes,
        weights=weights, half_index=half_index, method=method, boundary=boundary,
    )  # fmt: skip
