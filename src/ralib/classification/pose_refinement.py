"""Refinement of poses off the grid by Newton steps in (psi, x, y); cross terms in single precision from all samples."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.likelihood import ClassPoses, Spectra, joined
from ralib.classification.memory_plan import STEP_BYTES, particles_at_once, samples_at_once
from ralib.classification.ring_grid import RingGrid
from ralib.classification.templates import mirrored_references
from ralib.conventions import wrap_deg
from ralib.images.row_sums import row_sum
from ralib.kernels.averages import ring_power
from ralib.kernels.classes import PosedParticles, order_numbers, ring_crosses, turned_orders
from ralib.kernels.pose_search import FineTemplates, NewtonRule, PackedTemplates, newton, newton_templates
from ralib.kernels.threads import on_cores
from ralib.runtime.chunks import row_chunks

UNLIMITED_PX = 1e9
"""Limit of the whole shift from the grid's pose: only single steps are limited."""


def refine_poses(
    grid: RingGrid,
    spectra: Spectra,
    references: Tensor,
    poses: ClassPoses,
    class_index: Tensor,
    *,
    steps: int,
    limit_deg: float,
    limit_px: float,
    memory_bytes: float = STEP_BYTES,
    fused: bool | None = None,
    at_once: int | None = None,
    particle: Tensor | None = None,
) -> ClassPoses:
    """Refine the grid's pose of each particle in its class by Newton steps in (psi, x, y).

    The cross term of the result is computed in single precision from all samples, in either form of the steps.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Spectra of n particles.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages, complex64.
    poses : ClassPoses
        The grid's poses (b,).
    class_index : Tensor of shape (b,)
        Class of each pose.
    steps : int
        Newton steps; the fused kernel takes up to four times as many, as it ends when they converge. With 0 only the
        cross term is computed.
    limit_deg, limit_px : float
        Largest change by one step, degrees and pixels.
    memory_bytes : float, default STEP_BYTES
        Memory of a chunk of particles.
    fused : bool | None, optional
        Whether all steps of a particle are one kernel (`ralib.kernels.pose_search.newton`), on tabulated templates (on
        a GPU in half precision); otherwise each step is a few dozen operations in single precision, and is kept only
        where the cross term increases. By default it is one kernel.
    at_once : int | None, optional
        Poses of a chunk on a GPU, at most; by default `particles_at_once` of them.
    particle : Tensor | None of shape (b,), optional
        Particle of each pose; by default each has one.

    Returns
    -------
    ClassPoses
        Refined poses (b,).
    """
    n = len(class_index)
    if n == 0:
        return poses
    on_cpu = grid.device.type == "cpu"
    fused = steps > 0 if fused is None else fused and steps > 0
    particle = torch.arange(n, device=grid.device) if particle is None else particle
    if fused and on_cpu:
        return _refined_on_cores(grid, spectra, references, poses, class_index, particle, steps, limit_deg, limit_px)
    templates = tabulated(grid, references) if fused else None
    most = 32 if on_cpu else at_once or particles_at_once(n)
    chunk = samples_at_once(grid, references.shape[1], most, memory_bytes)
    out = []
    for cut in row_chunks(n, chunk, grid.device):
        part, classes = poses.rows(cut), class_index[cut]
        if steps == 0:
            part = _in_single_precision(grid, spectra.data, references, part, classes, particle[cut])
        elif templates:
            data = spectra.data[particle[cut]]
            part = _refined_in_kernel(grid, data, references, part, classes, templates, steps, limit_deg, limit_px)
        else:
            data = spectra.data[particle[cut], : references.shape[1]]
            part = _stepped(grid, data, references, part, classes, steps, limit_deg, limit_px)
        out.append(part)
    return joined(out).rows(slice(n))


def tabulated(grid: RingGrid, references: Tensor) -> FineTemplates | PackedTemplates:
    """Tabulate references, then their mirror images, for the Newton kernel of a GPU; each is scaled to about 1.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    references : Tensor of shape (k, r, m)
        Angular orders of the references.

    Returns
    -------
    FineTemplates or PackedTemplates
        The table, on a GPU in half precision.
    """
    height = ring_power(references).amax(1).sqrt().clamp_min(1e-30)
    # All rings of the grid, whatever the resolution: beyond those of the references there is nothing to add.
    orders = torch.nn.functional.pad(references / height[:, None, None], (0, 0, 0, grid.n_rings - references.shape[1]))
    return _newton_templates(grid, orders)


def _newton_templates(grid: RingGrid, orders: Tensor) -> FineTemplates | PackedTemplates:
    """The templates on the grid's rings; the weights of the sum over rings are in the particles' samples."""
    one = torch.ones_like(grid.frequency)
    return newton_templates(orders, 2 * math.pi * grid.frequency, grid.angle_rad, one, mirror=True, unit=1.0)


