"""Triton forms of the functions of `reference`."""

# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.averages.reference import AllParticles, Waves
from ralib.kernels.blocks import ceil_div

ORDERS = 128
"""Angular orders, or angles, at once."""

CLASSES = 128
"""Classes at once, whose sums are then added up in a fixed order."""

BLOCK = 256
"""Particles, or pixels of a quarter, of a program."""

PIXELS = 1024
"""Pixels of a program."""


@triton.jit(do_not_specialize=["n_orders"], do_not_specialize_on_alignment=["orders"])
def _ring_power(orders, power, n_orders, ORDERS: tl.constexpr):
    """One program: a ring of a class."""
    cell = tl.program_id(0).to(tl.int64)
    total = tl.zeros((ORDERS,), tl.float32)
    for first in range(0, n_orders, ORDERS):
        m = first + tl.arange(0, ORDERS)
        at = orders + 2 * (cell * n_orders + m)
        re = tl.load(at, mask=m < n_orders, other=0.0)
        im = tl.load(at + 1, mask=m < n_orders, other=0.0)
        total += tl.where(m == 0, 1.0, 2.0) * (re * re + im * im)
    tl.store(power + cell, tl.sum(total, axis=0))


def ring_power(orders: Tensor) -> Tensor:
    """Compute the mean over angles of |A|^2; see `reference.ring_power`."""
    power = torch.empty(orders.shape[:-1], device=orders.device)
    if power.numel():
        _ring_power[(power.numel(),)](_parts(orders), power, orders.shape[-1], ORDERS=ORDERS, num_warps=1)
    return power


def _parts(orders: Tensor) -> Tensor:
    """Real and imaginary parts, one after the other in memory."""
    return torch.view_as_real(orders.resolve_conj().contiguous())


@triton.jit
def _orders(numerator, at, m, n_orders, by):
    """Angular orders of the sums of a half, which begin at `at`."""
    re = tl.load(numerator + at + 2 * m, mask=m < n_orders, other=0.0).to(tl.float32)
    im = tl.load(numerator + at + 2 * m + 1, mask=m < n_orders, other=0.0).to(tl.float32)
    return re / by, im / by


@triton.jit(do_not_specialize=["n_cells", "n_rings", "n_orders"])
def _halves_frc(
    numerator, weight, ring_weight, half_weight, frc, n_cells, n_rings, n_orders, ORDERS: tl.constexpr
):  # fmt: skip
    """One program: the FRC of a ring of a class."""
    cell = tl.program_id(0)
    ring = cell % n_rings
    by, circle = tl.load(ring_weight + ring), tl.load(half_weight + ring)
    over_1 = tl.maximum(tl.load(weight + cell).to(tl.float32) / circle, 1e-12)
    over_2 = tl.maximum(tl.load(weight + n_cells + cell).to(tl.float32) / circle, 1e-12)
    at_1 = cell.to(tl.int64) * n_orders * 2
    at_2 = (cell.to(tl.int64) + n_cells) * n_orders * 2
    both = tl.zeros((ORDERS,), tl.float32)
    power_1 = tl.zeros((ORDERS,), tl.float32)
    power_2 = tl.zeros((ORDERS,), tl.float32)
    for first in range(0, n_orders, ORDERS):
        m = first + tl.arange(0, ORDERS)
        times = tl.where(m == 0, 1.0, 2.0)
        re_1, im_1 = _orders(numerator, at_1, m, n_orders, by)
        re_2, im_2 = _orders(numerator, at_2, m, n_orders, by)
        re_1, im_1, re_2, im_2 = re_1 / over_1, im_1 / over_1, re_2 / over_2, im_2 / over_2
        both += times * (re_1 * re_2 + im_1 * im_2)
        power_1 += times * (re_1 * re_1 + im_1 * im_1)
        power_2 += times * (re_2 * re_2 + im_2 * im_2)
    product = tl.sum(power_1, axis=0) * tl.sum(power_2, axis=0)
    tl.store(frc + cell, tl.sum(both, axis=0) / tl.maximum(tl.sqrt(product), 1e-20))


