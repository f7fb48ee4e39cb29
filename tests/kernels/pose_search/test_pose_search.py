"""The search's kernels: the reference against the mathematics, the Triton forms against the reference; ragged sizes."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from interpreter import in_interpreter
from ralib.alignment.search.extent import Extent, angle_stops
from ralib.alignment.search.polar_grid import PolarGrid
from ralib.alignment.search.templates import tabulated
from ralib.kernels.pose_search import cpu_newton_numba, cpu_numba, reference
from ralib.kernels.pose_search.fine_templates import (
    MOST_HALF,
    FineTemplates,
    PackedSamples,
    PackedTemplates,
    fine_templates,
    packed_samples,
)
from ralib.kernels.pose_search.reference import angle_deg, angular_tables, rotational_max, shortlist
from ralib.kernels.pose_search.reference_newton import NewtonRule, newton, pose_moments


def _random_complex(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Stops = tuple[int, int, int]
MomentsCase = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, FineTemplates, Stops]


def _moments_case(k: int = 5, h: int = 6, fine: int = 4, stops: Stops = (0, 0, 4)) -> MomentsCase:
    g = torch.Generator().manual_seed(3)
    samples = _random_complex(7, k, h, seed=1)
    circle = torch.randn(3, fine, 2, k, 2 * h, generator=g)
    table = torch.cat([circle[..., -1:], circle, circle[..., : h + 1]], dim=-1)
    particle = torch.randint(0, 7, (11,), generator=g)
    row = torch.randint(0, 3, (11,), generator=g)
    position = torch.randint(-60, 60, (11,), generator=g)
    shift = torch.randn(11, 2, generator=g)
    radius, weight = torch.rand(k, generator=g), torch.rand(k, generator=g)
    angle = torch.arange(h) * (torch.pi / h)
    return samples, particle, shift, row, position, FineTemplates(table, radius, angle, weight), stops


def test_pose_moments_are_the_score_and_its_derivatives() -> None:
    case = list(_moments_case())

    def moments(shift: torch.Tensor) -> torch.Tensor:
        return pose_moments(*case[:2], shift, *case[3:])

    step = 1e-2
    along_x = torch.tensor([step, 0.0])
    here, ahead, behind = moments(case[2]), moments(case[2] + along_x), moments(case[2] - along_x)
    slope = (ahead - behind) / (2 * step)
    for score, derivative in ((0, 1), (3, 4), (6, 7), (4, 9), (5, 10)):
        assert torch.allclose(slope[:, score], here[:, derivative], atol=2e-2, rtol=1e-2)
    assert not torch.allclose(slope[:, 4], here[:, 11], atol=2e-2, rtol=1e-2)


def test_rotated_table_rotation_by_whole_samples_rolls_the_template() -> None:
    case = list(_moments_case())
    here = pose_moments(*case)
    case[4] = case[4] + 4
    assert torch.allclose(pose_moments(*case)[:, :6], here[:, 3:9], atol=1e-5)


def test_rotational_max_finds_the_direct_maximum() -> None:
    spectra = torch.randn(6, 5, 2, 4, generator=torch.Generator().manual_seed(0))
    cosine, sine = angular_tables(torch.arange(6), 16, dtype=torch.float32)
    value, index = rotational_max(spectra, cosine, sine)
    for sign in (0, 1):
        psi = torch.deg2rad(angle_deg(torch.arange(16), torch.tensor(sign), 16))
        turn = psi[:, None] * torch.arange(6)
        direct = torch.einsum("am,mgb->agb", turn.cos(), spectra[:, :, 0])
        direct += torch.einsum("am,mgb->agb", turn.sin(), spectra[:, :, 1])
        assert torch.allclose(value[:, sign], direct.amax(0), atol=1e-4)
        assert torch.equal(index[:, sign].long(), direct.argmax(0))


def test_rotational_max_penalty_is_respected() -> None:
    spectra = torch.randn(6, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    cosine, sine = angular_tables(torch.arange(6), 16, dtype=torch.float32)
    free, at = rotational_max(spectra, cosine, sine)
    penalty = torch.zeros(4, 2, 16)
    penalty[torch.arange(4)[:, None, None], torch.arange(2)[:, None], at.long()] = -torch.inf
    value, index = rotational_max(spectra, cosine, sine, penalty)
    assert not (index == at).any()
    assert (value < free).all()


@pytest.mark.parametrize(("n_orders", "n_half", "particles"), [(24, 40, 70), (7, 9, 3), (32, 48, 64)])
@pytest.mark.parametrize("forbidden", [False, True])
def test_rotational_max_numba_agrees_with_reference(
    n_orders: int, n_half: int, particles: int, forbidden: bool
) -> None:
    cosine, sine = angular_tables(torch.arange(n_orders), n_half, dtype=torch.float32)
    spectra = torch.randn(n_orders, 21, 2, particles, generator=torch.Generator().manual_seed(7))
    allowed = torch.rand(7, 2, n_half, generator=torch.Generator().manual_seed(8)) < 0.5
    penalty = torch.where(allowed, 0.0, -torch.inf) if forbidden else None
    value, index = cpu_numba.rotational_max(spectra, cosine, sine, penalty)
    expected, expected_index = reference.rotational_max(spectra, cosine, sine, penalty)
    _assert_close(value, expected, atol=1e-4, rtol=1e-4)
    assert index.dtype == torch.int32
    assert (index == expected_index).float().mean() > 0.99, "only exact ties may differ"
    alone, _ = cpu_numba.rotational_max(spectra[..., 1:2], cosine, sine, penalty)
    assert torch.equal(alone[..., 0], value[..., 1]), "the particles beside make no difference"


def test_newton_candidates_converge_to_the_maximum() -> None:
    """A particle that is its template, turned and shifted: steps from nearby end at the true pose."""
    grid = PolarGrid.create(32, support_radius_px=14, max_frequency_per_px=0.3)
    y, x = torch.meshgrid(torch.arange(32.0) - 16, torch.arange(32.0) - 16, indexing="ij")
    blobs = torch.exp(-((x - 4) ** 2 + y**2) / 8) + torch.exp(-(x**2 + (y + 5) ** 2) / 12)
    samples = grid.transform(blobs[None])
    templates = tabulated(grid, grid.angular_spectrum(samples, grid.n_angles // 2), mirror=False)
    shift = torch.tensor([[0.7, -0.4]])
    moved = samples * grid.shift_phase(shift)
    rule = NewtonRule((0, 0, grid.n_radii), (3.0, 3.0), 4.0, 0.5)
    given = (moved, torch.zeros(1, 2), torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[[2.0, 0.0, 0.0, 0.0]]]))
    pose = newton(*given, templates, replace(rule, steps=10))
    assert torch.equal(newton(*given, templates, replace(rule, steps=20)), pose), "it settles before ten steps"
    assert (newton(*given, templates, rule) - pose).abs().max() > 0.1, "and after the first"
    assert torch.allclose(pose[0, 0, :3], torch.tensor([0.0, -0.7, 0.4]), atol=2e-3)
    assert torch.allclose(pose[0, 0, 3], (blobs**2).sum(), rtol=1e-2)


def test_angle_stops_fewer_angles_near_the_centre_give_the_same_score() -> None:
    """White noise against a smooth template, moved: the moments of thinned samples are those of all of them."""
    g = torch.Generator().manual_seed(5)
    grid = PolarGrid.create(64, support_radius_px=30)
    y, x = torch.meshgrid(torch.arange(64.0) - 32, torch.arange(64.0) - 32, indexing="ij")
    template = torch.exp(-((x - 9) ** 2 + y**2) / 4) + torch.exp(-(x**2 + (y + 12) ** 2) / 6)
    noise = grid.transform(torch.randn(6, 64, 64, generator=g))
    spectrum = grid.angular_spectrum(grid.transform(template[None]), grid.n_angles // 2)
    extent = Extent.of(grid, Extent.measure(grid, spectrum, 1e-4))
    stops = angle_stops(grid, extent.close_orders, grid.n_radii)
    assert 8 <= stops[0] < stops[2] <= grid.n_radii
    case = (
        noise, torch.arange(6), 3 * torch.randn(6, 2, generator=g),
        torch.zeros(6, dtype=torch.int64), torch.arange(6) * 50,
        tabulated(grid, spectrum, mirror=False),
    )  # fmt: skip
    every = pose_moments(*case, (0, 0, grid.n_radii))

    def error(stops: tuple[int, int, int]) -> float:
        off = (pose_moments(*case, stops) - every).abs().amax(0) / every.abs().amax(0)
        return float(off[3])

    assert error(stops) < 1e-4
    assert error((stops[2], stops[2], stops[2])) > 1e-3


def _shortlist_case() -> tuple[torch.Tensor, torch.Tensor]:
    """Three maxima of 21 candidates each, of five particles; one score is not a number."""
    g = torch.Generator().manual_seed(14)
    row = torch.randint(0, 2, (21, 5), generator=g)
    maximum = torch.randint(0, 3, (21, 5), generator=g)
    pose = torch.randn(21, 5, 4, generator=g) * torch.tensor([0.3, 0.1, 0.1, 1.0])
    pose[..., 0] += torch.tensor([179.9, -60.0, 30.0])[maximum]
    pose[3, 2, 3] = torch.nan
    return row, pose


def test_shortlist_near_candidates_count_once() -> None:
    row, pose = _shortlist_case()
    kept_row, kept = shortlist(row, pose, 6, (1.5, 0.4))
    assert (kept[:-1, :, 3] >= kept[1:, :, 3]).all()
    assert torch.equal(kept[0, :, 3], pose[..., 3].nan_to_num(nan=-torch.inf).amax(0))
    for b in range(5):
        known = kept[:, b, 3] > -torch.inf
        maxima = {
            (int(r), round(float(p) % 360 / 30)) for r, p in zip(kept_row[known, b], kept[known, b, 0], strict=True)
        }
        assert len(maxima) == known.sum(), "two candidates of one maximum"
    assert shortlist(row, pose, 2)[1].shape == (2, 5, 4)


RAGGED, RAGGED_STOPS, WHOLE_BLOCKS = (5, 6, 4, (0, 0, 4)), (5, 6, 4, (1, 3, 5)), (26, 48, 4, (8, 16, 24))


@pytest.mark.parametrize(("slack", "steps"), [(math.inf, 1), (0.5, 1), (0.5, 2), (math.inf, 9)])
@pytest.mark.parametrize("case", [RAGGED, RAGGED_STOPS, WHOLE_BLOCKS], ids=["ragged", "stops", "blocks"])
def test_newton_numba_agrees_with_reference(case: tuple[int, int, int, Stops], slack: float, steps: int) -> None:
    generator = torch.Generator().manual_seed(11)
    row = torch.randint(0, 3, (5, 7), generator=generator)
    centre = torch.randn(7, 2, generator=generator)
    pose = torch.cat([400 * torch.randn(5, 7, 1, generator=generator), torch.randn(5, 7, 3, generator=generator)], -1)
    samples, *_, templates, stops = _moments_case(*case)
    given, rule = (samples, centre, row, pose), NewtonRule(stops, (1.5, 0.5), 8.0, 0.4, slack, steps)
    expected, found = newton(*given, templates, rule), cpu_newton_numba.newton(*given, templates, rule)
    _assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert (expected[..., 3] == -math.inf).any() == math.isfinite(slack)
    alone = cpu_newton_numba.newton(samples[2:3], centre[2:3], row[:1, 2:3], pose[:1, 2:3], templates, rule)
    assert torch.equal(alone[0, 0], found[0, 2]), "what is beside a pose makes no difference"


# The Triton forms against the reference.


@in_interpreter
def test_gather_taps_triton_agrees_with_reference() -> None:
    from ralib.kernels.pose_search import gpu_triton

    values = _random_complex(3, 50, seed=4)
    index = torch.randint(-50, 50, (300, 5), generator=torch.Generator().manual_seed(5), dtype=torch.int32)
    weight = torch.randn(300, 5, generator=torch.Generator().manual_seed(6))
    given = (values, index, weight)
    _assert_close(gpu_triton.gather_taps(*_there(*given)), reference.gather_taps(*given))


def _unpacked(words: torch.Tensor, n_radii: int) -> torch.Tensor:
    """Real and imaginary parts (..., K, C, 2) of packed words (..., P, W, C / P, 8)."""
    halves = words.view(torch.float16).unflatten(-1, (-1, 2)).float()
    return halves.movedim((-4, -2, -3, -5), (-5, -4, -3, -2)).flatten(-5, -4).flatten(-3, -2)[..., :n_radii, :, :]


# Radii and angles; stops of many candidates come in eights, of one or two in fours.
BLOCKS: list[tuple[int, int, Stops, int]] = [
    (26, 48, (8, 16, 24), 5), (26, 48, (4, 12, 26), 2), (13, 24, (0, 0, 13), 1), (16, 48, (8, 8, 16), 3),
]  # fmt: skip


@in_interpreter
@pytest.mark.parametrize(("slack", "steps"), [(math.inf, 1), (0.5, 1), (0.5, 3)])
@pytest.mark.parametrize(("k", "h", "stops", "n"), BLOCKS)
def test_newton_triton_agrees_with_reference(k: int, h: int, stops: Stops, n: int, slack: float, steps: int) -> None:
    from ralib.kernels.pose_search import gpu_triton

    generator = torch.Generator().manual_seed(11)
    row = torch.randint(0, 3, (n, 7), generator=generator)
    centre = torch.randn(7, 2, generator=generator)
    pose = torch.cat([400 * torch.randn(n, 7, 1, generator=generator), torch.randn(n, 7, 3, generator=generator)], -1)
    samples, *_, templates, _ = _moments_case(k, h)
    # The kernel reads numbers in half precision: so does the reference.
    mine, fine = packed_samples(samples), templates.packed(0.5)
    table = (
        _unpacked(fine.table[:, :, :-2], k)[..., : 3 * h + 2, :].movedim(-1, 2)
        / (templates.weight / fine.unit)[:, None]
    )
    rounded = torch.view_as_complex(_unpacked(mine.words, k).contiguous()) * mine.scale[:, None, None]
    rule = NewtonRule(stops, (1.5, 0.5), 8.0, 0.4, slack, steps)
    expected = newton(rounded, centre, row, pose, replace(templates, table=table), rule)
    there = PackedSamples(*_there(mine.words, mine.scale)), *_there(centre, row, pose)
    found = gpu_triton.newton(*there, PackedTemplates(*_there(fine.table, fine.radius), fine.unit), rule)
    _assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert (expected[..., 3] == -math.inf).any() == (math.isfinite(slack) and n > 1)


@in_interpreter
def test_newton_triton_refuses_blocks_that_it_would_not_take_whole() -> None:
    from ralib.kernels.pose_search import gpu_triton

    samples, *_, templates, _ = _moments_case(16, 48)
    given = packed_samples(samples), torch.zeros(7, 2), torch.zeros(3, 7, dtype=torch.int64), torch.zeros(3, 7, 4)
    with pytest.raises(ValueError, match=r"stops \(4, 8, 16\) of 48 angles"):
        gpu_triton.newton(*given, templates.packed(0.5), NewtonRule((4, 8, 16), (1.5, 0.5), 8.0, 0.4))


@in_interpreter
def test_packed_samples_triton_agrees_with_reference() -> None:
    from ralib.kernels.pose_search import gpu_triton

    samples = 1e3 * _random_complex(3, 37, 40, seed=6)
    samples[1] = 0
    samples[2, 5, 7] *= 1e5  # beyond half precision, if it were the mean of all others
    found, expected = gpu_triton.packed_samples(*_there(samples)), packed_samples(samples)
    _assert_close(found.scale, expected.scale, rtol=1e-5, atol=0.0)
    _assert_close(_unpacked(found.words, 40), _unpacked(expected.words, 40), rtol=2e-3, atol=1e-6)
    assert (_unpacked(found.words, 40)[:, 37:] == 0).all()


def test_packed_templates_of_angular_orders_are_those_of_the_table() -> None:
    spectrum = _random_complex(2, 9, 6, seed=8)
    given = spectrum, torch.rand(9), torch.arange(8) * (torch.pi / 8), torch.rand(9)
    table = fine_templates(*given, mirror=True, unit=0.5, packed=False)
    packed = fine_templates(*given, mirror=True, unit=0.5, packed=True)
    assert isinstance(table, FineTemplates)
    assert isinstance(packed, PackedTemplates)
    expected = table.packed(0.5)
    assert packed.unit == expected.unit
    assert torch.equal(packed.radius, expected.radius)
    found, wanted = (_unpacked(t.table[:, :, :-2], 9) for t in (packed, expected))
    assert (found - wanted).abs().max() < 2e-3 * wanted.abs().max()
    assert torch.equal(packed.table[:, :, -2:, :, :-1], packed.table[:, :, :2, :, 1:]), "what follows the last row"


@in_interpreter
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(("k", "n_radii", "m", "h"), [(1, 8, 24, 24), (3, 19, 7, 24), (2, 3, 150, 160)])
def test_packed_templates_triton_agree_with_reference(
    k: int, n_radii: int, m: int, h: int, mirror: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of some templates at a time, of other strides, and with an entry beyond half precision."""
    from ralib.kernels.pose_search import gpu_packing_triton

    monkeypatch.setattr(gpu_packing_triton, "TABLE_BYTES", 2 * 2 * n_radii * 2 * h * 8)
    spectrum = _random_complex(k, m, n_radii, seed=8).transpose(1, 2)
    spectrum[0, 1, 0] = 1e6
    given = _there(spectrum, torch.rand(n_radii), torch.arange(h) * (torch.pi / h), torch.linspace(0.2, 1, n_radii))
    expected = fine_templates(*given, mirror=mirror, unit=0.5, packed=True)
    found = gpu_packing_triton.packed_templates(*given, mirror=mirror, unit=0.5)
    assert isinstance(expected, PackedTemplates)
    assert torch.equal(found.radius, expected.radius)
    ours, theirs = (_unpacked(t.table.cpu(), n_radii) for t in (found, expected))
    _assert_close(ours, theirs, rtol=2e-3, atol=2e-3)
    assert ours.abs().max() == MOST_HALF
    if n_radii % 8:
        assert not found.table[..., n_radii % 8 :][:, :, :, -1].any()


