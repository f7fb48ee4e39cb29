"""Many short runs in one process: memory, open files, threads and GPU memory must not grow.

    PYTHONPATH=src python3 bench/soak.py [--minutes 10] [--device cpu] [--out bench/results]

Runs of mref (plain, --EQ, from a killed run's checkpoint), reffree and one that fails take turns, each through the
command line's own entry. After a fifth of the time, when everything has been loaded once, what is there is the
standard; growth beyond it is told as a slope, and the exit status is 1 where it is more than noise.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io as text_io
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ralib.benchmarks.record import record, write_record
from ralib.cli import main as ralib

LIMITS = {"rss_bytes": 48 * 2**20, "open_files": 2, "threads": 2, "device_bytes": 2**20, "device_reserved_bytes": 2**26}
"""Growth that still is noise: an allocator's, not a leak's."""


def measured(device: torch.device) -> dict[str, int]:
    """What the process holds now."""
    gc.collect()
    process = psutil.Process()
    held = {
        "rss_bytes": process.memory_info().rss,
        "open_files": process.num_fds(),
        "threads": threading.active_count(),
    }
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held["device_bytes"] = torch.cuda.memory_allocated(device)
        held["device_reserved_bytes"] = torch.cuda.memory_reserved(device)
    return held


def turns(folder: Path, device: str) -> list[Callable[[Path], int]]:
    """Short runs, each into a folder of its own; each returns the exit status it should."""
    stack, common = str(folder / "sim" / "particles.star"), [f"--device={device}", "--ou=12", "--no-report"]

    def mref(*options: str) -> Callable[[Path], int]:
        return lambda out: ralib(["mref", stack, "3", str(out), "--xr=1", "--maxit=2", *common, *options])

    def resumed(out: Path) -> int:
        first = mref("--CTF")(out)
        again = ralib(["mref", stack, "3", str(out), "--xr=1", "--maxit=3", *common, "--CTF", "--continue"])
        return first or again

    def refused(out: Path) -> int:
        return 0 if mref("--mask-that-is-not-there")(out) == 2 and mref("--ou=99")(out) == 2 else 1

    def reffree(out: Path) -> int:
        return ralib(["reffree", stack, str(out), "--xr=1", "--ts=1", "--maxit=1", *common])

    return [mref(), mref("--EQ"), resumed, refused, reffree]


def soak(seconds: float, device: str, *, most_runs: int = 10**9) -> dict[str, Any]:
    """Run for so long; what was held after the warm-up, at the end, and the growth of each between their medians."""
    where, folder = torch.device(device), Path(tempfile.mkdtemp(prefix="ralib-soak-"))
    seen: list[tuple[float, dict[str, int]]] = []
    failed, began = 0, time.monotonic()
    try:
        with contextlib.redirect_stdout(text_io.StringIO()), contextlib.redirect_stderr(text_io.StringIO()):
            ralib(["simulate", str(folder / "sim"), "--particles=60", "--box=32", f"--device={device}"])
            kinds = turns(folder, device)
            while (time.monotonic() - began < seconds and len(seen) < most_runs) or len(seen) < 3 * len(kinds):
                out = folder / "out"
                failed += kinds[len(seen) % len(kinds)](out) != 0
                shutil.rmtree(out, ignore_errors=True)
                seen.append((time.monotonic() - began, measured(where)))
                for stream in (sys.stdout, sys.stderr):
                    stream.truncate(0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return judged([held for _, held in seen]) | {"runs": len(seen), "failed": failed, "seconds": seen[-1][0]}


def judged(seen: list[dict[str, int]]) -> dict[str, Any]:
    """Medians of the fifth after the warm-up and of the last one, their difference, and what grew beyond its limit."""
    part = max(2, len(seen) // 5)
    early, late = seen[part : 2 * part], seen[-part:]
    rows = {
        name: {"early": float(np.median([s[name] for s in early])), "late": float(np.median([s[name] for s in late]))}
        for name in seen[0]
    }
    grown = [name for name, row in rows.items() if row["late"] - row["early"] > LIMITS[name]]
    return {"held": rows, "grown": grown}


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The growth of each thing held, for a result file."""
    after = f"after {found['runs']} runs in {found['seconds'] / 60:.0f} min"
    units = {"rss_bytes": ("memory", 2**20, "MiB"), "device_bytes": ("GPU memory", 2**20, "MiB"),
             "device_reserved_bytes": ("GPU memory reserved", 2**20, "MiB"), "open_files": ("open files", 1, ""),
             "threads": ("threads", 1, "")}  # fmt: skip
    return [
        {
            "case": f"growth of {units[name][0]} {after}",
            "ours": round((held["late"] - held["early"]) / units[name][1], 2),
            "unit": units[name][2],
            "parity": f"{found['failed']} runs failed",
        }
        for name, held in found["held"].items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    found = soak(60 * args.minutes, args.device)
    path = write_record(args.out, record("soak", torch.device(args.device), rows(found), **found))
    for name, row in found["held"].items():
        print(f"{name}: {row['early']:.0f} -> {row['late']:.0f}")
    told = f"{found['runs']} runs in {found['seconds']:.0f} s, {found['failed']} failed"
    print(f"{told}; grown: {found['grown'] or 'nothing'}")
    print(f"wrote {path}")
    return 1 if found["grown"] or found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
