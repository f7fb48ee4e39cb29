"""Devices that are there, and one line for those that are not."""

from __future__ import annotations

import pytest
import torch

from ralib.runtime.devices import computing_device
from ralib.types import RalibError


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cuda", "cuda:1", torch.device("cuda", 1)])
def test_computing_device_is_the_one_named(device: torch.device | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert computing_device(device) == torch.device(device)


@pytest.mark.parametrize(
    ("device", "n_gpus", "what"),
    [
        ("cuda", 0, "finds no GPU"),
        (torch.device("cuda", 0), 0, "finds no GPU"),
        ("cuda:2", 2, "there are 2 GPUs"),
        ("gpu", 2, "is not a device"),
        ("mps", 0, "is not a device"),
        (None, 2, "is not a device"),
    ],
)
def test_computing_device_that_is_not_there_is_refused(
    device: torch.device | str, n_gpus: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    with pytest.raises(RalibError, match=f"`device` '.*{what}") as refused:
        computing_device(device)
    assert "\n" not in str(refused.value)
