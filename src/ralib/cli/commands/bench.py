"""`ralib bench`: the engine's cases on this machine; a time is reported only after the parity check."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ralib.cli.common import DEVICE_HELP, resolve_device
from ralib.types import RalibError

PANEL_WHAT, PANEL_HOW, PANEL_RANKS = "What to measure", "How", "Several GPUs"
MOST = 10**9
"""Of anything that is counted: beyond it numbers are typing errors."""


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
        0, help="Particles timed; 0: 20,000 on a GPU, 4,000 on a CPU.", rich_help_panel=PANEL_WHAT
    ),
    parity_particles: int = typer.Option(
        0,
        help="Particles held against the exhaustive search; 0: 2,000 on a GPU, 200 on a CPU.",
        rich_help_panel=PANEL_WHAT,
    ),
    repeats: int = typer.Option(
        0,
        help="Iterations timed, of which the median is shown; 0: 5, or 3 with --distributed.",
        rich_help_panel=PANEL_HOW,
    ),
    device: str = typer.Option("auto", help=DEVICE_HELP, rich_help_panel=PANEL_HOW),
    out: Annotated[
        Path | None, typer.Option(help="Folder for a JSON file of the results.", rich_help_panel=PANEL_HOW)
    ] = None,
    peers: bool = typer.Option(
        True,
        "--peers/--no-peers",
        help="Also time RELION and EMAN2, where they are installed, on the same particles, one thread each.",
        rich_help_panel=PANEL_WHAT,
    ),
    curves: bool = typer.Option(
        False,
        "--curves",
        help="Time against particles, references and shift range, instead of the cases.",
        rich_help_panel=PANEL_WHAT,
    ),
    distributed: bool = typer.Option(
        False,
        "--distributed",
        help="Seconds an iteration on 1, 2, 4 ... GPUs (processes on a CPU), instead of the cases; --particles 0: "
        "1,000,000, or 1,000 on a CPU.",
        rich_help_panel=PANEL_RANKS,
    ),
    box: int = typer.Option(0, help="Box, px; 0: 128, or 32 on a CPU.", rich_help_panel=PANEL_RANKS),
    references: int = typer.Option(0, help="References; 0: 200, or 8 on a CPU.", rich_help_panel=PANEL_RANKS),
    ranks: int = typer.Option(
        0,
        help="Most processes; 0: one a GPU, two on a CPU. torchrun decides where it started them.",
        rich_help_panel=PANEL_RANKS,
    ),
) -> None:
    """Time one iteration of alignment, case by case.

    Every case first proves its answer: the fast search must find, for 99.9 % of the particles, a score within 1e-4 of
    the best that an exhaustive float64 search finds. A case that fails gets no time, and the exit status is 1.
    """
    counts = {"--particles": particles, "--parity-particles": parity_particles, "--repeats": repeats}
    for option, count in (counts | {"--box": box, "--references": references, "--ranks": ranks}).items():
        if not 0 <= count <= MOST:
            raise RalibError(f"{option} {count}: give a number from 1, or 0 for the usual one")
    if distributed:
        _distributed(particles, box, references, repeats, ranks, device, out)
        return
    if curves:
        _curves(parity_particles, repeats, device, out)
        return
    _cases(cases, particles, parity_particles, repeats, device, out, peers=peers)


def _cases(
    cases: str, particles: int, parity_particles: int, repeats: int, device: str, out: Path | None, *, peers: bool
) -> None:
    """The cases one by one, then what other programs need for the same."""
    from ralib.benchmarks.engine import CASES, run_cases
    from ralib.benchmarks.record import record, write_record

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
    measured = run_cases(
        [known[name] for name in wanted],
        where,
        n_particles=particles or (20_000 if on_gpu else 4_000),
        n_parity=parity_particles or (2_000 if on_gpu else 200),
        repeats=repeats or 5,
        say=typer.echo,
    )
    others = (row for name in wanted for row in _peers(known[name])) if peers else iter(())
    rows: list[dict[str, Any]] = []
    written = None
    for row in itertools.chain(measured, others):
        rows.append(row)
        if out is not None:  # after every row: what is stopped half way is not lost
            written = write_record(out, record("engine", where, rows))
    _show(rows)
    if written is not None:
        typer.echo(f"wrote {written}")
    if any(row["ours"] is None for row in rows if row["case"] in known):
        raise typer.Exit(1)


def _peers(case: Any) -> Iterator[dict[str, Any]]:
    """Rows of the programs that are installed."""
    from ralib.benchmarks.peers import installed_peers, peer_row

    for peer in installed_peers():
        with tempfile.TemporaryDirectory() as folder:
            row = peer_row(peer, case, Path(folder))
        measured = f"{row['other']:,.0f} us a particle" if row["other"] is not None else "no time"
        typer.echo(f"{row['case']}: {measured}; {row['parity']}; ran {shlex.join(row['command'])}")
        yield row


def _show(rows: list[dict[str, Any]]) -> None:
    """All rows as one table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title_justify="left")
    for name in ("case", "us a particle", "goal", "floor", "parity"):
        table.add_column(name, justify="left" if name in ("case", "parity") else "right", overflow="fold")
    for row in rows:
        numbers = (row["ours"] if row["ours"] is not None else row["other"], row.get("goal"), row.get("floor_us"))
        shown = ("" if not isinstance(n, int | float) else f"{n:,.0f}" if n >= 100 else f"{n:.2f}" for n in numbers)
        table.add_row(row["case"], *shown, row["parity"])
    Console().print(table)


