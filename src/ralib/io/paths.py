"""Where the image files named in a particle file lie: RELION, cryoSPARC and EMAN2 each mean another
folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ralib.io.atomic import PathLike
from ralib.types import RalibError


def resolve_images(names: Iterable[str], beside: Path, datadir: PathLike | None) -> list[Path]:
    """The existing file of each name. Tried in this order: `datadir` (whole name, then base name), the name
    as it is (from the current folder, where RELION runs), next to the particle file, in the folders above it
    (a job folder lies inside its project), and by base name next to the particle file.

    Raises RalibError naming the first file that is nowhere.
    """
    parents = [beside.parent, *list(beside.absolute().parent.parents)[:6]]
    return [_resolve(name, parents, Path(datadir) if datadir is not None else None, beside) for name in names]


def _resolve(name: str, parents: list[Path], datadir: Path | None, beside: Path) -> Path:
    given = Path(name)
    candidates = [datadir / name, datadir / given.name] if datadir is not None else []
    candidates.append(given)
    if not given.is_absolute():
        candidates += [folder / name for folder in parents]
    candidates.append(beside.parent / given.name)
    for candidate in candidates:
        if _is_file(candidate):
            return candidate
    raise RalibError(
        f"{beside} names the image file {name!r}, which is not there (looked from the current folder, from the "
        "folder of the particle file and those above it); give its folder with --datadir"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # name too long, NUL inside, no permission
        return False


def name_for_project(path: Path, project: Path | None = None) -> str:
    """How a STAR file names `path` so that RELION, run in `project` (the current folder), finds it: relative
    inside the project, absolute outside."""
    absolute = Path(os.path.abspath(path))
    root = Path(os.path.abspath(project or Path.cwd()))
    return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)
