"""Multilinear principal component analysis: images are projected by rows and by columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.analysis.base import ImageTransformer, with_fixed_signs
from ralib.analysis.rank import gic_rank
from ralib.analysis.rows import ImageRows
from ralib.types import RalibError


class MPCA(ImageTransformer):
    """Multilinear PCA (Lu, Plataniotis and Venetsanopoulos 2008), for matrices known as GLRAM (Ye 2005).

    An image X (h, w) is reduced to a core A^T (X - mean) B of a x b numbers, with orthonormal A (h, a) and B (w, b)
    that retain the largest variance together. A and B follow from h x h and w x w eigenproblems, so that a box of 200
    px takes hardly longer than one of 90. Scores are cores, flattened by rows: (n, a * b).

    Parameters
    ----------
    core_shape : tuple of int, optional
        Size (a, b) of the core; by default by the generalised information criterion on the row and column covariances.
    image_shape : tuple of int, optional
        Height and width, where rows are given instead of images and the images are not square.
    max_iter : int, default 10
        Largest number of alternations of A and B.
    tol : float, default 1e-05
        Relative gain of captured variance below which they stop.
    device : torch.device or str, default 'cpu'
        Where to compute.

    Attributes
    ----------
    row_axes_ : ndarray of shape (h, a)
        A.
    column_axes_ : ndarray of shape (w, b)
        B.
    mean_ : ndarray of shape (h * w,)
        Mean image.
    core_shape_ : tuple of int
        Size of the core.
    explained_variance_ratio_ : float
        Fraction of the variance retained by the whole core. A single number, where `PCA` and `TwoSDR` have one for each
        component: the scores of a core are correlated, so that their shares would not add up.
    n_iter_ : int
        Alternations done.
    image_shape_ : tuple of int
        Height and width of the images.

    References
    ----------
    Lu, Plataniotis and Venetsanopoulos 2008, "MPCA: multilinear principal component analysis of tensor objects", IEEE
    Trans. Neural Netw. 19, 18-39.
    Ye 2005, "Generalized low rank approximations of matrices", Mach. Learn. 61, 167-191.
    """

    def __init__(
        self,
        core_shape: tuple[int, int] | None = None,
        *,
        image_shape: tuple[int, int] | None = None,
        max_iter: int = 10,
        tol: float = 1e-5,
        device: torch.device | str = "cpu",
    ) -> None:
        self.core_shape = core_shape
        self.image_shape = image_shape
        self.max_iter = max_iter
        self.tol = tol
        self.device = device

    def _fit(self, rows: ImageRows) -> None:
        mean = rows.mean()
        fit = fit_axes(rows, mean, self.core_shape, max_iter=self.max_iter, tol=self.tol)
        self.mean_ = mean.cpu().numpy()
        self.row_axes_, self.column_axes_ = fit.row_axes.cpu().numpy(), fit.column_axes.cpu().numpy()
        self.core_shape_ = (fit.row_axes.shape[1], fit.column_axes.shape[1])
        self.explained_variance_ratio_ = fit.captured
        self.n_iter_, self.image_shape_ = fit.n_iter, rows.image_shape

    @property
    def components_(self) -> np.ndarray:  # type: ignore[override]
        """The a * b orthonormal images (h * w) that belong to the core's numbers."""
        return np.kron(self.row_axes_, self.column_axes_).T

    @property
    def _n_features_out(self) -> int:
        return self.core_shape_[0] * self.core_shape_[1]

    def _scores(self, rows: ImageRows) -> np.ndarray:
        cores = CoreRows(
            rows, self._on(rows, self.mean_), self._on(rows, self.row_axes_), self._on(rows, self.column_axes_)
        )
        return torch.cat([chunk.cpu() for chunk in cores.chunks()]).numpy()


class CoreRows:
    """Cores A^T (X - mean) B of images, flattened, computed chunk by chunk.

    Parameters
    ----------
    rows : ImageRows
        Images.
    mean : Tensor of shape (h * w,)
        Mean image.
    row_axes : Tensor of shape (h, a)
        A.
    column_axes : Tensor of shape (w, b)
        B.
    """

    def __init__(self, rows: ImageRows, mean: Tensor, row_axes: Tensor, column_axes: Tensor) -> None:
        self.rows, self._mean, self._row_axes, self._column_axes = rows, mean, row_axes, column_axes
        self.n_rows, self.dtype, self.device = rows.n_rows, rows.dtype, rows.device
        self.n_pixels = row_axes.shape[1] * column_axes.shape[1]

    def chunks(self) -> Any:
        """Iterate over chunks (b, a * b) of the cores."""
        for chunk in self.rows.chunks():
            images = (chunk - self._mean).view(-1, *self.rows.image_shape)
            yield (self._row_axes.T @ images @ self._column_axes).flatten(1)


