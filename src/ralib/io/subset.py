"""Some of the particles, in any order, with all that is known of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
import torch

from ralib.io.stacks import FilesSource, StackFile, file_references
from ralib.types import ImageSource, Metadata, ParticleSet, RalibError


@dataclass(frozen=True)
class _Chosen:
    """Images `index` of a source that has no files."""

    source: ImageSource
    index: np.ndarray

    @property
    def n_images(self) -> int:
        return len(self.index)

    @property
    def box(self) -> int:
        return self.source.box

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.source.read(self.index[index])


def take(particles: ParticleSet, index: np.ndarray) -> ParticleSet:
    """Particles `index` (m,) of the set: images, CTF, poses, groups and the rows of their file's tables."""
    index = np.asarray(index, dtype=np.int64).reshape(-1)
    n = len(particles)
    if not len(index) or index.min() < 0 or index.max() >= n:
        raise RalibError(f"no such selection: {len(index)} of {n} particles, numbers must be from 0 to {n - 1}")
    tables = {name: _rows(table, index, n) for name, table in particles.metadata.tables.items()}
    return particles.replace(
        images=_images(particles.images, index),
        ctf=None if particles.ctf is None else particles.ctf[index],
        poses=None if particles.poses is None else particles.poses[torch.from_numpy(index)],
        group=None if particles.group is None else particles.group[index],
        pixel_size_A=particles.pixel_size_A,
        pixel_sizes_A=None if particles.pixel_sizes_A is None else particles.pixel_sizes_A[index],
        usable=None if particles.usable is None else particles.usable[index],
        same_as=None if particles.same_as is None else _first_of(particles.same_as[index]),
        metadata=Metadata(particles.metadata.source_format, particles.metadata.path, tables),
    )


def _first_of(same_as: np.ndarray) -> np.ndarray | None:
    """`same_as` of some of the particles, by their new numbers."""
    _, first, inverse = np.unique(same_as, return_index=True, return_inverse=True)
    return None if len(first) == len(same_as) else first[inverse.reshape(-1)]


def _images(source: ImageSource, index: np.ndarray) -> ImageSource:
    files = file_references(source)
    if files is None:
        return _Chosen(source, index)
    if isinstance(source, FilesSource):
        return source.taken(index)
    stack = cast(StackFile, source)
    return FilesSource(files[0], files[1][index], files[2][index], lambda _: stack)


def _rows(table: object, index: np.ndarray, n: int) -> object:
    """The particle table has one row a particle; all others stay whole."""
    if isinstance(table, pd.DataFrame) and len(table) == n and "rlnImageName" in table.columns:
        return table.iloc[index].reset_index(drop=True)
    return table[index] if isinstance(table, np.ndarray) and len(table) == n else table
