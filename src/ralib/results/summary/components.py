"""Figures that `ralib analyze` left in a run's folder, for its report."""

from __future__ import annotations

from ralib.report.contents import Figure
from ralib.results.summary.runs import RunFiles

FIGURES = {
    "spectrum": (
        "Spectrum of the components",
        "Variance of each component beside the edge of what noise alone gives: those above it show the particles.",
    ),
    "embedding": ("Particles by their components", "One point a particle, in the colour of its cluster."),
    "eigenimages": ("Eigenimages", "The components, the strongest first: what is bright varies against what is dark."),
    "trajectory": (
        "Along the first component",
        "Images restored from one end of the component to the other: what changes from particle to particle.",
    ),
}
"""Title and caption of the figures shown, by their files' names."""


def component_figures(run: RunFiles) -> list[Figure]:
    """Return the figures of the analysis in the run's folder `analysis`; none where it was not analysed.

    Parameters
    ----------
    run : RunFiles
        The run.

    Returns
    -------
    list of Figure
        The figures, in the order of `FIGURES`.
    """
    folder = (run.path if run.path.is_dir() else run.path.parent) / "analysis"
    if not (folder / "analysis.json").is_file():
        return []
    files = {name: folder / f"{name}.png" for name in FIGURES}
    return [Figure(name, *FIGURES[name], path.read_bytes()) for name, path in files.items() if path.is_file()]
