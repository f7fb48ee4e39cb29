"""Probabilistic PCA of aligned particles, with the CTF and the noise spectrum in the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ralib.analysis.base import PixelComponents
from ralib.analysis.half_plane import HalfPlane
from ralib.analysis.matched import (
    MASK_EDGE_PX,
    MatchedEstimator,
    MatchedParticles,
    matched_as_learnt,
    radius_of_image,
)
from ralib.analysis.pca import krylov_spectrum
from ralib.analysis.shrinkage import shrink_eigenvalues
from ralib.types import RalibError

MOST_COMPONENTS = 20
LEAST_PARTICLES = 10
SPECTRUM_SHOWN = 20
CONTRAST_SD = 0.2
CG_STEPS = 25
CHUNK = 4096
LEAST_SIGNAL = 0.02
NOISE_ROUNDS = 2
EDGE_MARGIN = 1.02


@dataclass
class AlignedSpectra:
    """Matched filters of aligned particles in a half plane.

    Attributes
    ----------
    plane : HalfPlane
        The half plane.
    matched : Tensor of shape (n, 2, d)
        Matched filters, without the noise.
    ctf2 : Tensor of shape (n, d)
        C^2, without the noise.
    noise_power : Tensor of shape (R,)
        Noise power of each ring, which divides both; it is estimated with the components.
    """

    plane: HalfPlane
    matched: Tensor
    ctf2: Tensor
    noise_power: Tensor

    def __len__(self) -> int:
        return len(self.matched)

    @property
    def weight(self) -> Tensor:
        """The precision 1 / sigma^2 (d,)."""
        return self.plane.spread(1 / self.noise_power)

    def mean_precision(self) -> Tensor:
        """Return the mean of C^2 / sigma^2 (d,) over the particles."""
        return self.ctf2.mean(0) * self.weight

    def chunks(self) -> Iterator[slice]:
        """Iterate over the particles in slices."""
        for start in range(0, len(self), CHUNK):
            yield slice(start, min(start + CHUNK, len(self)))


@dataclass(frozen=True)
class Latent:
    """Posterior of contrast and scores of n particles.

    Attributes
    ----------
    mean : Tensor of shape (n, 1 + k)
        Posterior means.
    covariance : Tensor of shape (n, 1 + k, 1 + k)
        Posterior covariances.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def second_moment(self) -> Tensor:
        """Posterior second moment (n, 1 + k, 1 + k)."""
        return self.covariance + self.mean[:, :, None] * self.mean[:, None, :]


