"""The Triton forms of an iteration's figures against their reference: on the GPU where there is one, else in Triton's
interpreter, in a process of their own (see `interpreter`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interpreter import in_interpreter
from ralib.images.fourier import hermitian_weight, ring_index
from ralib.kernels.figures import PoseFields, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_poses(n: int, n_classes: int, seed: int) -> PoseFields:
    """Poses of which some belong to no class."""
    random = torch.Generator().manual_seed(seed)
    angle, score = 360 * torch.rand(n, generator=random) - 180, torch.randn(n, generator=random)
    index = torch.randint(-1, n_classes, (n,), generator=random)
    mirror = torch.rand(n, generator=random) < 0.3
    parts = angle, torch.randn(n, 2, generator=random), mirror, index, score
    return tuple(part.to(DEVICE) for part in parts)  # type: ignore[return-value]


def some(n: int) -> Tensor:
    return torch.arange(n, device=DEVICE) % 3 != 0


@in_interpreter
@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("n", "n_classes"), [(1, 1), (700, 1), (1500, 4), (0, 2)])
def test_pose_sums_triton_agree_with_reference(n: int, n_classes: int, first: bool, counted: bool) -> None:
    from ralib.kernels.figures import gpu_triton

    now, before = random_poses(n, n_classes, 1), None if first else random_poses(n, n_classes, 2)
    if n > 10 and before is not None:  # some changed nothing
        for new, old in zip(now, before, strict=True):
            new[: n // 2] = old[: n // 2]
    given = now, before, some(n) if counted else None, 20.0, n_classes
    for ours, theirs in zip(gpu_triton.pose_sums(*given), reference.pose_sums(*given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@in_interpreter
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(("k", "box"), [(1, 16), (3, 33), (2, 48)])
def test_ring_correlation_triton_agrees_with_reference(k: int, box: int, dtype: torch.dtype) -> None:
    """Also where a ring has no power, and where one set is not contiguous."""
    from ralib.kernels.figures import gpu_triton

    random = torch.Generator().manual_seed(box)
    spectra = torch.randn(2, k, box // 2 + 1, box, dtype=dtype, generator=random).to(DEVICE).transpose(-1, -2)
    ring = ring_index(box, spectra.device)
    spectra = torch.where(ring == 2, 0, spectra + spectra[:1])
    given = spectra, ring, hermitian_weight(box, spectra.device)
    found, expected = gpu_triton.ring_correlation(*given), reference.ring_correlation(*given)
    assert found.dtype == expected.dtype == spectra.real.dtype
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not found[:, 2].any()
    assert (found[:, 3:] > 0.3).all()
