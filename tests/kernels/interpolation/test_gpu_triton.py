"""The Triton forms of rotate, shift, mirror and sum against their reference: on the GPU where there is one, else in
Triton's interpreter, in a process of their own (see `interpreter`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interpreter import in_interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def case(b: int, n: int, k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Ragged stack with far shifts, a class 1 without members, and particles of no class."""
    generator = torch.Generator().manual_seed(100 * b + n)
    images = torch.randn(b, n, n, generator=generator, dtype=dtype)
    psi = torch.rand(b, generator=generator, dtype=dtype) * 720 - 360
    origin = torch.randn(b, 2, generator=generator, dtype=dtype) * n / 6
    mirror = torch.rand(b, generator=generator) > 0.5
    index = torch.randint(-1, k, (b,), generator=generator)
    index[index == 1] = 0
    return images.to(DEVICE), (psi.to(DEVICE), origin.to(DEVICE), mirror.to(DEVICE)), index.to(DEVICE)


def assert_twins(out: Tensor, plain: Tensor, tolerance: float = 1e-12) -> None:
    assert out.shape == plain.shape
    assert out.dtype == plain.dtype
    error = torch.linalg.vector_norm(out - plain) / torch.linalg.vector_norm(plain)
    assert error < tolerance, f"relative error {error:.1e}"


@in_interpreter
@pytest.mark.parametrize("boundary", ["zero", "mean", "cyclic", "background"])
@pytest.mark.parametrize("method", ["cubic", "quadratic", "linear"])
def test_interpolation_triton_agrees_with_reference(method: str, boundary: str) -> None:
    from ralib.kernels.interpolation import gpu_triton, reference

    tiling = gpu_triton.Tiling(8, 8, 8, 1)
    images, pose, index = case(5, 13, 3)
    options = {"method": method, "boundary": boundary}
    turned = gpu_triton.rotate_shift_images(images, *pose, tiling=tiling, **options)
    assert_twins(turned, reference.rotate_shift_images(images, *pose, **options))
    sums = gpu_triton.rotate_shift_sum(images, *pose, index, 3, tiling=tiling, **options)
    assert_twins(sums, reference.rotate_shift_sum(images, *pose, index, 3, **options))


@in_interpreter
@pytest.mark.parametrize(("b", "n", "k"), [(1, 4, 1), (7, 16, 4), (12, 9, 30), (6, 17, 2)])
def test_interpolation_triton_sizes_off_the_tiles_agree_with_reference(b: int, n: int, k: int) -> None:
    """Boxes that do not fill their tiles, runs and batches that end early, more classes than particles."""
    from ralib.kernels.interpolation import gpu_triton, reference

    images, pose, index = case(b, n, k)
    index[0] = 0
    extra = {
        "weights": torch.rand(b, dtype=torch.float64, device=DEVICE),
        "half_index": torch.arange(b, device=DEVICE) % 2,
    }
    small = {"tiling": gpu_triton.Tiling(16, 8, 4, 1), "run_length": 2, "batch_pixels": 5 * n * n}
    sums = gpu_triton.rotate_shift_sum(images, *pose, index, k, **extra, **small)
    plain = reference.rotate_shift_sum(images, *pose, index, k, **extra)
    assert sums.shape == (2, k, n, n)
    assert_twins(sums, plain)
    wrong = reference.rotate_shift_sum(images, pose[0] + 0.01, *pose[1:], index, k, **extra)
    assert torch.linalg.vector_norm(sums - wrong) > 1e-5 * torch.linalg.vector_norm(plain)


@in_interpreter
def test_rotate_shift_sum_triton_repeated_gives_the_same_bits() -> None:
    from ralib.kernels.interpolation import gpu_triton, reference

    images, pose, index = case(9, 12, 2, torch.float32)
    first = gpu_triton.rotate_shift_sum(images, *pose, index, 2, run_length=4)
    assert torch.equal(first, gpu_triton.rotate_shift_sum(images, *pose, index, 2, run_length=4))
    assert_twins(first, reference.rotate_shift_sum(images, *pose, index, 2), 2e-6)
    assert first.isfinite().all()


