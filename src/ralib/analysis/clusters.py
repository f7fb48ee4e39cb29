"""Clusters of particles in few dimensions, embeddings in a plane, and agreement of labellings."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.cluster import HDBSCAN, KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from ralib.classes.evaluation import adjusted_rand_index, contingency
from ralib.types import RalibError

MANY_PARTICLES = 20_000
SCALES_TRIED = 14
SCALE_SAMPLE = 400
SCALE_ITERATIONS = 50


def kmeans(features: np.ndarray, n_clusters: int, *, seed: int = 0, n_init: int = 4) -> np.ndarray:
    """Cluster rows by Lloyd's algorithm with k-means++ initialisation, beyond 20,000 rows in mini-batches.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Rows.
    n_clusters : int
        Number of clusters.
    seed : int, default 0
        Of the initialisation.
    n_init : int, default 4
        Number of initialisations, of which the best result is returned.

    Returns
    -------
    ndarray of shape (n,)
        Clusters, numbered by decreasing size from 0.
    """
    if not 1 <= n_clusters <= len(features):
        raise RalibError(f"{n_clusters} clusters of {len(features)} particles: ask for 1 to {len(features)}")
    maker = MiniBatchKMeans if len(features) > MANY_PARTICLES else KMeans
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):  # fewer different rows than clusters
        labels = maker(n_clusters=n_clusters, n_init=n_init, random_state=seed).fit_predict(features)
    by_size = np.argsort(-np.bincount(labels, minlength=n_clusters), kind="stable")
    return np.argsort(by_size)[labels]


def hdbscan(features: np.ndarray, *, min_cluster_size: int = 0) -> np.ndarray:
    """Cluster rows by density (HDBSCAN); the number of clusters follows from the data, and outliers belong to none.

    Clusters are the groups that stay dense over the widest range of densities.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Rows.
    min_cluster_size : int, default 0
        Size of the smallest cluster; 0 is a fiftieth of the rows, at least 5.

    Returns
    -------
    ndarray of shape (n,)
        Clusters, numbered by decreasing size from 0; -1 for an outlier.

    References
    ----------
    Campello, Moulavi and Sander 2013, "Density-based clustering based on hierarchical density estimates", PAKDD 2013,
    160-172.
    """
    smallest = min_cluster_size or max(5, len(features) // 50)
    if not 2 <= smallest <= len(features):
        raise RalibError(f"clusters of at least {smallest} among {len(features)} particles: give 2 to {len(features)}")
    labels = HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(features)
    inside = labels >= 0
    if not inside.any():
        return labels
    by_size = np.argsort(-np.bincount(labels[inside]), kind="stable")
    return np.where(inside, np.argsort(by_size)[labels], -1)


def gamma_sup(features: np.ndarray, *, scale: float | None = None, s: float = 0.025, n_iter: int = 100) -> np.ndarray:
    """Cluster rows by gamma-SUP: rows that are close to each other move together until they coincide.

    Every row moves to the mean of all rows, weighted by a q-Gaussian that is zero beyond a distance, so that far
    outliers have no influence and stay alone. Needs memory for n^2 numbers.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Rows.
    scale : float, optional
        Distance tau over which rows attract each other, above 0; by default that of `gamma_sup_scale`.
    s : float, default 0.025
        Parameter of the q-Gaussian; smaller is closer to a Gaussian.
    n_iter : int, default 100
        Largest number of iterations.

    Returns
    -------
    ndarray of shape (n,)
        Clusters, numbered by decreasing size from 0.

    References
    ----------
    Chen et al. 2014, "gamma-SUP: a clustering algorithm for cryo-electron microscopy images of asymmetric particles",
    Ann. Appl. Stat. 8, 259-285.
    """
    points = np.asarray(features, np.float64)
    if len(points) > MANY_PARTICLES:
        raise RalibError(f"gamma-SUP compares all pairs of {len(points):,} particles: give up to {MANY_PARTICLES:,}")
    if scale is None:
        scale = gamma_sup_scale(points, s=s)
    if not scale > 0:
        raise RalibError(f"scale={scale} of gamma-SUP must be above 0: give a distance, or None to have it measured")
    for _ in range(n_iter):
        weight = np.maximum(0.0, 1 - s * _squared_distances(points, points) / scale**2) ** (1 / s)
        moved = weight @ points / weight.sum(axis=1, keepdims=True)
        change = float(np.abs(moved - points).max())
        points = moved
        if change < 1e-4 * scale:
            break
    near = csr_matrix((_squared_distances(points, points) < (0.05 * scale) ** 2).astype(np.int8))
    labels = connected_components(near, directed=False)[1]
    by_size = np.argsort(-np.bincount(labels), kind="stable")
    return np.argsort(by_size)[labels]


def gamma_sup_scale(features: np.ndarray, *, s: float = 0.025) -> float:
    """Choose the scale of gamma-SUP from the number of clusters at many scales, the paper's phase transition plot.

    Small scales leave fragments, large ones merge everything. Between them the number of clusters stays the same over
    the widest range of scales where the data have clusters: its middle is returned. Where no number of two or more
    stays, the rows are one cluster, and the scale is the second at which they are.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Rows, of which up to 800, spread evenly, are used.
    s : float, default 0.025
        Parameter of the q-Gaussian.

    Returns
    -------
    float
        The scale.
    """
    some = np.asarray(features, np.float64)[:: max(1, len(features) // SCALE_SAMPLE)]
    distance = np.sqrt(_squared_distances(some, some))
    if not (distance > 0).any():
        return 1.0
    nearest = np.where(distance > 0, distance, np.inf).min(axis=1)
    scales = np.geomspace(np.median(nearest), np.median(distance[distance > 0]) * 1.0001, SCALES_TRIED)
    smallest = max(5, len(some) // 50)
    found = [gamma_sup(some, scale=scale, s=s, n_iter=SCALE_ITERATIONS) for scale in scales]
    counts = np.array([(np.bincount(labels) >= smallest).sum() for labels in found])
    begins = np.flatnonzero(np.diff(counts, prepend=-1))
    lengths = np.diff(begins, append=len(counts))
    several = np.where(counts[begins] >= 2, lengths, 0)
    if several.max() >= 2:
        longest = int(several.argmax())
        first = begins[longest]
        return float(np.sqrt(scales[first] * scales[first + lengths[longest] - 1]))
    alone = np.flatnonzero(counts == 1)
    return float(scales[min(alone[0] + 1, len(scales) - 1)] if len(alone) else scales[-1])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)


def embed(features: np.ndarray, method: str = "tsne", *, n_dimensions: int = 2, seed: int = 0) -> np.ndarray:
    """Embed particles in a plane; the same for the same seed.

    Where there are fewer features than dimensions, they are the coordinates by any method, padded with zeros.

    Parameters
    ----------
    features : ndarray of shape (n, d)
        Rows.
    method : str, default 'tsne'
        'pca' (the first features), 'tsne', and where installed 'umap' or 'opentsne' (t-SNE that is fast for many
        particles).
    n_dimensions : int, default 2
        Dimensions of the embedding.
    seed : int, default 0
        Of the initialisation.

    Returns
    -------
    ndarray of shape (n, n_dimensions)
        Coordinates.

    Raises
    ------
    RalibError
        If the method is unknown, or needed and not installed.
    """
    if method not in ("pca", "tsne", "opentsne", "umap"):
        raise RalibError(f"no embedding {method!r}: give 'pca', 'tsne', 'opentsne' or 'umap'")
    if method == "pca" or features.shape[1] < n_dimensions:
        missing = max(0, n_dimensions - features.shape[1])
        return np.pad(features[:, :n_dimensions], ((0, 0), (0, missing)))
    if np.allclose(features, features[:1], rtol=0, atol=1e-6 * max(1.0, float(np.abs(features).max()))):
        return np.zeros((len(features), n_dimensions))  # one point: scikit-learn's t-SNE would divide by no variance
    if method == "tsne":
        perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
        return TSNE(n_components=n_dimensions, perplexity=perplexity, init="pca", random_state=seed).fit_transform(
            features
        )
    if method == "opentsne":
        return _open_tsne(features, n_dimensions, seed)
    if not has_umap():
        raise RalibError("UMAP is not installed: pip install 'cryo-ralib[analysis]', or choose 'tsne'")
    from umap import UMAP

    return np.asarray(UMAP(n_components=n_dimensions, random_state=seed, n_jobs=1).fit_transform(features))


def _open_tsne(features: np.ndarray, n_dimensions: int, seed: int) -> np.ndarray:
    if find_spec("openTSNE") is None:
        raise RalibError("openTSNE is not installed: pip install 'cryo-ralib[analysis]', or choose 'tsne'")
    import openTSNE

    perplexity = min(30.0, max(1.0, (len(features) - 1) / 3))
    found = openTSNE.TSNE(n_components=n_dimensions, perplexity=perplexity, random_state=seed, n_jobs=1).fit(features)
    return np.asarray(found)


def has_umap() -> bool:
    """Return whether umap-learn is installed."""
    return find_spec("umap") is not None and find_spec("umap.umap_") is not None


def class_purity(labels: Any, truth: Any) -> dict[Any, float]:
    """Return for each label the fraction of its members that belong to its most frequent true class.

    Parameters
    ----------
    labels : array_like of shape (n,)
        Labels of any kind.
    truth : array_like of shape (n,)
        True classes of any kind.

    Returns
    -------
    dict
        Purity by label.
    """
    found, true = _coded(labels, truth)
    table = contingency(found, true).numpy()
    return dict(zip(np.unique(labels).tolist(), (table.max(axis=1) / table.sum(axis=1)).tolist(), strict=True))


def agreement(labels: Any, truth: Any) -> dict[str, float]:
    """Compute how well two labellings agree.

    Purity increases with the number of labels; the other two figures are corrected for it.

    Parameters
    ----------
    labels : array_like of shape (n,)
        Labels of any kind.
    truth : array_like of shape (n,)
        True classes of any kind.

    Returns
    -------
    dict
        Purity, adjusted Rand index (0 by chance, 1 for the same) and normalised mutual information.
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
