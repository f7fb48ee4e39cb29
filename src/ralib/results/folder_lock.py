"""Exclusive use of a folder by one process: a lock file whose lock ends with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from pathlib import Path
from typing import IO

from ralib.types import RalibError

LOCK = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock_folder(folder: Path) -> IO[str]:
    """Open the lock file of a folder, held by this process until it is closed.

    A lock file without a living owner is taken over: the system releases a lock when its process ends.

    Parameters
    ----------
    folder : Path
        The folder.

    Returns
    -------
    IO[str]
        The open file.

    Raises
    ------
    RalibError
        If another process holds it.
    OSError
        If the folder cannot be written.
    """
    path = folder / LOCK
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise _taken(folder) from error
        except OSError as error:
            file.close()
            if error.errno not in _UNSUPPORTED:
                raise
            return _own_file(folder)
        if is_file_of(file, path):
            return file
        file.close()  # its owner ended between our opening and locking it: another file has this name by now


def is_file_of(file: IO[str], path: Path) -> bool:
    """Return whether a path still names an open file.

    Parameters
    ----------
    file : IO[str]
        The open file.
    path : Path
        The path.

    Returns
    -------
    bool
        Whether they are the same file.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _own_file(folder: Path) -> IO[str]:
    """On a file system without locks: a file that only one process can give its name, and that names its owner."""
    path, mine = folder / LOCK, folder / f"{LOCK}-{platform.node()}-{os.getpid()}"
    file = mine.open("w+")
    file.write(f"{platform.node()} {os.getpid()}")
    file.flush()
    try:
        if _abandoned(path):
            path.unlink(missing_ok=True)
        os.link(mine, path)
    except FileExistsError as error:
        file.close()
        raise _taken(folder) from error
    finally:
        mine.unlink()
    return file


def _abandoned(path: Path) -> bool:
    """Whether the process named in a lock file was of this machine and has ended.

    A file without a name is one that an earlier attempt opened.
    """
    try:
        host, _, number = path.read_text().partition(" ")
    except OSError:
        return False
    if not host:
        return True
    return host == platform.node() and number.isdecimal() and not Path(f"/proc/{number}").exists()


def _taken(folder: Path) -> RalibError:
    return RalibError(f"another ralib is working in {folder}: wait for it, or choose another OUTDIR")
