"""Rules for single particles: conditions on any column, a cap on class sizes, no two picks of one particle."""

from __future__ import annotations

import fnmatch
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from ralib.io.picks import centres_A, image_pixel_sizes_A, picks_of
from ralib.io.relion_table import joined_table
from ralib.types import ParticleSet, RalibError

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBER = re.compile(r"[+-]?(?:0|[1-9]\d*|(?=\.\d))(?:\.\d*)?(?:[eE][+-]?\d{1,3})?")
"""Text that is a number and nothing else: not a hash 72E45901, an id 00713 or a date 250531_1."""
_CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")


def particle_columns(particles: ParticleSet, scores: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return everything known of each particle: the file's columns with its optics group's, and the run's scores.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    scores : Mapping[str, ndarray] of shape (n,)
        Scores by name.

    Returns
    -------
    dict[str, Any]
        Columns by name.
    """
    tables = particles.metadata.tables
    columns: dict[str, Any] = {}
    table = next((t for t in tables.values() if isinstance(t, pd.DataFrame) and "rlnImageName" in t.columns), None)
    if table is not None:
        joined = joined_table(particles.metadata) if particles.metadata.source_format == "relion" else table
        columns |= {str(name): joined[name].to_numpy() for name in joined.columns}
    rows = tables.get("cs")
    if isinstance(rows, np.ndarray):
        columns |= {name: rows[name] for name in rows.dtype.names or () if rows[name].ndim == 1}
    if particles.poses is not None:
        columns["class"] = particles.poses.class_index.numpy() + 1
        columns["fit"] = particles.poses.score.numpy()
    return columns | dict(scores)


def meets(condition: str, columns: Mapping[str, Any]) -> np.ndarray:
    """Return which particles meet a condition such as 'rlnDefocusU<20000' or 'rlnMicrographName=*grid2*'.

    Numbers are compared as numbers; texts can be equal or not, with * and ? as wildcards. Text stays text: 00713 is
    not 713.

    Parameters
    ----------
    condition : str
        The condition.
    columns : Mapping[str, Any] of shape (n,)
        Columns by name.

    Returns
    -------
    ndarray of shape (n,)
        True where it holds.

    Raises
    ------
    RalibError
        If the condition is malformed or its column unknown.
    """
    match = _CONDITION.fullmatch(condition)
    if match is None or not match[3]:
        raise RalibError(f"`where` {condition!r} is no condition: write COLUMN, one of < <= > >= = !=, and a value")
    name, comparison, value = match.groups()
    if name not in columns:
        near = [known for known in columns if name.lower() in known.lower()]
        hint = f"perhaps {', '.join(near[:4])}?" if near else f"there are {', '.join(list(columns)[:12])} ..."
        raise RalibError(f"`where` {condition!r}: the particles have no column {name}; {hint}")
    column = np.asarray(columns[name])
    if comparison in ("=", "==", "!="):
        equal = _equals(column, value)
        return ~equal & _known(column) if comparison == "!=" else equal
    if not _is_number(value):
        raise RalibError(f"`where` {condition!r}: {value!r} is no number, and texts compare only with = and !=")
    numbers = pd.to_numeric(pd.Series(column), errors="coerce").to_numpy(dtype=np.float64)
    if not np.isfinite(numbers).any():
        raise RalibError(f"`where` {condition!r}: the column {name} holds no numbers; compare it with = or !=")
    return np.asarray(_COMPARISONS[comparison](numbers, float(value)) & np.isfinite(numbers))


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and bool(np.isfinite(float(text)))


def _known(column: np.ndarray) -> np.ndarray:
    """(n,) False where a column of numbers has none."""
    return np.isfinite(column) if column.dtype.kind == "f" else np.ones(len(column), dtype=bool)


def _equals(column: np.ndarray, value: str) -> np.ndarray:
    """(n,) True where a column is a value: the same number, or a text that fits it with * and ? as wildcards."""
    if column.dtype.kind in "iub" and re.fullmatch(r"[+-]?\d+", value):
        return np.asarray(column == int(value))  # all 64 bits of a uid
    if column.dtype.kind in "fiub" and _is_number(value):
        return np.asarray(column == float(value))
    pattern = re.compile(fnmatch.translate(value.strip("\"'")))
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in column.tolist()]
    number = float(value) if _is_number(value) else None
    return np.array(
        [
            pattern.match(text) is not None or (number is not None and _is_number(text) and float(text) == number)
            for text in texts
        ],
        dtype=bool,
    )


def preference(columns: Mapping[str, Any], n: int) -> np.ndarray:
    """Return the figure that decides which of several particles is kept: quality, else the fit, else 0.

    Parameters
    ----------
    columns : Mapping[str, Any] of shape (n,)
        Columns by name.
    n : int
        Number of particles.

    Returns
    -------
    ndarray of shape (n,)
        The figure.
    """
    for name in ("quality", "fit"):
        values = np.asarray(columns.get(name, np.nan), dtype=np.float64)
        if values.shape == (n,) and np.isfinite(values).any():
            return np.nan_to_num(values, nan=-np.inf)
    return np.zeros(n)


def capped(rows: np.ndarray, class_index: np.ndarray, preferred: np.ndarray, most: int | None) -> np.ndarray:
    """Return at most `most` of the rows in each class, the preferred ones.

    Parameters
    ----------
    rows : ndarray of shape (m,)
        Rows.
    class_index : ndarray of shape (n,)
        Class of each particle.
    preferred : ndarray of shape (n,)
        Figure of `preference`.
    most : int or None
        Members of a class at most; None is the size of the median class.

    Returns
    -------
    ndarray
        Rows that stay.
    """
    if not len(rows):
        return rows
    index = class_index[rows]
    if most is None:
        sizes = np.bincount(index)
        most = int(np.median(sizes[sizes > 0]))
    order = np.lexsort((-preferred[rows], index))
    starts = np.searchsorted(index[order], np.arange(index.max() + 1))
    rank = np.arange(len(rows)) - starts[index[order]]
    return np.sort(rows[order[rank < most]])


def without_duplicates(
    rows: np.ndarray, particles: ParticleSet, preferred: np.ndarray, distance_A: float
) -> np.ndarray:
    """Return the rows without those whose centre lies close to a preferred one on their micrograph.

    Parameters
    ----------
    rows : ndarray of shape (m,)
        Rows.
    particles : ParticleSet
        The particles.
    preferred : ndarray of shape (n,)
        Figure of `preference`.
    distance_A : float
        Smallest distance, Angstrom.

    Returns
    -------
    ndarray
        Rows that stay.
    """
    from scipy.spatial import cKDTree

    picks = picks_of(particles)
    xy_A, micrograph = centres_A(particles, picks), picks.micrograph
    keep = np.zeros(len(particles), dtype=bool)
    rank = np.argsort(np.argsort(-preferred, kind="stable"))
    order = rows[np.argsort(micrograph[rows], kind="stable")]
    for group in np.split(order, np.flatnonzero(np.diff(micrograph[order])) + 1):
        near = cKDTree(xy_A[group]).query_ball_point(xy_A[group], distance_A)
        for i in np.argsort(rank[group]):
            keep[group[i]] = not keep[group[near[i]]].any()
    return np.sort(rows[keep[rows]])


def recentred(particles: ParticleSet) -> ParticleSet:
    """Return the particles with their picks moved onto their centres, for a new extraction.

    As RELION does: rlnCoordinateX/Y move by whole micrograph pixels, the rest stays in the origin. In a .cs table the
    fractions take all of it. The images named in the table are still the old ones: extract again before using them.

    Parameters
    ----------
    particles : ParticleSet
        The particles.

    Returns
    -------
    ParticleSet
        The particles.
    """
    if particles.poses is None:
        raise RalibError("`recenter`: the particles have no origin shifts")
    picks = picks_of(particles)
    centre_px = centres_A(particles, picks) / picks.pixel_size_A[:, None]
    tables: dict[str, Any] = dict(particles.metadata.tables)
    if "cs" in tables:
        rows = tables["cs"].copy()
        shape_xy = rows["location/micrograph_shape"][:, ::-1]
        rows["location/center_x_frac"], rows["location/center_y_frac"] = (centre_px / shape_xy).T
        rest_px, tables["cs"] = np.zeros_like(centre_px), rows
    else:
        after = picks.xy_px - np.round(picks.xy_px - centre_px)
        block = next(b for b, t in tables.items() if isinstance(t, pd.DataFrame) and "rlnCoordinateX" in t.columns)
        tables[block] = tables[block].assign(**_places(tables[block], after))
        rest_px = after - centre_px
        if rest_px.any():
            rest_px *= (picks.pixel_size_A / image_pixel_sizes_A(particles))[:, None]
    moved = particles.poses.replace(origin_xy_px=torch.from_numpy(rest_px).to(particles.poses.origin_xy_px.dtype))
    return particles.replace(poses=moved, metadata=replace(particles.metadata, tables=tables))


def _places(table: pd.DataFrame, xy_px: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of picks in a STAR file, those of the .cs table that it carries included."""
    places = {"rlnCoordinateX": xy_px[:, 0], "rlnCoordinateY": xy_px[:, 1]}
    for axis, size in ((0, 1), (1, 0)):  # the shape is that of an array: rows, columns
        fraction, shape = f"cs/location/center_{'xy'[axis]}_frac", f"cs/location/micrograph_shape/{size}"
        if {fraction, shape} <= set(table.columns):
            places[fraction] = xy_px[:, axis] / pd.to_numeric(table[shape]).to_numpy(dtype=np.float64)
    return places


def conditions_met(conditions: Sequence[str], columns: Mapping[str, Any], n: int) -> np.ndarray:
    """Return which particles meet all conditions.

    Parameters
    ----------
    conditions : Sequence[str]
        The conditions.
    columns : Mapping[str, Any] of shape (n,)
        Columns by name.
    n : int
        Number of particles.

    Returns
    -------
    ndarray of shape (n,)
        True where all hold.
    """
    return np.logical_and.reduce([np.ones(n, dtype=bool), *[meets(text, columns) for text in conditions]])
