"""Components, denoising, neighbours and states against the truth, ASPIRE beside where it has the method.

    PYTHONPATH=src python bench/analysis_truth.py --hard ../shared/hard --aspire aspire-venv/bin/python
        [--parts components denoise neighbours states clusters] [--device cpu] [--work FOLDER]

--hard is the folder of make_hard.py and its volumes, with which the sets are made (electrons counted, ice, neighbours
in the box; the poses are the true ones). Goes to bench/results/analysis-truth-<part>-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score, roc_auc_score

sys.path.insert(0, str(Path(__file__).parent))
from analysis_sets import chosen, make_views, open_hard, open_views
from ralib.analysis import (
    CovarianceWienerFilter,
    ProbabilisticPCA,
    StateSplit,
    TwoSDR,
    find_neighbours,
    gamma_sup,
    hdbscan,
    kmeans,
    split_states,
    standardised_scores,
)
from ralib.analysis.states import LINE_SIGNIFICANCE, SIGNIFICANCE
from ralib.benchmarks.record import record, write_record
from ralib.particles.aligned_images import align_particles
from ralib.types import ParticleSet

SIDE_VIEWS = {"a": "-0.438,-0.867,0.237", "b": "1,0,0", "c": "0,1,0"}
"""Directions across the clamp's movement; along 0,0,1 it moves the least."""
COMMON = ["--apix", "3", "--bin", "2", "--crowd", ".5", "--gradient", ".03", "--junk", "0"]
COMMON += ["--preferred", "1", "--pref-oneside", "--permic", "13"]
POL2 = "pol2_open0.npz,pol2_open16.npz"


class Sets:
    """Sets made on first use under a work folder, and ASPIRE's answers about them."""

    def __init__(self, hard: Path, work: Path, aspire: str | None) -> None:
        self.hard, self.work = hard.resolve(), work.resolve()
        self.aspire_python = None if aspire is None else str(Path(aspire).absolute())

    def one_view(self, volumes: str, axis: str, *, spread_deg: float, n: int, seed: int) -> Path:
        folder = self.work / f"{volumes[:5]}{volumes.count(',')}_{axis}_{spread_deg}_{n}_{seed}"
        if not (folder / "truth.npz").exists():
            files = ",".join(str(self.hard / "volumes" / name) for name in volumes.split(","))
            box, defocus, shift = ("100", "0.8,2.6", "3") if "30S" in volumes else ("80", "0.8,2.4", "2.5")
            command = [sys.executable, str(self.hard / "make_hard.py"), str(folder), "--vols", files, "--n", str(n)]
            command += ["--box", box, "--defocus", defocus, "--shift-sd", shift, "--seed", str(seed), *COMMON]
            command += [f"--pref-axis={axis}", "--pref-sd", str(spread_deg), *(["--flex"] if "," in volumes else [])]
            subprocess.run(command, check=True, capture_output=True)
        return folder

    def views(self, volume: str, n: int, *, box: int, pixel_size_A: float, snr: float, seed: int) -> Path:
        path = self.work / f"views_{volume}_{n}_{snr}_{seed}.npz"
        if not path.exists():
            map_ = self.hard / "volumes" / f"{volume}.npz"
            make_views(path, map_, n, box=box, pixel_size_A=pixel_size_A, snr=snr, seed=seed)
        return path

    def aspire(self, what: str, path: Path) -> dict[str, float]:
        if self.aspire_python is None:
            return {}
        script = str(Path(__file__).resolve().parent / "analysis_aspire.py")
        done = subprocess.run(
            [self.aspire_python, script, what, str(path.resolve())],
            cwd=self.work,
            capture_output=True,
            text=True,
            check=True,
        )
        return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])


def correlations(scores: np.ndarray, defocus: np.ndarray) -> float:
    """Largest |correlation| of the first three components with the defocus."""
    return max(abs(float(np.corrcoef(scores[:, k], defocus)[0, 1])) for k in range(min(3, scores.shape[1])))


def auc(scores: np.ndarray, state: np.ndarray) -> float:
    value = float(roc_auc_score(state, scores))
    return max(value, 1 - value)


