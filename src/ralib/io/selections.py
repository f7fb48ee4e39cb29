"""Selections of particles, and repeated ones: an image listed again, or two picks of one particle in a micrograph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ralib.io.stacks import FilesSource
from ralib.types import ParticleSet, RalibError


def with_repeats_noted(particles: ParticleSet) -> ParticleSet:
    """Return the set with `same_as` where images are listed more than once, and a warning that counts them."""
    images = particles.images
    same = images.same_as() if isinstance(images, FilesSource) else None
    if same is None:
        return particles
    again = int((same != np.arange(len(same))).sum())
    return particles.replace(same_as=same).warned(
        f"{again} of {len(same)} rows name an image that is listed before: they count twice, and are kept in one half",
        "particles",
        "write each particle once with 'ralib prepare STACK OUT.star --remove-duplicates 0'",
    )


def without_repeats(particles: ParticleSet, distance_A: float) -> np.ndarray:
    """Return the particles that remain when every image occurs once, and close picks of a micrograph are removed.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    distance_A : float
        Of picks closer than this only the first stays, Angstrom; 0 compares images alone.

    Returns
    -------
    ndarray of shape (m,)
        Rows that remain.

    Raises
    ------
    RalibError
        If a distance is given and the file has no coordinates.
    """
    n = len(particles)
    first = np.arange(n) if particles.same_as is None else particles.same_as
    keep = first == np.arange(n)
    if distance_A > 0:
        place_A, micrograph = _places(particles)
        rows = np.flatnonzero(keep)
        for members in pd.Series(rows).groupby(micrograph[rows]).indices.values():
            keep[_too_close(place_A, rows[members], distance_A)] = False
    return np.flatnonzero(keep)


def _too_close(place_A: np.ndarray, rows: np.ndarray, distance_A: float) -> list[int]:
    """Those of `rows`, in order, that lie within the distance of one that is kept."""
    from scipy.spatial import cKDTree

    gone: set[int] = set()
    near = cKDTree(place_A[rows]).query_ball_point(place_A[rows], distance_A * (1 - 1e-9))
    for i, others in enumerate(near):
        if i not in gone:
            gone.update(j for j in others if j > i)
    return [int(rows[i]) for i in gone]


def _places(particles: ParticleSet) -> tuple[np.ndarray, np.ndarray]:
    """Where each particle's centre lies in its micrograph, Angstrom (n, 2), and which micrograph (n,)."""
    found = _of_star(particles) if particles.metadata.source_format == "relion" else _of_cs(particles)
    if found is None:
        raise RalibError(
            "`distance_A` above 0 needs coordinates: rlnCoordinateX/Y, rlnMicrographName and the "
            "micrograph's pixel size, or cryoSPARC's location fields; give 0 to compare the images alone"
        )
    place_A, micrograph = found
    if particles.poses is not None and particles.pixel_size_A is not None:
        size_A = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A[:, None]
        place_A = place_A - particles.poses.origin_xy_px.double().numpy() * size_A
    if not np.isfinite(place_A).all():
        raise RalibError("`distance_A`: coordinates in the file are no numbers: correct them")
    return place_A, micrograph


def _of_star(particles: ParticleSet) -> tuple[np.ndarray, np.ndarray] | None:
    from ralib.io.relion import joined_table

    table = joined_table(particles.metadata)
    if not {"rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"} <= set(table.columns):
        return None
    sizes = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")
    column = next((c for c in sizes if c in table.columns), None)
    if column is None:
        return None
    numbers: Any = table[["rlnCoordinateX", "rlnCoordinateY", column]].apply(pd.to_numeric, errors="coerce")
    values = numbers.to_numpy(dtype=np.float64)
    return values[:, :2] * values[:, 2:], pd.factorize(table["rlnMicrographName"])[0]


def _of_cs(particles: ParticleSet) -> tuple[np.ndarray, np.ndarray] | None:
    rows = particles.metadata.tables.get("cs")
    names = () if rows is None else rows.dtype.names or ()
    parts = ("center_x_frac", "center_y_frac", "micrograph_shape", "micrograph_psize_A", "micrograph_path")
    if rows is None or not {f"location/{part}" for part in parts} <= set(names):
        return None
    fraction = np.stack([rows["location/center_x_frac"], rows["location/center_y_frac"]], axis=1).astype(np.float64)
    shape_xy = rows["location/micrograph_shape"].astype(np.float64)[:, ::-1]  # rows, columns
    place_A = fraction * shape_xy * rows["location/micrograph_psize_A"].astype(np.float64)[:, None]
    return place_A, np.unique(rows["location/micrograph_path"], return_inverse=True)[1].reshape(-1)


def take(particles: ParticleSet, index: np.ndarray) -> ParticleSet:
    """Select particles: images, CTF, poses, groups and the rows of their file's tables.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    index : ndarray of shape (m,)
        Numbers of those selected, in any order.

    Returns
    -------
    ParticleSet
        The selection.
    """
    return particles[np.asarray(index, dtype=np.int64).reshape(-1)]
