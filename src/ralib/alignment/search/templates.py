"""References prepared for the pose search: masked, normalised, shifted, and tabulated in polar Fourier space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ralib.alignment.search.extent import Extent, angle_stops
from ralib.alignment.search.polar_grid import PolarGrid
from ralib.conventions import mirror_x, rotate_xy
from ralib.kernels.pose_search import FineTemplates, PackedTemplates, angular_tables, newton_templates
from ralib.kernels.references import product_rows

AT_ONCE_BYTES = 2**25
"""Shifted templates made at a time, as complex numbers; the work space is several times as much."""


def n_rotations(n_orders: int) -> int:
    """Return the rotations of the grid over half a turn: at least 2.5 angles to the shortest angular wave.

    Parameters
    ----------
    n_orders : int
        Number of angular orders.

    Returns
    -------
    int
        Number of rotations, a multiple of 16.
    """
    return 16 * math.ceil(1.25 * n_orders / 16)


@dataclass(frozen=True)
class PoseGrid:
    """The poses of the search's grid and its tables, which serve while templates need the same grid.

    Attributes
    ----------
    orders : Tensor of shape (m,)
        Angular orders: even ones first, then odd ones.
    n_half : int
        Rotations of the grid over half a turn.
    step_px : float
        Step of the templates' shifts, pixels.
    penalty : Tensor of shape (s * mirror, 2, n_half) or None
        Minus infinity where the particle leaves its shift range; None where it never does.
    pairings : Tensor of shape (s * mirror * 2, 4)
        Shift x and y of the particle, mirror, and sign of psi.
    cosine, sine : Tensor of shape (n_half, m)
        See `ralib.kernels.pose_search.reference.rotational_max`.
    analysis : tuple of Tensor
        From the samples' real, and from their imaginary parts, to real and imaginary parts of even, and of odd, angular
        orders: each (2 m, H); see `angular_orders`.
    phase : Tensor of shape (s, K, H)
        Factor by which a template is shifted, complex64.
    """

    orders: Tensor
    n_half: int
    step_px: float
    penalty: Tensor | None
    pairings: Tensor
    cosine: Tensor
    sine: Tensor
    analysis: tuple[Tensor, Tensor]
    phase: Tensor

    @classmethod
    def create(
        cls,
        grid: PolarGrid,
        n_orders: int,
        step_px: float,
        limit_xy_px: tuple[float, float],
        mirror: bool,
        dtype: torch.dtype,
    ) -> PoseGrid:
        """Make the grid and its tables.

        Parameters
        ----------
        grid : PolarGrid
            The polar grid.
        n_orders : int
            Number of angular orders.
        step_px : float
            Step of the templates' shifts, pixels.
        limit_xy_px : tuple of float
            Largest shift of a particle along x and y, pixels; half a step more is searched.
        mirror : bool
            Whether mirrored poses are searched.
        dtype : torch.dtype
            Type of the products.

        Returns
        -------
        PoseGrid
            The grid.
        """
        orders = parity_orders(n_orders, grid.device)
        n_half = n_rotations(n_orders)
        shifts = grid_shifts(limit_xy_px, step_px, grid.device)
        limit = torch.tensor(limit_xy_px, device=grid.device) + 0.5 * step_px
        # Where the range holds every shift in any rotation, no pose is out of it.
        furthest = max(math.hypot(*xy) for xy in shifts.tolist())
        inside = furthest <= min(limit_xy_px) + 0.5 * step_px
        penalty = None if inside else out_of_range_penalty(shifts, limit, mirror, n_half)
        n_even = (n_orders + 1) // 2
        turn = orders[:, None] * grid.angle_rad.double()
        cosine, sine = (2 / grid.n_angles * f(turn).float() for f in (torch.cos, torch.sin))
        even, odd = (cosine[:n_even], -sine[:n_even]), (sine[n_even:], cosine[n_even:])
        analysis = (torch.stack(even, dim=1).flatten(0, 1), torch.stack(odd, dim=1).flatten(0, 1))
        tables = angular_tables(orders, n_half, dtype=dtype)
        phase = grid.shift_phase(-shifts)
        return cls(orders, n_half, step_px, penalty, _pairings(shifts, mirror), *tables, analysis, phase)

    def angular_orders(self, parts: Tensor, capacity: int) -> Tensor:
        """Compute the angular orders of samples.

        F(k, phi + pi) is the conjugate of F(k, phi), so that with sums over the half circle F_m = (2 / A) sum Re F
        exp(-i m phi) for even m, and (2 i / A) sum Im F exp(-i m phi) for odd m.

        Parameters
        ----------
        parts : Tensor of shape (2, b, K, H)
            Real and imaginary parts of the samples.
        capacity : int
            Size of the last axis of the result, of which the first b columns are filled.

        Returns
        -------
        Tensor of shape (m, 2, K, capacity)
            Real and imaginary parts of the orders.
        """
        _, n, n_radii, _ = parts.shape
        out = parts.new_empty(len(self.orders), 2, n_radii, capacity)
        by_parity = out.split([len(f) // 2 for f in self.analysis])
        for f, part, filled in zip(self.analysis, parts, by_parity, strict=True):
            left = f.to(parts.dtype).expand(n_radii, -1, -1)
            torch.bmm(left, part.permute(1, 2, 0), out=filled.flatten(0, 1).movedim(1, 0)[..., :n])
        return out


def out_of_range_penalty(shifts: Tensor, limit_xy_px: Tensor, mirror: bool, n_half: int) -> Tensor:
    """Return minus infinity where a template shift, rotated back to the particle, leaves the shift range.

    Parameters
    ----------
    shifts : Tensor of shape (s, 2)
        Shifts of the templates in their own frame, pixels.
    limit_xy_px : Tensor of shape (2,)
        Largest shift of a particle, pixels.
    mirror : bool
        Whether mirrored poses are searched.
    n_half : int
        Rotations of the grid over half a turn.

    Returns
    -------
    Tensor of shape (s * mirror, 2, n_half)
        Penalty, 0 or minus infinity.
    """
    psi = (torch.arange(n_half, device=shifts.device) + 0.5) * (180.0 / n_half)
    flips = torch.arange(1 + mirror, device=shifts.device) == 1
    origin = rotate_xy(-torch.stack([psi, -psi]), mirror_x(shifts[:, None], flips)[:, :, None, None])
    return torch.where((origin.abs() <= limit_xy_px).all(-1), 0.0, -math.inf).flatten(0, 1)


def _pairings(shifts: Tensor, mirror: bool) -> Tensor:
    """(s * mirror * 2, 4): shift x and y with the mirror undone, mirror, sign of psi."""
    s, flip, sign = torch.cartesian_prod(
        *(torch.arange(n, device=shifts.device) for n in (len(shifts), 1 + mirror, 2))
    ).T
    return torch.cat([mirror_x(shifts[s], flip == 1), torch.stack([flip, sign], dim=1)], dim=1)


@dataclass(frozen=True)
class TemplateBank:
    """Templates in the two forms that the search needs, each made at its first use.

    By then the particles keep a GPU busy, while the host launches the many small kernels that make a form.

    Attributes
    ----------
    grid : PolarGrid
        The polar grid.
    samples : Tensor of shape (k, K, H)
        Polar samples of the templates.
    spectrum : Tensor of shape (k, K, A / 2)
        Their angular orders.
    mirror : bool
        Whether mirrored poses are searched.
    poses : PoseGrid
        The grid of poses.
    extent : Extent
        Radii and orders in use.
    """

    grid: PolarGrid
    samples: Tensor
    spectrum: Tensor
    mirror: bool
    poses: PoseGrid
    extent: Extent

    @property
    def n_references(self) -> int:
        """Number of references k."""
        return len(self.samples)

    @property
    def n_radii(self) -> int:
        """Radii that the grid search uses, from the innermost."""
        return self.extent.n_radii

    @cached_property
    def rough(self) -> tuple[int, int, int]:
        """Samples that rank poses, as `stops` of a `NewtonRule`."""
        return angle_stops(self.grid, self.extent.n_orders, self.extent.n_radii)

    @cached_property
    def close(self) -> tuple[int, int, int]:
        """Samples with which a pose approaches a maximum."""
        return angle_stops(self.grid, self.extent.close_orders, self.extent.close_radii)

    @cached_property
    def full(self) -> tuple[int, int, int]:
        """Samples that distinguish two maxima."""
        return angle_stops(self.grid, self.extent.close_orders, self.grid.n_radii)

    @cached_property
    def rows(self) -> Tensor:
        """Left factors (m, k * s * mirror * 2, 2 n_radii) of the grid's products."""
        return _rows(self.grid, self.samples[:, : self.n_radii], self.poses, self.mirror)

    @cached_property
    def fine(self) -> FineTemplates | PackedTemplates:
        """Templates, then their mirror images, at fine rotations."""
        return tabulated(self.grid, self.spectrum, self.mirror)


