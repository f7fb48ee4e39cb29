"""Common parts of `denoise` and `neighbours`: particles with CTF, and the covariance Wiener filter fitted to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ralib.cli.common import at_work, resolve_device, show_warnings
from ralib.cli.parsing import LENGTH_UNITS, length, length_px
from ralib.types import ParticleSet, RalibError

StackWithCtf = Annotated[
    Path, typer.Argument(metavar="STACK", help="Any particle file ralib reads, with CTF parameters.")
]
Radius = Annotated[
    Any,
    typer.Option(
        parser=length, metavar="LENGTH", help=f"Of the disc that holds a particle, {LENGTH_UNITS}. [default: measured]"
    ),
]


def opened_with_ctf(stack: Path, datadir: Path | None) -> tuple[ParticleSet, np.ndarray, int]:
    """Open the particles of a file or of a finished run's folder; raises RalibError where their CTF is unknown.

    Particles whose CTF or pose is implausible are named and left out.

    Parameters
    ----------
    stack : Path
        File or folder.
    datadir : Path or None
        Folder of the image files.

    Returns
    -------
    ParticleSet
        The particles that can be used.
    ndarray of shape (m,)
        Their numbers in the file.
    int
        Number of particles in the file.
    """
    from ralib.io import for_computing, open_particles, usable_only
    from ralib.results.run_record import particle_file

    particles = open_particles(particle_file(stack), datadir=datadir)
    if particles.ctf is None or particles.pixel_size_A is None:
        raise RalibError(f"{stack} has no CTF parameters or no pixel size: both are needed to restore particles")
    particles = for_computing(particles, ctf=True)
    show_warnings(particles.warnings)
    return *usable_only(particles), len(particles)


def filtered(particles: ParticleSet, radius: float | str | None, device: str) -> tuple[Any, Any]:
    """Fit the covariance Wiener filter.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    radius : float, str or None
        Radius of the disc, pixels, or as `--radius` gives it; None measures it.
    device : str
        Where to compute.

    Returns
    -------
    Any
        The filter.
    array_like of shape (n, k)
        Scores of the particles.
    """
    from ralib.analysis.covariance_wiener import CovarianceWienerFilter

    radius_px = None if radius is None else length_px("--radius", radius, particles.pixel_size_A)
    if radius_px is not None and radius_px < 2:
        raise RalibError(f"--radius {radius} is {radius_px:g} px: give 2 px or more")
    model = CovarianceWienerFilter(radius_px=radius_px, device=resolve_device(device))
    with at_work("measuring what the particles have in common"):
        return model, model.fit_transform(particles)
