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
from ralib.io.stack_file import StackFile
from ralib.io.stacks import FilesSource
from ralib.io.star import Table, one_row, read_star
from ralib.types import RalibError

OF_A_JOB = ("_data.star", "_model.star", "_optimiser.star")
"""Ends of the names of a Class2D job's files."""
_COPIED_WITHIN_S = 1.0
"""Times of files that differ by less say nothing: they may be those of copying."""


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

    Of one number run_ct12_it025, which goes on from iteration 12, supersedes run_it025. A restart that has come less
    far than what it was restarted from (run_ct12_it018 beside run_it025) comes last where it is known to be later:
    RELION's job_pipeline.star names it alone, or its files are the newer ones.

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
    ordered = [path for *_, path in sorted(found)]
    restarts = _restarts(ordered)
    later = _restart_of_pipeline(folder, restarts)
    if later is None:
        later = _restart_by_time(restarts)
    if later is None:
        return ordered
    return [path for path in ordered if path not in restarts[later]] + restarts[later]


def _restarts(ordered: list[Path]) -> dict[int, list[Path]]:
    """Files by the iteration from which their run was continued, 0 for the first one; in order."""
    found: dict[int, list[Path]] = {}
    for path in ordered:
        found.setdefault((_iteration(path) or (0, 0))[1], []).append(path)
    return found


def _restart_of_pipeline(folder: Path, restarts: dict[int, list[Path]]) -> int | None:
    """The one restart whose last file RELION's job_pipeline.star has as output; None where it names none or several."""
    try:
        edges: Any = read_star(folder / "job_pipeline.star").get("pipeline_output_edges", {})
    except RalibError:
        return None
    outputs = {Path(str(name)).name for name in np.ravel(edges.get("rlnPipeLineEdgeToNode", ()))}
    named = [start for start, files in restarts.items() if files[-1].name in outputs]
    return named[0] if len(named) == 1 else None


def _restart_by_time(restarts: dict[int, list[Path]]) -> int | None:
    """The restart that was written after all others; None where copying has mixed the files' times."""
    try:
        times = {start: [file.stat().st_mtime for file in files] for start, files in restarts.items()}
    except OSError:
        return None
    if any(part != sorted(part) for part in times.values()):
        return None
    last = max(times, key=lambda start: times[start][-1], default=None)
    others = [part[-1] for start, part in times.items() if start != last]
    return last if last is not None and all(times[last][0] > end + _COPIED_WITHIN_S for end in others) else None


def iterations_not_read(found: list[Path], chosen: Path) -> list[Path]:
    """Return files of a job that may be meant instead of the one chosen, to be named.

    Those are an iteration that lacks its averages, as RELION was ended while writing, and the last one of a restart, or
    of what was restarted, where it is not superseded by what is read.

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
    reached, begun = numbers
    ends = {start: files[-1] for start, files in _restarts(found).items() if start != begun}
    others = [path for start, path in ends.items() if (_iteration(path) or (0, 0))[0] > (begun if start else reached)]
    return sorted({*others, *found[found.index(chosen) + 1 :]} - {chosen})


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
