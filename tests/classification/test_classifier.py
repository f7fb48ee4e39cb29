"""Classification from scratch: the rings, the fits, the steps, and a small set from end to end."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from devices import DEVICES
from ralib.classes.evaluation import purity
from ralib.classification import class_fit, e_step, pose_refinement, pose_search
from ralib.classification.centering import centre_classes
from ralib.classification.class_fit import FIT_NAMES
from ralib.classification.classifier import Classifier
from ralib.classification.e_step import score_classes, score_fixed
from ralib.classification.em import average_groups
from ralib.classification.initialisation import initialize_from_particles
from ralib.classification.leave_one_out import without_self
from ralib.classification.likelihood import ClassPoses, Spectra
from ralib.classification.m_step import signal_share
from ralib.classification.memory_plan import STEP_BYTES
from ralib.classification.model import Model
from ralib.classification.pose_refinement import refine_poses
from ralib.classification.priors import PRESSURE_NATS, class_prices, origin_spread
from ralib.classification.ring_grid import RingGrid
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.sharding import Shard
from ralib.classification.state import State
from ralib.classification.templates import disc_of_shifts
from ralib.classification.thinning import keep_most_useful
from ralib.conventions import mirror_x, pose_error, rotate_xy
from ralib.images.fourier import resample
from ralib.kernels import rotate_shift_images
from ralib.kernels.averages.reference import follow_centres
from ralib.kernels.likelihood import best_scale, class_posterior, log_likelihood, log_prior
from ralib.kernels.pose_search.fine_templates import PackedTemplates, fine_templates
from ralib.results.checkpoint import Checkpoint
from ralib.results.observer import IterationDone, SilentObserver
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet, RalibError

BOX = 48


@pytest.fixture(scope="module")
def grid() -> RingGrid:
    return RingGrid.create(BOX, radius_px=23, partner_radius_px=16, n_rings=16, device="cpu")


def blobs(n: int, seed: int = 0, radius: float = 9.0) -> torch.Tensor:
    """Smooth images (n, BOX, BOX) of a few Gaussian blobs, without symmetry."""
    rng = np.random.default_rng(seed)
    c = np.arange(BOX) - BOX // 2
    out = np.zeros((n, BOX, BOX))
    for i in range(n):
        for _ in range(6):
            x, y = rng.uniform(-radius, radius, 2)
            out[i] += rng.uniform(0.5, 1.5) * np.exp(-((c - x) ** 2 + (c[:, None] - y) ** 2) / (2 * 2.2**2))
    return torch.tensor(out, dtype=torch.float32)


def as_spectra(grid: RingGrid, images: torch.Tensor) -> Spectra:
    """White noise of variance 1 and no CTF."""
    power = (grid.weight * grid.n_half).expand(len(images), -1)
    return Spectra(grid.transform(images) * grid.weight[:, None], power)


def as_orders(grid: RingGrid, images: torch.Tensor) -> torch.Tensor:
    return grid.orders_of(grid.transform(images), grid.orders(grid.n_rings, 20))


def test_rings_keep_inner_products_and_lead_back(grid: RingGrid) -> None:
    a, b = blobs(2)
    fa, fb = grid.transform(torch.stack([a, b]))
    product = float((grid.weight[:, None] * (fa * fb.conj()).real).sum())
    assert product == pytest.approx(float((a * b).sum()), rel=1e-2)
    assert torch.allclose(grid.image(fa[None])[0], a, atol=0.1)
    orders = grid.orders_of(fa, grid.n_half)
    assert torch.allclose(grid.samples_of(orders), fa, atol=1e-3)
    wrong = float((grid.weight[:, None] * (fa * fb).real).sum())
    assert abs(wrong - product) > 0.03 * abs(product)


@pytest.mark.parametrize("mirror", [False, True])
def test_a_posed_particle_is_found_in_its_pose(grid: RingGrid, mirror: bool) -> None:
    references = blobs(3, seed=1)
    psi, origin = torch.tensor([37.0, -118.0, 170.0]), torch.tensor([[1.3, -2.2], [0.4, 1.9], [-2.5, 0.2]])
    flip = torch.full((3,), mirror)
    particles = pose_back(references, psi, origin, flip)
    spectra, orders = as_spectra(grid, particles), as_orders(grid, references)
    shifts = disc_of_shifts(4.0, 1.0, "cpu")
    found = score_classes(grid, spectra, torch.zeros(3, 2), orders, shifts)
    index = log_likelihood(found.cross, found.norm, torch.tensor(1.0)).argmax(1)
    assert index.tolist() == [0, 1, 2]
    best = refine_poses(grid, spectra, orders, found.pick(index), index, steps=3, limit_deg=3, limit_px=0.6)
    angle, shift = pose_error((best.psi_deg, best.origin_xy_px, best.mirror), (psi, origin, flip))
    assert best.mirror.tolist() == flip.tolist()
    assert float(angle.max()) < 0.2
    assert float(shift.max()) < 0.05
    fixed = score_fixed(grid, spectra, best.psi_deg, best.origin_xy_px, best.mirror, orders)
    assert torch.allclose(fixed.cross.diagonal(), best.cross, rtol=1e-3)
    # An exact copy has scale 1, and half its power as log-likelihood against noise.
    assert torch.allclose(best_scale(best.cross, best.norm, torch.tensor(1.0)), torch.ones(3), atol=0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_e_step_rank_without_particles_finds_none(device: str) -> None:
    """A rank may hold none of the few particles of a step."""
    grid = RingGrid.create(BOX, radius_px=23, partner_radius_px=20, n_rings=12, device=device)
    orders, shifts = as_orders(grid, blobs(3).to(device)), disc_of_shifts(3.0, 1.0, device)
    nobody = as_spectra(grid, torch.zeros(0, BOX, BOX, device=device))
    origin, favour = torch.zeros(0, 2, device=device), torch.zeros(len(shifts), device=device)
    for given in (None, favour):
        found = score_classes(grid, nobody, origin, orders, shifts, favour=given)
        assert [f.shape[:2] for f in found.fields()] == 5 * [(0, 3)]
    index = torch.zeros(0, dtype=torch.int64, device=device)
    best = refine_poses(grid, nobody, orders, found.pick(index), index, steps=2, limit_deg=3, limit_px=0.6)
    assert best.cross.shape == (0,)


def test_score_classes_little_memory_takes_classes_in_groups(grid: RingGrid) -> None:
    references = blobs(5, seed=1)
    spectra, orders = as_spectra(grid, references), as_orders(grid, references)
    given = (grid, spectra, torch.zeros(5, 2), orders, disc_of_shifts(3.0, 1.0, "cpu"))
    favour = -torch.linspace(0, 1, len(given[-1]))
    whole, groups = (score_classes(*given, favour=favour, memory_bytes=b) for b in (4e9, 2e6))
    assert e_step._classes_at_once(orders, given[-1], True, 2e6) == 2, "of five"
    for a, b in zip(whole.fields(), groups.fields(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_half_precision_ranks_as_single_precision(grid: RingGrid) -> None:
    """Whatever the units: also where terms lie far beyond the largest number of half precision."""
    references = 1e5 * blobs(3, seed=1)
    spectra, orders, index = as_spectra(grid, references), as_orders(grid, references), torch.arange(3)
    given = (grid, spectra, torch.full((3, 2), 0.4), orders, disc_of_shifts(3.0, 1.0, "cpu"))
    single, half = (score_classes(*given, dtype=dtype).pick(index) for dtype in (torch.float32, torch.float16))
    assert float(single.cross.max()) > 65_504
    assert torch.equal(half.origin_xy_px, single.origin_xy_px)
    torch.testing.assert_close(half.cross, single.cross, rtol=1e-3, atol=0)
    assert not torch.equal(half.cross, single.cross)


def test_the_newton_kernel_reaches_the_maxima_of_plain_steps(grid: RingGrid) -> None:
    references = blobs(3, seed=1)
    spectra, orders, index = as_spectra(grid, references), as_orders(grid, references), torch.arange(3)
    found = score_classes(grid, spectra, torch.full((3, 2), 0.4), orders, disc_of_shifts(2.0, 1.0, "cpu")).pick(index)
    options = {"limit_deg": 3.0, "limit_px": 0.6}
    plain, fused = (
        refine_poses(grid, spectra, orders, found, index, steps=6, fused=fused, **options) for fused in (False, True)
    )
    torch.testing.assert_close(fused.cross, plain.cross, rtol=1e-4, atol=0)
    assert float((fused.origin_xy_px - plain.origin_xy_px).abs().max()) < 0.05
    assert float((plain.cross / found.cross).min()) > 1.001, "there was something to gain"


def test_packed_templates_have_a_root_mean_square_of_one(grid: RingGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of samples: times that number, a large grid's would lie beyond half precision."""
    monkeypatch.setattr(pose_refinement, "newton_templates", partial(fine_templates, packed=True))
    packed = pose_refinement.tabulated(grid, 1e5 * torch.ones(1, grid.n_rings, 9, dtype=torch.complex64))
    assert isinstance(packed, PackedTemplates)
    entries = packed.table.view(torch.float16).float().unflatten(-1, (-1, 2)).square().sum(-1)
    assert float(entries[entries > 0].mean()) == pytest.approx(1.0, rel=0.3)


