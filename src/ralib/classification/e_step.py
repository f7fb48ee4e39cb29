"""The E-step's exhaustive search: the best pose of every particle in every class, or the fit at poses that are given.

Particles and references are compared over all rotations, mirrors and shifts of a grid, in one matrix product over the
rings for each angular order; see `likelihood` for the model, `half_precision_search` for the form of the search on a
GPU and `pose_refinement` for poses off the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.classification.half_precision_search import scored_in_half
from ralib.classification.likelihood import ClassPoses, Spectra, ring_power
from ralib.classification.memory_plan import STEP_BYTES, particles_at_once, samples_at_once
from ralib.classification.ring_grid import RingGrid
from ralib.classification.templates import n_rotations, shifted_templates
from ralib.conventions import mirror_x, rotate_xy
from ralib.kernels.pose_search import angle_deg, angular_tables, rotational_max
from ralib.runtime.chunks import row_chunks

TEMPLATE_STEPS = 0.75
"""Of that, the shifted templates of the classes that are scored at once; some copies are made of them on the way."""


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
        Memory of the cross spectra on a GPU.
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
    dtype = dtype or (torch.float16 if grid.device.type == "cuda" else torch.float32)
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
    flips = 2 if mirror else 1
    rows = shifted_templates(grid, references, shifts_xy_px, mirror=mirror)
    n_half = n_rotations(n_orders)
    orders = torch.arange(n_orders, device=grid.device, dtype=torch.float64)
    cosine, sine = angular_tables(orders, n_half, dtype=dtype)
    power = ring_power(references)
    parts = []
    for cut in row_chunks(len(spectra), _batch(rows, len(spectra), memory_bytes), grid.device):
        moved = spectra.data[cut, :rings] * grid.phase(origin_xy_px[cut], rings)
        x = grid.orders_of(moved, n_orders)
        columns = torch.cat([x.real, x.imag], dim=1).permute(2, 1, 0).to(dtype).contiguous()
        cross = torch.bmm(rows, columns).unflatten(1, (-1, 2))
        value, turn = rotational_max(cross, cosine, sine, rough=True)  # a grid's winner; refinement is exact
        if favour is not None:
            value = value.view(k, len(favour), -1, value.shape[-1]).add_(favour[:, None, None])
        value, at = value.view(k, -1, value.shape[-1]).max(dim=1)
        turn = turn.view(k, -1, turn.shape[-1]).gather(1, at[:, None])[:, 0]
        if favour is not None:
            value -= favour[at // (2 * flips)]
        parts.append((value.T, at.T, turn.T, spectra.norm(cut, power)))
    value, at, turn, norm = (torch.cat(p)[: len(spectra)] for p in zip(*parts, strict=True))
    # Within a class the order is shift, mirror, sign of the rotation.
    psi = angle_deg(turn, at % 2, n_half)
    flipped = at // 2 % flips == 1
    moved_by = -mirror_x(shifts_xy_px[at // (2 * flips)], flipped)
    origin = origin_xy_px[:, None] + rotate_xy(-psi, moved_by)
    return ClassPoses(value, norm, psi, origin, flipped)


def _classes_at_once(references: Tensor, shifts_xy_px: Tensor, mirror: bool, memory_bytes: float) -> int:
    """Classes whose shifted templates, each in single precision, take at most TEMPLATE_STEPS times a step's memory."""
    _, rings, n_orders = references.shape
    each = 4.0 * n_orders * len(shifts_xy_px) * (4 if mirror else 2) * 2 * rings
    return max(1, int(TEMPLATE_STEPS * memory_bytes / each))


def _batch(rows: Tensor, n: int, memory_bytes: float) -> int:
    """Particles scored at once: few on a CPU, where the product should stay in the cache; many on a GPU."""
    if rows.device.type == "cpu":
        return 48
    per_particle = rows.shape[1] * (rows.element_size() * rows.shape[0] + 16.0)
    return min(max(16, int(memory_bytes / per_particle)), n)


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
    m = torch.arange(n_orders, device=grid.device, dtype=torch.float32)
    rows = torch.view_as_real(references * torch.where(m == 0, 1.0, 2.0) * grid.n_half).flatten(1)
    power = ring_power(references)
    parts = []
    for cut in row_chunks(len(spectra), most, grid.device):
        moved = spectra.data[cut, :rings] * grid.phase(origin_xy_px[cut], rings)
        turn = -torch.deg2rad(psi_deg[cut])[:, None] * m
        posed = grid.orders_of(moved, n_orders) * torch.polar(torch.ones_like(turn), turn)[:, None]
        posed = torch.where(mirror[cut][:, None, None], posed.conj(), posed)
        cross = torch.view_as_real(posed.resolve_conj()).flatten(1) @ rows.T
        parts.append((cross, spectra.norm(cut, power)))
    cross, norm = (torch.cat(p)[: len(spectra)] for p in zip(*parts, strict=True))
    poses = (f[:, None].expand(-1, k, *f.shape[1:]) for f in (psi_deg, origin_xy_px, mirror))
    return ClassPoses(cross, norm, *poses)
