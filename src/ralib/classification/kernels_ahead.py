"""Calls by which the kernels of a classification are compiled before it needs them.

Where Triton has not compiled them before, that takes as long as a small classification. The calls are of a few zeros,
with all that a kernel is compiled for: numbers of angular orders, of classes and of pixels, and forms of the rings.
"""

from __future__ import annotations

import math
from functools import partial

import torch

from ralib.classes.kernels_ahead import AT_ONCE, average_calls, frc_zeros, pose_sum_zeros
from ralib.classification.em import CANDIDATES, LEAST_WEIGHT
from ralib.classification.half_precision_search import half_tables
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.sharding import Shard
from ralib.classification.templates import disc_of_shifts
from ralib.kernels import likelihood
from ralib.kernels.averages import (
    centred_origins,
    circle_spectra,
    correlated_share,
    half_circle,
    half_products,
    quarter_circle,
    quarter_pixels,
    ring_power,
    whole_images,
    wiener_averages,
)
from ralib.kernels.classes import (
    PosedParticles,
    PosedTerms,
    PoseGrid,
    PriceRule,
    Rings,
    ThinningRule,
    add_posed,
    best_in_classes,
    class_prices,
    half_columns,
    half_rows,
    moved_orders,
    padded_classes,
    ring_crosses,
    sum_bounds,
    thin,
)
from ralib.kernels.likelihood import AverageNoise, OwnNoise, SharingRule
from ralib.kernels.pose_search import NewtonRule, newton, newton_templates, packed_zeros, polar_samples
from ralib.runtime.compilers import Call

WIDE_MARGIN = 1.4
"""Times the particle: a mask that reaches over the rim of its faintest parts."""

FEW_CLASSES = 6
"""Any few, as of those by which particles are measured: up to 64 have the same kernels."""

SHARPENED = 1.6
"""Times the details of the exchange: what sharpening comes to compare."""


def usual_calls() -> list[Call]:
    """Return calls of a run with default options that need no more than those, in order; see `calls_ahead`."""
    search = _searches(ScheduleSettings(), True)
    return [_refinement, *_of_search(True), *search[:2], *OF_SUMS, *FIGURES, *search[2:]]


def calls_ahead(box: int, n_classes: int, plan: ScheduleSettings, mirror: bool) -> list[Call]:
    """Return the calls for which neither particles nor their diameter need be known.

    The first needed are first, but for the refinement, which takes longest to compile.

    Parameters
    ----------
    box : int
        Size of the particles, pixels.
    n_classes : int
        Number of classes K.
    plan : ScheduleSettings
        Settings of the schedule.
    mirror : bool
        Whether mirrored poses are searched.

    Returns
    -------
    list of callable
        The calls, each of a device.
    """
    search = _searches(plan, mirror)
    balance = _balance(FEW_CLASSES, n_classes, round(plan.surplus * n_classes))
    first: list[Call] = [_refinement, *_of_search(mirror), *search[:2], *balance[:3], *OF_SUMS, *FIGURES]
    return [*first, *search[2:4], *balance[3:], *search[4:], *average_calls(box, rounded=False)]


def measuring_calls() -> list[Call]:
    """Return the calls of measuring particles; see `calls_ahead`."""
    search = _searches(ScheduleSettings(), True)[:2]
    return [_refinement, *_of_search(True), *search, *_balance(FEW_CLASSES), *OF_SUMS, *FIGURES]


def _balance(*counts: int) -> list[Call]:
    """Calls of what gives particles to so many classes."""
    padded = {padded_classes(k): k for k in counts if k > 1}
    return [partial(call, k) for k in padded.values() for call in (_prices, _sharing, _thinning)]


def _of_search(mirror: bool) -> list[Call]:
    """What a search does besides the search."""
    images: list[Call] = [_whole_images, _image_parts, _circles, partial(_rows, mirror), _columns]
    return [*images, _fits, _candidates, _own_noise, _self_share]


def _searches(plan: ScheduleSettings, mirror: bool) -> list[Call]:
    """The searches of a schedule."""
    details = plan.start_details, plan.exchange_details, SHARPENED * plan.exchange_details
    start, exchange, sharpened = (_orders(d) for d in details)
    searches = [(start, True), (start, False), (exchange, False), (exchange, True), (sharpened, False)]
    calls: list[Call] = [partial(_search, n_orders, favour, mirror) for n_orders, favour in searches]
    return [*calls, partial(_search, exchange, False, mirror, own=True)]


