"""Folders of RELION jobs: continued, restarted and interrupted runs, and files of a job that list no particles."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from ralib.cli import main
from ralib.io import write_mrcs
from star_files import rows, stack, write


def iteration(job: Path, stem: str, class_number: int, *, complete: bool = True) -> None:
    """One iteration's files, with all particles in one class."""
    write(job / f"{stem}_data.star", rows(8, rlnAnglePsi=3.0, rlnClassNumber=class_number))
    if complete:
        write_mrcs(job / f"{stem}_classes.mrcs", np.zeros((3, 32, 32), dtype=np.float32), 4.0)


@pytest.mark.parametrize(
    ("stems", "read", "said"),
    [
        (["run_it000", "run_it025", "run_ct12_it013", "run_ct12_it025"], "run_ct12_it025", ""),
        (["run_it025", "run_ct25_it030"], "run_ct25_it030", ""),
        (["run_it025", "run_ct12_it018"], "run_it025", "run_ct12_it018_data.star"),
        (["run_it025", "run_ct25_it030!"], "run_it025", "run_ct25_it030_data.star"),
        (["run_it009", "run_ct9_it010", "run_ct10_it100"], "run_ct10_it100", ""),
    ],
)
def test_relion_job_continued_newest_complete_iteration_is_read_and_doubt_said(
    stems: list[str], read: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack(tmp_path / "p.mrcs", 8)
    job = tmp_path / "Class2D" / "job015"
    job.mkdir(parents=True)
    for stem in stems:
        iteration(job, stem.rstrip("!"), 2 if stem == read else 1, complete=not stem.endswith("!"))
    assert main(["select", str(job), "--classes=2", "--out", str(tmp_path / "s.star")]) == 0
    out = capsys.readouterr().out
    assert f"read {job}/{read}_data.star" in out
    assert "kept 8 of 8" in out
    assert (f"not {said};" in out) if said else ("warning" not in out)


@pytest.mark.parametrize(
    ("times", "named", "read"),
    [
        ({"run_it012": 0, "run_it025": 100, "run_ct12_it013": 200, "run_ct12_it018": 300}, (), "run_ct12_it018"),
        ({"run_it012": 300, "run_it025": 100, "run_ct12_it013": 310, "run_ct12_it018": 320}, (), "run_it025"),
        ({"run_it025": 100, "run_ct12_it018": 100.5}, (), "run_it025"),
        ({"run_it025": 100, "run_ct12_it018": 50}, ("run_ct12_it018",), "run_ct12_it018"),
        ({"run_it025": 100, "run_ct12_it018": 200}, ("run_it025",), "run_it025"),
        ({"run_it025": 100, "run_ct12_it018": 200}, ("run_it025", "run_ct12_it018"), "run_ct12_it018"),
    ],
    ids=["later", "copied", "same second", "pipeline", "pipeline, earlier", "pipeline, both"],
)
def test_relion_job_shorter_restart_is_read_where_it_is_known_to_be_the_later_one(
    times: dict[str, float], named: tuple[str, ...], read: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """run_it025, then continued from iteration 12 with other settings up to 18."""
    stack(tmp_path / "p.mrcs", 8)
    job = tmp_path / "Class2D" / "job015"
    job.mkdir(parents=True)
    for stem, seconds in times.items():
        iteration(job, stem, 2 if stem == read else 1)
        os.utime(job / f"{stem}_data.star", (1.7e9 + seconds,) * 2)
    if named:
        nodes = "".join(f"Class2D/job015/ Class2D/job015/{stem}_data.star\n" for stem in named)
        head = "data_pipeline_output_edges\n\nloop_\n_rlnPipeLineEdgeProcess #1\n_rlnPipeLineEdgeToNode #2\n"
        (job / "job_pipeline.star").write_text(head + nodes)
    assert main(["select", str(job), "--classes=2", "--out", str(tmp_path / "s.star")]) == 0
    out = capsys.readouterr().out
    other = "run_it025" if read == "run_ct12_it018" else "run_ct12_it018"
    assert f"{job}/{read}_data.star is read, not {other}_data.star" in out
    assert "kept 8 of 8" in out


def test_commands_on_particles_say_which_file_of_a_job_can_be_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack(tmp_path / "p.mrcs", 8)
    iteration(tmp_path, "run_it025", 1)
    (tmp_path / "job.star").write_text("data_job\n\n_rlnJobTypeLabel relion.class2d\n_rlnJobIsContinue 0\n")
    (tmp_path / "default_pipeline.star").write_text("data_pipeline_general\n\n_rlnPipeLineJobCounter 5\n")
    for given, words in (
        (tmp_path, "run_it025_data.star"),
        (tmp_path / "job.star", "describes jobs of RELION"),
        (tmp_path / "default_pipeline.star", "describes jobs of RELION"),
    ):
        assert main(["prepare", str(given), str(tmp_path / "o.star")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
