"""Functions called in threads ahead of their need, for what their first call leaves: kernels that are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import torch

Call = Callable[[], object]
CallAhead = Callable[[Iterable[Call]], None]

THREADS = 4
"""Compilers of kernels run outside Python for most of their time; more threads would keep the caller from it."""


@contextmanager
def called_ahead(device: torch.device) -> Iterator[CallAhead]:
    """Call functions on a GPU in threads, beside what is done within this context; those not begun by its end are left.

    Errors are not raised: what fails here fails again where it is needed, and is reported there.

    Parameters
    ----------
    device : torch.device
        The GPU; on a CPU nothing is called.

    Yields
    ------
    callable
        Takes the functions, and returns at once.
    """

    def on_device(call: Call) -> None:
        with suppress(Exception), torch.cuda.device(device):
            call()

    if device.type != "cuda":
        yield lambda _: None
        return
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ralib-ahead")

    def submit(calls: Iterable[Call]) -> None:
        for call in calls:
            pool.submit(on_device, call)

    try:
        yield submit
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
