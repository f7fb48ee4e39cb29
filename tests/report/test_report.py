"""The report's figures and pictures, and the page as text: what is in it, and what cannot get into it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from make_run import make_run
from ralib.cli import main
from ralib.images.fourier import filter_images, fourier_resize
from ralib.io import open_particles, write_particles_star
from ralib.io.class_averages import relion_iterations
from ralib.io.viewing import viewing_directions
from ralib.report.payload import plain, script_safe
from ralib.report.sheets import draw, encode, grey_levels, layout
from ralib.results.run_record import read_record, run_record
from ralib.results.summary import open_run, summarise, write_report
from ralib.results.summary.diagnose import centre_of_mass_px, diagnose
from ralib.results.summary.embedding import principal_plane, tsne
from ralib.results.summary.figures import class_figures, hexagon_maps, hexagons, histograms, particle_figures
from ralib.results.summary.pictures import aligned, choose_members, followed_back, likeness, uses_ctf
from ralib.types import ClassAverages, Notice, Poses, RalibError, RunResult


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("report"), n_classes=8, n_particles=300, box=32, n_iterations=3)


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_figures_agree_with_the_poses(run: Path) -> None:
    opened = open_run(run)
    index = opened.poses.class_index.numpy()
    figures = class_figures(opened)
    assert [item["members"] for item in figures] == np.bincount(index, minlength=8).tolist()
    assert figures[0]["mean_fit"] == pytest.approx(opened.poses.score.numpy()[index == 0].mean(), rel=1e-5)
    assert figures[0]["mirror_fraction"] == pytest.approx(opened.poses.mirror.numpy()[index == 0].mean())
    assert figures[-1]["flag"] == "empty"
    for histogram in histograms(opened).values():
        np.testing.assert_array_equal(histogram.counts.sum(axis=1), opened.members)
    assert set(histograms(opened)) == {"psi", "fit", "defocus"}
    maps = hexagon_maps(opened)
    assert set(maps) == {"shift"}  # these particles come without viewing directions
    for counts in (maps["shift"].counts, maps["shift"].x.counts, maps["shift"].y.counts):
        np.testing.assert_array_equal(counts.sum(axis=1), opened.members)
    mean = maps["shift"].counts.sum(0) @ maps["shift"].centre / opened.members.sum()
    member = index >= 0
    np.testing.assert_allclose(mean, opened.poses.origin_xy_px.numpy()[member].mean(0), atol=maps["shift"].size[0] / 2)
    fit = particle_figures(opened)["fit"]
    np.testing.assert_array_equal(fit, opened.poses.score.numpy()[np.argsort(index, kind="stable")])


def test_a_few_enormous_fits_do_not_leave_the_others_one_bar(run: Path) -> None:
    opened = open_run(run)
    score = opened.poses.score
    score[: len(score) // 50] = 1000 * score.abs().max()
    fit = histograms(opened)["fit"]
    assert fit.counts.sum() == len(score)
    assert (fit.counts.sum(0) > 0).sum() > len(fit.edges) // 3


def test_hexagons_every_point_lies_in_the_one_with_the_nearest_centre() -> None:
    rng = np.random.default_rng(0)
    low, high = np.array([-3.0, 0.0]), np.array([3.0, 12.0])
    xy = rng.uniform(low, high, (3000, 2))
    hexagon, centre, size = hexagons(xy, low, high, across=9)
    scale = np.array([1.0, size[0] * np.sqrt(3) / size[1]])  # the hexagons are regular in a square
    distance = np.linalg.norm((xy[:, None] - centre) * scale, axis=-1)
    np.testing.assert_allclose(distance[np.arange(3000), hexagon], distance.min(1), atol=1e-9)
    assert distance.min(1).max() <= size[0] / np.sqrt(3) * 1.02
    assert len(np.unique(centre, axis=0)) == len(centre)


def test_report_shows_viewing_directions_where_the_file_has_them(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_classes=3, n_particles=60, box=16, n_iterations=1)
    particles = open_particles(run / "particles.star")
    tables = dict(particles.metadata.tables)
    rng = np.random.default_rng(1)
    rot, tilt = rng.uniform(-180, 180, 60), rng.uniform(1, 179, 60)
    tables["particles"] = tables["particles"].assign(rlnAngleRot=rot, rlnAngleTilt=tilt)
    given = particles.replace(metadata=replace(particles.metadata, tables=tables))
    np.testing.assert_allclose(viewing_directions(given), np.stack([rot, tilt], 1), atol=1e-6)
    # A run's own file, in which rot and tilt tell the mirror, still has the directions.
    write_particles_star(run / "particles.star", given, mirror_as_class=False)
    found = viewing_directions(open_particles(run / "particles.star"))
    np.testing.assert_allclose(found, np.stack([rot, tilt], 1), atol=1e-5)
    view = hexagon_maps(open_run(run))["view"]
    assert view.counts.sum() == open_run(run).members.sum()
    assert viewing_directions(particles) is None
    for name, value in (("rlnAngleTilt", 180.0), ("rlnAngleRot", 0.0)):
        tables["particles"][name] = value
    assert viewing_directions(given) is None


def test_figures_of_particles_follow_the_classes(tmp_path: Path) -> None:
    judged = open_run(make_run(tmp_path, n_classes=5, n_particles=80, box=16, n_iterations=1, judged=True))
    index, found = judged.poses.class_index.numpy(), particle_figures(judged)
    assert set(found) == {"fit", "posterior", "junk"}
    for k in range(5):
        start = judged.members[:k].sum()
        np.testing.assert_allclose(
            found["junk"][start : start + judged.members[k]], judged.scores["junk"][index == k], rtol=1e-6
        )
    assert {"junk", "posterior"} <= set(histograms(judged))


def test_members_lie_on_their_average(run: Path) -> None:
    """The wrong value: with the mirror left out they no longer do."""
    opened = open_run(run)
    rows = np.arange(120)
    references = opened.averages[opened.poses.class_index.numpy()[rows]]
    good = likeness(aligned(opened, rows, 32), references)
    assert np.median(good) > 0.4
    poses = opened.poses.replace(mirror=~opened.poses.mirror)
    wrong = likeness(aligned(type(opened)(**{**vars(opened), "poses": poses}), rows, 32), references)
    assert np.median(wrong) < np.median(good) - 0.1


@pytest.mark.parametrize(("box", "size"), [(64, 32), (65, 32), (64, 31), (31, 16)])
def test_resizing_keeps_grey_values_and_centre(box: int, size: int) -> None:
    y, x = np.mgrid[:box, :box] - box // 2
    blob = np.exp(-((x - 3) ** 2 + (y + 5) ** 2) / 2 / 4.0**2)
    small = fourier_resize(torch.tensor(blob)[None], size)[0].numpy()
    v, u = (np.mgrid[:size, :size] - size // 2) * (box / size)
    expected = np.exp(-((u - 3) ** 2 + (v + 5) ** 2) / 2 / 4.0**2)
    np.testing.assert_allclose(small, expected, atol=0.02)


@pytest.mark.parametrize("size", [24, 32, 40])
def test_a_filter_while_resizing_is_one_afterwards(size: int) -> None:
    images = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(4))
    response = torch.randn(3, size, size // 2 + 1, generator=torch.Generator().manual_seed(5)).sign()
    expected = filter_images(fourier_resize(images, size), response)
    torch.testing.assert_close(fourier_resize(images, size, response), expected)


def test_pictures_do_not_depend_on_batches(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, rows = open_run(run), np.arange(299, 100, -3)
    whole = aligned(opened, rows, 16)
    monkeypatch.setattr("ralib.results.summary.pictures.BATCH", 7)
    np.testing.assert_allclose(aligned(opened, rows, 16), whole, atol=1e-5)


def test_a_report_is_written_twice_with_the_same_bytes(run: Path, tmp_path: Path) -> None:
    pages = [write_report(run, tmp_path / name, max_points=200).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def test_members_to_show_are_ranked() -> None:
    score = np.array([0.1, 0.9, np.nan, 0.5, 0.7, 0.3])
    rng = np.random.default_rng(0)
    assert choose_members(np.arange(6), score, 2, rng).tolist() == [1, 4, 2, 3, 0, 5]
    assert choose_members(np.array([3]), score, 2, rng).tolist() == [3, -1, -1, -1, -1, -1]
    assert choose_members(np.array([], dtype=int), score, 1, rng).tolist() == [-1, -1, -1]


def test_planted_troubles_are_told_with_what_to_do(run: Path) -> None:
    opened = open_run(run)
    found = diagnose(opened, opened.averages)
    text = " ".join(item.what for item in found)
    for trouble in ("NaN", "collapsed", "edge", "not centred"):
        assert trouble in text
    assert "duplicate" not in text
    assert all(item.remedy for item in found)


def test_a_healthy_run_gets_no_warning(run: Path) -> None:
    opened = open_run(run)
    y, x = np.mgrid[:32, :32] - 16
    rings = np.stack([np.exp(-((np.hypot(x, y) - r) ** 2) / 4) for r in range(2, 10)])
    poses = opened.poses.replace(
        class_index=torch.arange(300) % 8, origin_xy_px=torch.zeros(300, 2), psi_deg=torch.zeros(300)
    )
    healthy = type(opened)(**{**vars(opened), "averages": rings, "poses": poses, "record": {"options": {"xr": "3"}}})
    assert diagnose(healthy, rings) == []


def test_search_range_is_read_from_every_way_to_write_it() -> None:
    assert run_record({"options": {"xr": "4 2 1"}}).search_range_px == 4
    assert run_record({"options": {"shift_range_xy_px": [3, 5]}}).search_range_px == 5
    assert run_record({"options": {"xr": [[3, 3], [1, 1]]}}).search_range_px == 3
    assert run_record({"options": {"xr": "wide"}}).search_range_px is None
    assert run_record({"options": {}}).search_range_px is None


def test_centre_of_mass_px_of_a_blob_is_its_place() -> None:
    y, x = np.mgrid[:48, :48] - 24
    blob = np.exp(-((x - 6) ** 2 + (y + 4) ** 2) / 18)[None]
    np.testing.assert_allclose(centre_of_mass_px(blob), [[6, -4]], atol=0.5)


def test_neighbours_stay_neighbours_in_the_plane() -> None:
    """Three groups of averages end as three groups; the plane of the principal components is scikit-learn's."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(3), 8)
    features = rng.normal(size=(3, 40))[group] + 0.2 * rng.normal(size=(24, 40))
    xy, explained = principal_plane(features)
    theirs = PCA(2, svd_solver="full").fit(features)
    np.testing.assert_allclose(np.abs(xy), np.abs(theirs.transform(features)), atol=1e-9)
    np.testing.assert_allclose(explained, theirs.explained_variance_ratio_, atol=1e-9)
    placed = tsne(features, 1e-4 * xy, perplexity=5)
    distance = np.linalg.norm(placed[:, None] - placed[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).all()
    assert np.array_equal(placed, tsne(features, 1e-4 * xy, perplexity=5))


def test_sheets_give_every_picture_back() -> None:
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:20, :20]
    images = np.stack([np.sin(x / rng.uniform(2, 6)) + np.cos(y / rng.uniform(2, 6)) for _ in range(50)])
    (sheet,) = layout(50, 20)
    coded = base64.b64decode(encode(draw(images, sheet), quality=95))
    canvas = np.asarray(Image.open(io.BytesIO(coded)).convert("L"), dtype=float)
    for i in (0, 7, 49):
        top, left = i // sheet["columns"] * sheet["stride"], i % sheet["columns"] * sheet["stride"]
        tile = canvas[top : top + 20, left : left + 20]
        assert np.corrcoef(tile.ravel(), images[i].ravel())[0, 1] > 0.99
        assert np.corrcoef(tile.ravel(), images[(i + 1) % 50].ravel())[0, 1] < 0.99
    flat = grey_levels(np.stack([np.full((4, 4), 3.0), np.full((4, 4), np.nan)]))
    assert flat.dtype == np.uint8


