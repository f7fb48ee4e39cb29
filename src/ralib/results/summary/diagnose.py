"""Diagnosis of a run: problems found from its poses, averages and metadata, each with advice."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ralib.results.run_record import run_record
from ralib.results.summary.figures import MINIMUM_MEMBERS
from ralib.results.summary.pictures import disc, normalised
from ralib.results.summary.runs import RunFiles
from ralib.types import Notice

EDGE_FRACTION = 0.05
OFF_CENTRE_FRACTION = 0.12
CLOSE_FRACTION = 0.1
ALIKE = 0.98


def diagnose(run: RunFiles, small_averages: np.ndarray) -> list[Notice]:
    """Return the run's own warnings, then further ones where it did not already warn of the same.

    Parameters
    ----------
    run : RunFiles
        The run.
    small_averages : ndarray of shape (k, s, s)
        Downsampled class averages.

    Returns
    -------
    list[Notice]
        Warnings.
    """
    recorded = [Notice.of_record(item) for item in run.record.get("warnings") or []]
    found = [
        _collapsed(run),
        _shifts_at_edge(run),
        _duplicates(run),
        _uncentred(run, small_averages),
        _alike(run, small_averages),
    ]
    words = " ".join(item.what.lower() for item in recorded)
    return recorded + [
        item for keys, item in (f for f in found if f is not None) if not any(key in words for key in keys)
    ]


def classes_text(index: np.ndarray, most: int = 12) -> str:
    """Return 'classes 1, 4, 9' (numbered from 1), cut off after some.

    Parameters
    ----------
    index : ndarray of shape (m,)
        Classes from 0.
    most : int, default 12
        Classes shown at most.

    Returns
    -------
    str
        The text.
    """
    names = [str(i + 1) for i in index[:most].tolist()]
    rest = f" and {len(index) - most} more" if len(index) > most else ""
    return f"{'class' if len(index) == 1 else 'classes'} {', '.join(names)}{rest}"


Finding = tuple[tuple[str, ...], Notice] | None
"""Words by which the run itself would have recorded it, and the warning."""


def _collapsed(run: RunFiles) -> Finding:
    low = np.flatnonzero(run.members < MINIMUM_MEMBERS)
    if not len(low):
        return None
    return ("collapsed", "ended below"), Notice(
        what=f"{len(low)} of {run.n_classes} classes collapsed (fewer than {MINIMUM_MEMBERS} members).",
        where=f"In {classes_text(low)}.",
        remedy="Ask for fewer classes, or for equal sizes (mref: --EQ).",
    )


def _shifts_at_edge(run: RunFiles) -> Finding:
    """Shifts that stopped at the end of the searched range, where the options say what it was."""
    record = run_record(run.record)
    reach = record.search_range_px
    if reach is None:
        return None
    member = run.poses.class_index.numpy() >= 0
    origin = np.abs(run.poses.origin_xy_px.numpy()[member])
    # classify searches a disc, the alignments a rectangle.
    far = np.hypot(*origin.T) if record.kind == "classify" else origin.max(axis=1, initial=0)
    fraction = float((far > reach - 0.5).mean()) if len(origin) else 0.0
    if fraction < EDGE_FRACTION:
        return None
    further = "--search" if record.kind == "classify" else "--xr, --yr"
    return ("edge",), Notice(
        what=f"{100 * fraction:.0f} % of the shifts lie at the edge of their range ({reach:g} px).",
        where="",
        remedy=f"Search further ({further}), or centre the particles first.",
    )


def _duplicates(run: RunFiles) -> Finding:
    """The same image twice, or two picks on one micrograph closer than a tenth of the box."""
    tables = run.particles.metadata.tables
    table = next((t for t in tables.values() if isinstance(t, pd.DataFrame) and "rlnImageName" in t.columns), None)
    if table is None:
        return None
    same = int(table["rlnImageName"].duplicated().sum())
    close = 0
    if {"rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY"} <= set(table.columns):
        close = _close_pairs(table, CLOSE_FRACTION * run.particles.box)
    if not same + close:
        return None
    parts = [
        f"{same} image{'s appear' if same > 1 else ' appears'} more than once" if same else "",
        f"{close} pick{'s lie' if close > 1 else ' lies'} on top of another" if close else "",
    ]
    return ("duplicate",), Notice(
        what=f"Suspicious duplicates: {' and '.join(p for p in parts if p)}.",
        where="",
        remedy="Remove them before half-set figures are trusted: 'ralib select --remove-duplicates A', or RELION's "
        "Subset selection.",
    )


def _close_pairs(table: pd.DataFrame, distance_px: float) -> int:
    """Particles with another one within `distance_px` on the same micrograph."""
    from scipy.spatial import cKDTree

    number = 0
    for _, picks in table.groupby("rlnMicrographName", sort=False)[["rlnCoordinateX", "rlnCoordinateY"]]:
        xy = picks.to_numpy(dtype=np.float64)
        if len(xy) > 1 and np.isfinite(xy).all():
            number += len(cKDTree(xy).query_pairs(distance_px))
    return number


def _uncentred(run: RunFiles, averages: np.ndarray) -> Finding:
    """Averages whose density lies away from the middle of the box."""
    size = averages.shape[-1]
    off = centre_of_mass_px(averages)
    low = np.flatnonzero((np.hypot(*off.T) > OFF_CENTRE_FRACTION * size) & (run.members >= MINIMUM_MEMBERS))
    if not len(low):
        return None
    again = "Run again with another --center, or l" if run_record(run.record).kind in ("mref", "reffree") else "L"
    return ("not centred", "off centre"), Notice(
        what="1 average is not centred." if len(low) == 1 else f"{len(low)} averages are not centred.",
        where=f"In {classes_text(low)}.",
        remedy=f"{again}eave {'this class' if len(low) == 1 else 'these classes'} out: the rims may be cut.",
    )


def centre_of_mass_px(images: np.ndarray) -> np.ndarray:
    """Return the centre of the bright density of each image (k, s, s), from the box centre: (k, 2) as x, y."""
    size = images.shape[-1]
    inside = disc(size)
    y, x = np.mgrid[:size, :size] - size // 2
    outside = np.where(inside, np.nan, images)
    level, noise = np.nanmean(outside, axis=(1, 2)), np.nanstd(outside, axis=(1, 2))
    peak = images.max(axis=(1, 2))
    threshold = np.maximum(level + 3 * noise, level + 0.3 * (peak - level))
    weight = np.where(inside, np.clip(images - threshold[:, None, None], 0, None), 0.0)
    total = weight.sum(axis=(1, 2))
    total = np.where(total > 0, total, 1)
    return np.stack([(weight * x).sum(axis=(1, 2)) / total, (weight * y).sum(axis=(1, 2)) / total], axis=1)


def _alike(run: RunFiles, averages: np.ndarray) -> Finding:
    """Pairs of averages that are one and the same picture."""
    features = normalised(averages)
    used = np.flatnonzero(run.members >= MINIMUM_MEMBERS)
    overlap = np.triu(features[used] @ features[used].T, 1)
    pairs = np.argwhere(overlap > ALIKE)
    if not len(pairs):
        return None
    text = ", ".join(f"{used[a] + 1} and {used[b] + 1}" for a, b in pairs[:6].tolist())
    return ("same picture",), Notice(
        what="1 pair of averages shows the same picture."
        if len(pairs) == 1
        else f"{len(pairs)} pairs of averages show the same picture.",
        where=f"Classes {text}{' and more' if len(pairs) > 6 else ''}.",
        remedy="Ask for fewer classes, or treat each pair as one when selecting.",
    )
