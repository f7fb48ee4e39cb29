"""Processes that compile in a first run: they run what is submitted, and nobody waits for them in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from ralib.compile_cache import triton_cache
from ralib.runtime import compilers


@pytest.fixture
def made(tmp_path: Path) -> compilers._Compilers:
    return compilers._Compilers(2, ("json",), tmp_path / "mark")


def test_compilers_await_returns_when_all_is_done(made: compilers._Compilers, tmp_path: Path) -> None:
    made.submit([partial(Path.touch, tmp_path / str(i)) for i in range(3)])
    made._await("a kernel", "that none of them compiles")
    assert {p.name for p in tmp_path.iterdir()} == {"0", "1", "2"}
    made.end()
    assert not (tmp_path / "mark").exists()  # nothing was compiled


def test_compilers_await_returns_as_soon_as_the_kernel_is_there(made: compilers._Compilers, tmp_path: Path) -> None:
    made.submit([partial(time.sleep, 30), os.getpid])
    made._done([("kernel", "key")])
    made._await("kernel", "key")
    made.end()


def test_compilers_killed_process_is_not_awaited_for_ever(
    made: compilers._Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "WAITING_S", 0.5)
    made.submit([_killed])
    made._await("kernel", "key")
    monkeypatch.setattr(compilers, "WAITING_S", 300)
    made._await("another kernel", "key")  # nor for another kernel
    made.end()


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_compilers_of_a_later_stage_are_not_asked_again(made: compilers._Compilers) -> None:
    made.submit([os.getpid])
    made._await("", "")
    made.submit([os.getpid])
    made._await("", "")
    made.end()


def test_compilers_what_was_compiled_leaves_a_mark(made: compilers._Compilers, tmp_path: Path) -> None:
    made.submit([os.getpid])
    made._await("", "")
    made._compiled.add(("kernel", "key"))
    made.end()
    assert (tmp_path / "mark").exists()


def test_begin_of_another_command_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_Compilers", lambda *_: pytest.fail("processes were begun"))
    monkeypatch.setattr(compilers, "_driver_begun", lambda: True)
    compilers.begin("info")
    compilers.begin("")


def test_begin_of_a_known_command_begins_processes_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = []
    monkeypatch.setattr(compilers, "_Compilers", lambda *given: begun.append(given))
    monkeypatch.setattr(compilers, "_driver_begun", lambda: True)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compilers.begin("classify")
    assert [given[0] for given in begun] == [compilers.MOST]
    begun[0][2].touch()  # the mark
    compilers.begin("classify")
    assert len(begun) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a driver for GPUs")
def test_begin_without_a_driver_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_Compilers", lambda *_: pytest.fail("processes were begun"))
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    compilers.begin("classify")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, for which alone kernels are compiled")
def test_first_run_on_gpu_finds_what_a_later_one_finds(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache")}
    ralib, particles = [sys.executable, "-m", "ralib"], tmp_path / "set" / "particles.star"
    subprocess.run([*ralib, "simulate", particles.parent, "--particles", "300", "--box", "48"], check=True)
    found = []
    for name in ("first", "later"):
        command = [*ralib, "classify", particles, tmp_path / name, "--classes", "3", "--device", "cuda"]
        subprocess.run(command, check=True, env=environment)
        found.append((tmp_path / name / "class_averages.mrcs").read_bytes())
    assert found[0] == found[1]


def test_triton_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert triton_cache() == tmp_path
