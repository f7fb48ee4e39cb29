"""From images to whitened, CTF-weighted ring samples, computed once.

Batches are read ahead, normalised and moved to the device by `ralib.particles.batches`; here they are cropped to the
resolution that the classes can have and transformed, outlier images are detected, and the noise of each group is
measured on the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from ralib.classification import noise
from ralib.classification.likelihood import Spectra
from ralib.classification.memory_plan import SpectraPlan, plan_spectra
from ralib.classification.outliers import FEATURES, Outliers, find_outliers, image_features
from ralib.classification.ring_ctf import RingCtf, mean_square, noise_sd, ring_ctf
from ralib.classification.ring_grid import RingGrid, ring_spacing
from ralib.classification.sharding import Shard
from ralib.classification.stored_spectra import SpectraWriter, StoredSpectra
from ralib.images.fourier import fourier_resize
from ralib.images.masks import soft_disc
from ralib.images.row_sums import row_sd
from ralib.kernels.complex_numbers import squared
from ralib.kernels.threads import on_cores
from ralib.particles.batches import AT_ONCE, Batch, ParticleBatches
from ralib.runtime.chunks import CORE_ROWS, gpu_chunks, on_gpu
from ralib.types import CtfState, ParticleSet

MASK_MARGIN = 1.25
"""The mask's radius over the particle's: a margin for long views, and for classes that are not quite centred. A wider
mask includes neighbours where boxes hold them; 1.4 cost 2 to 7 degrees on three crowded sets."""

MASK_EDGE_PX = 4.0

LARGEST_RADIUS = 0.42
"""The mask's largest radius as a fraction of the box: beyond it there would be no background left."""

FINEST_IN_WORK_BOX = 0.36
"""Frequency of the finest ring in the working box, cycles per working pixel: interpolation needs what is left."""

FINEST = 0.45
"""The finest detail compared, cycles per pixel: what interpolation leaves alone."""

CLEANEST = 0.03
"""The least standard deviation of the background over that of the image: a likelihood weighs against noise."""

VIEW_BLUR = 2.7
"""How far the rings go beyond the detail at which neighbouring classes differ; see `highest_frequency`."""


@dataclass(frozen=True)
class WhitenedParticles:
    """The particles of one run on the rings, and their geometry; lengths in working pixels.

    Attributes
    ----------
    grid : RingGrid
        The ring grid.
    spectra : Spectra
        Whitened, CTF-weighted samples.
    scale : float
        Working pixels for each pixel of the input (below 1 where images were cropped in Fourier space).
    mask : Tensor of shape (n, n)
        Soft mask of the class averages.
    radius_px : float
        Radius at which the mask begins to fall.
    particle_radius_px : float
        Radius that holds the particle.
    usable : Tensor of shape (n,)
        False for images that are not finite or constant.
    outliers : Outliers
        Outlier images, which join no average and initialise no class.
    aside : Tensor of shape (n,)
        Junk that was recognised in classes, and is treated likewise.
    observed : Tensor of shape (n, R)
        Power of each image on the rings over the noise assumed.
    plan : SpectraPlan
        Where the spectra are kept.
    """

    grid: RingGrid
    spectra: Spectra | StoredSpectra
    scale: float
    mask: Tensor
    radius_px: float
    particle_radius_px: float
    usable: Tensor
    outliers: Outliers
    aside: Tensor
    observed: Tensor
    plan: SpectraPlan

    @property
    def single(self) -> Spectra:
        """Spectra in single precision, as those of a part are (`Model.parts`)."""
        assert isinstance(self.spectra, Spectra)
        return self.spectra

    @cached_property
    def typical(self) -> Tensor:
        """Images (n,) that are usable and no outliers."""
        return self.usable & ~self.outliers.found & ~self.aside

    @property
    def support_px(self) -> float:
        """Radius beyond which a masked class average is zero."""
        return self.radius_px + MASK_EDGE_PX * self.scale

    def of(self, rows: Tensor) -> WhitenedParticles:
        """Return some of the particles."""
        return self._part(rows, self.spectra[rows])

    def sample(self, rows: Tensor, n: int) -> WhitenedParticles:
        """Return a sample of the particles; see `StoredSpectra.sample`."""
        return self._part(rows, self.spectra.sample(rows, n))

    def _part(self, rows: Tensor | slice, spectra: Spectra | StoredSpectra) -> WhitenedParticles:
        return replace(
            self,
            spectra=spectra,
            usable=self.usable[rows],
            outliers=self.outliers[rows],
            aside=self.aside[rows],
            observed=self.observed[rows],
        )

    def setting_aside(self, junk: Tensor) -> WhitenedParticles:
        """Return the particles with `junk` (n,) set aside."""
        return replace(self, aside=self.aside | junk)

    def part(self, rows: slice, spectra: Spectra) -> WhitenedParticles:
        """Return some of the particles, whose spectra are given.

        Parameters
        ----------
        rows : slice
            The particles b.
        spectra : Spectra
            Their spectra.

        Returns
        -------
        WhitenedParticles
            The particles.
        """
        return self._part(rows, spectra)

    def with_noise(self, ratio: Tensor) -> WhitenedParticles:
        """Return the particles for `ratio` (R,) times the noise power; the samples are changed in place."""
        return replace(self, spectra=self.spectra.divided(ratio), observed=self.observed / ratio)

    def orders(self, rings: int) -> int:
        """Return the number of angular orders of a masked class average on the first rings."""
        return self.grid.orders(rings, self.support_px)

    def rings_for(self, details_across: float) -> int:
        """Return how many rings resolve this many details (full periods) across a particle."""
        frequency = details_across / (2 * self.particle_radius_px)
        return max(3, min(self.grid.n_rings, round(frequency / self.grid.spacing + 0.5)))


