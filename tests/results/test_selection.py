"""Selection of classes: the rules, the file, and what `ralib select` writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from make_run import make_run
from ralib.cli import main
from ralib.io import (
    open_particles,
    open_stack,
    pose_headers,
    read_star,
    write_hdf,
    write_mrcs,
    write_particles_star,
)
from ralib.results.selection import Selection, choose_classes, fingerprint, parse_classes, read_selection, selected_rows
from ralib.results.summary import open_run
from ralib.types import RalibError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("select"), n_classes=8, n_particles=300, box=24, n_iterations=2)


def write_selection(path: Path, members: np.ndarray, classes: list[int], **changes: object) -> Path:
    value = {
        "format": "ralib-selection",
        "version": 1,
        "run": {"title": "run", "fingerprint": fingerprint(members), "n_classes": len(members)},
        "classes": classes,
        "min_score": None,
    }
    path.write_text(json.dumps(value | changes))
    return path


def test_parse_classes_lists_and_ranges_are_read() -> None:
    assert parse_classes("1,4-9", 10) == (1, 4, 5, 6, 7, 8, 9)
    assert parse_classes(" 3, 3,2-3", 10) == (2, 3)
    for wrong in ("", "0", "11", "4-2", "1;2", "-3", "1,", "1-2-3", "one", "９"):
        with pytest.raises(RalibError, match="`classes`"):
            parse_classes(wrong, 10)


def test_rules_must_all_hold() -> None:
    figures = [
        {"class": 1, "members": 100, "resolution_A": 8.0},
        {"class": 2, "members": 40, "resolution_A": 8.0},
        {"class": 3, "members": 100, "resolution_A": 20.0},
        {"class": 4, "members": 100, "resolution_A": None},
        {"class": 5, "members": 0, "resolution_A": 8.0},
    ]
    assert choose_classes(figures) == (1, 2, 3, 4)
    assert choose_classes(figures, min_resolution_A=12) == (1, 2)
    assert choose_classes(figures, min_resolution_A=12, min_members=50) == (1,)
    assert choose_classes(figures, classes=[2, 3], min_members=50) == (3,)
    with pytest.raises(RalibError, match="no resolution"):
        choose_classes(figures[3:4], min_resolution_A=12)


def test_rows_follow_classes_and_score(run: Path) -> None:
    opened = open_run(run)
    index, score = opened.poses.class_index.numpy(), opened.poses.score.numpy()
    rows = selected_rows(opened.poses, Selection((1, 3)))
    np.testing.assert_array_equal(rows, np.flatnonzero((index == 0) | (index == 2)))
    threshold = float(np.median(score))
    rows = selected_rows(opened.poses, Selection((1, 3), threshold))
    assert 0 < len(rows) < opened.members[[0, 2]].sum()
    assert (score[rows] >= threshold).all()


@pytest.mark.parametrize("suffix", [".star", ".cs", ".hdf"])
def test_command_writes_the_kept_particles(run: Path, tmp_path: Path, suffix: str) -> None:
    opened = open_run(run)
    selection = write_selection(tmp_path / "selection.json", opened.members, [1, 4])
    out = tmp_path / f"kept{suffix}"
    assert main(["select", str(run), str(selection), str(out)]) == 0
    rows = selected_rows(opened.poses, Selection((1, 4)))
    kept = open_particles(out)
    assert len(kept) == len(rows) > 10
    np.testing.assert_allclose(kept.images.read(np.arange(5)), opened.particles.images.read(rows[:5]), atol=1e-5)
    assert kept.poses is not None
    np.testing.assert_array_equal(kept.poses.class_index, opened.poses.class_index[rows])
    np.testing.assert_array_equal(kept.poses.mirror, opened.poses.mirror[rows])
    np.testing.assert_allclose(kept.poses.origin_xy_px, opened.poses.origin_xy_px[rows], atol=1e-3)


def test_star_keeps_unknown_columns(run: Path, tmp_path: Path) -> None:
    assert main(["select", str(run), str(tmp_path / "kept.star"), "--classes", "2-3"]) == 0
    opened = open_run(run)
    rows = selected_rows(opened.poses, Selection((2, 3)))
    table = read_star(tmp_path / "kept.star")["particles"]
    np.testing.assert_array_equal(table["myOwnColumn"].astype(int), rows)


def test_command_combines_file_and_rules(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = open_run(run).members
    order = np.argsort(-members)
    selection = write_selection(tmp_path / "s.json", members, (order[:4] + 1).tolist())
    out = tmp_path / "kept.star"
    least = str(members[order[2]])
    assert main(["select", str(run), str(selection), "--min-members", least, "--out", str(out)]) == 0
    assert len(open_particles(out)) == members[members >= members[order[2]]].sum()
    assert "kept" in capsys.readouterr().out


def test_mistakes_are_one_line_and_change_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = open_run(run).members
    good = write_selection(tmp_path / "good.json", members, [1])
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"format": "ralib-selection", "version": 1')
    other = write_selection(tmp_path / "other.json", members, [1], run={"title": "x", "fingerprint": "0" * 16})
    outside = write_selection(tmp_path / "outside.json", members, [99])
    existing = tmp_path / "mine.star"
    existing.write_text("precious")
    out = str(tmp_path / "new.star")
    for arguments, told in [
        ([str(damaged), out], "not JSON"),
        ([str(other), out], "another run"),
        ([str(outside), out], "damaged"),
        ([str(tmp_path / "none.json"), out], "cannot read"),
        ([str(good), str(existing)], "exists"),
        ([str(good), str(tmp_path / "out.txt")], ".star, .cs, .hdf or .lst"),
        ([out], "nothing to select by"),
        ([out, "--classes", "8"], "no particle remains"),
        ([out, "--min-score", "99"], "no particle remains"),
    ]:
        assert main(["select", str(run), *arguments]) == 2, arguments
        message = capsys.readouterr().err
        assert told in message
        assert message.count("\n") == 1
    assert existing.read_text() == "precious"
    assert not Path(out).exists()


@pytest.mark.parametrize("name", ["p.mrcs", "élan p.hdf"])
def test_selection_as_eman2_list_names_the_same_images_with_poses(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line of an #LSX list is as many bytes long as its head says; the CTF is where the images' file has it."""
    made = make_run(tmp_path / "run", n_classes=3, n_particles=60, box=24, n_iterations=1)
    run = open_run(made)
    pixels, ctf = run.particles.images.read(np.arange(60)), run.particles.ctf
    assert ctf is not None
    if name.endswith(".hdf"):
        write_hdf(tmp_path / name, pixels, pose_headers(None, ctf, 2.5), pixel_size_A=2.5)
    else:
        write_mrcs(tmp_path / name, pixels, 9.9)
    write_particles_star(made / "particles.star", run.particles.replace(images=open_stack(tmp_path / name)))
    before = open_run(made).particles
    assert main(["select", str(made), "--classes=1-2", "--out", str(tmp_path / "s.lst")]) == 0
    assert ("rlnDefocusU" in capsys.readouterr().out) == name.endswith(".mrcs")
    head, _, length, *lines = (tmp_path / "s.lst").read_bytes().split(b"\n")[:-1]
    assert head == b"#LSX"
    assert {len(line) + 1 for line in lines} == {int(length[1:])}
    rows = np.flatnonzero(run.poses.class_index.numpy() < 2)
    found, expected = open_particles(tmp_path / "s.lst"), before[rows]
    assert np.array_equal(found.images.read(np.arange(len(rows))), pixels[rows])
    assert found.pixel_size_A == expected.pixel_size_A
    assert found.poses is not None
    assert expected.poses is not None
    assert np.array_equal(found.poses.class_index, expected.poses.class_index)
    assert np.array_equal(found.poses.mirror, expected.poses.mirror)
    np.testing.assert_allclose(found.poses.origin_xy_px, expected.poses.origin_xy_px, atol=1e-4)
    turn = (found.poses.psi_deg - expected.poses.psi_deg + 180) % 360 - 180
    assert float(turn.abs().max()) < 1e-3
    assert (found.ctf is not None) == name.endswith(".hdf")


