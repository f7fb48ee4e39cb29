"""Classification from scratch against known truth: simulated sets, three seeds, RELION beside where installed.

    PYTHONPATH=src python3 bench/classify.py --device cuda [--cases uniform ...] [--particles 5000] [--seeds 3]
    PYTHONPATH=src python3 bench/classify.py --device cuda --set DIR --classes 50      # particles.star and truth.npz

Each case is simulated by `ralib simulate` (continuous views, CTF, particles off centre), classified by the command
`ralib classify` from the particles on disk to the results on disk, and scored as the particles' true views tell:

    view_deg        median angle between a particle's view and the mean view of its class (90th percentile beside it)
    inplane_deg, shift_px   medians of what is left of the pose errors within a class
    effective       exp of the entropy of class sizes;  purity of species;  junk_caught at 95% of the good kept

`ideal_deg` is the median for K equal caps of the hemisphere. The process's own start and the first use of a device
are outside the time (`--warm-up`); processor seconds count all cores. RELION 3.1 (Debian: relion) runs 20 iterations
of EM with the same number of classes on one thread. Losses are shown like wins: nothing is left out of the file,
bench/results/classify-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib import io
from ralib.cli import main as ralib
from ralib.rundir import read_record, run_poses
from ralib.types import Poses

CASES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "preferred": {"--preferred": 0.5},
    "junk": {"--junk": 0.15},
    "two species": {"second": True},
    "snr 0.02": {"--snr": 0.02},
    "snr 0.1": {"--snr": 0.1},
    "no CTF": {"--no-ctf": None},
    "K 20": {"classes": 20},
    "K 100": {"classes": 100},
}


def main() -> int:
    """Run the cases; 0 when all ran."""
    options = _options()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        work = Path(scratch)
        if options.warm_up:
            _simulated(work / "warm", 200, 0, {}, options)
            _classified(work / "warm", work / "warm-run", 5, 0, options.device)
        if options.set:
            for seed in range(options.seeds):
                rows.append(_row("given set", options.set, work / f"given-{seed}", options.classes, seed, options))
        else:
            for name in options.cases:
                rows += _case(name, work, options)
    _print(rows)
    _save(rows, options)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--volume", type=Path, help="in place of the built-in phantom")
    parser.add_argument("--volume2", type=Path, help="the second species; without it that case is left out")
    parser.add_argument("--set", type=Path, help="a folder with particles.star and truth.npz in place of the cases")
    parser.add_argument("--relion", action="store_true", help="run relion_refine beside, where it is installed")
    parser.add_argument("--scratch", type=Path, help="where the sets go; they are removed")
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_false")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _case(name: str, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    changes = dict(CASES[name])
    classes = changes.pop("classes", options.classes)
    if changes.pop("second", False):
        if options.volume2 is None:
            print(f"{name}: left out, it needs --volume2")
            return []
        changes["--volume2"] = options.volume2
    rows = []
    for seed in range(options.seeds):
        folder = work / f"{name.replace(' ', '-')}-{seed}"
        _simulated(folder, options.particles, 1000 + seed, changes, options)
        rows.append(_row(name, folder, work / f"{folder.name}-run", classes, seed, options))
        shutil.rmtree(folder)
    return rows


def _simulated(folder: Path, n: int, seed: int, changes: dict[str, Any], options: argparse.Namespace) -> None:
    settings: dict[str, Any] = {
        "--particles": n, "--box": 90, "--views": 0, "--snr": 0.05, "--shift-sd": 2.0, "--contrast-sd": 0.15,
        "--coloured-noise": 0.15, "--seed": seed, "--device": options.device,
    } | changes  # fmt: skip
    if options.volume is not None:
        settings["--volume"] = options.volume
    words = [str(w) for pair in settings.items() for w in pair if w is not None]
    if ralib(["simulate", str(folder), *words]) != 0:
        raise SystemExit(f"simulate failed: {words}")


def _classified(folder: Path, run: Path, classes: int, seed: int, device: str) -> tuple[float, float]:
    """Wall and processor seconds of the command, from the particles on disk to the results on disk."""
    wall, processor = time.perf_counter(), time.process_time()
    words = ["classify", str(folder / "particles.star"), str(run), "--classes", str(classes), "--seed", str(seed)]
    if ralib([*words, "--device", device, "--no-report"]) != 0:
        raise SystemExit(f"classify failed on {folder}")
    return time.perf_counter() - wall, time.process_time() - processor


def _row(case: str, folder: Path, run: Path, classes: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    wall, processor = _classified(folder, run, classes, seed, options.device)
    truth = dict(np.load(folder / "truth.npz"))
    record = read_record(run)
    junk = np.loadtxt(run / "particle_scores.txt", ndmin=2)
    heading = (run / "particle_scores.txt").read_text().splitlines()[0].split()[1:]
    row = {
        "case": case, "program": "ralib", "seed": seed, "particles": len(junk), "classes": classes,
        "seconds": wall, "processor_seconds": processor, "timings": record["timings"],
        "peak_device_memory_bytes": record["peak_device_memory_bytes"],
        "believable": record["stability"]["believable"],
        "ideal_deg": ideal_deg(classes),
    }  # fmt: skip
    row |= scores(run_poses(run, classes), truth)
    row |= junk_caught(junk[:, heading.index("explained")], truth["junk"])
    if options.relion and shutil.which("relion_refine"):
        row["relion"] = _relion(folder, run.with_name(run.name + "-relion"), classes, seed, truth)
    print(json.dumps(row), flush=True)
    return row


def ideal_deg(classes: int) -> float:
    """Median angle to the axis in one of K equal caps of a hemisphere."""
    return math.degrees(math.acos(1 - 0.5 / classes))


def scores(poses: Poses, truth: dict[str, np.ndarray]) -> dict[str, float]:
    """What the true orientations say about classes and poses; junk counts in the class sizes only."""
    psi = np.deg2rad(poses.psi_deg.numpy())
    mirror, index = poses.mirror.numpy(), poses.class_index.numpy()
    c, s = np.cos(psi)[:, None], np.sin(psi)[:, None]
    rotation, good = truth["R"], truth["junk"] == 0
    x, view = c * rotation[:, 0] - s * rotation[:, 1], rotation[:, 2].copy()
    x[mirror], view[mirror] = -x[mirror], -view[mirror]
    left = truth["shift"] + poses.origin_xy_px.numpy()
    left = np.hstack([c * left[:, :1] - s * left[:, 1:], s * left[:, :1] + c * left[:, 1:]])
    left[mirror, 0] *= -1
    angle, turn, shift, pure = [], [], [], 0
    for k in range(index.max() + 1):
        member = (index == k) & good
        if member.sum() < 2:
            continue
        axis = _unit(view[member].mean(0))
        angle += list(np.degrees(np.arccos(np.clip(view[member] @ axis, -1, 1))))
        mean_x = x[member].mean(0)
        mean_x = _unit(mean_x - axis * (mean_x @ axis))
        turn += list(np.degrees(np.abs(np.arctan2(x[member] @ np.cross(axis, mean_x), x[member] @ mean_x))))
        shift += list(np.linalg.norm(left[member] - np.median(left[member], 0), axis=1))
        pure += np.bincount(truth["species"][member]).max()
    size = np.bincount(index[index >= 0]) / max(1, (index >= 0).sum())
    size = size[size > 0]
    return {
        "view_deg": float(np.median(angle)),
        "view_p90_deg": float(np.percentile(angle, 90)),
        "inplane_deg": float(np.median(turn)),
        "shift_px": float(np.median(shift)),
        "effective": float(np.exp(-(size * np.log(size)).sum())),
        "largest": float(size.max()),
        "purity": pure / max(1, len(angle)),
    }


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + 1e-12)


def junk_caught(detail: np.ndarray, junk: np.ndarray) -> dict[str, float]:
    """Share of the junk below the score that 95% of the good particles exceed."""
    if not (junk > 0).any():
        return {}
    return {"junk_caught": float((detail[junk > 0] < np.quantile(detail[junk == 0], 0.05)).mean())}


def _relion(folder: Path, out: Path, classes: int, seed: int, truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """RELION's EM on the same particles."""
    out.mkdir()
    words = ["relion_refine", "--i", folder / "particles.star", "--o", out / "run", "--K", classes, "--iter", 20]
    words += ["--tau2_fudge", 2, "--particle_diameter", 300, "--ctf", "--zero_mask", "--oversampling", 1]
    words += ["--psi_step", 12, "--offset_range", 5, "--offset_step", 2, "--norm", "--scale", "--random_seed", seed]
    start = time.perf_counter()
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=folder.parent, check=False)
    if done.returncode != 0:
        return {"error": done.stderr.strip()[-500:]}
    poses = io.open_particles(out / "run_it020_data.star", datadir=folder).poses
    assert poses is not None
    return {"seconds": time.perf_counter() - start} | scores(poses, truth)


def _print(rows: list[dict[str, Any]]) -> None:
    names = ("view_deg", "view_p90_deg", "inplane_deg", "shift_px", "effective", "seconds", "processor_seconds")
    for case in dict.fromkeys((r["case"], r["classes"]) for r in rows):
        group = [r for r in rows if (r["case"], r["classes"]) == case]
        told = []
        for name in (*names, "purity", "junk_caught"):
            values = [r[name] for r in group if name in r]
            if values:
                told.append(f"{name} {statistics.median(values):.2f} ({min(values):.2f}..{max(values):.2f})")
        print(f"{case[0]}, K={case[1]} (ideal {ideal_deg(case[1]):.1f} deg): " + ", ".join(told))


def _save(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + "-cpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    out = options.out or Path(__file__).parent / "results" / f"classify-{slug}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    versions = {p: version(p) for p in ("torch", "numpy")} | {"python": platform.python_version()}
    threads = torch.get_num_threads()
    value = {"device": name, "threads": threads, "versions": versions, "commit": commit, "rows": rows}
    io.write_json(out, value)
    print(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
