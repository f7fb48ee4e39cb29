"""Triton forms of what is computed of shifted samples: their angular orders, and sums and products of these.

One kernel shifts samples and writes the whole circle, of which the FFT makes angular orders; another takes these where
the FFT has left them, from rows of 2 H orders.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div
from ralib.kernels.classes.reference import PosedParticles, PosedTerms, Rings
from ralib.kernels.pose_search.gpu_newton_triton import cos_sin

__all__ = ["add_posed", "half_columns", "half_rows", "moved_orders", "ring_crosses", "sum_bounds"]

BLOCK = 1024
"""Samples of a program, or real and imaginary parts of angular orders."""

ROW = 8192
"""Parts of angular orders that a program which goes through all those of a class takes at a time."""

TILE = 32
"""Of particles, rings and parts of angular orders: in each of two directions of a program."""


@triton.jit(
    do_not_specialize=["particle_stride", "ring_stride", "n_rings", "n_half"],
    do_not_specialize_on_alignment=["samples", "row", "weight", "shift"],
)
def _circles(
    samples, row, weight, shift, frequency, cosine, sine, circle, particle_stride, ring_stride, n_rings, n_half,
    HAS_ROW: tl.constexpr, HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: some shifted samples of a particle over 2 H, and the conjugates at the opposite angles.

    Nothing is read or written for a weight of 0.
    """
    b = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    ring, h = i // n_half, i % n_half
    end = n_rings
    if HAS_WEIGHT:
        end = tl.where(tl.load(weight + b) != 0.0, n_rings, 0)
    inside = ring < end
    source = b
    if HAS_ROW:
        source = tl.load(row + b)
    at = samples + 2 * (source * particle_stride + ring.to(tl.int64) * ring_stride + h)
    real = tl.load(at, mask=inside, other=0.0)
    imag = tl.load(at + 1, mask=inside, other=0.0)
    along = tl.load(shift + 2 * b) * tl.load(cosine + h) + tl.load(shift + 2 * b + 1) * tl.load(sine + h)
    co, si = cos_sin(along * tl.load(frequency + ring, mask=inside, other=0.0))
    scale = 0.5 / n_half
    x, y = (real * co + imag * si) * scale, (imag * co - real * si) * scale
    to = circle + 2 * ((b * n_rings + ring) * (2 * n_half) + h)[:, None] + tl.arange(0, 2)[None, :]
    tl.store(to, tl.join(x, y), mask=inside[:, None])
    tl.store(to + 2 * n_half, tl.join(x, -y), mask=inside[:, None])


