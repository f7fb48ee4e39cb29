"""Which particles this process holds, and what is told of all of them: sums, medians, tables.

Every rank holds the spectra of its own particles only, and one state for each of them. What the classes depend on is
made here, by all ranks together, and is then the same on each of them.

Sums are the same bits however many ranks there are. Floating-point addition depends on the order only because partial
sums are rounded; terms that are multiples of one quantum, so coarse that no partial sum needs more than 53 bits, add up
exactly in any order. So every term is rounded to such a quantum first (Demmel and Nguyen 2013, "Fast reproducible
floating-point summation"), which in float64 leaves more of it than float32 has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.runtime.distributed import Ranks, SingleProcess


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
        """Even parts of n particles, as `runtime.distributed.shard` cuts them; all of them without ranks."""
        ranks = ranks or SingleProcess()
        return cls(tuple(n * r // ranks.size for r in range(ranks.size + 1)), ranks)

    def of(self, rows: Tensor) -> Shard:
        """The same for some of the particles: ascending numbers (m,), the same on every rank."""
        bounds = torch.searchsorted(rows.cpu(), torch.tensor(self.bounds))
        return Shard(tuple(bounds.tolist()), self.ranks)

    @property
    def n(self) -> int:
        """All particles."""
        return self.bounds[-1]

    @property
    def rows(self) -> slice:
        """The rank's own particles among all."""
        return slice(self.bounds[self.ranks.rank], self.bounds[self.ranks.rank + 1])

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def among(self, n_own: int) -> Shard:
        """The same for some of the particles, of which each rank says how many of its own there are."""
        if self.ranks.size == 1:
            return Shard((0, n_own), self.ranks)
        sizes = torch.zeros(self.ranks.size, dtype=torch.int64)
        sizes[self.ranks.rank] = n_own
        return Shard((0, *self.ranks.all_reduce_(sizes).cumsum(0).tolist()), self.ranks)

    def held(self, rows: Tensor) -> Tensor:
        """Of particles numbered `rows` (m,) those that this rank holds, as rows of its own tables."""
        mine = (rows >= self.rows.start) & (rows < self.rows.stop)
        return rows[mine] - self.rows.start

    # -- the same on every rank ------------------------------------------------------------------------------------

    def gather(self, part: Tensor) -> Tensor:
        """All particles' rows (n, ...) of a table of which each rank has its own (b, ...)."""
        if self.ranks.size == 1:
            return part
        whole = part.new_zeros(self.n, *part.shape[1:], dtype=_summable(part.dtype))
        whole[self.rows] = part
        return self.ranks.all_reduce_(whole).to(part.dtype)

    def from_holders(self, rows: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """make(own rows) of particles `rows` (m,), in any order, each by the rank that holds it: complex (m, ...)."""
        if self.ranks.size == 1:
            return make(rows)
        part = torch.view_as_real(make(self.held(rows)))
        whole = part.new_zeros(len(rows), *part.shape[1:])
        whole[(rows >= self.rows.start) & (rows < self.rows.stop)] = part
        return torch.view_as_complex(self.ranks.all_reduce_(whole))

    def median(self, values: Tensor) -> Tensor:
        """Median () over all particles of values (b,)."""
        return self.gather(values).median()

    def largest(self, values: Tensor) -> Tensor:
        """Maximum (...) over all particles of values (b, ...) that are nowhere negative."""
        most = values.amax(0) if len(values) else values.new_zeros(values.shape[1:])
        return self.ranks.all_max_(most.contiguous())

    def sum(self, values: Tensor, most: float | Tensor | None = None) -> Tensor:
        """Sum (...), float64, over all particles of values (b, ...) that are nowhere larger than `most` (...)."""
        most = self.largest(values.abs()) if most is None else most
        return self.add_up(in_quanta(values, most * self.n).sum(0))

    def mean(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Mean (...), float64, of values (b, ...) over the particles `chosen` (b,)."""
        return self.sum(values[chosen]) / self.count(chosen).clamp_min(1)

    def count(self, chosen: Tensor) -> Tensor:
        """How many of all particles are `chosen` (b,), a number ()."""
        return self.ranks.all_reduce_(chosen.sum())

    def counts(self, group: Tensor, n_groups: int) -> Tensor:
        """Particles (k,) of each group, of particles (b,) of which each is in one."""
        return self.ranks.all_reduce_(torch.bincount(group, minlength=n_groups))

    def sum_by(self, group: Tensor, values: Tensor, n_groups: int, most: float | Tensor | None = None) -> Tensor:
        """Sums (k, f), float64, over the particles of each group (b,) of values (b, f)."""
        most = self.largest(values.abs()) if most is None else most
        sums = torch.zeros(n_groups, values.shape[1], dtype=torch.float64, device=values.device)
        sums.scatter_add_(0, group[:, None].expand(-1, values.shape[1]), in_quanta(values, most * self.n))
        return self.add_up(sums)

    def add_up(self, part: Tensor) -> Tensor:
        """The sum of what every rank has added up `in_quanta`, in place."""
        return self.ranks.all_reduce_(part)


def in_quanta(values: Tensor, limit: float | Tensor) -> Tensor:
    """Values (..., f) in float64, as multiples of a quantum in which sums up to `limit`, () or (f,), are exact."""
    limit = torch.as_tensor(limit, dtype=torch.float64, device=values.device)
    # Next to this number, three halves of a power of two above the limit, float64 has 2^-52 of that power left.
    anchor = 1.5 * torch.exp2(torch.frexp(limit).exponent.double() + 1)
    return (values.double() + anchor).sub_(anchor)


def _summable(dtype: torch.dtype) -> torch.dtype:
    return torch.uint8 if dtype == torch.bool else dtype
