"""Whether views were told apart: what `pose_support` says of classes, and what the truth says of them.

    PYTHONPATH=src OMP_NUM_THREADS=1 python3 bench/pose_support.py --shared ../shared [--cases ace2 ...] [--seeds 3]

Sets of the simulator that stands with the shared data, of its molecules and of two made here: an octahedral shell, at
three strengths of its signal, and a ball of random residues. Every set is classified by `ralib classify` without
options but the number of classes and the seed. The median angle between a true particle's view and the mean view of its
class, symmetry mates allowed, is compared with that of as many particles drawn at random. Counted are classes of mostly
true particles (junk share told below one half, 15 true particles at least):

    apart      views at most half as far apart as by chance
    mixed      views at least three quarters as far apart as by chance
    told       those that are told "its views were probably not told apart"; round: those that are told round
    auc        of the class score, apart against mixed classes, and of the score as it is without pose support
    kept_true, class_auc     of the automatic selection and of "mostly true particles", which do not ask it
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from hard_scores import class_spread, in_class_frame, symmetry_rotations
from ralib.benchmarks.record import record, write_record
from ralib.classification.quality import BLURRED, NOT_TOLD_APART, blurs_views, is_round
from ralib.cli import main as ralib
from ralib.results.run_directory import run_poses
from ralib.results.run_record import read_record
from verdict import judged_run

_COMMON = "--n 1500 --bin 2 --crowd .5 --gradient .03"
_WEAK = "--box 64 --apix 3.6 --junk .08 --shift-sd 2 --defocus .8,2.4 --height 200"
SETS: dict[str, dict[str, str]] = {
    "ace2": {
        "volumes": "ace2_7ddo.npz",
        "options": "--box 64 --apix 3 --junk .3 --eff .75 --dose 50",
    },
    "ace2 weak": {"volumes": "ace2_7ddo.npz", "options": "--box 56 --apix 3.2 --junk .15 --defocus .9,2.4 --eff .5"},
    "pol2": {"volumes": "pol2_open0.npz,pol2_open16.npz", "options": "--flex --box 72 --apix 3.4 --junk .2"},
    "t20s": {"volumes": "t20s_3j9i.npz", "options": "--box 72 --apix 3.8 --junk .1", "symmetry": "D7:16"},
    "30S": {"volumes": "ribo30S.npz", "options": "--box 72 --apix 4 --junk .2"},
    "shell": {"volumes": "shell", "options": f"{_WEAK} --eff .55 --dose 30 --ice 300,700", "symmetry": "O"},
    "shell weak": {"volumes": "shell", "options": f"{_WEAK} --eff .45 --dose 28 --ice 400,800", "symmetry": "O"},
    "shell weaker": {"volumes": "shell", "options": f"{_WEAK} --eff .35 --dose 25 --ice 500,900", "symmetry": "O"},
    "ball": {"volumes": "ball", "options": "--box 56 --apix 3 --junk .15"},
}
CLASSES = 15


def main() -> int:
    """Make, classify and compare every set with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.cases:
            for seed in range(options.seeds):
                folder = _made(name, seed, Path(scratch), options.shared / "hard", options.device)
                runs.append({"case": name, "seed": seed} | _run(name, folder, seed, options.device))
                print(json.dumps({key: value for key, value in runs[-1].items() if key != "classes"}), flush=True)
    result = record("pose-support", torch.device(options.device), table_rows(runs), runs=runs)
    print("wrote", write_record(options.out, result))
    return 0


def _made(name: str, seed: int, scratch: Path, hard: Path, device: str) -> Path:
    """The folder of a set; each seed has particles of its own."""
    folder, volumes = scratch / f"{name.replace(' ', '-')}-{seed}", []
    for volume in SETS[name]["volumes"].split(","):
        path = hard.resolve() / "volumes" / volume
        if volume in ("shell", "ball"):
            path = scratch / f"{volume}.npz"
            np.savez(path, **_phantom(volume))
        volumes.append(str(path))
    words = [sys.executable, str(hard / "make_hard.py"), str(folder), "--vols", ",".join(volumes)]
    words += [*_COMMON.split(), *SETS[name]["options"].split(), "--seed", str(1400 + seed), "--device", device]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return folder


