"""How particles are cut into batches."""

from __future__ import annotations

import pytest
import torch

from ralib.particles.batches import usual_batch_size


def test_usual_batch_size_follows_the_memory_of_a_small_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def size(device: str, total_gib: int) -> int:
        monkeypatch.setattr("ralib.particles.batches.total_memory", lambda _: total_gib * 2**30)
        return usual_batch_size(torch.device(device), 128, 2**28, gpu_share=1 / 128)

    assert [size("cuda", gib) for gib in (80, 32, 8)] == [4096, 4096, 1024]
    assert size("cpu", 8) == 4096
