"""RELION particle STAR files, 1 to 5, as a ParticleSet: images, CTF, poses, micrograph groups; everything else is kept.

Before 3.1 one table holds everything: pixel size is DetectorPixelSize (um) / Magnification, and origins are in pixels.
Since 3.1 `data_optics` holds what a session shares, and origins are in Angstrom; files with pixels under a 3.1 header
exist.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ralib import conventions
from ralib.io.atomic import PathLike
from ralib.io.paths import resolve_images
from ralib.io.plausible import (
    check_pixel_sizes,
    one_or_many,
    with_header_scales_noted,
    with_incomplete_ctf_noted,
    with_stated_boxes_noted,
)
from ralib.io.relion_table import (
    as_tables,
    joined_table,
    labels_of,
    number_column,
    optional_column,
    particle_block,
    particle_table,
    with_optics,
)
from ralib.io.stack_file import MAX_BOX, StackFile
from ralib.io.stacks import FilesSource, MissingImages
from ralib.io.star import Table, read_star
from ralib.io.uncorrected import star_optics_noted
from ralib.types import CtfParameters, CtfState, ImageSource, Metadata, ParticleSet, Poses, RalibError

DEFAULT_AMPLITUDE_CONTRAST = 0.1
CTF_COLUMNS = ("rlnDefocusU", "rlnVoltage", "rlnSphericalAberration")
"""Without any of these there is no CTF."""
CTF_LABELS = ("rlnDefocus", "rlnCtf", "rlnPhaseShift")
"""Columns of a CTF that was measured; the voltage and Cs that RELION's files must have tell of none."""
_OF_OPTICS = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnImagePixelSize")
STATE_COLUMNS = ("rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied")


def open_star(
    path: PathLike,
    open_stack: Callable[[Path], StackFile],
    *,
    datadir: PathLike | None = None,
    require_images: bool = True,
) -> ParticleSet:
    """Open a particle STAR file.

    `Metadata.tables` keeps every block; `metadata.tables[particle_block(tables)]` has a row for each particle.

    Parameters
    ----------
    path : PathLike
        The file.
    open_stack : callable
        Opens an image file.
    datadir : PathLike | None, optional
        Folder of the image files, if they are not where the file says.
    require_images : bool, default True
        False opens a file whose images are missing; reading one is then an error.

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
    tables = as_tables(read_star(path))
    particles = particle_table(tables, path)
    table = with_optics(particles, tables, path)
    _refuse_three_dimensions(table, path)
    pixel_size_A = _pixel_size_A(table, path)
    images, header_pixel_A = _images(path, table, open_stack, datadir, require_images)
    known = pixel_size_A if pixel_size_A is not None else header_pixel_A
    one_A, sizes_A = one_or_many(known)
    per_particle_A = np.full(len(table), np.nan) if known is None else np.broadcast_to(known, len(table))
    opened = ParticleSet(
        images=images,
        pixel_size_A=one_A,
        pixel_sizes_A=sizes_A,
        ctf=_ctf(table, path),
        poses=_poses(table, per_particle_A, path),
        group=_groups(table),
        metadata=Metadata("relion", str(path), dict(tables)),
    )
    opened = with_header_scales_noted(opened, pixel_size_A)
    opened = with_stated_boxes_noted(opened, optional_column(table, "rlnImageSize", 0.0, path))
    if any(column.startswith(CTF_LABELS) for column in table.columns):
        opened = with_incomplete_ctf_noted(opened, CTF_COLUMNS, list(table.columns))
    opened = star_optics_noted(
        opened,
        list(table.columns),
        lambda label: number_column(table, label, path),
        lambda label: table[label].astype(str).tolist(),
    )
    opened = _contradictions_noted(opened, particles, tables, path)
    return _helical_noted(_other_blocks_noted(opened, tables), table)


def _contradictions_noted(
    opened: ParticleSet, particles: pd.DataFrame, tables: dict[str, Table], path: Path
) -> ParticleSet:
    """The set with a warning where most particles say otherwise than their optics group; RELION takes theirs, too."""
    known = [label for label in _OF_OPTICS if label in particles.columns]
    of_group = with_optics(particles.drop(columns=known), tables, path)

    def differs(label: str) -> bool:
        own, shared = (number_column(table, label, path) for table in (particles, of_group))
        return bool(np.isclose(own, shared, equal_nan=True).mean() < 0.5)

    other = [label for label in known if label in of_group.columns and differs(label)]
    if not other:
        return opened
    return opened.warned(
        f"{', '.join(other)} of the particles differ from those of their optics groups: the particles' own are taken",
        "optics",
        "correct the one that is wrong",
    )


def _other_blocks_noted(particles: ParticleSet, tables: dict[str, Table]) -> ParticleSet:
    """The set with a warning about further blocks that list images."""
    chosen = particle_block(tables)
    others = [name for name, table in tables.items() if name != chosen and "rlnImageName" in labels_of(table)]
    if not others:
        return particles
    return particles.warned(
        f"data_{', data_'.join(others)} lists images too, and is not read: the particles are those of data_{chosen}",
        "particles",
        "write each of the tables into a file of its own if its particles are needed",
    )


def _refuse_three_dimensions(table: pd.DataFrame, path: Path) -> None:
    if "rlnImageDimensionality" in table.columns:
        flat = number_column(table, "rlnImageDimensionality", path) != 3
        if not flat.all():
            raise RalibError(
                f"{path}: rlnImageDimensionality is 3 for {int((~flat).sum())} of {len(table)} particles: these are "
                "three-dimensional subtomograms; two-dimensional particle images are needed"
            )


def _helical_noted(particles: ParticleSet, table: pd.DataFrame) -> ParticleSet:
    if "rlnHelicalTubeID" not in table.columns or not (number_column(table, "rlnHelicalTubeID", "helix") > 0).any():
        return particles
    return particles.warned(
        "these are segments of helices (rlnHelicalTubeID): they are treated as single particles, without helical "
        "priors",
        "particles",
        "nothing, if that is what you want; angles along the tube are searched like all others",
    )


def split_image_names(names: pd.Series) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Split names like `000012@stack.mrcs`.

    Parameters
    ----------
    names : pd.Series
        Names.

    Returns
    -------
    ndarray of shape (n,)
        File of each.
    list of str
        File names.
    ndarray of shape (n,)
        Image of each file from 0; -1 for a name without @, the only image of its file; -2 for a number below 1 or none.
    """
    text = names.astype(object).tolist()
    numbers = np.empty(len(text), dtype=np.int64)
    files: dict[str, int] = {}
    file_index = np.empty(len(text), dtype=np.int32)
    for i, name in enumerate(map(str, text)):
        number, at, stack = name.partition("@")
        if not at:
            number, stack, numbers[i] = "", name, -1
        else:
            good = number.isascii() and number.isdigit() and len(number) < 10 and int(number) > 0
            numbers[i] = int(number) - 1 if good else -2
        file_index[i] = files.setdefault(stack, len(files))
    return file_index, list(files), numbers


