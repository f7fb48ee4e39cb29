"""Poses of the particles in the classes: the search of the E-step over all of them, and its refinement off the grid.

Both without each particle's own contribution to the averages, see `leave_one_out`. The search itself is that of
`e_step`, the refinement that of `pose_refinement`; particles whose spectra are kept elsewhere are taken in parts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.e_step import score_classes, score_fixed
from ralib.classification.leave_one_out import SelfContribution, without_self
from ralib.classification.likelihood import ClassPoses, Spectra, joined
from ralib.classification.model import WIDE_STEP, Model
from ralib.classification.pose_refinement import refine_candidates, without_last
from ralib.classification.state import IterationSettings, State
from ralib.kernels.likelihood import FITS_AT_ONCE

SHORTLIST = 16
"""Classes a particle of which the poses are kept where particles are taken in parts; the fits of all are."""


@dataclass(frozen=True)
class SearchResult:
    """Fits of n particles in all classes, and their poses in those that may become theirs.

    Attributes
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class at its best pose, with the prior of the origin.
    poses : ClassPoses
        Poses, fields (n, c).
    among : Tensor of shape (n, c), optional
        Classes of these poses; by default all.
    """

    fit: Tensor
    poses: ClassPoses
    among: Tensor | None = None


def search_poses(
    model: Model,
    spectra: Spectra,
    origin_xy_px: Tensor,
    references: Tensor,
    state: State | None,
    *,
    wide: bool,
    at_once: int | None = None,
) -> ClassPoses:
    """Find the best pose of particles in every class.

    Parameters
    ----------
    model : Model
        The particles and the model.
    spectra : Spectra
        Spectra of b particles.
    origin_xy_px : Tensor of shape (b, 2)
        Their origins, working pixels.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages.
    state : State or None
        Gives the prior of the origins; without it all are equally probable.
    wide : bool
        Whether all shifts are searched, or only those next to the origins.
    at_once : int, optional
        Particles of a chunk on a GPU, where they are few of the model's.

    Returns
    -------
    ClassPoses
        Poses, fields (b, k).
    """
    shifts, favour = model.shifts(references.shape[1], wide=wide), None
    if wide:
        origin_xy_px = torch.zeros_like(origin_xy_px)
        favour = None if state is None else model.log_prior(shifts, state) / state.mean_scale
    return model.within(
        lambda most: score_classes(
            model.particles.grid, spectra, origin_xy_px, references, shifts,
            favour=favour, mirror=model.mirror, memory_bytes=most, at_once=at_once or model.at_once,
        )
    )  # fmt: skip


def search_all(model: Model, references: Tensor, state: State, step: IterationSettings) -> ClassPoses:
    """Find the best pose of every particle in every class, without its own contribution.

    Parameters
    ----------
    model, references, state, step
        See `ralib.classification.em.iterate`.

    Returns
    -------
    ClassPoses
        Poses, fields (n, k).
    """
    k, rings = references.shape[:2]
    return joined([_searched(part, references, state.part(rows), step) for rows, part in model.parts(rings, k)])


def fit_classes(model: Model, references: Tensor, state: State, step: IterationSettings) -> SearchResult:
    """Find the fits of all classes, and the poses in those that matter.

    Parameters
    ----------
    model, references, state, step
        See `ralib.classification.em.iterate`.

    Returns
    -------
    SearchResult
        Fits and poses.
    """
    k, rings = references.shape[:2]
    fits, poses, among = [], [], []
    for rows, part in model.parts(rings, k):
        own = state.part(rows)
        found = _searched(part, references, own, step)
        fit = part.fit(found, own)
        if part is model and model.shard.n * k <= FITS_AT_ONCE:  # whatever this rank's share of them is
            return SearchResult(fit, found)
        index = fit.topk(min(SHORTLIST, k), dim=1).indices.sort(dim=1).values
        fits.append(fit)
        poses.append(found.gathered(index))
        among.append(index)
    return SearchResult(torch.cat(fits), joined(poses), torch.cat(among))


def _searched(model: Model, references: Tensor, state: State, step: IterationSettings) -> ClassPoses:
    """Poses of a part of the particles in every class."""
    grid, spectra = model.particles.grid, model.particles.single
    if model.align:
        found = search_poses(model, spectra, state.origin_xy_px, references, state, wide=step.wide)
    else:
        pose = state.psi_deg, state.origin_xy_px, state.mirror
        found = score_fixed(grid, spectra, *pose, references, model.at_once)
    return found if state.own is None else without_self(model.particles, state.own, found, references.shape[1])


def refine_all(
    model: Model,
    references: Tensor,
    poses: ClassPoses,
    index: Tensor,
    step: IterationSettings,
    state: State,
    price: Tensor | None = None,
) -> tuple[ClassPoses, Tensor]:
    """Refine poses off the grid by Newton steps, corrected for the particle's own contribution.

    Parameters
    ----------
    model : Model
        The particles and the model.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages.
    poses : ClassPoses
        Poses in c candidate classes, fields (c, n).
    index : Tensor of shape (c, n)
        Classes.
    step : IterationSettings
        Settings of the iteration.
    state : State
        State before the iteration.
    price : Tensor of shape (k,), optional
        Given where there is one candidate too many: added to the fits by which the worse of the last two is left out.

    Returns
    -------
    ClassPoses
        Refined poses, fields (c, n).
    Tensor of shape (c, n)
        Their classes.
    """
    refined, classes = [], []
    for rows, part in model.parts(model.particles.grid.n_rings):
        found, of, own = poses.columns(rows), index[:, rows], state.part(rows)
        if price is not None:
            last = _refined(part, references, found.rows(slice(-2, None)), of[-2:], replace(step, newton=0), own.own)
            found, of = without_last(found, of, part.fit(last, own) + price[of[-2:]])
        refined.append(_refined(part, references, found, of, step, own.own))
        classes.append(of)
    return joined(refined, dim=1), torch.cat(classes, dim=1)


def _refined(
    model: Model,
    references: Tensor,
    found: ClassPoses,
    index: Tensor,
    step: IterationSettings,
    own: SelfContribution | None,
) -> ClassPoses:
    """Refined poses of a part of the particles, without their own contributions."""
    grid, spectra, spacing = model.particles.grid, model.particles.single, model.shift_step_px(step.rings)
    poses = model.within(
        lambda most: refine_candidates(
            grid, spectra, references, found, index, steps=step.newton,
            limit_deg=60.0 / references.shape[2], limit_px=0.6 * WIDE_STEP * spacing, memory_bytes=most,
            at_once=model.at_once,
        )
    )  # fmt: skip
    return poses if own is None else without_self(model.particles, own, poses, references.shape[1], index)
