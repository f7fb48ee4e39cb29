"""Looking at a finished run and going on with part of it: report, select, view; and runs as RELION jobs: external."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ralib.cli.common import DEVICE_HELP, resolve_device
from ralib.cli.external import external, external_job
from ralib.cli.view import view
from ralib.types import RalibError

_RUN = typer.Argument(metavar="RUN", help="A run's OUTDIR, or a RELION Class2D job (folder or *_data.star).")
_DATADIR = typer.Option(help="Where the particle images lie, if not where the files say.")
_CONTROL = typer.Option("--pipeline_control", help="RELION External job: folder for its exit and node files.")


def register(app: typer.Typer) -> None:
    app.command("report")(report)
    app.command("select")(select)
    app.command("view")(view)
    app.command("external", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(external)


def report(
    run: Annotated[Path, _RUN],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Page to write. [default: RUN/report.html]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same figures as JSON, write no page.")] = False,
    max_points: Annotated[int, typer.Option(min=0, max=50_000, help="Particles drawn in the map.")] = 10_000,
    datadir: Annotated[Path | None, _DATADIR] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    pipeline_control: Annotated[Path | None, _CONTROL] = None,
) -> None:
    """Write one HTML file that shows everything about a run and needs nothing else: no network, no ralib."""
    from ralib.results.summary import report_json, write_report

    if as_json:
        typer.echo(json.dumps(report_json(run, datadir=datadir, max_points=max_points), allow_nan=False))
        return
    nodes: dict[str, str] = {}
    with external_job(pipeline_control, nodes):
        page = write_report(run, out, max_points=max_points, device=resolve_device(device), datadir=datadir)
        typer.echo(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")


def select(
    run: Annotated[Path, _RUN],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[SELECTION] [OUT]", help="selection.json from the report; new .star, .cs or .hdf."),
    ] = None,
    out_option: Annotated[
        Path | None, typer.Option("--out", "-o", help="The same as OUT. [default: RUN/selected.star]")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="Classes to keep, from 1: 1,4-9.")] = None,
    min_resolution: Annotated[float | None, typer.Option(min=0, help="Classes at this or better, A.")] = None,
    min_members: Annotated[int | None, typer.Option(min=0, help="Classes with at least so many particles.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Particles with at least this score.")] = None,
    datadir: Annotated[Path | None, _DATADIR] = None,
    pipeline_control: Annotated[Path | None, _CONTROL] = None,
) -> None:
    """Write the particles of the chosen classes, by the report's selection file or by rules (all of them must hold)."""
    from ralib.io.paths import name_for_project
    from ralib.results.selection import check_output, combine, selected_rows, write_selected
    from ralib.results.summary.figures import class_figures
    from ralib.results.summary.runs import open_run

    selection_file, out = _selection_and_out(files or [], out_option, run)
    if selection_file is None and (classes, min_resolution, min_members, min_score) == (None,) * 4:
        raise RalibError("nothing to select by: give the report's selection.json, or --classes, --min-members, ...")
    check_output(out)
    nodes: dict[str, str] = {}
    with external_job(pipeline_control, nodes):
        opened = open_run(run, datadir=datadir)
        selection = combine(
            class_figures(opened),
            file=selection_file,
            classes=classes,
            min_resolution_A=min_resolution,
            min_members=min_members,
            min_score=min_score,
        )
        rows = selected_rows(opened.poses, selection)
        write_selected(opened.particles, rows, out, n_classes=opened.n_classes)
        nodes[name_for_project(out)] = "ParticlesData.star.relion"
        total = f"{opened.members.sum()} particles in {len(selection.classes)} of {opened.n_classes} classes"
        typer.echo(f"kept {len(rows)} of {total}: wrote {out}")


def _selection_and_out(files: list[Path], out_option: Path | None, run: Path) -> tuple[Path | None, Path]:
    """The selection file (a .json) and the output among the arguments."""
    selections = [f for f in files if f.suffix.lower() == ".json"]
    outputs = [f for f in files if f.suffix.lower() != ".json"] + ([out_option] if out_option else [])
    if len(selections) > 1 or len(outputs) > 1:
        raise RalibError("too many files: give RUN, at most one selection .json and one output")
    folder = run if run.is_dir() else run.parent
    return (selections or [None])[0], (outputs or [folder / "selected.star"])[0]  # type: ignore[list-item]
