"""Files of ours in the hands of RELION, and RELION's in ours, proven by averaging images again.

`test_io_relion` holds relion_refine --skip_align, `test_io_cryosparc` cryosparc-tools, `test_io_eman` EMAN2's files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.cli import main
from ralib.conventions import invert
from ralib.io import open_images, open_particles, read_star, write_mrcs, write_particles_star
from ralib.kernels import rotate_shift_images, rotate_shift_sum
from ralib.types import Poses

BOX, N, CLASSES = 48, 180, 3


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"RELION is not installed: no {program} (Debian: apt install relion)")


def run_relion(command: str, folder: Path) -> None:
    """One RELION program in `folder`."""
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        command.split(), cwd=folder, capture_output=True, text=True, timeout=250, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-800:] + done.stderr[-800:]


def particles_in(folder: Path, *, mirrored: bool) -> tuple[torch.Tensor, Poses]:
    """Particles of three lopsided views with known poses, written as p.mrcs and p.star (3 A/px)."""
    g = torch.Generator().manual_seed(1)
    poses = Poses.identity(N).replace(
        psi_deg=torch.rand(N, generator=g) * 360 - 180,
        origin_xy_px=torch.rand(N, 2, generator=g) * 6 - 3,
        mirror=(torch.rand(N, generator=g) < 0.5) & mirrored,
        class_index=torch.arange(N) % CLASSES,
    )
    y, x = (t - BOX / 2 for t in torch.meshgrid(torch.arange(BOX), torch.arange(BOX), indexing="ij"))
    spots = torch.rand(CLASSES, 6, 3, generator=g) * torch.tensor([20.0, 20.0, 1.5]) - torch.tensor([10.0, 10.0, -0.5])
    views = [sum(a * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / 10) for u, v, a in s.tolist()) for s in spots]
    back = invert((poses.psi_deg, poses.origin_xy_px, poses.mirror))
    images = rotate_shift_images(torch.stack(views)[poses.class_index], *back)
    images += 0.5 * torch.randn(N, BOX, BOX, generator=g)
    background = images[:, torch.hypot(x, y) > BOX / 2 - 3]
    images = (images - background.mean(1)[:, None, None]) / background.std(1)[:, None, None]
    write_mrcs(folder / "p.mrcs", images.numpy(), 3.0)
    particles = open_particles(folder / "p.mrcs")
    write_particles_star(folder / "p.star", particles, poses, n_classes=CLASSES, project=folder)
    return images, poses


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation of each image of the one set with each of the other, inside the mask."""
    inside = np.hypot(*(np.mgrid[:BOX, :BOX] - BOX // 2)) < BOX / 2 - 5
    return np.corrcoef(np.concatenate([first, second])[:, inside])[: len(first), len(first) :]


@pytest.mark.filterwarnings("ignore")
def test_relion_applies_written_poses_as_the_package_does(tmp_path: Path) -> None:
    """relion_stack_create --apply_transformation: the mean of its images by class is ours; mirrored members, which
    RELION counts as classes of their own, give the mirrored average."""
    needs("relion_stack_create")
    images, poses = particles_in(tmp_path, mirrored=True)
    run_relion("relion_stack_create --i p.star --o transformed --apply_transformation", tmp_path)
    transformed = open_images(tmp_path / "transformed.mrcs")
    classes = read_star(tmp_path / "p.star")["particles"]["rlnClassNumber"].to_numpy(int) - 1
    theirs = np.stack([transformed[classes == k].mean(0) for k in range(2 * CLASSES)])
    straight = torch.zeros_like(poses.mirror)
    split = torch.from_numpy(classes)
    sums = rotate_shift_sum(images, poses.psi_deg, poses.origin_xy_px, straight, split, 2 * CLASSES)
    ours = (sums / torch.bincount(split)[:, None, None]).numpy()
    found = correlations(theirs, ours)
    assert found.diagonal().min() >= 0.98
    back = torch.from_numpy(theirs[CLASSES:])
    still = torch.zeros(CLASSES), torch.zeros(CLASSES, 2), torch.ones(CLASSES, dtype=torch.bool)
    turned_back = rotate_shift_images(back, *still).numpy()
    assert correlations(turned_back, theirs[:CLASSES]).diagonal().min() > 0.8, "class K + k is class k mirrored"
    wrong = rotate_shift_sum(images, -poses.psi_deg, poses.origin_xy_px, straight, split, 2 * CLASSES).numpy()
    assert correlations(theirs, wrong).diagonal().max() < 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_relion_classification_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELION classifies without our poses; `ralib average` of its particles is its own class average, `ralib report`
    makes its page."""
    needs("relion_refine")
    monkeypatch.chdir(tmp_path)
    particles_in(tmp_path, mirrored=False)
    (tmp_path / "job").mkdir()
    options = "--K 3 --iter 6 --particle_diameter 130 --psi_step 12 --offset_range 4 --offset_step 2 --tau2_fudge 2"
    run_relion(f"relion_refine --i p.star --o job/run {options} --pad 1 --norm --scale --random_seed 1 --j 1", tmp_path)
    data, theirs = tmp_path / "job" / "run_it006_data.star", open_images(tmp_path / "job" / "run_it006_classes.mrcs")
    assert main(["average", str(data), str(tmp_path / "averages.mrcs"), "--device", "cpu"]) == 0
    ours = open_images(tmp_path / "averages.mrcs")
    sizes = np.bincount(read_star(data)["particles"]["rlnClassNumber"].to_numpy(int) - 1, minlength=3)
    found = correlations(ours, theirs[: len(ours)])
    filled = np.flatnonzero(sizes[: len(ours)] >= 20)
    assert len(filled) >= 2
    # RELION's averages are weighted by the probability of every pose and filtered; ours are plain means.
    assert found.diagonal()[filled].min() > 0.85
    assert main(["report", str(data), "--out", str(tmp_path / "report.html"), "--device", "cpu"]) == 0
    assert (tmp_path / "report.html").stat().st_size > 50_000
