"""The run directory: one writer, everything whole, read back as it was."""

import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from blobs import make
from ralib import io
from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.cli.terminal import iteration_line
from ralib.results import run_directory as rundir
from ralib.results.run_directory import RunDirectory, load_run
from ralib.types import RalibError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A stack on disk, the fitted aligner, and its particles."""
    folder = tmp_path_factory.mktemp("stack")
    truth = make(40, box=32, n_views=2, snr=1.0, shift_px=1.0)
    images = truth.images.copy()
    images[7] = 0.0
    io.write_mrcs(folder / "particles.mrcs", images, 2.5)
    particles = io.open_particles(folder / "particles.mrcs")
    fit = MultiReferenceAligner(references=truth.references, outer_radius=12, iterations=2).fit(particles)
    return particles, fit


def record_of(fit) -> dict:
    return {
        "kind": "mref", "state": "finished", "options": {"xr": 3}, "input": {"pixel_size_A": 2.5},
        "iterations": fit.iterations_, "warnings": [w.record() for w in fit.warnings_], "classes": fit.result_.classes,
    }  # fmt: skip


def test_a_run_is_read_back_as_it_was(finished, tmp_path) -> None:
    particles, fit = finished
    with RunDirectory(tmp_path / "out") as directory:
        directory.write_iteration(1, fit.class_averages_)
        directory.write_result(fit.result_, particles, record_of(fit), hdf=True)
    out = tmp_path / "out"
    names = {p.name for p in out.iterdir()}
    assert {"class_averages.mrcs", "particles.star", "params.txt", "run.json", "classes.png", "frc.txt"} <= names
    assert {"class_averages_half1.mrcs", "class_averages_half2.mrcs", "class_averages.hdf"} <= names
    assert not any(n.startswith(".tmp") or n == rundir.LOCK for n in names)
    back = load_run(out)
    assert torch.equal(back.averages.images, fit.class_averages_.images)
    assert torch.equal(back.averages.half_images, fit.class_averages_.half_images)
    assert back.averages.members.tolist() == fit.class_averages_.members.tolist()
    assert back.averages.pixel_size_A == pytest.approx(2.5)
    torch.testing.assert_close(back.averages.frc, fit.class_averages_.frc, rtol=0, atol=1e-5)
    assert torch.equal(back.poses.class_index, fit.poses_.class_index)
    assert int(back.poses.class_index[7]) == -1
    assert torch.equal(back.poses.mirror, fit.poses_.mirror)
    torch.testing.assert_close(back.poses.psi_deg, fit.poses_.psi_deg, rtol=0, atol=1e-3)
    torch.testing.assert_close(back.poses.origin_xy_px, fit.poses_.origin_xy_px, rtol=0, atol=1e-4)
    assert back.iterations[-1]["class_sizes"] == fit.iterations_[-1]["class_sizes"]
    assert back.warnings == fit.warnings_
    assert len(back.warnings) == 1
    rows = np.loadtxt(out / "params.txt")
    assert rows.shape == (40, 6)
    assert rows[:, 5].astype(int).tolist() == fit.poses_.class_index.tolist()


def test_an_outdir_in_use_is_refused(finished, tmp_path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(RalibError, match="exists and is not empty"):
        RunDirectory(tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "keep"
    (tmp_path / "file").write_text("x")
    with pytest.raises(RalibError, match="is a file"):
        RunDirectory(tmp_path / "file")
    with pytest.raises(RalibError, match="there is no run"):
        RunDirectory(tmp_path / "nothing", resume=True)
    with RunDirectory(tmp_path / "empty"):
        with pytest.raises(RalibError, match=r"not empty|another ralib"):
            RunDirectory(tmp_path / "empty")
        with pytest.raises(RalibError, match="another ralib is working"):
            RunDirectory(tmp_path / "empty", resume=True)
    assert not (tmp_path / "empty").exists(), "a run that wrote nothing leaves nothing"


def test_a_folder_that_vanishes_is_not_made_anew(finished, tmp_path) -> None:
    _, fit = finished
    with RunDirectory(tmp_path / "out") as directory:
        directory.write_iteration(1, fit.class_averages_)
        shutil.rmtree(tmp_path / "out")
        for write in (
            lambda: directory.write_iteration(2, fit.class_averages_),
            lambda: directory.save_checkpoint(2, {}, {}),
            lambda: directory.write_result(fit.result_, finished[0], {}),
        ):
            with pytest.raises(RalibError, match="has vanished"):
                write()
        assert not (tmp_path / "out").exists()


def test_what_a_killed_writer_left_is_removed(tmp_path) -> None:
    with RunDirectory(tmp_path / "out") as directory:
        directory.write_record({"state": "running"})
    leftover = tmp_path / "out" / ".tmp-0123-class_averages.mrcs"
    leftover.write_bytes(b"half")
    with RunDirectory(tmp_path / "out", resume=True):
        assert not leftover.exists()


def test_the_lock_dies_with_its_process(tmp_path) -> None:
    code = (
        "import os, sys; from ralib.results.run_directory import RunDirectory; d = RunDirectory(sys.argv[1]);"
        "d.write_record({'state': 'running'}); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False).returncode == 9
    with RunDirectory(tmp_path / "out", resume=True):
        pass
    with pytest.raises(RalibError, match="has not finished"):
        load_run(tmp_path / "out")


def test_what_is_no_run_says_so(tmp_path) -> None:
    with pytest.raises(RalibError, match=r"run\.json"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("[1, 2]")
    with pytest.raises(RalibError, match="does not describe"):
        load_run(tmp_path)


def test_iteration_line_names_what_matters(finished) -> None:
    _, fit = finished
    line = iteration_line(fit.iterations_[-1], 32, 2)
    for word in ("iteration 2/2", "fit ", " classes of ", "FRC", "moved", "changed", " s"):
        assert word in line
    assert not math.isnan(fit.iterations_[-1]["median_resolution_A"])
    assert math.isnan(fit.iterations_[0]["pixel_error_px"])
