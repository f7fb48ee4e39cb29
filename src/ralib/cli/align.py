"""`ralib mref` and `ralib reffree`: parse, open, fit, save. Options are those of sxmref_ali2d and sxali2d."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ralib.cli.common import DEVICE_HELP, check_devices, resolve_device
from ralib.types import RalibError

_GEOMETRY, _AVERAGE, _CLASSES = "Search", "Averages and CTF", "Classes"
_FILES, _RUN = "Files", "Running"
NO_OPTIONS = ("context", "stack", "outdir", "resume", "report")
"""Arguments of the commands that are not options of the alignment."""

Stack = Annotated[Path, typer.Argument(metavar="STACK", help="Particles: .mrcs .star .cs .hdf .lst .spi .hed ...")]
Outdir = Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make; must be new or empty.")]
Mask = Annotated[Path | None, typer.Argument(metavar="[MASK]", help="Image of the mask. [default: a soft disc]")]
Inner = Annotated[int, typer.Option("--ir", "--inner-radius", help="Inner radius, px.", rich_help_panel=_GEOMETRY)]
Outer = Annotated[
    int, typer.Option("--ou", "--outer-radius", help="Outer radius, px; -1: box/2 - 2.", rich_help_panel=_GEOMETRY)
]
RingStep = Annotated[
    int, typer.Option("--rs", "--ring-step", help="Ring step, px; other than 1 with --sparx only.",
                      rich_help_panel=_GEOMETRY)
]  # fmt: skip
NoMirror = Annotated[
    bool, typer.Option("--nomirror", "--no-mirror", help="Do not look for mirrored particles.",
                       rich_help_panel=_GEOMETRY)
]  # fmt: skip
Ctf = Annotated[
    bool, typer.Option("--CTF", "--ctf-correct", help="CTF-weighted (Wiener) averages.", rich_help_panel=_AVERAGE)
]
CtfMode = Annotated[
    str | None, typer.Option("--ctf", help="off, wiener (the same as --CTF) or flip (phases only).",
                             rich_help_panel=_AVERAGE)
]  # fmt: skip
Snr = Annotated[
    float | None,
    typer.Option("--snr", "--signal-to-noise", help="Signal to noise ratio of one particle for --CTF. "
                 "[default: measured from half averages; 1 with --sparx]", rich_help_panel=_AVERAGE),
]  # fmt: skip
Function = Annotated[
    str, typer.Option("--function", "--user-function", help="ref_ali2d, or MODULE:CALLABLE that gets the raw "
                      "average, mask and FRC and returns the reference.", rich_help_panel=_AVERAGE)
]  # fmt: skip
Center = Annotated[
    int, typer.Option("--center", "--centring", help="-1 average shift, 0 none, 1 phase approximation, 2 Gaussian, "
                      "3 ring, 4 the mask, 5 own rotational average, 6 and 7 thresholded.", rich_help_panel=_AVERAGE)
]  # fmt: skip
Seed = Annotated[
    int, typer.Option("--seed", "--rand_seed", "--rand-seed", help="Of everything random.", rich_help_panel=_RUN)
]
Device = Annotated[str, typer.Option("--device", help=DEVICE_HELP, rich_help_panel=_RUN)]
Gpus = Annotated[
    str | None, typer.Option("--gpu_devices", "--gpu-devices", help="GPU numbers, '0' or '0,1'.",
                             rich_help_panel=_RUN)
]  # fmt: skip
BatchSize = Annotated[
    int | None, typer.Option("--batch", "--batch-size", help="Particles at a time. [default: by device]",
                             rich_help_panel=_RUN)
]  # fmt: skip
Memory = Annotated[
    float | None, typer.Option("--memory", help="GiB of particles kept on the device between iterations; what does not "
                               "fit is read anew. [default: 0.45 of what is free]", rich_help_panel=_RUN)
]  # fmt: skip
Sparx = Annotated[
    bool, typer.Option("--sparx", "--parity", help="EMAN2/SPARX's algorithm exactly.", rich_help_panel=_RUN)
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at an unusable image instead of leaving it out.", rich_help_panel=_RUN)
]
Continue = Annotated[
    bool, typer.Option("--continue", help="Go on with the run in OUTDIR after its last iteration.",
                       rich_help_panel=_RUN)
]  # fmt: skip
Hdf = Annotated[
    bool, typer.Option("--hdf", help="Also class_averages.hdf; always for an HDF input.", rich_help_panel=_FILES)
]
WriteHeaders = Annotated[
    bool, typer.Option("--write-headers", help="Write poses into the headers of an HDF STACK.",
                       rich_help_panel=_FILES)
]  # fmt: skip
Datadir = Annotated[
    Path | None, typer.Option("--datadir", help="Folder of the images a STAR, .cs or .lst file names.",
                              rich_help_panel=_FILES)
]  # fmt: skip
PixelSize = Annotated[
    float | None, typer.Option("--pixel-size", "--apix", help="A/px. [default: the file's]", rich_help_panel=_FILES)
]
Report = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html at the end.", rich_help_panel=_FILES)
]


def register(app: typer.Typer) -> None:
    app.command("mref")(mref)
    app.command("reffree")(reffree)


def mref(
    context: typer.Context,
    stack: Stack,
    references: Annotated[
        str, typer.Argument(metavar="REFERENCES", help="Stack of references, or a number K: random averages.")
    ],
    outdir: Outdir,
    mask: Mask = None,
    ir: Inner = 1,
    ou: Outer = -1,
    rs: RingStep = 1,
    xr: Annotated[
        float, typer.Option("--xr", "--shift-range", help="Shift range along x, px.", rich_help_panel=_GEOMETRY)
    ] = 0,
    yr: Annotated[
        float, typer.Option("--yr", "--shift-range-y", help="Along y, px; -1: as --xr.", rich_help_panel=_GEOMETRY)
    ] = -1,
    ts: Annotated[
        float, typer.Option("--ts", "--shift-step", help="Grid step of the shifts, px; the best one is refined.",
                            rich_help_panel=_GEOMETRY)
    ] = 1,
    nomirror: NoMirror = False,
    center: Center = 1,
    maxit: Annotated[int, typer.Option("--maxit", "--iterations", help="Iterations.", rich_help_panel=_RUN)] = 10,
    ctf: Ctf = False,
    ctf_mode: CtfMode = None,
    snr: Snr = None,
    function: Function = "ref_ali2d",
    equal: Annotated[
        bool, typer.Option("--EQ", "--equal-sizes", help="Classes of equal size.", rich_help_panel=_CLASSES)
    ] = False,
    min_members: Annotated[
        int | None,
        typer.Option("--min-members", help="Reseed smaller classes; 0: never. [default: a twentieth of an equal "
                     "share, at least 4]", rich_help_panel=_CLASSES),
    ] = None,
    seed: Seed = 1000,
    device: Device = "auto",
    gpu_devices: Gpus = None,
    batch: BatchSize = None,
    memory: Memory = None,
    sparx: Sparx = False,
    strict: Strict = False,
    resume: Continue = False,
    hdf: Hdf = False,
    write_headers: WriteHeaders = False,
    datadir: Datadir = None,
    pixel_size: PixelSize = None,
    report: Report = True,
) -> None:  # fmt: skip
    """Multi-reference alignment: class averages from particles and references."""
    options = {k: v for k, v in locals().items() if k not in NO_OPTIONS}
    from ralib.cli.align_runs import AlignmentRun
    from ralib.cli.parsing import ctf_choice, shift_ranges

    options["ctf_mode"] = ctf_choice(ctf, ctf_mode)
    (x, y, step) = shift_ranges(str(xr), str(yr), str(ts))[0]
    where = _device(device, gpu_devices)
    run = AlignmentRun("mref", stack, outdir, options, where, resume=resume, report=report, began=context.obj)
    run.execute(x_range=x, y_range=y, step=step)


def reffree(
    context: typer.Context,
    stack: Stack,
    outdir: Outdir,
    mask: Mask = None,
    ir: Inner = 1,
    ou: Outer = -1,
    rs: RingStep = 1,
    xr: Annotated[
        str, typer.Option("--xr", "--shift-range", help="Shift range along x of each stage, px.",
                          rich_help_panel=_GEOMETRY)
    ] = "4 2 1 1",
    yr: Annotated[
        str, typer.Option("--yr", "--shift-range-y", help="Along y, px; -1: as --xr.", rich_help_panel=_GEOMETRY)
    ] = "-1",
    ts: Annotated[
        str, typer.Option("--ts", "--shift-step", help="Grid step of each stage, px; the best one is refined.",
                          rich_help_panel=_GEOMETRY)
    ] = "2 1 0.5 0.25",
    nomirror: NoMirror = False,
    dst: Annotated[
        float, typer.Option("--dst", "--discrete-angle", help="Discrete angle of every fourth iteration, degrees; "
                            "with --sparx only.", rich_help_panel=_GEOMETRY)
    ] = 0.0,
    mode: Annotated[
        str, typer.Option("--mode", help="F: full rings; H: half rings, with --sparx only.",
                          rich_help_panel=_GEOMETRY)
    ] = "F",
    randomize: Annotated[
        bool, typer.Option("--randomize", help="Start from random rotations.", rich_help_panel=_GEOMETRY)
    ] = False,
    random_method: Annotated[
        str, typer.Option("--random_method", "--random-method", help="SHC or SCF, with --sparx only.",
                          rich_help_panel=_GEOMETRY)
    ] = "",
    center: Center = -1,
    maxit: Annotated[
        int, typer.Option("--maxit", "--iterations", help="Iterations a stage; 0: up to 10, ending when the criterion "
                          "falls.", rich_help_panel=_RUN)
    ] = 0,
    ctf: Ctf = False,
    ctf_mode: CtfMode = None,
    snr: Snr = None,
    fourvar: Annotated[
        bool, typer.Option("--Fourvar", "--fourier-variance", help="Divide the average by its Fourier variance.",
                           rich_help_panel=_AVERAGE)
    ] = False,
    function: Function = "ref_ali2d",
    seed: Seed = 1000,
    device: Device = "auto",
    gpu_devices: Gpus = None,
    batch: BatchSize = None,
    memory: Memory = None,
    sparx: Sparx = False,
    strict: Strict = False,
    resume: Continue = False,
    hdf: Hdf = False,
    write_headers: WriteHeaders = False,
    datadir: Datadir = None,
    pixel_size: PixelSize = None,
    report: Report = True,
) -> None:  # fmt: skip
    """Reference-free alignment: all particles onto their own average."""
    options = {k: v for k, v in locals().items() if k not in NO_OPTIONS}
    from ralib.cli.align_runs import AlignmentRun
    from ralib.cli.parsing import ctf_choice, shift_ranges

    options["ctf_mode"] = ctf_choice(ctf, ctf_mode)
    stages = shift_ranges(xr, yr, ts)
    where = _device(device, gpu_devices)
    run = AlignmentRun("reffree", stack, outdir, options, where, resume=resume, report=report, began=context.obj)
    run.execute(stages=stages)


def _device(text: str, gpu_devices: str | None) -> Any:
    """The device of --device, or of the original's --gpu_devices; several of those make as many processes."""
    if gpu_devices is None:
        return resolve_device(text)
    numbers = gpu_devices.replace(",", " ").split()
    if not numbers or not all(n.isdecimal() for n in numbers):
        raise RalibError(f"--gpu_devices {gpu_devices!r} is no list of GPU numbers: use '0' or '0,1'")
    if text not in ("auto", "cuda"):
        raise RalibError(f"--gpu_devices {gpu_devices} and --device {text} contradict each other: give one")
    from ralib.runtime.distributed import launch, launched

    if len(numbers) == 1 or launched():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        return resolve_device(f"cuda:{numbers[local % len(numbers)]}")
    check_devices(numbers)
    raise typer.Exit(launch(len(numbers), sys.argv[1:]))
