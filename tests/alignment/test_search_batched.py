"""The pose search against a float64 search without short cuts, against known truth, and against itself."""

from __future__ import annotations

import pytest
import torch

from ralib.alignment.search import PoseSearch
from ralib.alignment.search.polar_grid import PolarGrid
from ralib.benchmarks.oracle import Oracle
from ralib.conventions import apply_pose, wrap_deg
from ralib.types import Poses

BOX, RADIUS = 48, 18


@pytest.fixture(scope="module")
def references() -> torch.Tensor:
    """Three images of random blobs (3, BOX, BOX)."""
    return blobs(torch.Generator().manual_seed(1))


def blobs(generator: torch.Generator, n: int = 3) -> torch.Tensor:
    centre = 16 * torch.rand(n, 12, 2, generator=generator) - 8
    height = torch.rand(n, 12, generator=generator) + 0.3
    return render(centre, height)


def render(centre: torch.Tensor, height: torch.Tensor) -> torch.Tensor:
    """Sums of Gaussians of 2 px at points (n, k, 2): images that can be posed without interpolating."""
    y, x = torch.meshgrid(torch.arange(BOX) - BOX // 2, torch.arange(BOX) - BOX // 2, indexing="ij")
    square = (x - centre[..., 0, None, None]) ** 2 + (y - centre[..., 1, None, None]) ** 2
    return (height[..., None, None] * torch.exp(-square / 8)).sum(1)


def particles(n: int, snr: float, seed: int, shift_px: float = 2.5) -> tuple[torch.Tensor, Poses]:
    """Posed references with noise, and their true poses; blobs stand at the points that map onto the reference's."""
    g = torch.Generator().manual_seed(seed)
    b = torch.Generator().manual_seed(1)
    centre = 16 * torch.rand(3, 12, 2, generator=b) - 8
    height = torch.rand(3, 12, generator=b) + 0.3
    truth = Poses(
        psi_deg=360 * torch.rand(n, generator=g) - 180,
        origin_xy_px=shift_px * (2 * torch.rand(n, 2, generator=g) - 1),
        mirror=torch.rand(n, generator=g) < 0.5,
        class_index=torch.randint(0, 3, (n,), generator=g),
        score=torch.zeros(n),
    )
    # The inverse of p_ref = M(R(psi)(p + origin)), written out.
    at = centre[truth.class_index]
    at = torch.stack([torch.where(truth.mirror[:, None], -at[..., 0], at[..., 0]), at[..., 1]], dim=-1)
    psi = torch.deg2rad(truth.psi_deg)[:, None]
    c, s = psi.cos(), psi.sin()
    back = torch.stack([c * at[..., 0] + s * at[..., 1], -s * at[..., 0] + c * at[..., 1]], dim=-1)
    back = back - truth.origin_xy_px[:, None]
    check = apply_pose(truth.psi_deg[:, None], truth.origin_xy_px[:, None], truth.mirror[:, None], back)
    assert torch.allclose(check, centre[truth.class_index], atol=1e-4)
    clean = render(back, height[truth.class_index])
    return clean + clean.std() / snr**0.5 * torch.randn(n, BOX, BOX, generator=g), truth


def make_search(**options: object) -> PoseSearch:
    return PoseSearch(box=BOX, outer_radius=RADIUS, **options)  # type: ignore[arg-type]


def test_pose_search_finds_the_truth(references: torch.Tensor) -> None:
    images, truth = particles(100, 1.0, seed=2)
    search = make_search()
    search.set_references(references)
    found = search.search(search.prepare(images))
    assert torch.equal(found.class_index, truth.class_index)
    assert torch.equal(found.mirror, truth.mirror)
    assert wrap_deg(found.psi_deg - truth.psi_deg).abs().median() < 0.6
    assert torch.linalg.vector_norm(found.origin_xy_px - truth.origin_xy_px, dim=1).median() < 0.1


@pytest.mark.parametrize("snr", [0.05, 0.02])
def test_pose_search_is_not_beaten_by_exhaustive_search(references: torch.Tensor, snr: float) -> None:
    images, _ = particles(60, snr, seed=3)
    search = make_search()
    search.set_references(references)
    samples, oracle = search.prepare(images), Oracle(search, references)
    found = search.search(samples)
    achieved, best = oracle.achieved(samples, found), oracle.exhaustive(samples)
    assert (achieved >= best * (1 - 1e-4)).all()
    torch.testing.assert_close(found.score.double(), achieved, rtol=2e-3, atol=0)
    worse = found.replace(psi_deg=found.psi_deg + 20)
    assert (oracle.achieved(samples, worse) < best).float().mean() > 0.9


def test_pose_search_score_is_the_inner_product_with_the_posed_template(references: torch.Tensor) -> None:
    """At the identity pose, for an image inside the band: sum of particle times masked, normalised reference."""
    search = make_search(mirror=False)
    oracle = Oracle(search, references)
    samples = search.prepare(references)
    pose = Poses.identity(3).replace(class_index=torch.arange(3))
    masked = (references - (references * search.mask).sum((1, 2), keepdim=True) / search.mask.sum()) * search.mask
    template = masked / masked.flatten(1).norm(dim=1)[:, None, None]
    direct = (references * template).sum((1, 2)).double()
    torch.testing.assert_close(oracle.achieved(samples, pose), direct, rtol=1e-3, atol=1e-3)


def test_polar_grid_samples_are_the_fourier_transform() -> None:
    image = torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(5))
    grid = PolarGrid.create(32, support_radius_px=12)
    axis = torch.arange(32) - 16
    disc = (torch.hypot(axis[:, None].float(), axis.float()) <= 15).float()
    fx, fy = grid.frequency_xy()
    turn = fx[..., None, None] * axis + fy[..., None, None] * axis[:, None]
    direct = (image[0] * disc * torch.exp(-2j * torch.pi * turn)).sum((-1, -2))
    found = grid.transform(image * disc)[0]
    assert (found - direct).abs().max() < 2e-4 * direct.abs().max()


