"""Our docstrings on the site: a column of names with their shapes and units beside them becomes a list.

images    (b, n, n), or one image (n, n)          - `images`: (b, n, n), or one image (n, n)
alpha     degrees                         becomes - `alpha`: degrees
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ENTRY = re.compile(r"^(\S(?:.*?\S)?) {2,}(\S.*)$")


def as_markdown(text: str) -> str:
    """A docstring with its columns as lists and `names_` as code."""
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n\s*\n", text.strip("\n")))


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    entries = [ENTRY.match(line) for line in lines if not line.startswith(" ")]
    if not entries or entries[0] is None or lines[0].startswith(" "):
        return text if lines[0].startswith("    ") else _fitted_names(text)
    items: list[str] = []
    for line in lines:
        found = ENTRY.match(line)
        if found and not line.startswith(" "):
            items.append(f"- `{found[1]}`: {_fitted_names(found[2])}")
        elif line.startswith(" "):
            items[-1] += " " + _fitted_names(" ".join(line.split()))
        else:
            items.append(f"\n{_fitted_names(line)}" if not items[-1].startswith("\n") else _fitted_names(line))
    return "\n".join(items)


def _fitted_names(text: str) -> str:
    return re.sub(r"(?<![`\w.])(\w*[a-zA-Z]_)(?=[\s(,.;:)]|$)", r"`\1`", text)


class Columns(Extension):
    """The extension griffe loads."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
