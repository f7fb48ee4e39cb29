"""Every sign, proven by re-averaging images through the other program's own formula, mirrors included.

The formulas of RELION, cryoSPARC and EMAN2 are written out here a second time, on pixels, and never call `ralib`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from ralib import conventions as c
from ralib.io import open_images, open_particles, write_mrcs, write_params, write_particles_star, write_star
from ralib.io.relion_model import mirrored
from ralib.kernels import rotate_shift_images
from ralib.types import ArraySource, ParticleSet, Poses

BOX = 64
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def reference(seed: int = 0) -> np.ndarray:
    """A smooth image without any symmetry."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    spots = [(rng.uniform(-14, 14), rng.uniform(-14, 14), rng.uniform(0.5, 2)) for _ in range(7)]
    return sum(a * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 12) for u, v, a in spots).astype(np.float64)


def random_poses(n: int = 24, *, mirror: bool = True, seed: int = 1) -> Poses:
    g = torch.Generator().manual_seed(seed)
    return Poses.identity(n).replace(
        psi_deg=torch.rand(n, generator=g) * 360 - 180,
        origin_xy_px=torch.rand(n, 2, generator=g) * 10 - 5,
        mirror=torch.rand(n, generator=g) < (0.5 if mirror else 0.0),
        class_index=torch.arange(n) % 3,
    )


def triple(poses: Poses) -> Triple:
    return poses.psi_deg.double(), poses.origin_xy_px.double(), poses.mirror


def sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of `image` at points (x, y) relative to pixel (n // 2, n // 2)."""
    return ndimage.map_coordinates(image, [y + BOX // 2, x + BOX // 2], order=3, mode="constant")


def grid() -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:BOX, :BOX] - float(BOX // 2)
    return x, y


def relion_average(images: np.ndarray, psi_deg: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """RELION: move the image by its origin, then turn it by psi: p_ref = R(psi)(p + origin)."""
    x, y = grid()
    total = np.zeros((BOX, BOX))
    for image, psi, (ox, oy) in zip(images, np.radians(psi_deg), origin, strict=True):
        total += sample(image, np.cos(psi) * x + np.sin(psi) * y - ox, -np.sin(psi) * x + np.cos(psi) * y - oy)
    return total / len(images)


def eman2_average(images: np.ndarray, alpha: np.ndarray, shift: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """EMAN2's rot_shift2D: turn by alpha, then move by t, then mirror: p_ref = M(R_e p + t)."""
    x, y = grid()
    total = np.zeros((BOX, BOX))
    for image, a, (tx, ty), m in zip(images, np.radians(alpha), shift, mirror, strict=True):
        u, v = (-x if m else x) - tx, y - ty
        total += sample(image, np.cos(a) * u - np.sin(a) * v, np.sin(a) * u + np.cos(a) * v)
    return total / len(images)


def cryosparc_particle(average: np.ndarray, pose_rad: float, shift: np.ndarray) -> np.ndarray:
    """How programs draw cryoSPARC's class averages onto its particles: scipy's rotate by +pose, then move by -shift.

    scipy turns about (n - 1) / 2 and not n // 2, so the box is made odd for it.
    """
    odd = np.pad(average, ((0, 1), (0, 1)))
    turned = ndimage.rotate(odd, np.degrees(pose_rad), reshape=False, order=3)
    return ndimage.shift(turned, (-shift[1], -shift[0]), order=3)[:-1, :-1]


def particles_of(average: np.ndarray, poses: Poses) -> np.ndarray:
    """Particles that our formula brings onto `average`: particle(p) = average(M R(psi)(p + origin))."""
    x, y = grid()
    out = []
    for psi, (ox, oy), m in zip(*(t.numpy() for t in triple(poses)), strict=True):
        a = np.radians(psi)
        u, v = np.cos(a) * (x + ox) - np.sin(a) * (y + oy), np.sin(a) * (x + ox) + np.cos(a) * (y + oy)
        out.append(sample(average, -u if m else u, v))
    return np.stack(out)


def our_average(images: np.ndarray, poses: Triple) -> np.ndarray:
    psi, origin, mirror = poses
    turned = rotate_shift_images(torch.tensor(images).float(), psi.float(), origin.float(), mirror)
    return turned.mean(0).numpy()


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def test_one_bright_pixel_goes_where_the_formula_says() -> None:
    poses = random_poses(40)
    psi, origin, mirror = triple(poses)
    p = torch.tensor([7.0, -4.0], dtype=torch.float64)
    landed = c.apply_pose(psi, origin, mirror, p.expand(40, 2))
    images = np.zeros((40, BOX, BOX), dtype=np.float32)
    images[:, BOX // 2 - 4, BOX // 2 + 7] = 1
    turned = rotate_shift_images(torch.tensor(images), psi.float(), origin.float(), mirror, method="linear").numpy()
    x, y = grid()
    centre = np.stack([(turned * g).sum((1, 2)) / turned.sum((1, 2)) for g in (x, y)], axis=1)
    assert np.abs(centre - landed.numpy()).max() < 0.6  # a pixel is this wide
    assert np.abs(centre + landed.numpy()).max() > 3  # and the opposite sign would show


def test_ours_to_eman2_and_back() -> None:
    average, poses = reference(), random_poses()
    images = particles_of(average, poses)
    alpha, shift, mirror = c.pose_to_eman2(*triple(poses))
    theirs = eman2_average(images, alpha.numpy(), shift.numpy(), mirror.numpy())
    assert correlation(theirs, average) > 0.995
    assert correlation(eman2_average(images, -alpha.numpy(), shift.numpy(), mirror.numpy()), average) < 0.9
    back = c.eman2_to_pose(alpha, shift, mirror)
    assert correlation(our_average(images, back), average) > 0.99
    for a, b in zip(back, triple(poses), strict=True):
        assert torch.allclose(a.double(), b.double(), atol=1e-9)


def test_eman2_to_pose_agrees_with_rot_shift2d(golden: Path) -> None:
    """EMAN2's own rot_shift2D, from the golden data: its images are ours to resampling accuracy."""
    operations = np.load(golden / "operations.npz")
    images = torch.tensor(operations["images"])
    alpha, sx, sy, mirror = torch.tensor(operations["alpha_sx_sy_mirror"]).T
    psi, origin, flipped = c.eman2_to_pose(alpha, torch.stack([sx, sy], 1), mirror != 0)
    ours = rotate_shift_images(images, psi.float(), origin.float(), flipped, method="linear").numpy()
    theirs = operations["rot_shift2D_linear_background"]
    inside = np.hypot(*grid()) < 22
    each = [correlation(a[inside], b[inside]) for a, b in zip(ours, theirs, strict=True)]
    assert min(each) > 0.98
    wrong = rotate_shift_images(images, -psi.float(), origin.float(), flipped, method="linear").numpy()
    assert max(correlation(a[inside], b[inside]) for a, b in zip(wrong, theirs, strict=True)) < 0.9


def test_ours_to_relion_mirrored_members_get_their_own_class(tmp_path: Path) -> None:
    """RELION's formula alone, from the STAR file, gives class k and, as class K + k, its mirror image."""
    averages = [reference(seed) for seed in range(3)]
    poses = random_poses(48)
    images = np.zeros((48, BOX, BOX), dtype=np.float32)
    for k in range(3):
        members = poses.class_index == k
        images[members.numpy()] = particles_of(averages[k], poses[members])
    star = _written(tmp_path, images, poses)
    table = pd.DataFrame(star["particles"])
    psi, origin = table.rlnAnglePsi.to_numpy(), table[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy() / 2.5
    for k in range(6):
        m = (table.rlnClassNumber == k + 1).to_numpy()
        assert m.any()
        expected = averages[k] if k < 3 else mirrored(torch.tensor(averages[k - 3])).numpy()
        assert correlation(relion_average(images[m], psi[m], origin[m]), expected) > 0.99
        assert correlation(relion_average(images[m], -psi[m], origin[m]), expected) < 0.9
    assert set(table.ralibMirror) == {0, 1}


def test_relion_poses_written_are_read_back(tmp_path: Path) -> None:
    poses = random_poses(48)
    images = np.zeros((48, BOX, BOX), dtype=np.float32)
    _written(tmp_path, images, poses)
    back = open_particles(tmp_path / "particles.star").poses
    assert back is not None
    assert torch.equal(back.mirror, poses.mirror)
    assert torch.equal(back.class_index, poses.class_index)
    assert torch.allclose(back.psi_deg, poses.psi_deg, atol=1e-4)
    assert torch.allclose(back.origin_xy_px, poses.origin_xy_px, atol=1e-4)
    index, mirror = c.class_to_mirror(c.mirror_to_class(poses.class_index, poses.mirror, 3), 3)
    assert torch.equal(index, poses.class_index)
    assert torch.equal(mirror, poses.mirror)


def _written(folder: Path, images: np.ndarray, poses: Poses) -> dict:
    from ralib.io import read_star

    write_mrcs(folder / "particles.mrcs", images, 2.5)
    particles = open_particles(folder / "particles.mrcs")
    write_particles_star(folder / "particles.star", particles, poses, n_classes=3, project=folder)
    return read_star(folder / "particles.star")


def test_cryosparc_to_pose_drawn_particles_average_to_class() -> None:
    """Particles drawn by cryoSPARC's formula average to the class with converted poses."""
    average = reference()
    rng = np.random.default_rng(3)
    pose, shift = rng.uniform(0, 2 * np.pi, 24), rng.uniform(-5, 5, (24, 2))
    images = np.stack([cryosparc_particle(average, p, s) for p, s in zip(pose, shift, strict=True)])
    converted = c.cryosparc_to_pose(torch.tensor(pose), torch.tensor(shift))
    assert correlation(our_average(images, converted), average) > 0.99
    wrong = c.cryosparc_to_pose(-torch.tensor(pose), torch.tensor(shift))
    assert correlation(our_average(images, wrong), average) < 0.9
    wrong = c.cryosparc_to_pose(torch.tensor(pose), -torch.tensor(shift))
    assert correlation(our_average(images, wrong), average) < 0.9


def test_pose_to_cryosparc_draws_the_same_particles() -> None:
    """Converted poses, in cryoSPARC's formula, draw the particles our formula belongs to; mirrors are class K + k."""
    average, poses = reference(), random_poses()
    images = particles_of(average, poses)
    pose, shift = c.pose_to_cryosparc(poses.psi_deg.double(), poses.origin_xy_px.double())
    flipped = mirrored(torch.tensor(average)).numpy()
    templates = [flipped if m else average for m in poses.mirror.tolist()]
    rows = zip(templates, pose.tolist(), shift.numpy(), strict=True)
    drawn = [cryosparc_particle(t, p, s) for t, p, s in rows]
    assert min(correlation(a, b) for a, b in zip(drawn, images, strict=True)) > 0.98
    assert float(pose.min()) >= 0
    assert float(pose.max()) < 2 * np.pi


def test_relion_projections_show_the_sign_of_the_origin(shared_data: Path) -> None:
    """relion_project's shifted images come back onto its centred ones by our reading of rlnOriginX and Y."""
    folder = shared_data / "sim" / "aspire_rln_proj"
    shifted = open_particles(folder / "rln_proj_64_shifted.star")
    centred = open_images(folder / "rln_proj_64_centered.mrcs")
    assert shifted.poses is not None
    images = torch.tensor(shifted.images.read(np.arange(4)))
    zero, none = torch.zeros(4), torch.zeros(4, dtype=torch.bool)
    back = rotate_shift_images(images, zero, shifted.poses.origin_xy_px, none).numpy()
    inside = np.hypot(*grid()) < 18
    assert min(correlation(a[inside], b[inside]) for a, b in zip(back, centred, strict=True)) > 0.99
    wrong = rotate_shift_images(images, zero, -shifted.poses.origin_xy_px, none).numpy()
    assert max(correlation(a[inside], b[inside]) for a, b in zip(wrong, centred, strict=True)) < 0.9


def _relion(program: str, *arguments: str, folder: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"RELION is not installed: no {program} (Debian: apt install relion)")
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    subprocess.run([program, *arguments], cwd=folder, check=True, capture_output=True, timeout=120, env=environment)


def test_relion_project_turns_as_psi_says(shared_data: Path, tmp_path: Path) -> None:
    """Our pose (psi, origin) brings RELION's projection at psi and origin onto its projection at psi = 0."""
    volume = open_images(shared_data / "volumes" / "clean70SRibosome_vol_65p.mrc")
    write_mrcs(tmp_path / "volume.mrc", volume[:64, :64, :64], 1.0)  # RELION's centre is that of an even box
    poses = [(0.0, 0.0, 0.0), (35.0, 3.0, -2.0), (140.0, -4.0, 5.0), (-77.0, 0.0, 6.0)]
    table = pd.DataFrame(poses, columns=["rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"])
    table = table.assign(rlnAngleRot=20.0, rlnAngleTilt=65.0, rlnOpticsGroup=1)
    table["rlnImageName"] = [f"{i + 1:06d}@x.mrcs" for i in range(len(table))]
    optics = {"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["o"], "rlnVoltage": [300.0], "rlnAmplitudeContrast": [0.1]}
    optics |= {"rlnSphericalAberration": [2.7], "rlnImagePixelSize": [1.0], "rlnImageSize": [64]}
    optics["rlnImageDimensionality"] = [2]
    write_star(tmp_path / "angles.star", {"optics": pd.DataFrame(optics), "particles": table})
    _relion(
        "relion_project", "--i", "volume.mrc", "--ang", "angles.star", "--angpix", "1", "--o", "proj", folder=tmp_path
    )
    images = torch.tensor(open_images(tmp_path / "proj.mrcs"))
    psi, origin = torch.tensor(poses)[:, 0], torch.tensor(poses)[:, 1:]
    none = torch.zeros(4, dtype=torch.bool)
    turned = rotate_shift_images(images, psi, origin, none).numpy()
    inside = np.hypot(*grid()) < 22
    assert min(correlation(turned[0][inside], t[inside]) for t in turned[1:]) > 0.99
    wrong = rotate_shift_images(images, -psi, origin, none).numpy()
    assert max(correlation(wrong[0][inside], t[inside]) for t in wrong[1:]) < 0.97


def test_relion_stack_create_makes_our_averages(tmp_path: Path) -> None:
    """RELION itself applies the poses of our STAR file; the means of its images by class are ours."""
    averages = [reference(seed) for seed in range(3)]
    poses = random_poses(36)
    images = np.zeros((36, BOX, BOX), dtype=np.float32)
    for k in range(3):
        members = poses.class_index == k
        images[members.numpy()] = particles_of(averages[k], poses[members])
    star = _written(tmp_path, images, poses)
    _relion("relion_stack_create", "--i", "particles.star", "--o", "out", "--apply_transformation", folder=tmp_path)
    moved = open_images(tmp_path / "out.mrcs")
    classes = pd.DataFrame(star["particles"]).rlnClassNumber.to_numpy()
    inside = np.hypot(*grid()) < 22
    for k in range(6):
        expected = averages[k] if k < 3 else mirrored(torch.tensor(averages[k - 3])).numpy()
        assert correlation(moved[classes == k + 1].mean(0)[inside], expected[inside]) > 0.98


def test_params_text_is_in_eman2s_convention(tmp_path: Path) -> None:
    average, poses = reference(), random_poses()
    write_params(tmp_path / "params.txt", poses)
    rows = np.loadtxt(tmp_path / "params.txt")
    theirs = eman2_average(particles_of(average, poses), rows[:, 1], rows[:, 2:4], rows[:, 4] != 0)
    assert correlation(theirs, average) > 0.995
    assert np.array_equal(rows[:, 5], poses.class_index.numpy())


def test_classes_of_another_program_count(tmp_path: Path) -> None:
    """RELION has classified on, or kept a subset: stale columns of ours do not override its classes."""
    poses = random_poses(48)
    _written(tmp_path, np.zeros((48, BOX, BOX), dtype=np.float32), poses)
    from ralib.io import read_star

    tables = read_star(tmp_path / "particles.star")
    kept = tables["particles"].iloc[::3].reset_index(drop=True)
    write_star(tmp_path / "kept.star", {**tables, "particles": kept})
    back = open_particles(tmp_path / "kept.star").poses
    assert back is not None
    assert torch.equal(back.mirror, poses.mirror[::3])
    assert torch.equal(back.class_index, poses.class_index[::3])
    tables["particles"].loc[5, "rlnClassNumber"] = 2 + int(tables["particles"].loc[5, "rlnClassNumber"]) % 5
    write_star(tmp_path / "moved.star", tables)
    moved = open_particles(tmp_path / "moved.star").poses
    assert moved is not None
    assert not moved.mirror.any()
    assert moved.class_index.tolist() == (tables["particles"]["rlnClassNumber"] - 1).tolist()


def test_compose_and_invert_undo_each_other() -> None:
    one, two = triple(random_poses(seed=5)), triple(random_poses(seed=6))
    p = torch.randn(24, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both = c.apply_pose(*c.compose(one, two), p)
    assert torch.allclose(both, c.apply_pose(*two, c.apply_pose(*one, p)))
    assert torch.allclose(c.apply_pose(*c.invert(one), c.apply_pose(*one, p)), p)


def test_images_in_memory_need_a_file_first(tmp_path: Path) -> None:
    from ralib.types import RalibError

    particles = ParticleSet(ArraySource(np.zeros((24, 8, 8), np.float32)))
    with pytest.raises(RalibError, match="write the images first"):
        write_particles_star(tmp_path / "p.star", particles, random_poses())
    assert not list(tmp_path.iterdir())


def test_restore_mirror_one_class_classified_again_is_not_mirrored() -> None:
    one, mirror = torch.zeros(4, dtype=torch.long), torch.tensor([True, False, True, False])
    index, found = c.restore_mirror(one, one, mirror, torch.zeros(4, dtype=torch.bool))
    assert index.tolist() == [0] * 4
    assert not found.any(), "columns of an earlier run, poses of a later one"
    assert c.restore_mirror(one, one, mirror, mirror)[1].equal(mirror), "the file itself turns them over"
    assert c.restore_mirror(one + mirror.long(), one, mirror)[1].equal(mirror), "class K + k"
