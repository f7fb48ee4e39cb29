"""Sets so large that classes are made of a sample: what is sampled, who joins when, and going on after a stop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ralib.classes.evaluation import purity
from ralib.classification import junk_model, memory_plan, model, pose_search, stored_spectra, whitening
from ralib.classification.classifier import Classifier
from ralib.classification.junk_model import deviations
from ralib.classification.leave_one_out import SelfContribution
from ralib.classification.likelihood import Spectra
from ralib.classification.memory_plan import SpectraPlan, plan_sample, plan_spectra
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.schedule_settings import ScheduleSettings, members_wanted
from ralib.classification.stored_spectra import SpectraWriter, StoredSpectra
from ralib.kernels.classes import reference as class_kernels
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import IterationDone, SilentObserver
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet, RalibError

SAMPLED = ScheduleSettings(exchanges=1, final=3, measured=300, sample=20, least_sample=100, joint=2, sample_nats=0.0)
Run = tuple[Classifier, list[Checkpoint]]


@pytest.fixture(scope="module")
def simulated() -> tuple[ParticleSet, torch.Tensor]:
    simulator = Simulator(SimulationOptions(n_particles=400, box=40, snr=0.2, seed=3, n_views=4))
    images, truth = torch.cat(list(simulator.blocks())).numpy(), simulator.truth
    particles = ParticleSet(ArraySource(images), simulator.pixel_size_A, truth.ctf, group=truth.micrograph)
    return particles, truth.poses.class_index


SEED = 6
"""With some others the sample's start has ties that rounding decides, and half precision goes another way."""


class Keeper(SilentObserver):
    """Keeps the checkpoints."""

    def __init__(self) -> None:
        self.kept: list[Checkpoint] = []

    def iteration(self, done: IterationDone) -> None:
        if done.checkpoint is not None:
            self.kept.append(done.checkpoint())


def classified(particles: ParticleSet, plan: ScheduleSettings, resume: Checkpoint | None = None) -> Run:
    keeper = Keeper()
    return Classifier(n_classes=4, seed=SEED, plan=plan).fit(particles, observer=keeper, resume=resume), keeper.kept


@pytest.fixture(scope="module")
def sampled(simulated: tuple[ParticleSet, torch.Tensor]) -> Run:
    return classified(simulated[0], SAMPLED)


def stages(run: Classifier) -> list[tuple[str, int]]:
    """Stage and number of particles of each iteration."""
    return [(row["stage"], sum(row["class_sizes"])) for row in run.result_.iterations]


def test_classifier_many_particles_all_join_the_last_iterations(
    sampled: Run, simulated: tuple[ParticleSet, torch.Tensor]
) -> None:
    run = sampled[0]
    assert purity(run.poses_.class_index, simulated[1]) > 0.9
    found = stages(run)
    assert [size for _, size in found] == [100] * (len(found) - 2) + [400] * 2
    assert [stage for stage, _ in found][-3:] == ["sharpen", "all", "sharpen"]
    assert sum(stage in ("sharpen", "all") for stage, _ in found) == SAMPLED.final + 1
    assert float(run.poses_.score.min()) > 0, "those that joined have scores too"


def test_classifier_few_particles_no_sample(simulated: tuple[ParticleSet, torch.Tensor]) -> None:
    """Below one and a half times the least sample; which then changes no bit."""
    plans = [replace(SAMPLED, least_sample=n, joint=joint) for n, joint in ((300, 2), (10_000, 3))]
    runs = [classified(simulated[0], plan)[0] for plan in plans]
    assert {size for _, size in stages(runs[0])} == {400}
    assert torch.equal(runs[0].class_averages_.images, runs[1].class_averages_.images)


@pytest.mark.parametrize("size", [100, 400])
def test_classifier_stopped_on_its_sample_or_later_same_bits(
    size: int, sampled: Run, simulated: tuple[ParticleSet, torch.Tensor]
) -> None:
    run, kept = sampled
    at = next(c for c in kept if len(c.arrays["psi_deg"]) == size and c.meta["position"]["exchanged"])
    assert ("rows" in at.arrays) == (size == 100)
    resumed = classified(simulated[0], SAMPLED, at)[0]
    assert torch.equal(resumed.poses_.psi_deg, run.poses_.psi_deg)
    assert torch.equal(resumed.class_averages_.images, run.class_averages_.images)
    assert stages(resumed) == stages(run)


