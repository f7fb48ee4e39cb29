"""A short soak: runs in one process leave nothing behind. The long one is bench/soak.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
import soak


def test_short_runs_leave_nothing_behind() -> None:
    found = soak.soak(12, "cpu", most_runs=20)
    assert found["runs"] >= 15
    assert found["failed"] == 0
    assert found["grown"] == [], found["held"]


@pytest.mark.parametrize("name", ["rss_bytes", "open_files", "threads"])
def test_a_leak_is_seen(name: str) -> None:
    leaking = [dict.fromkeys(("rss_bytes", "open_files", "threads"), 100) | {name: 100 + 10**7 * i} for i in range(50)]
    assert soak.judged(leaking)["grown"] == [name]
    assert soak.judged(leaking[:1] * 50)["grown"] == []
