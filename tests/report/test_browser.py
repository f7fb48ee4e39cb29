"""The report in headless Chromium: every plot is there, selections round-trip, nothing leaves the file, it is quick."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import requests, resize, wait_for
from make_run import make_run
from ralib.cli import main
from ralib.io import open_particles
from ralib.results.selection import read_selection
from ralib.results.summary import open_run, write_report

PLOTS = {
    *("iteration-criterion", "iteration-pixel_error", "iteration-changes", "iteration-effective"),
    *("iteration-median_resolution", "iteration-sizes", "iteration-seconds", "frc", "resolution-size", "class-sizes"),
    *("distribution-psi", "distribution-fit", "distribution-defocus", "distribution-shift", "distribution-mirror"),
    *("ctf-curves", "ctf-coverage", "ctf-defocus", "embedding", "command", "timings", "machine", "options"),
}
CLASS_PLOTS = {"class-frc", "class-psi", "class-shift", "class-fit", "class-class_sizes", "class-resolution"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(
        tmp_path_factory.mktemp("browser"), n_classes=9, n_particles=300, box=32, n_iterations=4, hostile=True
    )
    write_report(folder, max_points=200)
    return folder


@pytest.fixture
def opened(page: Any, run: Path) -> Any:
    resize(page, 1400, 1000)
    page.get("about:blank")
    page.get(f"file://{run}/report.html")
    page.execute_script("localStorage.clear()")
    page.refresh()
    wait_for(lambda: page.execute_script("return document.documentElement.dataset.ready"))
    return page


def kept_particles(page: Any) -> int:
    return int(page.find_element("id", "kept-particles").get_attribute("data-value"))


def card(page: Any, number: int, inside: str = "") -> Any:
    found = page.find_element("css selector", f'.card[data-class="{number}"] {inside}'.strip())
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", found)
    return found


def test_every_plot_is_there_and_drawn(opened: Any) -> None:
    plots = opened.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('[data-plot]')].map(p => [p.dataset.plot,"
        " p.querySelectorAll('svg path[d], svg rect, svg circle, canvas, td, pre, .bars i').length]))"
    )
    assert set(plots) == PLOTS
    assert all(plots.values())
    assert [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_components_of_an_analysed_run_are_shown(page: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path, n_classes=3, n_particles=120, box=24, n_iterations=1)
    assert main(["analyze", str(folder), "--embedding", "pca", "--components", "6", "--clusters", "3"]) == 0
    write_report(folder, max_points=50)
    page.get(f"file://{folder}/report.html")
    wait_for(lambda: page.execute_script("return document.documentElement.dataset.ready"))
    shown = (
        "return [...document.querySelectorAll('#components img')].map(p => [p.alt, p.complete && p.naturalWidth > 99])"
    )
    pictures = dict(page.execute_script(shown))
    assert {"Eigenimages", "Particles by their components"} <= set(pictures)
    assert all(pictures.values())
    assert "Components" in page.find_element("id", "nav").text


def test_the_averages_are_drawn_in_every_order(opened: Any, run: Path) -> None:
    drawn = "return document.querySelectorAll('#gallery canvas[data-drawn]').length"
    wait_for(lambda: opened.execute_script(drawn) == 9)
    numbers = "return [...document.querySelectorAll('.card')].map(c => +c.dataset.class)"
    members = open_run(run).members
    assert [members[k - 1] for k in opened.execute_script(numbers)] == sorted(members, reverse=True)
    for order in ("resolution", "class", "stable", "mean_fit", "shift_spread_px", "inplane_spread_deg"):
        opened.find_element("css selector", f'#sort option[value="{order}"]').click()
    opened.find_element("css selector", '#sort option[value="class"]').click()
    assert opened.execute_script(numbers) == list(range(1, 10))
    pixels = (
        "const c=document.querySelector('.card canvas');"
        "return new Set(c.getContext('2d').getImageData(0,0,c.width,c.height).data).size"
    )
    assert opened.execute_script(pixels) > 50


def test_markup_in_names_stays_text(opened: Any) -> None:
    assert opened.execute_script("return window.pwned") is None
    assert "onerror=" in opened.find_element("css selector", '[data-plot="machine"]').text
    inserted = "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned=2\">')"
    opened.execute_script(inserted)  # even so the policy lets no inline handler run
    opened.execute_async_script("setTimeout(arguments[0], 300)")
    assert opened.execute_script("return window.pwned") is None


def test_no_request_leaves_the_file(page: Any, run: Path, tmp_path: Path) -> None:
    control = tmp_path / "control.html"  # what is looked for can be seen
    control.write_text("<img src='http://127.0.0.1:9/x'>")
    requests(page)
    page.get(f"file://{control}")
    wait_for(lambda: "http://127.0.0.1:9/x" in requests(page), what="the control's request")
    page.get("about:blank")
    requests(page)
    page.get(f"file://{run}/report.html#class-2")
    wait_for(lambda: page.execute_script("return document.documentElement.dataset.ready"))
    page.execute_script("document.querySelector('#map').scrollIntoView()")
    page.execute_async_script("setTimeout(arguments[0], 500)")
    asked = requests(page)
    assert f"file://{run}/report.html" in [address.split("#")[0] for address in asked]
    assert [a for a in asked if not a.startswith(("data:", "blob:", f"file://{run}/report.html"))] == []
    page.execute_script("new Image().src = 'http://127.0.0.1:9/beacon'")  # and the policy stops what would
    page.execute_async_script("setTimeout(arguments[0], 300)")
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def test_a_class_in_full(opened: Any, run: Path) -> None:
    card(opened, 1, ".open").click()
    dialog = opened.find_element("id", "detail")
    assert dialog.is_displayed()
    assert dialog.find_element("id", "detail-title").text == "Class 1"
    shown = {p.get_attribute("data-plot") for p in dialog.find_elements("css selector", "[data-plot]")}
    assert shown == CLASS_PLOTS
    drawn = "return document.querySelectorAll('#detail canvas[data-drawn]').length"
    members = 3 * 8 if open_run(run).members[0] >= 24 else None
    wait_for(lambda: opened.execute_script(drawn) >= 1 + 4 + 3)
    if members:
        assert len(dialog.find_elements("css selector", ".montage canvas")) == members
    assert len(dialog.find_elements("css selector", ".strip canvas")) == 4
    dialog.send_keys("k")
    assert kept_particles(opened) == open_run(run).members[0]
    dialog.send_keys("\ue014")  # right arrow
    assert dialog.find_element("id", "detail-title").text != "Class 1"
    dialog.send_keys("\ue00c")  # escape
    wait_for(lambda: not dialog.get_attribute("open"))


def test_selection_by_tick_key_brush_threshold_and_invert(opened: Any, run: Path) -> None:
    from selenium.webdriver import ActionChains

    members = open_run(run).members
    card(opened, 3, ".tick input").click()
    assert kept_particles(opened) == members[2]
    card(opened, 3, ".open").send_keys(" ")
    assert kept_particles(opened) == 0
    order = opened.execute_script("return [...document.querySelectorAll('.card')].map(c => +c.dataset.class)")
    first, third = card(opened, order[0], ".open"), card(opened, order[2], ".open")
    ActionChains(opened).move_to_element(first).click_and_hold().move_to_element(third).release().perform()
    assert kept_particles(opened) == members[[k - 1 for k in order[:3]]].sum()
    assert not opened.find_element("id", "detail").is_displayed()
    opened.find_element("id", "invert").click()
    assert kept_particles(opened) == members.sum() - members[[k - 1 for k in order[:3]]].sum()
    opened.find_element("id", "keep-all").click()
    assert kept_particles(opened) == members.sum()
    opened.find_element("css selector", "#thresholds summary").click()
    opened.find_element("id", "limit-members").send_keys("30")
    assert kept_particles(opened) == members[members >= 30].sum()
    opened.find_element("id", "limit-resolution").send_keys("12")
    figures = json.loads((run / "run.json").read_text())["classes"]
    good = [c["members"] for c in figures if c["members"] >= 30 and c["resolution_A"] <= 12]
    assert kept_particles(opened) == sum(good)


def test_the_selection_goes_through_ralib_select(opened: Any, run: Path, tmp_path: Path) -> None:
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    opened.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    for number in (2, 4, 5):
        card(opened, number, ".tick input").click()
    score = f"{np.median(open_run(run).poses.score):.4f}"
    opened.find_element("css selector", "#thresholds summary").click()
    opened.find_element("id", "limit-particle-fit").send_keys(score)
    shown = kept_particles(opened)
    assert 0 < shown < open_run(run).members[[1, 3, 4]].sum()
    opened.find_element("id", "download").click()
    file = tmp_path / "selection.json"
    wait_for(file.is_file, what="the download")
    selection = read_selection(file, open_run(run).members)
    assert selection.classes == (2, 4, 5)
    assert main(["select", str(run), str(file), str(tmp_path / "kept.star")]) == 0
    assert len(open_particles(tmp_path / "kept.star")) == shown
    # The line the page shows does the same without the file.
    words = opened.find_element("id", "select-command").text.split()
    assert words[:3] == ["ralib", "select", "RUN"]
    words[words.index("selected.star")] = str(tmp_path / "again.star")
    assert main(["select", str(run), *words[3:]]) == 0
    assert len(open_particles(tmp_path / "again.star")) == shown


def test_a_reload_remembers_the_selection(opened: Any) -> None:
    card(opened, 2, ".tick input").click()
    shown = kept_particles(opened)
    opened.refresh()
    assert kept_particles(opened) == shown > 0


def test_pointing_at_the_map_shows_the_particle(opened: Any) -> None:
    from selenium.webdriver import ActionChains

    canvas = opened.find_element("id", "map-canvas")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", canvas)
    for view in ("points", "averages", "tsne"):
        opened.find_element("css selector", f'#map-view option[value="{view}"]').click()
        opened.execute_async_script("setTimeout(arguments[0], 200)")
        inked = opened.execute_script(
            "const c=arguments[0], d=c.getContext('2d').getImageData(0,0,c.width,c.height).data;"
            "for (let i=3; i<d.length; i+=4) if (d[i] > 100) { const p=(i-3)/4, r=c.clientWidth/c.width;"
            " return [(p % c.width)*r - c.clientWidth/2, Math.floor(p / c.width)*r - c.clientHeight/2]; }",
            canvas,
        )
        ActionChains(opened).move_to_element_with_offset(canvas, round(inked[0]), round(inked[1]) + 3).perform()
        tip = opened.find_element("id", "tip")
        wait_for(tip.is_displayed)
        assert "Class" in tip.text
        pictures = 2 if view == "points" else 1
        drawn = "return document.querySelectorAll('#tip canvas[data-drawn]').length"
        wait_for(lambda wanted=pictures, script=drawn: opened.execute_script(script) == wanted)
    for colour in ("fit", "defocus", "class"):
        opened.find_element("css selector", '#map-view option[value="points"]').click()
        opened.find_element("css selector", f'#map-colour option[value="{colour}"]').click()


def test_it_fits_a_phone_and_prints(opened: Any) -> None:
    resize(opened, 375, 800, mobile=True)
    opened.refresh()
    wait_for(lambda: opened.execute_script("return document.documentElement.dataset.ready"))
    assert opened.execute_script("return document.documentElement.scrollWidth") <= 375
    card(opened, 1, ".open").click()
    wait_for(opened.find_element("id", "detail").is_displayed)
    overflow = "const d=document.querySelector('#detail'); return d.scrollWidth - d.clientWidth"
    assert opened.execute_script(overflow) <= 0
    opened.find_element("id", "detail-close").click()
    assert len(opened.print_page()) > 10_000


def test_everything_has_a_name_for_screen_readers(opened: Any) -> None:
    nameless = opened.execute_script(
        "return [...document.querySelectorAll('button, input, select, svg[role=img], canvas[role=img]')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))"
        ".map(e => e.outerHTML)"
    )
    assert nameless == []


def test_a_large_run_is_small_and_opens_quickly(page: Any, tmp_path: Path) -> None:
    """200 classes, 100,000 particles: under 15 MB, on the screen in under 2 s."""
    run = make_run(tmp_path, n_classes=200, n_particles=100_000, box=64, n_iterations=12, n_stack=2000)
    file = write_report(run)
    assert file.stat().st_size < 15e6
    resize(page, 1400, 1000)
    times = []
    for _ in range(3):
        page.get("about:blank")
        page.get(f"file://{file}")
        drawn = "return document.querySelector('.card canvas').dataset.drawn && performance.now()"
        wait_for(lambda script=drawn: page.execute_script(script))
        times.append(float(page.execute_script("return document.documentElement.dataset.ready")))
    assert len(page.find_elements("css selector", ".card")) == 200
    assert min(times) < 2000, times
