"""Resolution of the image files named in a particle file: RELION, cryoSPARC and EMAN2 each mean another folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ralib.io.atomic import PathLike
from ralib.io.star import unwritable
from ralib.io.text import ERRORS
from ralib.types import RalibError

_FOLDERS_ABOVE = 6
_FORMAT = re.compile(r"(.+\.[A-Za-z0-9]+):[A-Za-z]{2,5}")  # Xmipp's and Scipion's stack.mrc:mrcs


def resolve_images(names: Iterable[str], beside: Path, datadir: PathLike | None) -> list[Path]:
    """Find the file of each name.

    A name is searched as it is: below `datadir` where that is given (it must hold one at least), from the current
    folder (where RELION runs), from the folder of the particle file (also of the target of a symbolic link), and from
    those above it (a job folder lies inside its project). Where none of the names is found, all are searched by their
    base names, in `datadir` or beside the particle file, but only where no two names would become one file.

    Parameters
    ----------
    names : iterator
        Names in the particle file.
    beside : Path
        The particle file.
    datadir : PathLike or None
        Folder of the image files.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    RalibError
        With the first file that is not found.
    """
    names = list(names)
    folder = Path(datadir) if datadir is not None else None
    if folder is not None:
        if not folder.is_dir():
            raise RalibError(
                f"`datadir` {folder}: {'it is no folder' if folder.exists() else 'there is no such folder'}"
            )
        within = [_first_file(folder / n for n in _spellings(name)) for name in names]
        if not any(within):
            if (flat := _by_base_name(names, folder, beside)) is not None:
                return flat
            raise RalibError(
                f"`datadir` {folder} does not hold the image files that {beside} names, such as {names[0]!r}: give the "
                "folder from which these names count, or leave it out"
            )
    else:
        within = [None] * len(names)
    parents = parents_of(beside)
    found = [path or _as_named(name, parents) for name, path in zip(names, within, strict=True)]
    if not any(found) and (flat := _by_base_name(names, beside.parent, beside)) is not None:
        return flat
    for name, path in zip(names, found, strict=True):
        if path is None:
            raise RalibError(
                f"{beside} names the image file {name!r}, which is not there (looked from the current folder, from the "
                "folder of the particle file and those above it); give its folder with `datadir`"
            )
    return [path for path in found if path is not None]


def found_twice(paths: Sequence[Path], beside: Path) -> tuple[Path, Path] | None:
    """Return a file that was found by a relative name, and another that a later one of the folders searched holds.

    Parameters
    ----------
    paths : sequence of Path
        Files as `resolve_images` found them, by relative names.
    beside : Path
        The particle file.

    Returns
    -------
    tuple of Path, or None
        The file taken and the other one; None where there is no doubt.
    """
    folders = [folder.absolute() for folder in parents_of(beside)]
    taken = next((path for path in paths if not path.is_absolute() and not path.is_relative_to(beside.parent)), None)
    if taken is not None:  # from the current folder
        relative = taken
    elif paths and (holds := next((f for f in folders if paths[0].absolute().is_relative_to(f)), None)) is not None:
        taken, relative = paths[0], paths[0].absolute().relative_to(holds)
        folders = folders[folders.index(holds) + 1 :]
    else:
        return None
    others = (folder / relative for folder in folders)
    other = next((path for path in others if _is_file(path) and not path.samefile(taken)), None)
    return None if other is None else (taken, other)


def leads_to(name: str, file: Path, folders: Sequence[Path]) -> bool:
    """Return whether a name leads to a file, from the first of some folders where it leads anywhere.

    Parameters
    ----------
    name : str
        Name in a particle file.
    file : Path
        The file that is meant.
    folders : sequence of Path
        Folders that the name may start from.

    Returns
    -------
    bool
        False where another file, or none, is found.
    """
    found = _first_file(folder / spelling for spelling in _spellings(name) for folder in folders)
    return found is not None and _is_file(file) and found.samefile(file)


def parents_of(beside: Path) -> list[Path]:
    """Return the folders that names may start from: those of the particle file, and of the file it links to."""
    folders: dict[Path, None] = {}
    for path in (beside, Path(os.path.realpath(beside))):
        folders |= dict.fromkeys([path.parent, *list(path.absolute().parent.parents)[:_FOLDERS_ABOVE]])
    return list(folders)


def _as_named(name: str, parents: Sequence[Path]) -> Path | None:
    for spelling in _spellings(name):
        given = Path(spelling)
        path = _first_file([given] if given.is_absolute() else [given, *(folder / given for folder in parents)])
        if path is not None:
            return path
    return None


def _by_base_name(names: Sequence[str], folder: Path, beside: Path) -> list[Path] | None:
    """Every name's file in `folder`, None where one is not there. RalibError where two names share a file."""
    found = [_first_file(folder / Path(n).name for n in _spellings(name)) for name in names]
    paths = [path for path in found if path is not None]
    if len(paths) < len(names):
        return None
    owner: dict[Path, str] = {}
    for name, path in zip(names, paths, strict=True):
        if owner.setdefault(path, name) != name:
            raise RalibError(
                f"{beside} names {owner[path]!r} and {name!r}, and both would be {path}: keep their folders apart, and "
                "give the folder that holds them with `datadir`"
            )
    return paths


def _spellings(name: str) -> Iterator[str]:
    """Return the possible meanings of a name in a file.

    As it is, its bytes in this system's encoding, from and to Latin-1, and without the format that Xmipp appends after
    a colon.
    """
    raw = name.encode("utf-8", ERRORS)
    seen = dict.fromkeys([name, os.fsdecode(raw)])
    if not name.isascii():
        seen[raw.decode("latin-1")] = None
        if all(ord(c) < 256 for c in name):
            seen[os.fsdecode(name.encode("latin-1"))] = None
    match = _FORMAT.fullmatch(name)
    if match is not None:
        seen[match[1]] = None
    return iter(seen)


def _first_file(candidates: Iterable[Path]) -> Path | None:
    return next((path for path in candidates if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # name too long, NUL inside, no permission
        return False


def name_for_project(path: Path, project: Path | None = None, star: PathLike | None = None) -> str:
    """Return a path as a STAR file names it so that RELION finds it: relative inside the project, absolute outside.

    Parameters
    ----------
    path : Path
        The file.
    project : Path | None, optional
        Folder in which RELION runs; by default the current one.
    star : PathLike | None, optional
        The STAR file; where it lies outside the project, the name is absolute.

    Returns
    -------
    str
        The name.
    """
    absolute = Path(os.path.abspath(path))
    root = Path(os.path.abspath(project or Path.cwd()))
    relative = absolute.is_relative_to(root)
    if star is not None:
        home, real_root = Path(os.path.realpath(star)).parent, Path(os.path.realpath(root))
        relative &= home.is_relative_to(real_root) and len(home.relative_to(real_root).parts) <= _FOLDERS_ABOVE
    return text_of(absolute.relative_to(root) if relative else absolute)


def text_of(path: Path) -> str:
    """Return a path as text for a file; as its bytes where it is not UTF-8."""
    return os.fsencode(path).decode("utf-8", ERRORS)


def check_writable_name(path: Path) -> None:
    """Raise RalibError if no STAR file can name the path, which is better reported before a run than after it."""
    if unwritable(name := text_of(Path(os.path.abspath(path)))):
        raise RalibError(
            f"the path {name!r} has a line break, or blanks and quotes of both kinds: no STAR file can name it; "
            "rename the file or its folder"
        )
