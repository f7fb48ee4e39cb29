"""`ralib neighbours`: for each particle those that show the same view."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from ralib.cli.common import at_work
from ralib.cli.particle_files import Datadir, Device, refuse_existing
from ralib.cli.restored_particles import Radius, StackWithCtf, filtered, opened_with_ctf
from ralib.types import RalibError

if TYPE_CHECKING:
    from ralib.analysis.neighbours import Neighbours


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("neighbours")(neighbours)


def neighbours(
    stack: StackWithCtf,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; must not exist.")],
    count: Annotated[int, typer.Option("--count", "-k", min=1, help="Neighbours of each particle.")] = 50,
    averages: Annotated[
        int, typer.Option(min=0, help="Averages of neighbours to write, of particles evenly spread.")
    ] = 50,
    radius: Radius = None,
    datadir: Datadir = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of all random numbers.")] = 1000,
    device: Device = "auto",
) -> None:
    """For each particle those that show the same view, and how they lie: no references, no classes.

    Writes neighbours.npz (index from 0, psi_deg, mirror, correlation: one row a particle; index -1 where a particle was
    left out) and averages.mrcs with averages.txt.
    """
    from ralib.analysis.denoise import neighbour_averages
    from ralib.analysis.neighbours import find_neighbours, standardised_scores

    refuse_existing(out)
    particles, rows, n = opened_with_ctf(stack, datadir)
    if len(particles) < 2:
        raise RalibError("1 particle has no neighbours: give at least 2")
    if count >= len(particles):
        raise RalibError(f"{count} neighbours among {len(particles)} particles: give 1 to {len(particles) - 1}")
    model, scores = filtered(particles, radius, device)
    standard = standardised_scores(model, scores)
    with at_work("comparing particles"):
        found = find_neighbours(standard, model.order_, count, seed=seed, device=model.device)
        chosen = np.unique(np.linspace(0, len(particles) - 1, min(averages, len(particles))).astype(int))
        images = neighbour_averages(model, scores, found, chosen) if len(chosen) else None
    _write_neighbours(out, _by_number(found, rows, n), rows[chosen], images, particles.pixel_size_A)
    typer.echo(f"wrote {out}: {count} neighbours of {len(particles):,} particles")


def _by_number(found: Neighbours, rows: np.ndarray, n: int) -> Neighbours:
    """The neighbours of all n particles of the file, by their numbers in it, from those of the particles `rows`."""
    from ralib.analysis.neighbours import Neighbours

    shape = (n, found.index.shape[1])
    index, psi_deg, correlation = np.full(shape, -1), np.full(shape, np.nan), np.full(shape, np.nan)
    mirror = np.zeros(shape, dtype=bool)
    index[rows], psi_deg[rows], mirror[rows] = rows[found.index], found.psi_deg, found.mirror
    correlation[rows] = found.correlation
    return Neighbours(index, psi_deg, mirror, correlation)


def _write_neighbours(out: Path, found: Any, chosen: Any, images: Any, pixel_size_A: float | None) -> None:
    """Everything into a new folder, which appears whole or not at all."""
    from ralib.cli.common import new_folder
    from ralib.io import write_mrcs

    with new_folder(out) as made:
        np.savez(
            made / "neighbours.npz",
            index=found.index,
            psi_deg=found.psi_deg.astype(np.float32),
            mirror=found.mirror,
            correlation=found.correlation.astype(np.float32),
        )
        if images is not None:
            write_mrcs(made / "averages.mrcs", images, pixel_size_A)
            np.savetxt(made / "averages.txt", chosen, fmt="%d", header="particle (from 0) of each average")
