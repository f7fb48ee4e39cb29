"""States of scores that are each measured with their own noise, against one state that varies along a line."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from ralib.analysis.latent_mixture import LatentMixture, ScoreLikelihood
from ralib.analysis.states import held_out_log_likelihood


def measured(scores: np.ndarray, seed: int) -> ScoreLikelihood:
    """Scores (n, k) seen with noise whose variance differs from particle to particle."""
    rng = np.random.default_rng(seed)
    precision = rng.uniform(4, 25, len(scores))
    seen = scores + rng.normal(size=scores.shape) / np.sqrt(precision)[:, None]
    information = torch.from_numpy(precision).float()[:, None, None] * torch.eye(scores.shape[1])
    return ScoreLikelihood(torch.from_numpy(seen * precision[:, None]).float(), information)


def of_two_states_and_of_a_line(data: ScoreLikelihood) -> tuple[torch.Tensor, torch.Tensor]:
    """Held-out log likelihoods (n,) under two states, and under one that varies along a line."""
    states = held_out_log_likelihood(data, partial(LatentMixture.fit, n_states=2), 0)
    return states, held_out_log_likelihood(data, LatentMixture.fit_line, 0)


def in_errors(gain: torch.Tensor) -> float:
    """Mean gain in its own standard errors."""
    return float(gain.mean() / gain.std() * len(gain) ** 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_two_clouds_are_better_than_a_line_and_a_line_is_better_than_two_clouds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    across = 0.4 * rng.normal(size=(150, 2))
    clouds = np.stack([np.where(rng.random(150) < 0.5, -1.2, 1.2) + 0.2 * rng.normal(size=150), across[:, 0]], axis=1)
    line = np.stack([rng.uniform(-2, 2, 150), across[:, 1]], axis=1)
    states, along = of_two_states_and_of_a_line(measured(clouds, seed))
    assert in_errors(states - along) > 3
    states, along = of_two_states_and_of_a_line(measured(line, seed))
    assert in_errors(states - along) < 2
    one = held_out_log_likelihood(measured(line, seed), partial(LatentMixture.fit, n_states=1), 0)
    assert (states - one).mean() > 0  # the two clouds that must not be believed


def test_a_line_runs_where_the_scores_lie() -> None:
    rng = np.random.default_rng(5)
    along = np.array([0.8, -0.6])
    scores = rng.uniform(-2, 2, 400)[:, None] * along + 0.1 * rng.normal(size=(400, 2)) + [1.0, 2.0]
    fitted = LatentMixture.fit_line(measured(scores, 5))
    ends = fitted.centre[-1] - fitted.centre[0]
    assert abs(float(ends @ torch.tensor(along).float()) / float(ends.norm())) > 0.99
    assert 2.8 < float(ends.norm()) < 4.4
    torch.testing.assert_close(fitted.centre.mean(0), torch.tensor([1.0, 2.0]), atol=0.15, rtol=0)
