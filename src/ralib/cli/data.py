"""Commands on particle files: prepare, transform (apply poses), average, params (poses as text)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from ralib.cli.common import DEVICE_HELP, in_batches, resolve_device, tell_warnings, with_pixel_size
from ralib.cli.parsing import ctf_word
from ralib.types import ParticleSet, Poses, RalibError

if TYPE_CHECKING:
    from ralib.classes.averages import ClassSums
    from ralib.types import ClassAverages

_STACK = typer.Argument(metavar="STACK", help="Particles: .star .cs .mrcs .mrc .hdf .spi .hed ...")
_OUT = typer.Argument(metavar="OUT", help="New file: .star (with its .mrcs beside it), .mrcs or .hdf.")
_DATADIR = typer.Option(help="Where the image files named in STACK lie.")
_INPUT_PIXEL = typer.Option("--input-pixel-size", help="A/px, where STACK does not say it or is wrong.")
_DEVICE = typer.Option(help=DEVICE_HELP)
MOST_CLASSES = 100_000
_IMAGE, _GREY = "Size and CTF", "Grey values"


def register(app: typer.Typer) -> None:
    app.command("prepare")(prepare)
    app.command("transform")(transform)
    app.command("average")(average)
    app.command("params")(params)


def prepare(
    stack: Annotated[Path, _STACK],
    out: Annotated[Path, _OUT],
    box: Annotated[
        int | None, typer.Option(help="Fourier-crop or pad to this box, px.", rich_help_panel=_IMAGE)
    ] = None,
    pixel_size: Annotated[
        float | None,
        typer.Option(
            "--pixel-size", "--apix", help="Fourier-crop to about this pixel size, A/px.", rich_help_panel=_IMAGE
        ),
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
            rich_help_panel=_GREY,
        ),
    ] = "none",
    background_radius: Annotated[
        float | None,
        typer.Option(help="That circle, px of the result. [default: 3/4 of half the box]", rich_help_panel=_GREY),
    ] = None,
    mask_radius: Annotated[
        float | None, typer.Option(help="Fade to 0 beyond this radius, px of the result.", rich_help_panel=_GREY)
    ] = None,
    mask_edge: Annotated[float, typer.Option(help="Width of that fade, px.", rich_help_panel=_GREY)] = 5.0,
    remove_duplicates: Annotated[
        float | None,
        typer.Option(
            "--remove-duplicates",
            metavar="A",
            help="Leave out images that are listed twice and, of picks in one micrograph closer than so many A, all "
            "but the first; 0 compares the images alone.",
        ),
    ] = None,
    input_pixel_size: Annotated[float | None, _INPUT_PIXEL] = None,
    datadir: Annotated[Path | None, _DATADIR] = None,
    device: Annotated[str, _DEVICE] = "auto",
) -> None:
    """Cut, phase-flip, Fourier-crop, invert, normalise and mask particles, in this order.

    Pixel size, image size and poses follow in the new metadata; the input stays as it is.
    """
    from ralib.particles.preparation import Preparation, PreparedSource, prepare_particles

    preparation = Preparation(
        clip_px=clip,
        flip_phases=phase_flip,
        box_px=box,
        pixel_size_A=pixel_size,
        invert=invert,
        normalise=normalise,
        background_radius_px=background_radius,
        mask_radius_px=mask_radius,
        mask_edge_px=mask_edge,
    )
    _check_output(out)
    given = _open(stack, datadir, input_pixel_size)
    if remove_duplicates is not None:
        given = _without_duplicates(given, remove_duplicates)
    before = given.warnings
    particles = prepare_particles(given, preparation, device=resolve_device(device))
    tell_warnings(particles.warnings[len(before) :])
    source = particles.images
    assert isinstance(source, PreparedSource)
    if particles.ctf is not None and particles.pixel_size_A is None and out.suffix.lower() == ".hdf":
        raise RalibError(
            f"{out}: EMAN2's CTF header holds the pixel size, and no file says it: give --input-pixel-size"
        )
    _save(out, particles, "preparing")
    if source.bad:
        _warn_bad(source.bad)


def _without_duplicates(particles: ParticleSet, distance_A: float) -> ParticleSet:
    from ralib.io import take, without_repeats

    if not 0 <= distance_A < float("inf"):
        raise RalibError(f"--remove-duplicates {distance_A:g}: give a distance in A, or 0")
    rows = without_repeats(particles, distance_A)
    typer.echo(f"{len(particles) - len(rows)} of {len(particles)} particles are there twice and were left out")
    return take(particles, rows)


def transform(
    stack: Annotated[Path, _STACK],
    out: Annotated[Path, _OUT],
    method: Annotated[str, typer.Option(help="Interpolation: cubic, quadratic (EMAN2's) or linear.")] = "cubic",
    input_pixel_size: Annotated[float | None, _INPUT_PIXEL] = None,
    datadir: Annotated[Path | None, _DATADIR] = None,
    device: Annotated[str, _DEVICE] = "auto",
) -> None:
    """Apply the stored poses to the images (sxtransform2d): each comes out as its class average sees it."""
    from ralib.io import for_computing
    from ralib.particles.preparation import align_particles

    particles = for_computing(_open(stack, datadir, input_pixel_size), ctf=False)
    _save(out, align_particles(particles, method=method, device=resolve_device(device)), "transforming")


def average(
    stack: Annotated[Path, _STACK],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New stack of averages: .mrcs or .hdf.")],
    mode: Annotated[str, typer.Option("--ctf", help="off, or wiener: weigh by the CTF, divide by its power.")] = "off",
    snr: Annotated[
        float | None, typer.Option(help="SNR of one particle, for --ctf wiener. [default: measured from the halves]")
    ] = None,
    input_pixel_size: Annotated[float | None, _INPUT_PIXEL] = None,
    datadir: Annotated[Path | None, _DATADIR] = None,
    device: Annotated[str, _DEVICE] = "auto",
) -> None:
    """Average the particles of each class under their stored poses; prints members and resolution."""
    from ralib.classes.averages import class_averages
    from ralib.io import class_headers, for_computing, write_hdf, write_mrcs

    if out.suffix.lower() not in (".mrcs", ".mrc", ".hdf"):
        raise RalibError(f"{out}: averages are written as .mrcs or .hdf")
    _refuse_existing(out)
    ctf = ctf_word(mode, ("off", "wiener")) == "wiener"
    particles = _open(stack, datadir, input_pixel_size)
    poses = _poses_of(particles, stack)
    if ctf and (particles.ctf is None or particles.pixel_size_A is None):
        raise RalibError(f"--ctf wiener: {stack} has no CTF parameters or no pixel size; leave --ctf out")
    told = particles.warnings
    particles = for_computing(particles, ctf=ctf)
    tell_warnings(particles.warnings[len(told) :])
    highest = int(poses.class_index.max()) + 1
    if highest > MOST_CLASSES:
        raise RalibError(f"{stack} has class numbers up to {highest}: at most {MOST_CLASSES} classes can be averaged")
    sums = _sum_classes(particles, poses, ctf, resolve_device(device))
    averages = class_averages(sums, snr=snr, pixel_size_A=particles.pixel_size_A)
    if out.suffix.lower() == ".hdf":
        headers = class_headers(poses.class_index, sums.n_classes)
        write_hdf(out, averages.images, headers, pixel_size_A=particles.pixel_size_A)
    else:
        write_mrcs(out, averages.images, particles.pixel_size_A)
    _show_classes(averages)
    typer.echo(f"wrote {out}")


def params(
    stack: Annotated[Path, _STACK],
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
    datadir: Annotated[Path | None, _DATADIR] = None,
) -> None:
    """Poses out of and into particle files, as text in EMAN2's convention (sxheader)."""
    from ralib.io import open_particles, read_params, write_params
    from ralib.results.run_record import particle_file

    if (export_to is None) == (import_from is None):
        raise RalibError("give one of --export FILE and --import FILE")
    particles = open_particles(particle_file(stack), datadir=datadir, require_images=False)
    tell_warnings(particles.warnings)
    if export_to is not None:
        _refuse_existing(export_to)
        write_params(export_to, _poses_of(particles, stack), form=form)
        typer.echo(f"wrote {export_to}: {len(particles)} poses")
        return
    assert import_from is not None
    poses = read_params(import_from)
    if len(poses) != len(particles):
        raise RalibError(f"{import_from} holds {len(poses)} poses, {stack} {len(particles)} particles")
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
    _refuse_existing(out)
    write_particles_star(out, particles, poses)
    typer.echo(f"wrote {out}: {len(poses)} poses")