def _phantom(name: str) -> dict[str, Any]:
    """A volume as the simulator reads it: random residues, 4.2 A apart, of a shell's octahedral unit or a ball."""
    generator, place, spacing = np.random.default_rng(5), np.empty((0, 3)), 1.5
    tried = generator.uniform(-66, 66, (120000, 3))
    radius = np.linalg.norm(tried, axis=1)
    wave = np.cos(tried @ generator.normal(size=(3, 40)) * 0.15 + generator.uniform(0, 6.28, 40)).sum(1) / 4.5
    if name == "shell":
        unit = (tried[:, 2] > abs(tried[:, 0])) & (tried[:, 2] > abs(tried[:, 1]))
        tried = tried[(radius > 40) & (radius < 64) & unit & (abs(tried[:, 1]) < tried[:, 0]) & (wave > -0.3)]
    else:
        tried = tried[(radius < 40) & (wave > -0.3)]
    for point in tried:
        if not len(place) or np.linalg.norm(place - point, axis=1).min() > 4.2:
            place = np.vstack([place, point])
    if name == "shell":
        place = np.einsum("sij,nj->sni", symmetry_rotations("O"), place).reshape(-1, 3)
    line = (np.arange(96) - 48) * spacing
    volume = np.zeros((96, 96, 96))
    for x, y, z in place:
        near = [np.exp(-0.5 * ((line - at) / 2.2) ** 2) for at in (z, y, x)]
        volume += np.einsum("i,j,k->ijk", *near)
    volume *= 66.8 * 0.11 * len(place) / (volume.sum() * spacing**3)  # the integral of real maps per kDa and residue
    step = float(abs(volume).max() / 32000)
    return {"q": np.round(volume / step).astype(np.int16), "s": 2000 * step, "va": spacing}


def _run(name: str, folder: Path, seed: int, device: str) -> dict[str, Any]:
    """One classification, class by class beside the truth."""
    run, truth = folder / "run", dict(np.load(folder / "truth.npz"))
    words = ["classify", str(folder / "particles.star"), str(run), "--classes", str(CLASSES), "--no-report"]
    if ralib([*words, "--seed", str(seed), "--device", device]) != 0:
        raise SystemExit(f"classify failed on {folder}")
    rows = read_record(run)["classes"]
    poses, symmetry = run_poses(run, len(rows)), symmetry_rotations(SETS[name].get("symmetry", "C1"))
    x, view, _ = in_class_frame(poses, truth)
    index, good = poses.class_index.numpy(), truth["junk"] == 0
    by_chance = np.random.default_rng(seed)
    classes = []
    for k, row in enumerate(rows):
        members = np.nonzero((index == k) & good)[0]
        if row["junk"] >= 0.5 or len(members) < 15:
            continue
        row |= {key: np.nan for key in ("pose_support", "round_support") if row[key] is None}
        others = by_chance.choice(np.nonzero(good)[0], len(members), replace=False)
        turned = _turned(truth["R"][others], by_chance)
        angle, turn = (float(np.median(of)) for of in class_spread(symmetry, view[members], x[members]))
        ratio = angle / float(np.median(class_spread(symmetry, *turned)[0]))
        without = 0.5 + (row["score"] - 0.5) / (BLURRED if blurs_views(row) else 1)
        classes.append({
            "class": row["class"], "true": len(members), "view_deg": angle, "of_chance": ratio, "turn_deg": turn,
            "pose_support": row["pose_support"], "round_support": row["round_support"], "score": row["score"],
            "without": without, "told": NOT_TOLD_APART in row["verdict"], "round": is_round(row),
            "good": row["verdict"].startswith("good"),
        })  # fmt: skip
    return judged_run(run, truth["junk"]) | {"classes": classes}


def _turned(rotation: np.ndarray, by_chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Views and directions of x (n, 3) of particles in an in-plane rotation and mirror by chance."""
    angle = by_chance.uniform(0, 2 * np.pi, len(rotation))[:, None]
    mirror = by_chance.choice([-1.0, 1.0], (len(rotation), 1))
    return mirror * rotation[:, 2], mirror * (np.cos(angle) * rotation[:, 0] - np.sin(angle) * rotation[:, 1])


def table_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a figure for each set, and for all."""
    rows: list[dict[str, Any]] = []
    for case in [*dict.fromkeys(run["case"] for run in runs), "all sets"]:
        group = [run for run in runs if case in (run["case"], "all sets")]
        classes = [row for run in group for row in run["classes"]]
        apart = [row for row in classes if row["of_chance"] <= 0.5]
        mixed = [row for row in classes if row["of_chance"] >= 0.75]
        words = f"{case}: classes whose views are "
        for name, among in (("apart", apart), ("mixed", mixed)):
            for key in ("told", "round", "good"):
                if among:
                    share = 100 * float(np.mean([row[key] for row in among]))
                    rows.append({"case": f"{words}{name} ({len(among)}), {key}", "ours": share, "unit": "%"})
        if apart and mixed:
            true = [1] * len(apart) + [0] * len(mixed)
            for key, what in (("score", "class score"), ("without", "class score without pose support")):
                auc = float(roc_auc_score(true, [row[key] for row in (*apart, *mixed)]))
                rows.append({"case": f"{case}: AUC of the {what}, apart against mixed", "ours": auc, "unit": ""})
        for key, what in (("kept_true", "true particles that --auto keeps"), ("class_auc", "AUC of mostly true")):
            values = [run[key] for run in group if key in run]
            if values:
                rows.append({"case": f"{case}: {what}, least of {len(values)}", "ours": min(values), "unit": ""})
    return [row | {"better": "higher", "readme": False} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
