"""Preparation of particles: each step against what it promises, and the bookkeeping around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.cli import main
from ralib.images.fourier import fourier_resize
from ralib.images.masks import soft_disc
from ralib.images.normalise import normalise_background
from ralib.io import open_images, write_mrcs
from ralib.particles.preparation import Preparation, clip, prepare_images, prepare_particles
from ralib.results.run_record import read_record
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet, Poses, RalibError


def blob(box: int, x: float, y: float, sd: float) -> torch.Tensor:
    """A Gaussian at (x, y) from the centre of an image (1, box, box)."""
    grid = torch.arange(box, dtype=torch.float32) - box // 2
    return torch.exp(-((grid[None, :] - x) ** 2 + (grid[:, None] - y) ** 2) / (2 * sd**2))[None]


def noise(n: int, box: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, box, box, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "m"), [(64, 32), (64, 48), (63, 32), (64, 33), (48, 64), (33, 64), (35, 51)])
def test_fourier_resize_keeps_centre_and_grey_values(n: int, m: int) -> None:
    """A Gaussian 3 px right of and 4 px above the centre stays there, in units of the new pixels."""
    got = fourier_resize(blob(n, 3.0, -4.0, 4.0), m)
    expected = blob(m, 3.0 * m / n, -4.0 * m / n, 4.0 * m / n)
    assert got.shape == (1, m, m)
    torch.testing.assert_close(got, expected, atol=4e-3, rtol=0)
    assert (got - expected.roll(1, -1)).abs().max() > 0.05


def test_fourier_resize_padding_then_cropping_gives_the_image_back() -> None:
    image = fourier_resize(noise(2, 31), 32)
    torch.testing.assert_close(fourier_resize(fourier_resize(image, 50), 32), image, atol=1e-5, rtol=0)


def test_normalise_background_is_flat_with_unit_deviation() -> None:
    grid = torch.arange(64, dtype=torch.float32) - 32
    images = 3.0 * noise(3, 64) + 7.0 + 0.2 * grid[None, :, None] - 0.1 * grid[None, None, :] + 50 * blob(64, 0, 0, 6)
    done = normalise_background(images, 24.0)
    outside = torch.hypot(grid[:, None], grid[None, :]) > 24
    assert done[:, outside].mean(1).abs().max() < 1e-4
    torch.testing.assert_close(done[:, outside].std(1), torch.ones(3), atol=1e-3, rtol=0)
    assert (done[:, :, 60:].mean() - done[:, :, :4].mean()).abs() < 0.2
    assert done[:, 32, 32].min() > 5  # the particle keeps its sign
    constant = normalise_background(torch.full((1, 32, 32), 5.0))
    assert constant.abs().max() < 1e-4


def test_prepare_images_variance_inversion_and_mask_are_applied() -> None:
    images = noise(4, 32) * 5 + 3
    done = prepare_images(images, Preparation(normalise="variance"))
    torch.testing.assert_close(done.mean((1, 2)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(done.std((1, 2)), torch.ones(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(prepare_images(images, Preparation(invert=True)), -images)
    masked = prepare_images(images, Preparation(mask_radius_px=8, mask_edge_px=3))
    assert masked[:, 0].abs().max() == 0
    torch.testing.assert_close(masked[:, 12:21, 12:21], images[:, 12:21, 12:21])
    assert 0 < soft_disc(32, 8, 3)[16, 16 + 9] < 1


@pytest.mark.parametrize(("n", "m"), [(32, 20), (32, 21), (33, 20), (20, 32), (21, 32), (20, 33)])
def test_clip_keeps_the_centre(n: int, m: int) -> None:
    image = torch.zeros(1, n, n)
    image[0, n // 2 + 2, n // 2 - 3] = 1
    got = clip(image, m)
    assert got.shape == (1, m, m)
    assert got[0, m // 2 + 2, m // 2 - 3] == 1
    assert clip(image + 4, m)[0, 0, 0] == 4


def test_prepare_particles_phase_flip_needs_and_uses_the_ctf() -> None:
    simulator = Simulator(SimulationOptions(20, 64, n_views=2, pixel_size_A=3.0, seed=4))
    filtered = simulator.clean(np.arange(20))
    wanted = Simulator(SimulationOptions(20, 64, n_views=2, pixel_size_A=3.0, seed=4, ctf=False)).clean(np.arange(20))
    particles = ParticleSet(ArraySource(filtered.numpy()), 3.0, simulator.truth.ctf, simulator.truth.poses)
    flipped = torch.as_tensor(prepare_particles(particles, Preparation(flip_phases=True)).images.read(np.arange(20)))

    def agreement(images: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([images.flatten(), wanted.flatten()]))[0, 1])

    assert agreement(flipped) > agreement(filtered) + 0.02
    with pytest.raises(RalibError, match="CTF"):
        prepare_particles(particles.replace(ctf=None), Preparation(flip_phases=True))
    with pytest.raises(RalibError, match="pixel size"):
        prepare_particles(particles.replace(pixel_size_A=None), Preparation(flip_phases=True))


def test_prepare_particles_pixel_size_and_origins_follow_the_box() -> None:
    poses = Poses.identity(5).replace(origin_xy_px=torch.full((5, 2), 3.0))
    particles = ParticleSet(ArraySource(noise(5, 60).numpy()), 2.0, poses=poses)
    done = prepare_particles(particles, pixel_size_A=4.1)
    assert done.box == 30  # 29.3 px, to the nearest even box
    assert done.pixel_size_A == pytest.approx(4.0)
    assert done.poses is not None
    torch.testing.assert_close(done.poses.origin_xy_px, torch.full((5, 2), 1.5))
    clipped = prepare_particles(particles, Preparation(clip_px=40, box_px=20))
    assert clipped.box == 20
    assert clipped.pixel_size_A == pytest.approx(4.0)
    assert clipped.images.read(np.array([4, 0])).shape == (2, 20, 20)


def test_prepared_source_batches_change_nothing() -> None:
    particles = ParticleSet(ArraySource(noise(7, 40).numpy()), 2.0)
    source = prepare_particles(particles, Preparation(box_px=26, normalise="background", mask_radius_px=10)).images
    whole = source.read(np.arange(7))
    parts = np.concatenate([source.read(np.array([i])) for i in range(7)])
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_prepared_source_bad_images_are_named_and_become_zero() -> None:
    images = noise(6, 32).numpy()
    images[2, 3, 3] = np.nan
    images[4] = 1.0
    source = prepare_particles(ParticleSet(ArraySource(images)), Preparation(normalise="background")).images
    done = source.read(np.arange(6))
    assert source.bad == {2, 4}  # type: ignore[attr-defined]
    assert np.isfinite(done).all()
    assert np.abs(done[[2, 4]]).max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalise": "relion"}, "normalise"),
        ({"box_px": 32, "pixel_size_A": 2.0}, "give one"),
        ({"box_px": 2}, "`box_px`"),
        ({"clip_px": 0}, "`clip_px`"),
        ({"mask_radius_px": -1.0}, "`mask_radius_px`"),
    ],
)
def test_preparation_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RalibError, match=message):
        Preparation(**options)  # type: ignore[arg-type]


def test_prepare_particles_impossible_requests_are_refused() -> None:
    particles = ParticleSet(ArraySource(noise(2, 32).numpy()))
    with pytest.raises(RalibError, match=r"`ParticleSet\.pixel_size_A`"):
        prepare_particles(particles, Preparation(pixel_size_A=4.0))
    with pytest.raises(RalibError, match="nearer"):
        prepare_particles(particles.replace(pixel_size_A=1.0), Preparation(pixel_size_A=400.0))
    with pytest.raises(RalibError, match="background"):
        prepare_particles(particles, Preparation(normalise="background", background_radius_px=40.0))


@pytest.mark.parametrize("command", ["mref FILE 2 OUT --ou=10 --xr=1 --maxit=1", "classify FILE OUT --classes=2"])
def test_images_too_large_for_single_precision_are_left_out(tmp_path: Path, capsys, command: str) -> None:
    """Pixels of 1e30 are finite, their squares are not: averages were NaN, or the command failed."""
    images = np.random.default_rng(0).normal(size=(40, 24, 24)).astype(np.float32)
    images[[3, 7]] *= 1e37
    images[9] *= 1e17
    write_mrcs(tmp_path / "p.mrcs", images, 3.0)
    put = {"FILE": str(tmp_path / "p.mrcs"), "OUT": str(tmp_path / "out")}
    assert main([*(put.get(w, w) for w in command.split()), "--no-report", "--device=cpu"]) == 0
    assert "4, 8, 10" in "".join(capsys.readouterr())
    assert np.isfinite(open_images(tmp_path / "out/class_averages.mrcs")).all()
    assert sum(c["members"] for c in read_record(tmp_path / "out")["classes"]) == 37
    write_mrcs(tmp_path / "all.mrcs", np.clip(images, -1, 1) * np.float32(1e37), 3.0)
    assert main(["classify", str(tmp_path / "all.mrcs"), str(tmp_path / "none"), "--classes=2", "--device=cpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_prepare_particles_takes_a_preparation_or_options() -> None:
    """The options were dropped without a word."""
    particles = ParticleSet(ArraySource(noise(2, 32).numpy()))
    with pytest.raises(RalibError, match="a Preparation and `invert` are both given"):
        prepare_particles(particles, Preparation(normalise="variance"), invert=True)
    images = prepare_particles(particles, Preparation(invert=True)).images.read(np.arange(2))
    np.testing.assert_allclose(images, -noise(2, 32).numpy())


def test_prepare_particles_is_the_same_in_double_precision_by_default() -> None:
    """Fourier cropping made a phase of no stated type, which met single precision."""
    particles = ParticleSet(ArraySource(noise(3, 32).numpy()), 2.0)
    images = prepare_particles(particles, box_px=24, normalise="background").images.read(np.arange(3))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        again = prepare_particles(particles, box_px=24, normalise="background").images.read(np.arange(3))
    finally:
        torch.set_default_dtype(before)
    assert np.array_equal(again, images)
