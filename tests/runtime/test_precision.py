"""A caller's own default precision changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.classification.classifier import Classifier
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.simulation.simulator import SimulationOptions, Simulator


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.cat(list(Simulator(SimulationOptions(n_particles=100, box=32, snr=1.0, seed=1, n_views=2)).blocks()))


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiReferenceAligner(references=2, iterations=1, outer_radius=12, seed=0),
        lambda: Classifier(n_classes=2, seed=1, plan=ScheduleSettings(exchanges=1, final=2)),
    ],
)
def test_fit_and_predict_in_double_precision_by_default_have_the_same_bits(make, images, request) -> None:
    usual = make().fit(images)
    expected = usual.predict(images)
    request.getfixturevalue("double")
    found = make().fit(images)
    assert torch.equal(found.class_averages_.images, usual.class_averages_.images)
    assert (found.predict(images) == expected).all()
    assert torch.get_default_dtype() == torch.float64
