"""FRC of what alignment makes of noise: by how much halves agree because both were aligned to one reference.

Particles whose detail is noise are aligned to the classes as all particles were. Their averages show the reference in
place of a signal, in both halves, and the FRC of these halves is what a resolution must not count. Fine detail is
replaced by noise of the same power and the coarse shape stays, as in Chen et al. 2013; the true test would replace it
before the first iteration, but a converged reference is what noise would have converged to.

Chen, McMullan, Faruqi, Murshudov, Short, Scheres and Henderson 2013, "High-resolution noise substitution to measure
overfitting and validate resolution in 3D structure determination by single particle electron cryomicroscopy",
Ultramicroscopy 135, 24-35.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ralib.classification.em import BEYOND, iterate
from ralib.classification.likelihood import Spectra
from ralib.classification.model import Model
from ralib.classification.results import coarse_frc
from ralib.classification.state import IterationSettings, State
from ralib.classification.validation import noise_like
from ralib.images.frc import ssnr
from ralib.kernels.averages import ring_power

COARSE = 2.5
"""Details across the particle that keep the images' own signal: size and shape, by which noise cannot be placed."""

SUBSTITUTED, AT_MOST = 100, 5000
"""Particles a class that are substituted, on average, and of all classes at most; that of more follows from these."""


def substituted_ssnr(model: Model, state: State, references: Tensor, generator: torch.Generator) -> Tensor:
    """Return the SSNR that noise in place of fine detail seems to have in each class, for each of its particles.

    A class has few samples on a ring: its curve is moved half way to that of all classes, as in the M-step.

    Parameters
    ----------
    model : Model
        The particles and the model.
    state : State
        Final poses and classes.
    references : Tensor of shape (k, r, m)
        Masked class averages that the particles were aligned to.
    generator : torch.Generator
        Random numbers of the choice of particles and of the noise.

    Returns
    -------
    Tensor of shape (k, f)
        SSNR for each particle, ring by ring of the working box (`images.frc.frc`); 0 on the coarse rings.
    """
    eligible = model.eligible()
    count = min(SUBSTITUTED * len(references), AT_MOST)
    chosen = eligible[torch.randperm(len(eligible), generator=generator)[:count].sort().values]
    rows = chosen.to(model.particles.grid.device)
    first = min(model.particles.rings_for(COARSE), references.shape[1])
    rings = min(references.shape[1] + BEYOND, model.particles.grid.n_rings)
    part, noise = model.of(rows), noise_like(model, rows, generator, rings)
    spectra = part.particles.single
    data = torch.cat([spectra.data[:, :first], noise.data[:, first:]], dim=1)
    part = replace(part, particles=replace(part.particles, spectra=Spectra(data, spectra.power)))
    step = IterationSettings(references.shape[1], 1.0, newton=2)
    found = iterate(part, references, state.of(model.shard.held(rows)), step)
    curve, members = coarse_frc(_whitened(found), part.particles), found.members.clamp_min(1)[:, None]
    common = (curve * members).sum(0, keepdim=True) / members.sum()
    ring = torch.arange(curve.shape[1], device=curve.device)
    ring_of = model.particles.grid.frequency * model.particles.grid.box
    compared = (ring > ring_of[first - 1]) & (ring < ring_of[references.shape[1] - 1] + 1)
    return 0.5 * compared * (ssnr(curve) / members + ssnr(common) / members.mean())


def _whitened(state: State) -> State:
    """The state with halves of equal power on all rings, so that behind a mask no ring shows what others have."""
    assert state.averages is not None
    power = ring_power(state.averages.halves.flatten(0, 1)).unflatten(0, (2, -1)).mean(0)
    halves = state.averages.halves / power.sqrt().clamp_min(1e-20)[..., None]
    return replace(state, averages=replace(state.averages, halves=halves))


def corrected_frc(frc: Tensor, of_noise: Tensor, members: Tensor) -> Tensor:
    """Return FRC curves without what alignment to one reference makes of noise, (F - N) / (1 - N).

    Parameters
    ----------
    frc : Tensor of shape (k, n // 2 + 1)
        FRC of half averages.
    of_noise : Tensor of shape (c, f)
        `substituted_ssnr` of the first of these classes; the others, of junk, are taken to be like their mean.
    members : Tensor of shape (k,)
        Particles in each average.

    Returns
    -------
    Tensor of shape (k, n // 2 + 1)
        Corrected FRC, -1 to 1.
    """
    seeming = frc.new_zeros(frc.shape)
    rings = min(of_noise.shape[1], frc.shape[1])
    seeming[:, :rings] = of_noise.mean(0)[:rings]
    seeming[: len(of_noise), :rings] = of_noise[:, :rings]
    seeming = seeming * members[:, None]
    noise = seeming / (2 + seeming)
    return torch.where(noise > 0, (frc - noise) / (1 - noise), frc).clamp(-1, 1)
