"""What a run does when the world fails it: a quota, a folder or a stack that vanishes, other particles."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from blobs import make
from ralib import io
from ralib.cli import main
from ralib.results import run_directory as rundir
from ralib.results.checkpoint import newest
from ralib.results.input_fingerprint import check_same_input, input_fingerprint
from ralib.types import RalibError

SOURCE = Path(__file__).resolve().parents[2] / "src"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
FILES = ("class_averages.mrcs", "class_averages_half1.mrcs", "params.txt", "frc.txt")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "particles.mrcs"
    io.write_mrcs(path, make(60, box=32, n_views=2, snr=1.0, shift_px=1.0, seed=4).images, 3.0)
    return path


def arguments(stack: Path, out: Path, *options: str) -> list[str]:
    return ["mref", str(stack), "2", str(out), "--ou=12", "--xr=1", "--device=cpu", "--no-report", *options]


def started(stack: Path, out: Path, *options: str, most_bytes: int | None = None) -> subprocess.Popen:
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on how many there are

    def limited() -> None:
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    command = [sys.executable, "-m", "ralib", *arguments(stack, out, *options)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=limited)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def one_line(process: subprocess.Popen) -> str:
    """What it said on stderr, which must be one line; its exit status must not be 0."""
    _, told = process.communicate(timeout=120)
    assert process.returncode == 2
    # A limit of file sizes meets what is compiled on a fresh machine, too, which is no error of the run.
    lines = [line for line in told.strip().splitlines() if "compiled kernels are not kept" not in line]
    assert len(lines) == 1, told
    return lines[0]


@pytest.mark.slow
def test_a_quota_hit_while_writing_leaves_the_last_checkpoint(stack: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(arguments(stack, whole, "--maxit=2")) == 0
    first, second = sorted(p.stat().st_size for p in (whole / "checkpoints").iterdir())
    assert first < second, "the second one holds the previous poses too"
    # Times as text make a checkpoint a few bytes longer or shorter.
    told = one_line(started(stack, out, "--maxit=2", most_bytes=(first + second) // 2))
    assert "checkpoint_0002.ralib: File too large; nothing was changed" in told
    found = newest(out / "checkpoints")
    assert found is not None
    assert found.number == 1
    assert not list(out.rglob(".tmp*"))
    assert main(arguments(stack, out, "--maxit=2", "--continue")) == 0
    assert all((whole / name).read_bytes() == (out / name).read_bytes() for name in FILES)


def test_a_folder_that_vanishes_ends_the_run(stack: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = started(stack, out, "--maxit=100000")
    wait_for(out / "checkpoints" / "checkpoint_0002.ralib")
    away = out.rename(tmp_path / "away")
    told = one_line(run)
    assert "out has vanished" in told or "No such file or directory" in told, "between two files, or in one"
    assert not out.exists()
    assert newest(away / "checkpoints") is not None


def test_a_stack_that_shrinks_while_it_is_read_ends_the_run(stack: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = started(stack, out, "--maxit=100000", "--memory=0")
    wait_for(out / "checkpoints" / "checkpoint_0002.ralib")
    os.truncate(stack, 2000)
    assert "has become shorter while it was read" in one_line(run)
    assert newest(out / "checkpoints") is not None


def test_going_on_with_other_particles_is_refused(stack: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(arguments(stack, out, "--maxit=1")) == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    io.write_mrcs(tmp_path / "more.mrcs", make(70, box=32, n_views=2).images, 3.0)
    assert main(arguments(tmp_path / "more.mrcs", out, "--maxit=2", "--continue")) == 2
    assert "was of 60 particles of 32 px" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_going_on_with_other_images_of_the_same_number_is_refused(stack: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(arguments(stack, out, "--maxit=1")) == 0
    images = io.open_images(stack)
    io.write_mrcs(tmp_path / "reversed.mrcs", images[::-1].copy(), 3.0)
    assert main(arguments(tmp_path / "reversed.mrcs", out, "--maxit=2", "--continue")) == 2
    assert "the images or their order differ" in capsys.readouterr().err
    shutil.copy(stack, tmp_path / "moved.mrcs")
    assert main(arguments(tmp_path / "moved.mrcs", out, "--maxit=2", "--continue")) == 0, "the same under another name"


def test_input_fingerprint_two_images_exchanged_between_the_sampled_ones_change_it(tmp_path: Path) -> None:
    io.write_mrcs(tmp_path / "p.mrcs", make(200, box=16, n_views=2).images, 3.0)
    particles = io.open_particles(tmp_path / "p.mrcs")
    before = input_fingerprint(particles[np.arange(200)])
    assert before == input_fingerprint(particles)
    rows = np.arange(200)
    rows[[2, 4]] = rows[[4, 2]]  # every third image is sampled
    after = input_fingerprint(particles[rows])
    assert before["images"] == after["images"]
    with pytest.raises(RalibError, match=r"was begun with \(the order of the images differ"):
        check_same_input({"input": {"fingerprint": before}}, after, stack="a", outdir="b")


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk needs root and mount")
def test_a_full_disk_leaves_the_last_checkpoint(stack: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        assert "No space left on device" in one_line(started(stack, disk / "out", "--maxit=100"))
        assert newest(disk / "out" / "checkpoints") is not None
        assert not list(disk.rglob(".tmp*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_terminated_command_says_so_and_leaves_no_temporary_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ralib", "simulate", "big", "--particles=50000", "--box=64", "--device=cpu"]
    run = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".tmp-*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM
    assert said.strip().splitlines() == ["ralib: terminated (SIGTERM): what was being written is removed"]
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_does_not_fail_the_run(
    stack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ralib.results.summary.write_report", fail)
    assert main([*arguments(stack, tmp_path / "out", "--maxit=1"), "--report"]) == 0
    assert "no report.html" in capsys.readouterr().err
    assert (tmp_path / "out/class_averages.mrcs").is_file()


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed while it wrote its result a second time: all files are there."""
    folder = tmp_path_factory.mktemp("unfinished")
    assert main(["simulate", str(folder / "s"), "--particles=60", "--box=32", "--device=cpu"]) == 0
    out = folder / "run"
    assert main([*arguments(folder / "s" / "particles.star", out, "--maxit=1"), "--CTF"]) == 0
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"state": "running"}))
    return out


