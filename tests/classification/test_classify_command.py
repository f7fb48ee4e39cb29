"""`ralib classify` from file to file: what it writes, going on, choosing particles, stability, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib import io
from ralib.cli import main
from ralib.cli.classification_options import reference_images
from ralib.images.fourier import resample
from ralib.results.run_directory import run_poses
from ralib.results.run_record import read_record
from ralib.results.selection import FORMAT, FORMAT_VERSION, fingerprint

COMMON = ["--device", "cpu", "--no-report"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify") / "data"
    words = ["--particles", "200", "--box", "40", "--views", "3", "--snr", "0.3", "--seed", "1"]
    assert main(["simulate", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    folder = data.parent / "run"
    assert main(["classify", str(data / "particles.star"), str(folder), "--classes", "3", *COMMON]) == 0
    return folder


def members(folder: Path) -> list[int]:
    return [row["members"] for row in read_record(folder)["classes"]]


def test_what_a_run_leaves_behind(run: Path) -> None:
    for name in ("class_averages.mrcs", "particles.star", "particle_scores.txt", "run.json", "relion_model.star"):
        assert (run / name).is_file()
    assert sum(members(run)) == 200
    assert list((run / "iterations").glob("*/averages.mrcs"))
    assert list((run / "checkpoints").glob("*.ralib"))
    heading = (run / "particle_scores.txt").read_text().splitlines()[0]
    assert {"posterior", "quality", "junk"} <= set(heading.split())


def test_going_on_gives_the_same_files(
    run: Path, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    for name in ("class_averages.mrcs", "particles.star", "particle_scores.txt"):
        (again / name).unlink()
    words = ["classify", str(data / "particles.star"), str(again), *COMMON, "--continue"]
    assert main([*words, "--classes", "3"]) == 0
    for name in ("class_averages.mrcs", "particle_scores.txt"):
        assert (again / name).read_bytes() == (run / name).read_bytes()
    assert len(read_record(again)["iterations"]) == len(read_record(run)["iterations"])
    assert main([*words, "--classes", "2"]) == 2
    assert "classes was 3, is 2" in capsys.readouterr().err


def test_a_selection_and_a_split_take_their_members(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = members(run)
    selection = tmp_path / "selection.json"
    value = {
        "format": FORMAT, "version": FORMAT_VERSION, "classes": [1, 3],
        "run": {"title": "t", "fingerprint": fingerprint(sizes)},
    }  # fmt: skip
    selection.write_text(json.dumps(value))
    words = ["classify", str(run)]
    chosen = ["--from", str(selection), "--classes", "2", "--search", "12A", *COMMON]
    assert main([*words, str(tmp_path / "from"), *chosen]) == 0
    assert sum(members(tmp_path / "from")) == sizes[0] + sizes[2]
    assert read_record(tmp_path / "from")["search_range_px"] == pytest.approx(1.2)  # of 10 A/px
    sampling = io.read_star(tmp_path / "from" / "relion_sampling.star")["sampling_general"]
    assert float(sampling["rlnOffsetRange"]) == pytest.approx(12)
    assert main([*words, str(tmp_path / "split"), "--split", "2", "--classes", "2", *COMMON]) == 0
    assert sum(members(tmp_path / "split")) == sizes[1]
    selection.write_text(json.dumps(value | {"run": {"title": "t", "fingerprint": "of another run"}}))
    assert main([*words, str(tmp_path / "no"), "--from", str(selection), "--classes", "2", *COMMON]) == 2
    assert "another run" in capsys.readouterr().err


def test_other_starts_agree_on_clear_views(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stable"
    words = ["classify", str(data / "particles.star"), str(folder), "--classes", "3", "--stability", "1", *COMMON]
    assert main(words) == 0
    assert read_record(folder)["stability"]["stable_particles"] > 0.8
    scores = np.loadtxt(folder / "particle_scores.txt")
    heading = (folder / "particle_scores.txt").read_text().splitlines()[0].split()[1:]
    assert scores[:, heading.index("stable")].mean() > 0.8
    assert all("stable_members" in row for row in read_record(folder)["classes"])


def test_a_rare_view_keeps_a_class(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    words = ["--particles", "600", "--box", "40", "--snr", "0.3", "--seed", "4", "--views", "4"]
    assert main(["simulate", str(data), *words, "--view-frequencies", "32,32,32,2"]) == 0
    assert main(["classify", str(data / "particles.star"), str(folder), "--classes", "6", *COMMON]) == 0
    view = np.load(data / "truth.npz")["class_index"]
    index, rare = run_poses(folder, 6).class_index.numpy(), view == 3
    home = np.bincount(index[rare], minlength=6).argmax()
    assert rare.sum() >= 3
    assert (index[rare] == home).mean() >= 0.75
    assert (view[index == home] == 3).mean() >= 0.5


def test_junk_is_told_from_particles(tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    words = ["--particles", "500", "--box", "48", "--snr", "0.2", "--seed", "3", "--views", "5", "--junk", "0.15"]
    assert main(["simulate", str(data), *words]) == 0
    assert main(["classify", str(data / "particles.star"), str(folder), "--classes", "8", *COMMON]) == 0
    junk = np.load(data / "truth.npz")["junk"] > 0
    heading = (folder / "particle_scores.txt").read_text().splitlines()[0].split()[1:]
    scores = np.loadtxt(folder / "particle_scores.txt")
    quality, called = scores[:, heading.index("quality")], scores[:, heading.index("junk")] > 0.5
    assert (quality[junk] < np.quantile(quality[~junk], 0.05)).mean() > 0.8
    assert called[junk].mean() > 0.6
    assert called[~junk].mean() < 0.05


def test_classify_command_helical_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(data / "particles.star"), str(tmp_path / "h"), "--helical"]) == 2
    assert "helical" in capsys.readouterr().err
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize("kind", ["mrcs", "hdf", "model", "stack star", "folder"])
def test_references_are_read_from_every_kind_of_file(run: Path, tmp_path: Path, kind: str) -> None:
    averages, size_A = io.open_images(run / "class_averages.mrcs"), read_record(run)["input"]["pixel_size_A"]
    path = {"mrcs": run / "class_averages.mrcs", "model": run / "relion_model.star", "folder": run}.get(kind)
    if kind == "hdf":
        path = tmp_path / "averages.hdf"
        io.write_hdf(path, averages, [{}] * len(averages), pixel_size_A=size_A)
    if kind == "stack star":
        path = tmp_path / "averages.star"
        io.write_particles_star(path, io.open_particles(run / "class_averages.mrcs"))
    assert path is not None
    images, found_A = reference_images(path)
    np.testing.assert_allclose(images, averages, rtol=1e-6)
    assert found_A == pytest.approx(size_A, rel=1e-4)


def test_references_of_another_box_and_pixel_size_begin_a_classification(run: Path, data: Path, tmp_path: Path) -> None:
    """Pixels of three halves the size; classes are found again in the references' order."""
    averages, size_A = io.open_images(run / "class_averages.mrcs"), read_record(run)["input"]["pixel_size_A"]
    coarse = resample(torch.from_numpy(averages), 26, 1.5)
    io.write_hdf(tmp_path / "coarse.hdf", coarse, [{}] * len(averages), pixel_size_A=1.5 * size_A)
    words = ["classify", str(data / "particles.star"), str(tmp_path / "again"), *COMMON, "--quick"]
    assert main([*words, "--references", str(tmp_path / "coarse.hdf")]) == 0
    before, after = (run_poses(folder, 3).class_index for folder in (run, tmp_path / "again"))
    assert float((before == after).double().mean()) > 0.9


@pytest.mark.parametrize(
    ("state", "told"), [("running", "has not finished"), (None, "is not the folder of a ralib run")]
)
def test_references_of_a_folder_without_a_finished_run_are_refused(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str | None, told: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    if state is not None:
        (folder / "run.json").write_text(json.dumps(read_record(run) | {"state": state}))
    words = ["classify", str(data / "particles.star"), str(tmp_path / "again"), *COMMON]
    assert main([*words, "--references", str(folder)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_classify_quick_and_references_take_the_number_of_classes_from_the_file(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["classify", str(data / "particles.star"), str(tmp_path / "again"), *COMMON]
    averages = f"--references={run / 'class_averages.mrcs'}"
    assert main([*words, averages, "--classes", "5"]) == 2
    assert "has 3 references" in capsys.readouterr().err
    assert main([*words, "--quick", "--thorough"]) == 2
    assert "contradict each other" in capsys.readouterr().err
    assert main([*words, averages, "--quick"]) == 0
    assert "classes: 3, as many as references" in capsys.readouterr().out
    assert sum(members(tmp_path / "again")) == 200
