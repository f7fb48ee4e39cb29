"""Particles that arrive over time: a growing STAR file, or a folder of stacks, each row staying what it was."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np

from ralib.io import open_particles, open_stack
from ralib.io.stacks import FilesSource
from ralib.types import ParticleSet, RalibError

STACKS = (".mrcs", ".mrc")
SETTLED_S = 2.0
"""A file untouched for so long counts as written."""
ENDS_BYTES = 1 << 18
"""How much of a stack's beginning and end is compared where its time has changed."""


class Arrivals:
    """The particles of a growing STAR file, or of the stacks in a folder, in the order in which they came.

    `names` are the stacks in that order; a run that goes on hands those of its checkpoint back. `left_out` says which
    files cannot be used, and why.
    """

    def __init__(self, path: Path, *, datadir: Path | None = None, names: list[str] | None = None) -> None:
        if not path.exists():
            raise RalibError(f"there is no {path} to watch: make the folder first, or name the growing STAR file")
        self.path, self.datadir = path, datadir
        self.names: list[str] = list(names or [])
        self.left_out: dict[str, str] = {}
        self._seen = -1.0
        self._taken: dict[str, tuple[int, int, str]] = {}

    def look(self) -> ParticleSet | None:
        """All particles there are, or None where nothing has been added since the last look."""
        return self._folder() if self.path.is_dir() else self._file()

    def _file(self) -> ParticleSet | None:
        changed = self.path.stat().st_mtime
        if changed == self._seen or not _settled(self.path):
            return None
        try:
            particles = open_particles(self.path, datadir=self.datadir)
        except RalibError as error:  # perhaps it is being written
            self.left_out[self.path.name] = str(error)
            return None
        self._seen = changed
        self.left_out.pop(self.path.name, None)
        return particles

    def _folder(self) -> ParticleSet | None:
        self._check_taken()
        there = [p for p in self.path.iterdir() if p.suffix.lower() in STACKS and p.name[0] != "."]
        new = [p for p in there if p.name not in self.names and _settled(p)]
        came = sorted(new, key=lambda p: (p.stat().st_mtime, p.name))
        good = [p.name for p in came if self._usable(p)]
        self.names += good
        first_look, self._seen = self._seen < 0, 0.0
        if not self.names or not (good or first_look):
            return None
        stacks = [open_stack(self.path / name) for name in self.names]
        sizes = [s.n_images for s in stacks]
        self._taken |= {name: _state(self.path / name) for name in self.names if name not in self._taken}
        images = FilesSource(
            [self.path / name for name in self.names],
            np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([np.arange(size) for size in sizes]),
            open_stack,
        )
        return ParticleSet(images, pixel_size_A=images.pixel_size_A)

    def _check_taken(self) -> None:
        """Refuse a stack that changed after it was taken in: its rows would have the poses of other images."""
        for name in self.names:
            path, before = self.path / name, self._taken.get(name)
            if not path.exists():
                raise RalibError(f"{path} was taken in and is gone: put it back, or begin a new run")
            if before is None or (path.stat().st_size, path.stat().st_mtime_ns) == before[:2]:
                continue
            now = _state(path)
            if (now[0], now[2]) != (before[0], before[2]):  # not merely touched, or copied again
                raise RalibError(
                    f"{path} was taken in with {before[0]} bytes, now {now[0]}, and has changed: "
                    "put the first version back and give new images in a new file, or begin a new run"
                )
            self._taken[name] = now

    def _usable(self, path: Path) -> bool:
        """Whether a stack can be read, and has the box of the first."""
        try:
            box = open_stack(path).box
            first = open_stack(self.path / self.names[0]).box if self.names else box
        except RalibError as error:
            self.left_out[path.name] = str(error)
            return False
        if box != first:
            self.left_out[path.name] = f"{path} holds {box} px images, the first stack {first} px: it is left out"
            return False
        self.left_out.pop(path.name, None)
        return True


def _settled(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > SETTLED_S


def _state(path: Path) -> tuple[int, int, str]:
    """What tells a file from another of its name: bytes, time of the last change in ns, a hash of its two ends."""
    found = path.stat()
    with path.open("rb") as file:
        head = file.read(ENDS_BYTES)
        file.seek(max(0, found.st_size - ENDS_BYTES))
        digest = hashlib.sha256(head + file.read(ENDS_BYTES)).hexdigest()
    return found.st_size, found.st_mtime_ns, digest
