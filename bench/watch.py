"""Particles that arrive in parts against one classification of all: are the classes as good?

    PYTHONPATH=src python3 bench/watch.py [--device cpu] [--cases uniform ...] [--particles 2000] [--classes 20]

Each set is simulated with known views (continuous views, CTF, particles off centre), shuffled by nature, and classified
twice: at once, and as `ralib watch` does with parts that arrive one after the other (`--parts 4` of equal size, or more
of them). Both end with all particles and the same number of classes; what the true views say of both is compared
(classify.py of this folder explains the scores). `goal`: no worse than at once by more than a tenth. Losses are shown
like wins: bench/results/watch-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch

from classify_scores import ideal_deg, scores, second_molecule
from ralib import io
from ralib.benchmarks.record import record, write_record
from ralib.classification.classifier import Classifier
from ralib.classification.growing import GrowingClassification
from ralib.cli import main as ralib
from ralib.simulation.phantom import phantom_volume
from ralib.simulation.simulator import PHANTOM_BOX_A
from ralib.types import ClassificationResult, ParticleSet

CASES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "preferred": {"--preferred": 0.5},
    "two species": {"second": True},
    "junk": {"--junk": 0.15},
}
LOWER_IS_BETTER = ("view_deg", "view_p90_deg", "inplane_deg", "shift_px")


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
    parser.add_argument("--parts", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="ralib-watch-") as scratch:
        for case in options.cases:
            for seed in range(options.seeds):
                folder = Path(scratch) / f"{case}-{seed}".replace(" ", "-")
                simulate(folder, seed, CASES[case], options)
                rows += compared(case, folder, seed, options)
    rows += summary(rows)
    print(f"written {write_record(options.out, record('watch', torch.device(options.device), rows))}")
    return 0


def simulate(folder: Path, seed: int, changes: dict[str, Any], options: argparse.Namespace) -> None:
    """Write particles.star and truth.npz into the folder."""
    given: dict[str, Any] = {
        "--particles": options.particles, "--box": options.box, "--views": 0, "--snr": options.snr, "--shift-sd": 2.0,
        "--contrast-sd": 0.15, "--coloured-noise": 0.15, "--seed": seed, "--device": options.device,
    }  # fmt: skip
    changes = dict(changes)
    if changes.pop("second", False):
        for name, volume in (("--volume", phantom_volume(options.box)), ("--volume2", second_molecule(options.box))):
            changes[name] = folder.with_name(folder.name + name + ".mrc")
            with mrcfile.new(changes[name]) as file:
                file.set_data(volume)
                file.voxel_size = PHANTOM_BOX_A / options.box
    words = [str(word) for pair in (given | changes).items() for word in pair]
    if ralib(["simulate", str(folder), *words]) != 0:
        raise SystemExit(f"simulate failed: {words}")


def compared(case: str, folder: Path, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for the classification of all particles at once, and one for each number of parts."""
    particles, truth = io.open_particles(folder / "particles.star"), dict(np.load(folder / "truth.npz"))
    rows = []
    for parts in [1, *options.parts]:
        start = time.process_time()
        result, taken = grown(particles, parts, seed, options)
        rows.append(
            {"case": case, "seed": seed, "particles": len(particles), "parts": parts,
             "classes": len(result.averages.images), "ideal_deg": ideal_deg(options.classes),
             "processor_s": time.process_time() - start, "taken": taken, **scores(result.poses, truth)}
        )  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def grown(
    particles: ParticleSet, parts: int, seed: int, options: argparse.Namespace
) -> tuple[ClassificationResult, list[dict[str, Any]]]:
    """The result after the last part, and what each part took."""
    growing = GrowingClassification(
        Classifier(n_classes=1, seed=seed, device=options.device),
        lambda n: max(1, min(options.classes, n // options.per_class)),
    )
    taken = []
    for i in range(1, parts + 1):
        n = len(particles) * i // parts
        start, search = time.process_time(), growing.searches(n, last=i == parts)
        result = growing.take(io.take(particles, np.arange(n)), search=search)
        taken.append({"particles": n, "searched": search, "processor_s": round(time.process_time() - start, 1)})
    return result, taken


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each case and number of parts the means over the seeds, over those of all at once: above 1 is worse."""
    found = []
    for case in dict.fromkeys(row["case"] for row in rows):
        mine = [row for row in rows if row["case"] == case]
        once = [row for row in mine if row["parts"] == 1]
        for parts in dict.fromkeys(row["parts"] for row in mine if row["parts"] > 1):
            others = [row for row in mine if row["parts"] == parts]
            told: dict[str, Any] = {"case": f"{case}: {parts} parts over all at once", "goal": 1.1}
            for name in (*LOWER_IS_BETTER, "purity", "effective", "processor_s"):
                ours, other = (statistics.mean(row[name] for row in group) for group in (others, once))
                told[name] = ours / other if name in (*LOWER_IS_BETTER, "processor_s") else other / ours
            told["ours"] = told["view_deg"]
            found.append(told)
            print(json.dumps(told), flush=True)
    return found


if __name__ == "__main__":
    sys.exit(main())
