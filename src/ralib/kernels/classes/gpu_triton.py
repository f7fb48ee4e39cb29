"""Triton forms of the functions of `reference`."""

# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div
from ralib.kernels.classes.gpu_posed_triton import (
    add_posed,
    half_columns,
    half_rows,
    moved_orders,
    ring_crosses,
    sum_bounds,
)
from ralib.kernels.classes.reference import AddUp, PoseGrid, PriceRule, ThinningRule, best_poses, padded_classes
from ralib.kernels.compiling import shared_bytes

__all__ = [
    "add_posed",
    "best_in_classes",
    "best_poses",
    "class_prices",
    "half_columns",
    "half_rows",
    "moved_orders",
    "ring_crosses",
    "sum_bounds",
    "thin",
]

PROGRAMS = 1024
"""Programs that share the particles: a few for each multiprocessor."""

BLOCKS = (128, 3), (64, 3), (64, 2), (32, 2), (16, 2), (16, 1)
"""Angles at once, and spectra on their way, of `best_in_classes`: the fastest first, and what needs less memory."""

RESERVED_BYTES = 8192
"""Of a multiprocessor's shared memory: what maxima and changes of layout take."""


@triton.jit(
    do_not_specialize=["n_orders", "n_pairs", "n_classes", "n_columns", "n_half"],
    do_not_specialize_on_alignment=["height", "strength", "favour", "origin", "value", "psi", "place", "mirror"],
)
def _best_in_classes(
    cross, cosine, sine, height, strength, favour, shift, origin, value, psi, place, mirror,
    n_orders, n_pairs, n_particles, n_classes, n_columns, n_half,
    FLIPS: tl.constexpr, HAS_FAVOUR: tl.constexpr, WHOLE: tl.constexpr, OWN: tl.constexpr,
    N_ANGLE_BLOCKS: tl.constexpr, N_ORDER_BLOCKS: tl.constexpr,
    ORDERS: tl.constexpr, ANGLES: tl.constexpr, PARTICLES: tl.constexpr,
):  # fmt: skip
    """One program: all poses of a block of particles in one class.

    Products are (angles, orders) @ (orders, particles). The tables of cosines and sines stay, and the spectra of pair
    after pair pass by; the best pair so far is kept for each angle and particle, and angles are compared in the end.
    """
    k = tl.program_id(1)
    b = tl.program_id(0) * PARTICLES + tl.arange(0, PARTICLES)
    here = b < n_particles
    m = tl.arange(0, ORDERS)
    # Where classes have particles of their own these follow each other, class by class.
    row = k * n_particles + b if OWN else b
    scale = tl.maximum(tl.load(height + k) * tl.load(strength + row, mask=here, other=1.0), 1e-30)
    column = cross + (k.to(tl.int64) * n_pairs * 2) * n_particles + b
    order_stride = tl.cast(n_classes, tl.int64) * n_pairs * 2 * n_particles
    best = tl.full((ANGLES, PARTICLES), float("-inf"), tl.float32)
    pose = tl.zeros((ANGLES, PARTICLES), tl.int32)  # 2 (pair n_half + angle), and 1 where the angle is negative
    for j in tl.static_range(N_ANGLE_BLOCKS):
        # Angles beyond the last repeat it.
        angle = tl.minimum(j * ANGLES + tl.arange(0, ANGLES), n_half - 1)
        cos, sin = (), ()
        for i in tl.static_range(N_ORDER_BLOCKS):
            order = i * ORDERS + m
            entry = angle[:, None] * n_orders + order[None, :]
            cos = cos + (tl.load(cosine + entry, mask=(order < n_orders)[None, :], other=0.0),)  # noqa: RUF005
            sin = sin + (tl.load(sine + entry, mask=(order < n_orders)[None, :], other=0.0),)  # noqa: RUF005
        for p in range(n_pairs):
            even = tl.zeros((ANGLES, PARTICLES), tl.float32)
            odd = tl.zeros((ANGLES, PARTICLES), tl.float32)
            for i in tl.static_range(N_ORDER_BLOCKS):
                order = i * ORDERS + m
                inside = (order < n_orders)[:, None]
                if not WHOLE:
                    inside = inside & here[None, :]
                at = column[None, :] + order[:, None] * order_stride + p * 2 * n_particles
                even = tl.dot(cos[i], tl.load(at, mask=inside, other=0.0), even)
                odd = tl.dot(sin[i], tl.load(at + n_particles, mask=inside, other=0.0), odd)
            score = even + tl.abs(odd)
            if HAS_FAVOUR:
                score += (tl.load(favour + p // FLIPS) / scale)[None, :]
            number = (2 * (p * n_half + angle))[:, None]
            number = tl.where(odd < 0, number + 1, number)
            better = score > best
            if N_ANGLE_BLOCKS > 1:
                better = better | ((score == best) & (number < pose))
            pose = tl.where(better, number, pose)
            best = tl.where(better, score, best)
    top = tl.max(best, axis=0)
    # The first pose among equals, so that the answer does not depend on the blocks.
    code = tl.min(tl.where(best == top[None, :], pose, 2147483647), axis=0)
    pair = code // 2 // n_half
    flipped = pair % FLIPS
    top *= scale
    if HAS_FAVOUR:
        top -= tl.load(favour + pair // FLIPS)
    degrees = (code // 2 % n_half + 0.5) * (180.0 / n_half)
    degrees = tl.where(code % 2 == 1, -degrees, degrees)
    x = -tl.load(shift + pair // FLIPS * 2)
    y = -tl.load(shift + pair // FLIPS * 2 + 1)
    x = tl.where(flipped == 1, -x, x)
    co, si = tl.cos(degrees * 0.017453292519943295), tl.sin(degrees * 0.017453292519943295)
    to = row.to(tl.int64) * n_columns + (0 if OWN else k)
    tl.store(value + to, top, mask=here)
    tl.store(psi + to, degrees, mask=here)
    tl.store(place + 2 * to, tl.load(origin + 2 * row, mask=here, other=0.0) + co * x + si * y, mask=here)
    tl.store(place + 2 * to + 1, tl.load(origin + 2 * row + 1, mask=here, other=0.0) - si * x + co * y, mask=here)
    tl.store(mirror + to, flipped.to(tl.int8), mask=here)


def blocks(n_half: int, n_orders: int, particles: int, shared_bytes: int) -> tuple[int, int, int]:
    """Return the angles and orders at once and the spectra on their way that a card's shared memory has room for.

    It holds the tables of cosines and sines of a block of angles, and the spectra of some pairs.

    Parameters
    ----------
    n_half : int
        Number of rotations.
    n_orders : int
        Number of angular orders.
    particles : int
        Particles of a program.
    shared_bytes : int
        Shared memory that a program may have.

    Returns
    -------
    tuple of int
        Angles, orders and spectra.
    """
    orders = 32 if n_orders <= 32 else 64
    for angles, stages in BLOCKS:
        taken = 4 * orders * ceil_div(n_orders, orders) * (angles + stages * particles) + RESERVED_BYTES
        if taken <= shared_bytes and (angles <= 64 or n_half > 64):
            return angles, orders, stages
    return 16, 16, 1


def best_in_classes(
    cross: Tensor,
    height: Tensor,
    strength: Tensor,
    origin_xy_px: Tensor,
    grid: PoseGrid,
    out: tuple[Tensor, ...],
    favour: Tensor | None = None,
    *,
    particles: int = 32,
    num_warps: int = 4,
) -> None:
    """Find the best pose of particles in every class; see `reference.best_in_classes`."""
    n_orders, _, b = cross.shape
    n_half, k = len(grid.cosine), len(height)
    value, psi, place, mirror = out
    angles, orders, stages = blocks(n_half, n_orders, particles, shared_bytes())
    _best_in_classes[(ceil_div(b, particles), k)](
        cross, grid.cosine, grid.sine, height, strength, strength if favour is None else favour, grid.shifts_xy_px,
        origin_xy_px.contiguous(), value, psi, place, mirror.view(torch.int8),
        n_orders, grid.n_pairs, b, k, value.stride(0), n_half,
        FLIPS=grid.flips, HAS_FAVOUR=favour is not None, WHOLE=b % particles == 0, OWN=strength.ndim == 2,
        N_ANGLE_BLOCKS=ceil_div(n_half, angles), N_ORDER_BLOCKS=ceil_div(n_orders, orders),
        ORDERS=orders, ANGLES=angles, PARTICLES=particles,
        num_warps=num_warps, num_stages=stages,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=["n", "k", "rows_each", "factor", "of_map", "of_price", "of_before", "temperature", "first"],
    do_not_specialize_on_alignment=["last_members", "before", "last_price", "price", "members"],
)
def _price_step(
    fit, last_members, before, last_price, price, members, particles, n, k, rows_each, factor, of_map, of_price,
    of_before, temperature, first, CAPPED: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """The prices after a step, which every program computes, and the responsibilities of some particles with them."""
    c = tl.arange(0, CLASSES)
    known = c < k
    paid = tl.zeros((CLASSES,), tl.float32)
    if first == 0:
        share = (tl.load(last_members + c, mask=known, other=0.0) * k / tl.load(particles)).to(tl.float32)
        last = tl.load(last_price + c, mask=known, other=0.0)
        paid = factor * (last - temperature * tl.log(tl.maximum(share, 1e-4)))
        paid = of_map * paid + of_price * last + of_before * tl.load(before + c, mask=known, other=0.0)
        if CAPPED:
            paid = tl.minimum(paid, 0.0)
    if tl.program_id(0) == 0:
        tl.store(price + c, paid, mask=known)
    total = tl.zeros((CLASSES,), tl.float64)
    start = tl.program_id(0) * rows_each
    for i in range(start, tl.minimum(start + rows_each, n), ROWS):
        row = i + tl.arange(0, ROWS)
        here = (row < n)[:, None] & known[None, :]
        x = tl.load(fit + row.to(tl.int64)[:, None] * k + c[None, :], mask=here, other=0.0)
        x = tl.where(known[None, :], (x + paid[None, :]) / temperature, float("-inf"))
        x = tl.exp(x - tl.max(x, axis=1)[:, None])
        x = tl.where((row < n)[:, None], x / tl.sum(x, axis=1)[:, None], 0.0)
        # Multiples of 2^-23: they add up exactly in any order.
        total += tl.sum(((x + 1.0) - 1.0).to(tl.float64), axis=0)
    tl.atomic_add(members + c, total, mask=known)


def class_prices(fit: Tensor, rule: PriceRule, add_up: AddUp) -> Tensor:
    """Approach the prices at which class sizes are balanced; see `reference.class_prices`."""
    n, k = fit.shape
    classes = padded_classes(k)
    rows = max(1, 2048 // classes)
    rows_each = rows * max(1, ceil_div(n, rows * PROGRAMS))
    members = torch.zeros(len(rule.steps) + 1, k, dtype=torch.float64, device=fit.device)
    price = torch.empty(len(rule.steps) + 1, k, device=fit.device)
    particles, fit = rule.particles.double(), fit.contiguous()
    sums, prices = members.unbind(), price.unbind()
    for step, weights in enumerate([(0.0, 0.0, 0.0), *rule.steps]):
        here, last = n if step < len(rule.steps) else 0, max(0, step - 1)
        _price_step[(max(1, ceil_div(here, rows_each)),)](
            fit, sums[last], prices[max(0, step - 2)], prices[last], prices[step], sums[step], particles, here, k,
            rows_each, rule.factor, *weights, rule.temperature, int(step == 0), CAPPED=rule.capped, ROWS=rows,
            CLASSES=classes,
        )  # fmt: skip
        if step < len(rule.steps):
            add_up(sums[step])
    return prices[-1]


@triton.jit(do_not_specialize=["n", "k", "first"], do_not_specialize_on_alignment=["sums"])
def _losses(fit, nats, alive, best, anchor, sums, n, k, first, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """What some particles lose without their best class, to the sums of these classes.

    `best` has the two best classes of each particle; they are sought anew where one of them was dropped.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < n
    at = fit + row.to(tl.int64) * k
    one = tl.load(best + 2 * row, mask=here, other=0)
    two = tl.load(best + 2 * row + 1, mask=here, other=0)
    gone = (tl.load(alive + one, mask=here, other=1) == 0) | (tl.load(alive + two, mask=here, other=1) == 0)
    if tl.max((gone & here).to(tl.int32), axis=0) + first > 0:
        c = tl.arange(0, CLASSES)
        left = tl.load(alive + c, mask=c < k, other=0) != 0
        x = tl.load(at[:, None] + c[None, :], mask=here[:, None] & left[None, :], other=float("-inf"))
        top = tl.max(x, axis=1)
        one = tl.min(tl.where((x == top[:, None]) & left[None, :], c[None, :], 2147483647), axis=1)
        x = tl.where(c[None, :] == one[:, None], float("-inf"), x)
        top = tl.max(x, axis=1)
        other = left[None, :] & (c[None, :] != one[:, None])
        two = tl.min(tl.where((x == top[:, None]) & other, c[None, :], 2147483647), axis=1)
        tl.store(best + 2 * row, one, mask=here)
        tl.store(best + 2 * row + 1, two, mask=here)
    lost = tl.load(at + one, mask=here, other=0.0) - tl.load(at + two, mask=here, other=0.0)
    a0, a1 = tl.load(anchor), tl.load(anchor + 1)
    in_nats = lost * tl.load(nats + row, mask=here, other=0.0)
    to = sums + 3 * one
    tl.atomic_add(to, (lost.to(tl.float64) + a0) - a0, mask=here)
    tl.atomic_add(to + 1, (in_nats.to(tl.float64) + a1) - a1, mask=here)
    tl.atomic_add(to + 2, tl.full((ROWS,), 1.0, tl.float64), mask=here)


@triton.jit
def _each(sums, alive, c, k):
    """Loss in nats a member of classes, minus infinity of those that were dropped."""
    members = tl.load(sums + 3 * c + 2, mask=c < k, other=0.0).to(tl.float32)
    lost = tl.load(sums + 3 * c + 1, mask=c < k, other=0.0).to(tl.float32)
    left = tl.load(alive + c, mask=c < k, other=0) != 0
    return tl.where(left, lost / tl.maximum(members, 1.0), float("-inf")), members, left


@triton.jit(
    do_not_specialize=["k", "middle", "third", "least", "times", "worth"], do_not_specialize_on_alignment=["sums"]
)
def _drop(sums, alive, k, middle, third, least, times, worth, CLASSES: tl.constexpr, AT_ONCE: tl.constexpr):
    """One program: drops the class with the least loss; places in the order of losses are counted."""
    c = tl.arange(0, CLASSES)
    each, members, left = _each(sums, alive, c, k)
    place = tl.zeros((CLASSES,), tl.int32)
    for i in range(0, k, AT_ONCE):
        d = i + tl.arange(0, AT_ONCE)
        its, _, _ = _each(sums, alive, d, k)
        before = (its[None, :] > each[:, None]) | ((its[None, :] == each[:, None]) & (d[None, :] < c[:, None]))
        place += tl.sum((before & (d < k)[None, :]).to(tl.int32), axis=1)
    lowest = float("-inf")
    usual = tl.max(tl.where((place == middle) & (c < k), each, lowest), axis=0)
    common = tl.max(tl.where((place == third) & (c < k), each, lowest), axis=0)
    loss = tl.load(sums + 3 * c, mask=c < k, other=0.0).to(tl.float32)
    loss += tl.where((members >= least) & (each > tl.maximum(times * usual, common)), worth, 0.0)
    loss = tl.where(left, loss, float("inf"))
    smallest = tl.min(loss, axis=0)
    dropped = tl.min(tl.where((loss == smallest) & left, c, 2147483647), axis=0)
    tl.store(alive + dropped, 0)


def thin(fit: Tensor, nats: Tensor, keep: int, rule: ThinningRule, add_up: AddUp) -> Tensor:
    """Drop classes one by one; see `reference.thin`."""
    n, k = fit.shape
    fit, nats = fit.contiguous(), nats.contiguous()
    classes = padded_classes(k)
    rows = max(2, min(32, 2048 // classes))
    alive = torch.ones(k, dtype=torch.int32, device=fit.device)
    best = torch.zeros(n, 2, dtype=torch.int32, device=fit.device)
    sums = torch.zeros(max(0, k - keep), k, 3, dtype=torch.float64, device=fit.device)
    for step, own in enumerate(sums.unbind()):
        if n:
            _losses[(ceil_div(n, rows),)](
                fit, nats, alive, best, rule.anchor, own, n, k, int(step == 0), ROWS=rows, CLASSES=classes
            )
        add_up(own)
        _drop[(1,)](
            own, alive, k, (k - step) // 2, keep // 3, rule.members, rule.times, rule.worth, CLASSES=classes, AT_ONCE=16
        )
    return alive.bool()
