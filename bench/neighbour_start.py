"""Averages of neighbours as the references of a classification at low signal: does the spread of views fall?

    PYTHONPATH=src OMP_NUM_THREADS=1 python3 bench/neighbour_start.py [--seeds 3] [--work FOLDER] [--note TEXT]

2,000 simulated particles of 90 px at an SNR of 0.02, K = 20. `ralib neighbours` averages the 50 nearest neighbours of
200 particles; 20 of these averages, chosen so that together they hold the most particles, are given to `ralib classify
--references`. The same set and seed without references stand beside. Scores are those of classify_scores.py. What lies
in the work folder already is not made again. Goes to bench/results/neighbour-start-<device>.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classify_scores import scores
from clean_sets import simulate_set
from ralib import io
from ralib.benchmarks.record import record, write_record
from ralib.cli import main as ralib
from ralib.results.run_directory import run_poses

PARTICLES, CLASSES = 2000, 20


def main() -> int:
    """Both starts on every set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ralib_bench_neighbour_start")
    parser.add_argument("--note", help="added to the record")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = [row for seed in range(options.seeds) for row in both_starts(options.work, seed)]
    more = {"note": options.note} if options.note else {}
    title = "Averages of neighbours as references, 2,000 particles of 90 px at an SNR of 0.02"
    print("wrote", write_record(options.out, record("neighbour-start", torch.device("cpu"), rows, title=title, **more)))
    return 0


def both_starts(work: Path, seed: int) -> list[dict[str, Any]]:
    """Rows of one set: the median view angle and its 90th percentile, with the neighbours and without."""
    made, near = work / f"set{seed}", work / f"near{seed}"
    stack, references = str(made / "particles.star"), work / f"references{seed}.mrcs"
    if not made.exists():
        simulate_set(made, PARTICLES, 1000 + seed, {"--snr": 0.02})
    command(near, "neighbours", stack, str(near), "--count", "50", "--averages", "200", "--device", "cpu")
    held = write_references(near, references)
    alone, begun = work / f"alone{seed}", work / f"begun{seed}"
    common = ["--seed", str(seed), "--device", "cpu", "--no-report"]
    command(alone, "classify", stack, str(alone), "--classes", str(CLASSES), *common)
    command(begun, "classify", stack, str(begun), "--references", str(references), *common)
    truth = dict(np.load(made / "truth.npz"))
    before, after = (scores(run_poses(folder, CLASSES), truth) for folder in (alone, begun))
    rows = []
    for name, words in (("view_deg", "view angle, median"), ("view_p90_deg", "view angle, 90th percentile")):
        case = f"seed {seed}, averages of neighbours as references: {words}"
        rows.append({"case": case, "ours": after[name], "unit": "deg", "other": f"without {before[name]:.1f}"})
        print(rows[-1], flush=True)
    return [*rows, {"case": f"seed {seed}: particles that the references hold", "ours": held, "better": "higher"}]


def command(made: Path, *words: str) -> None:
    """Run a command of ralib unless what it makes is there."""
    if not made.exists() and ralib(list(words)) != 0:
        raise SystemExit(f"ralib {' '.join(words)} failed")


def write_references(near: Path, out: Path) -> int:
    """The best average, then those whose members add the most; the number of particles that they hold."""
    rows = np.loadtxt(near / "averages.txt").astype(int)
    found = np.load(near / "neighbours.npz")
    members = [{*found["index"][row].tolist(), row} for row in rows]
    quality = found["correlation"][rows].mean(1)
    taken = [int(quality.argmax())]
    while len(taken) < CLASSES:
        held = set().union(*(members[i] for i in taken))
        gain = [-1 if i in taken else len(members[i] - held) + 1e-3 * quality[i] for i in range(len(rows))]
        taken.append(int(np.argmax(gain)))
    averages = near / "averages.mrcs"
    io.write_mrcs(out, io.open_images(averages)[taken], io.open_particles(averages).pixel_size_A)
    return len(set().union(*(members[i] for i in taken)))


if __name__ == "__main__":
    raise SystemExit(main())