def refine_candidates(
    grid: RingGrid,
    spectra: Spectra,
    references: Tensor,
    poses: ClassPoses,
    class_index: Tensor,
    *,
    steps: int,
    limit_deg: float,
    limit_px: float,
    memory_bytes: float = STEP_BYTES,
    at_once: int | None = None,
) -> ClassPoses:
    """Refine the poses of particles in several classes each, all together.

    Parameters
    ----------
    grid, spectra, references
        See `refine_poses`.
    poses : ClassPoses
        The grid's poses, fields (c, b) for c candidate classes.
    class_index : Tensor of shape (c, b)
        Classes.
    steps, limit_deg, limit_px, memory_bytes, at_once
        See `refine_poses`.

    Returns
    -------
    ClassPoses
        Refined poses, fields (c, b).
    """
    count, n = class_index.shape
    every = ClassPoses(*(f.flatten(0, 1) for f in poses.fields()))
    found = refine_poses(
        grid, spectra, references, every, class_index.flatten(), steps=steps, limit_deg=limit_deg,
        limit_px=limit_px, memory_bytes=memory_bytes, at_once=count * (at_once or particles_at_once(n)),
        particle=torch.arange(n, device=grid.device).repeat(count),
    )  # fmt: skip
    return ClassPoses(*(f.unflatten(0, (count, n)) for f in found.fields()))


def _refined_on_cores(
    grid: RingGrid,
    spectra: Spectra,
    references: Tensor,
    poses: ClassPoses,
    class_index: Tensor,
    particle: Tensor,
    steps: int,
    limit_deg: float,
    limit_px: float,
) -> ClassPoses:
    """Poses (b,) of particles (b,) after Newton steps, class after class: the table of one fits a core's cache."""
    rings = references.shape[1]
    rule = _rule(rings, steps, limit_deg, limit_px)
    psi, origin = poses.psi_deg.clone(), poses.origin_xy_px.clone()

    def refine(rows: Tensor) -> None:
        one = class_index[rows[0]]
        templates = _newton_templates(grid, references[one][None])
        row = poses.mirror[rows].long()
        psi[rows], origin[rows] = _newton_poses(spectra.data, poses.rows(rows), row, templates, rule, particle[rows])

    of_classes = torch.argsort(class_index, stable=True).split(torch.bincount(class_index).tolist())
    on_cores(refine, [rows for rows in of_classes if len(rows)])
    refined = replace(poses, psi_deg=psi, origin_xy_px=origin)
    return _in_single_precision(grid, spectra.data, references, refined, class_index, particle)


def _rule(rings: int, steps: int, limit_deg: float, limit_px: float) -> NewtonRule:
    """Rule of the steps. A pose whose steps change nothing is left out of the next, so that many are cheap."""
    most, everywhere = 4 * steps + 1, (UNLIMITED_PX, UNLIMITED_PX)
    return NewtonRule((0, 0, rings), everywhere, limit_deg, limit_px, slack=1.0, steps=most)


