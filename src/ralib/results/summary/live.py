"""The report of a run that continues: the averages of its last iteration and its figures so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ralib.io import open_images
from ralib.report import ReportContents
from ralib.results.run_record import read_record
from ralib.results.summary.pictures import average_pictures, history
from ralib.results.summary.runs import RunFiles, frc_curves, iteration_averages
from ralib.types import ArraySource, ParticleSet, Poses


def has_finished(path: Path) -> bool:
    """Return whether all results of a run are present; a job of another program counts as finished."""
    record = _record(path)
    if record is None:
        return not _is_ours(path)
    return bool(record.get("state", "finished") == "finished")


def run_version(path: Path) -> str:
    """Return a text that changes whenever a run has something new to show."""
    files = [path / "run.json", *(averages for _, averages in iteration_averages(path)[-1:])]
    return ",".join(str(file.stat().st_mtime_ns) for file in files if file.is_file()) or "nothing yet"


def live_contents(path: Path, server: dict[str, Any] | None = None) -> ReportContents:
    """Return the report of a run before it has finished; without particles, so without members, map and distributions.

    Parameters
    ----------
    path : Path
        The run's folder.
    server : dict[str, Any] | None, optional
        See `ReportContents`.

    Returns
    -------
    ReportContents
        The contents.
    """
    record = _record(path) or {"kind": "run"}
    iterations = list(record.get("iterations") or [])
    found = iteration_averages(path)
    averages = open_images(found[-1][1]) if found else np.zeros((0, 16, 16), dtype=np.float32)
    last = iterations[-1] if iterations else {}
    box = int(averages.shape[-1])
    empty = ParticleSet(images=ArraySource(np.zeros((0, box, box), dtype=np.float32)))
    frequency, frc = frc_curves(found[-1][1].with_name("frc.txt"), len(averages)) if found else (None, None)
    run = RunFiles(path, record, averages, empty, Poses.identity(0), found, frequency, frc)
    pixel_size_A = (record.get("input") or {}).get("pixel_size_A")
    if pixel_size_A and (record.get("input") or {}).get("box"):
        pixel_size_A *= record["input"]["box"] / box  # iterations may work at a smaller box
    return ReportContents(
        title=path.resolve().name,
        fingerprint=f"running-{path.resolve().name}",
        facts={k: v for k, v in record.items() if k not in ("iterations", "classes", "warnings")},
        classes=[_class(k, last) for k in range(len(averages))],
        iterations=iterations,
        warnings=[item for item in record.get("warnings") or [] if isinstance(item, dict)],
        averages=average_pictures(averages) if len(averages) else averages,
        box_px=box,
        pixel_size_A=pixel_size_A,
        frc_frequency_per_px=frequency,
        frc=frc,
        history=history(run) if len(averages) else None,
        server=server,
    )


def _class(k: int, last: dict[str, Any]) -> dict[str, Any]:
    """Figures of class k in the last iteration."""
    row: dict[str, Any] = {"class": k + 1, "members": 0}
    for key, name in (("class_sizes", "members"), ("resolution_A", "resolution_A"), ("resolution_px", "resolution_px")):
        values = last.get(key)
        if isinstance(values, list) and k < len(values):
            row[name] = values[k]
    return row


def _record(path: Path) -> dict[str, Any] | None:
    """The record of a run; None before it is written. RalibError where it is damaged."""
    return read_record(path) if (path / "run.json").is_file() else None


def _is_ours(path: Path) -> bool:
    """A folder in which a run of ours has begun or is about to: empty, locked, or with iterations."""
    return path.is_dir() and (not any(path.iterdir()) or (path / ".lock").exists() or (path / "iterations").is_dir())
