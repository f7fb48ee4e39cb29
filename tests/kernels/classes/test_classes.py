"""The Triton forms of the classification's E-step against their reference: on the GPU where there is one, else in
Triton's interpreter, in a process of their own (see `interpreter`)."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from interpreter import in_interpreter
from ralib.classification.templates import n_rotations
from ralib.kernels.classes import cpu_numba, reference
from ralib.kernels.classes.cpu_disc_numba import DiscWaves
from ralib.kernels.classes.reference import PoseGrid
from ralib.kernels.pose_search.reference import angular_tables

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def pose_grid(n_orders: int, n_half: int, n_shifts: int, mirror: bool) -> PoseGrid:
    orders = torch.arange(n_orders, dtype=torch.float64, device=DEVICE)
    cosine, sine = angular_tables(orders, n_half, dtype=torch.float16)
    generator = torch.Generator().manual_seed(n_half)
    return PoseGrid(cosine, sine, torch.randn(n_shifts, 2, generator=generator).to(DEVICE), mirror)


def found_by(form: ModuleType, *given: object, **options: int) -> tuple[torch.Tensor, ...]:
    """What a form writes beside other classes' columns, which stay as they were."""
    b, k = len(given[3]), len(given[1])
    whole = [torch.full((b, k + 3, *more), 7.0, device=DEVICE) for more in ((), (), (2,), ())]
    whole[3] = torch.ones(b, k + 3, dtype=torch.bool, device=DEVICE)
    form.best_in_classes(*given[:5], tuple(f[:, 2 : 2 + k] for f in whole), *given[5:], **options)
    assert all(bool((f[:, :2] == f[0, 0]).all() and (f[:, 2 + k :] == f[0, 0]).all()) for f in whole)
    return tuple(f[:, 2 : 2 + k] for f in whole)


@in_interpreter
@pytest.mark.parametrize("liked", [False, True])
@pytest.mark.parametrize(
    ("b", "k", "n_orders", "n_half", "n_shifts", "mirror"),
    [
        (16, 2, 16, 32, 1, False),
        (19, 3, 21, 40, 4, True),
        (40, 1, 7, 16, 2, True),
        (5, 2, 35, 56, 3, False),
        (20, 1, 70, 136, 2, True),
        (16, 1, 200, 304, 1, False),
    ],
)
def test_best_in_classes_triton_agrees_with_reference(
    b: int, k: int, n_orders: int, n_half: int, n_shifts: int, mirror: bool, liked: bool
) -> None:
    """Also where blocks of particles, orders and angles end early."""
    from ralib.kernels.classes import gpu_triton

    grid = pose_grid(n_orders, n_half, n_shifts, mirror)
    random = torch.Generator().manual_seed(b)
    cross = torch.randn(n_orders, k * grid.n_pairs * 2, b, generator=random).half().to(DEVICE)
    height, strength = (torch.rand(n, generator=random).to(DEVICE) + 0.5 for n in (k, b))
    origin = torch.randn(b, 2, generator=random).to(DEVICE)
    favour = -3 * torch.arange(n_shifts, dtype=torch.float32, device=DEVICE) if liked else None
    expected = found_by(reference, cross, height, strength, origin, grid, favour)
    found = found_by(gpu_triton, cross, height, strength, origin, grid, favour, particles=16)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(found[1:3], expected[1:3], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[3], expected[3])
    if liked and n_shifts > 1:
        free = found_by(reference, cross, height, strength, origin, grid)
        assert not torch.equal(free[2], expected[2]), "the favour changes the winner"


