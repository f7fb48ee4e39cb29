"""The search on a CPU: its kernels, each against a plain form, and the whole against the batched form."""

from __future__ import annotations

import math

import numba
import numpy as np
import pytest
import torch

from ralib.alignment.search import PoseSearch
from ralib.alignment.search.polar_grid import PolarGrid
from ralib.alignment.search.templates import parity_orders, tabulated
from ralib.benchmarks.oracle import Oracle
from ralib.kernels.pose_search.cpu_grid_numba import NOTHING, GridTables, angular_orders, best_poses, best_scores
from ralib.kernels.pose_search.cpu_refine_numba import (
    N_THINNED_MOMENTS,
    CandidateRule,
    _fill_moments,
    refine_candidates,
)
from ralib.kernels.pose_search.cpu_samples import ThinGrid
from ralib.kernels.pose_search.fine_templates import FINE_ROTATIONS, FineTemplates
from ralib.kernels.pose_search.reference_newton import pose_moments
from ralib.kernels.pose_search.tile_llvm import LANES, ROWS, tile

BOX, RADIUS, N_ORDERS = 40, 14, 16


@pytest.fixture(scope="module")
def grid() -> PolarGrid:
    return PolarGrid.create(BOX, support_radius_px=RADIUS + 4)


def images(n: int, seed: int) -> torch.Tensor:
    """Sums of blobs within the disc (n, BOX, BOX): smooth, so that few orders hold them."""
    g = torch.Generator().manual_seed(seed)
    centre, height = 14 * torch.rand(n, 9, 2, generator=g) - 7, torch.rand(n, 9, generator=g) - 0.3
    y, x = torch.meshgrid(torch.arange(BOX) - BOX // 2, torch.arange(BOX) - BOX // 2, indexing="ij")
    square = (x - centre[..., 0, None, None]) ** 2 + (y - centre[..., 1, None, None]) ** 2
    return (height[..., None, None] * torch.exp(-square / 6)).sum(1)


def noisy(n: int, seed: int) -> torch.Tensor:
    return images(n, seed) + 0.5 * torch.randn(n, BOX, BOX, generator=torch.Generator().manual_seed(seed + 100))


def thinned(grid: PolarGrid, n_orders: int = 48) -> ThinGrid:
    return ThinGrid.create(
        grid.radius_per_px, grid.angle_rad, grid.weight, box=BOX, n_orders=[n_orders] * grid.n_radii, n_radii=17
    )


def test_core_search_groups_share_out_the_radii(grid: PolarGrid) -> None:
    thin = thinned(grid)
    assert [g.first for g in thin.groups[1:]] == [g.first + g.count for g in thin.groups[:-1]]
    assert thin.groups[thin.inner - 1].radii.stop == 17
    assert thin.groups[-1].radii.stop == grid.n_radii
    strides = [g.stride for g in thin.groups]
    assert strides == sorted(strides, reverse=True)
    assert strides[0] > strides[-1] == 1
    assert sum(g.count * g.n_angles for g in thin.groups) < 0.8 * grid.n_radii * len(grid.angle_rad)


def test_core_search_thinned_orders_are_those_of_all_samples(grid: PolarGrid) -> None:
    thin, orders = thinned(grid), parity_orders(N_ORDERS, grid.device)
    samples, shift = grid.transform(noisy(3, 1)), torch.tensor([[0.0, 0.0], [1.5, -2.0], [-0.3, 0.7]])
    expected = grid.angular_spectrum(samples * grid.shift_phase(shift), N_ORDERS)[:, :17, orders]
    found = angular_orders(thin.parts(samples, shift), thin, orders)
    scale = expected.abs().max()
    assert (torch.complex(found[:, :, 0], found[:, :, 1]).mT - expected).abs().max() < 1e-3 * scale
    assert (torch.complex(found[:, :, 0], -found[:, :, 1]).mT - expected).abs().max() > 0.1 * scale


@pytest.mark.parametrize("n_orders", [48, -60])
def test_core_search_moments_are_those_of_all_samples(grid: PolarGrid, n_orders: int) -> None:
    """With the orders that the templates have; with far fewer, samples are thinned too far."""
    thin, references = thinned(grid, n_orders), grid.transform(images(2, 2))
    samples, shift = grid.transform(noisy(3, 3)), torch.tensor([[0.4, -0.9], [1.5, 0.2], [0.0, 0.0]])
    row, position = torch.tensor([0, 3, 1]), torch.tensor([5, -31, FINE_ROTATIONS * 2 * len(grid.angle_rad) - 1])
    spectrum = grid.angular_spectrum(references, grid.n_angles // 2)
    templates = tabulated(grid, spectrum, mirror=True)
    assert isinstance(templates, FineTemplates)
    particle = torch.arange(3)
    plain = pose_moments(samples, particle, shift, row, position, templates, (0, 0, grid.n_radii))
    s, x, y, below, above = plain[:, 3], plain[:, 4], plain[:, 5], plain[:, :3], plain[:, 6:9]
    wave = 2 * math.pi
    apart = (above - below) / torch.tensor([1, wave, wave])
    second = -plain[:, 9:] / wave**2
    together = above[:, 0] + below[:, 0]
    expected = torch.stack([s, x / wave, y / wave, *second.T, *apart.T, together], dim=1)
    parts, mine = thin.parts(samples, torch.zeros(3, 2)).numpy(), thin.table(spectrum, mirror=True).numpy()
    found = np.zeros((3, N_THINNED_MOMENTS), np.float32)
    for i in range(3):
        x, y = (np.float32(v) for v in shift[i])
        _fill_moments(parts[i], thin.frequency.numpy(), mine[row[i]], thin.layout, int(position[i]), x, y, found[i])
    off = (torch.from_numpy(found) - expected).abs().amax(0) / expected.abs().amax(0)
    assert (off.max() < 2e-3) == (n_orders == 48)


@numba.njit
def _product(left: np.ndarray, right: np.ndarray, depth: int, out: np.ndarray) -> None:
    tile(left, depth, right, 3, 2 * LANES, LANES, depth, out, 1, 2 * LANES, LANES)


@pytest.mark.parametrize("depth", [1, 7])
def test_tile_llvm_is_a_matrix_product(depth: int) -> None:
    g = torch.Generator().manual_seed(5)
    left, right = torch.randn(ROWS + 1, depth, generator=g), torch.randn(depth, 2 * LANES, generator=g)
    out = np.full(2 + ROWS * 2 * LANES, 9, np.float32)
    _product(left.ravel().numpy(), torch.cat([torch.zeros(3), right.ravel()]).numpy(), depth, out)
    expected = (left[1:] @ right).ravel()
    torch.testing.assert_close(torch.from_numpy(out[1:-1]), expected, atol=1e-5, rtol=1e-5)
    assert out[0] == out[-1] == 9, "nothing beside the tile is touched"


N_HALF = 32
SHIFTS = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, -1.5]])


