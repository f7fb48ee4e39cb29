"""The folders in which Numba and Triton keep compiled code; in a container the default ones are often not writable.

Without a writable folder Numba refuses to import a function that is to be cached, and Triton fails at the first kernel.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import traceback
from collections.abc import MutableMapping
from pathlib import Path


def choose_cache_folders(environment: MutableMapping[str, str], package: Path) -> None:
    """Set NUMBA_CACHE_DIR and TRITON_CACHE_DIR to a folder of this user where the default folder is not writable.

    Parameters
    ----------
    environment : mapping
        The process's environment, changed in place.
    package : Path
        Folder of the package's sources, Numba's default place.
    """
    home = Path(environment.get("HOME", "/nonexistent"))
    cache = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    places = {
        "NUMBA_CACHE_DIR": os.access(package, os.W_OK) or _could_write(cache / "numba"),
        "TRITON_CACHE_DIR": "TRITON_HOME" in environment or _could_write(home / ".triton"),
    }
    missing = [name for name, there in places.items() if not there and name not in environment]
    if not missing:
        return
    place = Path(tempfile.gettempdir()) / f"ralib-compiled-{os.getuid()}"
    # Code from there is executed: other users must not be able to write into it.
    if not _made(place) or not _private(place):
        place = Path(tempfile.mkdtemp(prefix="ralib-compiled-"))
    environment.update(dict.fromkeys(missing, str(place)))


def cache_error_message(error: BaseException) -> str | None:
    """Return the message for an error of Triton's cache (damaged, full, not readable); None for any other error.

    Numba's cache needs none: see `numba_cache`.
    """
    if isinstance(error, RuntimeError) and "kernel image is invalid" not in str(error):
        return None
    if not isinstance(error, OSError | ValueError | EOFError | RuntimeError):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    if not any(f"{os.sep}triton{os.sep}" in frame.filename for frame in frames):
        return None
    what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (
        f"Triton cannot use its cache {triton_cache()} ({what}): "
        "remove that folder, or name another in TRITON_CACHE_DIR"
    )


def triton_cache() -> Path:
    """Return the folder in which Triton keeps compiled kernels."""
    default = Path(os.environ.get("TRITON_HOME", Path.home())) / ".triton" / "cache"
    return Path(os.environ.get("TRITON_CACHE_DIR") or default)


def hash_triton() -> None:
    """Compute the hash of Triton's compiler, which names what it compiled; Triton keeps it for this process.

    It is half a gigabyte, for half a second. Where there is no Triton, or one that does otherwise, nothing happens.
    """
    with contextlib.suppress(ImportError, OSError):
        from triton.runtime.cache import triton_key

        triton_key()


def _could_write(folder: Path) -> bool:
    """Whether the folder is there and can be written, or could be made."""
    there = next((f for f in (folder, *folder.parents) if f.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK)


def _made(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
    return os.access(folder, os.W_OK)


def _private(folder: Path) -> bool:
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and not stat.S_IMODE(found.st_mode) & 0o022
