"""What `classify` does once its options are parsed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from ralib import io
from ralib.classification.classifier import Classifier, Silent
from ralib.classification.schedule import ScheduleSettings
from ralib.classification.validation import compare_runs
from ralib.cli.classify import ClassifySettings
from ralib.cli.common import with_pixel_size
from ralib.cli.parsing import default_classes
from ralib.cli.running import SignalFlag, Stopped, finish_record, new_record, report_of, run_ctf, stopped_message
from ralib.cli.settings import Settings, write_config
from ralib.cli.terminal import Terminal, class_table, header, resolution_text
from ralib.results.checkpoint import Checkpoint
from ralib.results.input_fingerprint import check_same_input, check_same_options
from ralib.results.particle_scores import SCORES_FILE, read_particle_scores
from ralib.results.run_directory import RunDirectory
from ralib.results.run_record import particle_file, read_record
from ralib.results.selection import combine, selected_rows
from ralib.types import ClassAverages, CtfCorrection, ParticleSet, Poses, RalibError, RunResult


class Recorder:
    """The observer of a run: a log line an iteration, averages and a checkpoint after each step of the schedule.

    Files are written by a thread while the next iteration computes.
    """

    def __init__(
        self, directory: RunDirectory, record: dict[str, Any], flag: SignalFlag, settings: Settings, terminal: Terminal
    ) -> None:
        self.directory, self.record, self.flag = directory, record, flag
        self.settings, self.terminal = settings, terminal
        self._writer = ThreadPoolExecutor(1, "ralib-write")
        self._pending: Future[None] | None = None
        self._pictures: Callable[[], ClassAverages] | None = None

    @contextmanager
    def showing(self) -> Iterator[Recorder]:
        """Until its end signals are noted, and at its end no file is half written."""
        with self.flag.watching(), self._writer, self.terminal.showing():
            yield self

    def iteration(self, figures: list[dict[str, Any]], pictures: Callable[[], ClassAverages]) -> None:
        row = figures[-1]
        self.terminal.say(iteration_line(row, self.record["input"]["box"]))
        self.terminal.step(len(figures), row["stage"])
        self.record["iterations"], self._pictures = figures, pictures
        self._stop_if_asked()

    def checkpoint(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        assert self._pictures is not None
        self.settle()
        number, averages = len(meta["figures"]), self._pictures()
        meta = {**meta, "options": self.record["options"]}
        text = json.dumps(meta)  # as it is now: the thread writes it while the figures grow
        record = {**self.record, "iterations": list(meta["figures"])}

        def write() -> None:
            write_config(self.directory.path, self.settings)
            self.terminal.save(self.directory.path)
            self.directory.write_iteration(number, averages)
            self.directory.write_record(record)
            self.directory.save_checkpoint(number, arrays, json.loads(text))

        self._pending = self._writer.submit(write)

    def settle(self) -> None:
        """Wait for the files; raises what their writing raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _stop_if_asked(self) -> None:
        if self.flag.number is not None:
            self.settle()
        self.flag.raise_if_set()


class Watchful(Silent):
    """The observer of a run to compare with: it only looks out for signals."""

    def __init__(self, flag: SignalFlag) -> None:
        self.flag = flag

    def iteration(self, figures: list[dict[str, Any]], pictures: Callable[[], ClassAverages]) -> None:
        self.flag.raise_if_set()


