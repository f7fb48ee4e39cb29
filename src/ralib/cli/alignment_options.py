"""The options that `ralib mref` and `ralib reffree` share: those of sxmref_ali2d and sxali2d."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ralib.cli.common import DEVICE_HELP
from ralib.cli.parsing import LENGTH_UNITS, completed, length
from ralib.cli.settings import AVERAGES, FILES, RUNNING, SEARCH, Settings
from ralib.types import RalibError

Stack = Annotated[Path, typer.Argument(metavar="STACK", help="Particles: .mrcs .star .cs .hdf .lst .spi .hed ...")]
Outdir = Annotated[Path, typer.Argument(metavar="OUTDIR", help="Folder to make; must be new or empty.")]
Mask = Annotated[Path | None, typer.Argument(metavar="[MASK]", help="Image of the mask. [default: a soft disc]")]
Inner = Annotated[int, typer.Option("--ir", help="Inner radius, px.", rich_help_panel=SEARCH)]
Outer = Annotated[
    Any,
    typer.Option("--ou", parser=length, metavar="LENGTH", rich_help_panel=SEARCH,
                 help=f"Outer radius, {LENGTH_UNITS}. [default: the particle's, measured]"),
]  # fmt: skip
Diameter = Annotated[
    float | None,
    typer.Option(
        "--diameter", help="Diameter of the mask, A, in place of --ou. [default: measured]", rich_help_panel=SEARCH
    ),
]
RingStep = Annotated[
    int, typer.Option("--rs", help="Ring step, px; other than 1 with --sparx only.",
                      rich_help_panel=SEARCH)
]  # fmt: skip
NoMirror = Annotated[
    bool, typer.Option("--nomirror", help="Do not look for mirrored particles.",
                       rich_help_panel=SEARCH)
]  # fmt: skip
Ctf = Annotated[bool, typer.Option("--CTF", help="As --ctf wiener (SPARX's name).", rich_help_panel=AVERAGES)]
CtfMode = Annotated[
    str | None, typer.Option("--ctf", help="off; wiener, the same as --CTF; or flip: phases only. [default: off]",
                             autocompletion=completed("off", "wiener", "flip"),
                             rich_help_panel=AVERAGES)
]  # fmt: skip
Snr = Annotated[
    float | None,
    typer.Option("--snr", help="Signal to noise ratio of one particle for --ctf wiener. "
                 "[default: measured from half averages; 1 with --sparx]", rich_help_panel=AVERAGES),
]  # fmt: skip
Function = Annotated[
    str, typer.Option("--function", help="ref_ali2d, or MODULE:CALLABLE that gets the raw "
                      "average, mask and FRC and returns the reference.", rich_help_panel=AVERAGES)
]  # fmt: skip
Center = Annotated[
    int, typer.Option("--center", help="-1 average shift, 0 none, 1 phase approximation, 2 Gaussian, "
                      "3 ring, 4 the mask, 5 own rotational average, 6 and 7 thresholded.", rich_help_panel=AVERAGES)
]  # fmt: skip
Seed = Annotated[int, typer.Option("--seed", help="Seed of all random numbers.", rich_help_panel=RUNNING)]
Device = Annotated[str, typer.Option("--device", help=DEVICE_HELP, rich_help_panel=RUNNING)]
Gpus = Annotated[
    str | None, typer.Option("--gpu_devices", help="GPU numbers, '0' or '0,1'.",
                             rich_help_panel=RUNNING)
]  # fmt: skip
BatchSize = Annotated[
    int | None, typer.Option("--batch", help="Particles at a time. [default: by device]",
                             rich_help_panel=RUNNING)
]  # fmt: skip
Memory = Annotated[
    float | None, typer.Option("--memory", help="GiB of particles kept on the device between iterations; what does not "
                               "fit is read anew. [default: 0.45 of what is free]", rich_help_panel=RUNNING)
]  # fmt: skip
Sparx = Annotated[bool, typer.Option("--sparx", help="EMAN2/SPARX's algorithm exactly.", rich_help_panel=RUNNING)]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at an unusable image instead of leaving it out.", rich_help_panel=RUNNING)
]
Continue = Annotated[
    bool, typer.Option("--continue", help="Go on with the run in OUTDIR after its last iteration.",
                       rich_help_panel=RUNNING)
]  # fmt: skip
Hdf = Annotated[
    bool, typer.Option("--hdf", help="Also class_averages.hdf; always for an HDF input.", rich_help_panel=FILES)
]
WriteHeaders = Annotated[
    bool, typer.Option("--write-headers", help="Write poses into the headers of an HDF STACK.",
                       rich_help_panel=FILES)
]  # fmt: skip
Datadir = Annotated[
    Path | None, typer.Option("--datadir", help="Folder of the images a STAR, .cs or .lst file names.",
                              rich_help_panel=FILES)
]  # fmt: skip
PixelSize = Annotated[
    float | None, typer.Option("--pixel-size", help="Pixel size, A/px. [default: the file's]", rich_help_panel=FILES)
]
Report = Annotated[
    bool, typer.Option("--report/--no-report", help="Write report.html at the end.", rich_help_panel=FILES)
]


def check_seed_and_batch(seed: int, batch: int | None) -> None:
    """Raise RalibError for numbers that no generator of random numbers, or no loop, can take."""
    if not 0 <= seed < 2**32:
        raise RalibError(f"--seed {seed}: give a whole number from 0 to {2**32 - 1}")
    if batch is not None and batch < 1:
        raise RalibError(f"--batch {batch}: give 1 or more")


# fmt: off
@dataclass(frozen=True)
class AlignmentSettings(Settings):
    """Options that both alignment commands share; their help describes them."""

    free_to_change = frozenset({"maxit", "device", "gpu_devices", "memory"})
    mask: Mask = None
    ir: Inner = 1
    ou: Outer = None
    diameter: Diameter = None
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
    # Of both commands, each with its own text and default.
    xr: Any = None
    center: Center = -1
    maxit: int = 0

    def stages(self, box: int, pixel_size_A: float | None) -> list[tuple[float, float, float]]:
        """Return (x range, y range, step) in pixels of each stage of the search, for images of `box` pixels."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise RalibError for impossible options, or those that the chosen method would have to ignore."""
        self.stages(box=64, pixel_size_A=1.0)
        check_seed_and_batch(self.seed, self.batch)
        if self.diameter is not None and (self.ou is not None or not self.diameter > 0):
            raise RalibError(f"--diameter {self.diameter:g} A must be above 0, and not beside --ou: give one of them")
        if self.memory is not None and not 0 <= self.memory < 1e9:
            raise RalibError(f"--memory {self.memory:g} GiB: give 0 or more")
        if not self.sparx and self.rs != 1:
            raise RalibError(
                f"--rs {self.rs} thins out SPARX's polar rings; this search compares all frequencies: "
                "leave it out, or add --sparx"
            )

    def ctf_choice(self) -> str:
        """Return --CTF and --ctf as one of off, wiener, flip."""
        from ralib.cli.parsing import ctf_choice

        return ctf_choice(self.ctf, self.ctf_mode)

    def record(self) -> dict[str, Any]:
        """Return the options as run.json holds them, with the CTF correction that --CTF and --ctf mean."""
        return super().record() | {"ctf_mode": self.ctf_choice()}
# fmt: on
