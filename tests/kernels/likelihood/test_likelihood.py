"""The Triton forms of fits, responsibilities and own contributions against their reference: on the GPU where there is
one, else in Triton's interpreter, in a process of their own (see `interpreter`)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from interpreter import in_interpreter
from ralib.kernels.likelihood import reference
from ralib.kernels.likelihood.reference import AverageNoise, OwnNoise, SharingRule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

NUMBERS = [1, 31, 32, 300]
"""Of particles: one, a block of them, its ends, and more than one."""


def random_fields(*shape: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Fields of poses."""
    random = torch.Generator().manual_seed(seed)
    cross, psi, x, y = torch.randn(4, *shape, generator=random)
    norm, mirror = torch.rand(shape, generator=random), torch.rand(shape, generator=random) < 0.5
    origin = torch.stack([x, y], dim=-1)
    return tuple(f.to(DEVICE) for f in (100 * cross, 100 * norm, 180 * psi, 3 * origin, mirror))


def spoilt(values: Tensor) -> Tensor:
    """Values of which the last one is another."""
    return torch.cat([values.flatten()[:-1], values.flatten()[-1:] + 1]).view(values.shape)


@in_interpreter
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (37, 5), (3, 513), (700,)])
def test_fits_triton_agree_with_reference(shape: tuple[int, ...]) -> None:
    """Of tables as they are, and of columns of wider ones."""
    from ralib.kernels.likelihood import gpu_triton

    mean, spread = (torch.full((2,), value, device=DEVICE)[1] for value in (0.7, 1.5))
    for fields in (random_fields(*shape), tuple(f[..., 1] for f in random_fields(*shape, 2)[:3])):
        cross, norm = fields[:2]
        origin = random_fields(*shape)[3]
        calls = {
            "log_likelihood": (cross, norm, mean),
            "log_prior": (origin, spread, 6.0),
            "log_posterior": (cross, norm, mean, origin, spread, 6.0),
            "best_scale": (cross, norm, mean),
        }
        for name, given in calls.items():
            expected, found = (getattr(form, name)(*given) for form in (reference, gpu_triton))
            assert found.shape == expected.shape
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            if found.numel():
                with pytest.raises(AssertionError):
                    torch.testing.assert_close(spoilt(found), expected, rtol=1e-5, atol=1e-5)


@in_interpreter
@pytest.mark.parametrize("n", [0, *NUMBERS])
@pytest.mark.parametrize("k", [1, 7])
def test_pick_triton_is_that_of_the_reference(n: int, k: int) -> None:
    """In one class and in several, of poses that are the same in all classes too."""
    from ralib.kernels.likelihood import gpu_triton

    cross, norm, psi, origin, mirror = random_fields(n, k)
    same = (f[:, :1].expand(f.shape) for f in (psi, origin, mirror))
    random = torch.Generator().manual_seed(n)
    for fields in ((cross, norm, psi, origin, mirror), (cross, norm, *same)):
        for shape in ((n,), (3, n)):
            index = torch.randint(0, k, shape, generator=random).to(DEVICE)
            expected, found = (form.pick(fields, index) for form in (reference, gpu_triton))
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    candidates = random_fields(3, n)
    order = torch.rand(3, n, generator=random).argsort(dim=0).to(DEVICE)
    expected, found = (form.reordered(candidates, order) for form in (reference, gpu_triton))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    assert n < 31 or not torch.equal(found[0], candidates[0])


