"""One process at a time in a folder: a lock file whose lock ends with its process, however that ends."""

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
    """The open lock file of a folder, held by this process until it is closed.

    Raises RalibError where another process holds it, OSError where the folder cannot be written. A lock file without a
    living owner is taken over: the system lets go of a lock when its process ends.
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
    """Whether `path` still names this open file."""
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
    """Whether the process that a lock file names was of this machine and has ended; a file without a name is one that
    an earlier try opened."""
    try:
        host, _, number = path.read_text().partition(" ")
    except OSError:
        return False
    if not host:
        return True
    return host == platform.node() and number.isdecimal() and not Path(f"/proc/{number}").exists()


def _taken(folder: Path) -> RalibError:
    return RalibError(f"another ralib is working in {folder}: wait for it, or choose another OUTDIR")
