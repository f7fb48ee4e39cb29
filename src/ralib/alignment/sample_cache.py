"""The device memory of a run: what is kept between iterations, and less of everything where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ralib.alignment.search import PoseSearch
from ralib.particles.batches import Batch, ParticleBatches
from ralib.runtime.memory import free_memory, within_memory

T = TypeVar("T")
SAMPLES_SHARE = 0.4
"""Of the free memory: what polar samples may take between iterations."""
LEAST_BATCH = 16


class DeviceRoom:
    """Keeps the polar samples of whole batches while there is room; plans with less where there is none.

    told   warnings of what was shrunk, until someone takes them
    """

    def __init__(self, batches: ParticleBatches) -> None:
        self.batches, self.device = batches, batches.device
        self.told: list[dict[str, str]] = []
        self._kept: dict[int, Tensor] = {}
        self._share = SAMPLES_SHARE
        self._search: PoseSearch | None = None

    def samples(self, search: PoseSearch, batch: Batch) -> Tensor:
        """The batch as the search wants it."""
        if self._search is not search:
            self._kept, self._search = {}, search
        if batch.number in self._kept:
            return self._kept[batch.number]
        samples = search.prepare(batch.images)
        # Some particles only are not asked for again; and half of the memory means that there is none to spare.
        if batch.number < 0 or self.batches.resident not in ("samples", "single"):
            return samples
        room = self._share * (free_memory(self.device) - self.batches.coming_bytes)
        if samples.numel() * samples.element_size() * (len(self.batches) - len(self._kept)) < room:
            self._kept[batch.number] = samples
        return samples

    def fitting(self, search: PoseSearch | None, work: Callable[[], T]) -> T:
        """work(), again with less memory planned for where there was not enough; no rank may wait for it in there."""
        return within_memory(work, lambda: self._make(search))

    def _make(self, search: PoseSearch | None) -> bool:
        """Plan with less memory, in ever smaller batches; from the second time on nothing stays on the device."""
        first = self._share > 0
        smaller = min(self.batches.batch_size, len(self.batches.rows)) // 2
        if smaller < LEAST_BATCH or (search is not None and not search.shrink()):
            return False
        self._kept, self._share = {}, 0.0
        self.batches.recut(smaller, keep=first)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        kept = "" if self.batches.resident != "none" else ", and particles are read anew in every iteration"
        self.told.append(
            {
                "what": f"memory ran out: the pass begins anew with batches of {smaller} particles{kept}",
                "where": str(self.device),
                "do": "free the memory that other programs take, or give a smaller --batch and --memory",
            }
        )
        return True
