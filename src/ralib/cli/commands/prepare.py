"""`ralib prepare`: particles cut, phase-flipped, Fourier-cropped, inverted, normalised and masked."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ralib.cli.common import resolve_device, show_warnings
from ralib.cli.parsing import completed, length, length_px
from ralib.cli.particle_files import (
    Datadir,
    Device,
    Out,
    Stack,
    check_output,
    opened,
    save,
    show_bad_images,
)
from ralib.types import ParticleSet, RalibError

if TYPE_CHECKING:
    from ralib.particles.preparation import Preparation

_IMAGE, _GREY = "Size and CTF", "Grey values"
_UNITS = "px of the result, or with a unit: 12px, 30A"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("prepare")(prepare)


def prepare(
    stack: Stack,
    out: Out,
    box: Annotated[
        int | None, typer.Option(help="Fourier-crop or pad to this box, px.", rich_help_panel=_IMAGE)
    ] = None,
    to_pixel_size: Annotated[
        float | None,
        typer.Option("--to-pixel-size", help="Fourier-crop to about this pixel size, A/px.", rich_help_panel=_IMAGE),
    ] = None,
    clip: Annotated[
        int | None, typer.Option(help="First cut or pad to this box in real space, px.", rich_help_panel=_IMAGE)
    ] = None,
    phase_flip: Annotated[
        bool, typer.Option("--phase-flip", help="Set the CTF's signs right.", rich_help_panel=_IMAGE)
    ] = False,
    invert: Annotated[
        bool, typer.Option("--invert", help="Turn the contrast round: protein must end bright.", rich_help_panel=_GREY)
    ] = False,
    normalise: Annotated[
        str,
        typer.Option(
            "--normalise",
            "--normalize",
            help="background (mean 0, sd 1 outside a circle, no ramp), variance (of the whole image) or none.",
            autocompletion=completed("background", "variance", "none"),
            rich_help_panel=_GREY,
        ),
    ] = "none",
    background_radius: Annotated[
        Any,
        typer.Option(
            parser=length,
            metavar="LENGTH",
            help=f"That circle, {_UNITS}. [default: 3/4 of half the box]",
            rich_help_panel=_GREY,
        ),
    ] = None,
    mask_radius: Annotated[
        Any,
        typer.Option(
            parser=length, metavar="LENGTH", help=f"Fade to 0 beyond this radius, {_UNITS}.", rich_help_panel=_GREY
        ),
    ] = None,
    mask_edge: Annotated[
        Any,
        typer.Option(
            parser=length, metavar="LENGTH", help=f"Width of that fade, {_UNITS}. [default: 5]", rich_help_panel=_GREY
        ),
    ] = None,
    remove_duplicates: Annotated[
        float | None,
        typer.Option(
            "--remove-duplicates",
            metavar="A",
            help="Leave out images that are listed twice and, of picks in one micrograph closer than so many A, all "
            "but the first; 0 compares the images alone.",
        ),
    ] = None,
    input_pixel_size: Annotated[
        float | None, typer.Option("--input-pixel-size", help="Pixel size, A/px, where STACK lacks it or is wrong.")
    ] = None,
    datadir: Datadir = None,
    device: Device = "auto",
) -> None:
    """Cut, phase-flip, Fourier-crop, invert, normalise and mask particles, in this order.

    Pixel size, image size and poses follow in the new metadata; the input stays as it is.
    """
    from ralib.particles.preparation import Preparation, PreparedSource, prepare_particles

    preparation = Preparation(
        clip_px=clip, flip_phases=phase_flip, box_px=box, pixel_size_A=to_pixel_size, invert=invert, normalise=normalise
    )
    if mask_edge is not None and mask_radius is None:
        raise RalibError("--mask-edge is of --mask-radius alone: give both, or leave it out")
    check_output(out)
    given = opened(stack, datadir, input_pixel_size, "--input-pixel-size")
    if remove_duplicates is not None:
        given = _without_duplicates(given, remove_duplicates)
    preparation = _with_lengths(preparation, given, background_radius, mask_radius, mask_edge)
    before = given.warnings
    particles = prepare_particles(given, preparation, device=resolve_device(device))
    show_warnings(particles.warnings[len(before) :])
    source = particles.images
    assert isinstance(source, PreparedSource)
    if particles.ctf is not None and particles.pixel_size_A is None and out.suffix.lower() == ".hdf":
        raise RalibError(
            f"{out}: EMAN2's CTF header holds the pixel size, and no file says it: give --input-pixel-size"
        )
    save(out, particles, "preparing", bad=source.bad, bad_are="constant or not finite")
    show_bad_images(source.bad, "not finite or constant and became zero")


def _with_lengths(
    preparation: Preparation, given: ParticleSet, background_radius: Any, mask_radius: Any, mask_edge: Any
) -> Preparation:
    """The preparation with its radii, which may be in A, in pixels of the result."""
    from ralib.particles.preparation import prepare_particles

    named = {"--background-radius": background_radius, "--mask-radius": mask_radius, "--mask-edge": mask_edge}
    finished_A = None
    in_A = [option for option, value in named.items() if isinstance(value, str)]
    if in_A:
        finished = prepare_particles(given, replace(preparation, flip_phases=False, normalise="none"))
        if finished.pixel_sizes_A is not None:
            raise RalibError(
                f"{in_A[0]} {named[in_A[0]]} is in A, and the result has several pixel sizes: give it in px, or "
                "--to-pixel-size too"
            )
        finished_A = finished.pixel_size_A
    lengths = [
        None if value is None else length_px(option, value, finished_A, source="--input-pixel-size")
        for option, value in named.items()
    ]
    edge = preparation.mask_edge_px if lengths[2] is None else lengths[2]
    return replace(preparation, background_radius_px=lengths[0], mask_radius_px=lengths[1], mask_edge_px=edge)


def _without_duplicates(particles: ParticleSet, distance_A: float) -> ParticleSet:
    from ralib.io import take, without_repeats

    if not 0 <= distance_A < float("inf"):
        raise RalibError(f"--remove-duplicates {distance_A:g}: give a distance in A, or 0")
    rows = without_repeats(particles, distance_A)
    typer.echo(f"{len(particles) - len(rows)} of {len(particles)} particles are there twice and were left out")
    return take(particles, rows)
