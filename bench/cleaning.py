"""What it is worth to leave recognised junk out: the same realistic sets classified with and without the second round.

    PYTHONPATH=src python3 bench/cleaning.py ace2=SETS/ace2_30 t20s:D7:16=SETS/t20s_10 ... [--classes 20 --seeds 1 2]

A set is a folder with particles.star and truth.npz (`R`, `shift`, `junk`: 0 good, else its kind) of a molecule, named
with its symmetry as `hard_scores.symmetry_rotations` has it. Scores are those of hard_scores.py, over true particles.
Pairs in which no second round took place have nothing to compare and are counted only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hard_scores import hard_scores
from ralib import io
from ralib.benchmarks.record import record, write_record
from ralib.classification.classifier import Classifier
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.cli.common import resolve_device

RESULTS = Path(__file__).parent / "results"
PLANS = {"with": ScheduleSettings(), "without": ScheduleSettings(cleaned_exchanges=0)}
FIGURES = {"view_deg": "view angle, median", "view_p90_deg": "view angle, 90th percentile",
           "inplane_deg": "in-plane error", "search_s": "time of the search"}  # fmt: skip


def main() -> int:
    """Classify all sets both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", help="MOLECULE[:SYMMETRY]=FOLDER")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = resolve_device(options.device)
    pairs = []
    for given in options.sets:
        name, folder = given.split("=", 1)
        molecule, _, symmetry = name.partition(":")
        for seed in options.seeds:
            pairs.append({"set": Path(folder).name, "molecule": molecule, "seed": seed}
                         | pair(Path(folder), symmetry or "C1", options.classes, seed, device))  # fmt: skip
            print(json.dumps(pairs[-1]), flush=True)
    print("wrote", write_record(options.out, record("cleaning", device, table_rows(pairs), pairs=pairs)))
    return 0


def pair(folder: Path, symmetry: str, n_classes: int, seed: int, device: torch.device) -> dict[str, Any]:
    """Scores with and without the second round, where one took place."""
    truth, scored = dict(np.load(folder / "truth.npz")), {}
    for name, plan in PLANS.items():
        run = Classifier(n_classes=n_classes, seed=seed, device=device, plan=plan)
        run.fit(io.open_particles(folder / "particles.star"))
        if name == "with" and len(run.fitted_.references) == n_classes:
            break
        scores = hard_scores(run.poses_, truth, symmetry)
        scored[name] = {k: scores[k] for k in FIGURES if k in scores} | {"search_s": run.result_.timings["search_s"]}
    return scored


def table_rows(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means of the ratios, of all pairs and molecule by molecule, and how many became better."""
    done = [p for p in pairs if "with" in p]
    rows = [
        {"case": f"{words}: with over without the second round, mean of {len(done)} pairs", "ours": _mean(done, figure)}
        for figure, words in FIGURES.items()
    ]
    better = sum(p["with"]["view_deg"] < p["without"]["view_deg"] for p in done)
    rows.append({"case": f"pairs of {len(done)} whose view angle is smaller with it", "ours": better})
    for molecule in sorted({p["molecule"] for p in done}):
        some = [p for p in done if p["molecule"] == molecule]
        case = f"{molecule}: {FIGURES['view_deg']}, with over without, mean of {len(some)} pairs"
        rows.append({"case": case, "ours": _mean(some, "view_deg")})
    return [row | {"unit": ""} for row in rows]


def _mean(pairs: Iterable[dict[str, Any]], figure: str) -> float:
    """Geometric mean of a figure's ratios."""
    return round(float(np.exp(np.mean([np.log(p["with"][figure] / p["without"][figure]) for p in pairs]))), 3)


if __name__ == "__main__":
    raise SystemExit(main())
