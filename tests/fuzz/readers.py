"""Mutated files for every reader: whatever the bytes, a reader returns, or raises RalibError in one line.

Hypothesis chooses the mutations: of bytes, of the format's own structures (`structures`), or of both. Limits an
example: 10 s, and memory (what Python and NumPy allocate) of ten times the file plus one MiB for the parsers
themselves.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import scipy.spatial.transform  # noqa: F401 - or the first file that needs it would seem to be large
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blobs import make
from make_run import make_run
from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.alignment.state import LoopState
from ralib.classification import classifier
from ralib.classification.classifier import Classifier
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.schedule_checkpoint import resume_schedule
from ralib.cli.commands.analyze import read_truth
from ralib.io import (
    open_particles,
    pose_headers,
    read_params,
    write_hdf,
    write_mrcs,
    write_params,
    write_particles_cs,
    write_particles_star,
)
from ralib.results.checkpoint import Checkpoint
from ralib.results.checkpoint import load as load_checkpoint
from ralib.results.checkpoint import save as save_checkpoint
from ralib.results.observer import IterationDone, SilentObserver
from ralib.results.run_directory import read_frc
from ralib.results.run_record import read_record, run_record
from ralib.results.selection import FORMAT, FORMAT_VERSION, fingerprint, read_selection, selected_rows
from ralib.results.summary.diagnose import diagnose
from ralib.results.summary.figures import class_figures
from ralib.results.summary.runs import open_run
from ralib.types import ParticleSet, Poses, RalibError
from ralib.types.particle_set import as_particles

from . import structures

SECONDS = 10.0
SPARE_BYTES = 1 << 20
IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
_NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 10**9]
_TOKENS = [b"loop_", b"data_", b"\n", b"#", b"'", b'"', b"_rlnImageName", b"9999999999@a.mrcs", b"nan", b"1e999", b"-1"]
_TOKENS += [b"(999999999,)", b"\0", b"\xff\xfe", b"../../x", b"@", b"\t", b"[[[[[[", b"|O", b"<U999999999"]

MEMBERS = [3, 1, 2, 0]
Mutation = tuple[str, float, int, int]


def mutations() -> st.SearchStrategy[list[Mutation]]:
    """A few edits: what, where (fraction of the file), and two numbers that say how."""
    kind = st.sampled_from(["set", "number", "cut", "end", "repeat", "token", "swap", "zero"])
    one = st.tuples(kind, st.floats(0, 1, exclude_max=True), st.integers(0, 255), st.integers(1, 64))
    return st.lists(one, min_size=1, max_size=6)


def mutate(data: bytes, edits: Sequence[Mutation]) -> bytes:
    """`data` with the edits made one after the other."""
    raw = bytearray(data)
    for kind, fraction, value, length in edits:
        at = int(fraction * len(raw))
        if kind == "set":
            raw[at : at + 1] = bytes([value])
        elif kind == "number":
            order = "little" if value % 2 else "big"
            raw[at : at + 4] = _NUMBERS[value % len(_NUMBERS)].to_bytes(4, order)  # type: ignore[arg-type]
        elif kind == "cut":
            del raw[at : at + length]
        elif kind == "end":
            del raw[at:]
        elif kind == "repeat":
            raw[at:at] = raw[at : at + length] * (1 + value % 4)
        elif kind == "token":
            raw[at:at] = _TOKENS[value % len(_TOKENS)]
        elif kind == "swap":
            raw[at : at + length] = raw[at : at + length][::-1]
        else:
            raw[at : at + length] = bytes(len(raw[at : at + length]))
    return bytes(raw)


class Reader:
    """One format: a small sound file, and how it is read."""

    def __init__(
        self,
        name: str,
        make: Callable[[Path], Path],
        read: Callable[[Path], object],
        restructure: Callable[[Path, np.random.Generator], None] | None = None,
    ) -> None:
        self.name = name
        self._restructure = restructure
        self._folder = tempfile.TemporaryDirectory(prefix="ralib-fuzz-")
        self._path = make(Path(self._folder.name))
        self._read = read
        self.seed = self._path.read_bytes()
        self.opened = self.refused = 0
        with contextlib.suppress(Exception):  # modules that are imported at the first use count for no file
            self._read(self._path)

    def restructured(self, seed: int) -> bytes:
        """The sound file with its structures mutated; as it is where this format has no such mutation."""
        if self._restructure is None:
            return self.seed
        self._path.write_bytes(self.seed)
        self._restructure(self._path, np.random.default_rng(seed))
        return self._path.read_bytes()

    def check(self, data: bytes) -> None:
        """Read `data`; anything but a result or a RalibError, too slow or too large, is an AssertionError."""
        self._path.write_bytes(data)
        start, cpu, lines = time.monotonic(), time.process_time(), 1
        tracemalloc.start()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                self._read(self._path)
            self.opened += 1
        except RalibError as error:
            self.refused += 1
            lines = str(error).count("\n") + 1
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= 10 * len(data) + SPARE_BYTES, f"{peak} bytes of memory for a file of {len(data)}"
        assert lines == 1, "an error of more than one line"
        # a busy machine may let a process wait, so that only the time it computes is held to the limit itself
        assert time.process_time() - cpu < SECONDS
        assert time.monotonic() - start < 12 * SECONDS

    def close(self) -> None:
        self._folder.cleanup()


KINDS = ("bytes", "structure", "both")
EDITS = ("set", "number", "cut", "end", "repeat", "token", "swap", "zero")


def soak(reader: Reader, n: int, seed: int) -> None:
    """Read `n` mutated files, without Hypothesis' search for the smallest: ten times as fast. A failure names its
    number, which makes the same file again."""
    for number in range(n):
        rng = np.random.default_rng([seed, number])
        kind = KINDS[int(rng.integers(3))]
        data = reader.seed if kind == "bytes" else reader.restructured(int(rng.integers(2**32)))
        edits = [
            (EDITS[int(rng.integers(8))], float(rng.random()), int(rng.integers(256)), int(rng.integers(1, 65)))
            for _ in range(int(rng.integers(1, 7)))
        ]
        try:
            reader.check(data if kind == "structure" else mutate(data, edits))
        except Exception as error:
            raise AssertionError(
                f"{reader.name} file {number} of seed {seed}: {type(error).__name__}: {error}"
            ) from error


def fuzz(reader: Reader, n: int, *, seed: int | None = None) -> None:
    """Read `n` mutated files; Hypothesis makes a failing one as small as it can."""

    @settings(
        max_examples=n, deadline=None, database=None, derandomize=seed is None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(["bytes", "structure", "both"]), st.integers(0, 2**32 - 1), mutations())
    def every(kind: str, number: int, edits: list[Mutation]) -> None:
        data = reader.seed if kind == "bytes" else reader.restructured(number)
        reader.check(data if kind == "structure" and reader.seed != data else mutate(data, edits))

    if seed is not None:
        from hypothesis import seed as seeded

        every = seeded(seed)(every)
    every()


def _read_particles(path: Path) -> None:
    particles = open_particles(path)
    n = min(len(particles), 4)
    particles.images.read(np.arange(n))


def _poses() -> Poses:
    g = torch.Generator().manual_seed(0)
    return Poses.identity(4).replace(psi_deg=torch.rand(4, generator=g) * 90, class_index=torch.arange(4))


def _mrc(folder: Path) -> Path:
    write_mrcs(folder / "a.mrcs", IMAGES, 1.5)
    return folder / "a.mrcs"


def _star(folder: Path) -> Path:
    write_particles_star(folder / "p.star", open_particles(_mrc(folder)), _poses(), project=folder)
    text = (folder / "p.star").read_text()
    (folder / "p.star").write_text(text + "\ndata_more\n_rlnNote 'two words'\n_rlnX 5 # five\n")
    return folder / "p.star"


def _cs(folder: Path) -> Path:
    write_particles_cs(folder / "p.cs", open_particles(_mrc(folder)), _poses())
    return folder / "p.cs"


def _hdf(folder: Path) -> Path:
    headers = pose_headers(_poses())
    for header in headers:
        header |= {"ctf": "E1.7 0.1 25 30 10 300 2.7 5 0 0 0", "ptcl_source_image": "mic.mrc"}
    write_hdf(folder / "a.hdf", IMAGES, headers, pixel_size_A=2.0)
    return folder / "a.hdf"


def _lst(folder: Path) -> Path:
    _mrc(folder)
    extra = '{"xform.align2d":{"matrix":"[1,0,0,2,0,1,0,3,0,0,1,0]"},"class":1}'
    (folder / "a.lst").write_text("#LSX\n# x\n# 90\n" + "".join(f"{i}\ta.mrcs\t{extra}\n" for i in range(4)))
    return folder / "a.lst"


def _spider(folder: Path) -> Path:
    header = np.zeros(64, dtype="<f4")
    for index, value in {0: 1, 1: 8, 4: 1, 11: 8, 12: 8, 21: 256, 22: 32, 23: 2, 25: 4}.items():
        header[index] = value
    stack = header.tobytes() + b"".join(header.tobytes() + image.tobytes() for image in IMAGES)
    (folder / "a.spi").write_bytes(stack)
    return folder / "a.spi"


def _imagic(folder: Path) -> Path:
    header = np.zeros((4, 256), dtype="<i4")
    header[:, 12:14] = 8
    raw = bytearray(header.tobytes())
    for i in range(4):
        raw[1024 * i + 56 : 1024 * i + 60] = b"REAL"
    (folder / "a.img").write_bytes(IMAGES.tobytes())
    (folder / "a.hed").write_bytes(bytes(raw))
    return folder / "a.hed"


def _npy(folder: Path) -> Path:
    np.save(folder / "a.npy", IMAGES)
    return folder / "a.npy"


def _params(folder: Path) -> Path:
    write_params(folder / "p.txt", _poses())
    return folder / "p.txt"


def _selection(folder: Path) -> Path:
    run = {"title": "run", "fingerprint": fingerprint(MEMBERS)}
    value = {"format": FORMAT, "version": FORMAT_VERSION, "run": run, "classes": [1, 3], "min_score": 0.5}
    (folder / "selection.json").write_text(json.dumps(value))
    return folder / "selection.json"


def _read_selection(path: Path) -> None:
    chosen = read_selection(path, MEMBERS)
    selected_rows(_poses().replace(score=torch.arange(4.0)), chosen)


def _record(folder: Path) -> Path:
    return make_run(folder, n_classes=4, n_particles=40, box=16, n_iterations=2, judged=True) / "run.json"


def _read_run(path: Path) -> None:
    """What `report`, `select` and `compare` begin with."""
    run = open_run(path.parent)
    run_record(read_record(path.parent))
    class_figures(run)
    diagnose(run, np.zeros((run.n_classes, 16, 16), dtype=np.float32))


def _frc(folder: Path) -> Path:
    frequency = np.arange(9) / 16
    np.savetxt(folder / "frc.txt", np.column_stack([frequency, 1 - frequency, 1 - 2 * frequency]), fmt="%.5f")
    return folder / "frc.txt"


def _truth(folder: Path) -> Path:
    np.savetxt(folder / "truth.txt", [0, 1, 1, 0], fmt="%d")
    return folder / "truth.txt"


class _Keeper(SilentObserver):
    """Keeps the last checkpoint."""

    kept: Checkpoint

    def iteration(self, done: IterationDone) -> None:
        if done.checkpoint is not None:
            self.kept = done.checkpoint()


@functools.cache
def _small_set() -> ParticleSet:
    return as_particles(make(24, box=16, n_views=2).images)


def _alignment_checkpoint(folder: Path) -> Path:
    keeper = _Keeper()
    MultiReferenceAligner(references=2, iterations=2, outer_radius=6).fit(_small_set(), observer=keeper)
    return save_checkpoint(folder, keeper.kept)


def _loaded(path: Path) -> Checkpoint:
    found = load_checkpoint(path)
    if found is None:
        raise RalibError("incomplete")
    return found


def _read_alignment_checkpoint(path: Path) -> None:
    LoopState.from_checkpoint(_loaded(path), torch.device("cpu"))


@functools.cache
def _schedule() -> ClassificationSchedule:
    """The schedule into which the checkpoints of `_classification_checkpoint` are restored."""
    kept: list[ClassificationSchedule] = []

    def caught(schedule: ClassificationSchedule, *_: object) -> None:
        kept.append(schedule)
        raise InterruptedError

    keeper = _Keeper()
    Classifier(n_classes=2).fit(_small_set(), observer=keeper)
    with mock.patch.object(classifier, "resume_schedule", caught), contextlib.suppress(InterruptedError):
        Classifier(n_classes=2).fit(_small_set(), resume=keeper.kept)
    return kept[0]


def _classification_checkpoint(folder: Path) -> Path:
    keeper = _Keeper()
    Classifier(n_classes=2).fit(_small_set(), observer=keeper)
    _schedule()
    return save_checkpoint(folder, keeper.kept)


def _read_classification_checkpoint(path: Path) -> None:
    resume_schedule(copy.copy(_schedule()), _loaded(path), torch.device("cpu"))


READERS: dict[str, tuple] = {
    "mrc": (_mrc, _read_particles, partial(structures.words, kind="<i4", first=0, last=55)),
    "star": (_star, _read_particles, structures.star),
    "cs": (_cs, _read_particles, structures.cs),
    "hdf": (_hdf, _read_particles, structures.hdf),
    "lst": (_lst, _read_particles, structures.lst),
    "spider": (_spider, _read_particles, partial(structures.words, kind="<f4", first=0, last=40)),
    "imagic": (_imagic, _read_particles, partial(structures.words, kind="<i4", first=0, last=20)),
    "npy": (_npy, _read_particles),
    "params": (_params, read_params),
    "selection": (_selection, _read_selection, structures.json_file),
    "record": (_record, _read_run, structures.json_file),
    "frc": (_frc, read_frc, structures.numbers_text),
    "truth": (_truth, partial(read_truth, n=4), structures.numbers_text),
    "checkpoint": (_alignment_checkpoint, _read_alignment_checkpoint, structures.checkpoint),
    "classification": (_classification_checkpoint, _read_classification_checkpoint, structures.checkpoint),
}
"""How a sound file of each format is made and read, and how its structures are mutated."""
