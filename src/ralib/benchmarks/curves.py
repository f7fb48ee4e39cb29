"""The growth of an iteration's time with particles, references and shift range, each alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from ralib.benchmarks.engine import (
    PARITY_SNR,
    REQUIRED,
    Case,
    make_particles,
    make_search,
    parity_fraction,
    time_iteration,
)


@dataclass(frozen=True)
class Sweep:
    """A base workload, and the values that each quantity takes while the others stay at the base.

    Attributes
    ----------
    base : Case
        The base workload.
    particles : int
        Its number of particles.
    values : dict
        Values of each quantity by name.
    """

    base: Case
    particles: int
    values: dict[str, tuple[int, ...]]

    def points(self) -> Iterable[tuple[str, int, Case, int]]:
        """Iterate over (curve, value, case, particles) of every point."""
        for curve, values in self.values.items():
            for value in values:
                name = f"{self.base.name}, {value:,} {curve}"
                if curve == "particles":
                    yield curve, value, replace(self.base, name=name), value
                elif curve == "references":
                    yield curve, value, replace(self.base, name=name, references=value), self.particles
                else:
                    case = replace(self.base, name=f"{self.base.name}, shifts to {value} px", shift_range_px=value)
                    yield curve, value, case, self.particles


GPU_SWEEP = Sweep(
    Case("mref-50", 50, 3),
    20_000,
    {
        "particles": (5_000, 10_000, 20_000, 40_000),
        "shift range": (1, 3, 5, 7),
        "references": (25, 50, 100, 200),
    },
)
CPU_SWEEP = Sweep(
    Case("mref-10", 10, 3),
    200,
    {"particles": (100, 200, 400), "references": (5, 10, 20, 40), "shift range": (1, 2, 3, 5)},
)


def run_curves(
    sweep: Sweep,
    device: torch.device,
    *,
    n_parity: int,
    repeats: int = 3,
    say: Callable[[str], None] = print,
) -> Iterator[dict[str, Any]]:
    """Check parity, then time every point.

    Shifts count as the (2 range + 1)^2 whole-pixel ones within the range. A point that two curves share is measured
    once.

    Parameters
    ----------
    sweep : Sweep
        Workloads.
    device : torch.device
        Where to compute.
    n_parity : int
        Particles of the parity check.
    repeats : int, default 3
        Timed iterations.
    say : callable, default print
        Is called with messages.

    Yields
    ------
    dict
        Rows for a result file; `ours` in ms an iteration.
    """
    parity: dict[tuple[int, float], float] = {}
    times: dict[tuple[int, float, int], float] = {}
    for curve, value, case, n in sweep.points():
        references = make_particles(case, 1, 1.0, device, seed=1)[1]
        key = (case.references, case.shift_range_px)
        if key not in parity:
            search = make_search(case, device)
            search.set_references(references)
            parity[key] = min(parity_fraction(case, search, references, snr, n_parity) for snr in PARITY_SNR)
        row: dict[str, Any] = {"case": case.name, "curve": curve, "x": _amount(curve, value), "value": value}
        row |= {"ours": None, "unit": "ms an iteration", "parity": f"{100 * parity[key]:.2f} %", "particles": n}
        if parity[key] >= REQUIRED:
            if (*key, n) not in times:
                times[(*key, n)] = time_iteration(case, references, device, n, repeats)["ours"] * n / 1e3
            row["ours"] = times[(*key, n)]
        say(f"{case.name}: " + ("no time: parity failed" if row["ours"] is None else f"{row['ours']:.4g} ms"))
        yield row


def slopes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the slope at the end of each curve: 1 where twice as much takes twice as long."""
    found = []
    for curve in dict.fromkeys(row["curve"] for row in rows):
        timed = [(row["x"], row["ours"]) for row in rows if row["curve"] == curve and row["ours"] is not None]
        if len(timed) < 2:
            continue
        (x1, t1), (x2, t2) = timed[-2:]
        exponent = math.log(t2 / t1) / math.log(x2 / x1)
        what = "number of shifts" if curve == "shift range" else curve
        found.append({"case": f"time grows as ({what}) to the power", "ours": exponent, "unit": "", "slope_of": curve})
    return found


def _amount(curve: str, value: int) -> int:
    return (2 * value + 1) ** 2 if curve == "shift range" else value
