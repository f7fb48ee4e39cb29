"""Files that belong together appear together, or none of them."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from ralib.cli import main
from ralib.io import atomic
from ralib.io.atomic import atomic_folder, atomic_paths
from ralib.types import RalibError


def _write(folder: Path, error: type[BaseException] | None = None) -> None:
    with atomic_paths(folder / "a.mrcs", folder / "a.star") as new:
        for path in new:
            path.write_text("x")
        if error is not None:
            raise error


def test_atomic_paths_appear_together(tmp_path: Path) -> None:
    _write(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mrcs", "a.star"]


def test_atomic_paths_of_a_failing_block_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        _write(tmp_path, KeyError)
    assert not list(tmp_path.iterdir())


def test_atomic_paths_interrupted_between_two_files_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted(old: Path, new: Path) -> None:
        if new.name == "a.star":
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(atomic.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_atomic_paths_that_cannot_be_made_say_which(tmp_path: Path) -> None:
    (tmp_path / "a.star").mkdir()
    with pytest.raises(RalibError, match=r"cannot write .*a\.star"):
        _write(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.star"]


def test_atomic_folder_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "made") as folder:
            (folder / "x").write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o750


@pytest.mark.parametrize("command", ["analyze STACK --out=OUT --method=pca --components=3 --K=2 --embedding=none"])
def test_folder_of_a_command_has_the_permissions_that_the_umask_leaves(tmp_path: Path, command: str) -> None:
    from ralib.io import write_mrcs

    write_mrcs(tmp_path / "p.mrcs", np.random.default_rng(0).normal(size=(30, 16, 16)).astype(np.float32), 3.0)
    words = [w.replace("STACK", str(tmp_path / "p.mrcs")).replace("OUT", str(tmp_path / "o")) for w in command.split()]
    before = os.umask(0o077)
    try:
        assert main([*words, "--device=cpu"]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "o").stat().st_mode) == 0o700


def test_select_that_fails_at_its_last_file_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ralib.results import selection_run

    assert main(["simulate", str(tmp_path / "s"), "--particles=40", "--box=24", "--device=cpu"]) == 0
    run = ["mref", str(tmp_path / "s" / "particles.star"), "2", str(tmp_path / "run"), "--maxit=1", "--ou=9", "--xr=1"]
    assert main([*run, "--device=cpu", "--no-report"]) == 0

    def full(*_: object) -> None:
        raise RalibError("no space")

    monkeypatch.setattr(selection_run, "write_averages", full)
    out = tmp_path / "out"
    out.mkdir()
    command = ["select", str(tmp_path / "run"), str(out / "a.star"), "--classes=1", f"--excluded={out / 'b.star'}"]
    assert main([*command, f"--averages={out / 'c.mrcs'}"]) == 2
    assert not list(out.iterdir())
