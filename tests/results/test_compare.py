"""`ralib compare`: planted differences between two classifications, of any program, are found and drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from make_run import make_run
from ralib.cli import main
from ralib.io import read_star, write_mrcs, write_particles_cs, write_star
from ralib.results.comparison import compare
from ralib.results.comparison_picture import MOST_BANDS, side_orders
from ralib.results.summary import open_run

N = 240


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    return make_run(folder, n_classes=6, n_particles=N, box=24, n_iterations=1, judged=True)


def other_run(run: Path, folder: Path, new_class: np.ndarray, rows: np.ndarray | None = None) -> Path:
    """The same particles (or `rows` of them, in that order) in other classes (numbered from 0), as RELION writes it."""
    folder.mkdir()
    tables = read_star(run / "particles.star")
    table = tables["particles"].drop(columns=["ralibClass", "ralibMirror"])
    rows = np.arange(len(table)) if rows is None else rows
    tables["particles"] = table.assign(rlnClassNumber=new_class + 1).iloc[rows].reset_index(drop=True)
    write_star(folder / "run_it025_data.star", tables)
    k = int(new_class.max()) + 1
    images = np.random.default_rng(0).normal(size=(k, 24, 24)).astype(np.float32)
    write_mrcs(folder / "run_it025_classes.mrcs", images, 2.5)
    return folder


def figures(capsys: pytest.CaptureFixture[str], *arguments: Any) -> dict[str, Any]:
    assert main(["compare", *map(str, arguments), "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_renumbered_classes_are_matched_and_agree(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = open_run(run).poses.class_index.numpy()
    renumbered = other_run(run, tmp_path / "job", (index + 2) % 6, np.random.default_rng(1).permutation(N))
    found = figures(capsys, run, renumbered)
    assert found["in_common"] == N
    assert found["adjusted_rand"] == pytest.approx(1)
    assert found["mutual_information"] == pytest.approx(1)
    assert found["shared"] == 1
    assert all(match["b"] == (match["a"] + 1) % 6 + 1 and match["overlap"] == 1 for match in found["matches"])


def test_a_split_a_merger_and_lost_particles_are_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class 1 split in two, 2 and 3 merged, 40 particles left out: the flow says so; chance agrees about 0."""
    index = open_run(run).poses.class_index.numpy()
    changed = np.where(index == 2, 1, index)
    ones = np.flatnonzero(index == 0)
    changed[ones[: len(ones) // 2]] = 6
    found = figures(capsys, run, other_run(run, tmp_path / "job", changed, np.arange(40, N)))
    assert found["in_common"] == N - 40
    flow = np.array(found["flow"])
    left = index[40:]
    assert flow[0, 0] + flow[0, 6] == (left == 0).sum()
    assert flow[1, 1] == (left == 1).sum()
    assert flow[2, 1] == (left == 2).sum()
    assert found["shared"] < 1
    assert 0.3 < found["adjusted_rand"] < 0.95
    shuffled = np.random.default_rng(3).permutation(index)
    by_chance = figures(capsys, run, other_run(run, tmp_path / "chance", shuffled))
    assert abs(by_chance["adjusted_rand"]) < 0.05


def test_what_each_keeps_alone_is_counted_and_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A keeps its automatic selection; B, which has none, everything in a class."""
    opened = open_run(run)
    index = opened.poses.class_index.numpy()
    selected = [c["class"] - 1 for c in opened.record["classes"] if c["selected"]]
    other = np.where(np.arange(N) < 30, -1, index)
    job = other_run(run, tmp_path / "job", other)
    out = tmp_path / "alone.star"
    assert main(["compare", str(run), str(job), "--only-a", str(out), "-o", str(tmp_path / "flow.png")]) == 0
    told = capsys.readouterr().out
    kept_a = np.isin(index, selected)
    alone = np.flatnonzero(kept_a & (other < 0))
    assert f"only by run {len(alone)}" in told
    np.testing.assert_array_equal(read_star(out)["particles"]["myOwnColumn"].astype(int), alone)
    found = figures(capsys, run, job)
    assert found["kept_by_b_only"] == (~kept_a & (other >= 0)).sum()
    assert found["flow"][0][-1] == ((index == 0) & (other < 0)).sum()
    with Image.open(tmp_path / "flow.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100


def test_a_cryosparc_job_is_compared_by_its_images(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "J7"
    job.mkdir()
    opened = open_run(run)
    poses = opened.poses.replace(mirror=torch.zeros(N, dtype=torch.bool))
    write_particles_cs(job / "J7_020_particles.cs", opened.particles, poses, n_classes=6)
    write_mrcs(job / "J7_020_class_averages.mrc", opened.averages, 2.5)
    found = figures(capsys, run, job)
    assert found["in_common"] == N
    assert found["adjusted_rand"] == pytest.approx(1)


def test_moved_images_are_recognised_by_name(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = other_run(run, tmp_path / "job", open_run(run).poses.class_index.numpy())
    tables = read_star(job / "run_it025_data.star")
    names = tables["particles"]["rlnImageName"].str.replace(r"@.*/", "@elsewhere/", regex=True)
    tables["particles"] = tables["particles"].assign(rlnImageName=names)
    write_star(job / "run_it025_data.star", tables)
    assert figures(capsys, run, job)["in_common"] == N
    names = names.str.replace("particles", "others")
    tables["particles"] = tables["particles"].assign(rlnImageName=names)
    write_star(job / "run_it025_data.star", tables)
    assert main(["compare", str(run), str(job)]) == 2
    error = capsys.readouterr().err
    assert "no particle in common" in error
    assert error.count("\n") == 1


def test_many_classes_become_a_heat_map(tmp_path: Path) -> None:
    many = make_run(tmp_path, n_classes=MOST_BANDS + 8, n_particles=600, box=16, n_iterations=1)
    opened = open_run(many)
    order_a, order_b = side_orders(compare(opened, opened))
    assert order_a == order_b
    assert len(order_a) > MOST_BANDS
    for suffix in ("png", "pdf", "svg"):
        assert main(["compare", str(many), str(many), "-o", str(tmp_path / f"flow.{suffix}")]) == 0
        assert (tmp_path / f"flow.{suffix}").stat().st_size > 5000


def test_compare_command_mistakes_write_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run), str(run), "-o", "flow.txt"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_runs_that_keep_the_same_particles_are_compared_all_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.star"
    assert main(["compare", str(run), str(run), "--only-a", str(out)]) == 0
    assert f"no particle is kept only by {run.name}: {out} is not written" in capsys.readouterr().out
    assert not out.exists()


def test_images_in_a_folder_named_with_an_at_are_recognised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "user@host"
    folder.mkdir()
    made = make_run(folder, n_classes=3, n_particles=30, box=16, n_iterations=1)
    assert figures(capsys, made, made)["in_common"] == 30


def relion_job(run: Path, folder: Path, model: str, n_classes: int = 2) -> Path:
    job = other_run(run, folder, open_run(run).poses.class_index.numpy() % n_classes)
    (job / "run_it025_model.star").write_text("data_model_classes\n\n" + model)
    return job


HEAD = "loop_\n_rlnReferenceImage #1\n_rlnClassDistribution #2\n_rlnEstimatedResolution #3\n"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("1@x abc 10\n2@x 0.5 12\n", "rlnClassDistribution should hold numbers"),
        ("1@x 0.5 10\n2@x 0.5 fine\n", "rlnEstimatedResolution should hold numbers"),
        ("1@x 1 10\n", "1 classes, and there are 2 class averages"),
    ],
)
def test_a_damaged_model_file_is_one_line(run: Path, tmp_path: Path, capsys, rows: str, told: str) -> None:
    job = relion_job(run, tmp_path / "job", HEAD + rows)
    for words in (["report", str(job)], ["select", str(job), "--classes=1"], ["compare", str(job), str(job)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


def test_a_model_file_of_one_class_as_single_values_is_read(run: Path, tmp_path: Path) -> None:
    values = "_rlnReferenceImage 1@x\n_rlnClassDistribution 1.0\n_rlnEstimatedResolution 10\n"
    record = open_run(relion_job(run, tmp_path / "job", values, 1)).record
    assert record["iterations"][0]["class_sizes"] == [N]
    assert record["classes"][0]["resolution_A"] == 10


def test_a_model_file_without_numbers_counts_as_unknown(run: Path, tmp_path: Path) -> None:
    found = open_run(relion_job(run, tmp_path / "job", HEAD + "1@x nan inf\n2@x 0.5 nan\n")).record
    assert found["iterations"][0]["class_sizes"] == [0, N // 2]
    assert found["iterations"][0]["resolution_A"] == [None, None]
    assert found["iterations"][0]["median_resolution_A"] is None


def test_particles_that_share_only_file_names_are_said_to(run: Path, tmp_path: Path, capsys) -> None:
    """Two folders, two stacks of one name: it may be one stack that was moved, or two micrographs' particles."""
    job = other_run(run, tmp_path / "job", open_run(run).poses.class_index.numpy())
    assert figures(capsys, run, job)["matched_by"] == "path"
    tables = read_star(job / "run_it025_data.star")
    names = tables["particles"]["rlnImageName"]
    tables["particles"]["rlnImageName"] = [f"{name.split('@')[0]}@Extract/other/particles.mrcs" for name in names]
    write_star(job / "run_it025_data.star", tables)
    assert figures(capsys, run, job)["matched_by"] == "name"
    assert main(["compare", str(run), str(job)]) == 0
    assert "by the names of their image files alone, whose folders differ" in capsys.readouterr().out


def test_selection_of_a_job_says_which_iteration_it_read(run: Path, tmp_path: Path, capsys) -> None:
    job = other_run(run, tmp_path / "job", open_run(run).poses.class_index.numpy())
    for suffix in ("data.star", "classes.mrcs"):
        shutil.copy(job / f"run_it025_{suffix}", job / f"run_ct25_it030_{suffix}")
    assert main(["select", str(job), str(tmp_path / "kept.star"), "--classes=1"]) == 0
    assert "run_ct25_it030_data.star" in capsys.readouterr().out
