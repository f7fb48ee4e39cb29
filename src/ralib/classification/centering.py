"""Centring of class averages, with the origins of their members: all classes share one frame."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.m_step import RingAverages
from ralib.classification.model import Model
from ralib.classification.ring_grid import RingGrid
from ralib.classification.state import State
from ralib.kernels.averages import centred_origins


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
    pose = state.psi_deg, state.origin_xy_px, state.mirror
    origin, move = centred_origins(pose, model.particles.usable, state.class_index, state.members, model.shard)
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
