"""Numba finds a place for what it compiles, also where package and home cannot be written."""

import tempfile
from pathlib import Path

import pytest

from ralib.ops.compiled import choose_place

NOWHERE = Path("/proc/nowhere")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_place_of_this_users_own(temporary: Path) -> None:
    environment = {"HOME": str(NOWHERE)}
    choose_place(environment, NOWHERE)
    place = Path(environment["NUMBA_CACHE_DIR"])
    assert place.parent == temporary
    assert place.stat().st_mode & 0o077 == 0
    again = {"XDG_CACHE_HOME": str(NOWHERE)}
    choose_place(again, NOWHERE)
    assert again["NUMBA_CACHE_DIR"] == str(place), "compiled once, found by the next run"
    place.chmod(0o777)
    choose_place(others := {"HOME": str(NOWHERE)}, NOWHERE)
    assert others["NUMBA_CACHE_DIR"] != str(place), "what others can write is not run"


def test_numbas_own_places_come_first(temporary: Path) -> None:
    for environment, package in (
        ({"HOME": str(NOWHERE)}, temporary),
        ({"HOME": str(temporary)}, NOWHERE),
        ({"XDG_CACHE_HOME": str(temporary)}, NOWHERE),
        ({"NUMBA_CACHE_DIR": "mine"}, NOWHERE),
    ):
        before = environment.get("NUMBA_CACHE_DIR")
        choose_place(environment, package)
        assert environment.get("NUMBA_CACHE_DIR") == before
