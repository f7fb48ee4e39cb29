"""Sets for the verdict: proteins of several shapes, alone and two together, made by the simulator of the shared data.

    PYTHONPATH=src python3 bench/verdict_sets.py list --count 120 > RECIPES
    PYTHONPATH=src python3 bench/verdict_sets.py make RECIPES --out SETS [--shared ../shared] [--only NAME ...]
    PYTHONPATH=src python3 bench/verdict_sets.py clean --out SETS

Maps of atomic models are read from the shared data; the other proteins are Gaussian beads, one a residue, packed into
lobes and copied by a point group. Each recipe draws particles, junk, dose, damage, crowding, gradients, defocus, box
and views at random, so that the model that is fitted to the sets (train_verdict.py) holds for conditions between them.
A set of two proteins is called by both names, with `+`.

The model is fitted on sets of `ralib simulate` too, whose junk differs; `clean` makes them, of two molecules. Of the
second the last two were not in the fit. They are measured with 14 classes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clean_sets import molecule_volumes, simulate_set

SCATTERING = 63.0
"""Integral of a protein's potential, A^-2 per A times A^3, per kDa: that of the shared maps."""

RESIDUE_KDA, RESIDUE_VOLUME_A3 = 0.11, 133.0
"""Mass and volume of a residue."""

BEAD_SD_A, VOXEL_A = 2.0, 2.0
"""Width of a bead, and voxel of the maps."""

BELT = 700
"""Beads of a belt of detergent: a third of protein's density, both above water."""

MAPS = {
    "ace2": (("ace2_7ddo.npz",), 113), "pol2": (("pol2_open0.npz", "pol2_open16.npz"), 152),
    "t20s": (("t20s_3j9i.npz",), 171), "r30": (("ribo30S.npz",), 200),
}  # fmt: skip
"""Files and diameters (A) of the maps of atomic models; two are states of one protein."""

DIAMETERS_A = {
    "globule": 75, "kinase": 90, "antibody": 150, "dumbbell": 140, "rod": 190, "ring": 140, "shell": 125,
    "tetramer": 120, "spike": 160, "channel": 120, "complex": 200, "clamp": 115,
}  # fmt: skip
"""Rough diameters of the proteins that are made here."""

PAIRS = (
    ("ace2", "t20s"), ("globule", "shell"), ("kinase", "shell"), ("ace2", "r30"), ("kinase", "pol2"),
    ("clamp", "ring"), ("tetramer", "complex"), ("globule", "tetramer"), ("ace2", "shell"), ("antibody", "spike"),
    ("clamp", "t20s"), ("channel", "complex"), ("globule", "ring"), ("dumbbell", "tetramer"), ("kinase", "rod"),
    ("clamp", "spike"), ("channel", "shell"), ("antibody", "t20s"), ("pol2", "r30"), ("dumbbell", "r30"),
)  # fmt: skip
"""A small and a large protein in one set."""

SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85)
"""Shares of the small one."""


