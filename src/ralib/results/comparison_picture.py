"""The flow of particles between the classes of two runs as a picture: bands for few classes, a heat map for many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ralib.io import atomic_path
from ralib.results.comparison import Comparison
from ralib.results.summary.runs import RunFiles

MOST_BANDS = 40
"""Classes on one side up to which bands can be distinguished."""
THINNEST = 0.002
"""Bands below this fraction of the particles are not drawn."""
GAP = 0.006


def write_comparison_picture(c: Comparison, a: RunFiles, b: RunFiles, names: tuple[str, str], out: Path) -> None:
    """Write the flow from A's classes to B's as PNG, PDF or SVG.

    Parameters
    ----------
    c : Comparison
        The comparison.
    a, b : RunFiles
        The runs.
    names : tuple[str, str]
        Their names.
    out : Path
        The file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order_a, order_b = side_orders(c)
    few = max(len(order_a), len(order_b)) <= MOST_BANDS
    height = max(5.0, 0.42 * max(len(order_a), len(order_b)) + 1.2) if few else 8.5
    figure = Figure(figsize=(9.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.add_subplot()
    if few:
        _bands(axis, c, (a, b), (order_a, order_b), names, height)
    else:
        _heat_map(figure, axis, c, (order_a, order_b), names)
    axis.set_title(
        f"{len(c.rows_a):,} particles in common: adjusted Rand {c.adjusted_rand:.2f}, mutual information "
        f"{c.mutual_information:.2f}, {100 * c.shared:.0f} % in matched classes",
        fontsize=10,
    )
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format=out.suffix.lstrip(".").lower(), dpi=160)


def side_orders(c: Comparison) -> tuple[list[int], list[int]]:
    """Return rows and columns of the flow to draw, from the largest match down; matched classes face each other.

    Unmatched classes follow, and last those in no class, where there are any.
    """
    sizes_a, sizes_b = c.flow.sum(axis=1), c.flow.sum(axis=0)
    order_a, order_b = [a for a, _ in c.matches], [b for _, b in c.matches]
    last_a, last_b = len(sizes_a) - 1, len(sizes_b) - 1
    order_a += sorted((k for k in range(last_a) if k not in order_a and sizes_a[k]), key=lambda k: -sizes_a[k])
    order_b += sorted((k for k in range(last_b) if k not in order_b and sizes_b[k]), key=lambda k: -sizes_b[k])
    return order_a + [last_a] * bool(sizes_a[last_a]), order_b + [last_b] * bool(sizes_b[last_b])


def _bands(
    axis: Any,
    c: Comparison,
    runs: tuple[RunFiles, RunFiles],
    orders: tuple[list[int], list[int]],
    names: tuple[str, str],
    height: float,
) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    total = max(1, int(c.flow.sum()))
    sizes = c.flow.sum(axis=1) / total, c.flow.sum(axis=0) / total
    tops = [_tops(sizes[side], orders[side]) for side in (0, 1)]
    colours = colormaps["tab20"]
    paint = {k: "0.7" if k == len(c.flow) - 1 else colours(i % 20) for i, k in enumerate(orders[0])}
    used_a, used_b = dict(tops[0]), dict(tops[1])
    for i in orders[0]:
        for j in orders[1]:
            part = c.flow[i, j] / total
            y, z = used_a[i], used_b[j]
            used_a[i], used_b[j] = y - part, z - part
            if part < THINNEST:
                continue
            points = [(0.0, y), (0.5, y), (0.5, z), (1.0, z), (1.0, z - part), (0.5, z - part), (0.5, y - part)]
            codes = [Outline.MOVETO, *[Outline.CURVE4] * 3, Outline.LINETO, *[Outline.CURVE4] * 3, Outline.CLOSEPOLY]
            outline = Outline([*points, (0.0, y - part), (0.0, y)], codes)
            axis.add_patch(PathPatch(outline, facecolor=paint[i], edgecolor="none", alpha=0.55))
    for side, x in ((0, 0.0), (1, 1.0)):
        _nodes(axis, runs[side], orders[side], tops[side], sizes[side], x, total, height)
    axis.text(-0.02, 0.015, f"A: {names[0]}", ha="right", fontsize=10, weight="bold")
    axis.text(1.02, 0.015, f"B: {names[1]}", ha="left", fontsize=10, weight="bold")
    low = min(min(top[k] - sizes[side][k] for k in orders[side]) for side, top in enumerate(tops) if orders[side])
    axis.set(xlim=(-0.42, 1.42), ylim=(low - 0.01, 0.06))
    axis.axis("off")


def _tops(sizes: np.ndarray, order: list[int]) -> dict[int, float]:
    """Upper end of each class's bar, from 0 down."""
    tops, y = {}, 0.0
    for k in order:
        tops[k] = y
        y -= sizes[k] + GAP
    return tops


def _nodes(
    axis: Any,
    run: RunFiles,
    order: list[int],
    tops: dict[int, float],
    sizes: np.ndarray,
    x: float,
    total: int,
    height: float,
) -> None:
    """Bars of one side with number, members and, where there is room, the average."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    from matplotlib.patches import Rectangle

    outward = -1 if x == 0 else 1
    spoken: float | None = None
    inch = height / (1 + GAP * len(order) + 0.1)
    for k in order:
        size, y = sizes[k], tops[k]
        axis.add_patch(Rectangle((x - 0.012, y - size), 0.024, size, color="0.25"))
        middle = y - size / 2
        if spoken is not None and (spoken - middle) * inch < 0.14:
            continue  # no room for another label
        spoken = middle
        text = "in no class" if k == run.n_classes else f"#{k + 1}"
        label = f"{text}   {round(size * total):,}"
        axis.text(x + outward * 0.03, middle, label, ha="right" if x == 0 else "left", va="center", fontsize=8)
        if k < run.n_classes and size * inch > 0.3:
            picture = run.averages[k]
            low, high = np.percentile(picture, [1, 99.5])
            zoom = min(0.55, size * inch) * 72 / len(picture)
            image = OffsetImage(picture, zoom=zoom, cmap="gray", clim=(low, high))
            axis.add_artist(AnnotationBbox(image, (x + outward * 0.27, middle), frameon=False, pad=0))


def _heat_map(
    figure: Any, axis: Any, c: Comparison, orders: tuple[list[int], list[int]], names: tuple[str, str]
) -> None:
    rows, columns = orders
    table = c.flow[np.ix_(rows, columns)].astype(float)
    table /= np.maximum(table.sum(axis=1, keepdims=True), 1)
    shown = axis.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    for put, order, last in ((axis.set_yticks, rows, len(c.flow) - 1), (axis.set_xticks, columns, len(c.flow[0]) - 1)):
        every = max(1, len(order) // 25)
        labels = ["none" if k == last else str(k + 1) for k in order[::every]]
        put(range(0, len(order), every), labels, fontsize=7)
    axis.set_ylabel(f"class in A: {names[0]}")
    axis.set_xlabel(f"class in B: {names[1]}")
    figure.colorbar(shown, ax=axis, label="fraction of A's class", shrink=0.7)
