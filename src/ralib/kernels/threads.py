"""Work shared out over the cores of a CPU, in threads that do not wait for each other on the way.

PyTorch's own threads meet at the end of every operation, and spin until the last is there. On a core that something
else is using too, that takes many times as long as the work.
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
    """Within it PyTorch uses one thread: where there is little to do, another costs more than it helps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def on_cores(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """work(part) of each part, on as many threads as PyTorch may use; in the work it has one."""
    threads = torch.get_num_threads()
    if min(threads, len(parts)) < 2:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)


def shares(n: int) -> list[slice]:
    """0 to n in even parts for the cores: two for each, so that none waits long for a slow one; all of it for one."""
    threads = torch.get_num_threads()
    step = max(1, -(-n // (2 * threads if threads > 1 else 1)))
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]
