"""EMAN2 LST files: a text list of images in other stacks, plain (#LST) or with fixed-length lines (#LSX).

A line is `number <tab> file [<tab> comment or JSON]`, numbers from 0; newer files keep xform.align2d and the class in
the JSON part, whose values EMAN2 takes for attributes of the image, above those in the image's own file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ralib.io.atomic import PathLike, write_text
from ralib.io.eman_hdf import headers_of_files
from ralib.io.eman_hdf_write import pose_headers
from ralib.io.eman_headers import poses_of_matrices, with_headers, with_missing_poses_noted
from ralib.io.paths import name_for_project, resolve_images
from ralib.io.plausible import one_or_many
from ralib.io.stack_file import StackFile
from ralib.io.stacks import FilesSource, MissingImages, file_references
from ralib.io.text import ERRORS, read_text, shown
from ralib.types import ImageSource, Metadata, ParticleSet, RalibError

_SIZES = ("apix_x", "apix_y")
_FIXED_LENGTH = (
    "# All lines after the next one have as many bytes as it says, so that EMAN2 finds a line by its number."
)


def open_lst(
    path: PathLike,
    open_stack: Callable[[Path], StackFile],
    *,
    datadir: PathLike | None = None,
    require_images: bool = True,
) -> ParticleSet:
    """Open the images that an LST file lists, with their alignments where every line has one.

    Parameters
    ----------
    path : PathLike
        The file.
    open_stack, datadir, require_images : as in `ralib.io.cryosparc.open_cs`
        Where and how images are opened.

    Returns
    -------
    ParticleSet
        The particles.
    """
    path = Path(path)
    numbers, names, extras = _parse(path)
    files: dict[str, int] = {}
    file_index = np.array([files.setdefault(name, len(files)) for name in names], dtype=np.int32)
    images: ImageSource
    try:
        found = resolve_images(files, path, datadir)
        source = FilesSource(found, file_index, np.array(numbers, dtype=np.int64), open_stack)
        images, headers = source, headers_of_files(source)
        pixel_size_A, sizes_A = one_or_many(source.pixel_sizes_A)
    except RalibError as error:
        if require_images:
            raise
        images, headers = MissingImages(len(numbers), 0, str(error)), [{} for _ in numbers]
        pixel_size_A, sizes_A = None, None
    matrices, classes = _alignments(extras)
    particles = ParticleSet(
        images,
        pixel_size_A,
        poses=poses_of_matrices(matrices, classes),
        group=file_index.astype(np.int64),
        metadata=Metadata("lst", str(path), {}),
        pixel_sizes_A=sizes_A,
    )
    if particles.poses is not None:
        particles = with_missing_poses_noted(particles, np.array([m is None for m in matrices]))
    stated = [{name: extra[name] for name in _SIZES if name in extra} for extra in extras]
    return with_headers(particles, [{**header, **own} for header, own in zip(headers, stated, strict=True)])


def write_lst(path: PathLike, particles: ParticleSet, scores: Mapping[str, np.ndarray] | None = None) -> None:
    """Write an EMAN2 list (#LSX) of images that stay in their files, with pose, class and pixel size of each.

    Parameters
    ----------
    path : PathLike
        The file.
    particles : ParticleSet
        The particles.
    scores : mapping of str to ndarray of shape (n,), optional
        Scores by name, as attributes ralib_NAME.

    Raises
    ------
    RalibError
        For images in memory, and for file names that a list cannot hold.
    """
    references = file_references(particles.images)
    if references is None:
        raise RalibError(f"{path}: an EMAN2 list names images in files, and these are in memory: write an .hdf")
    files, file_index, slices = references
    names = [name_for_project(file, star=path) for file in files]
    if wrong := next((name for name in names if name != name.strip() or re.search(r"[\t\r\n]", name)), None):
        raise RalibError(f"the path {wrong!r} has a tab, a line break or a blank at an end: no EMAN2 list can name it")
    extras = _extras(particles, scores or {})
    rows = zip(slices.tolist(), file_index.tolist(), extras, strict=True)
    lines = [f"{number}\t{names[file]}\t{json.dumps(extra, separators=(',', ':'))}" for number, file, extra in rows]
    length = max(len(line.encode("utf-8", ERRORS)) for line in lines) + 1  # EMAN2 counts bytes, with the line's end
    padded = [line + " " * (length - 1 - len(line.encode("utf-8", ERRORS))) for line in lines]
    write_text(path, "\n".join(["#LSX", _FIXED_LENGTH, f"# {length}", *padded]) + "\n")


def _extras(particles: ParticleSet, scores: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """The JSON part of each line."""
    extras: list[dict[str, Any]] = [{} for _ in range(len(particles))]
    for extra, header in zip(extras, pose_headers(particles.poses), strict=False):
        matrix = ",".join(f"{value:.9g}" for value in header["xform.align2d"])
        extra |= {"xform.align2d": {"__class__": "Transform", "matrix": f"[{matrix}]"}, "class": header["assign"]}
    size = particles.pixel_size_A if particles.pixel_sizes_A is None else particles.pixel_sizes_A
    if size is not None:
        for extra, size_A in zip(extras, np.broadcast_to(size, len(extras)).tolist(), strict=True):
            extra |= dict.fromkeys(_SIZES, size_A)
    for name, values in scores.items():
        for extra, value in zip(extras, values.tolist(), strict=True):
            if math.isfinite(value):  # JSON has no others
                extra[f"ralib_{name}"] = value
    return extras


def _parse(path: Path) -> tuple[list[int], list[str], list[Any]]:
    lines = read_text(path, "EMAN2 list").split("\n")
    if not lines[0].startswith(("#LST", "#LSX")):
        raise RalibError(f"{path} is no EMAN2 list: its first line is not #LST or #LSX")
    numbers, names, extras = [], [], []
    for line, content in enumerate(lines, 1):
        if not content.strip() or content.startswith("#"):
            continue
        parts = content.rstrip().split("\t") if "\t" in content else content.split(None, 2)
        if len(parts) < 2 or not re.fullmatch(r"\s*[0-9]{1,9}\s*", parts[0]):
            raise RalibError(f"{path} line {line}: {shown(content)} is not 'number file'; correct it")
        numbers.append(int(parts[0]))
        names.append(parts[1].strip())
        extras.append(_json(parts[2]) if len(parts) > 2 else {})
    if not numbers:
        raise RalibError(f"{path} lists no images")
    return numbers, names, extras


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _alignments(extras: list[dict[str, Any]]) -> tuple[list[Any], list[int]]:
    """Transform and class of each line's JSON part: None where it has no transform, NaN where it is damaged."""
    matrices: list[Any] = []
    classes = []
    for extra in extras:
        try:
            matrices.append(_matrix(extra["xform.align2d"]) if "xform.align2d" in extra else None)
            classes.append(_class(extra.get("class", 0)))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            matrices[len(classes) :] = [[math.nan] * 12]
            classes.append(-1)
    return matrices, classes


def _class(value: Any) -> int:
    number = int(value)
    if not abs(number) < 2**31:
        raise ValueError("no class number")
    return number


def _matrix(transform: Any) -> list[float]:
    """Return the numbers of a transform written as JSON: {"__class__": "Transform", "matrix": "[...]"}."""
    matrix = transform["matrix"] if isinstance(transform, dict) else transform
    return [float(v) for v in (json.loads(matrix) if isinstance(matrix, str) else matrix)]