@pytest.mark.parametrize(("size", "percent"), [(1, 0.5), (9, 0.5), (20, 0.5), (20, 0.0), (20, 7.0)])
def test_grey_levels_lie_between_percentiles_of_each_image(size: int, percent: float) -> None:
    rng = np.random.default_rng(3)
    images = rng.normal(size=(6, size, size)) * rng.uniform(1, 9, (6, 1, 1)) + rng.normal(size=(6, 1, 1))
    low, high = np.percentile(images, [percent, 100 - percent], axis=(1, 2), keepdims=True)
    expected = np.clip((images - low) / np.where(high > low, high - low, 1), 0, 1) * 255
    assert np.abs(grey_levels(images, clip_percent=percent) - expected).max() <= 0.51


def test_json_inside_script_cannot_end_it() -> None:
    nasty = {"</script><b>": ["<!--", "]]>", "\u2028", "&lt;", float("nan"), np.float32(np.inf), Path("a<b")]}
    text = script_safe(plain(nasty))
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script><b>": ["<!--", "]]>", "\u2028", "&lt;", None, None, "a<b"]}


def test_page_is_one_file_and_nothing_can_be_injected(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_classes=4, n_particles=60, box=24, n_iterations=2, hostile=True)
    text = write_report(run).read_text()
    elements = Elements(text).found
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    executed = [attributes for attributes in scripts if attributes.get("type") is None]
    assert len(executed) == 1
    assert not [tag for tag, attributes in elements if any(name.startswith("on") for name in attributes)]
    for tag, attributes in elements:
        address = attributes.get("src") or (attributes.get("href") if tag in ("link", "script") else None)
        assert address is None or address.startswith("data:")
    policy = next(a["content"] for t, a in elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    script = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    data = json.loads(text[text.index('id="ralib-data">') + 16 : text.rindex("</script>\n<script>")])
    assert "</script><script>" in data["facts"]["input"]["path"]


def test_no_markup_is_made_from_text() -> None:
    """textContent only: none of the ways that parse a string as HTML or code."""
    folder = Path(__file__).parents[2] / "src/ralib/report"
    for script in folder.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script.read_text()
        )