def highest_frequency(n_classes: int, particle_radius_px: float) -> float:
    """Return the frequency beyond which K class averages can show nothing, with a margin.

    K classes that share the views of a particle (a hemisphere of them, where mirrors count as one) are caps of half
    angle acos(1 - 1/K). Within a cap, points at the particle's rim move relative to each other by radius times angle.

    Parameters
    ----------
    n_classes : int
        Number of classes K.
    particle_radius_px : float
        Radius of the particle, pixels.

    Returns
    -------
    float
        Cycles per pixel.
    """
    angle = math.acos(1 - 1 / max(n_classes, 2))
    return VIEW_BLUR / (particle_radius_px * angle)


def whiten_particles(
    particles: ParticleSet,
    batches: ParticleBatches,
    shard: Shard,
    *,
    n_classes: int,
    radius_px: float,
    particle_radius_px: float,
    resolution_px: float | None,
    lowest_px: float | None,
    ctf: str,
    recorded_per_px: float = 0.5,
    most_detail: tuple[float, int] | None = None,
    half: bool = False,
) -> WhitenedParticles:
    """Read a rank's particles and transform them to whitened ring samples.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    batches : ParticleBatches
        Those of the shard in batches.
    shard : Shard
        Which of the particles are read; noise and outliers are judged by all.
    n_classes : int
        Number of classes.
    radius_px : float
        Radius of the mask, input pixels.
    particle_radius_px : float
        Radius of the particle, input pixels.
    resolution_px : float or None
        Finest detail used, input pixels; None is that of `highest_frequency`.
    lowest_px : float or None
        Coarsest detail used, input pixels; None is no limit.
    ctf : str
        'off' or 'on'; earlier CTF treatment of the images is in the CTF's `state`.
    recorded_per_px : float, default 0.5
        Frequency beyond which the images hold nothing, cycles per pixel of the input.
    most_detail : tuple of float and int, optional
        Details across the particle, and rings beyond, that are the most that will be compared; by default all detail.
    half : bool, default False
        Whether the spectra are kept in half precision, whatever memory there is.

    Returns
    -------
    WhitenedParticles
        The particles.
    """
    device, box = batches.device, particles.box
    mask_radius = min(radius_px, LARGEST_RADIUS * box)
    particle_radius = min(particle_radius_px, mask_radius)
    limit = 1 / resolution_px if resolution_px else highest_frequency(n_classes, particle_radius)
    limit = min(FINEST, limit, recorded_per_px)
    if most_detail is not None:
        beyond = (most_detail[1] + 1) * ring_spacing(box / 2 - 1, mask_radius + MASK_EDGE_PX)
        limit = min(limit, most_detail[0] / (2 * particle_radius) + beyond)
    work_box = min(box, 2 * math.ceil(box * limit / FINEST_IN_WORK_BOX / 2))
    scale = work_box / box
    grid = _ring_grid(work_box, mask_radius * scale, limit / scale, device)
    n_samples, taken_bytes = grid.n_rings * grid.n_half, batches.coming_bytes
    plan = plan_spectra(len(shard), n_samples, device, half=half, taken_bytes=taken_bytes)
    samples = _read(particles, batches, shard, grid, scale, ctf, plan)
    spectra, observed = _whitened(particles, shard, grid, scale, samples, ctf)
    if lowest_px is not None:
        coarse = grid.frequency * scale < 1 / lowest_px
        spectra = spectra.without(coarse)
    mask = soft_disc(work_box, mask_radius * scale, MASK_EDGE_PX * scale, device=device)
    radii = mask_radius * scale, particle_radius * scale
    usable, none = samples.usable, torch.zeros_like(samples.usable)
    return WhitenedParticles(grid, spectra, scale, mask, *radii, usable, samples.outliers, none, observed, plan)


