"""Report contents as one self-contained HTML file: styles, script, data and pictures inside."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from ralib.report.contents import ReportContents
from ralib.report.payload import page, plain, script_safe

SCRIPTS = (
    *("data.js", "figures.js", "charts.js", "selection.js", "table.js", "gallery.js", "toolbar.js", "export.js"),
    *("detail.js", "map.js", "sections.js", "server.js", "main.js"),
)


def render_report(contents: ReportContents) -> str:
    """Return the whole page as text.

    Texts from the run reach the page only as JSON data and through textContent, and the content security policy allows
    only our script (by its hash) and no request to other servers (a served page may ask its own): a label or file name
    cannot inject anything.

    Parameters
    ----------
    contents : ReportContents
        The contents.

    Returns
    -------
    str
        HTML.
    """
    data, sheets = page(contents)
    script = '"use strict";\n(() => {\n' + "\n".join(_part(name) for name in SCRIPTS) + "\n})();"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    if contents.server is not None:
        policy += "; connect-src 'self'"
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_part("report.html"))
    return template.render(
        title=contents.title,
        classes=plain(contents.classes),
        warnings=contents.warnings,
        policy=policy,
        style=Markup(_part("report.css")),
        script=Markup(script),
        data=Markup(script_safe(data)),
        sheets=[(name, Markup(text)) for name, text in sheets.items()],
    )


def _part(name: str) -> str:
    return files("ralib.report").joinpath(name).read_text(encoding="utf-8")
