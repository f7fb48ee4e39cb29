"""`ralib classify --quick`, as it is, and `--thorough`: processor seconds and quality, on one core.

    PYTHONPATH=src OMP_NUM_THREADS=1 python3 bench/classify_modes.py [--modes quick default thorough] [--seeds 1 2]

Simulated particles of continuous views with CTF. Scores are those of classify_scores.py: the median angle between a
particle's view and the mean view of its class and its 90th percentile, and what is left of the in-plane errors.
`references` begins with the class averages that `default` found, of the same particles, on half as many pixels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from classify_scores import scores
from clean_sets import set_in_memory
from ralib.benchmarks.record import record, write_record
from ralib.classification.classifier import Classifier
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.images.fourier import fourier_resize

RESULTS = Path(__file__).parent / "results"
PLANS = {
    "quick": ScheduleSettings.quick(),
    "default": ScheduleSettings(),
    "thorough": ScheduleSettings.thorough(),
    "references": ScheduleSettings(),
}


def main() -> int:
    """Run all modes with all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", default=["default", "quick", "thorough", "references"], choices=PLANS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--box", type=int, default=64)
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in options.modes}
    for seed in options.seeds:
        particles, truth = set_in_memory(options.particles, options.box, seed)
        found: torch.Tensor | None = None
        for mode in options.modes:
            given: dict[str, Any] = {}
            if mode == "references":
                assert found is not None, "references begin with what 'default' found: name it before"
                small = fourier_resize(found, options.box // 2)
                given = {"references": small, "references_pixel_size_A": 2 * (particles.pixel_size_A or 1.0)}
            clock = time.process_time()
            run = Classifier(n_classes=len(given.get("references", "x" * options.classes)), seed=1000 + seed,
                             plan=PLANS[mode], **given).fit(particles)  # fmt: skip
            row = {"seed": seed, "seconds": time.process_time() - clock, **scores(run.poses_, truth)}
            found = run.class_averages_.images if mode == "default" else found
            print(mode, json.dumps(row), flush=True)
            runs[mode].append(row)
    rows = [summary(mode, runs) for mode in options.modes]
    workload = {name: getattr(options, name) for name in ("particles", "box", "classes", "seeds")}
    print("wrote", write_record(options.out, record("classify-modes", torch.device("cpu"), rows, workload=workload)))
    return 0


def summary(mode: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the seeds, and the time as a share of that of `default`."""
    own = runs[mode]
    median = {name: statistics.median(r[name] for r in own) for name in own[0] if name != "seed"}
    row = {"case": mode, "ours": median["seconds"], "unit": "processor s"} | median | {"runs": own}
    if runs.get("default"):
        row["share_of_default"] = median["seconds"] / statistics.median(r["seconds"] for r in runs["default"])
    return row


if __name__ == "__main__":
    raise SystemExit(main())