class ProbabilisticPCA(MatchedEstimator, PixelComponents, BaseEstimator):  # type: ignore[misc]
    """Components of aligned particles in a model with CTF, contrast and noise.

    Particle i is y_i = C_i (a_i mean + W s_i) + n_i, with contrast a_i around 1, scores s_i of unit variance and noise
    of the same ring spectrum everywhere. All are estimated by expectation maximisation (probabilistic PCA, Tipping and
    Bishop 1999), whose M-step solves for images within the mask by conjugate gradients. Defocus, contrast and noise are
    so accounted for, and the components hold the remaining, structural variation. They are ordered by their signal over
    the noise, and their variances are corrected for the noise (`shrink_eigenvalues`). The noise edge is the largest
    variance that the same particles have in any direction with random phases.

    Parameters
    ----------
    n_components : int, optional
        Number of components; by default those above the noise edge, 1 to 20.
    radius_px : float, optional
        Radius of the mask in which particles differ, pixels; by default measured.
    max_frequency_per_px : float, default 0.35
        Band limit, cycles per pixel, at most 0.5.
    max_iter : int, default 15
        Number of EM iterations.
    random_state : Any, optional
        Seed, as in scikit-learn.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Attributes
    ----------
    components_ : ndarray of shape (k, h * w)
        Images of norm 1.
    explained_variance_ : ndarray of shape (k,)
        Variance of the scores, in units of the background's variance.
    mean_ : ndarray of shape (h * w,)
        CTF-corrected mean.
    image_shape_ : tuple of int
        Height and width of the images.
    n_components_ : int
        Number of components.
    contrast_ : ndarray of shape (n,)
        Contrast of the particles fitted.
    contrast_sd_ : float
        Standard deviation of the contrast.
    signal_to_noise_ : ndarray of shape (k,)
        Signal variance of each component over the noise's, after shrinkage.
    spectrum_, noise_edge_ : ndarray, float
        Leading eigenvalues of the whitened covariance, and the largest that noise makes.
    n_above_noise_ : int
        Number of components above the edge.
    noise_spectrum_ : NoiseSpectrum
        Power of the noise.
    normalisation_ : BackgroundNormalisation
        What images were divided by.
    radius_px_ : float
        Radius of the mask, pixels.

    References
    ----------
    Tipping and Bishop 1999, "Probabilistic principal component analysis", J. R. Stat. Soc. B 61, 611-622.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        radius_px: float | None = None,
        max_frequency_per_px: float = 0.35,
        max_iter: int = 15,
        random_state: Any = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.radius_px = radius_px
        self.max_frequency_per_px = max_frequency_per_px
        self.max_iter = max_iter
        self.random_state = random_state
        self.device = device

    def transform(self, X: Any) -> np.ndarray:
        """Return scores (n, k): posterior means, in the units of the images."""
        matched = matched_as_learnt(self, X)
        return self._scores(aligned_spectra(matched, self._plane, self._noise_power))

    def trajectory(self, component: int = 0, *, steps: int = 7, reach_sd: float = 2.0) -> np.ndarray:
        """Return images along a component.

        Parameters
        ----------
        component : int, default 0
            Number of the component, from 0.
        steps : int, default 7
            Number of images.
        reach_sd : float, default 2.0
            Range to either side, standard deviations of the scores.

        Returns
        -------
        ndarray of shape (steps, h, w)
            Images.
        """
        check_is_fitted(self)
        along = np.zeros((steps, len(self.components_)), np.float32)
        along[:, component] = np.linspace(-reach_sd, reach_sd, steps) * np.sqrt(self.explained_variance_[component])
        return self.inverse_transform(along).reshape(-1, *self.image_shape_)

    def _fit(self, X: Any) -> AlignedSpectra:
        matched = MatchedParticles(X, device=self.device)
        data = masked_spectra(matched, self.max_frequency_per_px, self.radius_px)
        self._plane, self.radius_px_, self.image_shape_ = data.plane, data.plane.radius_px, (matched.box, matched.box)
        self.noise_spectrum_, self.normalisation_ = matched.noise, matched.normalisation
        self._learn(data)
        return data

    def _learn(self, data: AlignedSpectra) -> None:
        seed = int(check_random_state(self.random_state).randint(2**31))
        generator = torch.Generator(device=data.matched.device).manual_seed(seed)
        start, spectrum, edge = initial_components(data, generator=generator)
        self.spectrum_, self.noise_edge_ = spectrum.cpu().numpy(), edge
        self.n_above_noise_ = int((spectrum > edge).sum())
        k = self.n_components
        if k is None:
            k = min(max(self.n_above_noise_, 1), MOST_COMPONENTS)
        if not 1 <= k <= len(start) - 1:
            raise RalibError(f"n_components={k} of {len(data)} particles: give 1 to {len(start) - 1}")
        model, latent, contrast_sd = expectation_maximisation(data, start[: k + 1], max_iter=self.max_iter)
        model, signal = ordered_and_shrunk(data, model, edge)
        images = self._plane.images(model)
        length = images[1:].flatten(1).norm(dim=1).clamp_min(1e-12)
        largest = images[1:].flatten(1).gather(1, images[1:].flatten(1).abs().argmax(1, keepdim=True))[:, 0]
        sign = torch.where(largest < 0, -1.0, 1.0)
        self._model = torch.cat([model[:1], model[1:] * sign[:, None, None]])
        self._noise_power, self.contrast_sd_ = data.noise_power, contrast_sd
        self.mean_ = images[0].flatten().cpu().numpy()
        self.components_ = (images[1:] * (sign / length)[:, None, None]).flatten(1).cpu().numpy()
        self.explained_variance_ = length.square().cpu().numpy()
        self.signal_to_noise_ = signal.cpu().numpy()
        self.n_components_ = k
        self.contrast_ = latent.mean[:, 0].cpu().numpy()

    def _scores(self, data: AlignedSpectra) -> np.ndarray:
        latent = e_step(data, self._model, self.contrast_sd_)
        return latent.mean[:, 1:].cpu().numpy() * np.sqrt(self.explained_variance_)


def aligned_spectra(matched: MatchedParticles, plane: HalfPlane, noise_power: Tensor | None = None) -> AlignedSpectra:
    """Read all particles into a half plane.

    Parameters
    ----------
    matched : MatchedParticles
        Particles.
    plane : HalfPlane
        The half plane.
    noise_power : Tensor of shape (R,), optional
        Initial noise power; by default the background's spectrum.

    Returns
    -------
    AlignedSpectra
        Matched filters.
    """
    ring = torch.arange(plane.n_rings, device=matched.device) / plane.box
    background = matched.noise.at(ring)
    weight = plane.spread(background)
    spectra = torch.empty(matched.n, 2, len(plane.index), device=matched.device)
    ctf2 = torch.empty(matched.n, len(plane.index), device=matched.device)
    for index in matched.index_batches():
        rows = slice(index[0], index[-1] + 1)
        spectrum, precision = matched.aligned(index)
        spectra[rows] = plane.vector(spectrum) * weight
        ctf2[rows] = precision.flatten(1)[:, plane.index] * weight
    return AlignedSpectra(plane, spectra, ctf2, background if noise_power is None else noise_power)


def masked_spectra(matched: MatchedParticles, max_frequency_per_px: float, radius_px: float | None) -> AlignedSpectra:
    """Read all particles into a half plane whose mask has a radius, given or measured on their mean.

    Parameters
    ----------
    matched : MatchedParticles
        Particles.
    max_frequency_per_px : float
        Band limit, cycles per pixel.
    radius_px : float or None
        Radius of the mask, pixels; None measures it.

    Returns
    -------
    AlignedSpectra
        Matched filters.
    """
    box, device = matched.box, matched.device
    if matched.n < LEAST_PARTICLES:
        raise RalibError(f"{matched.n} particles are too few to learn components from: give at least {LEAST_PARTICLES}")
    if not (2 < (radius_px or box / 2) <= box / 2 and 0 < max_frequency_per_px <= 0.5):
        raise RalibError(
            f"radius_px={radius_px}, max_frequency_per_px={max_frequency_per_px} in a box of {box} px: "
            f"give a radius of 3 to {box // 2} and a frequency up to 0.5"
        )
    largest = box / 2 - MASK_EDGE_PX
    plane = HalfPlane.create(
        box, max_frequency_per_px=max_frequency_per_px, radius_px=radius_px or largest, device=device
    )
    data = aligned_spectra(matched, plane)
    if radius_px is None:
        ones = torch.ones(len(data), 1, device=device)
        mean = plane.images(m_step(data, ones, ones[:, :, None]))[0]
        data.plane = plane.with_radius(min(largest, radius_of_image(mean)))
    return data


def e_step(data: AlignedSpectra, model: Tensor, contrast_sd: float) -> Latent:
    """E-step: compute the posterior of contrast and scores.

    Parameters
    ----------
    data : AlignedSpectra
        Matched filters.
    model : Tensor of shape (1 + k, 2, d)
        Mean, then components.
    contrast_sd : float
        Standard deviation of the contrast.

    Returns
    -------
    Latent
        The posterior.
    """
    k = len(model)
    prior = torch.ones(k, device=model.device)
    prior[0] = 1 / max(contrast_sd, 1e-3) ** 2
    weighted = (model * data.weight).flatten(1)
    row, column = torch.tril_indices(k, k)
    pairs = (model[row] * model[column]).sum(1) * data.weight
    means, covariances = [], []
    for rows in data.chunks():
        lower = data.ctf2[rows] @ pairs.T
        information = torch.empty(len(lower), k, k, device=model.device)
        information[:, row, column] = lower
        information[:, column, row] = lower
        covariance = torch.linalg.inv(information + torch.diag(prior))
        projected = data.matched[rows].flatten(1) @ weighted.T
        projected[:, 0] += prior[0]
        means.append((covariance @ projected[:, :, None])[:, :, 0])
        covariances.append(covariance)
    return Latent(torch.cat(means), torch.cat(covariances))


def m_step(data: AlignedSpectra, mean: Tensor, second_moment: Tensor) -> Tensor:
    """M-step: solve for the images that fit the particles best given their latent variables.

    Least squares within the mask, weighted by C^2 / sigma^2, by conjugate gradients.

    Parameters
    ----------
    data : AlignedSpectra
        Matched filters.
    mean : Tensor of shape (n, q)
        Posterior means of the latent variables.
    second_moment : Tensor of shape (n, q, q)
        Their second moments.

    Returns
    -------
    Tensor of shape (q, 2, d)
        Images.
    """
    plane, q = data.plane, mean.shape[1]
    normal = torch.zeros(data.ctf2.shape[1], q * q, device=mean.device)
    right = torch.zeros(q, data.matched[0].numel(), device=mean.device)
    for rows in data.chunks():
        normal += data.ctf2[rows].T @ second_moment[rows].flatten(1)
        right += mean[rows].T @ data.matched[rows].flatten(1)
    normal = normal.unflatten(1, (q, q)) * data.weight[:, None, None]
    ridge = 1e-3 * float(normal.diagonal(dim1=1, dim2=2).mean())

    def operator(x: Tensor) -> Tensor:
        return plane.masked(torch.einsum("dab,bcd->acd", normal, plane.masked(x))) + ridge * x

    residual = plane.masked(right.unflatten(1, (2, -1)) * data.weight)
    solution, direction = torch.zeros_like(residual), residual.clone()
    length = residual.square().sum()
    for _ in range(CG_STEPS):
        image = operator(direction)
        step = length / (direction * image).sum().clamp_min(1e-30)
        solution += step * direction
        residual -= step * image
        before, length = length, residual.square().sum()
        direction = residual + length / before.clamp_min(1e-30) * direction
    return plane.masked(solution)


class _WhitenedRows:
    """Residuals of the particles from the mean, whitened and masked, as rows (n, 2 d) for `krylov_spectrum`.

    With a seed their phases are random, which preserves each particle's power and removes what particles have in
    common.
    """

    def __init__(self, data: AlignedSpectra, mean: Tensor, seed: int | None = None) -> None:
        self.data, self.mean, self.seed = data, mean, seed
        self.n_rows = len(data) + 1  # krylov_spectrum divides by one less
        precision = data.mean_precision()
        self.root = (precision + 1e-3 * precision.mean()).sqrt()
        shape = data.plane.masked(mean * self.root)
        self.mean_shape = shape / shape.norm()

    def chunks(self) -> Iterator[Tensor]:
        """Iterate over chunks of the rows."""
        device = self.mean.device
        generator = None if self.seed is None else torch.Generator(device=device).manual_seed(self.seed)
        plane, weight = self.data.plane, self.data.weight
        for rows in self.data.chunks():
            contrast = self._contrast(rows)
            seen = contrast[:, None, None] * self.data.ctf2[rows, None] * self.mean
            rest = (self.data.matched[rows] - seen) * weight
            if generator is not None:
                rest = _random_phases(rest, generator)
            rest = plane.masked(rest / self.root)
            rest = rest - (rest * self.mean_shape).sum((1, 2), keepdim=True) * self.mean_shape
            yield rest.flatten(1)

    def _contrast(self, rows: slice) -> Tensor:
        weighted = self.mean * self.data.weight
        prior = 1 / CONTRAST_SD**2
        seen = self.data.matched[rows].flatten(1) @ weighted.flatten()
        information = self.data.ctf2[rows] @ (self.mean * weighted).sum(0)
        return (seen + prior) / (information + prior)


def _random_phases(vector: Tensor, generator: torch.Generator) -> Tensor:
    """Vectors (n, 2, d) turned at each frequency by an angle of its own."""
    shape = (len(vector), vector.shape[2])
    angle = torch.rand(shape, generator=generator, device=vector.device) * (2 * torch.pi)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    real, imaginary = vector[:, 0], vector[:, 1]
    return torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=1)


def initial_components(data: AlignedSpectra, *, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Initialise mean and components.

    Parameters
    ----------
    data : AlignedSpectra
        Matched filters.
    generator : torch.Generator
        Random numbers of the Krylov iteration.

    Returns
    -------
    Tensor of shape (1 + k, 2, d)
        Mean and leading components.
    Tensor of shape (s,)
        Eigenvalues of the whitened covariance.
    float
        The noise edge.
    """
    n, device = len(data), data.matched.device
    ones = torch.ones(n, 1, device=device)
    mean = m_step(data, ones, ones[:, :, None])
    for _ in range(NOISE_ROUNDS):
        _update_noise(data, mean, e_step(data, mean, CONTRAST_SD))
    mean = mean[0]
    dimensions = data.matched[0].numel()
    k = max(1, min(SPECTRUM_SHOWN, n - 2, dimensions - 1))
    centre = torch.zeros(dimensions, device=device)
    rows = _WhitenedRows(data, mean)
    spectrum = krylov_spectrum(rows, centre, k, generator=generator)
    noise = krylov_spectrum(_WhitenedRows(data, mean, seed=generator.initial_seed()), centre, 1, generator=generator)
    scale = (spectrum.variance.to(mean.dtype) - 1).clamp_min(0.3).sqrt()
    axes = spectrum.axes.to(mean.dtype).unflatten(1, (2, -1)) * scale[:, None, None]
    start = torch.cat([mean[None], data.plane.masked(axes / rows.root)])
    return start, spectrum.variance, EDGE_MARGIN * float(noise.variance[0])


