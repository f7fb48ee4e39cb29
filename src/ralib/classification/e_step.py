"""The likelihood of every class and pose: the E-step's exhaustive search, and its refinement off the grid.

A particle is modelled as F(k) = a CTF(k) A_c(posed) + noise of variance sigma^2(k). Up to a constant common to all
classes its log-likelihood is a x - a^2 p / 2 with the cross term x = <CTF F / sigma^2, posed A_c> and the norm p =
<CTF^2 / sigma^2, |A_c|^2> (CTF^2 is averaged over angles, so that p does not depend on the pose). The scale a has a
normal prior around the mean scale; its best value is known in closed form, and what remains is a monotonous function of
x.

The model follows Scheres et al. 2005, "Maximum-likelihood multi-reference refinement for electron microscopy images",
J. Mol. Biol. 348, 139-149 (ML2D), and Scheres 2012, "RELION: implementation of a Bayesian approach to cryo-EM structure
determination", J. Struct. Biol. 180, 519-530; the mirror, and the exhaustive search with shifts as phases of the
template, do not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ralib.classification.ring_grid import RingGrid
from ralib.conventions import mirror_x, rotate_xy, wrap_deg
from ralib.images.fourier import squared
from ralib.kernels.classes import PoseGrid, best_in_classes
from ralib.kernels.pose_search import (
    FineTemplates,
    NewtonRule,
    angle_deg,
    angular_tables,
    newton,
    rotated_table,
    rotational_max,
)
from ralib.runtime.chunks import gpu_chunks, row_chunks

STEP_BYTES = 4e9
"""Device memory that a step may take beside the particles, where there is so much."""

TEMPLATE_STEPS = 0.75
"""Of that, the shifted templates of the classes that are scored at once; some copies are made of them on the way."""

CROSS_BYTES, ROWS_BYTES, COLUMNS_BYTES = 2**29, 2**27, 2**29
"""In half precision: of the cross spectra and the shifted templates of the classes scored at once, and of particles."""

AT_ONCE = 4096
"""Particles that are computed at once on a GPU, at most; see `particles_at_once`."""

UNLIMITED_PX = 1e9
"""How far refinement may go from the grid's pose in all: each of its steps is limited, not their sum."""

SCALE_SD = 0.35
"""Standard deviation of the particles' scales around their mean: ice thickness and defocus leave about a third."""


@dataclass(frozen=True)
class Spectra:
    """Whitened, CTF-weighted samples of b particles on the rings.

    Attributes
    ----------
    data : Tensor of shape (b, R, H)
        weight * CTF * F / sigma^2, complex.
    power : Tensor of shape (b, R)
        Factor of a template's ring power in the norm: weight * H * mean over angles of CTF^2 / sigma^2.
    """

    data: Tensor
    power: Tensor

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def energy(self) -> Tensor:
        """Sum over the angles of |data|^2, (b, R)."""
        chunks = gpu_chunks(len(self), 1024, self.data.device)
        return torch.cat([squared(self.data[cut]).sum(2) for cut in chunks])[: len(self)]

    def norm(self, rows: Tensor | slice, ring_power: Tensor) -> Tensor:
        """Return the norms p of particles and templates.

        Parameters
        ----------
        rows : Tensor or slice of shape (b,)
            The particles.
        ring_power : Tensor of shape (k, r)
            Ring power of the templates.

        Returns
        -------
        Tensor of shape (b, k)
            Norms.
        """
        own = self.power[rows, : ring_power.shape[1]]
        if own.device.type == "cpu":  # BLAS rounds products of an odd length otherwise from row to row
            return (own[:, None] * ring_power).sum(2)
        return own.contiguous() @ ring_power.T  # the layout, too, decides how a product is rounded

    def __getitem__(self, index: Tensor | slice) -> Spectra:
        return Spectra(self.data[index], self.power[index])

    def blocks(self, rings: int, most: int) -> Iterator[tuple[slice, Spectra]]:
        """Iterate over groups of at most `most` particles; see `StoredSpectra.blocks`."""
        for first in range(0, max(1, len(self)), max(1, most)):
            rows = slice(first, min(first + most, len(self)))
            yield rows, self if rows.stop - rows.start == len(self) else self[rows]

    def divided(self, ratio: Tensor) -> Spectra:
        """Return the spectra for `ratio` (R,) times the noise power; the samples are changed in place."""
        return Spectra(self.data.div_(ratio[:, None]), self.power / ratio)

    def without(self, rings: Tensor) -> Spectra:
        """Return the spectra with nothing on some rings (R,); they are changed in place."""
        self.power[:, rings] = 0
        self.data[:, rings] = 0
        return self


