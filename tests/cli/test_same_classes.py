"""Number of threads, batch size and memory change no class, whatever the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from blobs import make
from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.alignment.reference_free import ReferenceFreeAligner
from ralib.classification.classifier import Classifier
from ralib.particles import batches

TRUTH = make(120, box=24, n_views=2, snr=1.0, seed=4)


def run(command: str, **options: Any) -> Any:
    kinds: dict[str, Callable[..., Any]] = {
        "classify": Classifier,
        "mref": MultiReferenceAligner,
        "reffree": ReferenceFreeAligner,
    }
    own: dict[str, dict[str, Any]] = {
        "classify": {"n_classes": 2},
        "mref": {"references": 2, "iterations": 3, "outer_radius": 9},
        "reffree": {"iterations": 2, "outer_radius": 9},
    }
    return kinds[command](**own[command], **options).fit(TRUTH.images)


@pytest.fixture(autouse=True)
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("command", ["classify", "mref", "reffree"])
def test_classes_are_the_same_for_threads_batches_and_memory(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    first = run(command)
    others = [run(command, batch_size=31)]
    torch.set_num_threads(2)
    others.append(run(command))
    torch.set_num_threads(1)
    monkeypatch.setattr(batches, "free_memory", lambda device: 0)
    others.append(run(command))
    for other in others:
        assert torch.equal(first.poses_.class_index, other.poses_.class_index)
        assert torch.equal(first.poses_.mirror, other.poses_.mirror)
        torch.testing.assert_close(first.poses_.psi_deg, other.poses_.psi_deg, rtol=0, atol=0.01)
        torch.testing.assert_close(first.class_averages_.images, other.class_averages_.images, rtol=0, atol=2e-3)
    if command != "reffree":
        different = run(command, seed=7) if command == "classify" else run(command, seed=3)
        assert not torch.equal(first.class_averages_.images, different.class_averages_.images), "this can fail"
