"""EMAN2 LST files: a text list of images in other stacks, plain (#LST) or with fixed-length lines (#LSX).

A line is `number <tab> file [<tab> comment or JSON]`, numbers from 0; newer files keep xform.align2d and the class in
the JSON part.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ralib.io.atomic import PathLike
from ralib.io.eman_hdf import headers_of_files
from ralib.io.eman_headers import poses_of_matrices, with_headers, with_missing_poses_noted
from ralib.io.paths import resolve_images
from ralib.io.plausible import one_or_many
from ralib.io.stacks import FilesSource, MissingImages, StackFile
from ralib.io.text import read_text, shown
from ralib.types import ImageSource, Metadata, ParticleSet, RalibError


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
    return with_headers(particles, headers)


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
