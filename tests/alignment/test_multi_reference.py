"""The multi-reference loop: true poses near the bound, invariances, same bits, bad images, ranks, resuming."""

import threading

import numpy as np
import pytest
import torch

from blobs import Truth, make
from ralib.alignment import equal_sizes as equal_classes
from ralib.alignment import iteration as alignment
from ralib.alignment import sample_cache as room
from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.alignment.reference_free import ReferenceFreeAligner
from ralib.classes import evaluation
from ralib.conventions import compose, pose_error, wrap_deg
from ralib.images.fourier import filter_images, frequency_grid
from ralib.particles import batches
from ralib.results.observer import IterationDone, SilentObserver
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet, Poses, RalibError, as_particles

OUTER = 19


def aligner(truth: Truth, **options) -> MultiReferenceAligner:
    defaults = {"references": truth.references, "outer_radius": OUTER, "iterations": 1, "center": 0}
    return MultiReferenceAligner(**defaults | options)


def errors(found: Poses, truth: Poses) -> tuple[torch.Tensor, torch.Tensor]:
    pair = [(p.psi_deg.double(), p.origin_xy_px.double(), p.mirror) for p in (found, truth)]
    return pose_error(*pair)


@pytest.fixture(scope="module")
def easy() -> Truth:
    return make(90, snr=1.0, box=48, n_views=3, seed=5)


@pytest.mark.parametrize("snr", [0.1, 1.0])
def test_mref_true_references_give_poses_near_the_cramer_rao_bound(snr: float) -> None:
    truth = make(700, snr=snr, seed=1)
    found = aligner(truth).fit(truth.images).poses_
    right = (found.class_index == truth.poses.class_index) & (found.mirror == truth.poses.mirror)
    assert right.double().mean() >= 0.999
    angle, shift = errors(found, truth.poses)
    bounds = [evaluation.median_of_bound(evaluation.pose_bound(r, truth.noise_sd)) for r in truth.references]
    for k, (angle_bound, shift_bound) in enumerate(bounds):
        member = truth.poses.class_index == k
        # A median of 175 numbers scatters by 9 %.
        assert angle[member].median() < 1.3 * angle_bound
        assert shift[member].median() < 1.3 * shift_bound
        assert angle[member].median() > 0.7 * angle_bound, "better than possible: the bound or the noise is wrong"
    relative = [
        (angle[truth.poses.class_index == k] / a, shift[truth.poses.class_index == k] / s)
        for k, (a, s) in enumerate(bounds)
    ]
    assert torch.cat([a for a, _ in relative]).median() < 1.15
    assert torch.cat([s for _, s in relative]).median() < 1.15


def test_mref_comparison_can_fail(easy: Truth) -> None:
    found = aligner(easy).fit(easy.images).poses_
    wrong = found.replace(psi_deg=-found.psi_deg)
    assert errors(found, easy.poses)[0].median() < 1
    assert errors(wrong, easy.poses)[0].median() > 20


def test_mref_references_of_higher_variance_do_not_win(easy: Truth) -> None:
    scaled = easy.references * torch.tensor([1.0, 20.0, 0.05])[:, None, None]
    found = aligner(easy, references=scaled).fit(easy.images).poses_
    assert torch.equal(found.class_index, easy.poses.class_index)


