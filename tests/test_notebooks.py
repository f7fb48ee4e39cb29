"""The four notebooks run from start to end, and say what they should."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# What each prints when it works; the numbers behind are tested elsewhere.
EXPECTED = {
    "1_multireference_alignment.ipynb": ["adjusted_rand_index", "400 particles read back"],
    "2_image_operations.ipynb": ["device:", "microseconds a particle", "phase-flipped"],
    "3_eman2_comparison.ipynb": ["quadratic background", "wrong sign on purpose", "one call"],
    "4_analysis.ipynb": ["2SDR and k-means", "1 component above the noise", "steerable"],
}


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_notebook_executed_anew_prints_what_it_should(name: str) -> None:
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    said = printed(notebook)
    for expected in EXPECTED[name]:
        assert expected in said


def test_every_notebook_is_tested_and_committed_with_outputs() -> None:
    assert {path.name for path in EXAMPLES.glob("*.ipynb")} == set(EXPECTED)
    for name in EXPECTED:
        notebook = nbformat.read(EXAMPLES / name, as_version=4)
        assert printed(notebook), f"{name} is committed without outputs: jupyter nbconvert --execute --inplace"
