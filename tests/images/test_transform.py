"""The public calls: EMAN2's numbers, the same kind of array out, mistakes told in one line."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ralib.images.transform import rotate_shift, rotate_shift_average
from ralib.types import RalibError


@pytest.fixture(scope="module")
def eman2(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "operations.npz") as data:
        names = ("images", "alpha_sx_sy_mirror", "rot_shift2D_quadratic_background", "rot_shift2D_linear_cyclic")
        return {name: data[name] for name in names}


def parameters(eman2: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip(("alpha", "sx", "sy", "mirror"), eman2["alpha_sx_sy_mirror"].T, strict=True))


def test_rotate_shift_stack_agrees_with_eman2_rot_shift2D(eman2: dict[str, np.ndarray]) -> None:
    expected = eman2["rot_shift2D_quadratic_background"]
    turned = rotate_shift(eman2["images"], **parameters(eman2), method="quadratic")
    assert isinstance(turned, np.ndarray)
    assert turned.dtype == np.float32
    assert np.abs(turned - expected).max() < 1e-4 * expected.std()
    other = rotate_shift(eman2["images"], **parameters(eman2), method="linear", boundary="cyclic")
    expected = eman2["rot_shift2D_linear_cyclic"]
    assert np.abs(other - expected).max() < 1e-4 * expected.std()


def test_rotate_shift_average_agrees_with_eman2_loop(eman2: dict[str, np.ndarray]) -> None:
    classes = np.array([0, 2, 2, 0, -1, 2, 0, 2])
    averages = rotate_shift_average(eman2["images"], **parameters(eman2), classes=classes, method="quadratic")
    turned = eman2["rot_shift2D_quadratic_background"]
    for k in (0, 2):
        expected = turned[classes == k].mean(0)
        assert np.abs(averages[k] - expected).max() < 1e-4 * turned.std()
        assert np.abs(averages[k] - turned[:4].mean(0)).max() > 1e-2 * turned.std()
    assert averages.shape == (3, 64, 64)
    assert not averages[1].any()
    assert len(rotate_shift_average(eman2["images"], 0, 0, 0, 0, classes, n_classes=5)) == 5


@pytest.mark.parametrize("name", ["eman2_dropin", "cupy_dropin"])
def test_examples_of_images_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each compares its result with another program's or library's, and exits where they differ."""
    path = Path(__file__).resolve().parents[2] / "examples" / f"{name}.py"
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_rotate_shift_one_image_and_plain_numbers_are_accepted() -> None:
    image = np.random.default_rng(0).standard_normal((9, 9))
    turned = rotate_shift(image, 90, 0, 0, method="linear")
    assert turned.shape == (9, 9)
    assert turned.dtype == np.float64
    # EMAN2's alpha runs the other way than ours: 90 degrees take the y axis, down the rows, to the x axis.
    np.testing.assert_allclose(turned, np.rot90(image), atol=1e-6)


def test_rotate_shift_torch_tensor_gives_torch_tensor_on_its_device() -> None:
    images = torch.randn(5, 12, 12, generator=torch.Generator().manual_seed(0))
    alpha = torch.tensor([0.0, 10, 20, 30, 40])
    turned = rotate_shift(images, alpha, 1.5, 0.0, alpha > 20)
    assert isinstance(turned, torch.Tensor)
    assert torch.equal(turned, rotate_shift(images, alpha, 1.5, 0.0, alpha > 20, device="cpu"))
    average = rotate_shift_average(images, alpha, 1.5, 0.0, alpha > 20, torch.zeros(5, dtype=torch.int32))
    torch.testing.assert_close(average[0], turned.mean(0), atol=1e-6, rtol=0)


def test_rotate_shift_jax_array_gives_jax_array() -> None:
    jnp = pytest.importorskip("jax.numpy", reason="jax is not installed")
    images = np.random.default_rng(1).standard_normal((3, 8, 8)).astype(np.float32)
    alpha = np.array([0.0, 45.0, 90.0])
    turned = rotate_shift(jnp.asarray(images), jnp.asarray(alpha), 0, 1, jnp.array([True, False, True]))
    assert isinstance(turned, jnp.ndarray)
    np.testing.assert_allclose(np.asarray(turned), rotate_shift(images, alpha, 0, 1, [1, 0, 1]), atol=1e-5)
    averages = rotate_shift_average(jnp.asarray(images), alpha, 0, 1, 0, jnp.array([0, 1, 1]))
    assert isinstance(averages, jnp.ndarray)


