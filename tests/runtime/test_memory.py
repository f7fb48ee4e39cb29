"""Free memory honours the limits of containers and queues, and is shared among the ranks of a machine."""

from pathlib import Path

import psutil
import pytest
import torch

from ralib.runtime import memory

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


def test_version_1(groups: Path) -> None:
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