def test_best_in_classes_blocks_fit_every_card() -> None:
    """An H100's shared memory, an A100's, that of a GeForce and of the oldest cards, with up to 1,000 orders."""
    from ralib.kernels.classes.gpu_triton import RESERVED_BYTES, blocks

    for shared in (227 * 1024, 163 * 1024, 99 * 1024, 64 * 1024):
        for n_orders in range(1, 1001, 7):
            angles, orders, stages = blocks(12 * n_orders // 8, n_orders, 32, shared)
            whole = -(-n_orders // orders) * orders
            taken = 2 * 2 * whole * angles + 2 * 2 * whole * 32 * stages
            assert taken + RESERVED_BYTES <= shared or (angles, stages) == (16, 1)
    assert blocks(88, 58, 32, 227 * 1024) == (128, 64, 3)
    assert blocks(384, 256, 32, 227 * 1024) == (64, 64, 3)


@in_interpreter
def test_best_in_classes_of_own_particles_is_that_of_each_class() -> None:
    from ralib.kernels.classes import gpu_triton

    grid, random = pose_grid(12, 24, 2, True), torch.Generator().manual_seed(2)
    cross = torch.randn(12, 3 * grid.n_pairs * 2, 16, generator=random).half().to(DEVICE)
    height, strength = torch.rand(3, generator=random).to(DEVICE), torch.rand(3, 16, generator=random).to(DEVICE)
    origin = torch.randn(48, 2, generator=random).to(DEVICE)
    found = [
        [
            torch.zeros(48, 1, *more, dtype=kind, device=DEVICE)
            for more, kind in zip(((), (), (2,), ()), kinds, strict=True)
        ]
        for kinds in 2 * [(torch.float32, torch.float32, torch.float32, torch.bool)]
    ]
    for form, out in zip((reference, gpu_triton), found, strict=True):
        form.best_in_classes(cross, height, strength, origin, grid, tuple(out))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    alone = found_by(reference, cross[:, 16:24], height[2:], strength[2], origin[32:], grid)
    torch.testing.assert_close(found[0][2][32:], alone[2], rtol=1e-4, atol=1e-4)


@in_interpreter
def test_best_in_classes_of_nothing_is_the_first_pose() -> None:
    """All poses of an image of zeros are equal: the first one wins, however the kernel divides them."""
    from ralib.kernels.classes import gpu_triton

    grid = pose_grid(10, 40, 3, True)
    nothing = torch.zeros(10, grid.n_pairs * 2, 16, dtype=torch.float16, device=DEVICE)
    one, still = torch.ones(1, device=DEVICE), torch.zeros(16, 2, device=DEVICE)
    for form in (reference, gpu_triton):
        found = found_by(form, nothing, one, torch.full((16,), 1e-30, device=DEVICE), still, grid)
        assert float(found[1].min()) == float(found[1].max()) == pytest.approx(2.25)
        assert not found[3].any()


def fits(n: int, k: int, seed: int) -> torch.Tensor:
    """Fits of particles whose best classes stand out, some classes nearly alike."""
    random = torch.Generator().manual_seed(seed)
    table = torch.randn(n, k, generator=random)
    table[torch.arange(n), torch.randint(0, k, (n,), generator=random)] += 6
    table[:, k // 2] = table[:, 0] + 0.01 * torch.randn(n, generator=random)
    return table.to(DEVICE)


@in_interpreter
@pytest.mark.parametrize(
    ("n", "k", "temperature", "capped"), [(50, 7, 1.0, True), (333, 20, 4.0, True), (1, 3, 1.0, False)]
)
def test_class_prices_triton_agree_with_reference(n: int, k: int, temperature: float, capped: bool) -> None:
    from ralib.kernels.classes import gpu_triton

    fit, all_of_them = fits(n, k, seed=n), torch.tensor(n, device=DEVICE)
    steps = ((1.4, -0.4, 0.0), (1.5, -0.4, -0.1), (1.45, -0.4, -0.05), (1.0, 0.0, 0.0))
    rule = reference.PriceRule(temperature, 0.6, steps, capped, all_of_them)
    one = reference.PriceRule(temperature, 0.6, steps[:1], capped, all_of_them)
    expected = reference.class_prices(fit, rule, lambda members: members)
    found = gpu_triton.class_prices(fit, rule, lambda members: members)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # As by two ranks: the second's members are added.
    parts, whole = (fit[: n // 2], fit[n // 2 :]), []
    rest = [torch.zeros(k, dtype=torch.float64, device=DEVICE)]
    gpu_triton.class_prices(fit, one, whole.append)
    for part in parts:
        if len(part):
            gpu_triton.class_prices(part, one, rest.append)
    assert torch.equal(torch.stack(rest).sum(0), whole[0]), "the members are the same in any order, to the bit"


@in_interpreter
@pytest.mark.parametrize(("n", "k", "keep"), [(60, 9, 4), (400, 33, 8), (5, 2, 1)])
def test_thin_triton_keeps_the_classes_of_the_reference(n: int, k: int, keep: int) -> None:
    from ralib.classification.sharding import quantum_anchor
    from ralib.kernels.classes import gpu_triton

    fit, nats = fits(n, k, seed=k), torch.rand(n, generator=torch.Generator().manual_seed(k)).to(DEVICE) + 2
    rare = fit.argmax(1) == 1  # they lose little for their spread, but that is wide
    fit[rare, 1] -= 4
    nats[rare] *= 100
    anchor = quantum_anchor(torch.tensor([100.0 * n, 100_000.0 * n], device=DEVICE))
    expected, found, unlike = (
        form.thin(fit, nats, keep, reference.ThinningRule(anchor, members, 1.4, float(n)), lambda sums: sums)
        for form, members in ((reference, 5), (gpu_triton, 5), (gpu_triton, n))
    )
    assert found.tolist() == expected.tolist()
    assert int(found.sum()) == keep
    assert not (found[0] and found[k // 2]) or k == 2, "of two classes nearly alike one goes"
    if k == 33:
        assert found[1], "an exception stays"
        assert not unlike[1]


@pytest.mark.parametrize("liked", [False, True])
@pytest.mark.parametrize(
    ("b", "k", "n_shifts", "rings", "n_orders", "mirror"),
    [(16, 2, 1, 5, 12, False), (19, 3, 5, 7, 13, True), (3, 5, 9, 2, 8, True), (40, 1, 2, 4, 1, True)],
)
def test_best_poses_numba_agrees_with_reference(
    b: int, k: int, n_shifts: int, rings: int, n_orders: int, mirror: bool, liked: bool
) -> None:
    """Also of an odd number of orders, of fewer particles than lanes, and of templates that fill no whole tile."""
    random = torch.Generator().manual_seed(b)
    particles = torch.randn(b, rings, n_orders, generator=random, dtype=torch.complex64)
    templates = torch.randn(k, n_shifts, rings, n_orders, generator=random, dtype=torch.complex64)
    favour = -3 * torch.arange(n_shifts, dtype=torch.float32) if liked else None
    n_half = n_rotations(n_orders)
    from_ring = torch.arange(n_orders) * rings // (2 * n_orders) if liked else None
    options = {"mirror": mirror, "favour": favour, "from_ring": from_ring}
    expected = reference.best_poses(particles, templates, n_half, **options)
    found = cpu_numba.best_poses(particles, templates, n_half, **options)
    torch.testing.assert_close(found.cross, expected.cross, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.psi_deg, expected.psi_deg)
    assert torch.equal(found.shift, expected.shift)
    assert torch.equal(found.mirror, expected.mirror)
    if mirror and n_orders > 1:
        assert 0 < found.mirror.float().mean() < 1
    alone = cpu_numba.best_poses(particles[1:2], templates[-1:], n_half, **options)
    assert torch.equal(alone.cross[0, 0], found.cross[1, -1]), "neither particles nor classes beside make a difference"


@pytest.mark.parametrize(("b", "n_rings", "n_half", "n_orders"), [(3, 5, 16, 9), (7, 1, 8, 8), (40, 9, 80, 70)])
def test_moved_orders_numba_agree_with_reference(b: int, n_rings: int, n_half: int, n_orders: int) -> None:
    """Also of an odd number of orders, of more orders than a tile holds, and of rings that fill no whole tile."""
    random = torch.Generator().manual_seed(b)
    samples, shift = torch.randn(b, n_rings + 2, n_half, generator=random, dtype=torch.complex64), _shifts(b, random)
    rings, row = _rings(n_rings, n_half), torch.randint(0, b, (b,), generator=random)
    expected = reference.moved_orders(samples, shift, rings, n_orders, row)
    found = cpu_numba.moved_orders(samples, shift, rings, n_orders, row)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-6)
    alone = cpu_numba.moved_orders(samples[row[1]][None], shift[1:2], rings, n_orders)
    assert torch.equal(alone[0], found[1]), "no particle beside makes a difference"


def test_add_posed_numba_agrees_with_reference_in_any_order() -> None:
    random, n, n_rings, n_orders, b = torch.Generator().manual_seed(4), 6, 5, 11, 25
    samples, power = torch.randn(n, 8, 16, generator=random, dtype=torch.complex64), torch.rand(n, 8, generator=random)
    rings = _rings(n_rings, 16)
    psi, mirror = 360 * torch.rand(b, generator=random) - 180, torch.rand(b, generator=random) < 0.5
    row, to = torch.randint(0, n, (b,), generator=random), torch.randint(0, 3, (b,), generator=random)
    weight, scale = torch.rand(2, b, generator=random)
    anchors = torch.tensor([[1.5 * 2.0**10], [96.0]], dtype=torch.float64).repeat(1, n_rings)
    places = reference.PosedParticles(row, _shifts(b, random), psi, mirror, to)
    terms = reference.PosedTerms(places, weight, scale, anchors)
    turned = reference.PosedParticles(*(f.flip(0) for f in places.fields()))
    backwards = reference.PosedTerms(turned, weight.flip(0), scale.flip(0), anchors)

    def sums(form: ModuleType, given: reference.PosedTerms) -> tuple[Tensor, Tensor]:
        out = torch.zeros(3, n_rings, n_orders, 2, dtype=torch.float64), torch.zeros(3, n_rings, dtype=torch.float64)
        form.add_posed(samples, power, given, rings, out, at_once=7)
        return out

    found, turned_round, expected = sums(cpu_numba, terms), sums(cpu_numba, backwards), sums(reference, terms)
    for mine, other, theirs in zip(found, turned_round, expected, strict=True):
        assert torch.equal(mine, other), "sums are exact"
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [reference, cpu_numba])
def test_ring_crosses_are_those_of_the_turned_template(form: ModuleType) -> None:
    """Of a template turned and mirrored before its samples are taken, at any rotation."""
    random, b, k, n_half, n_orders = torch.Generator().manual_seed(3), 9, 4, 40, 20
    rings, row = _rings(6, n_half), torch.randint(0, b, (b,), generator=random)
    samples = torch.randn(b, 8, n_half, dtype=torch.complex64, generator=random)
    references = torch.randn(k, 6, n_orders, dtype=torch.complex64, generator=random)
    references[..., 0] = references[..., 0].real
    psi, mirror = 720 * torch.rand(b, generator=random) - 360, torch.rand(b, generator=random) < 0.5
    shift, to = _shifts(b, random), torch.randint(0, k, (b,), generator=random)
    orders = torch.where(mirror[:, None, None], references[to].conj(), references[to]).to(torch.complex128)
    m = torch.arange(n_orders)
    turned = orders * torch.exp(1j * torch.deg2rad(psi.double())[:, None] * m)[:, None]
    waves = torch.exp(1j * rings.angle_rad.double()[:, None] * m) * torch.where(m == 0, 1.0, 2.0)
    even, odd = turned[..., ::2] @ waves.T[::2], turned[..., 1::2] @ waves.T[1::2]  # F_-m = (-1)^m conj(F_m)
    template = even.real + 1j * odd.imag
    moved = samples[row, :6].to(torch.complex128) * rings.phase(shift)
    expected = (moved * template.conj()).real.sum(2)
    places = reference.PosedParticles(row, shift, psi, mirror, to)
    found = form.ring_crosses(samples, places, references, rings)
    torch.testing.assert_close(found.double(), expected, rtol=0.0, atol=2e-5 * float(expected.abs().max()))


def _rings(n_rings: int, n_half: int) -> reference.Rings:
    frequency = 0.04 * (torch.arange(n_rings) + 0.5)
    return reference.Rings(frequency, torch.arange(n_half) * (math.pi / n_half))


def _shifts(b: int, random: torch.Generator) -> Tensor:
    return 4 * torch.randn(b, 2, generator=random)


@pytest.mark.parametrize(("box", "b"), [(20, 3), (33, 18)])
def test_disc_waves_agree_with_sums_over_the_plane(box: int, b: int) -> None:
    """Images of angular orders and orders of images, of even and odd boxes, and of more images than lanes."""
    random, n_orders = torch.Generator().manual_seed(b), 7
    rings, radius = _rings(3, 32), box / 2 - 1
    weight = torch.tensor([0.5, 2.0, 1.0])
    waves = DiscWaves.of(box, radius, rings.frequency, weight, 12).first_rings(3, n_orders)
    orders = torch.randn(b, 3, n_orders, dtype=torch.complex64, generator=random)
    orders[..., 0] = orders[..., 0].real
    line = (torch.arange(box) - box // 2).double()
    place = torch.stack(torch.meshgrid(line, line, indexing="xy")).flatten(1)  # x, y
    # The disc has a pixel's mirror images too, also in a box whose first line has none.
    inside = (place.square().sum(0) <= radius * radius) & (place.abs().amax(0) <= box // 2 - 1)
    angle = torch.arange(64).double() * (math.pi / 32)
    turn = 2 * math.pi * (torch.cos(angle)[:, None] * place[0] + torch.sin(angle)[:, None] * place[1])
    wave = torch.exp(1j * rings.frequency[:, None, None] * turn) * inside  # (r, angles, pixels)
    m = torch.arange(n_orders)
    images = torch.randn(b, box, box, generator=random)
    samples = images.flatten(1).to(torch.complex128) @ wave.conj().flatten(0, 1).T
    expected = torch.fft.fft(samples.view(b, 3, 64), norm="forward")[..., :n_orders]
    torch.testing.assert_close(waves.orders(images).to(torch.complex128), expected, rtol=1e-4, atol=1e-4)
    negative = torch.where(m % 2 == 0, 1.0, -1.0) * orders.conj()
    every = torch.exp(1j * m[:, None] * angle)
    circle = orders.to(torch.complex128) @ every + negative[..., 1:].to(torch.complex128) @ every[1:].conj()
    expected = torch.einsum("brh,rhp,r->bp", circle, wave, weight.to(torch.complex128)).real / 64
    found = waves.images(orders).flatten(1).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
