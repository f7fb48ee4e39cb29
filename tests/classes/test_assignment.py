"""Balanced assignment against an exact solver, and reseeding of small classes."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from ralib.classes import assignment as assign
from ralib.classes.assignment import Shortlists
from ralib.types import RalibError


def exact_total(scores: np.ndarray) -> float:
    """The best total of any assignment whose sizes are n // k or one more."""
    n, k = scores.shape
    low, extra = divmod(n, k)
    columns = np.concatenate([np.repeat(scores, low, axis=1), scores], axis=1)
    idle = np.full((k - extra, columns.shape[1]), -1e9)  # rows that fill the optional places not taken
    idle[:, k * low :] = 0.0
    table = np.concatenate([columns, idle])
    rows, places = linear_sum_assignment(table, maximize=True)
    return float(table[rows, places].sum())


@pytest.mark.parametrize(("n", "k"), [(12, 3), (40, 7), (41, 7), (9, 9), (60, 4), (5, 1)])
@pytest.mark.parametrize("popular", [0.0, 3.0])
def test_equal_sizes_is_the_optimum(n: int, k: int, popular: float) -> None:
    for seed in range(5):
        scores = np.random.default_rng(seed).normal(size=(n, k))
        scores[:, 0] += popular
        labels = assign.equal_sizes(torch.from_numpy(scores)).numpy()
        sizes = np.bincount(labels, minlength=k)
        assert sizes.max() - sizes.min() <= 1
        total = scores[np.arange(n), labels].sum()
        assert total == pytest.approx(exact_total(scores), abs=1e-9)


def test_the_comparison_can_fail() -> None:
    scores = np.random.default_rng(3).normal(size=(40, 4))
    round_robin = scores[np.arange(40), np.arange(40) % 4].sum()
    assert round_robin < exact_total(scores) - 1


def test_equal_sizes_with_ties_and_at_scale() -> None:
    assert torch.bincount(assign.equal_sizes(torch.zeros(10, 3))).tolist() in (
        [4, 3, 3],
        [3, 4, 3],
        [3, 3, 4],
    )
    scores = torch.randn(3000, 30, generator=torch.Generator().manual_seed(0)) + torch.linspace(0, 3, 30)
    sizes = torch.bincount(assign.equal_sizes(scores), minlength=30)
    assert sizes.tolist() == [100] * 30


def crowded(n: int, k: int, seed: int) -> torch.Tensor:
    """Scores of particles near one class of many that resemble each other, some of them popular."""
    g = torch.Generator().manual_seed(seed)
    feature = torch.randn(k, 6, generator=g)
    own = feature[torch.randint(0, k, (n,), generator=g)] + 0.7 * torch.randn(n, 6, generator=g)
    return own @ feature.T - 0.5 * feature.square().sum(1) + torch.linspace(0, 2, k)


@pytest.mark.parametrize(
    ("n", "k", "listed", "every", "loss"),
    [(600, 60, 12, 1, 1e-6), (640, 40, 39, 1, 1e-6), (1205, 30, 15, 2, 1e-3), (605, 60, 12, 2, 2e-2)],
)
def test_short_lists_are_as_good_as_their_prices(n: int, k: int, listed: int, every: int, loss: float) -> None:
    """Prices from all particles lose nothing; from a few particles a class, next to nothing."""
    scores = crowded(n, k, 1)
    sample = Shortlists.of(scores[::every], torch.zeros(k), k)
    lists = Shortlists.of(scores, assign.prices(sample).float(), listed)
    assert lists.index.shape == (n, listed)
    labels = assign.balanced(lists)
    sizes = torch.bincount(labels, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    total = float(scores.double().gather(1, labels[:, None]).sum())
    assert total == pytest.approx(exact_total(scores.double().numpy()), rel=loss)


def test_lists_that_miss_what_is_needed_still_give_equal_sizes() -> None:
    """Without prices nobody lists the unpopular classes: sizes hold, the total is worse."""
    scores = crowded(300, 30, 2)
    scores[:, :10] -= 50
    labels = assign.balanced(Shortlists.of(scores, torch.zeros(30), 4))
    assert torch.bincount(labels, minlength=30).tolist() == [10] * 30
    priced = assign.balanced(
        Shortlists.of(scores, assign.prices(Shortlists.of(scores, torch.zeros(30), 30)).float(), 4)
    )
    totals = [float(scores.gather(1, found[:, None]).sum()) for found in (labels, priced)]
    assert totals[0] < totals[1] - 1


def test_lists_hold_the_best_and_bound_the_rest() -> None:
    scores, price = crowded(50, 20, 3), torch.linspace(0, 1, 20)
    lists = Shortlists.of(scores, price, 6)
    reduced = (scores - price).sort(dim=1, descending=True).values
    assert torch.equal(lists.floor, reduced[:, 5])
    assert torch.equal((lists.score - price[lists.index]).sort(dim=1, descending=True).values, reduced[:, :6])
    assert (lists.index.diff(dim=1) > 0).all()


def test_equal_sizes_refuses_what_cannot_be() -> None:
    with pytest.raises(RalibError, match="3 particles cannot fill 5 classes"):
        assign.equal_sizes(torch.zeros(3, 5))
    with pytest.raises(RalibError, match="finite"):
        assign.equal_sizes(torch.tensor([[0.0, float("nan")], [0.0, 1.0]]))


def test_best_takes_the_lowest_class_of_a_tie() -> None:
    assert assign.best(torch.tensor([[1.0, 2.0, 2.0], [3.0, 1.0, 0.0]])).tolist() == [1, 0]


def test_reseed_small_class_gets_the_worst_members_of_the_largest() -> None:
    labels = torch.tensor([0] * 20 + [1] * 9 + [2])
    score = torch.arange(30.0)
    result = assign.reseed_small_classes(labels, score, n_classes=3, min_members=4)
    assert result.events == [(2, 1, 0, 10)]
    assert result.class_index[:10].tolist() == [2] * 10, "the ten worst of class 0"
    assert result.class_index[10:29].tolist() == [0] * 10 + [1] * 9
    assert result.class_index[29] == -1, "its former member waits for the next search"


def test_reseeding_leaves_hopeless_cases_alone() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    result = assign.reseed_small_classes(labels, torch.zeros(5), n_classes=3, min_members=4)
    assert result.events == []
    assert torch.equal(result.class_index, labels)
