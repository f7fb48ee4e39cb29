"""Expectation maximisation of probabilistic PCA: contrast and scores of each particle, the mean and the components."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.analysis.aligned_spectra import AlignedSpectra
from ralib.analysis.pca import krylov_spectrum
from ralib.analysis.shrinkage import shrink_eigenvalues

SPECTRUM_SHOWN = 20
"""Leading eigenvalues of the whitened covariance that are computed."""

CONTRAST_SD = 0.2
"""Standard deviation of the contrast, before it is estimated."""

CG_STEPS = 25
"""Conjugate gradient steps of an M-step."""

LEAST_SIGNAL = 0.02
"""Signal over noise of a component, at least: one below the noise edge keeps it, and hardly any weight."""

NOISE_ROUNDS = 2
"""Estimates of the noise from what the mean leaves, before there are components."""

EDGE_MARGIN = 1.02
"""Times the largest eigenvalue of noise alone: from there on a component counts."""


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
