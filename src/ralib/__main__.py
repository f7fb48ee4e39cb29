"""The command `ralib`, `python -m ralib`, and what torchrun starts."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import NoReturn


def program() -> NoReturn:
    """Run the command line and end the process with its status.

    Python's garbage collection would repeatedly visit the half million objects that PyTorch creates while it loads, and
    once more at the end; none of them is garbage. Disabling it saves a third of a short command's time.

    PyTorch's threads would spin while they wait for each other, which on a shared core delays the work that they wait
    for. The waiting policy has to be set before PyTorch loads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _end_at_signals()
    if not os.environ.get("RALIB_DEBUG"):
        warnings.simplefilter("ignore")  # of libraries, to programmers
    gc.disable()
    with _loading():
        from ralib.cli import main

    gc.freeze()
    gc.enable()
    status = main()
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is said and done
        signal.signal(number, lambda *_: os._exit(status))
    sys.exit(status)


def _end_at_signals() -> None:
    """Until a command begins, a signal ends the program in one line: nothing has been begun."""

    def end(number: int, _: object) -> NoReturn:
        said = "interrupted" if number == signal.SIGINT else "terminated (SIGTERM): nothing was begun"
        with contextlib.suppress(OSError):
            os.write(2, f"ralib: {said}\n".encode())
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """A line on a terminal while PyTorch loads, which takes seconds on a busy machine; nothing of it stays."""
    if not sys.stderr.isatty() or "_RALIB_COMPLETE" in os.environ:
        yield
        return
    done = threading.Event()

    def show() -> None:
        dots = 0
        while not done.wait(0.5):
            dots = dots % 3 + 1
            os.write(2, f"\rloading {'.' * dots}\x1b[K".encode())
        if dots:
            os.write(2, b"\r\x1b[K")

    shown = threading.Thread(target=show, daemon=True)
    shown.start()
    try:
        yield
    finally:
        done.set()
        shown.join()


if __name__ == "__main__":
    program()
