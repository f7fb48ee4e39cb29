"""Where Numba may keep what it compiled: in a container often neither beside the sources nor at home.

Without such a place Numba refuses to import a function that asks to be kept.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import MutableMapping
from pathlib import Path


def choose_place(environment: MutableMapping[str, str], package: Path) -> None:
    """Set NUMBA_CACHE_DIR to a folder of this user's under the temporary one, where Numba would find no place."""
    if "NUMBA_CACHE_DIR" in environment or os.access(package, os.W_OK) or _writable(_user_cache(environment)):
        return
    place = Path(tempfile.gettempdir()) / f"ralib-compiled-{os.getuid()}"
    # What lies there is run: nobody else may write into it.
    if not _writable(place) or not _private(place):
        place = Path(tempfile.mkdtemp(prefix="ralib-compiled-"))
    environment["NUMBA_CACHE_DIR"] = str(place)


def _user_cache(environment: MutableMapping[str, str]) -> Path:
    home = Path(environment.get("HOME", "/nonexistent"))
    return Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "numba"


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _private(folder: Path) -> bool:
    found = folder.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return mine and not stat.S_IMODE(found.st_mode) & 0o022
