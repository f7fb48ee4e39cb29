"""Free memory honours the limits of containers and queues, and is shared among the ranks of a machine."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from ralib.runtime import memory

SOURCE = Path(__file__).resolve().parents[2] / "src"
CPU = torch.device("cpu")
MIB = 2**20


def group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "CONTROL_GROUPS", tmp_path / "fs")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    (tmp_path / "own").write_text("3:cpu:/\n0::/job/step\n")
    return tmp_path


def test_version_2_the_tightest_limit_counts(groups: Path) -> None:
    stat = f"anon 1\ninactive_file {MIB}"
    group(groups / "fs" / "job", {"memory.max": str(9 * MIB), "memory.current": str(5 * MIB), "memory.stat": stat})
    group(groups / "fs" / "job" / "step", {"memory.max": "max", "memory.current": "7", "memory.stat": stat})
    assert memory.free_memory(CPU) == 5 * MIB


def test_free_memory_cgroup_version_1_is_read(groups: Path) -> None:
    (groups / "own").write_text("4:memory,x:/job\n")
    files = {"memory.limit_in_bytes": str(8 * MIB), "memory.usage_in_bytes": str(6 * MIB)}
    group(groups / "fs" / "memory" / "job", files | {"memory.stat": f"total_inactive_file {MIB}"})
    assert memory.free_memory(CPU) == 3 * MIB


def test_without_limits_and_among_ranks(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 400}))
    assert memory.free_memory(CPU) == 400
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.free_memory(CPU) == 100
    (groups / "own").unlink()
    assert memory.free_memory(CPU) == 100


def test_free_memory_heeds_the_limits_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here = memory.free_memory(torch.device("cpu"))
    pages = [int(word) for word in memory.OWN_SIZES.read_text().split()]
    most = 2 * pages[0] * memory.resource.getpagesize()
    monkeypatch.setattr(memory.resource, "getrlimit", lambda kind: (most, most))
    limited = memory.free_memory(torch.device("cpu"))
    assert 0 < limited <= min(here, most)
    assert memory.memory_left().endswith("MiB of main memory are free")


@pytest.mark.parametrize("limit", ["-v", "-d"])
def test_program_under_a_small_limit_says_so_in_one_line(limit: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = f"ulimit {limit} 300000; exec {sys.executable} -m ralib mref none.star 2 out"
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("ralib: ")
    assert f"ulimit {limit} allows 292 MiB" in line
