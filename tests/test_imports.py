"""Imports point one way: the floors stand in docs/architecture.md."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "ralib"

PLAN = SOURCE.parents[1] / "docs" / "architecture.md"


def floors(text: str) -> dict[str, int]:
    """The table of docs/architecture.md: each folder or root module and its floor."""
    rows = re.findall(r"^\| (\d+) \| `([\w/]+)` \|", text, flags=re.MULTILINE)
    return {name: int(number) for number, name in rows}


FLOOR = floors(PLAN.read_text())


def room(module: str) -> str:
    """`ralib.io.star` -> `io`; the package itself -> ''."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["ralib", *path.relative_to(SOURCE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: set[str], *, at_load: bool = False) -> set[str]:
    """Modules of ralib that a file imports; `at_load`: only those outside functions, also those for types alone."""
    found = set()
    tree = ast.parse(path.read_text())
    nodes = _loaded(tree) if at_load else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "ralib"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write the whole name"
            base = node.module or ""
            if base.split(".")[0] == "ralib":
                found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names}
    return found


def _loaded(tree: ast.AST) -> list[ast.AST]:
    """Statements outside functions."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += [node, *_loaded(node)]
    return found


def forbidden(importer: str, imported: str) -> str | None:
    """Why `importer` may not see `imported`, or None."""
    here, there = room(importer), room(imported)
    if here == there:
        return None
    if there == "":
        return "the package's own names are for its users"
    if FLOOR[there] >= FLOOR[here]:
        return f"{there} is on floor {FLOOR[there]}, {here} on floor {FLOOR[here]}"
    return None


def test_every_folder_has_a_floor() -> None:
    folders = {str(p.parent.relative_to(SOURCE)) for p in SOURCE.rglob("__init__.py")} - {"."}
    alone = {p.stem for p in SOURCE.glob("*.py")} - {"__init__"}
    assert set(FLOOR) == folders | alone


def test_the_root_stays_small() -> None:
    modules = [p for p in SOURCE.glob("*.py")]
    folders = [p for p in SOURCE.iterdir() if (p / "__init__.py").is_file()]
    assert len(modules) <= 6
    assert len(folders) <= 17


def test_imports_point_one_way() -> None:
    known = modules()
    wrong = [
        f"{name} imports {target}: {why}"
        for name, path in known.items()
        if name != "ralib"
        for target in sorted(imports(path, set(known)))
        if (why := forbidden(name, target))
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_at_load_form_no_circle() -> None:
    known = modules()
    graph = {name: imports(path, set(known), at_load=True) & set(known) for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "a circle of imports: " + " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name] - {name}):
                walk(target, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_triton_stays_in_kernels() -> None:
    """But for the name of its cache, which is computed before PyTorch loads, and with it `kernels`."""
    for name, path in modules().items():
        if name == "ralib.compile_cache":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert room(name) == "kernels" or not any(n.split(".")[0] == "triton" for n in names), name


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("ralib.alignment.search.batched", "ralib.kernels", True),
        ("ralib.kernels.pose_search.reference", "ralib.alignment.search.batched", False),
        ("ralib.io.star", "ralib.images.ctf", False),
        ("ralib.cli.commands.average", "ralib.alignment.multi_reference", True),
        ("ralib.classes.averages", "ralib.alignment.multi_reference", False),
        ("ralib.alignment.iteration", "ralib.classification.em", False),
        ("ralib.classification.em", "ralib.alignment.iteration", False),
        ("ralib.images.fourier", "ralib", False),
    ],
)
def test_forbidden_import_by_floor_is_found(importer: str, imported: str, allowed: bool) -> None:
    assert (forbidden(importer, imported) is None) == allowed
