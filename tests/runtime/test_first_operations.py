"""What is called ahead on a GPU can be called, and begins nothing where it is not needed."""

from __future__ import annotations

import sys
import threading

import pytest
import torch

from ralib.__main__ import _searches_on_default_gpu, _searches_on_gpu
from ralib.runtime import first_operations

BEGUN = "ralib-first-operations"


def begun(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the operations begin where there is a GPU; none is asked."""
    names: list[str | None] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(threading.Thread, "start", lambda thread: names.append(thread.name))
    first_operations.begin()
    return names == [BEGUN]


def test_first_operations_are_operations() -> None:
    first_operations.first_operations(torch.device("cpu"))


def test_begin_with_a_gpu_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert begun(monkeypatch)


@pytest.mark.parametrize(
    ("words", "on_gpu", "on_default"),
    [
        ("classify particles.star out", True, True),
        ("mref particles.star 50 out --device cuda", True, True),
        ("classify particles.star out --device cpu", False, False),
        ("classify particles.star out --device cuda:1", True, False),
        ("classify particles.star out --gpu_devices 0,1", False, False),
        ("classify particles.star out --config run.yaml", True, False),
        ("select run", False, False),
        ("", False, False),
    ],
)
def test_gpu_is_used_as_the_line_tells(
    words: str, on_gpu: bool, on_default: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["ralib", *words.split()])
    assert (_searches_on_gpu(), _searches_on_default_gpu()) == (on_gpu, on_default)
    monkeypatch.setenv("RANK", "1")
    assert not _searches_on_gpu()
    assert not _searches_on_default_gpu()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_begin_without_a_gpu_begins_nothing() -> None:
    first_operations.begin()
    assert BEGUN not in {thread.name for thread in threading.enumerate()}
