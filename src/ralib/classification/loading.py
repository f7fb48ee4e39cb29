"""Loading for a classification: batches, the particle's extent, halves, held-out particles, and notes for the log."""

from __future__ import annotations

from dataclasses import astuple, replace

import torch
from torch import Tensor

from ralib.classification.diameter import measure_radius
from ralib.classification.memory_plan import Budget
from ralib.classification.options import ClassificationOptions
from ralib.classification.particle_extent import ParticleExtent
from ralib.classification.recorded_detail import LOOKED_AT, recorded_per_px, spread_batches
from ralib.classification.sharding import Shard
from ralib.classification.whitening import WhitenedParticles
from ralib.particles.batches import RESIDENT_SHARE, ParticleBatches, usual_batch_size
from ralib.runtime.distributed import Ranks
from ralib.runtime.memory import free_memory
from ralib.types import ParticleSet

GPU_BATCH_BYTES = 2**28
"""Images of a batch on a GPU; half a dozen times as much is taken while some are read, and others prepared."""
GPU_BATCH_SHARE = 1 / 128
"""Share of a GPU's memory that a batch takes at most: spectra leave little of a small one."""


def resident_batches(
    particles: ParticleSet, shard: Shard, device: torch.device, batch_size: int | None, *, once: bool = False
) -> ParticleBatches:
    """Return this rank's particles in batches, which stay on the device where all of them fit.

    Parameters
    ----------
    particles : ParticleSet
        All particles.
    shard : Shard
        This rank's share of them.
    device : torch.device
        Where the batches are.
    batch_size : int or None
        Particles in a batch; by default chosen for the device.
    once : bool, default False
        Whether they are read only once, so that none has to stay.

    Returns
    -------
    ParticleBatches
        The batches.
    """
    on_cpu = device.type == "cpu"
    usual = 1024 if on_cpu else usual_batch_size(device, particles.box, GPU_BATCH_BYTES, gpu_share=GPU_BATCH_SHARE)
    # Spectra are read a dozen times, images twice: they stay only where all of them do.
    all_bytes, room_bytes = 2 * len(shard) * particles.box**2, RESIDENT_SHARE * free_memory(device)
    return ParticleBatches(
        particles,
        range(shard.rows.start, shard.rows.stop),
        batch_size=batch_size or usual,
        device=device,
        background_radius=0.45 * particles.box,
        resident_bytes=int(room_bytes) if all_bytes <= room_bytes and not once else 0,
        turned_often=False,
    )


def particle_extent(
    particles: ParticleSet,
    options: ClassificationOptions,
    *,
    device: torch.device,
    ranks: Ranks,
    budget: Budget,
    at_most: int,
) -> ParticleExtent:
    """Return the particle's extent: as asked for, or measured.

    Parameters
    ----------
    particles : ParticleSet
        All particles.
    options : ClassificationOptions
        The options.
    device : torch.device
        Where to compute.
    ranks : Ranks
        The processes that share the particles; all have the same result.
    budget : Budget
        Memory of a step.
    at_most : int
        Particles that are looked at.

    Returns
    -------
    ParticleExtent
        The extent.
    """
    if options.diameter_A:
        asked = ParticleExtent.of_mask(options.diameter_A / (particles.pixel_size_A or 1.0) / 2)
        found = replace(asked, recorded_per_px=recorded_per_px(spread_batches(particles, LOOKED_AT, device)))
    else:
        found = measure_radius(
            particles,
            device=device,
            search_px=options.search_radius_px(particles),
            ctf=options.ctf_mode(particles),
            mirror=options.mirror,
            budget=budget,
            at_most=at_most,
        )
    # All ranks measured the same few particles; where their devices differ, the result of rank 0 is used.
    measured = torch.tensor([float(value) for value in astuple(found)], dtype=torch.float64)
    radius, rim, crowded, recorded = ranks.broadcast_(measured).tolist()
    return ParticleExtent(radius, rim, bool(crowded), recorded)


def random_halves(particles: ParticleSet, generator: torch.Generator) -> Tensor:
    """Return which half of the data each particle is in; an image that is there more than once is in one.

    Parameters
    ----------
    particles : ParticleSet
        All n particles.
    generator : torch.Generator
        Random numbers.

    Returns
    -------
    Tensor of shape (n,)
        0 or 1.
    """
    half = torch.randperm(len(particles), generator=generator) % 2
    return half if particles.same_as is None else half[torch.from_numpy(particles.same_as)]


def held_out(particles: ParticleSet, generator: torch.Generator) -> Tensor:
    """Return which particles no average holds: a twentieth, 20 to 500; none of fewer than 160, which cannot spare them.

    An image that is there more than once is held out each time.

    Parameters
    ----------
    particles : ParticleSet
        All n particles.
    generator : torch.Generator
        Random numbers.

    Returns
    -------
    Tensor of shape (n,)
        True where held out.
    """
    n = len(particles)
    held = torch.zeros(n, dtype=torch.bool)
    if n >= 160:
        held[torch.randperm(n, generator=generator)[: min(500, max(20, n // 20))]] = True
    return held if particles.same_as is None else held[torch.from_numpy(particles.same_as)]


def findings(
    particles: ParticleSet, whitened: WhitenedParticles, shard: Shard, extent: ParticleExtent, *, asked: bool
) -> list[str]:
    """Return the lines of the log on the images before they are classified.

    Parameters
    ----------
    particles : ParticleSet
        All particles.
    whitened : WhitenedParticles
        This rank's particles, whitened.
    shard : Shard
        Which these are.
    extent : ParticleExtent
        The particle's extent.
    asked : bool
        Whether it is that asked for.

    Returns
    -------
    list of str
        Lines of the log.
    """
    unit, per_px = ("A", particles.pixel_size_A) if particles.pixel_size_A else ("px", 1.0)
    particle, mask = (2 * per_px * px / whitened.scale for px in (whitened.particle_radius_px, whitened.radius_px))
    how = "as asked for" if asked else "from coarse class averages"
    if extent.crowded:
        how += ", neighbours begin right behind"
    recorded_px = 1 / extent.recorded_per_px
    filtered = f"the images hold next to nothing finer than {per_px * recorded_px:.3g} {unit} (filtered, or enlarged)"
    outliers = int(shard.count(whitened.outliers.found))
    share = 100 * outliers / len(particles)
    return [
        f"particle diameter {particle:.0f} {unit}, mask {mask:.0f} {unit}: {how}",
        *([f"{filtered}: no finer detail is compared"] if recorded_px > 2 else []),
        *([str(whitened.plan)] if whitened.plan.reported else []),
        f"{outliers} images ({share:.1f}%) are outliers by their spectrum, brightest pixel or gradient: no class "
        "begins from them, and no average holds them",
    ]
