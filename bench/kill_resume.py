"""Kill commands (SIGKILL, SIGTERM) at random moments, and go on until they end the same.

    PYTHONPATH=src python3 bench/kill_resume.py [--kills 100] [--commands mref classify ...] [--device cpu]

An uninterrupted run of each command is the standard. A run with checkpoints is killed after random times and continued
until its share of the kills is done; one that reaches its end is compared byte by byte, and begun anew. A command
without checkpoints is killed and given again: what stands under its final name must be whole, whenever it was killed.
Goes to bench/results/kill-resume-<device>.json; the exit status is 1 where a file differs or something half-written is
left. Of a watch whose particles come in parts, each part comes when the one before it has been saved, as often as it is
killed; after a SIGTERM there is nothing temporary left, and the status is that of a signal, or 0 of a watch.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ralib import io
from ralib.benchmarks.record import record, write_record

DESCRIBING = {
    "run.json",
    "run.yaml",
    "log.txt",
    ".lock",
    "relion_optimiser.star",
    "run_it003_optimiser.star",
    "report.html",
}
"""Files with times, paths and the command line."""
SIMULATED, RUN = "sim/particles.star", "whole-mref"
PARTS = (100, 150, 160)
"""Particles of a growing set after each arrival: more classes are searched, others join, a last search follows."""
KILLS = (signal.SIGKILL, signal.SIGTERM)
END_S = 120
"""Time that a command has to end after SIGTERM."""


@dataclass(frozen=True)
class Command:
    """A command line; OUT and its suffix stand for what it writes.

    Attributes
    ----------
    words : tuple of str
        The command line after `ralib`.
    continues : bool, default False
        Whether it keeps checkpoints, from which --continue goes on.
    run : str, default '.'
        Where in its folder the run is.
    grows : bool, default False
        Whether it watches the folder in-OUT, into which particles come in parts.
    before : tuple of str, default ()
        The command line that makes what this one changes in place, also named by OUT.
    """

    words: tuple[str, ...]
    continues: bool = False
    run: str = "."
    grows: bool = False
    before: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Suffix of what it writes; '' for a folder."""
        return next(w for w in self.words if w.startswith("OUT"))[3:]


COMMANDS = {
    "mref": Command(("mref", SIMULATED, "6", "OUT", "--ou=20", "--xr=2", "--CTF", "--no-report", "--maxit=8"), True),
    "reffree": Command(("reffree", SIMULATED, "OUT", "--ou=18", "--xr=4 2", "--CTF", "--no-report", "--maxit=4"), True),
    "classify": Command(("classify", SIMULATED, "OUT", "--classes=6", "--no-report"), True),
    "watch": Command(
        ("watch", SIMULATED, "OUT", "--per-class=70", "--poll-seconds=0.2", "--idle-minutes=0.02", "--no-report"), True
    ),
    "watch-parts": Command(
        (
            "watch",
            "in-OUT",
            "OUT",
            "--classes=3",
            "--per-class=40",
            "--poll-seconds=0.2",
            "--idle-minutes=0.06",
            "--no-report",
        ),
        True,
        grows=True,
    ),
    "relion": Command(
        ("relion", "--i", SIMULATED, "--o", "OUT/run", "--K", "3", "--iter", "3", "--particle_diameter", "200"),
        True,
        "ralib",
    ),
    "simulate": Command(("simulate", "OUT", "--particles=300", "--box=48")),
    "params": Command(("params", f"{RUN}/particles.star", "--export", "OUT.txt")),
    "prepare": Command(("prepare", SIMULATED, "OUT.star", "--box=32", "--phase-flip")),
    "transform": Command(("transform", f"{RUN}/particles.star", "OUT.star")),
    "average": Command(("average", f"{RUN}/particles.star", "OUT.hdf", "--ctf=wiener")),
    "select": Command(("select", RUN, "--min-members=2", "--out", "OUT.star")),
    "analyze": Command(("analyze", SIMULATED, "--out", "OUT", "--components=8", "--embedding=none")),
    "denoise": Command(("denoise", SIMULATED, "OUT.star")),
    "neighbours": Command(("neighbours", SIMULATED, "OUT", "--count=10")),
    "states": Command(("classify", RUN, "OUT", "--split-states=2")),
    "report": Command(("report", RUN, "--out", "OUT.html")),
    "select-more": Command(
        ("select", RUN, "--classes=1-3", "--out=OUT.cs", "--excluded=OUT-rest.hdf", "--averages=OUT.mrcs")
    ),
    "compare": Command(("compare", RUN, RUN, "--out", "OUT.png")),
    "params-import": Command(("params", SIMULATED, "--import", f"{RUN}/params.txt", "--out", "OUT.star")),
    "params-headers": Command(
        ("params", "OUT.hdf", "--import", f"{RUN}/params.txt", "--write-headers"),
        before=("prepare", SIMULATED, "OUT.hdf"),
    ),
}
NO_DEVICE = ("select", "params", "relion", "compare")
"""Commands without an option --device."""


