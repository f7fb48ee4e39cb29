"""Sets so large that classes are made of a sample: what is sampled, who joins when, and going on after a stop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ralib.classes.evaluation import purity
from ralib.classification import schedule as schedules
from ralib.classification.classifier import Classifier
from ralib.classification.schedule import ScheduleSettings, sample_growth
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import IterationDone, SilentObserver
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet, RalibError

SAMPLED = ScheduleSettings(exchanges=1, final=3, sample=20, least_sample=100, joint=2, sample_frc=0.0)
Run = tuple[Classifier, list[Checkpoint]]


@pytest.fixture(scope="module")
def simulated() -> tuple[ParticleSet, torch.Tensor]:
    simulator = Simulator(SimulationOptions(n_particles=400, box=40, snr=0.2, seed=3, n_views=4))
    images, truth = torch.cat(list(simulator.blocks())).numpy(), simulator.truth
    particles = ParticleSet(ArraySource(images), simulator.pixel_size_A, truth.ctf, group=truth.micrograph)
    return particles, truth.poses.class_index


class Keeper(SilentObserver):
    """Keeps the checkpoints."""

    def __init__(self) -> None:
        self.kept: list[Checkpoint] = []

    def iteration(self, done: IterationDone) -> None:
        if done.checkpoint is not None:
            self.kept.append(done.checkpoint())


def classified(particles: ParticleSet, plan: ScheduleSettings, resume: Checkpoint | None = None) -> Run:
    keeper = Keeper()
    return Classifier(n_classes=4, seed=5, plan=plan).fit(particles, observer=keeper, resume=resume), keeper.kept


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


@pytest.mark.parametrize(("growth", "size"), [(1.0, 100), (2.0, 200), (3.0, 400)])
def test_classifier_noisy_particles_take_a_larger_sample_or_all(
    growth: float, size: int, simulated: tuple[ParticleSet, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run is stopped between the first sample and the larger one."""
    monkeypatch.setattr(schedules, "sample_growth", lambda *_: growth)
    plan = replace(SAMPLED, final=1, joint=1)
    run, kept = classified(simulated[0], plan)
    assert {n for stage, n in stages(run) if stage == "exchange"} == {size}
    assert stages(run)[-1][1] == 400
    assert len(kept[0].arrays["psi_deg"]) == 100
    resumed = classified(simulated[0], plan, kept[0])[0]
    assert torch.equal(resumed.class_averages_.images, run.class_averages_.images)


def test_sample_growth_follows_the_ssnr_of_the_averages() -> None:
    frc, members = torch.tensor([[0.9, 0.5], [0.7, 0.3], [torch.nan, 0.0]]), torch.tensor([10.0, 10.0, 0.0])
    assert sample_growth(frc, members, 0.5) == 1.0  # 0.6 on average
    assert sample_growth(frc, members, 0.75) == pytest.approx(2.0, rel=1e-5)  # an SSNR of 3 in place of 1.5
    assert sample_growth(0 * frc, members, 0.5) == pytest.approx(99.0, rel=1e-3)
