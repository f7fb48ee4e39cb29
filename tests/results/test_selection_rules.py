"""`ralib select` by rules for classes and particles, and the files it leaves beside the particles kept."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from make_run import make_run
from ralib.cli import main
from ralib.io import open_images, read_star
from ralib.results.particle_rules import capped, meets
from ralib.results.particle_scores import read_particle_scores
from ralib.results.summary import open_run
from ralib.types import RalibError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rules")
    return make_run(folder, n_classes=8, n_particles=300, box=24, n_iterations=2, judged=True)


def rows_of(path: Path) -> np.ndarray:
    """Rows of the run's particle file that a written one holds."""
    return read_star(path)["particles"]["myOwnColumn"].to_numpy(dtype=int)


def test_automatic_selection_keeps_the_particles_that_the_run_stored(run: Path, tmp_path: Path) -> None:
    """Whatever their class: averages are of the classes that mostly stay."""
    averages = tmp_path / "averages.mrcs"
    assert main(["select", str(run), str(tmp_path / "kept.star"), "--auto", "--averages", str(averages)]) == 0
    opened = open_run(run)
    stored = [c["class"] - 1 for c in json.loads((run / "run.json").read_text())["classes"] if c["selected"]]
    wanted = np.flatnonzero(opened.scores["selected"] > 0.5)
    assert set(stored) < set(opened.poses.class_index.numpy()[wanted].tolist())
    np.testing.assert_allclose(open_images(averages), opened.averages[stored], atol=1e-6)
    np.testing.assert_array_equal(rows_of(tmp_path / "kept.star"), wanted)


def test_automatic_selection_of_a_run_without_one_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = make_run(tmp_path, n_classes=4, n_particles=60, box=16, n_iterations=1)
    for option in (["--auto"], ["--min-class-score", "0.5"], ["--max-junk", "0.5"]):
        assert main(["select", str(plain), *option]) == 2
        error = capsys.readouterr().err
        assert option[0] in error
        assert error.count("\n") == 1
    assert not (plain / "selected.star").exists()


