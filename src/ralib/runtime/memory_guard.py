"""A word before the kernel ends the program: under a container's limit no allocation is ever refused."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import psutil

from ralib.runtime.memory import limited_groups

LEAST_BYTES = 32 << 20
"""With less left under a limit the next allocation may be the last."""
EVERY_S = 0.02
STATUS = 2


class MemoryGuard(threading.Thread):
    """Ends the program with one line when the limit of a control group is about to be reached.

    What only caches files does not count: the kernel takes it back. A thread without a limit to watch never starts.
    """

    def __init__(self) -> None:
        super().__init__(name="ralib-memory", daemon=True)
        self._over = threading.Event()
        self._groups = list(_groups_with_limit())

    def __enter__(self) -> MemoryGuard:
        if self._groups:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._groups:
            self.join()

    def run(self) -> None:
        """Look again and again until the command ends."""
        while not self._over.wait(EVERY_S):
            for group, most in self._groups:
                if (left := most - _taken(group)) < LEAST_BYTES:
                    _end(most, left)


def _groups_with_limit() -> Iterator[tuple[Path, int]]:
    """Control groups of this process whose limit is below the machine's memory, with that limit in bytes."""
    for group, limit, _ in limited_groups():
        try:
            text = (group / limit).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < psutil.virtual_memory().total and _taken(group):
            yield group, int(text)


def _taken(group: Path) -> int:
    """Bytes that the kernel cannot take back from a group, of version 2 (anon) or 1 (rss); 0 where it does not say."""
    try:
        words = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        own = words.get("anon") or words.get("total_rss") or words.get("rss") or 0
        return int(own) + int(words.get("shmem", 0))
    except (OSError, ValueError):
        return 0


def _end(most: int, left: int) -> NoReturn:
    message = (
        f"ralib: out of memory: {max(0, left) >> 20} MiB are left of the {most >> 20} MiB that the container or queue "
        "allows: ask for more, or take fewer particles, a smaller box ('ralib prepare --to-pixel-size') or "
        "smaller batches"
    )
    os.write(2, f"{message}\n".encode())
    os._exit(STATUS)