def test_pose_search_shifts_stay_in_range_along_each_axis(references: torch.Tensor) -> None:
    images, _ = particles(40, 0.1, seed=4, shift_px=4.0)
    search = make_search(shift_range_xy_px=(3.0, 1.0))
    search.set_references(references)
    origin = search.search(search.prepare(images)).origin_xy_px.abs()
    assert origin[:, 0].max() <= 3.5
    assert origin[:, 1].max() <= 1.5
    assert origin[:, 0].max() > 2
    fixed = make_search(shift_range_xy_px=(0.0, 0.0))
    fixed.set_references(references)
    assert (fixed.search(fixed.prepare(images)).origin_xy_px == 0).all()


def test_pose_search_expected_references_give_the_same_bits(references: torch.Tensor) -> None:
    """Also where they reach further than the last ones did, or others come than were expected."""
    samples = make_search().prepare(particles(20, 0.1, seed=9)[0])
    smooth = torch.nn.functional.avg_pool2d(references[:, None], 7, stride=1, padding=3)[:, 0]

    def found(before: torch.Tensor, expected: torch.Tensor) -> tuple[Poses, int]:
        search = make_search(candidates=(16, 8, 2))  # the form of the search that a GPU uses
        search.set_references(before)
        reach = search.bank.n_radii
        search.expect_references(expected)
        search.set_references(references)
        return search.search(samples), reach

    fresh, reach = found(references, smooth)
    assert reach != found(smooth, smooth)[1]
    for before in (references, smooth):
        for same in zip(vars(found(before, references)[0]).values(), vars(fresh).values(), strict=True):
            assert torch.equal(*same)


def test_pose_search_centre_moves_the_range(references: torch.Tensor) -> None:
    images, truth = particles(30, 1.0, seed=6)
    search = make_search(shift_range_xy_px=(1.0, 1.0))
    search.set_references(references)
    centre = torch.round(truth.origin_xy_px)
    found = search.search(search.prepare(images), centre)
    assert torch.linalg.vector_norm(found.origin_xy_px - truth.origin_xy_px, dim=1).median() < 0.1
    assert ((found.origin_xy_px - centre).abs() <= 1.5).all()


def test_pose_search_order_and_chunks_change_nothing(references: torch.Tensor) -> None:
    images, _ = particles(37, 0.1, seed=7)
    search = make_search()
    search.set_references(references)
    samples = search.prepare(images)
    whole = search.search(samples)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(8))
    parts = Poses.cat([search.search(part) for part in samples[order].split(9)])
    assert torch.equal(parts.class_index, whole.class_index[order])
    torch.testing.assert_close(parts.origin_xy_px, whole.origin_xy_px[order], atol=1e-3, rtol=0)
    assert wrap_deg(parts.psi_deg - whole.psi_deg[order]).abs().max() < 0.02
    again = search.search(samples)
    assert torch.equal(again.psi_deg, whole.psi_deg), "the same input gives the same bits"


def test_pose_search_scale_does_not_matter(references: torch.Tensor) -> None:
    images, _ = particles(20, 0.1, seed=9)
    search = make_search()
    search.set_references(references)
    first = search.search(search.prepare(images))
    search.set_references(100 * references + 7)
    second = search.search(search.prepare(1e-3 * images))
    assert torch.equal(first.class_index, second.class_index)
    torch.testing.assert_close(1e-3 * first.score, second.score, rtol=1e-3, atol=0)


def test_pose_search_given_class_is_kept_and_scores_agree(references: torch.Tensor) -> None:
    images, _ = particles(20, 0.3, seed=10)
    search = make_search()
    search.set_references(references)
    samples = search.prepare(images)
    table = torch.stack([search.search_within(samples, torch.full((20,), k)).score for k in range(3)], dim=1)
    best = search.search(samples)
    assert torch.equal(table.argmax(1), best.class_index)
    grid = search.scores(samples)
    assert (grid.argmax(1) == best.class_index).float().mean() > 0.8
    kept = search.search_within(samples, torch.ones(20, dtype=torch.int64))
    assert (kept.class_index == 1).all()


def test_pose_search_without_references_is_refused() -> None:
    with pytest.raises(RuntimeError, match="set_references"):
        make_search().search(torch.zeros(1, 3, 4, dtype=torch.complex64))
