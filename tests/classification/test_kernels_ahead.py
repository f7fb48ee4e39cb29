"""Calls that compile a classification's kernels: all run, in the Triton form too, and take what a search takes."""

from __future__ import annotations

import os

import pytest
import torch

from interpreter import in_interpreter
from ralib.classification import kernels_ahead
from ralib.classification.kernels_ahead import calls_ahead
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.runtime.ahead import called_ahead

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLANS = [ScheduleSettings(), ScheduleSettings.quick(), ScheduleSettings.thorough()]


@pytest.mark.parametrize("plan", PLANS, ids=["default", "quick", "thorough"])
@pytest.mark.parametrize("n_classes", [1, 50])
def test_calls_ahead_any_plan_run(n_classes: int, plan: ScheduleSettings) -> None:
    calls = calls_ahead(33, n_classes, plan, True, DEVICE)
    for call in calls:
        call()


@in_interpreter
def test_calls_ahead_triton_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from ralib.kernels import averages
    from ralib.kernels.averages import gpu_triton as of_averages
    from ralib.kernels.classes import gpu_triton
    from ralib.kernels.likelihood import gpu_triton as likelihood

    monkeypatch.setattr(kernels_ahead, "likelihood", likelihood)
    posed = "add_posed", "half_columns", "half_rows", "moved_orders", "ring_crosses", "sum_bounds"
    for name in ("best_in_classes", "class_prices", "thin", *posed):
        monkeypatch.setattr(kernels_ahead, name, getattr(gpu_triton, name))
    for name in set(averages.__all__) - {"Waves", "smoothed"}:
        monkeypatch.setattr(kernels_ahead, name, getattr(of_averages, name))
    for call in calls_ahead(16, 3, ScheduleSettings(), False, DEVICE)[:-1]:
        call()


def test_called_ahead_cpu_calls_nothing() -> None:
    with called_ahead(torch.device("cpu")) as ahead:
        ahead([lambda: os.abort()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: on a CPU nothing is called ahead")
def test_called_ahead_gpu_errors_are_not_raised() -> None:
    done = []
    with called_ahead(DEVICE) as ahead:
        ahead([lambda: 1 / 0, lambda: done.append(torch.cuda.current_device())])
        while not done:
            pass
