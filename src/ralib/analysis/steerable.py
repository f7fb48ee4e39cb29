"""Steerable PCA: components of images together with all their in-plane rotations and reflections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from scipy.special import jn_zeros, jv
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ralib.analysis.base import wrong_shape
from ralib.analysis.rows import ImageRows
from ralib.types import RalibError


@dataclass(frozen=True)
class FourierBessel:
    """Orthonormal functions J_m(R_mq r / radius) exp(i m theta) on the pixels of a disc.

    Attributes
    ----------
    matrix : Tensor of shape (p, j)
        Complex functions, only those with m >= 0, as images are real.
    order : ndarray of shape (j,)
        Angular order m of each.
    """

    matrix: Tensor
    order: np.ndarray


def fourier_bessel(box: int, *, radius_px: float, max_frequency_per_px: float) -> FourierBessel:
    """Make the basis of images in a disc up to a frequency.

    A function's radial frequency is R_mq / (2 pi radius), so that roots R_mq of J_m up to 2 pi radius times the band
    limit are used. The columns are made orthonormal on the pixel grid within each m.

    Parameters
    ----------
    box : int
        Image size, pixels.
    radius_px : float
        Radius of the disc, pixels.
    max_frequency_per_px : float
        Band limit, cycles per pixel.

    Returns
    -------
    FourierBessel
        The basis.

    References
    ----------
    Zhao and Singer 2013, "Fourier-Bessel rotational invariant eigenimages", J. Opt. Soc. Am. A 30, 871-877, doi
    10.1364/JOSAA.30.000871.
    """
    axis = np.arange(box) - box // 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    radius, angle = np.hypot(x, y).ravel(), np.arctan2(y, x).ravel()
    inside = radius <= radius_px
    limit = 2 * np.pi * radius_px * max_frequency_per_px
    columns, orders = [], []
    for m in range(int(limit) + 1):
        roots = jn_zeros(m, int(limit / np.pi) + 2)
        roots = roots[roots <= limit]
        if not len(roots):
            break
        radial = jv(m, roots[None, :] * np.where(inside, radius, 0.0)[:, None] / radius_px) * inside[:, None]
        block = np.linalg.qr(radial * np.exp(1j * m * angle)[:, None])[0]
        columns.append(block)
        orders.append(np.full(block.shape[1], m))
    matrix = np.concatenate(columns, axis=1).astype(np.complex64)
    return FourierBessel(torch.from_numpy(matrix), np.concatenate(orders))


class SteerablePCA(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """PCA of images with all their rotated and mirrored copies, without making copies.

    Rotating an image multiplies its score of angular order m by exp(-i m angle), so that |score| is invariant to
    in-plane rotation: unaligned particles can be compared by `invariants`.

    Parameters
    ----------
    n_components : int, default 50
        Number of (complex) components, over all orders together.
    radius_px : float, optional
        Radius of the disc used, pixels; by default box // 2.
    max_frequency_per_px : float, default 0.5
        Band limit, cycles per pixel, at most 0.5.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Attributes
    ----------
    components_ : ndarray of shape (k, h * w)
        Complex components.
    order_ : ndarray of shape (k,)
        Their angular orders.
    explained_variance_ : ndarray of shape (k,)
        Variances, twice for m > 0, as -m belongs to it.
    mean_ : ndarray of shape (h * w,)
        Rotationally averaged mean.
    image_shape_ : tuple of int
        Height and width of the images.

    References
    ----------
    Zhao, Shkolnisky and Singer 2016, "Fast steerable principal component analysis", IEEE Trans. Comput. Imaging 2,
    1-12.
    """

    def __init__(
        self,
        n_components: int = 50,
        *,
        radius_px: float | None = None,
        max_frequency_per_px: float = 0.5,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.radius_px = radius_px
        self.max_frequency_per_px = max_frequency_per_px
        self.device = device

    def fit(self, X: Any, y: None = None) -> Self:
        """Fit to images (n, h, h), an `ImageSource` or a `ParticleSet`.

        Parameters
        ----------
        X : Any
            Images.
        y : None, optional
            Ignored.

        Returns
        -------
        Self
            The estimator itself.
        """
        rows = ImageRows(X, device=self.device)
        h, w = rows.image_shape
        if h != w:
            raise RalibError(f"steerable components need square images, not {h} x {w} px")
        radius = float(h // 2) if self.radius_px is None else self.radius_px
        if not (0 < radius <= h // 2 and 0 < self.max_frequency_per_px <= 0.5):
            raise RalibError(
                f"radius_px={radius}, max_frequency_per_px={self.max_frequency_per_px} in a box of {h} px: "
                f"give a radius up to {h // 2} and a frequency up to 0.5"
            )
        basis = fourier_bessel(h, radius_px=radius, max_frequency_per_px=self.max_frequency_per_px)
        matrix = basis.matrix.to(rows.device)
        mean = self._rotational_mean(rows, matrix, basis.order)
        variance, axes, order = self._block_components(rows, mean, matrix, basis.order)
        best = np.argsort(-variance)[: self.n_components]
        self.explained_variance_, self.order_ = variance[best], order[best]
        self.components_ = torch.stack([axes[i] for i in best]).cpu().numpy()
        self.mean_, self.image_shape_ = mean.cpu().numpy(), rows.image_shape
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return complex scores (n, k)."""
        check_is_fitted(self)
        rows = ImageRows(X, device=self.device)
        if rows.image_shape != self.image_shape_:
            raise wrong_shape(rows.image_shape, self.image_shape_)
        mean = torch.as_tensor(self.mean_, device=rows.device)
        conjugate = torch.as_tensor(self.components_, device=rows.device).conj().T
        parts = [((chunk - mean).to(torch.complex64) @ conjugate).cpu() for chunk in rows.chunks()]
        return torch.cat(parts).numpy()

    def inverse_transform(self, scores: np.ndarray) -> np.ndarray:
        """Return images (n, h * w) from complex scores; an order m > 0 counts with its conjugate."""
        check_is_fitted(self)
        weight = np.where(self.order_ == 0, 1.0, 2.0)
        return ((scores * weight) @ self.components_).real.astype(np.float32) + self.mean_

    def rotate(self, scores: np.ndarray, psi_deg: np.ndarray) -> np.ndarray:
        """Return the scores of rotated images, in the sense of `ralib.conventions`.

        Parameters
        ----------
        scores : ndarray of shape (n, k)
            Complex scores.
        psi_deg : ndarray of shape (n,)
            In-plane rotation, degrees.

        Returns
        -------
        ndarray of shape (n, k)
            Scores.
        """
        return scores * np.exp(-1j * np.deg2rad(psi_deg)[:, None] * self.order_)

    def invariants(self, X: Any) -> np.ndarray:
        """Return |scores| (n, k), the same for an image and its rotated or mirrored copies."""
        return np.abs(self.transform(X))

    @property
    def eigenimages_(self) -> np.ndarray:
        """Real parts of the components as images (k, h, w)."""
        return self.components_.real.reshape(-1, *self.image_shape_)

    @staticmethod
    def _rotational_mean(rows: ImageRows, matrix: Tensor, order: np.ndarray) -> Tensor:
        """The mean over all images and rotations: only m = 0 survives."""
        radial = matrix[:, torch.as_tensor(order == 0, device=rows.device)].real
        return radial @ (radial.T @ rows.mean())

    @staticmethod
    def _block_components(
        rows: ImageRows, mean: Tensor, matrix: Tensor, order: np.ndarray
    ) -> tuple[np.ndarray, list[Tensor], np.ndarray]:
        """Eigenvectors of the covariance, which rotations and reflections make real and one block for each m."""
        starts = np.flatnonzero(np.diff(order, prepend=-1))
        stops = np.append(starts[1:], len(order))
        spans = list(zip(starts.tolist(), stops.tolist(), strict=True))
        scatter = [torch.zeros(b - a, b - a, dtype=torch.float64, device=rows.device) for a, b in spans]
        conjugate = matrix.conj()
        for chunk in rows.chunks():
            coefficients = (chunk - mean).to(conjugate.dtype) @ conjugate
            for block, (a, b) in zip(scatter, spans, strict=True):
                part = coefficients[:, a:b]
                block += part.real.T @ part.real + part.imag.T @ part.imag
        variance: list[float] = []
        axes: list[Tensor] = []
        orders: list[int] = []
        for block, (a, b) in zip(scatter, spans, strict=True):
            m = int(order[a])
            values, vectors = torch.linalg.eigh(block / rows.n_rows)
            images = matrix[:, a:b] @ vectors.to(matrix.dtype)
            variance += [float(v) * (2 if m else 1) for v in values.flip(0)]
            axes += list(images.T.flip(0))
            orders += [m] * (b - a)
        return np.array(variance), axes, np.array(orders)