def test_thresholds_on_scores_keep_exactly_the_particles_that_meet_them(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.star"
    rules = ["--min-class-score", "0.4", "--max-junk", "0.3", "--min-posterior", "0.5"]
    assert main(["select", str(run), str(out), *rules]) == 0
    opened = open_run(run)
    score = np.array([c["score"] for c in json.loads((run / "run.json").read_text())["classes"]])
    keep = score[opened.poses.class_index.numpy()] >= 0.4
    keep &= (opened.scores["junk"] <= 0.3) & (opened.scores["posterior"] >= 0.5)
    np.testing.assert_array_equal(rows_of(out), np.flatnonzero(keep))


@pytest.mark.parametrize("suffix", [".star", ".cs", ".hdf"])
def test_scores_stand_in_the_particle_file(run: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"kept{suffix}"
    assert main(["select", str(run), str(out), "--classes", "1-2"]) == 0
    scores = read_particle_scores(run / "particle_scores.txt", 300)
    rows = np.flatnonzero(np.isin(open_run(run).poses.class_index.numpy(), [0, 1]))
    if suffix == ".star":
        table = read_star(out)["particles"]
        found = {"junk": table["ralibJunk"], "posterior": table["rlnMaxValueProbDistribution"]}
        assert set(table["ralibClassScore"].astype(float).round(3)) == {0.95, 0.821}
    elif suffix == ".cs":
        table = np.load(out)
        found = {"junk": table["ralib/junk"], "posterior": table["alignments2D/class_posterior"]}
    else:
        with h5py.File(out) as file:
            attributes = [file[f"MDF/images/{i}"].attrs["EMAN.ralib_junk"] for i in range(len(rows))]
        junk = [float(np.ravel(value)[0]) for value in attributes]
        found = {"junk": junk}
    for name, values in found.items():
        np.testing.assert_allclose(np.asarray(values, dtype=float), scores[name][rows], atol=2e-6)


def test_conditions_on_any_column(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.star"
    conditions = ["--where", "rlnDefocusU<18000", "--where", "rlnMicrographName=mic0000*", "--where", "quality >= -1"]
    assert main(["select", str(run), str(out), *conditions]) == 0
    table, quality = read_star(run / "particles.star")["particles"], open_run(run).scores["quality"]
    keep = (table["rlnDefocusU"] < 18000) & table["rlnMicrographName"].str.startswith("mic0000") & (quality >= -1)
    assert 0 < keep.sum() < 300
    np.testing.assert_array_equal(rows_of(out), np.flatnonzero(keep))


def test_a_condition_compares_numbers_and_texts_and_names_what_is_wrong() -> None:
    columns = {"a": np.array([1.0, np.nan, 3.0]), "name": np.array(["x1", "x2", "y"], dtype=object)}
    assert meets("a != 1", columns).tolist() == [False, False, True]
    assert meets("name=x*", columns).tolist() == [True, True, False]
    assert meets("name != 'y'", columns).tolist() == [True, True, False]
    for wrong in ("a", "a <", "b > 1", "name < x", "a ~ 1"):
        with pytest.raises(RalibError, match="`where`"):
            meets(wrong, columns)


def test_capped_classes_keep_their_best() -> None:
    index, preferred = np.array([0, 0, 0, 1, 1, 2]), np.array([1.0, 3.0, 2.0, 5.0, 6.0, 0.0])
    rows = np.arange(6)
    assert capped(rows, index, preferred, 1).tolist() == [1, 4, 5]
    assert capped(rows, index, preferred, None).tolist() == [1, 2, 3, 4, 5]  # the median class has two
    assert capped(rows[3:], index, preferred, 1).tolist() == [4, 5]


def test_duplicates_leave_the_better_of_two_picks(run: Path, tmp_path: Path) -> None:
    """Planted pairs lie 5 A apart, less what the origins move them; far pairs must stay."""
    out = tmp_path / "kept.star"
    assert main(["select", str(run), str(out), "--remove-duplicates", "12"]) == 0
    kept, quality = set(rows_of(out).tolist()), open_run(run).scores["quality"]
    pairs = [(i - 1, i) for i in range(9, 300, 10)]
    lost = [pair for pair in pairs if not set(pair) <= kept]
    assert len(lost) > 15
    assert all(max(pair, key=lambda i: quality[i]) in kept for pair in lost)
    assert 300 - len(kept) <= len(pairs) + 3


def test_recentred_picks_move_by_whole_pixels_and_leave_the_rest_in_the_origin(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.star"
    assert main(["select", str(run), str(out), "--classes", "1-8", "--recenter"]) == 0
    before, after = read_star(run / "particles.star")["particles"], read_star(out)["particles"]
    for axis in "XY":
        old, new = before[f"rlnCoordinate{axis}"].astype(float), after[f"rlnCoordinate{axis}"].astype(float)
        old_A, rest_A = before[f"rlnOrigin{axis}Angst"].astype(float), after[f"rlnOrigin{axis}Angst"].astype(float)
        moved = new - old
        np.testing.assert_allclose(moved, moved.round(), atol=1e-6)
        np.testing.assert_allclose(1.25 * old - old_A, 1.25 * new - rest_A, atol=1e-3)  # the centre stays where it is
        assert rest_A.abs().max() <= 0.5 * 1.25 + 1e-3
        assert old_A.abs().max() > 2


def test_all_files_of_a_selection(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, excluded, averages = tmp_path / "kept.star", tmp_path / "rest.star", tmp_path / "templates.mrcs"
    files = ["--excluded", str(excluded), "--averages", str(averages), "--split", "3"]
    assert main(["select", str(run), str(out), "--classes", "1,3", *files]) == 0
    assert "templates.mrcs: 2 class averages" in capsys.readouterr().out
    parts = [rows_of(tmp_path / f"kept_split{i}.star") for i in (1, 2, 3)]
    whole = np.concatenate([*parts, rows_of(excluded)])
    np.testing.assert_array_equal(np.sort(whole), np.arange(300))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    np.testing.assert_allclose(open_images(averages), open_run(run).averages[[0, 2]], atol=1e-6)
    assert not out.exists()


def test_a_mistake_writes_none_of_the_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    existing = tmp_path / "rest.star"
    existing.write_text("precious")
    command = ["select", str(run), str(tmp_path / "kept.star"), "--classes", "1"]
    for wrong in (["--excluded", str(existing)], ["--averages", str(tmp_path / "a.txt")], ["--where", "nope>1"]):
        assert main([*command, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rest.star"]
    assert existing.read_text() == "precious"
