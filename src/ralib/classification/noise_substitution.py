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

from ralib.classification.em import BEYOND, e_step, m_step
from ralib.classification.likelihood import Spectra
from ralib.classification.model import Model
from ralib.classification.results import coarse_frc
from ralib.classification.state import IterationSettings, State
from ralib.classification.templates import mirrored_references, turned_samples
from ralib.classification.validation import noise_like
from ralib.images.frc import signal_power_share, ssnr
from ralib.kernels.averages import ring_power
from ralib.runtime.chunks import gpu_chunks

COARSE = 2.5
"""Details across the particle that keep the images' own signal: size and shape, by which noise cannot be placed."""

ALIKE = 100
"""Substituted members of a class with which its own curve weighs as much as that of all classes."""

AT_MOST = 5000
"""Particles that are substituted at most; that of more follows from these."""


def substituted_ssnr(
    model: Model, state: State, references: Tensor, generator: torch.Generator, *, per_class: int
) -> Tensor:
    """Return the SSNR that noise in place of fine detail seems to have in each class, for each of its particles.

    Twice. Noise alone follows the references wherever it likes, which overestimates what happens to particles whose own
    detail holds them in place. So what the first estimate has left of the classes' detail is added to the noise while
    it is aligned; averaged is only the noise.

    A class has few samples on a ring: its curve is moved towards that of all classes, half way where it has ALIKE
    members among those substituted.

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
    per_class : int
        Particles a class that are substituted, on average, where that are no more than AT_MOST.

    Returns
    -------
    Tensor of shape (k, f)
        SSNR for each particle, ring by ring of the working box (`images.frc.frc`); 0 on the coarse rings.
    """
    eligible = model.eligible()
    count = min(per_class * len(references), AT_MOST)
    chosen = eligible[torch.randperm(len(eligible), generator=generator)[:count].sort().values]
    rows, rings = chosen.to(model.particles.grid.device), references.shape[1]
    first = min(model.particles.rings_for(COARSE), rings)
    part, before = _noise_in_detail(model, rows, first, rings, generator), state.of(model.shard.held(rows))
    seeming = _seeming_ssnr(part, part, references, before, first)
    apparent = coarse_frc(state, model.particles)
    proven = corrected_frc(apparent, seeming, state.members)
    # The references are averages weighted by the share of signal they seem to have; particles agree with the true one.
    amplitude = (signal_power_share(proven) / signal_power_share(apparent).clamp_min(1e-3)).clamp_max(1.0)
    nearest = _frc_ring(part)[:rings].round().long().clamp_max(apparent.shape[1] - 1)
    detail = references * amplitude[:, nearest, None]
    detail[:, :first] = 0.0
    return _seeming_ssnr(part, _with_references(part, before, detail), references, before, first)


def _noise_in_detail(model: Model, rows: Tensor, first: int, rings: int, generator: torch.Generator) -> Model:
    """Some of all particles, with noise in place of what they have from a first ring on."""
    part = model.of(rows)
    noise = noise_like(model, rows, generator, min(rings + BEYOND, model.particles.grid.n_rings))
    return _with_data(part, torch.cat([part.particles.single.data[:, :first], noise.data[:, first:]], dim=1))


def _seeming_ssnr(part: Model, held: Model, references: Tensor, state: State, first: int) -> Tensor:
    """SSNR (k, f), a particle, that averages of `part` seem to have at the poses of `held`; 0 before a first ring."""
    step = IterationSettings(references.shape[1], 1.0, newton=2)
    found = m_step(part, e_step(held, references, state, step), state, step)
    curve, members = coarse_frc(_whitened(found), part.particles), found.members.clamp_min(1)[:, None]
    common = (curve * members).sum(0, keepdim=True) / members.sum()
    ring = torch.arange(curve.shape[1], device=curve.device)
    ring_of = _frc_ring(part)
    compared = (ring > ring_of[first - 1]) & (ring < ring_of[references.shape[1] - 1] + 1)
    own = members / (members + ALIKE)
    return compared * (own * ssnr(curve) / members + (1 - own) * ssnr(common) / members.mean())


def _with_references(part: Model, state: State, references: Tensor) -> Model:
    """The particles with what the references are in them, at their poses, added."""
    grid, spectra, rings = part.particles.grid, part.particles.single, references.shape[1]
    strength = (state.mean_scale * state.scale)[:, None] * spectra.power[:, :rings] / grid.n_half

    def added(rows: slice | Tensor) -> Tensor:
        reference = mirrored_references(references, state.class_index[rows], state.mirror[rows])
        posed = turned_samples(grid, reference, state.psi_deg[rows])
        signal = strength[rows, :, None] * posed * grid.phase(state.origin_xy_px[rows], rings).conj()
        return spectra.data[rows] + torch.nn.functional.pad(signal, (0, 0, 0, grid.n_rings - rings))

    cuts = gpu_chunks(len(part.half), part.at_once, grid.device)
    return _with_data(part, torch.cat([added(rows) for rows in cuts])[: len(part.half)])


def _with_data(part: Model, data: Tensor) -> Model:
    """Particles with other samples."""
    return replace(part, particles=replace(part.particles, spectra=Spectra(data, part.particles.single.power)))


def _frc_ring(part: Model) -> Tensor:
    """Where each ring (R,) of the grid lies among those of an FRC on the working box."""
    return part.particles.grid.frequency * part.particles.grid.box


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
