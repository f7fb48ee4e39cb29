"""Selections of particles, and repeated ones: an image listed again, or two picks of one particle in a micrograph."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ralib.io.picks import centres_A, picks_of
from ralib.io.stacks import FilesSource
from ralib.types import ParticleSet


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
        picks = picks_of(particles)
        place_A, rows = centres_A(particles, picks), np.flatnonzero(keep)
        for members in pd.Series(rows).groupby(picks.micrograph[rows]).indices.values():
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


def spread_rows(n: int, at_most: int) -> np.ndarray:
    """Return the numbers of particles spread evenly over a set.

    Parameters
    ----------
    n : int
        Number of all particles.
    at_most : int
        How many are taken, at most.

    Returns
    -------
    ndarray of shape (m,)
        Numbers, ascending.
    """
    return np.unique(np.linspace(0, n - 1, min(n, at_most)).round().astype(np.int64))


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
