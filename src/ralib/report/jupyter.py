"""Class averages and runs in a notebook: a small gallery that needs no script."""

from __future__ import annotations

from typing import Any

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from ralib.report.sheets import encode, grey_levels

THUMBNAIL_PX = 96
MOST = 60

_GALLERY = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string("""\
<div style="font:13px system-ui,sans-serif">
<div style="margin:2px 0 8px">{% for name, value in facts %}<span style="margin-right:16px"><span
 style="opacity:.65">{{ name }}</span> <b>{{ value }}</b></span>{% endfor %}</div>
<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(84px,1fr));gap:8px">
{% for number, size, resolution, source in tiles %}
<figure style="margin:0"><img alt="class {{ number }}" src="{{ source }}"
 style="width:100%;border-radius:6px;display:block"><figcaption
 style="font-size:11px;opacity:.8">#{{ number }} · {{ size }}{{ resolution }}</figcaption></figure>
{% endfor %}
</div>
{% if left_out %}<div style="opacity:.65;margin-top:6px">and {{ left_out }} smaller classes</div>{% endif %}
{% for notice in warnings %}<div style="margin-top:6px">⚠ <b>{{ notice.what }}</b> {{ notice.remedy }}</div>{% endfor %}
</div>""")


def class_averages_html(averages: Any, facts: list[tuple[str, str]] | None = None, warnings: Any = ()) -> str:
    """Return a `ClassAverages` as HTML: its largest classes first, each with number (from 1), members and resolution.

    Parameters
    ----------
    averages : Any
        Class averages.
    facts : list of tuple of str, optional
        Names and values shown above.
    warnings : Any, default ()
        Warnings shown above.

    Returns
    -------
    str
        HTML.
    """
    members = averages.members.cpu().numpy()
    images = averages.images.detach().cpu().numpy()
    order = np.argsort(-members, kind="stable")[:MOST]
    frc = None if averages.frc is None else averages.frc.detach().cpu().numpy()
    step = max(1, images.shape[-1] // THUMBNAIL_PX)
    tiles = []
    for k, levels in zip(order.tolist(), grey_levels(images[order]), strict=True):
        source = Markup("data:image/webp;base64,") + encode(_binned(levels, step))
        tiles.append((k + 1, f"{int(members[k]):,}", _resolution_text(frc, k, averages), source))
    facts = facts or [("classes", f"{len(images)}"), ("particles", f"{int(members.sum()):,}")]
    left_out = len(images) - len(order)
    return _GALLERY.render(facts=facts, tiles=tiles, left_out=left_out, warnings=list(warnings))


def run_result_html(result: Any) -> str:
    """Return a `RunResult` as HTML: what was done, its warnings and the class averages."""
    facts = [("run", str(result.kind)), ("iterations", str(len(result.iterations)))]
    facts += [("classes", str(len(result.averages.images))), ("particles", f"{len(result.poses):,}")]
    return class_averages_html(result.averages, facts, result.warnings)


def _binned(levels: np.ndarray, step: int) -> np.ndarray:
    """Means over step x step pixels, for thumbnails of large boxes."""
    size = levels.shape[-1] // step * step
    blocks = levels[:size, :size].reshape(size // step, step, size // step, step)
    return np.asarray(blocks.mean(axis=(1, 3)).round()).astype(np.uint8)


def _resolution_text(frc: np.ndarray | None, k: int, averages: Any) -> str:
    """', 8.4 Å': where the curve first falls below 0.143; empty where it says nothing."""
    if frc is None or averages.pixel_size_A is None or not np.isfinite(frc[k]).all():
        return ""
    below = np.flatnonzero(frc[k, 1:] < 0.143)
    if not len(below) or below[0] == 0:
        return ""
    return f" · {averages.images.shape[-1] * averages.pixel_size_A / (below[0] + 1):.1f} Å"