def test_classifier_damaged_sample_is_refused(sampled: Run, simulated: tuple[ParticleSet, torch.Tensor]) -> None:
    at = sampled[1][0]
    for rows in (at.arrays["rows"][::-1].copy(), at.arrays["rows"] + 400, at.arrays["rows"][:50]):
        with pytest.raises(RalibError, match="not what the run wrote"):
            classified(simulated[0], SAMPLED, Checkpoint(0, at.arrays | {"rows": rows}, at.meta))


@pytest.mark.parametrize(("wanted", "size"), [(100, 100), (200, 200), (300, 400)])
def test_classifier_noisy_particles_take_a_larger_sample_or_all(
    wanted: int, size: int, simulated: tuple[ParticleSet, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run is stopped between the first sample and the larger one."""
    monkeypatch.setattr(ClassificationSchedule, "sample_size", lambda *_: wanted)
    plan = replace(SAMPLED, final=1, joint=1)
    run, kept = classified(simulated[0], plan)
    assert {n for stage, n in stages(run) if stage == "exchange"} == {size}
    assert stages(run)[-1][1] == 400
    assert len(kept[0].arrays["psi_deg"]) == 100
    resumed = classified(simulated[0], plan, kept[0])[0]
    assert torch.equal(resumed.class_averages_.images, run.class_averages_.images)


GROWING = replace(SAMPLED, start_sample=20, sample=50, final=4, joint=1)
"""A hundred particles are initialised and exchanged, two hundred sharpened, and all four hundred join them."""


@pytest.fixture(scope="module")
def growing(simulated: tuple[ParticleSet, torch.Tensor]) -> Run:
    return classified(simulated[0], GROWING)


def test_classifier_sample_grows_after_the_exchange(growing: Run, simulated: tuple[ParticleSet, torch.Tensor]) -> None:
    run = growing[0]
    sizes = {stage: {n for name, n in stages(run) if name == stage} for stage, _ in stages(run)}
    assert sizes["start"] == sizes["exchange"] == {100}
    assert sizes["sharpen"] == {200}
    assert [n for name, n in stages(run) if name == "all"] == [200, 400]
    assert sum(stage == "sharpen" for stage, _ in stages(run)) == GROWING.final
    assert purity(run.poses_.class_index, simulated[1]) > 0.9


@pytest.mark.parametrize("size", [100, 200])
def test_classifier_stopped_on_a_growing_sample_same_bits(
    size: int, growing: Run, simulated: tuple[ParticleSet, torch.Tensor]
) -> None:
    run, kept = growing
    at = [c for c in kept if len(c.arrays["psi_deg"]) == size][-1]
    resumed = classified(simulated[0], GROWING, at)[0]
    assert torch.equal(resumed.class_averages_.images, run.class_averages_.images)
    assert stages(resumed) == stages(run)


def test_members_wanted_more_of_noisy_particles() -> None:
    poses = 4 * 9 * 2 * 80
    assert members_wanted(60.0, poses, 3600.0) == 71
    assert members_wanted(20.0, poses, 3600.0) == 318
    assert members_wanted(10.0, poses, 3600.0) == 2684
    assert members_wanted(2.0, poses, 3600.0) == 3600, "no better than noise"
    assert members_wanted(2.0, poses, 0.0) == 0


def test_classifier_noisy_particles_want_a_larger_sample(simulated: tuple[ParticleSet, torch.Tensor]) -> None:
    """A hundred of these would be enough; of those with a tenth of the signal all are taken."""
    plan = replace(SAMPLED, sample_nats=1500.0, exchanges=1, final=1, joint=1)
    clear = classified(simulated[0], plan)[0]
    assert {n for stage, n in stages(clear) if stage == "exchange"} == {100}
    random = np.random.default_rng(0)
    images = simulated[0].images.read(np.arange(400))
    noisy = simulated[0].replace(images=ArraySource(images + random.normal(0, 3, images.shape).astype(np.float32)))
    assert {n for stage, n in stages(classified(noisy, plan)[0]) if stage == "exchange"} == {400}


def test_self_contribution_among_all_only_of_the_sample() -> None:
    own = SelfContribution(
        class_index=torch.tensor([2, 0]),
        psi_deg=torch.tensor([10.0, 20.0]),
        origin_xy_px=torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        mirror=torch.tensor([True, False]),
        share=torch.tensor([[1.0, 1.0], [2.0, 2.0]]),
    )
    spread = own.among(torch.tensor([3, 1]), 4)
    assert spread.class_index.tolist() == [-1, 0, -1, 2]
    assert spread.share.sum(1).tolist() == [0, 4, 0, 2]
    assert spread.origin_xy_px[3].tolist() == [1, 2]
    assert spread.mirror.tolist() == [False, False, False, True]


def test_deviations_of_many_particles_medians_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    own = torch.from_numpy(np.random.default_rng(0).normal(3.0, 2.0, (20_000, 4)).astype(np.float32))
    whole = deviations(own, torch.ones(len(own), dtype=torch.bool))
    monkeypatch.setattr(junk_model, "MEDIAN_OF", 5000)
    some = deviations(own, torch.ones(len(own), dtype=torch.bool))
    assert 0 < (some - whole).abs().max() < 0.3
    assert (some - whole).abs().median() < 0.05


# -- spectra in half precision, and elsewhere -----------------------------------------------------------------------


def samples(n: int, seed: int = 0) -> torch.Tensor:
    """Complex samples (n, 5 rings, 8 angles) whose rings and particles differ by many orders of magnitude."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(n, 5, 8, 2, generator=random) * 10.0 ** torch.randint(-9, 9, (n, 5, 1, 1), generator=random)
    return torch.view_as_complex(values)


def stored(plan: SpectraPlan, data: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> StoredSpectra:
    for module in (memory_plan, stored_spectra):
        monkeypatch.setattr(module, "BLOCK", 16)
    writer = SpectraWriter(plan, torch.device("cpu"))
    for part in data.split(21):
        writer.add(part)
    weight = torch.linspace(0.5, 2.0, len(data))[:, None].expand(-1, 5)
    return writer.done(weight, 3 * weight)


PLACES = {"device": (100, 0), "main": (0, 100), "file": (0, 0), "all three": (32, 48)}


@pytest.mark.parametrize("place", PLACES)
def test_stored_spectra_wherever_they_are_the_same_bits(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = samples(101)
    on_device, in_main = PLACES[place]
    kept = stored(SpectraPlan(101, 20, half=True, on_device=on_device, in_main=in_main), data, monkeypatch)
    expected = data * torch.linspace(0.5, 2.0, 101)[:, None, None]
    read = kept[:]
    largest = torch.view_as_real(expected).abs().amax((2, 3), keepdim=False)[..., None]
    assert float(((read.data - expected).abs() / largest).max()) < 2**-11
    assert float(((read.data - expected).abs() / largest).max()) > 2**-16, "they were rounded"
    torch.testing.assert_close(kept.energy, Spectra(expected, read.power).energy, rtol=1e-3, atol=0)
    for rings, most in ((5, 1000), (3, 40), (1, 1)):
        parts = list(kept.blocks(rings, most, 1e9))
        assert len(parts) == {1000: 1, 40: 4, 1: 7}[most]
        assert torch.equal(torch.cat([part.data for _, part in parts]), read.data[:, :rings])
        assert torch.equal(torch.cat([part.power for _, part in parts]), kept.power)
        assert [rows.start for rows, _ in parts] == [0, *(rows.stop for rows, _ in parts)][:-1]
    some = torch.tensor([100, 3, 40, 17, 3])
    assert torch.equal(kept[some].data, read.data[some])
    rows = torch.tensor([1, 3, *range(10, 90), 100])
    assert torch.equal(kept.sample(rows, len(rows)).data, read.data[rows]), "in single precision"
    monkeypatch.setattr(stored_spectra, "GROUP_BYTES", 1000)
    sample = kept.sample(rows, len(rows))
    assert isinstance(sample, StoredSpectra)
    assert [b.fetch(1).shape[1] for b in sample.blocks_kept] == [16] * 5 + [3]
    assert torch.equal(sample[:].data, read.data[rows])
    assert torch.equal(sample.energy, kept.energy[rows])
    noisier = kept.divided(torch.full((5,), 4.0))
    assert torch.equal(noisier[:].data, read.data / 4)
    assert torch.equal(noisier.energy, kept.energy / 16)
    assert float(kept.without(torch.arange(5) < 2)[:].data[:, :2].abs().max()) == 0


def test_plan_spectra_follows_the_memory_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 0, "cpu": 0}
    monkeypatch.setattr(memory_plan, "free_memory", lambda device: free[device.type])

    def plan(gpu_gib: float, main_gib: float, *, half: bool = False, taken_gib: int = 0) -> SpectraPlan:
        free["cuda"], free["cpu"] = int(gpu_gib * 2**30), int(main_gib * 2**30)
        gpu, taken_bytes = torch.device("cuda"), taken_gib << 30
        return plan_spectra(1_000_000, 3_000, gpu, half=half, taken_bytes=taken_bytes)  # 22.4 GiB in single precision

    assert not plan(80, 100).half
    assert str(plan(80, 100)) == "spectra in single precision: 22.4 GiB on the device"
    assert plan(80, 100, half=True).on_device == 1_000_000
    assert plan(40, 100) == plan(80, 100, half=True)
    assert plan(80, 100, taken_gib=40) == plan(80, 100, half=True), "images will be there too"
    split = plan(22, 100)
    assert 0 < split.on_device < 1_000_000
    assert split.on_device + split.in_main == 1_000_000
    disk = plan(16, 8)
    assert disk.on_device + disk.in_main < 1_000_000
    assert "in half precision: 4.76 GiB on the device, 3.16 GiB in main memory, 3.26 GiB in a scratch file" in str(disk)
    assert plan(8, 100).in_main * 12_000 <= 5 << 30, "not all of main memory, however much there is"

    small = plan(8, 100)
    free["cuda"] -= small.on_device_bytes
    sample = plan_sample(150_000, 3_000, torch.device("cuda"), small.on_device_bytes)
    assert 0 < sample.on_device < 150_000, "a sample leaves room beside the spectra of all"
    assert small.on_device_bytes + sample.on_device_bytes <= 0.45 * 2**33


def in_groups(monkeypatch: pytest.MonkeyPatch, places: tuple[int, int] | None = None) -> None:
    """Take particles in groups of some 64, and keep all 400 in half precision: some on the device, some in memory."""
    for module in (memory_plan, stored_spectra):
        monkeypatch.setattr(module, "BLOCK", 64)
    for module in (model, pose_search, class_kernels):
        monkeypatch.setattr(module, "FITS_AT_ONCE", 300)

    def plan(n: int, n_samples: int, device: torch.device, *, half: bool, taken_bytes: int) -> SpectraPlan:
        if places is None or n != 400:  # those of which the diameter is measured
            return plan_spectra(n, n_samples, device, half=half, taken_bytes=taken_bytes)
        return SpectraPlan(n, 4 * n_samples, half=True, on_device=places[0], in_main=places[1])

    monkeypatch.setattr(whitening, "plan_spectra", plan)


def test_classifier_in_groups_and_in_half_precision_same_classes(
    sampled: Run, simulated: tuple[ParticleSet, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    single = sampled[0]
    in_groups(monkeypatch)
    monkeypatch.setattr(pose_search, "SHORTLIST", 1000)
    parts = classified(simulated[0], SAMPLED)[0]
    assert torch.equal(parts.poses_.score, single.poses_.score), "particles in groups: the same bits"
    assert torch.equal(parts.class_averages_.images, single.class_averages_.images)
    np.testing.assert_array_equal(
        parts.result_.particle_scores["agreement"], single.result_.particle_scores["agreement"]
    )

    in_groups(monkeypatch, (400, 0))
    half, kept = classified(simulated[0], SAMPLED)
    assert any("half precision" in line and "on the device" in line for line in half.result_.log)
    assert float((half.poses_.class_index == single.poses_.class_index).float().mean()) >= 0.995
    torch.testing.assert_close(half.poses_.score.mean(), single.poses_.score.mean(), rtol=1e-4, atol=0)
    assert not torch.equal(half.poses_.score, single.poses_.score)

    in_groups(monkeypatch, (128, 128))
    spread = classified(simulated[0], SAMPLED)[0]
    assert any("in a scratch file" in line for line in spread.result_.log)
    assert torch.equal(spread.poses_.score, half.poses_.score), "wherever they are kept: the same bits"
    assert torch.equal(spread.class_averages_.images, half.class_averages_.images)
    for name, values in half.result_.particle_scores.items():
        np.testing.assert_array_equal(spread.result_.particle_scores[name], values)

    monkeypatch.setattr(stored_spectra, "GROUP_BYTES", 1e5)
    stays, of_stay = classified(simulated[0], SAMPLED)
    assert float((stays.poses_.class_index == half.poses_.class_index).float().mean()) >= 0.995, "the sample stays so"
    resumed = classified(simulated[0], SAMPLED, of_stay[0])[0]
    assert torch.equal(resumed.poses_.score, stays.poses_.score)
    monkeypatch.setattr(stored_spectra, "GROUP_BYTES", 1e9)

    in_groups(monkeypatch)
    resumed = classified(simulated[0], SAMPLED, kept[0])[0]
    assert torch.equal(resumed.poses_.score, half.poses_.score), "goes on as it began, whatever is free by then"
    monkeypatch.setattr(pose_search, "SHORTLIST", 3)
    fewer = classified(simulated[0], SAMPLED, kept[-1])[0]
    assert float((fewer.poses_.class_index == half.poses_.class_index).float().mean()) >= 0.995
