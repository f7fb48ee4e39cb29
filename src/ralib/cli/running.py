"""What every command that runs a loop shares: the run's folder, its log or progress bar, signals, the record."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from ralib._version import __version__
from ralib.alignment.state import LoopState
from ralib.classes.iteration_figures import log_line
from ralib.cli.common import describe_device
from ralib.cli.interrupts import answered
from ralib.cli.settings import Settings, write_config
from ralib.cli.terminal import Terminal
from ralib.results.checkpoint import newest
from ralib.results.input_fingerprint import check_same_options, input_fingerprint
from ralib.results.run_directory import RunDirectory
from ralib.runtime.distributed import launched
from ralib.types import CtfCorrection, ParticleSet, RalibError, RunResult


class Stopped(Exception):  # noqa: N818 - it is no error
    """A signal asked the run to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class SignalFlag:
    """Notes SIGINT and SIGTERM instead of dying; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    def raise_if_set(self) -> None:
        if self.number is not None:
            raise Stopped(self.number)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        def note(number: int, _: object) -> None:
            if self.number is not None:
                raise KeyboardInterrupt
            self.number = number
            answer.say()

        with answered("\nralib: stopping when this step is done and saved; once more ends at once") as answer:
            before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)


class Reporter:
    """The observer of a run: a log line an iteration, a progress bar on a terminal, files and checkpoints.

    Files are written by a thread while the next iteration computes; `settle` waits for them.

    directory   None on all ranks but the first: those only look out for signals
    """

    def __init__(
        self,
        directory: RunDirectory | None,
        record: dict[str, Any],
        flag: SignalFlag,
        iterations: int | None,
        settings: Settings,
        terminal: Terminal,
    ) -> None:
        self.directory, self.record, self.flag, self.iterations = directory, record, flag, iterations
        self.settings, self.terminal = settings, terminal
        self.write_s = 0.0
        self._writer = ThreadPoolExecutor(1, "ralib-write")
        self._pending: Future[None] | None = None

    @contextlib.contextmanager
    def showing(self) -> Iterator[Reporter]:
        """With the progress bar, where there is a terminal to show it on; at its end no file is half written."""
        with self.flag.watching(), self._writer, self.terminal.showing(len(self.record["iterations"])):
            yield self

    def batch(self, done: int, total: int) -> None:
        self._stop_if_asked()
        self.terminal.part(done / max(1, total))

    def iteration(self, state: LoopState) -> None:
        if self.directory is not None:
            directory, number = self.directory, state.iteration
            shared, meta = state.pack()
            arrays = {name: array.copy() for name, array in shared.items()}  # the loop goes on with its own
            meta |= {"options": self.record["options"]}
            self.note(
                state.figures,
                state.warnings,
                state.averages,
                also=lambda: directory.save_checkpoint(number, arrays, meta),
            )
        self._stop_if_asked()

    def note(
        self,
        figures: list[dict[str, Any]],
        warnings: list[dict[str, str]],
        averages: Any,
        also: Callable[[], None] | None = None,
    ) -> None:
        """Log an iteration; have its folder and the record so far written, and `also` what else belongs to it."""
        if self.directory is None:
            return
        self.terminal.say(log_line(figures[-1], self.iterations))
        self.terminal.warn(warnings[len(self.record["warnings"]) :])
        self.record |= {"iterations": figures, "warnings": list(warnings)}
        number = figures[-1]["iteration"]
        self.terminal.step(number, f"iteration {number + 1}")
        self.settle()
        directory, record, averages = self.directory, dict(self.record), averages.to("cpu")

        def write() -> None:
            write_config(directory.path, self.settings)
            self.terminal.save(directory.path)
            directory.write_iteration(number, averages)
            directory.write_record(record)
            if also is not None:
                also()

        self._pending = self._writer.submit(write)

    def settle(self) -> None:
        """Wait until the files of the last iteration are there; raises what their writing raised."""
        start, pending = time.perf_counter(), self._pending
        self._pending = None
        if pending is not None:
            pending.result()
        self.write_s += time.perf_counter() - start

    def _stop_if_asked(self) -> None:
        if self.flag.number is not None:
            self.settle()
        self.flag.raise_if_set()


def new_record(
    kind: str,
    options: dict[str, Any],
    particles: ParticleSet,
    stack: Path,
    device: torch.device,
    *,
    ctf: CtfCorrection,
    search_range_px: float | None,
) -> dict[str, Any]:
    """run.json as it stands before the first iteration."""
    return {
        "program": "ralib",
        "version": __version__,
        "kind": kind,
        "state": "running",
        "command": ["ralib", *sys.argv[1:]],
        "options": options,
        "ctf_correction": ctf.value,
        "search_range_px": search_range_px,
        "seed": options.get("seed"),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": describe_device(device),
        "input": {
            "path": str(stack),
            "particles": len(particles),
            "box": particles.box,
            "pixel_size_A": particles.pixel_size_A,
            "fingerprint": input_fingerprint(particles),
        },
        "iterations": [],
        "classes": [],
        "warnings": [],
        "timings": {},
    }


def report_of(outdir: Path, device: torch.device, datadir: str | None) -> None:
    """report.html of a finished run, or a line that says why there is none."""
    from ralib.results.summary import write_report

    if trouble := report_trouble(outdir, lambda: write_report(outdir, device=device, datadir=datadir)):
        typer.echo(trouble, err=True)


def report_trouble(outdir: Path, write: Callable[[], object]) -> str:
    """Nothing, or the line that says why `write` made no report: the run itself is safe on disk."""
    try:
        write()
    except (RalibError, OSError) as error:
        return f"warning: no report.html: {error}; try 'ralib report {outdir}'"
    return ""


def run_ctf(mode: str, particles: ParticleSet) -> CtfCorrection:
    """What an option's value ('auto', 'on', 'wiener', 'flip', 'flipped', 'off') makes a run do about the CTF."""
    if mode == "off" or particles.ctf is None or particles.pixel_size_A is None:
        return CtfCorrection.NONE
    return CtfCorrection.FLIP if mode == "flip" else CtfCorrection.WIENER


