"""Choosing classes of a run, by a file from the report or by rules, and the particles that remain."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ralib.types import ParticleSet, Poses, RalibError

FORMAT = "ralib-selection"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True)
class Selection:
    """Classes to keep, numbered from 1, and the lowest score a particle may have (None: any)."""

    classes: tuple[int, ...]
    min_score: float | None = None


def fingerprint(members: Sequence[int] | np.ndarray) -> str:
    """A short name for a classification: the same class sizes in the same order give the same one."""
    text = ",".join(str(int(size)) for size in members)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_classes(text: str, n_classes: int) -> tuple[int, ...]:
    """'1,4-9' as class numbers from 1, each once and in order; RalibError for anything else."""
    chosen: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, flags=re.ASCII)
        if match is None:
            raise RalibError(f"--classes {text!r}: {part!r} is no class or range: write for example 1,4-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= n_classes:
            raise RalibError(f"--classes {text!r}: {part} is outside 1 to {n_classes}, the classes of this run")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def read_selection(path: Path | str, members: Sequence[int] | np.ndarray) -> Selection:
    """The selection file the report hands out, checked against the run's class sizes `members` (k,)."""
    path = Path(path)
    value = _load(path)
    run = value.get("run")
    classes, score = value.get("classes"), value.get("min_score")
    numbers = isinstance(classes, list) and all(type(c) is int and 1 <= c <= len(members) for c in classes)
    if not isinstance(run, dict) or not numbers or not (score is None or type(score) in (int, float)):
        raise RalibError(f"{path} is damaged: 'classes' must list class numbers from 1 to {len(members)}")
    if run.get("fingerprint") != fingerprint(members):
        raise RalibError(
            f"{path} was made for another run ({str(run.get('title'))[:80]!r}): open this run's report and select there"
        )
    assert isinstance(classes, list)
    return Selection(tuple(sorted(set(classes))), None if score is None else float(score))


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RalibError(f"{path} is too large for a selection file: download it from the report again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RalibError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RalibError(f"{path} is not JSON: download the selection from the report again ({error})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != FORMAT_VERSION:
        raise RalibError(f"{path} is no selection file of this version: download it from the run's report")
    return value


def choose_classes(
    figures: Sequence[dict[str, Any]],
    *,
    classes: Sequence[int] | None = None,
    min_resolution_A: float | None = None,
    min_members: int | None = None,
) -> tuple[int, ...]:
    """Numbers of the classes that meet every rule given, and have members.

    figures           one dict a class with class, members, resolution_A
    min_resolution_A  the class is resolved to this or better (to a smaller number of Angstrom)
    """
    if min_resolution_A is not None and all(item.get("resolution_A") is None for item in figures):
        raise RalibError("--min-resolution: this run knows no resolution in Angstrom (no pixel size): leave it out")
    chosen = []
    for item in figures:
        number, size, resolution_A = int(item["class"]), int(item["members"]), item.get("resolution_A")
        if classes is not None and number not in classes:
            continue
        if min_resolution_A is not None and (resolution_A is None or not resolution_A <= min_resolution_A):
            continue
        if size >= max(1, min_members or 0):
            chosen.append(number)
    return tuple(chosen)


def combine(
    figures: Sequence[dict[str, Any]],
    *,
    file: Path | str | None = None,
    classes: str | None = None,
    min_resolution_A: float | None = None,
    min_members: int | None = None,
    min_score: float | None = None,
) -> Selection:
    """What is kept when a selection file, a list of classes and thresholds are given together: all must hold."""
    listed: set[int] | None = None
    if file is not None:
        given = read_selection(file, [int(item["members"]) for item in figures])
        listed = set(given.classes)
        scores = [score for score in (given.min_score, min_score) if score is not None]
        min_score = max(scores) if scores else None
    if classes is not None:
        named = set(parse_classes(classes, len(figures)))
        listed = named if listed is None else listed & named
    rules = {"min_resolution_A": min_resolution_A, "min_members": min_members}
    kept = choose_classes(figures, classes=None if listed is None else sorted(listed), **rules)  # type: ignore[arg-type]
    return Selection(kept, min_score)


def selected_rows(poses: Poses, selection: Selection) -> np.ndarray:
    """Rows of the particles that remain, in order."""
    keep = np.isin(poses.class_index.numpy(), np.array(selection.classes, dtype=np.int64) - 1)
    if selection.min_score is not None:
        score = poses.score.numpy()
        if not np.isfinite(score).any():
            raise RalibError("--min-score: this run wrote no scores; leave the option out")
        # float32 against float32, as in the page: a threshold read off a score keeps that particle.
        keep &= score >= np.float32(selection.min_score)
    return np.flatnonzero(keep)


def write_selected(particles: ParticleSet, rows: np.ndarray, out: Path | str, *, n_classes: int) -> None:
    """Write the particles of `rows` with poses and everything else known of them as .star, .cs or .hdf.

    Only the .hdf holds the images themselves; the others name the same image files as before.
    """
    from ralib import io

    out = Path(out)
    check_output(out)
    if not len(rows):
        raise RalibError("no particle remains: keep more classes, or loosen the rules")
    chosen = io.take(particles, rows)
    suffix = out.suffix.lower()
    if suffix == ".star":
        io.write_particles_star(out, chosen, n_classes=n_classes)
    elif suffix == ".cs":
        io.write_particles_cs(out, chosen, n_classes=n_classes)
    else:
        assert chosen.poses is not None
        new = io.pose_headers(chosen.poses, chosen.ctf, chosen.pixel_size_A)
        headers = [{**kept, **pose} for kept, pose in zip(io.kept_headers(chosen), new, strict=True)]
        images = chosen.images.read(np.arange(len(chosen)))
        io.write_hdf(out, images, headers, pixel_size_A=chosen.pixel_size_A)


def check_output(out: Path) -> None:
    """RalibError unless `out` is a new file of a kind we write."""
    if out.suffix.lower() not in (".star", ".cs", ".hdf"):
        raise RalibError(f"{out}: selected particles are written as .star, .cs or .hdf: name one of these")
    if out.exists():
        raise RalibError(f"{out} exists: choose another name, or remove it first")
    if not out.absolute().parent.is_dir():
        raise RalibError(f"{out}: there is no folder {out.absolute().parent}: make it first")
