"""Particles that arrive in parts against one classification of all: are the classes as good?

    PYTHONPATH=src python3 bench/watch.py [--device cpu] [--cases uniform ...] [--particles 2000] [--classes 20]

Each set is simulated with known views (continuous views, CTF, particles off centre) and classified twice: at once, and
as `ralib watch` does with `--parts` of equal size that arrive one after the other. What the true views say is compared
after the last part has joined the classes, as after Ctrl-C, and after the last search, as at the end by
`--idle-minutes` (classify.py of this folder explains the scores). The goal: worse than at once by a tenth at most.
Losses are shown like wins: bench/results/watch-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classify_scores import ideal_deg, scores
from clean_sets import molecule_volumes, simulate_set
from ralib import io
from ralib.benchmarks.record import record, write_record
from ralib.classification.classifier import Classifier
from ralib.classification.growing import GrowingClassification
from ralib.types import ClassificationResult, ParticleSet

CASES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "preferred": {"--preferred": 0.5},
    "two species": {"second": True},
    "junk": {"--junk": 0.15},
}
ONCE, JOINED, SEARCHED = "at once", "the last of which joined", "a last search at the end"
TOLERANCE = 0.1
"""What the classes of parts may be worse by than those of all particles at once."""
FIGURES: dict[str, tuple[str, str, int]] = {
    "view_deg": ("view angle, median", "deg", 1),
    "view_p90_deg": ("view angle, 90th percentile", "deg", 1),
    "inplane_deg": ("in-plane rotation, median error", "deg", 1),
    "shift_px": ("origin, median error", "px", 1),
    "purity": ("purity of species", "", -1),
    "effective": ("effective number of classes", "", -1),
    "processor_s": ("processor time of all parts", "s", 0),
}
"""What each figure is, its unit, and whether more (1) or less (-1) of it is worse."""


def main() -> int:
    """Run the cases; 0 when all ran."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--snr", type=float, default=0.05)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="ralib-watch-") as scratch:
        for case in options.cases:
            for seed in range(options.seeds):
                folder = Path(scratch) / f"{case}-{seed}".replace(" ", "-")
                simulate(folder, seed, CASES[case], options)
                runs += compared(case, folder, seed, options)
    found = record("watch", torch.device(options.device), rows_of(runs, options.parts), runs=runs)
    print(f"wrote {write_record(options.out, found)}")
    return 0


def simulate(folder: Path, seed: int, changes: dict[str, Any], options: argparse.Namespace) -> None:
    """Write particles.star and truth.npz into the folder."""
    own = {"--box": options.box, "--snr": options.snr, "--device": options.device}
    if "second" in changes:
        own |= molecule_volumes(folder.parent, options.box)
    simulate_set(folder, options.particles, seed, own | {name: v for name, v in changes.items() if name != "second"})


def compared(case: str, folder: Path, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs of one set: all particles at once; in parts, the last of which joined; and searched once more in the end."""
    particles, truth = io.open_particles(folder / "particles.star"), dict(np.load(folder / "truth.npz"))
    runs = []
    for way, result, taken in (*grown(particles, 1, seed, options), *grown(particles, options.parts, seed, options)):
        runs.append(
            {"kind": case, "seed": seed, "particles": len(particles), "way": way,
             "classes": len(result.averages.images), "ideal_deg": ideal_deg(options.classes), "taken": taken,
             "processor_s": sum(part["processor_s"] for part in taken), **scores(result.poses, truth)}
        )  # fmt: skip
        print(json.dumps(runs[-1]), flush=True)
    return runs


def grown(
    particles: ParticleSet, parts: int, seed: int, options: argparse.Namespace
) -> Iterator[tuple[str, ClassificationResult, list[dict[str, Any]]]]:
    """The result after the last part, as `ralib watch` has it before and after its end, and what each part took."""
    growing = GrowingClassification(
        Classifier(n_classes=1, seed=seed, device=options.device),
        lambda n: max(1, min(options.classes, n // options.per_class)),
    )
    taken: list[dict[str, Any]] = []

    def take(n: int, *, search: bool) -> ClassificationResult:
        start = time.process_time()
        result = growing.take(io.take(particles, np.arange(n)), search=search)
        taken.append({"particles": n, "searched": search, "processor_s": round(time.process_time() - start, 1)})
        return result

    for i in range(1, parts + 1):
        n = len(particles) * i // parts
        result = take(n, search=growing.searches(n))
    yield ONCE if parts == 1 else JOINED, result, list(taken)
    if growing.searches(n, last=True):
        yield SEARCHED, take(n, search=True), taken


def rows_of(runs: list[dict[str, Any]], parts: int) -> list[dict[str, Any]]:
    """The rows of the result file: means over the seeds, beside those of all particles at once."""
    rows = []
    for kind, n in dict.fromkeys((run["kind"], run["particles"]) for run in runs):
        mine = [run for run in runs if (run["kind"], run["particles"]) == (kind, n)]
        for way in (SEARCHED, JOINED):
            ours, once = ([run for run in mine if run["way"] == w] for w in (way, ONCE))
            for name, (words, unit, sign) in FIGURES.items() if ours else ():
                value, other = (statistics.mean(run[name] for run in group) for group in (ours, once))
                goal = other * (1 + sign * TOLERANCE) if sign else None
                seeds = "1 seed" if len(ours) == 1 else f"{len(ours)} seeds"
                rows.append(
                    {"case": f"{kind}, {n:,} particles in {parts} parts, {way}: {words} ({seeds})",
                     "ours": value, "unit": unit, "goal": goal, "other": other, "other_is": "all at once",
                     "better": "higher" if sign < 0 else "lower",
                     "readme": way == SEARCHED and name in ("view_deg", "purity")}
                )  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
