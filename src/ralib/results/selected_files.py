"""Files of a selection: the particles kept and left out, with their scores, and the averages kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ralib import io
from ralib.results.particle_scores import relion_columns, star_columns
from ralib.types import ParticleSet, RalibError

PARTICLE_FILES = (".star", ".cs", ".hdf", ".lst")
MOST_PARTS = 10_000
AVERAGE_FILES = (".mrcs", ".mrc", ".hdf")


def write_selected(
    particles: ParticleSet,
    rows: np.ndarray,
    out: Path | str,
    *,
    n_classes: int,
    scores: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write selected particles with poses and everything else known of them as .star, .cs, .hdf or .lst.

    Only the .hdf holds the images themselves; the others name the same image files as before. Scores are columns
    ralibJunk ... of a STAR file, fields ralib/junk ... of a .cs file, attributes ralib_junk ... of HDF and lists.

    Parameters
    ----------
    particles : ParticleSet
        All particles.
    rows : ndarray of shape (m,)
        Those selected.
    out : Path or str
        The file.
    n_classes : int
        Number of classes.
    scores : Mapping[str, ndarray] | None of shape (n,), optional
        Scores by name.
    """
    out = Path(out)
    check_output(out)
    if not len(rows):
        raise RalibError("no particle remains: keep more classes, or loosen the rules")
    chosen = io.take(particles, rows)
    own = {name: np.asarray(values)[rows] for name, values in (scores or {}).items()}
    suffix = out.suffix.lower()
    if suffix == ".star":
        columns = star_columns(own) | relion_columns(own)
        io.write_particles_star(out, chosen, mirror_as_class=False, columns=columns)
    elif suffix == ".cs":
        io.write_particles_cs(out, chosen, n_classes=n_classes, scores=own)
    elif suffix == ".lst":
        io.write_lst(out, chosen, own)
    else:
        assert chosen.poses is not None
        if chosen.pixel_sizes_A is not None:
            raise RalibError(f"{out}: one stack holds one pixel size, and these particles have several: write a .star")
        new = io.pose_headers(chosen.poses, chosen.ctf, chosen.pixel_size_A)
        before = zip(io.source_headers(chosen), io.kept_headers(chosen), new, strict=True)
        headers = [{**source, **kept, **pose} for source, kept, pose in before]
        for name, values in own.items():
            for header, value in zip(headers, values.tolist(), strict=True):
                header[f"ralib_{name}"] = float(value)
        images = chosen.images.read(np.arange(len(chosen)))
        io.write_hdf(out, images, headers, pixel_size_A=chosen.pixel_size_A)


def write_averages(averages: np.ndarray, classes: Sequence[int], out: Path, pixel_size_A: float | None) -> None:
    """Write the averages of some classes as one stack, e.g. templates for picking.

    Parameters
    ----------
    averages : ndarray of shape (k, n, n)
        Class averages.
    classes : Sequence[int]
        Numbers of the classes, from 1.
    out : Path
        The file.
    pixel_size_A : float or None
        Pixel size, Angstrom.
    """
    check_output(out, AVERAGE_FILES, "class averages")
    chosen = averages[[number - 1 for number in classes]]
    if out.suffix.lower() == ".hdf":
        io.write_hdf(out, chosen, pixel_size_A=pixel_size_A)
    else:
        io.write_mrcs(out, chosen, pixel_size_A)


def split_rows(rows: np.ndarray, parts: int, seed: int = 0, *, same_as: np.ndarray | None = None) -> list[np.ndarray]:
    """Divide rows into random subsets of equal size (to one, where no image is repeated), each in order.

    Parameters
    ----------
    rows : ndarray of shape (m,)
        Rows.
    parts : int
        Number of subsets.
    seed : int, default 0
        Of the random division.
    same_as : ndarray | None of shape (n,), optional
        First row of all that shows the same image: such rows stay in one subset.

    Returns
    -------
    list[ndarray]
        Subsets.
    """
    if not 1 <= parts <= len(rows):
        raise RalibError(f"`parts` {parts}: {len(rows)} particles go into 1 to {len(rows)} parts")
    if same_as is None:
        order = np.random.default_rng(seed).permutation(len(rows))
        return [np.sort(rows[order[part::parts]]) for part in range(parts)]
    image = np.unique(same_as[rows], return_inverse=True)[1].reshape(-1)
    if parts > (n := int(image.max()) + 1):
        raise RalibError(
            f"`parts` {parts}: {len(rows)} particles show {n} different images, which go into 1 to {n} parts"
        )
    part_of = np.empty(n, dtype=np.int64)
    part_of[np.random.default_rng(seed).permutation(n)] = np.arange(n) % parts
    return [np.sort(rows[part_of[image] == part]) for part in range(parts)]


def split_names(out: Path, parts: int) -> list[Path]:
    """Return selected_split1.star, selected_split2.star ... as relion_star_handler names them.

    Parameters
    ----------
    out : Path
        The file without a number, such as selected.star.
    parts : int
        Number of files.

    Returns
    -------
    list[Path]
        Files.
    """
    if not 1 <= parts <= MOST_PARTS:
        raise RalibError(f"`parts` {parts}: give 1 to {MOST_PARTS}")
    return [out.with_name(f"{out.stem}_split{i + 1}{out.suffix}") for i in range(parts)]


def check_distinct(*outputs: Path | None) -> None:
    """Raise RalibError where two files of one command would be the same: the second would replace the first."""
    seen: set[Path] = set()
    for out in outputs:
        if out is not None and (place := out.resolve()) in seen:
            raise RalibError(f"{out} is named twice: give each output a file of its own")
        if out is not None:
            seen.add(place)


def check_output(out: Path, kinds: Sequence[str] = PARTICLE_FILES, what: str = "selected particles") -> None:
    """Raise RalibError unless a path is a new file of a kind that can be written.

    Parameters
    ----------
    out : Path
        The path.
    kinds : Sequence[str], default PARTICLE_FILES
        Suffixes allowed.
    what : str, default 'selected particles'
        What is to be written, for the error.
    """
    if out.suffix.lower() not in kinds:
        raise RalibError(f"{out}: {what} are written as {', '.join(kinds[:-1])} or {kinds[-1]}: name one of these")
    if out.exists():
        raise RalibError(f"{out} exists: choose another name, or remove it first")
    if not out.absolute().parent.is_dir():
        raise RalibError(f"{out}: there is no folder {out.absolute().parent}: make it first")
