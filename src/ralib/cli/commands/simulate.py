"""`ralib simulate`: particles with known truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ralib.cli.common import DEVICE_HELP, new_folder, progress, resolve_device
from ralib.types import ParticleSet, RalibError

if TYPE_CHECKING:
    from ralib.simulation.simulator import Simulator

_VIEWS, _IMAGING, _SPOILT = "Particles and views", "Imaging", "What goes wrong"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate")(simulate)


def simulate(
    outdir: Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make; must not exist.")],
    particles: Annotated[int, typer.Option(help="Number of particles.", rich_help_panel=_VIEWS)] = 2000,
    box: Annotated[int, typer.Option(help="Box, px.", rich_help_panel=_VIEWS)] = 90,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="The same seed gives the same bits.", rich_help_panel=_VIEWS)
    ] = 0,
    volume: Annotated[
        Path | None, typer.Option(help="Cubic MRC volume. [default: the built-in phantom]", rich_help_panel=_VIEWS)
    ] = None,
    volume2: Annotated[
        Path | None, typer.Option(help="A second species: half of the particles.", rich_help_panel=_VIEWS)
    ] = None,
    views: Annotated[
        int, typer.Option(help="K discrete views (the classes); 0: continuous views.", rich_help_panel=_VIEWS)
    ] = 10,
    view_frequencies: Annotated[
        str | None,
        typer.Option(help="How often each view occurs, '1 1 0.05'. [default: equally]", rich_help_panel=_VIEWS),
    ] = None,
    preferred: Annotated[
        float, typer.Option(help="Continuous views: fraction from one direction.", rich_help_panel=_VIEWS)
    ] = 0.0,
    references: Annotated[
        int, typer.Option(help="Continuous views: how many references to write.", rich_help_panel=_VIEWS)
    ] = 20,
    mirror: Annotated[
        bool, typer.Option(help="Discrete views: mirror half of the particles.", rich_help_panel=_VIEWS)
    ] = True,
    snr: Annotated[
        float, typer.Option(help="Variance of signal (after CTF) over noise.", rich_help_panel=_IMAGING)
    ] = 0.1,
    pixel_size: Annotated[
        float | None,
        typer.Option(
            "--pixel-size",
            "--apix",
            help="Pixel size, A/px. [default: the volume's, or 400 A / box]",
            rich_help_panel=_IMAGING,
        ),
    ] = None,
    ctf: Annotated[bool, typer.Option(help="Apply a CTF, one a micrograph.", rich_help_panel=_IMAGING)] = True,
    defocus: Annotated[tuple[float, float], typer.Option(help="Range of defocus, A.", rich_help_panel=_IMAGING)] = (
        8000.0,
        28000.0,
    ),
    astigmatism: Annotated[float, typer.Option(help="Largest astigmatism, A.", rich_help_panel=_IMAGING)] = 800.0,
    voltage: Annotated[float, typer.Option(help="Acceleration voltage, kV.", rich_help_panel=_IMAGING)] = 300.0,
    cs: Annotated[float, typer.Option(help="Spherical aberration, mm.", rich_help_panel=_IMAGING)] = 2.7,
    micrograph: Annotated[int, typer.Option(min=1, help="Particles a micrograph.", rich_help_panel=_IMAGING)] = 100,
    coloured_noise: Annotated[
        float, typer.Option(help="Fraction of the noise seen through the CTF.", rich_help_panel=_IMAGING)
    ] = 0.0,
    shift_sd: Annotated[
        float, typer.Option(min=0, help="Picking error, sd along x and y, px.", rich_help_panel=_SPOILT)
    ] = 1.2,
    contrast_sd: Annotated[float, typer.Option(min=0, help="Spread of the contrast.", rich_help_panel=_SPOILT)] = 0.1,
    junk: Annotated[
        float, typer.Option(help="Fraction of empty, half-out and spoilt particles.", rich_help_panel=_SPOILT)
    ] = 0.0,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Simulate particles with known truth, from the built-in phantom or a volume.

    Writes particles.mrcs, particles.star (with CTF, without poses), references.mrcs (the views) and truth.npz
    (psi_deg, origin_xy_px, mirror, class_index, R, junk, species, contrast) into OUTDIR.
    """
    from ralib.simulation.simulator import SimulationOptions, Simulator

    options = SimulationOptions(
        n_particles=particles,
        box=box,
        snr=snr,
        seed=seed,
        pixel_size_A=pixel_size,
        n_views=views,
        view_frequencies=None if view_frequencies is None else _numbers("--view-frequencies", view_frequencies),
        preferred_fraction=preferred,
        mirror=mirror,
        shift_sd_px=shift_sd,
        contrast_sd=contrast_sd,
        junk_fraction=junk,
        coloured_noise=coloured_noise,
        ctf=ctf,
        defocus_range_A=defocus,
        astigmatism_A=astigmatism,
        voltage_kV=voltage,
        spherical_aberration_mm=cs,
        particles_per_micrograph=micrograph,
        n_references=references,
    )
    with new_folder(outdir) as folder:
        volumes, volume_pixel_A = _volumes([v for v in (volume, volume2) if v is not None], pixel_size)
        where = resolve_device(device)
        simulator = Simulator(options, volumes, volume_pixel_size_A=volume_pixel_A, device=where)
        _write(simulator, folder, outdir)
    typer.echo(f"wrote {outdir}: {particles} particles, {box} px, {simulator.pixel_size_A:.4g} A/px")