def stated_pixel_sizes_A(metadata: Metadata) -> np.ndarray | None:
    """Return the pixel size (n,) that an opened STAR file states for each particle; None where it states none."""
    if metadata.source_format != "relion" or particle_block(metadata.tables) is None:
        return None
    return _pixel_size_A(joined_table(metadata), Path(metadata.path))


def _pixel_size_A(table: pd.DataFrame, path: Path) -> np.ndarray | None:
    """(n,) pixel size of each particle's image, or None where the file does not say."""
    if "rlnImagePixelSize" in table.columns:
        size = number_column(table, "rlnImagePixelSize", path)
    elif "rlnDetectorPixelSize" in table.columns and "rlnMagnification" in table.columns:
        magnification = number_column(table, "rlnMagnification", path)
        detector_um = number_column(table, "rlnDetectorPixelSize", path)
        size = detector_um * 1e4 / np.where(magnification > 0, magnification, np.nan)
    elif "rlnPixelSize" in table.columns:
        size = number_column(table, "rlnPixelSize", path)
    else:
        return None
    return check_pixel_sizes(size, str(path))


def _images(
    path: Path, table: pd.DataFrame, open_stack: Callable, datadir: PathLike | None, required: bool
) -> tuple[ImageSource, np.ndarray | float | None]:
    """The images, and the pixel size that the headers of their files say, (n,) where they differ."""
    file_index, files, slices = split_image_names(table["rlnImageName"])
    if (slices < -1).any():
        bad = table["rlnImageName"].iloc[int(np.argmax(slices < -1))]
        raise RalibError(f"{path}: image name {bad!r}: a number from 1 is needed before @")
    try:
        source = FilesSource(resolve_images(files, path, datadir), file_index, slices, open_stack)
    except RalibError as error:
        if required:
            raise
        size = optional_column(table, "rlnImageSize", 0.0, path)[0]
        return MissingImages(len(table), int(size) if 0 < size <= MAX_BOX else 0, str(error)), None
    return source, source.pixel_sizes_A


def _ctf(table: pd.DataFrame, path: Path) -> CtfParameters | None:
    """Return the CTF of each particle, or None where defocus, voltage or spherical aberration are missing.

    Amplitude contrast is 0.1 where the file has none (RELION 3.0 allowed that).
    """
    if any(c not in table.columns for c in CTF_COLUMNS):
        return None
    u = number_column(table, "rlnDefocusU", path)
    return CtfParameters(
        defocus_u_A=u,
        defocus_v_A=number_column(table, "rlnDefocusV", path) if "rlnDefocusV" in table.columns else u.copy(),
        astigmatism_angle_deg=optional_column(table, "rlnDefocusAngle", 0.0, path),
        voltage_kV=number_column(table, "rlnVoltage", path),
        spherical_aberration_mm=number_column(table, "rlnSphericalAberration", path),
        amplitude_contrast=optional_column(table, "rlnAmplitudeContrast", DEFAULT_AMPLITUDE_CONTRAST, path),
        phase_shift_deg=optional_column(table, "rlnPhaseShift", 0.0, path),
        bfactor_A2=optional_column(table, "rlnCtfBfactor", 0.0, path),
        state=_ctf_state(table, path),
    )


