"""ralib bench: the engine's cases on this machine; no time without parity."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ralib.cli.common import DEVICE_HELP, resolve_device

PANEL_WHAT, PANEL_HOW = "What to measure", "How"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("bench")(bench)


def bench(
    cases: str = typer.Option(
        "reffree-xr1,reffree-xr3,mref-10",
        help="Cases, comma-separated; 'all' for every one, 'list' to see them.",
        rich_help_panel=PANEL_WHAT,
    ),
    particles: int = typer.Option(
        0, help="Particles timed; 0: 20,000 on a GPU, 500 on a CPU.", rich_help_panel=PANEL_WHAT
    ),
    parity_particles: int = typer.Option(
        0,
        help="Particles held against the exhaustive search; 0: 2,000 on a GPU, 200 on a CPU.",
        rich_help_panel=PANEL_WHAT,
    ),
    repeats: int = typer.Option(5, help="Iterations timed, of which the median is told.", rich_help_panel=PANEL_HOW),
    device: str = typer.Option("auto", help=DEVICE_HELP, rich_help_panel=PANEL_HOW),
    out: Annotated[
        Path | None, typer.Option(help="Folder for a JSON file of the results.", rich_help_panel=PANEL_HOW)
    ] = None,
) -> None:
    """Time one iteration of alignment, case by case.

    Every case first proves its answer: the fast search must find, for 99.9 % of the particles, a score within 1e-4 of
    the best that an exhaustive float64 search finds. A case that fails gets no time, and the exit status is 1.
    """
    from ralib.benchmarks.engine import CASES, run_cases
    from ralib.benchmarks.record import record, write_record
    from ralib.types import RalibError

    known = {case.name: case for case in CASES}
    if cases == "list":
        typer.echo("\n".join(known))
        return
    wanted = list(known) if cases == "all" else [name.strip() for name in cases.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise RalibError(f"--cases {unknown[0]!r} is unknown: choose from {', '.join(known)}")
    where = resolve_device(device)
    on_gpu = where.type == "cuda"
    rows = run_cases(
        [known[name] for name in wanted],
        where,
        n_particles=particles or (20_000 if on_gpu else 500),
        n_parity=parity_particles or (2_000 if on_gpu else 200),
        repeats=repeats,
        say=typer.echo,
    )
    if out is not None:
        typer.echo(f"wrote {write_record(out, record('engine', where, rows))}")
    if any(row["ours"] is None for row in rows):
        raise typer.Exit(1)
