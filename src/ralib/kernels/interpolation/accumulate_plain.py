"""Class sums of rotated, shifted and mirrored images, in plain PyTorch: the oracle of the Triton form."""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.kernels.interpolation.resample_plain import Samples, chunk_pixels, compute_dtype, resample, sampled_chunks


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
    """Sum of each class's images in the class frame; `resample_plain` says how they get there.

    images (b, n, n); class_index (b,) int from 0, -1 where a particle belongs to no class; weights (b,) or None;
    half_index (b,) of 0 and 1 or None; out, running sums to add to, may be float64 for float32 images.
    Returns out, or new sums of the images' dtype: (k, n, n), or (2, k, n, n) with half_index.
    Particles are added one after the other in their order, so the result does not depend on the chunks.
    """
    row = sum_row(class_index, half_index, n_classes)
    sums = new_sums(images, half_index, n_classes) if out is None else out
    rows_of_sums = sums.view(-1, *sums.shape[-2:])
    for part, samples in sampled_chunks(images, method, boundary, chunk_pixels(images)):
        turned = resample(samples, psi_deg[part], origin_xy_px[part], mirror[part])
        if weights is not None:
            turned *= weights[part].to(turned)[:, None, None]
        member = row[part] < len(rows_of_sums)
        rows_of_sums.index_add_(0, row[part][member], turned[member].to(sums.dtype))
    return sums


def new_sums(images: Tensor | Samples, half_index: Tensor | None, n_classes: int) -> Tensor:
    """Zeros (k, n, n), or (2, k, n, n) where there are halves."""
    n = images.box if isinstance(images, Samples) else images.shape[-1]
    halves = () if half_index is None else (2,)
    return torch.zeros(*halves, n_classes, n, n, dtype=compute_dtype(images), device=images.device)


def sum_row(class_index: Tensor, half_index: Tensor | None, n_classes: int) -> Tensor:
    """Row of each particle in the sums: half * n_classes + class; the row after the last for class -1."""
    row = class_index.long()
    n_rows = n_classes
    if half_index is not None:
        row = row + half_index.long() * n_classes
        n_rows = 2 * n_classes
    return torch.where(class_index < 0, n_rows, row)
