"""Matched filters of particles: multiplied by their CTF, divided by the noise spectrum.

An image is modelled as y = C x + n, with the CTF C and noise of power sigma^2(k), both diagonal in Fourier space. The
matched filter C y / sigma^2 and its precision C^2 / sigma^2 are then sufficient statistics for x: the covariance Wiener
filter, the probabilistic PCA and the states of a class start from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ralib.analysis.background import BackgroundNormalisation, NoiseSpectrum
from ralib.analysis.base import wrong_shape
from ralib.analysis.rows import real_images
from ralib.images.ctf import ctf_2d, ctf_polar, matched_filter
from ralib.images.fourier import frequency_radius
from ralib.images.masks import background_mask
from ralib.images.normalise import finite_images
from ralib.io.plausible import implausible_ctf
from ralib.kernels import rotate_shift_images
from ralib.particles.batches import LEAST_BOX
from ralib.runtime.devices import computing_device
from ralib.types import CtfParameters, CtfState, ImageSource, ParticleSet, RalibError, as_particles

BATCH = 512
RING_ANGLES = 8


class MatchedParticles:
    """Particles read in batches, normalised to their background, with their CTF and noise spectrum.

    Parameters
    ----------
    source : Any
        A `ParticleSet`, `ImageSource` or images (n, h, h). Without CTF parameters or pixel size the CTF is 1.
    device : torch.device or str, default 'cpu'
        Where to compute.
    noise : NoiseSpectrum, optional
        Noise spectrum; by default measured around the particles.
    normalisation : BackgroundNormalisation, optional
        Normalisation of the background; by default measured.
    """

    def __init__(
        self,
        source: Any,
        *,
        device: torch.device | str = "cpu",
        noise: NoiseSpectrum | None = None,
        normalisation: BackgroundNormalisation | None = None,
    ) -> None:
        self.particles = as_particle_set(source)
        self.device = computing_device(device)
        self.box = self.particles.box
        self.n = len(self.particles)
        if self.particles.pixel_sizes_A is not None:
            raise RalibError("particles of several pixel sizes: bring them to one with 'ralib prepare --to-pixel-size'")
        ctf = self.particles.ctf
        if ctf is not None and bool((ctf.state == CtfState.PREMULTIPLIED).any()):
            raise RalibError(
                "the images are multiplied by their CTF already, which hides their noise: give them as they were taken"
            )
        if ctf is not None and (implausible := implausible_ctf(ctf))[0].any():
            raise RalibError(f"a CTF cannot be meant: {implausible[1]}: leave such particles out, or correct them")
        if self.n < 1:
            raise RalibError("there are no particles: give at least one")
        if self.box < LEAST_BOX:
            raise RalibError(f"images of {self.box} px are too small to be analysed: {LEAST_BOX} px are needed")
        self.frequency = frequency_radius(self.box, self.device)
        self.normalisation = normalisation or BackgroundNormalisation.measure(self._raw(self.some(2000)))
        self.noise = noise or background_spectrum(self)

    @property
    def has_ctf(self) -> bool:
        """Whether the particles have a CTF."""
        return self.particles.ctf is not None and self.particles.pixel_size_A is not None

    def index_batches(self, size: int = BATCH) -> Iterator[np.ndarray]:
        """Iterate over the numbers of all particles in batches of `size`."""
        for start in range(0, self.n, size):
            yield np.arange(start, min(start + size, self.n))

    def some(self, at_most: int) -> np.ndarray:
        """Return the numbers of up to `at_most` particles, spread evenly over the stack."""
        return np.unique(np.linspace(0, self.n - 1, min(self.n, at_most)).astype(int))

    def images(self, index: np.ndarray) -> Tensor:
        """Return normalised images (b, h, h), whose background has mean 0 and variance 1."""
        return self.normalisation.apply(self._raw(index))

    def _raw(self, index: np.ndarray) -> Tensor:
        raw = torch.from_numpy(self.particles.images.read(index)).to(self.device, torch.float32)
        finite = finite_images(raw)
        if not bool(finite.all()):
            first = int(index[int(finite.int().argmin())]) + 1
            raise RalibError(
                f"the image of particle {first} holds NaN or infinite pixels: leave such particles out, or repair them"
            )
        return raw

    def filtered(self, index: np.ndarray) -> Tensor:
        """Return the matched filter C y / sigma^2 as images (b, h, h), in the particles' own frame."""
        spectrum = torch.fft.rfft2(self.images(index)) / self.noise.at(self.frequency)
        ctf = self.ctf_plane(index)
        if self.has_ctf and self.particles.ctf is not None:
            ctf = matched_filter(self.particles.ctf[index], ctf)
        return torch.fft.irfft2(spectrum * ctf, s=(self.box, self.box))

    def ctf_plane(self, index: np.ndarray) -> Tensor:
        """Return the CTF (b, h, h // 2 + 1), or ones that broadcast."""
        if not self.has_ctf:
            return torch.ones(1, 1, 1, device=self.device)
        assert self.particles.ctf is not None
        assert self.particles.pixel_size_A is not None
        return ctf_2d(self.particles.ctf[index], self.box, self.particles.pixel_size_A, device=self.device)

    def aligned(self, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Compute the matched filter in the frame of the class average, and its precision.

        The transform is orthonormal and the image's centre is its origin. Particles without poses are taken as aligned.

        Parameters
        ----------
        index : ndarray of shape (b,)
            Numbers of the particles.

        Returns
        -------
        Tensor of shape (b, h, h // 2 + 1)
            C y / sigma^2.
        Tensor of shape (b, h, h // 2 + 1)
            C^2 / sigma^2.
        """
        images, ctf = self.filtered(index), self.ctf_plane(index)
        poses = self.particles.poses
        if poses is not None:
            pose = poses[torch.as_tensor(index)].to(self.device)
            # Cyclic, so that what a rotation brings in from outside the box has the power of the noise.
            images = rotate_shift_images(
                images, pose.psi_deg, pose.origin_xy_px, pose.mirror, method="cubic", boundary="cyclic"
            )
            if self.has_ctf:
                assert self.particles.ctf is not None
                turned = turned_ctf(self.particles.ctf[index], pose.psi_deg.cpu().numpy(), pose.mirror.cpu().numpy())
                ctf = ctf_2d(turned, self.box, float(self.particles.pixel_size_A or 1), device=self.device)
        spectrum = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)), norm="ortho")
        precision = ctf.square() / self.noise.at(self.frequency)
        return spectrum, precision.expand(len(index), *precision.shape[1:])

    def unique_ctf(self) -> tuple[CtfParameters | None, np.ndarray]:
        """Return the different CTFs, and which of them each particle (n,) has."""
        if not self.has_ctf:
            return None, np.zeros(self.n, np.int64)
        assert self.particles.ctf is not None
        ctf = self.particles.ctf
        table = np.stack([np.asarray(getattr(ctf, f.name), np.float64) for f in fields(ctf)], axis=1)
        _, first, index = np.unique(table, axis=0, return_index=True, return_inverse=True)
        return ctf[first], index.reshape(-1)

    def precision_on_rings(self, ctf: CtfParameters | None, frequency_per_px: Tensor) -> Tensor:
        """Compute C^2 / sigma^2, averaged over the angle.

        Parameters
        ----------
        ctf : CtfParameters or None
            Parameters of u CTFs, or None for a CTF of 1.
        frequency_per_px : Tensor of shape (K,)
            Radii of the rings, cycles per pixel.

        Returns
        -------
        Tensor of shape (u, K)
            Precision.
        """
        frequency = frequency_per_px.to(self.device)
        noise = self.noise.at(frequency)
        if ctf is None:
            return (1 / noise)[None]
        angle = torch.arange(RING_ANGLES, device=self.device) * (torch.pi / RING_ANGLES)
        ring = ctf_polar(ctf, frequency / float(self.particles.pixel_size_A or 1), angle)
        return ring.square().mean(-1) / noise


def as_particle_set(source: Any) -> ParticleSet:
    """Return a particle set of any source of square images."""
    if isinstance(source, ImageSource):
        return ParticleSet(source)
    return source if isinstance(source, ParticleSet) else as_particles(real_images(source))


def turned_ctf(ctf: CtfParameters, psi_deg: np.ndarray, mirror: np.ndarray) -> CtfParameters:
    """Return the CTF of particles that are rotated, then mirrored: only the direction of astigmatism changes.

    Parameters
    ----------
    ctf : CtfParameters
        CTF parameters.
    psi_deg : ndarray of shape (n,)
        In-plane rotation, degrees.
    mirror : ndarray of shape (n,)
        True where mirrored after the rotation.

    Returns
    -------
    CtfParameters
        Parameters in the rotated frame.
    """
    turned = ctf.astigmatism_angle_deg + psi_deg
    return replace(ctf, astigmatism_angle_deg=np.where(mirror, -turned, turned) % 180.0)


def ring_mean(values: Tensor, ring: Tensor, n_rings: int) -> Tensor:
    """Return the mean of values over each ring.

    Parameters
    ----------
    values : Tensor of shape (p,)
        Values.
    ring : Tensor of shape (p,)
        Ring of each value.
    n_rings : int
        Number of rings.

    Returns
    -------
    Tensor of shape (n_rings,)
        Means.
    """
    total = torch.zeros(n_rings, device=values.device).index_add_(0, ring, values)
    count = torch.zeros(n_rings, device=values.device).index_add_(0, ring, torch.ones_like(values))
    return total / count.clamp_min(1)


def background_spectrum(data: MatchedParticles, *, at_most: int = 5000) -> NoiseSpectrum:
    """Measure the noise spectrum on the background around the particles.

    Parameters
    ----------
    data : MatchedParticles
        Particles.
    at_most : int, default 5000
        Number of particles used, spread evenly over the stack.

    Returns
    -------
    NoiseSpectrum
        The spectrum.
    """
    box, device = data.box, data.device
    background = background_mask(box, device)
    chosen = data.some(at_most)
    power = torch.zeros(box, box // 2 + 1, device=device)
    for start in range(0, len(chosen), BATCH):
        images = data.images(chosen[start : start + BATCH]) * background
        power += torch.fft.rfft2(images).abs().square().sum(0)
    power /= len(chosen) * background.sum()
    ring = (data.frequency * box).round().long().flatten()
    n_rings = int(ring.max()) + 1
    rings = ring_mean(power.flatten(), ring, n_rings)
    # The mean of each image is taken out: the first two rings would be too quiet.
    rings[:2] = torch.maximum(rings[:2], rings[2])
    smooth = (rings + torch.cat([rings[:1], rings[:-1]]) + torch.cat([rings[1:], rings[-1:]])) / 3
    return NoiseSpectrum(smooth.clamp_min(1e-3 * float(smooth.max())), box)


def matched_as_learnt(estimator: Any, X: Any) -> MatchedParticles:
    """Return particles with the noise spectrum and normalisation of a fitted estimator.

    Parameters
    ----------
    estimator : Any
        The estimator.
    X : Any
        Particles or images.

    Returns
    -------
    MatchedParticles
        The particles.

    Raises
    ------
    RalibError
        If their box is not the estimator's.
    """
    check_is_fitted(estimator)
    noise, normalisation = estimator.noise_spectrum_, estimator.normalisation_
    matched = MatchedParticles(X, device=estimator.device, noise=noise, normalisation=normalisation)
    if (matched.box, matched.box) != estimator.image_shape_:
        raise wrong_shape((matched.box, matched.box), estimator.image_shape_)
    return matched


class MatchedEstimator(TransformerMixin):  # type: ignore[misc]
    """`fit` and `fit_transform` of the estimators that model CTF and noise.

    Attributes
    ----------
    noise_spectrum_ : NoiseSpectrum
        Power of the noise.
    normalisation_ : BackgroundNormalisation
        What images were divided by.
    """

    noise_spectrum_: NoiseSpectrum
    normalisation_: BackgroundNormalisation

    def fit(self, X: Any, y: None = None) -> Self:
        """Fit to a `ParticleSet` with CTF parameters (and poses, where the class needs them), or to images without.

        Parameters
        ----------
        X : ParticleSet, ImageSource or array_like of shape (n, h, h)
            Particles or images.
        y : None, optional
            Ignored.

        Returns
        -------
        Self
            The estimator itself.
        """
        self._fit(X)
        return self

    def fit_transform(self, X: Any, y: None = None) -> np.ndarray:
        """Fit to particles and return their scores (n, k); see `fit`. Particles are read once."""
        return self._scores(self._fit(X))

    def _fit(self, X: Any) -> Any:
        """Fit, and return the particles in the form that `_scores` takes."""
        raise NotImplementedError

    def _scores(self, data: Any) -> np.ndarray:
        """Scores (n, k) of particles."""
        raise NotImplementedError