@in_interpreter
def test_rotate_shift_sum_triton_samples_and_running_sums_agree_with_reference() -> None:
    from ralib.kernels import interpolation_samples
    from ralib.kernels.interpolation import gpu_triton, reference

    images, pose, index = case(6, 12, 3)
    samples = interpolation_samples(images, boundary="mean")
    assert_twins(gpu_triton.rotate_shift_images(samples, *pose), with_mean_boundary(images, pose))
    sums = torch.ones(3, 12, 12, dtype=torch.float64, device=DEVICE)
    gpu_triton.rotate_shift_sum(samples, *pose, index, 3, out=sums)
    assert_twins(sums - 1, reference.rotate_shift_sum(images, *pose, index, 3, boundary="mean"))


@in_interpreter
@pytest.mark.parametrize("factor", [1.0, 1e7])
def test_rotate_shift_sum_triton_rounded_agrees_with_reference(factor: float) -> None:
    """Values that half precision does not have are scaled."""
    from ralib.kernels import interpolation_samples
    from ralib.kernels.interpolation import gpu_triton, reference

    images, pose, index = case(7, 13, 3, torch.float32)
    images[2] *= factor
    extra = {"weights": torch.rand(7, device=DEVICE), "half_index": torch.arange(7, device=DEVICE) % 2}
    kept = interpolation_samples(images).rounded()
    plain = reference.rotate_shift_sum(kept, *pose, index, 3, **extra)
    assert_twins(gpu_triton.rotate_shift_sum(kept, *pose, index, 3, **extra), plain, 2e-6)
    assert_twins(gpu_triton.rotate_shift_images(kept, *pose), reference.rotate_shift_images(kept, *pose), 2e-6)
    # A value that another prefilter makes one bit larger may be rounded to another number.
    assert_twins(gpu_triton.rotate_shift_sum(images, *pose, index, 3, **extra, rounded=True), plain, 3e-5)


def with_mean_boundary(images: Tensor, pose: tuple[Tensor, ...]) -> Tensor:
    from ralib.kernels.interpolation import reference

    return reference.rotate_shift_images(images, *pose, boundary="mean")


@in_interpreter
def test_interpolation_triton_no_particles_give_empty_results() -> None:
    from ralib.kernels.interpolation import gpu_triton

    images, pose, index = (value for value in case(1, 8, 1))
    nothing = images[:0], *(value[:0] for value in pose)
    assert gpu_triton.rotate_shift_images(*nothing).shape == (0, 8, 8)
    assert torch.equal(gpu_triton.rotate_shift_sum(*nothing, index[:0], 3), torch.zeros_like(images).expand(3, 8, 8))


@in_interpreter
@pytest.mark.parametrize(("n", "tolerance"), [(4, 1e-12), (13, 1e-12), (19, 1e-6), (44, 1e-6), (61, 1e-6)])
def test_solved_triton_agrees_with_prefilter_matrix(n: int, tolerance: float) -> None:
    """Boxes of one block of rows, where it is exact, and of several."""
    from ralib.kernels.interpolation import gpu_triton, reference

    images, _, _ = case(3, n, 1)
    matrix = reference.prefilter_matrix(images, "zero")
    assert_twins(
        gpu_triton.solved(images, matrix, "zero")[0],
        reference.padded(images, matrix, "zero")[0],
        tolerance,
    )


@in_interpreter
def test_rotate_shift_sum_triton_every_particle_is_added_once() -> None:
    """Runs that hold several classes, classes of several runs, empty classes, particles of no class at the end."""
    from ralib.kernels.interpolation import gpu_triton

    index = torch.tensor([2, 0, -1, 2, 2, 0, 2, 2, 4, -1], device=DEVICE)
    images = 2.0 ** torch.arange(10, device=DEVICE, dtype=torch.float64)[:, None, None].expand(10, 4, 4)
    nothing = torch.zeros(10, device=DEVICE)
    pose = nothing, torch.zeros(10, 2, device=DEVICE), nothing > 0
    for length in (1, 2, 3, 16):
        sums = gpu_triton.rotate_shift_sum(images, *pose, index, 5, method="linear", run_length=length)
        assert sums[:, 1, 1].tolist() == [2 + 32, 0, 1 + 8 + 16 + 64 + 128, 0, 256]
