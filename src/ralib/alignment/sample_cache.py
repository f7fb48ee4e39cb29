"""The polar samples kept on the device between iterations, and smaller batches where memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ralib.alignment.search import PoseSearch
from ralib.kernels.pose_search import PolarSamples
from ralib.particles.batches import Batch, ParticleBatches
from ralib.runtime.memory import free_memory, within_memory
from ralib.types import Notice

T = TypeVar("T")
SAMPLES_SHARE = 0.4
"""Of the free memory: what polar samples may take between iterations."""
LEAST_BATCH = 16


class SampleCache:
    """Keeps the polar samples of whole batches while they fit the device; plans with less memory where it ran out.

    Parameters
    ----------
    batches : ParticleBatches
        This rank's particles.

    Attributes
    ----------
    notices : list of Notice
        Warnings about what was reduced, until they are reported.
    """

    def __init__(self, batches: ParticleBatches) -> None:
        self.batches, self.device = batches, batches.device
        self.notices: list[Notice] = []
        self._kept: dict[int, PolarSamples] = {}
        self._share = SAMPLES_SHARE
        self._search: PoseSearch | None = None

    def samples(self, search: PoseSearch, batch: Batch) -> PolarSamples:
        """Return the samples of a batch, from the cache where it holds them.

        Parameters
        ----------
        search : PoseSearch
            The pose search that the samples are for.
        batch : Batch
            The particles.

        Returns
        -------
        PolarSamples
            Samples as `search.prepare` makes them.
        """
        if self._search is not search:
            self._kept, self._search = {}, search
        if batch.number in self._kept:
            return self._kept[batch.number]
        samples = search.prepare(batch.images)
        # Selections are not needed again; and images in half precision mean that there is no memory to spare.
        if batch.number < 0 or self.batches.resident not in ("samples", "single"):
            return samples
        free_bytes = self._share * (free_memory(self.device) - self.batches.coming_bytes)
        if samples.nbytes * (len(self.batches) - len(self._kept)) < free_bytes:
            self._kept[batch.number] = samples
        return samples

    def fitting(self, search: PoseSearch | None, work: Callable[[], T]) -> T:
        """Run a pass, and repeat it with smaller batches while memory runs out.

        The pass must not wait for another rank.

        Parameters
        ----------
        search : PoseSearch or None
            The pose search, which may plan with less memory too.
        work : callable
            The pass.

        Returns
        -------
        T
            Its result.
        """
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
        self.notices.append(
            Notice(
                what=f"memory ran out: the pass begins anew with batches of {smaller} particles{kept}",
                where=str(self.device),
                remedy="free the memory that other programs take, or give a smaller `batch_size` and `resident_bytes`",
            )
        )
        return True
