"""The Triton forms of what is computed of shifted samples against their reference: on the GPU where there is one, else
in Triton's interpreter, in a process of their own (see `interpreter`)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from interpreter import in_interpreter
from ralib.kernels.classes import reference
from ralib.kernels.classes.reference import PosedParticles, PosedTerms, Rings

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = [(1, 1, 8, 1), (3, 5, 16, 9), (40, 9, 24, 24), (33, 34, 40, 35)]
"""Particles, rings, angles and angular orders: blocks of all of these end early, or fit."""


@pytest.fixture(autouse=True)
def undefined_is_nan() -> Iterator[None]:
    """What `torch.empty` returns, so that what is never written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def rings_of(n_rings: int, n_half: int) -> Rings:
    frequency = 0.04 * (torch.arange(n_rings, device=DEVICE) + 0.5)
    return Rings(frequency, torch.arange(n_half, device=DEVICE) * (math.pi / n_half))


def samples_of(n: int, n_rings: int, n_half: int, random: torch.Generator) -> Tensor:
    """Samples on two more rings, a part of longer rows as an inverse FFT leaves it."""
    whole = torch.randn(n, n_rings + 2, 2 * n_half, generator=random, dtype=torch.complex64)
    return whole.to(DEVICE)[..., :n_half]


def places_of(b: int, n: int, k: int, random: torch.Generator) -> PosedParticles:
    """Poses that are parts of longer tables."""
    row, to = torch.randint(0, n, (b,), generator=random), torch.randint(0, k, (b,), generator=random)
    shift, psi = 4 * torch.randn(b, 2, generator=random), 720 * torch.rand(b, generator=random) - 360
    fields = row, shift, psi, torch.rand(b, generator=random) < 0.5, to
    return PosedParticles(*(f.to(DEVICE).repeat_interleave(2, 0)[::2] for f in fields))


@in_interpreter
@pytest.mark.parametrize(("b", "n_rings", "n_half", "n_orders"), SIZES)
def test_moved_orders_triton_agree_with_reference(b: int, n_rings: int, n_half: int, n_orders: int) -> None:
    """Of some of the samples in any order, of the first ones, and of none."""
    from ralib.kernels.classes import gpu_triton

    random = torch.Generator().manual_seed(b)
    samples, places, rings = (
        samples_of(b, n_rings, n_half, random),
        places_of(b, b, 1, random),
        rings_of(n_rings, n_half),
    )
    for row in (places.row, None):
        given = places.shift_xy_px, rings, n_orders, row
        found, expected = (form.moved_orders(samples, *given) for form in (gpu_triton, reference))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)
    assert not torch.allclose(found, reference.moved_orders(samples, 1.01 * places.shift_xy_px, rings, n_orders))
    none = gpu_triton.moved_orders(samples[:0], places.shift_xy_px[:0], rings, n_orders)
    assert none.shape == (0, n_rings, n_orders)


@in_interpreter
@pytest.mark.parametrize(("n", "n_rings", "n_half", "n_orders"), SIZES)
def test_add_posed_triton_agrees_with_reference_in_any_chunks(n: int, n_rings: int, n_half: int, n_orders: int) -> None:
    """Also of terms of no weight, and of no terms."""
    from ralib.kernels.classes import gpu_triton

    random, b, k = torch.Generator().manual_seed(n), 25, 3
    samples, places = samples_of(n, n_rings, n_half, random), places_of(b, n, k, random)
    power = torch.rand(n, n_rings + 2, generator=random).to(DEVICE)
    weight, scale = torch.rand(2, b, generator=random).to(DEVICE)
    weight[::3], rings = 0, rings_of(n_rings, n_half)
    anchors = torch.tensor([[1.5 * 2.0**10], [96.0]], dtype=torch.float64, device=DEVICE).repeat(1, n_rings)
    terms = PosedTerms(places, weight, scale, anchors)

    def sums(form: ModuleType, given: PosedTerms, at_once: int) -> tuple[Tensor, Tensor]:
        numerator = torch.zeros(k, n_rings, n_orders, 2, dtype=torch.float64, device=DEVICE)
        out = numerator, torch.zeros(k, n_rings, dtype=torch.float64, device=DEVICE)
        form.add_posed(samples, power, given, rings, out, at_once)
        return out

    back = PosedParticles(*(f.flip(0) for f in places.fields()))
    backwards = PosedTerms(back, weight.flip(0), scale.flip(0), anchors)
    unmirrored = PosedParticles(*places.fields()[:3], ~places.mirror, places.to)
    found, expected = sums(gpu_triton, terms, 7), sums(reference, terms, 7)
    for mine, other, theirs in zip(found, sums(gpu_triton, backwards, 32), expected, strict=True):
        assert torch.equal(mine, other), "sums are exact"
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    wrong = sums(reference, PosedTerms(unmirrored, weight, scale, anchors), 7)
    assert n_orders == 1 or not torch.allclose(found[0], wrong[0], rtol=1e-4, atol=1e-4)
    assert not sums(gpu_triton, terms.part(slice(0)), 7)[0].any()
    assert not sums(gpu_triton, terms.part(slice(0, 1)), 7)[0].any(), "the first term has no weight"


