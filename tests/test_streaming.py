"""A stack larger than the memory budget: the same answer as in memory, and memory that does not grow with it."""

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from blobs import Truth, make
from ralib import io
from ralib.batches import ParticleBatches
from ralib.cli import main
from ralib.multireference import MultiReferenceAligner
from ralib.types import ParticleSet, RalibError, RunResult

BOX, N = 32, 90
STACK_BYTES = 4 * N * BOX**2


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make(N, box=BOX, n_views=3, snr=1.0, shift_px=1.0, seed=7)


def run(truth: Truth, resident_bytes: int | None, **options) -> RunResult:
    aligner = MultiReferenceAligner(
        references=truth.references,
        outer_radius=12,
        iterations=2,
        batch_size=20,
        min_members=40,
        resident_bytes=resident_bytes,
        **options,
    )
    return aligner.fit(truth.images).result_


def test_streamed_and_in_memory_give_the_same_bits(truth: Truth) -> None:
    memory = run(truth, None)
    for budget in (0, STACK_BYTES, 4 * STACK_BYTES):
        found = run(truth, budget)
        assert torch.equal(found.averages.images, memory.averages.images)
        assert torch.equal(found.poses.psi_deg, memory.poses.psi_deg)
    timings = run(truth, 0).extra["timings"]
    assert timings["read_bytes"] == 2 * STACK_BYTES, "read once an iteration"
    assert timings["read_bytes_per_s"] > 0
    assert memory.extra["timings"]["read_bytes"] == STACK_BYTES


def test_the_command_streams_too(truth: Truth, tmp_path: Path) -> None:
    io.write_mrcs(tmp_path / "p.mrcs", truth.images, 3.0)
    for name, budget in (("kept", "1"), ("read", "0")):
        options = ["--ou=12", "--xr=1", "--maxit=1", f"--memory={budget}", "--device=cpu", "--no-report"]
        assert main(["mref", str(tmp_path / "p.mrcs"), "3", str(tmp_path / name), *options]) == 0
    averages = [(tmp_path / name / "class_averages.mrcs").read_bytes() for name in ("kept", "read")]
    assert averages[0] == averages[1]
    read = [json.loads((tmp_path / n / "run.json").read_text())["timings"]["read_bytes"] for n in ("kept", "read")]
    assert read == [STACK_BYTES, 2 * STACK_BYTES], "random references are made from the first reading"


def test_half_precision_changes_next_to_nothing(truth: Truth) -> None:
    memory, half = run(truth, None), run(truth, STACK_BYTES // 2)
    assert torch.equal(half.poses.class_index, memory.poses.class_index)
    difference = (half.averages.images - memory.averages.images).abs().max()
    assert 0 < difference < 0.01 * memory.averages.images.abs().max()


def test_equal_sizes_beyond_the_budget_are_refused(truth: Truth) -> None:
    run(truth, STACK_BYTES, equal_sizes=True)
    with pytest.raises(RalibError, match="--EQ weighs all 90 particles against all 3 references"):
        run(truth, 0, equal_sizes=True)


class Endless:
    """Images that are made when they are read."""

    n_images, box = 24_000, 64

    def read(self, index: np.ndarray) -> np.ndarray:
        row = np.arange(self.box, dtype=np.float32)
        return np.broadcast_to(np.sin(row) + index[:, None, None] % 7, (len(index), self.box, self.box)).copy()


def test_memory_does_not_grow_with_the_stack() -> None:
    """Of the 390 MB that go through, no more than a few batches are ever there."""
    rows = range(Endless.n_images)
    batches = ParticleBatches(
        ParticleSet(Endless()),
        rows,
        batch_size=256,
        device=torch.device("cpu"),
        background_radius=28,
        resident_bytes=2**24,
    )
    assert batches.resident == "none"
    process, seen, peak, before = psutil.Process(), 0, 0, 0
    for batch in batches:
        seen += len(batch.index)
        before = before or process.memory_info().rss
        peak = max(peak, process.memory_info().rss)
    assert seen == Endless.n_images
    assert peak - before < 100 * 2**20
