"""Numba and Triton find a place for what they compile, also where package and home cannot be written."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ralib.compile_cache import cache_error_message, choose_cache_folders

SOURCE = Path(__file__).resolve().parents[1] / "src"
NOWHERE = Path(__file__) / "in" / "no" / "folder"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_choose_cache_folders_unwritable_default_gives_a_folder_of_the_user(temporary: Path) -> None:
    environment = {"HOME": str(NOWHERE)}
    choose_cache_folders(environment, NOWHERE)
    place = Path(environment["NUMBA_CACHE_DIR"])
    assert environment["TRITON_CACHE_DIR"] == str(place)
    assert place.parent == temporary
    assert place.stat().st_mode & 0o077 == 0
    again = {"XDG_CACHE_HOME": str(NOWHERE)}
    choose_cache_folders(again, NOWHERE)
    assert again["NUMBA_CACHE_DIR"] == str(place), "compiled once, found by the next run"
    place.chmod(0o777)
    choose_cache_folders(others := {"HOME": str(NOWHERE)}, NOWHERE)
    assert others["NUMBA_CACHE_DIR"] != str(place), "what others can write is not run"


def test_choose_cache_folders_writable_default_is_left_alone(temporary: Path) -> None:
    home, nowhere = {"HOME": str(temporary)}, {"HOME": str(NOWHERE)}
    for environment, package, chosen in (
        (home, NOWHERE, set()),
        (nowhere, temporary, {"TRITON_CACHE_DIR"}),
        (nowhere | {"XDG_CACHE_HOME": str(temporary)}, NOWHERE, {"TRITON_CACHE_DIR"}),
        (nowhere | {"NUMBA_CACHE_DIR": "mine", "TRITON_CACHE_DIR": "mine"}, NOWHERE, set()),
        (nowhere | {"TRITON_HOME": "mine"}, NOWHERE, {"NUMBA_CACHE_DIR"}),
    ):
        after = dict(environment)
        choose_cache_folders(after, package)
        assert set(after) - set(environment) == chosen
        assert environment.items() <= after.items()


def test_triton_cache_that_cannot_be_used_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triton_cache = pytest.importorskip("triton.runtime.cache", reason="needs triton")
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(OSError, match="Not a directory") as caught:
        triton_cache.FileCacheManager("key").put(b"", "kernel.cubin")
    assert str(tmp_path / "file") in str(cache_error_message(caught.value))
    assert cache_error_message(OSError("ours")) is None


KERNEL = """
import numba
from ralib.kernels.numba_cache import kept

@kept
@numba.njit
def double(x):
    return 2 * x

assert double(3) == 6
print(double.stats.cache_hits[double.signatures[0]] if double.stats.cache_hits else 0)
"""


def run_kernel(folder: Path) -> tuple[int, str]:
    """How often a new process found what an earlier one had compiled, and what it said."""
    (folder / "kernel.py").write_text(KERNEL)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": str(SOURCE)}
    os.utime(folder / "kernel.py", (1, 1))
    command = [sys.executable, str(folder / "kernel.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_numba_cache_that_is_damaged_is_rebuilt(tmp_path: Path, suffix: str, damage: str) -> None:
    assert run_kernel(tmp_path) == (0, "")
    assert run_kernel(tmp_path) == (1, "")
    (path,) = (tmp_path / "cache").rglob(f"*{suffix}")
    raw = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": raw[: len(raw) // 2], "other": raw[:-9] + b"x" * 9}[damage])
    assert run_kernel(tmp_path) == (0, "")
    assert run_kernel(tmp_path) == (1, "")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk needs root and mount")
def test_numba_cache_that_is_full_is_left_aside(tmp_path: Path) -> None:
    disk = tmp_path / "cache"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        hits, said = run_kernel(tmp_path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert hits == 0
    assert len(said.strip().splitlines()) == 1
    assert "not kept" in said