def grid_scores(
    grid: PolarGrid, parts: torch.Tensor, thin: ThinGrid, references: torch.Tensor, penalty: torch.Tensor
) -> tuple[GridTables, torch.Tensor]:
    """Tables of templates (k, BOX, BOX) at SHIFTS, and the plain scores (k, s, mirror, sign, J, b), penalties in."""
    orders = parity_orders(N_ORDERS, grid.device)
    moved = [
        angular_orders(thin.parts(sample.expand(3, -1, -1), -SHIFTS), thin, orders)
        for sample in grid.transform(references)
    ]
    templates = torch.cat(moved) * thin.weight[: thin.n_radii]
    tables = GridTables.create(thin, orders, templates, penalty, SHIFTS, len(references))
    a, b = (torch.complex(f[:, :, 0], f[:, :, 1]) for f in (angular_orders(parts, thin, orders), templates))
    cross = torch.stack([torch.einsum("bmk,imk->imb", a, f) for f in (b.conj(), b)], dim=1)
    psi = (torch.arange(N_HALF) + 0.5) * (math.pi / N_HALF)
    turn = torch.exp(-1j * torch.stack([psi, -psi])[..., None] * orders)
    score = torch.einsum("sjm,ifmb->ifsjb", turn, cross).real.unflatten(0, (len(references), len(SHIFTS)))
    return tables, score + penalty.view(1, len(SHIFTS), 2, 2, N_HALF, 1)


def test_core_search_grid_maxima_are_the_plain_ones(grid: PolarGrid) -> None:
    """With penalties, and with more particles than lanes."""
    penalty = torch.where(torch.rand(6, 2, N_HALF, generator=torch.Generator().manual_seed(4)) < 0.5, 0.0, -math.inf)
    penalty[2, 1] = -math.inf
    thin, particles = thinned(grid), noisy(LANES + 3, 1)
    parts = thin.parts(grid.transform(particles), torch.zeros(len(particles), 2))
    tables, score = grid_scores(grid, parts, thin, images(3, 2), penalty)
    plain = score.amax((1, 2, 3, 4)).T
    torch.testing.assert_close(best_scores(parts, tables), plain, atol=1e-4 * float(plain.max()), rtol=1e-4)
    wanted = torch.arange(len(particles)) % 4 - 1
    row, pose = best_poses(parts, tables, wanted, 5, 0.5)
    allowed = torch.where(wanted < 0, plain.amax(1), plain.gather(1, wanted.clamp_min(0)[:, None])[:, 0])
    top, at = pose[..., 3].max(dim=1)
    more = (top - allowed) / allowed.abs()
    assert ((more > -1e-4) & (more < 0.1)).all(), "no lower, and little higher between angles"
    reference = row.gather(1, at[:, None])[:, 0] % 3
    assert (reference[wanted >= 0] == wanted[wanted >= 0]).all()


