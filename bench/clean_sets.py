"""Clean simulated sets, as several scripts of this folder make them: with `ralib simulate`, or in main memory.

Particles at continuous views, off the centre, of varying contrast in coloured noise, with CTF.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch

from classify_scores import second_molecule
from ralib.cli import main as ralib
from ralib.simulation.phantom import phantom_volume
from ralib.simulation.simulator import PHANTOM_BOX_A, SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet

SETTINGS: dict[str, Any] = {
    "--box": 90, "--views": 0, "--snr": 0.05, "--shift-sd": 2.0, "--contrast-sd": 0.15, "--coloured-noise": 0.15,
    "--device": "cpu",
}  # fmt: skip


def simulate_set(folder: Path, particles: int, seed: int, changes: dict[str, Any] | None = None) -> Path:
    """Make a set, particles.star and truth.npz; an option of `ralib simulate` without a value is None in `changes`."""
    given = {"--particles": particles, "--seed": seed} | SETTINGS | (changes or {})
    words = [str(word) for pair in given.items() for word in pair if word is not None]
    if ralib(["simulate", str(folder), *words]) != 0:
        raise SystemExit(f"simulate failed: {words}")
    return folder


def set_in_memory(
    n: int, box: int, seed: int, device: torch.device | str = "cpu"
) -> tuple[ParticleSet, dict[str, np.ndarray]]:
    """Particles of continuous views with CTF at an SNR of 0.1, made on a device, and their truth for `scores`."""
    simulator = Simulator(SimulationOptions(n_particles=n, box=box, snr=0.1, seed=seed, n_views=0), device=device)
    images = np.empty((n, box, box), np.float32)
    done = 0
    for block in simulator.blocks():
        images[done : done + len(block)] = block.cpu().numpy()
        done += len(block)
    truth = simulator.truth
    return ParticleSet(ArraySource(images), simulator.pixel_size_A, truth.ctf, group=truth.micrograph), truth.arrays()


def molecule_volumes(folder: Path, box: int) -> dict[str, Path]:
    """Maps of the built-in phantom and of a second molecule, by the option that takes them; written once."""
    made = {
        "--volume": (folder / f"first-{box}.mrc", phantom_volume),
        "--volume2": (folder / f"second-{box}.mrc", second_molecule),
    }
    for path, volume in made.values():
        if not path.exists():
            with mrcfile.new(path) as file:
                file.set_data(np.asarray(volume(box), np.float32))
                file.voxel_size = PHANTOM_BOX_A / box
    return {option: path for option, (path, _) in made.items()}
