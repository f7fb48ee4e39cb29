"""The reference-free loop: finds the common view, runs its stages, stops, resumes."""

import itertools

import numpy as np
import pytest
import torch

from blobs import make
from ralib.alignment.reference_free import ReferenceFreeAligner
from ralib.conventions import compose, invert, wrap_deg
from ralib.kernels.threads import cores
from ralib.results.observer import IterationDone, SilentObserver
from ralib.types import RalibError

STAGES = [(2.0, 2.0, 1.0), (1.0, 1.0, None)]


@pytest.fixture(scope="module")
def truth():
    return make(60, box=40, n_views=1, snr=2.0, shift_px=1.5, seed=2)


def aligner(**options) -> ReferenceFreeAligner:
    return ReferenceFreeAligner(**{"stages": STAGES, "outer_radius": 15, "iterations": 2} | options)


def spread_deg(found, truth) -> tuple[float, float]:
    """Median deviation (deg) of found poses from the truth up to one common pose, and the share of equal mirrors."""
    pose = [(p.psi_deg.double(), p.origin_xy_px.double(), p.mirror) for p in (found, truth)]
    psi, _, mirror = compose(invert(pose[1]), pose[0])
    common = mirror.double().mean().round() > 0.5
    same = mirror == common
    turn = torch.deg2rad(psi[same])
    mean = torch.rad2deg(torch.atan2(torch.sin(turn).mean(), torch.cos(turn).mean()))
    return float(wrap_deg(psi[same] - mean).abs().median()), float(same.double().mean())


def test_reffree_finds_the_common_view(truth) -> None:
    result = aligner(iterations=4).fit(truth.images)
    angle, same = spread_deg(result.poses_, truth.poses)
    assert angle < 3
    assert same > 0.95
    assert result.average_.shape == (40, 40)
    assert [f["stage"] for f in result.iterations_] == [1] * 4 + [2] * 4
    assert result.iterations_[-1]["criterion"] > result.iterations_[0]["criterion"]


def test_reffree_leaves_pytorch_one_thread_while_it_runs(truth) -> None:
    """Its own threads would spin between operations, beside those that search."""
    seen, before = [], torch.get_num_threads()

    class Looking(SilentObserver):
        def iteration(self, done: IterationDone) -> None:
            seen.append((torch.get_num_threads(), cores()))

    torch.set_num_threads(2)
    try:
        aligner().fit(truth.images, observer=Looking())
        assert set(seen) == {(1, 2)}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_reffree_without_mirror_finds_none(truth) -> None:
    result = aligner(mirror=False).fit(truth.images)
    assert not result.poses_.mirror.any()
    assert spread_deg(result.poses_, truth.poses)[1] < 0.8, "half of the particles are mirrored"


def test_reffree_automatic_iterations_stop_when_the_criterion_falls(truth) -> None:
    result = aligner(iterations=0, stages=[(1.0, 1.0, None)]).fit(truth.images)
    criteria = [f["criterion"] for f in result.iterations_]
    assert len(criteria) <= 10
    if len(criteria) < 10:
        assert criteria[-1] < max(criteria[:-1])
    assert all(b >= a for a, b in itertools.pairwise(criteria[:-1]))


def test_reffree_random_start_follows_the_seed(truth) -> None:
    images = truth.images[:20]
    one, two, other = (aligner(randomize=True, seed=s, iterations=1).fit(images) for s in (1, 1, 2))
    assert torch.equal(one.average_, two.average_)
    assert not torch.equal(one.average_, other.average_)


@pytest.mark.parametrize("stop", [2, 4])
def test_reffree_resumed_gives_the_same_bits(truth, stop) -> None:
    class Keeper(SilentObserver):
        kept = None

        def iteration(self, done) -> None:
            if done.number == stop:
                self.kept = done.checkpoint()

    observer = Keeper()
    whole = aligner(fourier_variance=True).fit(truth.images, observer=observer)
    resumed = aligner(fourier_variance=True).fit(truth.images, resume=observer.kept)
    assert torch.equal(whole.average_, resumed.average_)
    assert torch.equal(whole.poses_.psi_deg, resumed.poses_.psi_deg)
    assert len(resumed.iterations_) == 4


def test_reffree_impossible_options_are_refused(truth) -> None:
    with pytest.raises(RalibError, match="no stage"):
        aligner(stages=[])
    with pytest.raises(RalibError, match="`iterations`"):
        aligner(iterations=-1)
    for stages in ([(2.0, 2.0)], (2.0, 2.0, None), [(-1.0, 2.0, None)], [(1.0, 2.0, 0.0)], [(1.0, float("nan"), None)]):
        with pytest.raises(RalibError, match="`stages`"):
            aligner(stages=stages)
    for wrong in ({"iterations": 2.5}, {"seed": None}, {"seed": -1}):
        with pytest.raises(RalibError, match=f"`{next(iter(wrong))}`"):
            aligner(**wrong)
    with pytest.raises(RalibError, match="square images"):
        aligner().fit(np.zeros((4, 4)))
