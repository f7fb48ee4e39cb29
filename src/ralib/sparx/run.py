"""Parts common to both parity loops: ring options, progress reports, and the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ralib.classes.iteration_figures import class_figures
from ralib.results.observer import IterationDone, Observer
from ralib.sparx.transforms import Params
from ralib.types import ClassAverages, Notice, Poses, RalibError, RunResult

DEFAULT_ITERATIONS = 10


@dataclass(frozen=True)
class IterationResult:
    """What an iteration gives.

    Attributes
    ----------
    figures : dict
        Figures for the log.
    averages : ClassAverages
        Averages, centred as the poses are.
    poses : Poses
        Poses of all particles.
    references : Tensor of shape (k, n, n)
        References of the next iteration.
    """

    figures: dict[str, Any]
    averages: ClassAverages
    poses: Poses
    references: Tensor


@dataclass(frozen=True)
class SparxArrays:
    """The arrays that SPARX's programs write.

    Attributes
    ----------
    params : Tensor of shape (n, 6) or (n, 5)
        A row a particle: alpha, sx, sy, mirror, reference, and mref's peak; of mref onto the last references, of ali2d
        before the last centring.
    raw_averages : Tensor of shape (k, box, box)
        Averages before any filter.
    params_header : Tensor of shape (n, 5), optional
        The rows of mref's image headers, after centring.
    """

    params: Tensor
    raw_averages: Tensor
    params_header: Tensor | None = None


@dataclass(frozen=True)
class SparxResult(RunResult):
    """Result of a parity loop.

    Attributes
    ----------
    sparx : SparxArrays
        What SPARX's own program would write.
    """

    sparx: SparxArrays = field(kw_only=True)


@dataclass
class History:
    """Iterations done, and the last two results.

    Attributes
    ----------
    iterations : list of dict
        Figures of each iteration.
    last : IterationResult, optional
        The last result.
    before : Poses, optional
        Poses of the iteration before it.
    warnings : list of Notice
        What a user should know.
    """

    iterations: list[dict[str, Any]] = field(default_factory=list)
    last: IterationResult | None = None
    before: Poses | None = None
    warnings: list[Notice] = field(default_factory=list)

    def add(self, result: IterationResult, observer: Observer) -> None:
        """Add an iteration and report it.

        Parameters
        ----------
        result : IterationResult
            The iteration.
        observer : Observer
            Is called.
        """
        self.before = self.last.poses if self.last is not None else None
        self.last = result
        self.iterations.append(result.figures)
        averages = result.averages
        observer.iteration(IterationDone(list(self.iterations), lambda: averages, warnings=self.warnings))

    def result(self, kind: str, options: dict[str, Any], arrays: SparxArrays) -> SparxResult:
        """Return the run's result in main memory.

        Parameters
        ----------
        kind : str
            Name of the command.
        options : dict
            Options to record.
        arrays : SparxArrays
            SPARX's own arrays.

        Returns
        -------
        SparxResult
            The result.
        """
        assert self.last is not None
        averages, poses = self.last.averages, self.last.poses
        return SparxResult(
            kind,
            poses,
            averages,
            self.iterations,
            options,
            self.warnings,
            classes=class_figures(averages, poses, self.before),
            references=self.last.references.cpu(),
            sparx=arrays,
        )


def outer_ring(ou: int, box: int) -> int:
    """Return the outer radius: `ou`, or box // 2 - 2 for -1.

    Parameters
    ----------
    ou : int
        SPARX's option, pixels.
    box : int
        Image size, pixels.

    Returns
    -------
    int
        Radius, pixels.

    Raises
    ------
    RalibError
        If it does not fit the box.
    """
    radius = box // 2 - 2 if ou == -1 else ou
    if not 0 < radius <= (box - 1) // 2:
        raise RalibError(f"`ou` {radius} px does not fit in a box of {box} px: use 1 to {box // 2 - 2}")
    return radius


def iterations_of(maxit: int) -> tuple[int, bool]:
    """Return the number of iterations, and whether to stop when the criterion decreases.

    With maxit 0: up to 10, stopping.
    """
    if maxit < 0:
        raise RalibError(f"`maxit` {maxit} iterations cannot be done: use 0 (10, stopping when it gets worse) or more")
    return (DEFAULT_ITERATIONS, True) if maxit == 0 else (maxit, False)


def check_center(center: int) -> int:
    """Return the centring method if SPARX has it, else raise RalibError."""
    if center not in range(-1, 8):
        raise RalibError(f"`center` {center} is unknown: choose -1 (average shift), 0 (none) or 1 to 7")
    return center


def params_table(params: Params, class_index: Tensor, score: Tensor | None = None) -> Tensor:
    """Return SPARX's own array, float64 in main memory.

    Parameters
    ----------
    params : Params of shape (n, 4)
        Rows of the particles.
    class_index : Tensor of shape (n,)
        Their references.
    score : Tensor of shape (n,), optional
        Their peaks.

    Returns
    -------
    Tensor of shape (n, 5) or (n, 6)
        alpha, sx, sy, mirror, reference, and peak if given.
    """
    columns = [params, class_index[:, None].double()]
    if score is not None:
        columns.append(score[:, None].double())
    return torch.cat(columns, dim=1).cpu()
