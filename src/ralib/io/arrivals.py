"""Particles that arrive over time: a growing STAR file, or a folder of stacks; earlier rows must not change."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib.io import open_particles, open_stack
from ralib.io.selections import take
from ralib.io.stacks import FilesSource, file_references
from ralib.types import ParticleSet, RalibError

STACKS = (".mrcs", ".mrc")
OTHERS = (".hdf", ".h5", ".spi", ".stk", ".hed", ".cs", ".lst", ".gz", ".bz2")
"""Particle files that a watched folder's stacks are not; the STAR files and micrographs beside them are no mistake."""
SETTLED_S = 2.0
"""A file untouched for so long counts as written."""
ENDS_BYTES = 1 << 18
"""How much of a stack's beginning and end is compared where its time has changed."""
SAMPLED_IMAGES = 8
"""How many images of a stack are compared of those that rows of a STAR file name."""


@dataclass(frozen=True)
class TakenStack:
    """Properties by which a changed stack is recognised.

    Attributes
    ----------
    bytes : int
        Size of the file.
    time_ns : int
        Time of its last change, ns.
    digest : str
        Hash of its two ends, or of the images listed.
    images : tuple of int, optional
        Numbers (from 0) of some of the images that rows name, where the file may grow; None for the file as a whole.
    """

    bytes: int
    time_ns: int
    digest: str
    images: tuple[int, ...] | None = None


