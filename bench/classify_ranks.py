"""A classification on 1, 2, 4 ... ranks of this machine: seconds, memory, and whether the classes are the same.

    PYTHONPATH=src python3 bench/classify_ranks.py --ranks 1,2 [--particles 20000 --box 90 --classes 50]

For each count torchrun starts as many processes of this file, one a GPU (or one a core with --device cpu). All
simulate the same particles, classify a few of them to warm up, and then all of them; the time is that of
`Classifier.fit`, from images in main memory to the verdict. Against one rank: the share of particles of the same class,
whether poses and classes are the same to the bit, and the efficiency, the time of one over ranks times the time of
many. Memory is the most of any rank.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clean_sets import set_in_memory
from ralib.benchmarks.record import record, write_record
from ralib.classification.classifier import Classifier
from ralib.cli.common import resolve_device
from ralib.runtime.distributed import first_to_fail, join, launched

RESULTS = Path(__file__).parent / "results"
SAME_CLASS = 0.999
FEW = 1000


@torch.inference_mode()
def work(options: argparse.Namespace) -> None:
    """What each rank does; the first one writes what came out."""
    ranks, device = join(), resolve_device(options.device)
    particles, _ = set_in_memory(options.particles, options.box, options.seed, device)
    few, _ = set_in_memory(min(FEW, options.particles), options.box, options.seed + 1, device)
    given: dict[str, Any] = {"seed": options.seed, "device": device, "ranks": ranks}
    if not options.cold:
        Classifier(n_classes=min(options.classes, len(few) // 20), **given).fit(few)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
    ranks.barrier()
    clock = time.perf_counter()
    run = Classifier(n_classes=options.classes, **given).fit(particles)
    ranks.barrier()
    seconds = time.perf_counter() - clock
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    main_memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = ranks.all_max_(torch.tensor([peak, main_memory], dtype=torch.int64)).tolist()
    if ranks.rank == 0:
        poses = run.poses_
        arrays = {"class": poses.class_index, "psi": poses.psi_deg, "origin": poses.origin_xy_px, "score": poses.score}
        np.savez(options.work / "found.npz", **{name: part.numpy() for name, part in arrays.items()})
        told = {
            "seconds": seconds,
            "device_bytes": most[0],
            "main_bytes": most[1],
            "iterations": len(run.result_.iterations),
        }
        (options.work / "told.json").write_text(json.dumps(told | {"timings": run.result_.timings}))


def measure(n_ranks: int, options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A row without its comparison, and the poses, of one count of ranks."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}", __file__]
    environment = dict(os.environ)
    if options.device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
    subprocess.run([*command, *sys.argv[1:], f"--work={folder}"], check=True, env=environment)
    with np.load(folder / "found.npz") as saved:
        return {"ranks": n_ranks} | json.loads((folder / "told.json").read_text()), dict(saved)


def compared(row: dict[str, Any], found: dict[str, np.ndarray], first: dict[str, Any]) -> dict[str, Any]:
    """The row with what it has in common with the run on one rank."""
    one, poses = first["row"], first["found"]
    return row | {
        "case": f"{row['ranks']} ranks",
        "ours": row["seconds"],
        "unit": "s",
        "efficiency": one["seconds"] * one["ranks"] / (row["seconds"] * row["ranks"]),
        "same_class": float((found["class"] == poses["class"]).mean()),
        "same_bits": all(np.array_equal(found[name], poses[name], equal_nan=True) for name in poses),
    }


def main() -> int:
    """Run all counts of ranks; 0 when each has the classes of the first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="1,2", help="counts, the first is compared with")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--particles", type=int, default=20_000)
    parser.add_argument("--box", type=int, default=90)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cold", action="store_true", help="no warm-up: the time has compiling in it")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        try:
            work(options)
        except BaseException:
            traceback.print_exc()
            first_to_fail()
            os._exit(1)  # a regular end would wait for the other ranks, and these for this one
        return 0
    assert not launched(), "this file starts its own processes"
    device = resolve_device(options.device)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        first: dict[str, Any] = {}
        for n in map(int, options.ranks.split(",")):
            row, found = measure(n, options, Path(folder) / str(n))
            first = first or {"row": row, "found": found}
            rows.append(compared(row, found, first))
            print(json.dumps(rows[-1]), flush=True)
    workload = {name: getattr(options, name) for name in ("particles", "box", "classes", "seed")}
    print("wrote", write_record(options.out, record("classify-ranks", device, rows, workload=workload)))
    return 0 if all(row["same_class"] >= SAME_CLASS for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