@pytest.mark.parametrize("value", [True, "1", 1.5, -1, 0, None])
def test_a_selection_with_odd_values_is_refused(tmp_path: Path, value: object) -> None:
    members = np.array([5, 5])
    path = write_selection(tmp_path / "s.json", members, [value])  # type: ignore[list-item]
    with pytest.raises(RalibError, match="damaged"):
        read_selection(path, members)


def test_any_mutated_selection_file_is_read_or_refused(tmp_path: Path) -> None:
    members = np.array([5, 5, 5])
    path = write_selection(tmp_path / "s.json", members, [1, 2])
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        path.write_bytes(bytes(data[: rng.integers(0, len(data))] if rng.random() < 0.3 else data))
        try:
            read_selection(path, members)
        except RalibError:
            refused += 1
    assert 100 < refused <= 500


def test_select_command_in_relion_writes_job_files(run: Path, tmp_path: Path) -> None:
    job = tmp_path / "job001"
    job.mkdir()
    out = job / "particles.star"
    command = ["select", str(run), str(out), "--classes", "1", "--pipeline_control", str(job)]
    assert main(command) == 0
    assert (job / "RELION_JOB_EXIT_SUCCESS").exists()
    nodes = (job / "RELION_OUTPUT_NODES.star").read_text()
    assert "particles.star" in nodes
    assert "ParticlesData.star.relion" in nodes
    failed = tmp_path / "job002"
    failed.mkdir()
    command = ["select", str(run), str(failed / "p.star"), "--classes", "8", "--pipeline_control", str(failed)]
    assert main(command) == 2
    assert [path.name for path in failed.iterdir()] == ["RELION_JOB_EXIT_FAILURE"]
