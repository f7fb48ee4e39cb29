"""Fit the learned verdict on simulated sets whose truth is known, and show what it is worth on molecules left out.

    export PYTHONPATH=src
    python3 bench/train_verdict.py measure ace2=SETS/ace2_30 t20s=SETS/t20s_10 ... --out TABLES [--device cuda]
    python3 bench/train_verdict.py fit TABLES/*.npz [--write] [--models MODELS] [--json bench/results/NAME.json]
    python3 bench/train_verdict.py measure ace2=SETS/ace2_30 ... --models MODELS --out RUNS [--device cuda]
    python3 bench/train_verdict.py judge RUNS/*.npz [--json bench/results/verdict-left-out-runs.json]

`measure` classifies each set (particles.star, truth.npz with `junk`: 0 good, else its kind) and keeps what the model
looks at; MOLECULE= says what the set shows ("none" for noise and ice, "ace2+t20s" for two): all its sets are left out
together, and so are those of two molecules of which it is one. `fit` leaves out one after the other, fits trees, a
logistic regression on the same features, and rules without any fit, and judges the sets that were left out, the
package's model beside them. --write then fits on all and replaces the model in the package. verdict_sets.py makes sets.

The model also decides what a classification sets aside. `fit --models` keeps those fitted without each molecule,
`measure --models` classifies every set with the one that does not know its molecule, `judge` tells what those runs say.
"""

from __future__ import annotations

import argparse
import itertools
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
from ralib.results.automatic_selection import junk_limit
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

WAYS = ("trees", "logistic", "rules", "package")

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
    "kept_least": ("true particles kept of that of two molecules of which least is kept", None, "higher"),
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
    "Each molecule, and each set of two, is judged by trees fitted on the sets that show none of it. The logistic "
    "regression sees the same features, rules are the largest deviation without any fit; package is the model that the "
    "package held before, which knows some of these molecules from other sets. Sets by verdict_sets.py, seeds 1 and 2, "
    "those that no run believed left out; what the trees keep more of they pay with a larger share of junk."
)

OF_A_SET = 300
"""Particles of a set, at most, that are learned from: many sets teach more than many particles of one."""

OF_A_SET_LEFT_OUT = 120
"""The same where one molecule after the other is left out, and a fit is needed for each."""

EVIDENCE = "image", "fit", "scalars", "classes", "index"
"""Tables of `Evidence`, in its order."""

FEW = 10
"""True particles of a molecule from which on their share counts."""

WRONG = 0.05
"""Share of all particles that are taken for usual by mistake while features are made for training."""


@dataclass(frozen=True)
class Table:
    """One set: its evidence, the true kinds of junk (n,), and which of two molecules each image is of (n,)."""

    name: str
    molecule: str
    evidence: Evidence
    junk: np.ndarray
    species: np.ndarray

    def shows(self, molecule: str) -> bool:
        """Whether it shows a molecule, or one of two."""
        return not set(self.molecule.split("+")).isdisjoint(molecule.split("+"))


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
            target, molecule=molecule, junk=truth["junk"],
            **{name: getattr(found, name).cpu().numpy() for name in EVIDENCE},
            species=truth["species"] if "species" in truth else np.zeros(len(particles), int),
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
        evidence, junk = Evidence(*(torch.from_numpy(saved[name]) for name in EVIDENCE)), saved["junk"]
        species = saved["species"] if "species" in saved else np.zeros_like(junk)
        return Table(path.stem, str(saved["molecule"]), evidence, junk, species)


