"""An iteration of a classification in poses of the input's pixels, and in numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ralib.classes.iteration_figures import class_resolution_px, iteration_figures
from ralib.classification.state import State
from ralib.classification.whitening import Field
from ralib.conventions import wrap_deg
from ralib.images.frc import masked_frc
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
    sketch = ClassAverages(
        images=torch.zeros(len(state.members), 1, 1), members=state.members, pixel_size_A=pixel_size_A
    )
    row = iteration_figures(number, poses, previous, sketch, field.particle_radius_px / field.scale, seconds)
    resolution = torch.tensor(class_resolution_px(_with_frc(state, field, pixel_size_A)))
    resolution = resolution.clamp_max(field.grid.box) / field.scale  # halves that agree on nothing, not even ring 1
    pixel = math.nan if pixel_size_A is None else pixel_size_A
    known = resolution[resolution.isfinite()]
    mean = float(known.mean()) if len(known) else math.nan
    return row | {
        "stage": stage,
        "resolution_px": resolution.tolist(),
        "resolution_A": (resolution * pixel).tolist(),
        "mean_resolution_px": mean,
        "mean_resolution_A": mean * pixel,
    }


def _with_frc(state: State, field: Field, pixel_size_A: float | None) -> ClassAverages:
    """The averages' halves on the working grid and their FRC, as `images.frc.masked_frc` has it for the final ones."""
    assert state.averages is not None
    grid, halves = field.grid, state.averages.halves
    images = grid.image(grid.samples_of(halves.flatten(0, 1))).unflatten(0, halves.shape[:2]).cpu()
    pixel = None if pixel_size_A is None else pixel_size_A / field.scale
    averages = ClassAverages(images.mean(0), state.members.cpu(), images, None, pixel)
    return replace(averages, frc=masked_frc(averages, field.radius_px))
