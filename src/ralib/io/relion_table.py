"""Tables of particle STAR files: the block of the particles, its optics groups, and columns as numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ralib.io.star import Table, one_row
from ralib.types import Metadata, RalibError


def labels_of(table: Table) -> list[str]:
    """Return the labels of a block, without the leading `_`."""
    return list(table.columns) if isinstance(table, pd.DataFrame) else list(table)


def as_tables(tables: dict[str, Table]) -> dict[str, Table]:
    """Return the blocks, with particles and optics that were written as single values as tables of one row."""
    single = {
        name: one_row(block)
        for name, block in tables.items()
        if isinstance(block, dict) and (name == "optics" or "rlnImageName" in block)
    }
    return {**tables, **single}


def particle_block(tables: dict[str, Table]) -> str | None:
    """Return the name of the block with a row for each particle, or None."""
    loops = {n: t for n, t in tables.items() if isinstance(t, pd.DataFrame)}
    named = [n for n, t in loops.items() if "rlnImageName" in t.columns]
    return "particles" if "particles" in named else (named[0] if named else None)


def particle_table(tables: dict[str, Table], path: Path) -> pd.DataFrame:
    """Return the table with a row for each particle; an error that says what the file is where it has none.

    Parameters
    ----------
    tables : dict
        Tables by block name.
    path : Path
        The file, for errors.

    Returns
    -------
    pd.DataFrame
        The table.
    """
    block = particle_block(tables)
    if block is None:
        part = next((p for p in ("optimiser", "model", "sampling") if f"{p}_general" in tables), None)
        if part is not None:
            raise RalibError(f"{path} is the {part} file of a job and lists no particles: give the job's _data.star")
        if any(name in tables for name in ("job", "pipeline_general")):
            raise RalibError(
                f"{path} describes jobs of RELION and lists no particles: give a job's particles.star or _data.star"
            )
        if any(label.startswith("cisTEM") for table in tables.values() for label in labels_of(table)):
            raise RalibError(f"{path} is a file of cisTEM: export the particles for RELION from there")
        raise RalibError(f"{path} has no table with the column rlnImageName: it is no particle file")
    table = tables[block]
    assert isinstance(table, pd.DataFrame)
    if not len(table):
        raise RalibError(f"{path}: the table data_{block} is empty, there are no particles")
    return table


def with_optics(particles: pd.DataFrame, tables: dict[str, Table], path: Path) -> pd.DataFrame:
    """Return the particle table joined with the columns of its optics group; a particle's own value has precedence.

    Parameters
    ----------
    particles : pd.DataFrame
        Particle table, n rows.
    tables : dict
        Tables by block name.
    path : Path
        The file, for errors.

    Returns
    -------
    pd.DataFrame
        The joined table, n rows.
    """
    optics = tables.get("optics")
    if not isinstance(optics, pd.DataFrame) or not len(optics):
        return particles
    if "rlnOpticsGroup" in particles.columns and "rlnOpticsGroup" in optics.columns:
        group = number_column(particles, "rlnOpticsGroup", path)
        known = pd.Index(number_column(optics, "rlnOpticsGroup", path))
        if not known.is_unique:
            raise RalibError(f"{path}: data_optics lists one rlnOpticsGroup twice; give each group its own number")
        row = known.get_indexer(group)
        if (row < 0).any():
            raise RalibError(
                f"{path}: particles of optics group {group[row < 0][0]:g}, which data_optics does not list"
            )
    elif len(optics) == 1:
        row = np.zeros(len(particles), dtype=np.int64)
    else:
        raise RalibError(f"{path}: {len(optics)} optics groups, but the column rlnOpticsGroup is missing")
    # Series keep their type: an array of text would become pandas' own, which holds no names that are not UTF-8.
    shared = {c: optics[c].iloc[row].set_axis(particles.index) for c in optics.columns if c not in particles.columns}
    return pd.concat([particles, pd.DataFrame(shared, index=particles.index)], axis=1)


def number_column(table: pd.DataFrame, name: str, path: Path | str) -> np.ndarray:
    """Return a column as numbers; an error names the column that holds something else.

    Parameters
    ----------
    table : pd.DataFrame
        Table of n rows.
    name : str
        Label of the column.
    path : Path or str
        The file, for errors.

    Returns
    -------
    ndarray of shape (n,)
        Values, float64.
    """
    try:
        return pd.to_numeric(table[name]).to_numpy(dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise RalibError(f"{path}: the column {name} should hold numbers; {error}") from error


def optional_column(table: pd.DataFrame, name: str, default: float, path: Path) -> np.ndarray:
    """Return a column as numbers, or a default in each row where the table lacks it.

    Parameters
    ----------
    table : pd.DataFrame
        Table of n rows.
    name : str
        Label of the column.
    default : float
        Each value where the column is missing.
    path : Path
        The file, for errors.

    Returns
    -------
    ndarray of shape (n,)
        Values, float64.
    """
    return number_column(table, name, path) if name in table.columns else np.full(len(table), default)


def joined_table(metadata: Metadata) -> pd.DataFrame:
    """Return the particle table of an opened STAR file with the columns of its optics groups."""
    path = Path(metadata.path)
    return with_optics(particle_table(metadata.tables, path), metadata.tables, path)
