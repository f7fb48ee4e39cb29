"""Classification from scratch against known truth: simulated sets, three seeds, RELION beside where installed.

    PYTHONPATH=src python3 bench/classify.py --device cuda [--cases uniform ...] [--particles 5000] [--seeds 3]
    PYTHONPATH=src python3 bench/classify.py --device cuda --set DIR --name R --classes 50  # particles.star, truth.npz

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
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classify_scores import (
    RARE_AXES,
    ideal_deg,
    junk_caught,
    rare_kept,
    rows_with_rare_views,
    scores,
)
from classify_table import table_rows
from clean_sets import molecule_volumes, simulate_set
from ralib import io
from ralib.benchmarks.record import device_name, record
from ralib.cli import main as ralib
from ralib.results.run_directory import run_poses
from ralib.results.run_record import read_record
from ralib.types import Poses

CASES: dict[str, dict[str, Any]] = {
    "uniform": {},
    "preferred": {"--preferred": 0.5},
    "rare views": {"rare": True},
    "junk": {"--junk": 0.15},
    "two species": {"second": True},
    "pure noise": {"--snr": 1e-9},
    "snr 0.02": {"--snr": 0.02},
    "snr 0.1": {"--snr": 0.1},
    "no CTF": {"--no-ctf": None},
    "K 20": {"classes": 20},
    "K 100": {"classes": 100},
    "20,000 particles": {"particles": 20_000, "seeds": 1},
    "100,000 particles": {"particles": 100_000, "classes": 200, "seeds": 1},
}
LARGE = ("20,000 particles", "100,000 particles")


def main() -> int:
    """Run the cases; 0 when all ran."""
    options = _options()
    rows: list[dict[str, Any]] = []
    if options.jobs > 1:
        rows = _beside_each_other(options)
        _print(rows)
        _save(rows, options)
        return 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        work = Path(scratch)
        if options.warm_up:
            simulate_set(work / "warm", 200, 0, {"--device": options.device})
            _classified(work / "warm", work / "warm-run", 5, 0, options.device)
        if options.set:
            for seed in range(options.seeds):
                rows.append(_row(options.name, options.set, work / f"given-{seed}", options.classes, seed, options))
        else:
            for name in options.cases:
                rows += _case(name, work, options)
    _print(rows)
    _save(rows, options)
    return 0


def _beside_each_other(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all cases from `jobs` processes that share the device; their times tell nothing and are left out."""
    given = {"--device": options.device, "--particles": options.particles, "--classes": options.classes}
    given |= {"--seeds": options.seeds, "--volume": options.volume, "--volume2": options.volume2}
    words = [str(w) for pair in given.items() for w in pair if pair[1] is not None]
    running = []
    for job in range(min(options.jobs, len(options.cases))):
        mine = [*words, "--no-warm-up", "--out", os.devnull, "--cases", *options.cases[job :: options.jobs]]
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read after its process has ended
        running.append((subprocess.Popen([sys.executable, __file__, *mine], stdout=log, stderr=log), log))
    end, rows = time.monotonic() + options.limit, []
    for process, log in running:
        try:
            process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.seek(0)
        lines = log.read().splitlines()
        rows += [json.loads(line) for line in lines if line.startswith('{"case"')]
        if process.returncode != 0:
            print(f"a process ended with {process.returncode}:", *lines[-3:], sep="\n    ")
    for row in rows:
        for name in ("seconds", "search_s", "processor_seconds", "timings"):
            del row[name]
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=[c for c in CASES if c not in LARGE])
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--volume", type=Path, help="in place of the built-in phantom")
    parser.add_argument("--volume2", type=Path, help="the second species in place of the built-in one")
    parser.add_argument("--set", type=Path, help="a folder with particles.star and truth.npz in place of the cases")
    parser.add_argument("--name", default="given set", help="what the given set is called")
    parser.add_argument("--relion-result", type=Path, help="RELION's data.star of the given set, to score beside")
    parser.add_argument("--relion", action="store_true", help="run relion_refine beside, where it is installed")
    parser.add_argument("--scratch", type=Path, help="where the sets go; they are removed")
    parser.add_argument("--no-warm-up", dest="warm_up", action="store_false")
    parser.add_argument("--jobs", type=int, default=1, help="cases beside each other on the device, without times")
    parser.add_argument("--limit", type=float, default=3600.0, help="s; with --jobs, what is not done then is left out")
    parser.add_argument("--add", action="store_true", help="keep the file's rows of other cases")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _case(name: str, work: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    changes = dict(CASES[name])
    classes, n = changes.pop("classes", options.classes), changes.pop("particles", options.particles)
    seeds, rare = min(options.seeds, changes.pop("seeds", options.seeds)), changes.pop("rare", False)
    own = {"--device": options.device} | ({"--volume": options.volume} if options.volume else {})
    if changes.pop("second", False):
        own = molecule_volumes(work, 90) | own | ({"--volume2": options.volume2} if options.volume2 else {})
    rows = []
    for seed in range(seeds):
        folder = work / re.sub(r"[^a-z0-9]+", "-", f"{name}-{seed}".lower())
        simulate_set(folder, 2 * n if rare else n, 1000 + seed, own | changes)
        if rare:
            _make_rare(folder, n)
        rows.append(_row(name, folder, work / f"{folder.name}-run", classes, seed, options))
        shutil.rmtree(folder)
    return rows


def _make_rare(folder: Path, n: int) -> None:
    """Leave only such particles in the list that two views become rare, and are like no other."""
    truth = dict(np.load(folder / "truth.npz"))
    rows = rows_with_rare_views(truth["view"], n)
    particles = io.take(io.open_particles(folder / "particles.star"), rows)
    (folder / "particles.star").unlink()
    io.write_particles_star(folder / "particles.star", particles)
    np.savez(folder / "truth.npz", **{k: v[rows] if np.ndim(v) else v for k, v in truth.items()})


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
    particles = np.loadtxt(run / "particle_scores.txt", ndmin=2)
    heading = (run / "particle_scores.txt").read_text().splitlines()[0].split()[1:]
    row = {
        "case": case, "program": "ralib", "seed": seed, "particles": len(particles), "classes": classes,
        "seconds": wall, "search_s": record["timings"]["search_s"], "processor_seconds": processor,
        "timings": record["timings"],
        "peak_device_memory_bytes": record["peak_device_memory_bytes"],
        "believable": record["stability"]["believable"],
        "ideal_deg": ideal_deg(classes),
    }  # fmt: skip
    if case != "pure noise":
        row |= _told(run_poses(run, classes), truth, case)
        row |= junk_caught(particles[:, heading.index("quality")], truth["junk"])
    if options.relion_result:
        theirs = io.open_particles(options.relion_result, require_images=False).poses
        assert theirs is not None
        row["relion"] = _told(theirs, truth, case)
    elif options.relion and shutil.which("relion_refine"):
        row["relion"] = _relion(folder, run.with_name(run.name + "-relion"), classes, seed, truth, case)
    print(json.dumps(row), flush=True)
    return row


def _told(poses: Poses, truth: dict[str, np.ndarray], case: str) -> dict[str, Any]:
    return scores(poses, truth) | (rare_kept(poses, truth) if case == "rare views" else {})


def _relion(
    folder: Path, out: Path, classes: int, seed: int, truth: dict[str, np.ndarray], case: str
) -> dict[str, Any]:
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
    return {"seconds": time.perf_counter() - start} | _told(poses, truth, case)


def _print(rows: list[dict[str, Any]]) -> None:
    for case in dict.fromkeys((r["case"], r["classes"]) for r in rows):
        group = [r for r in rows if (r["case"], r["classes"]) == case]
        print(f"{case[0]}, K={case[1]} (ideal {ideal_deg(case[1]):.1f} deg): {_spread(group)}")
        beside = [r["relion"] for r in group if "relion" in r]
        if beside:
            print(f"    RELION: {_spread(beside)}")


def _spread(rows: list[dict[str, Any]]) -> str:
    """Median and range of every number over the seeds."""
    names = ("view_deg", "view_p90_deg", "inplane_deg", "shift_px", "effective", "purity", "junk_caught")
    told = []
    for name in (*names, "seconds", "processor_seconds"):
        values = [r[name] for r in rows if name in r]
        if values:
            told.append(f"{name} {statistics.median(values):.4g} ({min(values):.4g}..{max(values):.4g})")
    told += [
        f"{view} kept {sum(r[view]['kept'] for r in rows)} of {len(rows)}" for view in RARE_AXES if view in rows[0]
    ]
    if "believable" in rows[0]:
        told.append(f"believable {sum(r['believable'] for r in rows)} of {len(rows)}")
    return ", ".join(told) or str(rows[0])


def _save(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    device = torch.device(options.device)
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    out = options.out or Path(__file__).parent / "results" / f"classify-{slug}.json"
    if str(out) == os.devnull:
        return
    if options.add and out.exists():
        new = {r["case"] for r in rows}
        rows = [r for r in json.loads(out.read_text())["runs"] if r["case"] not in new] + rows
    out.parent.mkdir(parents=True, exist_ok=True)
    io.write_json(out, record("classification", device, table_rows(rows), runs=rows))
    print(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