@in_interpreter
@pytest.mark.parametrize("n", [0, *NUMBERS])
@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (2, 1.0), (7, 3.0), (50, 3.0), (300, 1.0)])
def test_best_classes_triton_agree_with_reference(n: int, k: int, temperature: float) -> None:
    from ralib.kernels.likelihood import gpu_triton

    random = torch.Generator().manual_seed(k)
    fit, price = (torch.randn(*shape, generator=random).to(DEVICE) for shape in ((n, k), (k,)))
    rule = SharingRule(temperature, 3, 0.25)
    expected, found = (form.best_classes(4 * fit, price, rule) for form in (reference, gpu_triton))
    for mine, theirs in zip(found[:2], expected[:2], strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[2], expected[2])
    if n == 300 and k > 2:
        assert bool((found[1] == 0).any()), "small responsibilities are left out"
        free = gpu_triton.best_classes(4 * fit, 0 * price, rule)
        assert not torch.equal(free[2], found[2]), "prices count"


@in_interpreter
def test_best_classes_triton_of_equal_ones_are_the_first() -> None:
    """Also of those whose responsibility is too small to be told from 0, the best come first."""
    from ralib.kernels.likelihood import gpu_triton

    rule, price = SharingRule(1.0, 3, 1e-3), torch.zeros(5, device=DEVICE)
    fit = torch.tensor([[2.0, 2.0, 2.0, 2.0, 2.0], [-900.0, 0.0, -700.0, -500.0, -600.0]], device=DEVICE)
    posterior, weight, at = gpu_triton.best_classes(fit, price, rule)
    assert at.T.tolist() == [[0, 1, 2], [1, 3, 4]]
    torch.testing.assert_close(posterior, torch.tensor([0.2, 1.0], device=DEVICE))
    torch.testing.assert_close(weight.T, torch.tensor([[1 / 3] * 3, [1.0, 0.0, 0.0]], device=DEVICE))
    among = torch.tensor([[1, 3], [0, 2]], device=DEVICE)
    found = gpu_triton.best_classes(fit, price, rule, among)
    assert found[2][:, 1].tolist() == [0, 1] or found[2][:, 1].tolist() == [1, 0]
    assert float(found[0][0]) == pytest.approx(0.2), "among all classes"


@in_interpreter
@pytest.mark.parametrize("n", [0, *NUMBERS])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_ranked_classes_triton_agree_with_reference(n: int, count: int) -> None:
    from ralib.kernels.likelihood import gpu_triton

    random, k = torch.Generator().manual_seed(n), 6
    fit, price = (4 * torch.randn(*shape, generator=random).to(DEVICE) for shape in ((count, n), (k,)))
    index = torch.rand(k, n, generator=random).argsort(dim=0)[:count].to(DEVICE)
    if n > 5:
        fit[:, 5] = 1 - price[index[:, 5]]  # equal ones stay in their order
    rule = SharingRule(2.0, count, 0.02)
    expected, found = (form.ranked_classes(fit, index, price, rule) for form in (reference, gpu_triton))
    for mine, theirs in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[2], expected[2])
    if n == 300 and count == 3:
        assert found[2].unique(dim=1).shape[1] == 6, "all orders occur"
        assert bool((found[1] == 0).any())


