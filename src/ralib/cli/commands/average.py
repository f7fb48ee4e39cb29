"""`ralib average`: class averages under the poses that the particles have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from ralib.cli.common import in_batches, resolve_device, show_warnings
from ralib.cli.parsing import completed, known_ctf_mode
from ralib.cli.particle_files import (
    Datadir,
    Device,
    PixelSize,
    Stack,
    opened,
    poses_of,
    refuse_all_bad,
    refuse_existing,
    show_bad_images,
)
from ralib.types import ParticleSet, Poses, RalibError

if TYPE_CHECKING:
    from ralib.classes.averages import ClassSums
    from ralib.types import ClassAverages

MOST_CLASSES = 100_000
BYTES_A_PIXEL = 64
"""Of a class: two half sums in double precision, their spectra, and the average."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("average")(average)


def average(
    stack: Stack,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New stack of averages: .mrcs or .hdf.")],
    mode: Annotated[
        str,
        typer.Option(
            "--ctf",
            help="off, or wiener: weigh by the CTF, divide by its power.",
            autocompletion=completed("off", "wiener"),
        ),
    ] = "off",
    snr: Annotated[
        float | None, typer.Option(help="SNR of one particle, for --ctf wiener. [default: measured from the halves]")
    ] = None,
    pixel_size: PixelSize = None,
    datadir: Datadir = None,
    device: Device = "auto",
) -> None:
    """Average the particles of each class under their stored poses; prints members and resolution."""
    from ralib.classes.averages import class_averages
    from ralib.io import class_headers, for_computing, write_hdf, write_mrcs

    if out.suffix.lower() not in (".mrcs", ".mrc", ".hdf"):
        raise RalibError(f"{out}: averages are written as .mrcs or .hdf")
    if snr is not None and not 0 < snr < float("inf"):
        raise RalibError(f"--snr {snr:g} must be above 0")
    refuse_existing(out)
    ctf = known_ctf_mode(mode, ("off", "wiener")) == "wiener"
    if snr is not None and not ctf:
        raise RalibError(f"--snr {snr:g} is of --ctf wiener alone: give both, or leave it out")
    particles = opened(stack, datadir, pixel_size)
    poses = poses_of(particles, stack)
    if ctf and (particles.ctf is None or particles.pixel_size_A is None):
        raise RalibError(f"--ctf wiener: {stack} has no CTF parameters or no pixel size; leave --ctf out")
    n_shown = len(particles.warnings)
    particles = for_computing(particles, ctf=ctf)
    show_warnings(particles.warnings[n_shown:])
    highest = int(poses.class_index.max()) + 1
    if highest < 1:
        raise RalibError(f"{stack}: no particle is in a class: give the particles.star of a classification")
    if highest > MOST_CLASSES:
        raise RalibError(f"{stack} has class numbers up to {highest}: at most {MOST_CLASSES} classes can be averaged")
    on = resolve_device(device)
    _check_memory(stack, highest, len(particles), particles.box, on)
    sums = _sum_classes(particles, poses, ctf, on)
    averages = class_averages(sums, snr=snr, pixel_size_A=particles.pixel_size_A)
    if out.suffix.lower() == ".hdf":
        headers = class_headers(poses.class_index, sums.n_classes)
        write_hdf(out, averages.images, headers, pixel_size_A=particles.pixel_size_A)
    else:
        write_mrcs(out, averages.images, particles.pixel_size_A)
    _show_classes(averages)
    typer.echo(f"wrote {out}")


def _check_memory(stack: Path, n_classes: int, n: int, box: int, device: torch.device) -> None:
    """RalibError where the class numbers are those of a damaged file, or their averages do not fit into memory."""
    from ralib.runtime.memory import free_memory

    if n_classes > 2 * n + 1000:  # mirrored members may be in classes K + k
        raise RalibError(f"{stack} has class numbers up to {n_classes} for {n} particles: correct rlnClassNumber")
    needed, free = BYTES_A_PIXEL * n_classes * box**2, free_memory(device)
    if needed > free:
        raise RalibError(
            f"averages of {n_classes} classes of {box} px need {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB "
            "are free: crop the particles with 'ralib prepare --to-pixel-size', or take fewer classes"
        )


def _sum_classes(particles: ParticleSet, poses: Poses, ctf: bool, device: torch.device) -> ClassSums:
    """Class sums of all particles, even and odd ones apart; all rows that name one image are in one half."""
    from ralib.classes.averages import ClassSums, ctf_power_in_class_frame
    from ralib.images.ctf import correct_ctf
    from ralib.images.normalise import finite_images, without_offset

    n_classes = max(1, int(poses.class_index.max()) + 1)
    sums = ClassSums.empty(n_classes, particles.box, device, ctf=ctf)
    bad: set[int] = set()
    offsets = torch.zeros(2, n_classes, dtype=torch.float64, device=device)
    first = torch.arange(len(particles)) if particles.same_as is None else torch.from_numpy(particles.same_as)
    for index in in_batches(len(particles), particles.box, "averaging"):
        rows = torch.as_tensor(index)
        images, mine, power = torch.from_numpy(particles.images.read(index)).to(device), poses[rows].to(device), None
        finite = finite_images(images)
        bad.update(index[~finite.cpu().numpy()].tolist())
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
    refuse_all_bad(bad, len(particles), "not finite")
    show_bad_images(bad, "not finite and were left out")
    if not ctf:  # a constant is the same under every pose; with a CTF, the mean of an image says nothing
        sums.images.add_(offsets[..., None, None])
    return sums


def _show_classes(averages: ClassAverages) -> None:
    """One line a class: members, resolution where the halves' FRC falls below 0.143."""
    from ralib.images.frc import resolution_frequency

    assert averages.frc is not None
    frequency = resolution_frequency(averages.frc, box=averages.images.shape[-1])
    for k, (members, f) in enumerate(zip(averages.members.tolist(), frequency.tolist(), strict=True)):
        size_A = averages.pixel_size_A
        resolution = f"{size_A / f:.1f} A" if size_A and f > 0 else f"{f:.3f} cycles/px"
        text = f"{members} particles, FRC 0.143 at {resolution}" if members else "no particles"
        typer.echo(f"class {k + 1}: {text}")
