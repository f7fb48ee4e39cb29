"""How well a particle fits a class in every pose: the E-step's search and its refinement off the grid.

A particle is modelled as F(k) = a CTF(k) A_c(posed) + noise of variance sigma^2(k). Up to what all classes share, the
logarithm of its likelihood is a x - a^2 p / 2 with the cross term x = <CTF F / sigma^2, posed A_c> and the norm
p = <CTF^2 / sigma^2, |A_c|^2> (over angles CTF^2 is averaged, so p knows no pose). The scale a has a normal prior
around the mean scale; its best value can be written down, and what remains is a monotonous function of x.

Scheres et al. 2005 (ML2D) and Scheres 2012 (RELION) are where this model comes from; the mirror, and the exhaustive
search with shifts done as phases on the template, are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ralib.classification.ring_grid import RingGrid
from ralib.conventions import mirror_x, rotate_xy, wrap_deg
from ralib.images.fourier import squared
from ralib.kernels.pose_search import (
    FineTemplates,
    NewtonRule,
    angle_deg,
    angular_tables,
    newton,
    rotated_table,
    rotational_max,
)

STEP_BYTES = 4e9
"""Device memory that a step may take beside the particles, where there is so much."""

UNLIMITED_PX = 1e9
"""How far refinement may go from the grid's pose in all: each of its steps is limited, not their sum."""

SCALE_SD = 0.35
"""Standard deviation of the particles' scales around their mean: ice thickness and defocus leave about a third."""


@dataclass(frozen=True)
class Spectra:
    """Particles on the rings, ready for scoring.

    data    (b, R, H) complex: weight * CTF * F / sigma^2
    power   (b, R) what the ring power of a template is summed with: weight * H * mean over angles of CTF^2 / sigma^2
    """

    data: Tensor
    power: Tensor

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def energy(self) -> Tensor:
        """Sum over the angles of |data|^2, (b, R)."""
        return torch.cat([squared(part).sum(2) for part in self.data.split(1024)])

    def norm(self, rows: Tensor | slice, ring_power: Tensor) -> Tensor:
        """Norms p (b, k) of some particles and templates of ring power (k, r)."""
        own = self.power[rows, : ring_power.shape[1]]
        if own.device.type == "cpu":  # BLAS rounds products of an odd length otherwise from row to row
            return (own[:, None] * ring_power).sum(2)
        return own @ ring_power.T

    def __getitem__(self, index: Tensor | slice) -> Spectra:
        return Spectra(self.data[index], self.power[index])


@dataclass(frozen=True)
class ClassPoses:
    """The best pose of each particle in each class, every field (b, k) (origin (b, k, 2)).

    cross and norm are x and p of the module's first lines.
    """

    cross: Tensor
    norm: Tensor
    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor

    def pick(self, class_index: Tensor) -> ClassPoses:
        """The poses in one class of each particle, class_index (b,): fields (b,)."""
        row = torch.arange(len(class_index), device=class_index.device)
        return ClassPoses(*(f[row, class_index] for f in self.fields()))

    def columns(self, keep: Tensor) -> ClassPoses:
        """The same for some of the classes."""
        return ClassPoses(*(f[:, keep] for f in self.fields()))

    def fields(self) -> tuple[Tensor, ...]:
        return self.cross, self.norm, self.psi_deg, self.origin_xy_px, self.mirror


def in_order(poses: list[ClassPoses], order: Tensor) -> list[ClassPoses]:
    """Candidates, each with fields (b,), put into an order (b, candidates) of each particle's own."""
    together = ClassPoses(*(torch.stack(f, dim=1) for f in zip(*(p.fields() for p in poses), strict=True)))
    return [together.pick(order[:, j]) for j in range(len(poses))]