def test_a_likely_place_wins_and_its_fit_is_told_as_it_is(grid: RingGrid) -> None:
    references = blobs(2, seed=4, radius=5.0)
    spectra, orders = as_spectra(grid, references[:1].roll(4, dims=2)), as_orders(grid, references)
    shifts = torch.tensor([[4.0, 0.0], [0.0, 0.0], [1.0, 1.0]])

    def search(which: list[int], favour: torch.Tensor | None = None) -> ClassPoses:
        return score_classes(grid, spectra, torch.zeros(1, 2), orders, shifts[which], favour=favour)

    free = search([0, 1, 2])
    for i in range(3):
        favour = 1e6 * torch.nn.functional.one_hot(torch.tensor(i), 3).float()
        found, alone = search([0, 1, 2], favour), search([i])
        assert torch.allclose(found.origin_xy_px, alone.origin_xy_px)
        assert torch.allclose(found.cross, alone.cross, rtol=1e-2)
        assert bool((found.cross <= free.cross * 1.01).all())
    assert float(free.cross[0, 0]) > 1.1 * float(search([1]).cross[0, 0])


def test_places_are_known_from_most_and_bad_picks_cost_no_more_than_they_must() -> None:
    generator = torch.Generator().manual_seed(0)
    origin = 2.0 * torch.randn(2000, 2, generator=generator)
    origin[:100] = 9.0  # bad picks
    spread = origin_spread(origin)
    assert float(spread) == pytest.approx(2.0, rel=0.1)
    assert float(origin.std()) > 2.5
    told = log_prior(torch.tensor([[0.0, 0.0], [0.0, 4.0], [9.0, 0.0], [0.0, 90.0]]), torch.tensor(2.0), 9.0)
    assert float(told[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(told[1]) == pytest.approx(-2.0, abs=0.1)
    assert -8 < float(told[2]) < -5
    assert float(told[3]) == pytest.approx(float(told[2]), abs=0.1)


def test_signal_is_where_the_halves_agree(grid: RingGrid) -> None:
    (image,) = blobs(1, seed=2, radius=5.0)
    noise = 0.3 * torch.randn(2, BOX, BOX, generator=torch.Generator().manual_seed(1))
    c = torch.arange(BOX) - BOX // 2
    away = torch.hypot(c[:, None].float(), c[None].float())

    def share(halves: torch.Tensor) -> torch.Tensor:
        return signal_share(grid, as_orders(grid, halves)[:, None], 2.0)[0]

    told = share(image + noise)
    assert float(told[away < 3].min()) > 0.8
    assert float(told[(away > 14) & (away < 20)].mean()) < 0.4
    assert float(share(noise)[away < 20].mean()) < 0.4
    assert float(share(image + noise[[0, 0]])[away < 20].min()) > 0.99


def pose_back(images: torch.Tensor, psi: torch.Tensor, origin: torch.Tensor, mirror: torch.Tensor) -> torch.Tensor:
    """Particles that the pose takes onto the images."""
    from ralib.conventions import invert

    return rotate_shift_images(images, *invert((psi, origin, mirror)), method="cubic")


def test_prices_balance_classes_as_far_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    fit = torch.randn(600, 4, generator=generator) + torch.tensor([3.0, 0.0, 0.0, 0.0])

    def sizes(balance: float) -> torch.Tensor:
        return class_posterior(fit, class_prices(fit, 1.0, balance), 1.0).mean(0)

    free, some, equal = sizes(0.0), sizes(0.3), sizes(1.0)
    assert float(free[0]) > 0.75
    assert float(free[0]) > float(some[0]) > float(equal[0])
    assert torch.allclose(equal, torch.full((4,), 0.25), atol=0.01)


@pytest.mark.parametrize("spread", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("balance", [0.1, 0.3, 0.8])
def test_prices_reach_their_fixed_point(spread: float, balance: float) -> None:
    """Whether classes are alike to a particle or far apart: one more step of the map changes next to nothing."""
    generator = torch.Generator().manual_seed(1)
    fit = spread * torch.randn(600, 6, generator=generator) + torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0, -2.0])
    pressure = PRESSURE_NATS * balance / (1 - balance)

    def stepped(price: torch.Tensor) -> torch.Tensor:
        share = 6 * class_posterior(fit, price, 1.0).mean(0)
        return (pressure / (pressure + 1) * (price - share.log())).clamp_max(0.0)

    price = class_prices(fit, 1.0, balance)
    assert float((stepped(price) - price).abs().max()) < 0.003 * float(stepped(torch.zeros(6)).abs().max())


def test_duplicates_go_first_and_a_rare_class_stays() -> None:
    fit = torch.zeros(100, 4)
    fit[:50, 0], fit[:50, 1] = 10.0, 9.9  # two of a kind
    fit[50:97, 2] = 10.0
    fit[97:, 3] = 10.0  # three particles that nothing else explains
    assert keep_most_useful(fit, 3).tolist() == [0, 2, 3]


def around(place: torch.Tensor, views: int) -> torch.Tensor:
    """Distance (n, views) of places on a circle of that length from views in its middle, half a step in."""
    away = (place[:, None] - torch.arange(views) - 0.5).abs()
    return torch.minimum(away, views - away)


def test_few_stay_where_nothing_else_is_like_them() -> None:
    """Ten views evenly spread, a hundred particles each, and one that ten particles have and that is like no other."""
    fit = torch.full((1010, 11), 60.0)
    fit[:1000, :10] = 100 - 10 * around(torch.arange(1000) / 100, 10)
    fit[1000:, 10] = 100.0
    assert 10 in keep_most_useful(fit, 8).tolist()
    fit[1000:, :10] = 99 - torch.rand(10, 10, generator=torch.Generator().manual_seed(0))  # now others are like it
    assert 10 not in keep_most_useful(fit, 8).tolist()


def test_a_species_whose_views_differ_less_keeps_its_classes() -> None:
    """Two species of six evenly spread views each; fits of the second fall off with a fifth of the slope."""
    fit = torch.full((1200, 12), 0.0)
    away = around(torch.arange(600) / 100, 6)
    fit[:600, :6], fit[600:, 6:] = 100 - 10 * away, 100 - 2 * away
    kept = keep_most_useful(fit, 8)
    assert 3 <= int((kept < 6).sum()) <= 5


def particle_set(options: SimulationOptions) -> tuple[ParticleSet, Simulator]:
    simulator = Simulator(options)
    images = torch.cat(list(simulator.blocks())).numpy()
    truth = simulator.truth
    return ParticleSet(ArraySource(images), simulator.pixel_size_A, truth.ctf, group=truth.micrograph), simulator


@pytest.fixture(scope="module")
def small_set() -> tuple[ParticleSet, Simulator]:
    return particle_set(SimulationOptions(n_particles=400, box=BOX, snr=0.2, seed=3, n_views=4))


QUICK = ScheduleSettings(exchanges=1, final=3)


@pytest.fixture(scope="module")
def classified(small_set: tuple[ParticleSet, Simulator]) -> Classifier:
    return Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0])


