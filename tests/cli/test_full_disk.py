"""Every command that writes, where its files cannot grow: one line that says which, and nothing half-written."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ralib.cli import main

COMMANDS = {
    "prepare": ["prepare", "sim/particles.star", "OUT.star", "--phase-flip"],
    "prepare-hdf": ["prepare", "sim/particles.star", "OUT.hdf", "--box=24"],
    "transform": ["transform", "run/particles.star", "OUT.star"],
    "average": ["average", "run/particles.star", "OUT.hdf", "--ctf=wiener"],
    "params": ["params", "run/particles.star", "--export", "OUT.txt"],
    "simulate": ["simulate", "OUT", "--particles=30", "--box=32"],
    "report": ["report", "run", "--out=OUT.html"],
    "select": ["select", "run", "OUT.star", "--classes=1-2", "--averages=OUT.mrcs", "--split=2"],
    "compare": ["compare", "run", "run", "--out=OUT.png"],
    "analyze": ["analyze", "sim/particles.star", "--out=OUT", "--components=2", "--embedding=none"],
    "denoise": ["denoise", "sim/particles.star", "OUT.star"],
    "neighbours": ["neighbours", "sim/particles.star", "OUT", "--count=5"],
}
"""OUT is what each writes."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder, the present one, with a simulated set and a run."""
    made = tmp_path_factory.mktemp("disk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        assert main(["simulate", "sim", "--particles=60", "--box=32", "--device=cpu"]) == 0
        run = ["mref", "sim/particles.star", "2", "run", "--ou=12", "--maxit=1", "--no-report", "--device=cpu"]
        assert main(run) == 0
        yield made


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """Files cannot grow beyond this, as on a disk that becomes full in the middle of one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_whose_files_cannot_grow_names_one_and_leaves_nothing(
    folder: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    before = sorted(folder.rglob("*"))
    with files_of_at_most(512):
        assert main([word.replace("OUT", "new") for word in COMMANDS[name]]) == 2
    told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning")]
    assert len(told) == 1, told
    assert told[0].startswith("ralib: cannot write new")
    assert ".tmp-" not in told[0], "a name that nobody knows"
    assert sorted(folder.rglob("*")) == before


def test_printing_to_a_full_disk_says_so_in_one_line(folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "ralib", "info"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("ralib: cannot write to standard output: No space left on device")
    assert len(done.stderr.splitlines()) == 1


def test_command_with_closed_streams_does_its_work(folder: Path) -> None:
    words = "-m ralib prepare sim/particles.star closed.star >&- 2>&- <&-"
    done = subprocess.run(f"{sys.executable} {words}", shell=True, cwd=folder)
    assert done.returncode == 0
    assert (folder / "closed.star").is_file()


def test_run_that_could_save_nothing_leaves_no_folder(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its settings were left behind, so that neither a new run nor --continue was possible in that folder."""
    with files_of_at_most(512):
        assert main(["mref", "sim/particles.star", "2", "none", "--ou=12", "--maxit=1", "--device=cpu"]) == 2
    assert "cannot write none" in capfd.readouterr().err
    assert not (folder / "none").exists()
