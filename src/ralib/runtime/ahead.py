"""Functions called in threads ahead of their need, for what their first call leaves: kernels compiled and loaded.

In the first run of a command on a machine another process compiles, see `compilers`, and the threads load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import torch

from ralib.runtime import compilers
from ralib.runtime.compilers import Call

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
    begun: list[Future[None]] = []

    def begin(calls: Iterable[Call]) -> None:
        begun.extend(begin_calls(calls, device))

    try:
        yield begin if device.type == "cuda" else lambda _: None
    finally:
        for call in begun:
            call.cancel()


def begin_calls(calls: Iterable[Call], device: torch.device, maybe: Iterable[Call] = ()) -> list[Future[None]]:
    """Begin to call functions on a GPU in threads; see `called_ahead`.

    Parameters
    ----------
    calls : iterable of callable
        The functions, of the device.
    device : torch.device
        The GPU.
    maybe : iterable of callable, optional
        Others, whose kernels are not needed in every case: called only where another process compiles.

    Returns
    -------
    list of Future
        Tell when each was called.
    """
    calls = list(calls)
    compilers.submit([*calls, *maybe])
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ralib-ahead")
    try:
        return [pool.submit(_call_on, device, call) for call in calls]
    finally:
        pool.shutdown(wait=False)


def _call_on(device: torch.device, call: Call) -> None:
    with suppress(Exception), torch.cuda.device(device):
        call(device)