class Arrivals:
    """The particles of a growing STAR file, or of the stacks in a folder, in the order of their arrival.

    Parameters
    ----------
    path : Path
        The STAR file or folder.
    datadir : Path | None, optional
        Folder of the image files that a STAR file names.
    state : mapping, optional
        State of a checkpoint to continue from.

    Attributes
    ----------
    names
        Stacks of a folder in order of arrival.
    left_out
        Files that cannot be used, and why.
    notices
        Changes in rows taken in before.
    changed
        Whether rows taken in before have other values now.
    """

    def __init__(self, path: Path, *, datadir: Path | None = None, state: Mapping[str, Any] | None = None) -> None:
        if not path.exists():
            raise RalibError(f"there is no {path} to watch: make the folder first, or name the growing STAR file")
        self.path, self.datadir = path, datadir
        state = state or {}
        self.names: list[str] = [str(name) for name in state.get("stacks", [])]
        self.left_out: dict[str, str] = {}
        self.notices: list[str] = []
        self.changed = False
        self._seen = -1.0
        self._taken = {str(name): _stack_of(values) for name, values in state.get("taken", {}).items()}
        self._rows = np.asarray(state.get("arrivals.rows", ()), dtype=np.uint64)
        self._values = np.asarray(state.get("arrivals.values", ()), dtype=np.uint64)
        self._pixel_size_A: float | None = state.get("pixel_size_A")

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values for a checkpoint: what was taken in, and how to recognise changes."""
        arrays = {"arrivals.rows": self._rows, "arrivals.values": self._values}
        taken = {name: asdict(stack) for name, stack in self._taken.items()}
        return arrays, {"stacks": list(self.names), "taken": taken, "pixel_size_A": self._pixel_size_A}

    def look(self) -> ParticleSet | None:
        """Return all particles, or None where none have been added since the last call."""
        self._check_taken()
        particles = self._folder() if self.path.is_dir() else self._file()
        if particles is not None:
            self._check_scale(particles.pixel_size_A)
        return particles

    def _file(self) -> ParticleSet | None:
        if not self.path.exists():
            raise RalibError(f"{self.path} is gone: put it back, or begin a new run")
        changed = _changed_s(self.path)
        if changed == self._seen or not _settled(self.path):
            return None
        try:
            particles = open_particles(self.path, datadir=self.datadir)
        except RalibError as error:  # perhaps it is being written
            self.left_out[self.path.name] = str(error)
            return None
        self._seen = changed
        self.left_out.pop(self.path.name, None)
        return self._in_order(particles)

    def _in_order(self, particles: ParticleSet) -> ParticleSet:
        """The rows taken in before, in the order in which they came, then those that are new."""
        rows, values = _row_hashes(particles)
        places = pd.Index(rows).get_indexer(pd.Index(self._rows))
        if gone := int((places < 0).sum()):
            raise RalibError(
                f"{gone} of the {len(places)} rows taken in are no longer in {self.path}: what is watched may only "
                "grow; put them back, or begin a new run"
            )
        changed = int((values[places] != self._values).sum())
        self.changed = changed > 0
        if changed:
            self.notices.append(f"{changed} rows of {self.path} have other values than before: the new ones are used")
        order = np.concatenate([places, np.setdiff1d(np.arange(len(rows)), places)]).astype(np.int64)
        self._rows, self._values = rows[order], values[order]
        self._taken |= {name: s for name, s in _stacks_named(particles).items() if name not in self._taken}
        return particles if (order == np.arange(len(order))).all() else take(particles, order)

    def _folder(self) -> ParticleSet | None:
        there = [p for p in self.path.iterdir() if p.name[0] != "."]
        for path in there:
            if path.suffix.lower() in OTHERS:
                self.left_out[path.name] = f"{path} is not taken in: a watched folder is one of stacks ({STACKS[0]})"
        new = [p for p in there if p.suffix.lower() in STACKS and p.name not in self.names and _settled(p)]
        came = sorted(new, key=lambda p: (_changed_s(p), p.name))
        before = len(self.names)
        for path in came:
            if self._usable(path):
                self.names.append(path.name)
        first_look, self._seen = self._seen < 0, 0.0
        if not self.names or not (len(self.names) > before or first_look):
            return None
        stacks = [open_stack(self.path / name) for name in self.names]
        sizes = [s.n_images for s in stacks]
        self._taken |= {name: _measured(self.path / name) for name in self.names if name not in self._taken}
        images = FilesSource(
            [self.path / name for name in self.names],
            np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([np.arange(size) for size in sizes]),
            open_stack,
        )
        return ParticleSet(images, pixel_size_A=images.pixel_size_A)

    def _check_taken(self) -> None:
        """Refuse a stack that changed after it was taken in: its rows would have the poses of other images."""
        for name, before in self._taken.items():
            path = self.path / name
            if not path.is_file():
                raise RalibError(f"{path} was taken in and is gone: put it back, or begin a new run")
            if (path.stat().st_size, path.stat().st_mtime_ns) == (before.bytes, before.time_ns):
                continue
            now = _measured(path, before.images)
            if now.digest != before.digest or (before.images is None and now.bytes != before.bytes):
                raise RalibError(
                    f"{path} was taken in with {before.bytes} bytes, now {now.bytes}, and has changed: "
                    "put the first version back and give new images in a new file, or begin a new run"
                )
            if now.bytes != before.bytes:
                self.notices.append(f"{path} has grown, the images taken in are the same")
            self._taken[name] = now

    def _check_scale(self, size_A: float | None) -> None:
        """Refuse another pixel size than before: all rows are of one classification."""
        before, self._pixel_size_A = self._pixel_size_A, size_A
        if not _alike(size_A, before):
            raise RalibError(
                f"{self.path} was taken in with {before:g} A/px and now says {size_A:g}: put right what it says, or "
                "begin a new run"
            )

    def _usable(self, path: Path) -> bool:
        """Whether a stack can be read, and has the box and the pixel size of the first."""
        try:
            stack = open_stack(path)
            first = open_stack(self.path / self.names[0]) if self.names else stack
        except RalibError as error:
            self.left_out[path.name] = str(error)
            return False
        if stack.box != first.box:
            what = f"{path} holds {stack.box} px images, the first stack {first.box} px"
        elif not _alike(stack.pixel_size_A, first.pixel_size_A):
            what = f"{path} has {stack.pixel_size_A:g} A/px, the first stack {first.pixel_size_A:g}"
        else:
            what = ""
        if what:
            self.left_out[path.name] = f"{what}: it is left out"
            return False
        self.left_out.pop(path.name, None)
        return True


def _alike(a_A: float | None, b_A: float | None) -> bool:
    """Whether two pixel sizes are the same as far as headers say."""
    return a_A is None or b_A is None or abs(a_A - b_A) <= 1e-3 * b_A


def _settled(path: Path) -> bool:
    """Whether a file is there and untouched for a while; where its disk's clock is ahead of ours, it counts as old."""
    return path.is_file() and abs(time.time() - _changed_s(path)) > SETTLED_S


