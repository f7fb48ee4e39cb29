"""Comparison of two classifications of the same particles: matched classes, agreement, selections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from ralib.io.cryosparc_table import image_paths
from ralib.io.relion import split_image_names
from ralib.results.summary.figures import class_figures
from ralib.results.summary.runs import RunFiles
from ralib.types import ParticleSet, RalibError

_CRYOSPARC_PREFIX = re.compile(r"^\d{10,}_")
"""cryoSPARC puts its uid in front of the names of imported files."""


@dataclass(frozen=True)
class Comparison:
    """Comparison of two runs A and B over their n common particles.

    Attributes
    ----------
    rows_a, rows_b : ndarray of shape (n,)
        Rows of the common particles in either run's file, in A's order.
    n_a, n_b : int
        Number of particles of each run.
    flow : ndarray of shape (ka + 1, kb + 1)
        Particles by class in A and in B; the last row and column are for particles in no class.
    matches : list[tuple[int, int]]
        Pairs of classes (from 0) that share the most particles in total, each class in one pair at most.
    adjusted_rand : float
        1 for the same classes, 0 on average by chance (Hubert and Arabie 1985).
    mutual_information : float
        Normalised to 0..1 by the mean of both entropies.
    shared : float
        Fraction of the particles that are in matched classes.
    kept_a, kept_b : ndarray of shape (n,)
        True for common particles that the run keeps.
    matched_by : str, default 'path'
        By what particles are the same: uid, path (of the image file, and the number in it), or name (of that file).
    """

    rows_a: np.ndarray
    rows_b: np.ndarray
    n_a: int
    n_b: int
    flow: np.ndarray
    matches: list[tuple[int, int]]
    adjusted_rand: float
    mutual_information: float
    shared: float
    kept_a: np.ndarray
    kept_b: np.ndarray
    matched_by: str = "path"

    @property
    def kept(self) -> np.ndarray:
        """Particles (2, 2) by whether A and whether B keeps them: [kept by A][kept by B]."""
        table = np.zeros((2, 2), dtype=np.int64)
        np.add.at(table, (self.kept_a.astype(int), self.kept_b.astype(int)), 1)
        return table

    def figures(self) -> dict[str, Any]:
        """Return the numbers in JSON's own types; classes are numbered from 1."""
        matched = [
            {"a": a + 1, "b": b + 1, "shared": int(self.flow[a, b]), "overlap": self.overlap(a, b)}
            for a, b in self.matches
        ]
        kept = self.kept
        return {
            "particles_a": self.n_a,
            "particles_b": self.n_b,
            "in_common": len(self.rows_a),
            "matched_by": self.matched_by,
            "adjusted_rand": self.adjusted_rand,
            "mutual_information": self.mutual_information,
            "shared": self.shared,
            "matches": matched,
            "kept_by_both": int(kept[1, 1]),
            "kept_by_a_only": int(kept[1, 0]),
            "kept_by_b_only": int(kept[0, 1]),
            "kept_by_neither": int(kept[0, 0]),
            "flow": self.flow.tolist(),
        }

    def overlap(self, a: int, b: int) -> float:
        """Return the shared particles of two classes over all of both (Jaccard index).

        Parameters
        ----------
        a : int
            Class of A, from 0.
        b : int
            Class of B, from 0.

        Returns
        -------
        float
            0 to 1.
        """
        union = self.flow[a].sum() + self.flow[:, b].sum() - self.flow[a, b]
        return float(self.flow[a, b] / union) if union else 0.0


