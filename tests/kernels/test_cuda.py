"""On a GPU: what the CPU finds, the bits of a second run, memory that is not there, SPARX's operations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from blobs import Truth, make
from devices import needs_gpu
from ralib import io, sparx
from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.alignment.reference_free import ReferenceFreeAligner
from ralib.alignment.search import PoseSearch
from ralib.cli import main
from ralib.images.ctf import ctf_from_eman2
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import IterationDone, SilentObserver
from ralib.runtime import memory
from ralib.sparx.ctf import filt_ctf
from ralib.types import RunResult

pytestmark = needs_gpu
BOX, N = 48, 300


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make(N, box=BOX, n_views=5, snr=1.0, shift_px=1.0, seed=11)


@pytest.fixture
def unlimited() -> Iterator[torch.device]:
    """The GPU; whatever limit a test set is lifted, and its peak begins anew."""
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    yield device
    torch.cuda.set_per_process_memory_fraction(1.0, device)


def mref(truth: Truth, device: str, resume: Checkpoint | None = None, observer=None, **options) -> RunResult:
    common = {"outer_radius": 18, "iterations": 3, "batch_size": 64, "device": device} | options
    aligner = MultiReferenceAligner(references=truth.references, **common)
    return aligner.fit(truth.images, resume=resume, observer=observer).result_


@pytest.mark.parametrize("equal", [False, True])
def test_pose_search_cuda_finds_what_the_cpu_finds(truth: Truth, equal: bool) -> None:
    here, there = (mref(truth, device, equal_sizes=equal) for device in ("cpu", "cuda"))
    same = here.poses.class_index == there.poses.class_index
    assert same.double().mean() > 0.98
    a, b = here.averages.images.flatten(1), there.averages.images.flatten(1)
    for k in range(len(a)):
        assert torch.corrcoef(torch.stack([a[k], b[k]]))[0, 1] > 0.99
    assert torch.corrcoef(torch.stack([a[0], b[1]]))[0, 1] < 0.99


def test_reference_free_cuda_aligns(truth: Truth) -> None:
    stages = [(2.0, 2.0, None), (1.0, 1.0, None)]
    here, there = (
        ReferenceFreeAligner(stages=stages, iterations=2, outer_radius=18, device=device).fit(truth.images)
        for device in ("cpu", "cuda")
    )
    pair = torch.stack([here.average_.flatten(), there.average_.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.99


def test_batches_cuda_streamed_and_kept_give_the_same_bits(truth: Truth) -> None:
    kept, stack_bytes = mref(truth, "cuda"), 4 * N * BOX**2
    for budget in (0, stack_bytes):
        streamed = mref(truth, "cuda", resident_bytes=budget)
        assert torch.equal(streamed.averages.images, kept.averages.images)
        assert torch.equal(streamed.poses.psi_deg, kept.poses.psi_deg)
    half, quarter = (mref(truth, "cuda", resident_bytes=stack_bytes // part) for part in (2, 6))
    assert torch.equal(half.averages.images, quarter.averages.images)
    assert not torch.equal(half.averages.images, kept.averages.images)


class StopAfterOne(SilentObserver):
    kept: Checkpoint | None = None

    def iteration(self, done: IterationDone) -> None:
        assert done.checkpoint is not None
        self.kept = done.checkpoint()
        raise InterruptedError


def test_multi_reference_cuda_resumed_gives_the_same_bits(truth: Truth) -> None:
    whole, observer = mref(truth, "cuda"), StopAfterOne()
    with pytest.raises(InterruptedError):
        mref(truth, "cuda", observer=observer)
    assert torch.equal(mref(truth, "cuda", resume=observer.kept).averages.images, whole.averages.images)


def test_pose_search_cuda_limited_memory_shrinks_the_plan(truth: Truth, unlimited: torch.device) -> None:
    """Many templates in little memory: planned for, no pass begun twice."""
    most = torch.cuda.memory_allocated(unlimited) + 2**30
    memory.limit_device_memory(unlimited, most)
    assert memory.free_memory(unlimited) <= 2**30
    assert memory.total_memory(unlimited) == pytest.approx(most, abs=2**21)
    search = PoseSearch(box=BOX, outer_radius=18, device=unlimited)
    assert search.product_bytes <= 2**27
    references = truth.references.repeat(60, 1, 1)
    result = MultiReferenceAligner(references=references, outer_radius=18, iterations=1, device=unlimited).fit(
        truth.images
    )
    assert result.warnings_ == [] or not any("memory" in w.what for w in result.warnings_)
    assert torch.cuda.max_memory_allocated(unlimited) <= most


def test_sample_cache_cuda_out_of_memory_shrinks_the_plan(truth: Truth, unlimited: torch.device, monkeypatch) -> None:
    """A plan made for a card that then turns out to be nearly full."""
    memory.limit_device_memory(unlimited, torch.cuda.memory_allocated(unlimited) + 450 * 2**20)
    for module in ("alignment.sample_cache", "particles.batches", "alignment.search.batched"):
        monkeypatch.setattr(f"ralib.{module}.free_memory", lambda _: 2**36)
    monkeypatch.setattr("ralib.particles.batches.total_memory", lambda _: 2**36)
    images = np.tile(truth.images, (60, 1, 1))
    options = {"outer_radius": 18, "iterations": 1, "min_members": 0, "device": unlimited}
    found = MultiReferenceAligner(references=truth.references, **options).fit(images)
    assert any(w.what.startswith("memory ran out: the pass begins anew") for w in found.warnings_)
    alone = mref(truth, "cpu", iterations=1, min_members=0)
    same = found.poses_.class_index.view(60, N) == alone.poses.class_index
    assert same.double().mean() > 0.98


def test_mref_command_cuda_reports_its_peak_memory(truth: Truth, tmp_path: Path) -> None:
    io.write_mrcs(tmp_path / "p.mrcs", truth.images, 3.0, dtype=np.float16)
    options = ["--ou=18", "--xr=1", "--maxit=1", "--memory=0", "--device=cuda", "--no-report"]
    assert main(["mref", str(tmp_path / "p.mrcs"), "3", str(tmp_path / "out"), *options]) == 0
    from ralib.results.run_record import read_record

    record = read_record(tmp_path / "out")
    assert record["peak_device_memory_bytes"] > 2**20
    assert record["timings"]["read_bytes"] == 2 * 2 * N * BOX**2, "two bytes a pixel, read twice"


@pytest.fixture(scope="module")
def stored(golden: Path) -> dict[str, torch.Tensor]:
    with np.load(golden / "operations.npz") as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


def relative(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.cpu().double() - expected.double()).abs().max() / expected.double().std())


def test_sparx_operations_cuda_agree_with_cpu(stored: dict[str, torch.Tensor]) -> None:
    """EMAN2's own results, as in test_sparx_operations, from images on the GPU."""
    images, rows = stored["images"].cuda(), stored["alpha_sx_sy_mirror"].cuda()
    for method in ("quadratic", "linear"):
        got = sparx.rot_shift2D(images, rows, interpolation_method=method, mode="background")
        assert got.is_cuda
        assert relative(got, stored[f"rot_shift2D_{method}_background"]) < 1e-4
        assert relative(got, stored[f"rot_shift2D_{method}_cyclic"]) > 1e-2
    assert relative(sparx.fshift(images, rows[:, 1:3]), stored["fshift"]) < 1e-5
    expected = stored["filt_tanl_0.2_0.1"]
    assert relative(sparx.filt_tanl(images[: len(expected)], 0.2, 0.1), expected) < 1e-5
    _, correlation, _ = sparx.fsc(stored["frc_a"][None].cuda(), stored["frc_b"][None].cuda())
    torch.testing.assert_close(correlation[0].cpu(), stored["frc"][1], atol=1e-6, rtol=0)
    centred, shift = sparx.center_2D(stored["center_phase_input"].cuda(), 1)
    torch.testing.assert_close(shift.cpu(), stored["center_phase_shift"], atol=1e-4, rtol=0)
    assert relative(centred, stored["center_phase_image"]) < 1e-4
    defocus, cs, voltage, pixel_A, bfactor, contrast, astigmatism, angle = stored["ctf_params"].tolist()
    ctf = ctf_from_eman2(
        defocus_um=[defocus] * 2, cs_mm=[cs] * 2, voltage_kV=[voltage] * 2, amplitude_contrast_percent=[contrast] * 2,
        bfactor_A2=[bfactor] * 2, astigmatism_um=[astigmatism] * 2, astigmatism_angle_deg=[angle] * 2,
    )  # fmt: skip
    assert relative(filt_ctf(images[:2], ctf, pixel_A), stored["filt_ctf"]) < 1e-5