@in_interpreter
@pytest.mark.parametrize(("b", "n_rings", "n_half", "n_orders"), SIZES)
def test_half_columns_triton_agree_with_reference(b: int, n_rings: int, n_half: int, n_orders: int) -> None:
    """Also of a particle of zeros, and of none."""
    from ralib.kernels.classes import gpu_triton

    random = torch.Generator().manual_seed(b)
    samples, rings = samples_of(b, n_rings, n_half, random), rings_of(n_rings, n_half)
    samples[-1] *= float(b > 1)
    given = places_of(b, b, 1, random).shift_xy_px, rings, n_orders, 8
    (found, norm), (expected, norms) = (form.half_columns(samples, *given) for form in (gpu_triton, reference))
    assert found.shape == (n_orders, -(-2 * n_rings // 8) * 8, b)
    torch.testing.assert_close(norm, norms, rtol=1e-5, atol=0)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)
    alone = gpu_triton.half_columns(samples[:1], given[0][:1], *given[1:])
    assert torch.equal(alone[1], norm[:1]), "no particle beside makes a difference"
    assert torch.equal(alone[0], found[..., :1])
    none = gpu_triton.half_columns(samples[:0], given[0][:0], *given[1:])
    assert none[0].shape == (*found.shape[:2], 0)


@in_interpreter
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("k", "n_shifts", "n_rings", "n_orders"), [(1, 1, 1, 1), (3, 2, 5, 33), (2, 5, 16, 9), (2, 9, 19, 40)]
)
def test_half_rows_triton_agree_with_reference(
    k: int, n_shifts: int, n_rings: int, n_orders: int, mirror: bool
) -> None:
    """Also of classes of very different heights, and of a class of zeros."""
    from ralib.kernels.classes import gpu_triton

    random = torch.Generator().manual_seed(k)
    orders = torch.randn(k, n_shifts, n_rings, n_orders, dtype=torch.complex64, generator=random).to(DEVICE)
    orders *= 1e6 ** torch.arange(k, device=DEVICE)[:, None, None, None]
    orders[0] *= float(k != 3)
    (found, height), (expected, heights) = (form.half_rows(orders, mirror, 8) for form in (gpu_triton, reference))
    assert torch.equal(height, heights)
    assert found.shape == (n_orders, k * n_shifts * (4 if mirror else 2), -(-2 * n_rings // 8) * 8)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


@in_interpreter
def test_half_rows_times_half_columns_are_the_cross_spectra() -> None:
    """Real and imaginary part of sum_k conj(T) X, then of sum_k T X."""
    from ralib.kernels.classes import gpu_triton

    random, k, n_rings, n_orders, b = torch.Generator().manual_seed(6), 2, 5, 7, 3
    samples, rings = samples_of(b, n_rings, 8, random), rings_of(n_rings, 8)
    shift = places_of(b, b, 1, random).shift_xy_px
    orders = torch.randn(k, 1, n_rings, n_orders, dtype=torch.complex64, generator=random).to(DEVICE)
    particles = reference.moved_orders(samples, shift, rings, n_orders)
    pairs = [torch.einsum("krm,brm->mkb", t[:, 0].resolve_conj(), particles) for t in (orders.conj(), orders)]
    expected = torch.view_as_real(torch.stack(pairs, dim=2)).permute(0, 1, 2, 4, 3).flatten(1, 3)
    for form in (gpu_triton, reference):
        (rows, height), (columns, norm) = (
            form.half_rows(orders, True, 8),
            form.half_columns(samples, shift, rings, n_orders, 8),
        )
        found = torch.bmm(rows.float(), columns.float()) * height.repeat_interleave(4)[:, None] * norm
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))


@in_interpreter
@pytest.mark.parametrize(("n", "n_rings", "count"), [(1, 1, 1), (5, 33, 2), (70, 40, 3), (0, 4, 3)])
def test_sum_bounds_triton_agree_with_reference(n: int, n_rings: int, count: int) -> None:
    from ralib.kernels.classes import gpu_triton

    random = torch.Generator().manual_seed(n)
    energy, power = torch.rand(2, n, n_rings, generator=random).to(DEVICE)
    weight, scale = torch.rand(2, count, n, generator=random).to(DEVICE)
    found, expected = (form.sum_bounds(energy, power, weight, scale, 24) for form in (gpu_triton, reference))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert bool(n) == bool(found.any())


@in_interpreter
@pytest.mark.parametrize(("b", "n_rings", "n_half", "n_orders"), SIZES)
def test_ring_crosses_triton_agree_with_reference(b: int, n_rings: int, n_half: int, n_orders: int) -> None:
    from ralib.kernels.classes import gpu_triton

    random = torch.Generator().manual_seed(b)
    samples, places, rings = (
        samples_of(b, n_rings, n_half, random),
        places_of(b, b, 4, random),
        rings_of(n_rings, n_half),
    )
    references = torch.randn(4, n_rings, n_orders, dtype=torch.complex64, generator=random).to(DEVICE)
    found, expected = (form.ring_crosses(samples, places, references, rings) for form in (gpu_triton, reference))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5 * float(expected.abs().max()))
    assert gpu_triton.ring_crosses(samples, places.part(slice(0)), references, rings).shape == (0, n_rings)
