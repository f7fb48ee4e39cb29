"""`ralib report`: the page of a run, and its server."""

from __future__ import annotations

import contextlib
import json
import platform
from pathlib import Path
from typing import Annotated

import typer

from ralib.cli.common import DEVICE_HELP, resolve_device
from ralib.cli.external_job import external_job
from ralib.types import RalibError

_RUN = typer.Argument(
    metavar="RUN", help="A run's OUTDIR, or a RELION Class2D job (folder, *_data.star or *_optimiser.star)."
)
_DATADIR = typer.Option(help="Where the particle images lie, if not where the files say.")
_CONTROL = typer.Option("--pipeline_control", help="RELION External job: folder for its exit and node files.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("report")(report)


def report(
    run: Annotated[Path, _RUN],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Page to write. [default: RUN/report.html]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same figures as JSON, write no page.")] = False,
    max_points: Annotated[int, typer.Option(min=0, max=50_000, help="Particles drawn in the map.")] = 10_000,
    datadir: Annotated[Path | None, _DATADIR] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "cpu",
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page here, live, so that it can write what is selected in it.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of --serve; 0: any free one.")] = 0,
    pipeline_control: Annotated[Path | None, _CONTROL] = None,
) -> None:
    """Write one HTML file that shows everything about a run and needs nothing else: no network, no ralib.

    With --serve the page comes from a server on this machine instead (127.0.0.1 only): it follows a run that goes on,
    and writes the particles kept, the particles left out and the averages kept into RUN/selections.
    """
    from ralib.results.summary import report_json, write_report

    if serve:
        _serve(run, port, datadir, max_points)
        return
    if as_json:
        typer.echo(json.dumps(report_json(run, datadir=datadir, max_points=max_points), allow_nan=False))
        return
    if out is not None and out.is_dir():
        raise RalibError(f"--out {out} is a folder: name the page to write, such as {out / 'report.html'}")
    nodes: dict[str, str] = {}
    with external_job(pipeline_control, nodes):
        page = write_report(run, out, max_points=max_points, device=resolve_device(device), datadir=datadir)
        typer.echo(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB)")


def _serve(run: Path, port: int, datadir: Path | None, max_points: int) -> None:
    from ralib.results.report_server import serve_report

    def ready(address: str) -> None:
        number = address.split(":")[2].split("/")[0]
        typer.echo(f"report: {address}  (Ctrl-C ends it)")
        typer.echo(f"from another machine first: ssh -L {number}:127.0.0.1:{number} {platform.node()}")

    with contextlib.suppress(KeyboardInterrupt):
        serve_report(run, port=port, datadir=datadir, max_points=max_points, ready=ready)
    typer.echo("server stopped")
