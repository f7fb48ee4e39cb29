"""An iteration of a classification in poses of the input's pixels, and in numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ralib.classes.iteration_figures import iteration_figures
from ralib.classification.state import State
from ralib.classification.whitening import Field
from ralib.conventions import wrap_deg
from ralib.types import ClassAverages, Poses


def state_poses(state: State, field: Field) -> Poses:
    """The state's poses in pixels of the input; the score is the fit's logarithm of the likelihood ratio."""
    index = torch.where(field.usable, state.class_index, -1)
    score = state.fit.gather(1, state.class_index[:, None])[:, 0]
    return Poses(wrap_deg(state.psi_deg), state.origin_xy_px / field.scale, state.mirror, index, score)


def course_figures(
    stage: str,
    number: int,
    state: State,
    poses: Poses,
    previous: Poses | None,
    field: Field,
    pixel_size_A: float | None,
    seconds: float,
) -> dict[str, Any]:
    """One iteration in numbers; `previous` None where there is nothing to compare with."""
    assert state.averages is not None
    frequency = (field.grid.frequency[: state.averages.frc.shape[1]] * field.scale).cpu()
    sketch = ClassAverages(
        images=torch.zeros(len(state.members), 1, 1), members=state.members, pixel_size_A=pixel_size_A
    )
    row = iteration_figures(number, poses, previous, sketch, field.particle_radius_px / field.scale, seconds)
    resolution = _resolution_px(state.averages.frc.cpu(), frequency)
    pixel = math.nan if pixel_size_A is None else pixel_size_A
    mean = float(resolution.mean())
    return row | {
        "stage": stage,
        "resolution_px": resolution.tolist(),
        "resolution_A": (resolution * pixel).tolist(),
        "mean_resolution_px": mean,
        "mean_resolution_A": mean * pixel,
    }


def _resolution_px(frc: Tensor, frequency: Tensor, threshold: float = 0.143) -> Tensor:
    """Detail (k,), in pixels, up to which the FRC (k, r) stays above the threshold."""
    above = frc > threshold
    above[:, :3] = True  # so few samples that a bad one says nothing
    above = torch.cumprod(above.int(), dim=1).sum(1).clamp(1, len(frequency))
    return 1.0 / frequency[above - 1]
