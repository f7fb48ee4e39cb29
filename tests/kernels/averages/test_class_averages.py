"""The Triton forms of what is done with class averages against their reference: on the GPU where there is one, else in
Triton's interpreter, in a process of their own (see `interpreter`)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from interpreter import in_interpreter
from ralib.classification.quarter_waves import QuarterWaves
from ralib.classification.sharding import Shard
from ralib.kernels.averages import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def orders_like(*shape: int) -> Tensor:
    random = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=random, dtype=torch.complex64).to(DEVICE)


@in_interpreter
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 58), (2, 3, 128), (1, 2, 200), (0, 4, 9)])
def test_ring_power_triton_agrees_with_reference(shape: tuple[int, int, int]) -> None:
    from ralib.kernels.averages import gpu_triton

    whole = orders_like(shape[0] + 1, shape[1] + 2, shape[2])
    for orders in (whole[1:], whole[1:, : shape[1]], whole[1:].conj()):
        torch.testing.assert_close(gpu_triton.ring_power(orders), reference.ring_power(orders))


def sums_of_halves(k: int, rings: int, n_orders: int) -> tuple[Tensor, ...]:
    """Sums of halves that share a signal, weaker on each further ring; the last class has no members, a ring no
    power."""
    random = torch.Generator().manual_seed(k)
    signal = torch.randn(k, rings, n_orders, 2, generator=random, dtype=torch.float64)
    noise = torch.randn(2, k, rings, n_orders, 2, generator=random, dtype=torch.float64)
    noise *= torch.linspace(0.05, 3, rings, dtype=torch.float64)[:, None, None]
    weight = torch.rand(2, k, rings, generator=random, dtype=torch.float64) + 0.5
    numerator = (signal + noise) * weight[..., None, None]
    members = torch.randint(1, 200, (k,), generator=random).float()
    if k > 1:
        members[-1], numerator[:, -1], weight[:, -1] = 0, 0, 0
    if rings > 1:
        numerator[:, :, rings // 2], weight[:, :, rings // 2] = 0, 0
    ring_weight = torch.rand(rings, generator=random) + 0.1
    return tuple(t.to(DEVICE) for t in (numerator, weight, members, ring_weight, ring_weight * 7))


@in_interpreter
@pytest.mark.parametrize(
    ("k", "rings", "n_orders"), [(1, 1, 1), (1, 1, 7), (3, 2, 58), (5, 11, 128), (2, 7, 200), (131, 3, 5), (2, 130, 3)]
)
def test_wiener_averages_triton_agree_with_reference(k: int, rings: int, n_orders: int) -> None:
    """Also where blocks of classes, rings and orders end early."""
    from ralib.kernels.averages import gpu_triton

    given = sums_of_halves(k, rings, n_orders)
    expected, found = reference.wiener_averages(*given), gpu_triton.wiener_averages(*given)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
    if k > 1 and rings > 1:
        assert not found[1][:, -1].any(), "a class without members has no halves"
        assert not found[2][:, rings // 2].any(), "a ring without power has no FRC"
        even = gpu_triton.wiener_averages(*given[:2], torch.ones_like(given[2]), *given[3:])
        assert not torch.allclose(even[3], expected[3], rtol=1e-3), "the gain depends on the members"


@in_interpreter
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 33, 33), (2, 40, 40)])
def test_share_of_signal_triton_agrees_with_reference(shape: tuple[int, int, int]) -> None:
    from ralib.kernels.averages import gpu_triton

    both = torch.view_as_real(orders_like(*shape)).movedim(-1, 0)
    both[:, :, 0] = 0
    products, expected = (form.half_products(*both) for form in (gpu_triton, reference))
    torch.testing.assert_close(products, expected)
    correlation = products[0] + 0.3, products[1]
    share = gpu_triton.correlated_share(*correlation)
    torch.testing.assert_close(share, reference.correlated_share(*correlation))
    assert float(share.min()) >= 0.0
    assert float(share.max()) == 1.0


@in_interpreter
@pytest.mark.parametrize(("rows", "n_orders", "n_half"), [(1, 1, 8), (7, 5, 8), (4, 58, 72), (3, 8, 8), (2, 9, 8)])
def test_circle_spectra_triton_are_those_of_the_reference(rows: int, n_orders: int, n_half: int) -> None:
    """Also with as many orders as the half circle has samples, and more."""
    from ralib.kernels.averages import gpu_triton

    orders = orders_like(rows, n_orders)
    assert torch.equal(gpu_triton.circle_spectra(orders, n_half), reference.circle_spectra(orders, n_half))


@in_interpreter
@pytest.mark.parametrize(("b", "box", "rings", "n_half"), [(1, 8, 1, 8), (3, 33, 5, 16), (2, 48, 2, 264), (0, 9, 2, 8)])
def test_quarter_waves_triton_agree_with_reference(b: int, box: int, rings: int, n_half: int) -> None:
    """Also where a disc has more pixels, and a circle more angles, than a block."""
    from ralib.kernels.averages import gpu_triton

    angle = torch.arange(n_half, dtype=torch.float64) * (math.pi / n_half)
    waves = QuarterWaves.of(box, box / 2 - 1, torch.arange(rings).double() / 40 + 0.1, angle, DEVICE)
    images, samples = orders_like(b, box, box).real, orders_like(b, rings, n_half)
    matrices = waves.cos_cos, waves.sin_sin, waves.sin_cos, waves.cos_sin
    for form in (gpu_triton, reference):
        pixels, angles = form.quarter_pixels(images, waves.pixel, waves.share), form.quarter_circle(samples)
        found = (
            form.half_circle(tuple(part @ m for part, m in zip(pixels, matrices, strict=True)), rings),
            form.whole_images(tuple(part @ m.T for part, m in zip(angles, matrices, strict=True)), waves.pixel, box),
        )
        assert found[0].shape == samples.shape
        torch.testing.assert_close(found[0], waves.samples(images, 0, rings), rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found[1], waves.images(samples), rtol=1e-5, atol=1e-4)
        assert not found[1].flatten(1)[:, 0].any(), "nothing outside the disc"
        assert not b or float(found[0].std()) > 1.0 < float(found[1].std())


def posed(n: int, k: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor, Tensor]:
    """Particles at poses in all classes but the last, some of them not usable."""
    random = torch.Generator().manual_seed(n)
    psi, origin = 360 * torch.rand(n, generator=random) - 180, 5 * torch.randn(n, 2, generator=random) + 2
    mirror, usable = (torch.rand(n, generator=random) < share for share in (0.5, 0.8))
    to = torch.randint(0, max(1, k - 1), (n,), generator=random)
    members = torch.bincount(to[usable], minlength=k).float()
    return tuple(t.to(DEVICE) for t in (psi, origin, mirror)), *(t.to(DEVICE) for t in (usable, to, members))


@in_interpreter
@pytest.mark.parametrize(("n", "k"), [(1, 1), (300, 7), (257, 1), (40, 300), (0, 3)])
def test_centred_origins_triton_agree_with_reference(n: int, k: int) -> None:
    from ralib.kernels.averages import gpu_triton

    given = posed(n, k)
    expected, found = (form.centred_origins(*given, Shard.of_all(n)) for form in (reference, gpu_triton))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if n > 1:
        assert float((found[0] - given[0][1]).abs().max()) > 0.2, "the particles have moved"
        other = (given[0][0], given[0][1], ~given[0][2]), *given[1:]
        assert not torch.allclose(reference.centred_origins(*other, Shard.of_all(n))[1], found[1], atol=1e-2)


@dataclass
class OneOfSeveral:
    """One rank's view of all n particles: what the others add, and what this one was asked to add up."""

    n: int
    most: Tensor
    others: Tensor | float = 0.0
    parts: list[Tensor] = field(default_factory=list)

    def largest(self, values: Tensor) -> Tensor:
        return self.most

    def sum_by(self, group: Tensor, values: Tensor, n_groups: int) -> Tensor:
        raise NotImplementedError

    def add_up(self, part: Tensor) -> Tensor:
        self.parts.append(part.clone())
        return part.add_(self.others)