def grid_shifts(limit_xy_px: tuple[float, float], step_px: float, device: torch.device | str) -> Tensor:
    """Return shifts on a square grid that covers the range in any rotation.

    Parameters
    ----------
    limit_xy_px : tuple of float
        Largest shift along x and y, pixels.
    step_px : float
        Step of the grid, pixels.
    device : torch.device or str
        Where the result is.

    Returns
    -------
    Tensor of shape (s, 2)
        Shifts, pixels.
    """
    reach = math.hypot(*limit_xy_px) + 1e-4
    n = math.floor(reach / step_px)
    axis = torch.arange(-n, n + 1, device=device) * step_px
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    shifts = torch.stack([x.flatten(), y.flatten()], dim=1)
    return shifts[torch.linalg.vector_norm(shifts, dim=1) <= reach]


def parity_orders(n_orders: int, device: torch.device) -> Tensor:
    """Return the orders 0, 2, 4, ..., 1, 3, 5, ...

    Even orders are computed from real parts of the half circle, odd ones from imaginary parts.

    Parameters
    ----------
    n_orders : int
        Number of orders.
    device : torch.device
        Where the result is.

    Returns
    -------
    Tensor of shape (n_orders,)
        Orders.
    """
    m = torch.arange(n_orders, device=device)
    return torch.cat([m[0::2], m[1::2]])


