"""Figures of each class and counts of each quantity by class, from the poses alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from ralib.io.viewing import viewing_directions
from ralib.report.contents import HexagonMap, Histogram
from ralib.results.summary.runs import RunFiles

MINIMUM_MEMBERS = 4
"""Below this EMAN2 gave up on a class; we flag it."""

HEXAGONS_ACROSS = 28
"""Hexagonal bins along x, and bars at the sides of such a map."""


def class_figures(run: RunFiles) -> list[dict[str, Any]]:
    """Return the figures of each class: what the run recorded, completed from its poses."""
    recorded = {int(item["class"]): dict(item) for item in run.record.get("classes") or [] if "class" in item}
    poses = run.poses
    index = poses.class_index.numpy()
    order = np.argsort(index, kind="stable")
    starts = np.searchsorted(index[order], np.arange(run.n_classes + 1))
    mirror, score = poses.mirror.numpy(), poses.score.numpy()
    result = []
    for k in range(run.n_classes):
        rows = order[starts[k] : starts[k + 1]]
        figures: dict[str, Any] = recorded.get(k + 1, {})
        figures.update({"class": k + 1, "members": len(rows)})
        if len(rows):
            figures["mirror_fraction"] = float(mirror[rows].mean())
            if np.isfinite(score[rows]).any():
                figures["mean_fit"] = float(np.nanmean(score[rows]))
            for name, values in (("junk", run.scores.get("junk")), ("posterior_mean", run.scores.get("posterior"))):
                if values is not None and figures.get(name) is None:
                    figures[name] = float(np.mean(values[rows]))
            if run.particles.ctf is not None:
                ctf = run.particles.ctf[rows]
                figures["median_defocus_A"] = float(np.median((ctf.defocus_u_A + ctf.defocus_v_A) / 2))
        if len(rows) < MINIMUM_MEMBERS:
            figures["flag"] = "empty" if not len(rows) else "tiny"
        result.append(figures)
    return result


def particle_figures(run: RunFiles) -> dict[str, np.ndarray]:
    """Return fit, posterior and junk probability of the members, class after class; only those that all have."""
    index = run.poses.class_index.numpy()
    rows = np.argsort(index, kind="stable")[int((index < 0).sum()) :]
    columns = {"fit": run.poses.score.numpy(), **run.scores}
    found = {name: np.asarray(columns[name])[rows] for name in ("fit", "posterior", "junk") if name in columns}
    return {
        name: values.astype(np.float32) for name, values in found.items() if len(rows) and np.isfinite(values).all()
    }


def automatic_junk_limit(run: RunFiles) -> float | None:
    """Return the highest junk probability of the particles that the run itself would keep; None where it proposes none.

    Rounded up to four digits where no other particle lies between.
    """
    if "selected" not in run.scores or "junk" not in run.scores:
        return None
    junk = np.asarray(run.scores["junk"], dtype=np.float32)
    selected = junk[np.asarray(run.scores["selected"]) > 0.5]
    if not len(selected):
        return None
    limit = float(selected.max())
    rounded = float(np.ceil(limit * 1e4) / 1e4)
    return limit if ((junk > limit) & (junk <= np.float32(rounded))).any() else rounded


def histograms(run: RunFiles) -> dict[str, Histogram]:
    """Return in-plane angles, fit, posterior, junk probability and defocus, counted by class."""
    poses, found = run.poses, {}
    psi = (poses.psi_deg.numpy().astype(np.float64) + 180) % 360 - 180
    found["psi"] = _count(run, psi, np.linspace(-180, 180, 37), "In-plane angle", "°")
    score = poses.score.numpy().astype(np.float64)
    if np.isfinite(score).any():
        found["fit"] = _count(run, score, _edges(score, 40, beyond_percent=0.5), "Fit", "")
    for name, label in (("posterior", "Posterior"), ("junk", "Junk probability")):
        if name in run.scores:
            found[name] = _count(run, run.scores[name], np.linspace(0, 1, 41), label, "")
    if run.particles.ctf is not None:
        defocus = (run.particles.ctf.defocus_u_A + run.particles.ctf.defocus_v_A) / 2
        found["defocus"] = _count(run, defocus, _edges(defocus, 32), "Defocus", "Å")
    return found


def _edges(values: np.ndarray, bins: int, beyond_percent: float = 0.0) -> np.ndarray:
    """Edges of equal bins over all values but `beyond_percent` at either end, which go into the first and last bin.

    So do, where any are left out, values beyond three interquartile ranges from the quartiles: some beads and ice
    crystals fit a hundred times better than particles do, and would leave those one bar.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.linspace(0.0, 1.0, bins + 1)
    low, lower, upper, high = np.percentile(finite, [beyond_percent, 25, 75, 100 - beyond_percent])
    if beyond_percent and upper > lower:
        fence = 3 * (upper - lower)
        low, high = max(low, lower - fence), min(high, upper + fence)
    return np.linspace(low, high if high > low else low + 1, bins + 1)


