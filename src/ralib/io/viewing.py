"""Viewing directions of particles that a 3D refinement of another program has given Euler angles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ralib.io.cryosparc import euler_zyz_rad
from ralib.io.relion_table import particle_block
from ralib.types import ParticleSet

VIEW_COLUMNS = ("ralibViewRot", "ralibViewTilt")
"""Of the package's own files, whose rlnAngleRot and rlnAngleTilt tell the mirror."""


def viewing_directions(particles: ParticleSet) -> np.ndarray | None:
    """Return the viewing direction of each particle as its file has it.

    Parameters
    ----------
    particles : ParticleSet
        The particles.

    Returns
    -------
    ndarray of shape (n, 2) or None
        RELION's rot from -180 to 180 and tilt from 0 to 180, degrees; None where the file holds none: in-plane angles
        alone, or the tilts of 0 and 180 by which RELION writes mirrors.
    """
    tables = particles.metadata.tables
    if particles.metadata.source_format == "cryosparc":
        rows = tables.get("cs")
        if not isinstance(rows, np.ndarray) or "alignments3D/pose" not in (rows.dtype.names or ()):
            return None
        vectors = rows["alignments3D/pose"]
        if vectors.ndim != 2 or vectors.shape[1] != 3:
            return None
        rot_deg, tilt_deg = np.rad2deg(euler_zyz_rad(vectors)[:, :2]).T
    else:
        relion: dict[str, Any] = {n: table for n, table in tables.items() if isinstance(table, pd.DataFrame)}
        block = particle_block(relion)
        columns = [c for c in (VIEW_COLUMNS, ("rlnAngleRot", "rlnAngleTilt")) if block and set(c) <= set(relion[block])]
        if block is None or not columns:
            return None
        rot_deg, tilt_deg = (pd.to_numeric(relion[block][c], errors="coerce").to_numpy(float) for c in columns[0])
    if len(rot_deg) != len(particles) or (np.isin(np.abs(tilt_deg), (0.0, 180.0)).all() and not rot_deg.any()):
        return None
    # (rot, -tilt) and (rot + 180, tilt) are one direction.
    rot_deg = np.where(tilt_deg % 360 > 180, rot_deg + 180, rot_deg)
    tilt_deg = 180 - np.abs(180 - tilt_deg % 360)
    return np.stack([(rot_deg + 180) % 360 - 180, tilt_deg], axis=1)
