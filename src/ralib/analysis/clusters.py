"""Clusters of particles in a few dimensions, embeddings to look at, and how well two labellings agree."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.manifold import TSNE
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from ralib.classes.evaluation import adjusted_rand_index, contingency
from ralib.types import RalibError

MANY_PARTICLES = 20_000


def kmeans(features: np.ndarray, n_clusters: int, *, seed: int = 0, n_init: int = 4) -> np.ndarray:
    """Cluster (n,) of each row of features (n, d), numbered by size: cluster 0 is the largest.

    Lloyd's algorithm from k-means++ starts; beyond 20,000 rows in mini-batches.
    """
    if not 1 <= n_clusters <= len(features):
        raise RalibError(f"{n_clusters} clusters of {len(features)} particles: ask for 1 to {len(features)}")
    maker = MiniBatchKMeans if len(features) > MANY_PARTICLES else KMeans
    labels = maker(n_clusters=n_clusters, n_init=n_init, random_state=seed).fit_predict(features)
    by_size = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    return np.argsort(by_size)[labels]


def embed(features: np.ndarray, method: str = "tsne", *, n_dimensions: int = 2, seed: int = 0) -> np.ndarray:
    """Coordinates (n, 2) to draw particles at: 'pca' (the first features), 'tsne', or 'umap' where it is installed."""
    if method == "pca":
        return features[:, :n_dimensions]
    if np.allclose(features, features[:1], rtol=0, atol=1e-6 * max(1.0, float(np.abs(features).max()))):
        return np.zeros((len(features), n_dimensions))  # one point: scikit-learn's t-SNE would divide by no variance
    if method == "tsne":
        perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
        return TSNE(n_components=n_dimensions, perplexity=perplexity, init="pca", random_state=seed).fit_transform(
            features
        )
    if method != "umap":
        raise RalibError(f"no embedding {method!r}: give 'pca', 'tsne' or 'umap'")
    if not has_umap():
        raise RalibError("UMAP is not installed: pip install 'cryo-ralib[analysis]', or choose 'tsne'")
    from umap import UMAP

    return np.asarray(UMAP(n_components=n_dimensions, random_state=seed, n_jobs=1).fit_transform(features))


def has_umap() -> bool:
    """Whether umap-learn can be imported."""
    return find_spec("umap") is not None and find_spec("umap.umap_") is not None


def class_purity(labels: Any, truth: Any) -> dict[Any, float]:
    """For each label, the fraction of its members that belong to its most frequent true class."""
    found, true = _coded(labels, truth)
    table = contingency(found, true).numpy()
    return dict(zip(np.unique(labels).tolist(), (table.max(axis=1) / table.sum(axis=1)).tolist(), strict=True))


def agreement(labels: Any, truth: Any) -> dict[str, float]:
    """Purity, adjusted Rand index (0 by chance, 1 the same) and normalised mutual information of two labellings.

    Any values may serve as labels (n,). Purity rises with the number of labels; the other two allow for that.
    """
    found, true = _coded(labels, truth)
    table = contingency(found, true).numpy()
    return {
        "purity": float(table.max(axis=1).sum() / table.sum()),
        "adjusted_rand_index": adjusted_rand_index(found, true),
        "normalised_mutual_information": float(normalized_mutual_info_score(true.numpy(), found.numpy())),
    }


def _coded(labels: Any, truth: Any) -> tuple[Tensor, Tensor]:
    """Both labellings as codes from 0 without gaps."""
    labels, truth = np.asarray(labels), np.asarray(truth)
    if labels.ndim != 1 or truth.shape != labels.shape or not len(truth):
        raise RalibError(f"labels of shapes {labels.shape} and {truth.shape}: give one label per particle in both")
    found, true = (np.unique(values, return_inverse=True)[1] for values in (labels, truth))
    return torch.from_numpy(found), torch.from_numpy(true)
