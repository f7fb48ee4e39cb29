"""`ralib classify`: classes from scratch. Parse, open, fit, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ralib.cli.align import BatchSize, Continue, Datadir, Device, NoMirror, Outdir, PixelSize, Report, Seed, Stack
from ralib.cli.settings import Settings, command
from ralib.types import RalibError

_CLASSES, _SEARCH, _RUN, _FILES = "Classes", "Search", "Running", "Files"


# fmt: off
@dataclass(frozen=True)
class ClassifySettings(Settings):
    """Options of `ralib classify`."""

    essential = frozenset({"classes", "diameter", "resolution", "search", "ctf", "seed", "device", "pixel_size"})
    classes: Annotated[
        int | None, typer.Option("--classes", help="How many. [default: one for each 100 particles up to 50, then one "
                                 "for each 400 up to 100]", rich_help_panel=_CLASSES)
    ] = None
    balance: Annotated[
        float, typer.Option("--balance", help="Pressure towards equal sizes: 0 none, 1 equal. A little keeps a class "
                            "from swallowing what others explain as well.", rich_help_panel=_CLASSES)
    ] = 0.3
    equal: Annotated[
        bool, typer.Option("--EQ", help="End with classes of equal size.", rich_help_panel=_CLASSES)
    ] = False
    diameter: Annotated[
        float | None, typer.Option("--diameter", help="Of the mask, A. [default: measured]",
                                   rich_help_panel=_SEARCH)
    ] = None
    resolution: Annotated[
        float | None, typer.Option("--resolution", help="Finest detail compared, A. [default: what the "
                                   "number of classes and the data support]", rich_help_panel=_SEARCH)
    ] = None
    low_limit: Annotated[
        float | None, typer.Option("--low-limit", help="Coarsest detail compared, A. [default: none]",
                                   rich_help_panel=_SEARCH)
    ] = None
    search: Annotated[
        float | None, typer.Option("--search", help="How far from the centre a particle may lie, px. "
                                   "[default: a tenth of the box]", rich_help_panel=_SEARCH)
    ] = None
    nomirror: NoMirror = False
    ctf: Annotated[
        str, typer.Option("--ctf", help="auto (on where the input has CTF parameters), on, off, or flipped (phases are "
                          "right already).", rich_help_panel=_SEARCH)
    ] = "auto"
    skip_align: Annotated[
        bool, typer.Option("--skip-align", help="Keep the poses the particles come with.", rich_help_panel=_SEARCH)
    ] = False
    reference_poses: Annotated[
        Path | None, typer.Option("--reference-poses", help="Poses for --skip-align to keep: .star, .cs, or a "
                                  "params.txt.", rich_help_panel=_SEARCH)
    ] = None
    helical: Annotated[bool, typer.Option("--helical", hidden=True)] = False
    from_: Annotated[
        Path | None, typer.Option("--from", help="Only the particles of a selection (the report's selection.json) of "
                                  "the run STACK. Files by 'ralib select' are stacks by themselves.",
                                  rich_help_panel=_FILES)
    ] = None
    split: Annotated[
        str | None, typer.Option("--split", help="Only members of these classes of the run STACK, e.g. 3 or 1,4-6: "
                                 "sorted into --classes new ones.", rich_help_panel=_CLASSES)
    ] = None
    stability: Annotated[
        int, typer.Option("--stability", min=0, help="Runs from other starts to compare with.", rich_help_panel=_RUN)
    ] = 0
    seed: Seed = 1000
    device: Device = "auto"
    batch: BatchSize = None
    datadir: Datadir = None
    pixel_size: PixelSize = None
# fmt: on


def register(app: typer.Typer) -> None:
    command(app, "classify", classify)


def classify(
    stack: Stack,
    outdir: Outdir,
    settings: ClassifySettings,
    split_states: Annotated[
        str | None, typer.Option("--split-states", metavar="K|auto", help="Divide each class of the finished run STACK "
                                 "into structural states at the poses it has, where the data supports it; no new "
                                 "classes.", rich_help_panel=_CLASSES)
    ] = None,
    resume: Continue = False,
    report: Report = True,
) -> None:  # fmt: skip
    """Classes from scratch: particles in, class averages out, no references.

    Writes what mref writes, and particle_scores.txt: posterior, fit, scale, explained share, detail, how far off
    centre it lies, agreement and junk score of each particle. Classes are explained in words in run.json and in the
    log.
    """
    if split_states is not None:
        from ralib.cli.states import split_states_of

        split_states_of(stack, outdir, split_states, seed=settings.seed, device=settings.device)
        return
    if settings.helical:
        raise RalibError("--helical: helical segments are not classified yet: extract them as single particles")
    if settings.reference_poses is not None and not settings.skip_align:
        raise RalibError("--reference-poses is for --skip-align: otherwise every pose is searched")
    from ralib.cli.classify_run import ClassifyRun
    from ralib.cli.common import resolve_device

    ClassifyRun(stack, outdir, settings, resolve_device(settings.device), resume=resume, report=report).execute()
