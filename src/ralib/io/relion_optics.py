"""The optics table of a particle STAR file (RELION 3.1 and later), of particles from any file.

Particles whose images differ in pixel size, box, CTF state, voltage, Cs or amplitude contrast are in groups of their
own; the groups of the particles' own file are kept as far as they still hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ralib.io.relion import STATE_COLUMNS
from ralib.io.relion_table import particle_block
from ralib.types import CtfState, ParticleSet

SHARED = {  # columns RELION >= 3.1 keeps in data_optics
    "rlnVoltage": "voltage_kV",
    "rlnSphericalAberration": "spherical_aberration_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
}
_UNKNOWN = {"rlnVoltage": 300.0, "rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
WHOLE = ("rlnImageSize", *STATE_COLUMNS)


def optics_of(particles: ParticleSet, old: Any, table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the optics table for the particles as they are now, and the group of each.

    RELION refuses a table without voltage and spherical aberration; where no CTF is known they have usual values, which
    nothing uses without a defocus. Particles of another pixel size, box or CTF state are another group.

    Parameters
    ----------
    particles : ParticleSet
        n particles.
    old : pd.DataFrame or None
        Optics table that they came with.
    table : pd.DataFrame
        Particle table that they came with, n rows.

    Returns
    -------
    pd.DataFrame
        Optics table.
    ndarray of shape (n,)
        Optics group of each particle.
    """
    if isinstance(old, pd.DataFrame) and len(old):
        return _kept_optics(particles, old, table)
    n = len(particles)
    shared = {c: getattr(particles.ctf, a) for c, a in SHARED.items()} if particles.ctf is not None else _UNKNOWN
    shared = shared | _image_columns(particles)
    columns = [np.broadcast_to(np.asarray(v, dtype=np.float64), (n,)) for v in shared.values()]
    first, group = _distinct([*columns, _exposure_groups(particles)])
    rows = np.stack(columns, axis=1)[first]
    optics = pd.DataFrame({"rlnOpticsGroupName": [f"opticsGroup{i + 1}" for i in range(len(rows))]})
    optics["rlnOpticsGroup"] = np.arange(1, len(rows) + 1)
    for j, column in enumerate(shared):
        optics[column] = rows[:, j].astype(np.int64) if column in WHOLE else rows[:, j]
    if "rlnCoordinateX" not in table.columns:  # else it would say in which pixels they count, which is not known
        optics["rlnMicrographOriginalPixelSize"] = optics.get("rlnImagePixelSize", 1.0)
    if "rlnImagePixelSize" not in optics.columns:
        optics["rlnImagePixelSize"] = 1.0
    optics["rlnImageDimensionality"] = 2
    return optics, group + 1


def _exposure_groups(particles: ParticleSet) -> np.ndarray:
    """CryoSPARC's number (n,) for what RELION calls optics groups; zeros for other files."""
    rows = particles.metadata.tables.get("cs") if particles.metadata.source_format == "cryosparc" else None
    names = rows.dtype.names or () if isinstance(rows, np.ndarray) else ()
    if rows is None or "ctf/exp_group_id" not in names or rows["ctf/exp_group_id"].dtype.kind not in "iu":
        return np.zeros(len(particles))
    return np.asarray(rows["ctf/exp_group_id"], dtype=np.float64)