def _ring_grid(box: int, mask_radius: float, highest: float, device: torch.device) -> RingGrid:
    disc, partner = box / 2 - 1, mask_radius + MASK_EDGE_PX
    n_rings = max(4, int(highest / ring_spacing(disc, partner)))
    return RingGrid.create(box, radius_px=disc, partner_radius_px=partner, n_rings=n_rings, device=device)


@dataclass(frozen=True)
class _Samples:
    """Samples of all images as they are read.

    Attributes
    ----------
    data : Tensor of shape (n, R, H), or SpectraWriter
        Samples; what is written elsewhere has been multiplied by what is left to do of the CTF.
    power : Tensor of shape (n, R)
        Their power.
    passed : Tensor of shape (n, R)
        Mean square of the CTF, where samples are written elsewhere.
    usable : Tensor of shape (n,)
        True for usable images.
    outliers : Outliers
        Outlier images.
    """

    data: Tensor | SpectraWriter
    power: Tensor
    passed: Tensor
    usable: Tensor
    outliers: Outliers


def _read(
    particles: ParticleSet,
    batches: ParticleBatches,
    shard: Shard,
    grid: RingGrid,
    scale: float,
    ctf: str,
    plan: SpectraPlan,
) -> _Samples:
    n = len(shard)
    shape = (n, grid.n_rings, grid.n_half)
    data: Tensor | SpectraWriter = (
        SpectraWriter(plan, grid.device) if plan.half else torch.zeros(shape, dtype=torch.complex64, device=grid.device)
    )
    power = torch.zeros(n, grid.n_rings, device=grid.device)
    passed = torch.ones(n if plan.half else 0, grid.n_rings, device=grid.device)
    features = torch.zeros(n, len(FEATURES), device=grid.device)
    usable = torch.ones(n, dtype=torch.bool, device=grid.device)
    treated = ctf != "off" and particles.ctf is not None and bool(particles.pixel_size_A and particles.ctf.state.any())
    for batch in batches:
        rows, b = batch.rows_from(batches.rows.start), len(batch.index)
        cuts = gpu_chunks(b, AT_ONCE if on_gpu(power) else CORE_ROWS, grid.device)
        sampled = partial(_sampled, particles, batch, grid=grid, scale=scale, treated=treated)
        found = zip(*(map(sampled, cuts) if on_gpu(power) else on_cores(sampled, cuts)), strict=True)
        samples, power[rows], features[rows] = (torch.cat(parts)[:b] for parts in found)
        usable[rows] = batch.usable
        if isinstance(data, SpectraWriter):
            passed[rows] = _write(data, samples, ring_ctf(particles, batch.rows, grid, scale, batch.usable, ctf))
        else:
            data[rows] = samples
    # What is usual follows from all images together.
    outliers = find_outliers(shard.gather(features), shard.gather(usable))
    return _Samples(data, power, passed, usable, outliers[shard.rows])


