"""Particle sets as pandas tables: a row for each particle, columns by the package's names with their units.

- psi_deg, origin_x_px, origin_y_px, mirror, class_index, score: the pose
- defocus_u_A ... state: the CTF, by the names of `CtfParameters`
- pixel_size_A, group, usable: other properties of a particle
- rln...: the columns of the RELION file that it was read from

A writer fills RELION's columns of poses, CTF, pixel sizes and image names from the particle set (`WRITTEN_FROM`): to
change these, change ours.
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
WRITTEN_FROM = {
    "rlnImageName": "images",
    "rlnAnglePsi": "psi_deg",
    "rlnOriginXAngst": "origin_x_px",
    "rlnOriginYAngst": "origin_y_px",
    "rlnOriginX": "origin_x_px",
    "rlnOriginY": "origin_y_px",
    "rlnClassNumber": "class_index",
    "ralibClass": "class_index",
    "ralibMirror": "mirror",
    "ralibScore": "score",
    "rlnDefocusU": "defocus_u_A",
    "rlnDefocusV": "defocus_v_A",
    "rlnDefocusAngle": "astigmatism_angle_deg",
    "rlnVoltage": "voltage_kV",
    "rlnSphericalAberration": "spherical_aberration_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
    "rlnPhaseShift": "phase_shift_deg",
    "rlnCtfBfactor": "bfactor_A2",
    "rlnCtfDataArePhaseFlipped": "state",
    "rlnCtfDataAreCtfPremultiplied": "state",
    "rlnImagePixelSize": "pixel_size_A",
    "rlnPixelSize": "pixel_size_A",
    "rlnDetectorPixelSize": "pixel_size_A",
    "rlnMagnification": "pixel_size_A",
}
"""RELION's columns that are written from ours."""


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
    return {name: frame[name].to_numpy(copy=True) for name in names}  # torch takes no negative strides


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


def overruled(frame: pd.DataFrame, base: Any, table: pd.DataFrame) -> str:
    """Say which values of RELION's columns a writer would replace by ours, unchanged ones.

    Parameters
    ----------
    frame : pd.DataFrame
        Table of particles.
    base : ParticleSet
        The particles of its rows as they were.
    table : pd.DataFrame
        Their table of the RELION file.

    Returns
    -------
    str
        The first such column and what to do; empty where there is none.
    """
    before = frame_of(base)
    for label, own in WRITTEN_FROM.items():
        if label not in frame.columns or label not in table.columns or own not in (*before.columns, "images"):
            continue
        lost = _changed(frame[label], table[label])
        if lost.any() and own in frame.columns:
            lost &= ~_changed(frame[own], before[own])
        if lost.any():
            return (
                f"{label} was changed in {int(lost.sum())} rows where `{own}` was not, from which it is written: "
                f"change `{own}`, and leave {label} as it was"
            )
    return ""


def _changed(new: pd.Series, old: pd.Series) -> np.ndarray:
    """Rows (n,) whose values differ, as numbers where they are numbers."""
    import pandas as pd

    a, b = (values.reset_index(drop=True) for values in (new, old))
    if a.equals(b):
        return np.zeros(len(a), dtype=bool)
    a_number, b_number = (pd.to_numeric(values, errors="coerce").to_numpy(np.float64) for values in (a, b))
    same = (a.astype(object) == b.astype(object)) | (a.isna() & b.isna())
    return ~(same.to_numpy(dtype=bool) | np.isclose(a_number, b_number, rtol=1e-7, atol=0))


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
