"""Observers of a run: the interface that every iterative method, alignment or classification, calls while it runs.

A method's `fit(particles, observer=..., resume=...)` calls its observer after every batch and every iteration. The
command line's observer is `ralib.cli.session.RunSession`; a Python user's own derives from `SilentObserver`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ralib.results.checkpoint import Checkpoint
from ralib.types import ClassAverages, Notice


@dataclass(frozen=True)
class IterationDone:
    """A completed iteration.

    Attributes
    ----------
    figures : list[dict[str, Any]]
        Figures of all iterations so far (`ralib.classes.iteration_figures`); this one is the last.
    averages : Callable[[], ClassAverages]
        Makes its class averages (k, m, m), at the working pixel size of the search.
    checkpoint : Callable[[], Checkpoint] | None, optional
        Makes the checkpoint from which `fit(resume=...)` continues to the bit; None where the method cannot be resumed
        here.
    warnings : Sequence[Notice], default ()
        Warnings of all iterations so far.
    ends_step : bool, default True
        Whether a step of the method ends here, so that its averages are worth a file. Every iteration of alignment is a
        step; a step of classification's schedule takes several.
    expected : int | None, optional
        Number of iterations expected in all, where this is known better now than before the run.
    """

    figures: list[dict[str, Any]]
    averages: Callable[[], ClassAverages]
    checkpoint: Callable[[], Checkpoint] | None = None
    warnings: Sequence[Notice] = ()
    ends_step: bool = True
    expected: int | None = None

    @property
    def number(self) -> int:
        """Number of iterations done."""
        return int(self.figures[-1]["iteration"])


class Observer(Protocol):
    """Called by a method while it runs; an exception raised here ends the run."""

    def batch(self, done: int, total: int) -> None:
        """Called when `done` of this process's `total` particles have been searched; see `SilentObserver`."""
        ...

    def iteration(self, done: IterationDone) -> None:
        """Called after an iteration."""
        ...

    def found(self, line: str) -> None:
        """Called when something is found out about the data or decided: a line of the result's log."""
        ...


class SilentObserver:
    """An observer that does nothing; derive from it and override what is of interest."""

    def batch(self, done: int, total: int) -> None:
        """Ignore the progress; see `Observer.batch`."""

    def iteration(self, done: IterationDone) -> None:
        """Ignore the iteration."""

    def found(self, line: str) -> None:
        """Ignore the line."""
