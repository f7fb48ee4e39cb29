"""Poses: in-plane rotation, origin shift, mirror and class of each particle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Poses:
    """Poses of n particles on their class averages, p_ref = M(R(psi)(p + origin)); see `ralib.conventions`.

    Attributes
    ----------
    psi_deg : Tensor of shape (n,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (n, 2)
        Origin shift, applied before the rotation, pixels.
    mirror : Tensor of shape (n,)
        True where x -> -x after the rotation.
    class_index : Tensor of shape (n,)
        Class from 0, int64; -1 where the particle belongs to no class.
    score : Tensor of shape (n,)
        Criterion reached, as the search defines it; NaN where unknown.
    """

    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    class_index: Tensor
    score: Tensor

    @classmethod
    def identity(cls, n: int, device: torch.device | str = "cpu") -> Poses:
        """Return poses that leave every particle unchanged, in class 0.

        Parameters
        ----------
        n : int
            Number of particles.
        device : torch.device or str, default 'cpu'
            Where the tensors are.

        Returns
        -------
        Poses
            The poses.
        """
        return cls(
            psi_deg=torch.zeros(n, dtype=torch.float32, device=device),
            origin_xy_px=torch.zeros(n, 2, dtype=torch.float32, device=device),
            mirror=torch.zeros(n, dtype=torch.bool, device=device),
            class_index=torch.zeros(n, dtype=torch.int64, device=device),
            score=torch.full((n,), float("nan"), dtype=torch.float32, device=device),
        )

    @classmethod
    def from_columns(
        cls,
        psi_deg: np.ndarray,
        origin_x_px: np.ndarray,
        origin_y_px: np.ndarray,
        mirror: np.ndarray,
        class_index: np.ndarray,
        score: np.ndarray,
    ) -> Poses:
        """Poses of columns (n,); for their names and units see `ParticleSet.to_pandas`."""
        return cls(
            psi_deg=torch.tensor(psi_deg, dtype=torch.float32),
            origin_xy_px=torch.tensor(np.stack([origin_x_px, origin_y_px], axis=1), dtype=torch.float32),
            mirror=torch.tensor(mirror, dtype=torch.bool),
            class_index=torch.tensor(class_index, dtype=torch.int64),
            score=torch.tensor(score, dtype=torch.float32),
        )

    def __len__(self) -> int:
        return len(self.psi_deg)

    def fields(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return all fields."""
        return self.psi_deg, self.origin_xy_px, self.mirror, self.class_index, self.score

    def __getitem__(self, index: Tensor | slice) -> Poses:
        return Poses(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Poses:
        """Return the poses on a device."""
        return Poses(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def replace(self, **changes: Tensor) -> Poses:
        """Return the poses with some fields changed."""
        return replace(self, **changes)

    @staticmethod
    def cat(parts: Sequence[Poses]) -> Poses:
        """Concatenate poses."""
        if len(parts) == 1:
            return parts[0]
        return Poses(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Poses)})
