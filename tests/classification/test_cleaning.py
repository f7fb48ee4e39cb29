"""Classes made again without recognised junk: what leaves the averages, when nothing does, and going on from there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ralib.classes.evaluation import purity
from ralib.classification.classifier import Classifier
from ralib.classification.schedule import ScheduleSettings
from ralib.classification.state import State
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import IterationDone, SilentObserver
from ralib.simulation.simulator import SimulationOptions, Simulator

BOX, N, CLASSES = 48, 400, 4
PLAN = ScheduleSettings(exchanges=1, final=2, outlying_share=0.0)


@pytest.fixture(scope="module")
def mixed() -> tuple[Tensor, Tensor, Tensor]:
    """Images of four views, and rings in a quarter of them; which are rings (n,), and the views (n,)."""
    simulator = Simulator(SimulationOptions(n_particles=N, box=BOX, snr=0.2, seed=3, n_views=CLASSES, ctf=False))
    images = torch.cat(list(simulator.blocks())).clone()
    junk = torch.arange(N) % 4 == 1
    c = torch.arange(BOX) - BOX // 2
    ring = torch.exp(-((torch.hypot(c[:, None].float(), c[None].float()) - 8) ** 2) / 4)
    noise = torch.randn(int(junk.sum()), BOX, BOX, generator=torch.Generator().manual_seed(0))
    images[junk] = images.std() * (noise + ring)
    return images, junk, simulator.truth.poses.class_index


class Recogniser:
    """Stands for the junk model: recognises what it is told to."""

    def __init__(self, junk: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
        self.junk, self.asked = junk, 0
        monkeypatch.setattr(Classifier, "_recognised_junk", lambda _, *given: self.of(*given))

    def of(self, _particles: object, _schedule: object, _state: State) -> Tensor:
        self.asked += 1
        return self.junk


def classified(images: Tensor, **given: object) -> Classifier:
    return Classifier(n_classes=CLASSES, seed=5, plan=PLAN).fit(images, **given)  # type: ignore[arg-type]


def cleaned(run: Classifier) -> bool:
    return any("are junk: they leave the averages" in line for line in run.result_.log)


def test_classifier_recognised_junk_leaves_its_classes_to_particles(
    mixed: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, junk, view = mixed
    recogniser = Recogniser(torch.zeros(N, dtype=torch.bool), monkeypatch)
    with_it = classified(images)
    assert not cleaned(with_it)
    assert purity(with_it.poses_.class_index[~junk], view[~junk]) < 0.9, "rings have one of the four classes"
    recogniser.junk = junk
    without = classified(images)
    assert cleaned(without)
    assert purity(without.poses_.class_index[~junk], view[~junk]) > 0.97
    assert recogniser.asked == 2, "once a run"
    assert len(without.result_.iterations) > len(with_it.result_.iterations)
    # Junk keeps a class, so that it can be looked at and selected against; the averages hold none of it.
    assert bool((without.poses_.class_index >= 0).all())
    c = torch.arange(BOX) - BOX // 2
    ring = torch.exp(-((torch.hypot(c[:, None].float(), c[None].float()) - 8) ** 2) / 4).flatten()

    def likeness(run: Classifier) -> float:
        return max(float(np.corrcoef(image.flatten(), ring)[0, 1]) for image in run.class_averages_.images)

    assert likeness(with_it) > 0.8
    assert likeness(without) < 0.6


@pytest.mark.parametrize("share", [0.02, 0.9])
def test_classifier_little_junk_or_too_much_changes_nothing(
    share: float, mixed: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    Recogniser(torch.arange(N) < share * N, monkeypatch)
    run = classified(mixed[0])
    assert not cleaned(run)
    Recogniser(torch.zeros(N, dtype=torch.bool), monkeypatch)
    assert torch.equal(run.class_averages_.images, classified(mixed[0]).class_averages_.images)


class Last(SilentObserver):
    """Keeps the last checkpoint."""

    checkpoint: Checkpoint

    def iteration(self, done: IterationDone) -> None:
        if done.checkpoint is not None:
            self.checkpoint = done.checkpoint()


def test_classifier_continued_without_junk_gives_the_same_bits(
    mixed: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, junk, _ = mixed
    recogniser, last = Recogniser(junk, monkeypatch), Last()
    whole = classified(images, observer=last)
    assert cleaned(whole)
    assert "set_aside" in last.checkpoint.arrays
    recogniser.junk = torch.zeros(N, dtype=torch.bool)
    continued = classified(images, resume=last.checkpoint)
    assert torch.equal(continued.class_averages_.images, whole.class_averages_.images)
    assert torch.equal(continued.poses_.psi_deg, whole.poses_.psi_deg)
    assert recogniser.asked == 1, "it was known already"