def test_views_are_found_from_scratch(classified: Classifier, small_set: tuple[ParticleSet, Simulator]) -> None:
    truth = small_set[1].truth.poses.class_index
    assert purity(classified.poses_.class_index, truth) > 0.97
    assert classified.result_.stability["believable"]
    assert classified.class_averages_.images.shape == (4, BOX, BOX)
    assert classified.class_averages_.half_images is not None
    shuffled = truth[torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))]
    assert purity(classified.poses_.class_index, shuffled) < 0.5


def test_one_seed_gives_one_answer(classified: Classifier, small_set: tuple[ParticleSet, Simulator]) -> None:
    again = Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0])
    assert torch.equal(again.poses_.psi_deg, classified.poses_.psi_deg)
    assert torch.equal(again.class_averages_.images, classified.class_averages_.images)


def test_equal_sizes_are_equal(small_set: tuple[ParticleSet, Simulator]) -> None:
    equal = Classifier(n_classes=3, seed=5, plan=QUICK, equal_sizes=True).fit(small_set[0])
    assert sorted(torch.bincount(equal.poses_.class_index).tolist()) == [133, 133, 134]


def test_given_poses_are_kept(small_set: tuple[ParticleSet, Simulator]) -> None:
    particles, simulator = small_set
    truth = simulator.truth.poses
    kept = Classifier(n_classes=4, seed=5, plan=QUICK, skip_align=True).fit(particles.replace(poses=truth))
    angle, shift = pose_error(
        (kept.poses_.psi_deg, kept.poses_.origin_xy_px, kept.poses_.mirror),
        (truth.psi_deg, truth.origin_xy_px, truth.mirror),
    )
    assert float(angle.max()) < 1e-3
    assert float(shift.max()) < 1e-3
    assert purity(kept.poses_.class_index, truth.class_index) > 0.9
    with pytest.raises(RalibError, match="no poses"):
        Classifier(n_classes=4, skip_align=True).fit(particles)


