"""Triton forms of `fine_templates`: samples and templates packed into the words that the Newton steps read."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div
from ralib.kernels.pose_search.fine_templates import (
    FINE_ROTATIONS,
    MOST_HALF,
    QUARTERS,
    TABLE_BYTES,
    WIDE,
    PackedSamples,
    PackedTemplates,
    filled_radii,
)


@triton.jit
def word_offset(h, k, n_quarter, n_wide):
    """Return where the word of angle h and radius k of a particle is; see `fine_templates`."""
    return ((h % n_quarter * n_wide + k // 8) * 4 + h // n_quarter) * 8 + k % 8


@triton.jit(do_not_specialize=["n_radii", "n_quarter", "n_wide"])
def _packed_samples(
    samples, words, scale, n_radii, n_quarter, n_wide, most, K_BLOCK: tl.constexpr, H_BLOCK: tl.constexpr
):
    """One program: one particle, read twice: for its root mean square, and to be packed."""
    particle = tl.program_id(0).to(tl.int64)
    n_half = 4 * n_quarter
    n_points = n_radii * n_half
    mine, to = samples + particle * n_points, words + particle * (n_wide * 8) * n_half
    p = tl.arange(0, K_BLOCK * H_BLOCK)
    total = tl.zeros((K_BLOCK * H_BLOCK,), tl.float32)
    for i in range(0, n_points, K_BLOCK * H_BLOCK):
        real, imag = _parts(tl.load(mine + i + p, mask=i + p < n_points, other=0))
        total += real * real + imag * imag
    rms = tl.maximum(tl.sqrt(tl.sum(total, axis=0) / n_points), 1e-30)
    tl.store(scale + particle, rms)
    for i in range(0, n_wide * 8, K_BLOCK):
        for j in range(0, n_half, H_BLOCK):
            k, h = i + tl.arange(0, K_BLOCK)[:, None], j + tl.arange(0, H_BLOCK)[None, :]
            real, imag = _parts(tl.load(mine + k * n_half + h, mask=(k < n_radii) & (h < n_half), other=0))
            real, imag = _half_bits(real / rms, most), _half_bits(imag / rms, most)
            word = tl.trans((real & 0xFFFF) | (imag << 16))
            k, h = i + tl.arange(0, K_BLOCK)[None, :], j + tl.arange(0, H_BLOCK)[:, None]
            tl.store(to + word_offset(h, k, n_quarter, n_wide), word, mask=(k < n_wide * 8) & (h < n_half))


@triton.jit
def _parts(sample):
    """Real and imaginary part of samples, each read as one 64-bit word."""
    return sample.to(tl.int32).to(tl.float32, bitcast=True), (sample >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _half_bits(value, most):
    """The bits of values in half precision, held within its range."""
    held = tl.minimum(tl.maximum(value, -most), most)
    return held.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)


def packed_samples(samples: Tensor) -> PackedSamples:
    """Pack the samples (b, K, H), complex64, of particles; see `fine_templates.packed_samples`."""
    n_particles, n_radii, n_half = samples.shape
    shape = n_particles, n_half // QUARTERS, ceil_div(n_radii, WIDE), QUARTERS, WIDE
    words = torch.empty(shape, dtype=torch.int32, device=samples.device)
    scale = torch.empty(n_particles, dtype=torch.float32, device=samples.device)
    _packed_samples[(n_particles,)](
        samples.contiguous().view(torch.int64), words, scale, n_radii, *shape[1:3], MOST_HALF, K_BLOCK=32, H_BLOCK=32
    )
    return PackedSamples(words, scale)


@triton.jit(
    do_not_specialize=[
        "first", "n_templates", "n_radii", "n_orders", "n_half", "unit", "turn", "stride_t", "stride_k", "stride_m",
    ]
)  # fmt: skip
def _circle_orders(
    spectrum, weight, out, first, n_templates, n_radii, n_orders, n_half, unit, turn,
    stride_t, stride_k, stride_m, ORDERS: tl.constexpr,
):  # fmt: skip
    """One program: all angular orders of one template at one radius, turned by one fraction of an angle.

    Templates beyond the last are mirror images. A real image: order -m is (-1)^m times the conjugate of order m.
    """
    t, f, k = tl.program_id(0) + first, tl.program_id(1), tl.program_id(2)
    template = (t % n_templates).to(tl.int64)
    start = spectrum + template * stride_t + k * stride_k
    factor = tl.load(weight + k) / unit
    flipped = tl.where(t < n_templates, 1.0, -1.0)
    to = out + 2 * ((tl.program_id(0).to(tl.int64) * tl.num_programs(1) + f) * n_radii + k) * 2 * n_half
    for i in range(0, 2 * n_half, ORDERS):
        a = i + tl.arange(0, ORDERS)
        m = tl.where(a <= n_half, a, 2 * n_half - a)
        known = (a < 2 * n_half) & (m < n_orders) & (m < n_half)
        real = factor * tl.load(start + m * stride_m, mask=known, other=0.0)
        imag = flipped * factor * tl.load(start + m * stride_m + 1, mask=known, other=0.0)
        angle = f * turn * m
        co, si = tl.cos(angle), tl.sin(angle)
        sign = tl.where((a > n_half) & (m % 2 == 1), -1.0, 1.0)
        turned = real * si + imag * co
        tl.store(to + 2 * a, sign * (real * co - imag * si), mask=a < 2 * n_half)
        tl.store(to + 2 * a + 1, tl.where(a > n_half, -sign * turned, turned), mask=a < 2 * n_half)


@triton.jit(do_not_specialize=["n_radii", "n_quarter", "n_wide", "n_words"])
def _packed_circles(circles, words, n_radii, n_quarter, n_wide, n_words, most, P_BLOCK: tl.constexpr):
    """One program: the words of one circle of templates, for eight radii in one of the 13 quarters.

    Column c has the angle c - 1. After the last row of a quarter come the first two of the next one.
    """
    circle, w, q = tl.program_id(0).to(tl.int64), tl.program_id(1) // 13, tl.program_id(1) % 13
    n_angles = 8 * n_quarter
    u = tl.arange(0, 8)[None, :]
    k = w * 8 + u
    for i in range(0, n_quarter + 2, P_BLOCK):
        p = i + tl.arange(0, P_BLOCK)[:, None]
        c = q * n_quarter + p
        # The last quarter has no next one.
        known = (p < n_quarter + (q < 12) * 2) & (c < 12 * n_quarter + 2) & (k < n_radii)
        at = circles + 2 * ((circle * n_radii + k) * n_angles + (c + n_angles - 1) % n_angles)
        real = _half_bits(tl.load(at, mask=known, other=0.0), most)
        imag = _half_bits(tl.load(at + 1, mask=known, other=0.0), most)
        to = words + circle * n_words + ((p * n_wide + w) * 13 + q) * 8 + u
        tl.store(to, (real & 0xFFFF) | (imag << 16), mask=p < n_quarter + 2)


def packed_templates(
    spectrum: Tensor, radius: Tensor, angle: Tensor, weight: Tensor, *, mirror: bool, unit: float
) -> PackedTemplates:
    """Tabulate templates at fine rotations; see `fine_templates.fine_templates`."""
    k, n_radii, n_orders = spectrum.shape
    n_half, filled = len(angle), filled_radii(radius)
    n_quarter, n_wide, n_templates = n_half // QUARTERS, len(filled) // WIDE, (1 + mirror) * k
    shape = n_templates, FINE_ROTATIONS, n_quarter + 2, n_wide, 3 * QUARTERS + 1, WIDE
    words = torch.empty(shape, dtype=torch.int32, device=spectrum.device)
    parts = torch.view_as_real(spectrum)
    turn = math.pi / (FINE_ROTATIONS * n_half)
    group = max(1, TABLE_BYTES // (FINE_ROTATIONS * n_radii * 2 * n_half * 8))
    for first in range(0, n_templates, group):
        some = words[first : first + group]
        orders = torch.empty(len(some), FINE_ROTATIONS, n_radii, 2 * n_half, 2, device=spectrum.device)
        _circle_orders[(len(some), FINE_ROTATIONS, n_radii)](
            parts, weight, orders, first, k, n_radii, n_orders, n_half, float(unit), turn, *parts.stride()[:3],
            ORDERS=256,
        )  # fmt: skip
        circles = torch.view_as_real(torch.fft.ifft(torch.view_as_complex(orders), dim=-1, norm="forward"))
        _packed_circles[(len(some) * FINE_ROTATIONS, n_wide * shape[4])](
            circles, some, n_radii, n_quarter, n_wide, math.prod(shape[2:]), MOST_HALF, P_BLOCK=32
        )
    return PackedTemplates(words, filled, unit)
