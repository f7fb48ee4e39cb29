"""STAR files of synthetic particles, written line by line so that a test can put one odd thing into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ralib.io import write_mrcs

OPTICS = {
    "rlnOpticsGroupName": "one", "rlnOpticsGroup": 1, "rlnVoltage": 300, "rlnSphericalAberration": 2.7,
    "rlnAmplitudeContrast": 0.1, "rlnImagePixelSize": 4.0, "rlnImageSize": 32, "rlnImageDimensionality": 2,
}  # fmt: skip


def stack(path: Path, n: int = 40, box: int = 32, *, seed: int = 0, pixel_size_A: float | None = 4.0) -> np.ndarray:
    """A stack of noise with one of two shapes in each image, off the centre; returns the images."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:box, :box] - box // 2
    bar = np.exp(-((x / 6) ** 2) - (y / 2) ** 2) + 0.5 * np.exp(-((x - 4) ** 2 + (y - 4) ** 2) / 4)
    ring = np.exp(-((np.hypot(x, y) - 6) ** 2) / 3)
    shapes = np.stack([bar, ring])[np.arange(n) % 2]
    images = (3 * shapes + rng.normal(size=(n, box, box))).astype(np.float32)
    write_mrcs(path, images, pixel_size_A)
    return images


def rows(n: int = 40, file: str = "p.mrcs", **columns: object) -> list[dict[str, object]]:
    """n rows of a particle table; a column given as a list has its own value in each row."""
    made: list[dict[str, object]] = []
    for i in range(n):
        row: dict[str, object] = {
            "rlnImageName": f"{i + 1:06d}@{file}", "rlnMicrographName": f"m{i // 20}.mrc",
            "rlnDefocusU": 12000 + 50 * i, "rlnDefocusV": 11800 + 50 * i, "rlnDefocusAngle": 30, "rlnOpticsGroup": 1,
        }  # fmt: skip
        made.append(row | {k: v[i] if isinstance(v, list) else v for k, v in columns.items()})
    return made


def write(path: Path, particles: Sequence[Mapping[str, object]], *optics: Mapping[str, object]) -> Path:
    """A STAR file of RELION 3.1 with these particles, and these optics groups (the usual one if none)."""

    def block(name: str, table: Sequence[Mapping[str, object]]) -> str:
        names = "".join(f"_{label} #{i}\n" for i, label in enumerate(table[0], 1))
        return f"data_{name}\n\nloop_\n{names}" + "".join(" ".join(map(str, r.values())) + "\n" for r in table) + "\n"

    path.write_text(block("optics", optics or [OPTICS]) + block("particles", particles))
    return path
