"""What ruff does not see: public functions of several arguments describe them, by NumPy's convention."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "ralib"
FOLDERS = sorted(p.name for p in SOURCE.iterdir() if p.is_dir() and p.name not in ("cli", "__pycache__"))
"""The commands' options describe themselves in `--help`."""


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods whose names, and whose classes' names, have no underscore in front."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield prefix + node.name, node


def faults(function: ast.FunctionDef) -> list[str]:
    """What the docstring of a function of two or more arguments lacks; it may refer to another one's instead."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    names = [a.arg for a in arguments if a.arg not in ("self", "cls")]
    text = ast.get_docstring(function) or ""
    if len(names) < 2 or re.search(r"[Ss]ee `", text.split("\n")[0]):
        return []
    found = []
    if re.search(r"^Parameters\n-+$", text, flags=re.MULTILINE):
        described = {n for line in text.splitlines() for n in re.findall(r"\w+", line.split(" : ")[0])}
        found += [f"describes no {n}" for n in names if n not in described]
    else:
        found.append("has no Parameters")
    returns = "" if function.returns is None else ast.unparse(function.returns)
    if returns not in ("None", "NoReturn") and not re.search(r"^(Returns|Yields)\n-+$", text, flags=re.MULTILINE):
        found.append("has no Returns")
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_public_functions_describe_arguments_and_result(folder: str) -> None:
    wrong = []
    for path in sorted((SOURCE / folder).rglob("*.py")):
        for name, function in public_functions(ast.parse(path.read_text()).body):
            wrong += [f"{path.relative_to(SOURCE)}: {name} {fault}" for fault in faults(function)]
    assert not wrong, "\n".join(wrong)


def test_docstrings_check_sees_what_is_missing() -> None:
    function = ast.parse(
        'def f(a: int, b: int) -> int:\n    """Add.\n\n    Parameters\n    ----------\n    a : int\n    """'
    )
    assert faults(function.body[0]) == ["describes no b", "has no Returns"]  # type: ignore[arg-type]