def resumed_state(outdir: Path, options: dict[str, Any], device: torch.device) -> LoopState | None:
    """Where to go on after `--continue`; None where no iteration was finished. RalibError for other options."""
    found = newest(outdir / "checkpoints")
    if found is None:
        return None
    check_same_options(found.meta.get("options", {}), options, free=("maxit", "device", "gpu_devices", "memory"))
    return LoopState.unpack(found.arrays, found.meta, device)


def stopped_message(stop: Stopped, outdir: Path, state_saved: bool) -> str:
    """What to tell when a signal ended the run."""
    if not state_saved:
        return f"stopped by {stop} before the first iteration was done: start again"
    arguments = [a for a in sys.argv[1:] if a != "--continue"]
    program = "ralib"
    if launched() and not any(a.startswith(("--gpu_devices", "--gpu-devices")) for a in arguments):
        program = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '1')} -m ralib"
    return f"stopped by {stop}; go on with: {program} {shlex.join([*arguments, '--continue'])}  ({outdir})"


def finish_record(
    record: dict[str, Any], result: RunResult, device: torch.device, started: float, write_s: float
) -> dict[str, Any]:
    """The record of a finished run, all but the time its files will take; `started` is when the command began."""
    timings = {"read_s": 0.0, **record["timings"], **result.extra.get("timings", {}), "write_s": write_s}
    timings["total_s"] = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return record | {
        "state": "finished",
        "iterations": result.iterations,
        "classes": result.extra.get("classes", []),
        "warnings": result.warnings,
        "bad_particles": [i + 1 for i in result.extra.get("bad_particles", [])],
        "timings": timings,
        "peak_device_memory_bytes": peak,
    }
