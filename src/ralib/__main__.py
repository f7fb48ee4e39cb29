"""The command `ralib`, `python -m ralib`, and what torchrun starts."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import NoReturn

from ralib.runtime import compilers, first_operations

LEAST_MIB = {"ulimit -v": 1600, "ulimit -d": 512}
"""With less, PyTorch for CPUs does not load."""

NO_GPU = frozenset({"-h", "--help", "--help-all", "--gpu_devices", "cpu", "--device=cpu"})
"""With one of these on the command line this process computes nothing on a GPU."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def program() -> NoReturn:
    """Run the command line and end the process with its status.

    Python's garbage collection would repeatedly visit the half million objects that PyTorch creates while it loads, and
    once more at the end; none of them is garbage. Disabling it saves a third of a short command's time.

    PyTorch's threads would spin while they wait for each other, which on a shared core delays the work that they wait
    for. The waiting policy has to be set before PyTorch loads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _open_closed_streams()
    _end_at_signals()
    _refuse_small_limits()
    if not os.environ.get("RALIB_DEBUG"):
        warnings.simplefilter("ignore")  # of libraries, to programmers
    gc.disable()
    if _searches_on_gpu():
        compilers.begin(sys.argv[1])
    with _loading():
        try:
            if _searches_on_default_gpu():
                first_operations.begin()
            from ralib.cli import main
        except (ImportError, MemoryError, OSError) as error:
            _explain_loading(error)

    compilers.await_kernels()
    gc.freeze()
    gc.enable()
    status = main()
    compilers.end()
    for number in _ENDING:  # all is said and done
        signal.signal(number, signal.SIG_IGN)
    _exit(status)


def _searches_on_gpu() -> bool:
    """Whether this process searches on a GPU, if there is one, as far as its line tells."""
    searches = "".join(sys.argv[1:2]) in compilers.USUAL and "RANK" not in os.environ
    return searches and not NO_GPU & set(sys.argv)


def _searches_on_default_gpu() -> bool:
    """Whether that is the GPU which is used by default."""
    return _searches_on_gpu() and not any(word.startswith(("cuda:", "--device=", "--config")) for word in sys.argv)


def _exit(status: int) -> NoReturn:
    """End the process once it has said all and done what was registered for its end.

    Python would then take apart all that PyTorch made, for some .2 s, and join threads that compile what nobody needs.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # a full disk, or a pipe that nobody reads
            status = status or 2
    os._exit(status)


def _open_closed_streams() -> None:
    """Give a program that was started with closed streams (`>&- 2>&-`) empty ones.

    A file of data that took the number of one of them would get the lines meant for it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _limits() -> dict[str, int]:
    """The limits on this process's memory, MiB, by the shell's option that set them."""
    kinds = {"ulimit -v": resource.RLIMIT_AS, "ulimit -d": resource.RLIMIT_DATA}
    found = {name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}
    return {name: limit >> 20 for name, limit in found.items() if limit != resource.RLIM_INFINITY}


def _refuse_small_limits() -> None:
    """Say so where the libraries cannot even be loaded: some of them end the program without a word."""
    for name, limit in _limits().items():
        if limit < LEAST_MIB[name]:
            _refuse(f"{name} allows {limit} MiB, and PyTorch alone needs {LEAST_MIB[name]} MiB")


def _explain_loading(error: Exception) -> NoReturn:
    """One line where a limit on memory keeps the libraries from loading; other errors as they are."""
    refused = ("failed to map", "annot allocate memory", "annot enable executable")
    limits = _limits()
    if not limits or not (isinstance(error, MemoryError) or any(words in str(error) for words in refused)):
        raise error
    limits_text = " and ".join(f"{name} allows {limit} MiB" for name, limit in limits.items())
    _refuse(f"{limits_text}, and PyTorch needs more")


def _refuse(why: str) -> NoReturn:
    print(f"ralib: out of memory before anything was begun: {why}; raise that limit", file=sys.stderr)
    sys.exit(2)


def _end_at_signals() -> None:
    """Until a command begins, a signal ends the program in one line: nothing has been begun."""

    def end(number: int, _: object) -> NoReturn:
        name = signal.Signals(number).name
        said = "interrupted" if number == signal.SIGINT else f"terminated ({name}): nothing was begun"
        with contextlib.suppress(OSError):
            os.write(2, f"ralib: {said}\n".encode())
        os._exit(128 + number)

    for number in _ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # after nohup
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
