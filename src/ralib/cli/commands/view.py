"""`ralib view`: a run's class averages in napari."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ralib.types import RalibError

if TYPE_CHECKING:
    from ralib.results.summary import RunFiles


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("view")(view)


def view(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A run's OUTDIR, or a RELION Class2D job (folder, *_data.star or *_optimiser.star)."
        ),
    ],
    datadir: Annotated[
        Path | None, typer.Option(help="Where the particle images lie, if not where the files say.")
    ] = None,
) -> None:
    """Open class averages and half averages in napari, where it is installed: one class a step of the slider."""
    from ralib.results.summary.runs import open_run

    opened = open_run(run, datadir=datadir)
    if find_spec("napari") is None:
        raise RalibError("napari is not installed: pip install 'napari[all]', or open the page 'ralib report' writes")
    if sys.platform.startswith("linux") and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")
    ):
        raise RalibError("napari needs a display and there is none here: open the page 'ralib report' writes instead")
    import napari

    viewer = napari.Viewer(title=f"ralib {run}")
    fill(viewer, opened)
    napari.run()


def fill(viewer: Any, run: RunFiles) -> None:
    """Add layers of the averages and, hidden, of the halves; the text in the corner names the class that is shown.

    Parameters
    ----------
    viewer : Any
        A `napari.Viewer`, or its `napari.components.ViewerModel` without a window.
    run : RunFiles
        The run.
    """
    import numpy as np

    from ralib.io import open_images
    from ralib.results.summary.figures import class_figures

    descriptions = [_description(figures) for figures in class_figures(run)]
    pixel = run.record.get("input", {}).get("pixel_size_A") or 1.0
    look = {"colormap": "gray", "scale": (1.0, pixel, pixel)}
    for half in (2, 1):
        path = run.path / f"class_averages_half{half}.mrcs"
        if path.is_file():
            images = open_images(path)[: run.n_classes]
            viewer.add_image(images, name=f"half averages {half}", visible=False, **look)
    viewer.add_image(run.averages, name="class averages", metadata={"classes": descriptions}, **look)

    def show_description(_: Any = None) -> None:
        viewer.text_overlay.text = descriptions[min(int(viewer.dims.current_step[0]), len(descriptions) - 1)]

    viewer.text_overlay.visible = True
    viewer.dims.events.current_step.connect(show_description)
    viewer.dims.set_current_step(0, int(np.argmax(run.members)))
    show_description()


def _description(figures: dict[str, Any]) -> str:
    resolution = figures.get("resolution_A")
    known = f", {resolution:.1f} A" if resolution is not None and resolution == resolution else ""
    return f"class {figures['class']}: {figures['members']} particles{known}"
