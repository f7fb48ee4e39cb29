"""Readers and writers of particle files by suffix: MRC, RELION, cryoSPARC, EMAN2 HDF and LST, SPIDER, IMAGIC, NPY."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from ralib.io import mrc, spider_imagic
from ralib.io.atomic import PathLike, atomic_path, write_json, write_text
from ralib.io.carried import left_behind, source_headers
from ralib.io.class_averages import relion_class_averages
from ralib.io.cryosparc import open_cs
from ralib.io.cryosparc_write import write_particles_cs
from ralib.io.eman_hdf import HdfStack, kept_headers, open_hdf
from ralib.io.eman_hdf_write import class_headers, pose_headers, write_hdf, write_headers
from ralib.io.eman_headers import FLIPPED_NAME, files_named
from ralib.io.eman_lst import open_lst, write_lst
from ralib.io.mrc import stack_writer, write_mrcs
from ralib.io.npy import open_npy
from ralib.io.paths import check_writable_name, found_twice
from ralib.io.plausible import (
    for_computing,
    usable_only,
    with_plausible_ctf,
    with_plausible_scale,
    with_sound_poses,
)
from ralib.io.raw_stack import RawStack, anisotropic_among, volumes_among
from ralib.io.relion import open_star
from ralib.io.relion_job import link_or_copy, write_optimiser_star, write_sampling_star
from ralib.io.relion_model import write_class_stack, write_job_exit, write_model_star, write_output_nodes
from ralib.io.relion_optics import count_optics_groups
from ralib.io.relion_write import write_particles_star
from ralib.io.selections import take, with_repeats_noted, without_repeats
from ralib.io.stack_file import StackFile
from ralib.io.stacks import file_references
from ralib.io.star import one_row, read_star, write_star
from ralib.io.sx_text import read_params, write_params
from ralib.types import Metadata, ParticleSet, RalibError

__all__ = [
    "atomic_path",
    "check_writable_name",
    "class_headers",
    "count_optics_groups",
    "for_computing",
    "kept_headers",
    "left_behind",
    "link_or_copy",
    "one_row",
    "open_images",
    "open_particles",
    "open_references",
    "open_stack",
    "pose_headers",
    "read_params",
    "read_star",
    "source_headers",
    "stack_writer",
    "take",
    "usable_only",
    "with_plausible_ctf",
    "without_repeats",
    "write_class_stack",
    "write_hdf",
    "write_headers",
    "write_job_exit",
    "write_json",
    "write_lst",
    "write_model_star",
    "write_mrcs",
    "write_optimiser_star",
    "write_output_nodes",
    "write_params",
    "write_particles_cs",
    "write_particles_star",
    "write_sampling_star",
    "write_star",
    "write_text",
]

_HDF = (".hdf", ".h5", ".hdf5")
_STACKS: dict[str, Callable[[Path], StackFile]] = {
    **dict.fromkeys((".mrc", ".mrcs", ".map", ".st", ".ccp4"), mrc.open_stack),
    **dict.fromkeys((".spi", ".stk", ".spider"), spider_imagic.open_spider),
    **dict.fromkeys((".hed", ".img"), spider_imagic.open_imagic),
    **dict.fromkeys(_HDF, HdfStack),
    ".npy": open_npy,
}
_LISTS = {".star": open_star, ".cs": open_cs, ".lst": open_lst, ".lsx": open_lst}


def open_stack(path: PathLike) -> StackFile:
    """Open one file of images, by its suffix."""
    path = Path(path)
    opener = _STACKS.get(path.suffix.lower())
    if opener is None:
        known = ", ".join(sorted({*_STACKS, *_LISTS}))
        raise RalibError(f"{path}: ralib knows no image file {path.suffix or 'without a suffix'}; it reads {known}")
    _check_there(path)
    return opener(path)


def open_particles(path: PathLike, *, datadir: PathLike | None = None, require_images: bool = True) -> ParticleSet:
    """Open particles and what is known of them, from any file the package reads; images are read when they are needed.

    Parameters
    ----------
    path : PathLike
        The file.
    datadir : PathLike | None, optional
        Folder of the image files named in a STAR, .cs or .lst file, if they are not where it says.
    require_images : bool, default True
        False opens a file whose images are missing for its metadata.

    Returns
    -------
    ParticleSet
        The particles.

    Raises
    ------
    RalibError
        In one line for everything that is wrong with the file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in _LISTS:
        _check_there(path)
        particles = _LISTS[suffix](path, open_stack, datadir=datadir, require_images=require_images)
    elif suffix in _HDF:
        _check_there(path)
        particles = open_hdf(path)
    else:
        stack = open_stack(path)
        particles = ParticleSet(stack, pixel_size_A=stack.pixel_size_A, metadata=Metadata(suffix[1:], str(path)))
    for file in (file_references(particles.images) or ([path],))[0]:
        check_writable_name(file)
    particles = with_plausible_scale(_with_doubtful_files_noted(particles, path))
    return with_repeats_noted(with_sound_poses(particles))


