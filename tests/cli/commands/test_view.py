"""`ralib view`: what napari is given to show. The window itself is napari's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from make_run import make_run
from ralib.cli import main
from ralib.cli.commands.view import fill
from ralib.results.summary import open_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path, n_classes=4, n_particles=60, box=24, n_iterations=2)


def test_view_command_without_napari_or_display_says_what_to_do(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr("ralib.cli.commands.view.find_spec", lambda name: None)
    assert main(["view", str(run)]) == 2
    assert "napari is not installed: pip install" in capsys.readouterr().err
    monkeypatch.setattr("ralib.cli.commands.view.find_spec", lambda name: object())
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    assert main(["view", str(run)]) == 2
    assert "needs a display" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")
def test_view_command_shows_every_class_and_tells_which(run) -> None:
    components = pytest.importorskip("napari.components", reason="needs napari: pip install napari")
    opened = open_run(run)
    viewer = components.ViewerModel()
    fill(viewer, opened)
    layer = viewer.layers["class averages"]
    assert np.array_equal(layer.data, opened.averages)
    largest = int(np.argmax(opened.members))
    assert viewer.dims.current_step[0] == largest
    assert viewer.text_overlay.text.startswith(f"class {largest + 1}: {opened.members[largest]} particles")
    other = (largest + 1) % 4
    viewer.dims.set_current_step(0, other)
    assert viewer.text_overlay.text.startswith(f"class {other + 1}: {opened.members[other]} particles")
    halves = [layer for layer in viewer.layers if layer.name.startswith("half")]
    assert not any(layer.visible for layer in halves)
