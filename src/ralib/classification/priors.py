"""Priors of origin shifts and class sizes; `ralib.kernels.likelihood` has the responsibilities that follow from them.

Most particles lie within a few pixels of the centre, where they were picked, a few anywhere: a prior on a particle's
origin. A wrong class or rotation fits best where the noise happens to, which is rarely near the centre; so the prior,
broad as it is, distinguishes them from the right ones. It holds for one frame only: classes must be centred where their
members' boxes have their centres (`centering.centre_classes`), not each at its own centre of mass. The normal part
follows Scheres et al. 2005 (ML2D); the heavy tail is for badly picked particles.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ralib.classification.sharding import Shard
from ralib.kernels import classes as kernels
from ralib.kernels.classes import PriceRule

LEAST_SPREAD_PX = 0.5
"""Lower limit of the standard deviation of origins."""


def origin_spread(origin_xy_px: Tensor, shard: Shard | None = None) -> Tensor:
    """Return the standard deviation of origins along x and y, from their median length, which is robust.

    Parameters
    ----------
    origin_xy_px : Tensor of shape (b, 2)
        Origins of this rank's particles, pixels.
    shard : Shard | None, optional
        Which of all particles these are; by default all.

    Returns
    -------
    Tensor of shape ()
        Pixels.
    """
    length = torch.linalg.vector_norm(origin_xy_px, dim=1)
    shard = shard or Shard.of_all(len(length))
    return (shard.median(length) / math.sqrt(2 * math.log(2))).clamp_min(LEAST_SPREAD_PX)


PRESSURE_NATS = 10.0
"""At balance 0.5, a class e times its fair share loses this much log-likelihood for every further member."""

MOST_STEPS, LEFT_OVER = 30, 0.001
"""Steps towards the prices, at most, and the share of the first error that may be left."""


def class_prices(fit: Tensor, temperature: float, balance: float, shard: Shard | None = None) -> Tensor:
    """Compute what each class adds to its particles' fit so that class sizes stay balanced.

    The fixed point of price = -pressure * log(share / fair share): entropic transport with relaxed class sizes. Balance
    0 leaves classes free, 1 makes them equal. Where particles have a clear class (fits tens of nats apart) a moderate
    pressure moves only those between two classes; elsewhere it prevents one class from absorbing the noise.

    Parameters
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class.
    temperature : float
        Of the responsibilities.
    balance : float
        Pressure towards equal sizes, 0 to 1.
    shard : Shard, optional
        Distribution of the particles; by default all are here.

    Returns
    -------
    Tensor of shape (k,)
        Prices.

    References
    ----------
    Chizat, Peyre, Schmitzer and Vialard 2018, "Scaling algorithms for unbalanced optimal transport problems", Math.
    Comput. 87, 2563-2609.
    """
    k = fit.shape[1]
    if balance <= 0 or k == 1:
        return torch.zeros(k, device=fit.device)
    fit, shard = (shard or Shard.of_all(len(fit))).together(fit)
    pressure = math.inf if balance >= 1 else PRESSURE_NATS * balance / (1 - balance)
    factor = 1.0 if math.isinf(pressure) else pressure / (pressure + temperature)
    particles = torch.full((), float(shard.n), dtype=torch.float64, device=fit.device)
    # Where prices are capped at 0 large classes lose fit; a rare view gains none.
    rule = PriceRule(temperature, factor, price_steps(factor), balance < 1, particles)
    return kernels.class_prices(fit, rule, shard.add_up)


def price_steps(factor: float) -> tuple[tuple[float, float, float], ...]:
    """Return the weights of the steps towards the fixed point of the prices; see `PriceRule`.

    Near it the map multiplies an error by a matrix of real eigenvalues from 0 to `factor`: that of classes with clear
    members by `factor`, so that the map alone would take long. Chebyshev's weights take a third of its steps.

    Parameters
    ----------
    factor : float
        Factor of the map, above 0; at 1, where eigenvalues have no bound below 1, each step is the map.

    Returns
    -------
    tuple of (float, float, float)
        Weights of the map's value, of the prices, and of those before them.

    References
    ----------
    Golub and Varga 1961, "Chebyshev semi-iterative methods, successive overrelaxation iterative methods, and second
    order Richardson iterative methods", Numer. Math. 3, 147-156.
    """
    if factor >= 1:
        return ((1.0, 0.0, 0.0),) * MOST_STEPS
    relaxed, radius = 2 / (2 - factor), factor / (2 - factor)
    rate = radius / (1 + math.sqrt(1 - radius**2))
    omega, steps = 1.0, []
    for i in range(min(MOST_STEPS, math.ceil(math.log(LEFT_OVER / 2) / math.log(rate)))):
        steps.append((omega * relaxed, omega * (1 - relaxed), 1 - omega))
        omega = 1 / (1 - radius**2 * (0.5 if i == 0 else omega / 4))
    return tuple(steps)