def _with_doubtful_files_noted(particles: ParticleSet, path: Path) -> ParticleSet:
    """The set with warnings about files that may not be those that are meant."""
    paths = (file_references(particles.images) or ([],))[0]
    twice = None if _by_absolute_names(particles) else found_twice(paths, path)
    if twice is not None:
        place = "nearest to the particle file" if twice[0].is_absolute() else "of the current folder"
        particles = particles.warned(
            f"{twice[0]} is there twice: the one {place} is taken, not {twice[1]}",
            "images",
            "run in the project's folder, or give the folder of the images with `datadir`",
        )
    if volumes := volumes_among(particles.images):
        particles = particles.warned(
            f"{volumes[0]} is a volume by its header: its {particles.box} sections are taken as images",
            "images",
            "give a stack of particles; if it is one, set its header's space group to 0",
        )
    if particles.ctf is not None and not particles.ctf.state.any() and files_named(particles, FLIPPED_NAME).any():
        particles = particles.warned(
            "files are named __ctf_flip, as EMAN2 names images of flipped phases, and nothing says that these are",
            "CTF",
            "give `ctf=flipped`, or rlnCtfDataArePhaseFlipped 1 in data_optics, if the phases are flipped",
        )
    if isinstance(source := particles.images, RawStack) and source.n_beyond > 0:
        n_all = source.n_images + source.n_beyond
        particles = particles.warned(
            f"{source.path} could hold {n_all} images, its header counts {source.n_images}: only those are read",
            "images",
            "where it holds more, have the program that made it write its header, or extract it again",
        )
    if stacks := anisotropic_among(particles.images):
        layout = stacks[0].layout
        particles = particles.warned(
            f"{stacks[0].path}: its header says pixels of {layout.pixel_size_A:g} A along x and "
            f"{layout.pixel_size_y_A:g} A along y: they are taken as square",
            "pixel size",
            "correct the header, or resample the images to square pixels",
        )
    return particles


def _by_absolute_names(particles: ParticleSet) -> bool:
    """Whether the first image is named by its full path, which leaves no doubt."""
    for table in particles.metadata.tables.values():
        if isinstance(table, pd.DataFrame) and "rlnImageName" in table and len(table):
            return str(table["rlnImageName"].iloc[0]).partition("@")[2].startswith("/")
    return False


def open_images(path: PathLike) -> np.ndarray:
    """Read all images of a file, such as references or masks; see `open_references`.

    Parameters
    ----------
    path : PathLike
        The file.

    Returns
    -------
    ndarray of shape (k, n, n)
        Images, float32.

    Raises
    ------
    RalibError
        If it cannot be read.
    """
    return open_references(path)[0]


def open_references(path: PathLike) -> tuple[np.ndarray, float | None]:
    """Read all images of a file and their pixel size; RELION's _model.star and _optimiser.star give class averages.

    Parameters
    ----------
    path : PathLike
        The file.

    Returns
    -------
    ndarray of shape (k, n, n)
        Images, float32.
    float or None
        Pixel size, Angstrom; None where no file says it.

    Raises
    ------
    RalibError
        If it cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() == ".star":
        _check_there(path)
        averages = relion_class_averages(path, open_stack)
        if averages is not None:
            return averages
    particles = open_particles(path)
    return particles.images.read(np.arange(particles.images.n_images)), particles.pixel_size_A


def _check_there(path: Path) -> None:
    if path.is_dir():
        raise RalibError(f"{path} is a folder, not a particle file")
    if not path.is_file():
        raise RalibError(f"cannot read {path}: there is no such file")
