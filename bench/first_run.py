"""`ralib classify` from shell prompt to prompt on a machine where no kernel was compiled, and afterwards.

    PYTHONPATH=src python3 bench/first_run.py --device cuda [--particles 5000] [--classes 50] [--repeats 3]

Simulated particles of 90 px with CTF, at an SNR of 0.05. Each run is a process of its own, report included; the first
finds empty caches of Triton and Numba, those after it what it left there. PyTorch's own files are compiled before
(`ralib simulate`), unless Python was told to keep none. Results go to bench/results/first-run-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ralib.benchmarks.record import record, write_record

OURS = [sys.executable, "-m", "ralib"]
GOAL_S, GOAL_RATIO = 7.0 if sys.dont_write_bytecode else 5.0, 1.3
"""Goals of a later run, without PyTorch's files compiled and with them, and of the first one over it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3, help="runs after the first")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        caches = {"TRITON_CACHE_DIR": str(work / "triton"), "NUMBA_CACHE_DIR": str(work / "numba")}
        how = ["--box", "90", "--snr", "0.05", "--views", "0", "--seed", "3", "--device", options.device]
        subprocess.run([*OURS, "simulate", str(work / "set"), "--particles", str(options.particles), *how], check=True)
        runs = [run_once(work, number, options, caches) for number in range(1 + options.repeats)]
    first, later = runs[0], runs[1:]
    usual = statistics.median(wall for wall, _ in later)
    among = f"{min(w for w, _ in later):.1f} to {max(w for w, _ in later):.1f} s, {len(later)} runs"
    case = f"classify, {options.particles:,} x 90 px, K={options.classes}, shell prompt to prompt"
    rows = [
        {"case": f"{case}: first run, kernels compiled", "ours": first[0], "unit": "s", "timings": first[1]},
        {"case": f"{case}: later runs ({among})", "ours": usual, "unit": "s", "goal": GOAL_S, "timings": later[-1][1]},
        {"case": f"{case}: first over later", "ours": first[0] / usual, "unit": "times", "goal": GOAL_RATIO},
    ]
    print(*(f"{row['case']}: {row['ours']:.2f} {row['unit']}" for row in rows), sep="\n")
    path = write_record(options.out, record("first-run", torch.device(options.device), rows))
    print(f"wrote {path.name}")
    return 0


def run_once(
    work: Path, number: int, options: argparse.Namespace, caches: dict[str, str]
) -> tuple[float, dict[str, float]]:
    """Seconds of one run in a process of its own, and those that it counts itself."""
    out = work / f"run-{number}"
    command = ["classify", str(work / "set" / "particles.star"), str(out), "--classes", str(options.classes)]
    clock = time.perf_counter()
    subprocess.run([*OURS, *command, "--device", options.device], check=True, env=os.environ | caches)
    return time.perf_counter() - clock, json.loads((out / "run.json").read_text())["timings"]


if __name__ == "__main__":
    sys.exit(main())
