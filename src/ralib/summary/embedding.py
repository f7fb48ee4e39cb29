"""A plane for particles and classes: principal components of aligned, downsampled particles; t-SNE of the averages."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ralib.report.contents import Embedding
from ralib.summary.pictures import POINT_PX, disc, resized
from ralib.summary.runs import RunFiles

FEWEST_FOR_TSNE = 6


def embed(run: RunFiles, rows: np.ndarray, images: np.ndarray, seed: int) -> Embedding | None:
    """The plane of the sample `rows` (p,), whose aligned pictures are `images` (p, t, t); None for too few."""
    if len(rows) < 4:
        return None
    features = normalised(images)
    plane = PCA(2, svd_solver="randomized", random_state=seed).fit(features)
    xy = plane.transform(features)
    index = run.poses.class_index.numpy()[rows]
    counts = np.bincount(index, minlength=run.n_classes)[:, None]
    sums = np.zeros((run.n_classes, 2))
    np.add.at(sums, index, xy)
    defocus = np.full(len(rows), np.nan)
    if run.particles.ctf is not None:
        ctf = run.particles.ctf[rows]
        defocus = (ctf.defocus_u_A + ctf.defocus_v_A) / 2
    return Embedding(
        xy=xy,
        row=rows,
        class_index=index,
        score=run.poses.score.numpy()[rows],
        defocus_A=defocus,
        images=images,
        # An average holds far less noise than its members, so it would lie outside their cloud: take their mean.
        class_xy=np.where(counts > 0, sums / np.maximum(counts, 1), np.nan),
        class_tsne_xy=class_tsne(run.averages, seed),
        explained=plane.explained_variance_ratio_,
    )


def class_tsne(averages: np.ndarray, seed: int) -> np.ndarray | None:
    """t-SNE of the class averages (k, n, n) -> (k, 2); None for too few of them or when all are alike."""
    features = normalised(resized(torch.as_tensor(averages), POINT_PX).numpy())
    if len(features) < FEWEST_FOR_TSNE or np.allclose(features, features[0]):
        return None
    perplexity = min(30.0, (len(features) - 1) / 3)
    start = PCA(2, random_state=seed).fit_transform(features)
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    return np.asarray(TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(features))


def normalised(images: np.ndarray) -> np.ndarray:
    """Pixels inside a disc as rows, mean 0 and length 1: (p, t, t) -> (p, d)."""
    rows = np.nan_to_num(images[:, disc(images.shape[-1])].astype(np.float32))
    rows = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))
