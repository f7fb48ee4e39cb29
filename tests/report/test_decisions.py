"""Deciding in the report, in headless Chromium: figures on every card, selection by every means, undo, exports."""

from __future__ import annotations

import csv
import io
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from browser import resize, wait_for
from make_run import JUNK_LIMIT, make_run
from ralib.cli import main
from ralib.io import open_particles
from ralib.results.summary import open_run, write_report

K, N = 9, 300


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decide")
    made = make_run(folder, n_classes=K, n_particles=N, box=32, n_iterations=4, judged=True)
    write_report(made, max_points=200)
    return made


@pytest.fixture
def opened(page: Any, run: Path, tmp_path: Path) -> Any:
    """The page as a person sees it for the first time."""
    resize(page, 1400, 1000)
    page.get("about:blank")
    page.get(f"file://{run}/report.html")
    page.execute_script("localStorage.clear()")
    page.get("about:blank")
    page.get(f"file://{run}/report.html")
    wait_for(lambda: page.execute_script("return document.documentElement.dataset.ready"))
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    return page


def record(run: Path) -> list[dict[str, Any]]:
    classes: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["classes"]
    return classes


def kept(page: Any) -> list[int]:
    """Numbers of the ticked classes, rising."""
    ticked = "return [...document.querySelectorAll('.card.kept')].map(c => +c.dataset.class).sort((a, b) => a - b)"
    return list(page.execute_script(ticked))


def shown_order(page: Any) -> list[int]:
    return list(page.execute_script("return [...document.querySelectorAll('.card')].map(c => +c.dataset.class)"))


def click(page: Any, element_id: str) -> None:
    page.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", page.find_element("id", element_id)
    )
    page.find_element("id", element_id).click()


def card(page: Any, number: int, inside: str = "") -> Any:
    found = page.find_element("css selector", f'.card[data-class="{number}"] {inside}'.strip())
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
    return found


def sort_by(page: Any, key: str) -> list[int]:
    page.find_element("css selector", f'#sort option[value="{key}"]').click()
    return shown_order(page)


def automatic_rows(run: Path) -> tuple[np.ndarray, list[int]]:
    """Rows of the particles that the run itself keeps, and the classes (from 1) that any of them is in."""
    opened = open_run(run)
    rows = np.flatnonzero(opened.scores["selected"] > 0.5)
    return rows, sorted({k + 1 for k in opened.poses.class_index.numpy()[rows].tolist()})


def test_the_automatic_selection_is_ticked_beforehand_with_its_reasons(opened: Any, run: Path) -> None:
    rows, automatic = automatic_rows(run)
    assert kept(opened) == automatic
    assert int(opened.find_element("id", "kept-particles").get_attribute("data-value")) == len(rows)
    assert "detailed and reproducible" in card(opened, automatic[0], ".tick").get_attribute("title")
    assert "class score below 0.5" in card(opened, K, ".tick").get_attribute("title")
    click(opened, "keep-none")
    assert kept(opened) == []
    click(opened, "keep-automatic")
    assert kept(opened) == automatic


def test_the_words_of_a_card_are_as_short_as_a_card_is_narrow(opened: Any) -> None:
    words = {
        "25% of its members are probably junk: fits its class badly; less detail": "partly junk",
        "its views were probably not told apart: it shows shape, no detail": "views unsure",
        "less detail than most classes; it lies 6 px off the centre": "less detail",
        "good: detailed, reproducible": "good",
    }
    (source,) = re.findall(
        r"const briefVerdict = .*?;\n", (resources.files("ralib.report") / "figures.js").read_text(), re.S
    )
    for verdict, brief in words.items():
        assert opened.execute_script(f"{source}return briefVerdict(arguments[0])", verdict) == brief


def test_every_card_shows_score_verdict_junk_agreement_and_stability(opened: Any, run: Path) -> None:
    for row in record(run)[:3]:
        text = card(opened, row["class"]).text
        for part in (f"{row['score']:.2f}", row["verdict"].split(":")[0], "junk", "agree", "stable"):
            assert part in text
        assert f"{100 * row['junk']:.0f} %" in text
        assert f"{100 * row['stability']:.0f} %" in text
    card(opened, 1, ".open").click()
    detail = opened.find_element("id", "detail").text
    for name in ("Class score", "Junk share", "Agreement", "Stability", "Mean posterior", "Mean fit"):
        assert name in detail
    assert "good: detailed" in detail.lower()
    assert "automatic selection: kept: detailed" in detail.lower()
    opened.find_element("id", "detail-close").click()


