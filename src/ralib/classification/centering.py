"""Centring of class averages, with the origins of their members: all classes share one frame."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.m_step import RingAverages
from ralib.classification.model import Model
from ralib.classification.ring_grid import RingGrid
from ralib.classification.state import State
from ralib.conventions import mirror_x, rotate_xy


def centre_classes(model: Model, state: State) -> State:
    """Centre the averages where their members' boxes have their centres on average.

    The particles' origins follow. All classes then share one frame, so that a particle has the same origin in all
    of them. Centres of mass differ between views, and those of noisy averages between iterations.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        State after an iteration.

    Returns
    -------
    State
        The state with moved averages and origins; unchanged where poses are not searched.
    """
    assert state.averages is not None
    if not model.align:
        return state
    there = mirror_x(rotate_xy(state.psi_deg, state.origin_xy_px), state.mirror)
    there = there * model.particles.usable[:, None]
    total = model.shard.sum_by(state.class_index, there, len(state.members)).float()
    move = -total / state.members.clamp_min(1)[:, None]
    origin = follow_centres(state.psi_deg, state.origin_xy_px, state.mirror, move[state.class_index])
    return replace(state, origin_xy_px=origin, averages=moved_averages(model.particles.grid, state.averages, move))


def moved_averages(grid: RingGrid, averages: RingAverages, move_xy_px: Tensor) -> RingAverages:
    """Shift class averages and their halves.

    Parameters
    ----------
    grid : RingGrid
        The ring grid.
    averages : RingAverages
        Class averages.
    move_xy_px : Tensor of shape (k, 2)
        Shift of each, pixels.

    Returns
    -------
    RingAverages
        Shifted averages.
    """
    every = torch.cat([averages.orders[None], averages.halves])
    count, _, rings, n_orders = every.shape
    samples = grid.samples_of(every.flatten(0, 1))
    moved = grid.moved_orders(samples, move_xy_px.repeat(count, 1), rings, n_orders).view(every.shape)
    return replace(averages, orders=moved[0], halves=moved[1:], signal=None)


def follow_centres(psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, move_xy_px: Tensor) -> Tensor:
    """Return the origins of particles whose class averages were shifted.

    Parameters
    ----------
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origins, pixels.
    mirror : Tensor of shape (b,)
        True where mirrored.
    move_xy_px : Tensor of shape (b, 2)
        Shift of each particle's class average, pixels.

    Returns
    -------
    Tensor of shape (b, 2)
        Origins, pixels.
    """
    return origin_xy_px + rotate_xy(-psi_deg, mirror_x(move_xy_px, mirror))