def _write(simulator: Simulator, folder: Path, outdir: Path) -> None:
    """Everything into `folder`, under the names it will have as `outdir`."""
    from ralib.io import open_stack, stack_writer, write_mrcs, write_particles_star
    from ralib.io.paths import name_for_project

    truth, stack = simulator.truth, folder / "particles.mrcs"
    with stack_writer(stack, simulator.pixel_size_A) as writer:
        for number in progress(range(simulator.n_blocks), "simulating"):
            writer.append(simulator.block(number))
    write_mrcs(folder / "references.mrcs", simulator.references(), simulator.pixel_size_A)
    particles = ParticleSet(
        images=open_stack(stack),
        pixel_size_A=simulator.pixel_size_A,
        ctf=truth.ctf,
        group=truth.micrograph,
    )
    name = name_for_project(outdir / "particles.mrcs")
    image_names = [f"{i + 1:06d}@{name}" for i in range(len(particles))]
    write_particles_star(folder / "particles.star", particles, image_names=image_names)
    known: dict[str, Any] = truth.arrays() | {"pixel_size_A": np.array(simulator.pixel_size_A)}
    np.savez(folder / "truth.npz", **known)


def _volumes(paths: list[Path], pixel_size_A: float | None) -> tuple[list[np.ndarray], float | None]:
    """The cubes and their pixel size: the file's, or what --pixel-size says where the file has none."""
    from ralib.io import open_stack

    volumes, sizes = [], []
    for path in paths:
        stack = open_stack(path)
        if stack.n_images != stack.box:
            raise RalibError(f"{path} is not a cube: {stack.n_images} sections of {stack.box} px")
        volumes.append(stack.read(np.arange(stack.n_images)))
        sizes.append(getattr(stack, "pixel_size_A", None) or pixel_size_A)
    if len({(v.shape, size) for v, size in zip(volumes, sizes, strict=True)}) > 1:
        raise RalibError("--volume and --volume2 differ in box or pixel size: resample one of them first")
    if volumes and sizes[0] is None:
        raise RalibError(f"{paths[0]} does not say its pixel size: give --pixel-size")
    return volumes, sizes[0] if sizes else None


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(t) for t in text.replace(",", " ").split()]
    except ValueError:
        raise RalibError(f"{option} {text!r}: give numbers, as '1 1 0.05'") from None
