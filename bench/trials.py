"""What the search's choices cost and gain: each changed by itself, on the same particles at low signal.

    PYTHONPATH=src python3 bench/trials.py --device cuda

A row tells the share of particles whose pose scores worse, by more than 1e-4, than the best that the exhaustive and the
dense search find; the first row of a case is the search as it is. docs/engine.md draws on the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ralib.alignment.search import PoseSearch
from ralib.alignment.search import batched as search_module
from ralib.benchmarks.engine import CASES, TOLERANCE, Case, make_particles, make_search
from ralib.benchmarks.oracle import Oracle, dense_search
from ralib.benchmarks.record import record, write_record
from ralib.cli.common import resolve_device

RESULTS = Path(__file__).parent / "results"
SNR = 0.02
PARTICLES = {"reffree-xr1": 8000, "reffree-xr7": 4000, "mref-50": 4000, "mref-50-box256": 1200}


def main() -> int:
    """Run the trials; 0 when all ran."""
    parser = argparse.ArgumentParser(description="The search's choices, each changed by itself.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cases", nargs="+", choices=list(PARTICLES), default=list(PARTICLES))
    parser.add_argument("--particles", type=int, help="in place of each case's own number")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device = resolve_device(options.device)
    rows = []
    for case in CASES:
        if case.name in options.cases:
            for row in trials(case, options.particles or PARTICLES[case.name], device):
                print(f"{row['case']}: {row['ours']:.2f} %", flush=True)
                rows.append(row)
    print("wrote", write_record(options.out, record("trials", device, rows)))
    return 0


def trials(case: Case, n: int, device: torch.device) -> Iterator[dict[str, Any]]:
    """The rows of a case."""
    references = make_particles(case, 1, 1.0, device, seed=1)[1]
    search = make_search(case, device)
    search.set_references(references)
    oracle, dense = Oracle(search, references), dense_search(search, references)
    images = make_particles(case, n, SNR, device, seed=4)[0]
    parts = images.split(max(64, 2**24 // case.box**2))
    exact, samples = ([make(part) for part in parts] for make in (search.grid.transform, search.prepare))
    best = [
        torch.maximum(oracle.achieved(e, dense.search(s)), oracle.exhaustive(e))
        for e, s in zip(exact, samples, strict=True)
    ]

    def row(what: str, tried: PoseSearch) -> dict[str, Any]:
        missed = 0
        for every, part, top in zip(exact, samples, best, strict=True):
            missed += int((oracle.achieved(every, tried.search(part)) < top - TOLERANCE * top.abs()).sum())
        return {"case": f"{case.name}, {n:,} particles: {what}", "ours": 100 * missed / n, "unit": "% missed"}

    def changed(**options: Any) -> PoseSearch:
        other = make_search(case, device, **options)
        other.set_references(references)
        return other

    yield row("as it is", search)
    yield row("shifts 1 px apart", changed(shift_step_px=1.0))
    if device.type != "cuda":  # the other choices are those of the form that a GPU uses
        return
    kept = search.candidates
    yield row("half as many candidates", changed(candidates=tuple(max(1, k // 2) for k in kept)))
    yield row("twice as many candidates", changed(candidates=tuple(2 * k for k in kept)))
    with mock.patch.object(search_module, "LAST_STEPS", 1):
        yield row("the last step's promise believed, in place of a climb", search)
    yield row("ten times as much of the templates' power left out of the grid", changed(grid_loss=1e-3))
    wide_px = search.bank.extent.step_px
    if wide_px > search.bank.poses.step_px:
        yield row("shifts as far apart as templates allow, past the range", changed(shift_step_px=wide_px))


if __name__ == "__main__":
    raise SystemExit(main())
