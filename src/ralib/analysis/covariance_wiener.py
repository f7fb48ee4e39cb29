"""Covariance Wiener filtering: steerable components of raw particles, and denoised particles, with known CTF."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.analysis.fourier_bessel import FourierBesselBasis
from ralib.analysis.matched import MatchedEstimator, MatchedParticles, matched_as_learnt
from ralib.analysis.particle_radius import measured_radius_px
from ralib.analysis.shrinkage import noise_edge, shrink_eigenvalues
from ralib.analysis.steerable import SteerablePCA
from ralib.types import RalibError

DEFAULT_BAND = 0.42
CHUNK = 8192


@dataclass(frozen=True)
class _Data:
    """Coefficients (n, J) of the matched filter in main memory, and the precision of each different CTF.

    Attributes
    ----------
    at_functions : Tensor of shape (u, J)
        C^2 / sigma^2 at the frequencies of the basis functions.
    on_rings : Tensor of shape (u, K)
        C^2 / sigma^2 on rings.
    which : Tensor of shape (n,)
        CTF of each particle.
    """

    coefficients: Tensor
    at_functions: Tensor
    on_rings: Tensor
    which: Tensor

    @property
    def counts(self) -> Tensor:
        return torch.bincount(self.which, minlength=len(self.on_rings)).to(self.on_rings.dtype)

    def chunks(self) -> Iterator[slice]:
        for start in range(0, len(self.which), CHUNK):
            yield slice(start, min(start + CHUNK, len(self.which)))


class CovarianceWienerFilter(MatchedEstimator, SteerablePCA):
    """Steerable components of particles with different CTFs, and the best linear estimate of each particle.

    The covariance of the undistorted images is estimated by least squares over all particles with all their rotations
    and reflections, its eigenvalues are corrected for the noise, and every particle is restored by the Wiener filter
    given by this covariance and its own CTF (Bhamre, Zhang and Singer 2016). In the Fourier-Bessel basis a CTF is
    nearly diagonal, so that the least squares problem reduces to one division for each pair of functions, whatever the
    number of CTFs (Marshall et al. 2022). Unlike there, particles are multiplied by their CTF, astigmatism included,
    before the disc is cut out, which recovers signal that the microscope had spread beyond it; and the Wiener filter
    uses each CTF's exact radial matrix.

    Parameters
    ----------
    n_components : int, optional
        Largest number of (complex) components; by default all above the noise edge.
    radius_px : float, optional
        Radius of the disc that holds a particle, pixels; by default measured.
    max_frequency_per_px : float, default DEFAULT_BAND
        Band limit, cycles per pixel, at most 0.5.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Attributes
    ----------
    components_ : ndarray of shape (k, h * w)
        Complex, orthonormal components.
    order_ : ndarray of shape (k,)
        Their angular orders.
    explained_variance_ : ndarray of shape (k,)
        Variances of the undistorted images, without the noise's share, in units of the background's variance.
    mean_ : ndarray of shape (h * w,)
        Rotationally averaged, CTF-corrected mean.
    image_shape_ : tuple of int
        Height and width of the images.
    spectrum_, edge_ : list
        Eigenvalues of the whitened covariance, and the noise edge, by angular order.
    noise_spectrum_ : NoiseSpectrum
        Power of the noise.
    normalisation_ : BackgroundNormalisation
        What images were divided by.
    radius_px_ : float
        Radius of the disc, pixels.

    References
    ----------
    Bhamre, Zhang and Singer 2016, "Denoising and covariance estimation of single particle cryo-EM images", J. Struct.
    Biol. 195, 72-81, doi 10.1016/j.jsb.2016.04.013.
    Marshall, Mickelin, Shi and Singer 2022, "Fast principal component analysis for cryo-EM images", arXiv:2210.17501.
    """

    basis_: FourierBesselBasis

    def __init__(
        self,
        n_components: int | None = None,
        *,
        radius_px: float | None = None,
        max_frequency_per_px: float = DEFAULT_BAND,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_components = n_components  # type: ignore[assignment]
        self.radius_px = radius_px
        self.max_frequency_per_px = max_frequency_per_px
        self.device = device

    def transform(self, X: Any) -> np.ndarray:
        """Return complex scores (n, k): the expected coefficients of the undistorted images on the components."""
        matched = matched_as_learnt(self, X)
        return self._scores(self._data(matched))

    def denoise(self, X: Any) -> np.ndarray:
        """Return undistorted, denoised images (n, h, h), normalised to a background of standard deviation 1."""
        scores = self.transform(X)
        return self.images(scores)

    def images(self, scores: np.ndarray) -> np.ndarray:
        """Return images (n, h, h) of scores (n, k)."""
        return self.inverse_transform(scores).reshape(-1, *self.image_shape_)

    def _fit(self, X: Any) -> _Data:
        matched = MatchedParticles(X, device=self.device)
        if matched.n < 2:
            raise RalibError(f"{matched.n} particle is too few to learn components from: give at least 2")
        box = matched.box
        radius = measured_radius_px(matched) if self.radius_px is None else self.radius_px
        if not (2 < radius <= box // 2 and 0 < self.max_frequency_per_px <= 0.5):
            raise RalibError(
                f"radius_px={radius}, max_frequency_per_px={self.max_frequency_per_px} in a box of {box} px: "
                f"give a radius of 3 to {box // 2} and a frequency up to 0.5"
            )
        self.radius_px_, self.image_shape_ = radius, (box, box)
        self.noise_spectrum_, self.normalisation_ = matched.noise, matched.normalisation
        self.basis_ = FourierBesselBasis.create(
            box, radius_px=radius, max_frequency_per_px=self.max_frequency_per_px, device=matched.device
        )
        data = self._data(matched)
        self._learn(data)
        return data

    def _data(self, matched: MatchedParticles) -> _Data:
        basis = self.basis_
        coefficients = torch.empty(matched.n, len(basis), dtype=torch.complex64, device=matched.device)
        for index in matched.index_batches():
            coefficients[index[0] : index[-1] + 1] = basis.coefficients(matched.filtered(index))
        ctf, which = matched.unique_ctf()
        at_functions = torch.from_numpy(basis.frequency_per_px).float()
        return _Data(
            coefficients=coefficients,
            at_functions=matched.precision_on_rings(ctf, at_functions),
            on_rings=matched.precision_on_rings(ctf, basis.ring_frequency_per_px),
            which=torch.from_numpy(which).to(matched.device),
        )

    def _learn(self, data: _Data) -> None:
        """Mean, then one block of the covariance for each angular order."""
        basis, n = self.basis_, len(data.which)
        self._mean = self._mean_coefficients(data)
        blocks, orders, variances = [], [], []
        self.spectrum_, self.edge_ = {}, {}
        for m, (a, b) in enumerate(basis.spans):
            eigenvalues, vectors, aspect = self._whitened_covariance(data, m, a, b)
            self.spectrum_[m], self.edge_[m] = eigenvalues.flip(0).cpu().numpy(), noise_edge(aspect)
            signal = shrink_eigenvalues(eigenvalues, aspect)
            keep = signal > 0
            factor = vectors[:, keep] * signal[keep].sqrt()
            axes, root, _ = torch.linalg.svd(factor, full_matrices=False)
            blocks.append(axes)
            orders.append(np.full(axes.shape[1], m))
            variances.append(root.square().cpu().numpy() * (1 if m == 0 else 4))
        order, variance = np.concatenate(orders), np.concatenate(variances)
        best = np.argsort(-variance, kind="stable")[: self.n_components]
        if not len(best):
            raise RalibError(
                f"no component of these {n:,} particles rises above the noise: give more, or a radius that fits"
            )
        self._keep_best(blocks, order, variance, best)

    def _keep_best(self, blocks: list[Tensor], order: np.ndarray, variance: np.ndarray, best: np.ndarray) -> None:
        """Store the chosen components as images, as coefficients, and where the scores of each order stand."""
        basis = self.basis_
        coefficients = torch.zeros(len(order), len(basis), dtype=torch.complex64, device=basis.hankel[0].device)
        first = 0
        for (a, b), axes in zip(basis.spans, blocks, strict=True):
            coefficients[first : first + axes.shape[1], a:b] = axes.T.to(torch.complex64)
            first += axes.shape[1]
        chosen = coefficients[torch.from_numpy(best).to(coefficients.device)]
        largest = chosen.real.gather(1, chosen.real.abs().argmax(1, keepdim=True))
        chosen = chosen * torch.where(largest < 0, -1.0, 1.0)
        self.order_, self.explained_variance_ = order[best], variance[best]
        self._axes = chosen.real
        # An order above 0 is its real image plus i times its quarter turn: both from `images`, which takes real parts.
        double = torch.from_numpy(np.where(self.order_ == 0, 1.0, 2.0)).to(chosen.device, torch.float32)[:, None]
        real = basis.images(chosen / double)
        turned = (
            basis.images(chosen * (-1j) / double) * torch.from_numpy(self.order_ > 0).to(chosen.device)[:, None, None]
        )
        self.components_ = torch.complex(real, turned).flatten(1).cpu().numpy()
        zero = torch.zeros(1, len(basis), dtype=torch.complex64, device=chosen.device)
        zero[0, : len(self._mean)] = self._mean.to(torch.complex64)
        self.mean_ = basis.images(zero)[0].flatten().cpu().numpy()

    def _mean_coefficients(self, data: _Data) -> Tensor:
        """Coefficients (q,) of the mean over particles and rotations: least squares in order 0."""
        a, b = self.basis_.spans[0]
        hankel = self.basis_.hankel[0]
        normal = (hankel * (data.counts @ data.on_rings)[:, None]).T @ hankel
        normal += 1e-4 * normal.diagonal().mean() * torch.eye(b - a, device=normal.device)
        return torch.linalg.solve(normal, data.coefficients[:, a:b].real.sum(0))

    def _residual(self, data: _Data, m: int, a: int, b: int, rows: slice) -> Tensor:
        """Coefficients of one order as reals (rows, q, 1 or 2), the mean taken off."""
        parts = torch.view_as_real(data.coefficients[rows, a:b])
        if m:
            return parts
        hankel = self.basis_.hankel[0]
        seen = (data.on_rings * (hankel @ self._mean)) @ hankel
        return parts[..., :1] - seen[data.which[rows], :, None]

    def _whitened_covariance(self, data: _Data, m: int, a: int, b: int) -> tuple[Tensor, Tensor, float]:
        """Return eigenvalues (ascending) of signal plus unit noise, unwhitening vectors, dimensions over samples.

        Each of the `parts` real coefficients of a function, one for order 0 and two above, is a sample with half the
        noise.
        """
        parts, q = (1 if m == 0 else 2), b - a
        scatter = torch.zeros(q, q, dtype=torch.float64, device=data.coefficients.device)
        for rows in data.chunks():
            flat = self._residual(data, m, a, b, rows).transpose(1, 2).reshape(-1, q)
            scatter += (flat.T @ flat).double()
        scatter /= parts
        counts, hankel = data.counts.double(), self.basis_.hankel[m].double()
        noise = (hankel * (counts @ data.on_rings.double())[:, None]).T @ hankel / parts
        precision = data.at_functions[:, a:b].double()
        pairs = (precision * counts[:, None]).T @ precision
        root = (parts * (counts @ precision) / counts.sum()).sqrt()
        whitened = root[:, None] * ((scatter - noise) / pairs.clamp_min(1e-300)) * root
        whitened = (whitened + whitened.T) / 2 + torch.eye(q, dtype=torch.float64, device=whitened.device)
        eigenvalues, vectors = torch.linalg.eigh(whitened)
        return eigenvalues.float(), (vectors / root[:, None]).float(), q / (len(data.which) * parts)

    def _scores(self, data: _Data) -> np.ndarray:
        """Scores (n, k): means of the Gaussian posterior, one order at a time."""
        scores = np.zeros((len(data.which), len(self.order_)), np.complex64)
        for m in np.unique(self.order_).tolist():
            a, b = self.basis_.spans[m]
            columns = np.flatnonzero(self.order_ == m)
            parts = 1 if m == 0 else 2
            axes = self._axes[columns, a:b].T.to(data.coefficients.device)
            root = torch.from_numpy(np.sqrt(self.explained_variance_[columns] / parts**2)).to(axes)
            factor = axes * root
            seen = self.basis_.hankel[m] @ factor
            information = parts * torch.einsum("uk,ka,kb->uab", data.on_rings, seen, seen)
            covariance = torch.linalg.inv(information + torch.eye(len(columns), device=axes.device))
            for rows in data.chunks():
                projected = parts * torch.einsum("nqc,qa->nac", self._residual(data, m, a, b, rows), factor)
                mean = (covariance[data.which[rows]] @ projected) * root[:, None]
                if m == 0:
                    mean = torch.cat([mean, torch.zeros_like(mean)], dim=2)
                scores[rows.start : rows.stop, columns] = torch.view_as_complex(mean.contiguous()).cpu().numpy()
        return scores