def components(sets: Sets, device: str) -> list[dict[str, Any]]:
    """Within one view at true poses, 500 particles: defocus in no component, the clamp in the first."""
    rows = []
    cases = [(f"Pol II, side view {name}", POL2, axis, 0) for name, axis in SIDE_VIEWS.items()]
    cases += [("Pol II, side view a, spread by 4 degrees", POL2, SIDE_VIEWS["a"], 4)]
    cases += [("Pol II along the axis", POL2, "0,0,1", 0), ("30S, one state", "ribo30S.npz", "1,0,0", 0)]
    for name, volumes, axis, spread in cases:
        found = []
        for seed in range(3):
            particles, truth = open_hard(sets.one_view(volumes, axis, spread_deg=spread, n=500, seed=50 + seed))
            ours = ProbabilisticPCA(3, random_state=seed, device=device).fit_transform(particles)
            plain = TwoSDR(3, core_shape=(20, 20), random_state=seed, device=device)
            before = plain.fit_transform(align_particles(particles))
            line = [correlations(ours, truth["defocus"]), correlations(before, truth["defocus"])]
            if "," in volumes:
                line += [auc(ours[:, 0], truth["conf"]), auc(before[:, 0], truth["conf"])]
            found.append(line)
        worst = np.array(found)
        rows.append(
            {"case": f"{name}: |correlation| of the first three components with defocus, worst of 3 seeds"}
            | {"ours": float(worst[:, 0].max()), "other": f"2SDR {worst[:, 1].max():.2f}", "goal": 0.2}
        )
        if "," in volumes:
            goal = {"goal": 0.9} if spread == 0 and "side" in name else {}
            rows.append(
                {"case": f"{name}: AUC of the clamp in the first component, worst of 3 seeds", "better": "higher"}
                | {"ours": float(worst[:, 2].min()), "other": f"2SDR {worst[:, 3].min():.2f}"} | goal
            )  # fmt: skip
    return rows


def denoise(sets: Sets, device: str) -> list[dict[str, Any]]:
    """Relative error of restored images, the noise estimated; ASPIRE is told it."""
    rows = []
    for volume, pixel, snr, seed in (
        ("ribo30S", 4.5, 0.05, 1),
        ("pol2_open0", 3.75, 0.05, 2),
        ("ribo30S", 4.5, 0.02, 3),
    ):
        path = sets.views(volume, 3000, box=64, pixel_size_A=pixel, snr=snr, seed=seed)
        particles, truth = open_views(path)
        start = time.perf_counter()
        model = CovarianceWienerFilter(device=device)
        restored = model.images(model.fit_transform(particles)) * model.normalisation_.scale
        seconds = time.perf_counter() - start
        error = float(((restored - truth["clean"]) ** 2).sum() / (truth["clean"] ** 2).sum())
        beside = sets.aspire("cwf", path)
        rows.append(
            {"case": f"{volume}, SNR {snr}, 3,000 x 64 px: relative error of denoised images", "ours": error}
            | {"other": beside.get("error"), "goal": beside.get("error"), "seconds": seconds}
            | {"aspire_seconds": beside.get("seconds")}
        )
    return rows


def neighbours(sets: Sets, device: str) -> list[dict[str, Any]]:
    """Share of neighbours whose view lies within 10 degrees (or its mirror image does)."""
    rows = []
    for snr, seed in ((0.05, 11), (0.02, 12)):
        path = sets.views("ribo30S", 3000, box=64, pixel_size_A=4.5, snr=snr, seed=seed)
        particles, truth = open_views(path)
        beside = sets.aspire("rir", path)
        start = time.perf_counter()
        model = CovarianceWienerFilter(device=device)
        scores = standardised_scores(model, model.fit_transform(particles))
        found = find_neighbours(scores, model.order_, 50, device=device)
        seconds = time.perf_counter() - start
        near = np.abs(np.einsum("nc,nkc->nk", truth["view"], truth["view"][found.index])) > np.cos(np.deg2rad(10))
        for count in (10, 50):
            rows.append(
                {"case": f"30S, SNR {snr}, 3,000 particles: true neighbours among {count}", "better": "higher"}
                | {"ours": float(near[:, :count].mean()), "other": beside.get(str(count))}
                | {"goal": beside.get(str(count)), "seconds": seconds, "aspire_seconds": beside.get("seconds")}
            )
    return rows