def test_report_command_json_holds_all_figures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["format"] == "ralib-report"
    assert [item["class"] for item in figures["classes"]] == list(range(1, 9))
    assert sum(item["members"] for item in figures["classes"]) == 300
    assert len(figures["iterations"]) == 3
    assert len(figures["embedding"]["xy"]) == 300
    assert len(figures["frc"]["values"]) == 8
    assert np.sum(figures["histograms"]["psi"]["counts"]) == 300
    assert len(figures["members"]["row"]) == 8
    assert figures["ctf"]["curves"]


def test_report_command_says_what_it_wrote(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job"
    job.mkdir()
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--out", str(page), "--max-points", "50", "--pipeline_control", str(job)]) == 0
    assert f"wrote {page}" in capsys.readouterr().out
    assert (job / "RELION_JOB_EXIT_SUCCESS").exists()
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run" in capsys.readouterr().err


def test_view_without_napari_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("napari") is not None:
        pytest.skip("napari is installed here: a window would open")
    assert main(["view", str(run)]) == 2
    message = capsys.readouterr().err
    assert "napari" in message
    assert message.count("\n") == 1


def test_without_images_scores_or_ctf_the_rest_is_still_there(tmp_path: Path) -> None:
    run = make_run(tmp_path, n_classes=4, n_particles=60, box=24, n_iterations=2, scores=False, ctf=False)
    with_images = summarise(open_run(run))
    assert not with_images.particle_figures
    assert with_images.ctf is None
    assert with_images.members is not None
    assert np.nanmax(with_images.members.score) > 0.3  # likeness to the average stands in for the score
    (tmp_path / "particles.mrcs").unlink()
    without = summarise(open_run(run))
    assert without.members is None
    assert without.embedding is None
    assert any("could not be read" in item["what"] for item in without.warnings)
    write_report(run)


def test_damaged_runs_are_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[1, 2]")
    with pytest.raises(RalibError):
        open_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RalibError, match="not finished"):
        open_run(tmp_path)


