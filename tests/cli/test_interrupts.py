"""Ctrl-C, SIGTERM and SIGHUP: one clean line at every moment, soon, and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ralib.cli.interrupts import SignalFlag, Stopped, answered

SOURCE = Path(__file__).resolve().parents[2] / "src"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
BUSY = """
import hashlib, os, signal, sys, threading
from ralib.cli import common
import typer
app = typer.Typer()
@app.command()
def busy():
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.{name})).start()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", {rounds})  # a library's call: no handler of Python's runs
    while True:
        pass
sys.exit(common.run(app, []))
"""


@pytest.fixture(autouse=True)
def _answered_sighup() -> Iterator[None]:
    """Programs started here answer SIGHUP, also where the tests themselves run after nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def wait_for_handlers(run: subprocess.Popen[str]) -> None:
    """Wait until the program handles SIGTERM: before, Python itself is still starting, however busy the machine is."""
    end = time.monotonic() + 60
    while time.monotonic() < end and run.poll() is None:
        if handles(run.pid, signal.SIGTERM):
            return
        time.sleep(0.005)
    raise AssertionError("SIGTERM was never handled")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("after_s", [0.0, 0.6])
def test_signal_while_libraries_load_ends_in_one_line(tmp_path: Path, number: int, after_s: float) -> None:
    command = [sys.executable, "-m", "ralib", "prepare", "none.star", "out.star"]
    run = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    wait_for_handlers(run)
    time.sleep(after_s)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert len(said.strip().splitlines()) == 1
    assert said.startswith("ralib: ")
    assert run.returncode == 128 + number


def handles(process: int, number: int) -> bool:
    """Whether a process catches a signal; False once it has ended."""
    status = Path(f"/proc/{process}/status").read_text()
    caught = re.search(r"SigCgt:\s*(\w+)", status)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_while_python_ends_leaves_the_status_of_what_was_done(tmp_path: Path, number: int) -> None:
    """Python takes its handlers away before it unloads the libraries, which takes .2 s."""
    np.save(tmp_path / "images.npy", np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32))
    command = [sys.executable, "-m", "ralib", "prepare", "images.npy", "out.mrcs", "--device=cpu"]
    run = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_handlers(run)
    while handles(run.pid, number):
        time.sleep(0.002)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert (tmp_path / "out.mrcs").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_in_a_library_call_is_answered_before_the_call_returns(number: signal.Signals) -> None:
    program = BUSY.format(name=number.name, rounds=6_000_000)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        first = run.stderr.readline()
        answered_at = time.monotonic()
        rest = run.stderr.read()
    assert run.returncode == 128 + number
    assert first == "ralib: ending when what is computed now is done\n"
    assert time.monotonic() - answered_at > 0.5, "it was said while the call went on"
    assert len(rest.strip().splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_in_python_is_one_line(number: signal.Signals) -> None:
    program = BUSY.format(name=number.name, rounds=1)
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_that_a_library_makes_an_error_of_is_no_internal_error(number: signal.Signals) -> None:
    """As libraries do while they load or compile."""
    waits = """try:
        import time; time.sleep(30)
    except BaseException: raise SystemError("initialization failed") from None"""
    program = BUSY.format(name=number.name, rounds=1).replace("while True:\n        pass", waits)
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + number
    assert "internal error" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_closed_terminal_after_nohup_ends_nothing() -> None:
    ends = BUSY.format(name="SIGHUP", rounds=6_000_000).replace("while True:\n        pass", "print('done')")
    program = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{ends}"
    done = subprocess.run([sys.executable, "-c", program], env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_signal_flag_stops_a_step_that_does_not_end_soon(capfd: pytest.CaptureFixture[str]) -> None:
    """An iteration of many particles, or the first one, which compiles the kernels, takes minutes of a busy machine."""
    begun = time.monotonic()

    def compiles() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while time.monotonic() < begun + 20:
            with contextlib.suppress(Exception):  # as compilers do
                time.sleep(0.01)

    with SignalFlag(grace_s=0.2).watching(), pytest.raises(Stopped, match="SIGTERM"):
        compiles()
    assert time.monotonic() - begun >= 0.2, "the step had its time"
    assert capfd.readouterr().err.startswith("ralib: stopping when this step is saved, in 0.2 s at most")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_signal_flag_asked_in_time_is_not_interrupted_later() -> None:
    flag = SignalFlag(grace_s=1.0)  # a busy machine may take half a second to the next line
    with flag.watching():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            flag.raise_if_set()
        time.sleep(1.2)


def test_answer_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with answered("noted") as answer:
            os.kill(os.getpid(), signal.SIGINT)
            answer.say()
            answer.say()
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == "noted\n"
