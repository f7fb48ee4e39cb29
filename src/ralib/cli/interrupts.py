"""Ctrl-C and SIGTERM, answered at once however busy the main thread is."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

NOTED = (signal.SIGINT, signal.SIGTERM)


class Answer:
    """A line for stderr that is said once, by whoever comes first."""

    def __init__(self, line: str) -> None:
        self._line = f"{line}\n".encode()
        self._unsaid = threading.Lock()  # a handler may not wait, so that this is only ever tried

    def say(self) -> None:
        """Say it, not through a buffer that a handler may not touch."""
        if self._unsaid.acquire(blocking=False):
            with contextlib.suppress(OSError):
                os.write(2, self._line)


@contextlib.contextmanager
def answered(line: str, *, after_s: float = 0.0) -> Iterator[Answer]:
    """While inside, the first SIGINT or SIGTERM is answered by `line` on stderr, `after_s` seconds later.

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