def _changed_s(path: Path) -> float:
    """Time of a file's last change, s; 0 where it has just gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _measured(path: Path, images: tuple[int, ...] | None = None) -> TakenStack:
    """Present size, time and digest of a stack; '' as digest where it cannot be read."""
    found = path.stat()
    if images is None:
        with path.open("rb") as file:
            content = file.read(ENDS_BYTES)
            file.seek(max(0, found.st_size - ENDS_BYTES))
            content += file.read(ENDS_BYTES)
    else:
        try:
            content = open_stack(path).read(np.array(images)).tobytes()
        except RalibError:
            return TakenStack(found.st_size, found.st_mtime_ns, "", images)
    return TakenStack(found.st_size, found.st_mtime_ns, hashlib.sha256(content).hexdigest(), images)


def _stacks_named(particles: ParticleSet) -> dict[str, TakenStack]:
    """The stacks that rows name, by their absolute paths, each described by images from the first named to the last."""
    references = file_references(particles.images)
    if references is None:
        return {}
    paths, file_index, slices = references
    found = {}
    order = np.lexsort((slices, file_index))
    for rows in np.split(order, np.flatnonzero(np.diff(file_index[order])) + 1):
        named = np.unique(slices[rows])
        some = named[np.linspace(0, len(named) - 1, min(len(named), SAMPLED_IMAGES)).round().astype(int)]
        path = paths[file_index[rows[0]]].absolute()
        found[str(path)] = _measured(path, tuple(int(i) for i in some))
    return found


def _row_hashes(particles: ParticleSet) -> tuple[np.ndarray, np.ndarray]:
    """The image that each row names (n,), numbered where rows name one image again, and all its values (n,)."""
    n = len(particles)
    tables = particles.metadata.tables.values()
    table = next((t for t in tables if isinstance(t, pd.DataFrame) and "rlnImageName" in t and len(t) == n), None)
    if table is None:
        paths, file_index, slices = file_references(particles.images) or ([], np.zeros(n, int), np.arange(n))
        table = pd.DataFrame(
            {"rlnImageName": [f"{i}@{paths[f] if paths else ''}" for f, i in zip(file_index, slices, strict=True)]}
        )
        table = table.assign(**_known_values(particles))
    names = table["rlnImageName"].astype(str)
    rows = pd.util.hash_pandas_object(names + "#" + names.groupby(names).cumcount().astype(str), index=False)
    return rows.to_numpy(), pd.util.hash_pandas_object(table.astype(str), index=False).to_numpy()


def _known_values(particles: ParticleSet) -> dict[str, np.ndarray]:
    """What else than a STAR file tells of each particle: CTF and poses, by column."""
    ctf, poses = particles.ctf, particles.poses
    columns = {} if ctf is None else {name: np.asarray(value) for name, value in vars(ctf).items()}
    if poses is not None:
        columns |= {"psi": poses.psi_deg.numpy(), "mirror": poses.mirror.numpy(), "class": poses.class_index.numpy()}
        columns |= dict(zip(("x", "y"), poses.origin_xy_px.numpy().T, strict=True))
    return columns


def _stack_of(values: Mapping[str, Any]) -> TakenStack:
    """A stack of a checkpoint; its time counts for nothing, so that the first look compares what it holds."""
    images = values.get("images")
    known = None if images is None else tuple(int(i) for i in images)
    return TakenStack(int(values["bytes"]), -1, str(values["digest"]), known)