def test_a_relion_class2d_job(shared_data: Path, tmp_path: Path) -> None:
    sets = shared_data / "sets"
    for kind in ("data.star", "classes.mrcs", "model.star"):
        (tmp_path / f"run_it100_{kind}").symlink_to(sets / f"relion5_vdam_k50_n5000_{kind}")
    contents = summarise(open_run(tmp_path))
    assert len(contents.classes) == 50
    assert sum(item["members"] for item in contents.classes) == 5000
    assert contents.pixel_size_A == pytest.approx(5.0)
    assert contents.iterations[0]["iteration"] == 100
    assert any(item["resolution_A"] for item in contents.classes)
    assert write_report(tmp_path).stat().st_size < 5e6


def averages() -> ClassAverages:
    images = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    frc = torch.linspace(1, -0.2, 11).repeat(3, 1)
    return ClassAverages(images, torch.tensor([5, 9, 0]), frc=frc, pixel_size_A=2.0)


def test_repr_html_shows_galleries_and_escapes_text() -> None:
    html = averages()._repr_html_()
    assert html.count("<img") == 3
    assert html.index("#2") < html.index("#1") < html.index("#3")  # the largest class first
    warning = Notice("<script>alert(1)</script>", remedy="look")
    result = RunResult("mref", Poses.identity(14), averages(), [], {}, [warning])
    html = result._repr_html_()
    assert "<script" not in html
    assert "look" in html


