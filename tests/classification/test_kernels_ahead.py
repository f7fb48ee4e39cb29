"""Calls that compile a classification's kernels: all run, in the Triton form too, and take what a search takes."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from interpreter import in_interpreter
from ralib import kernels
from ralib.classification import kernels_ahead
from ralib.classification.kernels_ahead import calls_ahead, usual_calls
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.runtime.ahead import called_ahead

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PLANS = [ScheduleSettings(), ScheduleSettings.quick(), ScheduleSettings.thorough()]


@pytest.mark.parametrize("plan", PLANS, ids=["default", "quick", "thorough"])
@pytest.mark.parametrize("n_classes", [1, 50])
def test_calls_ahead_any_plan_run(n_classes: int, plan: ScheduleSettings) -> None:
    for call in calls_ahead(33, n_classes, plan, True):
        if call is not kernels_ahead._refinement or DEVICE.type == "cuda":  # of what only a GPU's form takes
            call(DEVICE)


@pytest.mark.parametrize("mirror", [True, False])
def test_usual_calls_are_of_default_options(mirror: bool) -> None:
    usual = {pickle.dumps(call) for call in usual_calls()}
    calls = {pickle.dumps(call) for call in calls_ahead(64, 10, ScheduleSettings(), mirror)}
    assert usual <= calls if mirror else usual & calls and not usual <= calls


@in_interpreter
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, of zeros times an endless slack
def test_calls_ahead_triton_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "gpu_forms_only", True)
    for call in calls_ahead(16, 3, ScheduleSettings(), False):
        call(DEVICE)


def test_called_ahead_cpu_calls_nothing() -> None:
    with called_ahead(torch.device("cpu")) as ahead:
        ahead([lambda _: os.abort()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: on a CPU nothing is called ahead")
def test_called_ahead_gpu_errors_are_not_raised() -> None:
    done = []
    with called_ahead(DEVICE) as ahead:
        ahead([lambda _: 1 / 0, lambda _: done.append(torch.cuda.current_device())])
        while not done:
            pass
