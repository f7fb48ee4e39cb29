"""Hashes of a run's input, by which --continue recognises another input.

Paths do not count: a project may be moved between two runs. What counts is the number, order and content of the images,
and the numbers known of the particles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ralib.io.stacks import file_references
from ralib.types import ParticleSet, RalibError

SAMPLED = 64
"""Images, evenly spaced in the stack and the last among them, whose pixels are compared."""

_NAMES = {
    "pixel_size_A": "the pixel size",
    "images": "the images or their order",
    "order": "the order of the images",
    "ctf": "the CTF parameters",
    "poses": "the poses",
}


def input_fingerprint(particles: ParticleSet) -> dict[str, Any]:
    """Return numbers and hashes that identify a set of particles, as run.json keeps them.

    Parameters
    ----------
    particles : ParticleSet
        The set as the run uses it, with selection and pixel size applied.

    Returns
    -------
    dict[str, Any]
        `particles`, `box`, `pixel_size_A`, and SHA-256 hashes of SAMPLED images, of the number of each image in its
        file, of the CTF and of the poses (None where the input has none).
    """
    n = len(particles)
    chosen = np.unique(np.linspace(0, max(0, n - 1), min(n, SAMPLED)).round().astype(np.int64))
    ctf, poses = particles.ctf, particles.poses
    return {
        "particles": n,
        "box": particles.box,
        "pixel_size_A": particles.pixel_size_A,
        "images": _hash(particles.images.read(chosen)),
        "order": _hash(*(file_references(particles.images) or (None, np.arange(n)))[1:]),
        "ctf": None if ctf is None else _hash(*(np.asarray(getattr(ctf, f)) for f in ctf.__dataclass_fields__)),
        "poses": None if poses is None else _hash(*(getattr(poses, f).numpy() for f in ("psi_deg", "origin_xy_px"))),
    }


def check_same_input(record: Mapping[str, Any], now: Mapping[str, Any], *, stack: str, outdir: str) -> None:
    """Check that a run was begun with the same particles; records without hashes pass.

    Parameters
    ----------
    record : Mapping[str, Any]
        The run's record (run.json).
    now : Mapping[str, Any]
        Fingerprint of the present particles.
    stack : str
        Input of the command.
    outdir : str
        Folder of the run.

    Raises
    ------
    RalibError
        If they differ.
    """
    before = (record.get("input") or {}).get("fingerprint")
    if not isinstance(before, dict) or not {"particles", "box"} <= set(before):
        return
    if before["particles"] != now["particles"] or before["box"] != now["box"]:
        raise RalibError(
            f"`resume`: the run in {outdir} was of {before['particles']} particles of {before['box']} px, {stack} "
            f"holds {now['particles']} of {now['box']} px: give the file it was begun with"
        )
    differ = [words for key, words in _NAMES.items() if key in before and before[key] != now[key]]
    if differ:
        raise RalibError(
            f"`resume`: {stack} is not what the run in {outdir} was begun with ({', '.join(differ)} differ): "
            "give the same file, or begin a new run in another folder"
        )


def check_same_options(before: Mapping[str, Any], now: Mapping[str, Any], *, free: Collection[str]) -> None:
    """Check that a run was begun with the same options.

    Parameters
    ----------
    before : Mapping[str, Any]
        Options of the run.
    now : Mapping[str, Any]
        Present options; new ones may be added.
    free : Collection[str]
        Names of options that may differ.

    Raises
    ------
    RalibError
        If others differ.
    """
    changed = sorted(k for k in now if k in before and before[k] != now[k] and k not in free)
    if changed:
        differences = ", ".join(f"{k} was {before[k]!r}, is {now[k]!r}" for k in changed)
        raise RalibError(f"`resume` needs the options the run was begun with: {differences}")


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
