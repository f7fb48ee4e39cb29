"""Files that are complete or absent: written beside their target, synchronised to disk, then renamed over it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ralib.types import RalibError

PathLike = str | os.PathLike[str]
_TEMPORARY = re.compile(r"^(\.tmp-[0-9a-f]{12}-)+")


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`, renamed to `path` on success and removed on failure.

    The temporary name keeps the suffix, by which some writers choose the format. File and folder are synchronised, so
    that after a power cut either the old or the new file exists.

    Parameters
    ----------
    path : PathLike
        The file to write.

    Yields
    ------
    Path
        The temporary path.

    Raises
    ------
    RalibError
        In place of an OSError (disk full, quota, read-only), with the path.
    """
    target = Path(path)
    with _removed_at_end(target) as temporary:
        try:
            if target.is_dir():
                raise RalibError(f"cannot write {target}: a folder of that name is in the way; choose another name")
            yield temporary
            _sync(temporary)
            os.replace(temporary, target)
            with contextlib.suppress(OSError):  # some network file systems cannot sync a folder
                _sync(target.parent)
        except OSError as error:
            raise _cannot_write(target, error) from error


@contextlib.contextmanager
def atomic_paths(*targets: PathLike) -> Iterator[list[Path]]:
    """Give temporary paths of several new files that appear together or not at all; see `atomic_path`."""
    paths = [Path(target) for target in targets]
    made: list[Path] = []
    with contextlib.ExitStack() as stack:
        temporary = [stack.enter_context(_removed_at_end(path)) for path in paths]
        yield temporary
        path = paths[0]
        try:
            for new in temporary:
                _sync(new)
            for new, path in zip(temporary, paths, strict=True):
                os.replace(new, path)
                made.append(path)
        except BaseException as error:
            for there in made:
                there.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _cannot_write(path, error) from error
            raise


@contextlib.contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Give a temporary folder that becomes the new folder `path` on success, and is removed on failure."""
    target = Path(path)
    temporary = target.parent / f".tmp-{secrets.token_hex(6)}-{target.name}"[:255]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()  # with the permissions that the user's umask leaves
        yield temporary
        temporary.rename(target)
    except OSError as error:
        raise _cannot_write(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _removed_at_end(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` with its suffix."""
    temporary = target.with_name(f".tmp-{secrets.token_hex(6)}-{target.name}"[:255])
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cannot_write(target: Path, error: OSError) -> RalibError:
    reason = error.strerror or str(error)
    wanted = Path(*(_TEMPORARY.sub("", part) for part in target.parts))  # of files that would have appeared together
    return RalibError(f"cannot write {wanted}: {reason}; nothing was changed, free some space or choose another folder")


def write_text(path: PathLike, text: str) -> None:
    """Write text as UTF-8, complete or not at all.

    Parameters
    ----------
    path : PathLike
        The file.
    text : str
        Its content.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: PathLike, value: Any) -> None:
    """Write a value as JSON, complete or not at all; NaN and infinity become null, which every JSON reader accepts.

    Parameters
    ----------
    path : PathLike
        The file.
    value : Any
        Its content.
    """
    write_text(path, json.dumps(_without_nan(value), indent=1, allow_nan=False, default=_plain) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """NumPy and torch scalars and arrays as lists, paths as text."""
    if hasattr(value, "tolist"):
        return _without_nan(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    if isinstance(value, float) and not (-float("inf") < value < float("inf")):
        return None
    return value