def test_the_page_shows_which_particles_of_a_class_are_left_out(opened: Any, run: Path) -> None:
    files = open_run(run)
    index, junk = files.poses.class_index.numpy(), files.scores["junk"]
    stay = [int((junk[index == k] <= JUNK_LIMIT).sum()) for k in range(K)]
    partly = next(k for k in range(K) if 0 < stay[k] < (index == k).sum())
    assert f"{stay[partly]} of {(index == partly).sum()} kept" in card(opened, partly + 1).text
    card(opened, partly + 1, ".open").click()
    left_out = opened.execute_script(
        "return [...document.querySelectorAll('#detail [data-member]')].map(f => [f.title, f.textContent])"
    )
    assert {title for title, _ in left_out} == {"left out", "kept"}
    for title, text in left_out:
        row = int(text.split("·")[0].replace(",", "")) - 1
        assert (junk[row] <= JUNK_LIMIT) == (title == "kept")
    opened.find_element("id", "detail-close").click()


@pytest.mark.slow
def test_page_and_select_auto_keep_the_same_particles_of_a_classified_run(page: Any, tmp_path: Path) -> None:
    """A real classification of particles with junk among them: the page as it opens, its file, and --auto."""
    options = ["--particles", "400", "--box", "32", "--views", "3", "--snr", "0.3", "--junk", "0.3"]
    assert main(["simulate", str(tmp_path / "set"), *options]) == 0
    out = tmp_path / "run"
    assert main(["classify", str(tmp_path / "set/particles.star"), str(out), "--classes", "5"]) == 0
    assert main(["select", str(out), str(tmp_path / "auto.star"), "--auto"]) == 0
    page.get("about:blank")
    page.get(f"file://{out}/report.html")
    wait_for(lambda: page.execute_script("return document.documentElement.dataset.ready"))
    page.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    click(page, "download")
    wait_for((tmp_path / "selection.json").is_file, what="the selection file")
    shown = int(page.find_element("id", "kept-particles").get_attribute("data-value"))
    assert main(["select", str(out), str(tmp_path / "selection.json"), str(tmp_path / "page.star")]) == 0
    auto, ticked = (open_particles(tmp_path / f"{name}.star").to_pandas() for name in ("auto", "page"))
    assert auto["rlnImageName"].tolist() == ticked["rlnImageName"].tolist()
    assert 0 < shown == len(auto) < 400


def test_classes_sort_by_each_figure(opened: Any, run: Path) -> None:
    rows = {row["class"]: row for row in record(run)}
    assert sort_by(opened, "score") == list(range(1, K + 1))
    assert sort_by(opened, "junk") == list(range(1, K + 1))  # less junk first
    by_stability = [rows[k]["stability"] for k in sort_by(opened, "stable")]
    assert by_stability == sorted(by_stability, reverse=True)
    options = opened.find_elements("css selector", "#sort option")
    names = [o.text for o in options]
    assert len(set(names)) == len(names) >= 10
    assert "Score" not in names  # one word, one meaning: class score, or fit