def _orders(
    samples: Tensor,
    shift_xy_px: Tensor,
    rings: Rings,
    row: Tensor | None = None,
    *,
    weight: Tensor | None = None,
    at_once: int | None = None,
) -> Tensor:
    """Angular orders (b, r, 2 H) of shifted samples, undefined for weights of 0.

    Where `at_once` is given it takes the place of b, and rows beyond b are undefined: the FFT, which might round
    otherwise, has as many rows in every chunk.
    """
    b, n_rings, n_half = len(shift_xy_px), rings.n_rings, len(rings.angle_rad)
    circle = torch.empty(at_once or b, n_rings, 2 * n_half, dtype=torch.complex64, device=samples.device)
    if not b:  # of the particles looked at, a rank may hold none, and cuFFT takes no empty batch
        return circle
    samples = samples if samples.stride(2) == 1 else samples.contiguous()
    shift, row = shift_xy_px.contiguous(), None if row is None else row.contiguous()
    _circles[(b, ceil_div(n_rings * n_half, BLOCK))](
        torch.view_as_real(samples), shift if row is None else row, shift if weight is None else weight, shift,
        rings.frequency, *rings.directions, torch.view_as_real(circle), samples.stride(0), samples.stride(1), n_rings,
        n_half, HAS_ROW=row is not None, HAS_WEIGHT=weight is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return torch.fft.fft(circle, dim=-1)


def moved_orders(
    samples: Tensor, shift_xy_px: Tensor, rings: Rings, n_orders: int, row: Tensor | None = None
) -> Tensor:
    """Compute the angular orders of shifted samples; see `reference.moved_orders`."""
    return _orders(samples, shift_xy_px, rings, row)[..., :n_orders]


@triton.jit
def _posed(orders, part, psi, mirror, inside):
    """Real parts of angular orders (even parts) and imaginary ones in the frame of the class, at a particle's pose."""
    own = tl.load(orders + part, mask=inside, other=0.0)
    other = tl.load(orders + (part ^ 1), mask=inside, other=0.0)
    co, si = cos_sin((part // 2).to(tl.float32) * (tl.load(psi) / 360.0))
    flip = tl.where(tl.load(mirror) != 0, -1.0, 1.0)
    return tl.where(part % 2 == 0, own * co + other * si, (own * co - other * si) * flip)


@triton.jit(
    do_not_specialize=["n_rings", "n_orders", "n_circle", "power_stride"],
    do_not_specialize_on_alignment=["power", "row", "psi", "mirror", "to", "weight", "scale", "of_power"],
)
def _add_posed(
    orders, power, row, psi, mirror, to, weight, scale, own, of_power, numerator, total,
    n_rings, n_orders, n_circle, power_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: some angular orders of a particle, and its power on the rings whose order 0 is among them."""
    b = tl.program_id(0).to(tl.int64)
    contrast = tl.load(scale + b)
    factor = tl.load(weight + b) * contrast
    if factor != 0.0:
        i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        ring, part = i // (2 * n_orders), i % (2 * n_orders)
        inside = ring < n_rings
        posed = _posed(orders + 2 * (b * n_rings + ring) * n_circle, part, psi + b, mirror + b, inside)
        known = tl.load(to + b)
        # In float64, next to the anchor, a term is rounded to quanta: these add up exactly in any order.
        anchor = tl.load(own + ring, mask=inside, other=0.0)
        at = numerator + known * (2 * n_rings * n_orders) + i
        tl.atomic_add(at, ((posed * factor).to(tl.float64) + anchor) - anchor, mask=inside, sem="relaxed")
        first = inside & (part == 0)
        term = tl.load(power + tl.load(row + b) * power_stride + ring, mask=first, other=0.0) * (factor * contrast)
        anchor = tl.load(of_power + ring, mask=first, other=0.0)
        at = total + known * n_rings + ring
        tl.atomic_add(at, (term.to(tl.float64) + anchor) - anchor, mask=first, sem="relaxed")


def add_posed(
    samples: Tensor, power: Tensor, terms: PosedTerms, rings: Rings, sums: tuple[Tensor, Tensor], at_once: int
) -> None:
    """Add posed particles to sums; see `reference.add_posed`."""
    numerator, total = sums
    n_rings, n_orders = numerator.shape[1:3]
    own, of_power = terms.anchors.unbind()
    for first in range(0, len(terms.weight), at_once):
        part = terms.part(slice(first, first + at_once))
        row, shift, psi, mirror, to = (table.contiguous() for table in part.places.fields())
        weight, scale = part.weight.contiguous(), part.scale.contiguous()
        orders = _orders(samples, shift, rings, row, weight=weight, at_once=at_once)
        _add_posed[(len(row), ceil_div(2 * n_rings * n_orders, BLOCK))](
            torch.view_as_real(orders), power, row, psi, mirror.view(torch.int8), to, weight, scale, own,
            of_power, numerator, total, n_rings, n_orders, orders.shape[2], power.stride(0), BLOCK=BLOCK,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=["n", "n_rings", "n_classes", "n_half"],
    do_not_specialize_on_alignment=["energy", "power", "weight", "scale"],
)
def _sum_bounds(
    energy, power, weight, scale, bounds, n, n_rings, n_classes, n_half, ROWS: tl.constexpr, RINGS: tl.constexpr
):
    """One program: some rings of some particles."""
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    ring = tl.program_id(1) * RINGS + tl.arange(0, RINGS)
    heaviest, largest = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    for c in range(n_classes):
        at = c * tl.cast(n, tl.int64) + b
        contrast = tl.load(scale + at, mask=b < n, other=0.0)
        factor = tl.load(weight + at, mask=b < n, other=0.0) * contrast
        heaviest = tl.maximum(heaviest, factor)
        largest = tl.maximum(largest, factor * contrast)
    inside = (b < n)[:, None] & (ring < n_rings)[None, :]
    at = b.to(tl.int64)[:, None] * n_rings + ring[None, :]
    amplitude = tl.sqrt(tl.load(energy + at, mask=inside, other=0.0) / n_half) * heaviest[:, None]
    own = tl.load(power + at, mask=inside, other=0.0) * largest[:, None]
    tl.atomic_max(bounds + ring, tl.max(amplitude, axis=0), mask=ring < n_rings)
    tl.atomic_max(bounds + n_rings + ring, tl.max(own, axis=0), mask=ring < n_rings)


def sum_bounds(energy: Tensor, power: Tensor, weight: Tensor, scale: Tensor, n_half: int) -> Tensor:
    """Return upper bounds of what posed particles add to sums; see `reference.sum_bounds`."""
    n, n_rings = energy.shape
    bounds = energy.new_zeros(2, n_rings)
    if n:
        given = (table.contiguous() for table in (energy, power, weight, scale))
        _sum_bounds[(ceil_div(n, TILE), ceil_div(n_rings, TILE))](
            *given, bounds, n, n_rings, len(weight), n_half, ROWS=TILE, RINGS=TILE
        )
    return bounds


@triton.jit(do_not_specialize=["n_rings", "n_orders", "n_circle"])
def _norms(orders, strength, n_rings, n_orders, n_circle, BLOCK: tl.constexpr):
    """One program: the norm of a particle."""
    b = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, 2 * n_rings * n_orders, BLOCK):
        i = start + tl.arange(0, BLOCK)
        ring, part = i // (2 * n_orders), i % (2 * n_orders)
        x = tl.load(orders + 2 * (b * n_rings + ring) * n_circle + part, mask=ring < n_rings, other=0.0)
        total += x * x
    tl.store(strength + b, tl.maximum(tl.sqrt(tl.sum(total, axis=0)), 1e-30))


@triton.jit(do_not_specialize=["n", "n_rings", "n_orders", "n_circle", "n_columns"])
def _half_columns(
    orders, strength, columns, n, n_rings, n_orders, n_circle, n_columns,
    PARTICLES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: parts of angular orders of some particles on one ring, and beyond the last ring the zeros."""
    b = tl.program_id(0) * PARTICLES + tl.arange(0, PARTICLES)
    part = tl.program_id(1) * PARTS + tl.arange(0, PARTS)
    ring = tl.program_id(2)
    known = (b < n)[:, None] & (part < tl.where(ring < n_rings, 2 * n_orders, 0))[None, :]
    at = orders + 2 * (b.to(tl.int64) * n_rings + ring)[:, None] * n_circle + part[None, :]
    x = tl.load(at, mask=known, other=0.0) / tl.load(strength + b, mask=b < n, other=1.0)[:, None]
    column = part % 2 * n_rings + ring
    to = columns + ((part // 2).to(tl.int64) * n_columns + column)[None, :] * n + b[:, None]
    # Columns of real parts end with the rings, those of imaginary parts with the zeros.
    written = (part < 2 * n_orders) & (ring - part % 2 * n_columns < n_rings)
    tl.store(to, x.to(tl.float16), mask=(b < n)[:, None] & written[None, :])


def half_columns(
    samples: Tensor, shift_xy_px: Tensor, rings: Rings, n_orders: int, multiple: int
) -> tuple[Tensor, Tensor]:
    """Compute the scaled angular orders of shifted samples in half precision; see `reference.half_columns`."""
    b, n_rings = len(shift_xy_px), rings.n_rings
    n_columns = multiple * ceil_div(2 * n_rings, multiple)
    columns = torch.empty(n_orders, n_columns, b, dtype=torch.float16, device=samples.device)
    strength = torch.empty(b, device=samples.device)
    if b:
        orders = torch.view_as_real(_orders(samples, shift_xy_px, rings))
        sizes = n_rings, n_orders, orders.shape[2]
        _norms[(b,)](orders, strength, *sizes, BLOCK=BLOCK)
        _half_columns[(ceil_div(b, TILE), ceil_div(2 * n_orders, TILE), n_columns - n_rings)](
            orders, strength, columns, b, *sizes, n_columns, PARTICLES=TILE, PARTS=TILE
        )
    return columns, strength


@triton.jit(do_not_specialize=["n_parts"], do_not_specialize_on_alignment=["orders"])
def _heights(orders, height, n_parts, BLOCK: tl.constexpr):
    """One program: the largest part of an angular order of a class."""
    k = tl.program_id(0).to(tl.int64)
    largest = tl.full((BLOCK,), 1e-30, tl.float32)
    for start in range(0, n_parts, BLOCK):
        i = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(tl.load(orders + k * n_parts + i, mask=i < n_parts, other=0.0)))
    tl.store(height + k, tl.max(largest, axis=0))


@triton.jit(
    do_not_specialize=["n_templates", "n_shifts", "n_rings", "n_orders", "n_columns"],
    do_not_specialize_on_alignment=["orders"],
)
def _half_rows(
    orders, height, rows, n_templates, n_shifts, n_rings, n_orders, n_columns,
    FLIPS: tl.constexpr, ORDERS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: the rows of some angular orders of a shifted class."""
    t = tl.program_id(0).to(tl.int64)
    m = (tl.program_id(1) * ORDERS + tl.arange(0, ORDERS))[:, None]
    top = tl.load(height + t // n_shifts)
    first = rows + (m.to(tl.int64) * n_templates + t) * (2 * FLIPS) * n_columns
    for start in range(0, n_columns, COLUMNS):
        column = (start + tl.arange(0, COLUMNS))[None, :]
        part, ring = column // n_rings, column % n_rings
        known = (m < n_orders) & (column < 2 * n_rings)
        at = orders + 2 * ((t * n_rings + ring) * n_orders + m)
        own = tl.load(at + part, mask=known, other=0.0) / top
        other = tl.load(at + (1 - part), mask=known, other=0.0) / top
        inside = (m < n_orders) & (column < n_columns)
        to = first + column
        tl.store(to, own.to(tl.float16), mask=inside)
        tl.store(to + n_columns, tl.where(part == 0, -other, other).to(tl.float16), mask=inside)
        if FLIPS == 2:
            tl.store(to + 2 * n_columns, tl.where(part == 0, own, -own).to(tl.float16), mask=inside)
            tl.store(to + 3 * n_columns, other.to(tl.float16), mask=inside)


def half_rows(orders: Tensor, mirror: bool, multiple: int) -> tuple[Tensor, Tensor]:
    """Make the rows of the scoring product in half precision; see `reference.half_rows`."""
    k, n_shifts, n_rings, n_orders = orders.shape
    flips, n_columns = 2 if mirror else 1, multiple * ceil_div(2 * n_rings, multiple)
    rows = torch.empty(n_orders, k * n_shifts * 2 * flips, n_columns, dtype=torch.float16, device=orders.device)
    height = torch.empty(k, device=orders.device)
    parts = torch.view_as_real(orders.contiguous())
    _heights[(k,)](parts, height, 2 * n_shifts * n_rings * n_orders, BLOCK=ROW, num_warps=8)
    _half_rows[(k * n_shifts, ceil_div(n_orders, TILE))](
        parts, height, rows, k * n_shifts, n_shifts, n_rings, n_orders, n_columns,
        FLIPS=flips, ORDERS=TILE, COLUMNS=TILE,
    )  # fmt: skip
    return rows, height


@triton.jit(
    do_not_specialize=["n_rings", "n_orders", "n_circle", "n_half"],
    do_not_specialize_on_alignment=["psi", "mirror", "to", "references"],
)
def _ring_crosses(
    orders, psi, mirror, to, references, out, n_rings, n_orders, n_circle, n_half,
    RINGS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One program: some rings of a particle."""
    b = tl.program_id(0).to(tl.int64)
    ring = tl.program_id(1) * RINGS + tl.arange(0, RINGS)
    moved = orders + 2 * (b * n_rings + ring)[:, None] * n_circle
    reference = references + 2 * (tl.load(to + b) * n_rings + ring)[:, None] * n_orders
    total = tl.zeros((RINGS, PARTS), tl.float32)
    for start in range(0, 2 * n_orders, PARTS):
        part = (start + tl.arange(0, PARTS))[None, :]
        inside = (ring < n_rings)[:, None] & (part < 2 * n_orders)
        posed = _posed(moved, part, psi + b, mirror + b, inside)
        total += posed * tl.load(reference + part, mask=inside, other=0.0) * tl.where(part < 2, 1.0, 2.0)
    tl.store(out + b * n_rings + ring, tl.sum(total, axis=1) * n_half, mask=ring < n_rings)


def ring_crosses(samples: Tensor, places: PosedParticles, references: Tensor, rings: Rings) -> Tensor:
    """Compute cross terms of posed particles with classes on each ring; see `reference.ring_crosses`."""
    row, shift, psi, mirror, to = (table.contiguous() for table in places.fields())
    _, n_rings, n_orders = references.shape
    out = torch.empty(len(row), n_rings, device=samples.device)
    if len(row):
        orders = _orders(samples, shift, rings, row)
        _ring_crosses[(len(row), ceil_div(n_rings, TILE))](
            torch.view_as_real(orders), psi, mirror.view(torch.int8), to, torch.view_as_real(references.contiguous()),
            out, n_rings, n_orders, orders.shape[2], len(rings.angle_rad), RINGS=TILE, PARTS=TILE,
        )  # fmt: skip
    return out
