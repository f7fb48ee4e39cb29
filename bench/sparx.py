"""What `--sparx` costs on a core of a CPU, beside EMAN2's own programs.

    OMP_NUM_THREADS=1 PYTHONPATH=src python3 bench/sparx.py

A row is processor time, of the difference between three iterations and one, a particle and iteration; what is done once
a run and the compilation of kernels are not in it. EMAN2's times were measured for the engine's benchmark, on another
day; they are `cpu_other` of `ralib.benchmarks.engine.CASES`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ralib.benchmarks.engine import CASES, Case, make_particles
from ralib.benchmarks.record import record, write_record
from ralib.images.normalise import normalise_background
from ralib.sparx.ali2d import ali2d
from ralib.sparx.mref import mref_ali2d

RESULTS = Path(__file__).parent / "results"
NAMES = ("mref-10", "mref-50", "reffree-xr1", "reffree-xr3")
SNR = 0.1


def main() -> int:
    """Measure all cases; 0 when all ran."""
    parser = argparse.ArgumentParser(description="--sparx on a CPU.")
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for case in CASES:
        if case.name in options.cases:
            rows.append(measured(case, options.particles, options.repeats))
            print(f"{case.name}: {rows[-1]['ours']:.0f} us, {case.cpu_other} us", flush=True)
    print("wrote", write_record(options.out, record("sparx", torch.device("cpu"), rows)))
    return 0


def measured(case: Case, n: int, repeats: int) -> dict[str, Any]:
    """The row of a case."""
    images, references = make_particles(case, n, SNR, torch.device("cpu"), seed=3)
    particles = normalise_background(images, case.outer_radius).numpy()

    def seconds(iterations: int) -> float:
        before = sum(os.times()[:2])
        options = {"ou": case.outer_radius, "xr": case.shift_range_px, "yr": case.shift_range_px, "ts": 1, "center": 0}
        if case.references > 1:
            mref_ali2d(particles, references, maxit=iterations, **options)
        else:  # the last round only averages
            ali2d(particles, maxit=iterations + 1, **options)
        return sum(os.times()[:2]) - before

    seconds(1)
    each = [1e6 * (seconds(3) - seconds(1)) / (2 * n) for _ in range(repeats)]
    return {
        "case": f"--sparx {case.name}",
        "ours": statistics.median(each),
        "unit": "us of a core, a particle and iteration",
        "other": case.cpu_other,
        "parity": "EMAN2's own results, within rounding: tests/sparx",
        "particles": n,
        "box": case.box,
        "references": case.references,
        "shift_range_px": case.shift_range_px,
        "spread": {"min": min(each), "max": max(each), "repeats": repeats},
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    raise SystemExit(main())
