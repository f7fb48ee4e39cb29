"""References made ready for the pose search: masked, normalised, shifted, and tabulated in polar Fourier space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.ops.newton import half_pairs
from ralib.polar import PolarGrid

GRID_SCORE_LOSS = 0.1
"""How much of a template's score the shift grid may lose between its points; the Newton steps regain it."""

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

    orders    (m,) angular orders the grid search uses: even ones first, then odd ones
    n_radii   radii the grid search uses, from the innermost; there, every `angle_stride`-th angle tells the rest
    step_px   of the shift grid
    reach_px  how far the local quadratic of a score can be trusted
    rings     template shifts (s, 2) of the grid: those allowed at every rotation, then those whose angles need a check
    rows      per ring (m, k * s * mirror * 2, 2 n_radii): left factors of the grid's matrix products
    table     (k * mirror, FINE, 2, K, A + H + 2): templates, then their mirror images, at fine rotations; on a GPU as
              pairs of half precision
    """

    n_references: int
    orders: Tensor
    n_radii: int
    angle_stride: int
    step_px: float
    reach_px: float
    rings: list[Tensor]
    rows: list[Tensor]
    table: Tensor

    @classmethod
    def build(
        cls,
        grid: PolarGrid,
        samples: Tensor,
        shift_range_xy_px: tuple[float, float],
        *,
        shift_step_px: float | None,
        mirror: bool,
        loss: float,
        dtype: torch.dtype,
    ) -> TemplateBank:
        """From polar samples (k, K, H) of the templates; without a step, shifts are as close as the templates need."""
        n_orders, n_radii, natural = _extent(grid, samples, loss)
        step = shift_step_px or min(natural, max(*shift_range_xy_px, 0.5))
        rings = shift_rings(shift_range_xy_px, step, grid.device)
        orders = parity_orders(n_orders, grid.device)
        rows = [_rows(grid, samples[:, :n_radii], shifts, orders, mirror, dtype) for shifts in rings]
        stride = _angle_stride(grid, n_orders, n_radii)
        table = fine_table(grid, samples, mirror, packed=samples.is_cuda)
        return cls(len(samples), orders, n_radii, stride, step, 0.4 * natural, rings, rows, table)


def shift_rings(range_xy_px: tuple[float, float], step_px: float, device: torch.device | str) -> list[Tensor]:
    """Shifts (s, 2) on a square grid that covers the shift range in any rotation, in two rings; see `TemplateBank`."""
    reach = math.hypot(*range_xy_px) + 0.25 * step_px
    n = math.floor(reach / step_px)
    axis = torch.arange(-n, n + 1, device=device) * step_px
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shifts = torch.stack([x.flatten(), y.flatten()], dim=1)
    length = torch.linalg.vector_norm(shifts, dim=1)
    shifts, length = shifts[length <= reach], length[length <= reach]
    free = length <= min(range_xy_px) + 1e-4
    return [s for s in (shifts[free], shifts[~free]) if len(s)]


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


def _extent(grid: PolarGrid, samples: Tensor, loss: float) -> tuple[int, int, float]:
    """Orders and radii that hold all but the fraction `loss` of the templates' power, and the shift step they need."""
    spectrum = grid.angular_spectrum(samples, grid.n_angles // 2)
    power = (spectrum.abs() ** 2 * grid.weight[:, None]).sum(0)
    power = power / power.sum().clamp(min=1e-30)
    kept = 1 - 0.5 * loss
    by_order, by_radius = power.sum(0), power.sum(1)
    mean_square = (by_radius * (2 * math.pi * grid.radius_per_px) ** 2).sum()
    n_orders, n_radii, curvature = torch.stack(
        [(by_order.cumsum(0) < kept).sum() + 1, (by_radius.cumsum(0) < kept).sum() + 1, mean_square]
    ).tolist()
    # Matrix units work on multiples of 8 and 16.
    n_orders = min(16 * math.ceil(n_orders / 16), grid.n_angles // 2)
    n_radii = min(8 * math.ceil(n_radii / 8), grid.n_radii)
    # Half a grid cell away, at (step, step) / 2, a template's own score has fallen by this fraction at most.
    step = math.sqrt(8 * GRID_SCORE_LOSS / max(curvature, 1e-6))
    return n_orders, n_radii, min(max(step, 0.5), grid.box / 45)


def _angle_stride(grid: PolarGrid, n_orders: int, n_radii: int) -> int:
    """2 where the templates' orders cannot meet an alias of the particles' own, 1 elsewhere.

    With every second angle, order m also counts m - A / 2; a particle of radius n / 2 has orders to pi k n.
    """
    highest = math.pi * float(grid.radius_per_px[n_radii - 1]) * grid.box
    return 2 if grid.n_angles % 4 == 0 and n_orders + highest < grid.n_angles / 2 else 1


def _rows(grid: PolarGrid, samples: Tensor, shifts: Tensor, orders: Tensor, mirror: bool, dtype: torch.dtype) -> Tensor:
    """Left factors of the grid's products (m, k * s * mirror * 2, 2 K), with entries of about 1 at most."""
    n_radii = samples.shape[1]
    # Both halves of the circle, and orders +m and -m, count; order 0 stands alone.
    scale = grid.n_angles * grid.weight[:n_radii, None].expand(-1, len(orders)).clone()
    scale[:, 0] *= 0.5
    scale = scale / (samples.abs() * grid.weight[:n_radii, None]).amax().clamp(min=1e-30) / grid.n_angles
    phase = grid.shift_phase(-shifts)[:, :n_radii]
    out = []
    group = max(1, 2**27 // (phase.numel() * 8))
    for part in samples.split(group):
        moved = torch.view_as_real((part[:, None] * phase).flatten(0, 1)).movedim(-1, 0)
        real, imag = angular_orders(grid, moved, orders)
        re, im = ((f * scale[..., None]).permute(1, 2, 0) for f in (real, imag))
        plain = torch.stack([torch.cat([re, im], -1), torch.cat([-im, re], -1)], dim=2)
        flipped = torch.stack([torch.cat([re, -im], -1), torch.cat([im, re], -1)], dim=2)
        out.append(torch.cat([plain, flipped] if mirror else [plain], dim=2).flatten(1, 2).to(dtype))
    return torch.cat(out, dim=1)


def fine_table(grid: PolarGrid, samples: Tensor, mirror: bool, *, packed: bool = False) -> Tensor:
    """Templates, then (if `mirror`) their mirror images, at FINE rotations a sample: (t, FINE, 2, K, A + H + 2).

    Packed: as `half_pairs`, (t, FINE, K, A + H + 2).
    """
    n_orders, half = grid.n_angles // 2, grid.n_angles // 2
    m = torch.arange(n_orders, device=grid.device)
    fraction = torch.arange(FINE, device=grid.device) * (2 * math.pi / (FINE * grid.n_angles))
    turn = torch.polar(torch.ones(FINE, n_orders, device=grid.device), fraction[:, None] * m)
    # A real image: order -m is (-1)^m times the conjugate of order m.
    sign = 1.0 - 2.0 * (m[1:] % 2)
    shape = (grid.n_radii, grid.n_angles + half + 2)
    shape, dtype = (shape, torch.int32) if packed else ((2, *shape), torch.float32)
    table = torch.empty((1 + mirror) * len(samples), FINE, *shape, dtype=dtype, device=grid.device)
    group = max(1, 2**26 // (FINE * grid.n_radii * grid.n_angles * 8))
    for i in range(0, len(samples), group):
        b = grid.angular_spectrum(samples[i : i + group], n_orders)
        for flip in range(1 + mirror):
            spectrum = (b.conj() if flip else b)[:, None] * turn[:, None]
            negative = (spectrum[..., 1:].conj() * sign).flip(-1)
            full = torch.cat([spectrum, torch.zeros_like(spectrum[..., :1]), negative], dim=-1)
            circle = torch.fft.ifft(full, dim=-1, norm="forward")
            wrapped = torch.cat([circle[..., -1:], circle, circle[..., : half + 1]], dim=-1)
            first = flip * len(samples) + i
            planes = torch.view_as_real(wrapped).movedim(-1, 2)
            table[first : first + len(b)] = half_pairs(planes) if packed else planes
    return table
