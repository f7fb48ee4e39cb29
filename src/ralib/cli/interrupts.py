"""Ctrl-C, SIGTERM and SIGHUP: acknowledged at once however busy the main thread is; runs end where they are saved."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ralib.runtime.distributed import launched

if TYPE_CHECKING:
    from ralib.results.observer import IterationDone

NOTED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command: Ctrl-C, a batch system's, and that of a closed terminal."""
GRACE_S = 20.0
"""Time that a step has to end and be saved after a signal; batch systems kill a job some 30 s after theirs."""
CLEARED_LINE = "\r\x1b[2K"
"""What takes a progress bar and the terminal's ^C off the present line."""


def noted_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a command here: after `nohup`, a closed terminal does not."""
    return tuple(s for s in NOTED if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN)


class Answer:
    """A line for stderr that is printed once.

    Parameters
    ----------
    line : str
        The line.
    """

    def __init__(self, line: str) -> None:
        self._line = f"{CLEARED_LINE if os.isatty(2) else ''}{line}\n".encode()
        self._unsaid = threading.Lock()  # a handler may not wait, so that this is only ever tried

    def say(self) -> None:
        """Print it, not through a buffer that a signal handler may not use."""
        if self._unsaid.acquire(blocking=False):
            with contextlib.suppress(OSError):
                os.write(2, self._line)


@contextlib.contextmanager
def answered(line: str, *, after_s: float = 0.0) -> Iterator[Answer]:
    """While inside, the first of such signals is answered by `line` on stderr, `after_s` seconds later.

    Python runs a handler only when the main thread comes back from a library's call, which can take long; a thread of
    its own answers meanwhile. Where the block ends within `after_s` nothing is said. Only the main thread can ask for
    this; in others nothing happens.
    """
    answer = Answer(line)
    if threading.current_thread() is not threading.main_thread():
        yield answer
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    over = threading.Event()

    def watch() -> None:
        while number := os.read(reader, 1):
            if number[0] in NOTED:
                if not over.wait(after_s):
                    answer.say()
                return

    thread = threading.Thread(target=watch, name="ralib-interrupts", daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield answer
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


class Stopped(BaseException):
    """A signal requested the run to stop; no Exception, which libraries catch while they compile.

    Parameters
    ----------
    number : int
        Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class SignalFlag:
    """Records SIGINT, SIGTERM and SIGHUP instead of ending the process; a second one interrupts at once.

    A step that has not ended `grace_s` later is not waited for: on a processor an iteration of many particles takes
    minutes, and the first of all compiles the kernels. The run then ends where it was saved last.

    As the observer of a run it only stops it once a signal has arrived.

    Parameters
    ----------
    grace_s : float, default GRACE_S
        Time that a step has to end, s.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        self.number: int | None = None
        self.grace_s = grace_s

    def raise_if_set(self) -> None:
        """Raise Stopped if a signal has arrived."""
        if self.number is not None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)  # nothing interrupts the end that begins here
            raise Stopped(self.number)

    def batch(self, done: int, total: int) -> None:
        """Stop the run if a signal has arrived; see `Observer.batch`."""
        self.raise_if_set()

    def iteration(self, done: IterationDone) -> None:
        """Stop the run if a signal has arrived."""
        self.raise_if_set()

    def found(self, line: str) -> None:
        """Ignore the line; see `Observer.found`."""

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record signals in this context."""

        def note(number: int, _: object) -> None:
            if self.number is not None:
                raise KeyboardInterrupt
            self.number = number
            signal.setitimer(signal.ITIMER_REAL, self.grace_s)
            answer.say()

        def end(_: int, __: object) -> None:
            self.raise_if_set()

        within = f"in {self.grace_s:g} s at most"
        with answered(f"ralib: stopping when this step is saved, {within}; again: at once") as answer:
            before = {s: signal.signal(s, note) for s in noted_signals()}
            before[signal.SIGALRM] = signal.signal(signal.SIGALRM, end)
            try:
                yield
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0.0)
                for number, handler in before.items():
                    signal.signal(number, handler)


def stopped_message(stop: Stopped, outdir: Path, state_saved: bool) -> str:
    """Return the message for a run ended by a signal, with the command that continues it.

    Parameters
    ----------
    stop : Stopped
        The signal.
    outdir : Path
        Folder of the run.
    state_saved : bool
        Whether there is a checkpoint.

    Returns
    -------
    str
        The message.
    """
    if not state_saved:
        return f"stopped by {stop} before anything was saved: start again"
    arguments = [a for a in sys.argv[1:] if a != "--continue"]
    program = "ralib"
    if launched() and not any(a.startswith(("--gpu_devices", "--gpu-devices")) for a in arguments):
        program = f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '1')} -m ralib"
    return f"stopped by {stop}; go on with: {program} {shlex.join([*arguments, '--continue'])}  ({outdir})"
