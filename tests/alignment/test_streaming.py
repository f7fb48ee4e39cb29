"""A stack larger than the memory budget: the same answer as in memory, and memory that does not grow with it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from blobs import Truth, make
from ralib import io
from ralib.alignment import equal_sizes as equal
from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.alignment.search import PoseSearch
from ralib.cli import main
from ralib.particles.batches import ParticleBatches
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import IterationDone, SilentObserver
from ralib.types import ParticleSet, Poses, RalibError, RunResult

BOX, N = 32, 90
STACK_BYTES = 4 * N * BOX**2


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make(N, box=BOX, n_views=3, snr=1.0, shift_px=1.0, seed=7)


def aligner(truth: Truth, resident_bytes: int | None, **options) -> MultiReferenceAligner:
    common = {"outer_radius": 12, "iterations": 2, "batch_size": 20, "min_members": 40} | options
    return MultiReferenceAligner(references=truth.references, resident_bytes=resident_bytes, **common)


def run(truth: Truth, resident_bytes: int | None, **options) -> RunResult:
    return aligner(truth, resident_bytes, **options).fit(truth.images).result_


def test_mref_streamed_and_in_memory_give_the_same_bits(truth: Truth) -> None:
    memory = run(truth, None)
    for budget in (0, STACK_BYTES, 4 * STACK_BYTES):
        found = run(truth, budget)
        assert torch.equal(found.averages.images, memory.averages.images)
        assert torch.equal(found.poses.psi_deg, memory.poses.psi_deg)
    timings = run(truth, 0).timings
    assert timings["read_bytes"] == 2 * STACK_BYTES, "read once an iteration"
    assert timings["read_bytes_per_s"] > 0
    assert memory.timings["read_bytes"] == STACK_BYTES


def test_mref_command_streamed_images_give_the_same_averages(truth: Truth, tmp_path: Path) -> None:
    io.write_mrcs(tmp_path / "p.mrcs", truth.images, 3.0)
    for name, budget in (("kept", "1"), ("read", "0")):
        options = ["--ou=12", "--xr=1", "--maxit=1", f"--memory={budget}", "--device=cpu", "--no-report"]
        assert main(["mref", str(tmp_path / "p.mrcs"), "3", str(tmp_path / name), *options]) == 0
    averages = [(tmp_path / name / "class_averages.mrcs").read_bytes() for name in ("kept", "read")]
    assert averages[0] == averages[1]
    read = [json.loads((tmp_path / n / "run.json").read_text())["timings"]["read_bytes"] for n in ("kept", "read")]
    assert read == [STACK_BYTES, 2 * STACK_BYTES], "random references are made from the first reading"


def test_mref_half_precision_changes_next_to_nothing(truth: Truth) -> None:
    memory, half = run(truth, None), run(truth, STACK_BYTES // 2)
    assert torch.equal(half.poses.class_index, memory.poses.class_index)
    difference = (half.averages.images - memory.averages.images).abs().max()
    assert 0 < difference < 0.01 * memory.averages.images.abs().max()


def test_mref_part_of_the_set_stays_on_the_device(truth: Truth) -> None:
    some, every = run(truth, STACK_BYTES // 4), run(truth, STACK_BYTES // 2)
    assert torch.equal(some.averages.images, every.averages.images), "those read anew are rounded as well"
    kept = 2 * 20
    assert some.timings["read_bytes"] == (N + N - kept) * 4 * BOX**2
    assert every.timings["read_bytes"] == STACK_BYTES


class StopAfterOne(SilentObserver):
    kept: Checkpoint | None = None

    def iteration(self, done: IterationDone) -> None:
        assert done.checkpoint is not None
        self.kept = done.checkpoint()
        raise InterruptedError


@pytest.mark.parametrize("budgets", [(STACK_BYTES // 2, 0), (STACK_BYTES // 2, STACK_BYTES), (0, STACK_BYTES // 2)])
def test_mref_resumed_with_other_memory_gives_the_same_bits(truth: Truth, budgets: tuple[int, int]) -> None:
    whole, observer = run(truth, budgets[0]), StopAfterOne()
    with pytest.raises(InterruptedError):
        aligner(truth, budgets[0]).fit(truth.images, observer=observer)
    resumed = aligner(truth, budgets[1]).fit(truth.images, resume=observer.kept).result_
    assert torch.equal(resumed.averages.images, whole.averages.images)


class Refusing:
    """Says that memory ran out for batches above a size, as PyTorch would."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error, self.refused, self.search = most, error, 0, PoseSearch.search

    def __call__(self, search: PoseSearch, samples: torch.Tensor, centre: torch.Tensor | None = None) -> Poses:
        if len(samples) > self.most:
            self.refused += 1
            raise self.error
        return self.search(search, samples, centre)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"),
    ],
)
def test_mref_out_of_memory_shrinks_the_batches_and_goes_on(truth: Truth, monkeypatch, error: Exception) -> None:
    options = {"batch_size": 80, "min_members": 0}
    calm, refusing = run(truth, None, **options), Refusing(20, error)
    monkeypatch.setattr(PoseSearch, "search", lambda *a: refusing(*a))
    found = run(truth, None, **options)
    assert refusing.refused == 2, "80 and 40 are too many; what was learnt holds for the second iteration"
    assert torch.equal(found.poses.class_index, calm.poses.class_index)
    torch.testing.assert_close(found.averages.images, calm.averages.images, rtol=0, atol=1e-5)
    told = [w.what for w in found.warnings]
    assert told[0] == "memory ran out: the pass begins anew with batches of 40 particles"
    assert told[1].endswith("batches of 20 particles, and particles are read anew in every iteration")
    assert found.timings["read_bytes"] > calm.timings["read_bytes"]


