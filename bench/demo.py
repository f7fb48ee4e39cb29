"""`make demo`: simulate particles, align them from random averages, compare with the truth, say where the pictures are.

usage: demo.py FOLDER [particles]. The three commands it runs are printed; they work as well typed by hand.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from ralib.classes.evaluation import contingency, purity
from ralib.conventions import compose, invert, wrap_deg
from ralib.io import open_particles
from ralib.types import Poses

VIEWS, CLASSES, BOX = 8, 8, 90


def main(folder: Path, n_particles: int) -> None:
    """Simulate, align, score; `folder` is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    particles, run = folder / "particles", folder / "run"
    started = time.perf_counter()
    simulate = [
        "simulate",
        particles,
        "--particles",
        n_particles,
        "--box",
        BOX,
        "--snr",
        0.1,
        "--views",
        VIEWS,
        "--seed",
        1,
    ]
    ralib(*simulate)
    ralib("mref", particles / "particles.star", CLASSES, run, "--CTF", "--xr", 3, "--ou", 36, "--maxit", 10)
    found = open_particles(run / "particles.star", datadir=particles).poses
    assert found is not None
    print(describe(found, read_truth(particles / "truth.npz")))
    print(f"\nclass averages:  {run / 'classes.png'}  (and class_averages.mrcs)")
    print(f"report:          {run / 'report.html'}")
    print(f"for RELION:      {run / 'particles.star'}")
    print(f"{time.perf_counter() - started:.0f} s in all")


def ralib(*words: object) -> None:
    """Run one command of ralib and show it; stop where it fails."""
    command = [str(w) for w in words]
    print("\n$ ralib " + " ".join(command), flush=True)
    done = subprocess.run([sys.executable, "-m", "ralib", *command], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def read_truth(path: Path) -> Poses:
    """True poses and views of simulated particles."""
    truth = np.load(path)
    return Poses(
        psi_deg=torch.as_tensor(truth["psi_deg"]),
        origin_xy_px=torch.as_tensor(truth["origin_xy_px"]),
        mirror=torch.as_tensor(truth["mirror"]),
        class_index=torch.as_tensor(truth["class_index"]),
        score=torch.zeros(len(truth["psi_deg"])),
    )


def describe(found: Poses, truth: Poses) -> str:
    """How well the classes and poses found agree with the truth, for a person."""
    right_mirror, angle_deg, shift_px = pose_errors(found, truth)
    share, views = purity(found.class_index, truth.class_index), contingency(found.class_index, truth.class_index)
    empty = int((torch.bincount(found.class_index, minlength=CLASSES) == 0).sum())
    return "\n".join(
        [
            "\nagainst the truth",
            f"  particles whose view is their class's commonest: {100 * share:.1f}%"
            f"  (by chance {100 * float(views.sum(0).max() / views.sum()):.0f}%)",
            f"  views that some class shows: {len(set(views.argmax(1).tolist()))} of {VIEWS}; empty classes: {empty}",
            f"  of those particles, mirror right: {100 * right_mirror:.1f}%",
            f"  median pose error: {angle_deg:.2f} degrees, {shift_px:.2f} px",
        ]
    )


def pose_errors(found: Poses, truth: Poses) -> tuple[float, float, float]:
    """Fraction of mirrors right, median errors of angle (deg) and shift (px), over particles in their class's view.

    A class may show its view turned, shifted or mirrored as a whole: the pose that takes view to average is the same
    for all members, and what it differs by among them is error.
    """
    mirrors, angles, shifts = [], [], []
    for k in range(CLASSES):
        members = found.class_index == k
        if not members.any():
            continue
        members &= truth.class_index == truth.class_index[members].mode().values
        f, t = found[members], truth[members]
        to_average = compose(invert((t.psi_deg, t.origin_xy_px, t.mirror)), (f.psi_deg, f.origin_xy_px, f.mirror))
        psi, origin, mirror = to_average
        right = mirror == (mirror.float().mean() > 0.5)
        turn = torch.deg2rad(psi[right])
        mean = torch.rad2deg(torch.atan2(turn.sin().median(), turn.cos().median()))
        mirrors.append(right)
        angles.append(wrap_deg(psi[right] - mean).abs())
        shifts.append((origin[right] - origin[right].median(0).values).norm(dim=1))
    return (
        torch.cat(mirrors).float().mean().item(),
        torch.cat(angles).median().item(),
        torch.cat(shifts).median().item(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
