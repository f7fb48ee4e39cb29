"""Under a container's limit the program says that memory runs out before the kernel ends it without a word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ralib.runtime import memory, memory_guard
from ralib.runtime.memory_guard import MemoryGuard

SOURCE = Path(__file__).resolve().parents[2] / "src"
PROGRAM = """
import sys, time
from pathlib import Path
from ralib.runtime import memory
memory.OWN_GROUPS, memory.CONTROL_GROUPS = Path(sys.argv[1]) / "own", Path(sys.argv[1])
from ralib.runtime.memory_guard import MemoryGuard
with MemoryGuard():
    (Path(sys.argv[1]) / "memory.stat").write_text(f"{sys.argv[2]} {440 << 20}\\nactive_file 0\\n")
    time.sleep(20)
"""


def groups(folder: Path, taken: int = 200 << 20, name: str = "anon") -> Path:
    (folder / "own").write_text("0::/\n")
    (folder / "memory.max").write_text(f"{450 << 20}\n")
    (folder / "memory.current").write_text(f"{450 << 20}\n")
    (folder / "memory.stat").write_text(f"{name} {taken}\nactive_file {250 << 20}\n")
    return folder


def test_guard_says_that_memory_runs_out(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(groups(tmp_path)), "anon"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "10 MiB are left of the 450 MiB" in line


def test_guard_lets_files_be_cached_up_to_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OWN_GROUPS", groups(tmp_path) / "own")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(memory_guard, "_end", lambda *_: pytest.fail("it ended the program"))
    with MemoryGuard() as guard:
        assert guard.is_alive()


def test_guard_without_a_limit_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (groups(tmp_path) / "memory.max").write_text("max\n")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path)
    with MemoryGuard() as guard:
        assert not guard.is_alive()
