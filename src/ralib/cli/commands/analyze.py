"""`ralib analyze`: components, clusters and an embedding of particles, with the figures to judge them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ralib.cli.common import DEVICE_HELP, at_work, resolve_device, show_warnings
from ralib.cli.parsing import completed, known_ctf_mode
from ralib.types import RalibError

if TYPE_CHECKING:
    import numpy as np

    from ralib.types import ParticleSet


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("analyze")(analyze)


def analyze(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|STACK", help="A run's folder, or any particle file ralib reads.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write; must not exist. Otherwise RUN/analysis, or STACK's name + _analysis."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Components: ctf, pca, mpca, 2sdr, steerable, or auto: ctf where the CTF is known, else 2sdr.",
            autocompletion=completed("auto", "ctf", "pca", "mpca", "2sdr", "steerable"),
        ),
    ] = "auto",
    ctf: Annotated[
        str | None,
        typer.Option(
            "--ctf",
            help="wiener: components with the CTF in their model (--method ctf); off: without it (2sdr).",
            autocompletion=completed("wiener", "off"),
        ),
    ] = None,
    components: Annotated[
        int, typer.Option(min=0, help="How many; 0: as many as the data supports (ctf, pca, 2sdr).")
    ] = 50,
    core: Annotated[
        int,
        typer.Option(min=0, help="mpca and 2sdr: rows and columns of the core; 0: a quarter of the box, at least 20."),
    ] = 0,
    aligned: Annotated[
        bool,
        typer.Option("--aligned/--raw", help="Bring particles onto their class averages first, where they have poses."),
    ] = True,
    clusters: Annotated[int, typer.Option("--clusters", "--K", min=1, help="Number of k-means clusters.")] = 10,
    clustering: Annotated[
        str,
        typer.Option(
            help="kmeans; gamma-sup or (many particles) hdbscan find the number and leave outliers out.",
            autocompletion=completed("kmeans", "gamma-sup", "hdbscan"),
        ),
    ] = "kmeans",
    embedding: Annotated[
        str,
        typer.Option(
            help="Drawn by: pca, tsne, umap or opentsne (where installed), or none.",
            autocompletion=completed("pca", "tsne", "umap", "opentsne", "none"),
        ),
    ] = "tsne",
    embed_at_most: Annotated[int, typer.Option(min=10, help="Particles drawn in the embedding.")] = 5000,
    truth: Annotated[
        Path | None,
        typer.Option(help="Text file with the true class of each particle, one a line, or a .npz of simulate."),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", "--rand_seed", min=0, max=2**32 - 1, help="Seed of everything random.")
    ] = 1000,
    datadir: Annotated[Path | None, typer.Option(help="Where the images named in the file lie.")] = None,
    device: Annotated[str, typer.Option(help=DEVICE_HELP)] = "auto",
) -> None:
    """Reduce particles to a few numbers, cluster them, and draw both.

    Writes eigenimages.mrcs, cluster_averages.mrcs, features.npz, clusters.txt, analysis.json and figures.
    """
    from ralib.analysis.run import Analysis, write_analysis
    from ralib.cli.terminal import on_screen
    from ralib.io import for_computing, open_particles, usable_only
    from ralib.results.run_record import particle_file

    target = out or default_folder(source)
    if target.exists():
        raise RalibError(f"{target} exists: remove it, or name another folder with --out")
    given = open_particles(particle_file(source), datadir=datadir)
    chosen = chosen_method(method, None if ctf is None else known_ctf_mode(ctf, ("off", "wiener")) == "wiener", given)
    given = for_computing(given, ctf=chosen == "ctf")
    show_warnings(given.warnings)
    particles, rows = usable_only(given)
    analysis = Analysis(
        method=chosen,
        clustering=clustering,
        n_components=components or None,
        core=core,
        aligned=aligned and particles.poses is not None,
        n_clusters=clusters,
        embedding=embedding,
        embed_at_most=embed_at_most,
        seed=seed,
        device=resolve_device(device),
    )
    true_classes = None if truth is None else read_truth(truth, len(given))[rows]
    with at_work("analysing"):
        result = analysis.run(particles, truth=true_classes)
        write_analysis(target, particles, result, rows)
    typer.echo(on_screen(result.in_one_line()))
    typer.echo(f"wrote {target}")


def chosen_method(method: str, ctf: bool | None, particles: ParticleSet) -> str:
    """Return the method that --method and --ctf mean, 'auto' resolved.

    Parameters
    ----------
    method : str
        --method.
    ctf : bool or None
        True for --ctf wiener, False for --ctf off, else None.
    particles : ParticleSet
        The particles.

    Returns
    -------
    str
        Name of the method.
    """
    known = particles.ctf is not None and particles.pixel_size_A is not None
    if ctf is None:
        return ("ctf" if known else "2sdr") if method == "auto" else method
    if method not in ("auto", "ctf") or (method == "ctf" and not ctf):
        raise RalibError(f"--method {method} and --ctf {'wiener' if ctf else 'off'} exclude each other: leave one out")
    if ctf and not known:
        raise RalibError(
            "--ctf wiener needs CTF parameters and a pixel size, which the particles lack: leave --ctf out"
        )
    return "ctf" if ctf else "2sdr"


def default_folder(source: Path) -> Path:
    """Return the folder of the results where none is given."""
    return source / "analysis" if source.is_dir() else source.with_name(f"{source.stem}_analysis")


def read_truth(path: Path, n: int) -> np.ndarray:
    """Read true classes from a text file of one number a line, or from a simulation's truth.npz.

    Parameters
    ----------
    path : Path
        The file.
    n : int
        Number of particles.

    Returns
    -------
    ndarray of shape (n,)
        Classes; -1 is left out.
    """
    import zipfile

    import numpy as np

    from ralib.io.npy import DAMAGED_ARCHIVE
    from ralib.io.text import read_numbers

    try:
        if path.suffix == ".npz":
            if not zipfile.is_zipfile(path):
                raise ValueError("it is no .npz archive")
            with np.load(path) as arrays:
                values = arrays["class_index"]
        else:
            values = read_numbers(path, "list of true classes")[:, 0]
        if values.dtype.kind not in "iuf" or values.ndim != 1 or not np.isfinite(values).all():
            raise ValueError("classes are whole numbers, one a particle")
        if not (np.abs(values) < 2**31).all() or (values != np.floor(values)).any():
            raise ValueError("classes are whole numbers below 2^31")
        values = values.astype(np.int64)
    except (*DAMAGED_ARCHIVE, LookupError) as error:
        raise RalibError(f"{path} holds no true classes ({error}): give one number a line, or truth.npz") from error
    if values.shape != (n,):
        raise RalibError(f"{path} has {len(values)} true classes for {n} particles: they must be as many")
    return values