def _bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin of each value; those beyond the ends go into the last one there is."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def _count(run: RunFiles, values: np.ndarray, edges: np.ndarray, label: str, unit: str) -> Histogram:
    index = run.poses.class_index.numpy()
    valid = (index >= 0) & np.isfinite(values)
    width = len(edges) - 1
    flat = index[valid] * width + _bins(values[valid], edges)
    counts = np.bincount(flat, minlength=run.n_classes * width).reshape(run.n_classes, width)
    return Histogram(label, unit, edges, counts)


def hexagon_maps(run: RunFiles) -> dict[str, HexagonMap]:
    """Return origin shifts, and viewing directions where the particle file has them, in hexagonal bins by class.

    The map of shifts is a square around zero that holds 99.9 % of them; the rest count at its rim.
    """
    origin = run.poses.origin_xy_px.numpy().astype(np.float64)
    reach = max(1.0, float(np.percentile(np.abs(origin), 99.9))) if len(origin) else 1.0
    span = (-reach, reach)
    found = {"shift": _hexagon_map(run, "Origin shift", origin, (span, span), (("x", "px"), ("y", "px")))}
    view_deg = viewing_directions(run.particles)
    if view_deg is not None:
        names = (("Rot", "°"), ("Tilt", "°"))
        found["view"] = _hexagon_map(run, "Viewing direction", view_deg, ((-180.0, 180.0), (0.0, 180.0)), names)
    return found


def _hexagon_map(
    run: RunFiles,
    title: str,
    xy: np.ndarray,
    spans: tuple[tuple[float, float], tuple[float, float]],
    names: tuple[tuple[str, str], tuple[str, str]],
) -> HexagonMap:
    """Points (n, 2) counted in hexagons over `spans`; names are a label and a unit for x and y."""
    sides = [_count(run, xy[:, axis], np.linspace(*spans[axis], HEXAGONS_ACROSS + 1), *names[axis]) for axis in (0, 1)]
    valid = (run.poses.class_index.numpy() >= 0) & np.isfinite(xy).all(1)
    low, high = np.array(spans).T
    hexagon, centre, size = hexagons(np.clip(xy[valid], low, high), low, high)
    width = len(centre)
    flat = run.poses.class_index.numpy()[valid] * width + hexagon
    counts = np.bincount(flat, minlength=run.n_classes * width).reshape(run.n_classes, width)
    return HexagonMap(title, sides[0], sides[1], centre, size, counts)


def hexagons(
    xy: np.ndarray, low: np.ndarray, high: np.ndarray, across: int = HEXAGONS_ACROSS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Assign points to hexagonal bins, regular ones in a square that spans `low` to `high`.

    Parameters
    ----------
    xy : ndarray of shape (n, 2)
        Points.
    low, high : ndarray of shape (2,)
        Corners of the map.
    across : int
        Hexagons along x.

    Returns
    -------
    ndarray of shape (n,)
        Bin of each point.
    ndarray of shape (h, 2)
        Centres of the bins that hold points.
    ndarray of shape (2,)
        Distance of neighbouring centres along x, and of rows two apart along y.
    """
    size = (high - low) / (across, max(1, round(across / np.sqrt(3))))
    # The centres are two rectangular lattices, one shifted by half a cell; the nearer centre has the point.
    cell = (xy - low) / size
    lattices = np.round(cell), np.floor(cell) + 0.5
    far = [((cell - nearest) ** 2 * (1, 3)).sum(1) for nearest in lattices]
    nearest = np.where((far[0] <= far[1])[:, None], *lattices)
    centre, hexagon = np.unique(nearest, axis=0, return_inverse=True)
    return hexagon.reshape(-1), low + centre * size, size
