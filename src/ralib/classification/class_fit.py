"""Fit of a particle to its class in frequency bands: the shared signal, and the residual inside and around it.

Every comparison is with averages of the half of the data that the particle is not in, so that they do not contain its
noise. For a true member of its class the cross term has a known mean and variance, whatever the dose, the CTF and the
box. Empty ice falls short of it in all bands; junk exceeds it in coarse bands and falls short in fine ones; a second
particle or a carbon edge leaves power in the residual.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ralib.classification.memory_plan import samples_at_once
from ralib.classification.model import Model
from ralib.classification.ring_grid import RingGrid
from ralib.classification.state import State
from ralib.classification.templates import mirrored_references, turned_samples
from ralib.classification.typical_class import weighted_median
from ralib.images.masks import centre_distance, soft_disc
from ralib.images.row_sums import row_sd
from ralib.kernels.averages import ring_power
from ralib.kernels.complex_numbers import squared
from ralib.kernels.likelihood import SCALE_SD
from ralib.kernels.threads import on_cores
from ralib.runtime.chunks import gpu_chunks

BANDS = 0.0, 1.5, 3.0, 6.0, 12.0
"""Details across the particle that bound the bands of the fit."""

_N = len(BANDS) - 1
FIT_NAMES = (
    *(f"expected_{i}" for i in range(_N)),
    *(f"missing_{i}" for i in range(_N)),
    *(f"share_{i}" for i in range(_N)),
    *(f"left_inside_{i}" for i in range(_N)),
    *(f"left_outside_{i}" for i in range(_N)),
    "left_brightest",
    "left_darkest",
    "at_centre",
    "near_centre",
    "far_away",
    "second_near",
    "second_far",
    "blob_more",
    "blob_less",
)
"""Columns of `class_fit`.

expected_i  cross term over that of the typical class of the run, 1 where a particle is typical
missing_i   (cross term - what the own class would give) over its standard deviation, 0 on average for a member
share_i     correlation coefficient of particle and class in the band
left_*_i    logarithm of the power left after the class is taken away, 0 where it is the noise's
at_centre   what the round mean of the typical class fits at the particle's place, in standard deviations of noise;
near_centre and far_away  elsewhere within 0.8 diameters, and beyond; second_*  the same after the class is taken away
blob_*      what a blob of a quarter of the diameter fits best, inside, in what is left; less: its negative
"""

NEAR, FAR = 0.5, 1.6
"""Particle radii from the particle's place between which another one overlaps with it; neighbours lie beyond."""


@dataclass(frozen=True)
class _Places:
    """Frequency bands and regions of the image, the same for all particles of a run.

    Attributes
    ----------
    band : Tensor of shape (bands, r)
        1 for the rings of each band, else 0.
    tops : tuple of int
        Number of rings up to the end of each band.
    inside, around : Tensor of shape (n, n)
        Windows of the particle and of its surroundings.
    centre, near, far, within : Tensor
        Pixels where the particle, a neighbour, or a blob may be.
    """

    band: Tensor
    tops: tuple[int, ...]
    inside: Tensor
    around: Tensor
    centre: Tensor
    near: Tensor
    far: Tensor
    within: Tensor

    @classmethod
    def of(cls, model: Model, rings: int) -> _Places:
        """Return the bands and regions of a run."""
        grid, radius = model.particles.grid, model.particles.particle_radius_px
        band = ring_bands(model, rings)
        ring = torch.arange(rings, device=grid.device)
        tops = tuple(int((row * ring).amax()) + 1 for row in band)
        inside = soft_disc(grid.box, 1.05 * radius, 0.2 * radius, device=grid.device)
        around = (1 - inside) * soft_disc(grid.box, grid.box / 2 - 2, 1.0, device=grid.device)
        distance = centre_distance(grid.box, grid.device) / radius
        limit = distance * radius < grid.box / 2 - 2
        centre, near, far = distance < 0.3, (distance > NEAR) & (distance < FAR) & limit, (distance >= FAR) & limit
        near = near if near.any() else centre
        pixels = (torch.nonzero(where.flatten())[:, 0] for where in (centre, near, far, distance < 1.0))
        return cls(band, tops, inside, around, *pixels)


def class_fit(model: Model, state: State, rings: int) -> Tensor:
    """Compute the features of all particles at their poses in their classes; see FIT_NAMES.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Poses, classes and averages.
    rings : int
        Number of rings compared.

    Returns
    -------
    Tensor of shape (n, f)
        Features.
    """
    assert state.averages is not None
    rings = min(rings, state.averages.halves.shape[2])
    halves = [model.masked(replace(state.averages, orders=half), rings) for half in state.averages.halves]
    powers = torch.stack([ring_power(h) for h in halves])  # (2, k, r)
    typical = weighted_median(powers.mean(0), state.members)
    round_mean = weighted_median((halves[0] + halves[1])[:, :, 0].real / 2, state.members)
    places, most = _Places.of(model, rings), 64 if model.particles.grid.device.type == "cpu" else model.at_once
    chunk = samples_at_once(model.particles.grid, rings, most, model.budget.step_bytes)
    columns = []
    for part, some in model.parts(rings):
        own = state.part(part)
        cuts = gpu_chunks(len(some.half), chunk, model.particles.grid.device)
        of_rows = partial(_of_rows, some, own, halves, powers, typical, round_mean, places)
        parts = (
            on_cores(of_rows, cuts) if model.particles.grid.device.type == "cpu" else [of_rows(rows) for rows in cuts]
        )
        columns.append(torch.cat(parts)[: len(some.half)])
    found = torch.cat(columns)
    # Extremes are measured in the deviation of the usual particle's residual, independent of the chunk.
    extremes = [FIT_NAMES.index("left_brightest"), FIT_NAMES.index("left_darkest")]
    found[:, extremes] /= model.shard.median(found[:, -1]).clamp_min(1e-9)
    return found[:, :-1]


