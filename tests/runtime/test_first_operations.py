"""What is called ahead on a GPU can be called, and begins nothing where it is not needed."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from ralib.runtime import first_operations

BEGUN = "ralib-first-operations"


def begun(monkeypatch: pytest.MonkeyPatch, *words: str) -> bool:
    """Whether a command line begins the operations where there is a GPU; none is asked."""
    names: list[str | None] = []
    monkeypatch.setattr(sys, "argv", ["ralib", *words])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: names.append(thread.name))
    first_operations.begin()
    return names == [BEGUN]


def test_first_operations_are_operations() -> None:
    first_operations.first_operations(torch.device("cpu"))


def test_begin_where_the_default_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert begun(monkeypatch, "classify", "particles.star", "out")
    assert begun(monkeypatch, "mref", "particles.star", "out", "--device", "cuda")
    for words in (
        ["select", "run"],
        ["classify", "a", "b", "--device", "cuda:1"],
        ["classify", "a", "--config", "c"],
        [],
    ):
        assert not begun(monkeypatch, *words)
    monkeypatch.setenv("RANK", "1")
    assert not begun(monkeypatch, "classify", "particles.star", "out")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_begin_without_a_gpu_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ralib", "classify", "particles.star", "out"])
    first_operations.begin()
    assert BEGUN not in {thread.name for thread in threading.enumerate()}