@dataclass(frozen=True)
class ClassPoses:
    """The best pose of each particle in each class, every field (b, k), or in one class, every field (b,).

    Attributes
    ----------
    cross : Tensor of shape (b, k)
        Cross term x; see the module.
    norm : Tensor of shape (b, k)
        Norm p; see the module.
    psi_deg : Tensor of shape (b, k)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, k, 2)
        Origin shift, working pixels.
    mirror : Tensor of shape (b, k)
        True where mirrored.
    """

    cross: Tensor
    norm: Tensor
    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor

    def pick(self, class_index: Tensor) -> ClassPoses:
        """Return the poses in one class of each particle, class_index (b,): fields (b,)."""
        row = torch.arange(len(class_index), device=class_index.device)
        return ClassPoses(*(f[row, class_index] for f in self.fields()))

    def columns(self, keep: Tensor) -> ClassPoses:
        """Return the poses in some of the classes."""
        return ClassPoses(*(f[:, keep] for f in self.fields()))

    def rows(self, rows: slice | Tensor) -> ClassPoses:
        """Return the poses of some of the particles."""
        return ClassPoses(*(f[rows] for f in self.fields()))

    def gathered(self, index: Tensor) -> ClassPoses:
        """Return the poses in some classes of each particle, index (b, c): fields (b, c)."""
        row = torch.arange(len(index), device=index.device)[:, None]
        return ClassPoses(*(f[row, index] for f in self.fields()))

    def fields(self) -> tuple[Tensor, ...]:
        """Return all fields."""
        return self.cross, self.norm, self.psi_deg, self.origin_xy_px, self.mirror


def joined(parts: list[ClassPoses]) -> ClassPoses:
    """Return the poses of all particles of some parts."""
    return parts[0] if len(parts) == 1 else ClassPoses(*map(torch.cat, zip(*(p.fields() for p in parts), strict=True)))


def in_order(poses: list[ClassPoses], order: Tensor) -> list[ClassPoses]:
    """Reorder candidate poses, for each particle separately.

    Parameters
    ----------
    poses : list[ClassPoses]
        For each candidate the poses (b,).
    order : Tensor of shape (b, candidates)
        New order of each particle's candidates.

    Returns
    -------
    list[ClassPoses]
        For each candidate the poses (b,).
    """
    together = ClassPoses(*(torch.stack(f, dim=1) for f in zip(*(p.fields() for p in poses), strict=True)))
    return [together.pick(order[:, j]) for j in range(len(poses))]