def _newton_poses(
    data: Tensor,
    poses: ClassPoses,
    row: Tensor,
    templates: FineTemplates | PackedTemplates,
    rule: NewtonRule,
    particle: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """In-plane rotations (b,) and origins (b, 2) of poses (b,) after their Newton steps."""
    zero = torch.zeros_like(poses.psi_deg)
    start = torch.stack([poses.psi_deg, zero, zero, zero], dim=-1)
    found = newton(data, poses.origin_xy_px, row[None], start[None], templates, rule, particle)[0]
    return wrap_deg(found[:, 0]), poses.origin_xy_px + found[:, 1:3]


def _refined_in_kernel(
    grid: RingGrid,
    data: Tensor,
    references: Tensor,
    poses: ClassPoses,
    class_index: Tensor,
    templates: FineTemplates | PackedTemplates,
    steps: int,
    limit_deg: float,
    limit_px: float,
) -> ClassPoses:
    """Poses (b,) after Newton steps in one kernel, their cross terms in single precision."""
    row = class_index + len(references) * poses.mirror
    psi, origin = _newton_poses(data, poses, row, templates, _rule(references.shape[1], steps, limit_deg, limit_px))
    return _in_single_precision(grid, data, references, replace(poses, psi_deg=psi, origin_xy_px=origin), class_index)


def _in_single_precision(
    grid: RingGrid,
    data: Tensor,
    references: Tensor,
    poses: ClassPoses,
    class_index: Tensor,
    particle: Tensor | None = None,
) -> ClassPoses:
    """Poses (b,) with their cross terms from all samples, of particles (b,), or of the first, the second and so on."""
    particle = torch.arange(len(data), device=data.device) if particle is None else particle
    places = PosedParticles(particle, poses.origin_xy_px, poses.psi_deg, poses.mirror, class_index)
    cross = row_sum(ring_crosses(data, places, references, grid.rings(references.shape[1])))
    return replace(poses, cross=cross)


def without_last(poses: ClassPoses, class_index: Tensor, value: Tensor) -> tuple[ClassPoses, Tensor]:
    """Leave out the worse of the last two candidate classes.

    Parameters
    ----------
    poses : ClassPoses
        Poses in the candidates, fields (c, b).
    class_index : Tensor of shape (c, b)
        Classes.
    value : Tensor of shape (2, b)
        What is larger where a class fits better, of the last two.

    Returns
    -------
    ClassPoses
        Poses, fields (c - 1, b).
    Tensor of shape (c - 1, b)
        Classes.
    """
    order = torch.arange(len(class_index) - 1, device=class_index.device)[:, None].repeat(1, class_index.shape[1])
    order[-1] += value[1] > value[0]
    return poses.reordered(order), class_index.gather(0, order)


def _stepped(
    grid: RingGrid,
    data: Tensor,
    references: Tensor,
    poses: ClassPoses,
    class_index: Tensor,
    steps: int,
    limit_deg: float,
    limit_px: float,
) -> ClassPoses:
    """Poses (b,) after Newton steps in single precision, each kept only where the cross term grows."""
    psi, origin = poses.psi_deg, poses.origin_xy_px
    reference = mirrored_references(references, class_index, poses.mirror)
    best, best_psi, best_origin = poses.cross, psi, origin
    for step in range(steps + 1):
        score, gradient, hessian = _derivatives(grid, data, reference, psi, origin, order=2 if step < steps else 0)
        better = score > best if step else torch.ones_like(score, dtype=torch.bool)
        best = torch.where(better, score, best)
        best_psi = torch.where(better, psi, best_psi)
        best_origin = torch.where(better[:, None], origin, best_origin)
        if step < steps:
            move = _newton(gradient, hessian)
            turn = torch.rad2deg(move[:, 0]).clamp(-limit_deg, limit_deg)
            psi, origin = psi + turn, origin + move[:, 1:].clamp(-limit_px, limit_px)
    return ClassPoses(best, poses.norm, wrap_deg(best_psi), best_origin, poses.mirror)


def _derivatives(
    grid: RingGrid, data: Tensor, reference: Tensor, psi_deg: Tensor, origin_xy_px: Tensor, *, order: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross term (b,), its gradient (b, 3) and Hessian (b, 3, 3) in (psi in radians, x, y of the origin)."""
    rings, n_orders = reference.shape[1:]
    turned = turned_orders(reference, psi_deg)
    moved = data * grid.phase(origin_xy_px, rings)
    product = moved * grid.samples_of(turned).conj()
    score = product.real.sum((1, 2))
    if order == 0:
        return score, score, score
    m = order_numbers(n_orders, grid.device)
    slope = moved * grid.samples_of(turned * (1j * m)).conj()
    curvature = -(moved * grid.samples_of(turned * (m * m)).conj()).real.sum((1, 2))
    direction = torch.stack([torch.cos(grid.angle_rad), torch.sin(grid.angle_rad)])
    f = (2 * math.pi * grid.frequency[:rings, None] * direction[:, None]).flatten(1)
    once = torch.stack([f[0], f[1]], dim=1)
    twice = torch.stack([f[0] * f[0], f[0] * f[1], f[1] * f[1]], dim=1)
    sx, sy = (product.imag.flatten(1) @ once).unbind(1)
    px, py = (slope.imag.flatten(1) @ once).unbind(1)
    xx, xy, yy = (-product.real.flatten(1) @ twice).unbind(1)
    gradient = torch.stack([slope.real.sum((1, 2)), sx, sy], dim=1)
    hessian = torch.stack([curvature, px, py, px, xx, xy, py, xy, yy], dim=1).unflatten(1, (3, 3))
    return score, gradient, hessian


def _newton(gradient: Tensor, hessian: Tensor) -> Tensor:
    """Newton step (b, 3) towards the maximum; where that leads down, a short step by the signs of the gradient."""
    scale = torch.diagonal(hessian, dim1=1, dim2=2).abs().clamp_min(1e-12).rsqrt()
    scaled = hessian * scale[:, :, None] * scale[:, None, :]
    negative = -scaled + 0.05 * torch.eye(3, device=hessian.device)
    determinant_safe = negative + (torch.linalg.det(negative).abs() < 1e-4)[:, None, None] * torch.eye(
        3, device=negative.device
    )
    step = torch.linalg.solve_ex(determinant_safe, (gradient * scale)[..., None])[0][..., 0] * scale
    uphill = (step * gradient).sum(1) > 0
    return torch.where(uphill[:, None], step, torch.sign(gradient) * scale * 0.3)
