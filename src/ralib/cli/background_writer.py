"""Files that are written by a thread while a run goes on computing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType

from ralib.kernels.threads import Threads


class BackgroundWriter:
    """Writes the files of one iteration at a time; the next waits until they are written.

    As a context, it ends when all files are written.

    Attributes
    ----------
    waited_s : float
        How long the run has waited for files, seconds.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._thread = Threads(1, "ralib-write")
        self._pending: Future[None] | None = None

    def __enter__(self) -> BackgroundWriter:
        """Return the writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the thread to end."""
        self._thread.shutdown()

    def begin(self, write: Callable[[], None]) -> None:
        """Begin to write; `settle` comes before it."""
        self._pending = self._thread.submit(write)

    def settle(self) -> None:
        """Wait until the files begun last are written; raises the errors of their writing."""
        start, pending = time.perf_counter(), self._pending
        self._pending = None
        if pending is not None:
            pending.result()
        self.waited_s += time.perf_counter() - start
