"""Triton forms of the functions of `reference`: each a single kernel."""

# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div
from ralib.kernels.classes.reference import padded_classes
from ralib.kernels.likelihood import reference
from ralib.kernels.likelihood.reference import ANYWHERE, SCALE_SD, AverageNoise, OwnNoise, SharingRule

__all__ = [
    "best_classes",
    "best_scale",
    "log_likelihood",
    "log_posterior",
    "log_prior",
    "pick",
    "ranked_classes",
    "reordered",
    "self_share",
    "without_own",
]

BLOCK = 512
"""Poses of a program."""

PARTICLES, RINGS = 32, 32
"""Particles and rings that a program has at once."""


@triton.jit(
    do_not_specialize=["n", "radius"],
    do_not_specialize_on_alignment=["cross", "norm", "mean_scale", "origin", "spread"],
)
def _fits(
    cross, norm, mean_scale, origin, spread, out, n, radius,
    LIKELIHOOD: tl.constexpr, PRIOR: tl.constexpr, SD: tl.constexpr, ODDS: tl.constexpr, POSES: tl.constexpr,
):  # fmt: skip
    """Log-likelihoods, log priors, or both, of a block of poses."""
    i = tl.program_id(0).to(tl.int64) * POSES + tl.arange(0, POSES)
    here = i < n
    fit = tl.zeros((POSES,), tl.float32)
    if LIKELIHOOD:
        mean = tl.load(mean_scale).to(tl.float32)
        precision = 1.0 / (SD * mean * (SD * mean))
        x = tl.load(cross + i, mask=here, other=0.0) + precision * mean
        p = tl.load(norm + i, mask=here, other=0.0) + precision
        fit += 0.5 * (x * x / p - precision * mean * mean)
    if PRIOR:
        sd = tl.load(spread).to(tl.float32)
        anywhere = 2.0 * ODDS * sd * sd / (radius * radius)
        x = tl.load(origin + 2 * i, mask=here, other=0.0)
        y = tl.load(origin + 2 * i + 1, mask=here, other=0.0)
        near = tl.exp(-0.5 * (x * x + y * y) / (sd * sd))
        fit += tl.log((near + anywhere) / (1.0 + anywhere))
    tl.store(out + i, fit, mask=here)


