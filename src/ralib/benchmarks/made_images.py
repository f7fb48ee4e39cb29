"""The particles of a measured alignment: references in random poses plus noise, made when they are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.kernels import rotate_shift_images

BLOCK = 512


@dataclass(frozen=True)
class Workload:
    """The workload of every number of ranks; lengths in pixels."""

    particles: int = 1_000_000
    box: int = 128
    references: int = 200
    shift_range_px: float = 3.0
    snr: float = 0.1
    repeats: int = 3
    seed: int = 1

    @property
    def outer_radius(self) -> int:
        """Radius of the disc compared, pixels."""
        return self.box // 2 - 12 if self.box >= 64 else self.box // 2 - 6


class MadeImages:
    """References in random poses plus noise, made in blocks when they are read.

    Each block has its own random stream, and so is the same for any number of ranks. Particle i shows reference i
    modulo k.

    Parameters
    ----------
    references : Tensor of shape (k, n, n)
        References.
    workload : Workload
        The workload.
    """

    def __init__(self, references: Tensor, workload: Workload) -> None:
        self.references, self.workload = references, workload
        self.n_images, self.box = workload.particles, workload.box

    def read(self, index: np.ndarray) -> np.ndarray:
        """Return particles (b, n, n) in the order of `index` (b,), in main memory."""
        return self.read_tensor(index).cpu().numpy()

    def read_tensor(self, index: np.ndarray) -> Tensor:
        """Return consecutive particles (b, n, n), on the references' device."""
        first, last = int(index[0]), int(index[-1])
        blocks = [self._block(number) for number in range(first // BLOCK, last // BLOCK + 1)]
        start = first // BLOCK * BLOCK
        return torch.cat(blocks)[first - start : last + 1 - start]

    def _block(self, number: int) -> Tensor:
        device = self.references.device
        generator = torch.Generator(device).manual_seed(self.workload.seed * 1_000_003 + number)

        def uniform(span: float, *shape: int) -> Tensor:
            return span * (2 * torch.rand(BLOCK, *shape, generator=generator, device=device) - 1)

        view = (number * BLOCK + torch.arange(BLOCK, device=device)) % len(self.references)
        # Turned, a shift must stay within the range along both axes.
        origin = uniform(self.workload.shift_range_px / 2**0.5, 2)
        turned = rotate_shift_images(self.references[view], uniform(180.0), origin, uniform(1.0) > 0)
        return turned + torch.randn(turned.shape, generator=generator, device=device)


def described(workload: Workload) -> dict[str, Any]:
    """Return the workload as a result file holds it."""
    return asdict(workload) | {"outer_radius": workload.outer_radius}