def _sampled(
    particles: ParticleSet, batch: Batch, cut: slice | Tensor, grid: RingGrid, scale: float, treated: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Samples (b, R, H), their power (b, R) and the features (b, f) of some images of a batch.

    Where images were treated for the CTF before (`treated`), their background is not as strong as the micrograph's.
    """
    images = _limited_brightness(batch.images[cut])
    if treated:
        index = batch.index[cut if isinstance(cut, slice) else cut.cpu().numpy()]
        images = images * noise_sd(particles, index, batch.usable[cut])
    samples = grid.transform(fourier_resize(images, grid.box))
    power = _least_background(squared(samples).mean(2) / (grid.n_pixels * scale**2), images)
    return samples, power, image_features(images)


def _write(writer: SpectraWriter, samples: Tensor, transfers: RingCtf | None) -> Tensor | float:
    """Write samples (b, R, H) times what is left to do of the CTF, and return the mean square (b, R) of the CTF."""
    if transfers is None:
        writer.add(samples)
        return 1.0
    passed = []
    for first in range(0, len(samples), 1024):
        cut = slice(first, first + 1024)
        transfer = transfers.of(cut)
        writer.add(samples[cut] * transfers.left(cut, transfer))
        passed.append(mean_square(transfer))
    return torch.cat(passed)


def _whitened(
    particles: ParticleSet, shard: Shard, grid: RingGrid, scale: float, samples: _Samples, ctf: str
) -> tuple[Spectra | StoredSpectra, Tensor]:
    """The samples over their noise, times their CTF, in place; and `WhitenedParticles.observed`."""
    n, data = len(shard), samples.data
    group = np.zeros(len(particles), np.int64) if particles.group is None else np.asarray(particles.group)
    transfers = ring_ctf(particles, shard.rows, grid, scale, samples.usable, ctf)
    passed = None
    if transfers is not None and particles.ctf is not None and (particles.ctf.state == CtfState.PREMULTIPLIED).any():
        passed = transfers.noise_power()
    typical = (samples.usable & ~samples.outliers.found).cpu().numpy()
    spectrum = noise.noise_spectra(samples.power.cpu().numpy().astype(np.float64), group, typical, passed, shard)
    sigma2 = torch.from_numpy(spectrum).to(grid.device)
    weight = grid.weight / (sigma2 * scale**2) * samples.usable[:, None]
    power = weight * grid.n_half
    spectra: Spectra | StoredSpectra
    if isinstance(data, SpectraWriter):
        spectra = data.done(weight, power * samples.passed)
    else:
        for first in range(0, n, AT_ONCE):
            cut = slice(first, first + AT_ONCE)
            data[cut] *= weight[cut, :, None]
            if transfers is not None:
                transfer = transfers.of(cut)
                data[cut] *= transfers.left(cut, transfer)
                power[cut] *= mean_square(transfer)
        spectra = Spectra(data, power)
    if passed is not None:
        usual = shard.sum(torch.from_numpy(passed), most=1.0) / shard.n
        sigma2 = sigma2 * usual.float().to(grid.device).clamp_min(1e-3)
    return spectra, samples.power / sigma2


def _least_background(power: Tensor, images: Tensor) -> Tensor:
    """Return the background power (b, R) of images, raised to a thirtieth of the image's deviation where there is less.

    White noise of that power is assumed where a mask has made the background exactly 0.
    """
    least = (CLEANEST * row_sd(images.flatten(1))).square()[:, None]
    return torch.where(power.mean(1, keepdim=True) < least, least, power)


def _limited_brightness(images: Tensor) -> Tensor:
    """Images whose background is no cleaner than a thirtieth of the image: a likelihood weighs against noise."""
    return images / (CLEANEST * row_sd(images.flatten(1))).clamp_min(1.0)[:, None, None]
