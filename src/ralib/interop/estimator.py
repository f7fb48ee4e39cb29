"""scikit-learn's estimator protocol for objects whose constructor stores its arguments.

Written here and not inherited from `sklearn.base.BaseEstimator`: its import costs every command 0.8 s, its
`set_params` checks nothing, and its repr breaks into lines. `sklearn.base.clone` and pipelines ask for no more than
these methods.
"""

from __future__ import annotations

import inspect
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


class ClusterEstimator:
    """`get_params`, `set_params`, `fit_predict`, `labels_` and a repr of one line, for estimators of classes.

    A subclass stores each argument of its constructor, as it is, under the same name, and has `fit` and `poses_`.
    """

    poses_: Any

    @classmethod
    def _parameters(cls) -> dict[str, Any]:
        """Names of the constructor's arguments and their defaults (`inspect.Parameter.empty` where there is none)."""
        signature = inspect.signature(cls.__init__)
        return {name: p.default for name, p in signature.parameters.items() if name != "self"}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments by name.

        Parameters
        ----------
        deep : bool
            Accepted as scikit-learn passes it; no argument is an estimator itself.

        Returns
        -------
        dict
            Name to value, as they were given.
        """
        return {name: getattr(self, name) for name in self._parameters()}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor, with its checks; what was fitted stays until the next `fit`.

        Parameters
        ----------
        **params
            New values by name.

        Returns
        -------
        Self
            The estimator.

        Raises
        ------
        ValueError
            For a name that the constructor does not know.
        RalibError
            For a value that it refuses; nothing is changed then.
        """
        known = self._parameters()
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise ValueError(f"{type(self).__name__} has no parameter {unknown[0]!r}: choose from {', '.join(known)}")
        checked = type(self)(**{**self.get_params(), **params})
        for name in known:
            setattr(self, name, getattr(checked, name))
        return self

    @property
    def labels_(self) -> np.ndarray:
        """Class (n,) of each particle of `fit`, int64 from 0; -1 where it has none."""
        labels: np.ndarray = self.poses_.class_index.cpu().numpy()
        return labels

    def fit_predict(self, particles: Any, y: Any = None, **options: Any) -> np.ndarray:
        """`fit`, then the class of each particle.

        Parameters
        ----------
        particles : ParticleSet or array (n, box, box)
            Passed on to `fit`.
        y : None
            Ignored, as scikit-learn passes it.
        **options
            Passed on to `fit`.

        Returns
        -------
        ndarray (n,) int64
            `labels_`.
        """
        self.fit(particles, **options)  # type: ignore[attr-defined]
        return self.labels_

    def predict(self, particles: Any) -> np.ndarray:
        """The class of new particles; what `fit` found stays as it is.

        Parameters
        ----------
        particles : ParticleSet or array (n, box, box)
            As for `predict_poses`, which gives their poses as well.

        Returns
        -------
        ndarray (n,) int64
            From 0; -1 where the image cannot be used.
        """
        labels: np.ndarray = self.predict_poses(particles).class_index.numpy()  # type: ignore[attr-defined]
        return labels

    def score(self, particles: Any, y: Any = None) -> float:
        """How well new particles fit their best class, higher is better.

        Parameters
        ----------
        particles : ParticleSet or array (n, box, box)
            As for `predict_poses`.
        y : None
            Ignored, as scikit-learn passes it.

        Returns
        -------
        float
            Mean over the usable particles of the poses' score: log-likelihood ratio in nats for a `Classifier`,
            correlation criterion for the aligners; NaN where no particle is usable.
        """
        poses = self.predict_poses(particles)  # type: ignore[attr-defined]
        return float(poses.score[poses.class_index >= 0].double().mean())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "poses_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        images = InputTags(one_d_array=False, two_d_array=False, three_d_array=True)
        return Tags(estimator_type="clusterer", target_tags=TargetTags(required=False), input_tags=images)

    def __repr__(self) -> str:
        """The class and what differs from its defaults, in one line."""
        changed = [
            f"{name}={_short(getattr(self, name))}"
            for name, default in self._parameters().items()
            if not _same(getattr(self, name), default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def _same(value: Any, default: Any) -> bool:
    """Whether a value is the default; arrays never are."""
    if isinstance(value, np.ndarray | Tensor):
        return False
    return value is default or bool(value == default)


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray | Tensor):
        return f"<{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}>"
    if isinstance(value, torch.device):
        return repr(str(value))
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."
