"""Classes made again without recognised junk: what leaves the averages, when nothing does, and going on from there."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from ralib.classes.evaluation import purity
from ralib.classification import examination, final_result
from ralib.classification.classifier import Classifier
from ralib.classification.final_classes import final_averages, with_class_of_junk
from ralib.classification.junk_evidence import PROBABLY, SURELY, taken_for_junk
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.state import State
from ralib.particles.batches import ParticleBatches
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import IterationDone, SilentObserver
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ClassAverages, ParticleSet, Poses

BOX, N, VIEWS, CLASSES = 48, 480, 4, 5
PLAN = ScheduleSettings(exchanges=1, final=2, outlying_share=0.0)


def pictures_of_junk() -> Tensor:
    """A ring and a bar (2, BOX, BOX)."""
    c = (torch.arange(BOX) - BOX // 2).float()
    ring = torch.exp(-((torch.hypot(c[:, None], c[None]) - 8) ** 2) / 4)
    bar = torch.exp(-(c[:, None] ** 2) / 6) * (c[None].abs() < 12)
    return torch.stack([ring, bar])


@pytest.fixture(scope="module")
def mixed() -> tuple[Tensor, Tensor, Tensor]:
    """Images of four views, and two kinds of junk in a third of them; which are junk (n,), and the views (n,)."""
    simulator = Simulator(SimulationOptions(n_particles=N, box=BOX, snr=0.2, seed=3, n_views=VIEWS, ctf=False))
    images = torch.cat(list(simulator.blocks())).clone()
    junk = torch.arange(N) % 3 == 1
    noise = torch.randn(int(junk.sum()), BOX, BOX, generator=torch.Generator().manual_seed(0))
    images[junk] = images.std() * (noise + 1.5 * pictures_of_junk()[torch.arange(len(noise)) % 2])
    return images, junk, simulator.truth.poses.class_index


class Recogniser:
    """Stands for the junk model: recognises what it is told to."""

    def __init__(self, junk: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.junk, self.asked = junk, 0
        monkeypatch.setattr(examination, "taken_for_junk", self.recognise)

    def recognise(self, evidence: object, stability: object, odds: object, least: float) -> Tensor:
        self.asked += least == PROBABLY  # once a look
        return self.junk


def classified(images: Tensor, **given: object) -> Classifier:
    return Classifier(n_classes=CLASSES, seed=5, plan=PLAN).fit(images, **given)  # type: ignore[arg-type]


class Last(SilentObserver):
    """Keeps the last checkpoint, and how many iterations were expected, whenever that was known."""

    checkpoint: Checkpoint

    def __init__(self) -> None:
        self.expected: list[int] = []

    def iteration(self, done: IterationDone) -> None:
        if done.checkpoint is not None:
            self.checkpoint = done.checkpoint()
        if done.expected is not None:
            self.expected.append(done.expected)


@pytest.fixture(scope="module")
def with_junk(mixed: tuple[Tensor, Tensor, Tensor]) -> Classifier:
    """A run in which nothing is recognised as junk."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        Recogniser(torch.zeros(N, dtype=torch.bool), monkeypatch)
        return classified(mixed[0])


