"""Several processes as one: shard, sum, broadcast. This room sees only torch; the loops see only `Ranks`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Ranks(Protocol):
    """What a loop needs from its fellow processes; every method is called by all of them, in the same
    order.
    """

    rank: int
    size: int

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over the ranks."""
        ...

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by rank 0's."""
        ...

    def barrier(self) -> None:
        """Wait for everyone."""
        ...


class SingleProcess:
    """The only rank there is."""

    rank = 0
    size = 1

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        return tensor

    def barrier(self) -> None:
        return None


def shard(n: int, ranks: Ranks) -> range:
    """The contiguous block of 0..n-1 that this rank works on; blocks differ by at most one in length."""
    return range(n * ranks.rank // ranks.size, n * (ranks.rank + 1) // ranks.size)


def join() -> Ranks:
    """The processes of this run: one, unless a launcher started more."""
    return SingleProcess()