def _ctf_state(table: pd.DataFrame, path: Path) -> np.ndarray:
    """`CtfState` (n,) by RELION's two flags, which data_optics holds."""
    flipped, multiplied = (_flag(table, column, path) for column in STATE_COLUMNS)
    return np.where(multiplied, CtfState.PREMULTIPLIED, np.where(flipped, CtfState.PHASE_FLIPPED, CtfState.NONE))


def _flag(table: pd.DataFrame, name: str, path: Path) -> np.ndarray:
    """A column of 0 and 1 as bool, False where there is none; what is neither could mean either, and is refused."""
    value = optional_column(table, name, 0.0, path)
    known = (value == 0) | (value == 1)
    if not known.all():
        row = int(np.argmin(known))
        raise RalibError(f"{path}: {name} is {value[row]:g} for particle {row + 1}: write 1 for yes, 0 for no")
    return value == 1


def _poses(table: pd.DataFrame, pixel_size_A: np.ndarray, path: Path) -> Poses | None:
    """Return psi, origin, class and mirror; None where the file has none of them.

    The package's own columns, where they still agree with RELION's classes, give class and mirror.
    """
    if not {"rlnAnglePsi", "rlnClassNumber", "rlnOriginX", "rlnOriginXAngst"} & set(table.columns):
        return None
    origin = np.stack([_origin_px(table, axis, pixel_size_A, path) for axis in "XY"], axis=1)
    index = torch.tensor(_class_index(optional_column(table, "rlnClassNumber", 1.0, path), "rlnClassNumber", path))
    mirror = _mirror(table, path)
    if "ralibClass" in table.columns:
        original = torch.tensor(_class_index(number_column(table, "ralibClass", path), "ralibClass", path))
        index, mirror = conventions.restore_mirror(index, original, mirror, turned_over(table, path))
    return Poses(
        psi_deg=torch.tensor(optional_column(table, "rlnAnglePsi", 0.0, path), dtype=torch.float32),
        origin_xy_px=torch.tensor(origin, dtype=torch.float32),
        mirror=mirror,
        class_index=index,
        score=torch.tensor(optional_column(table, "ralibScore", np.nan, path), dtype=torch.float32),
    )


def _mirror(table: pd.DataFrame, path: Path) -> torch.Tensor:
    """ralibMirror; without it (RELION 3 drops unknown columns) images mirrored by a tilt of 180 degrees."""
    if "ralibMirror" in table.columns:
        return torch.tensor(_flag(table, "ralibMirror", path))
    return turned_over(table, path)


def turned_over(table: pd.DataFrame, path: Path) -> torch.Tensor:
    """Return the images that RELION's own angles show from behind: a tilt of 180 degrees, where all others have none.

    Parameters
    ----------
    table : pd.DataFrame
        Particle table.
    path : Path
        The file, for errors.

    Returns
    -------
    Tensor of shape (n,)
        True where mirrored.
    """
    tilt = np.abs(optional_column(table, "rlnAngleTilt", 0.0, path))
    flat = bool(np.isin(tilt, (0.0, 180.0)).all()) and not bool(optional_column(table, "rlnAngleRot", 0.0, path).any())
    return torch.tensor(tilt == 180.0) if flat else torch.zeros(len(tilt), dtype=torch.bool)


def _class_index(number: np.ndarray, label: str, path: Path) -> np.ndarray:
    whole = np.isfinite(number) & (np.abs(number) < 2**31)
    if not whole.all() or (number != np.floor(number)).any():
        raise RalibError(f"{path}: the column {label} should hold class numbers from 1")
    return np.maximum(number.astype(np.int64) - 1, -1)


def _origin_px(table: pd.DataFrame, axis: str, pixel_size_A: np.ndarray, path: Path) -> np.ndarray:
    if f"rlnOrigin{axis}Angst" in table.columns:
        origin_A = number_column(table, f"rlnOrigin{axis}Angst", path)
        if np.isnan(pixel_size_A).any() and (origin_A != 0).any():
            raise RalibError(f"{path}: origins are in Angstrom, but no pixel size is given; add rlnImagePixelSize")
        return np.where(origin_A == 0, 0.0, origin_A / pixel_size_A)
    return optional_column(table, f"rlnOrigin{axis}", 0.0, path)


def _groups(table: pd.DataFrame) -> np.ndarray | None:
    """Micrograph of each particle, else its optics group, numbered from 0 in order of appearance."""
    for column in ("rlnMicrographName", "rlnGroupNumber", "rlnOpticsGroup"):
        if column in table.columns:
            return pd.factorize(table[column])[0].astype(np.int64)
    return None