def test_images_that_are_no_images_are_left_out(small_set: tuple[ParticleSet, Simulator]) -> None:
    particles, _ = small_set
    images = particles.images.read(np.arange(120)).copy()
    images[7], images[8] = np.nan, 3.0
    result = Classifier(n_classes=2, seed=5, plan=QUICK, ctf="off").fit(images).result_
    assert result.bad_particles == [7, 8]
    assert result.poses.class_index[7:9].tolist() == [-1, -1]
    assert bool(torch.isfinite(result.averages.images).all())
    with pytest.raises(RalibError, match="0 of 8 images"):
        Classifier(n_classes=2).fit(np.full((8, 32, 32), np.nan, np.float32))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"n_classes": 0}, "give `n_classes` 1 or more, as a whole number"),
        ({"n_classes": 2.0}, "as a whole number"),
        ({"n_classes": 2, "seed": -1}, "give `seed` 0 or more"),
        ({"n_classes": 3, "balance": 1.5}, "between 0"),
        ({"n_classes": 3, "diameter_A": -1.0}, "above 0"),
        ({"n_classes": 300}, "too few"),
        ({"n_classes": 3, "search_px": 0.0}, "above 0"),
        ({"n_classes": 3, "lowest_A": 27.0}, "`lowest_A` 27 A leaves too little to compare: classes are begun with"),
    ],
)
def test_classifier_bad_options_are_refused(
    options: dict[str, float], told: str, small_set: tuple[ParticleSet, Simulator]
) -> None:
    with pytest.raises(RalibError, match=told):
        Classifier(**options).fit(small_set[0])  # type: ignore[arg-type]


