"""Particle sets as pandas tables: a row for each particle, columns by the package's names with their units.

- psi_deg, origin_x_px, origin_y_px, mirror, class_index, score: the pose
- defocus_u_A ... state: the CTF, by the names of `CtfParameters`
- pixel_size_A, group, usable: other properties of a particle
- rln...: the columns of the RELION file that it was read from
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

POSE = ("psi_deg", "origin_x_px", "origin_y_px", "mirror", "class_index", "score")
CTF = (
    "defocus_u_A",
    "defocus_v_A",
    "astigmatism_angle_deg",
    "voltage_kV",
    "spherical_aberration_mm",
    "amplitude_contrast",
    "phase_shift_deg",
    "bfactor_A2",
    "state",
)
OTHER = ("pixel_size_A", "group", "usable")


def frame_of(particles: Any) -> pd.DataFrame:
    """Return the table of a particle set; its index is the particle's number from 0."""
    import pandas as pd

    columns: dict[str, Any] = {}
    if particles.poses is not None:
        poses = particles.poses.to("cpu")
        origin = poses.origin_xy_px.numpy()
        values = (poses.psi_deg, origin[:, 0], origin[:, 1], poses.mirror, poses.class_index, poses.score)
        columns |= dict(zip(POSE, map(np.asarray, values), strict=True))
    if particles.ctf is not None:
        columns |= {name: np.asarray(getattr(particles.ctf, name)) for name in CTF}
    sizes = particles.pixel_sizes_A if particles.pixel_sizes_A is not None else particles.pixel_size_A
    for name, value in zip(OTHER, (sizes, particles.group, particles.usable), strict=True):
        if value is not None:
            columns[name] = np.broadcast_to(value, len(particles))
    frame = pd.DataFrame(columns, index=pd.RangeIndex(len(particles), name="particle"))
    table = particle_table(particles)
    return frame if table is None else pd.concat([frame, table.set_axis(frame.index)], axis=1)


def particle_table(particles: Any) -> pd.DataFrame | None:
    """Return the table of the RELION file the particles were read from, a row for each particle, or None."""
    for table in particles.metadata.tables.values():
        if hasattr(table, "iloc") and len(table) == len(particles) and "rlnImageName" in table.columns:
            return table
    return None


def arrays_of(frame: pd.DataFrame, names: tuple[str, ...]) -> dict[str, np.ndarray] | None:
    """Return columns as arrays.

    Parameters
    ----------
    frame : pd.DataFrame
        Table of particles.
    names : tuple of str
        Names of the columns.

    Returns
    -------
    dict or None
        Arrays (n,) by name, or None where the table has none of the columns.

    Raises
    ------
    KeyError
        If it has only some of them.
    """
    found = [name for name in names if name in frame.columns]
    if not found:
        return None
    missing = sorted(set(names) - set(found))
    if missing:
        raise KeyError(f"the table has {found[0]} but not {', '.join(missing)}: give all of them or none")
    return {name: frame[name].to_numpy() for name in names}


def unknown_columns(frame: pd.DataFrame, table: pd.DataFrame | None) -> list[str]:
    """Return the columns that no particle set and no table can hold.

    Parameters
    ----------
    frame : pd.DataFrame
        Table of particles.
    table : pd.DataFrame or None
        Table of the RELION file, or None.

    Returns
    -------
    list of str
        Names of the columns.
    """
    if table is not None:
        return []
    return [str(name) for name in frame.columns if name not in (*POSE, *CTF, *OTHER)]


def new_table(frame: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Return the file's table with the frame's values of its columns, and with new columns.

    Parameters
    ----------
    frame : pd.DataFrame
        Table of particles.
    table : pd.DataFrame
        Table of the RELION file.

    Returns
    -------
    pd.DataFrame
        The table.
    """
    own = [name for name in frame.columns if name not in (*POSE, *CTF, *OTHER)]
    return table.reset_index(drop=True).assign(**{str(name): frame[name].to_numpy() for name in own})
