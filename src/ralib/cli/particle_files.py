"""Common parts of the commands on particle files: options, opening a stack, writing a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from ralib.cli.common import DEVICE_HELP, in_batches, show_warnings, with_pixel_size
from ralib.types import ParticleSet, Poses, RalibError

Stack = Annotated[Path, typer.Argument(metavar="STACK", help="Particles: .star .cs .mrcs .mrc .hdf .spi .hed ...")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="New file: .star (with its .mrcs beside it), .mrcs or .hdf.")]
Datadir = Annotated[Path | None, typer.Option(help="Where the image files named in STACK lie.")]
PixelSize = Annotated[
    float | None, typer.Option("--pixel-size", help="Pixel size, A/px, where STACK lacks it or is wrong.")
]
Device = Annotated[str, typer.Option(help=DEVICE_HELP)]


def opened(stack: Path, datadir: Path | None, pixel_size_A: float | None, option: str = "--pixel-size") -> ParticleSet:
    """Return the particles of a file or of a finished run's folder.

    Parameters
    ----------
    stack : Path
        File or folder.
    datadir : Path or None
        Folder of the image files.
    pixel_size_A : float or None
        Pixel size on the command line, Angstrom, or None.
    option : str, default '--pixel-size'
        Name of its option, for messages.

    Returns
    -------
    ParticleSet
        The particles.
    """
    from ralib.io import open_particles
    from ralib.results.run_record import particle_file

    particles = open_particles(particle_file(stack), datadir=datadir)
    show_warnings(particles.warnings)
    return with_pixel_size(particles, pixel_size_A, option)


def poses_of(particles: ParticleSet, stack: Path) -> Poses:
    """Return the poses of a file; raises RalibError where it has none.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    stack : Path
        Their file, for the error.

    Returns
    -------
    Poses
        Poses.
    """
    if particles.poses is None:
        raise RalibError(f"{stack} holds no poses: give the particles.star of an alignment")
    return particles.poses


def refuse_existing(*paths: Path) -> None:
    """Raise RalibError if one of the files exists."""
    for path in paths:
        if path.exists():
            raise RalibError(f"{path} exists already: choose another name, or remove it")


def check_output(out: Path) -> None:
    """Raise RalibError unless particles can be written as `out`, and a STAR file can name its stack."""
    from ralib.io.paths import check_writable_name

    if out.suffix.lower() not in (".star", ".mrcs", ".mrc", ".hdf"):
        raise RalibError(f"{out}: particles are written as .star, .mrcs or .hdf")
    if not out.absolute().parent.is_dir():
        raise RalibError(f"{out}: there is no folder {out.absolute().parent}: make it first")
    check_writable_name(out)


def show_bad_images(bad: set[int], what: str) -> None:
    """Print how many images are unusable, what they are, and the first of them from 1; nothing where there are none."""
    if bad:
        first = ", ".join(str(i + 1) for i in sorted(bad)[:5])
        more = ", ..." if len(bad) > 5 else ""
        typer.echo(f"warning: {len(bad)} images are {what}: {first}{more}", err=True)


def refuse_all_bad(bad: set[int], n: int, what: str) -> None:
    """RalibError where every one of n images is unusable."""
    if n and len(bad) == n:
        raise RalibError(f"none of the {n} images can be used: {what}; give the images as they were extracted")


def save(
    out: Path, particles: ParticleSet, label: str, *, bad: set[int] | None = None, bad_are: str = "not finite"
) -> None:
    """Write images and metadata of a particle set into new files; nothing where no image can be used.

    Parameters
    ----------
    out : Path
        The file.
    particles : ParticleSet
        The particles, whose images may be made when they are read.
    label : str
        Label of the progress bar.
    bad : set of int | None, optional
        Unusable images, known once all are made.
    bad_are : str, default 'not finite'
        What makes them so, for the error.
    """
    check_output(out)
    suffix = out.suffix.lower()
    if suffix != ".star" and particles.pixel_sizes_A is not None:
        raise RalibError(
            f"{out}: one stack holds one pixel size, and these particles have several: write a .star, or bring them to "
            "one with --to-pixel-size"
        )
    stack = out.with_suffix(".mrcs") if suffix == ".star" else out
    refuse_existing(out, stack)

    def check() -> None:  # `bad` is filled as images are made
        refuse_all_bad(bad or set(), len(particles), bad_are)

    if suffix == ".hdf":
        _save_hdf(out, particles, label, check)
        return
    _save_mrcs(out, stack, particles, label, check)
    typer.echo(f"wrote {stack}: {len(particles)} images of {particles.box} px, {_pixel_sizes(particles)}")
    if suffix == ".star":
        typer.echo(f"wrote {out}")
        return
    lost = [name for name, given in (("CTF", particles.ctf), ("poses", particles.poses)) if given is not None]
    if lost:
        typer.echo(
            f"warning: {out} holds images alone, without {' and '.join(lost)}; name a .star to keep them", err=True
        )


def _save_hdf(out: Path, particles: ParticleSet, label: str, check: Callable[[], None]) -> None:
    """Images and headers in one file of EMAN2; `check` is called once all images are made."""
    from ralib.io import left_behind, pose_headers, source_headers, write_hdf

    n, box, pixel_size_A = len(particles), particles.box, particles.pixel_size_A
    images = torch.cat([torch.from_numpy(particles.images.read(i)) for i in in_batches(n, box, label)])
    check()
    headers = pose_headers(particles.poses, particles.ctf, pixel_size_A) or [{} for _ in range(n)]
    headers = [{**source, **own} for source, own in zip(source_headers(particles), headers, strict=True)]
    write_hdf(out, images, headers, pixel_size_A=pixel_size_A)
    typer.echo(f"wrote {out}: {n} images of {box} px")
    if lost := left_behind(particles, out):
        typer.echo(f"warning: {out} has no place for {', '.join(lost)}; name a .star to keep them", err=True)


def _save_mrcs(out: Path, stack: Path, particles: ParticleSet, label: str, check: Callable[[], None]) -> None:
    """A stack of the images, and the STAR file `out` unless that is the stack; `check` as in `_save_hdf`."""
    from ralib.io import open_stack, stack_writer, write_particles_star
    from ralib.io.atomic import atomic_paths
    from ralib.io.paths import name_for_project

    n, pixel_size_A = len(particles), None if particles.pixel_sizes_A is not None else particles.pixel_size_A
    with atomic_paths(*dict.fromkeys((stack, out))) as (new_stack, *new_star):
        with stack_writer(new_stack, pixel_size_A) as writer:
            for index in in_batches(n, particles.box, label):
                writer.append(particles.images.read(index))
        check()
        for star in new_star:
            name = name_for_project(stack, None, out)
            names = [f"{i + 1:06d}@{name}" for i in range(n)]
            write_particles_star(star, particles.replace(images=open_stack(new_stack)), image_names=names)


def _pixel_sizes(particles: ParticleSet) -> str:
    if particles.pixel_sizes_A is not None:
        sizes = sorted(set(particles.pixel_sizes_A.round(4).tolist()))
        return "several pixel sizes: " + ", ".join(f"{size:.4g}" for size in sizes[:5]) + " A/px"
    return f"{particles.pixel_size_A:.4g} A/px" if particles.pixel_size_A else "pixel size not known"
