"""The report of a large run: 200 classes, 100,000 particles. How large the file is, and how soon it can be used.

    python bench/report.py                # writes bench/results/report-<processor>.json

Opened from disk in headless Chromium with an empty profile each time. Ready: every section is built, the page was laid
out and drawn once, and the first cards have their pictures, counted from the start of the navigation. Limits: 15 MB and
2 s.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ralib.benchmarks.record import record, write_record
from ralib.results.summary import write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import chromium, resize, wait_for
from make_run import make_run

LARGEST_MB, LATEST_S = 15.0, 2.0
SCREENS = {"desktop": (1400, 1000), "phone": (390, 844), "4k": (3840, 2160)}
DRAWN = "return document.querySelector('.card canvas').dataset.drawn && document.documentElement.dataset.ready"


def ready_s(file: Path, width: int, height: int, repeats: int) -> list[float]:
    """Seconds until the page is ready, in a fresh browser each time."""
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as profile:
            page = chromium(Path(profile), width, height)
            try:
                resize(page, width, height, mobile=width < 500)
                page.get(f"file://{file}")
                times.append(float(wait_for(lambda page=page: page.execute_script(DRAWN), 60)) / 1000)
            finally:
                page.quit()
    return times


def measured(folder: Path, classes: int, particles: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the result: the file, and a row a screen."""
    run = make_run(folder, n_classes=classes, n_particles=particles, box=64, n_iterations=12, n_stack=2000, judged=True)
    start = time.perf_counter()
    file = write_report(run)
    written, size_MB = time.perf_counter() - start, file.stat().st_size / 1e6
    what = f"{classes} classes, {particles:,} particles"
    rows: list[dict[str, Any]] = [{"case": f"{what}: file", "size_MB": round(size_MB, 2), "limit_MB": LARGEST_MB}]
    rows[0] |= {"write_s": round(written, 2), "passed": size_MB < LARGEST_MB}
    for name, (width, height) in SCREENS.items():
        times = ready_s(file, width, height, repeats)
        middle = statistics.median(times)
        row = {"case": f"{what}: {name} {width} x {height}", "ready_s": round(middle, 3), "limit_s": LATEST_S}
        rows.append(row | {"ready_s_all": [round(t, 3) for t in times], "passed": middle < LATEST_S})
    return rows


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--particles", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder), options.classes, options.particles, options.repeats)
    result = record("report", torch.device("cpu"), rows)
    path = write_record(Path(__file__).parent / "results", result)
    for row in rows:
        print(row)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
