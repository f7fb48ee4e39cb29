"""Execution of a selection: the particles of a run that remain, and the files written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ralib.io import left_behind
from ralib.io.atomic import atomic_paths
from ralib.results.particle_rules import (
    capped,
    conditions_met,
    particle_columns,
    preference,
    recentred,
    without_duplicates,
)
from ralib.results.selected_files import split_rows, write_averages, write_selected
from ralib.results.selection import Selection, selected_rows
from ralib.results.summary.runs import RunFiles
from ralib.types import ParticleSet, RalibError


@dataclass(frozen=True)
class ParticleRules:
    """Rules beyond classes and thresholds, in the order in which they apply.

    Attributes
    ----------
    where : tuple[str, ...], default ()
        Conditions on columns, e.g. 'rlnDefocusU<20000'.
    cap_per_class : int | None, optional
        Members of a class at most.
    rebalance : bool, default False
        Whether the cap is the size of the median class.
    remove_duplicates_A : float | None, optional
        Of picks closer than this on one micrograph only the best stays, Angstrom.
    """

    where: tuple[str, ...] = ()
    cap_per_class: int | None = None
    rebalance: bool = False
    remove_duplicates_A: float | None = None


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes
    ----------
    rows : ndarray of shape (m,)
        Rows kept.
    lines : list[str]
        Lines for the terminal.
    """

    rows: np.ndarray
    lines: list[str]


def rows_kept(run: RunFiles, selection: Selection, rules: ParticleRules | None = None) -> tuple[np.ndarray, list[str]]:
    """Return the rows of the particles that remain, and a line on what each rule removed.

    Parameters
    ----------
    run : RunFiles
        The run.
    selection : Selection
        The selection.
    rules : ParticleRules | None, optional
        Further rules.

    Returns
    -------
    ndarray of shape (m,)
        Rows in order.
    list[str]
        Lines.
    """
    rules = rules or ParticleRules()
    columns = particle_columns(run.particles, run.scores)
    index, n = run.poses.class_index.numpy(), len(run.poses)
    in_classes = selected_rows(run.poses, Selection(selection.classes))
    rows, outside = in_classes, n - len(in_classes)
    lines = [f"{outside} particles are in none of the classes kept"] if outside else []

    def now(left: np.ndarray, why: str) -> np.ndarray:
        if len(left) < len(rows):
            lines.append(f"{len(rows) - len(left)} left out {why}")
        return left

    rows = now(selected_rows(run.poses, selection, run.scores), "by fit, posterior or junk")
    rows = now(rows[conditions_met(rules.where, columns, n)[rows]], f"by {' and '.join(rules.where)}")
    preferred = preference(columns, n)
    if rules.remove_duplicates_A is not None:
        distance_A = rules.remove_duplicates_A
        rows = now(
            without_duplicates(rows, run.particles, preferred, distance_A),
            f"within {distance_A:g} A of a better",
        )
    if rules.cap_per_class is not None:
        rows = now(capped(rows, index, preferred, rules.cap_per_class), f"beyond {rules.cap_per_class} of a class")
    if rules.rebalance:
        rows = now(capped(rows, index, preferred, None), "beyond the median class's size")
    return rows, lines


def classes_to_average(run: RunFiles, selection: Selection) -> tuple[int, ...]:
    """Return the classes whose averages are written as templates: those of which most members stay, else all kept.

    Parameters
    ----------
    run : RunFiles
        The run.
    selection : Selection
        The selection.

    Returns
    -------
    tuple[int, ...]
        Numbers of the classes, from 1.
    """
    rows = selected_rows(run.poses, selection, run.scores)
    left = np.bincount(run.poses.class_index.numpy()[rows], minlength=run.n_classes)
    most = tuple(c for c in selection.classes if 2 * left[c - 1] > run.members[c - 1])
    return most or selection.classes


def write_selection(
    run: RunFiles,
    selection: Selection,
    rules: ParticleRules | None = None,
    *,
    outputs: Sequence[Path],
    excluded: Path | None = None,
    averages: Path | None = None,
    recenter: bool = False,
) -> Written:
    """Write the particles kept, and on request those left out and the averages kept.

    Parameters
    ----------
    run : RunFiles
        The run.
    selection : Selection
        The selection.
    rules : ParticleRules | None, optional
        Further rules.
    outputs : Sequence[Path]
        Files of the particles kept; several get random parts.
    excluded : Path | None, optional
        File of the particles left out.
    averages : Path | None, optional
        File of the averages kept.
    recenter : bool, default False
        Whether to move the picks onto the particles' centres.

    Returns
    -------
    Written
        What was written.
    """
    rows, lines = rows_kept(run, selection, rules)
    if run.path.is_file():  # which of a job's iterations
        lines.insert(0, f"read {run.path}")
    if not len(rows):
        raise RalibError("no particle remains: keep more classes, or loosen the rules")
    left_out = np.setdiff1d(np.arange(len(run.poses)), rows)
    if excluded is not None and not len(left_out):  # no particle file is empty
        lines.append(f"no particle is left out: {excluded} is not written")
        excluded = None
    classes, particles = classes_to_average(run, selection), run.particles
    if recenter:
        particles = recentred(particles)
    parts = split_rows(rows, len(outputs), same_as=particles.same_as) if len(outputs) > 1 else [rows]
    files = [*zip(parts, outputs, strict=True), *([(left_out, excluded)] if excluded is not None else [])]
    with atomic_paths(*(path for _, path in files), *([averages] if averages is not None else [])) as new:
        for (part, _), made in zip(files, new, strict=False):
            write_selected(particles, part, made, n_classes=run.n_classes, scores=run.scores)
        if averages is not None:
            pixel_size_A = (run.record.get("input") or {}).get("pixel_size_A") or run.particles.pixel_size_A
            write_averages(run.averages, classes, new[-1], pixel_size_A)
    lines += _lines_of_what_is_lost(particles, [path for _, path in files])
    if excluded is not None:
        lines.append(f"wrote {excluded}: {len(left_out)} particles left out")
    if averages is not None:
        lines.append(f"wrote {averages}: {len(classes)} class averages")
    some = len(np.unique(run.poses.class_index.numpy()[rows]))
    total = f"{run.members.sum()} particles, in {some} of {run.n_classes} classes"
    lines.append(f"kept {len(rows)} of {total}: wrote {', '.join(str(path) for path in outputs)}")
    return Written(rows, lines)


def _lines_of_what_is_lost(particles: ParticleSet, files: Sequence[Path]) -> list[str]:
    """A warning for the first file of a kind that does not hold all columns of the particles' STAR file."""
    for path in files:
        if lost := left_behind(particles, path):
            named = ", ".join(lost[:6]) + (f" and {len(lost) - 6} more" if len(lost) > 6 else "")
            return [f"warning: {path}: this format has no place for {named}; name a .star to keep them"]
    return []
