"""From fits to class probabilities: temperature, and balance as a pressure that can be set from free to equal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

PRESSURE_NATS = 10.0
"""At balance 0.5, a class e times its fair share pays this much log-likelihood for every further member."""


MOST_STEPS, LEFT_OVER = 30, 0.003
"""The fixed point of prices is approached until this share of the way is left, in so many steps at most."""


def class_prices(fit: Tensor, temperature: float, balance: float) -> Tensor:
    """What each class adds to its particles' fit so that sizes stay near each other: (k,), from fits (n, k).

    The fixed point of price = -pressure * log(share / fair share): entropic transport with relaxed class sizes
    (Chizat et al. 2018, "Scaling algorithms for unbalanced optimal transport"). balance 0 leaves classes free, 1 makes
    them equal. Where particles know their class (fits tens of nats apart) a moderate pressure moves only those between
    two classes; where they do not, it keeps one class from swallowing the noise.
    """
    k = fit.shape[1]
    price = torch.zeros(k, device=fit.device)
    if balance <= 0 or k == 1:
        return price
    pressure = math.inf if balance >= 1 else PRESSURE_NATS * balance / (1 - balance)
    factor = 1.0 if math.isinf(pressure) else pressure / (pressure + temperature)
    # Each step leaves `factor` of the way: prices that matter little next to the temperature are found sooner.
    steps = math.ceil(math.log(LEFT_OVER) / math.log(factor)) if factor < 1 else MOST_STEPS
    for _ in range(min(steps, MOST_STEPS)):
        share = torch.softmax((fit + price) / temperature, dim=1).mean(0) * k
        price = factor * (price - temperature * torch.log(share.clamp_min(1e-4)))
        if balance < 1:
            price = price.clamp_max(0.0)  # the popular pay; a rare view is not filled up with others
    return price


def class_posterior(fit: Tensor, price: Tensor, temperature: float) -> Tensor:
    """Probability of each class for each particle, (n, k)."""
    return torch.softmax((fit + price) / temperature, dim=1)