class ClassifyRun:
    """One command from opened files to written ones."""

    def __init__(
        self, stack: Path, outdir: Path, settings: ClassifySettings, device: torch.device, *, resume: bool, report: bool
    ) -> None:
        self.started = time.perf_counter()
        self.stack, self.outdir, self.device = stack, outdir, device
        self.resume, self.report = resume, report
        self.told: tuple[dict[str, str], ...] = ()
        self.settings, self.options = settings, settings.record()
        self.terminal = Terminal()

    def execute(self) -> None:
        """Open, classify, compare with other starts where asked, write."""
        particles, flag = self._particles(), SignalFlag()
        with ExitStack() as stack:
            directory = stack.enter_context(RunDirectory(self.outdir, resume=self.resume))
            record = new_record(
                "classify", self.options, particles, self.stack, self.device,
                ctf=run_ctf(self.settings.ctf, particles),
                search_range_px=None if self.settings.skip_align else self.settings.search or 0.1 * particles.box,
            )  # fmt: skip
            begun = self._begun(directory, record)
            self.terminal.total = ScheduleSettings().planned_iterations(self.n_classes)
            plan = f"{self.n_classes} classes in about {self.terminal.total} iterations: start, thin, exchange, sharpen"
            for line in header(particles, CtfCorrection(record["ctf_correction"]), plan):
                self.terminal.say(line)
            recorder = stack.enter_context(Recorder(directory, record, flag, self.settings, self.terminal).showing())
            try:
                classifier = self._classifier(self.settings.seed)
                result = classifier.fit(particles, observer=recorder, resume=begun).result_
                recorder.settle()
                self.terminal.close()
                if self.settings.stability:
                    self._compare(result, particles, flag)
            except Stopped as stop:
                saved = directory.newest_checkpoint() is not None
                typer.echo(f"ralib: {stopped_message(stop, self.outdir, saved)}", err=True)
                raise typer.Exit(stop.status) from None
            self._write(directory, result, particles, record)

    def _begun(self, directory: RunDirectory, record: dict[str, Any]) -> Checkpoint | None:
        """The checkpoint to go on from; RalibError where the run was begun with other options."""
        found = directory.newest_checkpoint() if self.resume else None
        if found is not None:
            check_same_options(found.meta.get("options", {}), self.options, free=("device", "stability"))
            now = record["input"]["fingerprint"]
            check_same_input(read_record(self.outdir), now, stack=str(self.stack), outdir=str(self.outdir))
        return found

    def _classifier(self, seed: int) -> Classifier:
        o = self.settings
        return Classifier(
            n_classes=self.n_classes,
            diameter_A=o.diameter,
            resolution_A=o.resolution,
            lowest_A=o.low_limit,
            balance=o.balance,
            equal_sizes=o.equal,
            mirror=not o.nomirror,
            ctf=o.ctf,
            search_px=o.search,
            skip_align=o.skip_align,
            seed=seed,
            batch_size=o.batch,
            device=self.device,
        )

    def _compare(self, result: RunResult, particles: ParticleSet, flag: SignalFlag) -> None:
        """Other starts; what they agree on goes into the result."""
        others = []
        for i in range(1, self.settings.stability + 1):
            self.terminal.say(f"stability: run {i} from another start")
            other = self._classifier(self.settings.seed + i).fit(particles, observer=Watchful(flag))
            others.append(other.result_.poses)
        pixel = particles.pixel_size_A or 1.0
        radius = 0.5 * result.extra["diameter_A"] / pixel
        stable = compare_runs(result.poses, others, radius, limit_px=0.15 * radius).numpy()
        result.extra["particles"]["stable"] = stable
        index = result.poses.class_index.numpy()
        for row in result.extra["classes"]:
            member = index == row["class"] - 1
            row["stable_members"] = float(stable[member].mean()) if member.any() else 0.0
        result.extra["stability"]["stable_particles"] = float(stable.mean())
        self.terminal.say(
            f"stability: {100 * stable.mean():.0f}% of the particles keep class mates and pose from other starts"
        )
        if stable.mean() < 0.1:
            result.warnings.append(
                {
                    "what": f"only {100 * stable.mean():.0f}% of the particles are stable from start to start",
                    "where": "classes",
                    "do": "do not trust the classes: ask for fewer, or check whether there is signal at all",
                }
            )

    def _write(
        self, directory: RunDirectory, result: RunResult, particles: ParticleSet, record: dict[str, Any]
    ) -> None:
        start = time.perf_counter()
        record = finish_record(record, result, self.device, self.started, 0.0)
        record |= {key: result.extra[key] for key in ("stability", "log", "diameter_A")}
        write_config(self.outdir, self.settings)
        write_scores(self.outdir / "particle_scores.txt", result)
        directory.write_result(result, particles, record, hdf=False)
        record["timings"]["write_s"] = time.perf_counter() - start
        record["timings"]["total_s"] = time.perf_counter() - self.started
        directory.write_record(record)
        self._tell(result)
        if self.report:
            report_of(self.outdir, self.device, self.options["datadir"])
        self.terminal.say(f"wrote {self.outdir}: class_averages.mrcs, particles.star, classes.png, run.json ...")
        self.terminal.save(self.outdir)

    def _tell(self, result: RunResult) -> None:
        for line in result.extra["log"]:
            self.terminal.say(line)
        for line in class_table(result.extra["classes"], result.averages.images.shape[-1]):
            self.terminal.say(line)
        self.terminal.warn(warning for warning in result.warnings if warning not in self.told)

    def _particles(self) -> ParticleSet:
        o = self.settings
        particles = io.open_particles(particle_file(self.stack), datadir=o.datadir)
        particles = with_pixel_size(particles, o.pixel_size, "--pixel-size")
        if o.reference_poses is not None:
            particles = particles.replace(poses=read_poses(o.reference_poses, len(particles)))
        if o.split is not None and o.from_ is not None:
            raise RalibError("--split and --from both choose particles: give one of them")
        if o.split is not None or o.from_ is not None:
            particles = io.take(particles, self._chosen(particles))
        self.terminal.warn(particles.warnings)
        self.told = particles.warnings
        io.check_writable_name(self.outdir)
        self._count_classes(len(particles))
        return particles

    def _count_classes(self, n_particles: int) -> None:
        """--classes, or as many as the particles are enough for; told, and recorded as if asked for."""
        if self.settings.classes is None:
            self.n_classes = default_classes(n_particles)
            self.terminal.say(f"classes: {self.n_classes} for {n_particles} particles (--classes)")
        else:
            self.n_classes = self.settings.classes
        self.options["classes"] = self.n_classes

    def _chosen(self, particles: ParticleSet) -> np.ndarray:
        """Rows of the particles in the classes that --split or --from names."""
        folder = self.stack if self.stack.is_dir() else self.stack.parent
        if particles.poses is None or not (folder / "run.json").is_file():
            raise RalibError(f"{self.stack} is no run: --split and --from choose from the folder of a finished run")
        figures = read_record(folder).get("classes") or []
        selection = combine(figures, file=self.settings.from_, classes=self.settings.split)
        scores = read_particle_scores(folder / SCORES_FILE, len(particles))
        rows = selected_rows(particles.poses, selection, scores)
        if len(rows) == 0:
            raise RalibError(f"{self.stack}: the classes chosen have no members")
        return rows


