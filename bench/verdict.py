"""What the verdict of a classification is worth, against the truth of simulated sets.

    PYTHONPATH=src python3 bench/verdict.py SETS/ace2 SETS/pol2 ... [--classes 30] [--seeds 3] [--device cuda]

Each folder holds particles.star and truth.npz (`junk`: 0 good, else its kind). Each is classified by the command
`ralib classify`, its particle_scores.txt and run.json are judged, and rows are written to
bench/results/verdict-<device>.json:

    auc, auc_kinds    of the column `junk`: all junk against good particles, and each kind alone
    class_auc         of the class score, for "mostly true particles"; junk_classes: those that are not
    surely, right     particles given junk > 0.9, and the share of them that are junk
    called_good       share of the good particles given junk > 0.5
    kept_true, junk_before, junk_after, junk_ratio     what `ralib select --auto` keeps
    caught            junk below the score that 95% of the good particles exceed
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from ralib.benchmarks.record import record, write_record
from ralib.cli import main as ralib
from ralib.results.automatic_selection import junk_limit
from ralib.results.run_record import read_record


def judged(
    junk: np.ndarray,
    kind: np.ndarray,
    index: np.ndarray,
    score: np.ndarray | None = None,
    kept: np.ndarray | None = None,
) -> dict[str, Any]:
    """Numbers of a verdict.

    junk (n,) probability of being junk, kind (n,) the truth (0 good), index (n,) classes, score (k,) of the classes
    (None: the mean of 1 - junk), kept (n,) by the automatic selection (None: by its limit on junk alone).
    """
    good = kind == 0
    kept = junk <= junk_limit(junk) if kept is None else kept
    row: dict[str, Any] = {"particles": len(junk), "junk_before": float(1 - good.mean())}
    if good.any() and not good.all():
        row["auc"] = float(roc_auc_score(~good, junk))
        row["auc_kinds"] = {
            int(k): round(float(roc_auc_score(~good[(kind == k) | good], junk[(kind == k) | good])), 3)
            for k in np.unique(kind[~good])
        }
        row["caught"] = float((junk[~good] > np.quantile(junk[good], 0.95)).mean())
        row["junk_after"] = float((~good)[kept].mean()) if kept.any() else 0.0
        row["junk_ratio"] = row["junk_after"] / row["junk_before"]
    if good.any():
        row["called_good"] = float((junk[good] > 0.5).mean())
        row["kept_true"] = float(kept[good].mean())
    row["surely"] = int((junk > 0.9).sum())
    if row["surely"]:
        row["right"] = float((~good)[junk > 0.9].mean())
    names = np.unique(index[index >= 0])
    true = np.array([good[index == k].mean() > 0.5 for k in names])
    worth = np.array([(1 - junk[index == k]).mean() if score is None else score[k] for k in names])
    row["junk_classes"] = int((~true).sum())
    if true.any() and not true.all():
        row["class_auc"] = float(roc_auc_score(true, worth))
    return row


def main() -> int:
    """Classify and judge every set with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--classes", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    rows = []
    for folder in options.sets:
        for seed in range(options.seeds):
            rows.append({"set": folder.name, "seed": seed, "classes": options.classes} | _run(folder, seed, options))
            print(json.dumps(rows[-1]), flush=True)
    folder = options.out or Path(__file__).parent / "results"
    print(f"wrote {write_record(folder, record('verdict', torch.device(options.device), rows))}")
    return 0


def _run(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One classification by the command line, judged from its files."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        words = ["classify", str(folder / "particles.star"), str(run), "--classes", str(options.classes)]
        ralib([*words, "--seed", str(seed + 1), "--device", options.device, "--no-report"])
        return judged_run(run, np.load(folder / "truth.npz")["junk"])


def judged_run(run: Path, kind: np.ndarray) -> dict[str, Any]:
    """`judged` from the files of a run, with the true kinds (n,) of junk; and whether the run was believed."""
    lines = (run / "particle_scores.txt").read_text().splitlines()
    heading, table = lines[0].lstrip("# ").split(), np.loadtxt(lines[1:], ndmin=2)
    figures = read_record(run)
    score = np.array([row["score"] for row in figures["classes"]])
    junk, kept = table[:, heading.index("junk")], table[:, heading.index("selected")] > 0.5
    believed = {"believed": bool(figures["stability"]["believable"])}
    return believed | judged(junk, kind, table[:, 1].astype(int) - 1, score, kept)


if __name__ == "__main__":
    raise SystemExit(main())