def _orders(details: float) -> int:
    """Angular orders at so many details across a particle; as many have the same kernel when particles are measured."""
    return math.ceil(math.pi * details * WIDE_MARGIN) + 4


def _whole_images(device: torch.device) -> None:
    orders, pixel = torch.zeros(1, 8, 8, dtype=torch.complex64, device=device), torch.zeros(4, 40, device=device)
    whole_images(quarter_circle(orders), pixel.long(), 8)


def _image_parts(device: torch.device) -> None:
    pixel = torch.zeros(4, 8, dtype=torch.long, device=device)
    half_circle(quarter_pixels(torch.zeros(1, 8, 8, device=device), pixel, torch.zeros(8, device=device)), 2)


def _circles(device: torch.device) -> None:
    orders = torch.zeros(1, 8, 8, dtype=torch.complex64, device=device)
    circle_spectra(orders[0], 24)
    ring_power(orders)


def _wiener(device: torch.device) -> None:
    numerator, one = torch.zeros(2, 1, 8, 8, 2, dtype=torch.float64, device=device), torch.ones(8, device=device)
    wiener_averages(numerator, one.double().repeat(2, 1, 1), one[:1], one, one)


def _shares(device: torch.device) -> None:
    one = torch.ones(8, device=device)
    half_products(one, one)
    correlated_share(one, one)


def _centres(device: torch.device) -> None:
    zero = torch.zeros(AT_ONCE, dtype=torch.long, device=device)
    pose = zero.float(), torch.zeros(AT_ONCE, 2, device=device), zero.bool()
    centred_origins(pose, zero.bool(), zero, torch.ones(1, device=device), Shard.of_all(AT_ONCE))


def _search(n_orders: int, favour: bool, mirror: bool, device: torch.device, own: bool = False) -> None:
    grid = PoseGrid(*half_tables(n_orders, device), disc_of_shifts(1.0, 1.0, device), mirror)
    rows, columns = ((n_orders, 2 * grid.n_pairs, AT_ONCE), (n_orders, AT_ONCE, AT_ONCE))
    cross = torch.bmm(*(torch.zeros(shape, device=device, dtype=torch.float16) for shape in (rows, columns)))
    value, psi, origin = (torch.zeros(AT_ONCE, 1, *more, device=device) for more in ((), (), (2,)))
    out = value, psi, origin, torch.zeros(AT_ONCE, 1, dtype=torch.bool, device=device)
    prior = torch.zeros(len(grid.shifts_xy_px), device=device) if favour else None
    strength = torch.ones(1, AT_ONCE, device=device) if own else psi[:, 0] + 1
    best_in_classes(cross, value[:1, 0] + 1, strength, origin[:, 0].clone(), grid, out, prior)


def _rows(mirror: bool, device: torch.device) -> None:
    samples, places, rings = _posed(device)
    half_rows(moved_orders(samples, places.shift_xy_px, rings, 1, places.row)[:, None], mirror, 1)


def _columns(device: torch.device) -> None:
    samples, places, rings = _posed(device)
    half_columns(samples, places.shift_xy_px, rings, 1, 1)


def _sums(device: torch.device) -> None:
    samples, places, rings = _posed(device)
    one = torch.ones(1, AT_ONCE, device=device)
    sum_bounds(one.T, one.T, one, one, 8)
    sums = torch.zeros(1, 1, 1, 2, dtype=torch.float64, device=device), torch.zeros(1, 1, device=device).double()
    terms = PosedTerms(places, one[0], one[0], torch.ones_like(sums[0][0, 0]).T)
    add_posed(samples, one.T, terms, rings, sums, AT_ONCE)


def _crosses(device: torch.device) -> None:
    samples, places, rings = _posed(device)
    ring_crosses(samples, places, samples[:1, :, :1], rings)


