"""`ralib reffree`: all particles onto their own average. Options are those of sxali2d."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from ralib.cli.alignment_options import AlignmentSettings, Center, Continue, Outdir, Report, Stack
from ralib.cli.settings import AVERAGES, RUNNING, SEARCH, command
from ralib.types import RalibError

if TYPE_CHECKING:
    from ralib.cli.alignment_run import AlignmentRun
    from ralib.types import RunResult


# fmt: off
@dataclass(frozen=True)
class ReffreeSettings(AlignmentSettings):
    """Options of `ralib reffree`."""

    essential = frozenset({"mask", "ou", "diameter", "xr", "maxit", "ctf_mode", "seed", "device", "pixel_size"})
    xr: Annotated[
        str | None, typer.Option("--xr", help="Shift range along x of each stage, px, e.g. '4 2 1', or with a unit: "
                                 "'10A 5A'. [default: falling from a sixteenth of the box]", rich_help_panel=SEARCH)
    ] = None
    yr: Annotated[
        str | None, typer.Option("--yr", help="Along y, px or A. [default: as --xr]", rich_help_panel=SEARCH)
    ] = None
    ts: Annotated[
        str | None, typer.Option("--ts", help="Grid step of each stage, px or A; the best one is refined. [default: "
                                 "half the range, at most 2]", rich_help_panel=SEARCH)
    ] = None
    dst: Annotated[
        float, typer.Option("--dst", help="Discrete angle of every fourth iteration, degrees; "
                            "with --sparx only.", rich_help_panel=SEARCH)
    ] = 0.0
    mode: Annotated[
        str, typer.Option("--mode", help="F: full rings; H: half rings, with --sparx only.",
                          rich_help_panel=SEARCH)
    ] = "F"
    randomize: Annotated[
        bool, typer.Option("--randomize", help="Start from random rotations.", rich_help_panel=SEARCH)
    ] = False
    random_method: Annotated[
        str, typer.Option("--random_method", help="SHC or SCF, with --sparx only. SCF counts a shift once, and "
                          "where SPARX finds no peak in the range and shifts nothing, takes the highest value there.",
                          rich_help_panel=SEARCH)
    ] = ""
    center: Center = -1
    maxit: Annotated[
        int, typer.Option("--maxit", help="Iterations a stage; 0: up to 10, ending when the criterion "
                          "falls.", rich_help_panel=RUNNING)
    ] = 0
    fourvar: Annotated[
        bool, typer.Option("--Fourvar", help="Divide the average by its Fourier variance.",
                           rich_help_panel=AVERAGES)
    ] = False

    def stages(self, box: int, pixel_size_A: float | None) -> list[tuple[float, float, float]]:
        """Return (x range, y range, step) in pixels of each stage, for images of `box` pixels."""
        from ralib.cli.parsing import SPARX_STAGES, falling_shift_ranges_px, shift_ranges

        if self.xr is None and self.ts is None:
            reach, step = SPARX_STAGES if self.sparx else falling_shift_ranges_px(box)
            return shift_ranges(reach, self.yr, step, pixel_size_A)
        reach = self.xr or SPARX_STAGES[0]
        as_sparx = self.ts is None and len(reach.replace(",", " ").split()) == len(SPARX_STAGES[1].split())
        return shift_ranges(reach, self.yr, SPARX_STAGES[1] if as_sparx else self.ts, pixel_size_A)

    def check(self) -> None:
        """Raise RalibError for impossible options, or those that the chosen method would have to ignore."""
        super().check()
        given = (("--dst", self.dst, 0.0), ("--mode", self.mode, "F"), ("--random_method", self.random_method, ""))
        for name, value, neutral in given:
            if value != neutral and not self.sparx:
                raise RalibError(
                    f"{name} {value} changes SPARX's ring search; here every angle is searched in every iteration: "
                    "leave it out, or add --sparx"
                )
# fmt: on


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "reffree", reffree)


def reffree(
    context: typer.Context,
    stack: Stack,
    outdir: Outdir,
    settings: ReffreeSettings,
    resume: Continue = False,
    report: Report = True,
) -> None:
    """Reference-free alignment: all particles onto their own average."""
    from ralib.alignment.reference_free import ReferenceFreeAligner
    from ralib.cli.alignment_run import AlignmentRun

    run = AlignmentRun("reffree", stack, outdir, settings, resume=resume, report=report, began=context.obj)
    with run.session.running():
        begun = run.begin(f"{len(run.stages)} stage{'s' * (len(run.stages) > 1)} of falling shift range")
        if settings.sparx:
            result = _as_sparx(run, settings)
        else:
            aligner = ReferenceFreeAligner(
                stages=run.stages, randomize=settings.randomize, fourier_variance=settings.fourvar,
                **run.aligner_options(),
            )  # fmt: skip
            result = aligner.fit(run.particles, observer=run.session, resume=begun).result_
        run.write(result)


def _as_sparx(run: AlignmentRun, o: ReffreeSettings) -> RunResult:
    """SPARX's own ali2d."""
    from ralib.sparx.ali2d import ali2d

    x_text, y_text, step_text = (" ".join(f"{v:g}" for v in column) for column in zip(*run.stages, strict=True))
    return ali2d(
        run.particles, xr=x_text, yr=y_text, ts=step_text, dst=o.dst, Fourvar=o.fourvar, mode=o.mode,
        randomize=o.randomize, random_method=o.random_method, **run.sparx_options(),
    )  # fmt: skip