class AxesFit:
    """Row and column axes with the fraction of the variance that they capture.

    Parameters
    ----------
    row_axes : Tensor of shape (h, a)
        A.
    column_axes : Tensor of shape (w, b)
        B.
    captured : float
        Fraction of the variance.
    n_iter : int
        Alternations done.
    """

    def __init__(self, row_axes: Tensor, column_axes: Tensor, captured: float, n_iter: int) -> None:
        self.row_axes, self.column_axes, self.captured, self.n_iter = row_axes, column_axes, captured, n_iter


def fit_axes(
    rows: ImageRows, mean: Tensor, core_shape: tuple[int, int] | None, *, max_iter: int = 10, tol: float = 1e-5
) -> AxesFit:
    """Find the axes by alternating eigenproblems, starting from those of the unprojected images.

    Parameters
    ----------
    rows : ImageRows
        Images.
    mean : Tensor of shape (h * w,)
        Mean image.
    core_shape : tuple of int or None
        Size (a, b) of the core, or None for the generalised information criterion.
    max_iter : int, default 10
        Largest number of alternations.
    tol : float, default 1e-05
        Relative gain of captured variance below which they stop.

    Returns
    -------
    AxesFit
        The axes.
    """
    h, w = rows.image_shape
    row_scatter, column_scatter = _full_scatters(rows, mean)
    total = float(row_scatter.trace())
    if core_shape is None:
        core_shape = (_mode_rank(row_scatter, rows.n_rows * w), _mode_rank(column_scatter, rows.n_rows * h))
    a, b = core_shape
    if not (1 <= a <= h and 1 <= b <= w):
        raise RalibError(f"core_shape={core_shape} of images of {(h, w)} px: give at least 1 and at most the image")
    row_axes, column_axes = _leading(row_scatter, a), _leading(column_scatter, b)
    captured, n_iter = 0.0, 0
    for n_iter in range(1, max(1, max_iter) + 1):  # noqa: B007 (read behind the loop)
        column_scatter = _projected_scatter(rows, mean, row_axes, columns=True)
        column_axes = _leading(column_scatter, b)
        row_scatter = _projected_scatter(rows, mean, column_axes, columns=False)
        row_axes = _leading(row_scatter, a)
        before, captured = captured, float(torch.trace(row_axes.T @ row_scatter @ row_axes))
        if captured - before <= tol * max(total, 1e-300):
            break
    dtype = rows.dtype
    return AxesFit(row_axes.to(dtype), column_axes.to(dtype), captured / max(total, 1e-300), n_iter)


def _full_scatters(rows: ImageRows, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of X X^T (h, h) and X^T X (w, w) over centred images, float64."""
    h, w = rows.image_shape
    by_row = torch.zeros(h, h, dtype=torch.float64, device=rows.device)
    by_column = torch.zeros(w, w, dtype=torch.float64, device=rows.device)
    for chunk in rows.chunks():
        images = (chunk - mean).view(-1, h, w)
        wide = images.transpose(0, 1).reshape(h, -1)
        tall = images.reshape(-1, w)
        by_row += wide @ wide.T
        by_column += tall.T @ tall
    return by_row, by_column


def _projected_scatter(rows: ImageRows, mean: Tensor, axes: Tensor, *, columns: bool) -> Tensor:
    """Sum of X^T A A^T X (w, w) with `columns`, of X B B^T X^T (h, h) without."""
    h, w = rows.image_shape
    size = w if columns else h
    scatter = torch.zeros(size, size, dtype=torch.float64, device=rows.device)
    axes = axes.to(rows.dtype)
    for chunk in rows.chunks():
        images = (chunk - mean).view(-1, h, w)
        if columns:
            tall = (axes.T @ images).reshape(-1, w)
            scatter += tall.T @ tall
        else:
            wide = (images @ axes).transpose(0, 1).reshape(h, -1)
            scatter += wide @ wide.T
    return scatter


def _leading(scatter: Tensor, k: int) -> Tensor:
    """The k leading eigenvectors as columns."""
    axes = torch.linalg.eigh(scatter)[1].flip(1)[:, :k]
    return with_fixed_signs(axes.T).T


def _mode_rank(scatter: Tensor, n_samples: int) -> int:
    return gic_rank(torch.linalg.eigvalsh(scatter).flip(0) / n_samples, n_samples)
