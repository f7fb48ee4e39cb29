"""Triton forms of the functions of `reference`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div, next_power_of_2

__all__ = ["masked_unit_norm", "nearest_filter", "product_rows", "template_extent"]


@triton.jit(do_not_specialize=["n_pixels"])
def _masked_unit_norm(references, mask, out, n_pixels, PIXELS: tl.constexpr):
    """One program: one reference, read three times."""
    start = tl.program_id(0).to(tl.int64) * n_pixels
    p = tl.arange(0, PIXELS)
    total = tl.zeros((PIXELS,), tl.float32)
    area = tl.zeros((PIXELS,), tl.float32)
    for i in range(0, n_pixels, PIXELS):
        m = tl.load(mask + i + p, mask=i + p < n_pixels, other=0.0)
        total += m * tl.load(references + start + i + p, mask=i + p < n_pixels, other=0.0)
        area += m
    mean = tl.sum(total, axis=0) / tl.sum(area, axis=0)
    power = tl.zeros((PIXELS,), tl.float32)
    for i in range(0, n_pixels, PIXELS):
        m = tl.load(mask + i + p, mask=i + p < n_pixels, other=0.0)
        value = (tl.load(references + start + i + p, mask=i + p < n_pixels, other=0.0) - mean) * m
        power += value * value
    norm = tl.maximum(tl.sqrt(tl.sum(power, axis=0)), 1e-20)
    for i in range(0, n_pixels, PIXELS):
        m = tl.load(mask + i + p, mask=i + p < n_pixels, other=0.0)
        value = (tl.load(references + start + i + p, mask=i + p < n_pixels, other=0.0) - mean) * m
        tl.store(out + start + i + p, value / norm, mask=i + p < n_pixels)


def masked_unit_norm(references: Tensor, mask: Tensor) -> Tensor:
    """Make templates of references; see `reference.masked_unit_norm`."""
    references = references.contiguous()
    out = torch.empty_like(references)
    _masked_unit_norm[(len(references),)](references, mask.contiguous(), out, mask.numel(), PIXELS=4096, num_warps=8)
    return out


@triton.jit(do_not_specialize=["n_rings", "n_filters"])
def _nearest_filter(curve, filters, best, n_rings, n_filters, RINGS: tl.constexpr, FILTERS: tl.constexpr):
    """One program: one curve, and all filters."""
    k = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, RINGS)
    value = tl.load(curve + k * n_rings + r, mask=r < n_rings, other=0.0)
    fallen = tl.min(tl.where((value >= 0.1) | (r == 0), RINGS, r), axis=0)
    target = tl.where(r == 0, 1.0, tl.where(r < fallen, tl.minimum(value, 1.0), 0.0))
    nearest, at = tl.min(tl.full((RINGS,), float("inf"), tl.float32), axis=0), tl.min(r, axis=0)
    for i in range(0, n_filters, FILTERS):
        f = i + tl.arange(0, FILTERS)
        here = (f < n_filters)[:, None] & (r < n_rings)[None, :]
        off = tl.load(filters + f[:, None] * n_rings + r[None, :], mask=here, other=0.0) - target[None, :]
        distance = tl.where(f < n_filters, tl.sum(off * off, axis=1), float("inf"))
        least = tl.min(distance, axis=0)
        at = tl.where(least < nearest, tl.min(tl.where(distance == least, f, n_filters), axis=0), at)
        nearest = tl.minimum(nearest, least)
    tl.store(best + k, at.to(tl.int64))


def nearest_filter(curve: Tensor, filters: Tensor) -> Tensor:
    """Find the filter nearest to each FRC curve; see `reference.nearest_filter`."""
    k, n_rings = curve.shape
    best = torch.empty(k, dtype=torch.int64, device=curve.device)
    _nearest_filter[(k,)](
        curve.float().contiguous(), filters.float().contiguous(), best, n_rings, len(filters),
        RINGS=max(128, next_power_of_2(n_rings)), FILTERS=16,
    )  # fmt: skip
    return best


@triton.jit(do_not_specialize=["k", "n_radii", "n_orders", "stride_t", "stride_r"])
def _power(spectrum, weight, power, k, n_radii, n_orders, stride_t, stride_r, TEMPLATES: tl.constexpr, M: tl.constexpr):
    """One program: the power of some angular orders at one radius, summed over the templates."""
    r = tl.program_id(0)
    m = tl.program_id(1) * M + tl.arange(0, M)
    total = tl.zeros((TEMPLATES, M), tl.float64)
    for i in range(0, k, TEMPLATES):
        t = i + tl.arange(0, TEMPLATES)
        here = (t < k)[:, None] & (m < n_orders)[None, :]
        at = spectrum + t.to(tl.int64)[:, None] * stride_t + r * stride_r + 2 * m[None, :]
        real, imag = tl.load(at, mask=here, other=0.0), tl.load(at + 1, mask=here, other=0.0)
        total += (real * real + imag * imag).to(tl.float64)
    total *= tl.load(weight + r).to(tl.float64)
    tl.store(power + r * n_orders + m, tl.sum(total, axis=0), mask=m < n_orders)


@triton.jit(do_not_specialize=["n_radii", "n_orders"])
def _extent(power, radius, share, out, n_radii, n_orders, RADII: tl.constexpr, K: tl.constexpr, M: tl.constexpr):
    """One program: sums over radii and over orders, and how many of either hold all but the shares."""
    k, m = tl.arange(0, K), tl.arange(0, M)
    by_order, by_radius = tl.zeros((M,), tl.float64), tl.zeros((K,), tl.float64)
    for i in range(0, n_radii, RADII):
        r = i + tl.arange(0, RADII)
        here = (r < n_radii)[:, None] & (m < n_orders)[None, :]
        part = tl.load(power + r[:, None] * n_orders + m[None, :], mask=here, other=0.0)
        by_order += tl.sum(part, axis=0)
        of_radius = tl.sum(part, axis=1)
        by_radius += tl.sum(tl.where(r[:, None] == k[None, :], of_radius[:, None], 0.0), axis=0)
    total = tl.maximum(tl.sum(by_order, axis=0), 1e-30)
    by_order, by_radius = by_order / total, by_radius / total
    rest_of_orders, rest_of_radii = 1.0 - tl.cumsum(by_order, axis=0), 1.0 - tl.cumsum(by_radius, axis=0)
    for j in range(2):
        least = tl.load(share + j)
        orders = (rest_of_orders > least) & (m < n_orders)
        radii = (rest_of_radii > least) & (k < n_radii)
        tl.store(out + j, tl.sum(orders.to(tl.float64), axis=0))
        tl.store(out + 2 + j, tl.sum(radii.to(tl.float64), axis=0))
    frequency = tl.load(radius + k, mask=k < n_radii, other=0.0).to(tl.float64)
    tl.store(out + 4, tl.sum(by_radius * frequency * frequency, axis=0))


def template_extent(spectrum: Tensor, weight: Tensor, radius: Tensor, share: Tensor) -> Tensor:
    """Measure how far templates reach; see `reference.template_extent`."""
    k, n_radii, n_orders = spectrum.shape
    spectrum = torch.view_as_real(spectrum)
    if spectrum.stride(2) != 2:
        spectrum = spectrum.contiguous()
    power = torch.empty(n_radii, n_orders, dtype=torch.float64, device=spectrum.device)
    out = torch.empty(5, dtype=torch.float64, device=spectrum.device)
    _power[(n_radii, ceil_div(n_orders, 64))](
        spectrum, weight, power, k, n_radii, n_orders, *spectrum.stride()[:2], TEMPLATES=16, M=64
    )
    sizes = {"K": max(128, next_power_of_2(n_radii)), "M": max(256, next_power_of_2(n_orders))}
    _extent[(1,)](power, radius, share, out, n_radii, n_orders, RADII=8, **sizes)
    return out


@triton.jit(
    do_not_specialize=["n_radii", "n_columns", "stride_m", "stride_part", "stride_out"],
    do_not_specialize_on_alignment=["out"],
)
def _product_rows(
    orders, weight, largest, out, n_radii, n_columns, stride_m, stride_part, stride_out,
    MIRROR: tl.constexpr, RADII: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program: some columns at some radii of one order."""
    m = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    r = tl.program_id(2) * RADII + tl.arange(0, RADII)
    scale = tl.load(weight + r, mask=r < n_radii, other=0.0) / tl.maximum(tl.load(largest), 1e-30)
    scale = tl.where(m == 0, 0.5 * scale, scale)
    here = (r < n_radii)[:, None] & (c < n_columns)[None, :]
    at = orders + m * stride_m + r[:, None] * n_columns + c[None, :]
    kind = out.dtype.element_ty
    re = tl.trans(scale[:, None] * tl.load(at, mask=here, other=0.0)).to(kind)
    im = tl.trans(scale[:, None] * tl.load(at + stride_part, mask=here, other=0.0)).to(kind)
    inside = (c < n_columns)[:, None] & (r < n_radii)[None, :]
    rows: tl.constexpr = 8 if MIRROR else 4
    to = out + m * stride_out + c.to(tl.int64)[:, None] * rows * n_radii + r[None, :]
    tl.store(to, re, mask=inside)
    tl.store(to + n_radii, im, mask=inside)
    tl.store(to + 2 * n_radii, -im, mask=inside)
    tl.store(to + 3 * n_radii, re, mask=inside)
    if MIRROR:
        tl.store(to + 4 * n_radii, re, mask=inside)
        tl.store(to + 5 * n_radii, -im, mask=inside)
        tl.store(to + 6 * n_radii, im, mask=inside)
        tl.store(to + 7 * n_radii, re, mask=inside)


def product_rows(orders: Tensor, weight: Tensor, largest: Tensor, out: Tensor) -> None:
    """Write the left factors of the grid's products; see `reference.product_rows`."""
    m, _, n_radii, n_columns = orders.shape
    assert orders.is_contiguous()
    assert out[0].is_contiguous()
    _product_rows[(m, ceil_div(n_columns, 32), ceil_div(n_radii, 32))](
        orders, weight, largest, out, n_radii, n_columns, orders.stride(0), orders.stride(1), out.stride(0),
        MIRROR=out.shape[2] == 4, RADII=32, COLUMNS=32,
    )  # fmt: skip
