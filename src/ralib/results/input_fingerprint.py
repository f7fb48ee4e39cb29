"""What a run was begun with, in a few hashes, so that --continue notices another input.

Paths do not count: a project may be moved between two runs. What counts is the number, order and content of the images,
and the numbers known of the particles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from ralib.types import ParticleSet, RalibError

SAMPLED = 64
"""Images, evenly spaced in the stack and the last among them, whose pixels are compared."""

_NAMES = {
    "pixel_size_A": "the pixel size",
    "images": "the images or their order",
    "ctf": "the CTF parameters",
    "poses": "the poses",
}


def input_fingerprint(particles: ParticleSet) -> dict[str, Any]:
    """Numbers and hashes that tell one set of particles from another, as run.json keeps them.

    Parameters
    ----------
    particles
        The set as the run uses it, selection and pixel size applied.

    Returns
    -------
    dict
        `particles`, `box`, `pixel_size_A`, and SHA-256 hashes of SAMPLED images, of the CTF and of the poses (None
        where the input has none).
    """
    n = len(particles)
    chosen = np.unique(np.linspace(0, max(0, n - 1), min(n, SAMPLED)).round().astype(np.int64))
    ctf, poses = particles.ctf, particles.poses
    return {
        "particles": n,
        "box": particles.box,
        "pixel_size_A": particles.pixel_size_A,
        "images": _hash(particles.images.read(chosen)),
        "ctf": None if ctf is None else _hash(*(np.asarray(getattr(ctf, f)) for f in ctf.__dataclass_fields__)),
        "poses": None if poses is None else _hash(*(getattr(poses, f).numpy() for f in ("psi_deg", "origin_xy_px"))),
    }


def check_same_input(record: Mapping[str, Any], now: Mapping[str, Any], *, stack: str, outdir: str) -> None:
    """RalibError where a run's record (run.json) was begun with other particles than those whose fingerprint is `now`;
    records without hashes pass."""
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
    """RalibError where options differ from those a run was begun with; those in `free` may, and new ones are."""
    changed = sorted(k for k in now if k in before and before[k] != now[k] and k not in free)
    if changed:
        told = ", ".join(f"{k} was {before[k]!r}, is {now[k]!r}" for k in changed)
        raise RalibError(f"`resume` needs the options the run was begun with: {told}")


def _hash(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(str((array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
