"""`ralib mref` and `ralib reffree`: parse, open, fit, save. Options are those of sxmref_ali2d and sxali2d."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ralib.cli.common import DEVICE_HELP, check_devices, resolve_device
from ralib.cli.settings import Settings, command
from ralib.types import RalibError

_GEOMETRY, _AVERAGE, _CLASSES = "Search", "Averages and CTF", "Classes"
_FILES, _RUN = "Files", "Running"
Stack = Annotated[Path, typer.Argument(metavar="STACK", help="Particles: .mrcs .star .cs .hdf .lst .spi .hed ...")]
Outdir = Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make; must be new or empty.")]
Mask = Annotated[Path | None, typer.Argument(metavar="[MASK]", help="Image of the mask. [default: a soft disc]")]
Inner = Annotated[int, typer.Option("--ir", help="Inner radius, px.", rich_help_panel=_GEOMETRY)]
Outer = Annotated[
    int | None,
    typer.Option("--ou", help="Outer radius, px. [default: the particle's, measured]", rich_help_panel=_GEOMETRY),
]
RingStep = Annotated[
    int, typer.Option("--rs", help="Ring step, px; other than 1 with --sparx only.",
                      rich_help_panel=_GEOMETRY)
]  # fmt: skip
NoMirror = Annotated[
    bool, typer.Option("--nomirror", help="Do not look for mirrored particles.",
                       rich_help_panel=_GEOMETRY)
]  # fmt: skip
Ctf = Annotated[bool, typer.Option("--CTF", help="CTF-weighted (Wiener) averages.", rich_help_panel=_AVERAGE)]
CtfMode = Annotated[
    str | None, typer.Option("--ctf", help="off, wiener (the same as --CTF) or flip (phases only).",
                             rich_help_panel=_AVERAGE)
]  # fmt: skip
Snr = Annotated[
    float | None,
    typer.Option("--snr", help="Signal to noise ratio of one particle for --CTF. "
                 "[default: measured from half averages; 1 with --sparx]", rich_help_panel=_AVERAGE),
]  # fmt: skip
Function = Annotated[
    str, typer.Option("--function", help="ref_ali2d, or MODULE:CALLABLE that gets the raw "
                      "average, mask and FRC and returns the reference.", rich_help_panel=_AVERAGE)
]  # fmt: skip
Center = Annotated[
    int, typer.Option("--center", help="-1 average shift, 0 none, 1 phase approximation, 2 Gaussian, "
                      "3 ring, 4 the mask, 5 own rotational average, 6 and 7 thresholded.", rich_help_panel=_AVERAGE)
]  # fmt: skip
Seed = Annotated[int, typer.Option("--seed", help="Of everything random.", rich_help_panel=_RUN)]
Device = Annotated[str, typer.Option("--device", help=DEVICE_HELP, rich_help_panel=_RUN)]
Gpus = Annotated[
    str | None, typer.Option("--gpu_devices", help="GPU numbers, '0' or '0,1'.",
                             rich_help_panel=_RUN)
]  # fmt: skip
BatchSize = Annotated[
    int | None, typer.Option("--batch", help="Particles at a time. [default: by device]",
                             rich_help_panel=_RUN)
]  # fmt: skip
Memory = Annotated[
    float | None, typer.Option("--memory", help="GiB of particles kept on the device between iterations; what does not "
                               "fit is read anew. [default: 0.45 of what is free]", rich_help_panel=_RUN)
]  # fmt: skip
Sparx = Annotated[bool, typer.Option("--sparx", help="EMAN2/SPARX's algorithm exactly.", rich_help_panel=_RUN)]
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
    float | None, typer.Option("--pixel-size", help="A/px. [default: the file's]", rich_help_panel=_FILES)
]
Report = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html at the end.", rich_help_panel=_FILES)
]


# fmt: off
@dataclass(frozen=True)
class AlignmentSettings(Settings):
    """What both alignments can be told."""

    mask: Mask = None
    ir: Inner = 1
    ou: Outer = None
    rs: RingStep = 1
    nomirror: NoMirror = False
    ctf: Ctf = False
    ctf_mode: CtfMode = None
    snr: Snr = None
    function: Function = "ref_ali2d"
    seed: Seed = 1000
    device: Device = "auto"
    gpu_devices: Gpus = None
    batch: BatchSize = None
    memory: Memory = None
    sparx: Sparx = False
    strict: Strict = False
    hdf: Hdf = False
    write_headers: WriteHeaders = False
    datadir: Datadir = None
    pixel_size: PixelSize = None

    def ctf_choice(self) -> str:
        """--CTF and --ctf as one of off, wiener, flip."""
        from ralib.cli.parsing import ctf_choice

        return ctf_choice(self.ctf, self.ctf_mode)

    def record(self) -> dict[str, Any]:
        """The options as run.json holds them, with what --CTF and --ctf came to."""
        return super().record() | {"ctf_mode": self.ctf_choice()}


@dataclass(frozen=True)
class MrefSettings(AlignmentSettings):
    """Options of `ralib mref`."""

    essential = frozenset({"mask", "ou", "xr", "maxit", "ctf_mode", "equal", "seed", "device", "pixel_size"})
    xr: Annotated[
        float | None, typer.Option("--xr", help="Shift range along x, px. [default: a twentieth of the box; 0 with "
                                   "--sparx]", rich_help_panel=_GEOMETRY)
    ] = None
    yr: Annotated[
        float | None, typer.Option("--yr", help="Along y, px. [default: as --xr]", rich_help_panel=_GEOMETRY)
    ] = None
    ts: Annotated[
        float, typer.Option("--ts", help="Grid step of the shifts, px; the best one is refined.",
                            rich_help_panel=_GEOMETRY)
    ] = 1
    center: Center = 1
    maxit: Annotated[int, typer.Option("--maxit", help="Iterations.", rich_help_panel=_RUN)] = 10
    equal: Annotated[
        bool, typer.Option("--EQ", help="Classes of equal size.", rich_help_panel=_CLASSES)
    ] = False
    min_members: Annotated[
        int | None,
        typer.Option("--min-members", help="Reseed smaller classes; 0: never. [default: a twentieth of an equal "
                     "share, at least 4]", rich_help_panel=_CLASSES),
    ] = None

    def stages(self, box: int) -> list[tuple[float, float, float]]:
        """(x range, y range, step) in pixels: one stage, for images of `box` pixels."""
        from ralib.cli.parsing import one_shift_range_px, shift_ranges

        reach = self.xr if self.xr is not None else 0 if self.sparx else one_shift_range_px(box)
        return shift_ranges(str(reach), None if self.yr is None else str(self.yr), str(self.ts))[:1]


@dataclass(frozen=True)
class ReffreeSettings(AlignmentSettings):
    """Options of `ralib reffree`."""

    essential = frozenset({"mask", "ou", "xr", "maxit", "ctf_mode", "seed", "device", "pixel_size"})
    xr: Annotated[
        str | None, typer.Option("--xr", help="Shift range along x of each stage, px, e.g. '4 2 1'. [default: falling "
                                 "from a sixteenth of the box]", rich_help_panel=_GEOMETRY)
    ] = None
    yr: Annotated[
        str | None, typer.Option("--yr", help="Along y, px. [default: as --xr]", rich_help_panel=_GEOMETRY)
    ] = None
    ts: Annotated[
        str | None, typer.Option("--ts", help="Grid step of each stage, px; the best one is refined. [default: half "
                                 "the range, at most 2]", rich_help_panel=_GEOMETRY)
    ] = None
    dst: Annotated[
        float, typer.Option("--dst", help="Discrete angle of every fourth iteration, degrees; "
                            "with --sparx only.", rich_help_panel=_GEOMETRY)
    ] = 0.0
    mode: Annotated[
        str, typer.Option("--mode", help="F: full rings; H: half rings, with --sparx only.",
                          rich_help_panel=_GEOMETRY)
    ] = "F"
    randomize: Annotated[
        bool, typer.Option("--randomize", help="Start from random rotations.", rich_help_panel=_GEOMETRY)
    ] = False
    random_method: Annotated[
        str, typer.Option("--random_method", help="SHC or SCF, with --sparx only.",
                          rich_help_panel=_GEOMETRY)
    ] = ""
    center: Center = -1
    maxit: Annotated[
        int, typer.Option("--maxit", help="Iterations a stage; 0: up to 10, ending when the criterion "
                          "falls.", rich_help_panel=_RUN)
    ] = 0
    fourvar: Annotated[
        bool, typer.Option("--Fourvar", help="Divide the average by its Fourier variance.",
                           rich_help_panel=_AVERAGE)
    ] = False

    def stages(self, box: int) -> list[tuple[float, float, float]]:
        """(x range, y range, step) in pixels of each stage, for images of `box` pixels."""
        from ralib.cli.parsing import SPARX_STAGES, falling_shift_ranges_px, shift_ranges

        if self.xr is None and self.ts is None:
            reach, step = SPARX_STAGES if self.sparx else falling_shift_ranges_px(box)
            return shift_ranges(reach, self.yr, step)
        reach = self.xr or SPARX_STAGES[0]
        as_sparx = self.ts is None and len(reach.replace(",", " ").split()) == len(SPARX_STAGES[1].split())
        return shift_ranges(reach, self.yr, SPARX_STAGES[1] if as_sparx else self.ts)
# fmt: on


def register(app: typer.Typer) -> None:
    command(app, "mref", mref)
    command(app, "reffree", reffree)


def mref(
    context: typer.Context,
    stack: Stack,
    references: Annotated[
        str, typer.Argument(metavar="REFERENCES", help="Stack of references, or a number K: random averages.")
    ],
    outdir: Outdir,
    settings: MrefSettings,
    resume: Continue = False,
    report: Report = True,
) -> None:
    """Multi-reference alignment: class averages from particles and references."""
    from ralib.cli.align_runs import AlignmentRun

    settings.stages(box=64)  # refused before a device is looked for
    where = _device(settings.device, settings.gpu_devices)
    AlignmentRun(
        "mref", stack, outdir, settings, where, references=references, resume=resume, report=report, began=context.obj
    ).execute()


def reffree(
    context: typer.Context,
    stack: Stack,
    outdir: Outdir,
    settings: ReffreeSettings,
    resume: Continue = False,
    report: Report = True,
) -> None:
    """Reference-free alignment: all particles onto their own average."""
    from ralib.cli.align_runs import AlignmentRun

    settings.stages(box=64)
    where = _device(settings.device, settings.gpu_devices)
    AlignmentRun("reffree", stack, outdir, settings, where, resume=resume, report=report, began=context.obj).execute()


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
