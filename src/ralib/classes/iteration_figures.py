"""Figures of an iteration and of a class, for the log, run.json and the report."""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch
from torch import Tensor

from ralib.classes import evaluation
from ralib.conventions import wrap_deg
from ralib.images.frc import resolution_frequency
from ralib.kernels.figures import pose_sums
from ralib.types import ClassAverages, Poses


def iteration_figures(
    iteration: int,
    poses: Poses,
    previous: Poses | None,
    averages: ClassAverages,
    outer_radius: float,
    seconds: float,
    counted: Tensor | None = None,
) -> dict[str, Any]:
    """Compute the figures of one iteration; NaN stands for unknown.

    Among them: `criterion`, the mean score of particles in classes, or of those counted; `median_resolution_A` over the
    classes that have one, and `resolution_px` of each class; `pixel_error_px`, the mean rms displacement of a
    particle's disc among those that kept class and mirror.

    Parameters
    ----------
    iteration : int
        Number of the iteration.
    poses : Poses
        Poses of all particles.
    previous : Poses or None
        Poses of the iteration before, or None.
    averages : ClassAverages
        Class averages.
    outer_radius : float
        Radius of the particle's disc, pixels.
    seconds : float
        Duration of the iteration, s.
    counted : Tensor of shape (n,), optional
        Particles whose scores count; by default all.

    Returns
    -------
    dict
        The figures by name.
    """
    before, n_classes = None if previous is None else previous.fields(), len(averages.images)
    sums, numbers, members = pose_sums(poses.fields(), before, counted, outer_radius, n_classes)
    # One transfer: every number taken from a GPU by itself would wait for all the work before it.
    curve = _frc(averages)
    on_host = torch.cat([sums, numbers, members, curve.flatten().to(sums)]).cpu()
    sums, numbers, sizes, values = on_host.split([len(sums), len(numbers), n_classes, curve.numel()])
    criterion, pixel_error, class_changes, mirror_changes = (sums / numbers).tolist()
    sizes, resolution_px = sizes.long(), frc_resolution_px(values.view(curve.shape).float(), averages.images.shape[-1])
    return {
        "iteration": iteration,
        "criterion": criterion,
        "class_sizes": sizes.tolist(),
        "smallest": int(sizes.min()),
        "largest": int(sizes.max()),
        "empty": int((sizes == 0).sum()),
        "effective_classes": evaluation.effective_classes(sizes),
        **resolution_figures(resolution_px, averages.pixel_size_A),
        "seconds": seconds,
        "pixel_error_px": pixel_error,
        "class_changes": class_changes,
        "mirror_changes": mirror_changes,
    }


def resolution_figures(resolution_px: list[float], pixel_size_A: float | None) -> dict[str, Any]:
    """Return the resolution of each class and the median of those known; NaN stands for unknown.

    Parameters
    ----------
    resolution_px : list of float
        Of each class, pixels.
    pixel_size_A : float or None
        Pixel size, Angstrom.

    Returns
    -------
    dict
        `median_resolution_px`, `median_resolution_A`, `resolution_px` and `resolution_A`.
    """
    known, pixel = [r for r in resolution_px if math.isfinite(r)], pixel_size_A or math.nan
    median_px = statistics.median(known) if known else math.nan
    return {
        "median_resolution_px": median_px,
        "median_resolution_A": median_px * pixel,
        "resolution_px": resolution_px,
        "resolution_A": [r * pixel for r in resolution_px],
    }


def _frc(averages: ClassAverages) -> Tensor:
    """The FRC (k, rings) of each class; without rings where it is not known."""
    return averages.images.new_empty(len(averages.images), 0) if averages.frc is None else averages.frc


def frc_resolution_px(curve: Tensor, box: int) -> list[float]:
    """Return the resolution of each class in pixels: that of the box where halves agree on nothing.

    Parameters
    ----------
    curve : Tensor of shape (k, n // 2 + 1)
        FRC, in main memory; without rings where it is not known.
    box : int
        Size n of the images that it is of, pixels.

    Returns
    -------
    list of float
        Pixels; NaN where the FRC is not known.
    """
    if not curve.numel():
        return [math.nan] * len(curve)
    frequency, coarsest = resolution_frequency(curve, box=box).tolist(), 1 / box
    known = (curve[:, 1:] != 0).any(1).tolist()
    return [1 / max(f, coarsest) if k else math.nan for f, k in zip(frequency, known, strict=True)]


def class_figures(averages: ClassAverages, poses: Poses, previous: Poses | None) -> list[dict[str, Any]]:
    """Compute the figures of each class: members, resolution, mean score, and reproducibility of the poses.

    `inplane_spread_deg` and `shift_spread_px` are the rms changes of angle and shift in the last iteration, among
    members that kept class and mirror.

    Parameters
    ----------
    averages : ClassAverages
        Class averages.
    poses : Poses
        Poses of all particles.
    previous : Poses or None
        Poses of the iteration before, or None.

    Returns
    -------
    list of dict
        The figures of each class by name.
    """
    pixel = averages.pixel_size_A or math.nan
    rows = []
    of_classes = frc_resolution_px(_frc(averages).cpu().float(), averages.images.shape[-1])
    for k, resolution in enumerate(of_classes):
        member = poses.class_index == k
        angle, shift = _spread(poses, previous, member)
        rows.append(
            {
                "class": k + 1,
                "members": int(member.sum()),
                "resolution_px": resolution,
                "resolution_A": resolution * pixel,
                "mean_score": _mean(poses.score[member]),
                "inplane_spread_deg": angle,
                "shift_spread_px": shift,
            }
        )
    return rows


def _spread(poses: Poses, previous: Poses | None, member: Tensor) -> tuple[float, float]:
    if previous is None:
        return math.nan, math.nan
    same = member & (previous.class_index == poses.class_index) & (previous.mirror == poses.mirror)
    angle = wrap_deg(poses.psi_deg[same] - previous.psi_deg[same])
    shift = torch.linalg.vector_norm(poses.origin_xy_px[same] - previous.origin_xy_px[same], dim=-1)
    return math.sqrt(_mean(angle.square())), math.sqrt(_mean(shift.square()))


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else math.nan
