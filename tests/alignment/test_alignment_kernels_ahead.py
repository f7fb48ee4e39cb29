"""Calls that compile an alignment's kernels: all run, in the Triton form too."""

from __future__ import annotations

import pickle

import pytest
import torch

from interpreter import in_interpreter
from ralib import kernels
from ralib.alignment import kernels_ahead
from ralib.alignment.kernels_ahead import calls_ahead, refinement_calls
from ralib.alignment.search.polar_grid import PolarGrid

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_calls_ahead_run_and_reach_another_process() -> None:
    refinement = {pickle.dumps(call) for call in refinement_calls()}  # of what only a GPU's form takes
    calls = {pickle.dumps(call) for call in calls_ahead(PolarGrid.create(20, support_radius_px=8.0))}
    assert refinement < calls
    for call in calls - refinement:
        pickle.loads(call)(DEVICE)


@in_interpreter
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, of zeros times an endless slack
def test_calls_ahead_triton_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "gpu_forms_only", True)
    monkeypatch.setattr(kernels_ahead, "MANY", 64)
    monkeypatch.setattr(kernels_ahead, "FEW", 16)
    monkeypatch.setattr(kernels_ahead, "N_ORDERS", (16, 80))
    grid = PolarGrid.create(20, support_radius_px=8.0, max_frequency_per_px=0.2)
    for call in calls_ahead(grid):
        call(DEVICE)
