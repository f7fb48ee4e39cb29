"""Scripts of bench/ take from the package what is there: no test runs them, and a name that moved would break them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = sorted((Path(__file__).parents[2] / "bench").glob("*.py"))


def imported(tree: ast.Module) -> Iterator[tuple[ast.ImportFrom, ModuleType]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ralib":
            yield node, importlib.import_module(str(node.module))


def has(module: ModuleType, name: str) -> bool:
    """Whether the module has the name, a submodule's or another."""
    try:
        return hasattr(module, name) or bool(importlib.import_module(f"{module.__name__}.{name}"))
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_names_of_the_package_exist(script: Path) -> None:
    tree = ast.parse(script.read_text())
    modules = {}
    for node, module in imported(tree):
        for alias in node.names:
            assert has(module, alias.name), f"{node.module} has no {alias.name}"
            if isinstance(found := getattr(module, alias.name), ModuleType):
                modules[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        # module.name, and what is replaced or timed by its name: setattr(module, "name", ...) and the like
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert has(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}"
        if isinstance(node, ast.Call) and len(node.args) > 1 and isinstance(node.args[0], ast.Name):
            module, name = modules.get(node.args[0].id), node.args[1]
            if module and isinstance(name, ast.Constant) and isinstance(name.value, str):
                assert has(module, name.value), f"{module.__name__}.{name.value}"