def test_classes_above_and_below_one_are_kept_from_menu_keys_and_detail(opened: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    click(opened, "keep-none")
    order = sort_by(opened, "class")
    ActionChains(opened).context_click(card(opened, order[3], ".open")).perform()
    items = opened.find_elements("css selector", "#menu [role=menuitem]")
    next(i for i in items if "all above" in i.text and i.text.startswith("Keep")).click()
    assert kept(opened) == [1, 2, 3, 4]
    click(opened, "keep-none")
    card(opened, 7, ".open").send_keys(Keys.SHIFT + Keys.END)
    assert kept(opened) == [7, 8, 9]
    click(opened, "keep-none")
    card(opened, 2, ".open").click()
    click(opened, "keep-above")
    assert kept(opened) == [1, 2]
    opened.find_element("id", "detail-close").click()


def test_undo_and_redo_by_buttons_and_keys_bring_every_state_back(opened: Any) -> None:
    from selenium.webdriver import ActionChains, Keys

    start = kept(opened)
    click(opened, "keep-all")
    click(opened, "invert")
    assert kept(opened) == []
    click(opened, "undo")
    assert len(kept(opened)) == K
    click(opened, "undo")
    assert kept(opened) == start
    assert opened.find_element("id", "undo").get_attribute("disabled")
    click(opened, "redo")
    assert len(kept(opened)) == K
    keys = ActionChains(opened)
    keys.key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()
    assert kept(opened) == start
    ActionChains(opened).key_down(Keys.CONTROL).key_down(Keys.SHIFT).send_keys("z").key_up(Keys.SHIFT).key_up(
        Keys.CONTROL
    ).perform()
    assert len(kept(opened)) == K
    click(opened, "keep-none")  # a new change: nothing to redo
    assert opened.find_element("id", "redo").get_attribute("disabled")


def test_thresholds_on_every_figure_tick_classes_and_thin_particles(opened: Any, run: Path, tmp_path: Path) -> None:
    opened.find_element("css selector", "#thresholds summary").click()
    fields = {f.get_attribute("id") for f in opened.find_elements("css selector", "#thresholds input")}
    assert {f"limit-{key}" for key in ("members", "resolution", "score", "junk", "agreement", "stable")} <= fields
    assert {f"limit-particle-{key}" for key in ("fit", "posterior", "junk")} <= fields
    opened.find_element("id", "limit-score").send_keys("0.35")
    opened.find_element("id", "limit-stable").send_keys("0.55")
    members = open_run(run).members
    good = [
        c["class"] for c in record(run) if c["score"] >= 0.35 and c["stability"] >= 0.55 and members[c["class"] - 1]
    ]
    assert kept(opened) == good
    opened.find_element("id", "limit-particle-junk").send_keys("\ue009a\ue000", "0.25")  # not the run's own
    opened.find_element("id", "limit-particle-posterior").send_keys("0.6")
    files = open_run(run)
    left = np.isin(files.poses.class_index.numpy() + 1, good)
    left &= (files.scores["junk"] <= 0.25) & (files.scores["posterior"] >= 0.6)
    shown = int(opened.find_element("id", "kept-particles").get_attribute("data-value"))
    assert shown == left.sum() > 0
    # The command that the page shows and the file that it hands out keep the same particles.
    words = opened.find_element("id", "select-command").text.split()
    words[words.index("selected.star")] = str(tmp_path / "by-command.star")
    assert main(["select", str(run), *words[3:]]) == 0
    click(opened, "download")
    wait_for((tmp_path / "selection.json").is_file, what="the download")
    assert main(["select", str(run), str(tmp_path / "selection.json"), str(tmp_path / "by-file.star")]) == 0
    assert len(open_particles(tmp_path / "by-command.star")) == len(open_particles(tmp_path / "by-file.star")) == shown
    click(opened, "undo")  # both digits of the last threshold at once
    assert opened.find_element("id", "limit-particle-posterior").get_attribute("value") == ""


def test_a_lasso_on_the_map_keeps_the_classes_inside(opened: Any) -> None:
    from selenium.webdriver import ActionChains

    click(opened, "keep-none")
    opened.find_element("css selector", '#map-view option[value="averages"]').click()
    canvas = opened.find_element("id", "map-canvas")
    click(opened, "map-lasso")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    opened.execute_async_script("setTimeout(arguments[0], 200)")
    width, height = canvas.size["width"], canvas.size["height"]
    left = width // 2 - 4
    corners = [(-left, -height // 2 + 4), (left, -height // 2 + 4), (left, height // 2 - 4), (-left, height // 2 - 4)]
    drag = ActionChains(opened).move_to_element_with_offset(canvas, *corners[0]).click_and_hold()
    for corner in corners[1:]:
        drag = drag.move_to_element_with_offset(canvas, *corner)
    drag.release().perform()
    with_members = opened.execute_script("return [...document.querySelectorAll('.card')].length") - 1  # one is empty
    assert len(kept(opened)) == with_members
    half = [corners[0], (0, corners[0][1]), (0, corners[2][1]), corners[3]]
    drag = ActionChains(opened).move_to_element_with_offset(canvas, *half[0]).key_down("\ue00a").click_and_hold()
    for corner in half[1:]:
        drag = drag.move_to_element_with_offset(canvas, *corner)
    drag.release().key_up("\ue00a").perform()
    assert 0 < len(kept(opened)) < with_members
    click(opened, "map-lasso")


def test_the_look_changes_and_is_exported(opened: Any, run: Path, tmp_path: Path) -> None:
    set_value = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    for name, value in (("size", 200), ("contrast", 1.5), ("lowpass", 20)):
        opened.execute_script(set_value, opened.find_element("id", name), value)
    style = "const s = getComputedStyle(document.querySelector('.card canvas')); return [s.filter, s.width]"
    looked, width = opened.execute_script(style)
    assert "contrast(1.5)" in looked
    assert "blur(" in looked
    assert float(width.removesuffix("px")) >= 198
    dark = opened.execute_script("return getComputedStyle(document.documentElement).backgroundColor")
    click(opened, "theme")
    assert opened.execute_script("return getComputedStyle(document.documentElement).backgroundColor") != dark
    click(opened, "export-png")
    wait_for((tmp_path / "run-classes.png").is_file, what="the picture")
    wait_for(lambda: (tmp_path / "run-classes.png").stat().st_size > 1000, what="the picture")
    with Image.open(tmp_path / "run-classes.png") as picture:
        assert min(picture.size) > 3 * 32
        assert len(picture.getcolors(1 << 24) or []) > 50
    click(opened, "theme")


def test_the_table_sorts_ticks_and_is_exported(opened: Any, run: Path, tmp_path: Path) -> None:
    click(opened, "view-table")
    rows = opened.find_elements("css selector", "#class-table tbody tr")
    assert len(rows) == K
    assert not opened.find_element("id", "gallery").is_displayed()
    head = opened.find_element("css selector", 'th[data-key="score"] button')
    head.click()
    assert opened.find_element("css selector", 'th[data-key="score"]').get_attribute("aria-sort") == "descending"
    head.click()
    first = opened.find_element("css selector", "#class-table tbody tr")
    assert f"{record(run)[-1]['score']:.2f}" in first.text
    before = kept(opened)
    first.find_element("css selector", "input").click()
    assert kept(opened) == [*before, K]
    click(opened, "export-csv")
    wait_for((tmp_path / "run-classes.csv").is_file, what="the table")
    table = list(csv.DictReader(io.StringIO((tmp_path / "run-classes.csv").read_text(encoding="utf-8"))))
    assert [int(row["class"]) for row in table] == list(range(K, 0, -1))
    assert [row["kept"] for row in table if int(row["class"]) in (1, K)] == ["1", "1"]
    assert float(table[-1]["Class score"]) == pytest.approx(record(run)[0]["score"])
    assert table[-1]["Verdict"] == record(run)[0]["verdict"]
    click(opened, "view-gallery")


def test_the_print_holds_the_summary_of_the_selection(opened: Any, run: Path) -> None:
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    text = opened.find_element("id", "print-summary").text
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert f"in {len(automatic_rows(run)[1])} of {K} classes" in text
    assert "ralib select RUN --classes" in text
    assert not opened.find_element("id", "print-summary").is_displayed()


def test_the_page_uses_a_wide_screen_and_fits_a_phone(opened: Any) -> None:
    resize(opened, 3840, 2160)
    opened.refresh()
    wait_for(lambda: opened.execute_script("return document.documentElement.dataset.ready"))
    width = "return document.querySelector('#gallery').getBoundingClientRect().width"
    assert opened.execute_script(width) > 3600
    resize(opened, 390, 844, mobile=True)
    opened.refresh()
    wait_for(lambda: opened.execute_script("return document.documentElement.dataset.ready"))
    click(opened, "thresholds")
    for view in ("gallery", "table"):
        click(opened, f"view-{view}")
        assert opened.execute_script("return document.documentElement.scrollWidth") <= 390
    click(opened, "view-gallery")


def test_the_offline_page_says_what_to_run(opened: Any) -> None:
    bar = opened.find_element("id", "selection").text
    assert "--serve" in bar
    assert opened.find_elements("id", "write") == []
