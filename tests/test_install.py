"""The wheel, in an environment of its own with the sources out of reach: it imports, it runs, it holds its data."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what the repository holds, with the build tools already installed."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    copy.mkdir()
    shutil.copytree(ROOT / "src" / "ralib", copy / "src" / "ralib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    backend = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    run(sys.executable, "-c", backend, str(folder), cwd=copy)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment in which pip has installed the wheel; this one lends the libraries it needs."""
    pytest.importorskip("pip", reason="pip is missing from this environment, and the wheel is installed with it")
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    lent = [p for p in sys.path if p.endswith("site-packages")]
    # Not the folder itself as a line: its own .pth files would run the editable install's finder, which leads back to
    # the sources.
    (packages / "lent.pth").write_text(f"import sys; sys.path += {lent!r}\n")
    return python


def run(*command: object, cwd: Path | None = None) -> str:
    """Standard output of a command that must succeed, away from the sources."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = (
        "import ralib, pkgutil, importlib\n"
        "names = [m.name for m in pkgutil.walk_packages(ralib.__path__, 'ralib.')]\n"
        "names = [n for n in names if n != 'ralib.__main__' and 'triton' not in n]\n"
        "[importlib.import_module(n) for n in names]\n"
        "print(ralib.__file__, len(names))"
    )
    file, count = run(installed, "-c", code, cwd=tmp_path).split()[-2:]
    assert not Path(file).is_relative_to(ROOT)
    assert int(count) > 40


def test_the_command_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    assert run(installed, "-m", "ralib", "--version", cwd=tmp_path).startswith("ralib ")
    run(installed, "-m", "ralib", "simulate", "out", "--particles", "5", "--box", "32", "--device", "cpu", cwd=tmp_path)
    assert (tmp_path / "out" / "truth.npz").is_file()


def test_the_wheel_holds_what_is_not_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*") if p.is_file()}
    wanted = {n for n in wanted if "__pycache__" not in n and ".egg-info" not in n}
    assert wanted <= names, sorted(wanted - names)
    assert "ralib/py.typed" in names
    assert not any(n.startswith(("tests", "bench")) for n in names)


SMALLER = {"--classes 50": "--classes 2", " 50 averages": " 2 averages", "--ou 36": "--ou 11", "--xr 3": "--xr 1"}
"""README's commands for 240 particles of 32 px."""

SMALLER_IN_PYTHON = {"references=50": "references=2", "outer_radius=36": "outer_radius=10", '"cuda"': '"cpu"'}


@pytest.fixture(scope="module")
def readme_folder(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with particles.star, as README supposes it."""
    folder = tmp_path_factory.mktemp("readme")
    command = "simulate set --particles 240 --box 32 --views 2 --snr 0.4 --device cpu"
    run(installed.with_name("ralib"), *command.split(), cwd=folder)
    for file in ("particles.star", "particles.mrcs"):
        shutil.copy(folder / "set" / file, folder)
    return folder


def replaced(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text


def test_the_readme_commands_run_from_the_wheel(installed: Path, readme_folder: Path) -> None:
    commands = re.findall(r"^    ralib ([^#\n]*)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert [c.split()[0] for c in commands] == ["classify", "select", "mref"]
    for large in SMALLER:
        assert any(large in command for command in commands), (
            f"README has no {large!r}: this test would run at full size"
        )
    for command in commands:
        run(installed.with_name("ralib"), *replaced(command, SMALLER).split(), cwd=readme_folder)
    assert (readme_folder / "classes" / "report.html").is_file()
    assert (readme_folder / "averages" / "report.html").is_file()
    assert (readme_folder / "good.star").is_file()


def test_the_readme_python_runs_from_the_wheel(installed: Path, readme_folder: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    assert all(large in code for large in SMALLER_IN_PYTHON)
    code = replaced(code, SMALLER_IN_PYTHON) + "\nprint(ralib.__file__, tuple(turned.shape), len(poses))"
    file, rest = run(installed, "-c", code, cwd=readme_folder).split(maxsplit=1)
    assert not Path(file).is_relative_to(ROOT)
    assert rest == "(2, 32, 32) 240\n"


def test_every_declared_dependency_is_imported() -> None:
    """By the package itself, and each optional library by it or by the tests of its extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    modules = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml", "umap-learn": "umap"}

    def imported(folder: Path) -> set[str]:
        text = "\n".join(path.read_text() for path in folder.rglob("*.py"))
        found = re.findall(r"^\s*(?:import|from)\s+([\w]+)", text, flags=re.MULTILINE)
        named = re.findall(r"(?:required|import_module|importorskip|find_spec)\(\s*\"([\w]+)", text)
        return {*found, *named}

    used = imported(ROOT / "src")
    for line in project["dependencies"]:
        name = re.split(r"[>=<;\[ ]", line)[0]
        assert modules.get(name, name) in used, f"{name} is declared and never imported"
    for extra in ("serve", "xarray", "napari", "analysis"):
        for line in project["optional-dependencies"][extra]:
            name = re.split(r"[>=<;\[ ]", line)[0]
            assert modules.get(name, name).lower() in {n.lower() for n in used}, (
                f"{name} of [{extra}] is never imported"
            )


def test_every_lower_bound_has_its_job() -> None:
    """requirements/lowest.txt, which `make lowest` tests, names the lower bound of every dependency but PyTorch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {d.split(">=")[0]: d.split(">=")[1] for d in project["dependencies"] if not d.startswith("torch")}
    pins = dict(line.split("==") for line in (ROOT / "requirements" / "lowest.txt").read_text().split() if "==" in line)
    assert {name: pins.get(name) for name in bounds} == bounds
