"""Class averages named by the model and optimiser files of RELION's Class2D job."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib.io.atomic import PathLike
from ralib.io.paths import resolve_images
from ralib.io.relion import split_image_names
from ralib.io.stacks import FilesSource, StackFile
from ralib.io.star import Table, one_row, read_star
from ralib.types import RalibError

OF_A_JOB = ("_data.star", "_model.star", "_optimiser.star")
"""Ends of the names of a Class2D job's files."""


def relion_class_averages(
    path: PathLike, open_stack: Callable[[Path], StackFile]
) -> tuple[np.ndarray, float | None] | None:
    """Read the class averages that a `_model.star` names, or the model of an `_optimiser.star`.

    Parameters
    ----------
    path : PathLike
        STAR file.
    open_stack : callable
        Opens an image file.

    Returns
    -------
    tuple or None
        Averages (k, n, n), float32, and their pixel size, Angstrom, or None where the model does not say it; None for
        every other STAR file.

    Raises
    ------
    RalibError
        If a file that is named is missing.
    """
    path = Path(path)
    tables = read_star(path)
    if "optimiser_general" in tables:
        path = named_by_optimiser(path, tables, "rlnModelStarFile")
        tables = read_star(path)
    classes = tables.get("model_classes")
    classes = one_row(classes) if isinstance(classes, dict) else classes
    if not isinstance(classes, pd.DataFrame) or "rlnReferenceImage" not in classes.columns:
        return None
    file_index, names, slices = split_image_names(classes["rlnReferenceImage"])
    if (slices < -1).any():
        raise RalibError(f"{path}: rlnReferenceImage needs a number from 1 before @")
    files = [_found(name, path, "its class averages") for name in names]
    images = FilesSource(files, file_index, slices, open_stack).read(np.arange(len(classes)))
    return images, _pixel_size_A(tables.get("model_general"))


def named_by_optimiser(path: Path, tables: dict[str, Table], field: str) -> Path:
    """Return a file that an `_optimiser.star` names.

    Parameters
    ----------
    path : Path
        The optimiser file.
    tables : dict
        Its tables.
    field : str
        rlnModelStarFile or rlnExperimentalDataStarFile.

    Returns
    -------
    Path
        The file.
    """
    general: Any = tables["optimiser_general"]
    if field not in general:
        raise RalibError(f"{path} has no {field}: it is no optimiser file of a finished Class2D job")
    return _found(str(np.ravel(general[field])[0]), path, field)


def job_data_file(path: Path) -> Path | None:
    """Return the `_data.star` of the Class2D job to which a `_model.star` or `_optimiser.star` belongs.

    Parameters
    ----------
    path : Path
        A file of the job.

    Returns
    -------
    Path or None
        Its particle file; None where the name is not one of a job's.
    """
    end = next((end for end in OF_A_JOB if path.name.endswith(end)), None)
    if end is None or not path.is_file():
        return None
    beside = path.with_name(path.name.removesuffix(end) + "_data.star")
    if beside.is_file() or end != "_optimiser.star":
        return beside if beside.is_file() else None
    return named_by_optimiser(path, read_star(path), "rlnExperimentalDataStarFile")


def relion_iterations(folder: Path) -> list[Path]:
    """Return a Class2D job's `_data.star` files, that of the newest iteration last.

    Of one number run_ct12_it025, which goes on from iteration 12, supersedes run_it025.

    Parameters
    ----------
    folder : Path
        The job's folder.

    Returns
    -------
    list of Path
        Files.
    """
    found = [(*numbers, path.name, path) for path in folder.glob("*_data.star") if (numbers := _iteration(path))]
    return [path for *_, path in sorted(found)]


def iterations_not_read(found: list[Path], chosen: Path) -> list[Path]:
    """Return files of a job that may be meant instead of the one chosen, to be named.

    Those are an iteration that lacks its averages, as RELION was ended while writing, and the last one of a restart
    that has not come as far as what it was restarted from.

    Parameters
    ----------
    found : list of Path
        The job's files by `relion_iterations`.
    chosen : Path
        The one that is read.

    Returns
    -------
    list of Path
        The others, one a restart.
    """
    numbers = _iteration(chosen)
    if numbers is None:
        return []
    last = {pair[1]: path for path in found if (pair := _iteration(path))}
    begun = numbers[1]
    others = {start: path for start, path in last.items() if start not in (0, begun)}
    restarts = [path for path in others.values() if (_iteration(path) or (0, 0))[0] > begun]
    return sorted({*restarts, *found[found.index(chosen) + 1 :]} - {chosen})


def _iteration(path: Path) -> tuple[int, int] | None:
    """Iteration of a file, and that from which its run was continued: 25, 12 of run_ct12_it025_data.star."""
    match = re.search(r"(?:_ct(\d+))?_it(\d+)_data\.star$", path.name)
    return (int(match[2]), int(match[1] or 0)) if match else None


def _found(name: str, path: Path, what: str) -> Path:
    """A file named in `path`, as RELION means it: from the project's folder."""
    try:
        return resolve_images([name], path, None)[0]
    except RalibError as error:
        raise RalibError(
            f"{path} names {what} {name!r}, and there is no such file (looked from the current folder, beside "
            f"{path.name} and in the folders above): run in the project's folder, or copy the file beside {path.name}"
        ) from error


def _pixel_size_A(general: Any) -> float | None:
    size_A = np.nan if general is None else float(np.ravel(general.get("rlnPixelSize", np.nan))[0])
    return size_A if np.isfinite(size_A) and size_A > 0 else None
