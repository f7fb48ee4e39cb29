"""The E-step's exhaustive search: the best pose of every particle in every class, or the fit at poses that are given.

Particles and references are compared over all rotations, mirrors and shifts of a grid, in one matrix product over the
rings for each angular order; see `likelihood` for the model, `half_precision_search` for the form of the search on a
GPU and `pose_refinement` for poses off the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.classification.half_precision_search import ranks_in_half, scored_in_half
from ralib.classification.likelihood import ClassPoses, Spectra, joined
from ralib.classification.memory_plan import STEP_BYTES, particles_at_once, samples_at_once
from ralib.classification.ring_grid import RingGrid
from ralib.classification.templates import n_rotations, shifted_orders
from ralib.conventions import mirror_x, rotate_xy
from ralib.kernels.averages import ring_power
from ralib.kernels.classes import best_poses, order_numbers, posed_orders
from ralib.runtime.chunks import gpu_chunks, on_gpu, row_chunks

TEMPLATE_SHARE = 0.75
"""Share of a step's memory for the shifted templates of the classes scored at once; they are copied once on the way."""

CPU_PARTICLES = 4096
"""Particles whose angular orders a CPU holds at once."""


def score_classes(
    grid: RingGrid,
    spectra: Spectra,
    origin_xy_px: Tensor,
    references: Tensor,
    shifts_xy_px: Tensor,
    *,
    favour: Tensor | None = None,
    mirror: bool = True,
    memory_bytes: float = STEP_BYTES,
    dtype: torch.dtype | None = None,
    at_once: int | None = None,
) -> ClassPoses:
    """Find the best pose of every particle in every class over all rotations, mirror, and shifts around its origin.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Spectra of b particles.
    origin_xy_px : Tensor of shape (b, 2)
        Origin of each particle so far, working pixels.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages, complex64.
    shifts_xy_px : Tensor of shape (S, 2)
        Shifts searched; a shift of the class by s is one of the particle by -s, in its frame.
    favour : Tensor | None of shape (S,), optional
        Added to the cross term while shifts are compared: their log prior.
    mirror : bool, default True
        Whether mirrored poses are searched.
    memory_bytes : float, default STEP_BYTES
        Memory of a step: of the templates, and on a GPU of the cross spectra.
    dtype : torch.dtype | None, optional
        Type of the products that rank poses; by default half precision on a GPU, single on a CPU.
    at_once : int | None, optional
        Particles of a chunk in half precision; by default `particles_at_once` of them.

    Returns
    -------
    ClassPoses
        Poses, fields (b, k). Cross terms of half precision have errors of some 1e-4; `refine_poses` computes exact
        ones.
    """
    if not len(spectra):  # as on a rank that holds none of the few particles of a step
        psi = torch.zeros(0, device=grid.device)
        return score_fixed(grid, spectra, psi, origin_xy_px, psi > 0, references)
    dtype = dtype or (torch.float16 if ranks_in_half(grid.device) else torch.float32)
    if dtype == torch.float16:
        most = at_once or particles_at_once(len(spectra))
        return scored_in_half(grid, spectra, origin_xy_px, references, shifts_xy_px, favour, mirror, memory_bytes, most)
    k, rings, n_orders = references.shape
    most = _classes_at_once(references, shifts_xy_px, mirror, memory_bytes)
    if k > most:
        given = {"favour": favour, "mirror": mirror, "memory_bytes": memory_bytes, "dtype": dtype}
        groups = [
            score_classes(grid, spectra, origin_xy_px, part, shifts_xy_px, **given)  # type: ignore[arg-type]
            for part in references.split(most)
        ]
        return ClassPoses(*(torch.cat(f, dim=1) for f in zip(*(g.fields() for g in groups), strict=True)))
    templates, power = shifted_orders(grid, references, shifts_xy_px), ring_power(references)
    from_ring = grid.first_rings(rings, n_orders) if grid.device.type == "cpu" else None
    parts = []
    for cut in gpu_chunks(len(spectra), _batch(templates, len(spectra), memory_bytes), grid.device):
        orders = grid.moved_orders(spectra.data[cut], origin_xy_px[cut], rings, n_orders)
        found = best_poses(orders, templates, n_rotations(n_orders), mirror=mirror, favour=favour, from_ring=from_ring)
        moved_by = -mirror_x(shifts_xy_px[found.shift], found.mirror)
        origin = origin_xy_px[cut][:, None] + rotate_xy(-found.psi_deg, moved_by)
        parts.append(ClassPoses(found.cross, spectra.norm(cut, power), found.psi_deg, origin, found.mirror))
    return joined(parts).rows(slice(len(spectra)))


def _classes_at_once(references: Tensor, shifts_xy_px: Tensor, mirror: bool, memory_bytes: float) -> int:
    """Classes whose shifted templates, each in single precision, take at most TEMPLATE_SHARE times a step's memory."""
    _, rings, n_orders = references.shape
    each = 4.0 * n_orders * len(shifts_xy_px) * (4 if mirror else 2) * 2 * rings
    return max(1, int(TEMPLATE_SHARE * memory_bytes / each))


def _batch(templates: Tensor, n: int, memory_bytes: float) -> int:
    """Particles scored at once: on a GPU those whose cross spectra take a step's memory."""
    if not on_gpu(templates):
        return CPU_PARTICLES
    k, n_shifts, _, n_orders = templates.shape
    return min(max(16, int(memory_bytes / (4.0 * k * n_shifts * (4.0 * n_orders + 4.0)))), n)


def score_fixed(
    grid: RingGrid,
    spectra: Spectra,
    psi_deg: Tensor,
    origin_xy_px: Tensor,
    mirror: Tensor,
    references: Tensor,
    at_once: int | None = None,
) -> ClassPoses:
    """Score particles in every class at given poses.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Spectra of b particles.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origin shift, working pixels.
    mirror : Tensor of shape (b,)
        True where mirrored.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages.
    at_once : int | None, optional
        Particles of a chunk on a GPU; by default `particles_at_once` of them.

    Returns
    -------
    ClassPoses
        Poses, fields (b, k).
    """
    k, rings, n_orders = references.shape
    most = 64
    if grid.device.type != "cpu":
        most = samples_at_once(grid, rings, at_once or particles_at_once(len(spectra)), STEP_BYTES)
    m = order_numbers(n_orders, grid.device)
    rows = torch.view_as_real(references * torch.where(m == 0, 1.0, 2.0) * grid.n_half).flatten(1)
    power = ring_power(references)
    parts = []
    for cut in row_chunks(len(spectra), most, grid.device):
        orders = grid.moved_orders(spectra.data[cut], origin_xy_px[cut], rings, n_orders)
        posed = posed_orders(orders, psi_deg[cut], mirror[cut])
        cross = torch.view_as_real(posed).flatten(1) @ rows.T
        parts.append((cross, spectra.norm(cut, power)))
    cross, norm = (torch.cat(p)[: len(spectra)] for p in zip(*parts, strict=True))
    poses = (f[:, None].expand(-1, k, *f.shape[1:]) for f in (psi_deg, origin_xy_px, mirror))
    return ClassPoses(cross, norm, *poses)
