"""Fit the learned verdict on simulated sets whose truth is known, and show what it is worth on molecules left out.

    export PYTHONPATH=src
    python3 bench/train_verdict.py measure ace2=SETS/ace2_30 t20s=SETS/t20s_10 ... --out TABLES [--device cuda]
    python3 bench/train_verdict.py fit TABLES/*.npz [--write] [--json bench/results/verdict-left-out.json]
    python3 bench/train_verdict.py models TABLES/*.npz --out MODELS
    python3 bench/train_verdict.py measure ace2=SETS/ace2_30 ... --models MODELS --out RUNS [--device cuda]
    python3 bench/train_verdict.py judge RUNS/*.npz [--json bench/results/verdict-left-out-runs.json]

`measure` classifies each set (particles.star, truth.npz with `junk`: 0 good, else its kind) and keeps what the model
looks at; MOLECULE= says what the set shows ("none" for noise and ice): all its sets are left out together. `fit`
leaves out one molecule after the other, fits trees, a logistic regression on the same features, and rules without any
fit, and judges the molecule that was left out. --write then fits on all and replaces the model in the package.

The model also decides what a classification sets aside. `models` fits one without each molecule, `measure --models`
classifies every set with the one that does not know its molecule, and `judge` tells what those runs say.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ralib import io
from ralib.benchmarks.record import record
from ralib.classification import junk_model
from ralib.classification.classifier import Classifier
from ralib.classification.junk_evidence import oddness
from ralib.classification.junk_model import (
    MODEL_FILE,
    NAMES,
    BoostedTrees,
    Evidence,
    features,
    junk_log_odds,
    load_model,
)
from verdict import judged

TREES: dict[str, Any] = {
    "max_iter": 120,
    "max_leaf_nodes": 10,
    "learning_rate": 0.08,
    "min_samples_leaf": 60,
    "l2_regularization": 5.0,
    "max_features": 0.3,
    "random_state": 0,
}
"""Few leaves and many particles in each: the model is to hold for molecules it has not seen."""

WAYS = ("trees", "logistic", "rules")

FIGURES: dict[str | int, tuple[str, float | None, str]] = {
    "auc": ("AUC of `junk`", 0.9, "higher"),
    6: ("AUC of `junk` for gold beads", 0.97, "higher"),
    5: ("AUC of `junk` for ice crystals", 0.97, "higher"),
    3: ("AUC of `junk` for carbon edges or contamination", 0.97, "higher"),
    1: ("AUC of `junk` for empty ice", 0.97, "higher"),
    2: ("AUC of `junk` for particles off centre", None, "higher"),
    4: ("AUC of `junk` for aggregates", None, "higher"),
    7: ("AUC of `junk` for two that overlap", None, "higher"),
    8: ("AUC of `junk` for broken particles", None, "higher"),
    "class_auc": ("AUC of the class score", 0.97, "higher"),
    "right": ("junk among those given more than 0.9", 0.85, "higher"),
    "called_good": ("good particles given more than 0.5", 0.05, "lower"),
    "kept_true": ("true particles that the automatic selection keeps", 0.95, "higher"),
    "junk_ratio": ("share of junk after the selection over before", 0.333, "lower"),
    "caught": ("junk below 95% of the good particles", None, "higher"),
}
"""Figures of `verdict.judged`, or kinds of junk by number: words, goal, and which way is better."""

RUNS_TITLE = "The verdict of runs whose model does not know the molecule"

RUNS_NOTE = (
    "Each set is classified anew with trees fitted on the sets of all other molecules: they decide what is set aside "
    "as junk and what the verdict says. Junk is in a class of its own where there is enough."
)

TITLE = "The verdict on molecules it was not fitted on"

NOTE = (
    "Each molecule is judged by a model fitted on all others; sets without any molecule are left out of the table. "
    "Trees are what the package holds, the logistic regression sees the same features, rules are the largest deviation "
    "without any fit. The sets' generators lie outside the repository."
)

WRONG = 0.05
"""Share of all particles that are taken for usual by mistake while features are made for training."""


@dataclass(frozen=True)
class Table:
    """One set: its evidence and the true kinds of junk (n,)."""

    name: str
    molecule: str
    evidence: Evidence
    junk: np.ndarray


def measure(options: argparse.Namespace) -> None:
    """Tables of evidence, one file a set."""
    options.out.mkdir(parents=True, exist_ok=True)
    for given in options.sets:
        molecule, folder = given.split("=", 1)
        target = options.out / f"{Path(folder).name}.npz"
        particles, truth = io.open_particles(Path(folder) / "particles.star"), np.load(Path(folder) / "truth.npz")
        run = Classifier(n_classes=options.classes, seed=options.seed, device=options.device)
        with judged_by(options.models and options.models / f"{molecule}.npz"):
            found = run.fit(particles).evidence_
        np.savez_compressed(
            target, molecule=molecule, junk=truth["junk"], image=found.image.astype(np.float32),
            fit=found.fit.astype(np.float32), scalars=found.scalars.astype(np.float32),
            classes=found.classes.astype(np.float32), index=found.index,
            p=run.result_.particle_scores["junk"], shown=run.poses_.class_index.numpy(),
        )  # fmt: skip
        print(f"{target}: {len(particles)} particles", flush=True)


@contextmanager
def judged_by(model: Path | None) -> Iterator[None]:
    """Classify with the model of a file in place of the package's."""
    if model is None:
        yield
        return
    trees = load_model(model)
    with mock.patch.object(junk_model, "load_model", return_value=trees):
        yield


