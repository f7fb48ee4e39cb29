"""References made ready for the pose search: masked, normalised, shifted, and tabulated in polar Fourier space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.polar import PolarGrid

FINE = 4
"""Fine rotations per angular sample of the polar grid, where templates are tabulated for the Newton steps."""


def ring_mask(
    box: int, inner_radius: float, outer_radius: float, *, device: torch.device | str = "cpu", soft_px: float = 3.0
) -> Tensor:
    """A disc (n, n) of `outer_radius` with a cosine edge of `soft_px` inside it, and a hole of `inner_radius`."""
    axis = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    r = torch.hypot(axis[:, None], axis[None, :])
    mask = 0.5 + 0.5 * torch.cos(math.pi * ((r - outer_radius + soft_px) / soft_px).clamp(0, 1))
    if inner_radius > 1:
        mask = mask * (r >= inner_radius)
    return mask


def masked_unit_norm(references: Tensor, mask: Tensor) -> Tensor:
    """References (k, n, n) with mean 0 under the mask, masked, and scaled to unit norm; a flat one becomes zero."""
    mean = (references * mask).sum((1, 2), keepdim=True) / mask.sum()
    masked = (references - mean) * mask
    norm = torch.linalg.vector_norm(masked, dim=(1, 2), keepdim=True)
    return masked / norm.clamp(min=1e-20)


@dataclass(frozen=True)
class TemplateBank:
    """Templates in the two forms the search needs.

    spectra   (k, K, H) complex64 polar Fourier samples
    orders    (m,) angular orders the grid search uses: even ones first, then odd ones
    n_radii   radii the grid search uses, from the innermost
    rows      per shift ring (m, k * shifts * mirror * 2, 2 n_radii): left factors of the grid's matrix products
    table     (k * mirror, FINE, K, A + H) complex64: templates, then their mirror images, at fine rotations
    """

    n_references: int
    orders: Tensor
    n_radii: int
    rows: list[Tensor]
    table: Tensor

    @classmethod
    def build(
        cls, grid: PolarGrid, samples: Tensor, rings: list[Tensor], *, mirror: bool, loss: float, dtype: torch.dtype
    ) -> TemplateBank:
        """From polar samples (k, K, H) of the templates and their shifts (s, 2), ring by ring."""
        n_orders, n_radii = _extent(grid, samples, loss)
        orders = parity_orders(n_orders, grid.device)
        rows = [_rows(grid, samples, shifts, orders, n_radii, mirror).to(dtype) for shifts in rings]
        return cls(len(samples), orders, n_radii, rows, fine_table(grid, samples, mirror))


def parity_orders(n_orders: int, device: torch.device) -> Tensor:
    """0, 2, 4, ..., 1, 3, 5, ...: even orders come from real parts of the half circle, odd from imaginary parts."""
    m = torch.arange(n_orders, device=device)
    return torch.cat([m[0::2], m[1::2]])


def angular_orders(grid: PolarGrid, parts: Tensor, orders: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary parts, each (K, m, b), of the angular orders of samples given as parts (2, b, K, H).

    F(k, phi + pi) is the conjugate of F(k, phi), so that with sums over the half circle
    F_m = (2 / A) sum Re F exp(-i m phi) for even m, and (2 i / A) sum Im F exp(-i m phi) for odd m.
    """
    n_even = (len(orders) + 1) // 2
    turn = orders[:, None] * grid.angle_rad.double()
    cosine, sine = (2 / grid.n_angles * f(turn) for f in (torch.cos, torch.sin))
    of_real = torch.cat([cosine[:n_even], -sine[:n_even]]).to(parts.dtype)
    of_imag = torch.cat([sine[n_even:], cosine[n_even:]]).to(parts.dtype)
    even = torch.matmul(of_real, parts[0].permute(1, 2, 0))
    odd = torch.matmul(of_imag, parts[1].permute(1, 2, 0))
    n_odd = len(orders) - n_even
    real = torch.cat([even[:, :n_even], odd[:, :n_odd]], dim=1)
    imag = torch.cat([even[:, n_even:], odd[:, n_odd:]], dim=1)
    return real, imag


def _extent(grid: PolarGrid, samples: Tensor, loss: float) -> tuple[int, int]:
    """How many orders, and up to which radius, hold all but the fraction `loss` of the templates' power."""
    spectrum = grid.angular_spectrum(samples, grid.n_angles // 2)
    power = (spectrum.abs() ** 2 * grid.weight[:, None]).sum(0)
    power = power / power.sum().clamp(min=1e-30)
    kept = 1 - 0.5 * loss
    n_orders = int((power.sum(0).cumsum(0) < kept).sum()) + 1
    n_radii = int((power.sum(1).cumsum(0) < kept).sum()) + 1
    # Matrix units work on multiples of 8 and 16.
    n_orders = min(16 * math.ceil(n_orders / 16), grid.n_angles // 2)
    return n_orders, min(8 * math.ceil(n_radii / 8), grid.n_radii)


def _rows(grid: PolarGrid, samples: Tensor, shifts: Tensor, orders: Tensor, n_radii: int, mirror: bool) -> Tensor:
    """Left factors of the grid's products, scaled so that the largest is 1 in size."""
    # Both halves of the circle, and orders +m and -m, count; order 0 stands alone.
    scale = grid.n_angles * grid.weight[:n_radii, None].expand(-1, len(orders)).clone()
    scale[:, 0] *= 0.5
    inner = samples[:, :n_radii]
    phase = grid.shift_phase(-shifts)[:, :n_radii]
    out = []
    for reference in inner:
        moved = reference * phase
        real, imag = angular_orders(grid, torch.stack([moved.real, moved.imag]), orders)
        re, im = ((f * scale[..., None]).permute(1, 2, 0) for f in (real, imag))
        pair = torch.stack([torch.cat([re, im], -1), torch.cat([-im, re], -1)], dim=2)
        if mirror:
            flipped = torch.stack([torch.cat([re, -im], -1), torch.cat([im, re], -1)], dim=2)
            out.append(torch.stack([pair, flipped], dim=2))
        else:
            out.append(pair[:, :, None])
    rows = torch.stack(out, dim=1)
    return (rows / rows.abs().amax().clamp(min=1e-30)).flatten(1, 4).contiguous()


def fine_table(grid: PolarGrid, samples: Tensor, mirror: bool) -> Tensor:
    """Templates, then (if `mirror`) their mirror images, at FINE rotations a sample: (t, FINE, K, A + H)."""
    n_orders = grid.n_angles // 2
    b = grid.angular_spectrum(samples, n_orders)
    both = torch.cat([b, b.conj()]) if mirror else b
    m = torch.arange(n_orders, device=grid.device)
    fraction = torch.arange(FINE, device=grid.device) * (2 * math.pi / (FINE * grid.n_angles))
    turn = torch.polar(torch.ones(FINE, n_orders, device=grid.device), fraction[:, None] * m)
    # A real image: order -m is (-1)^m times the conjugate of order m.
    sign = 1.0 - 2.0 * (m[1:] % 2)
    table = []
    for reference in both:
        spectrum = reference[None] * turn[:, None]
        negative = (spectrum[..., 1:].conj() * sign).flip(-1)
        full = torch.cat([spectrum, torch.zeros_like(spectrum[..., :1]), negative], dim=-1)
        circle = torch.fft.ifft(full, dim=-1, norm="forward")
        table.append(torch.cat([circle, circle[..., : grid.n_angles // 2]], dim=-1))
    return torch.stack(table)
