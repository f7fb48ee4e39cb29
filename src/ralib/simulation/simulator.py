"""Simulation of particles with known truth: projections of the phantom or of a volume, with CTF and noise.

    particle = CTF * contrast * projection(pose) + noise of variance 1,

in the conventions of this package: the true pose maps the particle onto the view of its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from ralib.images.ctf import ctf_2d
from ralib.images.fourier import filter_images, frequency_grid
from ralib.images.masks import circle_mask
from ralib.simulation.phantom import FourierProjector, phantom_volume, spread_views, view_frames
from ralib.simulation.truth import Junk, SimulationOptions, Truth, draw_truth

# Images are made in blocks of this many, each with its own random stream: a block's bits depend on nothing else.
BLOCK = 256
PHANTOM_BOX_A = 400.0
_ICE_RESOLUTION_A = 18.0

__all__ = ["BLOCK", "Junk", "SimulationOptions", "Simulator", "Truth", "simulate_particles"]


class Simulator:
    """Draw the truth at once, and make the images block by block when they are needed.

    The same options and device give the same bits in any order of calls.

    Parameters
    ----------
    options : SimulationOptions
        What to simulate.
    volumes : sequence of ndarray of shape (m, m, m), default ()
        Density of each species; by default the phantom.
    volume_pixel_size_A : float, optional
        Pixel size of the volumes, Angstrom.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Attributes
    ----------
    truth : Truth
        The truth of every particle.
    """

    def __init__(
        self,
        options: SimulationOptions,
        volumes: Sequence[np.ndarray] = (),
        *,
        volume_pixel_size_A: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.options = options
        self.device = torch.device(device)
        volumes = list(volumes) or [phantom_volume(options.box)]
        given_A = options.pixel_size_A or volume_pixel_size_A or PHANTOM_BOX_A / options.box
        self.pixel_size_A = given_A
        self._scale = (volume_pixel_size_A or given_A) / given_A
        self._projectors = [FourierProjector(v / v.std(), device=self.device) for v in volumes]
        self._n_species = len(volumes)
        self._views = view_frames(spread_views(options.n_views or options.n_references))
        self.truth, self._extra_shift_px = draw_truth(options, self._n_species, self._views)
        self._amplitude = 1.0
        self._amplitude = self._find_amplitude()

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.options.n_particles // BLOCK)

    def block(self, number: int) -> Float[Tensor, "b n n"]:
        """Return the noisy particles BLOCK * number and on, float32."""
        index = np.arange(number * BLOCK, min((number + 1) * BLOCK, self.options.n_particles))
        generator = torch.Generator(self.device).manual_seed(_block_seed(self.options.seed, number))
        clean = self.clean(index)
        clean += self._contamination(index)
        return clean + self._noise(index, generator)

    def blocks(self) -> Iterator[Tensor]:
        """Iterate over all blocks."""
        for number in range(self.n_blocks):
            yield self.block(number)

    def clean(self, index: np.ndarray) -> Float[Tensor, "b n n"]:
        """Return particles `index` (b,) before noise, scaled to the SNR wanted."""
        truth, box = self.truth, self.options.box
        axes = self._tensor(truth.rotation[index][:, :2])
        transform = torch.zeros(len(index), box, box // 2 + 1, dtype=torch.complex64, device=self.device)
        for species, projector in enumerate(self._projectors):
            mine = torch.as_tensor(truth.species[index] == species, device=self.device)
            transform[mine] = projector.slices(axes[mine], box, scale=self._scale)
        origin = truth.poses.origin_xy_px[index].to(self.device)
        transform *= _shift_phase(origin + self._tensor(self._extra_shift_px[index]), box)
        visible = np.isin(truth.junk[index], (Junk.NONE, Junk.HALF_OUT))
        strength = self._tensor(truth.contrast[index] * visible * self._amplitude)
        return torch.fft.irfft2(transform * self._ctf(index), s=(box, box)) * strength[:, None, None]

    def references(self) -> Float[Tensor, "k n n"]:
        """Return the views (species * K, n, n): without noise and CTF, on the scale of the particles."""
        box = self.options.box
        phase = _shift_phase(torch.zeros(1, 2, dtype=torch.float32, device=self.device), box)
        axes = self._tensor(self._views[:, :2])
        parts = [p.slices(axes, box, scale=self._scale) * phase for p in self._projectors]
        return torch.fft.irfft2(torch.cat(parts), s=(box, box)) * self._amplitude

    def _find_amplitude(self) -> float:
        """The factor that gives the wanted SNR, from the first good particles."""
        good = np.flatnonzero(self.truth.junk == Junk.NONE)[: 2 * BLOCK]
        if len(good) == 0:
            return 1.0
        inside = circle_mask(self.options.box, self.options.box / 2 - 1, device=self.device)
        variance = self.clean(good)[:, inside].double().var(dim=1).mean()
        return float((self.options.snr / variance).sqrt())

    def _ctf(self, index: np.ndarray) -> Tensor:
        if self.truth.ctf is None:
            return torch.ones(1, 1, 1, dtype=torch.float32, device=self.device)
        return ctf_2d(self.truth.ctf[index], self.options.box, self.pixel_size_A, device=self.device)

    def _noise(self, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Noise of variance 1: white, and solvent seen through the CTF."""
        shape = (len(index), self.options.box, self.options.box)
        coloured = self.options.coloured_noise
        kind: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": self.device}
        noise = torch.randn(shape, **kind) * (1.0 - coloured) ** 0.5
        if coloured > 0:
            solvent = torch.randn(shape, **kind)
            kx, ky = (k / self.pixel_size_A for k in frequency_grid(shape[-1], device=self.device))
            spectrum = torch.exp(-(kx**2 + ky**2) * _ICE_RESOLUTION_A**2 / 4) * self._ctf(index)
            solvent = filter_images(solvent, spectrum)
            noise += solvent * (coloured**0.5 / solvent.std(dim=(-2, -1), keepdim=True))
        return noise

    def _contamination(self, index: np.ndarray) -> Tensor | float:
        """A bright round spot on each contaminated particle, (b, n, n)."""
        spoilt = self.truth.junk[index] == Junk.CONTAMINATION
        if not spoilt.any():
            return 0.0
        box = self.options.box
        rng = np.random.default_rng([self.options.seed, int(index[0]), 7])
        centre = self._tensor(rng.uniform(-0.3, 0.3, (len(index), 2)) * box)
        size = self._tensor(rng.uniform(0.02, 0.055, len(index)) * box)
        height = self._tensor(rng.uniform(2.0, 6.0, len(index)) * spoilt)
        grid = torch.arange(box, device=self.device) - box // 2
        along = [torch.exp(-0.5 * ((grid - centre[:, [i]]) / size[:, None]) ** 2) for i in (0, 1)]
        return height[:, None, None] * along[1][:, :, None] * along[0][:, None, :]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.device)


