"""Common steps of `mref` and `reffree`: checks, opening, measurement, the aligner's or SPARX's arguments."""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib import io
from ralib.alignment.options import outer_radius_px
from ralib.alignment.references import shift_limit_px
from ralib.cli.alignment_options import AlignmentSettings
from ralib.cli.common import chosen_device
from ralib.cli.parsing import length_px, user_function
from ralib.cli.session import RunSession
from ralib.kernels.threads import as_here
from ralib.results.checkpoint import Checkpoint
from ralib.results.run_record import read_record
from ralib.runtime import compilers
from ralib.runtime.distributed import join
from ralib.types import ParticleSet, RalibError, RunResult

FEWEST_TO_MEASURE = 40
"""Of fewer particles no size can be measured; the disc is then as large as the box allows."""

HDF_SUFFIXES = (".hdf", ".h5", ".hdf5")


class AlignmentRun:
    """One alignment command: its session, its particles, and its options as the aligners take them.

    Parameters
    ----------
    kind
        'mref' or 'reffree'.
    references
        As given to mref; recorded among the options.
    began
        When the command began, on the clock of `time.perf_counter`.
    """

    def __init__(
        self,
        kind: str,
        stack: Path,
        outdir: Path,
        settings: AlignmentSettings,
        *,
        references: str | None = None,
        resume: bool,
        report: bool,
        began: float,
    ) -> None:
        settings.check()  # before a device is looked for
        self.kind, self.stack, self.settings = kind, stack, settings
        self.device = chosen_device(settings.device, settings.gpu_devices)
        self.session = RunSession(
            kind, stack, outdir, settings, self.device, resume=resume, report=report, began=began, ranks=join(),
            options=settings.record() | ({} if references is None else {"references": references}),
        )  # fmt: skip
        self._refuse()
        o = self.settings
        self.particles = self.session.opened(stack, datadir=o.datadir, pixel_size_A=o.pixel_size)
        self.session.accept(self.particles)
        self.stages = o.stages(self.particles.box, self.particles.pixel_size_A)
        self.widest_range_px = float(max(max(x, y) for x, y, _ in self.stages))
        self.mask = _single_image(o.mask) if o.mask else None
        function = user_function(o.function)
        self.user_function = None if function is None else as_here(function)  # outside of inference mode

    def begin(self, plan: str, iterations: int | None = None) -> Checkpoint | None:
        """Begin the session, resolve the outer radius, and report what was chosen because no option gives it.

        Parameters
        ----------
        plan : str
            What will be done, in words.
        iterations : int | None, optional
            Number of iterations expected, if known.

        Returns
        -------
        Checkpoint or None
            Checkpoint to continue from, None for a new run.
        """
        begun = self.session.begin(
            self.particles, plan, ctf=self.settings.ctf_choice(), search_range_px=self.widest_range_px,
            iterations=iterations,
        )  # fmt: skip
        self.session.note(outer_radius_px=self.outer_radius_px)
        self._say_defaults()
        return begun

    def write(self, result: RunResult) -> None:
        """Write all files of the run, and on request the poses into the headers of the stack."""
        self.session.write(result, hdf=self.settings.hdf or self._hdf_input)
        if self.settings.write_headers and self.session.directory is not None:
            io.write_headers(self.stack, result.poses)

    @cached_property
    def outer_radius_px(self) -> float:
        """Outer radius, pixels: --ou, or that of the run to continue, or measured; SPARX's default with --sparx."""
        given: float | None = None
        if self.settings.ou is not None:
            given = length_px("--ou", self.settings.ou, self.particles.pixel_size_A)
        if self.settings.diameter is not None:
            if self.particles.pixel_size_A is None:
                raise RalibError("--diameter is in A, and no file says the pixel size: give it with --pixel-size")
            given = self.settings.diameter / self.particles.pixel_size_A / 2
        if given is None and self.session.resume:
            known = read_record(self.session.outdir).get("outer_radius_px")
            if known:
                return float(known)
        if given is not None or self.settings.sparx or len(self.particles) < FEWEST_TO_MEASURE:
            return outer_radius_px(self.particles.box, given)
        return measured_radius_px(self.particles, self.device)

    def aligner_options(self) -> dict[str, Any]:
        """Return the arguments that both aligners share."""
        o = self.settings
        return {
            "outer_radius": self.outer_radius_px,
            "inner_radius": o.ir,
            "mirror": not o.nomirror,
            "center": o.center,
            "iterations": o.maxit,
            "mask": self.mask,
            "ctf": o.ctf_choice(),
            "snr": o.snr,
            "user_function": self.user_function,
            "seed": o.seed,
            "strict": o.strict,
            "device": self.device,
            "batch_size": o.batch,
            "resident_bytes": None if o.memory is None else int(o.memory * 2**30),
            "ranks": self.session.ranks,
        }

    def sparx_options(self) -> dict[str, Any]:
        """Return the arguments that both of SPARX's loops share, by SPARX's names."""
        o = self.settings
        if o.ctf_choice() == "flip":
            raise RalibError("--ctf flip is not SPARX's: use --CTF, or flip first with 'ralib prepare --phase-flip'")
        batch = {} if o.batch is None else {"batch_size": o.batch}
        return batch | {
            "mask": self.mask,
            "ir": o.ir,
            "ou": int(self.outer_radius_px),
            "rs": o.rs,
            "center": o.center,
            "maxit": o.maxit,
            "CTF": o.ctf_choice() == "wiener",
            "snr": 1.0 if o.snr is None else o.snr,
            "user_function": self.user_function,
            "rand_seed": o.seed,
            "nomirror": o.nomirror,
            "device": self.device,
            "observer": self.session,
        }

    @property
    def _hdf_input(self) -> bool:
        return self.stack.suffix.lower() in HDF_SUFFIXES

    def _refuse(self) -> None:
        """Options that this run cannot honour are refused, never dropped."""
        o = self.settings
        if o.write_headers and not self._hdf_input:
            raise RalibError(f"--write-headers: {self.stack.name} is no EMAN2 HDF file; poses are in OUTDIR/params.txt")
        if o.sparx and self.session.resume:
            raise RalibError("--continue: the parity mode keeps no checkpoints: start again without --continue")
        if o.sparx and self.session.ranks.size > 1:
            raise RalibError("--sparx runs as SPARX does, on one device: start it without torchrun or with one GPU")

    def _say_defaults(self) -> None:
        """What was chosen because no option says it; and a range cut short, before an hour goes by."""
        pixel, box = self.particles.pixel_size_A, self.particles.box
        radius, widest = self.outer_radius_px, self.widest_range_px
        if self.settings.ou is None:
            length = f", {2 * radius * pixel:.0f} A across" if pixel else ""
            self.session.say(f"outer radius: {radius:.0f} px{length} (--ou)")
        if self.settings.xr is None:
            self.session.say(f"shift range: {widest:g} px{f', {widest * pixel:.0f} A' if pixel else ''} (--xr)")
        limit = shift_limit_px(box, radius)
        if widest > limit and not self.settings.sparx:
            self.session.say(
                f"note: shifts are searched to {limit:g} px only, not {widest:g}: a disc of radius {radius:g} px "
                f"(--ou) can move no further in a box of {box} px"
            )


def measured_radius_px(particles: ParticleSet, device: torch.device) -> float:
    """Measure the outer radius for particles: that of the mask which `ralib classify` would use, in whole pixels.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    device : torch.device
        Where to compute.

    Returns
    -------
    float
        Pixels.
    """
    from ralib.classes.kernels_ahead import average_calls
    from ralib.classification.diameter import measure_radius
    from ralib.classification.kernels_ahead import measuring_calls
    from ralib.classification.memory_plan import Budget

    compilers.submit([*measuring_calls(), *average_calls(particles.box, rounded=True)])
    known = particles.ctf is not None and particles.pixel_size_A is not None
    few = io.for_computing(particles, ctf=known)
    found = measure_radius(
        few, device=device, search_px=0.1 * few.box, ctf="on" if known else "off", mirror=True, budget=Budget()
    )  # fmt: skip
    return float(min(math.ceil(found.mask_radius_px), outer_radius_px(few.box, None)))


def _single_image(path: Path) -> np.ndarray:
    images = io.open_images(path)
    if len(images) != 1:
        raise RalibError(f"the mask {path} holds {len(images)} images: give a file with one")
    return images[0]
