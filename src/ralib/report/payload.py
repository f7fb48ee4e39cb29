"""Report contents as JSON: numbers for machines (`figures`), and the page's own data with packed arrays (`page`)."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ralib.report.contents import Embedding, HexagonMap, ReportContents
from ralib.report.sheets import draw, encode, layout

FORMAT = "ralib-report"
FORMAT_VERSION = 2


def plain(value: Any) -> Any:
    """Convert a value to JSON's own types; NaN and infinity become None, keys become text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    return str(value)


def figures(contents: ReportContents) -> dict[str, Any]:
    """Return the report's numbers without its pictures."""
    c = contents
    shown: dict[str, Any] = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "title": c.title,
        "fingerprint": c.fingerprint,
        "facts": c.facts,
        "classes": c.classes,
        "iterations": c.iterations,
        "warnings": c.warnings,
        "box_px": c.box_px,
        "pixel_size_A": c.pixel_size_A,
        "histograms": {name: vars(h) for name, h in c.histograms.items()},
        "hexagon_maps": {name: _hexagon_map(m, lambda counts: counts) for name, m in c.hexagon_maps.items()},
        "ctf": vars(c.ctf) if c.ctf else None,
        "frc": None,
        "members": None,
        "embedding": None,
    }
    if c.frc is not None:
        shown["frc"] = {"frequency_per_px": c.frc_frequency_per_px, "values": c.frc}
    if c.members is not None:
        shown["members"] = {"kind": c.members.kind, "row": c.members.row, "score": c.members.score}
    if c.embedding is not None:
        shown["embedding"] = {k: v for k, v in vars(c.embedding).items() if k != "images"}
    return dict(plain(shown))


def packed(array: np.ndarray, dtype: str) -> dict[str, Any]:
    """Return an array as base64 of its little-endian bytes.

    Parameters
    ----------
    array : ndarray
        The array.
    dtype : str
        'u1', 'u2', 'u4' or 'f4'.

    Returns
    -------
    dict
        The entries dtype, shape and base64.
    """
    data = np.ascontiguousarray(array, dtype="<" + dtype)
    return {"dtype": dtype, "shape": list(data.shape), "base64": base64.b64encode(data.tobytes()).decode("ascii")}


def page(contents: ReportContents) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the page's data.

    Parameters
    ----------
    contents : ReportContents
        The contents.

    Returns
    -------
    dict
        The page's JSON.
    dict
        The image sheets as text, by the element names that the JSON refers to.
    """
    sheets = _Sheets()
    c = contents
    data: dict[str, Any] = {
        key: getattr(c, key)
        for key in ("title", "fingerprint", "facts", "classes", "iterations", "warnings", "box_px", "pixel_size_A")
    }
    data["server"], data["automatic_junk_limit"] = c.server, c.automatic_junk_limit
    data["averages"] = sheets.add("averages", c.averages, 90)
    data["frc"] = data["particle_figures"] = data["members"] = data["history"] = data["ctf"] = None
    if c.frc is not None and c.frc_frequency_per_px is not None:
        data["frc"] = {"frequency_per_px": c.frc_frequency_per_px, "values": packed(c.frc, "f4")}
    if c.particle_figures:
        data["particle_figures"] = {name: packed(values, "f4") for name, values in c.particle_figures.items()}
    data["histograms"] = {
        name: {"label": h.label, "unit": h.unit, "edges": h.edges, "counts": packed(h.counts, "u4")}
        for name, h in c.histograms.items()
    }
    data["hexagon_maps"] = {
        name: _hexagon_map(m, lambda counts: packed(counts, "u4")) for name, m in c.hexagon_maps.items()
    }
    if c.members is not None:
        m = c.members
        data["members"] = {"kind": m.kind, "row": m.row, "score": m.score, "figures": m.figures}
        data["members"]["sheets"] = sheets.add("members", m.images, 55)
    if c.history is not None:
        h = c.history
        data["history"] = {
            "iterations": h.iterations,
            "ancestors": h.ancestors,
            "sheets": sheets.add("history", h.images, 60),
        }
    if c.ctf is not None:
        data["ctf"] = vars(c.ctf)
    data["components"] = [
        {"name": f.name, "title": f.title, "caption": f.caption, "png": base64.b64encode(f.png).decode("ascii")}
        for f in c.components
    ]
    data["embedding"] = None if c.embedding is None else _embedding(c.embedding, sheets)
    return dict(plain(data)), sheets.encoded()


class _Sheets:
    """The image sheets of a page, by the element names that its JSON refers to; drawn and encoded in threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor()
        self._texts: dict[str, Future[str]] = {}

    def add(self, name: str, images: np.ndarray, quality: int) -> list[dict[str, Any]]:
        """Begin to put images (..., n, n) on sheets; what the JSON says of each sheet."""
        flat = images.reshape(-1, *images.shape[-2:])
        listing = []
        for number, sheet in enumerate(layout(len(flat), flat.shape[-1])):
            element = f"sheet-{name}-{number}"
            self._texts[element] = self._pool.submit(lambda own: encode(draw(flat, own), quality=quality), sheet)
            listing.append({"id": element, **sheet})
        return listing

    def encoded(self) -> dict[str, str]:
        """The sheets as text, when all are ready."""
        with self._pool:
            return {element: text.result() for element, text in self._texts.items()}


def _hexagon_map(m: HexagonMap, shown: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    sides = {name: {**vars(side), "counts": shown(side.counts)} for name, side in (("x", m.x), ("y", m.y))}
    return {"title": m.title, "centre": m.centre, "size": m.size, "counts": shown(m.counts), **sides}


def _embedding(e: Embedding, sheets: _Sheets) -> dict[str, Any]:
    return {
        "xy": packed(e.xy, "f4"),
        "row": packed(e.row, "u4"),
        "class_index": packed(e.class_index, "u2"),
        "score": packed(e.score, "f4"),
        "defocus_A": packed(e.defocus_A, "f4"),
        "sheets": sheets.add("points", e.images, 35),
        "class_xy": packed(e.class_xy, "f4"),
        "class_tsne_xy": None if e.class_tsne_xy is None else packed(e.class_tsne_xy, "f4"),
        "explained": e.explained,
    }


def script_safe(value: Any) -> str:
    """Return JSON that may stand inside <script>: no character in it can end the element or open another."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