def simulate_particles(
    n_particles: int,
    box: int,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[Float[Tensor, "{n_particles} {box} {box}"], Truth, Float[Tensor, "k {box} {box}"]]:
    """Simulate particles on a device.

    Parameters
    ----------
    n_particles : int
        Number of particles n.
    box : int
        Image size, pixels.
    device : torch.device or str, default 'cpu'
        Where to compute.
    dtype : torch.dtype, default torch.float32
        Type of the images.
    **options : Any
        Further fields of `SimulationOptions`.

    Returns
    -------
    Tensor of shape (n_particles, box, box)
        Particle images.
    Truth
        The truth of every particle.
    Tensor of shape (k, box, box)
        Reference images.
    """
    simulator = Simulator(SimulationOptions(n_particles, box, **options), device=device)
    images = torch.empty(n_particles, box, box, dtype=dtype, device=device)
    for number, block in enumerate(simulator.blocks()):
        images[number * BLOCK : number * BLOCK + len(block)] = block.to(dtype)
    return images, simulator.truth, simulator.references()


def _shift_phase(origin_xy_px: Float[Tensor, "b 2"], box: int) -> Complex[Tensor, "b {box} {box}//2+1"]:
    """What moves the image's origin from pixel 0 to box // 2 - origin, (b, box, box // 2 + 1)."""
    kx, ky = frequency_grid(box, device=origin_xy_px.device)
    shift = origin_xy_px - box // 2
    angle = 2.0 * torch.pi * (kx * shift[:, 0, None, None] + ky * shift[:, 1, None, None])
    return torch.polar(torch.ones_like(angle), angle)


def _block_seed(seed: int, block: int) -> int:
    return int(np.random.SeedSequence([seed, block]).generate_state(1, np.uint64)[0] >> np.uint64(1))