def _distinct(columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """First row of each kind (k,), and kind of each row (n,); rows without a number are of one kind."""
    frame = pd.DataFrame(dict(enumerate(columns)))
    which = frame.groupby(list(frame.columns), dropna=False, sort=True).ngroup().to_numpy()
    return np.unique(which, return_index=True)[1], which


def count_optics_groups(particles: ParticleSet) -> int:
    """Return the number of optics groups that the particles are written with; RELION 4 and 5 compare it to the model's.

    Parameters
    ----------
    particles : ParticleSet
        The particles.

    Returns
    -------
    int
        Rows of data_optics.
    """
    kept = particles.metadata.tables if particles.metadata.source_format == "relion" else {}
    block = particle_block(kept)
    table = kept[block] if block is not None else pd.DataFrame(index=range(len(particles)))
    assert isinstance(table, pd.DataFrame)
    return len(optics_of(particles, kept.get("optics"), table)[0])


def _image_columns(particles: ParticleSet) -> dict[str, Any]:
    """What data_optics says of the images themselves, as they are now: one value, or one a particle (n,)."""
    size_A = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    boxes = getattr(particles.images, "boxes", None)
    columns: dict[str, Any] = {} if size_A is None else {"rlnImagePixelSize": size_A}
    if particles.box:
        columns["rlnImageSize"] = particles.box if boxes is None else boxes
    if particles.ctf is not None and particles.ctf.state.any():
        for column, state in zip(STATE_COLUMNS, (CtfState.PHASE_FLIPPED, CtfState.PREMULTIPLIED), strict=True):
            columns[column] = (particles.ctf.state == state).astype(np.int64)
    return columns


def _kept_optics(particles: ParticleSet, old: pd.DataFrame, table: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the optics table of the particles' own file, completed for the present images.

    Pixel size, box and CTF state are those of the images now. A group whose images differ in them becomes several.
    """
    optics = old.copy()
    n = len(particles)
    if "rlnOpticsGroup" not in optics.columns:
        optics["rlnOpticsGroup"] = np.arange(1, len(optics) + 1)
    group = (
        table["rlnOpticsGroup"].to_numpy()
        if "rlnOpticsGroup" in table.columns
        else np.full(n, optics["rlnOpticsGroup"].iloc[0])
    )
    for column, value in _UNKNOWN.items():
        if column not in optics.columns:
            own: Any = table.groupby(group)[column].first() if column in table.columns else {}
            optics[column] = [own.get(g, value) for g in optics["rlnOpticsGroup"].tolist()]
    current = _image_columns(particles) | _changed_optics(particles, optics, group, table)
    now = {c: np.broadcast_to(np.asarray(v, dtype=np.float64), (n,)) for c, v in current.items()}
    optics, group = _split_groups(optics, np.asarray(group), now)
    for column in STATE_COLUMNS:  # a CTF state that was taken off again
        if column in optics.columns and column not in now and particles.ctf is not None:
            optics[column] = 0
    if "rlnImagePixelSize" not in optics.columns:
        optics["rlnImagePixelSize"] = particles.pixel_size_A or 1.0
    optics["rlnImageDimensionality"] = 2
    return optics, group


def _changed_optics(
    particles: ParticleSet, optics: pd.DataFrame, group: np.ndarray, table: pd.DataFrame
) -> dict[str, np.ndarray]:
    """What the particles' CTF now says otherwise than their optics groups: voltage, Cs, amplitude contrast."""
    changed = {}
    row = pd.Index(optics["rlnOpticsGroup"]).get_indexer(group)
    for column, name in SHARED.items() if particles.ctf is not None else ():
        own = np.asarray(getattr(particles.ctf, name), dtype=np.float64)
        kept = pd.to_numeric(optics[column], errors="coerce").to_numpy(dtype=np.float64)[row]
        if column not in table.columns and not np.allclose(own, kept, rtol=1e-6, atol=0, equal_nan=True):
            changed[column] = own
    return changed


def _split_groups(
    optics: pd.DataFrame, group: np.ndarray, now: dict[str, np.ndarray]
) -> tuple[pd.DataFrame, np.ndarray]:
    """The table with the columns `now` (n,) of the particles in each group; one more group for each other value."""
    keys = [pd.factorize(group)[0].astype(np.float64), *now.values()]
    first, which = _distinct(keys)
    values = np.stack(keys, axis=1)[first]
    position = pd.Index(optics["rlnOpticsGroup"]).get_indexer(group[first])
    used: set[int] = set()
    taken: list[int] = []
    next_number = int(pd.to_numeric(optics["rlnOpticsGroup"]).max()) + 1
    numbers: list[Any] = []
    names: dict[int, str] = {}
    for row in position.tolist():
        number = optics["rlnOpticsGroup"].iloc[row]
        if row in used:
            number, next_number = next_number, next_number + 1
            names[len(taken)] = f"_{number}"  # RELION takes groups of one name for one group
        used.add(row)
        numbers.append(number)
        taken.append(row)
    rest = [i for i in range(len(optics)) if i not in used]
    new = optics.iloc[taken + rest].reset_index(drop=True)
    if "rlnOpticsGroupName" in new.columns:
        new["rlnOpticsGroupName"] = [f"{n}{names.get(i, '')}" for i, n in enumerate(new["rlnOpticsGroupName"].tolist())]
    new["rlnOpticsGroup"] = [*numbers, *optics["rlnOpticsGroup"].iloc[rest].tolist()]
    for j, column in enumerate(now, 1):
        kept = list(optics[column].iloc[rest]) if column in optics.columns else [values[0, j]] * len(rest)
        new[column] = [*values[:, j].tolist(), *kept]
        if column in WHOLE:
            new[column] = pd.to_numeric(new[column]).astype(np.int64)
    order = np.argsort(pd.to_numeric(new["rlnOpticsGroup"]).to_numpy(), kind="stable")
    return new.iloc[order].reset_index(drop=True), np.array(numbers)[which]


def pixel_sizes_A(particles: ParticleSet, optics: pd.DataFrame, group: np.ndarray) -> np.ndarray:
    """Return the pixel size by which each particle's origin becomes Angstrom; 1 where none is known.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    optics : pd.DataFrame
        Optics table.
    group : ndarray of shape (n,)
        Group of each particle.

    Returns
    -------
    ndarray of shape (n,)
        Pixel size, Angstrom.
    """
    if particles.pixel_sizes_A is not None:
        return particles.pixel_sizes_A
    if particles.pixel_size_A is not None:
        return np.full(len(particles), particles.pixel_size_A)
    sizes = dict(zip(optics["rlnOpticsGroup"].tolist(), pd.to_numeric(optics["rlnImagePixelSize"]), strict=True))
    return np.array([float(sizes[g]) for g in group.tolist()])