def test_core_search_peaks_lie_between_the_angles(grid: PolarGrid) -> None:
    """A template turned, mirrored and moved has its peak there, whatever the angles of the grid."""
    thin, references = thinned(grid), torch.nn.functional.normalize(images(2, 3).flatten(1)).view(2, BOX, BOX)
    spectrum = grid.angular_spectrum(grid.transform(references), grid.n_angles // 2)
    at_deg, orders = torch.tensor([33.3, -71.0, 120.0]), torch.arange(spectrum.shape[-1])
    turned = torch.stack([spectrum[1], spectrum[1].conj(), spectrum[0]])
    turned = turned * torch.exp(1j * torch.deg2rad(at_deg)[:, None, None] * orders)
    circle = torch.exp(1j * orders[:, None] * grid.angle_rad)
    samples = (turned @ circle + (turned[..., 1:].conj() * (1.0 - 2.0 * (orders[1:] % 2))) @ circle[1:].conj()).to(
        torch.complex64
    )
    parts = thin.parts(samples, torch.zeros(3, 2))
    tables, _ = grid_scores(grid, parts, thin, references, torch.zeros(6, 2, N_HALF))
    row, pose = best_poses(parts, tables, torch.full((3,), -1), 4, 0.5)
    best = pose[..., 3].argmax(1)
    assert row.gather(1, best[:, None])[:, 0].tolist() == [1, 3, 0]
    found = pose[torch.arange(3), best]
    off = (found[:, 0] - at_deg + 180) % 360 - 180
    assert off.abs().max() < 0.15 * 180 / N_HALF
    assert found[:, 1:3].abs().max() == 0


def test_core_search_far_candidate_wins_where_it_leads_higher(grid: PolarGrid) -> None:
    """The particle is its template, turned by 20 degrees and moved: whatever the candidates' grid scores say."""
    thin, template = thinned(grid), images(1, 6)
    samples = grid.transform(template)
    table = thin.table(grid.angular_spectrum(samples, grid.n_angles // 2), mirror=False)
    parts = thin.parts(samples * grid.shift_phase(torch.tensor([[0.8, -0.5]])), torch.zeros(1, 2))
    best = float((template**2).sum())
    pose = torch.tensor([[[100.0, 0.0, 0.0, 0.9 * best], [3.0, -0.2, 0.1, 0.88 * best], [0, 0, 0, NOTHING]]])
    given = (parts, thin, table, torch.zeros(1, 3, dtype=torch.int64), pose)
    row, found = refine_candidates(*given, CandidateRule.after_grid(0.1), (3.0, 3.0), (4.0, 0.8))
    assert row.item() == 0
    torch.testing.assert_close(found[0, :3], torch.tensor([0.0, -0.8, 0.5]), atol=1e-2, rtol=0)
    assert math.isclose(found[0, 3], best, rel_tol=1e-2)
    _, hopeless = refine_candidates(*given, CandidateRule((0.0, 0.0, 0.0, 0.0)), (3.0, 3.0), (4.0, 0.8))
    assert hopeless[0, 3] <= found[0, 3] + 1e-3


def test_pose_search_both_forms_find_the_same() -> None:
    references, particles = images(3, 7), noisy(80, 7)
    own = PoseSearch(box=BOX, outer_radius=RADIUS)
    batched = PoseSearch(box=BOX, outer_radius=RADIUS, candidates=(24, 12, 8, 4, 2))
    oracle = Oracle(own, references)
    samples = own.prepare(particles)
    scores = []
    for search in (own, batched):
        search.set_references(references)
        scores.append(oracle.achieved(samples, search.search(samples)))
    assert (scores[0] > scores[1] * (1 - 1e-4)).float().mean() > 0.97
    assert (scores[1] > scores[0] * (1 - 1e-4)).float().mean() > 0.97


def test_core_search_threads_change_no_bit() -> None:
    search, samples = PoseSearch(box=BOX, outer_radius=RADIUS), None
    search.set_references(images(2, 8))
    samples = search.prepare(noisy(150, 9))
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(search.search(samples))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for name, part in vars(found[0]).items():
            assert torch.equal(part, getattr(other, name)), name


def test_core_search_empty_image_has_a_pose_and_no_score() -> None:
    search = PoseSearch(box=BOX, outer_radius=RADIUS)
    search.set_references(images(2, 8))
    found = search.search(search.prepare(torch.zeros(2, BOX, BOX)))
    assert found.score.tolist() == [0, 0]
    assert (found.origin_xy_px == 0).all()