def read(path: Path) -> Table:
    """A table by `measure`."""
    with np.load(path, allow_pickle=False) as saved:
        names = ("image", "fit", "scalars", "classes", "index")
        return Table(path.stem, str(saved["molecule"]), Evidence(*(saved[n] for n in names)), saved["junk"])


def examples(tables: list[Table], rng: np.random.Generator, most: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels: as at first sight, and as when the true particles say what is usual.

    At most `most` particles of every set.
    """
    rows, labels = [], []
    for table in tables:
        good = table.junk == 0
        views = [table.evidence.index >= 0]
        if good.sum() > 50:
            views.append(good | (rng.random(len(good)) < WRONG))
        for usual in views:
            some = rng.permutation(len(good))[:most]
            rows.append(features(table.evidence, usual).numpy()[some])
            labels.append(~good[some])
    return np.concatenate(rows), np.concatenate(labels)


def grown(x: np.ndarray, y: np.ndarray) -> BoostedTrees:
    """Trees fitted to the examples, as arrays, with only the features that any of them asks for."""
    fitted = HistGradientBoostingClassifier(**TREES).fit(x, y)
    nodes = [stage[0].nodes for stage in fitted._predictors]
    size = max(len(n) for n in nodes)
    asked = sorted({int(f) for n in nodes for f in n["feature_idx"][n["is_leaf"] == 0]})
    column = {f: i for i, f in enumerate(asked)}
    shape = (len(nodes), size)
    feature, left, right = np.full(shape, -1, np.int16), np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    threshold, value = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for t, tree in enumerate(nodes):
        inner = tree["is_leaf"] == 0
        feature[t, : len(tree)][inner] = [column[int(f)] for f in tree["feature_idx"][inner]]
        threshold[t, : len(tree)][inner] = tree["num_threshold"][inner]
        left[t, : len(tree)], right[t, : len(tree)] = tree["left"], tree["right"]
        value[t, : len(tree)][~inner] = tree["value"][~inner]
    baseline = float(np.ravel(fitted._baseline_prediction)[0])
    names = tuple(NAMES[f] for f in asked)
    return BoostedTrees(feature, threshold, left, right, value, baseline, float(y.mean()), names)


class Logistic:
    """A logistic regression in the place of trees."""

    names = NAMES

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.prior = float(y.mean())
        self.fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=400)).fit(x, y)

    def log_odds(self, x: torch.Tensor) -> np.ndarray:
        """Logarithm of the odds (n,)."""
        odds: np.ndarray = self.fitted.decision_function(x.numpy())
        return odds


def left_out(tables: list[Table]) -> list[dict[str, Any]]:
    """Rows of what each way is worth on the sets of each molecule, fitted without that molecule."""
    rows = []
    for molecule in sorted({t.molecule for t in tables} - {"none"}):
        x, y = examples([t for t in tables if t.molecule != molecule], np.random.default_rng(0), most=600)
        ways = {"trees": grown(x, y), "logistic": Logistic(x, y)}
        for table in (t for t in tables if t.molecule == molecule):
            for way, model in ways.items():
                odds = junk_log_odds(table.evidence, model)  # type: ignore[arg-type]
                rows.append({"set": table.name, "molecule": molecule, "way": way} | _judged(table, odds))
            rows.append(
                {"set": table.name, "molecule": molecule, "way": "rules"} | _judged(table, oddness(table.evidence))
            )
            for row in rows[-3:]:
                print(json.dumps(row), flush=True)
    return rows


def _judged(table: Table, odds: np.ndarray) -> dict[str, Any]:
    return judged(1 / (1 + np.exp(-odds)), table.junk, table.evidence.index)


def table_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the README's table: mean and worst over the sets of every figure, way by way."""
    told = []
    for figure, (words, goal, better) in FIGURES.items():
        for how in ("mean", "worst"):
            for way in WAYS:
                values = [_figure(r, figure) for r in rows if r["way"] == way]
                known = [v for v in values if v is not None]
                if not known:
                    continue
                value = np.mean(known) if how == "mean" else min(known) if better == "higher" else max(known)
                row: dict[str, Any] = {
                    "case": f"{words}, {how} of {len(known)} sets, {way}",
                    "ours": round(float(value), 3),
                }
                row |= {"unit": "", "better": better}
                if way == "trees" and goal is not None:
                    row |= {"goal": goal, "readme": isinstance(figure, str)}
                told.append(row)
    return told


def _figure(row: dict[str, Any], figure: str | int) -> float | None:
    """A figure by name, or the AUC of one kind of junk by its number."""
    return row.get("auc_kinds", {}).get(figure) if isinstance(figure, int) else row.get(figure)


def fit(options: argparse.Namespace) -> None:
    """Leave-one-molecule-out, and the model for the package."""
    tables = [read(path) for path in options.tables]
    if not options.no_left_out:
        rows = left_out(tables)
        table = table_rows(rows)
        print(*(f"{row['ours']:6.3f}  {row['case']}" for row in table), sep="\n")
        if options.json:
            result = record("verdict-left-out", torch.device("cpu"), table, title=TITLE, note=NOTE, sets=rows)
            io.write_json(options.json, result)
    if options.write:
        save(MODEL_FILE, tables)
        load_model.cache_clear()


def save(path: Path, tables: list[Table]) -> None:
    """Fit the trees on all examples of some tables and write them to a file."""
    trees = grown(*examples(tables, np.random.default_rng(0)))
    names = ("feature", "threshold", "left", "right", "value")
    saved = {name: getattr(trees, name) for name in (*names, "baseline", "prior")}
    np.savez_compressed(path, **saved, names=np.array(trees.names))
    print(f"wrote {path}: {len(trees.feature)} trees, {path.stat().st_size} bytes", flush=True)


def models(options: argparse.Namespace) -> None:
    """A model without each molecule."""
    options.out.mkdir(parents=True, exist_ok=True)
    tables = [read(path) for path in options.tables]
    for molecule in sorted({t.molecule for t in tables}):
        save(options.out / f"{molecule}.npz", [t for t in tables if t.molecule != molecule])


def judge(options: argparse.Namespace) -> None:
    """What runs by `measure --models` say, against the truth."""
    rows = []
    for path in options.runs:
        with np.load(path, allow_pickle=False) as run:
            if (run["junk"] > 0).any() and str(run["molecule"]) != "none":
                row = {"set": path.stem, "molecule": str(run["molecule"]), "way": "trees"}
                rows.append(row | judged(run["p"], run["junk"], run["shown"]))
    table = [row | {"case": row["case"].replace("sets, trees", "sets, own runs")} for row in table_rows(rows)]
    print(*(f"{row['ours']:6.3f}  {row['case']}" for row in table), sep="\n")
    if options.json:
        result = record("verdict", torch.device(options.device), table, title=RUNS_TITLE, note=RUNS_NOTE, sets=rows)
        io.write_json(options.json, result)


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.add_argument("sets", nargs="+", help="MOLECULE=FOLDER")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--classes", type=int, default=15)
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--device", default="cpu")
    command.add_argument("--models", type=Path, help="by `models`; otherwise the package's model judges")
    command.set_defaults(run=measure)
    command = commands.add_parser("models")
    command.add_argument("tables", nargs="+", type=Path)
    command.add_argument("--out", type=Path, required=True)
    command.set_defaults(run=models)
    command = commands.add_parser("judge")
    command.add_argument("runs", nargs="+", type=Path)
    command.add_argument("--device", default="cpu", help="on which they were run")
    command.add_argument("--json", type=Path)
    command.set_defaults(run=judge)
    command = commands.add_parser("fit")
    command.add_argument("tables", nargs="+", type=Path)
    command.add_argument("--write", action="store_true")
    command.add_argument("--no-left-out", action="store_true")
    command.add_argument("--json", type=Path)
    command.set_defaults(run=fit)
    options = parser.parse_args()
    options.run(options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