def _curves(n_parity: int, repeats: int, device: str, out: Path | None) -> None:
    """Time against N, R and the shift range."""
    from ralib.benchmarks.curves import CPU_SWEEP, GPU_SWEEP, run_curves, slopes
    from ralib.benchmarks.record import record, write_record

    where = resolve_device(device)
    on_gpu = where.type == "cuda"
    sweep = GPU_SWEEP if on_gpu else CPU_SWEEP
    rows: list[dict[str, Any]] = []
    written = None
    n_parity = n_parity or (1_000 if on_gpu else 50)
    for row in run_curves(sweep, where, n_parity=n_parity, repeats=repeats or 3, say=typer.echo):
        rows.append(row)
        if out is not None:  # after every point: what is stopped half way is not lost
            written = write_record(out, record("curves", where, [*rows, *slopes(rows)]))
    for row in slopes(rows):
        typer.echo(f"{row['case']} {row['ours']:.2f}")
    if written is not None:
        typer.echo(f"wrote {written}")
    if any(row["ours"] is None for row in rows):
        raise typer.Exit(1)


def _distributed(
    particles: int, box: int, references: int, repeats: int, n_ranks: int, device: str, out: Path | None
) -> None:
    """The scaling curve; starts the processes where nobody has."""
    from ralib.runtime.distributed import join, launch, launched

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    n_ranks = n_ranks or (2 if on_cpu else torch.cuda.device_count())
    if n_ranks > 1 and not launched():
        raise typer.Exit(launch(n_ranks, sys.argv[1:]))
    from ralib.benchmarks.distributed import efficiency_rows, run_counts
    from ralib.benchmarks.made_images import Workload, described
    from ralib.benchmarks.record import record, write_record

    everyone, where = join(), resolve_device(device)
    workload = Workload(
        particles or (1_000 if on_cpu else 1_000_000),
        box or (32 if on_cpu else 128),
        references or (8 if on_cpu else 200),
        repeats=repeats or 3,
    )
    rows = run_counts(workload, everyone, where, say=typer.echo if everyone.rank == 0 else _silent)
    if everyone.rank != 0:
        return
    if out is not None:
        about = {"workload": described(workload), "nvls": os.environ.get("NCCL_NVLS_ENABLE")}
        efficiencies = efficiency_rows(rows, on_gpu=where.type == "cuda")
        result = record(f"distributed-{everyone.size}", where, [*rows, *efficiencies], **about)
        typer.echo(f"wrote {write_record(out, result)}")
    if not all(row["same"] for row in rows):
        typer.echo("the counts do not end alike", err=True)
        raise typer.Exit(1)


def _silent(_: str) -> None:
    return None
