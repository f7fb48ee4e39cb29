"""A complete analysis: particles to components, clusters, an embedding, agreement with other labels, and files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ralib.analysis import plots
from ralib.analysis.clusters import agreement, class_purity, embed, gamma_sup, hdbscan, kmeans
from ralib.analysis.covariance_wiener import CovarianceWienerFilter
from ralib.analysis.mpca import MPCA
from ralib.analysis.neighbours import standardised_scores
from ralib.analysis.pca import PCA
from ralib.analysis.probabilistic_pca import ProbabilisticPCA
from ralib.analysis.steerable import SteerablePCA
from ralib.analysis.twosdr import TwoSDR
from ralib.io import write_mrcs
from ralib.io.atomic import atomic_folder
from ralib.io.viewing import viewing_directions
from ralib.particles.aligned_images import align_particles
from ralib.types import ImageSource, ParticleSet, RalibError

METHODS = ("auto", "ctf", "pca", "mpca", "2sdr", "steerable")
EMBEDDINGS = ("pca", "tsne", "umap", "opentsne", "none")
CLUSTERINGS = ("kmeans", "hdbscan", "gamma-sup")
BATCH = 2048


@dataclass(frozen=True)
class AnalysisResult:
    """Result of an analysis of n particles.

    Attributes
    ----------
    options : dict
        Options of the analysis.
    features : ndarray of shape (n, d)
        Scores of the particles.
    clusters : ndarray of shape (n,)
        Cluster of each, from 0; -1 for an outlier.
    eigenimages : ndarray of shape (k, h, w)
        Components as images.
    cluster_averages : ndarray of shape (clusters, h, w)
        Mean image of each cluster.
    explained : ndarray of shape (k,) or None
        Fraction of the variance of each component, or None.
    drawn : ndarray of shape (m,)
        Particles that have coordinates.
    coordinates : ndarray of shape (m, 2) or None
        Their coordinates in the embedding.
    agreements : dict
        For each other labelling the figures of `agreement`.
    spectrum : ndarray of shape (s,), optional
        Eigenvalues of the covariance, with CTF-aware components.
    noise_edge : float, optional
        Largest eigenvalue that noise makes, with CTF-aware components.
    trajectory : ndarray of shape (t, h, w), optional
        Images along the first component, with CTF-aware components.
    """

    options: dict[str, Any]
    features: np.ndarray
    clusters: np.ndarray
    eigenimages: np.ndarray
    cluster_averages: np.ndarray
    explained: np.ndarray | None
    drawn: np.ndarray
    coordinates: np.ndarray | None
    agreements: dict[str, dict[str, Any]] = field(default_factory=dict)
    spectrum: np.ndarray | None = None
    noise_edge: float | None = None
    trajectory: np.ndarray | None = None

    def in_one_line(self) -> str:
        """Return the most important figures in one line."""
        held = "" if self.explained is None else f" holding {float(self.explained.sum()):.1%} of the variance"
        sizes, outside = np.bincount(self.clusters[self.clusters >= 0], minlength=1), int((self.clusters < 0).sum())
        line = f"{self.features.shape[1]} components{held}; {len(sizes)} clusters of {sizes.min():,} to {sizes.max():,}"
        line += f"; {outside:,} in none" if outside else ""
        if self.noise_edge is not None and self.spectrum is not None:
            line += f"; {int((self.spectrum > self.noise_edge).sum())} components above the noise"
        for name, figures in self.agreements.items():
            line += f"; with {name}: purity {figures['purity']:.3f}, ARI {figures['adjusted_rand_index']:.3f}"
        return line


@dataclass(frozen=True)
class Analysis:
    """Options of an analysis; the fields are those of `ralib analyze`.

    Attributes
    ----------
    method : str, default '2sdr'
        'pca', 'mpca', '2sdr' or 'steerable' (features invariant to in-plane rotation); 'ctf': `ProbabilisticPCA` for
        aligned particles and `CovarianceWienerFilter` for raw ones; 'auto': 'ctf' where the particles have CTF
        parameters, else '2sdr'.
    n_components : int or None, default 50
        Number of components; None chooses it from the data.
    core : int, default 0
        Rows and columns of the core of mpca and 2sdr; 0 is a quarter of the box, at least 20.
    aligned : bool, default False
        Whether to apply the poses first.
    n_clusters : int, default 10
        Number of clusters.
    clustering : str, default 'kmeans'
        'kmeans'; 'hdbscan' or 'gamma-sup', which find the number of clusters and outliers.
    embedding : str, default 'tsne'
        Method of `embed`.
    embed_at_most : int, default 5000
        Largest number of particles embedded.
    seed : int, default 1000
        Of all random numbers.
    device : torch.device or str, default 'cpu'
        Where to compute.
    """

    method: str = "2sdr"
    n_components: int | None = 50
    core: int = 0
    aligned: bool = False
    n_clusters: int = 10
    clustering: str = "kmeans"
    embedding: str = "tsne"
    embed_at_most: int = 5000
    seed: int = 1000
    device: torch.device | str = "cpu"

    def run(self, particles: ParticleSet, *, truth: np.ndarray | None = None) -> AnalysisResult:
        """Analyse particles.

        Parameters
        ----------
        particles : ParticleSet
            Particles.
        truth : ndarray of shape (n,), optional
            True classes, where known.

        Returns
        -------
        AnalysisResult
            The result.
        """
        if self.method not in METHODS or self.embedding not in EMBEDDINGS or self.clustering not in CLUSTERINGS:
            raise RalibError(
                f"method {self.method!r}, embedding {self.embedding!r}, clustering {self.clustering!r}: "
                f"give one of {', '.join(METHODS)}, of {', '.join(EMBEDDINGS)} and of {', '.join(CLUSTERINGS)}"
            )
        method = self.method
        if method == "auto":
            method = "ctf" if particles.ctf is not None and particles.pixel_size_A is not None else "2sdr"
        source = (align_particles(particles, device=self.device) if self.aligned else particles).images
        model = self._model(method, min(source.n_images, source.box**2), source.box)
        seen = source if method != "ctf" else particles if self.aligned else particles.replace(poses=None)
        scores = model.fit_transform(seen)
        if isinstance(model, CovarianceWienerFilter):
            scores = standardised_scores(model, scores)
        features = np.abs(scores) if np.iscomplexobj(scores) else scores
        clusters = self._clusters(features)
        rng = np.random.default_rng(self.seed)
        n = len(features)
        drawn = np.sort(rng.permutation(n)[: self.embed_at_most])
        explained = getattr(model, "explained_variance_ratio_", None)
        return AnalysisResult(
            options={**asdict(self), "method": method, "device": str(self.device)},
            features=features,
            clusters=clusters,
            eigenimages=model.eigenimages_[:100],
            cluster_averages=cluster_averages(source, clusters, max(1, int(clusters.max()) + 1)),
            explained=None if explained is None else np.atleast_1d(explained),
            drawn=drawn,
            coordinates=None if self.embedding == "none" else embed(features[drawn], self.embedding, seed=self.seed),
            agreements=_agreements(clusters, _known_labels(particles, truth)),
            spectrum=model.spectrum_ if isinstance(model, ProbabilisticPCA) else None,
            noise_edge=model.noise_edge_ if isinstance(model, ProbabilisticPCA) else None,
            trajectory=model.trajectory() if isinstance(model, ProbabilisticPCA) else None,
        )

    def _clusters(self, features: np.ndarray) -> np.ndarray:
        if self.clustering == "hdbscan":
            return hdbscan(features)
        if self.clustering == "gamma-sup":
            return without_small(gamma_sup(features), max(5, len(features) // 50))
        return kmeans(features, self.n_clusters, seed=self.seed)

    def _model(self, method: str, at_most: int, box: int) -> Any:
        k = None if self.n_components is None else min(self.n_components, at_most)
        side = min(self.core or max(20, box // 4), box)
        core = (side, side)
        if method == "ctf" and self.aligned:
            few = k is not None and k < min(20, at_most)
            return ProbabilisticPCA(k if few else None, random_state=self.seed, device=self.device)
        if method == "ctf":
            return CovarianceWienerFilter(k, device=self.device)
        if method == "pca":
            return PCA(k, random_state=self.seed, device=self.device)
        if method == "mpca":
            return MPCA(core, device=self.device)
        if method == "steerable":
            return SteerablePCA(k or 50, device=self.device)
        k = None if k is None else min(k, core[0] * core[1])
        return TwoSDR(k, core_shape=core, random_state=self.seed, device=self.device)


def without_small(clusters: np.ndarray, smallest: int) -> np.ndarray:
    """Make the members of small clusters outliers.

    Parameters
    ----------
    clusters : ndarray of shape (n,)
        Clusters from 0.
    smallest : int
        Smallest size of a cluster.

    Returns
    -------
    ndarray of shape (n,)
        Clusters; -1 for an outlier.
    """
    return np.where(np.bincount(clusters)[clusters] >= smallest, clusters, -1)


def cluster_averages(source: ImageSource, clusters: np.ndarray, n_clusters: int) -> np.ndarray:
    """Return the mean image of each cluster.

    Parameters
    ----------
    source : ImageSource
        Images.
    clusters : ndarray of shape (n,)
        Cluster of each.
    n_clusters : int
        Number of clusters.

    Returns
    -------
    ndarray of shape (n_clusters, n, n)
        Means; zero for an empty cluster.
    """
    total = np.zeros((n_clusters, source.box, source.box))
    for start in range(0, source.n_images, BATCH):
        index = np.arange(start, min(start + BATCH, source.n_images))
        images, labels = source.read(index), clusters[index]
        for k in np.unique(labels[labels >= 0]):
            total[k] += images[labels == k].sum(axis=0)
    counts = np.bincount(clusters[clusters >= 0], minlength=n_clusters)
    return (total / np.maximum(counts, 1)[:, None, None]).astype(np.float32)


def _known_labels(particles: ParticleSet, truth: np.ndarray | None) -> dict[str, np.ndarray]:
    """Labels to compare clusters with: the file's classes where there are several, and the truth."""
    labels = {}
    if particles.poses is not None:
        classes = particles.poses.class_index.cpu().numpy()
        if len(np.unique(classes)) > 1:
            labels["classes"] = classes
    if truth is not None:
        if len(truth) != len(particles):
            raise RalibError(f"{len(truth)} true classes for {len(particles)} particles: they must be as many")
        labels["truth"] = np.asarray(truth)
    return labels