def states(sets: Sets, device: str) -> list[dict[str, Any]]:
    """Classes that are caps of 6 and 12 degrees: two states, or one."""
    rows = [two_states(sets, device, *size, range(3)) for size in ((6, 500), (6, 150), (12, 500))]
    rows += small_class(sets, device)
    for molecule in HOMOGENEOUS:
        for size in ((6, 500), (6, 150), (12, 500), (12, 1500)):
            rows.append(one_state(sets, device, molecule, *size, range(8)))
    return rows


def states_new_seeds(sets: Sets, device: str) -> list[dict[str, Any]]:
    """The large classes of `states`, of seeds on which no threshold was chosen."""
    rows = [one_state(sets, device, molecule, 12, 1500, range(8, 12)) for molecule in HOMOGENEOUS[::-1]]
    return [*rows, two_states(sets, device, 12, 500, range(8, 11))]


HOMOGENEOUS = (("Pol II", "pol2_open0.npz", SIDE_VIEWS["a"]), ("30S", "ribo30S.npz", "1,0,0"))


def two_states(sets: Sets, device: str, cap: int, members: int, seeds: range) -> dict[str, Any]:
    """A class of Pol II with its clamp at 0 and 16 degrees."""
    found = [members_of_cap(sets, POL2, SIDE_VIEWS["a"], cap, members, seed) for seed in seeds]
    splits = [split_states(found[i][0], seed=seed, device=device) for i, seed in enumerate(seeds)]
    return (
        {"case": f"Pol II 0/16 degrees, {class_of(cap, members)}: purity of the states, worst of {len(seeds)} seeds"}
        | {"ours": min(purity(s.labels, conf) for s, (_, conf) in zip(splits, found, strict=True)), "goal": 0.8}
        | {"better": "higher", "states": [s.n_states for s in splits], "separation": [s.separation for s in splits]}
    )


def one_state(
    sets: Sets, device: str, molecule: tuple[str, str, str], cap: int, members: int, seeds: range
) -> dict[str, Any]:
    """A class of a molecule in one state."""
    (name, volume, axis), splits = molecule, []
    for seed in seeds:
        particles, _ = members_of_cap(sets, volume, axis, cap, members, seed)
        splits.append(split_states(particles, seed=seed, device=device))
    return (
        {"case": f"{name}, one state, {class_of(cap, members)}: seeds in which it is divided, of {len(seeds)}"}
        | {"ours": sum(s.n_states > 1 for s in splits), "goal": 0, "states": [s.n_states for s in splits]}
        | {"separation": [largest_separation(s) for s in splits]}
        | {"separation_of_significant": [largest_separation(s, significant=True) for s in splits]}
    )


def small_class(sets: Sets, device: str) -> list[dict[str, Any]]:
    """A hundred members: divided by the test, and what the two states would be if the test were left out."""
    found = [members_of_cap(sets, POL2, SIDE_VIEWS["a"], 6, 100, seed) for seed in range(3)]
    tested = [split_states(particles, seed=seed, device=device) for seed, (particles, _) in enumerate(found)]
    with patch.multiple(
        "ralib.analysis.states", SIGNIFICANCE=-np.inf, LINE_SIGNIFICANCE=-np.inf, LEAST_SEPARATION=(0.0, 0.0)
    ):
        untested = [split_states(particles, 2, seed=seed, device=device) for seed, (particles, _) in enumerate(found)]
    purities = [purity(s.labels, conf) for s, (_, conf) in zip(untested, found, strict=True)]
    what = f"Pol II 0/16 degrees, {class_of(6, 100)}"
    return [
        {"case": f"{what}: seeds in which it is divided, of 3", "ours": sum(s.n_states > 1 for s in tested)}
        | {"better": "higher", "states": [s.n_states for s in tested]},
        {"case": f"{what}, the test left out: purity of two states, worst of 3 seeds", "ours": min(purities)}
        | {"better": "higher", "purities": purities, "separation": [s.separation for s in untested]},
    ]


