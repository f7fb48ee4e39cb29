"""Scores of each particle of a run: a text table, columns of a STAR file, fields of a .cs file, HDF attributes.

The names are the same in all files:

- posterior: probability of the particle's class, given that it belongs to one of them
- fit: the criterion reached in the search (also Poses.score)
- explained: square root of the fit over that of the typical class; 1 is typical
- detail: fine detail shared with the class; 1 is typical
- quality: log-odds for a particle, against junk
- off_centre: distance from the centre of the box in particle radii
- agreement: 1 where it returns to its class when compared with averages of the other half of the data
- junk: probability of being junk
- selected: 1 where the automatic selection keeps it
- class_score: the score of its class, 0 to 1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ralib.io import text_table, write_text
from ralib.types import RalibError

SCORES_FILE = "particle_scores.txt"
FIT_COLUMN = "ralibScore"
"""The fit's column since the first version; all others are named by `star_name`."""


def star_name(name: str) -> str:
    """Return the name of a score's column in a STAR file: 'off_centre' -> 'ralibOffCentre'."""
    return FIT_COLUMN if name == "fit" else "ralib" + "".join(word.capitalize() for word in name.split("_"))


def write_particle_scores(path: Path, class_index: np.ndarray, scores: Mapping[str, np.ndarray]) -> None:
    """Write particle_scores.txt: a row for each particle with its number and class, both from 1, under a heading.

    Parameters
    ----------
    path : Path
        The file.
    class_index : ndarray of shape (n,)
        Classes from 0.
    scores : Mapping[str, ndarray] of shape (n,)
        Scores by name.
    """
    whole = [text_table.integers(column, width=1) for column in (np.arange(len(class_index)) + 1, class_index + 1)]
    numbers = [text_table.rounded(np.asarray(values, dtype=np.float64)) for values in scores.values()]
    write_text(path, "# particle class " + " ".join(scores) + "\n" + text_table.rows([*whole, *numbers]))


def read_particle_scores(path: Path, n_particles: int) -> dict[str, np.ndarray]:
    """Read the columns of a particle_scores.txt, without particle number and class.

    Parameters
    ----------
    path : Path
        The file.
    n_particles : int
        Number of particles.

    Returns
    -------
    dict[str, ndarray] of shape (n,)
        Scores by name; empty where there is no file.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            names = file.readline().lstrip("# ").split()
            values = np.loadtxt(file, ndmin=2, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise RalibError(f"{path} is not the table ralib wrote: {error}") from error
    if values.shape != (n_particles, len(names)):
        shape = f"{values.shape[0]} rows of {values.shape[-1]} numbers"
        raise RalibError(f"{path} has {shape} for {n_particles} particles and {len(names)} names: it was changed")
    return {name: values[:, i] for i, name in enumerate(names) if name not in ("particle", "class")}


def table_scores(table: Any) -> dict[str, np.ndarray]:
    """Return the scores that are columns of a particle table."""
    known = (
        "posterior",
        "explained",
        "detail",
        "quality",
        "off_centre",
        "agreement",
        "junk",
        "selected",
        "class_score",
    )
    found = {name: star_name(name) for name in known if star_name(name) in table.columns}
    return {name: np.asarray(table[column], dtype=np.float64) for name, column in found.items()}


def class_scores(class_index: np.ndarray, classes: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Return each particle's class score, NaN without one.

    Parameters
    ----------
    class_index : ndarray of shape (n,)
        Classes from 0.
    classes : Sequence[Mapping[str, Any]]
        Figures of each class.

    Returns
    -------
    ndarray of shape (n,) or None
        Scores; None where the run scored no class.
    """
    score = {int(row["class"]) - 1: row["score"] for row in classes if row.get("score") is not None}
    if not score:
        return None
    by_class = np.full(max(int(class_index.max(initial=0)), *score) + 2, np.nan)  # the last stands for class -1
    by_class[list(score)] = list(score.values())
    return np.asarray(by_class[class_index])


def star_columns(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the scores as columns of a STAR file; the fit is among the pose columns already.

    A particle in no class has the class score 0: other programs read numbers.
    """
    columns = {star_name(name): np.round(values, 6) for name, values in scores.items() if name != "fit"}
    if (score := star_name("class_score")) in columns:
        columns[score] = np.nan_to_num(columns[score])
    return columns


def relion_columns(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns that RELION's own programs read.

    Pmax, the particle's part in the log-likelihood, and the number of classes that share it (the inverse of Pmax,
    rounded up: 1 where one class is certain).
    """
    columns: dict[str, np.ndarray] = {}
    if "posterior" in scores:
        posterior = np.nan_to_num(np.asarray(scores["posterior"], dtype=np.float64)).clip(0, 1)
        columns["rlnMaxValueProbDistribution"] = np.round(posterior, 6)
        columns["rlnNrOfSignificantSamples"] = np.ceil(1 / posterior.clip(1e-3) - 1e-6).astype(np.int64)
    if "fit" in scores:
        columns["rlnLogLikeliContribution"] = np.round(np.nan_to_num(scores["fit"]), 6)
    return columns