def expectation_maximisation(data: AlignedSpectra, model: Tensor, *, max_iter: int) -> tuple[Tensor, Latent, float]:
    """Alternate E-step and M-step, and update `data.noise_power`.

    Parameters
    ----------
    data : AlignedSpectra
        Matched filters.
    model : Tensor of shape (1 + k, 2, d)
        Initial mean and components.
    max_iter : int
        Number of iterations.

    Returns
    -------
    Tensor of shape (1 + k, 2, d)
        Mean and components.
    Latent
        Posterior of contrast and scores.
    float
        Standard deviation of the contrast.
    """
    contrast_sd = CONTRAST_SD
    precision = data.mean_precision()
    latent = e_step(data, model, contrast_sd)
    for _ in range(max_iter):
        moment = latent.second_moment
        model = m_step(data, latent.mean, moment)
        model = _apart_from_mean(model, precision)
        _update_noise(data, model, latent)
        contrast = (latent.mean[:, 0] - 1).square() + latent.covariance[:, 0, 0]
        contrast_sd = float(contrast.mean().sqrt().clamp(0.01, 1.0))
        precision = data.mean_precision()
        latent = e_step(data, model, contrast_sd)
    return model, latent, contrast_sd


def _apart_from_mean(model: Tensor, precision: Tensor) -> Tensor:
    """Components without what a change of contrast would explain."""
    mean = model[0]
    weighted = mean * precision
    share = (model[1:] * weighted).sum((1, 2)) / (mean * weighted).sum().clamp_min(1e-30)
    return torch.cat([model[:1], model[1:] - share[:, None, None] * mean])