def class_of(cap_deg: int, members: int) -> str:
    return f"class of {cap_deg} degrees, up to {members:,} members"


def members_of_cap(
    sets: Sets, volumes: str, axis: str, cap_deg: float, members: int, seed: int
) -> tuple[ParticleSet, np.ndarray]:
    """Particles whose view lies within `cap_deg` of the axis, and their true states."""
    particles, truth = open_hard(sets.one_view(volumes, axis, spread_deg=8, n=1500, seed=60 + seed))
    towards = np.array([float(v) for v in axis.split(",")])
    angle = np.rad2deg(np.arccos(np.clip(truth["view"] @ towards / np.linalg.norm(towards), -1, 1)))
    index = np.flatnonzero(angle < cap_deg)[:members]
    return chosen(particles, index), truth["conf"][index]


def largest_separation(split: StateSplit, *, significant: bool = False) -> float | None:
    """Largest distance of the states tried, in standard deviations; of those that pass all tests but the distance's."""
    found = [
        f["separation"]
        for f in split.tried
        if not significant
        or (
            f["gain"] > SIGNIFICANCE * f["gain_error"]
            and f["gain_over_line"] > LINE_SIGNIFICANCE * f["gain_over_line_error"]
            and f["least_share"] > 0.05
        )
    ]
    return max(found, default=None)


def purity(labels: np.ndarray, truth: np.ndarray) -> float:
    """Share of members that belong to their state's most frequent true one."""
    return sum(int(np.bincount(truth[labels == k]).max()) for k in np.unique(labels)) / len(labels)


def clusters(sets: Sets, device: str) -> list[dict[str, Any]]:
    """Three views and a tenth of outliers, on CTF-corrected components: agreement of what is clustered."""
    parts, truth = [], []
    for k, axis in enumerate([*SIDE_VIEWS.values()]):
        particles, _ = open_hard(sets.one_view("pol2_open0.npz", axis, spread_deg=4, n=300, seed=70 + k))
        model = ProbabilisticPCA(5, random_state=0, device=device)
        scores = model.fit_transform(particles) / np.sqrt(model.explained_variance_)
        offset = np.zeros(5)
        offset[k] = 6.0
        parts.append(scores + offset)
        truth.append(np.full(len(scores), k))
    rng = np.random.default_rng(0)
    parts.append(rng.uniform(-12, 18, (100, 5)))
    features, labels = np.concatenate(parts), np.concatenate([*truth, np.full(100, -1)])
    methods: dict[str, Callable[[], np.ndarray]] = {
        "k-means, K=3": lambda: kmeans(features, 3),
        "HDBSCAN": lambda: hdbscan(features),
        "gamma-SUP": lambda: gamma_sup(features),
    }
    rows = []
    for name, call in methods.items():
        found = call()
        found = np.where(np.bincount(found[found >= 0])[found.clip(0)] >= 20, found, -1)
        inside = labels >= 0
        rows += [
            {"case": f"{name}: adjusted Rand index of the members of three clouds among a tenth of outliers"}
            | {"ours": float(adjusted_rand_score(labels[inside], found[inside])), "better": "higher"},
            {
                "case": f"{name}: share of the outliers that lie in a cluster",
                "ours": float((found[~inside] >= 0).mean()),
            },
        ]
    return rows


PARTS = {f.__name__: f for f in (components, denoise, neighbours, states, states_new_seeds, clusters)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hard", type=Path, required=True)
    parser.add_argument("--aspire", help="Python of an environment with ASPIRE 0.14")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ralib_bench_analysis_truth")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sets = Sets(args.hard, args.work, args.aspire)
    for part in args.parts:
        rows = PARTS[part](sets, args.device)
        for row in rows:
            print(f"{row['case']}: {row['ours']:.4f}, goal {row.get('goal')}, beside {row.get('other')}", flush=True)
        title = f"Inside a class: {part.replace('_', ' ')} against the truth"
        bench = f"analysis-truth-{part.replace('_', '-')}"
        path = write_record(args.out, record(bench, torch.device(args.device), rows, title=title))
        print(f"wrote {path}", flush=True)


if __name__ == "__main__":
    main()
