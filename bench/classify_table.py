"""The rows that bench/tables.py shows, from the runs of bench/classify.py: medians over the seeds, with their range."""

from __future__ import annotations

import statistics
from typing import Any

# figure: (words, unit, which is better, in the README where there is a goal)
FIGURES: dict[str, tuple[str, str, str, bool]] = {
    "view_deg": ("view angle, median", "deg", "lower", True),
    "view_p90_deg": ("view angle, 90th percentile", "deg", "lower", True),
    "inplane_deg": ("in-plane error", "deg", "lower", False),
    "shift_px": ("shift error", "px", "lower", False),
    "effective": ("effective classes", "", "higher", False),
    "purity": ("purity of species", "", "higher", True),
    "junk_caught": ("junk told at 95% of the good kept", "", "higher", True),
    "rare_1_percent": ("runs in which a view at 1% kept a class", "", "higher", True),
    "rare_0.3_percent": ("runs in which a view at 0.3% kept a class", "", "higher", True),
    "believable": ("runs that were believed", "", "lower", True),
    "seconds": ("particles on disk to results on disk", "s", "lower", True),
    "search_s": ("the search alone", "s", "lower", True),
    "processor_seconds": ("processor time", "s", "lower", True),
}

GOALS: dict[tuple[str, int, int], dict[str, float]] = {
    ("uniform", 5000, 50): {
        "view_deg": 10, "view_p90_deg": 20, "inplane_deg": 1.5, "shift_px": 0.4, "effective": 44, "seconds": 5,
        "search_s": 0.8,
    },
    ("two species", 5000, 50): {"purity": 0.998, "view_deg": 15, "view_p90_deg": 50},
    ("junk", 5000, 50): {"junk_caught": 0.95},
    ("rare views", 5000, 50): {"rare_1_percent": 1, "rare_0.3_percent": 1},
    ("pure noise", 5000, 50): {"believable": 0},
    ("set R, the first 2,000", 2000, 20): {
        "view_deg": 16, "view_p90_deg": 32, "inplane_deg": 3, "shift_px": 0.6, "effective": 17, "processor_seconds": 90,
    },
    ("20,000 particles", 20_000, 50): {"seconds": 4},
    ("100,000 particles", 100_000, 200): {"seconds": 15},
}  # fmt: skip
"""Of the issues that asked for this, by case, particles and classes; times are for one H100, and one core of a CPU."""


def table_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a case and figure."""
    rows = []
    for case, classes, particles in dict.fromkeys((r["case"], r["classes"], r["particles"]) for r in runs):
        group = [r for r in runs if (r["case"], r["classes"]) == (case, classes)]
        goals = GOALS.get((case, particles, classes), {})
        for figure, (words, unit, better, readme) in FIGURES.items():
            values = [_number(r[figure]) for r in group if figure in r]
            wanted = figure in goals or case != "pure noise"
            if not values or not wanted or (figure == "believable" and case != "pure noise"):
                continue
            if figure == "purity" and case != "two species":
                continue
            among = f"{min(values):.4g} to {max(values):.4g}, {len(values)} seeds" if len(values) > 1 else "1 seed"
            size = "" if case.startswith(f"{particles:,} ") else f"{particles:,} particles, "
            row = {
                "case": f"{case}, {size}K={classes}: {words} ({among})",
                "ours": statistics.fmean(values) if isinstance(group[0][figure], dict) else statistics.median(values),
                "unit": unit, "better": better, "readme": False,
            }  # fmt: skip
            if figure in goals:
                row |= {"goal": goals[figure], "readme": readme}
            beside = [_number(r["relion"][figure]) for r in group if figure in r.get("relion", {})]
            if beside:
                row["other"] = f"RELION {statistics.median(beside):.3g}"
            rows.append(row)
    return rows


def _number(value: Any) -> float:
    """A figure as a number; of a rare view, whether it kept a class."""
    return float(value["kept"] if isinstance(value, dict) else value)
