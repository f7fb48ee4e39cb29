"""`ralib external`: any of our runs as an External job of RELION, with the files by which RELION follows it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ralib.cli.external_job import aborted_by, external_job
from ralib.types import RalibError

NODE_TYPES = {
    "particles.star": "ParticlesData.star.relion",
    "class_averages.mrcs": "Image2DStack.mrc.relion",
    "relion_optimiser.star": "ProcessData.star.relion.optimiser.class2d",
    "relion_model.star": "ModelData.star.relion.class2d",
    "report.html": "LogFile.html.ralib",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("external", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(external)


def external(
    ctx: typer.Context,
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="mref, reffree or classify.")],
    out: Annotated[Path, typer.Option("--o", help="The job's folder; RELION gives it.")],
    in_parts: Annotated[Path, typer.Option("--in_parts", help="Particle STAR file; RELION gives it.")],
    references: Annotated[str | None, typer.Option("--references", help="mref: stack of references, or K.")] = None,
    threads: Annotated[int | None, typer.Option("--j", min=1, help="Threads; RELION gives them.")] = None,
    pipeline_control: Annotated[Path | None, typer.Option("--pipeline_control", hidden=True)] = None,
) -> None:
    """Run COMMAND as a RELION External job; all other options go to COMMAND.

    In RELION's External job, the executable is `ralib external mref`, the input is a particle STAR file, and the
    parameters are options without their dashes (references, ou, xr, maxit, ...). The run lands in the job's folder
    under run/; a continued job goes on with it.
    """
    import torch

    from ralib.cli import main

    if command not in ("mref", "reffree", "classify"):
        raise RalibError(f"external {command}: only mref, reffree and classify run as RELION jobs")
    if command == "mref" and references is None:
        raise RalibError("external mref needs references: add a parameter 'references', a stack or a number K")
    if threads is not None:
        torch.set_num_threads(threads)
    folder, run = pipeline_control or out, out / "run"
    folder.mkdir(parents=True, exist_ok=True)
    given = [references] if references is not None else []
    resume = ["--continue"] if (run / "run.json").is_file() and "--continue" not in ctx.args else []
    nodes: dict[str, str] = {}
    with external_job(folder, nodes), aborted_by(folder):
        if not _finished(run):
            status = main([command, str(in_parts), *given, str(run), *ctx.args, *resume])
            if status:
                raise typer.Exit(status)
        nodes |= {str(run / name): kind for name, kind in NODE_TYPES.items() if (run / name).is_file()}


def _finished(run: Path) -> bool:
    try:
        return json.loads((run / "run.json").read_text()).get("state") == "finished"
    except (OSError, ValueError, AttributeError):
        return False
