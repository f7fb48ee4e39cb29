"""`ralib select` by rules for classes and particles, and the files it leaves beside the particles kept."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from make_run import make_run
from ralib.cli import main
from ralib.io import open_images, open_particles, read_star, write_mrcs, write_star
from ralib.io.cryosparc_write import save_cs
from ralib.io.picks import picks_of
from ralib.results.particle_rules import capped, meets, recentred, without_duplicates
from ralib.results.particle_scores import read_particle_scores
from ralib.results.selected_files import split_rows
from ralib.results.summary import open_run
from ralib.types import RalibError
from star_files import rows, stack, write


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


def test_picks_of_a_micrograph_of_two_spellings_are_of_one(tmp_path: Path) -> None:
    """Sets joined from two programs name it m.mrc and ./m.mrc, and every particle stayed in twice."""
    stack(tmp_path / "p.mrcs", 6)
    names = ["Mics/m.mrc", "./Mics/m.mrc", "Mics//m.mrc", "Mics/a/../m.mrc", "Mics/b/m.mrc", "Other/m.mrc"]
    place = {"rlnCoordinateX": 10, "rlnCoordinateY": 20, "rlnMicrographPixelSize": 2}
    star = write(tmp_path / "p.star", rows(6, **place, rlnMicrographName=names))
    assert picks_of(open_particles(star)).micrograph.tolist() == [0, 0, 0, 0, 1, 2]


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


def test_a_selection_of_all_particles_says_that_none_is_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, excluded = tmp_path / "kept.star", tmp_path / "rest.star"
    assert main(["select", str(run), str(out), "--min-members", "0", "--excluded", str(excluded)]) == 0
    assert f"no particle is left out: {excluded} is not written" in capsys.readouterr().out
    assert len(rows_of(out)) == 300
    assert not excluded.exists()


def test_a_mistake_writes_none_of_the_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    existing = tmp_path / "rest.star"
    existing.write_text("precious")
    command = ["select", str(run), str(tmp_path / "kept.star"), "--classes", "1"]
    for wrong in (["--excluded", str(existing)], ["--averages", str(tmp_path / "a.txt")], ["--where", "nope>1"]):
        assert main([*command, *wrong]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rest.star"]
    assert existing.read_text() == "precious"


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("hash=72E45901", [0]), ("hash=00713", [1]), ("hash=713", [2]), ("hash!=713", [0, 1, 3]),
        ("hash=250531_1", [3]), ("hash=250531*", [3]), ("uid=9223372036854775807", [1]), ("uid!=9223372036854775807",
        [0, 2, 3]), ("x=1.50", [1]), ("x>1", [1, 3]), ("text=12.0", [2]),
    ],
)  # fmt: skip
def test_text_stays_text_in_conditions(condition: str, wanted: list[int]) -> None:
    columns = {
        "hash": np.array(["72E45901", "00713", "713", "250531_1"], dtype=object),
        "uid": np.array([2**63 - 2, 2**63 - 1, 2**63, 0], dtype=np.uint64),
        "x": np.array([1.0, 1.5, np.nan, 9.0]),
        "text": np.array(["1", "x", "12", "12_0"], dtype=object),
    }
    assert np.flatnonzero(meets(condition, columns)).tolist() == wanted


@pytest.mark.parametrize("condition", ["name<5", "x>250531_1", "x<1e999", "x>nan"])
def test_conditions_that_no_value_can_meet_are_refused(condition: str) -> None:
    with pytest.raises(RalibError, match=r"holds no numbers|is no number"):
        meets(condition, {"name": np.array(["a", "b"]), "x": np.array([1.0, 2.0])})


def picked(folder: Path, *, size_A: tuple[float, float] = (2.0, 4.0), micrograph_A: float = 1.0) -> Path:
    """Four particles, two of each pixel size; the origin of each is (3, -2) px of its own image."""
    stack = folder / "p.mrcs"
    write_mrcs(stack, np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32), None)
    optics = {
        "rlnOpticsGroup": [1, 2], "rlnImagePixelSize": list(size_A), "rlnImageSize": [16, 16],
        "rlnImageDimensionality": [2, 2], "rlnMicrographPixelSize": [micrograph_A] * 2,
        "rlnVoltage": [300.0] * 2, "rlnSphericalAberration": [2.7] * 2,
    }  # fmt: skip
    each = np.repeat(size_A, 2)
    particles = {
        "rlnImageName": [f"{i + 1:06d}@{stack}" for i in range(4)], "rlnMicrographName": ["m.mrc"] * 4,
        "rlnOpticsGroup": [1, 1, 2, 2], "rlnClassNumber": [1] * 4, "rlnAnglePsi": [10.0, 20, 30, 40],
        "rlnOriginXAngst": 3 * each, "rlnOriginYAngst": -2 * each,
        "rlnCoordinateX": [100.0, 200, 300, 306], "rlnCoordinateY": [500.0] * 4,
    }  # fmt: skip
    write_star(folder / "p.star", {"optics": pd.DataFrame(optics), "particles": pd.DataFrame(particles)})
    return folder / "p.star"


def test_recentred_picks_move_by_the_pixels_of_each_particle(tmp_path: Path) -> None:
    """The centre lies at -origin: (-6, +4) A for 2 A/px, (-12, +8) A for 4 A/px; a micrograph's pixel is 1 A."""
    table = recentred(open_particles(picked(tmp_path))).metadata.tables["particles"]
    assert table["rlnCoordinateX"].tolist() == [94, 194, 288, 294]
    assert table["rlnCoordinateY"].tolist() == [504, 504, 508, 508]


