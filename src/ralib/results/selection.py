"""Selection of classes and particles, by a file from the report or by rules."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ralib.io.text import read_text
from ralib.types import Poses, RalibError

FORMAT = "ralib-selection"
FORMAT_VERSION = 1
MAX_FILE_BYTES = 16 << 20
LARGEST_LIMIT = 3e38


@dataclass(frozen=True)
class Selection:
    """Classes to keep, and what a particle of them must meet (None: nothing).

    Attributes
    ----------
    classes : tuple[int, ...]
        Numbers of the classes, from 1.
    min_fit : float | None, optional
        Least criterion reached in the search (Poses.score).
    max_junk : float | None, optional
        Highest probability of being junk.
    min_posterior : float | None, optional
        Least probability of its class.
    automatic : bool, default False
        Whether it must be among those that the run proposes.
    """

    classes: tuple[int, ...]
    min_fit: float | None = None
    max_junk: float | None = None
    min_posterior: float | None = None
    automatic: bool = False


_THRESHOLDS = ("min_fit", "max_junk", "min_posterior")


def fingerprint(members: Sequence[int] | np.ndarray) -> str:
    """Return a short name for a classification: the same class sizes in the same order give the same one."""
    text = ",".join(str(int(size)) for size in members)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parse_classes(text: str, n_classes: int) -> tuple[int, ...]:
    """Parse '1,4-9' as class numbers.

    Parameters
    ----------
    text : str
        The text.
    n_classes : int
        Number of classes.

    Returns
    -------
    tuple[int, ...]
        Numbers from 1, each once and in order.

    Raises
    ------
    RalibError
        For anything else.
    """
    chosen: set[int] = set()
    for part in text.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part, flags=re.ASCII)
        if match is None:
            raise RalibError(f"`classes` {text!r}: {part!r} is no class or range: write for example 1,4-9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= n_classes:
            raise RalibError(f"`classes` {text!r}: {part} is outside 1 to {n_classes}, the classes of this run")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def read_selection(path: Path | str, members: Sequence[int] | np.ndarray) -> Selection:
    """Read a selection file of the report, and check it against the run's class sizes.

    Parameters
    ----------
    path : Path or str
        The file.
    members : sequence of int or ndarray of shape (k,)
        Class sizes of the run.

    Returns
    -------
    Selection
        The selection.

    Raises
    ------
    RalibError
        If it is malformed or of another run.
    """
    return selection_of(_load(Path(path)), members, str(path))


def selection_of(value: dict[str, Any], members: Sequence[int] | np.ndarray, path: str) -> Selection:
    """Return the selection in a decoded file (or from a served page), checked as by `read_selection`.

    Parameters
    ----------
    value : dict[str, Any]
        The decoded file.
    members : sequence of int or ndarray of shape (k,)
        Class sizes of the run.
    path : str
        Its name, for errors.

    Returns
    -------
    Selection
        The selection.
    """
    if value.get("format") != FORMAT or value.get("version") != FORMAT_VERSION:
        raise RalibError(f"{path} is no selection file of this version: download it from the run's report")
    run, classes = value.get("run"), value.get("classes")
    limits = {name: value.get(name) for name in _THRESHOLDS}
    if limits["min_fit"] is None:
        limits["min_fit"] = value.get("min_score")  # what the fit was called in version 0.1
    numbers = isinstance(classes, list) and all(type(c) is int and 1 <= c <= len(members) for c in classes)
    # JSON allows any number, and NaN: limits are compared in single precision
    sound = all(v is None or (type(v) in (int, float) and abs(v) < LARGEST_LIMIT) for v in limits.values())
    if not sound:
        raise RalibError(f"{path} is damaged: its limits must be numbers")
    if not isinstance(run, dict) or not numbers:
        raise RalibError(f"{path} is damaged: 'classes' must list class numbers from 1 to {len(members)}")
    if run.get("fingerprint") != fingerprint(members):
        raise RalibError(
            f"{path} was made for another run ({str(run.get('title'))[:80]!r}): open this run's report and select there"
        )
    assert isinstance(classes, list)
    kept = tuple(sorted(set(classes)))
    min_fit, max_junk, min_posterior = (None if v is None else float(v) for v in limits.values())
    return Selection(kept, min_fit, max_junk, min_posterior)


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
            raise RalibError(f"{path} is too large for a selection file: download it from the report again")
        value = json.loads(read_text(path, "selection file"))
    except OSError as error:
        raise RalibError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise RalibError(f"{path} is not JSON: download the selection from the report again ({error})") from error
    if not isinstance(value, dict):
        raise RalibError(f"{path} is no selection file of this version: download it from the run's report")
    return value


def choose_classes(
    figures: Sequence[dict[str, Any]],
    *,
    classes: Sequence[int] | None = None,
    min_resolution_A: float | None = None,
    min_members: int | None = None,
    min_class_score: float | None = None,
) -> tuple[int, ...]:
    """Return the numbers of the classes that meet every rule given, and have members.

    Parameters
    ----------
    figures : Sequence[dict[str, Any]]
        For each class class, members, resolution_A and score.
    classes : Sequence[int] | None, optional
        Numbers to choose from; by default all.
    min_resolution_A : float | None, optional
        Resolution to this or better (a smaller number), Angstrom.
    min_members : int | None, optional
        Least number of members.
    min_class_score : float | None, optional
        Least class score, 0 to 1.

    Returns
    -------
    tuple[int, ...]
        Numbers from 1.
    """
    if min_resolution_A is not None and all(item.get("resolution_A") is None for item in figures):
        raise RalibError("`min_resolution_A`: this run knows no resolution in Angstrom (no pixel size): leave it out")
    if min_class_score is not None and all(item.get("score") is None for item in figures):
        raise RalibError("`min_class_score`: this run scored no classes ('ralib classify' does): leave it out")
    chosen = []
    for item in figures:
        number, size = int(item["class"]), int(item["members"])
        resolution_A, score = item.get("resolution_A"), item.get("score")
        if classes is not None and number not in classes:
            continue
        if min_resolution_A is not None and (resolution_A is None or not resolution_A <= min_resolution_A):
            continue
        if min_class_score is not None and (score is None or not score >= min_class_score):
            continue
        if size >= max(1, min_members or 0):
            chosen.append(number)
    return tuple(chosen)


def automatic_classes(figures: Sequence[dict[str, Any]]) -> set[int]:
    """Return the classes that the run itself would keep, as stored in run.json."""
    if all(item.get("selected") is None for item in figures):
        raise RalibError(
            "`auto`: this run stored no automatic selection ('ralib classify' does): give `classes`, "
            "`min_class_score` or `min_members` instead"
        )
    return {int(item["class"]) for item in figures if item.get("selected")}


def combine(
    figures: Sequence[dict[str, Any]],
    *,
    file: Path | str | None = None,
    classes: str | None = None,
    auto: bool = False,
    min_resolution_A: float | None = None,
    min_members: int | None = None,
    min_class_score: float | None = None,
    min_fit: float | None = None,
    max_junk: float | None = None,
    min_posterior: float | None = None,
) -> Selection:
    """Return the selection by a file, a list of classes and thresholds together: all must hold.

    Parameters
    ----------
    figures : Sequence[dict[str, Any]]
        Figures of each class.
    file : Path or str, optional
        Selection file of the report.
    classes : str | None, optional
        List of classes, as for `parse_classes`.
    auto : bool, default False
        Whether to use the run's automatic selection.
    min_resolution_A, min_members, min_class_score : as in `choose_classes`, optional
        Rules for classes.
    min_fit, max_junk, min_posterior : as in `Selection`, optional
        Rules for particles.

    Returns
    -------
    Selection
        The selection.
    """
    lists: list[set[int]] = []
    if file is not None:
        given = read_selection(file, [int(item["members"]) for item in figures])
        lists.append(set(given.classes))
        min_fit = _strictest(max, given.min_fit, min_fit)
        min_posterior = _strictest(max, given.min_posterior, min_posterior)
        max_junk = _strictest(min, given.max_junk, max_junk)
    if classes is not None:
        lists.append(set(parse_classes(classes, len(figures))))
    if auto:
        automatic_classes(figures)  # or refuse: such a run proposes nothing
    kept = choose_classes(
        figures,
        classes=sorted(set.intersection(*lists)) if lists else None,
        min_resolution_A=min_resolution_A,
        min_members=min_members,
        min_class_score=min_class_score,
    )
    return Selection(kept, min_fit, max_junk, min_posterior, auto)


def _strictest(choose: Callable[[list[float]], float], *limits: float | None) -> float | None:
    given = [limit for limit in limits if limit is not None]
    return choose(given) if given else None


def selected_rows(poses: Poses, selection: Selection, scores: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Return the rows of the particles that remain.

    Parameters
    ----------
    poses : Poses
        Poses of all particles.
    selection : Selection
        The selection.
    scores : Mapping[str, ndarray] | None of shape (n,), optional
        Scores by name, of which posterior and junk are used; see `ralib.results.particle_scores`.

    Returns
    -------
    ndarray of shape (m,)
        Rows in order.
    """
    keep = np.isin(poses.class_index.numpy(), np.array(selection.classes, dtype=np.int64) - 1)
    columns = {"fit": poses.score.numpy(), **(scores or {})}
    for name, option, limit, above in (
        ("fit", "`min_fit`", selection.min_fit, True),
        ("posterior", "`min_posterior`", selection.min_posterior, True),
        ("junk", "`max_junk`", selection.max_junk, False),
    ):
        if limit is None:
            continue
        values = np.asarray(columns.get(name, np.nan), dtype=np.float32)
        if not np.isfinite(values).any():
            raise RalibError(f"{option}: this run wrote no {name} of its particles; leave the option out")
        # float32 against float32, as in the page: a threshold read off a figure keeps that particle.
        keep &= values >= np.float32(limit) if above else values <= np.float32(limit)
    if selection.automatic:
        if "selected" not in columns:
            raise RalibError("`auto`: particle_scores.txt has no column 'selected'; select by classes instead")
        keep &= np.asarray(columns["selected"]) > 0.5
    return np.flatnonzero(keep)
