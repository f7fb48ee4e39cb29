"""What `denoise` and `neighbours` share: particles with their CTF, and the covariance Wiener filter fitted to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ralib.cli.common import resolve_device
from ralib.types import ParticleSet, RalibError

StackWithCtf = Annotated[
    Path, typer.Argument(metavar="STACK", help="Any particle file ralib reads, with CTF parameters.")
]
Radius = Annotated[float | None, typer.Option(min=2, help="Of the disc that holds a particle, px. [default: measured]")]


def opened_with_ctf(stack: Path, datadir: Path | None) -> ParticleSet:
    """The particles of a file or of a finished run's folder; RalibError where their CTF is not known."""
    from ralib.io import open_particles
    from ralib.results.run_record import particle_file

    particles = open_particles(particle_file(stack), datadir=datadir)
    if particles.ctf is None or particles.pixel_size_A is None:
        raise RalibError(f"{stack} has no CTF parameters or no pixel size: both are needed to restore particles")
    return particles


def filtered(particles: ParticleSet, radius: float | None, device: str) -> tuple[Any, Any]:
    """The covariance Wiener filter of these particles, and their scores."""
    from ralib.analysis.covariance_wiener import CovarianceWienerFilter

    model = CovarianceWienerFilter(radius_px=radius, device=resolve_device(device))
    return model, model.fit_transform(particles)
