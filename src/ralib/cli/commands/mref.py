"""`ralib mref`: class averages from particles and references. Options are those of sxmref_ali2d."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ralib.cli.alignment_options import AlignmentSettings, Center, Continue, Outdir, Report, Stack
from ralib.cli.parsing import LENGTH_UNITS, length
from ralib.cli.settings import CLASSES, RUNNING, SEARCH, command
from ralib.types import RalibError

if TYPE_CHECKING:
    from ralib.cli.alignment_run import AlignmentRun
    from ralib.types import RunResult


# fmt: off
@dataclass(frozen=True)
class MrefSettings(AlignmentSettings):
    """Options of `ralib mref`."""

    essential = frozenset(
        {"mask", "ou", "diameter", "xr", "maxit", "ctf_mode", "equal", "seed", "device", "pixel_size"}
    )
    xr: Annotated[
        Any, typer.Option("--xr", parser=length, metavar="LENGTH",
                          help=f"Shift range along x, {LENGTH_UNITS}. [default: a twentieth of "
                          "the box; 0 with --sparx]", rich_help_panel=SEARCH)
    ] = None
    yr: Annotated[
        Any, typer.Option("--yr", parser=length, metavar="LENGTH",
                          help="Along y, px or A. [default: as --xr]", rich_help_panel=SEARCH)
    ] = None
    ts: Annotated[
        Any, typer.Option("--ts", parser=length, metavar="LENGTH",
                          help="Grid step of the shifts, px or A; the best one is refined.",
                          rich_help_panel=SEARCH)
    ] = 1
    center: Center = 1
    maxit: Annotated[int, typer.Option("--maxit", help="Iterations.", rich_help_panel=RUNNING)] = 10
    equal: Annotated[
        bool, typer.Option("--EQ", help="Classes of equal size.", rich_help_panel=CLASSES)
    ] = False
    min_members: Annotated[
        int | None,
        typer.Option("--min-members", help="Reseed smaller classes; 0: never. [default: a twentieth of an equal "
                     "share, at least 4]", rich_help_panel=CLASSES),
    ] = None

    def stages(self, box: int, pixel_size_A: float | None) -> list[tuple[float, float, float]]:
        """Return (x range, y range, step) in pixels: one stage, for images of `box` pixels."""
        from ralib.cli.parsing import one_shift_range_px, shift_ranges

        reach = self.xr if self.xr is not None else 0 if self.sparx else one_shift_range_px(box)
        yr = None if self.yr is None else str(self.yr)
        return shift_ranges(str(reach), yr, str(self.ts), pixel_size_A)[:1]

    def check(self) -> None:
        """Raise RalibError for impossible options, or those that the chosen method would have to ignore."""
        super().check()
        if self.sparx and self.min_members is not None:
            raise RalibError(
                "--min-members: SPARX gives a class below 4 one random particle: leave it, or --sparx, out"
            )
# fmt: on


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "mref", mref)


def mref(
    context: typer.Context,
    stack: Stack,
    references: Annotated[
        str, typer.Argument(metavar="REFERENCES", help="Stack of references, or a number K: random averages.")
    ],
    outdir: Outdir,
    settings: MrefSettings,
    resume: Continue = False,
    report: Report = True,
) -> None:
    """Multi-reference alignment: class averages from particles and references."""
    from ralib.alignment.multi_reference import MultiReferenceAligner
    from ralib.cli.alignment_run import AlignmentRun

    run = AlignmentRun(
        "mref", stack, outdir, settings, references=references, resume=resume, report=report, began=context.obj
    )
    images = opened_references(references, run)
    ((x_range, y_range, step),) = run.stages
    with run.session.running():
        begun = run.begin(f"{settings.maxit} iterations", settings.maxit)
        if settings.sparx:
            result = _as_sparx(run, images, settings)
        else:
            aligner = MultiReferenceAligner(
                references=images, shift_range_xy_px=(x_range, y_range), shift_step_px=step,
                min_members=settings.min_members, equal_sizes=settings.equal, **run.aligner_options(),
            )  # fmt: skip
            result = aligner.fit(run.particles, observer=run.session, resume=begun).result_
        run.write(result)


def opened_references(text: str, run: AlignmentRun) -> Any:
    """Return images (k, n, n) of a file, or the number of random averages to begin with.

    Parameters
    ----------
    text : str
        The argument REFERENCES.
    run : AlignmentRun
        The run.

    Returns
    -------
    Any
        Images or number.

    Raises
    ------
    RalibError
        If the file has another pixel size than the particles.
    """
    from ralib.io import open_references

    if text.isdecimal() and not Path(text).exists():
        return int(text)
    own_A, box = run.particles.pixel_size_A, run.particles.box
    images, size_A = open_references(text)
    if size_A is None or own_A is None or abs(size_A - own_A) * box <= own_A:
        return images
    if size_A != 1.0:
        stack = text if Path(text).suffix.lower() != ".star" else "STACK"
        raise RalibError(
            f"{text} has {size_A:g} A/px, the particles {own_A:g} A/px: bring the references to the particles' "
            f"scale with 'ralib prepare {stack} OUT.mrcs --to-pixel-size {own_A:g}' (and --clip {box})"
        )
    run.session.say(  # 1 A/px is what programs write that do not know it
        f"warning: the header of {text} says 1 A/px, the particles have {own_A:g} A/px; they are "
        "compared pixel by pixel: make sure that the references are of the particles' scale"
    )
    return images


def _as_sparx(run: AlignmentRun, references: Any, o: MrefSettings) -> RunResult:
    """SPARX's own mref_ali2d."""
    from ralib.alignment.aligner import starting_poses
    from ralib.alignment.iteration import Alignment
    from ralib.alignment.multi_reference import random_averages
    from ralib.alignment.options import AlignmentOptions
    from ralib.sparx.mref import mref_ali2d

    ((x_range, y_range, step),) = run.stages
    options = run.sparx_options()
    if isinstance(references, int):
        alignment = Alignment(run.particles, AlignmentOptions(outer_radius=run.outer_radius_px, device=run.device))
        references = random_averages(alignment, starting_poses(run.particles), references, o.seed, x_range)
    return mref_ali2d(run.particles, references, xr=x_range, yr=y_range, ts=step, EQ=o.equal, **options)