def _update_noise(data: AlignedSpectra, model: Tensor, latent: Latent) -> None:
    """Noise by ring from what the model leaves of the matched filters, whose variance is C^2 sigma^2."""
    rest = torch.zeros(data.ctf2.shape[1], device=model.device)
    expected = torch.zeros_like(rest)
    for rows in data.chunks():
        seen = (latent.mean[rows] @ model.flatten(1)).unflatten(1, (2, -1))
        rest += (data.matched[rows] - data.ctf2[rows, None] * seen).square().sum((0, 1)) / 2
        expected += data.ctf2[rows].sum(0)
    power = data.plane.ring_sums(rest) / data.plane.ring_sums(expected).clamp_min(1e-9)
    power[0] = power[1]
    data.noise_power = power.clamp_min(1e-3 * float(power.max()))


def ordered_and_shrunk(data: AlignedSpectra, model: Tensor, edge: float) -> tuple[Tensor, Tensor]:
    """Make the components independent, order them by signal over noise, and correct their variances for the noise.

    A component that does not rise above the edge retains a trace of its variance, so that its scores remain defined but
    have almost no weight.

    Parameters
    ----------
    data : AlignedSpectra
        Matched filters.
    model : Tensor of shape (1 + k, 2, d)
        Mean and components.
    edge : float
        The noise edge.

    Returns
    -------
    Tensor of shape (1 + k, 2, d)
        Mean and components.
    Tensor of shape (k,)
        Signal over noise of each component.
    """
    weighted = model[1:] * data.mean_precision()
    gram = torch.einsum("acd,bcd->ab", weighted, model[1:])
    signal, rotation = torch.linalg.eigh(gram)
    signal, rotation = signal.flip(0).clamp_min(1e-12), rotation.flip(1)
    components = torch.einsum("acd,ab->bcd", model[1:], rotation)
    aspect = (max(edge, 1.0) ** 0.5 - 1) ** 2
    shrunk = shrink_eigenvalues(signal + 1, aspect).clamp_min(LEAST_SIGNAL)
    shrunk = torch.minimum(shrunk, signal)
    return torch.cat([model[:1], components * (shrunk / signal).sqrt()[:, None, None]]), shrunk
