"""`ralib watch`: a classification of particles that are still arriving. Parse, look, take in, write."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ralib.cli.align import BatchSize, Ctf, CtfMode, Datadir, Device, Inner, NoMirror, Outer, Report, Seed
from ralib.cli.settings import Settings, command, write_config
from ralib.types import ParticleSet, RalibError

FREE_TO_CHANGE = ("poll", "idle", "device", "batch", "datadir")
_CLASSES, _SEARCH, _RUN = "Classes", "Search", "Running"


# fmt: off
@dataclass(frozen=True)
class WatchSettings(Settings):
    """Options of `ralib watch`."""

    essential = frozenset({"classes", "ou", "xr", "ctf_mode", "idle", "seed", "device"})
    classes: Annotated[
        int, typer.Option("--classes", help="Most classes there will be.", rich_help_panel=_CLASSES)
    ] = 50
    per_class: Annotated[
        int, typer.Option("--per-class", help="Particles there must be for each class.", rich_help_panel=_CLASSES)
    ] = 100
    ir: Inner = 1
    ou: Outer = None
    xr: Annotated[
        float, typer.Option("--xr", help="Shift range, px.", rich_help_panel=_SEARCH)
    ] = 3
    nomirror: NoMirror = False
    ctf: Ctf = False
    ctf_mode: CtfMode = None
    rounds: Annotated[
        int, typer.Option("--rounds", help="Iterations after each arrival.", rich_help_panel=_RUN)
    ] = 3
    poll: Annotated[
        float, typer.Option("--poll-seconds", help="Time between two looks.", rich_help_panel=_RUN)
    ] = 10
    idle: Annotated[
        float, typer.Option("--idle-minutes", help="End when nothing has come for so long; 0: only by Ctrl-C.",
                            rich_help_panel=_RUN)
    ] = 0
    seed: Seed = 1000
    device: Device = "auto"
    batch: BatchSize = None
    datadir: Datadir = None
# fmt: on

    def ctf_choice(self) -> str:
        """--CTF and --ctf as one of off, wiener, flip."""
        from ralib.cli.parsing import ctf_choice

        return ctf_choice(self.ctf, self.ctf_mode)

    def record(self) -> dict[str, Any]:
        """The options as run.json holds them, with what --CTF and --ctf came to."""
        return super().record() | {"ctf_mode": self.ctf_choice()}


def register(app: typer.Typer) -> None:
    command(app, "watch", watch)


def watch(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|STAR", help="Folder that stacks (.mrcs) come into, or a STAR that grows.")
    ],
    outdir: Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make; must be new or empty.")],
    settings: WatchSettings,
    resume: Annotated[
        bool, typer.Option("--continue", help="Go on with the classification in OUTDIR.", rich_help_panel=_RUN)
    ] = False,
    report: Report = True,
) -> None:  # fmt: skip
    """Classify particles as they arrive; OUTDIR always holds the classes of all that have come so far.

    Classes grow in number with the particles and are never begun anew. Ctrl-C, or --idle-minutes without an arrival,
    ends the watch.
    """
    from ralib.cli.common import resolve_device

    if settings.poll <= 0 or settings.idle < 0:
        raise RalibError(
            f"--poll-seconds {settings.poll:g} must be above 0, --idle-minutes {settings.idle:g} not below"
        )
    Watch(source, outdir, settings, resolve_device(settings.device), resume=resume, report=report).execute()


class Watch:
    """One watch from the first look to the last."""

    def __init__(
        self, source: Path, outdir: Path, settings: WatchSettings, device: Any, *, resume: bool, report: bool
    ) -> None:
        self.source, self.outdir, self.device = source, outdir, device
        self.settings, self.options = settings, settings.record()
        self.resume, self.report = resume, report
        self.told: set[str] = set()

    def execute(self) -> None:
        """Look, take in what came, write; until nothing comes or a signal does."""
        from ralib.cli.running import SignalFlag, Stopped
        from ralib.results.run_directory import RunDirectory

        flag = SignalFlag()
        with ExitStack() as stack:
            arrivals, state = self._beginning()
            directory = stack.enter_context(RunDirectory(self.outdir, resume=self.resume))
            stack.enter_context(flag.watching())
            growing = self._classification(flag, state)
            last = time.monotonic()
            typer.echo(f"watching {self.source}; Ctrl-C ends")
            try:
                while not self.settings.idle or time.monotonic() - last < 60 * self.settings.idle:
                    particles = arrivals.look()
                    self._warn([*arrivals.left_out.values(), *arrivals.notices])
                    if particles is not None:
                        typer.echo(f"{len(particles)} particles")
                        growing.take(particles)
                        self._write(directory, growing, particles, arrivals)
                        last = time.monotonic()
                    _sleep(self.settings.poll, flag)
            except Stopped as stop:
                typer.echo(f"stopped by {stop}; --continue goes on watching")
            if growing.state is None:
                typer.echo("no particles arrived")

    def _beginning(self) -> tuple[Any, Any]:
        """Where to look, and the state to go on from."""
        from ralib.alignment.state import LoopState
        from ralib.io.arrivals import Arrivals
        from ralib.results.checkpoint import newest
        from ralib.results.input_fingerprint import check_same_options

        found = newest(self.outdir / "checkpoints") if self.resume else None
        known = {} if found is None else {**found.arrays, **found.meta.get("arrivals", found.meta)}
        if found is not None:
            check_same_options(found.meta.get("options", {}), self.options, free=FREE_TO_CHANGE)
        arrivals = Arrivals(self.source, datadir=self.settings.datadir, state=known)
        return arrivals, None if found is None else LoopState.unpack(found.arrays, found.meta, self.device)

    def _classification(self, flag: Any, state: Any) -> Any:
        from ralib.alignment.incremental import GrowingClassification, WatchOptions
        from ralib.alignment.options import AlignmentOptions

        o = self.settings
        alignment = AlignmentOptions(
            outer_radius=o.ou,
            inner_radius=o.ir,
            mirror=not o.nomirror,
            ctf=o.ctf_choice(),
            device=self.device,
            batch_size=o.batch,
        )
        options = WatchOptions(o.classes, o.per_class, (o.xr, o.xr), o.rounds, o.seed)
        return GrowingClassification(options, alignment, observer=_Told(flag), state=state)

    def _write(self, directory: Any, growing: Any, particles: ParticleSet, arrivals: Any) -> None:
        """The run directory of a finished run, of all that has come so far; and where to go on."""
        from ralib.cli.running import finish_record, new_record, report_of, run_ctf

        started, result = time.perf_counter(), growing.result()
        record = new_record(
            "mref", self.options, particles, self.source, self.device,
            ctf=run_ctf(self.settings.ctf_choice(), particles), search_range_px=None,
        )  # fmt: skip
        record = finish_record(record, result, self.device, started, 0.0)
        arrays, meta = growing.state.pack()
        rows, taken = arrivals.state()
        directory.save_checkpoint(
            growing.state.iteration, arrays | rows, meta | {"options": self.options, "arrivals": taken}
        )
        write_config(self.outdir, self.settings)
        directory.write_result(result, particles, record)
        if self.report:
            report_of(self.outdir, self.device, self.options["datadir"])

    def _warn(self, notices: list[str]) -> None:
        for why in notices:
            if why not in self.told:
                self.told.add(why)
                typer.echo(f"warning: {why}", err=True)


class _Told:
    """The observer of a watch: a log line an iteration, and a look at the signals."""

    def __init__(self, flag: Any) -> None:
        self.flag = flag

    def batch(self, done: int, total: int) -> None:
        self.flag.raise_if_set()

    def iteration(self, state: Any) -> None:
        from ralib.classes.iteration_figures import log_line

        typer.echo(log_line(state.figures[-1]))


def _sleep(seconds: float, flag: Any) -> None:
    """Wait, but not for long once a signal has come."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        flag.raise_if_set()
        time.sleep(min(0.1, seconds))
