"""The state of an alignment between two iterations, its form in a checkpoint, and its observers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ralib.types import ClassAverages, Poses


@dataclass(frozen=True)
class LoopState:
    """All that the next iteration needs and a checkpoint holds.

    Attributes
    ----------
    iteration : int
        Iterations done.
    references : Tensor of shape (k, n, n)
        References of the next search.
    poses : Poses
        Poses of all particles, onto `averages`.
    previous : Poses, optional
        Poses of the iteration before.
    averages : ClassAverages, optional
        Unfiltered class averages, centred.
    figures : list[dict[str, Any]]
        Figures of each iteration.
    warnings : list[dict[str, str]]
        Warnings with the keys what, where and do.
    stage : int, default 0
        Stage of shift ranges that the iteration belongs to (reference-free alignment).
    best_criterion : float, default -float('inf')
        Best criterion of the stage (reference-free alignment).
    """

    iteration: int
    references: Tensor
    poses: Poses
    previous: Poses | None = None
    averages: ClassAverages | None = None
    figures: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, str]] = field(default_factory=list)
    stage: int = 0
    best_criterion: float = -float("inf")

    def pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays and plain values from which `unpack` restores the state to the bit."""
        arrays = {"references": self.references.cpu().numpy()}
        for prefix, poses in (("poses", self.poses), ("previous", self.previous)):
            if poses is not None:
                arrays |= {f"{prefix}.{f.name}": getattr(poses, f.name).cpu().numpy() for f in fields(Poses)}
        if self.averages is not None:
            parts = vars(self.averages).items()
            arrays |= {f"averages.{k}": v.cpu().numpy() for k, v in parts if isinstance(v, Tensor)}
        meta = {
            "iteration": self.iteration,
            "figures": self.figures,
            "warnings": self.warnings,
            "stage": self.stage,
            "best_criterion": self.best_criterion,
            "pixel_size_A": None if self.averages is None else self.averages.pixel_size_A,
        }
        return arrays, meta

    @classmethod
    def unpack(cls, arrays: dict[str, np.ndarray], meta: dict[str, Any], device: torch.device) -> LoopState:
        """Restore the state of `pack`.

        Parameters
        ----------
        arrays : dict[str, ndarray]
            Arrays of `pack`.
        meta : dict[str, Any]
            Plain values of `pack`.
        device : torch.device
            Where the tensors are put.

        Returns
        -------
        LoopState
            The state.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            start = prefix + "."
            return {k[len(start) :]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith(start)}

        averages = part("averages")
        return cls(
            iteration=int(meta["iteration"]),
            references=torch.from_numpy(arrays["references"]).to(device),
            poses=Poses(**part("poses")).to(device),
            previous=Poses(**part("previous")).to(device) if part("previous") else None,
            averages=ClassAverages(
                images=averages.pop("images"),
                members=averages.pop("members"),
                half_images=averages.pop("half_images", None),
                frc=averages.pop("frc", None),
                pixel_size_A=meta["pixel_size_A"],
            ).to(device)
            if averages
            else None,
            figures=list(meta["figures"]),
            warnings=list(meta["warnings"]),
            stage=int(meta["stage"]),
            best_criterion=float(meta["best_criterion"]),
        )


class Observer(Protocol):
    """Called by a loop while it runs; an exception raised here ends the loop."""

    def batch(self, done: int, total: int) -> None:
        """Report that `done` of this rank's `total` particles have been searched in this iteration."""
        ...

    def iteration(self, state: LoopState) -> None:
        """Report a completed iteration."""
        ...


class Silent:
    """An observer that does nothing."""

    def batch(self, done: int, total: int) -> None:
        """Ignore the progress."""

    def iteration(self, state: LoopState) -> None:
        """Ignore the iteration."""