@pytest.mark.parametrize(
    "command",
    [
        "report RUN", "report RUN --json", "report RUN/relion_data.star", "select RUN --classes=1", "compare RUN RUN",
        "analyze RUN", "analyze RUN/particles.star", "denoise RUN OUT.star", "denoise RUN/particles.star OUT.star",
        "neighbours RUN/particles.star OUT", "classify RUN OUT", "classify RUN OUT --split=1",
        "classify RUN/particles.star OUT --split-states=2", "mref RUN/particles.star 2 OUT", "average RUN OUT.mrcs",
        "prepare RUN/particles.star OUT.star", "transform RUN OUT.mrcs", "params RUN --export=OUT.txt",
    ],
)  # fmt: skip
def test_run_killed_while_writing_is_refused_by_every_command(
    unfinished: Path, tmp_path: Path, capsys, command: str
) -> None:
    words = [w.replace("RUN", str(unfinished)).replace("OUT", str(tmp_path / "out")) for w in command.split()]
    assert main(words) == 2
    assert "has not finished" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_run_that_writes_a_second_result_does_not_say_it_has_finished(stack: Path, tmp_path: Path, monkeypatch) -> None:
    """As `watch` does, and --continue of a finished run."""
    out, said = tmp_path / "out", []
    assert main(arguments(stack, out, "--maxit=1")) == 0

    def killed(path: Path, *_: object) -> None:
        said.append(json.loads((out / "run.json").read_text())["state"])

    monkeypatch.setattr(rundir, "write_class_picture", killed)
    assert main(arguments(stack, out, "--maxit=1", "--continue")) == 0
    assert said == ["running"]
