"""Analysis of particles and classes: principal components, clusters, embeddings, agreement, states, figures."""

from ralib.analysis import plots
from ralib.analysis.clusters import agreement, class_purity, embed, gamma_sup, has_umap, hdbscan, kmeans
from ralib.analysis.covariance_wiener import CovarianceWienerFilter
from ralib.analysis.mpca import MPCA
from ralib.analysis.neighbours import Neighbours, find_neighbours, standardised_scores
from ralib.analysis.pca import PCA
from ralib.analysis.probabilistic_pca import ProbabilisticPCA
from ralib.analysis.states import StateSplit, split_states
from ralib.analysis.steerable import SteerablePCA
from ralib.analysis.tables import (
    ctf_table,
    euler_eman2_to_relion,
    euler_matrix_eman2,
    euler_matrix_relion,
    euler_relion_to_eman2,
    pose_table,
    poses_from_table,
)
from ralib.analysis.twosdr import TwoSDR

__all__ = [
    "MPCA",
    "PCA",
    "CovarianceWienerFilter",
    "Neighbours",
    "ProbabilisticPCA",
    "StateSplit",
    "SteerablePCA",
    "TwoSDR",
    "agreement",
    "class_purity",
    "ctf_table",
    "embed",
    "euler_eman2_to_relion",
    "euler_matrix_eman2",
    "euler_matrix_relion",
    "euler_relion_to_eman2",
    "find_neighbours",
    "gamma_sup",
    "has_umap",
    "hdbscan",
    "kmeans",
    "plots",
    "pose_table",
    "poses_from_table",
    "split_states",
    "standardised_scores",
]
