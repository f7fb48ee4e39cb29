"""`ralib denoise` and `ralib neighbours`: particles restored with their CTF, and those that show the same view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ralib.cli.common import DEVICE_HELP, resolve_device
from ralib.types import ParticleSet, RalibError

_STACK = typer.Argument(metavar="STACK", help="Any particle file ralib reads, with CTF parameters.")
_DATADIR = typer.Option(help="Where the images named in the file lie.")
_RADIUS = typer.Option(min=2, help="Of the disc that holds a particle, px. [default: measured]")


def register(app: typer.Typer) -> None:
    app.command("denoise")(denoise)
    app.command("neighbours")(neighbours)


def denoise(
    stack: Annotated[Path, _STACK],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New .star (with its .mrcs), .mrcs or .hdf.")],
    ctf: Annotated[
        str,
        typer.Option(
            "--output-ctf", help="kept: as taken, and the metadata stays true; corrected: undistorted, without CTF."
        ),
    ] = "kept",
    radius: Annotated[float | None, _RADIUS] = None,
    datadir: Annotated[Path | None, _DATADIR] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Denoise raw particles by covariance Wiener filtering: each one by its own CTF and what all have in common."""
    from ralib.analysis.denoise import DenoisedSource
    from ralib.cli.data import _check_output, _save

    if ctf not in ("kept", "corrected"):
        raise RalibError(f"--output-ctf {ctf}: give kept or corrected")
    _check_output(out)
    _refuse(out, out.with_suffix(".mrcs"))
    particles = _with_ctf(stack, datadir)
    model, scores = _filtered(particles, radius, device)
    source = DenoisedSource(model, scores, particles, keep_ctf=ctf == "kept")
    if ctf == "kept":
        made = particles.replace(images=source)
    else:
        made = ParticleSet(source, pixel_size_A=particles.pixel_size_A, poses=particles.poses)
    typer.echo(f"{scores.shape[1]} components above the noise, within {model.radius_px_:.0f} px")
    _save(out, made, "denoising")


def neighbours(
    stack: Annotated[Path, _STACK],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Neighbours of each particle.")] = 50,
    averages: Annotated[
        int, typer.Option(min=0, help="Averages of neighbours to write, of particles evenly spread.")
    ] = 50,
    radius: Annotated[float | None, _RADIUS] = None,
    datadir: Annotated[Path | None, _DATADIR] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 1000,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """For each particle those that show the same view, and how they lie: no references, no classes.

    Writes neighbours.npz (index from 0, psi_deg, mirror, correlation: one row a particle) and averages.mrcs with
    averages.txt.
    """
    from ralib.analysis.denoise import neighbour_averages
    from ralib.analysis.neighbours import find_neighbours, standardised_scores

    _refuse(out)
    particles = _with_ctf(stack, datadir)
    if count >= len(particles):
        raise RalibError(f"{count} neighbours among {len(particles)} particles: give 1 to {len(particles) - 1}")
    model, scores = _filtered(particles, radius, device)
    standard = standardised_scores(model, scores)
    found = find_neighbours(standard, model.order_, count, seed=seed, device=resolve_device(device))
    import numpy as np

    chosen = np.unique(np.linspace(0, len(particles) - 1, min(averages, len(particles))).astype(int))
    images = neighbour_averages(model, scores, found, chosen) if len(chosen) else None
    _write_neighbours(out, found, chosen, images, particles.pixel_size_A)
    typer.echo(f"wrote {out}: {count} neighbours of {len(particles):,} particles")


def _write_neighbours(out: Path, found: Any, chosen: Any, images: Any, pixel_size_A: float | None) -> None:
    """Everything into a new folder, which appears whole or not at all."""
    import numpy as np

    from ralib.cli.common import new_folder
    from ralib.io import write_mrcs

    with new_folder(out) as made:
        np.savez(
            made / "neighbours.npz",
            index=found.index,
            psi_deg=found.psi_deg.astype(np.float32),
            mirror=found.mirror,
            correlation=found.correlation.astype(np.float32),
        )
        if images is not None:
            write_mrcs(made / "averages.mrcs", images, pixel_size_A)
            np.savetxt(made / "averages.txt", chosen, fmt="%d", header="particle (from 0) of each average")


def _with_ctf(stack: Path, datadir: Path | None) -> ParticleSet:
    from ralib.io import open_particles
    from ralib.results.run_record import particle_file

    particles = open_particles(particle_file(stack), datadir=datadir)
    if particles.ctf is None or particles.pixel_size_A is None:
        raise RalibError(f"{stack} has no CTF parameters or no pixel size: both are needed to restore particles")
    return particles


def _filtered(particles: ParticleSet, radius: float | None, device: str) -> tuple[Any, Any]:
    """The covariance Wiener filter of these particles, and their scores."""
    from ralib.analysis.covariance_wiener import CovarianceWienerFilter

    model = CovarianceWienerFilter(radius_px=radius, device=resolve_device(device))
    return model, model.fit_transform(particles)


def _refuse(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise RalibError(f"{path} exists: remove it, or choose another name")