@triton.jit
def _own_ssnr(frc, c, ring, n_classes, n_rings):
    """SSNR of classes c on a ring, from their FRC smoothed over the rings beside it."""
    row = frc + c * n_rings
    known = c < n_classes
    here = tl.load(row + ring, mask=known, other=0.0)
    inner = tl.load(row + tl.maximum(ring - 1, 0), mask=known, other=0.0)
    outer = tl.load(row + tl.minimum(ring + 1, n_rings - 1), mask=known, other=0.0)
    smooth = tl.minimum(tl.maximum(0.5 * here + 0.25 * (inner + outer), 0.0), 0.995)
    return 2 * smooth / (1 - smooth)


@triton.jit(do_not_specialize=["n_classes", "n_rings"])
def _wiener_weights(
    frc, weight, members, half_weight, ssnr, total, highest, n_classes, n_rings, CLASSES: tl.constexpr
):  # fmt: skip
    """One program: SSNR and weight of all classes on a ring, and the highest weight."""
    ring = tl.program_id(0)
    circle = tl.load(half_weight + ring)
    n_cells = n_classes * n_rings
    own_sum = tl.zeros((CLASSES,), tl.float32)
    share_sum = tl.zeros((CLASSES,), tl.float32)
    for first in range(0, n_classes, CLASSES):
        c = first + tl.arange(0, CLASSES)
        own_sum += _own_ssnr(frc, c, ring, n_classes, n_rings)  # 0 beyond the last class
        share = tl.maximum(tl.load(members + c, mask=c < n_classes, other=0.0), 1e-3)
        share_sum += tl.where(c < n_classes, share, 0.0)
    common = tl.sum(own_sum, axis=0) / tl.sum(share_sum, axis=0)
    most = tl.zeros((CLASSES,), tl.float32)
    for first in range(0, n_classes, CLASSES):
        c = first + tl.arange(0, CLASSES)
        known = c < n_classes
        at = c * n_rings + ring
        share = tl.maximum(tl.load(members + c, mask=known, other=0.0), 1e-3)
        level = tl.maximum(0.5 * _own_ssnr(frc, c, ring, n_classes, n_rings) + 0.5 * common * share, 1e-3)
        power_1 = tl.load(weight + at, mask=known, other=0.0).to(tl.float32) / circle
        power_2 = tl.load(weight + n_cells + at, mask=known, other=0.0).to(tl.float32) / circle
        its = (power_1 + power_2) * (1 + 1 / level)
        tl.store(ssnr + at, level, mask=known)
        tl.store(total + at, its, mask=known)
        most = tl.maximum(most, its)
    tl.store(highest + ring, tl.max(most, axis=0))


@triton.jit(do_not_specialize=["n_cells", "n_rings", "n_orders"])
def _averaged(
    numerator, weight, ring_weight, half_weight, ssnr, total, highest, orders, halves, gain,
    n_cells, n_rings, n_orders, ORDERS: tl.constexpr,
):  # fmt: skip
    """One program: average and half averages of a ring of a class."""
    cell = tl.program_id(0)
    ring = cell % n_rings
    by, circle = tl.load(ring_weight + ring), tl.load(half_weight + ring)
    over_1 = tl.maximum(tl.load(weight + cell).to(tl.float32) / circle, 1e-12)
    over_2 = tl.maximum(tl.load(weight + n_cells + cell).to(tl.float32) / circle, 1e-12)
    most = tl.zeros((ORDERS,), tl.float32)
    for first in range(0, n_rings, ORDERS):
        r = first + tl.arange(0, ORDERS)
        most = tl.maximum(most, tl.load(highest + r, mask=r < n_rings, other=0.0))
    factor = 1 / (tl.load(total + cell) + 1e-6 * tl.max(most, axis=0))
    tl.store(gain + cell, factor)
    level = tl.load(ssnr + cell)
    shrink = level / (level + 2)
    at_1 = cell.to(tl.int64) * n_orders * 2
    at_2 = (cell.to(tl.int64) + n_cells) * n_orders * 2
    for first in range(0, n_orders, ORDERS):
        m = first + tl.arange(0, ORDERS)
        inside = m < n_orders
        re_1, im_1 = _orders(numerator, at_1, m, n_orders, by)
        re_2, im_2 = _orders(numerator, at_2, m, n_orders, by)
        tl.store(orders + at_1 + 2 * m, (re_1 + re_2) * factor, mask=inside)
        tl.store(orders + at_1 + 2 * m + 1, (im_1 + im_2) * factor, mask=inside)
        tl.store(halves + at_1 + 2 * m, re_1 / over_1 * shrink, mask=inside)
        tl.store(halves + at_1 + 2 * m + 1, im_1 / over_1 * shrink, mask=inside)
        tl.store(halves + at_2 + 2 * m, re_2 / over_2 * shrink, mask=inside)
        tl.store(halves + at_2 + 2 * m + 1, im_2 / over_2 * shrink, mask=inside)