def log_likelihood(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Compute log-likelihoods at the best scale; see `reference.log_likelihood`."""
    return _fitted(cross.shape, cross, norm, mean_scale, norm, mean_scale, 1.0, prior=False)


def log_prior(origin_xy_px: Tensor, spread_px: Tensor, radius_px: float) -> Tensor:
    """Compute the log prior of origins; see `reference.log_prior`."""
    origin = origin_xy_px.contiguous()
    return _fitted(origin.shape[:-1], origin, origin, spread_px, origin, spread_px, radius_px, likelihood=False)


def log_posterior(
    cross: Tensor, norm: Tensor, mean_scale: Tensor, origin_xy_px: Tensor, spread_px: Tensor, radius_px: float
) -> Tensor:
    """Compute log-likelihoods with the log prior of the origin; see `reference.log_posterior`."""
    return _fitted(cross.shape, cross, norm, mean_scale, origin_xy_px, spread_px, radius_px)


def _fitted(
    shape: torch.Size,
    cross: Tensor,
    norm: Tensor,
    mean_scale: Tensor,
    origin: Tensor,
    spread: Tensor,
    radius: float,
    *,
    likelihood: bool = True,
    prior: bool = True,
) -> Tensor:
    """Log-likelihoods, log priors, or both, of a shape."""
    fit = torch.empty(shape, device=cross.device)
    n = fit.numel()
    if n:
        _fits[(ceil_div(n, BLOCK),)](
            cross.contiguous(), norm.contiguous(), mean_scale, origin.contiguous(), spread, fit, n, radius,
            LIKELIHOOD=likelihood, PRIOR=prior, SD=SCALE_SD, ODDS=ANYWHERE / (1 - ANYWHERE), POSES=BLOCK,
        )  # fmt: skip
    return fit


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["cross", "norm", "mean_scale"])
def _best_scale(cross, norm, mean_scale, scale, n, SD: tl.constexpr, POSES: tl.constexpr):
    """Scales of a block of poses."""
    i = tl.program_id(0).to(tl.int64) * POSES + tl.arange(0, POSES)
    here = i < n
    mean = tl.load(mean_scale).to(tl.float32)
    precision = 1.0 / (SD * mean * (SD * mean))
    x = tl.load(cross + i, mask=here, other=0.0) + precision * mean
    p = tl.load(norm + i, mask=here, other=0.0) + precision
    tl.store(scale + i, tl.maximum(x / p, 0.1 * mean), mask=here)


def best_scale(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Compute scales of maximum likelihood; see `reference.best_scale`."""
    scale = torch.empty(cross.shape, device=cross.device)
    n = scale.numel()
    if n:
        given = cross.contiguous(), norm.contiguous(), mean_scale, scale, n
        _best_scale[(ceil_div(n, BLOCK),)](*given, SD=SCALE_SD, POSES=BLOCK)
    return scale


@triton.jit(
    do_not_specialize=["n", "total", "particle_stride", "class_stride"],
    do_not_specialize_on_alignment=["cross", "norm", "psi", "origin", "mirror", "index"],
)
def _pick(
    cross, norm, psi, origin, mirror, index, cross_out, norm_out, psi_out, origin_out, mirror_out,
    n, total, particle_stride, class_stride, POSES: tl.constexpr,
):  # fmt: skip
    """A block of poses, from fields in which particles and classes are so far apart."""
    i = tl.program_id(0).to(tl.int64) * POSES + tl.arange(0, POSES)
    here = i < total
    at = (i % n) * particle_stride + tl.load(index + i, mask=here, other=0) * class_stride
    tl.store(cross_out + i, tl.load(cross + at, mask=here, other=0.0), mask=here)
    tl.store(norm_out + i, tl.load(norm + at, mask=here, other=0.0), mask=here)
    tl.store(psi_out + i, tl.load(psi + at, mask=here, other=0.0), mask=here)
    tl.store(origin_out + 2 * i, tl.load(origin + 2 * at, mask=here, other=0.0), mask=here)
    tl.store(origin_out + 2 * i + 1, tl.load(origin + 2 * at + 1, mask=here, other=0.0), mask=here)
    tl.store(mirror_out + i, tl.load(mirror + at, mask=here, other=0), mask=here)


def pick(fields: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    """Return the poses in some of the classes of each particle; see `reference.pick`."""
    return _picked(fields, index, fields[0].shape[1], 1)


def reordered(fields: tuple[Tensor, ...], order: Tensor) -> tuple[Tensor, ...]:
    """Return the poses in candidate classes in another order; see `reference.reordered`."""
    return _picked(fields, order, 1, order.shape[1])


def _picked(fields: tuple[Tensor, ...], index: Tensor, particle_stride: int, class_stride: int) -> tuple[Tensor, ...]:
    """Fields like an index (..., n)."""
    out = tuple(f.new_empty(*index.shape, *f.shape[2:]) for f in fields)
    total = index.numel()
    if total:
        *given, mirror = (f.contiguous() for f in fields)
        _pick[(ceil_div(total, BLOCK),)](
            *given, mirror.view(torch.int8), index.contiguous(), *out[:-1], out[-1].view(torch.int8),
            index.shape[-1], total, particle_stride, class_stride, POSES=BLOCK,
        )  # fmt: skip
    return out


@triton.jit(
    do_not_specialize=["n", "k", "temperature", "least"], do_not_specialize_on_alignment=["fit", "price"]
)  # fmt: skip
def _best_classes(
    fit, price, posterior, weight, at, n, k, temperature, least,
    COUNT: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The best classes of some particles, one after another; of equal ones the first."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    here = row < n
    c = tl.arange(0, CLASSES)
    known = (c < k)[None, :]
    x = tl.load(fit + row[:, None] * k + c[None, :], mask=here[:, None] & known, other=0.0)
    x = (x + tl.load(price + c, mask=c < k, other=0.0)[None, :]) / temperature
    x = tl.where(known, x, float("-inf"))
    best = tl.max(x, axis=1)
    total = tl.sum(tl.exp(x - best[:, None]), axis=1)
    chances = ()
    whole = tl.zeros((ROWS,), tl.float32)
    for i in tl.static_range(COUNT):
        top = tl.max(x, axis=1)
        one = tl.min(tl.where((x == top[:, None]) & known, c[None, :], k - 1), axis=1)
        x = tl.where(c[None, :] == one[:, None], float("-inf"), x)
        tl.store(at + i * n + row, one.to(tl.int64), mask=here)
        chance = tl.exp(top - best)
        chances = chances + (chance,)  # noqa: RUF005
        whole += chance
    rest = tl.zeros((ROWS,), tl.float32)
    for i in tl.static_range(COUNT):
        share = chances[i] / whole
        rest += tl.where(share >= least, share, 0.0)
    for i in tl.static_range(COUNT):
        share = chances[i] / whole
        tl.store(weight + i * n + row, tl.where(share >= least, share, 0.0) / rest, mask=here)
    tl.store(posterior + row, 1.0 / total, mask=here)


def best_classes(
    fit: Tensor, price: Tensor, rule: SharingRule, among: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Share particles between their best classes; see `reference.best_classes`."""
    if among is not None:  # many particles, whose operations take longer than their launches
        return reference.best_classes(fit, price, rule, among)
    n, k = fit.shape
    count, classes = min(rule.count, k), padded_classes(k)
    rows = max(1, 2048 // classes)
    posterior, weight = torch.empty(n, device=fit.device), torch.empty(count, n, device=fit.device)
    at = torch.empty(count, n, dtype=torch.int64, device=fit.device)
    if n:
        _best_classes[(ceil_div(n, rows),)](
            fit.contiguous(), price, posterior, weight, at, n, k, rule.temperature, rule.least,
            COUNT=count, ROWS=rows, CLASSES=classes,
        )  # fmt: skip
    return posterior, weight, at


@triton.jit(
    do_not_specialize=["n", "temperature", "least"], do_not_specialize_on_alignment=["fit", "index", "price"]
)  # fmt: skip
def _ranked_classes(
    fit, index, price, posterior, weight, order, n, temperature, least, COUNT: tl.constexpr, POSES: tl.constexpr
):
    """Places of the candidates of some particles: the number of candidates before each."""
    row = tl.program_id(0).to(tl.int64) * POSES + tl.arange(0, POSES)
    here = row < n
    values = ()
    best = tl.full((POSES,), float("-inf"), tl.float32)
    for i in tl.static_range(COUNT):
        paid = tl.load(price + tl.load(index + i * n + row, mask=here, other=0))
        value = (tl.load(fit + i * n + row, mask=here, other=0.0) + paid) / temperature
        values = values + (value,)  # noqa: RUF005
        best = tl.maximum(best, value)
    total = tl.zeros((POSES,), tl.float32)
    for i in tl.static_range(COUNT):
        total += tl.exp(values[i] - best)
    chances = ()
    rest = tl.zeros((POSES,), tl.float32)
    for i in tl.static_range(COUNT):
        chance = tl.exp(values[i] - best) / total
        chances = chances + (chance,)  # noqa: RUF005
        rest += tl.where(chance >= least, chance, 0.0)
    for i in tl.static_range(COUNT):
        place = tl.zeros((POSES,), tl.int64)
        for j in tl.static_range(COUNT):
            if j < i:
                place += (chances[j] >= chances[i]).to(tl.int64)
            if j > i:
                place += (chances[j] > chances[i]).to(tl.int64)
        to = place * n + row
        tl.store(order + to, tl.full((POSES,), i, tl.int64), mask=here)
        tl.store(weight + to, tl.where(chances[i] >= least, chances[i], 0.0) / rest, mask=here)
        tl.store(posterior + row, chances[i], mask=here & (place == 0))


def ranked_classes(fit: Tensor, index: Tensor, price: Tensor, rule: SharingRule) -> tuple[Tensor, Tensor, Tensor]:
    """Share particles between candidate classes by new fits; see `reference.ranked_classes`."""
    count, n = fit.shape
    posterior, weight, order = fit.new_empty(n), fit.new_empty(count, n), index.new_empty(count, n)
    if n:
        _ranked_classes[(ceil_div(n, BLOCK),)](
            fit.contiguous(), index.contiguous(), price, posterior, weight, order, n, rule.temperature, rule.least,
            COUNT=count, POSES=BLOCK,
        )  # fmt: skip
    return posterior, weight, order


@triton.jit(
    do_not_specialize=["n", "n_rings", "power_stride", "energy_stride", "n_half"],
    do_not_specialize_on_alignment=["power", "energy", "class_index", "weight", "scale", "mean_scale", "gain"],
)
def _self_share(
    power, energy, class_index, weight, scale, mean_scale, inside, class_power, gain, ring_weight, share,
    n, n_rings, power_stride, energy_stride, n_half, PARTICLES: tl.constexpr, RINGS: tl.constexpr,
):  # fmt: skip
    """Shares of some particles on some rings."""
    row = tl.program_id(0).to(tl.int64) * PARTICLES + tl.arange(0, PARTICLES)
    ring = tl.program_id(1) * RINGS + tl.arange(0, RINGS)
    here = row < n
    both = here[:, None] & (ring < n_rings)[None, :]
    k = tl.load(class_index + row, mask=here, other=0)
    a = tl.load(scale + row, mask=here, other=0.0)
    worth = tl.load(inside + k, mask=here, other=0.0) * (tl.load(weight + row, mask=here, other=0.0) * a)
    of_class = k[:, None] * n_rings + ring[None, :]
    signal = tl.load(power + row[:, None] * power_stride + ring[None, :], mask=both, other=0.0)
    signal *= (a * tl.load(mean_scale).to(tl.float32))[:, None]
    signal = signal * signal * tl.load(class_power + of_class, mask=both, other=0.0) / n_half
    noise = tl.load(energy + row[:, None] * energy_stride + ring[None, :], mask=both, other=0.0) - signal
    value = worth[:, None] * tl.maximum(noise, 0.0) * tl.load(gain + of_class, mask=both, other=0.0)
    value /= tl.load(ring_weight + ring, mask=ring < n_rings, other=1.0)[None, :]
    tl.store(share + row[:, None] * n_rings + ring[None, :], value, mask=both)


def self_share(
    power: Tensor,
    energy: Tensor,
    class_index: Tensor,
    weight: Tensor,
    scale: Tensor,
    mean_scale: Tensor,
    averages: AverageNoise,
) -> Tensor:
    """Compute what particles add to their own cross terms with averages; see `reference.self_share`."""
    n, rings = len(power), averages.gain.shape[1]
    share = torch.empty(n, rings, device=power.device)
    if n:
        of_particles = (f.contiguous() for f in (class_index, weight, scale))
        of_classes = (f.contiguous() for f in (averages.inside, averages.power, averages.gain))
        _self_share[(ceil_div(n, PARTICLES), ceil_div(rings, RINGS))](
            power, energy, *of_particles, mean_scale, *of_classes, averages.ring_weight, share,
            n, rings, power.stride(0), energy.stride(0), averages.n_half, PARTICLES=PARTICLES, RINGS=RINGS,
        )  # fmt: skip
    return share


@triton.jit(
    do_not_specialize=["n", "n_columns", "n_rings", "share_stride", "correlated", "radius"],
    do_not_specialize_on_alignment=[
        "cross", "psi", "origin", "mirror", "index", "own_class", "own_psi", "own_origin", "own_mirror", "share",
        "frequency",
    ],
)  # fmt: skip
def _without_own(
    cross, psi, origin, mirror, index, own_class, own_psi, own_origin, own_mirror, share, frequency,
    n, n_columns, n_rings, share_stride, correlated, radius,
    AMONG: tl.constexpr, PARTICLES: tl.constexpr, RINGS: tl.constexpr,
):  # fmt: skip
    """Cross terms of some particles in their old classes, of which there is at most one `AMONG` candidates."""
    row = tl.program_id(0).to(tl.int64) * PARTICLES + tl.arange(0, PARTICLES)
    here = row < n
    k = tl.load(own_class + row, mask=here, other=-1)
    own = tl.zeros((PARTICLES, RINGS), tl.float32)
    for first in range(0, n_rings, RINGS):
        ring = first + tl.arange(0, RINGS)
        inside = here[:, None] & (ring < n_rings)[None, :]
        own += tl.load(share + row[:, None] * share_stride + ring[None, :], mask=inside, other=0.0)
    noise = tl.sum(own, axis=1)
    at = row * n_columns + k
    there = here & (k >= 0)
    if AMONG:
        at = row
        there = row < 0
        for i in range(n_columns):
            place = i * n + row
            found = here & (tl.load(index + place, mask=here, other=-1) == k) & (k >= 0)
            at = tl.where(found, place, at)
            there = there | found
    turn = tl.load(psi + at, mask=there, other=0.0) - tl.load(own_psi + row, mask=here, other=0.0)
    turn = (turn - 360.0 * tl.floor(turn / 360.0 + 0.5)) * (radius * 0.017453292519943295)
    x = tl.load(origin + 2 * at, mask=there, other=0.0) - tl.load(own_origin + 2 * row, mask=here, other=0.0)
    y = tl.load(origin + 2 * at + 1, mask=there, other=0.0) - tl.load(own_origin + 2 * row + 1, mask=here, other=0.0)
    apart = x * x + y * y + 0.5 * turn * turn
    finest = tl.load(frequency) / correlated
    alike = tl.load(mirror + at, mask=there, other=0) == tl.load(own_mirror + row, mask=here, other=0)
    part = tl.where(alike, noise * tl.exp(-0.5 * apart * finest * finest), 0.0)
    tl.store(cross + at, tl.load(cross + at, mask=there, other=0.0) - part, mask=there)


def without_own(
    fields: tuple[Tensor, ...], own: tuple[Tensor, ...], noise: OwnNoise, index: Tensor | None = None
) -> Tensor:
    """Subtract particles' own contributions from their cross terms; see `reference.without_own`."""
    cross, _, psi, origin, mirror = (f.contiguous() for f in fields)
    own_class, own_psi, own_origin, own_mirror = (f.contiguous() for f in own[:4])
    n, share = len(own_class), own[4]
    rings = min(noise.rings, share.shape[1])
    if n:
        columns = cross.shape[1] if index is None else len(index)
        _without_own[(ceil_div(n, PARTICLES),)](
            cross, psi, origin, mirror.view(torch.int8), own_class if index is None else index.contiguous(),
            own_class, own_psi, own_origin, own_mirror.view(torch.int8), share, noise.frequency,
            n, columns, rings, share.stride(0), noise.correlated, noise.radius_px,
            AMONG=index is not None, PARTICLES=PARTICLES, RINGS=RINGS,
        )  # fmt: skip
    return cross
