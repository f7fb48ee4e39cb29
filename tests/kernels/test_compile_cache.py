"""Numba and Triton find a place for what they compile, also where package and home cannot be written."""

import tempfile
from pathlib import Path

import pytest

from ralib.kernels.compile_cache import choose_places

NOWHERE = Path(__file__) / "in" / "no" / "folder"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_choose_places_unwritable_default_gives_a_folder_of_the_user(temporary: Path) -> None:
    environment = {"HOME": str(NOWHERE)}
    choose_places(environment, NOWHERE)
    place = Path(environment["NUMBA_CACHE_DIR"])
    assert environment["TRITON_CACHE_DIR"] == str(place)
    assert place.parent == temporary
    assert place.stat().st_mode & 0o077 == 0
    again = {"XDG_CACHE_HOME": str(NOWHERE)}
    choose_places(again, NOWHERE)
    assert again["NUMBA_CACHE_DIR"] == str(place), "compiled once, found by the next run"
    place.chmod(0o777)
    choose_places(others := {"HOME": str(NOWHERE)}, NOWHERE)
    assert others["NUMBA_CACHE_DIR"] != str(place), "what others can write is not run"


def test_choose_places_writable_default_is_left_alone(temporary: Path) -> None:
    home, nowhere = {"HOME": str(temporary)}, {"HOME": str(NOWHERE)}
    for environment, package, chosen in (
        (home, NOWHERE, set()),
        (nowhere, temporary, {"TRITON_CACHE_DIR"}),
        (nowhere | {"XDG_CACHE_HOME": str(temporary)}, NOWHERE, {"TRITON_CACHE_DIR"}),
        (nowhere | {"NUMBA_CACHE_DIR": "mine", "TRITON_CACHE_DIR": "mine"}, NOWHERE, set()),
        (nowhere | {"TRITON_HOME": "mine"}, NOWHERE, {"NUMBA_CACHE_DIR"}),
    ):
        after = dict(environment)
        choose_places(after, package)
        assert set(after) - set(environment) == chosen
        assert environment.items() <= after.items()