def log_likelihood(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Logarithm of the likelihood against pure noise, at the best scale under its prior."""
    precision = 1.0 / (SCALE_SD * mean_scale) ** 2
    return 0.5 * (cross + precision * mean_scale).square() / (norm + precision) - 0.5 * precision * mean_scale**2


def best_scale(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """The scale that maximises the likelihood, not below a tenth of the mean."""
    precision = 1.0 / (SCALE_SD * mean_scale) ** 2
    scale = (cross + precision * mean_scale) / (norm + precision)
    return torch.maximum(scale, 0.1 * mean_scale)


def ring_power(references: Tensor) -> Tensor:
    """Mean over angles of |A|^2, (k, r), from orders (k, r, m)."""
    power = squared(references)
    return 2 * power.sum(-1) - power[..., 0]


def disc_of_shifts(radius_px: float, step_px: float, device: torch.device | str) -> Tensor:
    """Shifts (S, 2) on a square grid around zero, within the radius, the nearest first."""
    n = math.floor(radius_px / step_px + 1e-6)
    line = torch.arange(-n, n + 1, dtype=torch.float32) * step_px
    grid = torch.cartesian_prod(line, line)
    length = grid.norm(dim=1)
    inside = grid[length <= radius_px + 1e-4]
    return inside[torch.argsort(inside.norm(dim=1), stable=True)].to(device)


def shifted_templates(grid: RingGrid, references: Tensor, shifts_xy_px: Tensor, *, mirror: bool) -> Tensor:
    """Rows of the scoring product: real (m, k * S * 2 or 1 * 2, 2 r) from reference orders (k, r, m).

    Row pairs are the real and the imaginary part of sum_k conj(T) X (mirrored: T X), columns Re X and Im X.
    """
    rings, n_orders = references.shape[1:]
    samples = grid.samples_of(references)
    moved = samples[:, None] * grid.phase(shifts_xy_px, rings)
    t = grid.orders_of(moved, n_orders) * (2.0 * grid.n_half)
    t[..., 0] *= 0.5
    a, b = t.real, t.imag
    plain = torch.stack([torch.cat([a, b], -2), torch.cat([-b, a], -2)], dim=2)
    rows = plain[:, :, None]
    if mirror:
        mirrored = torch.stack([torch.cat([a, -b], -2), torch.cat([b, a], -2)], dim=2)
        rows = torch.stack([plain, mirrored], dim=2)
    return rows.flatten(0, 3).permute(2, 0, 1).contiguous()


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
) -> ClassPoses:
    """Best pose of every particle (b) in every class (k) over all rotations, mirror, and shifts around its origin.

    Parameters
    ----------
    grid : RingGrid
    spectra : Spectra
        Of b particles.
    origin_xy_px : Tensor
        (b, 2) where each particle was centred so far, pixels.
    references : Tensor
        (k, r, m) complex64: orders of the class averages, masked.
    shifts_xy_px : Tensor
        (S, 2) searched around it; a shift of the class by s is one of the particle by -s, in its frame.
    favour : Tensor or None
        (S,) added to the cross term while shifts are compared: how likely they are.
    mirror : bool
        Whether mirrored poses are searched.
    memory_bytes : float
        What the cross spectra may take on a GPU.
    dtype : torch.dtype or None
        Of the products that rank poses; None takes half precision on a GPU, single on a CPU.

    Returns
    -------
    ClassPoses
        Every field (b, k). Cross terms of half precision are right to some 1e-4; `refine_poses` gives exact ones.
    """
    dtype = dtype or (torch.float16 if grid.device.type == "cuda" else torch.float32)
    k, rings, n_orders = references.shape
    flips = 2 if mirror else 1
    rows = shifted_templates(grid, references, shifts_xy_px, mirror=mirror)
    n_half = 8 * math.ceil(1.5 * n_orders / 8)
    orders = torch.arange(n_orders, device=grid.device, dtype=torch.float64)
    cosine, sine = angular_tables(orders, n_half, dtype=dtype)
    height = None
    if dtype == torch.float16:  # which holds nothing above 65,504: factors of about 1, whatever the units
        height = rows.view(n_orders, k, -1).abs().amax((0, 2)).clamp_min(1e-30)
        rows = (rows.view(n_orders, k, -1) / height[:, None]).view(rows.shape).to(dtype)
    power = ring_power(references)
    parts = []
    for cut in row_chunks(len(spectra), _batch(rows, memory_bytes), grid.device):
        moved = spectra.data[cut, :rings] * grid.phase(origin_xy_px[cut], rings)
        x = grid.orders_of(moved, n_orders)
        strength = torch.linalg.vector_norm(torch.view_as_real(x).flatten(1), dim=1).clamp_min(1e-30)
        if height is not None:
            x = x / strength[:, None, None]
        columns = torch.cat([x.real, x.imag], dim=1).permute(2, 1, 0).to(dtype).contiguous()
        cross = torch.bmm(rows, columns).unflatten(1, (-1, 2))
        value, turn = rotational_max(cross, cosine, sine, rough=True)  # a grid's winner; refinement is exact
        if height is not None:
            value = value.float().view(k, -1, value.shape[-1]).mul_(height[:, None, None]).mul_(strength)
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


def _batch(rows: Tensor, memory_bytes: float) -> int:
    """Particles scored at once: few on a CPU, where the product should stay in the cache; many on a GPU."""
    if rows.device.type == "cpu":
        return 48
    per_particle = rows.shape[1] * (rows.element_size() * rows.shape[0] + 16.0)
    return max(16, int(memory_bytes / per_particle))


def row_chunks(n: int, most: int, device: torch.device) -> list[slice | Tensor]:
    """Chunks of n rows, whose products come out the same in whatever chunk a row is.

    BLAS libraries of CPUs round the rows of a product otherwise where there are fewer of them. There the last row is
    repeated until the last chunk is as long as all others; who puts them together takes the first n rows.
    """
    if device.type != "cpu" or n == 0:
        parts = max(1, -(-n // most))
        return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]
    whole, rest = n - n % most, n % most
    chunks: list[slice | Tensor] = [slice(first, first + most) for first in range(0, whole, most)]
    return [*chunks, torch.arange(whole, whole + most).clamp_max(n - 1)] if rest else chunks


def samples_at_once(grid: RingGrid, rings: int, most: int, memory_bytes: float) -> int:
    """Particles, at most `most`, of which a step may hold all samples a dozen times."""
    return max(16, min(most, int(memory_bytes / (100.0 * rings * grid.n_half))))


def score_fixed(
    grid: RingGrid, spectra: Spectra, psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, references: Tensor
) -> ClassPoses:
    """The same for poses that are given (b,): only the classes are compared."""
    k, rings, n_orders = references.shape
    m = torch.arange(n_orders, device=grid.device, dtype=torch.float32)
    rows = torch.view_as_real(references * torch.where(m == 0, 1.0, 2.0) * grid.n_half).flatten(1)
    power = ring_power(references)
    parts = []
    for cut in row_chunks(len(spectra), 64, grid.device):
        moved = spectra.data[cut, :rings] * grid.phase(origin_xy_px[cut], rings)
        turn = -torch.deg2rad(psi_deg[cut])[:, None] * m
        posed = grid.orders_of(moved, n_orders) * torch.polar(torch.ones_like(turn), turn)[:, None]
        posed = torch.where(mirror[cut][:, None, None], posed.conj(), posed)
        cross = torch.view_as_real(posed.resolve_conj()).flatten(1) @ rows.T
        parts.append((cross, spectra.norm(cut, power)))
    cross, norm = (torch.cat(p)[: len(spectra)] for p in zip(*parts, strict=True))
    poses = (f[:, None].expand(-1, k, *f.shape[1:]) for f in (psi_deg, origin_xy_px, mirror))
    return ClassPoses(cross, norm, *poses)


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
) -> ClassPoses:
    """Newton steps in (psi, x, y) from the grid's pose of each particle in its class; fields (b,) in and out.

    The cross term of the result is computed in single precision from all samples, whatever form took the steps.

    Parameters
    ----------
    grid : RingGrid
    spectra : Spectra
        Of b particles.
    references : Tensor
        (k, r, m) complex64: orders of the class averages, masked.
    poses : ClassPoses
        The grid's, fields (b,).
    class_index : Tensor
        (b,) the class of each pose.
    steps : int
        Newton steps; the kernel takes up to four times as many, for it ends where they settle.
    limit_deg, limit_px : float
        How far one step may go.
    memory_bytes : float
        What a chunk of particles may take.
    fused : bool or None
        Whether all steps of a particle are one kernel (`kernels.pose_search.newton`), on templates tabulated in half
        precision; otherwise each is a few dozen operations in single precision, and is kept only where the cross term
        grows. None: on a GPU.
    """
    out = []
    on_cpu = grid.device.type == "cpu"
    fused = not on_cpu if fused is None else fused
    templates = tabulated(grid, references, packed=not on_cpu) if fused and steps else None
    chunk = samples_at_once(grid, references.shape[1], 32 if on_cpu else 4096, memory_bytes)
    for cut in row_chunks(len(spectra), chunk, grid.device):
        part, data = ClassPoses(*(f[cut] for f in poses.fields())), spectra.data[cut]
        if templates:
            part = _climbed(grid, data, references, part, class_index[cut], templates, steps, limit_deg, limit_px)
        else:
            data = data[:, : references.shape[1]]
            part = _stepped(grid, data, references, part, class_index[cut], steps, limit_deg, limit_px)
        out.append(part)
    return ClassPoses(*(torch.cat(f)[: len(spectra)] for f in zip(*(o.fields() for o in out), strict=True)))


def tabulated(grid: RingGrid, references: Tensor, *, packed: bool) -> FineTemplates:
    """References (k, r, m), then their mirror images, as the Newton kernel takes them; each scaled to about 1."""
    height = ring_power(references).amax(1).sqrt().clamp_min(1e-30)
    # All rings of the grid, whatever the resolution: the kernel is compiled for their number.
    orders = torch.nn.functional.pad(references / height[:, None, None], (0, 0, 0, grid.n_rings - references.shape[1]))
    table = rotated_table(orders, grid.n_half, mirror=True, packed=packed)
    # The weights of the sum over rings are in the particles' samples.
    return FineTemplates(table, 2 * math.pi * grid.frequency, grid.angle_rad, torch.ones_like(grid.frequency))


def _climbed(
    grid: RingGrid,
    data: Tensor,
    references: Tensor,
    poses: ClassPoses,
    class_index: Tensor,
    templates: FineTemplates,
    steps: int,
    limit_deg: float,
    limit_px: float,
) -> ClassPoses:
    """Poses (b,) after Newton steps in one kernel, their cross terms in single precision."""
    row = class_index + len(references) * poses.mirror
    zero = torch.zeros_like(poses.psi_deg)
    start = torch.stack([poses.psi_deg, zero, zero, zero], dim=-1)
    # It ends a pose's steps by itself where they change nothing: more of them lead the rest to their maxima.
    most, everywhere = 4 * steps + 1, (UNLIMITED_PX, UNLIMITED_PX)
    rule = NewtonRule((0, 0, references.shape[1]), everywhere, limit_deg, limit_px, slack=1.0, steps=most)
    found = newton(data, poses.origin_xy_px, row[None], start[None], templates, rule)[0]
    psi, origin = wrap_deg(found[:, 0]), poses.origin_xy_px + found[:, 1:3]
    reference = mirrored_references(references, class_index, poses.mirror)
    cross = _derivatives(grid, data[:, : references.shape[1]], reference, psi, origin, order=0)[0]
    return ClassPoses(cross, poses.norm, psi, origin, poses.mirror)


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


def mirrored_references(references: Tensor, class_index: Tensor, mirror: Tensor) -> Tensor:
    """The reference (b, r, m) of each particle, mirrored where the particle is."""
    reference = references[class_index]
    return torch.where(mirror[:, None, None], reference.conj(), reference)


def turned_samples(grid: RingGrid, references: Tensor, psi_deg: Tensor) -> Tensor:
    """Samples (b, r, H) of references (b, r, m), each turned by its particle's psi (b,)."""
    m = torch.arange(references.shape[2], device=grid.device, dtype=torch.float32)
    turn = torch.deg2rad(psi_deg)[:, None] * m
    return grid.samples_of(references * torch.polar(torch.ones_like(turn), turn)[:, None])


def _derivatives(
    grid: RingGrid, data: Tensor, reference: Tensor, psi_deg: Tensor, origin_xy_px: Tensor, *, order: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross term (b,), its gradient (b, 3) and Hessian (b, 3, 3) in (psi in radians, x, y of the origin)."""
    rings, n_orders = reference.shape[1:]
    m = torch.arange(n_orders, device=grid.device, dtype=torch.float32)
    turn = torch.deg2rad(psi_deg)[:, None] * m
    turned = reference * torch.polar(torch.ones_like(turn), turn)[:, None]
    moved = data * grid.phase(origin_xy_px, rings)
    product = moved * grid.samples_of(turned).conj()
    score = product.real.sum((1, 2))
    if order == 0:
        return score, score, score
    slope = moved * grid.samples_of(turned * (1j * m)).conj()
    bend = -(moved * grid.samples_of(turned * (m * m)).conj()).real.sum((1, 2))
    direction = torch.stack([torch.cos(grid.angle_rad), torch.sin(grid.angle_rad)])
    f = (2 * math.pi * grid.frequency[:rings, None] * direction[:, None]).flatten(1)
    once = torch.stack([f[0], f[1]], dim=1)
    twice = torch.stack([f[0] * f[0], f[0] * f[1], f[1] * f[1]], dim=1)
    sx, sy = (product.imag.flatten(1) @ once).unbind(1)
    px, py = (slope.imag.flatten(1) @ once).unbind(1)
    xx, xy, yy = (-product.real.flatten(1) @ twice).unbind(1)
    gradient = torch.stack([slope.real.sum((1, 2)), sx, sy], dim=1)
    hessian = torch.stack([bend, px, py, px, xx, xy, py, xy, yy], dim=1).unflatten(1, (3, 3))
    return score, gradient, hessian


def _newton(gradient: Tensor, hessian: Tensor) -> Tensor:
    """Step (b, 3) towards the maximum; a direction in which the score is no hill is climbed by its slope's sign."""
    scale = torch.diagonal(hessian, dim1=1, dim2=2).abs().clamp_min(1e-12).rsqrt()
    scaled = hessian * scale[:, :, None] * scale[:, None, :]
    hill = -scaled + 0.05 * torch.eye(3, device=hessian.device)
    determinant_safe = hill + (torch.linalg.det(hill).abs() < 1e-4)[:, None, None] * torch.eye(3, device=hill.device)
    step = torch.linalg.solve_ex(determinant_safe, (gradient * scale)[..., None])[0][..., 0] * scale
    uphill = (step * gradient).sum(1) > 0
    return torch.where(uphill[:, None], step, torch.sign(gradient) * scale * 0.3)
