"""The documentation is true where a machine can tell: commands and options exist, drawings follow the conventions."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer.main

from ralib.cli import app
from ralib.cli.commands.relion import OPTIONS as RELION_OPTIONS
from ralib.io import open_particles, write_mrcs, write_particles_star
from ralib.types import CtfParameters

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md"), ROOT / "README.md"])


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `ralib ...` in code, indented or between backticks, continued lines joined."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^(?: {4}|\t)?(?:\S+/)?(?:torchrun .*-m )?ralib (.*)$", joined, flags=re.MULTILINE)
    inline = re.findall(r"`ralib ([^`]*)`", joined.replace("\n", " "))
    for found in [*lines, *inline]:
        words = shlex.split(re.sub(r"\s#.*| \.\.\.|&$|<.*", "", found), posix=True)
        if words and re.fullmatch(r"[a-z]+", words[0]):
            yield words


def options_of(command: str) -> set[str]:
    group = typer.main.get_command(app)
    found = group.commands.get(command)
    assert found is not None, f"no command 'ralib {command}'"
    names = {name for p in found.params for name in [*p.opts, *p.secondary_opts]}
    return names | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist(page: Path) -> None:
    for words in commands(page.read_text()):
        if words[0] == "external":
            continue  # hands its options on to another command
        known = options_of(words[0])
        if words[0] == "relion":
            known |= set(RELION_OPTIONS)
        for word in words[1:]:
            option = word.split("=")[0]
            if option.startswith("--") and len(option) > 2:
                assert option in known, f"{page.name}: 'ralib {words[0]}' has no option {option}"


def test_the_check_above_sees_commands_and_can_fail() -> None:
    found = list(commands("    ralib mref a.star 5 out --xr 3 \\\n  --maxit 4  # more\nuse `ralib info` or `ralib`"))
    assert found == [["mref", "a.star", "5", "out", "--xr", "3", "--maxit", "4"], ["info"]]
    assert "--xr" in options_of("mref")
    assert "--no-such-option" not in options_of("mref")
    assert sum(len(list(commands(page.read_text()))) for page in PAGES) > 20


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "index.md"], ids=lambda page: page.name)
def test_python_on_the_front_pages_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example as printed, on a small stack instead of 50 classes of a large one on a GPU."""
    images = np.random.default_rng(0).standard_normal((12, 32, 32)).astype(np.float32)
    write_mrcs(tmp_path / "p.mrcs", images, 2.0)
    ones = np.ones(12)
    ctf = CtfParameters(1e4 * ones, 1e4 * ones, 0 * ones, 300 * ones, 2.7 * ones, 0.1 * ones, 0 * ones, 0 * ones)
    particles = open_particles(tmp_path / "p.mrcs").replace(ctf=ctf)
    write_particles_star(tmp_path / "particles.star", particles)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)[1]
    smaller = {"references=50": "references=2, iterations=1", "outer_radius=36": "outer_radius=10", '"cuda"': '"cpu"'}
    for large, small in smaller.items():
        assert large in code
        code = code.replace(large, small)
    exec(compile(code, page.name, "exec"), {})


def test_drawings_follow_the_conventions() -> None:
    spec = importlib.util.spec_from_file_location("drawings", ROOT / "docs" / "drawings.py")
    drawings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawings)
    for name, drawn in drawings.drawings().items():
        path = ROOT / "docs" / "img" / f"{name}.svg"
        assert path.read_text() == drawn, f"{path.name} is out of step: run python docs/drawings.py"


@pytest.mark.slow
def test_docs_built_strictly_have_no_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'cryo-ralib[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "site" / "api" / "analysis" / "index.html").stat().st_size > 20_000


def test_the_tutorial_can_be_run_as_it_stands() -> None:
    """docs/run_tutorial.py does; here only that it finds every command, in order."""
    spec = importlib.util.spec_from_file_location("run_tutorial", ROOT / "docs" / "run_tutorial.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.steps((ROOT / "docs" / "tutorial.md").read_text())
    commands = [step[2] if step[0] == "-m" else "python" for step in found]
    assert commands == ["simulate", "classify", "select", "python", "mref", "analyze", "average", "transform", "params"]
    assert found[0][-2:] == ["--seed", "1"]
    assert found[-1][-2:] == ["--export", "poses.txt"], "without the remark"
