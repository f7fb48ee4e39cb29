"""Processes that compile in a first run: they run what is submitted, and nobody waits for them in vain."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ralib.compile_cache import triton_cache
from ralib.runtime import compilers

needs_compiler = pytest.mark.skipif(not find_spec("triton"), reason="needs Triton, which compiles the kernels")

PRETENDED = """
import sys
from pathlib import Path
sys.path.insert(0, {folder!r})
from ralib.kernels.compiling import Card
from ralib.runtime import compiling_process
Card.first = classmethod(lambda cls: cls(90, 227 * 1024))
compiling_process.main()
"""
"""The process that compiles, for a GPU that is not there."""

CALLS = """
import os
import signal
import time
from functools import partial
from ralib.classification.kernels_ahead import _circles, _image_parts
def usual_calls(): return [_circles]
def killed(device): os.kill(os.getpid(), signal.SIGKILL)
def failing(device): raise ValueError
def slow(device): time.sleep(30)
"""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[compilers._Compilers]:
    (tmp_path / "some_calls.py").write_text(CALLS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    command = [sys.executable, "-c", PRETENDED.format(folder=str(tmp_path)), "2", "some_calls"]
    made = compilers._Compilers(command, tmp_path / "mark")
    yield made
    made.end()


def _compiled(folder: Path) -> set[str]:
    return {path.stem for path in folder.rglob("*.cubin")}


@needs_compiler
def test_compilers_compile_what_is_usual_and_what_is_submitted(made: compilers._Compilers, tmp_path: Path) -> None:
    import some_calls

    made.submit([some_calls._circles, some_calls._image_parts, some_calls._image_parts])
    made.submit([some_calls._image_parts])
    made.wait_for("a kernel", "that none of them compiles")
    expected = {"_circle_spectra", "_ring_power", "_quarter_pixels", "_half_circle"}
    assert {name.split(".")[-1] for name, _ in made._compiled} == expected
    assert _compiled(tmp_path / "cache") == expected | {"_nothing"}
    made.end()
    assert (tmp_path / "mark").exists()


@needs_compiler
def test_compilers_kernel_is_awaited_no_longer_than_it_takes(made: compilers._Compilers) -> None:
    import some_calls

    made.submit([some_calls.slow])
    while not made._compiled:
        time.sleep(0.01)
    start = time.perf_counter()
    made.wait_for(*next(iter(made._compiled)))
    assert time.perf_counter() - start < 1


@needs_compiler
@pytest.mark.parametrize("what", ["killed", "failing"])
def test_compilers_call_without_an_end_is_not_awaited(made: compilers._Compilers, what: str) -> None:
    import some_calls

    made.submit([getattr(some_calls, what)])
    made.wait_for("kernel", "key")
    made.submit([getattr(some_calls, what)] * 2)
    made.wait_for("another kernel", "key")
    made.end()


@needs_compiler
def test_compilers_process_that_hangs_is_not_awaited_for_ever(
    made: compilers._Compilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    import some_calls

    made.submit([some_calls.slow])
    monkeypatch.setattr(compilers, "WAITING_S", 0.5)
    made.wait_for("kernel", "key")
    monkeypatch.setattr(compilers, "WAITING_S", 300)
    made.wait_for("another kernel", "key")  # nor for another kernel
    start = time.perf_counter()
    made.submit([some_calls.slow])
    made.wait_for("kernel", "key")
    assert time.perf_counter() - start < 30


@needs_compiler
def test_compilers_nothing_goes_on_after_the_end(made: compilers._Compilers) -> None:
    import some_calls

    made.submit([some_calls.slow])
    while not made._compiled:
        time.sleep(0.01)
    children = _children(made._process.pid)
    assert len(children) == 2
    made.end()
    for _ in range(1000):
        if not any(Path(f"/proc/{child}/cmdline").exists() for child in children):
            return
        time.sleep(0.01)
    pytest.fail(f"processes {children} are still there")


def _children(pid: int) -> list[int]:
    parts = Path(f"/proc/{pid}/task").glob("*/children")  # of each thread
    return [int(child) for part in parts for child in part.read_text().split()]


def test_compilers_process_that_fails_is_not_awaited(tmp_path: Path) -> None:
    made = compilers._Compilers([sys.executable, "-c", "raise SystemExit(1)"], tmp_path / "mark")
    start = time.perf_counter()
    made.submit([print])
    made.wait_for("kernel", "key")
    made.submit([print])  # though it has ended
    made.wait_for("kernel", "key")
    assert time.perf_counter() - start < compilers.WAITING_S / 2
    made.end()
    assert not (tmp_path / "mark").exists()  # nothing was compiled


def test_begin_of_a_known_command_begins_processes_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begun = []
    monkeypatch.setattr(compilers, "_Compilers", lambda *given: begun.append(given))
    monkeypatch.setattr(compilers, "begin_driver", lambda: True)
    monkeypatch.setattr(compilers, "begin_triton", lambda: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compilers.begin("classify")
    assert [given[0][3] for given in begun] == [str(compilers.MOST)]
    begun[0][1].touch()  # the mark
    compilers.begin("classify")
    assert len(begun) == 1


@needs_compiler
def test_begin_triton_hashes_its_compiler_ahead() -> None:
    from triton.runtime.cache import triton_key

    triton_key.cache_clear()
    compilers.begin_triton()
    for thread in threading.enumerate():
        if thread.name == compilers.HASHING:
            thread.join()
    assert triton_key.cache_info().currsize == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a driver for GPUs")
def test_begin_without_a_driver_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "_Compilers", lambda *_: pytest.fail("processes were begun"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16))
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
