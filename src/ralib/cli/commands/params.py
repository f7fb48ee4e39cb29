"""`ralib params`: poses as text, out of particle files and into them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ralib.cli.common import show_warnings
from ralib.cli.particle_files import (
    Datadir,
    Stack,
    poses_of,
    refuse_existing,
)
from ralib.types import ParticleSet, Poses, RalibError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("params")(params)


def params(
    stack: Stack,
    export_to: Annotated[
        Path | None, typer.Option("--export", help="Write the stored poses to this text file.")
    ] = None,
    import_from: Annotated[Path | None, typer.Option("--import", help="Take poses from this text file.")] = None,
    form: Annotated[
        str,
        typer.Option(
            help="--export writes rows 'idx alpha sx sy mirror class' (class) or "
            "'alpha sx sy mirror scale' (sxheader); --import tells them apart."
        ),
    ] = "class",
    out: Annotated[Path | None, typer.Option(help="--import: new .star file, the input with these poses.")] = None,
    write_headers: Annotated[
        bool, typer.Option("--write-headers", help="--import: change STACK itself (EMAN2 HDF only).")
    ] = False,
    datadir: Datadir = None,
) -> None:
    """Poses out of and into particle files, as text in EMAN2's convention (sxheader)."""
    from ralib.io import open_particles, read_params, write_params
    from ralib.io.plausible import named, sound_poses
    from ralib.results.run_record import particle_file

    if (export_to is None) == (import_from is None):
        raise RalibError("give one of --export FILE and --import FILE")
    particles = open_particles(particle_file(stack), datadir=datadir, require_images=False)
    show_warnings(particles.warnings)
    if export_to is not None:
        refuse_existing(export_to)
        write_params(export_to, poses_of(particles, stack), form=form)
        typer.echo(f"wrote {export_to}: {len(particles)} poses")
        return
    assert import_from is not None
    poses = read_params(import_from, class_index=None if particles.poses is None else particles.poses.class_index)
    if len(poses) != len(particles):
        raise RalibError(f"{import_from} holds {len(poses)} poses, {stack} {len(particles)} particles")
    bad = sound_poses(poses, particles.box)[1]
    if bad.any():
        raise RalibError(f"{import_from}: {named(bad)} of an angle or shift that cannot be meant: correct them")
    _store_poses(stack, particles, poses, out, write_headers)


def _store_poses(stack: Path, particles: ParticleSet, poses: Poses, out: Path | None, in_place: bool) -> None:
    from ralib.io import write_headers, write_particles_star

    if in_place == (out is not None):
        raise RalibError("--import: give --out NEW.star, or --write-headers to change an EMAN2 HDF stack itself")
    if out is None:
        write_headers(stack, poses)
        typer.echo(f"changed {stack}: {len(poses)} poses")
        return
    if out.suffix.lower() != ".star":
        raise RalibError(f"--out {out}: poses are written into a .star file")
    refuse_existing(out)
    write_particles_star(out, particles, poses)
    typer.echo(f"wrote {out}: {len(poses)} poses")
