"""The state of an alignment between two iterations, and its form as a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ralib.results.checkpoint import Checkpoint, check_arrays, unpacking
from ralib.types import ClassAverages, Notice, Poses

_POSES = {"psi_deg": "float32 n", "origin_xy_px": "float32 n 2", "mirror": "bool n", "class_index": "int64 n"}
_LAYOUT = (
    {"references": "float32 k b b", "poses.score": "float32? n", "previous.score?": "float32? n"}
    | {f"poses.{name}": layout for name, layout in _POSES.items()}
    | {f"previous.{name}?": layout for name, layout in _POSES.items()}
    | {"averages.images?": "float32 k b b", "averages.half_images?": "float32 2 k b b"}
    | {"averages.members?": "int64 k", "averages.frc?": "float32? k r"}
)


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
    figures : list of dict
        Figures of each iteration.
    warnings : list of Notice
        What a user should know.
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
    warnings: list[Notice] = field(default_factory=list)
    stage: int = 0
    best_criterion: float = -float("inf")

    def checkpoint(self) -> Checkpoint:
        """Copy the state into a checkpoint, from which `from_checkpoint` restores it to the bit."""
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
            "warnings": [notice.record() for notice in self.warnings],
            "stage": self.stage,
            "best_criterion": self.best_criterion,
            "pixel_size_A": None if self.averages is None else self.averages.pixel_size_A,
        }
        return Checkpoint(self.iteration, {name: array.copy() for name, array in arrays.items()}, meta)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, device: torch.device) -> LoopState:
        """Restore the state of which a checkpoint was made.

        Parameters
        ----------
        checkpoint : Checkpoint
            Result of `checkpoint`.
        device : torch.device
            Where the tensors are put.

        Returns
        -------
        LoopState
            The state.

        Raises
        ------
        RalibError
            If the checkpoint holds something else.
        """
        check_arrays(checkpoint.arrays, _LAYOUT)
        with unpacking():
            state = cls._unpacked(checkpoint, device)
            highest = int(state.poses.class_index.max()) if len(state.poses) else 0
            if state.iteration != checkpoint.number or state.stage < 0 or highest >= len(state.references):
                raise ValueError(f"iteration {state.iteration}, stage {state.stage}, class {highest + 1}")
        return state

    @classmethod
    def _unpacked(cls, checkpoint: Checkpoint, device: torch.device) -> LoopState:
        arrays, meta = checkpoint.arrays, checkpoint.meta

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
            warnings=[Notice.of_record(record) for record in meta["warnings"]],
            stage=int(meta["stage"]),
            best_criterion=float(meta["best_criterion"]),
        )
