"""Class sums of rotated, shifted and mirrored images, in plain PyTorch: the oracle of the Triton form."""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.ops.resample_plain import check_options, chunks, compute_dtype, prefilter_matrix, resample


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
    """Sum of each class's images in the class frame; `resample_plain` says how they get there.

    images (b, n, n); class_index (b,) int from 0, -1 where a particle belongs to no class; weights (b,) or None;
    half_index (b,) of 0 and 1 or None. Returns (k, n, n), or (2, k, n, n) with half_index.
    Particles are added one after the other in their order, so the result does not depend on the chunks.
    """
    check_options(method, boundary)
    n = images.shape[-1]
    row = sum_row(class_index, half_index, n_classes)
    halves = 1 if half_index is None else 2
    sums = torch.zeros(halves * n_classes + 1, n, n, dtype=compute_dtype(images), device=images.device)
    matrix = prefilter_matrix(images, method, boundary)
    for part in chunks(images):
        pose = psi_deg[part], origin_xy_px[part], mirror[part]
        turned = resample(images[part], *pose, method, boundary, matrix)
        if weights is not None:
            turned *= weights[part].to(turned)[:, None, None]
        sums.index_add_(0, row[part], turned)
    return sums[:-1] if half_index is None else sums[:-1].view(2, n_classes, n, n)


def sum_row(class_index: Tensor, half_index: Tensor | None, n_classes: int) -> Tensor:
    """Row of each particle in the sums: half * n_classes + class; the row after the last for class -1."""
    row = class_index.long()
    n_rows = n_classes
    if half_index is not None:
        row = row + half_index.long() * n_classes
        n_rows = 2 * n_classes
    return torch.where(class_index < 0, n_rows, row)
