"""Templates of the pose search: references rotated, mirrored, and shifted over a grid."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ralib.classification.ring_grid import RingGrid
from ralib.kernels.classes import turned_orders


@functools.lru_cache(maxsize=64)
def disc_of_shifts(radius_px: float, step_px: float, device: torch.device | str) -> Tensor:
    """Return shifts on a square grid within a radius, the nearest first.

    Parameters
    ----------
    radius_px : float
        Radius, pixels.
    step_px : float
        Step of the grid, pixels.
    device : torch.device or str
        Where the result is.

    Returns
    -------
    Tensor of shape (S, 2)
        Shifts, pixels.
    """
    n = math.floor(radius_px / step_px + 1e-6)
    line = torch.arange(-n, n + 1, dtype=torch.float32) * step_px
    grid = torch.cartesian_prod(line, line)
    length = grid.norm(dim=1)
    inside = grid[length <= radius_px + 1e-4]
    return inside[torch.argsort(inside.norm(dim=1), stable=True)].to(device)


def n_rotations(n_orders: int) -> int:
    """Return the number of rotations of the half circle among which the best is sought.

    Parameters
    ----------
    n_orders : int
        Number of angular orders.

    Returns
    -------
    int
        Number of rotations, a multiple of 8.
    """
    return 8 * math.ceil(1.5 * n_orders / 8)


def shifted_orders(grid: RingGrid, references: Tensor, shifts_xy_px: Tensor) -> Tensor:
    """Return the angular orders of all shifts of references, with all weights of the sum over orders.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    references : Tensor of shape (k, r, m)
        Angular orders of the references.
    shifts_xy_px : Tensor of shape (S, 2)
        Shifts, pixels.

    Returns
    -------
    Tensor of shape (k, S, r, m)
        Angular orders.
    """
    k, rings, n_orders = references.shape
    row = _each(k, len(shifts_xy_px), grid.device)
    samples, shifts = grid.samples_of(references), shifts_xy_px.repeat(k, 1)
    orders = grid.moved_orders(samples, shifts, rings, n_orders, row).unflatten(0, (k, -1))
    orders = orders * (2.0 * grid.n_half)
    orders[..., 0].mul_(0.5)
    return orders


@functools.lru_cache(maxsize=64)
def _each(n: int, times: int, device: torch.device) -> Tensor:
    """The numbers 0 to n - 1, each so many times."""
    return torch.arange(n, device=device).repeat_interleave(times)


def mirrored_references(references: Tensor, class_index: Tensor, mirror: Tensor) -> Tensor:
    """Return the reference of each particle, mirrored where the particle is.

    Parameters
    ----------
    references : Tensor of shape (k, r, m)
        Angular orders of the references.
    class_index : Tensor of shape (b,)
        Class of each particle.
    mirror : Tensor of shape (b,)
        True where mirrored.

    Returns
    -------
    Tensor of shape (b, r, m)
        Angular orders.
    """
    reference = references[class_index]
    return torch.where(mirror[:, None, None], reference.conj(), reference)


def turned_samples(grid: RingGrid, references: Tensor, psi_deg: Tensor) -> Tensor:
    """Return the samples of references, each rotated by its particle's psi.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    references : Tensor of shape (b, r, m)
        Angular orders of the references.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.

    Returns
    -------
    Tensor of shape (b, r, H)
        Samples.
    """
    return grid.samples_of(turned_orders(references, psi_deg))
