"""What the posed classes explain of the particles on each ring, and the noise that they leave."""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.classification.memory_plan import samples_at_once
from ralib.classification.model import Model
from ralib.classification.state import State
from ralib.kernels.averages import ring_power
from ralib.kernels.classes import PosedParticles
from ralib.kernels.classes import ring_crosses as posed_ring_crosses
from ralib.runtime.chunks import gpu_chunks

LEAST_NOISE = 0.02
"""Smallest share of a ring's power that counts as noise."""


def noise_ratio(model: Model, state: State) -> Tensor:
    """Return the noise power from the residuals, over the noise power assumed.

    As in RELION's M-step, from the residuals of particles against their posed classes; but against the class without
    the particle (`leave_one_out`), and with the best scale on each ring. So neither a particle's own noise in its
    average lowers the estimate, nor the noise of the others raises it.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Poses, classes, averages and own contributions.

    Returns
    -------
    Tensor of shape (R,)
        Ratio on each ring.
    """
    assert state.averages is not None
    assert state.own is not None
    grid, rings = model.particles.grid, state.averages.gain.shape[1]
    references = model.references(state, rings)
    use = model.particles.typical
    scale = torch.where(use, state.scale, 0.0)[:, None]
    most = 1024 if grid.device.type == "cpu" else model.at_once
    chunk = samples_at_once(grid, rings, most, model.budget.step_bytes)
    found = ring_crosses(model, references, state, chunk)
    cross = model.shard.sum(scale * (found - state.own.share[:, :rings]))
    power = model.particles.spectra.power[:, :rings] * ring_power(references)[state.class_index]
    norm = model.shard.sum(scale.square() * power)
    explained = cross.clamp_min(0).square() / norm.clamp_min(1e-12)
    total = model.shard.sum(model.particles.observed * use[:, None])
    left = total.clone()
    left[:rings] -= explained / (grid.weight[:rings] * grid.n_half * grid.n_pixels)
    return (torch.maximum(left, LEAST_NOISE * total) / model.shard.count(use).clamp_min(1)).float()


def ring_crosses(model: Model, references: Tensor, state: State, chunk: int) -> Tensor:
    """Return cross terms of all particles with their classes on each ring.

    Parameters
    ----------
    model : Model
        The particles and the model.
    references : Tensor of shape (k, r, m)
        Angular orders of the masked class averages.
    state : State
        Poses and classes.
    chunk : int
        Particles at a time.

    Returns
    -------
    Tensor of shape (n, r)
        Cross terms.
    """
    found = []
    for rows, part in model.parts(references.shape[1]):
        own = state.part(rows)
        n, cuts = len(part.half), gpu_chunks(len(part.half), chunk, model.particles.grid.device)
        found.append(torch.cat([_ring_cross(part, references, own, cut) for cut in cuts])[:n])
    return torch.cat(found)


def _ring_cross(model: Model, references: Tensor, state: State, cut: slice | Tensor) -> Tensor:
    """Cross terms (b, r) of some particles."""
    grid, spectra = model.particles.grid, model.particles.single
    row = torch.arange(len(spectra), device=grid.device)
    fields = row, state.origin_xy_px, state.psi_deg, state.mirror, state.class_index
    places = PosedParticles(*(f[cut] for f in fields))
    return posed_ring_crosses(spectra.data, places, references, grid.rings(references.shape[1]))
