"""The final classes: of equal size if asked for, one of junk where there is much; notices; averages and their FRC."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ralib.classes import assignment as assign
from ralib.classification.em import average_groups
from ralib.classification.exchange import counted
from ralib.classification.loading import random_halves
from ralib.classification.model import Model
from ralib.classification.noise_substitution import corrected_frc, substituted_ssnr
from ralib.classification.pose_search import search_all
from ralib.classification.results import full_averages, on_host
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.state import IterationSettings, State
from ralib.images.frc import masked_frc
from ralib.io.plausible import named
from ralib.particles.batches import Batch, ParticleBatches
from ralib.types import ClassAverages, Notice, ParticleSet, Poses

ONLY_JUNK = 0.9
"""Share of junk from which on a class is left to it."""


def equalised(model: Model, schedule: ClassificationSchedule, state: State) -> State:
    """Return the state with classes of equal size: a balanced assignment of the usable particles over the final fits.

    Parameters
    ----------
    model : Model
        The particles.
    schedule : ClassificationSchedule
        The schedule at its end.
    state : State
        Its state; its references become those of the new classes.

    Returns
    -------
    State
        The state, with the pose of each particle in its new class.
    """
    assert schedule.references is not None
    rings = schedule.references.shape[1]
    found = search_all(model, schedule.references, state, IterationSettings(rings, 1.0))
    fit = model.fit(found, state)
    usable, index = model.shard.gather(model.particles.usable), torch.zeros(model.shard.n, dtype=torch.int64)
    # A balanced assignment needs every fit of every particle: once, and with --EQ only.
    index[usable.cpu()] = assign.equal_sizes(model.shard.gather(fit)[usable].cpu())
    index = index[model.shard.rows].to(fit.device)
    pose = found.pick(index)
    state = replace(
        state,
        psi_deg=pose.psi_deg,
        origin_xy_px=pose.origin_xy_px,
        mirror=pose.mirror,
        class_index=index,
        fit=fit,
        posterior=torch.softmax(fit, 1).gather(1, index[:, None])[:, 0],
        members=model.members(index, fit.shape[1]),
    )
    averages, own = average_groups(model, state, index, fit.shape[1], rings)
    schedule.references = model.masked(averages, rings)
    return replace(state, averages=averages, own=own)


def without_class(poses: Poses, left_out: Tensor) -> Poses:
    """Return the poses of which class averages are made.

    Outliers belong to a class, but one bead would outshine all of it.

    Parameters
    ----------
    poses : Poses
        Poses of n particles.
    left_out : Tensor of shape (n,)
        Particles to leave out.

    Returns
    -------
    Poses
        Poses, of class -1 for those.
    """
    return poses.replace(class_index=torch.where(left_out, -1, poses.class_index))


def with_class_of_junk(poses: Poses, junk: Tensor, n_classes: int) -> tuple[Poses, Tensor]:
    """Return poses of which junk is in a class of its own, the last.

    Classes of hardly anything but junk keep theirs, so that none is left empty; if all junk is in such, no class is
    added.

    Parameters
    ----------
    poses : Poses
        Poses of n particles.
    junk : Tensor of shape (n,)
        Which of them are junk.
    n_classes : int
        Number of classes.

    Returns
    -------
    Poses
        The poses.
    Tensor of shape (k,)
        Which of the classes, one more or as many as before, are of junk.
    """
    index = poses.class_index
    total, bad = (torch.bincount(index[chosen], minlength=n_classes) for chosen in (index >= 0, junk))
    of_junk = bad > ONLY_JUNK * total
    moved = junk & ~of_junk[index]
    if not bool(moved.any()):
        return poses, of_junk
    return poses.replace(class_index=torch.where(moved, n_classes, index)), torch.cat([of_junk, torch.tensor([True])])


def fewer_classes(asked: int, there_are: int) -> list[Notice]:
    """Return the notice that there are fewer classes than asked for, if so.

    Parameters
    ----------
    asked : int
        Number of classes asked for.
    there_are : int
        Number of classes in the end.

    Returns
    -------
    list of Notice
        One notice, or none.
    """
    if there_are >= asked:
        return []
    what = f"{counted(there_are)} in place of {asked}: no particles were left for {asked - there_are}, since others "
    remedy = "ask for fewer classes, or give more particles"
    return [Notice(what=f"{what}explain them as well", where="classes", remedy=remedy)]


def unusable_images(particles: ParticleSet, bad: list[int]) -> list[Notice]:
    """Return the warning that names images which are not finite or constant, unless it has been given.

    Parameters
    ----------
    particles : ParticleSet
        The particles; `usable` tells what is known of them already.
    bad : list[int]
        Numbers of such images.

    Returns
    -------
    list[Notice]
        One notice, or none.
    """
    rows = np.zeros(len(particles), dtype=bool)
    rows[bad] = True
    if particles.usable is not None:
        rows &= particles.usable
    if not rows.any():
        return []
    what = f"{named(rows)} left out: the images are not finite or constant"
    return [Notice(what=what, where="input", remedy="repair or remove them")]


def final_averages(
    particles: ParticleSet,
    batches: ParticleBatches,
    schedule: ClassificationSchedule,
    state: State,
    shown: Poses,
    left_out: Tensor,
    *,
    ctf: str,
    n_classes: int,
    seed: int,
    recorded_per_px: float,
    look: Callable[[Batch], None],
) -> ClassAverages:
    """Average the members of the final classes at full size; their FRC is without what alignment makes of noise.

    Parameters
    ----------
    particles : ParticleSet
        All n particles.
    batches : ParticleBatches
        This rank's share of them.
    schedule : ClassificationSchedule
        The schedule at its end.
    state : State
        Its state.
    shown : Poses
        Final poses and classes of all particles.
    left_out : Tensor of shape (n,)
        True for particles that no average holds.
    ctf : str
        CTF correction, 'on' or 'off'.
    n_classes : int
        Number k of classes.
    seed : int
        Of the halves, and of the noise.
    recorded_per_px : float
        Frequency beyond which the images hold nothing, cycles per pixel: the FRC is 0 there.
    look : callable
        Is given each batch.

    Returns
    -------
    ClassAverages
        The averages, on the host; `members` counts also those left out.
    """
    model, whitened = schedule.model, schedule.model.particles
    halves = random_halves(particles, torch.Generator().manual_seed(seed))
    poses = without_class(shown, left_out).to(whitened.grid.device)
    averages = on_host(
        full_averages(
            particles, batches, poses, halves, ctf=ctf, n_classes=n_classes, ranks=model.shard.ranks, look=look
        )
    )
    assert schedule.references is not None
    generator = torch.Generator().manual_seed(seed)
    of_noise = substituted_ssnr(model, state, schedule.references, generator, per_class=schedule.plan.substituted).cpu()
    frc = corrected_frc(masked_frc(averages, whitened.radius_px / whitened.scale), of_noise, averages.members)
    if recorded_per_px < 0.5:
        frc[:, math.ceil(recorded_per_px * particles.box) :] = 0.0
    return replace(
        averages,
        members=torch.bincount(shown.class_index[shown.class_index >= 0], minlength=n_classes),
        frc=frc,
    )