def test_picks_on_a_micrograph_of_no_pixel_size_are_refused(tmp_path: Path) -> None:
    """All would lie in one place, and all but one be left out."""
    particles = open_particles(picked(tmp_path, micrograph_A=0.0))
    with pytest.raises(RalibError, match="pixel size of particle 1 is 0"):
        without_duplicates(np.arange(4), particles, np.zeros(4), 5.0)
    assert main(["prepare", str(tmp_path / "p.star"), str(tmp_path / "o.star"), "--remove-duplicates=5"]) == 2


def cryosparc_picks(folder: Path, micrograph: str, shift_px: float = 0.0) -> Path:
    """Three .cs particles of 2 A/px on a 1 A/px micrograph of 1000 x 500 px; the first two lie 4 A apart."""
    write_mrcs(folder / "p.mrcs", np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32), 2.0)
    which = ("location/micrograph_path", "S5") if micrograph == "path" else ("location/micrograph_uid", "u8")
    rows = np.zeros(3, dtype=[
        ("uid", "u8"), ("blob/path", "S40"), ("blob/idx", "u4"), ("blob/shape", "u4", (2,)), ("blob/psize_A", "f4"),
        ("location/center_x_frac", "f8"), ("location/center_y_frac", "f8"), ("location/micrograph_shape", "u4", (2,)),
        ("location/micrograph_psize_A", "f4"), which, ("alignments2D/pose", "f4"), ("alignments2D/shift", "f4", (2,)),
        ("alignments2D/psize_A", "f4"), ("alignments2D/class", "u4"),
    ])  # fmt: skip
    rows["uid"], rows["blob/path"], rows["blob/idx"] = [5, 6, 7], b"p.mrcs", [0, 1, 2]
    rows["blob/shape"], rows["blob/psize_A"], rows["alignments2D/psize_A"] = 16, 2.0, 2.0
    rows["location/center_x_frac"], rows["location/center_y_frac"] = [0.1, 0.104, 0.5], 0.5
    rows["location/micrograph_shape"], rows["location/micrograph_psize_A"] = (500, 1000), 1.0
    rows[which[0]] = b"a.mrc" if micrograph == "path" else 9
    rows["alignments2D/shift"][:, 0] = shift_px
    save_cs(folder / "p.cs", rows)
    return folder / "p.cs"


@pytest.mark.parametrize("micrograph", ["path", "uid"])
def test_cryosparc_picks_of_one_micrograph_are_compared(tmp_path: Path, micrograph: str) -> None:
    particles = open_particles(cryosparc_picks(tmp_path, micrograph))
    assert without_duplicates(np.arange(3), particles, np.array([0.0, 1, 0]), 5.0).tolist() == [1, 2]
    assert without_duplicates(np.arange(3), particles, np.array([0.0, 1, 0]), 3.0).tolist() == [0, 1, 2]


def test_cryosparc_picks_are_recentred_by_fractions(tmp_path: Path) -> None:
    """A shift of 5 px of 2 A puts the centre 10 A = 0.01 of the micrograph's width to the left."""
    moved = recentred(open_particles(cryosparc_picks(tmp_path, "path", 5.0)))
    assert moved.metadata.tables["cs"]["location/center_x_frac"] == pytest.approx([0.09, 0.094, 0.49])
    assert moved.poses is not None
    assert not moved.poses.origin_xy_px.any()


def test_parts_share_no_image() -> None:
    same_as = np.array([0, 1, 2, 0, 1, 5, 6, 7, 2, 9])
    parts = split_rows(np.arange(10), 3, same_as=same_as)
    assert sorted(np.concatenate(parts).tolist()) == list(range(10))
    images = [set(same_as[part]) for part in parts]
    assert not images[0] & images[1] | images[1] & images[2] | images[0] & images[2]
    with pytest.raises(RalibError, match="different images"):
        split_rows(np.arange(10), 8, same_as=same_as)


def test_parts_written_as_cs_share_no_uid(run: Path, tmp_path: Path) -> None:
    assert main(["select", str(run), str(tmp_path / "kept.cs"), "--classes=1-8", "--split=2"]) == 0
    uids = [np.load(tmp_path / f"kept_split{i}.cs")["uid"] for i in (1, 2)]
    assert len(np.unique(np.concatenate(uids))) == 300


@pytest.mark.parametrize(
    "words",
    [
        "select RUN OUT.star --classes=1 --excluded=OUT.star", "select RUN OUT.hdf --classes=1 --averages=OUT.hdf",
        "select RUN OUT.star --classes=1 --split=2 --excluded=OUT_split2.star",
        "compare RUN RUN --only-a=OUT.star --only-b=OUT.star",
    ],
)  # fmt: skip
def test_two_outputs_of_one_name_are_refused(run: Path, tmp_path: Path, capsys, words: str) -> None:
    """The particles left out replaced those kept, with status 0."""
    command = [w.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for w in words.split()]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "is named twice" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_report_named_as_a_folder_is_refused(run: Path, tmp_path: Path, capsys) -> None:
    assert main(["report", str(run), "--out", str(tmp_path)]) == 2
    assert "is a folder: name the page to write" in capsys.readouterr().err
