"""What `mref` and `reffree` do once their options are parsed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from ralib import io
from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.alignment.options import outer_radius_px
from ralib.alignment.reference_free import ReferenceFreeAligner
from ralib.alignment.references import shift_limit_px
from ralib.alignment.state import LoopState
from ralib.cli.align import MrefSettings, ReffreeSettings
from ralib.cli.common import with_pixel_size
from ralib.cli.parsing import user_function
from ralib.cli.running import (
    Reporter,
    SignalFlag,
    Stopped,
    finish_record,
    new_record,
    report_trouble,
    resumed_state,
    run_ctf,
    stopped_message,
)
from ralib.cli.terminal import Terminal, class_table, header
from ralib.cli.timing import references_s, time_line
from ralib.results.input_fingerprint import check_same_input
from ralib.results.run_directory import RunDirectory
from ralib.results.run_record import particle_file, read_record
from ralib.runtime.distributed import RankLost, Ranks, join
from ralib.types import CtfCorrection, ParticleSet, RalibError, RunResult

FEWEST_TO_MEASURE = 40
"""Of fewer particles no size can be measured; the disc is then as large as the box allows."""

HDF_SUFFIXES = (".hdf", ".h5", ".hdf5")


class AlignmentRun:
    """One command from opened files to written ones."""

    def __init__(
        self,
        kind: str,
        stack: Path,
        outdir: Path,
        settings: MrefSettings | ReffreeSettings,
        device: torch.device,
        *,
        references: str = "",
        resume: bool,
        report: bool,
        began: float,
    ) -> None:
        self.began = began
        self.told: tuple[dict[str, str], ...] = ()
        self.kind, self.stack, self.outdir, self.device = kind, stack, outdir, device
        self.settings, self.references = settings, references
        self.options = settings.record() | ({"references": references} if kind == "mref" else {})
        self.resume, self.report = resume, report
        self.ranks: Ranks = join()
        self.terminal = Terminal(quiet=self.ranks.rank != 0)
        self.hdf_input = stack.suffix.lower() in HDF_SUFFIXES

    def execute(self) -> None:
        """Open, align, write."""
        o = self.settings
        self._refuse()
        particles = self._particles()
        self.stages = o.stages(particles.box)
        references = self._references(particles) if self.kind == "mref" else None
        mask = _single_image(o.mask) if o.mask else None
        function = user_function(o.function)
        flag = SignalFlag()
        with ExitStack() as stack:
            directory = None
            if self.ranks.rank == 0:
                directory = stack.enter_context(RunDirectory(self.outdir, resume=self.resume))
            record = new_record(
                self.kind, self.options, particles, self.stack, self.device,
                ctf=run_ctf(o.ctf_choice(), particles), search_range_px=_widest_range_px(self.stages),
            )  # fmt: skip
            state = self._resumed(record, particles)
            self._begin_telling(particles, record)
            reporter = stack.enter_context(
                Reporter(directory, record, flag, self._iterations(), o, self.terminal).showing()
            )
            self.outer_radius_px = record["outer_radius_px"] = self._outer_radius_px(particles)
            self._tell_of_defaults(particles)
            record["timings"] = {"start_s": time.perf_counter() - self.began}
            try:
                if o.sparx:
                    result = self._fit_sparx(particles, references, mask, function, reporter)
                else:
                    result = self._fit(particles, references, mask, function, reporter, state)
            except (Stopped, RankLost) as reason:
                if flag.number is None:
                    raise
                stop = Stopped(flag.number)  # a rank lost after a signal had the same signal
                if directory is not None:
                    saved = directory.newest_checkpoint() is not None
                    typer.echo(f"ralib: {stopped_message(stop, self.outdir, saved)}", err=True)
                raise typer.Exit(stop.status) from reason
            if directory is not None:
                self._write(directory, result, particles, reporter, len(state.figures) if state else 0)

    def _fit(
        self,
        particles: ParticleSet,
        references: Any,
        mask: np.ndarray | None,
        function: Any,
        reporter: Reporter,
        state: LoopState | None,
    ) -> RunResult:
        o = self.settings
        self._tell_of_short_range(particles.box)
        common: dict[str, Any] = {
            "outer_radius": self.outer_radius_px,
            "inner_radius": o.ir,
            "mirror": not o.nomirror,
            "center": o.center,
            "iterations": o.maxit,
            "mask": mask,
            "ctf": o.ctf_choice(),
            "snr": o.snr,
            "user_function": function,
            "seed": o.seed,
            "strict": o.strict,
            "device": self.device,
            "batch_size": o.batch,
            "resident_bytes": None if o.memory is None else int(o.memory * 2**30),
            "ranks": self.ranks,
        }
        if isinstance(o, MrefSettings):
            ((x_range, y_range, step),) = self.stages
            aligner: MultiReferenceAligner | ReferenceFreeAligner = MultiReferenceAligner(
                references=references,
                shift_range_xy_px=(x_range, y_range),
                shift_step_px=step,
                min_members=o.min_members,
                equal_sizes=o.equal,
                **common,
            )
        else:
            aligner = ReferenceFreeAligner(
                stages=self.stages,
                randomize=o.randomize,
                fourier_variance=o.fourvar,
                **common,
            )
        return aligner.fit(particles, observer=reporter, resume=state).result_

    def _outer_radius_px(self, particles: ParticleSet) -> float:
        """--ou, or what the run to go on with had, or the measured particle's mask; SPARX's default with --sparx."""
        given = self.settings.ou
        if given is None and self.resume and (known := read_record(self.outdir).get("outer_radius_px")):
            return float(known)
        if given is not None or self.settings.sparx or len(particles) < FEWEST_TO_MEASURE:
            return outer_radius_px(particles.box, given)
        return measured_radius_px(particles, self.device)

    def _begin_telling(self, particles: ParticleSet, record: dict[str, Any]) -> None:
        """The header of the log."""
        number = self._iterations()
        self.terminal.total = number
        plan = (
            f"{number} iterations"
            if number
            else f"{len(self.stages)} stage{'s' * (len(self.stages) > 1)} of falling shift range"
        )
        for line in header(particles, CtfCorrection(record["ctf_correction"]), plan):
            self._say(line)

    def _tell_of_defaults(self, particles: ParticleSet) -> None:
        """What was chosen because no option says it."""
        pixel = particles.pixel_size_A
        if self.settings.ou is None:
            length = f", {2 * self.outer_radius_px * pixel:.0f} A across" if pixel else ""
            self._say(f"outer radius: {self.outer_radius_px:.0f} px{length} (--ou)")
        if self.settings.xr is None:
            reach = _widest_range_px(self.stages)
            self._say(f"shift range: {reach:g} px{f', {reach * pixel:.0f} A' if pixel else ''} (--xr)")

    def _tell_of_short_range(self, box: int) -> None:
        """Said before an hour goes by; the run's own warning comes at its end."""
        radius = self.outer_radius_px
        limit = shift_limit_px(box, radius)
        if (widest := _widest_range_px(self.stages)) > limit:
            self._say(
                f"note: shifts are searched to {limit:g} px only, not {widest:g}: a disc of radius {radius:g} px "
                f"(--ou) can move no further in a box of {box} px"
            )

    def _fit_sparx(
        self,
        particles: ParticleSet,
        references: Any,
        mask: np.ndarray | None,
        function: Any,
        reporter: Reporter,
    ) -> RunResult:
        from ralib.cli.sparx_runs import fit_sparx

        return fit_sparx(
            particles,
            references,
            mask,
            function,
            self.settings,
            self.outer_radius_px,
            self.stages,
            self.device,
            reporter,
        )

    def _write(
        self, directory: RunDirectory, result: RunResult, particles: ParticleSet, reporter: Reporter, before: int
    ) -> None:
        """All files; the report is made beside them. `before` iterations were done by the run this one goes on with."""
        reporter.settle()
        self.terminal.close()
        start = time.perf_counter()
        record = finish_record(reporter.record, result, self.device, self.began, reporter.write_s)
        timings = record["timings"]
        if "search_s" in timings:
            timings["references_s"] = references_s(timings, result.iterations[before:])
        with ThreadPoolExecutor(1, "ralib-report") as beside:
            shown = record | {"timings": {k: v for k, v in timings.items() if k != "write_s"}}  # not over yet
            report = beside.submit(self._write_report, shown, result, particles) if self.report else None
            directory.write_result(result, particles, record, hdf=self.settings.hdf or self.hdf_input)
            if self.settings.write_headers:
                io.write_headers(self.stack, result.poses)
            timings["write_s"] += time.perf_counter() - start
            before_told = [*reporter.record["warnings"], *self.told]
            self.terminal.warn(warning for warning in result.warnings if warning not in before_told)
            start = time.perf_counter()
            if report is not None and (trouble := report.result()):
                typer.echo(trouble, err=True)
        timings["report_s"] = time.perf_counter() - start
        timings["total_s"] = time.perf_counter() - self.began
        directory.write_record(record)
        if len(record["classes"]) > 1:
            for line in class_table(record["classes"], particles.box):
                self._say(line)
        self._say(time_line(timings))
        self._say(f"wrote {self.outdir}: class_averages.mrcs, particles.star, classes.png, run.json ...")
        self.terminal.save(self.outdir)

    def _write_report(self, record: dict[str, Any], result: RunResult, particles: ParticleSet) -> str:
        """report.html from what is still in memory, or a line that says why there is none."""
        from ralib.results.summary import finished_run, write_report

        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            return report_trouble(
                self.outdir,
                lambda: write_report(finished_run(self.outdir, record, result, particles), device=self.device),
            )

    def _refuse(self) -> None:
        """Options this mode cannot honour are refused, never dropped."""
        o = self.settings
        if o.memory is not None and o.memory < 0:
            raise RalibError(f"--memory {o.memory:g} GiB must not be below 0")
        if o.write_headers and not self.hdf_input:
            raise RalibError(f"--write-headers: {self.stack.name} is no EMAN2 HDF file; poses are in OUTDIR/params.txt")
        if o.sparx:
            if self.resume:
                raise RalibError("--continue: the parity mode keeps no checkpoints: start again without --continue")
            if self.ranks.size > 1:
                raise RalibError("--sparx runs as SPARX does, on one device: start it without torchrun or with one GPU")
            if isinstance(o, MrefSettings) and o.min_members is not None:
                raise RalibError(
                    "--min-members: SPARX gives a class below 4 one random particle: leave it, or --sparx, out"
                )
            return
        if o.rs != 1:
            raise RalibError(
                f"--rs {o.rs} thins out SPARX's polar rings; this search compares all frequencies: "
                "leave it out, or add --sparx"
            )
        if isinstance(o, MrefSettings):
            return
        for name, given, neutral in (
            ("--dst", o.dst, 0.0),
            ("--mode", o.mode, "F"),
            ("--random_method", o.random_method, ""),
        ):
            if given != neutral:
                raise RalibError(
                    f"{name} {given} changes SPARX's ring search; here every angle is searched in every iteration: "
                    "leave it out, or add --sparx"
                )

    def _particles(self) -> ParticleSet:
        o = self.settings
        particles = io.open_particles(particle_file(self.stack), datadir=o.datadir)
        particles = with_pixel_size(particles, o.pixel_size, "--pixel-size")
        io.check_writable_name(self.outdir)
        self.terminal.warn(particles.warnings)
        self.told = particles.warnings
        return particles

    def _references(self, particles: ParticleSet) -> Any:
        text = self.references
        if text.isdecimal() and not Path(text).exists():
            return int(text)
        self._compare_scale(text, particles)
        return io.open_images(text)

    def _compare_scale(self, references: str, particles: ParticleSet) -> None:
        """RalibError where the references say another pixel size than the particles."""
        if Path(references).suffix.lower() == ".star":
            return
        size_A, own_A = io.open_particles(references, require_images=False).pixel_size_A, particles.pixel_size_A
        box = particles.box
        if size_A is None or own_A is None or abs(size_A - own_A) * box <= own_A:
            return
        if size_A == 1.0:  # what programs write that do not know it
            self._say(
                f"warning: the header of {references} says 1 A/px, the particles have {own_A:g} A/px; they are "
                "compared pixel by pixel: make sure that the references are of the particles' scale"
            )
            return
        raise RalibError(
            f"{references} has {size_A:g} A/px, the particles {own_A:g} A/px: bring the references to the particles' "
            f"scale with 'ralib prepare {references} OUT.mrcs --pixel-size {own_A:g}' (and --clip {box})"
        )

    def _resumed(self, record: dict[str, Any], particles: ParticleSet) -> LoopState | None:
        """The newest checkpoint's state; every rank reads it for itself."""
        if not self.resume:
            return None
        state = resumed_state(self.outdir, self.options, self.device)
        if state is None:
            self._say("no iteration was finished: beginning anew")
            return None
        now = record["input"]["fingerprint"]
        check_same_input(read_record(self.outdir), now, stack=str(self.stack), outdir=str(self.outdir))
        record |= {"iterations": state.figures, "warnings": list(state.warnings)}
        self._say(f"going on after iteration {state.iteration}")
        return state

    def _say(self, line: str) -> None:
        self.terminal.say(line)

    def _iterations(self) -> int | None:
        return self.settings.maxit if self.kind == "mref" else None


def measured_radius_px(particles: ParticleSet, device: torch.device) -> float:
    """Outer radius for these particles: that of the mask which `ralib classify` would measure, whole pixels."""
    from ralib.classification.diameter import measure_radius
    from ralib.classification.em import Budget

    known = particles.ctf is not None and particles.pixel_size_A is not None
    few = io.for_computing(particles, ctf=known)
    found = measure_radius(
        few, device=device, search_px=0.1 * few.box, ctf="on" if known else "off", mirror=True, budget=Budget()
    )  # fmt: skip
    return float(min(math.ceil(found.mask_radius_px), outer_radius_px(few.box, None)))


def _widest_range_px(stages: Sequence[tuple[float, float, float]]) -> float:
    """The widest shift that an alignment tries, whatever its stages."""
    return float(max(max(x, y) for x, y, _ in stages))


def _single_image(path: Path) -> np.ndarray:
    images = io.open_images(path)
    if len(images) != 1:
        raise RalibError(f"the mask {path} holds {len(images)} images: give a file with one")
    return images[0]
