"""A plane for particles and classes: principal components of aligned, downsampled particles; t-SNE of the averages."""

from __future__ import annotations

import numpy as np
import torch

from ralib.report.contents import Embedding
from ralib.results.summary.pictures import POINT_PX, normalised, shrunk
from ralib.results.summary.runs import RunFiles

FEWEST_FOR_TSNE, MOST_FOR_TSNE = 6, 1000


def embed(run: RunFiles, rows: np.ndarray, images: np.ndarray, class_tsne_xy: np.ndarray | None) -> Embedding | None:
    """Compute the plane of a sample of particles.

    Parameters
    ----------
    run : RunFiles
        The run.
    rows : ndarray of shape (p,)
        The sample.
    images : ndarray of shape (p, t, t)
        Its aligned images.
    class_tsne_xy : ndarray of shape (k, 2) or None
        `class_tsne` of the averages.

    Returns
    -------
    Embedding or None
        The plane; None for too few particles.
    """
    if len(rows) < 4:
        return None
    features = normalised(images)
    xy, explained = principal_plane(features)
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
        class_tsne_xy=class_tsne_xy,
        explained=explained,
    )


def principal_plane(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features (p, d) along their first two principal axes, (p, 2), and these axes' fractions of variance.

    scikit-learn does the same, but takes longer to load than a whole run on a GPU may wait for its report.
    """
    centred = torch.from_numpy(features - features.mean(axis=0)).double()
    variance, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, -2:].flip(1)
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))  # an axis has no sign of its own
    fractions = variance[-2:].flip(0) / variance.sum().clamp_min(1e-12)
    return (centred @ axes).numpy(), fractions.numpy()


def class_tsne(averages: np.ndarray) -> np.ndarray | None:
    """Return t-SNE of the class averages (k, n, n) -> (k, 2); None for too few or too many, or when all are alike."""
    features = normalised(shrunk(averages, POINT_PX))
    if not FEWEST_FOR_TSNE <= len(features) <= MOST_FOR_TSNE or np.allclose(features, features[0]):
        return None
    start = principal_plane(features)[0]
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    return tsne(features, start, perplexity=min(30.0, (len(features) - 1) / 3))


def tsne(features: np.ndarray, start: np.ndarray, *, perplexity: float, iterations: int = 600) -> np.ndarray:
    """Compute exact t-SNE: a plane in which neighbours among the features stay neighbours.

    With momentum, gains and early exaggeration as in the paper. The step is a twelfth of the points, as Belkina et al.
    2019 found best.

    Parameters
    ----------
    features : ndarray of shape (k, d)
        Features.
    start : ndarray of shape (k, 2)
        Initial coordinates.
    perplexity : float
        Effective number of neighbours.
    iterations : int, default 600
        Number of iterations.

    Returns
    -------
    ndarray of shape (k, 2)
        Coordinates.

    References
    ----------
    van der Maaten and Hinton 2008, "Visualizing data using t-SNE", J. Mach. Learn. Res. 9, 2579-2605.
    Belkina et al. 2019, "Automated optimized parameters for T-distributed stochastic neighbor embedding improve
    visualization and analysis of large datasets", Nat. Commun. 10, 5415.
    """
    near = _neighbourhood(torch.from_numpy(features).double(), perplexity).float()
    y, step = torch.from_numpy(start).float(), torch.zeros(start.shape)
    gain, rate = torch.ones_like(step), len(start) / 12
    for i in range(iterations):
        early = i < iterations // 3
        heavy = torch.cdist(y, y).square_().add_(1).reciprocal_().fill_diagonal_(0)
        pull = near.mul(12.0 if early else 1.0).sub_(heavy / heavy.sum()).mul_(heavy)
        slope = pull.sum(1, keepdim=True) * y - pull @ y
        gain = torch.where(slope * step < 0, gain + 0.2, gain * 0.8).clamp_min(0.01)
        step = (0.5 if early else 0.8) * step - rate * gain * slope
        y = y + step
    return (y - y.mean(0)).double().numpy()


def _neighbourhood(features: torch.Tensor, perplexity: float) -> torch.Tensor:
    """Symmetric probabilities (k, k) of being neighbours: each row a normal distribution of the given perplexity."""
    distance = torch.cdist(features, features).square().fill_diagonal_(torch.inf)
    low, high = torch.full((len(features), 1), -50.0).double(), torch.full((len(features), 1), 50.0).double()
    for _ in range(50):
        precision = ((low + high) / 2).exp()
        p = torch.softmax(-distance * precision, dim=1)
        wide = -torch.special.xlogy(p, p).sum(1, keepdim=True) > np.log(perplexity)
        low, high = torch.where(wide, precision.log(), low), torch.where(wide, high, precision.log())
    return (p + p.T) / (2 * len(features))
