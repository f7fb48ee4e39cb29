"""Distribution of work over the cores of a CPU, in threads that do not synchronise until they end.

PyTorch's own threads synchronise at the end of every operation and spin until the last has arrived. On a core that
another process uses too, this takes many times as long as the work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread in this context, for operations too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def on_cores(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """Run a function on each part, on as many threads as PyTorch may use; within it PyTorch has one thread.

    Parameters
    ----------
    work : callable
        The function.
    parts : sequence of T
        Its arguments, one for each call.

    Returns
    -------
    list of R
        Results in the order of `parts`.
    """
    threads = torch.get_num_threads()
    if min(threads, len(parts)) < 2:
        with one_thread():
            return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)


def shares(n: int) -> list[slice]:
    """Divide 0..n evenly into slices for the cores: two for each, to balance the load; one slice for a single core."""
    threads = torch.get_num_threads()
    step = max(1, -(-n // (2 * threads if threads > 1 else 1)))
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]
