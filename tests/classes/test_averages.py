"""Averages, Wiener weighting, low-pass, centring and the poses that follow."""

import numpy as np
import pytest
import torch

from blobs import blob_centres, draw, grid, make
from ralib.alignment import references
from ralib.classes import averages as average
from ralib.conventions import apply_pose
from ralib.images.ctf import apply_ctf, ctf_2d
from ralib.images.fourier import ring_sums
from ralib.types import ClassAverages, CtfParameters, Poses

BOX = 48


def centred_view(x: float = 0.0, y: float = 0.0) -> torch.Tensor:
    points = blob_centres(1, 9.0, 3)
    points = points - points.mean(1, keepdim=True) + torch.tensor([x, y])
    return draw(points, grid(BOX)).view(BOX, BOX).float()


def plan(center: int = 0, **options) -> references.ReferencePlan:
    c = torch.arange(BOX) - BOX // 2
    mask = (torch.hypot(c[:, None].float(), c[None, :].float()) <= 15).float()
    return references.ReferencePlan(mask=mask, center=center, outer_radius=15, **options)


def averages_of(images: torch.Tensor) -> ClassAverages:
    curve = torch.ones(len(images), BOX // 2 + 1)
    return ClassAverages(images, torch.full((len(images),), 10), torch.stack([images, images]), curve)


def test_sums_are_linear_and_halves_are_even_and_odd() -> None:
    truth = make(20, box=32, n_views=2, seed=1)
    images = torch.from_numpy(truth.images)
    poses = Poses(**{k: v.float() if v.dtype == torch.float64 else v for k, v in vars(truth.poses).items()})
    half = torch.arange(20) % 2
    sums = average.ClassSums.empty(2, 32, torch.device("cpu"), ctf=False)
    sums.add_(images, poses, half, None)
    assert sums.members.sum(0).tolist() == torch.bincount(poses.class_index, minlength=2).tolist()
    before = sums.images.clone()
    sums.add_(images[:5], poses[:5], half[:5], None)
    sums.add_(images[:5], poses[:5], half[:5], None, sign=-1)
    torch.testing.assert_close(sums.images, before, rtol=0, atol=1e-9)
    left_out = poses.replace(class_index=torch.where(torch.arange(20) == 3, -1, poses.class_index))
    sums.add_(images, left_out, half, None, sign=-1)
    assert sums.members.sum() == 1
    only = (int(half[3]), int(poses.class_index[3]))
    assert sums.members[only] == 1
    assert sums.images[only].abs().max() > 1


def test_a_particle_of_no_class_leaves_no_trace() -> None:
    """Not even by what is not a number."""
    images = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    power = torch.ones(3, 16, 9)
    images[1], power[1] = torch.nan, torch.nan
    poses, half = Poses.identity(3), torch.tensor([0, 1, 0])
    poses = poses.replace(class_index=torch.tensor([0, -1, 1]))
    sums = average.ClassSums.empty(2, 16, torch.device("cpu"), ctf=True)
    sums.add_(images, poses, half, power)
    assert sums.members.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert sums.ctf_power is not None
    assert torch.equal(sums.ctf_power[0], torch.ones(2, 16, 9).double())
    assert not sums.ctf_power[1].any()
    assert sums.images.isfinite().all()


def test_ctf_power_turns_with_the_particle() -> None:
    """CTF^2 in the class frame equals CTF^2 of a CTF that was rotated and mirrored as an image."""
    ctf = CtfParameters(*(np.array([v] * 2) for v in (15000.0, 9000.0, 25.0, 300.0, 2.7, 0.1, 0.0, 0.0)))
    poses = Poses.identity(2).replace(psi_deg=torch.tensor([50.0, 50.0]), mirror=torch.tensor([False, True]))
    box = 64
    power = average.ctf_power_in_class_frame(ctf, poses, box, 4.0)
    k = torch.tensor([[0.11, 0.05], [0.02, 0.17], [0.2, 0.01], [-0.08, 0.13]]) * box
    k = torch.round(k)
    for i in range(2):
        image_k = apply_pose(
            -poses.psi_deg[i : i + 1],
            torch.zeros(1, 2),
            torch.zeros(1, dtype=torch.bool),
            torch.where(poses.mirror[i], k * torch.tensor([-1.0, 1.0]), k),
        )
        for (x, y), (u, v) in zip(k.long().tolist(), (image_k / box / 4.0).tolist(), strict=True):
            row, column = (y, x) if x >= 0 else (-y, -x)
            assert power[i, row % box, column] == pytest.approx(float(_ctf_at(ctf, u, v) ** 2), abs=1e-4)
    assert (power[0] - power[1]).abs().max() > 0.1, "a mirror turns the astigmatism"


def _ctf_at(ctf: CtfParameters, u: float, v: float) -> torch.Tensor:
    from ralib.images.ctf import ctf_polar

    radius, angle = torch.tensor([np.hypot(u, v)]), torch.tensor([np.arctan2(v, u)])
    return ctf_polar(ctf[:1], radius, angle)[0, 0, 0]


def test_wiener_average_undoes_the_ctf() -> None:
    g = np.random.default_rng(0)
    n, view = 60, centred_view()
    defocus = g.uniform(9000, 25000, n)
    same = [np.full(n, v) for v in (0.0, 300.0, 2.7, 0.1, 0.0, 0.0)]
    ctf = CtfParameters(defocus, defocus + 500, *same)
    transfer = ctf_2d(ctf, BOX, 4.0)
    seen = apply_ctf(view.expand(n, -1, -1), transfer) + torch.from_numpy(g.normal(size=(n, BOX, BOX))).float()
    poses, half = Poses.identity(n), torch.arange(n) % 2
    sums = average.ClassSums.empty(1, BOX, torch.device("cpu"), ctf=True)
    sums.add_(apply_ctf(seen, transfer), poses, half, average.ctf_power_in_class_frame(ctf, poses, BOX, 4.0))
    plain = seen.mean(0)

    def likeness(image: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([image.flatten(), view.flatten()]))[0, 1])

    measured = average.class_averages(sums)
    given = average.class_averages(sums, snr=1.0)
    assert likeness(measured.images[0]) > max(likeness(plain), 0.93)
    assert likeness(measured.images[0]) >= likeness(given.images[0]) - 0.005
    assert measured.members.tolist() == [n]