def _posed(device: torch.device) -> tuple[torch.Tensor, PosedParticles, Rings]:
    """Particles at poses, on one ring."""
    zero = torch.zeros(AT_ONCE, device=device)
    places = PosedParticles(zero.long(), torch.zeros(AT_ONCE, 2, device=device), zero, zero.bool(), zero.long())
    samples = torch.zeros(AT_ONCE, 1, 8, dtype=torch.complex64, device=device)
    return samples, places, Rings(torch.ones(1, device=device), zero[:8])


def _prices(n_classes: int, device: torch.device) -> None:
    rule = PriceRule(1.0, 0.5, ((1.0, 0.0, 0.0),), True, torch.tensor(AT_ONCE, device=device))
    class_prices(torch.zeros(AT_ONCE, n_classes, device=device), rule, lambda members: members)


def _sharing(n_classes: int, device: torch.device) -> None:
    fit = torch.zeros(AT_ONCE, n_classes, device=device)
    for count in (CANDIDATES, CANDIDATES + 1):
        likelihood.best_classes(fit, fit[0], SharingRule(1.0, count, LEAST_WEIGHT))


def _thinning(n_classes: int, device: torch.device) -> None:
    rule = ThinningRule(torch.zeros(2, dtype=torch.float64, device=device), 1, 1.0, 1.0)
    fit = torch.zeros(AT_ONCE, n_classes, device=device)
    thin(fit, fit[:, 0].clone(), n_classes - 1, rule, lambda sums: sums)


def _poses(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Fields of poses of a few particles in as many classes as there are candidates."""
    zero = torch.zeros(CANDIDATES, AT_ONCE, device=device)
    return zero, zero + 1, zero.clone(), torch.zeros(CANDIDATES, AT_ONCE, 2, device=device), zero > 0


def _fits(device: torch.device) -> None:
    cross, norm, _, origin, _ = _poses(device)
    data, prior = (cross, norm, norm[0, 0]), (origin, norm[0, 0], 1.0)
    likelihood.log_prior(*prior)
    likelihood.log_posterior(*data, *prior)
    likelihood.best_scale(*data)


def _candidates(device: torch.device) -> None:
    fields = _poses(device)
    index = torch.zeros(CANDIDATES, AT_ONCE, dtype=torch.int64, device=device)
    likelihood.reordered(fields, index)
    likelihood.ranked_classes(fields[0], index, fields[1][0], SharingRule(1.0, CANDIDATES, LEAST_WEIGHT))


def _self_share(device: torch.device) -> None:
    one = torch.ones(AT_ONCE, device=device)
    averages = AverageNoise(one[:1], one[:1, None], one[:1, None], one, 1)
    likelihood.self_share(one[:, None], one[:, None], one.long() - 1, one, one, one[0], averages)


def _own_noise(device: torch.device) -> None:
    fields = _poses(device)
    one, *pose = (f[0] for f in fields[1:])
    classes = torch.zeros(CANDIDATES, AT_ONCE, dtype=torch.int64, device=device)
    own, noise = (classes[0], *pose, one[:, None]), OwnNoise(1, one[0], 1.0, 1.0)
    likelihood.without_own(tuple(f.transpose(0, 1) for f in fields), own, noise)
    likelihood.without_own(fields, own, noise, classes)


def _refinement(device: torch.device) -> None:
    samples, templates = packed_zeros(8, 24, device)
    row, pose = torch.zeros(1, 1, dtype=torch.long, device=device), torch.zeros(1, 1, 4, device=device)
    rule = NewtonRule((0, 0, 8), (1.0, 1.0), 1.0, 1.0)
    newton(samples, torch.zeros(1, 2, device=device), row, pose, templates, rule)


def _refined(device: torch.device) -> None:
    rings, n_half, one = 8, 24, torch.ones(AT_ONCE, device=device)
    orders = torch.zeros(1, rings, 8, dtype=torch.complex64, device=device)
    newton_templates(orders, one[:rings], one[:n_half], one[:rings], mirror=True, unit=1.0)
    polar_samples(torch.zeros(AT_ONCE, rings, n_half, dtype=torch.complex64, device=device))


OF_SUMS = _wiener, _shares, _centres, _sums, _crosses, _refined
"""What is done with sums of particles."""

FIGURES = partial(frc_zeros, torch.float32), pose_sum_zeros
"""What is told of an iteration."""