def _agreements(clusters: np.ndarray, labels: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, values in labels.items():
        known = (values >= 0) & (clusters >= 0)
        if known.any():
            found[name] = agreement(clusters[known], values[known])
            by_cluster = class_purity(clusters[known], values[known])
            found[name]["class_purity"] = {str(int(k) + 1): v for k, v in by_cluster.items()}
    return found


def write_analysis(
    folder: Path, particles: ParticleSet, result: AnalysisResult, numbers: np.ndarray | None = None
) -> None:
    """Write a result into a new folder, which appears complete or not at all.

    Parameters
    ----------
    folder : Path
        The folder.
    particles : ParticleSet
        The particles analysed.
    result : AnalysisResult
        The result.
    numbers : ndarray of shape (n,), optional
        Number of each particle in its file, from 0, where some were left out.
    """
    numbers = np.arange(len(particles)) if numbers is None else numbers
    with atomic_folder(folder) as made:
        np.savez(made / "features.npz", features=result.features, clusters=result.clusters, particle=numbers)
        write_mrcs(made / "eigenimages.mrcs", result.eigenimages.astype(np.float32), particles.pixel_size_A)
        write_mrcs(made / "cluster_averages.mrcs", result.cluster_averages, particles.pixel_size_A)
        rows = np.column_stack([numbers, result.clusters + 1])
        np.savetxt(made / "clusters.txt", rows, fmt="%d", header="particle (from 0)  cluster (from 1; 0: an outlier)")
        (made / "analysis.json").write_text(json.dumps(_summary(result), indent=1) + "\n")
        for name, figure in _figures(particles, result).items():
            figure.savefig(made / f"{name}.png", dpi=120)


def _summary(result: AnalysisResult) -> dict[str, Any]:
    return {
        "options": result.options,
        "particles": len(result.clusters),
        "components": int(result.features.shape[1]),
        "explained_variance_ratio": None if result.explained is None else result.explained.tolist(),
        "cluster_sizes": np.bincount(result.clusters[result.clusters >= 0]).tolist(),
        "outliers": int((result.clusters < 0).sum()),
        "spectrum": None if result.spectrum is None else result.spectrum.tolist(),
        "noise_edge": result.noise_edge,
        "agreement": result.agreements,
    }


def _figures(particles: ParticleSet, result: AnalysisResult) -> dict[str, Any]:
    inside = result.clusters[result.clusters >= 0]
    sizes = np.bincount(inside, minlength=len(result.cluster_averages))
    figures = {
        "eigenimages": plots.gallery(result.eigenimages[:50]),
        "clusters": plots.class_gallery(result.cluster_averages, sizes),
        "cluster_sizes": plots.class_histogram(result.clusters, what="cluster"),
    }
    if result.explained is not None and len(result.explained) > 1:
        figures["variance"] = plots.scree_figure(result.explained)
    if result.spectrum is not None and result.noise_edge is not None:
        figures["spectrum"] = plots.spectrum_figure(result.spectrum, result.noise_edge, result.eigenimages)
    if result.trajectory is not None:
        figures["trajectory"] = plots.gallery(result.trajectory, columns=len(result.trajectory))
    if result.coordinates is not None:
        labels = result.clusters[result.drawn] + 1
        figures["embedding"] = plots.scatter_by_cluster(result.coordinates, labels, title="by cluster")
        if particles.poses is not None:
            classes = particles.poses.class_index.cpu().numpy()[result.drawn] + 1
            figures["embedding_classes"] = plots.scatter_by_cluster(result.coordinates, classes, title="by class")
    if particles.poses is not None:
        figures["poses"] = plots.pose_figure(particles.poses)
    if (view_deg := viewing_directions(particles)) is not None:
        figures["views"] = plots.view_figure(*view_deg.T)
    if particles.ctf is not None:
        figures["defocus"] = plots.defocus_figure(particles.ctf)
        if particles.pixel_size_A is not None:
            figures["ctf"] = plots.ctf_figure(particles.ctf, pixel_size_A=particles.pixel_size_A)
    return figures