def examples(tables: list[Table], rng: np.random.Generator, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels: as at first sight, and as when the true particles say what is usual.

    At most `most` particles of every set.
    """
    rows, labels = [], []
    for table in tables:
        good = table.junk == 0
        views = [table.evidence.index.numpy() >= 0]
        if good.sum() > 50:
            views.append(good | (rng.random(len(good)) < WRONG))
        for usual in views:
            some = rng.permutation(len(good))[:most]
            rows.append(features(table.evidence, torch.from_numpy(usual)).numpy()[some])
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

    def log_odds(self, x: torch.Tensor) -> torch.Tensor:
        """Logarithm of the odds (n,)."""
        return torch.from_numpy(self.fitted.decision_function(x.numpy()))


def left_out(tables: list[Table], models: Path | None) -> list[dict[str, Any]]:
    """Rows of what each way is worth on the sets of each molecule, or two, fitted without any of it."""
    rng, rows = np.random.default_rng(0), []
    known = [examples([table], rng, most=OF_A_SET_LEFT_OUT) for table in tables]
    for group in together({t.molecule for t in tables} - {"none"}):
        others = [known[i] for i, t in enumerate(tables) if not any(t.shows(molecule) for molecule in group)]
        x, y = np.concatenate([x for x, _ in others]), np.concatenate([y for _, y in others])
        ways = {"trees": grown(x, y), "logistic": Logistic(x[::8], y[::8]), "package": load_model()}
        for molecule in group if models else ():
            write_trees(models / f"{molecule}.npz", ways["trees"])  # type: ignore[arg-type, operator]
        for table in (t for t in tables if t.molecule in group):
            odds = {way: junk_log_odds(table.evidence, model).numpy() for way, model in ways.items()}  # type: ignore[arg-type]
            odds["rules"] = oddness(table.evidence).numpy()
            for way in WAYS:
                rows.append({"set": table.name, "molecule": table.molecule, "way": way} | _judged(table, odds[way]))
                print(json.dumps(rows[-1]), flush=True)
    return rows


def together(labels: set[str], most: int = 4) -> list[list[str]]:
    """Labels that are left out in one go: those of sets of two molecules, and of the molecules in them.

    At most `most` molecules a group, so that enough remains to learn from.
    """
    groups: list[tuple[set[str], list[str]]] = []
    for label in sorted(labels, key=lambda label: ("+" not in label, label)):
        parts = set(label.split("+"))
        fitting = [group for group in groups if len(group[0] | parts) <= most]
        if not fitting:
            groups.append((set(), []))
            fitting = groups[-1:]
        best = min(fitting, key=lambda group: len(group[0] | parts) - len(group[0]))
        best[0].update(parts)
        best[1].append(label)
    return [members for _, members in groups]


def _judged(table: Table, odds: np.ndarray) -> dict[str, Any]:
    """`judged`, and what is kept of the molecule of which least is kept."""
    junk = 1 / (1 + np.exp(-odds))
    kept, good = junk <= junk_limit(junk), table.junk == 0
    groups = [good & (table.species == s) for s in np.unique(table.species)] if "+" in table.molecule else []
    known = [float(kept[group].mean()) for group in groups if group.sum() >= FEW]
    return judged(junk, table.junk, table.evidence.index.numpy()) | ({"kept_least": min(known)} if known else {})


def table_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the README's table: mean and worst over the sets of every figure, way by way."""
    told = []
    for what, two in (("one molecule", False), ("two molecules", True)):
        some = [row for row in rows if ("+" in row["molecule"]) == two]
        for figure, way in itertools.product(FIGURES, WAYS):
            known = [v for row in some if row["way"] == way and (v := _figure(row, figure)) is not None]
            if known:
                told += _mean_and_worst(figure, way, known, f"of {len(known)} sets of {what}")
    return told


def _mean_and_worst(figure: str | int, way: str, known: list[float], of: str) -> list[dict[str, Any]]:
    """Two rows of the table, and the share of sets that meet the goal where there is one."""
    words, goal, better = FIGURES[figure]
    values, rows = np.array(known), []
    worst = values.min() if better == "higher" else values.max()
    for how, value in (("mean", values.mean()), ("worst", worst)):
        row = {"case": f"{words}, {how} {of}, {way}", "ours": round(float(value), 3), "unit": "", "better": better}
        if way == "trees" and goal is not None:
            row |= {"goal": goal, "readme": isinstance(figure, str)}
        rows.append(row)
    if goal is not None:
        met = (values >= goal) if better == "higher" else (values <= goal)
        case = f"{words}: sets that meet {goal}, {of}, {way}"
        rows.append({"case": case, "ours": round(float(met.mean()), 3), "unit": "", "better": "higher"})
    return rows


def _figure(row: dict[str, Any], figure: str | int) -> float | None:
    """A figure by name, or the AUC of one kind of junk by its number."""
    if figure == "right" and row["junk_before"] == 0:
        return None  # none of it can be
    return row.get("auc_kinds", {}).get(figure) if isinstance(figure, int) else row.get(figure)


def fit(options: argparse.Namespace) -> None:
    """Leave-one-molecule-out, and the model for the package."""
    tables = [read(path) for path in options.tables]
    if not options.no_left_out:
        rows = left_out(tables, options.models)
        table = table_rows(rows)
        print(*(f"{row['ours']:6.3f}  {row['case']}" for row in table), sep="\n")
        if options.json:
            shown = [row for row in rows if row["way"] in ("trees", "package")]
            result = record("verdict-left-out", torch.device("cpu"), table, title=TITLE, note=NOTE, sets=shown)
            io.write_json(options.json, result)
    if options.write:
        write_trees(MODEL_FILE, grown(*examples(tables, np.random.default_rng(0), most=OF_A_SET)))
        load_model.cache_clear()


def write_trees(path: Path, trees: BoostedTrees) -> None:
    """Write trees to a file."""
    names = ("feature", "threshold", "left", "right", "value")
    saved = {name: getattr(trees, name) for name in (*names, "baseline", "prior")}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **saved, names=np.array(trees.names))
    print(f"wrote {path}: {len(trees.feature)} trees, {path.stat().st_size} bytes", flush=True)


def judge(options: argparse.Namespace) -> None:
    """What runs by `measure --models` say, against the truth."""
    rows = []
    for path in options.runs:
        with np.load(path, allow_pickle=False) as run:
            if (run["junk"] > 0).any() and str(run["molecule"]) != "none":
                row = {"set": path.stem, "molecule": str(run["molecule"]), "way": "trees"}
                rows.append(row | judged(run["p"], run["junk"], run["shown"]))
    table = [row | {"case": row["case"].replace(", trees", ", own runs")} for row in table_rows(rows)]
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
    command.add_argument("--models", type=Path, help="by `fit`; otherwise the package's model judges")
    command.set_defaults(run=measure)
    command = commands.add_parser("judge")
    command.add_argument("runs", nargs="+", type=Path)
    command.add_argument("--device", default="cpu", help="on which they were run")
    command.add_argument("--json", type=Path)
    command.set_defaults(run=judge)
    command = commands.add_parser("fit")
    command.add_argument("tables", nargs="+", type=Path)
    command.add_argument("--write", action="store_true")
    command.add_argument("--no-left-out", action="store_true")
    command.add_argument("--models", type=Path, help="folder for the trees without each molecule")
    command.add_argument("--json", type=Path)
    command.set_defaults(run=fit)
    options = parser.parse_args()
    options.run(options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
