"""Read and write particle files: MRC, RELION STAR, cryoSPARC, EMAN2 HDF and LST, SPIDER, IMAGIC, by
suffix."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ralib.io import mrc
from ralib.io.atomic import PathLike, atomic_path, write_json, write_text
from ralib.io.mrc import stack_writer, write_mrcs
from ralib.io.relion import open_star
from ralib.io.relion_write import write_particles_star
from ralib.io.stacks import StackFile
from ralib.io.star import read_star, write_star
from ralib.types import Metadata, ParticleSet, RalibError

__all__ = [
    "atomic_path",
    "open_images",
    "open_particles",
    "open_stack",
    "read_star",
    "stack_writer",
    "write_json",
    "write_mrcs",
    "write_particles_star",
    "write_star",
    "write_text",
]

_STACKS = {s: mrc.open_stack for s in (".mrc", ".mrcs", ".map", ".st", ".ccp4")}


def open_stack(path: PathLike) -> StackFile:
    """One file of images, by its suffix."""
    path = Path(path)
    opener = _STACKS.get(path.suffix.lower())
    if opener is None:
        raise RalibError(
            f"{path}: ralib knows no image stack {path.suffix or 'without a suffix'}; it reads {_known()}"
        )
    if path.is_dir():
        raise RalibError(f"{path} is a folder, not an image stack")
    return opener(path)


def open_particles(
    path: PathLike, *, datadir: PathLike | None = None, require_images: bool = True
) -> ParticleSet:
    """Particles and what is known of them, from any file ralib reads; images are read when asked for.

    datadir          where the image files named in a STAR, .cs or .lst file lie, if not where it says
    require_images   False: a file whose images are elsewhere opens for its metadata
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".star":
        return open_star(path, open_stack, datadir=datadir, require_images=require_images)
    stack = open_stack(path)
    return ParticleSet(
        images=stack, pixel_size_A=stack.pixel_size_A, metadata=Metadata(suffix[1:], str(path))
    )


def open_images(path: PathLike) -> np.ndarray:
    """All images of a file, (k, n, n) float32: references, masks."""
    source = open_particles(path).images
    return source.read(np.arange(source.n_images))


def _known() -> str:
    return ", ".join(sorted({*_STACKS, ".star"}))
