"""Time spent in the parts of a command, from the start of its process."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = {
    "start_s": "start-up",
    "waited_for_reading_s": "reading",
    "prepare_s": "preparing",
    "search_s": "search",
    "average_s": "sums",
    "references_s": "averages",
    "write_s": "files",
    "report_s": "report",
}
"""Timings of run.json that follow each other, and what they are called in the log."""

LONG_S = 100.0
"""From here on a time is printed in whole seconds."""


def process_age_s() -> float:
    """Return the seconds since this process was started; 0 where the system does not give them."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def began(argv: Sequence[str] | None) -> float:
    """Return when a command began, by `time.perf_counter`.

    With its process, or just now where a program passes its own arguments.
    """
    return time.perf_counter() - (process_age_s() if argv is None else 0.0)


def references_s(timings: dict[str, float], iterations: Sequence[dict[str, Any]]) -> float:
    """Return the time of iterations beyond the passes over the particles: averages, filters, references, figures.

    Parameters
    ----------
    timings : dict[str, float]
        Timings of the run.
    iterations : Sequence[dict[str, Any]]
        Figures of the iterations.

    Returns
    -------
    float
        Seconds.
    """
    passes = sum(timings.get(name, 0.0) for name in ("prepare_s", "search_s", "average_s"))
    return max(0.0, sum(i["seconds"] for i in iterations) - passes)


def parts(timings: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of each part by its name in the log; reading is the time others waited for it."""
    known = {name: float(timings[name]) for name in PARTS if timings.get(name) is not None}
    if "prepare_s" in known:
        known["prepare_s"] = max(0.0, known["prepare_s"] - known.get("waited_for_reading_s", 0.0))
    rest = max(0.0, timings["total_s"] - sum(known.values()))
    return {PARTS[name]: seconds for name, seconds in known.items()} | {"other": rest}


def time_line(timings: dict[str, Any]) -> str:
    """Return `time: 9.4 s: start-up 2.1, reading 1.0, ...`; of a long run in whole seconds, without parts of none."""
    total, known = timings["total_s"], parts(timings)
    if total < LONG_S:
        return f"time: {total:.1f} s: " + ", ".join(f"{name} {s:.1f}" for name, s in known.items())
    return f"time: {total:.0f} s: " + ", ".join(f"{name} {s:.0f}" for name, s in known.items() if round(s))
