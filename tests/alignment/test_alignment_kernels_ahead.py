"""Calls that compile an alignment's kernels: all run, in the Triton form too."""

from __future__ import annotations

import pickle

import pytest
import torch

from interpreter import in_interpreter
from ralib.alignment import kernels_ahead
from ralib.alignment.kernels_ahead import calls_ahead
from ralib.alignment.search.polar_grid import PolarGrid

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_calls_ahead_run_and_reach_another_process() -> None:
    _, calls = calls_ahead(PolarGrid.create(20, support_radius_px=8.0), DEVICE)
    for call in calls:
        pickle.loads(pickle.dumps(call))()


@in_interpreter
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy, of zeros times an endless slack
def test_calls_ahead_triton_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from ralib.kernels.pose_search import gpu_triton
    from ralib.kernels.references import gpu_triton as of_references

    for name in ("masked_unit_norm", "product_rows", "template_extent"):
        monkeypatch.setattr(kernels_ahead, name, getattr(of_references, name))
    for name in ("gather_taps", "grid_candidates", "newton", "rotational_max", "shifted_parts", "shortlist"):
        monkeypatch.setattr(kernels_ahead, name, getattr(gpu_triton, name))
    monkeypatch.setattr(kernels_ahead, "newton_templates", gpu_triton.packed_templates)
    monkeypatch.setattr(kernels_ahead, "polar_samples", gpu_triton.packed_samples)
    monkeypatch.setattr(kernels_ahead, "MANY", 64)
    monkeypatch.setattr(kernels_ahead, "FEW", 16)
    monkeypatch.setattr(kernels_ahead, "N_ORDERS", (16, 80))
    grid = PolarGrid.create(20, support_radius_px=8.0, max_frequency_per_px=0.2)
    refinement, others = calls_ahead(grid, DEVICE, n_fine=2)
    for call in [*refinement, *others]:
        call()
