"""The session of a run: folder, lock, record, checkpoints, log and signals, for mref, reffree, classify and watch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import typer

from ralib import io
from ralib.cli.background_writer import BackgroundWriter
from ralib.cli.common import describe_device, with_pixel_size
from ralib.cli.flags import flagged, with_flags
from ralib.cli.interrupts import SignalFlag, Stopped, stopped_message
from ralib.cli.other_run import OtherRun
from ralib.cli.settings import Settings, write_config
from ralib.cli.terminal import VERDICT_AT, Terminal, class_table, classes_line, header, iteration_line
from ralib.cli.timing import references_s, time_line
from ralib.kernels.threads import Threads
from ralib.results.checkpoint import Checkpoint, newest
from ralib.results.input_fingerprint import check_same_input, check_same_options
from ralib.results.observer import IterationDone
from ralib.results.run_directory import RunDirectory
from ralib.results.run_record import ctf_correction, finished_record, new_record, particle_file, read_record
from ralib.runtime.distributed import RankLost, Ranks, SingleProcess
from ralib.types import Notice, ParticleSet, RalibError, RunResult


class RunSession:
    """One run of a command; the `Observer` of the method that it runs.

    It owns the folder and its lock, the record (run.json), the checkpoints, the terminal and log.txt, the signals,
    and the writing of results and report. Files of an iteration are written by a thread while the next one computes.

    Parameters
    ----------
    kind
        'mref', 'reffree' or 'classify'.
    source
        The particles' file or folder, as given.
    options
        What run.json records of the settings.
    began
        When the command began, on the clock of `time.perf_counter`.
    ranks
        The processes of this run; all but the first only compute, and look out for signals.
    grows
        Particles arrive while it runs (watch): OUTDIR holds a finished run after each arrival, so no iteration is
        written, and the input may be larger than that of the run to go on with. Of an arrival a line or two are
        printed, on a terminal its iterations too.
    """

    def __init__(
        self,
        kind: str,
        source: Path,
        outdir: Path,
        settings: Settings,
        device: torch.device,
        *,
        options: dict[str, Any] | None = None,
        resume: bool = False,
        report: bool = True,
        began: float | None = None,
        ranks: Ranks | None = None,
        grows: bool = False,
    ) -> None:
        self.kind, self.source, self.outdir, self.device = kind, source, outdir, device
        self.settings, self.options = settings, settings.record() if options is None else options
        self.resume, self.report, self.grows = resume, report, grows
        self.began = time.perf_counter() if began is None else began
        self.ranks: Ranks = ranks or SingleProcess()
        self.terminal = Terminal(quiet=self.ranks.rank != 0)
        self.flag = SignalFlag()
        self.record: dict[str, Any] = {}
        self.directory: RunDirectory | None = None
        self._shown_warnings: tuple[Notice, ...] = ()
        self._found: list[str] = []
        self._earlier = 0
        self._writer = BackgroundWriter()

    # -- before it runs ---------------------------------------------------------------------------------------------

    def say(self, line: str) -> None:
        """Print a line on the screen and in log.txt."""
        self.terminal.say(line)

    def opened(self, source: Path, *, datadir: Path | None, pixel_size_A: float | None) -> ParticleSet:
        """Return the particles of a file or a finished run's folder.

        Parameters
        ----------
        source : Path
            File or folder.
        datadir : Path or None
            Folder of the image files.
        pixel_size_A : float or None
            Pixel size that an option gives, Angstrom, or None.

        Returns
        -------
        ParticleSet
            The particles.
        """
        return with_pixel_size(io.open_particles(particle_file(source), datadir=datadir), pixel_size_A, "--pixel-size")

    def accept(self, particles: ParticleSet) -> None:
        """Print the warnings of the particles before work begins."""
        io.check_writable_name(self.outdir)
        self._warn_once(map(flagged, particles.warnings))

    def _warn_once(self, warnings: Iterable[Notice]) -> None:
        """Print those warnings that were not printed before."""
        new = [warning for warning in warnings if warning not in self._shown_warnings]
        self._shown_warnings += tuple(new)
        self.terminal.warn(new)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the folder and record signals; at the end no file is incomplete. A signal ends the command here.

        Nothing here is differentiated: in PyTorch's inference mode each operation is launched sooner.
        """
        with ExitStack() as stack:
            if self.ranks.rank == 0:
                self.directory = stack.enter_context(RunDirectory(self.outdir, resume=self.resume))
            stack.enter_context(self.flag.watching())
            stack.enter_context(self._writer)
            stack.callback(self.terminal.close)
            stack.enter_context(torch.inference_mode())
            try:
                yield
            except (Stopped, RankLost) as reason:
                if self.flag.number is None:
                    raise
                stop = Stopped(self.flag.number)  # a rank lost after a signal had the same signal
                self.terminal.close()
                if self.directory is not None:
                    saved = self.directory.newest_checkpoint() is not None
                    typer.echo(f"ralib: {stopped_message(stop, self.outdir, saved)}", err=True)
                raise typer.Exit(stop.status) from reason

    def begin(
        self,
        particles: ParticleSet,
        plan: str,
        *,
        ctf: str,
        search_range_px: float | None,
        iterations: int | None = None,
        done: int = 0,
    ) -> Checkpoint | None:
        """Begin the record and the log, and return the checkpoint to continue from, None for a new run.

        Parameters
        ----------
        particles : ParticleSet
            The particles.
        plan : str
            What will be done, in words.
        ctf : str
            The option's value ('auto', 'on', 'wiener', 'flip', 'flipped', 'off').
        search_range_px : float or None
            Range of the shifts searched, pixels; None where none are.
        iterations : int | None, optional
            Number of iterations expected, None where unknown.
        done : int, default 0
            Of them, how many were done before particles arrived that join their classes.

        Returns
        -------
        Checkpoint or None
            The checkpoint.
        """
        first, self.particles = not self.record, particles
        if self.grows:
            self.began, self._writer.waited_s, self._found = time.perf_counter(), 0.0, []
        correction = ctf_correction(ctf, particles)
        self.record = new_record(
            self.kind, self.options, particles, self.source,
            command=["ralib", *sys.argv[1:]], device=describe_device(self.device),
            ctf=correction, search_range_px=search_range_px,
        )  # fmt: skip
        begun = None if self.grows else self._begun()
        self.terminal.total = iterations
        for line in header(particles, correction, plan) if first else ():
            self.say(line)
        self._earlier = len(self.record["iterations"])
        self.terminal.show(self._earlier + done)
        self.note()
        if first and self.report and self.directory is not None:
            self._writer.begin(_load_report)
        return begun

    def note(self, **found: Any) -> None:
        """Add to the record what was found before the first iteration."""
        self.record |= found
        self.record["timings"] = {"start_s": time.perf_counter() - self.began}

    def newest_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint with which --continue continues, None for a new run.

        Raises RalibError for a run begun with other options.
        """
        found = newest(self.outdir / "checkpoints") if self.resume else None
        if found is not None:
            self._check_kind(found)
            check_same_options(found.meta.get("options", {}), self.options, free=self.settings.free_to_change)
        return found

    def _check_kind(self, begun: Checkpoint) -> None:
        """RalibError where one of `watch` and another command would go on with a run of the other."""
        watched = "arrivals" in begun.meta
        if self.grows and (not watched or "references" in begun.arrays):
            by = "an earlier version of 'ralib watch', by alignment to references" if watched else "another command"
            raise RalibError(f"`resume`: the run in {self.outdir} was begun by {by}: watch into another folder")
        if watched and not self.grows:
            raise RalibError(f"`resume`: the run in {self.outdir} is one of 'ralib watch': go on with that")

    def _begun(self) -> Checkpoint | None:
        """The checkpoint to go on from, in the record and the log; every rank reads it for itself."""
        if not self.resume:
            return None
        found = self.newest_checkpoint()
        if found is None:
            self.say("no iteration was finished: beginning anew")
            return None
        now = self.record["input"]["fingerprint"]
        check_same_input(read_record(self.outdir), now, stack=str(self.source), outdir=str(self.outdir))
        warnings = [flagged(Notice.of_record(item)).record() for item in found.meta.get("warnings", [])]
        self.record |= {"iterations": found.meta["figures"], "warnings": warnings}
        self._found = list(found.meta.get("log", []))
        self.say(f"going on after iteration {found.number}")
        return found

    # -- while it runs ----------------------------------------------------------------------------------------------

    def batch(self, done: int, total: int) -> None:
        """Show the progress, and stop if a signal has arrived; see `Observer.batch`."""
        self._stop_if_asked()
        self.terminal.part(done / max(1, total))

    def iteration(self, done: IterationDone) -> None:
        """Log an iteration, and write its files and checkpoint."""
        if self.directory is not None:
            self._show(done)
            if done.ends_step and not self.grows:
                self._save_iteration(self.directory, done)
        self._stop_if_asked()

    def found(self, line: str) -> None:
        """Print a finding; see `Observer.found`."""
        self._found.append(line)
        self._say_finding(line)

    def _say_finding(self, line: str) -> None:
        """Print what was found: of particles that arrive, on a terminal only."""
        self.terminal.detail(line) if self.grows else self.say(line)

    def other_run(self, name: str) -> OtherRun:
        """Return an observer of another run of the method within this one: the bar shows `name`, nothing is written."""
        return OtherRun(self.terminal, self.flag, name)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint with the options of this run."""
        assert self.directory is not None
        meta = {**checkpoint.meta, "options": self.options}
        self.directory.save_checkpoint(checkpoint.number, checkpoint.arrays, meta)

    def settle(self) -> None:
        """Wait until the files of the last iteration are written; raises the errors of their writing."""
        self._writer.settle()

    def _show(self, done: IterationDone) -> None:
        row = done.figures[-1]
        total = self.terminal.total if self.kind == "mref" else None
        brief = partial(iteration_line, row, self.particles.box, total)
        (self.terminal.detail if self.grows else self.terminal.say)(brief(), brief=brief)
        warnings = list(map(flagged, done.warnings))
        self.terminal.warn(warnings[len(self.record["warnings"]) :])
        self.record |= {"iterations": list(done.figures), "warnings": [w.record() for w in warnings]}
        if done.expected is not None and not self.grows:
            self.terminal.total = done.expected
        stage = row.get("stage")
        self.terminal.step(done.number, stage if isinstance(stage, str) else f"iteration {done.number + 1}")

    def _save_iteration(self, directory: RunDirectory, done: IterationDone) -> None:
        """Have the iteration's averages, the record so far and the checkpoint written."""
        self.settle()
        record, averages = dict(self.record), done.averages()
        checkpoint = done.checkpoint() if done.checkpoint is not None else None

        def write() -> None:
            write_config(directory.path, self.settings)
            self.terminal.save(directory.path)
            directory.write_iteration(done.number, averages)
            directory.write_record(record)
            if checkpoint is not None:
                self.save_checkpoint(checkpoint)

        self._writer.begin(write)

    def _stop_if_asked(self) -> None:
        if self.flag.number is not None:
            self.settle()
        self.flag.raise_if_set()

    # -- at its end -------------------------------------------------------------------------------------------------

    def write(self, result: RunResult, *, hdf: bool = False) -> None:
        """Write all files of the result, and the report in parallel.

        Parameters
        ----------
        result : RunResult
            The result.
        hdf : bool, default False
            Whether to write the averages for EMAN2 too.
        """
        directory = self.directory
        if directory is None:
            return
        self.settle()
        self.terminal.busy("writing files")
        start = time.perf_counter()
        result = replace(result, warnings=list(map(flagged, result.warnings)))
        record = finished_record(
            self.record, result, device=self.device, began=self.began, write_s=self._writer.waited_s
        )
        timings = record["timings"]
        if "search_s" in timings and self.kind != "classify":  # there the search makes the averages, too
            timings["references_s"] = references_s(timings, result.iterations[self._earlier :])
        write_config(self.outdir, self.settings)
        with Threads(1, "ralib-report") as beside:
            shown = record | {"timings": {k: v for k, v in timings.items() if k != "write_s"}}  # not over yet
            report = beside.submit(self._write_report, shown, result) if self.report else None
            directory.write_result(result, self.particles, record, hdf=hdf)
            timings["write_s"] += time.perf_counter() - start
            self._say_findings(result)
            start = time.perf_counter()
            warning = report.result() if report is not None else ""
        self.terminal.close()
        if warning:
            typer.echo(warning, err=True)
        timings["report_s"] = time.perf_counter() - start
        timings["total_s"] = time.perf_counter() - self.began
        directory.write_record(record)
        self.record = record
        if self.grows:
            self.say(f"wrote {self.outdir}: {classes_line(record['classes'])}; {timings['total_s']:.1f} s")
        else:
            self.say_classes()
            self.say(time_line(timings))
            self.say(f"wrote {self.outdir}: class_averages.mrcs, particles.star, classes.png, run.json ...")
        self.terminal.save(self.outdir)

    def say_classes(self) -> None:
        """Print the table of the classes that were written last."""
        for line in class_table(self.record["classes"], self.particles.box):
            self.terminal.say(line, indent=VERDICT_AT)
        self.terminal.save(self.outdir)

    def _say_findings(self, result: RunResult) -> None:
        """The findings and the warnings that were not printed before."""
        for line in result.log:
            if line not in self._found:
                self._say_finding(line)
        self._shown_warnings += tuple(Notice.of_record(item) for item in self.record["warnings"])
        self._warn_once(result.warnings)

    def _write_report(self, record: dict[str, Any], result: RunResult) -> str:
        """report.html from what is still in memory, or a line that says why there is none."""
        from ralib.results.summary import finished_run, write_report

        def write() -> None:
            run = finished_run(self.outdir, record, result, self.particles)
            write_report(run, device=self.device)

        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return report_warning(self.outdir, write)


def _load_report() -> None:
    """Import what writes the report, so that it is there when the run has ended."""
    import ralib.results.summary  # noqa: F401


def report_warning(outdir: Path, write: Callable[[], object]) -> str:
    """Write a report, and return '' or a line that says why it failed: the run itself is safe on disk.

    Parameters
    ----------
    outdir : Path
        Folder of the run.
    write : Callable[[], object]
        Writes the report.

    Returns
    -------
    str
        '' or the line.
    """
    try:
        write()
    except (RalibError, OSError) as error:
        return f"warning: no report.html: {with_flags(str(error))}; try 'ralib report {outdir}'"
    return ""
