"""Sets that hold no particle: noise, empty ice, and noise that a template picked. No run of them is to be believed.

    PYTHONPATH=src python3 bench/noise.py [--shared ../shared] [--seeds 3] [--n 1500] [--classes 15] [--device cuda]

Each set is classified by `ralib classify` without options but the number of classes and the seed:

    white, coloured   Gaussian noise; the power of coloured noise rises towards coarse detail, as that of ice does
    picked            windows of white noise, and of coloured, around the best matches of a molecule's projections, of
                      three views in 24 rotations: averages of such windows show the molecule ("Einstein from noise")
    ice               empty ice of the simulator that stands with the shared data, with its gradients and CTF; one image
                      in a thousand is a particle, which that simulator cannot do without
    particles         as many images of the molecule itself by that simulator, for comparison: they are to be believed

`believed` is what run.json says, `kept` the share of images that `ralib select --auto` keeps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import rotate, zoom

from ralib import io
from ralib.benchmarks.record import record, write_record
from ralib.cli import main as ralib
from ralib.results.run_record import read_record

BOX, PIXEL_SIZE_A, FIELD = 64, 3.0, 1024
TEMPLATE, PICKS = "ace2_7ddo.npz", 60
"""Map of the molecule, and windows that are picked in a field of noise."""

SETS = ("white", "coloured", "white, picked", "coloured, picked", "ice", "particles")


def noise(shape: tuple[int, ...], coloured: bool, rng: np.random.Generator) -> np.ndarray:
    """Noise of the given shape, white or with more power in coarse detail."""
    white: np.ndarray = rng.normal(size=shape)
    if not coloured:
        return white
    y, x = np.fft.fftfreq(shape[-2])[:, None], np.fft.rfftfreq(shape[-1])
    gain = np.sqrt(1 + 1 / (1 + (np.hypot(y, x) / 0.05) ** 2) * 8)
    shaped: np.ndarray = np.fft.irfft2(np.fft.rfft2(white) * gain, s=shape[-2:])
    return shaped


def templates(shared: Path) -> list[np.ndarray]:
    """Projections (BOX, BOX) of the map along three axes, in 24 rotations, of mean 0 and norm 1."""
    with np.load(shared / "hard" / "volumes" / TEMPLATE) as saved:
        volume, voxel_A = saved["q"].astype(np.float32), float(saved["va"])
    found = []
    for axis in range(3):
        view = zoom(volume.sum(axis), voxel_A / PIXEL_SIZE_A, order=1)
        margin = BOX - len(view)
        view = np.pad(view, (margin // 2, margin - margin // 2))
        found += [rotate(view, angle, reshape=False, order=1) for angle in range(0, 360, 15)]
    centred = [view - view.mean() for view in found]
    return [view / np.linalg.norm(view) for view in centred]


def picked(n: int, coloured: bool, views: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Windows (n, BOX, BOX) of noise where a template correlates best with it, none within half a box of another."""
    spectra = [np.conj(np.fft.rfft2(view, s=(FIELD, FIELD))) for view in views]
    windows: list[np.ndarray] = []
    while len(windows) < n:
        field = noise((FIELD, FIELD), coloured, rng)
        image = np.fft.rfft2(field)
        best = np.max([np.fft.irfft2(image * s, s=field.shape) for s in spectra], axis=0)[: 1 - BOX, : 1 - BOX]
        for _ in range(PICKS):
            y, x = np.unravel_index(np.argmax(best), best.shape)
            windows.append(field[y : y + BOX, x : x + BOX])
            best[max(0, y - BOX // 2) : y + BOX // 2, max(0, x - BOX // 2) : x + BOX // 2] = -np.inf
    return np.stack(windows[:n])


def write_set(name: str, seed: int, folder: Path, options: argparse.Namespace) -> Path:
    """Make a set; returns its file."""
    if name in ("ice", "particles"):
        words = ["--vols", str(options.shared / "hard" / "volumes" / TEMPLATE), "--box", BOX, "--apix", PIXEL_SIZE_A]
        words += ["--n", options.n, "--bin", 2, "--gradient", 0.03, "--crowd", 0, "--seed", 500 + seed, "--dose", 50]
        words += ["--junk", 0.999, "--junk-weights", "1,0,0,0,0,0,0,0"] if name == "ice" else ["--junk", 0]
        script = str(options.shared / "hard" / "make_hard.py")
        subprocess.run([sys.executable, script, str(folder), *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        return folder / "particles.star"
    rng, coloured = np.random.default_rng([seed, len(name)]), name.startswith("coloured")
    if name.endswith("picked"):
        images = picked(options.n, coloured, templates(options.shared), rng)
    else:
        images = noise((options.n, BOX, BOX), coloured, rng)
    folder.mkdir()
    io.write_mrcs(folder / "particles.mrcs", images.astype(np.float32), PIXEL_SIZE_A)
    return folder / "particles.mrcs"


def run(name: str, seed: int, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One set, classified and judged."""
    source, target = write_set(name, seed, scratch / f"{name}-{seed}", options), scratch / f"{name}-{seed}-run"
    words = ["classify", str(source), str(target), "--classes", str(options.classes), "--seed", str(seed + 1)]
    if ralib([*words, "--device", options.device, "--no-report"]):
        raise SystemExit(f"{name}, seed {seed}: the command failed")
    figures = read_record(target)
    return {
        "set": name, "seed": seed, "believed": bool(figures["stability"]["believable"]),
        "kept": sum(row["kept"] for row in figures["classes"]) / options.n,
        "best_score": max(row["score"] for row in figures["classes"]),
    }  # fmt: skip


def main() -> int:
    """Run every set with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, default=1500)
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="folder")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.sets:
            for seed in range(options.seeds):
                rows.append(run(name, seed, Path(scratch), options))
                print(json.dumps(rows[-1]), flush=True)
    table = []
    for name in options.sets:
        some, better = [row for row in rows if row["set"] == name], "higher" if name == "particles" else "lower"
        goal = 1.0 if name == "particles" else 0.0
        for figure, what in (("believed", "runs that were believed"), ("kept", "images that --auto keeps, mean")):
            value = round(float(np.mean([row[figure] for row in some])), 3)
            case = f"{name}, {options.n:,} images, K={options.classes}: {what}, {len(some)} seeds"
            table.append({"case": case, "ours": value, "unit": "", "better": better})
            if figure == "believed":
                table[-1] |= {"goal": goal, "readme": True}
    device = torch.device(options.device)
    title = "Sets that hold no particle"
    result = record("noise", device, table, title=title, runs=rows)
    print(f"wrote {write_record(options.out or Path(__file__).parent / 'results', result)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
