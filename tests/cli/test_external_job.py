"""ralib as an External job of RELION: the files it leaves, and what RELION's own pipeliner makes of them."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from ralib.cli import main
from ralib.io import read_star, write_mrcs

PIPELINE = """
data_pipeline_general

_rlnPipeLineJobCounter 2

data_pipeline_processes

loop_
_rlnPipeLineProcessName #1
_rlnPipeLineProcessAlias #2
_rlnPipeLineProcessType #3
_rlnPipeLineProcessStatus #4
External/job001/ None 99 0
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A RELION project with 40 particles of two classes; the current folder, as RELION wants it."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24] - 12
    views = [
        np.exp(-((x - 4) ** 2 + y**2) / 8) + np.exp(-((x + 3) ** 2 + (y - 4) ** 2) / 6),
        np.exp(-(x**2) / 8 - y**2 / 40),
    ]
    images = np.stack([views[i % 2] + rng.normal(0, 0.1, (24, 24)) for i in range(40)]).astype(np.float32)
    write_mrcs(tmp_path / "particles.mrcs", images, 3.0)
    names = "".join(f"{i + 1:06d}@particles.mrcs 1\n" for i in range(40))
    optics = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n1 3.0\n\n"
    head = "data_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n"
    (tmp_path / "particles.star").write_text(optics + head + names)
    write_mrcs(tmp_path / "references.mrcs", np.stack(views).astype(np.float32), 3.0)
    (tmp_path / "External/job001").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job(*more: str) -> int:
    given = ["external", "mref", "--o", "External/job001/", "--in_parts", "particles.star", "--j", "1"]
    return main([*given, "--references", "references.mrcs", "--maxit", "2", "--xr", "1", "--no-report", *more])


def test_external_command_leaves_what_relion_takes_up(project: Path) -> None:
    assert job("--device", "cpu") == 0
    folder = project / "External/job001"
    assert (folder / "RELION_JOB_EXIT_SUCCESS").exists()
    nodes = read_star(folder / "RELION_OUTPUT_NODES.star")["output_nodes"]
    assert nodes["rlnPipeLineNodeName"].tolist() == [
        "External/job001/run/particles.star",
        "External/job001/run/class_averages.mrcs",
        "External/job001/run/relion_optimiser.star",
        "External/job001/run/relion_model.star",
    ]
    assert job("--device", "cpu") == 0  # a finished job run again has nothing to do
    pipeliner = shutil.which("relion_pipeliner")
    if pipeliner is None:
        pytest.skip("relion is missing (Debian's package of that name): its pipeliner could not be asked")
    (project / "default_pipeline.star").write_text(PIPELINE)
    asked = [pipeliner, "--check_job_completion"]
    subprocess.run(asked, check=True, capture_output=True, timeout=60, cwd=project)
    pipeline = read_star(project / "default_pipeline.star")
    assert int(pipeline["pipeline_processes"]["rlnPipeLineProcessStatus"].iloc[0]) == 2  # finished
    kinds = dict(
        zip(pipeline["pipeline_nodes"].iloc[:, 0], pipeline["pipeline_nodes"].iloc[:, 1].astype(int), strict=True)
    )
    assert kinds["External/job001/run/particles.star"] == 3  # particles, in RELION 3.1's numbers


def test_external_command_failure_is_said_to_relion(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert job("--device", "cpu", "--ou", "99") == 2
    folder = project / "External/job001"
    assert (folder / "RELION_JOB_EXIT_FAILURE").exists()
    assert not (folder / "RELION_JOB_EXIT_SUCCESS").exists()
    assert main(["external", "prepare", "--o", str(folder), "--in_parts", "particles.star"]) == 2
    assert "only mref" in capsys.readouterr().err


def test_external_command_abort_file_stops_the_job(project: Path) -> None:
    folder = project / "External/job001"

    def abort_once_it_runs() -> None:
        end = time.monotonic() + 120
        while not (folder / "run/run.json").exists() and time.monotonic() < end:
            time.sleep(0.05)
        (folder / "RELION_JOB_ABORT_NOW").touch()

    person = threading.Thread(target=abort_once_it_runs)
    person.start()
    assert job("--device", "cpu", "--maxit", "100000") not in (0, 2)
    person.join()
    assert (folder / "RELION_JOB_EXIT_ABORTED").exists()
    assert (folder / "run/run.json").exists()
