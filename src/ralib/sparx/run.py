"""What both parity loops share: the options of the rings, what is told while running, and the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ralib.classes.iteration_figures import class_figures
from ralib.sparx.transforms import Params
from ralib.types import ClassAverages, Poses, RalibError, RunResult

DEFAULT_ITERATIONS = 10


@dataclass(frozen=True)
class IterationResult:
    """An iteration as told to `on_iteration`: figures for the log, averages centred as the poses, references."""

    figures: dict[str, Any]
    averages: ClassAverages
    poses: Poses
    references: Tensor


@dataclass(frozen=True)
class Listener:
    """Whom to tell: on_iteration(IterationResult), on_batch(done, total)."""

    on_iteration: Callable[[IterationResult], None] | None = None
    on_batch: Callable[[int, int], None] | None = None

    def batch(self, done: int, total: int) -> None:
        if self.on_batch is not None:
            self.on_batch(done, total)

    def iteration(self, result: IterationResult) -> None:
        if self.on_iteration is not None:
            self.on_iteration(result)


@dataclass
class History:
    """Iterations done, and the last two results."""

    iterations: list[dict[str, Any]] = field(default_factory=list)
    last: IterationResult | None = None
    before: Poses | None = None
    warnings: list[dict[str, str]] = field(default_factory=list)

    def add(self, result: IterationResult, listener: Listener) -> None:
        self.before = self.last.poses if self.last is not None else None
        self.last = result
        self.iterations.append(result.figures)
        listener.iteration(result)

    def result(self, kind: str, options: dict[str, Any], extra: dict[str, Any]) -> RunResult:
        """The run's result on the host; `extra` adds SPARX's own arrays to what every loop gives."""
        assert self.last is not None
        averages, poses = self.last.averages, self.last.poses
        common = {
            "references": self.last.references.cpu(),
            "classes": class_figures(averages, poses, self.before),
            "bad_particles": [],
        }
        return RunResult(kind, poses, averages, self.iterations, options, self.warnings, common | extra)


def outer_ring(ou: int, box: int) -> int:
    """--ou, or box // 2 - 2 for -1; checked against the box."""
    radius = box // 2 - 2 if ou == -1 else ou
    if not 0 < radius <= (box - 1) // 2:
        raise RalibError(f"--ou {radius} px does not fit in a box of {box} px: use 1 to {box // 2 - 2}")
    return radius


def iterations_of(maxit: int) -> tuple[int, bool]:
    """How many iterations, and whether to stop when the criterion falls (--maxit 0: 10, stopping)."""
    if maxit < 0:
        raise RalibError(f"--maxit {maxit} iterations cannot be done: use 0 (10, stopping when it gets worse) or more")
    return (DEFAULT_ITERATIONS, True) if maxit == 0 else (maxit, False)


def check_center(center: int) -> int:
    """--center as SPARX's programs take it."""
    if center not in range(-1, 8):
        raise RalibError(f"--center {center} is unknown: choose -1 (average shift), 0 (none) or 1 to 7")
    return center


def params_table(params: Params, class_index: Tensor, score: Tensor | None = None) -> Tensor:
    """SPARX's own array, float64 on the host: alpha, sx, sy, mirror, reference, and peak if there is one."""
    columns = [params, class_index[:, None].double()]
    if score is not None:
        columns.append(score[:, None].double())
    return torch.cat(columns, dim=1).cpu()