@pytest.fixture(scope="module")
def without_junk(mixed: tuple[Tensor, Tensor, Tensor]) -> tuple[Classifier, Last, int]:
    """A run in which all junk is recognised, its observer, and how often junk was looked for."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        recogniser, last = Recogniser(mixed[1], monkeypatch), Last()
        return classified(mixed[0], observer=last), last, recogniser.asked


def cleaned(run: Classifier) -> bool:
    return any("are junk: they leave the averages" in line for line in run.result_.log)


def test_classifier_recognised_junk_is_left_one_class(
    mixed: tuple[Tensor, Tensor, Tensor],
    with_junk: Classifier,
    without_junk: tuple[Classifier, Last, int],
) -> None:
    _, junk, view = mixed
    without = without_junk[0]
    assert not cleaned(with_junk)
    assert purity(with_junk.poses_.class_index[~junk], view[~junk]) < 0.9, "junk has two of the five classes"
    assert cleaned(without)
    index = without.poses_.class_index
    assert purity(index[~junk], view[~junk]) > 0.97
    assert bool((index[junk] == CLASSES - 1).all())
    assert not bool((index[~junk] == CLASSES - 1).any())
    assert len(without.classes_) == len(without.class_averages_.images) == CLASSES
    assert without.class_averages_.members.tolist() == torch.bincount(index).tolist()
    assert len(without.result_.iterations) > len(with_junk.result_.iterations)


def test_classifier_made_again_without_junk_expects_more_iterations_at_once(
    without_junk: tuple[Classifier, Last, int],
) -> None:
    run, last, _ = without_junk
    planned, whole = PLAN.planned_iterations(CLASSES), len(run.result_.iterations)
    assert planned < whole
    assert set(last.expected) == {planned, whole}
    assert last.expected == sorted(last.expected)


def test_classifier_junk_of_a_sample_and_of_those_who_join_is_in_one_class(
    mixed: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the particles make the classes, without the junk among them; in the end all junk is found."""
    images, junk, view = mixed
    recogniser, sampled = Recogniser(junk, monkeypatch), []
    look = Classifier._recognised_junk

    def of_its_rows(
        self: Classifier, particles: ParticleSet, batches: ParticleBatches, at: ClassificationSchedule, state: State
    ) -> Tensor:
        assert at.rows is not None
        sampled.append(len(at.rows))
        recogniser.junk = junk[at.rows]
        try:
            return look(self, particles, batches, at, state)
        finally:
            recogniser.junk = junk

    monkeypatch.setattr(Classifier, "_recognised_junk", of_its_rows)
    plan = replace(PLAN, sample=20, least_sample=N // 2, joint=1, sample_nats=0.0)
    run = Classifier(n_classes=CLASSES, seed=5, plan=plan).fit(images)
    assert cleaned(run)
    assert sampled == [N // 2]
    index = run.poses_.class_index
    assert purity(index[~junk], view[~junk]) > 0.97
    assert torch.equal(index == CLASSES - 1, junk)
    assert len(run.class_averages_.images) == CLASSES


def test_classifier_particle_no_longer_taken_for_junk_counts_in_its_average(
    mixed: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten particles are set aside with the junk; in the end five of them are still taken for it, though not surely."""
    images, junk, _ = mixed
    mistaken = torch.nonzero(~junk)[:10, 0]
    aside, doubtful = junk.clone(), junk.clone()
    aside[mistaken] = doubtful[mistaken[:5]] = True
    left_out: list[Tensor] = []
    Recogniser(aside, monkeypatch)
    filled_before = ClassificationSchedule.filled

    def in_the_end(evidence: object, stability: object, odds: object, least: float) -> Tensor:
        return junk if least == SURELY else doubtful

    def filled(schedule: ClassificationSchedule, state: State) -> State:
        monkeypatch.setattr(examination, "taken_for_junk", in_the_end)
        return filled_before(schedule, state)

    def averages(*given: Any, **named: Any) -> ClassAverages:
        left_out.append(given[5])
        return final_averages(*given, **named)

    monkeypatch.setattr(final_result, "final_averages", averages)
    monkeypatch.setattr(ClassificationSchedule, "filled", filled)
    run = classified(images)
    assert cleaned(run)
    assert left_out[0][mistaken].tolist() == [True] * 5 + [False] * 5


def test_taken_for_junk_above_the_probability_in_a_class_and_believed() -> None:
    odds = torch.tensor([3.0, 3.0, 1.0, -1.0])
    evidence, stability = SimpleNamespace(index=torch.tensor([0, -1, 0, 0])), SimpleNamespace(believable=True)
    assert taken_for_junk(evidence, stability, odds, 0.9).tolist() == [True, False, False, False]  # type: ignore[arg-type]
    assert taken_for_junk(evidence, stability, odds, 0.5).tolist() == [True, False, True, False]  # type: ignore[arg-type]
    stability.believable = False
    assert not taken_for_junk(evidence, stability, odds, 0.5).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.02, 0.9])
def test_classifier_little_junk_or_too_much_changes_nothing(
    share: float, mixed: tuple[Tensor, Tensor, Tensor], with_junk: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    Recogniser(torch.arange(N) < share * N, monkeypatch)
    run = classified(mixed[0])
    assert not cleaned(run)
    assert torch.equal(run.class_averages_.images, with_junk.class_averages_.images)


def test_class_of_junk_leaves_no_class_empty() -> None:
    """Three classes: of particles with some junk, of junk alone, and without any."""
    index = torch.tensor([0, 0, 0, 1, 1, 2, 2, -1])
    junk = torch.tensor([True, False, False, True, True, False, False, False])
    poses, of_junk = with_class_of_junk(Poses.identity(8).replace(class_index=index), junk, 3)
    assert poses.class_index.tolist() == [3, 0, 0, 1, 1, 2, 2, -1]
    assert of_junk.tolist() == [False, True, False, True]
    junk[0] = False
    poses, of_junk = with_class_of_junk(poses.replace(class_index=index), junk, 3)
    assert poses.class_index.tolist() == index.tolist()
    assert of_junk.tolist() == [False, True, False], "no class is added where none is needed"


def test_classifier_continued_without_junk_gives_the_same_bits(
    mixed: tuple[Tensor, Tensor, Tensor],
    without_junk: tuple[Classifier, Last, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, junk, _ = mixed
    whole, last, asked = without_junk
    assert cleaned(whole)
    assert "set_aside" in last.checkpoint.arrays
    recogniser = Recogniser(junk, monkeypatch)
    continued = classified(images, resume=last.checkpoint)
    assert torch.equal(continued.class_averages_.images, whole.class_averages_.images)
    assert torch.equal(continued.poses_.psi_deg, whole.poses_.psi_deg)
    assert torch.equal(continued.poses_.class_index, whole.poses_.class_index)
    assert (asked, recogniser.asked) == (2, 1), "at the end alone: what was set aside before the stop was known"


def test_classifier_with_a_class_of_junk_predicts_the_classes_of_new_particles(
    mixed: tuple[Tensor, Tensor, Tensor], without_junk: tuple[Classifier, Last, int]
) -> None:
    """Labels are those of `fit`; the class left to junk is no reference, and no new particle joins it."""
    images, junk, _ = mixed
    run = without_junk[0]
    again = run.predict(images)
    assert (again[~junk] == run.labels_[~junk]).mean() > 0.97
    new = Simulator(SimulationOptions(n_particles=200, box=BOX, snr=0.2, seed=3, n_views=VIEWS, ctf=False))
    fresh = torch.cat(list(new.blocks()))
    found = run.predict_poses(fresh)
    assert purity(found.class_index, new.truth.poses.class_index) > 0.97
    assert int(found.class_index.max()) < CLASSES - 1
    assert adjusted_rand_score(new.truth.poses.class_index, found.class_index) > 0.95
    kept = pickle.loads(pickle.dumps(run))
    assert np.array_equal(kept.predict(fresh), found.class_index.numpy())
