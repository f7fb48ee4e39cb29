"""`ralib select`: the particles, the particles left out and the averages of part of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ralib.cli.common import show_warnings
from ralib.cli.external_job import external_job
from ralib.types import RalibError

_RUN = typer.Argument(
    metavar="RUN", help="A run's OUTDIR, or a RELION Class2D job (folder, *_data.star or *_optimiser.star)."
)
_CLASSES, _PARTICLES, _FILES = "Classes", "Particles", "Files"
MOST_LINES, LITTLE = 24, 0.1
"""Of more classes than these, only those are listed that lose more than this share of their members."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("select")(select)


def select(
    run: Annotated[Path, _RUN],
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SELECTION] [OUT]", help="selection.json from the report; new .star, .cs, .hdf or .lst."
        ),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option("--auto", help="Particles that the run recommends, with reasons.", rich_help_panel=_CLASSES),
    ] = False,
    classes: Annotated[
        str | None, typer.Option(help="Classes to keep, from 1: 1,4-9.", rich_help_panel=_CLASSES)
    ] = None,
    min_class_score: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="0..1", help="Classes of this score or better.", rich_help_panel=_CLASSES),
    ] = None,
    min_resolution: Annotated[
        float | None, typer.Option(min=0, help="Classes at this or better, A.", rich_help_panel=_CLASSES)
    ] = None,
    min_members: Annotated[
        int | None, typer.Option(min=0, help="Classes with at least so many particles.", rich_help_panel=_CLASSES)
    ] = None,
    max_junk: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="0..1", help="At most this probability to be junk.", rich_help_panel=_PARTICLES
        ),
    ] = None,
    min_posterior: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="0..1", help="At least this probability of their class.", rich_help_panel=_PARTICLES
        ),
    ] = None,
    min_fit: Annotated[
        float | None,
        typer.Option("--min-fit", "--min-score", help="At least this fit.", rich_help_panel=_PARTICLES),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="On any column or score, e.g. 'rlnDefocusU<20000', 'quality>=-1'; may be repeated.",
            rich_help_panel=_PARTICLES,
        ),
    ] = None,
    cap_per_class: Annotated[
        int | None, typer.Option(min=1, help="At most so many of a class, the best.", rich_help_panel=_PARTICLES)
    ] = None,
    rebalance: Annotated[
        bool,
        typer.Option(
            "--rebalance", help="At most as many of a class as the median class has.", rich_help_panel=_PARTICLES
        ),
    ] = False,
    remove_duplicates: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="A", help="Keep the best of picks closer than this, A.", rich_help_panel=_PARTICLES
        ),
    ] = None,
    out_option: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The same as OUT. [default: RUN/selected.star]", rich_help_panel=_FILES),
    ] = None,
    excluded: Annotated[
        Path | None, typer.Option(help="Also write the particles left out.", rich_help_panel=_FILES)
    ] = None,
    averages: Annotated[
        Path | None, typer.Option(help="Also write the averages kept, .mrcs or .hdf.", rich_help_panel=_FILES)
    ] = None,
    recenter: Annotated[
        bool,
        typer.Option("--recenter", help="Move picks onto their centres, to extract again.", rich_help_panel=_FILES),
    ] = False,
    split: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Write so many random parts instead of one.", rich_help_panel=_FILES),
    ] = None,
    datadir: Annotated[
        Path | None,
        typer.Option(help="Where the particle images lie, if not where the files say.", rich_help_panel=_FILES),
    ] = None,
    pipeline_control: Annotated[
        Path | None, typer.Option("--pipeline_control", help="RELION External job: its folder.", rich_help_panel=_FILES)
    ] = None,
) -> None:
    """Write the particles that are kept: by the report's selection file, or by rules (all of them must hold).

    Scores go along as columns (ralibJunk, ralibPosterior, ralibQuality, ralibClassScore ...).
    """
    from ralib.io.paths import name_for_project
    from ralib.results.selection import combine
    from ralib.results.selection_run import ParticleRules, write_selection
    from ralib.results.summary.figures import class_figures
    from ralib.results.summary.runs import open_run

    selection_file, out = _selection_and_out(files or [], out_option, run)
    rules = ParticleRules(tuple(where or ()), cap_per_class, rebalance, remove_duplicates)
    by_class = (classes, min_class_score, min_resolution, min_members, min_fit, max_junk, min_posterior)
    asked = auto or recenter or split is not None or rules != ParticleRules()
    if selection_file is None and by_class == (None,) * len(by_class) and not asked:
        raise RalibError("nothing to select by: give the report's selection.json, or --auto, --classes, --max-junk ...")
    outputs = _outputs(out, split, excluded, averages)
    nodes: dict[str, str] = {}
    with external_job(pipeline_control, nodes):
        opened = open_run(run, datadir=datadir)
        show_warnings(opened.particles.warnings)
        selection = combine(
            class_figures(opened),
            file=selection_file,
            classes=classes,
            auto=auto,
            min_resolution_A=min_resolution,
            min_members=min_members,
            min_class_score=min_class_score,
            min_fit=min_fit,
            max_junk=max_junk,
            min_posterior=min_posterior,
        )
        if auto:
            _check_automatic(opened.record)
        done = write_selection(
            opened, selection, rules, outputs=outputs, excluded=excluded, averages=averages, recenter=recenter
        )
        nodes |= {name_for_project(path): "ParticlesData.star.relion" for path in outputs}
        if averages is not None:
            nodes[name_for_project(averages)] = "Image2DStack.mrc.relion"
        _print(done.lines)


