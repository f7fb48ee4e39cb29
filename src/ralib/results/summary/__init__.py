"""The contents of a report, computed from a run's files; every run calls `write_report` at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib.io import write_text
from ralib.kernels.threads import Threads, take_threads
from ralib.report import ReportContents, render_report
from ralib.report.payload import figures as numbers_only
from ralib.results.selection import fingerprint
from ralib.results.summary.components import component_figures
from ralib.results.summary.contrast import ctf_curves
from ralib.results.summary.diagnose import diagnose
from ralib.results.summary.embedding import class_tsne, embed
from ralib.results.summary.figures import (
    automatic_junk_limit,
    class_figures,
    hexagon_maps,
    histograms,
    particle_figures,
)
from ralib.results.summary.pictures import POINT_PX, aligned, average_pictures, history, likeness, members, shrunk
from ralib.results.summary.runs import RunFiles, finished_run, open_run
from ralib.types import Notice, RalibError

__all__ = ["RunFiles", "finished_run", "open_run", "report_json", "summarise", "write_report"]

MAX_POINTS = 10_000
MAX_SCORES = 3_000_000


def write_report(
    source: RunFiles | Path | str,
    out: Path | str | None = None,
    *,
    max_points: int = MAX_POINTS,
    device: torch.device | str = "cpu",
    datadir: Path | str | None = None,
) -> Path:
    """Write the report of a run.

    Parameters
    ----------
    source : RunFiles, Path or str
        The run's folder, or what was read of it.
    out : Path or str, optional
        The file; by default RUN/report.html.
    max_points : int, default MAX_POINTS
        Particles in the embedding at most.
    device : torch.device or str, default 'cpu'
        Where to compute.
    datadir : Path or str, optional
        Folder of the image files, if they are not where the particle file says.

    Returns
    -------
    Path
        The file.
    """
    run = source if isinstance(source, RunFiles) else open_run(source, datadir=datadir)
    folder = run.path if run.path.is_dir() else run.path.parent
    target = Path(out) if out is not None else folder / "report.html"
    write_text(target, render_report(summarise(run, max_points=max_points, device=device)))
    return target


def report_json(
    run_dir: Path | str, *, datadir: Path | str | None = None, max_points: int = MAX_POINTS
) -> dict[str, Any]:
    """Return the report's figures in JSON's own types.

    Parameters
    ----------
    run_dir : Path or str
        The run's folder.
    datadir : Path or str, optional
        Folder of the image files, if they are not where the particle file says.
    max_points : int, default MAX_POINTS
        Particles in the embedding at most.

    Returns
    -------
    dict[str, Any]
        The figures.
    """
    return numbers_only(summarise(open_run(run_dir, datadir=datadir), max_points=max_points))


def summarise(
    run: RunFiles,
    *,
    max_points: int = MAX_POINTS,
    seed: int = 0,
    device: torch.device | str = "cpu",
    server: dict[str, Any] | None = None,
) -> ReportContents:
    """Compute everything that a report shows; where the images cannot be read, all that does not need them.

    Parameters
    ----------
    run : RunFiles
        The run.
    max_points : int, default MAX_POINTS
        Particles in the embedding at most.
    seed : int, default 0
        Of the particles chosen.
    device : torch.device or str, default 'cpu'
        Where to compute.
    server : dict[str, Any] | None, optional
        See `ReportContents`.

    Returns
    -------
    ReportContents
        The contents.
    """
    rng = np.random.default_rng(seed)
    small_averages = shrunk(run.averages, POINT_PX * 2)
    warnings = diagnose(run, small_averages)
    rows = _sample(run, max_points, rng)
    shown_members = plane = None
    with Threads(1, "ralib-embedding") as beside:
        # What it computes rounds by its number of threads, and `aligned` changes PyTorch's for a while.
        beside.submit(take_threads, torch.get_num_threads()).result()
        tsne_xy = beside.submit(class_tsne, run.averages)
        try:
            points = aligned(run, rows, min(POINT_PX, run.particles.box), device)
            embedding = beside.submit(lambda: embed(run, rows, points, tsne_xy.result()))
            shown_members = members(run, _score(run, rows, points), rng, device)
            plane = embedding.result()
        except RalibError as error:
            warnings.append(
                Notice(
                    what="The particle images could not be read.",
                    where=str(error),
                    remedy="For members and map, name their folder: "
                    "'ralib report --datadir FOLDER' (`datadir` in Python).",
                )
            )
    record, pixel_size_A = run.record, _pixel_size_A(run)
    ctf = run.particles.ctf
    return ReportContents(
        title=_title(run),
        fingerprint=fingerprint(run.members),
        facts={k: v for k, v in record.items() if k not in ("iterations", "classes", "warnings")},
        classes=class_figures(run),
        iterations=list(record.get("iterations") or []),
        warnings=[notice.record() for notice in warnings],
        averages=average_pictures(run.averages),
        box_px=int(run.averages.shape[-1]),
        pixel_size_A=pixel_size_A,
        frc_frequency_per_px=run.frc_frequency_per_px,
        frc=run.frc,
        particle_figures=_particle_figures(run),
        histograms=histograms(run),
        hexagon_maps=hexagon_maps(run),
        members=shown_members,
        history=history(run),
        ctf=ctf_curves(ctf, pixel_size_A, rng) if ctf is not None and pixel_size_A else None,
        embedding=plane,
        components=component_figures(run),
        automatic_junk_limit=automatic_junk_limit(run),
        server=server,
    )


def _particle_figures(run: RunFiles) -> dict[str, np.ndarray]:
    """The figures (n,) of particles by name; of very many particles only their junk, by which `select --auto` goes."""
    found = particle_figures(run)
    if len(run.poses) * len(found) <= MAX_SCORES:
        return found
    return {"junk": found["junk"]} if "junk" in found else {}


def _sample(run: RunFiles, most: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most `most` particles that are in a class, in the order of the file."""
    rows = np.flatnonzero(run.poses.class_index.numpy() >= 0)
    return rows if len(rows) <= most else np.sort(rng.choice(rows, most, replace=False))


def _score(run: RunFiles, rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The run's scores (n,); where it has none, how alike the sampled particles are to their averages."""
    score = run.poses.score.numpy().astype(np.float64)
    if np.isfinite(score).any() or not len(rows):
        return score
    references = shrunk(run.averages, points.shape[-1])
    alike = np.full(len(score), np.nan)
    alike[rows] = likeness(points, references[run.poses.class_index.numpy()[rows]])
    return alike


def _pixel_size_A(run: RunFiles) -> float | None:
    recorded = (run.record.get("input") or {}).get("pixel_size_A") or run.particles.pixel_size_A
    return float(recorded) if recorded else None


def _title(run: RunFiles) -> str:
    """The run's folder; what the page and the selection file are called by."""
    return (run.path if run.path.is_dir() else run.path.parent).resolve().name
