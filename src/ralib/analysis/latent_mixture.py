"""A Gaussian mixture over the latent scores of particles, each of which is measured with its own noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from torch import Tensor

ROUNDS = 60
LINE_NODES = 7
LEAST_VARIANCE = 1e-3
LEAST_SHARE = 0.02


@dataclass(frozen=True)
class ScoreLikelihood:
    """Likelihood of n images as a function of their k scores s.

    log p = projection . s - s^T information s / 2 + constant.

    Attributes
    ----------
    projection : Tensor of shape (n, k)
        Linear term.
    information : Tensor of shape (n, k, k)
        Fisher information.
    """

    projection: Tensor
    information: Tensor

    def __len__(self) -> int:
        return len(self.projection)

    def __getitem__(self, rows: Tensor) -> ScoreLikelihood:
        return ScoreLikelihood(self.projection[rows], self.information[rows])


@dataclass(frozen=True)
class LatentMixture:
    """States as Gaussians with a common covariance.

    Attributes
    ----------
    share : Tensor of shape (K,)
        Share of each state.
    centre : Tensor of shape (K, k)
        Mean scores of each state.
    covariance : Tensor of shape (k, k)
        Covariance within a state.
    """

    share: Tensor
    centre: Tensor
    covariance: Tensor

    @classmethod
    def fit(cls, data: ScoreLikelihood, n_states: int, *, seed: int = 0, n_init: int = 4) -> LatentMixture:
        """Fit by expectation maximisation (extreme deconvolution), as the best of several initialisations.

        Parameters
        ----------
        data : ScoreLikelihood
            Likelihood of the images.
        n_states : int
            Number of states K.
        seed : int, default 0
            Of the initialisations.
        n_init : int, default 4
            Number of initialisations.

        Returns
        -------
        LatentMixture
            The mixture of maximum likelihood.

        References
        ----------
        Bovy, Hogg and Roweis 2011, "Extreme deconvolution: inferring complete distribution functions from noisy,
        heterogeneous and incomplete observations", Ann. Appl. Stat. 5, 1657-1677.
        """
        k = data.projection.shape[1]
        device = data.projection.device
        prior = torch.eye(k, device=device)
        one = cls(torch.ones(1, device=device), torch.zeros(1, k, device=device), prior)._maximised(data)
        if n_states == 1:
            return one
        scores = one.expected_scores(data)
        along = split_directions(scores, seed=seed)[: n_init - 1]
        views = [scores, *[scores @ direction[:, None] for direction in along]]
        found = [one._start(scores, view, n_states, seed)._maximised(data) for view in views]
        return max(found, key=lambda mixture: float(mixture.log_likelihood(data).sum()))

    @classmethod
    def fit_line(cls, data: ScoreLikelihood, *, seed: int = 0, n_init: int = 4) -> LatentMixture:
        """Fit one state that varies along a line: equal Gaussians on a segment (a one-dimensional generative map).

        A spread of viewing directions, or a continuous movement, is wide and flat. Two Gaussians describe it better
        than one does; a line describes it better than both.

        Parameters
        ----------
        data : ScoreLikelihood
            Likelihood of the images.
        seed : int, default 0
            Of the initialisations.
        n_init : int, default 4
            Number of directions tried: those in which the scores are the flattest, and that of two states.

        Returns
        -------
        LatentMixture
            The Gaussians along the line of maximum likelihood.

        References
        ----------
        Bishop, Svensen and Williams 1998, "GTM: the generative topographic mapping", Neural Comput. 10, 215-234.
        """
        one, two = cls.fit(data, 1, seed=seed), cls.fit(data, 2, seed=seed)
        scores = one.expected_scores(data)
        covariance = torch.cov(scores.T).reshape(scores.shape[1], -1)
        halves = [two.centre[1] - two.centre[0]]
        for direction in split_directions(scores, seed=seed)[: n_init - 1]:
            along = covariance @ direction
            halves.append(3**0.5 * along / (direction @ along).clamp_min(1e-12).sqrt())
        node = torch.linspace(-1, 1, LINE_NODES, device=scores.device)
        share = torch.full_like(node, 1 / LINE_NODES)
        starts = [cls(share, one.centre + node[:, None] * half, one.covariance) for half in halves]
        basis = torch.stack([torch.ones_like(node), node], dim=1)
        found = [start._maximised(data, basis) for start in starts]
        return max(found, key=lambda mixture: float(mixture.log_likelihood(data).sum()))

    def log_likelihood(self, data: ScoreLikelihood) -> Tensor:
        """Return the log likelihood (n,) of each image, up to a constant common to all mixtures."""
        return torch.logsumexp(self._joint(data)[0], dim=1)

    def responsibilities(self, data: ScoreLikelihood) -> Tensor:
        """Return the probability (n, K) of each state given the image."""
        return torch.softmax(self._joint(data)[0], dim=1)

    def expected_scores(self, data: ScoreLikelihood) -> Tensor:
        """Return posterior means (n, k) over all states."""
        joint, mean, _ = self._joint(data)
        return (torch.softmax(joint, dim=1)[:, :, None] * mean).sum(1)

    def separation(self) -> float:
        """Return the smallest distance between two centres, in standard deviations within a state."""
        inverse = torch.linalg.inv(self.covariance)
        gap = self.centre[:, None] - self.centre[None]
        distance = torch.einsum("abk,kl,abl->ab", gap, inverse, gap).clamp_min(0).sqrt()
        distance.fill_diagonal_(float("inf"))
        return float(distance.min())

    def _start(self, scores: Tensor, view: Tensor, n_states: int, seed: int) -> LatentMixture:
        """States by k-means in one view (n, v) of the scores."""
        labels = KMeans(n_states, n_init=2, random_state=seed).fit_predict(view.cpu().numpy())
        member = torch.nn.functional.one_hot(torch.as_tensor(labels).long(), n_states).to(scores)
        share = member.mean(0)
        centre = (member.T @ scores) / member.sum(0)[:, None]
        rest = scores - member @ centre
        within = rest.T @ rest / len(scores) + 0.1 * torch.eye(scores.shape[1], device=scores.device)
        return LatentMixture(share, centre, within)

    def _maximised(self, data: ScoreLikelihood, basis: Tensor | None = None) -> LatentMixture:
        """The mixture after EM; with a basis (K, b) the centres are combinations of it, and the shares stay."""
        mixture, k = self, data.projection.shape[1]
        floor = LEAST_VARIANCE * torch.eye(k, device=data.projection.device)
        for _ in range(ROUNDS):
            joint, mean, covariance = mixture._joint(data)
            weight = torch.softmax(joint, dim=1)
            total = weight.sum(0)
            moment = torch.einsum("nc,nck->ck", weight, mean)
            if basis is None:
                centre = moment / total.clamp_min(1e-6)[:, None]
            else:
                centre = basis @ torch.linalg.solve(basis.T @ (total[:, None] * basis), basis.T @ moment)
            rest = mean - centre
            within = covariance.mean(0) + torch.einsum("nc,nck,ncl->kl", weight, rest, rest) / len(data)
            share = total / len(data) if basis is None else self.share
            mixture = LatentMixture(share, centre, within + floor)
        return mixture

    def _joint(self, data: ScoreLikelihood) -> tuple[Tensor, Tensor, Tensor]:
        """Log of share times likelihood (n, K), posterior means (n, K, k) and covariance (n, k, k) within a state."""
        precision = torch.linalg.inv(self.covariance)
        covariance = torch.linalg.inv(data.information + precision)
        pulled = data.projection[:, None, :] + self.centre @ precision
        mean = torch.einsum("nkl,ncl->nck", covariance, pulled)
        fit = (pulled * mean).sum(2) / 2 - (self.centre @ precision * self.centre).sum(1) / 2
        volume = (torch.linalg.slogdet(covariance)[1] + torch.linalg.slogdet(precision)[1]) / 2
        return self.share.clamp_min(1e-12).log() + fit + volume[:, None], mean, covariance


def split_directions(scores: Tensor, *, seed: int, n_starts: int = 12) -> list[Tensor]:
    """Find the directions along which scores are most bimodal: those of least kurtosis.

    Fixed-point iteration from random directions, as in FastICA. Two states of equal size have a kurtosis of -2, a
    uniform distribution one of -1.2, a Gaussian one of 0.

    Parameters
    ----------
    scores : Tensor of shape (n, k)
        Scores.
    seed : int
        Of the random directions.
    n_starts : int, default 12
        Number of them.

    Returns
    -------
    list of Tensor of shape (k,)
        Directions, the least kurtosis first.

    References
    ----------
    Hyvarinen 1999, "Fast and robust fixed-point algorithms for independent component analysis", IEEE Trans. Neural
    Netw. 10, 626-634.
    """
    centred = scores.double() - scores.double().mean(0)
    k = centred.shape[1]
    covariance = centred.T @ centred / len(centred) + 1e-6 * torch.eye(k, dtype=centred.dtype, device=centred.device)
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariance)).T
    white = centred @ whiten
    generator = torch.Generator(device=scores.device).manual_seed(seed)
    found: list[tuple[float, Tensor]] = []
    for _ in range(n_starts):
        direction = torch.randn(k, generator=generator, device=scores.device, dtype=white.dtype)
        direction /= direction.norm()
        for _ in range(50):
            direction = 3 * direction - (white * (white @ direction)[:, None] ** 3).mean(0)
            direction /= direction.norm()
        kurtosis = float((white @ direction).pow(4).mean()) - 3
        if all(float((direction @ other).abs()) < 0.95 for _, other in found):
            found.append((kurtosis, direction))
    found.sort(key=lambda pair: pair[0])
    return [(whiten @ direction).to(scores.dtype) for _, direction in found]
