"""Where an iteration's time goes on a GPU: every kernel's share, and what is left while the device waits.

    PYTHONPATH=src python3 bench/kernels.py [--cases reffree-xr1 mref-50]

Kernels are timed by torch.profiler, which slows the host down; what the device waits is told by iterations without it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ralib.benchmarks.engine import CASES, Case, make_particles, make_run
from ralib.benchmarks.record import record, write_record
from ralib.cli.common import resolve_device

RESULTS = Path(__file__).parent / "results"
ITERATIONS = 5
WORK = {
    "_newton": "Newton steps",
    "_runs_kernel": "class sums",
    "_add_runs_kernel": "class sums",
    "_shifted_parts": "samples moved and split",
    "_rotational_max": "maxima over rotations",
    "_shortlist": "shortlists",
    "_table_kernel": "pose table of the sums",
    "_gather_taps": "polar transform of the references",
    "nvjet": "matrix products",
    "gemm": "matrix products",
    "topk": "choosing grid candidates",
    "gather": "choosing grid candidates",
}
"""What a kernel does, by a part of its name, the first that fits."""


def main() -> int:
    """Profile the cases; 0 when all ran."""
    parser = argparse.ArgumentParser(description="Where an iteration's time goes on a GPU.")
    parser.add_argument("--cases", nargs="+", choices=[c.name for c in CASES], default=["reffree-xr1", "mref-50"])
    parser.add_argument("--particles", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = resolve_device("auto")
    if device.type != "cuda":
        parser.error("no GPU here to profile")
    rows = [r for case in CASES if case.name in options.cases for r in profiled(case, options.particles, device)]
    for row in rows:
        print(f"{row['case']}: {row['ours']:.3f} ms")
    print("wrote", write_record(options.out, record("kernels", device, rows)))
    return 0


@torch.inference_mode()
def profiled(case: Case, n: int, device: torch.device) -> list[dict[str, Any]]:
    """Milliseconds an iteration of each kind of work, the largest first; then what the device waits, and all."""
    references = make_particles(case, 1, 1.0, device, seed=1)[1]
    images = make_particles(case, n, 0.1, device, seed=3)[0]
    run, stage, state = make_run(case, images, references, device)

    def iterate() -> float:
        nonlocal state
        torch.cuda.synchronize(device)
        clock = time.perf_counter()
        state = run.iterate(stage, state, last=True)
        torch.cuda.synchronize(device)
        return 1e3 * (time.perf_counter() - clock)

    for _ in range(4):
        iterate()
    whole = statistics.median(iterate() for _ in range(ITERATIONS))
    with profile(activities=[ProfilerActivity.CUDA]) as measured:
        for _ in range(ITERATIONS):
            iterate()
    spent: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for event in measured.events() or []:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            work = next((what for part, what in WORK.items() if part in event.name), "small kernels and copies")
            spent[work] += event.time_range.elapsed_us() / 1e3 / ITERATIONS
            launches[work] += 1
    lines = [(f"{what} ({launches[what] / ITERATIONS:.0f} launches)", ms) for what, ms in spent.most_common()]
    lines += [("the device waits", max(0.0, whole - spent.total())), ("an iteration", whole)]
    return [{"case": f"{case.name}, {n:,} particles: {what}", "ours": ms, "unit": "ms"} for what, ms in lines]


if __name__ == "__main__":
    raise SystemExit(main())
