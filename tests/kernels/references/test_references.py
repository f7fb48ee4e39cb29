"""The Triton forms of what is made of references against their reference: on the GPU where there is one, else in
Triton's interpreter, in a process of their own (see `interpreter`)."""

from __future__ import annotations

import pytest
import torch

from interpreter import in_interpreter
from ralib.kernels.references import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@in_interpreter
@pytest.mark.parametrize(("k", "box"), [(1, 20), (3, 75)])
def test_masked_unit_norm_triton_agrees_with_reference(k: int, box: int) -> None:
    """Also of a constant reference."""
    from ralib.kernels.references import gpu_triton

    random = torch.Generator().manual_seed(box)
    references, mask = torch.randn(k, box, box, generator=random) + 3, torch.rand(box, box, generator=random)
    references[-1] = 2.0 if k > 1 else references[-1]
    given = references.to(DEVICE).transpose(1, 2), mask.to(DEVICE)
    found, expected = gpu_triton.masked_unit_norm(*given), reference.masked_unit_norm(*given)
    some = slice(0, max(1, k - 1))
    torch.testing.assert_close(found[some], expected[some], rtol=1e-4, atol=1e-6)
    assert torch.linalg.vector_norm(found[0]).item() == pytest.approx(1, abs=1e-5)


@in_interpreter
@pytest.mark.parametrize(("k", "rings", "n_filters"), [(1, 20, 5), (6, 46, 33), (2, 150, 16)])
def test_nearest_filter_triton_agrees_with_reference(k: int, rings: int, n_filters: int) -> None:
    """Of curves that fall at a ring each, rise again, and of one that begins below."""
    from ralib.kernels.references import gpu_triton

    random = torch.Generator().manual_seed(rings)
    fall = torch.linspace(0.2, 0.9, n_filters)[:, None]
    filters = torch.sigmoid(20 * (fall - torch.linspace(0, 1, rings)))
    curve = filters[torch.randint(n_filters, (k,), generator=random)] + 0.05 * torch.rand(k, rings, generator=random)
    curve[:, -1] = 0.9
    curve[-1, 1] = curve[-1, 1] if k == 1 else 0.0
    found = gpu_triton.nearest_filter(curve.to(DEVICE), filters.to(DEVICE)).cpu()
    assert torch.equal(found, reference.nearest_filter(curve, filters))
    assert k == 1 or found[-1] == 0


@in_interpreter
@pytest.mark.parametrize(("k", "n_radii", "m"), [(1, 8, 24), (20, 19, 70), (3, 72, 144)])
def test_template_extent_triton_agrees_with_reference(k: int, n_radii: int, m: int) -> None:
    """Of power that falls with radius and order; the spectrum is part of a larger one."""
    from ralib.kernels.references import gpu_triton

    random = torch.Generator().manual_seed(m)
    whole = torch.randn(k, n_radii, m + 5, dtype=torch.complex64, generator=random)
    fall = torch.exp(-torch.arange(n_radii)[:, None] / n_radii * 5 - torch.arange(m + 5) / m * 9)
    weight, radius = torch.rand(n_radii, generator=random) + 0.1, torch.linspace(0, 3, n_radii)
    share = torch.tensor([[1e-2], [1e-6]], dtype=torch.float64)
    given = [part.to(DEVICE) for part in ((whole * fall)[..., :m], weight, radius, share)]
    found, expected = gpu_triton.template_extent(*given), reference.template_extent(*given)
    assert torch.equal(found[:4], expected[:4])
    assert (expected[:4] > 0).all()
    assert expected[0] < expected[1]
    torch.testing.assert_close(found[4], expected[4], rtol=1e-6, atol=0.0)


@in_interpreter
def test_template_extent_of_nothing_is_nothing() -> None:
    from ralib.kernels.references import gpu_triton

    one = torch.ones(8, device=DEVICE)
    given = torch.zeros(1, 8, 6, dtype=torch.complex64, device=DEVICE), one, one, 1e-3 * one[:2, None].double()
    assert torch.equal(gpu_triton.template_extent(*given), reference.template_extent(*given))


@in_interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("m", "n_radii", "columns", "mirror"), [(3, 8, 5, True), (2, 40, 33, False), (1, 32, 9, True)])
def test_product_rows_triton_agree_with_reference(
    m: int, n_radii: int, columns: int, mirror: bool, dtype: torch.dtype
) -> None:
    """In some columns of a longer table, the others of which stay as they were."""
    from ralib.kernels.references import gpu_triton

    random = torch.Generator().manual_seed(n_radii)
    orders = torch.randn(m, 2, n_radii, columns, generator=random).to(DEVICE)
    weight, largest = torch.rand(n_radii, generator=random).to(DEVICE), torch.tensor(1.7, device=DEVICE)
    tables = [torch.full((m, columns + 3, 2 * (1 + mirror), 2 * n_radii), 7.0, dtype=dtype, device=DEVICE)] * 2
    found, expected = (table.clone() for table in tables)
    gpu_triton.product_rows(orders, weight, largest, found[:, 2 : 2 + columns])
    reference.product_rows(orders, weight, largest, expected[:, 2 : 2 + columns])
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-3)
    assert (found[:, :2] == 7).all()
    assert not (found[:, 2] == 7).any()
