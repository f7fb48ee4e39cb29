"""Expectation maximisation (EM): one iteration is an E-step and an M-step.

The E-step gives every particle its poses in the classes (`pose_search`) and, by the likelihood, priors and the balance
of class sizes (`priors`), the responsibilities of its best classes. The M-step makes the averages of the particles so
weighted (`m_step`), their contrasts and the spread of their origins.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.centering import centre_classes
from ralib.classification.half_precision_search import ranks_in_half
from ralib.classification.leave_one_out import SelfContribution, self_share
from ralib.classification.likelihood import ClassPoses
from ralib.classification.m_step import RingAverages, RingSums, average_classes, sum_anchors, sum_classes
from ralib.classification.model import Model
from ralib.classification.pose_search import fit_classes, refine_all
from ralib.classification.priors import class_prices, origin_spread
from ralib.classification.state import IterationSettings, State
from ralib.kernels.likelihood import SharingRule, best_classes, best_scale, ranked_classes

CANDIDATES = 3
"""Classes a particle is shared between; later ones have no weight that matters."""

LEAST_WEIGHT = 1e-3
"""Smaller responsibilities count as 0, as RELION leaves out what lies beyond 99.9 % of the probability."""

BEYOND = 2
"""Rings of the averages beyond those compared: on these it is seen whether the halves agree."""


@dataclass(frozen=True)
class Expectation:
    """Result of the E-step for n particles: the fit of every class, and responsibilities of the best classes.

    Attributes
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class at its best pose, with the prior of the origin.
    posterior : Tensor of shape (n,)
        Responsibility of the best class.
    poses : ClassPoses
        Poses in c candidate classes, fields (c, n), the best candidate first.
    class_index : Tensor of shape (c, n)
        Classes.
    weight : Tensor of shape (c, n)
        Responsibilities; they add up to 1.
    """

    fit: Tensor
    posterior: Tensor
    poses: ClassPoses
    class_index: Tensor
    weight: Tensor


def iterate(model: Model, references: Tensor, state: State, step: IterationSettings) -> State:
    """Run one iteration: E-step and M-step. The new averages reach a few rings beyond those compared.

    Parameters
    ----------
    model : Model
        The particles and the model.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages.
    state : State
        State before the iteration.
    step : IterationSettings
        Settings of the iteration.

    Returns
    -------
    State
        State after the iteration.
    """
    return m_step(model, e_step(model, references, state, step), state, step)


def iterate_centred(model: Model, references: Tensor, state: State, step: IterationSettings) -> State:
    """Run one iteration, and centre the classes; see `iterate`."""
    return m_step(model, e_step(model, references, state, step), state, step, centred=True)


def e_step(model: Model, references: Tensor, state: State, step: IterationSettings) -> Expectation:
    """E-step: compute responsibilities, and the poses in the classes; see `iterate` for the arguments."""
    found = fit_classes(model, references, state, step)
    fit = found.fit
    price = class_prices(fit, step.temperature, model.balance, model.shard)
    sharing = SharingRule(step.temperature, CANDIDATES, LEAST_WEIGHT)
    refined = step.newton > 0 and model.align
    # Half precision mistakes the order of classes that fit nearly as well: one more than are refined is looked at.
    unsure = refined and ranks_in_half(references.device) and fit.shape[1] > CANDIDATES
    wanted = replace(sharing, count=CANDIDATES + 1) if unsure else sharing
    posterior, weight, at = best_classes(fit, price, wanted, found.among)
    index = at if found.among is None else found.among.T.gather(0, at)
    poses = found.poses.pick(at)
    if refined:
        poses, index = refine_all(model, references, poses, index, step, state, price if unsure else None)
        # The class a particle was in has the advantage of a refined centre on the grid; now all have.
        better = model.fit(poses, state)
        fit = fit.scatter_(1, index.T, better.T)
        posterior, weight, order = ranked_classes(better, index, price, sharing)
        index, poses = index.gather(0, order), poses.reordered(order)
    return Expectation(fit, posterior, poses, index, weight)


def m_step(
    model: Model, expected: Expectation, state: State, step: IterationSettings, *, centred: bool = False
) -> State:
    """M-step: maximise the likelihood given the responsibilities, over averages, contrasts and spread of origins.

    Parameters
    ----------
    model : Model
        The particles and the model.
    expected : Expectation
        Result of the E-step.
    state : State
        State before the iteration.
    step : IterationSettings
        Settings of the iteration.
    centred : bool, default False
        Whether the classes are centred.

    Returns
    -------
    State
        State after the iteration.
    """
    poses, index = expected.poses, expected.class_index[0]
    scale = best_scale(poses.cross, poses.norm, state.mean_scale)
    mean = model.shard.median(scale[0])
    scale = scale / mean
    state = replace(
        state,
        psi_deg=poses.psi_deg[0],
        origin_xy_px=poses.origin_xy_px[0],
        mirror=poses.mirror[0],
        class_index=index,
        fit=expected.fit,
        posterior=expected.posterior,
        scale=scale[0],
        mean_scale=mean,
        spread_px=origin_spread(poses.origin_xy_px[0], model.shard),
        members=model.members(index, expected.fit.shape[1]),
    )
    weight = expected.weight * model.joins
    rings = min(step.rings + BEYOND, model.particles.grid.n_rings)
    sums = _sums(model, poses, expected.class_index, weight, scale, len(state.members), rings)
    state = replace(state, averages=average_classes(model.particles.grid, sums, state.members))
    state = centre_classes(model, state) if centred else state
    assert state.averages is not None
    averages, own = _with_own(model, state, index, weight[0], state.averages)
    return replace(state, averages=averages, own=own)


def average_groups(
    model: Model, state: State, class_index: Tensor, n_classes: int, rings: int
) -> tuple[RingAverages, SelfContribution]:
    """Average other groups of the particles at their present poses.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        The poses.
    class_index : Tensor of shape (n,)
        Groups.
    n_classes : int
        Number of groups.
    rings : int
        Number of rings.

    Returns
    -------
    RingAverages
        The averages.
    SelfContribution
        Contribution of each particle.
    """
    zero = torch.zeros_like(state.scale)
    poses = ClassPoses(*(f[None] for f in (zero, zero, state.psi_deg, state.origin_xy_px, state.mirror)))
    weight = model.joins.float()
    sums = _sums(model, poses, class_index[None], weight[None], state.scale[None], n_classes, rings)
    members = model.shard.counts(class_index, n_classes, model.joins).float()
    return _with_own(model, state, class_index, weight, average_classes(model.particles.grid, sums, members))


def _with_own(
    model: Model, state: State, class_index: Tensor, weight: Tensor, averages: RingAverages
) -> tuple[RingAverages, SelfContribution]:
    """The averages with what of them counts as signal, and what each particle contributes to that of its class."""
    signal = model.mask(averages)
    share = self_share(model.particles, averages, signal, class_index, weight, state.scale, state.mean_scale)
    own = SelfContribution(class_index, state.psi_deg, state.origin_xy_px, state.mirror, share)
    return replace(averages, signal=signal), own


def _sums(
    model: Model,
    poses: ClassPoses,
    index: Tensor,
    weight: Tensor,
    scale: Tensor,
    n_classes: int,
    rings: int,
) -> RingSums:
    """Sums over all particles of the classes they are shared between."""
    anchors = sum_anchors(model.particles.grid, model.particles.spectra, weight, scale, model.shard)
    sums: RingSums | None = None
    for rows, part in model.parts(rings):
        to, w, a = (table[:, rows] for table in (index, weight, scale))
        own = _part_sums(part, poses.columns(rows), to, w, a, n_classes, rings, anchors)
        sums = own if sums is None else sums.plus(own)
    assert sums is not None
    return RingSums(model.shard.add_up(sums.numerator), model.shard.add_up(sums.weight))


def _part_sums(
    model: Model,
    poses: ClassPoses,
    index: Tensor,
    weight: Tensor,
    scale: Tensor,
    n_classes: int,
    rings: int,
    anchors: Tensor,
) -> RingSums:
    """Sums over a part of the particles."""
    grid, spectra = model.particles.grid, model.particles.single
    return model.within(
        lambda most: sum_classes(
            grid, spectra, poses, index, weight, scale, model.half,
            n_classes=n_classes, rings=rings, n_orders=model.particles.orders(rings), anchors=anchors,
            memory_bytes=most, at_once=model.at_once,
        )
    )  # fmt: skip
