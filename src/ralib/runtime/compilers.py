"""Processes that compile kernels in the first run of a command on a machine, begun while PyTorch loads.

Triton keeps what it compiled, so that this happens once. Threads would not do: while one of them compiles, Python's
lock keeps the others waiting, and the caller with them. A process that compiles needs PyTorch as well, which takes
seconds to load, so that the program begins some before it loads PyTorch itself (`begin`). What they are to compile they
learn later, as calls (`submit`); a kernel that is needed meanwhile is waited for, not compiled twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ralib.compile_cache import choose_cache_folders, triton_cache

if TYPE_CHECKING:
    import torch

Kernel = tuple[str, str]
"""Name of a kernel, and what it is compiled for."""

NEEDED = {
    "classify": ("ralib.classification.kernels_ahead",),
    "mref": ("ralib.alignment.kernels_ahead", "ralib.classification.kernels_ahead"),
    "reffree": ("ralib.alignment.kernels_ahead", "ralib.classification.kernels_ahead"),
}
"""The commands that compile many kernels, and the modules of what is submitted."""

MOST = 8
"""Processes at most, and half of the cores."""
WAITING_S = 60
"""No kernel takes so long to compile: afterwards, what became of the processes is not waited for."""
LEAST_FREE_BYTES = 48 * 2**30
"""Memory of a GPU, free, below which none compile: each takes half a GiB of it, which plans of work then lacked."""

PACKAGE = Path(__file__).parents[1]

_compilers: _Compilers | None = None


def begin(command: str) -> None:
    """Begin the processes if this is the first run of a command on a machine with a GPU; else do nothing.

    Parameters
    ----------
    command : str
        Name of the command.
    """
    global _compilers
    processes = min(MOST, (os.cpu_count() or 1) // 2)
    if command not in NEEDED or processes < 2 or "RANK" in os.environ or not _driver_begun():
        return
    choose_cache_folders(os.environ, PACKAGE)
    mark = _mark(command)
    if not mark.exists():
        with contextlib.suppress(OSError):
            _compilers = _Compilers(processes, NEEDED[command], mark)


def submit(calls: Iterable[Callable[[], object]], device: torch.device) -> None:
    """Let the processes, if there are any, run functions for the kernels that they need; only the first call counts.

    Parameters
    ----------
    calls : iterable of callable
        Functions that can be pickled; what they raise is not heard of.
    device : torch.device
        The GPU on which they compute.
    """
    if _compilers is None:
        return
    from ralib.runtime.memory import free_memory  # which loads PyTorch

    if free_memory(device) >= LEAST_FREE_BYTES:
        _compilers.submit(list(calls))


def end() -> None:
    """End the processes."""
    global _compilers
    if _compilers is not None:
        _compilers.end()
    _compilers = None


class _Compilers:
    """The processes, what they have compiled, and how much of what was submitted is left: None before that."""

    def __init__(self, processes: int, modules: Sequence[str], mark: Path) -> None:
        import multiprocessing  # only in a first run

        self._mark = mark
        self._left: int | None = None
        self._compiled: set[Kernel] = set()
        self._changed = threading.Condition()
        self._pool = multiprocessing.get_context("spawn").Pool(processes, _prepare, (modules,))

    def submit(self, calls: Sequence[Callable[[], object]]) -> None:
        from ralib.kernels.compiling import before_compiling

        if self._left is not None:  # of an earlier stage, with the same kernels
            return
        self._left = len(calls)
        before_compiling(self._await)
        for call in calls:
            self._pool.apply_async(_kernels_of, (call,), callback=self._done, error_callback=lambda _: self._done())

    def _done(self, kernels: Iterable[Kernel] = ()) -> None:
        with self._changed:
            self._compiled.update(kernels)
            self._left = max(0, (self._left or 0) - 1)
            if self._left == 0:
                self._pool.close()  # and with it what the processes hold of the GPU
            self._changed.notify_all()

    def _await(self, *kernel: str) -> None:
        """Before Triton compiles a kernel: wait until it is in its cache, or none of the processes is at work."""
        with self._changed:
            if not self._changed.wait_for(lambda: kernel in self._compiled or self._left == 0, WAITING_S):
                self._left = 0  # a process was lost with its call: none is waited for again

    def end(self) -> None:
        if self._compiled and self._left == 0:
            with contextlib.suppress(OSError):
                self._mark.touch()
        self._pool.terminate()


def _prepare(modules: Sequence[str]) -> None:
    """In a process: load what calls need. The program's own process answers signals, and tells of what fails."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(Exception):
        for module in modules:
            import_module(module)
        from ralib.kernels.compiling import load_compiler

        load_compiler()


def _kernels_of(call: Callable[[], object]) -> list[Kernel]:
    """In a process: run a function, and return the kernels that it needed."""
    from ralib.kernels.compiling import before_compiling

    kernels: list[Kernel] = []
    before_compiling(lambda *kernel: kernels.append(kernel))
    call()
    return kernels


def _driver_begun() -> bool:
    """Begin to initialise the GPU's driver, which PyTorch will need, while that loads; False where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    threading.Thread(target=driver.cuInit, args=(0,), daemon=True).start()
    return True


def _mark(command: str) -> Path:
    """The file in Triton's cache that says that a command's kernels have been compiled by this Python."""
    sources = sorted((PACKAGE / "kernels").rglob("*triton.py"))
    what = hashlib.sha256(sys.version.encode())
    for path in sources:
        what.update(path.read_bytes())
    return triton_cache() / f"ralib-{command}-{what.hexdigest()[:16]}"
