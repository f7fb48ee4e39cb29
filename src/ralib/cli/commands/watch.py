"""`ralib watch`: a classification of particles that are still arriving."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ralib.cli.alignment_options import (
    BatchSize,
    Ctf,
    CtfMode,
    Datadir,
    Device,
    Inner,
    NoMirror,
    Outer,
    PixelSize,
    Report,
    Seed,
)
from ralib.cli.common import with_pixel_size
from ralib.cli.flags import with_flags
from ralib.cli.settings import CLASSES, RUNNING, SEARCH, Settings, command
from ralib.types import RalibError

if TYPE_CHECKING:
    import torch

    from ralib.alignment.incremental import GrowingClassification
    from ralib.alignment.state import LoopState
    from ralib.cli.interrupts import SignalFlag
    from ralib.cli.session import RunSession
    from ralib.io.arrivals import Arrivals
    from ralib.results.checkpoint import Checkpoint


# fmt: off
@dataclass(frozen=True)
class WatchSettings(Settings):
    """Options of `ralib watch`."""

    essential = frozenset({"classes", "ou", "xr", "ctf_mode", "idle", "seed", "device"})
    free_to_change = frozenset({"poll", "idle", "device", "batch", "datadir"})
    classes: Annotated[
        int, typer.Option("--classes", help="Most classes there will be.", rich_help_panel=CLASSES)
    ] = 50
    per_class: Annotated[
        int, typer.Option("--per-class", help="Particles there must be for each class.", rich_help_panel=CLASSES)
    ] = 100
    ir: Inner = 1
    ou: Outer = None
    xr: Annotated[
        float, typer.Option("--xr", help="Shift range, px.", rich_help_panel=SEARCH)
    ] = 3
    nomirror: NoMirror = False
    ctf: Ctf = False
    ctf_mode: CtfMode = None
    pixel_size: PixelSize = None
    rounds: Annotated[
        int, typer.Option("--rounds", help="Iterations after each arrival.", rich_help_panel=RUNNING)
    ] = 3
    poll: Annotated[
        float, typer.Option("--poll-seconds", help="Time between two looks.", rich_help_panel=RUNNING)
    ] = 10
    idle: Annotated[
        float, typer.Option("--idle-minutes", help="End when nothing has come for so long; 0: only by Ctrl-C.",
                            rich_help_panel=RUNNING)
    ] = 0
    seed: Seed = 1000
    device: Device = "auto"
    batch: BatchSize = None
    datadir: Datadir = None
# fmt: on

    def ctf_choice(self) -> str:
        """Return --CTF and --ctf as one of off, wiener, flip."""
        from ralib.cli.parsing import ctf_choice

        return ctf_choice(self.ctf, self.ctf_mode)

    def record(self) -> dict[str, Any]:
        """Return the options as run.json holds them, with the CTF correction that --CTF and --ctf mean."""
        return super().record() | {"ctf_mode": self.ctf_choice()}


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "watch", watch)


def watch(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|STAR", help="Folder that stacks (.mrcs) come into, or a STAR that grows.")
    ],
    outdir: Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make; must be new or empty.")],
    settings: WatchSettings,
    resume: Annotated[
        bool, typer.Option("--continue", help="Go on with the classification in OUTDIR.", rich_help_panel=RUNNING)
    ] = False,
    report: Report = True,
) -> None:  # fmt: skip
    """Classify particles as they arrive; OUTDIR always holds the classes of all that have come so far.

    Classes grow in number with the particles and are never begun anew. Ctrl-C, or --idle-minutes without an arrival,
    ends the watch.
    """
    from ralib.alignment.state import LoopState
    from ralib.cli.common import resolve_device
    from ralib.cli.interrupts import Stopped
    from ralib.cli.session import RunSession
    from ralib.io.arrivals import Arrivals

    if settings.poll <= 0 or settings.idle < 0:
        raise RalibError(
            f"--poll-seconds {settings.poll:g} must be above 0, --idle-minutes {settings.idle:g} not below"
        )
    device = resolve_device(settings.device)
    session = RunSession("mref", source, outdir, settings, device, resume=resume, report=report, grows=True)
    begun = session.newest_checkpoint()
    known = {} if begun is None else {**begun.arrays, **begun.meta.get("arrivals", begun.meta)}
    arrivals = Arrivals(source, datadir=settings.datadir, state=known)
    with session.running():
        state = None if begun is None else LoopState.from_checkpoint(begun, device)
        growing = _classification(session, settings, device, state)
        session.say(f"watching {source}; Ctrl-C ends")
        try:
            _take_arrivals(session, settings, arrivals, growing)
        except Stopped as stop:
            session.say(f"stopped by {stop}; --continue goes on watching")
        if growing.state is None:
            session.say("no particles arrived")


def _take_arrivals(
    session: RunSession, o: WatchSettings, arrivals: Arrivals, growing: GrowingClassification
) -> None:
    """Look, take in what came, write; until nothing has come for long."""
    last, told = time.monotonic(), set[str]()
    while not o.idle or time.monotonic() - last < 60 * o.idle:
        particles = arrivals.look()
        for why in [*arrivals.left_out.values(), *arrivals.notices]:
            if why not in told:
                told.add(why)
                typer.echo(f"warning: {with_flags(why)}", err=True)
        if particles is not None:
            particles = with_pixel_size(particles, o.pixel_size, "--pixel-size")
            session.accept(particles)
            session.begin(particles, f"{o.rounds} iterations", ctf=o.ctf_choice(), search_range_px=None)
            growing.take(particles)
            assert growing.state is not None
            session.save_checkpoint(_checkpoint_of(growing.state, arrivals))
            session.write(growing.result())
            last = time.monotonic()
        _sleep(o.poll, session.flag)


def _classification(
    session: RunSession, o: WatchSettings, device: torch.device, state: LoopState | None
) -> GrowingClassification:
    """The classification as the options have it, from `state` on."""
    from ralib.alignment.incremental import GrowingClassification, WatchOptions
    from ralib.alignment.options import AlignmentOptions

    alignment = AlignmentOptions(
        outer_radius=o.ou,
        inner_radius=o.ir,
        mirror=not o.nomirror,
        ctf=o.ctf_choice(),
        device=device,
        batch_size=o.batch,
    )
    options = WatchOptions(o.classes, o.per_class, (o.xr, o.xr), o.rounds, o.seed)
    return GrowingClassification(options, alignment, observer=session, state=state)


def _checkpoint_of(state: LoopState, arrivals: Arrivals) -> Checkpoint:
    """The classification, and which particles it has taken in."""
    from ralib.results.checkpoint import Checkpoint

    found, (rows, taken) = state.checkpoint(), arrivals.state()
    return Checkpoint(found.number, found.arrays | rows, found.meta | {"arrivals": taken})


def _sleep(seconds: float, flag: SignalFlag) -> None:
    """Wait, but not for long once a signal has come."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        flag.raise_if_set()
        time.sleep(min(0.1, seconds))