def _lobe(rng: np.random.Generator, centre: Any, radii: Any, kda: float | None = None) -> np.ndarray:
    """Beads (b, 3), A, that fill an ellipsoid with an uneven surface, with gaps where neither helix nor sheet is."""
    centre, radii = np.asarray(centre, float), np.asarray(radii, float)
    volume = 4.19 * radii.prod()
    count = int(kda / RESIDUE_KDA) if kda else int(volume / RESIDUE_VOLUME_A3)
    steps = max(4, count // 4)
    start = rng.normal(size=(steps, 3))
    start *= rng.random((steps, 1)) ** (1 / 3) / np.linalg.norm(start, axis=1, keepdims=True)
    along = rng.normal(size=(steps, 3))
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    beads = start[:, None] * radii + along[:, None] * (1.5 * (np.arange(16) - 7.5))[None, :, None]
    beads = beads.reshape(-1, 3)
    waves, phase = rng.normal(size=(4, 3)) * 2.2, rng.uniform(0, 6.28, 4)
    limit = 1 + 0.14 * np.cos(beads / radii @ waves.T + phase).sum(1) / 2
    beads = beads[np.linalg.norm(beads / radii, axis=1) < limit]
    chosen = rng.permutation(len(beads))[:count]
    return beads[chosen] @ _turn(rng).T + centre if (radii == radii[0]).all() else beads[chosen] + centre


def _turn(rng: np.random.Generator) -> np.ndarray:
    """A rotation (3, 3) at random."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def _about_z(beads: np.ndarray, order: int, twofold: bool = False) -> np.ndarray:
    """Copies by C<n>, or D<n>."""
    parts = []
    for i in range(order):
        c, s = np.cos(2 * np.pi * i / order), np.sin(2 * np.pi * i / order)
        turned = beads @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        parts += [turned, turned * [1, -1, -1]] if twofold else [turned]
    return np.concatenate(parts)


def _octahedral(beads: np.ndarray) -> np.ndarray:
    """Copies by the 24 rotations of O."""
    parts = []
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for signs in np.ndindex(2, 2, 2):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = 1 - 2 * np.array(signs)
            if np.linalg.det(matrix) > 0:
                parts.append(beads @ matrix.T)
    return np.concatenate(parts)


def _globule(rng: np.random.Generator) -> list[np.ndarray]:
    """About 75 kDa, two domains with a cleft."""
    return [_lobe(rng, (0, 0, 0), (27, 22, 25)), _lobe(rng, (rng.uniform(24, 30), 14, 8), (17, 15, 19))]


def _kinase(rng: np.random.Generator) -> list[np.ndarray]:
    """About 85 kDa, three domains in a bow."""
    return [
        _lobe(rng, (0, 0, 0), (24, 19, 21)), _lobe(rng, (32, 12, -6), (20, 19, 16)),
        _lobe(rng, (-26, 20, 10), (20, 15, 18)), _lobe(rng, (6, -24, 12), (12, 12, 14)),
    ]  # fmt: skip


def _antibody(rng: np.random.Generator) -> list[np.ndarray]:
    """150 kDa: two arms and a foot on hinges, another angle in each of three states."""
    arms = [_lobe(rng, (0, 0, 0), (33, 18, 21), kda=50) for _ in range(2)]
    foot, states = _lobe(rng, (0, -42, 0), (20, 31, 17), kda=50), []
    for _ in range(3):
        parts = [foot]
        for side, arm in zip((-1, 1), arms, strict=True):
            lift, out = rng.uniform(0.1, 0.8), rng.uniform(-0.5, 0.5)
            axis = np.array([side * np.cos(lift), np.sin(lift), np.sin(out)])
            axis /= np.linalg.norm(axis)
            across = np.cross(axis, [0, 0, 1.0])
            across /= np.linalg.norm(across)
            parts.append(arm @ np.stack([axis, across, np.cross(axis, across)]) + 45 * axis)
        states.append(np.concatenate(parts))
    return states


def _dumbbell(rng: np.random.Generator) -> list[np.ndarray]:
    """Two domains of 45 kDa on a thin helix."""
    rod = np.stack([np.linspace(-30, 30, 40), 3 * rng.normal(size=40), 3 * rng.normal(size=40)], 1)
    return [_lobe(rng, (-42, 0, 0), (25, 22, 24)), _lobe(rng, (44, 4, 0), (23, 23, 20)), rod]


def _rod(rng: np.random.Generator) -> list[np.ndarray]:
    """A solenoid of repeats, 160 kDa."""
    turn = np.linspace(-1.2, 1.2, 9)
    return [_lobe(rng, (75 * t, 26 * np.cos(1.4 * t + 1), 26 * np.sin(1.4 * t + 1)), (16, 17, 18)) for t in turn]


def _ring(rng: np.random.Generator) -> list[np.ndarray]:
    """A ring of six, 230 kDa."""
    own = [_lobe(rng, (45, 0, 4), (20, 19, 23)), _lobe(rng, (36, 12, -22), (13, 12, 11))]
    return [_about_z(np.concatenate(own), 6)]


def _shell(rng: np.random.Generator) -> list[np.ndarray]:
    """A hollow ball with octahedral symmetry, 440 kDa."""
    helices = []
    for _ in range(5):
        at = rng.normal(size=3)
        at *= 51 / np.linalg.norm(at)
        along = np.cross(at, rng.normal(size=3))
        along /= np.linalg.norm(along)
        helices.append(at + along * np.linspace(-24, 24, 33)[:, None] + 2.5 * rng.normal(size=(33, 3)))
    beads = np.concatenate(helices)
    return [_octahedral(beads * (51 + 4 * rng.normal(size=(len(beads), 1))) / np.linalg.norm(beads, axis=1)[:, None])]


def _tetramer(rng: np.random.Generator) -> list[np.ndarray]:
    """D2, 150 kDa."""
    own = [_lobe(rng, (28, 20, 16), (23, 20, 19)), _lobe(rng, (44, 30, 22), (12, 13, 12))]
    return [_about_z(np.concatenate(own), 2, twofold=True)]


def _spike(rng: np.random.Generator) -> list[np.ndarray]:
    """C3, a head on a stalk, 240 kDa."""
    own = [_lobe(rng, (24, 8, 36), (21, 19, 28)), _lobe(rng, (36, -12, 66), (15, 15, 14)),
           _lobe(rng, (13, 5, -20), (12, 11, 32)), _lobe(rng, (34, 10, 12), (13, 14, 18))]  # fmt: skip
    return [_about_z(np.concatenate(own), 3)]


def _channel(rng: np.random.Generator) -> list[np.ndarray]:
    """C4, 90 kDa in a micelle; the second part is detergent."""
    own = [_lobe(rng, (14, 6, 0), (10, 11, 24)), _lobe(rng, (20, 10, 34), (14, 14, 12))]
    angle, height = rng.uniform(0, 6.28, BELT), rng.uniform(-1, 1, BELT)
    radius = 28 + 22 * np.sqrt(1 - height**2) * rng.random(BELT) ** 0.5
    belt = np.stack([radius * np.cos(angle), radius * np.sin(angle), 17 * height], 1)
    return [_about_z(np.concatenate(own), 4), belt]


def _complex(rng: np.random.Generator) -> list[np.ndarray]:
    """About 900 kDa, irregular."""
    parts, at = [], np.zeros(3)
    for _ in range(13):
        parts.append(_lobe(rng, at, rng.uniform(20, 34, 3)))
        step = rng.normal(size=3)
        at = 0.7 * (at + 60 * step / np.linalg.norm(step))
    return parts


def _clamp(rng: np.random.Generator) -> list[np.ndarray]:
    """C2, 100 kDa with a hole."""
    own = [_lobe(rng, (32, 0, 8), (16, 27, 20)), _lobe(rng, (16, 30, -4), (20, 14, 17))]
    return [_about_z(np.concatenate(own), 2)]


SHAPES: dict[str, Callable[[np.random.Generator], list[np.ndarray]]] = {
    "globule": _globule, "kinase": _kinase, "antibody": _antibody, "dumbbell": _dumbbell, "rod": _rod, "ring": _ring,
    "shell": _shell, "tetramer": _tetramer, "spike": _spike, "channel": _channel, "complex": _complex, "clamp": _clamp,
}  # fmt: skip


def density(beads: np.ndarray) -> np.ndarray:
    """Potential (m, m, m) of beads, a residue each, centred on their centre of mass."""
    beads = beads - beads.mean(0)
    size = int(np.ceil((2 * np.abs(beads).max() + 8 * BEAD_SD_A) / VOXEL_A / 2)) * 2
    grid = (np.arange(size) - size // 2) * VOXEL_A
    x, y, z = (np.exp(-0.5 * ((grid - beads[:, [axis]]) / BEAD_SD_A) ** 2).astype(np.float32) for axis in range(3))
    volume = np.zeros((size, size * size), np.float32)
    for some in np.array_split(np.arange(len(beads)), max(1, len(beads) // 500)):
        volume += z[some].T @ (y[some, :, None] * x[some, None, :]).reshape(len(some), -1)
    total: np.ndarray = volume.reshape(size, size, size)
    return total * (len(beads) * RESIDUE_KDA * SCATTERING / (total.sum() * VOXEL_A**3))


def write_maps(name: str, seed: int, folder: Path, shared: Path) -> list[Path]:
    """The maps of a protein: those of the shared data, or made here, one for each state."""
    if name in MAPS:
        return [shared / "hard" / "volumes" / file for file in MAPS[name][0]]
    parts = SHAPES[name](np.random.default_rng([seed, sorted(SHAPES).index(name)]))
    states = parts if name == "antibody" else [np.concatenate(parts)]
    paths = []
    for i, beads in enumerate(states):
        values, path = density(beads), folder / f"{name}_{i}.npz"
        most = float(np.abs(values).max())
        quantised = np.round(values / most * 32000).astype(np.int16)
        np.savez(path, q=quantised, s=most / 32000 * 2000, va=VOXEL_A)
        paths.append(path)
    return paths


def recipes(count: int, seed: int) -> list[dict[str, Any]]:
    """Recipes at random: six in ten of one protein, the others of two."""
    rng, names = np.random.default_rng(seed), [*MAPS, *SHAPES]
    found = []
    for i in range(count):
        two = i % 5 in (1, 3)
        which = PAIRS[(i // 5 * 2 + (i % 5 == 3)) % len(PAIRS)] if two else (names[(i - (2 * i) // 5) % len(names)],)
        diameter = max(MAPS[name][1] if name in MAPS else DIAMETERS_A[name] for name in which)
        box, width = int(rng.choice([64, 80, 96], p=[0.5, 0.3, 0.2])), diameter * rng.uniform(1.5, 2.1)
        apix = round(float(np.clip(width / box, 2.0, 4.5)), 2)
        dose = float(rng.uniform(22, 60))
        found.append(
            {
                "name": f"v{seed}_{i:03d}_{'+'.join(which)}", "molecule": "+".join(which), "seed": 1000 * seed + i,
                "share": float(rng.choice(SHARES)) if two else 1.0,
                "n": (n := int(rng.choice([400, 700, 1200, 2000, 3000], p=[0.2, 0.2, 0.3, 0.22, 0.08]))),
                "classes": int(np.clip(n / rng.uniform(40, 130), 6, 30)),
                "junk": float(rng.choice([0.0, 0.1, 0.2, 0.3, 0.5], p=[0.1, 0.25, 0.25, 0.25, 0.15])),
                "box": box, "apix": apix, "dose": round(dose, 1), "eff": round(float(rng.uniform(0.45, 0.85)), 3),
                "crowd": round(float(rng.uniform(0.05, 0.6)), 3),
                "gradient": round(float(rng.uniform(0.005, 0.035)), 4),
                "shift_sd": round(float(rng.uniform(1, 3.5)), 2), "preferred": float(rng.choice([0.0, 0.0, 0.5, 0.8])),
                "defocus": str(rng.choice(["0.6,2.0", "0.8,2.4", "1.2,2.8"])),
                "ice": str(rng.choice(["200,400", "250,700", "400,900"])),
                "detector": str(rng.choice(["k2", "k2", "falcon"])),
                "contrast_sd": round(float(rng.uniform(0.05, 0.2)), 3),
            }
        )  # fmt: skip
    return found


def make(recipe: dict[str, Any], out: Path, shared: Path) -> Path:
    """Make the set of a recipe; returns its folder with particles.star and truth.npz."""
    folder, names = out / recipe["name"], recipe["molecule"].split("+")
    folder.mkdir(parents=True)
    maps = [write_maps(name, recipe["seed"], folder, shared) for name in names]
    shares = (recipe["share"], 1 - recipe["share"]) if len(names) > 1 else (1.0,)
    weights = [share / len(states) for states, share in zip(maps, shares, strict=True) for _ in states]
    words = [sys.executable, str(shared / "hard" / "make_hard.py"), str(folder)]
    words += ["--vols", ",".join(str(path) for states in maps for path in states)]
    words += ["--weights", ",".join(f"{weight:.5f}" for weight in weights), "--bin", "2"]
    for key, value in recipe.items():
        if key not in ("name", "molecule", "share", "classes"):
            words += [f"--{key.replace('_', '-')}", str(value)]
    words += ["--flex"] if len(names) == 1 and len(maps[0]) > 1 else []
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return folder


def make_clean(out: Path) -> Iterator[tuple[str, Path]]:
    """Make clean sets of two molecules with junk: their names and folders."""
    out.mkdir(parents=True, exist_ok=True)
    for part, (name, volume) in enumerate(zip(("phantom", "second"), molecule_volumes(out, 90).values(), strict=True)):
        rng = np.random.default_rng(part)
        for i, (snr, junk) in enumerate(itertools.product((0.05, 0.1, 0.03), (0.15, 0.3, 0.08)), 1):
            changes = {"--snr": snr, "--junk": junk, "--volume": volume}
            particles = int(rng.choice([1000, 1500]))
            yield name, simulate_set(out / f"{name}{i}", particles, 100 * part + i, changes)


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("list")
    command.add_argument("--count", type=int, default=120)
    command.add_argument("--seed", type=int, default=1)
    command = commands.add_parser("make")
    command.add_argument("recipes", type=Path, help="lines of `list`")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    command.add_argument("--only", nargs="+", help="names of recipes")
    command = commands.add_parser("clean")
    command.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.command == "clean":
        for name, folder in make_clean(options.out):
            print(f"{name}={folder}", flush=True)
        return 0
    if options.command == "list":
        print(*(json.dumps(recipe) for recipe in recipes(options.count, options.seed)), sep="\n")
        return 0
    for recipe in map(json.loads, options.recipes.read_text().splitlines()):
        if not options.only or recipe["name"] in options.only:
            print(f"{recipe['molecule']}={make(recipe, options.out, options.shared)}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
