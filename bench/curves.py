"""Draws the curves of `ralib bench --curves` and classify_curves.py as SVG, by hand: the same on every machine.

Used by bench/tables.py; a result file in, a drawing out. A curve that one of the engine lacks is drawn from its cases
on the same device: references at 3 px, and shift ranges of one reference, both at 90 px.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

INK, SOFT, BLUE = "#37474f", "#cfd8dc", "#1565c0"
WIDTH, HEIGHT, LEFT, TOP, GAP = 210.0, 170.0, 62.0, 40.0, 74.0
TITLES = {
    "particles": "particles",
    "references": "references",
    "shift range": "whole-pixel shifts in range",
    "classes": "classes",
}
TIMES = {"curves": "Milliseconds an iteration", "classify-curves": "Seconds a classification"}
"""The results that are drawn, and what of them."""


Points = list[tuple[float, float]]


def drawing(result: dict[str, Any], engine: list[dict[str, Any]]) -> str:
    """One panel a curve, both axes logarithmic; dashed: a time that doubles with what it is drawn against.

    engine   rows of the engine's cases on the same device
    """
    measured: dict[str, Points] = {}
    for row in result["rows"]:
        if row.get("curve") and isinstance(row.get("ours"), int | float):
            measured.setdefault(row["curve"], []).append((float(row["x"]), float(row["ours"])))
    cases = engine_curves(engine)
    candidates = {name: [measured.get(name, []), cases.get(name, [])] for name in TITLES}
    curves = {name: max(both, key=len) for name, both in candidates.items() if max(map(len, both)) > 1}
    times = [t for points in curves.values() for _, t in points]
    span = (min(times) / 1.6, max(times) * 1.6) if times else (1.0, 10.0)
    body: list[str] = []
    for number, (name, points) in enumerate(curves.items()):
        body += panel(LEFT + number * (WIDTH + GAP), TITLES.get(name, name), points, span)
    width = LEFT + max(1, len(curves)) * (WIDTH + GAP) - GAP + 16
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {TOP + HEIGHT + 46:g}" '
    head += f'style="font-family:sans-serif;font-size:12px;fill:{INK}">'
    ground = f'<rect width="{width:g}" height="{TOP + HEIGHT + 46:g}" fill="white"/>'
    title = label(LEFT, 18, f"{TIMES[result['bench']]}, {result['device']}; dashed: in proportion", "start")
    return "\n".join([head, ground, title, *body, "</svg>\n"])


def engine_curves(rows: list[dict[str, Any]]) -> dict[str, Points]:
    """Milliseconds an iteration of the engine's 90 px cases, against references and against whole-pixel shifts."""
    found: dict[str, Points] = {"references": [], "shift range": []}
    for row in rows:
        if row.get("box") != 90 or not isinstance(row.get("ours"), int | float):
            continue
        time_ms, reach = row["ours"] * row["particles"] / 1e3, row["shift_range_px"]
        if row["references"] > 1 and reach == 3:
            found["references"].append((row["references"], time_ms))
        elif row["references"] == 1:
            found["shift range"].append(((2 * reach + 1) ** 2, time_ms))
    return {name: sorted(points) for name, points in found.items()}


def panel(left: float, title: str, points: list[tuple[float, float]], span: tuple[float, float]) -> list[str]:
    """Frame, ticks, the proportional line through the last point, and the measured points."""
    reach = (points[0][0] / 1.25, points[-1][0] * 1.25)

    def at(x: float, t: float) -> tuple[float, float]:
        return left + WIDTH * share(x, reach), TOP + HEIGHT * (1 - share(t, span))

    frame = f'<rect x="{left:g}" y="{TOP:g}" width="{WIDTH:g}" height="{HEIGHT:g}" fill="#fafafa" stroke="{SOFT}"/>'
    parts = [frame, label(left + WIDTH / 2, TOP + HEIGHT + 36, title)]
    for x, _ in points:
        parts.append(label(at(x, span[0])[0], TOP + HEIGHT + 16, short(x)))
    decades = range(math.floor(math.log10(span[0])), math.ceil(math.log10(span[1])))
    for t in (m * 10.0**k for k in decades for m in (1, 2, 5) if span[0] < m * 10.0**k < span[1]):
        y = at(reach[0], t)[1]
        parts += [stroke((left, y), (left + WIDTH, y), SOFT), label(left - 6, y + 4, short(t), "end")]
    (last_x, last_t), first_x = points[-1], max(points[0][0], points[-1][0] * span[0] / points[-1][1])
    parts.append(stroke(at(first_x, last_t * first_x / last_x), at(last_x, last_t), INK, dash=True))
    places = [at(*point) for point in points]
    parts += [stroke(a, b, BLUE) for a, b in pairwise(places)]
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{BLUE}"/>' for x, y in places]
    return parts


def share(value: float, span: tuple[float, float]) -> float:
    """Where a value lies in a logarithmic span, 0 to 1."""
    return math.log(value / span[0]) / math.log(span[1] / span[0])


def short(value: float) -> str:
    """20000 as 20k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def label(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def stroke(a: tuple[float, float], b: tuple[float, float], colour: str, *, dash: bool = False) -> str:
    look = ' stroke-dasharray="5 4"' if dash else ""
    line = f'x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"'
    return f'<line {line} stroke="{colour}" stroke-width="1.6"{look}/>'
