"""Checkpoints: back to the bit, newest whole one wins, damage is noticed, nothing is unpickled."""

import hashlib
import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.alignment.state import LoopState
from ralib.results import checkpoint
from ralib.results.checkpoint import Checkpoint
from ralib.types import Poses, RalibError


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


CHANGES = {
    "no references": lambda a, m: a.pop("references"),
    "other particles": lambda a, m: a.update({"poses.score": a["poses.score"][:-1]}),
    "double precision": lambda a, m: a.update({"poses.psi_deg": a["poses.psi_deg"].astype(np.float64)}),
    "text": lambda a, m: a.update({"references": a["references"].astype("S4")}),
    "not finite": lambda a, m: a["references"].fill(np.nan),
    "no such class": lambda a, m: a["poses.class_index"].fill(9),
    "other iteration": lambda a, m: m.update(iteration=-5),
    "no number": lambda a, m: m.update(stage="x"),
    "no figures": lambda a, m: m.pop("figures"),
    "odd warnings": lambda a, m: m.update(warnings=[1]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_checkpoint_that_was_changed_is_refused_in_one_line(change: str) -> None:
    poses = Poses.identity(6)
    whole = LoopState(2, torch.zeros(2, 8, 8), poses, previous=poses, figures=[{}, {}]).checkpoint()
    assert LoopState.from_checkpoint(whole, torch.device("cpu")).iteration == 2
    CHANGES[change](whole.arrays, whole.meta)
    with pytest.raises(RalibError, match="is not what the run wrote") as caught:
        LoopState.from_checkpoint(whole, torch.device("cpu"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("flag", "method"), [(0, 99), (1, 0)])
def test_load_archive_packed_by_another_method_or_encrypted_is_none(tmp_path: Path, flag: int, method: int) -> None:
    """Its digest is right, so that only the archive itself tells."""
    path = checkpoint.save(tmp_path, Checkpoint(1, {"a": np.arange(3)}, {"figures": []}))
    payload = bytearray(path.read_bytes().partition(b"\n")[2])
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = payload.find(mark)
        while place >= 0:
            payload[place + at : place + at + 4] = struct.pack("<HH", flag, method)
            place = payload.find(mark, place + 4)
    path.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + bytes(payload))
    assert checkpoint.load(path) is None


def test_load_array_whose_header_ends_early_is_none(tmp_path: Path) -> None:
    """NumPy parses headers of Python 2 again, with its own tokenizer, which raises an error of its own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (3,"
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    payload = buffer.getvalue()
    path = tmp_path / "checkpoint_0001.ralib"
    path.write_bytes(hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)
    assert checkpoint.load(path) is None
