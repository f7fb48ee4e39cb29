"""Where particles lie on their micrographs: RELION's rlnCoordinateX/Y, cryoSPARC's location fields."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ralib.io.npy import doubles
from ralib.io.relion_table import joined_table
from ralib.types import ParticleSet, RalibError

MICROGRAPH_PIXEL = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize")
OPTIONS = "`remove_duplicates_A` and `recenter`"


@dataclass(frozen=True)
class Picks:
    """Picks of n particles.

    Attributes
    ----------
    xy_px : ndarray of shape (n, 2)
        Place on the micrograph, pixels of the micrograph.
    pixel_size_A : ndarray of shape (n,)
        Pixel size of the micrograph, Angstrom.
    micrograph : ndarray of shape (n,)
        Number of the micrograph.
    """

    xy_px: np.ndarray
    pixel_size_A: np.ndarray
    micrograph: np.ndarray


def picks_of(particles: ParticleSet) -> Picks:
    """Return the picks that a particle file tells of.

    Parameters
    ----------
    particles : ParticleSet
        The particles.

    Returns
    -------
    Picks
        Their picks.

    Raises
    ------
    RalibError
        If the file does not tell of them, or with numbers that cannot be meant.
    """
    format_ = particles.metadata.source_format
    found = _of_star(particles) if format_ == "relion" else _of_cs(particles) if format_ == "cryosparc" else None
    if found is None:
        raise RalibError(
            "the particles' places are unknown: rlnMicrographName, rlnCoordinateX/Y and the micrograph's pixel size "
            "(rlnMicrographPixelSize, rlnMicrographOriginalPixelSize), or cryoSPARC's location fields, are missing; "
            f"leave {OPTIONS} out"
        )
    for what, values in (("place", found.xy_px), ("micrograph's pixel size", found.pixel_size_A[:, None])):
        good = np.isfinite(values).all(axis=1) & (what == "place" or values[:, 0] > 0)
        if not good.all():
            row = int(np.argmin(good))
            raise RalibError(
                f"the {what} of particle {row + 1} is {', '.join(f'{v:g}' for v in values[row])}: correct it in "
                f"{particles.metadata.path}"
            )
    return found


def centres_A(particles: ParticleSet, picks: Picks) -> np.ndarray:
    """Return where the particles themselves lie on their micrographs: their picks, moved by their origins.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    picks : Picks
        Their picks.

    Returns
    -------
    ndarray of shape (n, 2)
        Place, Angstrom.
    """
    place_A = picks.xy_px * picks.pixel_size_A[:, None]
    poses = particles.poses
    if poses is None or not bool((poses.origin_xy_px != 0).any()):
        return place_A
    return place_A - poses.origin_xy_px.double().numpy() * image_pixel_sizes_A(particles)[:, None]


def star_places(particles: ParticleSet) -> dict[str, np.ndarray]:
    """Return RELION's columns of the places that a .cs table tells of; {} where it tells of none."""
    found = _of_cs(particles)
    if found is None or not np.isfinite(found.xy_px).all() or not (found.pixel_size_A > 0).all():
        return {}
    x, y = found.xy_px.round(3).T
    return {"rlnCoordinateX": x, "rlnCoordinateY": y, "rlnMicrographPixelSize": found.pixel_size_A.round(6)}


def image_pixel_sizes_A(particles: ParticleSet) -> np.ndarray:
    """Return the pixel size of each particle's own image (n,), in which its origin counts, Angstrom."""
    size_A = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    if size_A is None:
        raise RalibError(
            "the particles have origins in pixels of unknown size: add rlnImagePixelSize to the file, or leave "
            f"{OPTIONS} out"
        )
    return np.broadcast_to(np.asarray(size_A, dtype=np.float64), (len(particles),))


def _of_star(particles: ParticleSet) -> Picks | None:
    table = joined_table(particles.metadata)
    column = next((c for c in MICROGRAPH_PIXEL if c in table.columns), None)
    if column is None or not {"rlnCoordinateX", "rlnCoordinateY", "rlnMicrographName"} <= set(table.columns):
        return None
    numbers: Any = table[["rlnCoordinateX", "rlnCoordinateY", column]].apply(pd.to_numeric, errors="coerce")
    values = numbers.to_numpy(dtype=np.float64)
    number, names = pd.factorize(table["rlnMicrographName"])
    same = pd.factorize(np.array([os.path.normpath(str(name)) for name in names], dtype=object))[0]  # ./m.mrc is m.mrc
    return Picks(values[:, :2], values[:, 2], np.where(number < 0, -1, same[number]))


def _of_cs(particles: ParticleSet) -> Picks | None:
    rows = particles.metadata.tables["cs"]
    names = rows.dtype.names or ()
    parts = ("center_x_frac", "center_y_frac", "micrograph_shape", "micrograph_psize_A")
    which = next((f"location/{n}" for n in ("micrograph_uid", "micrograph_path") if f"location/{n}" in names), None)
    if which is None or not {f"location/{part}" for part in parts} <= set(names):
        return None
    fraction = doubles(np.stack([rows["location/center_x_frac"], rows["location/center_y_frac"]], axis=1))
    shape_xy = doubles(rows["location/micrograph_shape"])[:, ::-1]  # rows, columns
    micrograph = np.unique(rows[which], return_inverse=True)[1].reshape(-1)
    return Picks(fraction * shape_xy, doubles(rows["location/micrograph_psize_A"]), micrograph)
