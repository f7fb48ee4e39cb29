"""Class sums of rotated, shifted and mirrored images on a CPU: the Numba twin of `accumulate_plain`."""

from __future__ import annotations

from torch import Tensor

from ralib.kernels.interpolation.accumulate_plain import new_sums, sum_row
from ralib.kernels.interpolation.resample_numba import CHUNKS, add_turned, solved
from ralib.kernels.interpolation.resample_plain import Samples, chunk_pixels, pose_table, sampled_chunks


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
    """Sum of each class's images in the class frame; `accumulate_plain` describes arguments and result."""
    row = sum_row(class_index, half_index, n_classes)
    sums = new_sums(images, half_index, n_classes) if out is None else out
    rows_of_sums = sums.view(-1, *sums.shape[-2:])
    # Samples as they are need no room: all of them at once.
    pixels = len(images) * images.box**2 if isinstance(images, Samples) else CHUNKS * chunk_pixels(images)
    for part, samples in sampled_chunks(images, method, boundary, pixels, solved):
        weight = None if weights is None else weights[part]
        table = pose_table(samples, psi_deg[part], origin_xy_px[part], mirror[part], weight)
        add_turned(samples, table, row[part], rows_of_sums)
    return sums
