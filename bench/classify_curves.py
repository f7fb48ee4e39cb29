"""Seconds of a classification against particles and against classes, each alone.

    PYTHONPATH=src python3 bench/classify_curves.py [--device cuda] [--particles 5000 20000 80000] [--classes 20 50 100]

Simulated particles of continuous views with CTF, in main memory; the time is that of `Classifier.fit`, from there to
the verdict, the least of --repeats. Without options there are as many as a card, or a CPU, does in two minutes. A point
has a time only where the truth says that its classes are right: where views within a class are hardly farther apart
than those of equal caps of the sphere. Against GPUs: classify_ranks.py and classify_million.py.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from classify_scores import ideal_deg, scores
from clean_sets import set_in_memory
from ralib.benchmarks.curves import slopes
from ralib.benchmarks.record import record, write_record
from ralib.classification.classifier import Classifier
from ralib.cli.common import resolve_device

RESULTS = Path(__file__).parent / "results"
WIDER = 1.25
"""Times the angle of equal caps: views within a class that is right lie no farther apart in the median."""

SWEEPS = {
    "cuda": {"particles": [5_000, 20_000, 80_000, 320_000], "classes": [25, 50, 100, 200]},
    "cpu": {"particles": [500, 1_000, 2_000, 4_000], "classes": [5, 10, 20, 40]},
}
BASE = {"cuda": (20_000, 50), "cpu": (2_000, 20)}
"""Particles while the classes change, and classes while the particles do."""


def measure(n: int, classes: int, options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds of one workload, and what the truth says of it."""
    particles, truth = set_in_memory(n, options.box, options.seed, device)
    took = []
    for _ in range(options.repeats):
        clock = time.perf_counter()
        run = Classifier(n_classes=classes, seed=options.seed, device=device).fit(particles)
        took.append(time.perf_counter() - clock)
    found, ideal = scores(run.poses_, truth), ideal_deg(classes)
    right = found["view_deg"] <= WIDER * ideal
    return {
        "ours": min(took) if right else None,
        "unit": "s",
        "parity": f"views within a class {found['view_deg']:.1f} deg apart, {ideal:.1f} of equal caps",
        "timings": run.result_.timings,
    }


def main() -> int:
    """Measure both curves; 0 when every point has a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--particles", type=int, nargs="*", help="with the base's number of classes")
    parser.add_argument("--classes", type=int, nargs="*", help="with the base's number of particles")
    parser.add_argument("--box", type=int, default=90)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = resolve_device(options.device)
    base, sweep, rows, known = BASE[device.type], SWEEPS[device.type], [], {}
    measure(base[0] // 10, base[1] // 2, options, device)  # kernels are compiled and loaded
    for curve, asked in (("particles", options.particles), ("classes", options.classes)):
        for value in sweep[curve] if asked is None else asked:
            n, classes = (value, base[1]) if curve == "particles" else (base[0], value)
            if (n, classes) not in known:
                known[n, classes] = measure(n, classes, options, device)
            about = {"case": f"{n:,} particles of {options.box} px, K={classes}", "curve": curve, "x": value}
            rows.append(about | known[n, classes])
            print(rows[-1]["case"], rows[-1]["ours"], rows[-1]["parity"], flush=True)
    workload = {name: getattr(options, name) for name in ("box", "seed", "repeats")}
    print("wrote", write_record(options.out, record("classify-curves", device, rows + slopes(rows), workload=workload)))
    return 0 if all(row["ours"] is not None for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