def test_low_pass_follows_the_frc() -> None:
    frequency = torch.linspace(0, 0.5, 25)
    curves = references.tanh_low_pass(frequency, torch.tensor([[0.15], [0.3]]), torch.tensor([[0.1], [0.15]]))
    cutoff, falloff = references.fit_low_pass(curves, (0.1, 0.45), 0.2)
    torch.testing.assert_close(cutoff, torch.tensor([0.15, 0.3]), rtol=0, atol=0.01)
    assert ((falloff >= 0.05) & (falloff <= 0.2)).all()
    noisy_tail = curves.clone()
    noisy_tail[:, -4:] = 0.6
    torch.testing.assert_close(references.fit_low_pass(noisy_tail, (0.1, 0.45), 0.2)[0], cutoff)
    assert references.fit_low_pass(torch.zeros(1, 25), (0.1, 0.45), 0.2)[0] == pytest.approx(0.1)


@pytest.mark.parametrize(("center", "tolerance"), [(1, 0.6), (2, 1.6), (5, 1.6)])
def test_centring_brings_the_object_to_the_middle(center: int, tolerance: float) -> None:
    prepared, move = references.prepare_references(
        averages_of(centred_view(2.5, -1.5)[None]), plan(center), Poses.identity(4), largest_shift_px=6.0
    )
    assert (move[0] - torch.tensor([-2.5, 1.5])).abs().max() < tolerance
    mass = prepared[0].clamp_min(0)
    c = torch.arange(BOX) - BOX // 2
    assert abs(float((mass.sum(0) * c).sum() / mass.sum())) < 1.6


