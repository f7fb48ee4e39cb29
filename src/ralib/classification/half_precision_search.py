"""The search over classes and poses in half precision, which ranks them on a GPU.

Products of half precision have errors of some 1e-4 of a cross term: enough to name the best pose of a class on the
grid, whose cross term `pose_refinement` then computes in single precision. Of classes that fit nearly as well they
mistake the order: where only some are refined, single precision tells which is the last of them.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ralib.classification.likelihood import ClassPoses, Spectra
from ralib.classification.ring_grid import RingGrid
from ralib.classification.templates import n_rotations, shifted_orders
from ralib.kernels.averages import ring_power
from ralib.kernels.classes import PoseGrid, best_in_classes, half_columns, half_rows
from ralib.kernels.pose_search import angular_tables
from ralib.runtime.chunks import row_chunks

CROSS_BYTES, ROWS_BYTES, COLUMNS_BYTES = 2**29, 2**27, 2**29
"""In half precision: of the cross spectra and the shifted templates of the classes scored at once, and of particles."""

ALIGNED = 8
"""The length of a product's sums is a multiple of this: others take the library's slow kernels (twice the time)."""

OWN_AT_ONCE, OWN_BYTES = 64, 2**28
"""Particles of one class that `places_in_own_class` compares at once, and bytes of the cross spectra of such groups."""


def ranks_in_half(device: torch.device) -> bool:
    """Return whether the search is in half precision."""
    return device.type == "cuda"


def scored_in_half(
    grid: RingGrid,
    spectra: Spectra,
    origin_xy_px: Tensor,
    references: Tensor,
    shifts_xy_px: Tensor,
    favour: Tensor | None,
    mirror: bool,
    memory_bytes: float,
    at_once: int,
) -> ClassPoses:
    """Find the best pose of every particle in every class in half precision.

    Particles are transformed once, for all groups of classes.

    Parameters
    ----------
    grid, spectra, origin_xy_px, references, shifts_xy_px, favour, mirror, memory_bytes
        See `ralib.classification.e_step.score_classes`.
    at_once : int
        Particles of a chunk.

    Returns
    -------
    ClassPoses
        Poses, fields (b, k).
    """
    k, rings, n_orders = references.shape
    poses = PoseGrid(*half_tables(n_orders, grid.device), shifts_xy_px, mirror)
    cuts, power = row_chunks(len(spectra), at_once, grid.device), ring_power(references)
    on_rings = grid.rings(rings)
    total = len(cuts) * at_once
    value, psi, norm = (torch.empty(total, k, device=grid.device) for _ in range(3))
    found = value, psi, torch.empty(total, k, 2, device=grid.device), value.new_empty(total, k, dtype=torch.bool)
    # How many there are at a time depends on what memory is free only where that is little.
    each = 4.0 * n_orders * poses.n_pairs
    classes = max(1, int(min(ROWS_BYTES, memory_bytes / 8) / (2 * each * rings)))
    fewer = max(1, int(min(CROSS_BYTES, memory_bytes / 4) / (each * at_once)))
    chunks = max(1, int(min(COLUMNS_BYTES, memory_bytes / 4) / (4.0 * rings * n_orders * at_once)))
    for start in range(0, len(cuts), chunks):
        given: list[tuple[Tensor, Tensor, Tensor, list[Tensor]]] = []
        for cut in cuts[start : start + chunks]:
            rows = slice(at_once * (start + len(given)), at_once * (start + len(given) + 1))
            origin = origin_xy_px[cut].contiguous()
            columns, strength = half_columns(spectra.data[cut], origin, on_rings, n_orders, ALIGNED)
            norm[rows] = spectra.norm(cut, power)
            given.append((columns, strength, origin, [f[rows] for f in found]))
        for first in range(0, k, classes):
            orders = shifted_orders(grid, references[first : first + classes], shifts_xy_px)
            templates, height = half_rows(orders, mirror, ALIGNED)
            for begin in range(0, len(height), fewer):
                some = slice(begin, min(begin + fewer, len(height)))
                part = templates[:, 2 * poses.n_pairs * some.start : 2 * poses.n_pairs * some.stop]
                for columns, strength, origin, into in given:
                    cross = torch.bmm(part, columns)
                    out = tuple(f[:, first + some.start : first + some.stop] for f in into)
                    best_in_classes(cross, height[some], strength, origin, poses, out, favour)
    cross, psi, origin, flipped = (f[: len(spectra)] for f in found)
    return ClassPoses(cross, norm[: len(spectra)], psi, origin, flipped)


def places_in_own_class(
    grid: RingGrid,
    spectra: Spectra,
    class_index: Tensor,
    references: Tensor,
    shifts_xy_px: Tensor,
    *,
    mirror: bool,
    memory_bytes: float,
    at_once: int,
) -> Tensor:
    """Find where particles fit their own class best, among all rotations, mirrors and shifts from the box centre.

    Particles are taken in groups of OWN_AT_ONCE of one class, many groups in one product of half precision.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Spectra of b particles.
    class_index : Tensor of shape (b,)
        Their classes.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages.
    shifts_xy_px : Tensor of shape (S, 2)
        Shifts searched.
    mirror : bool
        Whether mirrored poses are searched.
    memory_bytes : float
        Memory it may take beside the particles.
    at_once : int
        Particles that are transformed at once.

    Returns
    -------
    Tensor of shape (b, 2)
        Origin shifts, working pixels.
    """
    n, n_orders = len(spectra), references.shape[2]
    poses = PoseGrid(*half_tables(n_orders, grid.device), shifts_xy_px, mirror)
    still, place = torch.zeros(at_once, 2, device=grid.device), torch.zeros(n, 2, device=grid.device)
    if n == 0:
        return place
    given = still, grid.rings(references.shape[1]), n_orders, ALIGNED
    parts = [half_columns(spectra.data[cut], *given) for cut in row_chunks(n, at_once, grid.device)]
    columns, strength = torch.cat([p[0] for p in parts], dim=2), torch.cat([p[1] for p in parts])
    row, of = _groups_of_own(class_index, len(references))
    each, rings = 4.0 * n_orders * poses.n_pairs, references.shape[1]
    many = max(1, int(min(OWN_BYTES / OWN_AT_ONCE, memory_bytes / 8 / (2 * rings)) / each))
    for first in range(0, len(of), many):
        # The last product has the size of all others.
        some = torch.arange(first, first + many, device=grid.device).clamp_max(len(of) - 1)
        classes, back = of[some].unique(return_inverse=True)
        templates, height = half_rows(shifted_orders(grid, references[classes], shifts_xy_px), mirror, ALIGNED)
        rows = templates.unflatten(1, (len(classes), -1))[:, back].flatten(0, 1)
        own = columns[:, :, row[some]].permute(0, 2, 1, 3).flatten(0, 1)
        cross = torch.bmm(rows, own).view(n_orders, -1, OWN_AT_ONCE)
        value = torch.empty(many * OWN_AT_ONCE, 1, device=grid.device)
        origin = value.new_zeros(len(value), 1, 2)
        out = value, torch.empty_like(value), origin, torch.empty_like(value, dtype=torch.bool)
        best_in_classes(cross, height[back], strength[row[some]], origin[:, 0].clone(), poses, out)
        place[row[some].flatten()] = origin[:, 0]
    return place


def _groups_of_own(class_index: Tensor, n_classes: int) -> tuple[Tensor, Tensor]:
    """Groups (g, OWN_AT_ONCE) of particles of one class, the last of a class repeated, and the classes (g,)."""
    order = torch.argsort(class_index, stable=True)
    members = torch.bincount(class_index, minlength=n_classes)
    groups = (members + OWN_AT_ONCE - 1) // OWN_AT_ONCE
    of = torch.repeat_interleave(torch.arange(n_classes, device=order.device), groups)
    number = torch.arange(len(of), device=order.device) - (groups.cumsum(0) - groups)[of]
    within = number[:, None] * OWN_AT_ONCE + torch.arange(OWN_AT_ONCE, device=order.device)
    at = (members.cumsum(0) - members)[of][:, None] + torch.minimum(within, members[of][:, None] - 1)
    return order[at], of


@functools.lru_cache(maxsize=64)
def half_tables(n_orders: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tables of the rotations searched, in half precision; see `PoseGrid`.

    Parameters
    ----------
    n_orders : int
        Number of angular orders m.
    device : torch.device
        Where they are.

    Returns
    -------
    Tensor of shape (n_half, m)
        Cosines.
    Tensor of shape (n_half, m)
        Sines.
    """
    orders = torch.arange(n_orders, device=device, dtype=torch.float64)
    return angular_tables(orders, n_rotations(n_orders), dtype=torch.float16)
