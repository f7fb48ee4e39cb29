"""Checkpoints: back to the bit, newest whole one wins, damage is noticed, nothing is unpickled."""

import numpy as np
import pytest

from ralib.results import checkpoint
from ralib.results.checkpoint import Checkpoint
from ralib.types import RalibError


def sample(number: int) -> Checkpoint:
    g = np.random.default_rng(number)
    arrays = {"a": g.normal(size=(3, 4)).astype(np.float32), "flags": np.array([True, False]), "n": np.array(7)}
    return Checkpoint(number, arrays, {"pi": 3.141592653589793, "nan": float("nan"), "list": [1, "two"]})


def test_comes_back_to_the_bit(tmp_path) -> None:
    checkpoint.save(tmp_path, sample(4))
    back = checkpoint.newest(tmp_path)
    assert back is not None
    assert back.number == 4
    for name, value in sample(4).arrays.items():
        assert back.arrays[name].dtype == value.dtype
        assert back.arrays[name].tobytes() == value.tobytes()
    assert back.meta["pi"] == 3.141592653589793
    assert back.meta["nan"] != back.meta["nan"]


def test_keeps_two_and_skips_a_damaged_one(tmp_path) -> None:
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, sample(number))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint_0002.ralib", "checkpoint_0003.ralib"]
    newest = tmp_path / "checkpoint_0003.ralib"
    whole = newest.read_bytes()
    for damaged in (whole[:-7], whole[:200] + b"x" + whole[201:], b"", b"garbage\nmore"):
        newest.write_bytes(damaged)
        found = checkpoint.newest(tmp_path)
        assert found is not None
        assert found.number == 2
    assert checkpoint.newest(tmp_path / "nowhere") is None


def test_objects_are_neither_written_nor_read(tmp_path) -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        checkpoint.save(tmp_path, Checkpoint(1, {"o": np.array([{}], dtype=object)}, {}))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(RalibError, match="cannot write"):
        checkpoint.save(tmp_path / "missing", sample(1))
