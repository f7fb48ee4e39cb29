"""Checkpoints: complete or absent, verified by a digest, without pickles.

A file is one line with the SHA-256 of the rest, then an .npz of the arrays and of `meta` as JSON text.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ralib.io.atomic import atomic_path
from ralib.io.npy import DAMAGED_ARCHIVE
from ralib.types import RalibError

KEEP = 2
_NAME = re.compile(r"checkpoint_(\d{4,})\.ralib")
_META = "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """A saved state.

    Attributes
    ----------
    number : int
        Number of the iteration.
    arrays : dict[str, ndarray]
        Arrays by name.
    meta : dict[str, Any]
        Plain values by name.
    """

    number: int
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, and remove all but the newest KEEP.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoints.
    checkpoint : Checkpoint
        The checkpoint.

    Returns
    -------
    Path
        Its file.

    Raises
    ------
    RalibError
        If it cannot be written.
    """
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(checkpoint.meta).encode(), dtype=np.uint8)
    np.savez(buffer, allow_pickle=False, **{_META: text, **checkpoint.arrays})
    payload = buffer.getbuffer()
    path = folder / f"checkpoint_{checkpoint.number:04d}.ralib"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(payload).hexdigest().encode() + b"\n")
        file.write(payload)
    for old in _numbered(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def load(path: Path) -> Checkpoint | None:
    """Return the checkpoint in a file, or None where it is incomplete."""
    match = _NAME.fullmatch(path.name)
    try:
        digest, _, payload = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if match is None or hashlib.sha256(payload).hexdigest().encode() != digest:
        return None
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(arrays.pop(_META).tobytes())
    except DAMAGED_ARCHIVE:
        return None
    figures = meta.get("figures", []) if isinstance(meta, dict) else None
    if not isinstance(figures, list) or not all(isinstance(row, dict) for row in figures):
        return None
    return Checkpoint(int(match[1]), arrays, meta)


def newest(folder: Path) -> Checkpoint | None:
    """Return the newest complete checkpoint of a folder, or None."""
    for path in reversed(_numbered(folder)):
        found = load(path)
        if found is not None:
            return found
    return None


def _numbered(folder: Path) -> list[Path]:
    """Checkpoint files, oldest first."""
    found = [(int(m[1]), p) for p in folder.glob("checkpoint_*.ralib") if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def check_arrays(arrays: Mapping[str, np.ndarray], layout: Mapping[str, str]) -> None:
    """RalibError where a checkpoint's arrays are not what a run wrote: it was changed by somebody.

    Parameters
    ----------
    arrays
        Named arrays of a checkpoint.
    layout
        Type and axes of each, as 'float32 k n n': axes of one name are equally long in all arrays, a number is a
        length. A name ending in '?' may be missing; a type ending in '?' may hold NaN.
    """
    lengths: dict[str, int] = {}
    for name, words in layout.items():
        kind, *axes = words.split()
        array = arrays.get(name.rstrip("?"))
        if array is None and name.endswith("?"):
            continue
        if array is None or array.dtype != np.dtype(kind.rstrip("?")) or array.ndim != len(axes):
            raise _changed(name)
        for axis, length in zip(axes, array.shape, strict=True):
            if length != (int(axis) if axis.isdecimal() else lengths.setdefault(axis, length)):
                raise _changed(name)
        if array.dtype.kind in "fc" and not kind.endswith("?") and not np.isfinite(array).all():
            raise _changed(name)


@contextlib.contextmanager
def unpacking() -> Iterator[None]:
    """While inside, a value that is missing or of the wrong type means that the checkpoint was changed."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        raise _changed(" ".join(str(error).split())[:80]) from error


def _changed(what: str) -> RalibError:
    return RalibError(
        f"`resume`: the newest checkpoint is not what the run wrote ({what}): remove it from OUTDIR/checkpoints to "
        "go on from the one before, or begin a new run"
    )
