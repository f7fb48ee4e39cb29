"""A process that compiles kernels in the first run of a command on a machine, begun before PyTorch is loaded.

Triton keeps what it compiled, so that this happens once. Threads would not do: while one of them compiles, Python's
lock keeps the others waiting, and the caller with them. The process (`compiling_process`) loads PyTorch beside the
program, and divides into as many as there are cores for. It begins with the kernels of the command's defaults; all
others are told later, as calls (`submit`). A kernel that is needed meanwhile is waited for, not compiled twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ralib.compile_cache import choose_cache_folders, hash_triton, triton_cache

if TYPE_CHECKING:
    import torch

Kernel = tuple[str, str]
"""Name of a kernel, and what it is compiled for."""

Call = Callable[["torch.device"], object]
"""Calls kernels with tensors on a device."""

USUAL = {
    "classify": "ralib.classification.kernels_ahead",
    "mref": "ralib.alignment.kernels_ahead",
    "reffree": "ralib.alignment.kernels_ahead",
}
"""The commands that compile many kernels, and the modules whose `usual_calls` are begun with."""

MOST = 16
"""Processes at most, one a core."""
WAITING_S = 60
"""No kernel takes so long to compile: afterwards the process is ended, whatever became of it."""

HASHING = "ralib-triton-key"
"""Name of the thread of `begin_triton`."""

PACKAGE = Path(__file__).parents[1]
PROCESS = sys.executable, "-m", "ralib.runtime.compiling_process"

_compilers: _Compilers | None = None


def begin(command: str) -> None:
    """Begin to compile if this is the first run of a command on a machine with a GPU; else do nothing.

    Parameters
    ----------
    command : str
        Name of the command, one of USUAL.
    """
    global _compilers
    if not begin_driver():
        return
    processes = min(MOST, len(os.sched_getaffinity(0)))
    choose_cache_folders(os.environ, PACKAGE)
    begin_triton()
    mark = _mark(command)
    if processes > 1 and not mark.exists():
        with contextlib.suppress(OSError):
            _compilers = _Compilers([*PROCESS, str(processes), USUAL[command]], mark)


def await_kernels() -> None:
    """From now on, let Triton wait for what is being compiled; PyTorch should be loaded by now."""
    if _compilers is not None:
        from ralib.kernels.compiling import before_compiling

        before_compiling(_compilers.wait_for)


def submit(calls: Iterable[Call]) -> None:
    """Let functions be called for the kernels that they need, if any are compiled; those known already are left out.

    Parameters
    ----------
    calls : iterable of callable
        Functions of a device that can be pickled; what they raise is not heard of.
    """
    if _compilers is not None:
        _compilers.submit(list(calls))


def end() -> None:
    """End the process."""
    global _compilers
    if _compilers is not None:
        _compilers.end()
    _compilers = None


def begin_driver() -> bool:
    """Begin to initialise the GPU's driver, which PyTorch will need, while that loads; False where there is none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    threading.Thread(target=driver.cuInit, args=(0,), daemon=True).start()
    return True


def begin_triton() -> None:
    """Begin to load Triton and to hash its compiler, for which the first kernel would wait, while PyTorch loads."""
    threading.Thread(target=hash_triton, name=HASHING, daemon=True).start()


class _Compilers:
    """The process, what it has compiled, and how many calls are left: None before it has told of the first ones."""

    def __init__(self, command: Sequence[str], mark: Path) -> None:
        self._mark = mark
        self._left: int | None = None
        self._compiled: set[Kernel] = set()
        self._changed = threading.Condition()
        paths = os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": paths},
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._sent, self._said = self._process.stdin, self._process.stdout
        threading.Thread(target=self._hear, daemon=True).start()

    def submit(self, calls: Sequence[Call]) -> None:
        with self._changed:
            if self._said.closed:  # it has ended, and nothing is waited for
                return
            self._left = len(calls) + (self._left or 0)
        with contextlib.suppress(OSError):  # it has just ended, as is heard in a moment
            self._sent.write(pickle.dumps(calls))
            self._sent.flush()

    def _hear(self) -> None:
        """Take what the process says: how many calls it began with, then the kernels of each call that is done."""
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError), self._said:
            while True:
                self._heard(pickle.load(self._said))
        with self._changed:
            self._left = 0
            self._changed.notify_all()

    def _heard(self, said: int | list[Kernel]) -> None:
        with self._changed:
            if isinstance(said, int):
                self._left = said + (self._left or 0)
            else:
                self._compiled.update(said)
                self._left = max(0, (self._left or 0) - 1)
            self._changed.notify_all()

    def wait_for(self, *kernel: str) -> None:
        """Before Triton compiles a kernel: wait until it is in its cache, or no call is left."""
        with self._changed:
            if not self._changed.wait_for(lambda: kernel in self._compiled or self._left == 0, WAITING_S):
                self._left = 0
                self._process.kill()  # so that none is waited for again

    def end(self) -> None:
        if self._compiled and self._left == 0:
            with contextlib.suppress(OSError):
                self._mark.touch()
        with contextlib.suppress(OSError):
            self._sent.close()
        self._process.terminate()
        self._process.wait()


def _mark(command: str) -> Path:
    """The file in Triton's cache that says that a command's kernels have been compiled by this Python."""
    sources = sorted((PACKAGE / "kernels").rglob("*triton.py"))
    what = hashlib.sha256(sys.version.encode())
    for path in sources:
        what.update(path.read_bytes())
    return triton_cache() / f"ralib-{command}-{what.hexdigest()[:16]}"
