"""Probabilistic PCA of aligned particles, with the CTF and the noise spectrum in the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from ralib.analysis.aligned_spectra import AlignedSpectra, aligned_spectra
from ralib.analysis.base import PixelComponents
from ralib.analysis.component_em import e_step, expectation_maximisation, initial_components, m_step, ordered_and_shrunk
from ralib.analysis.half_plane import HalfPlane
from ralib.analysis.matched import MatchedEstimator, MatchedParticles, matched_as_learnt
from ralib.analysis.particle_radius import MASK_EDGE_PX, radius_of_image
from ralib.types import RalibError

MOST_COMPONENTS = 20
LEAST_PARTICLES = 10


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