def _open(stack: Path, datadir: Path | None, pixel_size_A: float | None) -> ParticleSet:
    from ralib.io import open_particles
    from ralib.results.run_record import particle_file

    particles = open_particles(particle_file(stack), datadir=datadir)
    tell_warnings(particles.warnings)
    return with_pixel_size(particles, pixel_size_A, "--input-pixel-size")


def _poses_of(particles: ParticleSet, stack: Path) -> Poses:
    if particles.poses is None:
        raise RalibError(f"{stack} holds no poses: give the particles.star of an alignment")
    return particles.poses


def _refuse_existing(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise RalibError(f"{path} exists already: choose another name, or remove it")


def _check_output(out: Path) -> None:
    """RalibError unless particles can be written as `out`, and a STAR file can name its stack."""
    from ralib.io.paths import check_writable_name

    if out.suffix.lower() not in (".star", ".mrcs", ".mrc", ".hdf"):
        raise RalibError(f"{out}: particles are written as .star, .mrcs or .hdf")
    check_writable_name(out)


def _save(out: Path, particles: ParticleSet, label: str) -> None:
    """Images and metadata of a lazily made particle set into new files; says what it wrote."""
    from ralib.io import open_stack, pose_headers, stack_writer, write_hdf, write_particles_star
    from ralib.io.atomic import atomic_paths
    from ralib.io.paths import name_for_project

    _check_output(out)
    suffix = out.suffix.lower()
    n, box, pixel_size_A = len(particles), particles.box, particles.pixel_size_A
    if suffix != ".star" and particles.pixel_sizes_A is not None:
        raise RalibError(
            f"{out}: one stack holds one pixel size, and these particles have several: write a .star, or bring them to "
            "one with --pixel-size"
        )
    if suffix == ".hdf":
        _refuse_existing(out)
        images = torch.cat([torch.from_numpy(particles.images.read(i)) for i in in_batches(n, box, label)])
        nothing = particles.poses is None and particles.ctf is None
        headers = None if nothing else pose_headers(particles.poses, particles.ctf, pixel_size_A)
        write_hdf(out, images, headers, pixel_size_A=pixel_size_A)
        typer.echo(f"wrote {out}: {n} images of {box} px")
        return
    stack = out.with_suffix(".mrcs") if suffix == ".star" else out
    _refuse_existing(out, stack)
    with atomic_paths(*dict.fromkeys((stack, out))) as (new_stack, *new_star):
        with stack_writer(new_stack, pixel_size_A) as writer:
            for index in in_batches(n, box, label):
                writer.append(particles.images.read(index))
        for star in new_star:
            name = name_for_project(stack, None, out)
            names = [f"{i + 1:06d}@{name}" for i in range(n)]
            write_particles_star(star, particles.replace(images=open_stack(new_stack)), image_names=names)
    known = f"{pixel_size_A:.4g} A/px" if pixel_size_A else "pixel size not known"
    if particles.pixel_sizes_A is not None:
        sizes = sorted(set(particles.pixel_sizes_A.round(4).tolist()))
        known = "several pixel sizes: " + ", ".join(f"{size:.4g}" for size in sizes[:5]) + " A/px"
    typer.echo(f"wrote {stack}: {n} images of {box} px, {known}")
    if suffix == ".star":
        typer.echo(f"wrote {out}")


def _sum_classes(particles: ParticleSet, poses: Poses, ctf: bool, device: torch.device) -> ClassSums:
    """Class sums of all particles, even and odd ones apart; all rows that name one image are in one half."""
    from ralib.classes.averages import ClassSums, ctf_power_in_class_frame
    from ralib.images.ctf import correct_ctf
    from ralib.images.normalise import without_offset

    n_classes = max(1, int(poses.class_index.max()) + 1)
    sums = ClassSums.empty(n_classes, particles.box, device, ctf=ctf)
    offsets = torch.zeros(2, n_classes, dtype=torch.float64, device=device)
    first = torch.arange(len(particles)) if particles.same_as is None else torch.from_numpy(particles.same_as)
    for index in in_batches(len(particles), particles.box, "averaging"):
        rows = torch.as_tensor(index)
        images, mine, power = torch.from_numpy(particles.images.read(index)).to(device), poses[rows].to(device), None
        finite = torch.isfinite(images).flatten(1).all(1)
        if particles.usable is not None:
            finite &= torch.from_numpy(particles.usable[index]).to(device)
        images, offset = without_offset(torch.where(finite[:, None, None], images, 0.0))
        if ctf and particles.ctf is not None and particles.pixel_size_A is not None:
            own, size_A = particles.ctf[index], particles.pixel_size_A
            images = correct_ctf(images, own, size_A)
            power = ctf_power_in_class_frame(own, mine, particles.box, size_A)
        kept = torch.where(finite, mine.class_index, -1)
        images = torch.where(finite[:, None, None], images, 0.0)
        half = (first[rows] % 2).to(device)
        sums.add_(images, mine.replace(class_index=kept), half, power)
        member = kept >= 0
        offsets.index_put_((half[member], kept[member]), offset[member, 0, 0].double(), accumulate=True)
    if not ctf:  # a constant is the same under every pose; with a CTF, the mean of an image says nothing
        sums.images.add_(offsets[..., None, None])
    return sums


def _show_classes(averages: ClassAverages) -> None:
    """One line a class: members, resolution where the halves' FRC falls below 0.143."""
    from ralib.images.frc import resolution_frequency

    assert averages.frc is not None
    frequency = resolution_frequency(averages.frc)
    for k, (members, f) in enumerate(zip(averages.members.tolist(), frequency.tolist(), strict=True)):
        size_A = averages.pixel_size_A
        resolution = f"{size_A / f:.1f} A" if size_A and f > 0 else f"{f:.3f} cycles/px"
        told = f"{members} particles, FRC 0.143 at {resolution}" if members else "no particles"
        typer.echo(f"class {k + 1}: {told}")


def _warn_bad(bad: set[int]) -> None:
    first = ", ".join(str(i + 1) for i in sorted(bad)[:5])
    more = ", ..." if len(bad) > 5 else ""
    typer.echo(f"warning: {len(bad)} images are not finite or constant and became zero: {first}{more}", err=True)