@pytest.mark.parametrize("what", ["rotated", "mirrored", "shifted", "permuted"])
def test_mref_changed_input_changes_the_answer_accordingly(what: str) -> None:
    truth = make(60, box=49, snr=0.5, n_views=3, shift_px=1.0, seed=3)
    images = torch.from_numpy(truth.images)
    found = aligner(truth).fit(truth.images).poses_
    order = torch.arange(60)
    one, zero, no = torch.ones(60), torch.zeros(60, 2), torch.zeros(60, dtype=torch.bool)
    if what == "rotated":
        images, first = torch.rot90(images, 1, (-2, -1)), (90 * one, zero, no)
    elif what == "mirrored":
        images, first = images.flip(-1), (0 * one, zero, ~no)
    elif what == "shifted":
        images, first = images.roll((1, -1), (-2, -1)), (0 * one, zero + torch.tensor([1.0, -1.0]), no)
        # The image moved by (-1, +1) in (x, y): a point p of it was at p + (1, -1).
    else:
        order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
        images, first = images[order], (0 * one, zero, no)
    moved = aligner(truth).fit(images.contiguous()).poses_
    same = found[order]
    psi, origin, mirror = compose(first, (same.psi_deg, same.origin_xy_px, same.mirror))
    assert torch.equal(moved.class_index, same.class_index)
    assert torch.equal(moved.mirror, mirror)
    assert wrap_deg(moved.psi_deg - psi).abs().max() < 0.05
    assert (moved.origin_xy_px - origin).abs().max() < 0.02
    # A shifted image shows other pixels outside the disc: its background is scaled by another sample.
    torch.testing.assert_close(moved.score, same.score, rtol=0.03 if what == "shifted" else 2e-3, atol=0)


def test_mref_batches_streaming_and_repetition_change_nothing(easy: Truth, monkeypatch) -> None:
    options = {"iterations": 3, "references": 3, "center": 1}
    first = aligner(easy, **options).fit(easy.images)
    again = aligner(easy, **options).fit(easy.images)
    assert torch.equal(first.class_averages_.images, again.class_averages_.images), "the same bits"
    assert torch.equal(first.poses_.psi_deg, again.poses_.psi_deg)
    small = aligner(easy, **options, batch_size=7).fit(easy.images)
    for module in (batches, room):
        monkeypatch.setattr(module, "free_memory", lambda device: 0)
    streamed = aligner(easy, **options, batch_size=32).fit(easy.images)
    for other in (small, streamed):
        assert torch.equal(first.poses_.class_index, other.poses_.class_index)
        torch.testing.assert_close(first.class_averages_.images, other.class_averages_.images, rtol=0, atol=5e-4)
    different = aligner(easy, **options, seed=2).fit(easy.images)
    assert not torch.equal(first.class_averages_.images, different.class_averages_.images)


def test_mref_random_averages_find_the_classes() -> None:
    truth = make(150, snr=1.0, n_views=3, seed=8)
    result = aligner(truth, references=5, iterations=6, center=1).fit(truth.images)
    assert evaluation.purity(result.poses_.class_index, truth.poses.class_index) > 0.9
    assert result.iterations_[-1]["criterion"] > result.iterations_[0]["criterion"]


def test_mref_equal_sizes_differ_by_at_most_one(easy: Truth) -> None:
    result = aligner(easy, equal_sizes=True, iterations=2).fit(easy.images)
    assert result.class_averages_.members.tolist() == [30, 30, 30]
    assert result.iterations_[-1]["effective_classes"] == pytest.approx(3)


def test_mref_starving_class_is_reseeded_and_told(easy: Truth) -> None:
    noise = torch.randn(1, 48, 48, generator=torch.Generator().manual_seed(0))
    references = torch.cat([easy.references, noise])
    result = aligner(easy, references=references, iterations=3, min_members=8).fit(easy.images)
    assert any("class 4 had 0 members and was reseeded" in w.what for w in result.warnings_)
    assert min(result.iterations_[0]["class_sizes"]) >= 8
    kept = aligner(easy, references=references, iterations=3, min_members=0).fit(easy.images)
    assert kept.class_averages_.members[3] == 0
    assert torch.isfinite(kept.class_averages_.images).all()


