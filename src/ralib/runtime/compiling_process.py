"""What the process of `compilers` does: load PyTorch and Triton once, divide, compile, and tell what is done."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import select
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from typing import BinaryIO

from ralib.runtime.compilers import Call, Kernel, begin_driver, begin_triton

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Compile what the usual calls of a module need, then those that are read; say so on the standard output.

    It says, each as a pickle: a number of calls, then for every call that is done the kernels that it needed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program answers signals
    begin_driver()
    begin_triton()
    processes, name = sys.argv[1:]
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # for what libraries print
    from ralib.kernels.compiling import Card, compile_only  # not before: the driver takes its time as well

    usual = import_module(name).usual_calls()
    compile_only(Card.first())
    compile_calls(usual, int(processes), sys.stdin.buffer, told)


def compile_calls(usual: Sequence[Call], processes: int, given: BinaryIO, told: BinaryIO) -> None:
    """Divide, and compile side by side.

    Parameters
    ----------
    usual : sequence of callable
        Calls to begin with.
    processes : int
        Number of processes.
    given : binary stream
        Where lists of more calls come from, some of which may be the same, until it ends. These go before the usual.
    told : binary stream
        Where to say what is done.
    """
    pool = ProcessPoolExecutor(processes, get_context("fork"), _end_with_parent)
    queue = _Queue(pool, processes, told)
    queue.tell(len(usual))
    with contextlib.suppress(EOFError):  # at the program's end
        while select.select([given], [], [], 0)[0]:
            queue.put(pickle.load(given))
        queue.put(usual, last=True)
        while True:
            queue.put(pickle.load(given))
    pool.shutdown(wait=False, cancel_futures=True)


class _Queue:
    """Calls that wait for a process. No more are at work than there are processes, so that later ones may go first."""

    def __init__(self, pool: ProcessPoolExecutor, processes: int, told: BinaryIO) -> None:
        self._pool, self._free, self._told = pool, processes, told
        self._waiting: deque[Call] = deque()
        self._known: set[bytes] = set()
        self._lock = threading.RLock()

    def put(self, calls: Sequence[Call], last: bool = False) -> None:
        """Put calls before those that wait, or last, and begin; of one that is known only say so."""
        with self._lock:
            own = {pickle.dumps(call): call for call in calls}
            new = [call for name, call in own.items() if name not in self._known]
            self._known.update(own)
            for _ in range(len(calls) - len(new)):
                self.tell([])
            self._waiting = deque([*self._waiting, *new] if last else [*new, *self._waiting])
            self._begin()

    def tell(self, said: int | list[Kernel]) -> None:
        """Say what is done."""
        pickle.dump(said, self._told)
        self._told.flush()

    def _begin(self) -> None:
        while self._free and self._waiting:
            call = self._waiting.popleft()
            try:
                future = self._pool.submit(kernels_of, call)
            except BrokenExecutor:  # one of the processes was killed, and with it all
                self.tell([])
            else:
                self._free -= 1
                future.add_done_callback(self._done)

    def _done(self, future: Future[list[Kernel]]) -> None:
        with self._lock:
            self.tell([] if future.cancelled() or future.exception() else future.result())
            self._free += 1
            self._begin()


def _end_with_parent() -> None:
    """Let Linux end this process when the one that it was divided from has ended, in whatever way."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def kernels_of(call: Call) -> list[Kernel]:
    """Call a function, and return the kernels that it needed."""
    import torch

    from ralib.kernels.compiling import before_compiling

    kernels: list[Kernel] = []
    before_compiling(lambda *kernel: kernels.append(kernel))
    call(torch.device("cpu"))
    return kernels


if __name__ == "__main__":
    main()
