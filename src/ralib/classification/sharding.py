"""Distribution of particles over ranks: global sums, medians and tables, the same bits for any number of ranks.

Every rank holds only the spectra and states of its own particles. Everything the classes depend on is computed here, by
all ranks together, and is then the same on each of them.

Floating-point addition depends on the order only because partial sums are rounded; terms that are multiples of one
quantum, so coarse that no partial sum needs more than 53 bits, add up exactly in any order. So every term is first
rounded to such a quantum (Demmel and Nguyen 2013, "Fast reproducible floating-point summation", 21st IEEE Symposium on
Computer Arithmetic, 163-172), which in float64 preserves more of it than float32 has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.runtime.chunks import on_gpu
from ralib.runtime.distributed import Ranks, SingleProcess

EXPONENT = 0x7FF0_0000_0000_0000
"""The bits of a float64's exponent: what is left of a number is the power of two below it."""


TOGETHER = 2**25
"""Numbers of a table, at most, that every rank is given whole."""


@dataclass(frozen=True)
class Shard:
    """The part of n particles that a rank holds.

    Attributes
    ----------
    bounds : tuple[int, ...]
        Rank r holds the particles numbered bounds[r] to bounds[r + 1] - 1, in tables of as many rows.
    ranks : Ranks
        All processes of the run.
    """

    bounds: tuple[int, ...]
    ranks: Ranks

    @classmethod
    def of_all(cls, n: int, ranks: Ranks | None = None) -> Shard:
        """Return even parts of n particles, as `ralib.runtime.distributed.shard` cuts them; see `Shard`."""
        ranks = ranks or SingleProcess()
        return cls(tuple(n * r // ranks.size for r in range(ranks.size + 1)), ranks)

    def of(self, rows: Tensor) -> Shard:
        """Return the shard of some of the particles: ascending numbers (m,), the same on every rank."""
        bounds = torch.searchsorted(rows.cpu(), torch.tensor(self.bounds))
        return Shard(tuple(bounds.tolist()), self.ranks)

    @property
    def n(self) -> int:
        """Number of all particles."""
        return self.bounds[-1]

    @property
    def rows(self) -> slice:
        """The rank's own particles among all."""
        return slice(self.bounds[self.ranks.rank], self.bounds[self.ranks.rank + 1])

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def among(self, n_own: int) -> Shard:
        """Return the shard of some of the particles, of which each rank gives the number of its own."""
        if self.ranks.size == 1:
            return Shard((0, n_own), self.ranks)
        sizes = torch.zeros(self.ranks.size, dtype=torch.int64)
        sizes[self.ranks.rank] = n_own
        return Shard((0, *self.ranks.all_reduce_(sizes).cumsum(0).tolist()), self.ranks)

    def held(self, rows: Tensor) -> Tensor:
        """Return those of particles `rows` (m,) that this rank holds, as rows of its own tables."""
        mine = (rows >= self.rows.start) & (rows < self.rows.stop)
        return rows[mine] - self.rows.start

    def together(self, table: Tensor) -> tuple[Tensor, Shard]:
        """Give every rank all rows where GPUs, each alone, are done with them before many small sums have met.

        Parameters
        ----------
        table : Tensor of shape (b, k)
            Rows of this rank's particles.

        Returns
        -------
        Tensor of shape (m, k)
            Those of all ranks, or this rank's own.
        Shard
            Which of the rows these are.
        """
        if self.ranks.size == 1 or not on_gpu(table) or self.n * table.shape[1] > TOGETHER:
            return table, self
        return self.gather(table), Shard.of_all(self.n)

    # -- the same on every rank ------------------------------------------------------------------------------------

    def gather(self, part: Tensor) -> Tensor:
        """Return all particles' rows (n, ...) of a table of which each rank has its own (b, ...)."""
        if self.ranks.size == 1:
            return part
        whole = part.new_zeros(self.n, *part.shape[1:], dtype=_summable(part.dtype))
        whole[self.rows] = part
        return self.ranks.all_reduce_(whole).to(part.dtype)

    def from_holders(self, rows: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute something of particles, each on the rank that holds it.

        Parameters
        ----------
        rows : Tensor of shape (m,)
            Numbers of particles, in any order.
        make : Callable[[Tensor], Tensor]
            Computes complex results (b, ...) from the rank's own rows (b,).

        Returns
        -------
        Tensor of shape (m, ...)
            Results on every rank.
        """
        if self.ranks.size == 1:
            return make(rows)
        part = torch.view_as_real(make(self.held(rows)))
        whole = part.new_zeros(len(rows), *part.shape[1:])
        whole[(rows >= self.rows.start) & (rows < self.rows.stop)] = part
        return torch.view_as_complex(self.ranks.all_reduce_(whole))

    def median(self, values: Tensor) -> Tensor:
        """Return the median () over all particles of values (b,)."""
        return self.gather(values).median()

    def largest(self, values: Tensor) -> Tensor:
        """Return the maximum (...) over all particles of non-negative values (b, ...)."""
        most = values.amax(0) if len(values) else values.new_zeros(values.shape[1:])
        return self.ranks.all_max_(most.contiguous())

    def sum(self, values: Tensor, most: float | Tensor | None = None) -> Tensor:
        """Sum over all particles.

        Parameters
        ----------
        values : Tensor of shape (b, ...)
            Values of this rank's particles.
        most : float or Tensor of shape (...), optional
            Upper bound of the values; by default their maximum.

        Returns
        -------
        Tensor of shape (...)
            Sums, float64.
        """
        most = self.largest(values.abs()) if most is None else most
        return self.add_up(in_quanta(values, most * self.n).sum(0))

    def mean(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Average over some of the particles.

        Parameters
        ----------
        values : Tensor of shape (b, ...)
            Values of this rank's particles.
        chosen : Tensor of shape (b,)
            True for particles that count.

        Returns
        -------
        Tensor of shape (...)
            Means, float64.
        """
        return self.sum(values[chosen]) / self.count(chosen).clamp_min(1)

    def count(self, chosen: Tensor) -> Tensor:
        """Return the number () of all particles that are `chosen` (b,)."""
        return self.ranks.all_reduce_(chosen.sum())

    def counts(self, group: Tensor, n_groups: int, chosen: Tensor | None = None) -> Tensor:
        """Count the particles of each group.

        Parameters
        ----------
        group : Tensor of shape (b,)
            Group of each of this rank's particles; that of one not chosen may be negative.
        n_groups : int
            Number of groups k.
        chosen : Tensor of shape (b,), optional
            True for particles that count; by default all.

        Returns
        -------
        Tensor of shape (k,)
            Numbers of particles.
        """
        # Added up, not counted by `bincount` or chosen as rows, for the size of which a GPU would be waited for.
        one = torch.ones_like(group) if chosen is None else chosen.to(group.dtype)
        return self.ranks.all_reduce_(group.new_zeros(n_groups).scatter_add_(0, group.clamp_min(0), one))

    def sum_by(self, group: Tensor, values: Tensor, n_groups: int, most: float | Tensor | None = None) -> Tensor:
        """Sum over the particles of each group.

        Parameters
        ----------
        group : Tensor of shape (b,)
            Group of each of this rank's particles.
        values : Tensor of shape (b, f)
            Their values.
        n_groups : int
            Number of groups k.
        most : float or Tensor of shape (f,), optional
            Upper bound of the values; by default their maximum.

        Returns
        -------
        Tensor of shape (k, f)
            Sums, float64.
        """
        most = self.largest(values.abs()) if most is None else most
        sums = torch.zeros(n_groups, values.shape[1], dtype=torch.float64, device=values.device)
        sums.scatter_add_(0, group[:, None].expand(-1, values.shape[1]), in_quanta(values, most * self.n))
        return self.add_up(sums)

    def add_up(self, part: Tensor) -> Tensor:
        """Sum, in place, what every rank has summed `in_quanta`."""
        return self.ranks.all_reduce_(part)


def in_quanta(values: Tensor, limit: float | Tensor) -> Tensor:
    """Round values to multiples of a quantum in which sums up to a limit are exact.

    Parameters
    ----------
    values : Tensor of shape (..., f)
        Values.
    limit : float or Tensor of shape () or (f,)
        Upper bound of the sums.

    Returns
    -------
    Tensor of shape (..., f)
        Rounded values, float64.
    """
    anchor = quantum_anchor(torch.as_tensor(limit, dtype=torch.float64, device=values.device))
    return (values.double() + anchor).sub_(anchor)


def quantum_anchor(limit: Tensor) -> Tensor:
    """Return what rounds a value to multiples of a quantum, when it is added in float64 and subtracted again.

    Parameters
    ----------
    limit : Tensor of shape (...)
        Upper bound of the sums that are to be exact.

    Returns
    -------
    Tensor of shape (...)
        Three halves of a power of two above the limit, next to which float64 has 2^-52 of that power left.
    """
    return 6.0 * (limit.double().view(torch.int64) & EXPONENT).view(torch.float64)


def _summable(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype == torch.bool else dtype