def log_likelihood(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Return the log-likelihood relative to pure noise, at the best scale under its prior.

    Parameters
    ----------
    cross : Tensor of shape (...)
        Cross term x.
    norm : Tensor of shape (...)
        Norm p.
    mean_scale : Tensor of shape ()
        Mean scale.

    Returns
    -------
    Tensor of shape (...)
        Log-likelihood.
    """
    precision = 1.0 / (SCALE_SD * mean_scale) ** 2
    return 0.5 * (cross + precision * mean_scale).square() / (norm + precision) - 0.5 * precision * mean_scale**2


def best_scale(cross: Tensor, norm: Tensor, mean_scale: Tensor) -> Tensor:
    """Return the scale of maximum likelihood, at least a tenth of the mean; see `log_likelihood` for the arguments."""
    precision = 1.0 / (SCALE_SD * mean_scale) ** 2
    scale = (cross + precision * mean_scale) / (norm + precision)
    return torch.maximum(scale, 0.1 * mean_scale)


def ring_power(references: Tensor) -> Tensor:
    """Return the mean over angles of |A|^2, (k, r), of angular orders (k, r, m)."""
    power = squared(references)
    return 2 * power.sum(-1) - power[..., 0]


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


def shifted_templates(grid: RingGrid, references: Tensor, shifts_xy_px: Tensor, *, mirror: bool) -> Tensor:
    """Return the rows of the scoring product, for all shifts of the templates.

    Pairs of rows are the real and the imaginary part of sum_k conj(T) X (mirrored: T X), with columns Re X and Im X.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    references : Tensor of shape (k, r, m)
        Angular orders of the references.
    shifts_xy_px : Tensor of shape (S, 2)
        Shifts, pixels.
    mirror : bool
        Whether mirrored poses are searched.

    Returns
    -------
    Tensor of shape (m, k * S * 4 or k * S * 2, 2 r)
        Rows; the larger number with mirrored poses.
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
        return _scored_in_half(
            grid, spectra, origin_xy_px, references, shifts_xy_px, favour, mirror, memory_bytes, most
        )
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
    n_half = _rotations(n_orders)
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


def _rotations(n_orders: int) -> int:
    """Rotations of the half circle among which the best is sought."""
    return 8 * math.ceil(1.5 * n_orders / 8)


def _scored_in_half(
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
    """`score_classes` in half precision: particles are transformed once, for all groups of classes."""
    k, rings, n_orders = references.shape
    poses = PoseGrid(*_half_tables(n_orders, grid.device), shifts_xy_px, mirror)
    cuts, power = row_chunks(len(spectra), at_once, grid.device), ring_power(references)
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
            columns, strength = _half_columns(grid, spectra.data[cut], origin_xy_px[cut], references)
            norm[rows] = spectra.norm(cut, power)
            given.append((columns, strength, origin_xy_px[cut].contiguous(), [f[rows] for f in found]))
        for first in range(0, k, classes):
            templates, height = half_templates(grid, references[first : first + classes], shifts_xy_px, mirror=mirror)
            for begin in range(0, len(height), fewer):
                some = slice(begin, min(begin + fewer, len(height)))
                part = templates[:, 2 * poses.n_pairs * some.start : 2 * poses.n_pairs * some.stop]
                for columns, strength, origin, into in given:
                    cross = torch.bmm(part, columns)
                    out = tuple(f[:, first + some.start : first + some.stop] for f in into)
                    best_in_classes(cross, height[some], strength, origin, poses, out, favour)
    cross, psi, origin, flipped = (f[: len(spectra)] for f in found)
    return ClassPoses(cross, norm[: len(spectra)], psi, origin, flipped)


OWN_AT_ONCE, OWN_BYTES = 64, 2**28
"""Particles of one class that `places_in_own_class` compares at once, and bytes of the cross spectra of such groups."""


def places_in_own_class(
    grid: RingGrid,
    spectra: Spectra,
    class_index: Tensor,
    references: Tensor,
    shifts_xy_px: Tensor,
    *,
    mirror: bool,
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
    at_once : int
        Particles that are transformed at once.

    Returns
    -------
    Tensor of shape (b, 2)
        Origin shifts, working pixels.
    """
    n, n_orders = len(spectra), references.shape[2]
    poses = PoseGrid(*_half_tables(n_orders, grid.device), shifts_xy_px, mirror)
    still, place = torch.zeros(at_once, 2, device=grid.device), torch.zeros(n, 2, device=grid.device)
    if n == 0:
        return place
    parts = [_half_columns(grid, spectra.data[cut], still, references) for cut in row_chunks(n, at_once, grid.device)]
    columns, strength = torch.cat([p[0] for p in parts], dim=2), torch.cat([p[1] for p in parts])
    row, of = _groups_of_own(class_index, len(references))
    many = max(1, int(OWN_BYTES / (4.0 * n_orders * poses.n_pairs * OWN_AT_ONCE)))
    for first in range(0, len(of), many):
        # The last product has the size of all others.
        some = torch.arange(first, first + many, device=grid.device).clamp_max(len(of) - 1)
        classes, back = of[some].unique(return_inverse=True)
        templates, height = half_templates(grid, references[classes], shifts_xy_px, mirror=mirror)
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
def _half_tables(n_orders: int, device: torch.device) -> tuple[Tensor, Tensor]:
    orders = torch.arange(n_orders, device=device, dtype=torch.float64)
    return angular_tables(orders, _rotations(n_orders), dtype=torch.float16)


def half_templates(grid: RingGrid, references: Tensor, shifts_xy_px: Tensor, *, mirror: bool) -> tuple[Tensor, Tensor]:
    """Return the rows of the scoring product in half precision, and their heights; see `shifted_templates`.

    Half precision holds nothing above 65,504: each class is scaled to about 1, whatever the units.

    Returns
    -------
    Tensor of shape (m, k * S * 4 or k * S * 2, 2 r)
        Rows over the height of their class.
    Tensor of shape (k,)
        Heights.
    """
    k, _, n_orders = references.shape
    rows = shifted_templates(grid, references, shifts_xy_px, mirror=mirror)
    height = rows.view(n_orders, k, -1).abs().amax((0, 2)).clamp_min(1e-30)
    return (rows.view(n_orders, k, -1) / height[:, None]).view(rows.shape).half(), height


def _half_columns(grid: RingGrid, data: Tensor, origin_xy_px: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (m, 2 r, b) of the scoring product in half precision, of unit norm, and what the norms were (b,)."""
    _, rings, n_orders = references.shape
    x = grid.orders_of(data[:, :rings] * grid.phase(origin_xy_px, rings), n_orders)
    parts = torch.view_as_real(x)
    strength = torch.linalg.vector_norm(parts.flatten(1), dim=1).clamp_min(1e-30)
    scaled = parts.permute(2, 3, 1, 0) / strength
    return scaled.half().flatten(1, 2).contiguous(), strength


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


def particles_at_once(n: int) -> int:
    """Return of how many particles a GPU computes everything at once, as far as memory allows.

    Libraries round a product's rows otherwise where there are more or fewer of them. So chunks have one size, which
    follows from the number of all particles: no rank's share of them, and no free memory changes a bit of a particle.

    Parameters
    ----------
    n : int
        Number of all particles.

    Returns
    -------
    int
        Number of particles of a chunk, a multiple of 128.
    """
    return 128 * max(1, math.ceil(n / (128 * math.ceil(n / AT_ONCE)))) if n else 128


def samples_at_once(grid: RingGrid, rings: int, most: int, memory_bytes: float) -> int:
    """Return the number of particles, at most `most`, of which a step may hold all samples a dozen times.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    rings : int
        Number of rings.
    most : int
        Upper limit.
    memory_bytes : float
        Memory of a step.

    Returns
    -------
    int
        Number of particles.
    """
    return max(16, min(most, int(memory_bytes / (100.0 * rings * grid.n_half))))


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
) -> ClassPoses:
    """Refine the grid's pose of each particle in its class by Newton steps in (psi, x, y).

    The cross term of the result is computed in single precision from all samples, in either form of the steps.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Spectra of b particles.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages, complex64.
    poses : ClassPoses
        The grid's poses (b,).
    class_index : Tensor of shape (b,)
        Class of each pose.
    steps : int
        Newton steps; the fused kernel takes up to four times as many, as it ends when they converge.
    limit_deg, limit_px : float
        Largest change by one step, degrees and pixels.
    memory_bytes : float, default STEP_BYTES
        Memory of a chunk of particles.
    fused : bool | None, optional
        Whether all steps of a particle are one kernel (`ralib.kernels.pose_search.newton`), on templates tabulated in
        half precision; otherwise each step is a few dozen operations in single precision, and is kept only where the
        cross term increases. By default on a GPU.
    at_once : int | None, optional
        Particles of a chunk on a GPU, at most; by default `particles_at_once` of them.

    Returns
    -------
    ClassPoses
        Refined poses (b,).
    """
    if not len(spectra):
        return poses
    out = []
    on_cpu = grid.device.type == "cpu"
    fused = not on_cpu if fused is None else fused
    templates = tabulated(grid, references, packed=not on_cpu) if fused and steps else None
    most = 32 if on_cpu else at_once or particles_at_once(len(spectra))
    chunk = samples_at_once(grid, references.shape[1], most, memory_bytes)
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
    """Tabulate references, then their mirror images, as the Newton kernel takes them; each is scaled to about 1.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    references : Tensor of shape (k, r, m)
        Angular orders of the references.
    packed : bool
        Whether to pack as `half_pairs`.

    Returns
    -------
    FineTemplates
        The table.
    """
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