def test_what_a_particle_gave_to_its_class_is_known(small_set: tuple[ParticleSet, Simulator]) -> None:
    classifier = Classifier(n_classes=4, seed=5, plan=QUICK)
    classifier.n_classes_ = 4  # `fit` counts them before it loads
    shard = Shard.of_all(len(small_set[0]))
    whitened = classifier._load(small_set[0], classifier._batches(small_set[0], shard), shard)
    schedule, state = classifier._begin(small_set[0], whitened, shard)
    model = schedule.model
    state = initialize_from_particles(model, schedule.plan, schedule.k, schedule.generator, state)
    rings = schedule.position.rings
    others = torch.nonzero(model.joins)[:30, 0]

    def cross(model: Model, some: torch.Tensor) -> torch.Tensor:
        references = model.masked(average_groups(model, state, state.class_index, 4, rings)[0], rings)
        found = score_fixed(
            whitened.grid, whitened.spectra, state.psi_deg, state.origin_xy_px, state.mirror, references
        )
        return found.cross.gather(1, state.class_index[:, None])[some, 0]

    lost = []
    for some in others.split(3):  # few at a time: without many of its members a class is also regularised more
        out = model.held_out.clone()
        out[some] = True
        lost.append(cross(model, some) - cross(replace(model, held_out=out), some))
    own = average_groups(model, state, state.class_index, 4, rings)[1]

    def subtracted(psi_deg: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros_like(psi_deg)
        poses = ClassPoses(*(f[None] for f in (zero, zero, psi_deg, state.origin_xy_px, state.mirror)))
        return -without_self(whitened, own, poses, rings, state.class_index[None]).cross[0]

    told = subtracted(state.psi_deg)[others]
    assert float(torch.cat(lost).sum() / told.sum()) == pytest.approx(1, abs=0.2)
    assert float(subtracted(state.psi_deg + 90)[others].sum()) < 1e-3 * float(told.sum())
    assert float(subtracted(state.psi_deg)[~model.joins].abs().max()) == 0.0


class Interrupted(Exception):  # noqa: N818 - what the test raises to stop a run
    pass


class Keeper(SilentObserver):
    """Keeps the checkpoints, and stops the run after some."""

    def __init__(self, stop_after: int) -> None:
        self.kept: list[Checkpoint] = []
        self.stop_after = stop_after

    def iteration(self, done: IterationDone) -> None:
        if done.checkpoint is not None:
            self.kept.append(done.checkpoint())
        if len(self.kept) == self.stop_after:
            raise Interrupted


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_stopped_run_goes_on_to_the_same_bits(
    steps: int, classified: Classifier, small_set: tuple[ParticleSet, Simulator]
) -> None:
    keeper = Keeper(steps)
    with pytest.raises(Interrupted):
        Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0], observer=keeper)
    resumed = Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0], resume=keeper.kept[-1])
    assert torch.equal(resumed.poses_.psi_deg, classified.poses_.psi_deg)
    assert torch.equal(resumed.class_averages_.images, classified.class_averages_.images)
    assert len(resumed.result_.iterations) == len(classified.result_.iterations)
    arrays = keeper.kept[-1].arrays
    assert {"psi_deg", "averages.orders", "own_share", "best"} <= set(arrays), (
        "names that runs begun earlier have on disk"
    )
    changed = {name: np.roll(arrays[name], 1, axis=0) for name in ("psi_deg", "averages.orders")}
    wrong = Checkpoint(0, arrays | changed, keeper.kept[-1].meta)
    other = Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0], resume=wrong)
    assert not torch.equal(other.class_averages_.images, classified.class_averages_.images)