def iteration_line(row: dict[str, Any], box: int) -> str:
    """One iteration for the log, in less than 100 characters; what is not known is left out."""
    parts = [f"iteration {row['iteration']} {row['stage']}: fit {row['criterion']:.2f}"]
    empty = f" ({row['empty']} empty)" if row["empty"] else ""
    parts.append(f"{len(row['class_sizes'])} classes of {row['smallest']}..{row['largest']}{empty}")
    mean = {"resolution_px": row["mean_resolution_px"], "resolution_A": row["mean_resolution_A"]}
    if (resolution := resolution_text(mean, box)) != "-":
        parts.append(f"FRC {resolution}")
    if np.isfinite(row["pixel_error_px"]):
        parts.append(f"moved {row['pixel_error_px']:.2f} px")
    if np.isfinite(row["class_changes"]):
        parts.append(f"changed {100 * row['class_changes']:.0f} %")
    return ", ".join([*parts, f"{row['seconds']:.1f} s"])


def read_poses(path: Path, n: int) -> Poses:
    """Poses of n particles from a particle file or a params.txt."""
    poses = io.read_params(path) if path.suffix == ".txt" else io.open_particles(path, require_images=False).poses
    if poses is None:
        raise RalibError(f"{path} holds no poses: give a file with rlnAnglePsi and rlnOriginX/YAngst, or a params.txt")
    if len(poses) != n:
        raise RalibError(f"{path} has {len(poses)} poses for {n} particles: give the file that belongs to the stack")
    return poses


def write_scores(path: Path, result: RunResult) -> None:
    """particle_scores.txt: a row a particle, with a heading."""
    columns = result.extra["particles"]
    names = list(columns)
    index = result.poses.class_index.numpy() + 1
    lines = ["# particle class " + " ".join(names)]
    values = np.column_stack([columns[name] for name in names])
    lines += [f"{i + 1} {index[i]} " + " ".join(f"{v:.6g}" for v in row) for i, row in enumerate(values)]
    io.write_text(path, "\n".join(lines) + "\n")