@in_interpreter
@pytest.mark.parametrize(("n", "same"), [(6, (1.5, 0.4)), (30, None)])
def test_shortlist_triton_agrees_with_reference(n: int, same: tuple[float, float] | None) -> None:
    from ralib.kernels.pose_search import gpu_triton

    given = _shortlist_case()
    for found, expected in zip(gpu_triton.shortlist(*_there(*given), n, same), shortlist(*given, n, same), strict=True):
        _assert_close(found, expected)


@in_interpreter
@pytest.mark.parametrize("shifted", [False, True])
def test_shifted_parts_triton_agrees_with_reference(shifted: bool) -> None:
    from ralib.kernels.pose_search import gpu_triton

    samples, radius = _random_complex(5, 21, 40, seed=1), torch.rand(21, generator=torch.Generator().manual_seed(10))
    shift = torch.randn(5, 2, generator=torch.Generator().manual_seed(9)) if shifted else None
    packed = packed_samples(samples)
    rounded = torch.view_as_complex(_unpacked(packed.words, 21).contiguous()) * packed.scale[:, None, None]
    mine = PackedSamples(*_there(packed.words, packed.scale))
    there = _there(shift)[0] if shift is not None else None
    found = gpu_triton.shifted_parts(mine, there, *_there(radius), 18, torch.float32)
    _assert_close(found, reference.shifted_parts(rounded, shift, radius, 18, torch.float32), atol=1e-5, rtol=1e-3)


