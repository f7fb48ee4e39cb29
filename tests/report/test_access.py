"""axe-core finds nothing to object to in the report, in any of its states (https://github.com/dequelabs/axe-core).

The tests take it from the file that AXE_CORE names, from npm's folders, or from the Python package axe-core-python that
the test extra installs (axe-core 4.4); it is no part of the package.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browser import chromium, resize, wait_for
from make_run import make_run
from ralib.results.summary import write_report

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
CHECK = """const done = arguments[1];
axe.run(document, {runOnly: arguments[0]}).then((found) =>
  done(found.violations.map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`)), (error) => done([String(error)]));"""


def axe_core() -> str:
    """The script, or a skip."""
    places = [Path(os.environ["AXE_CORE"])] if "AXE_CORE" in os.environ else []
    places.append(Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js")
    if shutil.which("npm"):
        root = subprocess.run(["npm", "root", "--global"], capture_output=True, text=True, check=False).stdout.strip()
        places.append(Path(root) / "axe-core/axe.min.js")
    packaged = importlib.util.find_spec("axe_core_python")
    if packaged is not None and packaged.submodule_search_locations:
        places.append(Path(packaged.submodule_search_locations[0]) / "axe.min.js")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        pytest.skip(
            "axe-core is missing: pip install axe-core-python, npm install axe-core, or name its axe.min.js in AXE_CORE"
        )
    return found.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = chromium(tmp_path_factory.mktemp("profile"))
    folder = tmp_path_factory.mktemp("access")
    run = make_run(folder, n_classes=9, n_particles=300, box=32, n_iterations=4, judged=True)
    driver.report = f"file://{write_report(run, max_points=200)}"
    yield driver
    driver.quit()


@pytest.mark.parametrize(("width", "height"), [(1440, 1000), (390, 844)])
def test_axe_finds_no_violation_in_any_state(page: Any, width: int, height: int) -> None:
    axe = axe_core()
    resize(page, width, height, mobile=width < 500)
    page.get(page.report)
    wait_for(lambda: page.execute_script("return document.documentElement.dataset.ready"))
    page.execute_script(axe)

    def objections() -> list[str]:
        page.execute_async_script("setTimeout(arguments[0], 250)")  # colours may still be fading
        return list(page.execute_async_script(CHECK, RULES))

    # The check can see: a picture without a name is objected to.
    page.execute_script("document.querySelector('main').append(Object.assign(new Image(), {id: 'nameless'}))")
    assert any(text.startswith("image-alt") for text in objections())
    page.execute_script("document.getElementById('nameless').remove()")
    menu = "dispatchEvent(new MouseEvent('contextmenu', {bubbles: true, clientX: 90, clientY: 200}))"
    for state, script in [
        ("gallery", "document.getElementById('thresholds').open = true"),
        ("dark gallery", "document.getElementById('theme').click()"),
        ("dark table", "document.getElementById('view-table').click()"),
        ("table", "document.getElementById('theme').click()"),
        ("menu", f"document.getElementById('view-gallery').click(); document.querySelector('.card').{menu}"),
        ("class", "document.getElementById('menu').hidden = true; document.querySelector('.card .open').click()"),
    ]:
        page.execute_script(script)
        assert objections() == [], state
