"""From which probability on junk leaves the averages while classes are made: thresholds, on molecules left out.

    export PYTHONPATH=src
    python3 bench/junk_aside.py measure RECIPES --models MODELS --out RUNS [--shared ../shared] [--jobs 2]
    python3 bench/junk_aside.py judge RUNS/*.npz [--json bench/results/junk-aside-amd-epyc-1t.json]

RECIPES are lines of `verdict_sets.py list`, MODELS the trees by `train_verdict.py fit --models`: each set is judged by
those fitted without its molecule. A run is forked where it looks for junk, so that all thresholds have the same classes
before them; `never` sets nothing aside.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from hard_scores import hard_scores
from ralib import io
from ralib.benchmarks.record import record
from ralib.classification import examination
from ralib.classification.classifier import Classifier
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.state import State
from train_verdict import judged_by
from verdict import judged
from verdict_sets import make

NEVER = 0.99999
"""A threshold that no probability exceeds: odds end before."""

THRESHOLDS = (0.9, 0.7, 0.5, NEVER)

SYMMETRY = {
    "t20s": "D7:16", "tetramer": "D2:0", "ring": "C6", "spike": "C3", "channel": "C4", "clamp": "C2", "shell": "O",
}  # fmt: skip
"""Point groups of the molecules of verdict_sets.py, where there is any."""

FIGURES = {
    "kept_true": ("true particles that the automatic selection keeps", "higher"),
    "junk_ratio": ("share of junk after the selection over before", "lower"),
    "both": ("sets that keep 95% and leave a third of the junk's share", "higher"),
    "junk_classes": ("classes of mostly junk", "lower"),
    "class_auc": ("AUC of the class score", "higher"),
    "view_deg": ("view angle within classes, deg", "lower"),
}

TITLE = "Junk set aside while classes are made"

NOTE = (
    "Sets by verdict_sets.py, classified once up to where junk is looked for and from there with each threshold, by "
    "trees that know none of the set's molecules. View angles are those of sets of one molecule."
)


def _run_with_each(recipe: dict[str, Any], folder: Path, options: argparse.Namespace) -> None:
    """Classify a set, forked for each threshold where junk is looked for. Ends this process, and those forked."""
    cleaned, own = ClassificationSchedule._cleaned, NEVER

    def cleaned_with_each(schedule: ClassificationSchedule, state: State) -> bool:
        nonlocal own
        for own in THRESHOLDS:
            if (child := os.fork()) == 0:
                examination.PROBABLY = own  # type: ignore[attr-defined]
                return cleaned(schedule, state)
            os.waitpid(child, 0)
        os._exit(0)

    particles, truth = io.open_particles(folder / "particles.star"), dict(np.load(folder / "truth.npz"))
    with (
        judged_by(options.models / f"{recipe['molecule']}.npz"),
        mock.patch.object(ClassificationSchedule, "_cleaned", cleaned_with_each),
    ):
        run = Classifier(n_classes=recipe["classes"], seed=1).fit(particles)
    view_deg = np.nan
    if "+" not in recipe["molecule"]:
        view_deg = hard_scores(run.poses_, truth, SYMMETRY.get(recipe["molecule"], "C1"))["view_deg"]
    np.savez(
        options.out / f"{recipe['name']}_{own}.npz", set=recipe["name"], molecule=recipe["molecule"], least=own,
        p=run.result_.particle_scores["junk"], junk=truth["junk"], index=run.poses_.class_index.numpy(),
        score=[row["score"] for row in run.classes_], view_deg=view_deg,
    )  # fmt: skip
    os._exit(0)


def measure(options: argparse.Namespace) -> None:
    """Run every set with every threshold."""
    options.out.mkdir(parents=True, exist_ok=True)
    recipes = [json.loads(line) for line in options.recipes.read_text().splitlines()]
    with ProcessPoolExecutor(options.jobs, get_context("fork")) as pool:
        list(pool.map(_alone, [(recipe, options) for recipe in recipes]))


def _alone(given: tuple[dict[str, Any], argparse.Namespace]) -> None:
    """Make a set, and run it in a child, which may end on its own."""
    recipe, options = given
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make(recipe, Path(scratch), options.shared)
        child = get_context("fork").Process(target=_run_with_each, args=(recipe, folder, options))
        child.start()
        child.join()
    print(f"{recipe['name']}: {len(list(options.out.glob(recipe['name'] + '_*.npz')))} runs", flush=True)


def judge(options: argparse.Namespace) -> None:
    """Means over the sets, by threshold."""
    rows: list[dict[str, Any]] = []
    for path in options.runs:
        with np.load(path, allow_pickle=False) as run:
            row = judged(run["p"], run["junk"], run["index"], run["score"])
            if row["junk_before"]:
                row["both"] = float(row["kept_true"] >= 0.95 and 3 * row["junk_ratio"] <= 1)
            if np.isfinite(run["view_deg"]):
                row["view_deg"] = float(run["view_deg"])
            rows.append({"set": str(run["set"]), "molecule": str(run["molecule"]), "least": float(run["least"])} | row)
    table = []
    for two, words in ((False, "one molecule"), (True, "two molecules")):
        for figure, (what, better) in FIGURES.items():
            for least in THRESHOLDS:
                some = [row for row in rows if row["least"] == least and ("+" in row["molecule"]) == two]
                if known := [row[figure] for row in some if figure in row]:
                    when = "nothing set aside" if least == NEVER else f"set aside above {least}"
                    case = f"{what}, mean of {len(known)} sets of {words}, {when}"
                    table.append({"case": case, "ours": round(float(np.mean(known)), 3), "unit": "", "better": better})
    print(*(f"{row['ours']:7.3f}  {row['case']}" for row in table), sep="\n")
    if options.json:
        io.write_json(options.json, record("junk-aside", torch.device("cpu"), table, title=TITLE, note=NOTE, sets=rows))


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.add_argument("recipes", type=Path)
    command.add_argument("--models", type=Path, required=True)
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    command.add_argument("--jobs", type=int, default=2)
    command.set_defaults(run=measure)
    command = commands.add_parser("judge")
    command.add_argument("runs", nargs="+", type=Path)
    command.add_argument("--json", type=Path)
    command.set_defaults(run=judge)
    options = parser.parse_args()
    options.run(options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