def test_histories_follow_classes_through_changes_of_number() -> None:
    """Classes that changed places are found again; one split off another has that one's past; all else stays."""
    rng = np.random.default_rng(4)
    kinds = rng.normal(size=(6, 24, 24))

    def noisy(order: list[int]) -> np.ndarray:
        return kinds[order] + 0.3 * rng.normal(size=(len(order), 24, 24))

    early, late = noisy([0, 1, 2, 3, 4]), noisy([1, 0, 2, 3, 3])
    ancestors = followed_back([early, late], noisy([1, 0, 2, 3, 3]))
    assert ancestors.tolist() == [[1, 0, 2, 3, 3], [0, 1, 2, 3, 4]]
    unlike = [rng.normal(size=(5, 24, 24)), late]  # nothing alike before: the numbers are kept
    assert followed_back(unlike, late)[0].tolist() == [0, 1, 2, 3, 4]


def test_relion_job_continued_gives_its_newest_iteration(tmp_path: Path) -> None:
    for name in ("run_it010", "run_it025", "run_ct25_it026", "run_ct25_it030", "run_ct10_it025"):
        (tmp_path / f"{name}_data.star").touch()
    names = [path.name.removesuffix("_data.star") for path in relion_iterations(tmp_path)]
    assert names == ["run_it010", "run_it025", "run_ct10_it025", "run_ct25_it026", "run_ct25_it030"]


def test_report_of_a_classification_with_ctf_flips_phases_and_knows_its_search_range(tmp_path: Path) -> None:
    """What --ctf auto did is recorded as done, and advice names options that classify has."""
    assert main(["simulate", str(tmp_path / "sim"), "--particles=160", "--box=32", "--views=2", "--seed=1"]) == 0
    words = ["--classes=2", "--search=2", "--device=cpu", "--no-report"]
    assert main(["classify", str(tmp_path / "sim" / "particles.star"), str(tmp_path / "run"), *words]) == 0
    opened = open_run(tmp_path / "run")
    record = run_record(opened.record)
    assert (record.kind, record.finished, record.ctf, record.search_range_px) == ("classify", True, "wiener", 2)
    assert uses_ctf(opened)
    unflipped = replace(opened, record={**opened.record, "ctf_correction": "none"})
    rows = np.arange(8)
    assert np.abs(aligned(opened, rows, 32) - aligned(unflipped, rows, 32)).max() > 0.1, "phases are flipped"
    far = opened.poses.replace(origin_xy_px=torch.full_like(opened.poses.origin_xy_px, 1.8))
    advice = " ".join(item.remedy for item in diagnose(replace(opened, poses=far), opened.averages))
    assert "--search" in advice
    assert "--center" not in advice
    assert "--xr" not in advice


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": [1, 2]}, "'classes' must be a list of tables"),
        ({"classes": [{"class": 1, "members": 3, "resolution_A": "x"}]}, "a class whose numbers are none"),
        ({"options": [1]}, "'options' must be a table"),
        ({"input": {"pixel_size_A": 1e-300}}, "'input.pixel_size_A' is 1e-300 A"),
    ],
)
def test_read_record_damaged_says_what_is_wrong(tmp_path: Path, change: dict, words: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"kind": "mref", "state": "finished"} | change))
    with pytest.raises(RalibError, match=re.escape(words)):
        read_record(tmp_path)
