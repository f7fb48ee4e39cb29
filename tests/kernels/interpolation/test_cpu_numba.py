"""The Numba forms of rotate, shift, mirror and sum against their plain twins."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ralib.kernels import implementation, interpolation_samples
from ralib.kernels.interpolation import cpu_numba, reference
from ralib.kernels.interpolation.reference import BOUNDARIES, METHODS

# Rounding moves EMAN2's quadratic form across its jumps.
TOLERANCE = {"cubic": 1e-5, "linear": 1e-5, "quadratic": 3e-3}


def case(b: int, n: int, k: int) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor], Tensor]:
    """Far shifts, a class 1 without members, particles of no class."""
    generator = torch.Generator().manual_seed(100 * b + n)
    images = torch.randn(b, n, n, generator=generator)
    psi = torch.rand(b, generator=generator) * 720 - 360
    origin = torch.randn(b, 2, generator=generator) * n / 6
    index = torch.randint(-1, k, (b,), generator=generator)
    index[index == 1] = 0
    return images, (psi, origin, torch.rand(b, generator=generator) > 0.5), index


def error(out: Tensor, plain: Tensor) -> float:
    assert out.shape == plain.shape
    return float(torch.linalg.vector_norm(out - plain) / torch.linalg.vector_norm(plain))


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("method", METHODS)
def test_interpolation_numba_agrees_with_reference(method: str, boundary: str) -> None:
    images, pose, index = case(9, 21, 3)
    options = {"method": method, "boundary": boundary}
    weights, half = torch.rand(9), torch.arange(9) % 2
    turned = cpu_numba.rotate_shift_images(images, *pose, **options)
    assert turned.dtype == torch.float32
    assert error(turned, reference.rotate_shift_images(images, *pose, **options)) < TOLERANCE[method]
    extra = {"weights": weights, "half_index": half, **options}
    sums = cpu_numba.rotate_shift_sum(images, *pose, index, 3, **extra)
    assert error(sums, reference.rotate_shift_sum(images, *pose, index, 3, **extra)) < TOLERANCE[method]
    wrong = reference.rotate_shift_sum(images, pose[0] + 0.5, *pose[1:], index, 3, **extra)
    assert error(sums, wrong) > TOLERANCE[method]


@pytest.mark.parametrize(("b", "n", "k"), [(1, 4, 1), (3, 32, 7), (20, 13, 2)])
def test_rotate_shift_sum_numba_running_sums_in_double_precision_agree(b: int, n: int, k: int) -> None:
    images, pose, index = case(b, n, k)
    index[0] = 0
    samples = interpolation_samples(images, boundary="mean")
    sums = torch.ones(k, n, n, dtype=torch.float64)
    assert cpu_numba.rotate_shift_sum(samples, *pose, index, k, out=sums) is sums
    plain = reference.rotate_shift_sum(images.double(), *pose, index, k, boundary="mean")
    assert error(sums - 1, plain) < 1e-5


def test_interpolation_numba_no_images_give_empty_results() -> None:
    images, pose, _ = case(1, 12, 2)
    assert cpu_numba.rotate_shift_images(images[:0], *(value[:0] for value in pose)).shape == (0, 12, 12)


def test_implementation_device_and_dtype_choose_the_module() -> None:
    """float32 and integers on a CPU go to Numba; float64, for which nothing is compiled, to the plain form."""
    images, _, _ = case(1, 8, 1)
    assert implementation("interpolation", images) is cpu_numba
    assert implementation("interpolation", interpolation_samples(images)) is cpu_numba
    assert implementation("interpolation", images.to(torch.int16)) is cpu_numba
    assert implementation("interpolation", images.double()) is reference


def test_rotate_shift_sum_numba_threads_and_chunks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    images, pose, index = case(17, 24, 3)
    samples = interpolation_samples(images)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = cpu_numba.rotate_shift_sum(samples, *pose, index, 3)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        monkeypatch.setattr(reference, "_CPU_CHUNK_PIXELS", 3 * 24 * 24)
        assert torch.equal(cpu_numba.rotate_shift_sum(samples, *pose, index, 3), whole)
    finally:
        torch.set_num_threads(before)


def test_interpolation_numba_pose_nan_stays_within_memory() -> None:
    images, (psi, origin, mirror), _ = case(3, 16, 1)
    origin[1] = float("nan")
    psi[2] = float("inf")
    turned = cpu_numba.rotate_shift_images(images, psi, origin, mirror)
    assert turned[0].isfinite().all()


def test_rotate_shift_sum_numba_rounded_agrees_with_reference() -> None:
    images, pose, index = case(9, 21, 3)
    plain = reference.rotate_shift_sum(images, *pose, index, 3, rounded=True)
    assert error(cpu_numba.rotate_shift_sum(images, *pose, index, 3, rounded=True), plain) < 1e-5
    kept = cpu_numba.interpolation_samples(images).rounded()
    assert error(cpu_numba.rotate_shift_sum(kept, *pose, index, 3), plain) < 1e-5
    assert error(cpu_numba.rotate_shift_images(kept, *pose), reference.rotate_shift_images(kept, *pose)) < 1e-5
