"""What the process of `compilers` does: load PyTorch and Triton once, divide, compile, and tell what is done."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
from importlib import import_module
from multiprocessing import get_context
from typing import BinaryIO

import torch

from ralib.kernels.compiling import Card, before_compiling, compile_only
from ralib.runtime.compilers import Call, Kernel


def main() -> None:
    """Compile what the calls of the modules named need, then those that are read; say so on the standard output.

    It says, each as a pickle: a number of calls, then for every call that is done the kernels that it needed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program answers signals
    processes, *names = sys.argv[1:]
    told = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # for what libraries print
    modules = [import_module(name) for name in names]
    compile_only(Card.of(torch.device("cuda")))
    compile_calls(modules[0].usual_calls(), int(processes), sys.stdin.buffer, told)


def compile_calls(usual: list[Call], processes: int, given: BinaryIO, told: BinaryIO) -> None:
    """Divide, and compile side by side.

    Parameters
    ----------
    usual : list of callable
        Calls to begin with.
    processes : int
        Number of processes.
    given : binary stream
        Where lists of more calls come from, some of which may be the same, until it ends.
    told : binary stream
        Where to say what is done.
    """
    begun: set[bytes] = set()
    lock = threading.Lock()

    def tell(said: int | list[Kernel]) -> None:
        with lock:
            pickle.dump(said, told)
            told.flush()

    with get_context("fork").Pool(processes) as pool:

        def begin(calls: list[Call]) -> None:
            for call in calls:
                if (pickled := pickle.dumps(call)) in begun:
                    tell([])
                    continue
                begun.add(pickled)
                pool.apply_async(_kernels_of, (call,), callback=tell, error_callback=lambda _: tell([]))

        tell(len(usual))
        begin(usual)
        with contextlib.suppress(EOFError):  # at the program's end
            while True:
                begin(pickle.load(given))


def _kernels_of(call: Call) -> list[Kernel]:
    """Call a function, and return the kernels that it needed."""
    kernels: list[Kernel] = []
    before_compiling(lambda *kernel: kernels.append(kernel))
    call(torch.device("cpu"))
    return kernels


if __name__ == "__main__":
    main()
