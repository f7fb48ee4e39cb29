"""Who follows a run: what every iterative method, alignment or classification, hands over while it works.

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
    """An iteration that is complete.

    Parameters
    ----------
    figures
        One dict an iteration (`classes.iteration_figures`), of all so far; this one is the last.
    averages
        Makes its class averages (k, m, m); where the search works at a coarser pixel size, they are of that size.
    checkpoint
        Makes what `fit(resume=...)` goes on from, to the bit; None where the method can not be resumed here.
    warnings
        Of all iterations so far.
    ends_step
        Whether a step of the method ends here, so that its averages are worth a file. Alignment's every iteration is
        a step; a step of classification's schedule takes several.
    """

    figures: list[dict[str, Any]]
    averages: Callable[[], ClassAverages]
    checkpoint: Callable[[], Checkpoint] | None = None
    warnings: Sequence[Notice] = ()
    ends_step: bool = True

    @property
    def number(self) -> int:
        """How many iterations are done."""
        return int(self.figures[-1]["iteration"])


class Observer(Protocol):
    """Follows a run; an exception raised here stops it."""

    def batch(self, done: int, total: int) -> None:
        """`done` of this process's `total` particles have been searched in this iteration."""
        ...

    def iteration(self, done: IterationDone) -> None:
        """An iteration is complete."""
        ...


class SilentObserver:
    """An observer that does nothing; derive from it and override what is of interest."""

    def batch(self, done: int, total: int) -> None:
        return None

    def iteration(self, done: IterationDone) -> None:
        return None