def test_mref_what_can_never_fit_is_refused(truth: Truth, monkeypatch) -> None:
    refusing = Refusing(0, torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(PoseSearch, "search", lambda *a: refusing(*a))
    with pytest.raises(RalibError, match="nothing is left to shrink: CUDA out of memory; use fewer references"):
        run(truth, None, batch_size=80)
    refusing.error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        run(truth, None)


def test_mref_equal_sizes_stream(truth: Truth) -> None:
    memory, streamed = (run(truth, budget, equal_sizes=True) for budget in (None, 0))
    assert torch.equal(streamed.poses.class_index, memory.poses.class_index)
    assert streamed.averages.members.tolist() == [30, 30, 30]


def test_equal_classes_short_lists_give_the_same_sizes(monkeypatch) -> None:
    """More classes than are remembered of a particle, prices from a few particles: as good as all scores at once."""
    truth = make(160, box=BOX, n_views=12, snr=1.0, shift_px=1.0, seed=5)
    truth.images[7] = np.nan
    options = {"equal_sizes": True, "iterations": 1, "batch_size": 50}
    every = run(truth, None, **options)
    monkeypatch.setattr(equal, "LISTED", 5)
    monkeypatch.setattr(equal, "SAMPLE", 60)
    monkeypatch.setattr(equal, "SAMPLE_PER_CLASS", 5)
    short = run(truth, 0, **options)
    sizes = torch.bincount(short.poses.class_index[short.poses.class_index >= 0], minlength=12)
    assert sizes.sum() == 159
    assert sizes.max() - sizes.min() <= 1
    assert short.poses.class_index[7] == -1
    same = (short.poses.class_index == every.poses.class_index).double().mean()
    assert same > 0.95


class Endless:
    """Images that are made when they are read."""

    n_images, box = 24_000, 64

    def read(self, index: np.ndarray) -> np.ndarray:
        row = np.arange(self.box, dtype=np.float32)
        return np.broadcast_to(np.sin(row) + index[:, None, None] % 7, (len(index), self.box, self.box)).copy()


def test_equal_classes_memory_does_not_grow_with_the_stack() -> None:
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


ALIGNMENT = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np, psutil, torch
from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.alignment.search import PoseSearch
from ralib.types import ParticleSet, Poses

class Noise:
    n_images, box = 6000, 64

    def read(self, index):
        return np.random.default_rng(int(index[0])).standard_normal((len(index), 64, 64), dtype=np.float32)

class Watching:
    held = []

    def batch(self, done, total):
        self.held.append(psutil.Process().memory_info().rss)

    def iteration(self, state):
        return None

# The search knows no more than a batch; without it the test is quick.
PoseSearch.prepare = lambda self, images: images[:, :1, :1]
PoseSearch.scores = lambda self, samples, centre: torch.cat([samples[:, 0], -samples[:, 0]], dim=1)
PoseSearch.search_within = lambda self, samples, index, centre: Poses.identity(len(index)).replace(class_index=index)
aligner = MultiReferenceAligner(references=2, outer_radius=6, shift_range_xy_px=(0, 0), iterations=2, batch_size=256,
                                equal_sizes=True, resident_bytes=0)
aligner.fit(ParticleSet(Noise()), observer=Watching())
print(len(Watching.held), max(Watching.held) - min(Watching.held[:3]))
"""


def test_mref_run_holds_nothing_of_the_size_of_the_stack() -> None:
    """98 MB of images; from one batch to any later one memory grows by a few batches of 4 MB."""
    # Large blocks go back to the system at once: what is freed does not count.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ALIGNMENT, str(Path(__file__).resolve().parents[2] / "src")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    batches, grown = map(int, done.stdout.split())
    assert batches == 2 * 24
    assert grown < 30 * 2**20