def _of_rows(
    model: Model,
    state: State,
    halves: list[Tensor],
    powers: Tensor,
    typical: Tensor,
    round_mean: Tensor,
    places: _Places,
    rows: slice | Tensor,
) -> Tensor:
    """`class_fit` of some particles, extremes in their own units; last comes the residual's standard deviation."""
    grid, spectra, rings = model.particles.grid, model.particles.single, len(typical)
    index, mirror, other = state.class_index[rows], state.mirror[rows], 1 - model.half[rows]
    first, second = (mirrored_references(half, index, mirror) for half in halves)
    reference = torch.where((other == 0)[:, None, None], first, second)
    posed = turned_samples(grid, reference, state.psi_deg[rows])
    data = spectra.data[rows, :rings] * grid.phase(state.origin_xy_px[rows], rings)
    power = spectra.power[rows, :rings].contiguous()
    scale, band = state.mean_scale, places.band
    cross = (data * posed.conj()).real.sum(2) @ band.T
    norm = (scale * power * powers[other, index]) @ band.T
    expected = (scale * power * typical) @ band.T
    # The cross term's variance is the norm with the references as they are, cross in units of the scale.
    missing = (cross - norm) / torch.sqrt((norm / scale).clamp_min(1e-9) + (SCALE_SD * norm).square())
    energy = torch.where(power > 1e-9, squared(data).sum(2) * grid.n_half / power.clamp_min(1e-9), 0.0) @ band.T
    share = cross / torch.sqrt((energy * norm / scale).clamp_min(1e-12))
    left = data - (scale * state.scale[rows])[:, None, None] * (power / grid.n_half)[..., None] * posed
    white = left / torch.sqrt(grid.weight[:rings] * power / grid.n_half).clamp_min(1e-9)[..., None]
    white = torch.where((power > 1e-9)[..., None], white, 0.0)
    blobs = _blobs(model, data, left, power, round_mean, places)
    powers_left, deviation = _left(model, white, places)
    return torch.cat([cross / expected.clamp_min(1e-9), missing, share, powers_left, blobs, deviation[:, None]], dim=1)


def _blobs(model: Model, data: Tensor, left: Tensor, power: Tensor, round_mean: Tensor, places: _Places) -> Tensor:
    """Signs of further particles (b, f): round templates matched everywhere, in the image and in its residual."""
    grid, radius, near, far = model.particles.grid, model.particles.particle_radius_px, places.near, places.far
    whole = _matched(grid, data, power, round_mean)
    rest = _matched(grid, left, power, round_mean)
    detail = grid.frequency[: len(round_mean)] * 2 * radius
    blob = torch.exp(-0.5 * (detail / 3.0) ** 2) * (1 - torch.exp(-(detail**2)))
    small = _matched(grid, left, power, blob).index_select(1, places.within)
    columns = [_largest(whole, places.centre), _largest(whole, near), _largest(whole, far), _largest(rest, near)]
    columns += [_largest(rest, far), small.amax(1), -small.amin(1)]
    return torch.stack(columns, dim=1)


def _largest(images: Tensor, where: Tensor) -> Tensor:
    """Maximum (b,) of images (b, p) at some of their pixels; 0 where there is none."""
    return images.index_select(1, where).amax(1) if len(where) else images.new_zeros(len(images))


def _matched(grid: RingGrid, data: Tensor, power: Tensor, template: Tensor) -> Tensor:
    """Matched filter (b, n * n) of a round template (r,), in standard deviations of noise."""
    sd = torch.sqrt((power @ template.square()).clamp_min(1e-12))
    return grid.image(data / grid.weight[: len(template), None] * template[:, None]).flatten(1) / sd[:, None]


def _left(model: Model, white: Tensor, places: _Places) -> tuple[Tensor, Tensor]:
    """Powers and extremes (b, f) of what is left (b, r, H), whitened, inside and around; and its deviation (b,)."""
    grid, inside = model.particles.grid, places.inside
    near: list[Tensor] = []
    far: list[Tensor] = []
    images: list[Tensor] = []
    for band, top in zip(places.band, places.tops, strict=True):
        image = grid.image(white[:, :top] * band[:top, None])  # there is nothing of the band beyond
        images.append(image)
        area = (grid.n_half * grid.weight[: white.shape[1]] * band).sum().clamp_min(1e-12)  # of the band
        for region, powers in ((inside, near), (places.around, far)):
            mean = (image.square() * region).sum((1, 2)) / region.sum().clamp_min(1)
            powers.append(torch.log((mean / area).clamp_min(1e-4)))
    coarse = images[0] + images[1] + images[2]
    within = coarse.flatten(1).index_select(1, torch.nonzero((inside > 0.5).flatten())[:, 0])
    return torch.stack([*near, *far, within.amax(1), -within.amin(1)], dim=1), row_sd(coarse.flatten(1))


def ring_bands(model: Model, rings: int) -> Tensor:
    """Return which rings belong to which band; a band beyond the rings is the last one within them.

    Parameters
    ----------
    model : Model
        The particles and the model.
    rings : int
        Number of rings.

    Returns
    -------
    Tensor of shape (bands, rings)
        1 for the rings of each band, else 0.
    """
    detail = model.particles.grid.frequency[:rings] * 2 * model.particles.particle_radius_px
    rows: list[Tensor] = []
    for low, high in itertools.pairwise(BANDS):
        inside = ((detail >= low) & (detail < high)).float()
        rows.append(inside if inside.any() or not rows else rows[-1])
    return torch.stack(rows)
