"""A large search in little GPU memory: 100,000 particles against 1,000 references within 16 GiB.

    PYTHONPATH=src python3 bench/limited.py [--gib 16] [--particles 100000] [--references 1000] [--device cuda]

An iteration is run without a limit and with one (torch.cuda.set_per_process_memory_fraction: what would not fit on a
card of that size is refused), on the same particles, made on the device. Both have to find the same classes before a
time is told. Goes to bench/results/limited-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ralib.alignment.iteration import Alignment
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.state import LoopState
from ralib.benchmarks.distributed import synchronize
from ralib.benchmarks.made_images import BLOCK, MadeImages, Workload
from ralib.benchmarks.record import record, write_record
from ralib.runtime.memory import limit_device_memory
from ralib.simulation.simulator import simulate_particles
from ralib.types import ParticleSet, Poses

GIB = 2**30


def measure(workload: Workload, references: torch.Tensor, device: torch.device) -> tuple[dict[str, Any], torch.Tensor]:
    """The second of two iterations, what was kept where, and the classes found."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    options = AlignmentOptions(outer_radius=workload.outer_radius, center=0, device=device)
    run = Alignment(ParticleSet(MadeImages(references, workload)), options)
    stage = run.stage((workload.shift_range_px, workload.shift_range_px))
    state, seconds = LoopState(0, references, Poses.identity(workload.particles, device)), []
    for _ in range(2):
        synchronize(device)
        clock = time.perf_counter()
        done = run.iterate(stage, state, last=True)
        synchronize(device)
        seconds.append(time.perf_counter() - clock)
    on_gpu = device.type == "cuda"
    return {
        "seconds": seconds[-1],
        "first_s": seconds[0],
        "resident": run.batches.resident,
        "batch_size": run.batches.batch_size,
        "in_one_product": stage.search.plan() if on_gpu else None,
        "warnings": [w.what for w in done.warnings],
        "peak_device_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(device) if on_gpu else None,
    }, done.poses.class_index.cpu()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--gib", type=float, default=16.0)
    parser.add_argument("--particles", type=int, default=100_000)
    parser.add_argument("--references", type=int, default=1000)
    parser.add_argument("--box", type=int, default=90)
    parser.add_argument("--note", help="what else a reader of the result should know")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    device, workload = torch.device(args.device), Workload(args.particles, args.box, args.references)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    made = {"n_views": args.references, "snr": workload.snr, "seed": 1, "ctf": False}
    references = simulate_particles(2 * BLOCK, args.box, device=device, **made)[2]
    case, found, classes = f"{args.particles:,} x {args.box} px, {args.references:,} references", [], []
    for limit in (None, args.gib):
        if limit is not None and device.type == "cuda":
            torch.cuda.empty_cache()
            limit_device_memory(device, int(limit * GIB))
        told, index = measure(workload, references, device)
        classes.append(index)
        name = "an iteration" if limit is None else f"an iteration within {limit:g} GiB"
        found.append({"case": f"{case}: {name}", "ours": told["seconds"], "unit": "s"} | told)
        print(json.dumps(found[-1]), flush=True)
    same = float((classes[0] == classes[1]).double().mean())
    found[-1]["parity"] = f"{100 * same:.3f} % of the classes as without a limit"
    if device.type == "cuda":
        peak = found[-1]["peak_reserved_bytes"] / GIB
        found.append({"case": f"{case}: GPU memory, peak", "ours": peak, "goal": args.gib, "unit": "GiB"})
    if same < 0.999:
        found[1]["ours"] = None
    path = write_record(args.out, record("limited", device, found, note=args.note))
    print(f"{found[1]['parity']}; wrote {path}")
    return 0 if same >= 0.999 else 1


if __name__ == "__main__":
    sys.exit(main())