def _rows(grid: PolarGrid, samples: Tensor, poses: PoseGrid, mirror: bool) -> Tensor:
    """Left factors of the grid's products (m, k * s * mirror * 2, 2 K), with entries of about 1 at most."""
    n_radii, n_orders, n_shifts = samples.shape[1], len(poses.orders), len(poses.phase)
    phase, weight = poses.phase[:, :n_radii], grid.weight[:n_radii]
    largest = (torch.linalg.vector_norm(torch.view_as_real(samples), dim=-1) * weight[:, None]).amax()
    shape = (n_orders, len(samples) * n_shifts, 2 * (1 + mirror), 2 * n_radii)
    out = torch.empty(shape, dtype=poses.cosine.dtype, device=samples.device)
    group = max(1, AT_ONCE_BYTES // (phase.numel() * 8))
    for i in range(0, len(samples), group):
        part = samples[i : i + group]
        moved = torch.view_as_real((part[:, None] * phase).flatten(0, 1)).movedim(-1, 0)
        orders = poses.angular_orders(moved, moved.shape[1])
        product_rows(orders, weight, largest, out[:, i * n_shifts : (i + len(part)) * n_shifts])
    return out.view(n_orders, -1, 2 * n_radii)


def tabulated(grid: PolarGrid, spectrum: Tensor, mirror: bool) -> FineTemplates | PackedTemplates:
    """Tabulate templates, then (if `mirror`) their mirror images, at fine rotations.

    Parameters
    ----------
    grid : PolarGrid
        The polar grid.
    spectrum : Tensor of shape (k, K, A / 2)
        Angular orders of the templates.
    mirror : bool
        Whether mirror images follow.

    Returns
    -------
    FineTemplates or PackedTemplates
        The table, as the device reads it.
    """
    radius, angle, unit = grid.radius_rad_per_px, grid.angle_rad, 1 / (grid.n_radii * len(grid.angle_rad))
    return newton_templates(spectrum, radius, angle, grid.weight, mirror=mirror, unit=unit)