def test_rotate_shift_input_is_not_changed() -> None:
    images = np.random.default_rng(2).standard_normal((3, 8, 8)).astype(np.float32)
    before = images.copy()
    rotate_shift_average(images, 10, 1, 1, 1, [0, 0, 1], boundary="mean")
    assert np.array_equal(images, before)


GOOD: dict[str, Any] = {
    "images": np.zeros((3, 8, 8), np.float32),
    "alpha": np.zeros(3),
    "sx": 0,
    "sy": 0,
    "mirror": 0,
    "classes": np.array([0, 1, 1]),
}
MISTAKES = [
    ({"images": np.zeros((3, 8, 7))}, r"images have shape \(3, 8, 7\): pass"),
    ({"images": np.zeros(8)}, r"images have shape \(8,\): pass"),
    ({"images": np.zeros((3, 3, 3))}, "images are 3 px: at least 4"),
    ({"images": np.zeros((3, 8, 8), complex)}, "images holds complex128: numbers"),
    ({"images": torch.zeros(3, 8, 8, dtype=torch.complex64)}, "images are torch.complex64: transform"),
    ({"images": np.zeros((0, 8, 8)), "alpha": 0, "classes": []}, "there are no images"),
    ({"images": np.full((3, 8, 8), np.nan)}, r"image 0 \(3 in all\) holds NaN"),
    ({"images": "stack.hdf"}, "images is a str: pass"),
    ({"alpha": np.zeros(2)}, "alpha has 2 values for 3 images"),
    ({"sx": np.array([0, np.nan, 0])}, "sx is nan for image 1"),
    ({"sy": np.inf}, "sy is inf for image 0"),
    ({"classes": np.array([0, 1])}, "classes has 2 values for 3 images"),
    ({"classes": np.array([0, 1, 0.5])}, "classes holds numbers that are not whole"),
    ({"classes": np.array([0, 1, -2])}, "classes run from -2 to 1 with 2 classes"),
    ({"n_classes": 1}, "classes run from 0 to 1 with 1 classes"),
    ({"method": "best"}, "method 'best' is unknown: choose one of"),
    ({"boundary": "black"}, "boundary 'black' is unknown: choose one of"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_rotate_shift_wrong_arguments_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RalibError, match=message) as told:
        rotate_shift_average(**{**GOOD, **change})
    assert "\n" not in str(told.value)


def test_rotate_shift_right_arguments_are_accepted() -> None:
    assert rotate_shift_average(**GOOD).shape == (2, 8, 8)


def pose_tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    """alpha, sx, sy of two images off every special angle and grid point, to be differentiated by."""
    values = ([13.7, 201.3], [0.31, 1.23], [-0.47, 0.71])
    return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]


@pytest.mark.parametrize("method", ["cubic", "quadratic", "linear"])
@pytest.mark.parametrize("boundary", ["background", "zero", "mean", "cyclic"])
def test_rotate_shift_gradients_in_images_and_poses_are_right(method: str, boundary: str) -> None:
    images = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mirror = torch.tensor([False, True])

    def turned(images: torch.Tensor, *pose: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = rotate_shift(images, *pose, mirror, method=method, boundary=boundary)
        return result

    assert torch.autograd.gradcheck(turned, (images, *pose_tensors(torch.float64)))

    def wrong(images: torch.Tensor, *pose: torch.Tensor) -> torch.Tensor:
        return turned(images, *pose).detach() + turned(images, *pose) * 0.5

    assert not torch.autograd.gradcheck(wrong, (images, *pose_tensors(torch.float64)), raise_exception=False)


def test_rotate_shift_average_gradients_are_right() -> None:
    images = torch.randn(2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def averaged(images: torch.Tensor, *pose: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = rotate_shift_average(images, *pose, [0, 1], [0, 0])
        return result

    assert torch.autograd.gradcheck(averaged, (images, *pose_tensors(torch.float64)))


def test_rotate_shift_single_precision_keeps_the_graph_and_the_values() -> None:
    """Poses alone may be wanted: an image is fitted to another by its pose."""
    images = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))
    pose = pose_tensors(torch.float32)
    turned = rotate_shift(images, *pose)
    plain = rotate_shift(images, *[value.detach() for value in pose])
    assert turned.requires_grad
    assert not plain.requires_grad
    assert torch.allclose(turned, plain, atol=1e-4)
    turned.square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.abs().min() > 0) for value in pose)
    assert isinstance(rotate_shift(images.numpy(), *pose), np.ndarray)