@in_interpreter
@pytest.mark.parametrize("n", [0, *NUMBERS])
@pytest.mark.parametrize(("k", "rings"), [(1, 1), (5, 33)])
def test_self_share_triton_agrees_with_reference(n: int, k: int, rings: int) -> None:
    """Also of particles with more rings than the averages, and of noise that is less than the signal."""
    from ralib.kernels.likelihood import gpu_triton

    random = torch.Generator().manual_seed(n)

    def table(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random).to(DEVICE)

    power, energy = table(n, rings + 9)[:, 2:], table(n, rings + 4)
    index = torch.randint(0, k, (n,), generator=random).to(DEVICE)
    averages = AverageNoise(table(k), table(k, rings), table(k, rings), table(rings + 2) + 0.1, 3)
    given = power, energy, index, table(n), 2 * table(n), table(2)[1] + 1, averages
    expected, found = (form.self_share(*given) for form in (reference, gpu_triton))
    assert found.shape == (n, rings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    if n == 300:
        assert 0 < float((found == 0).float().mean()) < 1
        with pytest.raises(AssertionError):
            torch.testing.assert_close(spoilt(found), expected, rtol=1e-5, atol=1e-5)


@in_interpreter
@pytest.mark.parametrize("among", [False, True])
@pytest.mark.parametrize("n", [0, *NUMBERS])
@pytest.mark.parametrize(("k", "rings"), [(1, 3), (7, 40)])
def test_without_own_triton_agrees_with_reference(n: int, k: int, rings: int, among: bool) -> None:
    """Also of angles beyond half a turn, other mirrors, particles that contributed to no class or to no candidate."""
    from ralib.kernels.likelihood import gpu_triton

    random = torch.Generator().manual_seed(n)
    old = torch.randint(-1, k, (n,), generator=random).to(DEVICE)
    count = min(3, k)
    index = torch.rand(k, n, generator=random).argsort(dim=0)[:count].to(DEVICE) if among else None
    fields = random_fields(count, n, seed=1) if among else random_fields(n, k, seed=1)
    column = old.clamp_min(0)
    place = fields if among else reference.pick(fields, column[None])
    share = torch.rand(n, 60, generator=random).to(DEVICE)
    own = old, place[2][0] + 350, place[3][0] + 0.3, place[4][0] ^ (torch.arange(n, device=DEVICE) % 5 == 1), share
    noise = OwnNoise(rings, torch.linspace(0.0, 0.2, 4, device=DEVICE)[2], 0.3, 11.0)
    found, expected = (
        form.without_own((fields[0].clone(), *fields[1:]), own, noise, index) for form in (gpu_triton, reference)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    if n:
        changed = int((found != fields[0]).sum())
        assert changed < n if n > 31 else changed <= n
        assert n <= 31 or changed > n // 20
    if n == 300:
        short, half = ((*own[:4], share[:, : rings // 2].contiguous()), OwnNoise(rings // 2, *noise_rest(noise)))
        less, cut = (
            gpu_triton.without_own((fields[0].clone(), *fields[1:]), mine, rule, index)
            for mine, rule in ((short, noise), (own, half))
        )
        assert torch.equal(less, cut), "of rings that particles do not have there is nothing"
        assert not torch.equal(less, found)


def noise_rest(noise: OwnNoise) -> tuple[Tensor, float, float]:
    """All of the rule but its rings."""
    return noise.frequency, noise.correlated, noise.radius_px


@in_interpreter
def test_a_particle_is_treated_alike_wherever_it_stands() -> None:
    """Neither particles beside it nor the number of them make a difference, to the bit."""
    from ralib.kernels.likelihood import gpu_triton

    n, k = 70, 9
    fields, (mean, spread) = random_fields(n, k), torch.tensor([0.9, 1.2], device=DEVICE)
    fit = gpu_triton.log_posterior(*fields[:2], mean, fields[3], spread, 5.0)
    price, rule = torch.linspace(-1, 1, k, device=DEVICE), SharingRule(5.0, 3, 1e-3)
    own = fields[0][:, 0].long() % k, fields[2][:, 1], fields[3][:, 1], fields[4][:, 1], fields[1]
    noise = OwnNoise(k, spread / 10, 0.3, 11.0)
    whole = fit, *(f.T for f in gpu_triton.best_classes(fit, price, rule)[1:])
    whole = *whole, gpu_triton.without_own((fields[0].clone(), *fields[1:]), own, noise)
    for rows in (slice(0, 1), slice(33, 70)):
        part = tuple(f[rows] for f in fields)
        fits = gpu_triton.log_posterior(*part[:2], mean, part[3], spread, 5.0)
        found = fits, *(f.T for f in gpu_triton.best_classes(fits, price, rule)[1:])
        its = tuple(f[rows] for f in own)
        found = *found, gpu_triton.without_own((part[0].clone(), *part[1:]), its, noise)
        assert all(torch.equal(mine, every[rows]) for mine, every in zip(found, whole, strict=True))
