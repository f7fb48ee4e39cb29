"""Calls by which the kernels of an alignment are compiled before it needs them.

The calls are of zeros, with all that a kernel is compiled for. What depends on the references, which are not known yet,
is as for most: a kernel compiled for other numbers costs no more than the time it took beside everything else.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ralib.alignment.search.polar_grid import KERNEL_WIDTH, PolarGrid
from ralib.alignment.search.templates import n_rotations
from ralib.classes.kernels_ahead import average_calls
from ralib.kernels.pose_search import (
    NewtonRule,
    gather_taps,
    grid_candidates,
    newton,
    newton_templates,
    packed_zeros,
    polar_samples,
    rotational_max,
    shifted_parts,
    shortlist,
)
from ralib.kernels.references import masked_unit_norm, nearest_filter, product_rows, template_extent
from ralib.runtime.compilers import Call

N_ORDERS = 16, 32, 48, 64, 96
"""Angular orders of a grid of poses: for each a kernel has another form."""

FEW, MANY = 64, 8192
"""Particles, and grid poses, of a call."""

FEW_POSES = 200
"""Grid poses of a single reference."""

RADII, ANGLES = 16, 48
"""Of a small grid: most kernels are the same for any."""

GRIDS = (128, 192), (256, 384)
"""Radii and angles of the half circle, up to which the kernel that tells how far templates reach has one form."""

CANDIDATES = (128, 64), (64, 32), (32, 8), (8, 4)
"""Candidates of a particle before and after a selection; as many as after the first two are taken of a grid."""


def usual_calls() -> list[Call]:
    """Return the calls of any alignment, those first that take longest, then the first needed."""
    calls: list[Call] = [*refinement_calls(), _unit_norm, _filter, _transform]
    calls += [partial(_extent, n_radii, n_half) for n_radii, n_half in GRIDS]
    calls += [partial(_rows, True), _table, _parts]
    calls += [partial(_candidates, MANY, few) for _, few in CANDIDATES[:2]] + [partial(_candidates, FEW_POSES, 8)]
    calls += [partial(_maxima, n, MANY // 4, False) for n in N_ORDERS]
    calls += [partial(_selection, many, few) for many, few in CANDIDATES]
    calls += [partial(_maxima, n, FEW, False) for n in N_ORDERS]
    calls += [partial(_maxima, n, pairs, True) for pairs in (FEW, MANY // 4) for n in N_ORDERS]
    return [*calls, partial(_rows, False)]


def refinement_calls() -> list[Call]:
    """Return the calls of the refinement, whose kernel takes longest to compile."""
    return [partial(_newton, n) for n in (8, 1)]


def calls_ahead(grid: PolarGrid) -> list[Call]:
    """Return all calls.

    Parameters
    ----------
    grid : PolarGrid
        The polar grid.

    Returns
    -------
    list of callable
        The calls, each of a device.
    """
    extent = partial(_extent, grid.n_radii, grid.n_angles // 2)
    return [*average_calls(grid.box, rounded=True), *usual_calls(), *([extent] if grid.n_radii > GRIDS[-1][0] else [])]


def _zeros(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def _transform(device: torch.device) -> None:
    n_points, taps = RADII * ANGLES, KERNEL_WIDTH**2
    values = _zeros(device, 1, n_points, dtype=torch.complex64)
    gather_taps(values, _zeros(device, n_points, taps, dtype=torch.int32), _zeros(device, n_points, taps))


def _unit_norm(device: torch.device) -> None:
    masked_unit_norm(_zeros(device, 1, FEW, FEW), _zeros(device, FEW, FEW))


def _filter(device: torch.device) -> None:
    nearest_filter(_zeros(device, 1, FEW), _zeros(device, FEW, FEW))


def _extent(n_radii: int, n_half: int, device: torch.device) -> None:
    spectrum, radius = _zeros(device, 1, n_radii, n_half, dtype=torch.complex64), _zeros(device, n_radii)
    template_extent(spectrum, radius, radius, _zeros(device, 2, 1, dtype=torch.float64))


def _rows(mirror: bool, device: torch.device) -> None:
    rows, radius = _zeros(device, 1, 1, 2 * (1 + mirror), 2 * RADII, dtype=torch.float16), _zeros(device, RADII)
    product_rows(_zeros(device, 1, 2, RADII, 1), radius, radius[0], rows)


def _table(device: torch.device) -> None:
    spectrum, radius = _zeros(device, 1, RADII, ANGLES, dtype=torch.complex64), _zeros(device, RADII)
    newton_templates(spectrum, radius, _zeros(device, ANGLES), radius, mirror=True, unit=1.0)


def _newton(candidates: int, device: torch.device) -> None:
    samples, templates = packed_zeros(RADII, ANGLES, device)
    row, pose = _zeros(device, candidates, 1, dtype=torch.int64), _zeros(device, candidates, 1, 4)
    rule = NewtonRule((8, 8, RADII), (1.0, 1.0), 1.0, 1.0)  # some angles left out, as near the centre of any box
    newton(samples, _zeros(device, 1, 2), row, pose, templates, rule)


def _maxima(n_orders: int, n_pairs: int, penalty: bool, device: torch.device) -> None:
    n_half = n_rotations(n_orders)
    spectra = _zeros(device, n_orders, n_pairs, 2, FEW, dtype=torch.float16)
    table = _zeros(device, n_half, n_orders, dtype=torch.float16)
    rotational_max(spectra, table, table, _zeros(device, 1, 2, n_half) if penalty else None)


def _candidates(many: int, few: int, device: torch.device) -> None:
    value, index = _zeros(device, 1, many, FEW), _zeros(device, 1, many, FEW, dtype=torch.int32)
    grid_candidates(value, index, _zeros(device, FEW, 4), few, n_half=FEW, first=0, n_references=1)


def _parts(device: torch.device) -> None:
    samples = polar_samples(_zeros(device, FEW, RADII, ANGLES, dtype=torch.complex64))
    for shift in (None, _zeros(device, FEW, 2)):
        shifted_parts(samples, shift, _zeros(device, RADII), RADII, torch.float16)


def _selection(many: int, few: int, device: torch.device) -> None:
    row, pose = _zeros(device, many, FEW, dtype=torch.int64), _zeros(device, many, FEW, 4)
    for same in (None, (1.0, 1.0)):
        shortlist(row, pose, few, same)
