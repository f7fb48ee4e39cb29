"""`ralib denoise`: particles restored by their CTF and what all have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ralib.cli.parsing import completed
from ralib.cli.particle_files import Datadir, Device, check_output, refuse_existing, save
from ralib.cli.restored_particles import Radius, StackWithCtf, filtered, opened_with_ctf
from ralib.types import ParticleSet, RalibError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("denoise")(denoise)


def denoise(
    stack: StackWithCtf,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New .star (with its .mrcs), .mrcs or .hdf.")],
    ctf: Annotated[
        str,
        typer.Option(
            "--output-ctf",
            help="kept: as taken, and the metadata stays true; corrected: undistorted, without CTF.",
            autocompletion=completed("kept", "corrected"),
        ),
    ] = "kept",
    radius: Radius = None,
    datadir: Datadir = None,
    device: Device = "auto",
) -> None:
    """Denoise raw particles by covariance Wiener filtering: each one by its own CTF and what all have in common."""
    from ralib.analysis.denoise import DenoisedSource

    if ctf not in ("kept", "corrected"):
        raise RalibError(f"--output-ctf {ctf}: give kept or corrected")
    check_output(out)
    refuse_existing(out, out.with_suffix(".mrcs"))
    particles, _, _ = opened_with_ctf(stack, datadir)
    model, scores = filtered(particles, radius, device)
    source = DenoisedSource(model, scores, particles, keep_ctf=ctf == "kept")
    if ctf == "kept":
        made = particles.replace(images=source)
    else:
        made = ParticleSet(source, pixel_size_A=particles.pixel_size_A, poses=particles.poses)
    typer.echo(f"{scores.shape[1]} components above the noise, within {model.radius_px_:.0f} px")
    save(out, made, "denoising")
