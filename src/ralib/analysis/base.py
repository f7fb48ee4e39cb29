"""Base of the dimension reductions: input checks, and the linear map onto components and back."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from ralib.analysis.rows import ImageRows, real_images
from ralib.types import ImageSource, ParticleSet, RalibError


class PixelComponents:
    """Methods that follow from `components_`, `mean_` and `image_shape_`.

    Attributes
    ----------
    mean_ : ndarray of shape (h * w,)
        Mean image.
    components_ : ndarray of shape (k, h * w)
        Components with orthonormal rows.
    image_shape_ : tuple of int
        Height and width of the images.
    """

    mean_: np.ndarray
    components_: np.ndarray
    image_shape_: tuple[int, int]

    def inverse_transform(self, scores: Any) -> np.ndarray:
        """Return images as rows (n, h * w) from scores (n, k)."""
        check_is_fitted(self)
        scores = np.asarray(scores)
        if scores.ndim != 2 or scores.shape[1] != len(self.components_):
            raise RalibError(f"scores of shape {scores.shape} do not fit {len(self.components_)} components")
        return scores @ self.components_.astype(scores.dtype, copy=False) + self.mean_.astype(scores.dtype, copy=False)

    @property
    def eigenimages_(self) -> np.ndarray:
        """The components as images (k, h, w)."""
        return self.components_.reshape(-1, *self.image_shape_)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


class ImageTransformer(PixelComponents, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Base class of the dimension reductions over images, in scikit-learn's interface.

    X may be images (n, h, w), rows (n, h * w) as in scikit-learn, a tensor, an `ImageSource` or a `ParticleSet`; the
    last two are read in chunks. A subclass sets `mean_` (h * w,), `components_` (k, h * w) with orthonormal rows and
    `image_shape_`, all NumPy arrays.
    """

    device: torch.device | str

    def fit(self, X: Any, y: None = None) -> Self:
        """Learn the components of images.

        Parameters
        ----------
        X : Any
            Images; see the class.
        y : None, optional
            Ignored.

        Returns
        -------
        Self
            The estimator itself.
        """
        self._fit(self._rows(X, reset=True))
        return self

    def fit_transform(self, X: Any, y: None = None) -> np.ndarray:
        """Learn the components of images and return their scores; images that fit on the device are read once.

        Parameters
        ----------
        X : Any
            Images; see the class.
        y : None, optional
            Ignored.

        Returns
        -------
        ndarray of shape (n, k)
            Scores.
        """
        rows = self._rows(X, reset=True)
        self._fit(rows)
        return self._scores(rows)

    def transform(self, X: Any) -> np.ndarray:
        """Return the scores (n, k) of images on the components."""
        check_is_fitted(self)
        return self._scores(self._rows(X, reset=False))

    def _fit(self, rows: ImageRows) -> None:
        raise NotImplementedError

    def _scores(self, rows: ImageRows) -> np.ndarray:
        mean, components = self._on(rows, self.mean_), self._on(rows, self.components_)
        return torch.cat([((chunk - mean) @ components.T).cpu() for chunk in rows.chunks()]).numpy()

    def _rows(self, X: Any, *, reset: bool) -> ImageRows:
        """Check whatever holds images, once, and return it as rows on the estimator's device."""
        shape = getattr(self, "image_shape", None) if reset else self.image_shape_
        if not isinstance(X, (ParticleSet, ImageSource)) and getattr(X, "ndim", 2) != 3:
            X = real_images(X).cpu().numpy() if isinstance(X, Tensor) else X
            X = validate_data(
                self, X, reset=reset, dtype=[np.float64, np.float32], ensure_min_samples=2 if reset else 1
            )
            return ImageRows(X, device=self.device, dtype=_dtype_of(X), image_shape=shape)
        rows = ImageRows(X, device=self.device, dtype=_dtype_of(X))
        if reset:
            self.n_features_in_ = rows.n_pixels
            if rows.n_rows < 2:
                raise RalibError(f"{rows.n_rows} image is too few to learn components from: give at least 2")
        elif rows.image_shape != self.image_shape_:
            raise wrong_shape(rows.image_shape, self.image_shape_)
        return rows

    def _generator(self, device: torch.device) -> torch.Generator:
        """A generator seeded from scikit-learn's `random_state` parameter."""
        seed = check_random_state(getattr(self, "random_state", None)).randint(2**31)
        return torch.Generator(device=device).manual_seed(int(seed))

    def _on(self, rows: ImageRows, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, device=rows.device, dtype=rows.dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def wrong_shape(given: tuple[int, int], learnt: tuple[int, int]) -> RalibError:
    """Return the error for images of another size than the estimator was fitted to.

    Parameters
    ----------
    given : tuple of int
        Height and width of the images.
    learnt : tuple of int
        Height and width of those fitted.

    Returns
    -------
    RalibError
        The error, to be raised.
    """
    return RalibError(f"images of {given} px, but learnt from {learnt} px: crop or pad them")


def _dtype_of(X: Any) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.float64 if getattr(X, "dtype", None) in (np.float64, torch.float64) else torch.float32


def with_fixed_signs(components: Tensor) -> Tensor:
    """Return rows whose largest entry is positive, so that the same data always give the same signs."""
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0).to(components.dtype)