def test_classifier_iteration_keeps_its_number_while_the_next_ones_come(
    small_set: tuple[ParticleSet, Simulator],
) -> None:
    """Files are written by a thread: on a busy machine the averages of one iteration got the number of the next."""

    seen: list[tuple[int, IterationDone]] = []

    class Collector(Keeper):
        def iteration(self, done: IterationDone) -> None:
            seen.append((done.number, done))
            super().iteration(done)

    with pytest.raises(Interrupted):
        Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0], observer=Collector(1))
    numbers = [number for number, _ in seen]
    assert len(numbers) > 2
    assert numbers == sorted(set(numbers))
    assert [done.number for _, done in seen] == numbers


def test_classifier_stopped_before_all_detail_is_compared_goes_on(small_set: tuple[ParticleSet, Simulator]) -> None:
    """As at most real sizes: averages reach beyond the rings compared, and the grid beyond both."""
    plan, keeper = replace(QUICK, exchange_details=6.0, final=1), Keeper(99)
    whole = Classifier(n_classes=4, seed=5, plan=plan).fit(small_set[0], observer=keeper)
    assert len(keeper.kept) > 1
    for checkpoint in keeper.kept:
        rings = checkpoint.meta["position"]["rings"]
        assert rings < checkpoint.arrays["averages.frc"].shape[1]
        continued = Classifier(n_classes=4, seed=5, plan=plan).fit(small_set[0], resume=checkpoint)
        assert torch.equal(continued.class_averages_.images, whole.class_averages_.images)
    for wrong in (rings - 2, 10_000):
        meta = {**checkpoint.meta, "position": {**checkpoint.meta["position"], "rings": wrong}}
        with pytest.raises(RalibError, match="not what the run wrote"):
            Classifier(n_classes=4, seed=5, plan=plan).fit(small_set[0], resume=replace(checkpoint, meta=meta))