@in_interpreter
@pytest.mark.parametrize("cut", [0, 1, 100, 300])
def test_centred_origins_triton_of_ranks_are_those_of_one_to_the_bit(cut: int) -> None:
    from ralib.kernels.averages import gpu_triton

    (psi, origin, mirror), usable, to, members = posed(300, 5)
    # Of such different sizes, sums in float64 depend on the order unless their terms have one quantum.
    pose = psi, origin * 10.0 ** -torch.arange(0, 12, 0.04, device=DEVICE)[:, None], mirror
    most = torch.tensor(25.0, device=DEVICE)
    whole, together = OneOfSeveral(300, most), gpu_triton.centred_origins
    origin, move = together(pose, usable, to, members, whole)
    rows, sums = (slice(None, cut), slice(cut, None)), []
    for own in rows:
        rank = OneOfSeveral(300, most)
        together(tuple(t[own] for t in pose), usable[own], to[own], members, rank)
        sums += rank.parts
    assert torch.equal(sums[0] + sums[1], whole.parts[0])
    for own, others in zip(rows, sums[::-1], strict=True):
        rank = OneOfSeveral(300, most, others)
        part = together(tuple(t[own] for t in pose), usable[own], to[own], members, rank)
        assert torch.equal(part[0], origin[own])
        assert torch.equal(part[1], move)
