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

from ralib.types import ParticleSet, RalibError

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*")
_CS_LOCATION = [f"location/{name}" for name in ("center_x_frac", "center_y_frac", "micrograph_shape")]
_MICROGRAPH_PIXEL = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")


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
        optics = tables.get("optics")
        if isinstance(optics, pd.DataFrame) and {"rlnOpticsGroup"} <= set(optics.columns) & set(table.columns):
            row = pd.Index(optics["rlnOpticsGroup"]).get_indexer(table["rlnOpticsGroup"])
            columns |= {name: optics[name].to_numpy()[row] for name in optics.columns}
        columns |= {str(name): table[name].to_numpy() for name in table.columns}
    rows = tables.get("cs")
    if isinstance(rows, np.ndarray):
        columns |= {name: rows[name] for name in rows.dtype.names or () if rows[name].ndim == 1}
    if particles.poses is not None:
        columns["class"] = particles.poses.class_index.numpy() + 1
        columns["fit"] = particles.poses.score.numpy()
    return columns | dict(scores)


def meets(condition: str, columns: Mapping[str, Any]) -> np.ndarray:
    """Return which particles meet a condition such as 'rlnDefocusU<20000' or 'rlnMicrographName=*grid2*'.

    Numbers are compared as numbers; texts can be equal or not, with * and ? as wildcards.

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
    numbers = pd.to_numeric(pd.Series(column), errors="coerce").to_numpy(dtype=np.float64)
    try:
        limit = float(value)
    except ValueError:
        return _text_meets(condition, column, comparison, value)
    return np.asarray(_COMPARISONS[comparison](numbers, limit) & np.isfinite(numbers))


def _text_meets(condition: str, column: np.ndarray, comparison: str, value: str) -> np.ndarray:
    if comparison not in ("=", "==", "!="):
        raise RalibError(f"`where` {condition!r}: {value!r} is no number, and texts compare only with = and !=")
    pattern = re.compile(fnmatch.translate(value.strip("\"'")))
    texts = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in column.tolist()]
    equal = np.array([pattern.match(text) is not None for text in texts], dtype=bool)
    return ~equal if comparison == "!=" else equal


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
    rows: np.ndarray, particles: ParticleSet, columns: Mapping[str, Any], preferred: np.ndarray, distance_A: float
) -> np.ndarray:
    """Return the rows without those whose centre lies close to a preferred one on their micrograph.

    Parameters
    ----------
    rows : ndarray of shape (m,)
        Rows.
    particles : ParticleSet
        The particles.
    columns : Mapping[str, Any] of shape (n,)
        Columns by name.
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

    xy_A, micrograph = centres_A(particles, columns)
    keep = np.zeros(len(particles), dtype=bool)
    rank = np.argsort(np.argsort(-preferred, kind="stable"))
    order = rows[np.argsort(micrograph[rows], kind="stable")]
    for group in np.split(order, np.flatnonzero(np.diff(micrograph[order])) + 1):
        near = cKDTree(xy_A[group]).query_ball_point(xy_A[group], distance_A)
        for i in np.argsort(rank[group]):
            keep[group[i]] = not keep[group[near[i]]].any()
    return np.sort(rows[keep[rows]])


