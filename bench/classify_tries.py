"""Settings of the classification, each changed by itself, on small realistic sets: does the view angle fall?

    PYTHONPATH=src OMP_NUM_THREADS=1 python3 bench/classify_tries.py --shared ../shared [--tries hotter ...] [--seeds 2]

ACE2 with 30 % junk and Pol II with 20 %, 1,200 particles of the simulator that stands with the shared data, in 12
classes. Scores are those of hard_scores.py; a ratio compares a run with that of the defaults on the same set and seed.
Over so few runs it spreads by several per cent: small differences decide nothing. docs/notes/classification.md draws on
bench/results/classify-tries-<device>.json, which is written anew after every run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hard_scores import hard_scores
from ralib import io
from ralib.benchmarks.record import record, write_record
from ralib.classification.classifier import Classifier
from ralib.classification.schedule_settings import ScheduleSettings

AS_IT_IS = ScheduleSettings()
TRIES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "hotter": {"plan": replace(AS_IT_IS, temperatures=(8.0, 2.0))},
    "five exchanges": {"plan": replace(AS_IT_IS, exchanges=5)},
    "nothing coarser than 120 A": {"lowest_A": 120.0},
}
COMMON = ["--n", "1200", "--apix", "3", "--bin", "2", "--crowd", ".5", "--gradient", ".03"]
SETS = {
    "ACE2": "--vols ace2_7ddo.npz --box 64 --junk .30 --defocus 1.2,2.8 --shift-sd 2.5 --eff .75 --dose 50",
    "Pol II": "--vols pol2_open0.npz,pol2_open16.npz --flex --box 80 --junk .20 --defocus 0.8,2.4 --shift-sd 2.5",
}
CLASSES = 12


def main() -> int:
    """Run every try on every set with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--tries", nargs="+", choices=list(TRIES)[1:], default=list(TRIES)[1:])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ralib_bench_classify_tries")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name in SETS:
            folder = made(name, seed, options.work, options.shared / "hard")
            for what in ("defaults", *options.tries):
                runs.append({"set": name, "seed": seed, "try": what, **tried(folder, seed, TRIES[what])})
                print(runs[-1], flush=True)
                result = record("classify-tries", torch.device("cpu"), rows(runs), runs=runs)
                written = write_record(options.out, result)
    print("wrote", written)
    return 0


def made(name: str, seed: int, work: Path, hard: Path) -> Path:
    """The folder of a set, made on first use."""
    folder = work / f"{name.replace(' ', '')}-{seed}"
    if not (folder / "truth.npz").exists():
        words = SETS[name].split()
        words[1] = ",".join(str(hard.resolve() / "volumes" / volume) for volume in words[1].split(","))
        command = [sys.executable, str(hard / "make_hard.py"), str(folder), *words, *COMMON, "--seed", str(90 + seed)]
        subprocess.run(command, check=True, capture_output=True)
    return folder


def tried(folder: Path, seed: int, given: dict[str, Any]) -> dict[str, float]:
    """Scores and processor seconds of one run."""
    particles, clock = io.open_particles(folder / "particles.star"), time.process_time()
    run = Classifier(n_classes=CLASSES, seed=seed, **given).fit(particles)
    return {"seconds": time.process_time() - clock, **hard_scores(run.poses_, dict(np.load(folder / "truth.npz")))}


def rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a try and set: the median view angle over the seeds, and its ratio to that of the defaults."""
    found = []
    for name in SETS:
        before = {r["seed"]: r for r in runs if r["set"] == name and r["try"] == "defaults"}
        for what in TRIES:
            own = [r for r in runs if r["set"] == name and r["try"] == what]
            if own:
                ratio = {
                    f"{k}_ratio": statistics.mean(r[k] / before[r["seed"]][k] for r in own)
                    for k in ("view_deg", "view_p90_deg", "inplane_deg", "shift_px", "seconds")
                }
                case = f"{name}, 1,200 particles, K={CLASSES}, {what}: view angle, median ({len(own)} seeds)"
                found.append(
                    {"case": case, "ours": statistics.median(r["view_deg"] for r in own), "unit": "deg", **ratio}
                )
    return found


if __name__ == "__main__":
    raise SystemExit(main())
