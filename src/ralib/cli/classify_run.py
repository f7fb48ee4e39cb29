"""What `classify` does once its options are parsed."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from ralib import io
from ralib.classify import Classifier
from ralib.cli.running import Reporter, SignalFlag, Stopped, finish_record, new_record
from ralib.rundir import RunDirectory
from ralib.select import parse_classes
from ralib.stability import compare_runs
from ralib.types import ParticleSet, Poses, RalibError, RunResult


class ClassifyRun:
    """One command from opened files to written ones."""

    def __init__(
        self, stack: Path, outdir: Path, options: dict[str, Any], device: torch.device, *, report: bool
    ) -> None:
        self.started = time.perf_counter()
        self.stack, self.outdir, self.device, self.report = stack, outdir, device, report
        self.options: dict[str, Any] = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}

    def execute(self) -> None:
        """Open, classify, compare with other starts where asked, write."""
        particles, flag = self._particles(), SignalFlag()
        with ExitStack() as stack:
            directory = stack.enter_context(RunDirectory(self.outdir))
            record = new_record("classify", self.options, particles, self.stack, self.device)
            reporter = stack.enter_context(Reporter(None, record, flag, None).showing())

            def observe(figures: list[dict[str, Any]]) -> None:
                flag.raise_if_set()
                typer.echo(iteration_line(figures[-1]))

            try:
                result = self._classifier(self.options["seed"]).fit(particles, observer=observe).result_
                if self.options["stability"]:
                    self._compare(result, particles, flag)
            except Stopped as stop:
                typer.echo(f"ralib: stopped by {stop}: nothing was written", err=True)
                raise typer.Exit(stop.status) from None
            self._write(directory, result, particles, reporter)

    def _classifier(self, seed: int) -> Classifier:
        o = self.options
        return Classifier(
            n_classes=o["classes"],
            diameter_A=o["diameter"],
            resolution_A=o["resolution"],
            lowest_A=o["low_limit"],
            balance=o["balance"],
            equal_sizes=o["equal"],
            mirror=not o["nomirror"],
            ctf=o["ctf"],
            search_px=o["search"],
            skip_align=o["skip_align"],
            seed=seed,
            batch_size=o["batch"],
            device=self.device,
        )

    def _compare(self, result: RunResult, particles: ParticleSet, flag: SignalFlag) -> None:
        """Other starts; what they agree on goes into the result."""
        others = []
        for i in range(1, self.options["stability"] + 1):
            typer.echo(f"stability: run {i} from another start")

            def look(_: list[dict[str, Any]]) -> None:
                flag.raise_if_set()

            others.append(self._classifier(self.options["seed"] + i).fit(particles, observer=look).result_.poses)
        pixel = particles.pixel_size_A or 1.0
        radius = 0.5 * result.extra["diameter_A"] / pixel
        stable = compare_runs(result.poses, others, radius, limit_px=0.15 * radius).numpy()
        result.extra["particles"]["stable"] = stable
        index = result.poses.class_index.numpy()
        for row in result.extra["classes"]:
            member = index == row["class"] - 1
            row["stable_members"] = float(stable[member].mean()) if member.any() else 0.0
        result.extra["stability"]["stable_particles"] = float(stable.mean())
        typer.echo(
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

    def _write(self, directory: RunDirectory, result: RunResult, particles: ParticleSet, reporter: Reporter) -> None:
        start = time.perf_counter()
        record = finish_record(reporter.record, result, self.device, self.started, 0.0)
        record |= {key: result.extra[key] for key in ("stability", "log", "diameter_A")}
        write_scores(self.outdir / "particle_scores.txt", result)
        directory.write_result(result, particles, record, hdf=False)
        record["timings"]["write_s"] = time.perf_counter() - start
        record["timings"]["total_s"] = time.perf_counter() - self.started
        directory.write_record(record)
        self._tell(result)
        if self.report:
            from ralib.summary import write_report

            write_report(self.outdir, device=self.device, datadir=self.options["datadir"])
        typer.echo(f"wrote {self.outdir}: class_averages.mrcs, particles.star, classes.png, run.json ...")

    def _tell(self, result: RunResult) -> None:
        for line in result.extra["log"]:
            typer.echo(line)
        rows = sorted(result.extra["classes"], key=lambda row: -row["score"])
        for row in rows:
            size = (
                f"{row['resolution_A']:.0f} A" if np.isfinite(row["resolution_A"]) else f"{row['resolution_px']:.1f} px"
            )
            figures = f"{row['members']:5d} particles, {size}, score {row['score']:.2f}"
            typer.echo(f"class {row['class']:3d}: {figures}: {row['verdict']}")
        for warning in result.warnings:
            typer.echo(f"warning: {warning['what']}; {warning['do']}")

    def _particles(self) -> ParticleSet:
        o = self.options
        source = self.stack / "particles.star" if self.stack.is_dir() else self.stack
        particles = io.open_particles(source, datadir=o["datadir"])
        if o["pixel_size"] is not None:
            if not o["pixel_size"] > 0:
                raise RalibError(f"--pixel-size {o['pixel_size']:g} A must be above 0")
            particles = particles.replace(pixel_size_A=o["pixel_size"])
        if o["reference_poses"] is not None:
            particles = particles.replace(poses=read_poses(Path(o["reference_poses"]), len(particles)))
        if o["split"] is not None and o["from_"] is not None:
            raise RalibError("--split and --from both choose particles: give one of them")
        if o["split"] is not None or o["from_"] is not None:
            particles = io.take(particles, self._chosen(particles))
        return particles

    def _chosen(self, particles: ParticleSet) -> np.ndarray:
        """Numbers of the particles in the classes that --split or --from names."""
        if particles.poses is None:
            raise RalibError(f"{self.stack} holds no classes: --split and --from need a run's folder or particles.star")
        index = particles.poses.class_index.numpy()
        n_classes = int(index.max()) + 1
        if self.options["split"] is not None:
            chosen = parse_classes(self.options["split"], n_classes)
        else:
            from ralib.select import read_selection

            chosen = read_selection(
                Path(self.options["from_"]), np.bincount(index[index >= 0], minlength=n_classes)
            ).classes
        rows = np.flatnonzero(np.isin(index + 1, chosen))
        if len(rows) == 0:
            raise RalibError(f"{self.stack}: the classes chosen have no members")
        return rows


def iteration_line(row: dict[str, Any]) -> str:
    """One iteration for the log."""
    resolution, unit = row["mean_resolution_A"], "A"
    if not np.isfinite(resolution):
        resolution, unit = row["mean_resolution_px"], "px"
    return (
        f"iteration {row['iteration']} ({row['stage']}): fit {row['criterion']:.2f}, "
        f"{len(row['class_sizes'])} classes of {row['smallest']}..{row['largest']} "
        f"({row['empty']} empty, {row['effective_classes']:.1f} effective), "
        f"FRC {resolution:.0f} {unit}, pixel error {row['pixel_error_px']:.2f}, "
        f"class changes {100 * row['class_changes']:.0f} %, {row['seconds']:.1f} s"
    )


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