def compare(a: RunFiles, b: RunFiles) -> Comparison:
    """Compare the classes of two runs over their common particles.

    Parameters
    ----------
    a : RunFiles
        First run.
    b : RunFiles
        Second run.

    Returns
    -------
    Comparison
        The comparison.

    Raises
    ------
    RalibError
        If there are no common particles.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    rows_a, rows_b, matched_by = common_rows(a.particles, b.particles)
    index_a, index_b = a.poses.class_index.numpy()[rows_a], b.poses.class_index.numpy()[rows_b]
    flow = np.zeros((a.n_classes + 1, b.n_classes + 1), dtype=np.int64)
    np.add.at(flow, (index_a, index_b), 1)  # class -1 is the last row or column
    inside = flow[:-1, :-1]
    first, second = linear_sum_assignment(inside, maximize=True)
    matches = [(int(i), int(j)) for i, j in zip(first, second, strict=True) if inside[i, j]]
    both = (index_a >= 0) & (index_b >= 0)
    return Comparison(
        rows_a=rows_a,
        rows_b=rows_b,
        n_a=len(a.poses),
        n_b=len(b.poses),
        flow=flow,
        matches=sorted(matches, key=lambda pair: -inside[pair]),
        adjusted_rand=float(adjusted_rand_score(index_a[both], index_b[both])) if both.any() else 0.0,
        mutual_information=float(normalized_mutual_info_score(index_a[both], index_b[both])) if both.any() else 0.0,
        shared=float(sum(inside[pair] for pair in matches) / max(1, both.sum())),
        kept_a=kept_particles(a)[rows_a],
        kept_b=kept_particles(b)[rows_b],
        matched_by=matched_by,
    )


def kept_particles(run: RunFiles) -> np.ndarray:
    """Return which particles (n,) a run keeps: those of its automatic selection, else all that are in a class."""
    index = run.poses.class_index.numpy()
    figures = class_figures(run)
    if all(item.get("selected") is None for item in figures):
        return np.asarray(index >= 0)
    chosen = [int(item["class"]) - 1 for item in figures if item.get("selected")]
    return np.isin(index, chosen)


def common_rows(a: ParticleSet, b: ParticleSet) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the rows of the particles that both sets hold, by cryoSPARC's uid, or by image file and number in it.

    Full paths are compared first; where fewer than half agree (files were moved or linked), file names alone.

    Parameters
    ----------
    a : ParticleSet
        First set.
    b : ParticleSet
        Second set.

    Returns
    -------
    ndarray of shape (n,)
        Rows in the first set.
    ndarray of shape (n,)
        Rows in the second set.
    str
        By what they are the same: uid, path or name.
    """
    best: tuple[np.ndarray, np.ndarray, str] | None = None
    for names, matched_by in ((_uids, "uid"), (_images, "path"), (_image_files, "name")):
        keys_a, keys_b = names(a), names(b)
        if keys_a is None or keys_b is None:
            continue
        table_a, table_b = pd.Index(keys_a), pd.Index(keys_b)
        if not (table_a.is_unique and table_b.is_unique):
            continue
        places = table_b.get_indexer(table_a)
        rows_a = np.flatnonzero(places >= 0)
        found = rows_a, places[rows_a], matched_by
        if best is None or len(rows_a) > len(best[0]):
            best = found
        if 2 * len(rows_a) >= min(len(a), len(b)):
            break
    if best is None or not len(best[0]):
        raise RalibError(
            "the two runs have no particle in common: neither cryoSPARC's uids nor the names of the images match; "
            "compare runs of the same particle files"
        )
    return best


def _uids(particles: ParticleSet) -> Sequence[Any] | None:
    for table in particles.metadata.tables.values():
        if isinstance(table, np.ndarray) and "uid" in (table.dtype.names or ()):
            return [int(uid) % 2**64 for uid in table["uid"]]  # signed or not, it is the same number
        if isinstance(table, pd.DataFrame) and "cs/uid" in table.columns:
            return [int(uid) % 2**64 for uid in table["cs/uid"]]
    return None


def _images(particles: ParticleSet) -> list[tuple[int, str]] | None:
    """(number from 1, path) of each image."""
    for table in particles.metadata.tables.values():
        if isinstance(table, pd.DataFrame) and "rlnImageName" in table.columns:
            file_index, files, numbers = split_image_names(table["rlnImageName"])
            paths = [str(PurePosixPath(path)) for path in files]
            return [(max(0, i) + 1, paths[f]) for i, f in zip(numbers.tolist(), file_index.tolist(), strict=True)]
        if isinstance(table, np.ndarray) and "blob/path" in (table.dtype.names or ()):
            names = image_paths(table)
            return [(int(i) + 1, str(PurePosixPath(name))) for i, name in zip(table["blob/idx"], names, strict=True)]
    return None


def _image_files(particles: ParticleSet) -> list[tuple[int, str]] | None:
    """The same by file name alone, without what cryoSPARC puts in front."""
    images = _images(particles)
    if images is None:
        return None
    return [(number, _CRYOSPARC_PREFIX.sub("", PurePosixPath(path).name)) for number, path in images]


def comparison_lines(c: Comparison, name_a: str, name_b: str, most: int = 12) -> list[str]:
    """Return the comparison in words and numbers, for a terminal.

    Parameters
    ----------
    c : Comparison
        The comparison.
    name_a, name_b : str
        Names of the runs.
    most : int, default 12
        Number of matched classes shown at most.

    Returns
    -------
    list[str]
        Lines.
    """
    kept = c.kept
    doubt = "; by the names of their image files alone, whose folders differ: make sure that they are the same"
    lines = [
        f"{name_a}: {c.n_a} particles in {np.count_nonzero(c.flow[:-1].sum(1))} classes; "
        f"{name_b}: {c.n_b} in {np.count_nonzero(c.flow[:, :-1].sum(0))}; {len(c.rows_a)} in common"
        + (doubt if c.matched_by == "name" else ""),
        f"agreement: adjusted Rand {c.adjusted_rand:.3f}, mutual information {c.mutual_information:.3f}, "
        f"{100 * c.shared:.0f} % of the particles in matched classes",
        f"kept: by both {kept[1, 1]}, only by {name_a} {kept[1, 0]}, only by {name_b} {kept[0, 1]}, "
        f"by neither {kept[0, 0]}",
        "matched classes (A, B, particles shared, of all in either):",
    ]
    for a, b in c.matches[:most]:
        lines.append(f"  {a + 1:4d} {b + 1:4d} {c.flow[a, b]:7d} {100 * c.overlap(a, b):4.0f} %")
    if len(c.matches) > most:
        lines.append(f"  and {len(c.matches) - most} more (the JSON has all)")
    for name, alone, index in ((name_a, c.kept_a & ~c.kept_b, 1), (name_b, c.kept_b & ~c.kept_a, 0)):
        if alone.any():
            other = name_b if index else name_a
            lines.append(f"what only {name} keeps: {int(alone.sum())} particles that {other} leaves out")
    return lines
