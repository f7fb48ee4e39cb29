"""Classes of equal size for any number of particles, in one pass that stores a few classes of each particle.

A sample of the particles, scored against all references, gives prices at which the classes are equally popular. With
these prices the pass lists the best classes of every particle (`ralib.classes.assignment.Shortlists`), and the lists
are balanced. Memory grows with the number of particles, and with the number of references only for the sample.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ralib.classes import assignment as assign
from ralib.classes.assignment import Shortlists
from ralib.particles.batches import Batch, ParticleBatches
from ralib.runtime.distributed import Ranks, gather_rows

LISTED = 32
"""Classes remembered of each particle, where there are more."""
SAMPLE, SAMPLE_PER_CLASS = 4096, 50
"""Particles from which the prices are computed: at least, and for each class."""


class EqualClasses:
    """Assignment of n particles to classes of equal size, the same on every rank.

    Parameters
    ----------
    batches : ParticleBatches
        This rank's particles.
    ranks : Ranks
        The processes of the run.
    scores : callable
        Computes the scores (b, k) of a batch with all k references.
    fitting : callable
        Calls a pass over the particles, and repeats it where memory ran out.
    """

    def __init__(
        self,
        batches: ParticleBatches,
        ranks: Ranks,
        scores: Callable[[Batch], Tensor],
        fitting: Callable[[Callable[[], Tensor]], Tensor],
    ) -> None:
        self.batches, self.ranks, self.scores, self.fitting = batches, ranks, scores, fitting
        self.n, self.device = len(batches.particles), batches.device

    def assign(self, n_classes: int) -> Tensor:
        """Assign particles to classes whose sizes differ by at most one.

        Parameters
        ----------
        n_classes : int
            Number of classes.

        Returns
        -------
        Tensor of shape (n,)
            Classes; unusable particles do not count in the sizes.
        """
        price = torch.zeros(n_classes, device=self.device) if n_classes <= LISTED else self._sample_prices(n_classes)
        rows = self.fitting(lambda: self._rows(price))
        everyone = gather_rows(rows, self.n, self.ranks)
        c = min(LISTED, n_classes)
        usable = everyone[:, -1] > 0
        kept = everyone[usable]
        lists = Shortlists(kept[:, :c].long(), kept[:, c : 2 * c], kept[:, 2 * c], price)
        target = torch.zeros(self.n, dtype=torch.int64, device=self.device)
        target[usable] = assign.balanced(lists)
        return self.ranks.broadcast_(target)

    def _rows(self, price: Tensor) -> Tensor:
        """The lists of this rank as a table: classes, their scores, the floor, and 1 for usable; one row a particle."""
        parts = []
        for batch in self.batches:
            found = Shortlists.of(self.scores(batch), price, LISTED)
            columns = (found.index.float(), found.score, found.floor[:, None], batch.usable[:, None].float())
            parts.append(torch.cat(columns, dim=1))
        width = 2 * min(LISTED, len(price)) + 2
        return torch.cat(parts) if parts else torch.zeros(0, width, device=self.device)

    def _sample_prices(self, n_classes: int) -> Tensor:
        """Prices (k,) from particles spread evenly over the set."""
        size = min(self.n, max(SAMPLE, SAMPLE_PER_CLASS * n_classes))
        sample = np.arange(size) * self.n // size

        def scored() -> Tensor:
            # The last column marks usable particles.
            table = torch.zeros(size, n_classes + 1, device=self.device)
            for batch in self.batches.select(sample):
                at = torch.from_numpy(np.searchsorted(sample, batch.index)).to(self.device)
                table[at] = torch.cat([self.scores(batch), batch.usable[:, None].float()], dim=1)
            return table

        table = self.ranks.all_reduce_(self.fitting(scored))
        scores = table[table[:, -1] > 0, :-1]
        nothing = torch.zeros(n_classes, device=self.device)
        if not len(scores):
            return nothing
        price = assign.prices(Shortlists.of(scores, nothing, n_classes)).float()
        return self.ranks.broadcast_(price)