def test_class_fit_of_a_particle_does_not_depend_on_its_chunk(
    classified: Classifier, small_set: tuple[ParticleSet, Simulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_fit, "samples_at_once", lambda *_: 37)
    again = Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0])
    np.testing.assert_allclose(again.evidence_.fit, classified.evidence_.fit, rtol=1e-4, atol=1e-4)
    first = FIT_NAMES.index("left_brightest")
    shuffled = again.evidence_.fit.flip(0)
    assert (shuffled - classified.evidence_.fit)[:, first].abs().max() > 0.1, "particles differ by more than that"


def test_a_step_that_finds_no_memory_is_done_in_parts(
    classified: Classifier, small_set: tuple[ParticleSet, Simulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a tenth of the usual is asked for; then the run ends as always, or says why not."""
    score, asked = e_step.score_classes, []

    def refusing(*arguments: object, memory_bytes: float, **options: object) -> ClassPoses:
        asked.append(memory_bytes)
        if memory_bytes > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return score(*arguments, memory_bytes=memory_bytes, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pose_search, "score_classes", refusing)
    limit = 0.1 * STEP_BYTES
    again = Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0])
    assert torch.equal(again.class_averages_.images, classified.class_averages_.images)
    assert sum(most > limit for most in asked) == 4  # 1, 1/2, 1/4, 1/8: what was found too much is not asked for again
    limit = 1.0
    with pytest.raises(RalibError, match="nothing is left to shrink"):
        Classifier(n_classes=4, seed=5, plan=QUICK).fit(small_set[0])


def test_classifier_of_one_class_ends(small_set: tuple[ParticleSet, Simulator]) -> None:
    images = small_set[0].images.read(np.arange(60))
    result = Classifier(n_classes=1, seed=5, plan=QUICK, ctf="off").fit(images).result_
    assert result.averages.members.tolist() == [60]


def test_centring_takes_the_particles_along(small_set: tuple[ParticleSet, Simulator]) -> None:
    """What a particle shares with its class must not change when both are moved."""
    classifier = Classifier(n_classes=4, seed=5, plan=QUICK)
    classifier.n_classes_ = 4  # `fit` counts them before it loads
    shard = Shard.of_all(len(small_set[0]))
    whitened = classifier._load(small_set[0], classifier._batches(small_set[0], shard), shard)
    schedule, state = classifier._begin(small_set[0], whitened, shard)
    model = schedule.model
    state = initialize_from_particles(model, schedule.plan, schedule.k, schedule.generator, state)
    move = torch.full((len(state.psi_deg), 2), 1.5)
    away = replace(state, origin_xy_px=follow_centres(state.psi_deg, state.origin_xy_px, state.mirror, move))
    rings = schedule.position.rings
    away = replace(away, averages=average_groups(model, away, away.class_index, 4, rings)[0])

    def shared(state: State, references: torch.Tensor) -> float:
        found = score_fixed(
            whitened.grid, whitened.spectra, state.psi_deg, state.origin_xy_px, state.mirror, references
        )
        return float(found.cross.gather(1, state.class_index[:, None]).mean())

    before, centred = shared(away, model.references(away, rings)), centre_classes(model, away)
    there = mirror_x(rotate_xy(centred.psi_deg, centred.origin_xy_px), centred.mirror)
    for k in range(4):  # the boxes of a class have their centres where its average has its own
        assert float(there[centred.class_index == k].mean(0).abs().max()) < 0.01
    assert float((centred.origin_xy_px - away.origin_xy_px).norm(dim=1).median()) > 1.0
    assert shared(centred, model.references(centred, rings)) == pytest.approx(before, rel=0.02)
    assert shared(centred, model.references(away, rings)) < 0.95 * before


def test_classifier_quick_plan_takes_a_sample_and_classifies_all(small_set: tuple[ParticleSet, Simulator]) -> None:
    plan = replace(ScheduleSettings.quick(), sample=20, least_sample=120)
    quick = Classifier(n_classes=4, seed=5, plan=plan).fit(small_set[0])
    assert purity(quick.poses_.class_index, small_set[1].truth.poses.class_index) > 0.9
    assert int((quick.poses_.class_index >= 0).sum()) == 400
    sizes = [sum(row["class_sizes"]) for row in quick.result_.iterations]
    assert set(sizes[:-1]) == {120}
    assert sizes[-1] == 400
    assert quick.result_.iterations[-1]["stage"] == "all"


@pytest.mark.parametrize(("pixel_ratio", "units"), [(1.0, 1.0), (1.5, -300.0)])
def test_classifier_begins_with_references_of_any_size(
    classified: Classifier, small_set: tuple[ParticleSet, Simulator], pixel_ratio: float, units: float
) -> None:
    """They are found again in their order, also with larger pixels, in a smaller box, and with shifted greys."""
    particles, truth = small_set[0], small_set[1].truth.poses.class_index
    images = resample(classified.class_averages_.images, 28 if pixel_ratio > 1 else BOX, pixel_ratio)
    images = images * abs(units) + units
    size_A = (particles.pixel_size_A or 1.0) * pixel_ratio
    plan = ScheduleSettings(exchanges=0, final=1)
    again = Classifier(n_classes=4, seed=5, plan=plan, references=images, references_pixel_size_A=size_A)
    again.fit(particles)
    assert purity(again.poses_.class_index, truth) > 0.97
    assert float((again.poses_.class_index == classified.poses_.class_index).double().mean()) > 0.97
    assert "thin" not in {row["stage"] for row in again.result_.iterations}


@pytest.mark.parametrize(
    ("references", "told"),
    [
        (np.ones((4, BOX, BOX), np.float32), "constant or not finite"),
        (np.random.default_rng(0).normal(size=(4, 30, 30)), "are 30 px, particles 48 px"),
        (np.random.default_rng(0).normal(size=(4, 30, 48)), "square images"),
        (np.random.default_rng(0).normal(size=(3, 48, 48)), "make 3 classes, not 4"),
    ],
)
def test_classifier_unusable_references_are_refused(
    references: np.ndarray, told: str, small_set: tuple[ParticleSet, Simulator]
) -> None:
    with pytest.raises(RalibError, match=told):
        Classifier(n_classes=4, references=references, diameter_A=200.0).fit(small_set[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_classifier_two_unlike_particles_are_no_outliers_of_each_other(seed: int) -> None:
    """Of two images the median is one, and both counted as outliers, from which no class begins: an internal error."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32] - 16
    shapes = np.stack([2 * np.exp(-(x**2 + y**2) / 20.0), 5 * np.exp(-(x**2) / 40.0 - y**2 / 10.0)])
    images = (shapes + rng.normal(size=shapes.shape)).astype(np.float32)
    found = Classifier(n_classes=1, seed=1, plan=QUICK).fit(images)
    assert len(found.class_averages_.images) == 1
    assert torch.isfinite(found.class_averages_.images).all()
    assert found.poses_.class_index.tolist() == [0, 0]