def test_mref_averages_are_those_of_its_poses(easy: Truth) -> None:
    result = aligner(easy, iterations=2, center=1).fit(easy.images)
    run = alignment.Alignment(as_particles(easy.images), result.options)
    again = run.average(result.poses_, 3).images
    disc = run.plan.mask > 0.99
    for a, b in zip(again[:, disc], result.class_averages_.images[:, disc], strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.995


def test_mref_unusable_images_are_named_and_left_out(easy: Truth) -> None:
    images = easy.images.copy()
    images[3, 5, 5] = np.nan
    images[10] = 7.0
    images[20, 0, 0] = np.inf
    result = aligner(easy, iterations=2).fit(images)
    assert result.bad_particles_ == [3, 10, 20]
    assert result.poses_.class_index[[3, 10, 20]].tolist() == [-1, -1, -1]
    assert "4, 11, 21" in result.warnings_[-1].what
    assert torch.isfinite(result.class_averages_.images).all()
    clean = np.delete(easy.images, [3, 10, 20], axis=0)
    alone = aligner(easy, iterations=1).fit(clean)
    assert int(result.class_averages_.members.sum()) == 87 == int(alone.class_averages_.members.sum())
    with pytest.raises(RalibError, match="particle 4 is not a usable image"):
        aligner(easy, strict=True).fit(images)


def test_mref_user_function_prepares_the_references(easy: Truth) -> None:
    seen = []

    def function(average, mask, curve):
        seen.append((average.shape, mask.shape, curve.shape))
        return np.roll(average, 1, axis=1) * mask, (1.0, 0.0)

    plain = aligner(easy, iterations=1).fit(easy.images)
    result = aligner(easy, iterations=1, user_function=function).fit(easy.images)
    assert seen == [((48, 48), (48, 48), (25,))] * 3
    shift = result.poses_.origin_xy_px - plain.poses_.origin_xy_px
    torch.testing.assert_close(torch.linalg.vector_norm(shift, dim=1), torch.ones(90), rtol=0, atol=1e-4)
    with pytest.raises(RalibError, match="must return a finite image"):
        aligner(easy, user_function=lambda a, m, f: a[:3]).fit(easy.images)
    with pytest.raises(RalibError, match="`user_function` failed on class 1: ZeroDivisionError"):
        aligner(easy, user_function=lambda a, m, f: 1 / 0).fit(easy.images)


class InterruptError(Exception):
    pass


class StopAfter(SilentObserver):
    """Keeps every checkpoint, and interrupts after one of them."""

    def __init__(self, iteration: int) -> None:
        self.stop, self.kept = iteration, []

    def iteration(self, done: IterationDone) -> None:
        self.kept.append(done.checkpoint())
        if done.number == self.stop:
            raise InterruptError


@pytest.mark.parametrize("stop", [1, 3])
def test_mref_resumed_gives_the_same_bits(easy: Truth, stop: int) -> None:
    options = {"iterations": 3, "references": 3, "center": 1, "batch_size": 40}
    whole = aligner(easy, **options).fit(easy.images)
    observer = StopAfter(stop)
    with pytest.raises(InterruptError):
        aligner(easy, **options).fit(easy.images, observer=observer)
    resumed = aligner(easy, **options).fit(easy.images, resume=observer.kept[-1])
    assert torch.equal(whole.class_averages_.images, resumed.class_averages_.images)
    assert torch.equal(whole.poses_.psi_deg, resumed.poses_.psi_deg)
    assert torch.equal(whole.references_, resumed.references_)
    timeless = [[{k: v for k, v in f.items() if k != "seconds"} for f in r.iterations_] for r in (whole, resumed)]
    assert str(timeless[0]) == str(timeless[1])
    assert str(whole.result_.classes) == str(resumed.result_.classes)


class ThreadRanks:
    """Ranks that are threads of this process, sharing a list."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list) -> None:
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def all_reduce_(self, tensor: torch.Tensor) -> torch.Tensor:
        self._board[self.rank] = tensor.clone()
        self._barrier.wait()
        total = torch.stack(list(self._board)).sum(0).to(tensor.dtype)
        self._barrier.wait()
        return tensor.copy_(total)

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        self._board[self.rank] = tensor.clone()
        self._barrier.wait()
        tensor.copy_(self._board[0])
        self._barrier.wait()
        return tensor

    def barrier(self) -> None:
        self._barrier.wait()


@pytest.mark.parametrize(("equal", "listed"), [(False, 32), (True, 32), (True, 2)])
def test_mref_two_ranks_end_as_one(easy: Truth, equal: bool, listed: int, monkeypatch) -> None:
    for name, value in (("LISTED", listed), ("SAMPLE", 40), ("SAMPLE_PER_CLASS", 5)):
        monkeypatch.setattr(equal_classes, name, value)
    options = {"iterations": 3, "references": 3, "center": 1, "equal_sizes": equal, "min_members": 20}
    alone = aligner(easy, **options).fit(easy.images)
    barrier, board, results = threading.Barrier(2, timeout=120), [None, None], [None, None]

    def work(rank: int) -> None:
        ranks = ThreadRanks(rank, 2, barrier, board)
        results[rank] = aligner(easy, **options, ranks=ranks).fit(easy.images)

    threads = [threading.Thread(target=work, args=(r,)) for r in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert torch.equal(result.poses_.class_index, alone.poses_.class_index)
        torch.testing.assert_close(result.class_averages_.images, alone.class_averages_.images, rtol=0, atol=5e-4)
    assert torch.equal(results[0].references_, results[1].references_)


def test_mref_impossible_options_are_refused(easy: Truth) -> None:
    cases = [
        ({"references": torch.zeros(2, 40, 40) + torch.eye(40)}, "particles are 48 px, references 40 px"),
        ({"references": torch.zeros(2, 48, 48)}, "reference 1 is constant"),
        ({"references": 91}, "91 references cannot be made from 90 particles"),
        ({"outer_radius": 30}, "do not fit in a box of 48 px"),
        ({"mask": np.zeros((48, 48))}, "zero everywhere"),
        ({"mask": np.ones((40, 40))}, "the mask is"),
        ({"ctf": "wiener"}, "no CTF parameters"),
        ({"snr": -1.0}, "must be above 0"),
        ({"center": 9}, "`center` 9 is unknown"),
        ({"batch_size": 0}, "a batch of 0"),
        ({"mask": "mask.hdf"}, "the mask is a str"),
        ({"references": "references.hdf"}, "`references` is a str"),
        ({"device": "gpu"}, "`device` 'gpu' is not a device"),
    ]
    for options, message in cases:
        with pytest.raises(RalibError, match=message):
            aligner(easy, **options).fit(easy.images)
    with pytest.raises(RalibError, match="no particles"):
        aligner(easy).fit(easy.images[:0])
    with pytest.raises(RalibError, match="`iterations`"):
        aligner(easy, iterations=0)
    with pytest.raises(RalibError, match="square images"):
        aligner(easy).fit(np.zeros((3, 8, 9)))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("shift_range_xy_px", (-3, 3)),
        ("shift_range_xy_px", 3),
        ("shift_range_xy_px", (3, 3, 3)),
        ("shift_range_xy_px", (float("nan"), 3)),
        ("shift_range_xy_px", (float("inf"), 3)),
        ("shift_range_xy_px", ("3", "3")),
        ("shift_step_px", 0),
        ("shift_step_px", -1.0),
        ("shift_step_px", float("nan")),
        ("iterations", 2.5),
        ("iterations", float("nan")),
        ("seed", None),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_mref_option_out_of_range_is_refused_at_the_door(option: str, value: object) -> None:
    with pytest.raises(RalibError, match=f"`{option}`"):
        MultiReferenceAligner(**{"references": 2, option: value})


def test_mref_options_of_numpy_are_numbers() -> None:
    MultiReferenceAligner(
        references=2, iterations=np.int64(2), seed=np.uint8(0), shift_range_xy_px=np.float32([2, 0]), shift_step_px=1
    )


def test_mref_predicts_no_particle_into_a_class_that_ended_empty(easy: Truth) -> None:
    noise = torch.randn(1, 48, 48, generator=torch.Generator().manual_seed(0))
    first, *others = easy.references
    references = torch.stack([first, noise[0], *others])
    fitted = aligner(easy, references=references, iterations=2, min_members=0).fit(easy.images)
    assert fitted.class_averages_.members[1] == 0
    assert (fitted.references_[1] == 0).all()
    images = easy.images.copy()
    images[7] = np.nan
    poses = fitted.predict_poses(images)
    usable = np.arange(90) != 7
    assert np.array_equal(poses.class_index.numpy()[usable], fitted.labels_[usable]), "numbered as by fit"
    assert set(fitted.labels_) == {0, 2, 3}
    assert poses.class_index[7] == -1
    assert np.array_equal(fitted.predict(images), poses.class_index.numpy())
    assert fitted.score(easy.images) > 0


def test_mref_aligns_tensors_of_bfloat16(easy: Truth) -> None:
    coarse = torch.from_numpy(easy.images).bfloat16()
    fitted = aligner(easy).fit(coarse)
    assert torch.equal(fitted.poses_.psi_deg, aligner(easy).fit(coarse.float()).poses_.psi_deg)
    assert np.array_equal(fitted.predict(coarse), fitted.predict(coarse.float()))


def test_mref_shift_range_too_wide_is_said() -> None:
    images = torch.randn(12, 32, 32, generator=torch.Generator().manual_seed(0))
    wide = MultiReferenceAligner(references=2, outer_radius=13, shift_range_xy_px=(4.0, 4.0), iterations=1).fit(images)
    assert any("cut to 2 px" in warning.what for warning in wide.warnings_)
    fits = MultiReferenceAligner(references=2, outer_radius=11, shift_range_xy_px=(4.0, 4.0), iterations=1).fit(images)
    assert not any("shift range" in warning.what for warning in fits.warnings_)


@pytest.mark.parametrize(
    ("shift_range_px", "advice"), [(3.0, "give `outer_radius` 12 or less"), (30.0, "too large for a box of 32 px")]
)
def test_mref_shift_range_too_wide_is_advised_to_what_helps(shift_range_px: float, advice: str) -> None:
    images = torch.randn(12, 32, 32, generator=torch.Generator().manual_seed(0))
    options = {"references": 2, "iterations": 1, "shift_range_xy_px": (shift_range_px, 1.0)}
    (notice,) = [w for w in MultiReferenceAligner(**options).fit(images).warnings_ if "shift range" in w.what]
    assert "was cut to 1 px" in notice.what
    assert advice in notice.remedy
    assert "-" not in notice.remedy, "no radius below 0"


@pytest.mark.parametrize("make", [lambda: MultiReferenceAligner(references=3), ReferenceFreeAligner])
def test_aligners_without_a_usable_image_refuse_the_set(make) -> None:
    with pytest.raises(RalibError, match="none of the 20 images can be used"):
        make().fit(np.zeros((20, 32, 32), np.float32))


def test_mref_wiener_is_not_misled_by_coarse_noise() -> None:
    """Ice as in micrographs: coarse noise as strong as the rest, where a CTF lets little through."""
    simulator = Simulator(SimulationOptions(n_particles=600, box=48, snr=0.3, seed=3, n_views=5))
    images = torch.cat(list(simulator.blocks()))
    white = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ice = filter_images(white, torch.exp(-((torch.hypot(*frequency_grid(48)) / 0.03) ** 2)))
    images += ice * images.std() / ice.std()
    particles = ParticleSet(ArraySource(images.numpy()), simulator.pixel_size_A, simulator.truth.ctf)
    options = {"outer_radius": 18, "iterations": 4, "ctf": "wiener", "seed": 0}
    found = MultiReferenceAligner(references=simulator.references(), **options).fit(particles)
    assert evaluation.purity(found.poses_.class_index, simulator.truth.poses.class_index) > 0.95
