"""Figures of an iteration: whose fits count."""

from __future__ import annotations

import math

import pytest
import torch

from ralib.classes.iteration_figures import iteration_figures
from ralib.types import ClassAverages, Poses


@pytest.mark.parametrize(
    ("counted", "expected"),
    [(None, 37.0), ([True, True, False, True], 5.5), ([False] * 4, math.nan)],
    ids=["all in classes", "without a bead", "none"],
)
def test_iteration_figures_criterion_is_the_mean_of_those_counted(counted: list[bool] | None, expected: float) -> None:
    poses = Poses.identity(4).replace(
        class_index=torch.tensor([0, 1, 1, -1]), score=torch.tensor([4.0, 7.0, 100.0, 900.0])
    )
    averages = ClassAverages(images=torch.zeros(2, 8, 8), members=torch.tensor([1.0, 2.0]))
    mask = None if counted is None else torch.tensor(counted)
    figures = iteration_figures(1, poses, None, averages, 4.0, 0.1, mask)
    assert figures["criterion"] == pytest.approx(expected, nan_ok=True)
    assert figures["class_sizes"] == [1, 2], "classes hold them whether or not they count"
