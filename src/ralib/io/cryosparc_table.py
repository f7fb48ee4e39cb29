"""Tables of cryoSPARC .cs files: reading them, and joining a job's own with the one it passes through, by `uid`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ralib.io.atomic import PathLike
from ralib.io.npy import doubles, read_header
from ralib.io.text import ERRORS
from ralib.types import RalibError


def load_cs(path: Path) -> np.ndarray:
    """Return the structured array of a .cs file, without ever running a pickle."""
    if not path.is_file():  # a named pipe would wait for ever
        raise RalibError(f"cannot read {path}: {'it is no ordinary file' if path.exists() else 'no such file'}")
    try:
        with path.open("rb") as file:
            if file.read(6) == b"\x94CSDAT":
                raise RalibError(f"{path} is a compressed cryoSPARC stream: save it in cryosparc-tools' numpy format")
        shape, _, dtype, offset = read_header(path)
        if dtype.names is None or len(shape) != 1:
            raise RalibError(f"{path} is no cryoSPARC .cs file: it must be a table of fields, one row a particle")
        needed, present = shape[0] * dtype.itemsize, path.stat().st_size - offset
        if needed > present:
            raise RalibError(
                f"{path} is truncated: its header says {shape[0]} particles ({needed} bytes), {present} bytes are "
                "there; copy or export it again"
            )
        rows = np.fromfile(path, dtype=dtype, count=shape[0], offset=offset)
    except OSError as error:
        raise RalibError(f"cannot read {path}: {error.strerror}") from error
    _check_text(rows, path)
    return rows


def _check_text(rows: np.ndarray, path: Path) -> None:
    """RalibError where a field of text holds numbers that are no characters: Python would make broken strings of it."""
    for name in field_names(rows):
        base = rows.dtype[name].base
        if base.kind == "U" and base.itemsize and len(rows):
            characters = np.ascontiguousarray(rows[name]).view(base.byteorder + "u4")
            if characters.size and int(characters.max()) > sys.maxunicode:
                raise RalibError(f"{path} is damaged: its field {name} holds no text; copy or export it again")


def field_names(rows: np.ndarray) -> tuple[str, ...]:
    """Return the names of a table's fields."""
    return rows.dtype.names or ()


def image_paths(rows: np.ndarray) -> list[str]:
    """Return blob/path as text; cryoSPARC marks paths inside its project by a leading '>'."""
    paths = rows["blob/path"]
    decoded = np.char.decode(paths, "utf-8", ERRORS) if paths.dtype.kind == "S" else paths
    return [str(p).removeprefix(">") for p in decoded.tolist()]


def floats(rows: np.ndarray, name: str, default: float = 0.0) -> np.ndarray:
    """Return a field of one number a row; an error where it holds something else.

    Parameters
    ----------
    rows : ndarray of shape (n,)
        Structured array.
    name : str
        Name of the field.
    default : float, default 0.0
        Each value where the table lacks the field.

    Returns
    -------
    ndarray of shape (n,)
        Values, float64.
    """
    if name not in field_names(rows):
        return np.full(len(rows), default)
    values = rows[name]
    if values.dtype.kind not in "fiu" or values.ndim != 1:
        raise RalibError(f"the field {name} of the .cs file should hold one number a particle")
    return doubles(values)


def passthrough_files(path: Path, given: Sequence[PathLike] | None) -> list[Path]:
    """Return the passthrough files that were given, else those beside the .cs file.

    Parameters
    ----------
    path : Path
        The .cs file.
    given : sequence of PathLike or None
        The passthrough files as given.

    Returns
    -------
    list of Path
        The files.
    """
    if given is not None:
        return [Path(p) for p in given]
    return sorted(p for p in path.parent.glob("*passthrough*.cs") if not (p.is_file() and p.samefile(path)))


def with_passthrough(rows: np.ndarray, extra: Path, unused: list[str], *, must_match: bool) -> np.ndarray:
    """Return `rows` joined with the fields of the file `extra`.

    A file that was found beside the .cs and does not fit adds a line to `unused`, unless it belongs to another job and
    nothing is lost; one that the user gave is an error.

    Parameters
    ----------
    rows : ndarray of shape (n,)
        Structured array of the particles.
    extra : Path
        The passthrough file.
    unused : list of str
        Why files were not used; a line is added.
    must_match : bool
        Whether the user gave the file.

    Returns
    -------
    ndarray of shape (n,)
        Structured array.
    """
    try:
        table = load_cs(extra)
        missing = _missing(rows, table)
        why = f"it lacks {int(missing.sum())} of the {len(rows)} particles (by uid): it belongs to another job"
        if not missing.any():
            _check_uids(rows, table)
            return _joined(rows, table)
        if missing.all() and "ctf/df1_A" in field_names(rows):
            why = ""
    except RalibError as error:
        why = str(error)
    if must_match:
        raise RalibError(f"{extra} cannot be joined: {why}")
    if why:
        unused.append(f"{extra.name} was not used: {why}")
    return rows


def _missing(rows: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """(n,) True for particles that `extra` does not hold."""
    return ~np.isin(_uids(rows), _uids(extra))


def _uids(rows: np.ndarray) -> np.ndarray:
    """The uids (n,) as unsigned numbers: signed and unsigned ones would meet as float64, which holds 53 of 64 bits."""
    if "uid" not in field_names(rows):
        raise RalibError("the field uid is missing")
    if rows["uid"].dtype.kind not in "iu" or rows["uid"].ndim != 1:
        raise RalibError("the field uid holds no whole numbers")
    return np.asarray(rows["uid"]).astype(np.uint64)


def _check_uids(rows: np.ndarray, extra: np.ndarray) -> None:
    """RalibError where a uid stands for several particles, so that nothing says which row of `extra` is whose."""
    new = [n for n in field_names(extra) if n not in field_names(rows)]
    image = [n for n in ("blob/path", "blob/idx") if n in field_names(rows)]
    for table, fields, what in ((extra, new, "rows of different values"), (rows, image, "different images")):
        unique, first, inverse = np.unique(_uids(table), return_index=True, return_inverse=True)
        if len(unique) == len(table):
            continue
        again = np.zeros(len(table), dtype=bool)
        for name in fields:
            again |= (table[name] != table[name][first[inverse.reshape(-1)]]).reshape(len(table), -1).any(1)
        if again.any():
            raise RalibError(f"the uid {table['uid'][again][0]} stands for {what}: which belong together is not known")


def _joined(rows: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """`rows` with the fields of `extra` it lacks, matched by uid; `extra` holds them all."""
    new = [n for n in field_names(extra) if n not in field_names(rows)]
    uids = _uids(extra)
    order = np.argsort(uids, kind="stable")
    position = np.searchsorted(uids[order], _uids(rows))
    joined = np.zeros(len(rows), dtype=rows.dtype.descr + [(n, *_field_type(extra.dtype[n])) for n in new])
    for name in field_names(rows):
        joined[name] = rows[name]
    for name in new:
        joined[name] = extra[name][order][position]
    return joined


def _field_type(dtype: np.dtype) -> tuple:
    return (dtype.base.str, dtype.shape) if dtype.shape else (dtype.str,)