def test_an_average_is_never_moved_beyond_the_largest_shift() -> None:
    """Pushed again and again by 4 px, members end at most `room` from where they were."""
    poses, total = Poses.identity(4), torch.zeros(2)
    for _ in range(5):
        _, move = references.prepare_references(
            averages_of(centred_view(4.0, 0.0)[None]), plan(1), poses, largest_shift_px=3.0
        )
        poses = average.shift_poses(poses, move)
        total = total + move[0]
    assert total.norm() <= 3.0 + 1e-4
    assert total[0] == pytest.approx(-3.0, abs=0.1)
    _, move = references.prepare_references(
        averages_of(centred_view(4.0, 0.0)[None]), plan(1), poses, largest_shift_px=0.0
    )
    assert (references.mean_member_shift(poses, 1) + move).norm() < 1e-4
    _, move = references.prepare_references(
        averages_of(centred_view(4.0, 0.0)[None]), plan(0), poses, largest_shift_px=3.0
    )
    assert move.abs().max() == 0


def test_average_shift_centring_takes_the_mean_out() -> None:
    poses = Poses.identity(3).replace(
        origin_xy_px=torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 2.0]]),
        psi_deg=torch.tensor([0.0, 90.0, 180.0]),
        mirror=torch.tensor([False, True, False]),
    )
    _, move = references.prepare_references(averages_of(centred_view()[None]), plan(-1), poses, largest_shift_px=5.0)
    after = average.shift_poses(poses, move)
    assert references.mean_member_shift(after, 1).abs().max() < 1e-5
    assert move.abs().max() > 0.1


def test_poses_follow_their_average() -> None:
    g = torch.Generator().manual_seed(0)
    poses = Poses.identity(6).replace(
        psi_deg=360 * torch.rand(6, generator=g),
        origin_xy_px=torch.randn(6, 2, generator=g),
        mirror=torch.tensor([True, False] * 3),
        class_index=torch.tensor([0, 0, 1, 1, 1, -1]),
    )
    shift = torch.tensor([[1.5, -2.0], [0.25, 3.0]])
    after = average.shift_poses(poses, shift)
    points = torch.randn(6, 7, 2, generator=g)

    def land(p: Poses) -> torch.Tensor:
        return apply_pose(p.psi_deg[:, None], p.origin_xy_px[:, None], p.mirror[:, None], points)

    expected = torch.cat([shift[poses.class_index[:5]], torch.zeros(1, 2)])
    torch.testing.assert_close(land(after) - land(poses), expected[:, None].expand(-1, 7, -1), rtol=0, atol=1e-4)


def test_shift_averages_moves_images_and_halves() -> None:
    view = centred_view()[None]
    moved = average.shift_averages(averages_of(view), torch.tensor([[2.0, -1.0]]))
    torch.testing.assert_close(moved.images, view.roll((-1, 2), (-2, -1)), rtol=0, atol=1e-4)
    assert moved.half_images is not None
    torch.testing.assert_close(moved.half_images[1], moved.images)


def test_fourier_variance_whitens_the_average() -> None:
    g = torch.Generator().manual_seed(0)
    noise = references.low_pass(
        torch.randn(2, 1, BOX, BOX, generator=g).flatten(0, 1), torch.full((2,), 0.15), torch.full((2,), 0.2)
    )
    halves = (centred_view() + 0.3 * noise)[:, None]
    averages = ClassAverages(halves.mean(0), torch.tensor([10]), halves, torch.ones(1, BOX // 2 + 1))
    plain, _ = references.prepare_references(averages, plan(), Poses.identity(2), 3.0)
    weighted, _ = references.prepare_references(averages, plan(fourier_variance=True), Poses.identity(2), 3.0)

    def high(image: torch.Tensor) -> float:
        power = ring_sums(torch.fft.rfft2(image).abs().square())[0]
        return float(power[8:].sum() / power.sum())

    assert high(weighted) > 2 * high(plain)
