"""Simulated particles: the truth is the truth, the SNR is the SNR, the same seed gives the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ralib.conventions import apply_pose
from ralib.images.masks import circle_mask
from ralib.simulation.phantom import FourierProjector, phantom_volume, spread_views, view_frames
from ralib.simulation.simulator import BLOCK, Junk, SimulationOptions, Simulator, simulate_particles
from ralib.types import RalibError


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Correlation of images (n, h, w) with images (n, h, w)."""
    a, b = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def resample(images: torch.Tensor, psi: torch.Tensor, origin: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
    """Class-frame images by the definition of a pose: particle points go to p_ref; plain bilinear sampling."""
    box = images.shape[-1]
    grid = torch.arange(box, dtype=torch.float32) - box // 2
    ref = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1)
    out = []
    for image, a, o, m in zip(images, psi, origin, mirror, strict=True):
        sign = torch.tensor([-1.0 if m else 1.0, 1.0])
        c, s = torch.cos(torch.deg2rad(a)), torch.sin(torch.deg2rad(a))
        point = (ref * sign) @ torch.stack([torch.stack([c, -s]), torch.stack([s, c])]) - o
        sample = (point + box // 2 + 0.5) * 2 / box - 1
        out.append(torch.nn.functional.grid_sample(image[None, None], sample[None], align_corners=False)[0, 0])
    return torch.stack(out)


@pytest.fixture(scope="module")
def clean() -> Simulator:
    return Simulator(SimulationOptions(60, 64, n_views=4, ctf=False, shift_sd_px=2.0, seed=5))


def test_the_pose_takes_the_particle_onto_its_view(clean: Simulator) -> None:
    poses = clean.truth.poses
    particles, views = clean.clean(np.arange(60)), clean.references()[poses.class_index]
    assert poses.mirror.any()
    assert not poses.mirror.all()
    turned = resample(particles, poses.psi_deg, poses.origin_xy_px, poses.mirror)
    inside = circle_mask(64, 26)
    good = correlation(turned[:, inside][:, None], views[:, inside][:, None])
    assert good.min() > 0.97
    for wrong in ((-poses.psi_deg, poses.origin_xy_px, poses.mirror),
                  (poses.psi_deg, -poses.origin_xy_px, poses.mirror),
                  (poses.psi_deg, poses.origin_xy_px, ~poses.mirror)):  # fmt: skip
        bad = correlation(resample(particles, *wrong)[:, inside][:, None], views[:, inside][:, None])
        assert bad.median() < 0.9


def test_resample_in_this_test_follows_the_conventions() -> None:
    """A bright pixel at p must arrive where conventions.apply_pose says."""
    image = torch.zeros(1, 33, 33)
    image[0, 16 + 5, 16 + 3] = 1.0
    pose = (torch.tensor([30.0]), torch.tensor([[1.0, -2.0]]), torch.tensor([True]))
    x, y = apply_pose(*pose, torch.tensor([[3.0, 5.0]]))[0]
    turned = resample(image, *pose)[0]
    grid = torch.arange(33) - 16
    assert (turned.sum(0) * grid).sum() / turned.sum() == pytest.approx(x.item(), abs=0.3)
    assert (turned.sum(1) * grid).sum() / turned.sum() == pytest.approx(y.item(), abs=0.3)


def test_rotation_describes_the_particle_itself(clean: Simulator) -> None:
    """Projecting along the particle's own frame, shifted, gives the particle, mirrored or not."""
    truth = clean.truth
    np.testing.assert_allclose(np.linalg.det(truth.rotation), 1.0, atol=1e-5)
    shifts = truth.arrays()["shift"]
    np.testing.assert_allclose(shifts, -truth.poses.origin_xy_px.numpy())


def test_projection_is_the_sum_along_the_view() -> None:
    volume = phantom_volume(48)
    projector = FourierProjector(volume)
    axes = torch.tensor([[[1.0, 0, 0], [0, 1, 0]], [[1.0, 0, 0], [0, 0, 1]]])
    images = torch.fft.fftshift(torch.fft.irfft2(projector.slices(axes, 48), s=(48, 48)), dim=(-2, -1))
    expected = torch.as_tensor(np.stack([volume.sum(0), volume.sum(1)]))
    assert correlation(images, expected).min() > 0.999
    assert correlation(images.flip(-1), expected).max() < 0.99


def test_a_volume_on_a_finer_grid_gives_the_same_images() -> None:
    options = SimulationOptions(8, 48, ctf=False, pixel_size_A=8.0, contrast_sd=0.0)
    coarse = Simulator(options, [phantom_volume(48)], volume_pixel_size_A=8.0).clean(np.arange(8))
    fine = Simulator(options, [phantom_volume(96)], volume_pixel_size_A=4.0).clean(np.arange(8))
    assert correlation(coarse, fine).min() > 0.99


@pytest.mark.parametrize("ctf", [False, True])
def test_snr_is_what_was_asked_for(ctf: bool) -> None:
    options = SimulationOptions(300, 48, snr=0.2, ctf=ctf, coloured_noise=0.2, contrast_sd=0.0)
    simulator = Simulator(options)
    clean = simulator.clean(np.arange(BLOCK))
    noise = simulator.block(0) - clean
    inside = circle_mask(48, 23)
    assert clean[:, inside].var(1).mean() / noise.var() == pytest.approx(0.2, rel=0.05)
    assert noise.var() == pytest.approx(1.0, rel=0.02)


def test_same_seed_same_bits_in_any_order() -> None:
    options = SimulationOptions(BLOCK + 40, 32, junk_fraction=0.2, coloured_noise=0.1, n_views=3, seed=9)
    first, second = Simulator(options), Simulator(options)
    backwards = [second.block(1), second.block(0)]
    assert torch.equal(first.block(0), backwards[1])
    assert torch.equal(first.block(1), backwards[0])
    images, truth, references = simulate_particles(BLOCK + 40, 32, n_views=3, seed=9, dtype=torch.float16)
    assert images.dtype == torch.float16
    assert len(images) == len(truth.poses) == BLOCK + 40
    assert len(references) == 3
    other, _, _ = simulate_particles(BLOCK + 40, 32, n_views=3, seed=10, dtype=torch.float16)
    assert not torch.equal(images, other)


def test_junk_looks_like_junk() -> None:
    simulator = Simulator(SimulationOptions(BLOCK, 48, junk_fraction=0.5, snr=1.0, n_views=2))
    kinds = {kind: np.flatnonzero(simulator.truth.junk == kind) for kind in Junk}
    assert abs(len(kinds[Junk.NONE]) - BLOCK // 2) <= 1
    assert (simulator.truth.poses.class_index.numpy()[simulator.truth.junk != Junk.NONE] == -1).all()
    block, clean = simulator.block(0), simulator.clean(np.arange(BLOCK))
    assert clean[kinds[Junk.EMPTY_ICE]].abs().max() == 0
    assert clean[kinds[Junk.CONTAMINATION]].abs().max() == 0
    assert block[kinds[Junk.CONTAMINATION]].var((1, 2)).mean() > 1.02 * block[kinds[Junk.EMPTY_ICE]].var((1, 2)).mean()
    centre = clean[:, 12:36, 12:36].abs().mean((1, 2))
    assert centre[kinds[Junk.HALF_OUT]].mean() < 0.7 * centre[kinds[Junk.NONE]].mean()


def test_two_species_and_rare_views() -> None:
    flat = phantom_volume(32).transpose(2, 1, 0).copy()
    options = SimulationOptions(2000, 32, n_views=3, view_frequencies=(1, 1, 0.02), junk_fraction=0.0)
    simulator = Simulator(options, [phantom_volume(32), flat])
    counts = np.bincount(simulator.truth.poses.class_index.numpy(), minlength=6)
    assert len(simulator.references()) == 6
    assert counts[2] + counts[5] < 60 < counts[0]
    np.testing.assert_array_equal(simulator.truth.species, simulator.truth.poses.class_index.numpy() // 3)


def test_preferred_views_gather_around_one_direction() -> None:
    views = [
        Simulator(SimulationOptions(400, 16, preferred_fraction=f, ctf=False)).truth.rotation[:, 2] for f in (0, 1)
    ]
    assert np.linalg.norm(views[0].mean(0)) < 0.3
    assert np.linalg.norm(views[1].mean(0)) > 0.8


def test_view_frames_are_right_handed() -> None:
    frames = view_frames(np.concatenate([spread_views(10), [[0, 0, 1.0], [0, 0, -1.0]]]))
    np.testing.assert_allclose(frames @ frames.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (12, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(frames), 1.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_particles": 0}, "particles"),
        ({"box": 4}, "box"),
        ({"snr": 0.0}, "snr"),
        ({"junk_fraction": 1.5}, "junk_fraction"),
        ({"n_views": 2, "view_frequencies": (1.0,)}, "view_frequencies"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(RalibError, match=message):
        SimulationOptions(**{"n_particles": 5, "box": 32, **wrong})


def test_a_volume_must_be_a_cube_of_numbers() -> None:
    with pytest.raises(RalibError, match="cube"):
        FourierProjector(np.zeros((4, 5, 4), np.float32))
    with pytest.raises(RalibError, match="NaN"):
        FourierProjector(np.full((16, 16, 16), np.nan, np.float32))


@pytest.mark.parametrize(
    "wrong",
    [
        {"voltage_kV": 0.0}, {"voltage_kV": float("nan")}, {"spherical_aberration_mm": float("nan")},
        {"snr": float("inf")}, {"pixel_size_A": float("inf")}, {"pixel_size_A": 1e-10}, {"astigmatism_A": -1.0},
        {"astigmatism_A": float("nan")}, {"shift_sd_px": float("inf")}, {"seed": -1}, {"n_views": 10**20},
        {"particles_per_micrograph": 10**20}, {"n_particles": 10**20}, {"defocus_range_A": (float("nan"), 1e4)},
        {"defocus_range_A": (2e4, 1e4)}, {"contrast_sd": float("inf")},
    ],
)  # fmt: skip
def test_simulation_of_what_cannot_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    """Each of these gave images of NaN with status 0, or an error of NumPy's."""
    with pytest.raises(RalibError, match=next(iter(wrong))):
        SimulationOptions(**{"n_particles": 4, "box": 16} | wrong)


def test_simulation_is_the_same_in_double_precision_by_default() -> None:
    """Tensors of no stated type were double, and met those of single precision."""
    options: dict[str, Any] = {"n_views": 2, "junk_fraction": 0.3, "coloured_noise": 0.3}
    images, truth, references = simulate_particles(20, 32, **options)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        again = simulate_particles(20, 32, **options)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(again[0], images)
    assert torch.equal(again[2], references)
    assert [t.dtype for t in again[1].poses.fields()] == [t.dtype for t in truth.poses.fields()]