def wiener_averages(
    numerator: Tensor, weight: Tensor, members: Tensor, ring_weight: Tensor, half_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute regularised averages, their halves, FRC and gain; see `reference.wiener_averages`."""
    _, k, rings, n_orders, _ = numerator.shape
    numerator, weight, cells = numerator.contiguous(), weight.contiguous(), k * rings
    orders = torch.empty(k, rings, n_orders, dtype=torch.complex64, device=numerator.device)
    halves = torch.empty(2, *orders.shape, dtype=torch.complex64, device=numerator.device)
    frc, gain, ssnr, total = (torch.empty(k, rings, device=numerator.device) for _ in range(4))
    highest = torch.empty(rings, device=numerator.device)
    _halves_frc[(cells,)](
        numerator, weight, ring_weight, half_weight, frc, cells, rings, n_orders, ORDERS=ORDERS, num_warps=1
    )
    _wiener_weights[(rings,)](
        frc, weight, members, half_weight, ssnr, total, highest, k, rings, CLASSES=CLASSES, num_warps=4
    )
    _averaged[(cells,)](
        numerator, weight, ring_weight, half_weight, ssnr, total, highest,
        torch.view_as_real(orders), torch.view_as_real(halves), gain, cells, rings, n_orders,
        ORDERS=ORDERS, num_warps=1,
    )  # fmt: skip
    return orders, halves, frc, gain


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["first", "second"])
def _half_products(first, second, products, n, PIXELS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    a, b = tl.load(first + i, mask=i < n, other=0.0), tl.load(second + i, mask=i < n, other=0.0)
    tl.store(products + i, a * b, mask=i < n)
    tl.store(products + n + i, 0.5 * (a * a + b * b), mask=i < n)


def half_products(first: Tensor, second: Tensor) -> Tensor:
    """Multiply half averages, pixel by pixel; see `reference.half_products`."""
    first, second, n = first.contiguous(), second.contiguous(), first.numel()
    products = torch.empty(2, *first.shape, device=first.device)
    _half_products[(ceil_div(n, PIXELS),)](first, second, products, n, PIXELS=PIXELS)
    return products


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["common", "power"])
def _correlated_share(common, power, share, n, PIXELS: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    covariance = tl.load(common + i, mask=i < n, other=0.0)
    variance = tl.load(power + i, mask=i < n, other=0.0)
    correlation = tl.minimum(tl.maximum(covariance / tl.maximum(variance, 1e-20), 0.0), 1.0)
    tl.store(share + i, 2 * correlation / (1 + correlation), mask=i < n)


def correlated_share(common: Tensor, power: Tensor) -> Tensor:
    """Compute the share of signal where halves correlate; see `reference.correlated_share`."""
    common, power, n = common.contiguous(), power.contiguous(), common.numel()
    share = torch.empty_like(common)
    _correlated_share[(ceil_div(n, PIXELS),)](common, power, share, n, PIXELS=PIXELS)
    return share


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["psi", "origin", "mirror", "usable"])
def _box_centres(psi, origin, mirror, usable, centre, reach, n, BLOCK: tl.constexpr):
    """Centres of the particles' boxes from those of their classes, 0 where not usable, and the larger coordinate."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < n
    turn = tl.load(psi + i, mask=here, other=0.0) * 0.017453292519943295
    x = tl.load(origin + 2 * i, mask=here, other=0.0)
    y = tl.load(origin + 2 * i + 1, mask=here, other=0.0)
    co, si = tl.cos(turn), tl.sin(turn)
    along, across = co * x - si * y, si * x + co * y
    along = tl.where(tl.load(mirror + i, mask=here, other=0) != 0, -along, along)
    used = tl.load(usable + i, mask=here, other=0) != 0
    along, across = tl.where(used, along, 0.0), tl.where(used, across, 0.0)
    tl.store(centre + 2 * i, along, mask=here)
    tl.store(centre + 2 * i + 1, across, mask=here)
    tl.store(reach + i, tl.maximum(tl.abs(along), tl.abs(across)), mask=here)


@triton.jit(do_not_specialize=["n", "n_all"], do_not_specialize_on_alignment=["to", "most"])
def _add_centres(centre, to, most, sums, n, n_all, BLOCK: tl.constexpr):
    """Add centres to the sums of their classes, as multiples of a quantum of sums of n_all values up to `most`."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = i < n
    limit = tl.load(most).to(tl.float64) * n_all
    # Three halves of a power of two above the limit: its exponent plus 2, and the first bit of the fraction.
    exponent = (limit.to(tl.int64, bitcast=True) >> 52) + 2
    anchor = ((exponent << 52) | (1 << 51)).to(tl.float64, bitcast=True)
    at = sums + 2 * tl.load(to + i, mask=here, other=0)
    x = tl.load(centre + 2 * i, mask=here, other=0.0).to(tl.float64)
    y = tl.load(centre + 2 * i + 1, mask=here, other=0.0).to(tl.float64)
    tl.atomic_add(at, (x + anchor) - anchor, mask=here)
    tl.atomic_add(at + 1, (y + anchor) - anchor, mask=here)


@triton.jit(
    do_not_specialize=["n", "n_classes"], do_not_specialize_on_alignment=["psi", "origin", "mirror", "to", "members"]
)
def _follow(
    psi, origin, mirror, to, sums, members, moved, move, n, n_classes, BLOCK: tl.constexpr
):  # fmt: skip
    """Shifts of the classes from the sums of their members, and origins of particles that follow them."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    for part in tl.static_range(2):
        total = tl.load(sums + 2 * i + part, mask=i < n_classes, other=0.0).to(tl.float32)
        count = tl.maximum(tl.load(members + i, mask=i < n_classes, other=1.0), 1.0)
        tl.store(move + 2 * i + part, -total / count, mask=i < n_classes)
    here = i < n
    c = tl.load(to + i, mask=here, other=0)
    count = tl.maximum(tl.load(members + c, mask=here, other=1.0), 1.0)
    x = -tl.load(sums + 2 * c, mask=here, other=0.0).to(tl.float32) / count
    y = -tl.load(sums + 2 * c + 1, mask=here, other=0.0).to(tl.float32) / count
    x = tl.where(tl.load(mirror + i, mask=here, other=0) != 0, -x, x)
    turn = tl.load(psi + i, mask=here, other=0.0) * 0.017453292519943295
    co, si = tl.cos(turn), tl.sin(turn)
    tl.store(moved + 2 * i, tl.load(origin + 2 * i, mask=here, other=0.0) + (co * x + si * y), mask=here)
    tl.store(moved + 2 * i + 1, tl.load(origin + 2 * i + 1, mask=here, other=0.0) + (co * y - si * x), mask=here)


def centred_origins(
    pose: tuple[Tensor, Tensor, Tensor], usable: Tensor, class_index: Tensor, members: Tensor, particles: AllParticles
) -> tuple[Tensor, Tensor]:
    """Compute the shifts that centre classes, and their members' origins; see `reference.centred_origins`."""
    psi, origin, to = pose[0].contiguous(), pose[1].contiguous(), class_index.contiguous()
    mirror, usable = (flag.contiguous().view(torch.int8) for flag in (pose[2], usable))
    n, k = len(psi), len(members)
    centre, moved = torch.empty_like(origin), torch.empty_like(origin)
    reach, move = torch.empty_like(psi), torch.empty(k, 2, device=psi.device)
    sums = torch.zeros(k, 2, dtype=torch.float64, device=psi.device)
    programs = ceil_div(n, BLOCK)
    if n:
        _box_centres[(programs,)](psi, origin, mirror, usable, centre, reach, n, BLOCK=BLOCK)
    most = particles.largest(reach)
    if n:
        _add_centres[(programs,)](centre, to, most, sums, n, particles.n, BLOCK=BLOCK)
    sums = particles.add_up(sums)
    _follow[(max(programs, ceil_div(k, BLOCK)),)](
        psi, origin, mirror, to, sums, members, moved, move, n, k, BLOCK=BLOCK
    )
    return moved, move


@triton.jit(do_not_specialize=["n_orders", "n_half"], do_not_specialize_on_alignment=["orders"])
def _circle_spectra(orders, spectra, n_orders, n_half, ORDERS: tl.constexpr):
    """One program: the coefficients of a circle, of which those beyond `n_half` are of negative orders."""
    row = tl.program_id(0).to(tl.int64)
    for first in range(0, 2 * n_half, ORDERS):
        j = first + tl.arange(0, ORDERS)
        negative = j > n_half
        m = tl.where(negative, 2 * n_half - j, j)
        at = orders + 2 * (row * n_orders + m)
        known = (m < n_orders) & (j < 2 * n_half)
        re, im = tl.load(at, mask=known, other=0.0), tl.load(at + 1, mask=known, other=0.0)
        # F_-m = (-1)^m conj(F_m)
        to = spectra + 2 * (row * 2 * n_half + j)
        tl.store(to, tl.where(negative & (m % 2 == 1), -re, re), mask=j < 2 * n_half)
        tl.store(to + 1, tl.where(negative & (m % 2 == 0), -im, im), mask=j < 2 * n_half)


def circle_spectra(orders: Tensor, n_half: int) -> Tensor:
    """Compute the Fourier coefficients of whole circles; see `reference.circle_spectra`."""
    spectra = torch.empty(len(orders), 2 * n_half, dtype=torch.complex64, device=orders.device)
    if len(orders):
        _circle_spectra[(len(orders),)](
            _parts(orders), torch.view_as_real(spectra), orders.shape[1], n_half, ORDERS=ORDERS, num_warps=1
        )
    return spectra


@triton.jit(do_not_specialize=["n_images", "n_pixels", "n_quarter"], do_not_specialize_on_alignment=["images"])
def _quarter_pixels(images, pixel, share, parts, n_images, n_pixels, n_quarter, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = q < n_quarter
    at = images + row * n_pixels
    weight = tl.load(share + q, mask=here, other=0.0)
    a = tl.load(at + tl.load(pixel + q, mask=here, other=0), mask=here, other=0.0) * weight
    b = tl.load(at + tl.load(pixel + n_quarter + q, mask=here, other=0), mask=here, other=0.0) * weight
    c = tl.load(at + tl.load(pixel + 2 * n_quarter + q, mask=here, other=0), mask=here, other=0.0) * weight
    d = tl.load(at + tl.load(pixel + 3 * n_quarter + q, mask=here, other=0), mask=here, other=0.0) * weight
    to = parts + row * n_quarter + q
    each = tl.cast(n_images, tl.int64) * n_quarter
    tl.store(to, a + b + c + d, mask=here)
    tl.store(to + each, a - b - c + d, mask=here)
    tl.store(to + 2 * each, a - b + c - d, mask=here)
    tl.store(to + 3 * each, a + b - c - d, mask=here)


def quarter_pixels(images: Tensor, pixel: Tensor, share: Tensor) -> Waves:
    """Add up the pixels that share their waves; see `reference.quarter_pixels`."""
    b, quarter = len(images), len(share)
    parts = torch.empty(4, b, quarter, device=images.device)
    if b:
        _quarter_pixels[(b, ceil_div(quarter, BLOCK))](
            images.contiguous(), pixel, share, parts, b, images[0].numel(), quarter, BLOCK=BLOCK
        )
    return tuple(parts)


@triton.jit(do_not_specialize=["n_half"])
def _half_circle(even, odd, along_x, along_y, samples, n_half, ORDERS: tl.constexpr):
    """One program: a ring of an image."""
    row = tl.program_id(0).to(tl.int64)
    middle = n_half // 2
    for first in range(0, n_half, ORDERS):
        j = first + tl.arange(0, ORDERS)
        here, far = j < n_half, j > middle
        at = row * (middle + 1) + tl.where(far, n_half - j, j)
        e = tl.load(even + at, mask=here, other=0.0)
        o = tl.load(odd + at, mask=here, other=0.0)
        x = tl.load(along_x + at, mask=here, other=0.0)
        y = tl.load(along_y + at, mask=here, other=0.0)
        to = samples + 2 * (row * n_half + j)
        tl.store(to, tl.where(far, e + o, e - o), mask=here)
        tl.store(to + 1, tl.where(far, x - y, -x - y), mask=here)


def half_circle(waves: Waves, rings: int) -> Tensor:
    """Compute samples of the half circle from those up to pi / 2; see `reference.half_circle`."""
    waves = tuple(part.contiguous() for part in waves)
    b, n_half = len(waves[0]), 2 * (waves[0].shape[1] // rings - 1)
    samples = torch.empty(b, rings, n_half, dtype=torch.complex64, device=waves[0].device)
    if b:
        _half_circle[(b * rings,)](*waves, torch.view_as_real(samples), n_half, ORDERS=ORDERS, num_warps=1)
    return samples


@triton.jit(do_not_specialize=["n_rows", "n_half"], do_not_specialize_on_alignment=["samples"])
def _quarter_circle(samples, parts, n_rows, n_half, ORDERS: tl.constexpr):
    """One program: a ring of an image."""
    row = tl.program_id(0).to(tl.int64)
    middle = n_half // 2
    each = tl.cast(n_rows, tl.int64) * (middle + 1)
    for first in range(0, middle + 1, ORDERS):
        j = first + tl.arange(0, ORDERS)
        here, twice = j <= middle, (j > 0) & (j < middle)
        at = samples + 2 * (row * n_half + j)
        beyond = samples + 2 * (row * n_half + n_half - j)  # at pi - phi
        re, im = tl.load(at, mask=here, other=0.0), tl.load(at + 1, mask=here, other=0.0)
        far_re, far_im = tl.load(beyond, mask=twice, other=0.0), tl.load(beyond + 1, mask=twice, other=0.0)
        to = parts + row * (middle + 1) + j
        tl.store(to, re + far_re, mask=here)
        tl.store(to + each, re - far_re, mask=here)
        tl.store(to + 2 * each, im - far_im, mask=here)
        tl.store(to + 3 * each, im + far_im, mask=here)


def quarter_circle(samples: Tensor) -> Waves:
    """Add up samples at the angles phi and pi - phi; see `reference.quarter_circle`."""
    b, rings, n_half = samples.shape
    parts = torch.empty(4, b, rings * (n_half // 2 + 1), device=samples.device)
    if b:
        _quarter_circle[(b * rings,)](_parts(samples), parts, b * rings, n_half, ORDERS=ORDERS, num_warps=1)
    return tuple(parts)


@triton.jit(do_not_specialize=["n_pixels", "n_quarter"])
def _whole_images(even, odd, along_x, along_y, pixel, images, n_pixels, n_quarter, BLOCK: tl.constexpr):
    """Pixels on an axis are written twice, with the same value."""
    row = tl.program_id(0).to(tl.int64)
    q = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = q < n_quarter
    at = row * n_quarter + q
    e = tl.load(even + at, mask=here, other=0.0)
    o = tl.load(odd + at, mask=here, other=0.0)
    x = tl.load(along_x + at, mask=here, other=0.0)
    y = tl.load(along_y + at, mask=here, other=0.0)
    to = images + row * n_pixels
    tl.store(to + tl.load(pixel + q, mask=here, other=0), e - o - x - y, mask=here)
    tl.store(to + tl.load(pixel + n_quarter + q, mask=here, other=0), e + o + x - y, mask=here)
    tl.store(to + tl.load(pixel + 2 * n_quarter + q, mask=here, other=0), e + o - x + y, mask=here)
    tl.store(to + tl.load(pixel + 3 * n_quarter + q, mask=here, other=0), e - o + x + y, mask=here)


def whole_images(waves: Waves, pixel: Tensor, box: int) -> Tensor:
    """Compute images from a quarter of their pixels; see `reference.whole_images`."""
    waves = tuple(part.contiguous() for part in waves)
    b, quarter = waves[0].shape
    images = torch.zeros(b, box, box, device=pixel.device)
    if b:
        _whole_images[(b, ceil_div(quarter, BLOCK))](*waves, pixel, images, box * box, quarter, BLOCK=BLOCK)
    return images
