"""`ralib compare`: two classifications of the same particles beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ralib.cli.common import at_work, show_warnings
from ralib.cli.terminal import on_screen

_PICTURES = (".png", ".pdf", ".svg")
_RUN_HELP = "A run's OUTDIR, or a 2D classification of RELION or cryoSPARC (folder or particle file)."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compare")(compare)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help=_RUN_HELP)],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another of the same particles.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Picture of the flow to write: .png, .pdf or .svg.")
    ] = None,
    only_a: Annotated[Path | None, typer.Option(help="Write the particles that only RUN_A keeps.")] = None,
    only_b: Annotated[Path | None, typer.Option(help="Write the particles that only RUN_B keeps.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON instead.")] = False,
    datadir: Annotated[
        Path | None, typer.Option(help="Where the particle images lie, if not where the files say.")
    ] = None,
) -> None:
    """Compare two classifications: matched classes, agreement, and what each keeps that the other drops.

    A run keeps the classes of its automatic selection, else all its classes.
    """
    from ralib.results.comparison import compare as compare_runs
    from ralib.results.comparison import comparison_lines
    from ralib.results.comparison_picture import write_comparison_picture
    from ralib.results.selected_files import check_distinct, check_output, write_selected
    from ralib.results.summary.runs import open_run

    check_distinct(out, only_a, only_b)
    if out is not None:
        check_output(out, _PICTURES, "pictures")
    for path in (only_a, only_b):
        if path is not None:
            check_output(path)
    a, b = open_run(run_a, datadir=datadir), open_run(run_b, datadir=datadir)
    names = _name(a.path), _name(b.path)  # of a RELION job the file of the iteration that is read
    if not as_json:
        show_warnings((*a.particles.warnings, *b.particles.warnings))
    with at_work("comparing"):
        found = compare_runs(a, b)
    alone = (found.kept_a & ~found.kept_b, found.kept_b & ~found.kept_a)
    wanted = [(only_a, a, found.rows_a, alone[0], names[0]), (only_b, b, found.rows_b, alone[1], names[1])]
    lines = comparison_lines(found, *names)
    for path, run, rows, mine, name in wanted:
        if path is not None and not mine.any():
            lines.append(f"no particle is kept only by {name}: {path} is not written")
        elif path is not None:
            write_selected(run.particles, rows[mine], path, n_classes=run.n_classes, scores=run.scores)
            lines.append(f"wrote {path}: {int(mine.sum())} particles")
    if out is not None:
        with at_work("drawing"):
            write_comparison_picture(found, a, b, names, out)
        lines.append(f"wrote {out}")
    typer.echo(json.dumps(found.figures(), allow_nan=False) if as_json else "\n".join(map(on_screen, lines)))


def _name(path: Path) -> str:
    """A run's folder, or of a particle file the folder and the file's own name."""
    full = path.resolve()
    return full.name if full.is_dir() else f"{full.parent.name}/{full.name}"