def started(folder: Path, command: Command, name: str, device: str) -> subprocess.Popen[bytes]:
    """The command, writing `name`; one with checkpoints goes on where it can, and is returned once it has its folder.

    Kills in the seconds of importing before that would prove nothing.
    """
    words = [w.replace("OUT", name) for w in command.words]
    if command.words[0] not in NO_DEVICE:
        words.append(f"--device={device}")
    if command.continues and (folder / name).exists():
        words.append("--continue")
    process = subprocess.Popen(
        [sys.executable, "-m", "ralib", *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if command.grows and not (folder / name).exists():
        shutil.rmtree(folder / f"in-{name}", ignore_errors=True)
        given(folder, name, 1)
    lock = folder / name / command.run / ".lock"
    while command.continues and process.poll() is None and not lock.exists():
        time.sleep(0.01)
    return process


def prepared(folder: Path, command: Command, name: str) -> dict[str, bytes]:
    """Give what a command needs under its name, and return these files as `contents` does."""
    if command.before:
        words = [w.replace("OUT", name) for w in command.before]
        subprocess.run([sys.executable, "-m", "ralib", *words], check=True, capture_output=True, cwd=folder)
    return contents(folder, name) if command.before else {}


def given(folder: Path, name: str, parts: int) -> None:
    """Put the first parts of the simulated particles into the folder that is watched; settled, and whole at once."""
    into, simulated = folder / f"in-{name}", io.open_particles(folder / SIMULATED)
    into.mkdir(exist_ok=True)
    for number in range(parts):
        path = into / f"{number + 1}.mrcs"
        if not path.exists():
            rows = np.arange(PARTS[number - 1] if number else 0, PARTS[number])
            io.write_mrcs(path.with_suffix(".new"), simulated.images.read(rows), simulated.pixel_size_A)
            then = time.time() - 100 + number
            os.utime(path.with_suffix(".new"), (then, then))
            path.with_suffix(".new").rename(path)


@contextmanager
def arriving(folder: Path, command: Command, name: str) -> Iterator[None]:
    """While inside, each part of the particles comes when the one before it is in a checkpoint."""
    over = threading.Event()

    def feed() -> None:
        while not over.wait(0.05):
            saved = [int(p.stem[-4:]) for p in (folder / name / "checkpoints").glob("checkpoint_*.ralib")]
            if saved:
                given(folder, name, min(len(PARTS), max(saved) + 1))

    thread = threading.Thread(target=feed, daemon=True)
    if command.grows:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if command.grows:
            thread.join()


def run_to_its_end(folder: Path, command: Command, name: str, device: str) -> float:
    """Seconds that it took."""
    prepared(folder, command, name)
    with arriving(folder, command, name):
        process = started(folder, command, name, device)
        start = time.perf_counter()
        if process.wait() != 0:
            raise RuntimeError(f"{command.words[0]} ended with status {process.returncode}")
        return time.perf_counter() - start


def contents(folder: Path, name: str) -> dict[str, bytes]:
    """Every file that stands under a name, with its own name taken out of the text, by its place."""
    files = [p for top in folder.glob(f"{name}*") for p in ([top] if top.is_file() else top.rglob("*"))]
    kept = [p for p in files if p.is_file() and p.name not in DESCRIBING and p.suffix != ".ralib"]
    return {
        str(p.relative_to(folder)).replace(name, "OUT", 1): p.read_bytes().replace(name.encode(), b"OUT") for p in kept
    }


def removed(folder: Path, name: str) -> None:
    """Remove all that a command has written, and what it was writing when SIGKILL ended it."""
    for path in [*folder.glob(f"{name}*"), *folder.glob(f".tmp*{name}*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def differences(folder: Path, whole: dict[str, bytes], untouched: dict[str, bytes] | None = None) -> list[str]:
    """Files under 'killed' that are not those of the whole run; they may also all be as they were `untouched`."""
    found = contents(folder, "killed")
    if untouched is not None and found == untouched:
        return []
    return sorted(n for n in set(found) | set(whole) if found.get(n) != whole.get(n))


def killed_and_repeated(
    folder: Path, label: str, kills: int, device: str, rng: random.Random
) -> tuple[int, int, list[str]]:
    """Kills, ends, and files that differ, of one command."""
    command, name = COMMANDS[label], f"whole-{label}"
    run_to_its_end(folder, command, name, device)  # compiles the kernels, where there are any
    whole = contents(folder, name)
    seconds = run_to_its_end(folder, command, "killed", device)
    wrong = differences(folder, whole)
    removed(folder, "killed")
    done, ends = 0, 1
    earliest = 0.0 if command.continues else 0.4  # of the time: what is before that is importing
    while done < kills:
        # Of a killed process; the system let go of the lock.
        (folder / "killed" / command.run / ".lock").unlink(missing_ok=True)
        untouched = prepared(folder, command, "killed")
        try:
            with arriving(folder, command, "killed"):
                process = started(folder, command, "killed", device)
                process.wait(timeout=seconds * rng.uniform(earliest, 1.0))
        except subprocess.TimeoutExpired:
            number = rng.choice(KILLS)
            process.send_signal(number)
            status = process.wait(END_S)
            done += 1
            if number == signal.SIGTERM:
                wrong += [f"status {status}"] if status not in (0, 128 + number) else []
                wrong += [str(p.relative_to(folder)) for p in folder.rglob(".tmp*")]
            if command.continues:
                continue
            wrong += differences(folder, whole, untouched)
        else:
            ends += 1
            wrong += differences(folder, whole)
        removed(folder, "killed")
    run_to_its_end(folder, command, "killed", device)
    wrong += differences(folder, whole)
    wrong += [str(p.relative_to(folder)) for p in (folder / "killed").rglob(".tmp*")]
    removed(folder, "killed")
    return done, ends + 1, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, shared by the commands")
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    rng, device = random.Random(args.seed), torch.device(args.device)
    folder = Path(tempfile.mkdtemp(prefix="ralib-kill-"))
    simulate = ["simulate", "sim", "--particles", str(args.particles), "--box", "48"]
    subprocess.run([sys.executable, "-m", "ralib", *simulate], check=True, capture_output=True, cwd=folder)
    rows, failed = [], False
    for i, label in enumerate(dict.fromkeys(["mref", *args.commands])):  # others need the run of mref
        share = args.kills * (i + 1) // len(args.commands) - args.kills * i // len(args.commands)
        kills, ends, wrong = killed_and_repeated(folder, label, share, args.device, rng)
        failed |= bool(wrong)
        what = "continued" if COMMANDS[label].continues else "given again"
        case = f"{label}: files that differ after {kills} kills and {ends} runs {what} to their ends"
        rows.append({"case": case, "ours": len(wrong), "goal": 0, "unit": "files", "kills": kills, "different": wrong,
                     "parity": "compared with an uninterrupted run, byte by byte"})  # fmt: skip
        print(f"{case}: {wrong or 'none'}", flush=True)
    shutil.rmtree(folder)
    path = write_record(args.out, record("kill-resume", device, rows, title="Killed and continued"))
    print(f"wrote {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