def _outputs(out: Path, split: int | None, excluded: Path | None, averages: Path | None) -> list[Path]:
    """The files of the particles kept, after a check of all files that will be written."""
    from ralib.results.selected_files import AVERAGE_FILES, check_distinct, check_output, split_names

    outputs = split_names(out, split) if split else [out]
    check_distinct(*outputs, excluded, averages)
    for path in [*outputs, *([excluded] if excluded else [])]:
        check_output(path)
    if averages is not None:
        check_output(averages, AVERAGE_FILES, "class averages")
    return outputs


def _check_automatic(record: dict[str, Any]) -> None:
    """What the automatic selection does with each class, and warnings about the run as a whole."""
    from ralib.cli.terminal import on_screen

    rows = record.get("classes") or []
    losing = [row for row in rows if _kept(row) < (1 - LITTLE) * row.get("members", 0)]
    for row in rows if len(rows) <= MOST_LINES else losing:
        typer.echo(on_screen(f"class {row['class']:3d}: {row.get('reason', '')}", len("class   1: ")))
    if len(rows) > MOST_LINES:
        typer.echo(f"{len(rows) - len(losing)} of {len(rows)} classes lose less than {LITTLE:.0%} of their members")
    if not (record.get("stability") or {}).get("believable", True):
        raise RalibError("--auto: the classes of this run are not believed, so nothing is kept: see the run's warnings")


def _kept(row: dict[str, Any]) -> int:
    """Members of a class that the automatic selection keeps."""
    return int(row.get("kept", row.get("members", 0) if row.get("selected") else 0))


def _print(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)


def _selection_and_out(files: list[Path], out_option: Path | None, run: Path) -> tuple[Path | None, Path]:
    """The selection file (a .json) and the output among the arguments."""
    selections = [f for f in files if f.suffix.lower() == ".json"]
    outputs = [f for f in files if f.suffix.lower() != ".json"] + ([out_option] if out_option else [])
    if len(selections) > 1 or len(outputs) > 1:
        raise RalibError("too many files: give RUN, at most one selection .json and one output")
    folder = run if run.is_dir() else run.parent
    return (selections or [None])[0], (outputs or [folder / "selected.star"])[0]  # type: ignore[list-item]
