"""What of a RELION particle table other formats can hold: cryoSPARC's fields, EMAN2's headers; the rest is said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib.io.eman_hdf import SUFFIXES as EMAN_SUFFIXES
from ralib.io.relion_table import joined_table
from ralib.io.stacks import file_references
from ralib.types import ParticleSet

_ORIGINS = (
    *("rlnOriginX", "rlnOriginY", "rlnOriginXAngst", "rlnOriginYAngst"),
    *("rlnAnglePsi", "rlnAngleRot", "rlnAngleTilt", "rlnClassNumber"),
)
_IMAGES = (
    *("rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnOpticsGroupName"),
    *("rlnImageSize", "rlnImageDimensionality", "rlnImagePixelSize", "rlnPixelSize"),
    *("rlnDetectorPixelSize", "rlnMagnification", "rlnMicrographOriginalPixelSize", "rlnMicrographPixelSize"),
)
_CTF = (
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnPhaseShift", "rlnCtfBfactor"),
    *("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast"),
    *("rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied"),
)
_OF_A_RUN = ("rlnLogLikeliContribution", "rlnMaxValueProbDistribution", "rlnNrOfSignificantSamples")
_FROM_CS = ("rlnCoordinateX", "rlnCoordinateY")
_HELD = {
    ".cs": {*_ORIGINS, *_IMAGES, *_CTF, *_OF_A_RUN, "rlnCtfScalefactor", "rlnRandomSubset"},
    ".hdf": {*_ORIGINS, *_IMAGES, *_CTF, *_OF_A_RUN, "rlnCoordinateX", "rlnCoordinateY"},
    ".lst": {*_ORIGINS, *_IMAGES, *_OF_A_RUN},
}


def star_table(particles: ParticleSet) -> pd.DataFrame | None:
    """Return the particle table of a STAR file with the columns of its optics groups; None for other sources."""
    metadata = particles.metadata
    return joined_table(metadata) if metadata.source_format == "relion" and metadata.tables else None


def column_numbers(table: pd.DataFrame | None, label: str) -> np.ndarray | None:
    """Return a column as numbers.

    Parameters
    ----------
    table : pd.DataFrame or None
        Particle table, or None.
    label : str
        Its column.

    Returns
    -------
    ndarray of shape (n,) or None
        Numbers, float64; None where the column is missing or holds something else than finite numbers.
    """
    if table is None or label not in table.columns:
        return None
    values = pd.to_numeric(table[label], errors="coerce").to_numpy(dtype=np.float64)
    return values if np.isfinite(values).all() else None


def source_headers(particles: ParticleSet) -> list[dict[str, Any]]:
    """Return ptcl_source_image and ptcl_source_coord of each particle for EMAN2; {} where no STAR file tells of them.

    EMAN2's coordinates are those of the box's centre in pixels of the micrograph, as RELION's are.
    """
    table = star_table(particles)
    headers: list[dict[str, Any]] = [{} for _ in range(len(particles))]
    if table is not None and "rlnMicrographName" in table.columns:
        for header, name in zip(headers, table["rlnMicrographName"].tolist(), strict=True):
            header["ptcl_source_image"] = str(name)
    x, y = (column_numbers(table, f"rlnCoordinate{axis}") for axis in "XY")
    if x is not None and y is not None:
        for header, place in zip(headers, zip(x.tolist(), y.tolist(), strict=True), strict=True):
            header["ptcl_source_coord"] = list(place)
    return headers


def left_behind(particles: ParticleSet, out: Path) -> list[str]:
    """Return the columns of the particles' STAR file that a file of the kind of `out` does not hold.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    out : Path
        The file to be written.

    Returns
    -------
    list of str
        Labels; none for a STAR file.
    """
    held, table = _HELD.get(out.suffix.lower()), star_table(particles)
    if held is None or table is None:
        return ["the CTF"] if out.suffix.lower() == ".lst" and _ctf_beside_images(particles) else []
    if out.suffix.lower() == ".lst" and not _ctf_beside_images(particles):
        held = {*held, *_CTF}
    carried = _FROM_CS if out.suffix.lower() == ".cs" and "cs/uid" in table.columns else ()  # every field as it came
    fields = [c for c in table.columns if c.startswith("cs/")]
    lost = [c for c in table.columns if c not in held and c not in carried and not c.startswith(("ralib", "cs/"))]
    return lost + [f"{len(fields)} fields of cryoSPARC"] * (bool(fields) and not carried)


def _ctf_beside_images(particles: ParticleSet) -> bool:
    """Whether the CTF is in the particle file alone, not in headers of the image files."""
    files = (file_references(particles.images) or ([], None, None))[0]
    return particles.ctf is not None and not all(file.suffix.lower() in EMAN_SUFFIXES for file in files)


def group_name(number: int) -> str:
    """Return the name by which particles of one group stand in a STAR file that knows no micrographs.

    Parameters
    ----------
    number : int
        Number of the group, from 1.

    Returns
    -------
    str
        The name.
    """
    return f"group{number:06d}.mrc"


def are_group_names(names: Sequence[str]) -> bool:
    """Return whether micrographs' names are all those of `group_name`, and none is a file's.

    Parameters
    ----------
    names : sequence of str
        Names.

    Returns
    -------
    bool
        True also where there are none.
    """
    return all(re.fullmatch(r"group\d{6,}\.mrc", name) for name in names)
