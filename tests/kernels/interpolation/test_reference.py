"""Plain rotate, shift, mirror and sum: against EMAN2, exact Fourier rotation, the pose convention and each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ralib.conventions import apply_pose, eman2_to_pose
from ralib.kernels.interpolation import reference
from ralib.kernels.interpolation.reference import (
    BOUNDARIES,
    METHODS,
    interpolation_samples,
    rotate_shift_images,
    rotate_shift_sum,
)

PoseTriple = tuple[Tensor, Tensor, Tensor]


def random_stack(b: int, n: int, seed: int = 0) -> tuple[Tensor, PoseTriple]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(b, n, n, generator=generator, dtype=torch.float64)
    psi = torch.rand(b, generator=generator, dtype=torch.float64) * 720 - 360
    origin = torch.randn(b, 2, generator=generator, dtype=torch.float64) * 3
    return images, (psi, origin, torch.rand(b, generator=generator) > 0.5)


def pose(psi: float, x: float, y: float, mirror: bool) -> PoseTriple:
    return torch.tensor([psi]).double(), torch.tensor([[x, y]]).double(), torch.tensor([mirror])


@pytest.mark.parametrize("boundary", ["background", "cyclic"])
@pytest.mark.parametrize("method", ["quadratic", "linear"])
def test_rotate_shift_images_quadratic_agrees_with_eman2(golden: Path, method: str, boundary: str) -> None:
    """rot_shift2D to float32 accuracy; a shift wrong by 0.01 px is seen."""
    with np.load(golden / "operations.npz") as data:
        images, parameters = torch.from_numpy(data["images"]), torch.from_numpy(data["alpha_sx_sy_mirror"])
        expected = torch.from_numpy(data[f"rot_shift2D_{method}_{boundary}"])
    mirror = parameters[:, 3] > 0.5

    def worst(shift: Tensor) -> float:
        turned = rotate_shift_images(
            images, *eman2_to_pose(parameters[:, 0], shift, mirror), method=method, boundary=boundary
        )
        return float((turned - expected).abs().max() / expected.std())

    assert worst(parameters[:, 1:3]) < 1e-4
    assert worst(parameters[:, 1:3] + 0.01) > 1e-3


def exact_rotation(n: int, highest_per_px: float, p: PoseTriple) -> tuple[Tensor, Tensor]:
    """A band-limited periodic image and the same seen in the class frame, by evaluating its Fourier series there."""
    generator = torch.Generator().manual_seed(3)
    spectrum = torch.fft.fft2(torch.randn(n, n, generator=generator, dtype=torch.float64))
    k = torch.fft.fftfreq(n, dtype=torch.float64)
    ky, kx = torch.meshgrid(k, k, indexing="ij")
    spectrum[torch.hypot(kx, ky) > highest_per_px] = 0
    x, y = reference.sample_points(*p, n, "zero")
    phase = 2j * torch.pi * (x.reshape(-1, 1) * kx.reshape(1, -1) + y.reshape(-1, 1) * ky.reshape(1, -1))
    exact = (phase.exp() @ spectrum.reshape(-1)).real.reshape(1, n, n) / n**2
    return torch.fft.ifft2(spectrum).real[None], exact


@pytest.mark.parametrize(("method", "limit"), [("cubic", 0.004), ("quadratic", 0.09), ("linear", 0.16)])
def test_rotate_shift_images_methods_are_close_to_fourier_rotation(method: str, limit: float) -> None:
    """Up to half of Nyquist the cubic form errs by less than 0.4 %; EMAN2's by 8 %; a degree off by 9 %."""
    n, p = 32, pose(33.3, -1.3, 0.7, True)
    image, exact = exact_rotation(n, 0.25, p)

    def error(q: PoseTriple) -> float:
        turned = rotate_shift_images(image, *q, method=method, boundary="cyclic")
        return float(torch.linalg.vector_norm(turned - exact) / torch.linalg.vector_norm(exact))

    assert error(p) < limit
    assert error((p[0] + 5, p[1], p[2])) > 2 * limit


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("n", [32, 33])
def test_rotate_shift_images_spot_lands_where_the_convention_says(n: int, mirror: bool) -> None:
    centre = n // 2
    point = torch.tensor([5.0, -3.0], dtype=torch.float64)
    index = torch.arange(n) - centre
    image = torch.exp(-((index[None, :] - point[0]) ** 2 + (index[:, None] - point[1]) ** 2) / 4)[None].double()
    p = pose(37.0, 1.7, -2.2, mirror)
    turned = rotate_shift_images(image, *p)[0]
    mass = turned.sum()
    found = torch.stack([(turned.sum(0) * index).sum() / mass, (turned.sum(1) * index).sum() / mass])
    expected = apply_pose(*p, point[None])[0]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    assert (found - apply_pose(-p[0], p[1], p[2], point[None])[0]).abs().max() > 1


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [12, 13])
def test_rotate_shift_images_identity_and_mirror_are_exact(n: int, method: str, boundary: str) -> None:
    """A mirror keeps column 0 of an even box."""
    images, _ = random_stack(2, n)
    zero, none = torch.zeros(2), torch.zeros(2, 2)
    same = rotate_shift_images(images, zero, none, torch.tensor([False, True]), method=method, boundary=boundary)
    torch.testing.assert_close(same[0], images[0], atol=1e-12, rtol=0)
    flipped = images[1][:, [(2 * (n // 2) - i) % n for i in range(n)]]
    torch.testing.assert_close(same[1], flipped, atol=1e-12, rtol=0)
    assert n % 2 == 1 or torch.equal(flipped[:, 0], images[1][:, 0])


@pytest.mark.parametrize("method", METHODS)
def test_rotate_shift_images_quarter_turn_is_exact(method: str) -> None:
    images, _ = random_stack(1, 15)
    turned = rotate_shift_images(images, *pose(90.0, 0, 0, False), method=method)
    # R(90) takes the x axis to the y axis, which points down the rows.
    torch.testing.assert_close(turned, torch.rot90(images, -1, (1, 2)), atol=1e-8, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_rotate_shift_images_boundary_fills_outside_the_box(method: str) -> None:
    """A shift by more than the box leaves nothing, the mean, the image rolled, or what was there."""
    images, _ = random_stack(1, 16)
    far = pose(0, 40, -3, False)

    def turned(boundary: str) -> Tensor:
        return rotate_shift_images(images, *far, method=method, boundary=boundary)

    assert torch.equal(turned("zero"), torch.zeros_like(images))
    torch.testing.assert_close(turned("mean"), images.mean().expand_as(images), atol=1e-12, rtol=0)
    torch.testing.assert_close(turned("cyclic"), images.roll((-3, 40), (1, 2)), atol=1e-10, rtol=0)
    torch.testing.assert_close(turned("background"), images, atol=1e-10, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_rotate_shift_images_zero_boundary_fades_within_two_pixels(method: str) -> None:
    turned = rotate_shift_images(torch.ones(1, 20, 20).double(), *pose(0, 6.5, 0, False), method=method)
    assert turned[0, :, :4].abs().max() == 0
    torch.testing.assert_close(turned[0, 8:12, 10:], torch.ones(4, 10).double(), atol=5e-3, rtol=0)


def test_rotate_shift_sum_is_the_sum_of_the_images() -> None:
    images, p = random_stack(23, 14)
    index = torch.tensor([0, 2, 3, -1] * 6)[:23]
    weights = torch.rand(23, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    half = torch.arange(23) % 2
    turned = rotate_shift_images(images, *p)
    sums = rotate_shift_sum(images, *p, index, 4, weights=weights, half_index=half)
    assert sums.shape == (2, 4, 14, 14)
    for h in range(2):
        for k in range(4):
            member = (index == k) & (half == h)
            expected = (weights[member, None, None] * turned[member]).sum(0)
            torch.testing.assert_close(sums[h, k], expected, atol=1e-12, rtol=0)
    assert torch.equal(sums[:, 1], torch.zeros(2, 14, 14).double())
    both = rotate_shift_sum(images, *p, index, 4, weights=weights)
    torch.testing.assert_close(both, sums.sum(0), atol=1e-12, rtol=0)
    unweighted = rotate_shift_sum(images, *p, index, 4)
    assert (both - unweighted).abs().max() > 0.1


def test_rotate_shift_images_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, p = random_stack(11, 16)
    images = images.float()
    index = torch.arange(11) % 3
    whole = rotate_shift_sum(images, *p, index, 3)
    monkeypatch.setattr(reference, "_CPU_CHUNK_PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(rotate_shift_sum(images, *p, index, 3), whole, atol=2e-6, rtol=0)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("method", METHODS)
def test_interpolation_samples_replace_images(method: str, boundary: str) -> None:
    images, p = random_stack(5, 12)
    samples = interpolation_samples(images, method=method, boundary=boundary)
    assert (len(samples), samples.box) == (5, 12)
    turned = rotate_shift_images(images, *p, method=method, boundary=boundary)
    assert torch.equal(rotate_shift_images(samples, *p), turned)
    index = torch.tensor([0, 1, 1, -1, 0])
    torch.testing.assert_close(rotate_shift_sum(samples, *p, index, 2)[0], turned[0] + turned[4], atol=1e-12, rtol=0)


def test_rotate_shift_sum_running_sums_are_in_double_precision() -> None:
    images, p = random_stack(6, 12)
    index, half = torch.tensor([0, 1, 1, -1, 0, 1]), torch.arange(6) % 2
    sums = torch.ones(2, 2, 12, 12, dtype=torch.float64)
    returned = rotate_shift_sum(images.float(), *p, index, 2, half_index=half, out=sums)
    assert returned is sums
    fresh = rotate_shift_sum(images, *p, index, 2, half_index=half)
    torch.testing.assert_close(sums - 1, fresh, atol=1e-5, rtol=0)


def test_rotate_shift_images_empty_and_integer_images_are_accepted() -> None:
    _, p = random_stack(0, 8)
    assert rotate_shift_images(torch.zeros(0, 8, 8), *p).shape == (0, 8, 8)
    assert torch.equal(rotate_shift_sum(torch.zeros(0, 8, 8), *p, torch.zeros(0).long(), 2), torch.zeros(2, 8, 8))
    turned = rotate_shift_images(torch.ones(1, 8, 8, dtype=torch.int16), *pose(0, 0, 0, False))
    assert turned.dtype == torch.float32


def test_check_options_unknown_names_are_refused() -> None:
    images, p = random_stack(1, 8)
    with pytest.raises(ValueError, match="method 'nearest' is unknown"):
        rotate_shift_images(images, *p, method="nearest")
    with pytest.raises(ValueError, match="boundary 'black' is unknown"):
        rotate_shift_sum(images, *p, torch.zeros(1).long(), 1, boundary="black")


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e7])
def test_rotate_shift_sum_rounded_samples_change_an_average_little(factor: float) -> None:
    """By half precision's part of each value, whatever the values; those of other methods not at all."""
    images, own = random_stack(60, 16)
    images = (images * factor).float()
    index = torch.zeros(60, dtype=torch.int64)
    exact = rotate_shift_sum(images, *own, index, 1)
    rounded = rotate_shift_sum(images, *own, index, 1, rounded=True)
    assert 1e-5 < float((rounded - exact).norm() / exact.norm()) < 1e-3
    linear = rotate_shift_sum(images, *own, index, 1, method="linear", rounded=True)
    assert torch.equal(linear, rotate_shift_sum(images, *own, index, 1, method="linear"))


def test_samples_rounded_hold_every_value_and_its_neighbour() -> None:
    images, _ = random_stack(3, 8)
    samples = interpolation_samples(images.float())
    again = samples.rounded().rounded()[1:].single()
    assert torch.equal(again.values, samples.values[1:].half().float())
    pairs = samples.rounded().values.view(torch.float16)
    assert torch.equal(pairs[..., 3], pairs[..., 4])
