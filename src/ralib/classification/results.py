"""Results of a classification: averages at full box and pixel size, poses, and the figures of an iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ralib.classes.averages import ClassSums, class_averages, ctf_power_in_class_frame
from ralib.classes.iteration_figures import frc_resolution_px, iteration_figures, resolution_figures
from ralib.classification.sharding import Shard
from ralib.classification.state import State
from ralib.classification.whitening import WhitenedParticles
from ralib.conventions import wrap_deg
from ralib.images.ctf import correct_ctf
from ralib.images.fourier import filter_images, spread_rings
from ralib.images.frc import masked_frc, signal_power_share
from ralib.kernels.threads import on_cores
from ralib.particles.batches import Batch, ParticleBatches
from ralib.runtime.chunks import CORE_ROWS, on_gpu
from ralib.runtime.distributed import Ranks
from ralib.types import ClassAverages, ParticleSet, Poses


def full_averages(
    particles: ParticleSet,
    batches: ParticleBatches,
    poses: Poses,
    half: Tensor,
    *,
    ctf: str,
    n_classes: int,
    ranks: Ranks,
    look: Callable[[Batch], None] = lambda _: None,
) -> ClassAverages:
    """Compute CTF-corrected averages, half averages and FRC of all classes.

    Wiener's filter with each class's measured SSNR. The averages are not filtered otherwise, and not masked.

    Parameters
    ----------
    particles : ParticleSet
        The particles.
    batches : ParticleBatches
        The particles in batches.
    poses : Poses
        Their poses.
    half : Tensor of shape (n,)
        Half data set of each.
    ctf : str
        CTF correction, 'on' or 'off'.
    n_classes : int
        Number of classes.
    ranks : Ranks
        Each adds the particles of its batches; poses and halves are those of all particles.
    look : callable, optional
        Called with every batch: what else is to be read of the images, once.

    Returns
    -------
    ClassAverages
        The averages.
    """
    corrected = ctf != "off" and particles.ctf is not None and particles.pixel_size_A is not None
    sums = ClassSums.empty(n_classes, particles.box, batches.device, ctf=corrected)
    for batch in batches:
        member, power, images = poses[batch.rows], None, batch.images
        if corrected:
            images, power = _corrected(particles, batch, member)
        sums.add_(images, member, half[batch.rows].to(batches.device), power)
        look(batch)
    sums.all_reduce_(ranks)
    return class_averages(sums, pixel_size_A=particles.pixel_size_A)


def _corrected(particles: ParticleSet, batch: Batch, poses: Poses) -> tuple[Tensor, Tensor]:
    """Images (b, n, n) of a batch times their CTF, and CTF^2 in the frame of their class averages."""
    assert particles.ctf is not None
    assert particles.pixel_size_A is not None
    own, pixel_A, box = particles.ctf[batch.index], particles.pixel_size_A, particles.box

    def of(cut: slice) -> tuple[Tensor, Tensor]:
        images = correct_ctf(batch.images[cut], own[cut], pixel_A, noise_as_taken=True)
        images = images.masked_fill(~batch.usable[cut, None, None], 0.0)
        return images, ctf_power_in_class_frame(own[cut], poses[cut], box, pixel_A)

    n = len(batch.index)
    if on_gpu(batch.images):
        return of(slice(0, n))
    parts = on_cores(of, [slice(first, first + CORE_ROWS) for first in range(0, n, CORE_ROWS)])
    images, power = (torch.cat(some) for some in zip(*parts, strict=True))
    return images, power


def coarse_averages(particles: WhitenedParticles, state: State, pixel_size_A: float | None) -> ClassAverages:
    """Return the averages of an iteration, at the working box and pixel size.

    Parameters
    ----------
    particles : WhitenedParticles
        The particles.
    state : State
        State of the iteration.
    pixel_size_A : float or None
        Pixel size of the input, Angstrom.

    Returns
    -------
    ClassAverages
        The averages.
    """
    assert state.averages is not None
    grid = particles.grid
    images = grid.image_of_orders(state.averages.orders).cpu()
    pixel = None if pixel_size_A is None else pixel_size_A / particles.scale
    return ClassAverages(images=images, members=state.members.cpu(), pixel_size_A=pixel)


def filtered(averages: ClassAverages) -> Tensor:
    """Return averages (k, n, n) with every ring weighted by sqrt(2 FRC / (1 + FRC)), 0 where halves disagree.

    The weight is the expected correlation of the average with a perfect one (Rosenthal and Henderson 2003).
    """
    assert averages.frc is not None
    weight = torch.sqrt(signal_power_share(averages.frc))
    weight[:, 0] = 1.0
    return filter_images(averages.images, spread_rings(weight, averages.images.shape[-1]))


def on_host(averages: ClassAverages) -> ClassAverages:
    """Return the averages in main memory."""
    halves, curve = averages.half_images, averages.frc
    return replace(
        averages,
        images=averages.images.cpu(),
        members=averages.members.cpu(),
        half_images=None if halves is None else halves.cpu(),
        frc=None if curve is None else curve.cpu(),
    )


def state_poses(state: State, particles: WhitenedParticles, shard: Shard) -> Poses:
    """Return the poses in pixels of the input; the score is the log-likelihood ratio.

    Parameters
    ----------
    state : State
        The state of a rank's particles.
    particles : WhitenedParticles
        Those particles.
    shard : Shard
        Which of all particles they are.

    Returns
    -------
    Poses
        Poses of all particles.
    """
    index = torch.where(particles.usable, state.class_index, -1)
    score = state.fit.gather(1, state.class_index[:, None])[:, 0]
    own = Poses(wrap_deg(state.psi_deg), state.origin_xy_px / particles.scale, state.mirror, index, score)
    return Poses(**{name: shard.gather(part) for name, part in vars(own).items()})


def schedule_figures(
    stage: str,
    number: int,
    state: State,
    poses: Poses,
    previous: Poses | None,
    particles: WhitenedParticles,
    pixel_size_A: float | None,
    seconds: float,
    counted: Tensor,
) -> dict[str, Any]:
    """Compute the figures of one iteration.

    Parameters
    ----------
    stage : str
        Name of the stage.
    number : int
        Number of the iteration.
    state : State
        State after it.
    poses : Poses
        Its poses.
    previous : Poses or None
        Poses of the iteration before, or None.
    particles : WhitenedParticles
        The particles.
    pixel_size_A : float or None
        Pixel size of the input, Angstrom.
    seconds : float
        Duration, s.
    counted : Tensor of shape (n,)
        Particles that averages are made of, whose fits count: those of beads and carbon are as large as random.

    Returns
    -------
    dict
        The figures by name.
    """
    sketch = ClassAverages(
        images=torch.zeros(len(state.members), 1, 1), members=state.members, pixel_size_A=pixel_size_A
    )
    radius_px = particles.particle_radius_px / particles.scale
    row = iteration_figures(number, poses, previous, sketch, radius_px, seconds, counted)
    of_classes = frc_resolution_px(coarse_frc(state, particles).cpu().float(), particles.grid.box)
    resolution_px = [coarse_px / particles.scale for coarse_px in of_classes]
    return row | {"stage": stage} | resolution_figures(resolution_px, pixel_size_A)


def coarse_frc(state: State, particles: WhitenedParticles) -> Tensor:
    """Return the FRC of the averages' halves on the working grid, as `images.frc.masked_frc` has it for the final ones.

    Parameters
    ----------
    state : State
        State of an iteration.
    particles : WhitenedParticles
        The particles.

    Returns
    -------
    Tensor of shape (k, n // 2 + 1)
        FRC, of the working box n.
    """
    assert state.averages is not None
    grid, halves = particles.grid, state.averages.halves
    images = grid.image_of_orders(halves.flatten(0, 1)).unflatten(0, halves.shape[:2])
    return masked_frc(ClassAverages(images.mean(0), state.members, images), particles.radius_px)