def centres_A(particles: ParticleSet, columns: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return where each particle's centre lies on its micrograph.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    columns : Mapping[str, Any] of shape (n,)
        Columns by name.

    Returns
    -------
    ndarray of shape (n, 2)
        Position, Angstrom.
    ndarray of shape (n,)
        Number of the micrograph.
    """
    origin_A = np.zeros((len(particles), 2))
    if particles.poses is not None:
        origin_A = particles.poses.origin_xy_px.double().numpy() * (particles.pixel_size_A or 1.0)
    if {"rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"} <= set(columns):
        xy = np.stack([np.asarray(columns[f"rlnCoordinate{axis}"], dtype=np.float64) for axis in "XY"], axis=1)
        micrograph = pd.factorize(pd.Series(columns["rlnMicrographName"]))[0]
        return xy * micrograph_pixel_A(columns)[:, None] - origin_A, micrograph
    rows = particles.metadata.tables.get("cs")
    if isinstance(rows, np.ndarray) and set(_CS_LOCATION) <= set(rows.dtype.names or ()):
        size_A = rows["location/micrograph_shape"][:, ::-1] * _cs_pixel_A(rows)[:, None]
        fraction = np.stack([rows["location/center_x_frac"], rows["location/center_y_frac"]], axis=1)
        names = rows["location/micrograph_uid" if "location/micrograph_uid" in rows.dtype.names else "uid"]
        return fraction.astype(np.float64) * size_A - origin_A, pd.factorize(names)[0]
    raise RalibError(
        "the particles' places are unknown: rlnMicrographName and rlnCoordinateX/Y (or cryoSPARC's location fields) "
        "are missing; leave `remove_duplicates_A` and `recenter` out"
    )


def micrograph_pixel_A(columns: Mapping[str, Any]) -> np.ndarray:
    """Return the pixel size (n,) of the micrograph in which rlnCoordinateX/Y count."""
    for name in _MICROGRAPH_PIXEL:
        if name in columns:
            size = np.asarray(columns[name], dtype=np.float64)
            if (size > 0).all():
                return size
    raise RalibError(
        "the micrographs' pixel size is unknown (rlnMicrographPixelSize, rlnMicrographOriginalPixelSize): add it to "
        "data_optics, or leave `remove_duplicates_A` and `recenter` out"
    )


def _cs_pixel_A(rows: np.ndarray) -> np.ndarray:
    if "location/micrograph_psize_A" not in (rows.dtype.names or ()):
        raise RalibError("location/micrograph_psize_A is missing: leave `remove_duplicates_A` and `recenter` out")
    return np.asarray(rows["location/micrograph_psize_A"], dtype=np.float64)


def recentred(particles: ParticleSet, columns: Mapping[str, Any]) -> ParticleSet:
    """Return the particles with their picks moved onto their centres, for a new extraction.

    As RELION does: rlnCoordinateX/Y move by whole micrograph pixels, the rest stays in the origin. In a .cs table the
    fractions take all of it. The images named in the table are still the old ones: extract again before using them.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    columns : Mapping[str, Any] of shape (n,)
        Columns by name.

    Returns
    -------
    ParticleSet
        The particles.
    """
    if particles.poses is None:
        raise RalibError("`recenter`: the particles have no origin shifts")
    xy_A, _ = centres_A(particles, columns)
    tables: dict[str, Any] = dict(particles.metadata.tables)
    poses, pixel_A = particles.poses, particles.pixel_size_A or 1.0
    if "rlnCoordinateX" in columns:
        size_A = micrograph_pixel_A(columns)[:, None]
        before = np.stack([np.asarray(columns[f"rlnCoordinate{axis}"], dtype=np.float64) for axis in "XY"], axis=1)
        after = before - np.round(before - xy_A / size_A)
        rest_px = (after * size_A - xy_A) / pixel_A
        block = next(b for b, t in tables.items() if isinstance(t, pd.DataFrame) and "rlnCoordinateX" in t.columns)
        tables[block] = tables[block].assign(rlnCoordinateX=after[:, 0], rlnCoordinateY=after[:, 1])
    else:
        rows = tables["cs"].copy()
        size = rows["location/micrograph_shape"][:, ::-1] * _cs_pixel_A(rows)[:, None]
        rows["location/center_x_frac"], rows["location/center_y_frac"] = (xy_A / size).T
        rest_px, tables["cs"] = np.zeros_like(xy_A), rows
    moved = poses.replace(origin_xy_px=torch.from_numpy(rest_px).to(poses.origin_xy_px.dtype))
    return particles.replace(poses=moved, metadata=replace(particles.metadata, tables=tables))


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