@in_interpreter
@pytest.mark.parametrize("forbidden", [False, True])
def test_rotational_max_triton_agrees_with_reference(forbidden: bool) -> None:
    from ralib.kernels.pose_search import gpu_triton

    cosine, sine = angular_tables(torch.arange(24), 40, dtype=torch.float32)
    spectra = torch.randn(24, 11, 2, 70, generator=torch.Generator().manual_seed(7))
    penalty = torch.where(torch.rand(11, 2, 40, generator=torch.Generator().manual_seed(8)) < 0.5, 0.0, -torch.inf)
    given = (spectra, cosine, sine, penalty) if forbidden else (spectra, cosine, sine)
    value, index = gpu_triton.rotational_max(*_there(*given))
    expected, expected_index = rotational_max(*given)
    _assert_close(value, expected, atol=1e-4, rtol=1e-4)
    assert (index.cpu() == expected_index).float().mean() > 0.99, "only exact ties may differ"


@in_interpreter
@pytest.mark.parametrize(("most_rows", "n"), [(8192, 9), (16, 5), (8192, 40)])
def test_grid_candidates_triton_agrees_with_reference(most_rows: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from ralib.kernels.pose_search import gpu_triton

    monkeypatch.setattr(gpu_triton, "MOST_ROWS", most_rows)
    generator = torch.Generator().manual_seed(11)
    value = torch.randn(3, 12, 8, generator=generator)[..., :7]  # rows of a longer whole
    value[0, :3] = -torch.inf  # poses out of range
    value[1, :, 2] = 0.5  # all alike
    index = torch.randint(0, 40, (3, 12, 7), generator=generator, dtype=torch.int32)
    pairings = torch.cat([torch.randn(12, 2, generator=generator), torch.randint(0, 2, (12, 2)).float()], dim=1)
    options = {"n_half": 40, "first": 4, "n_references": 9}
    found = gpu_triton.grid_candidates(*_there(value, index, pairings), n, **options)
    expected = reference.grid_candidates(value, index, pairings, n, **options)
    n = min(n, 36)
    (row, pose), (expected_row, expected_pose) = (shortlist(r.cpu(), p.cpu(), n) for r, p in (found, expected))
    _assert_close(pose[..., 3], expected_pose[..., 3])
    alone = torch.isfinite(pose[..., 3]) & (torch.arange(7) != 2)
    _assert_close(pose[alone], expected_pose[alone], atol=1e-4, rtol=1e-5)
    assert torch.equal(row[alone], expected_row[alone])


def _there(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors where the Triton forms run: on the GPU where there is one."""
    return [tensor.to(DEVICE) for tensor in tensors]


def _assert_close(found: torch.Tensor, expected: torch.Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(found.cpu(), expected, **tolerance)
