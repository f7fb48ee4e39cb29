"""2SDR: multilinear components first, principal components of the small cores second."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ralib.analysis.base import ImageTransformer, with_fixed_signs
from ralib.analysis.mpca import CoreRows, fit_axes
from ralib.analysis.pca import exact_spectrum, krylov_spectrum
from ralib.analysis.rank import gic_rank
from ralib.analysis.rows import ImageRows
from ralib.types import RalibError

EXACT_UP_TO_CORE = 2500


class TwoSDR(ImageTransformer):
    """Two-stage dimension reduction.

    Stage one reduces each image (h, w) to a core (a, b) by multilinear PCA; stage two is PCA of the flattened cores.
    Compared with PCA it solves an (a b) instead of an (h w) eigenproblem and first removes the noise outside the row
    and column spaces; its scores are uncorrelated, which those of MPCA are not.

    Parameters
    ----------
    n_components : int, optional
        Number of scores; by default by the generalised information criterion, as in the paper.
    core_shape : tuple of int, optional
        Size (a, b) of the cores; by default by the same criterion on the row and column covariances. The paper uses
        Stein's unbiased risk there, which on images with coloured noise keeps more than needed.
    image_shape : tuple of int, optional
        Height and width, where rows are given instead of images and the images are not square.
    max_iter : int, default 10
        Largest number of alternations of stage one.
    tol : float, default 1e-05
        Relative gain of captured variance below which stage one stops.
    random_state : Any, optional
        Seed, as in scikit-learn.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Attributes
    ----------
    components_ : ndarray of shape (k, h * w)
        Orthonormal components.
    mean_ : ndarray of shape (h * w,)
        Mean image.
    explained_variance_ : ndarray of shape (k,)
        Variance of each component.
    explained_variance_ratio_ : ndarray of shape (k,)
        The same over the images' whole variance.
    core_shape_ : tuple of int
        Size of the cores.
    n_components_ : int
        Number of scores.
    image_shape_ : tuple of int
        Height and width of the images.

    References
    ----------
    Chung, Wang, Niu, Huang, Chang and Tu 2020, "Two-stage dimension reduction for noisy high-dimensional images and
    application to cryogenic electron microscopy", Ann. Math. Sci. Appl. 5, doi 10.4310/AMSA.2020.v5.n2.a4.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        core_shape: tuple[int, int] | None = None,
        image_shape: tuple[int, int] | None = None,
        max_iter: int = 10,
        tol: float = 1e-5,
        random_state: Any = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.core_shape = core_shape
        self.image_shape = image_shape
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.device = device

    def _fit(self, rows: ImageRows) -> None:
        mean = rows.mean()
        stage_one = fit_axes(rows, mean, self.core_shape, max_iter=self.max_iter, tol=self.tol)
        cores = CoreRows(rows, mean, stage_one.row_axes, stage_one.column_axes)
        k = self.n_components
        at_most = min(cores.n_rows, cores.n_pixels)
        if k is not None and not 1 <= k <= at_most:
            raise RalibError(
                f"n_components={k} of {cores.n_rows} cores of {cores.n_pixels} numbers: give 1 to {at_most}, "
                "or a larger core_shape"
            )
        centre = torch.zeros(cores.n_pixels, dtype=rows.dtype, device=rows.device)
        if k is None or cores.n_pixels <= EXACT_UP_TO_CORE:
            spectrum = exact_spectrum(cores, centre)
            k = k or gic_rank(spectrum.variance, rows.n_rows, at_most=at_most)
        else:
            spectrum = krylov_spectrum(cores, centre, k, generator=self._generator(rows.device))
        a, b = stage_one.row_axes.shape[1], stage_one.column_axes.shape[1]
        core_axes = spectrum.axes[:k].to(rows.dtype).view(k, a, b)
        images = stage_one.row_axes @ core_axes @ stage_one.column_axes.T
        whole = spectrum.total / max(stage_one.captured, 1e-12)
        self.components_ = with_fixed_signs(images.flatten(1)).cpu().numpy()
        self.mean_ = mean.cpu().numpy()
        self.explained_variance_ = spectrum.variance[:k].clamp_min(0).cpu().numpy()
        self.explained_variance_ratio_ = self.explained_variance_ / np.maximum(whole, 1e-300)
        self.core_shape_, self.n_components_, self.n_iter_ = (a, b), k, stage_one.n_iter
        self.image_shape_ = rows.image_shape
