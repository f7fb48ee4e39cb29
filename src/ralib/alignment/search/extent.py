"""Extent of templates in polar Fourier space, the shift step that follows from it, and the angles of each radius."""

from __future__ import annotations

import functools
import math
from bisect import bisect
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.alignment.search.polar_grid import PolarGrid
from ralib.kernels.references import template_extent

GRID_SCORE_LOSS = 0.1
"""How much of a template's score the shift grid may lose between its points; the Newton steps regain it."""

CLOSE_LOSS = 1e-6
"""The fraction of the templates' power that steps towards a maximum may leave out."""


BLOCK = 8
"""Radii that kernels take at a time."""


@dataclass(frozen=True)
class Extent:
    """Angular orders and radii that templates need, and the shift step by which their score decreases.

    Attributes
    ----------
    n_orders, n_radii : int
        Hold all but the fraction `loss` of their power: for the grid.
    close_orders, close_radii : int
        Hold all but CLOSE_LOSS of it: to approach a maximum.
    step_px : float
        Shifts this far apart lose no more than GRID_SCORE_LOSS of the score, pixels.
    """

    n_orders: int
    n_radii: int
    close_orders: int
    close_radii: int
    step_px: float

    @staticmethod
    def measure(grid: PolarGrid, spectrum: Tensor, loss: float) -> Tensor:
        """Measure the extent of templates, on the device.

        Parameters
        ----------
        grid : PolarGrid
            The polar grid.
        spectrum : Tensor of shape (k, K, A / 2)
            Angular orders of the templates.
        loss : float
            Fraction of the power that the grid search may leave out.

        Returns
        -------
        Tensor of shape (5,)
            The four counts less 1, and the mean square frequency.
        """
        return template_extent(spectrum, grid.weight, grid.radius_rad_per_px, _shares(loss, grid.device))

    @classmethod
    def of(cls, grid: PolarGrid, measured: Tensor) -> Extent:
        """Make the extent from the result of `measure`; synchronises with the device.

        Parameters
        ----------
        grid : PolarGrid
            The polar grid.
        measured : Tensor of shape (5,)
            Result of `measure`.

        Returns
        -------
        Extent
            The extent, rounded to whole units of the matrix hardware.
        """
        *counted, mean_square = measured.tolist()
        n_orders, close_orders, n_radii, close_radii = (1 + int(n) for n in counted)
        # Matrix units work on multiples of 8 and 16.
        n_orders = min(16 * math.ceil(n_orders / 16), grid.n_angles // 2)
        n_radii, close_radii = (min(8 * math.ceil(n / 8), grid.n_radii) for n in (n_radii, close_radii))
        return cls(n_orders, n_radii, close_orders, close_radii, natural_step_px(grid, mean_square))


@functools.lru_cache(maxsize=8)
def _shares(loss: float, device: torch.device) -> Tensor:
    """Half the fraction (2, 1) of the power that the grid, and that the way to a maximum, may leave out."""
    return torch.tensor([[0.5 * loss], [0.5 * CLOSE_LOSS]], dtype=torch.float64, device=device)


def mean_square_frequency(grid: PolarGrid, power: Tensor) -> Tensor:
    """Return the mean square frequency of templates.

    Parameters
    ----------
    grid : PolarGrid
        The polar grid.
    power : Tensor of shape (K,)
        Share of the templates' power at each radius; adds up to 1.

    Returns
    -------
    Tensor
        Radians per pixel, squared.
    """
    return (power * grid.radius_rad_per_px**2).sum()


def natural_step_px(grid: PolarGrid, mean_square: float) -> float:
    """Return the shift step of which half along x and y costs a template at most GRID_SCORE_LOSS of its own score.

    Parameters
    ----------
    grid : PolarGrid
        The polar grid.
    mean_square : float
        Mean square frequency, radians per pixel squared.

    Returns
    -------
    float
        Pixels.
    """
    return min(max(math.sqrt(8 * GRID_SCORE_LOSS / max(mean_square, 1e-6)), 0.5), grid.box / 45)


def grid_step_px(natural_px: float, limit_xy_px: tuple[float, float]) -> float:
    """Return the step of the shift grid.

    In a narrow range the outermost grid points lie on its limits, where many constrained maxima are.

    Parameters
    ----------
    natural_px : float
        Step that the templates need, pixels.
    limit_xy_px : tuple of float
        Largest shift along x and y, pixels.

    Returns
    -------
    float
        Pixels.
    """
    return min(natural_px, max(*limit_xy_px, 0.5))


def angle_stops(grid: PolarGrid, n_orders: int, n_radii: int) -> tuple[int, int, int]:
    """Return the radii up to which every third, every second, and every angle has to be used.

    With every s-th angle, order m also counts order m - A / s. A particle of radius n / 2 has orders up to pi k n, and
    the templates `n_orders`: inside these radii the aliases do not overlap with either.

    Parameters
    ----------
    grid : PolarGrid
        The polar grid.
    n_orders : int
        Angular orders of the templates.
    n_radii : int
        Radii in use.

    Returns
    -------
    tuple of int
        Three stops; see `NewtonRule`.
    """
    highest = [math.pi * k * grid.box + n_orders + 8 for k in grid.radii[:n_radii]]
    third, second = (
        BLOCK * (bisect(highest, grid.n_angles / stride) // BLOCK) if len(grid.angle_rad) % stride == 0 else 0
        for stride in (3, 2)
    )
    return third, max(third, second), n_radii
