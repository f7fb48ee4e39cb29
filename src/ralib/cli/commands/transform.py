"""`ralib transform`: images as their class averages see them, the stored poses applied."""

from __future__ import annotations

from typing import Annotated

import typer

from ralib.cli.common import resolve_device
from ralib.cli.particle_files import (
    Datadir,
    Device,
    Out,
    PixelSize,
    Stack,
    opened,
    save,
    show_bad_images,
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("transform")(transform)


def transform(
    stack: Stack,
    out: Out,
    method: Annotated[str, typer.Option(help="Interpolation: cubic, quadratic (EMAN2's) or linear.")] = "cubic",
    pixel_size: PixelSize = None,
    datadir: Datadir = None,
    device: Device = "auto",
) -> None:
    """Apply the stored poses to the images (sxtransform2d): each comes out as its class average sees it."""
    from ralib.io import for_computing
    from ralib.particles.aligned_images import AlignedSource, align_particles

    particles = for_computing(opened(stack, datadir, pixel_size), ctf=False)
    aligned = align_particles(particles, method=method, device=resolve_device(device))
    bad: set[int] = set()
    source = aligned.images
    assert isinstance(source, AlignedSource)
    source.bad = bad
    save(out, aligned, "transforming", bad=bad)
    show_bad_images(bad, "not finite and became zero")
