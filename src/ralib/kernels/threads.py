"""Distribution of work over the cores of a CPU, in threads that do not synchronise until they end.

PyTorch's own threads synchronise at the end of every operation and spin until the last has arrived. On a core that
another process uses too, this takes many times as long as the work.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


def as_here(work: Callable[P, R]) -> Callable[P, R]:
    """Return a function for another thread to call in PyTorch's inference mode, or not, as this one is.

    The mode belongs to a thread, and tensors made in it may be written to in it only.

    Parameters
    ----------
    work : callable
        The function.

    Returns
    -------
    callable
        The function, in the mode of the thread that calls `as_here`.
    """
    mode = torch.is_inference_mode_enabled()

    @functools.wraps(work)
    def called(*args: P.args, **given: P.kwargs) -> R:
        with torch.inference_mode(mode):
            return work(*args, **given)

    return called


class Threads(ThreadPoolExecutor):
    """Threads that share tensors with the one that gives them work: they work `as_here`."""

    def submit(self, work: Callable[P, R], /, *args: P.args, **given: P.kwargs) -> Future[R]:
        """Give a thread something to do; see `ThreadPoolExecutor.submit`."""
        return super().submit(as_here(work), *args, **given)


_left = threading.local()
"""`cores`: threads left to `on_cores` by `all_on_cores`."""


def cores() -> int:
    """Return the number of threads on which `on_cores` works: as many as PyTorch may use, or might before."""
    left: int | None = getattr(_left, "cores", None)
    return left or torch.get_num_threads()


@functools.lru_cache(maxsize=4)
def _pool(threads: int) -> Threads:
    """Threads that stay: to start them takes as long as a small step."""
    return Threads(threads, initializer=take_threads, initargs=(1,))


def take_threads(number: int) -> None:
    """Give a new thread, which calls this first, some of PyTorch's threads.

    PyTorch is asked for the number at once, so that it does not take one that another thread sets later.

    Parameters
    ----------
    number : int
        Number of threads.
    """
    torch.set_num_threads(number)
    torch.get_num_threads()


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not follow into a child


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread in this context, for operations too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def all_on_cores(device: torch.device) -> Iterator[None]:
    """Limit PyTorch to one thread in this context, and leave all others to `on_cores`; on a GPU do nothing.

    Parameters
    ----------
    device : torch.device
        Where is computed.
    """
    if device.type != "cpu":
        yield
        return
    before = getattr(_left, "cores", None)
    _left.cores = cores()
    try:
        with one_thread():
            yield
    finally:
        _left.cores = before


def on_cores(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """Run a function on each part, on as many threads as `cores`; within it PyTorch has one thread.

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
    if min(cores(), len(parts)) < 2:
        with one_thread():
            return [work(part) for part in parts]
    threads = torch.get_num_threads()
    try:
        return list(_pool(cores()).map(work, parts))
    finally:
        torch.set_num_threads(threads)


def shares(n: int, each: int = 2) -> list[slice]:
    """Divide 0..n evenly into slices for the cores, one slice for a single core.

    Parameters
    ----------
    n : int
        What is divided.
    each : int, default 2
        Slices for each of several cores: two balance the load; one, where each slice reads all data again.

    Returns
    -------
    list of slice
        The slices.
    """
    threads = cores()
    step = max(1, -(-n // (each * threads if threads > 1 else 1)))
    return [slice(first, min(first + step, n)) for first in range(0, n, step)]
