"""Filtered class averages keep every ring on which the halves agree."""

from __future__ import annotations

import torch

from ralib.classification.results import filtered
from ralib.images.fourier import ring_index
from ralib.types import ClassAverages

BOX = 32


def ring_amplitudes(images: torch.Tensor) -> torch.Tensor:
    """Root of the power of each ring (k, n // 2 + 1)."""
    power, ring = torch.fft.rfft2(images).abs().square().flatten(1), ring_index(BOX, images.device).flatten()
    return torch.zeros(len(images), BOX).index_add_(1, ring, power)[:, : BOX // 2 + 1].sqrt()


def test_filtered_one_ring_without_agreement_does_not_end_the_average() -> None:
    images = torch.randn(1, BOX, BOX, generator=torch.Generator().manual_seed(1))
    frc = torch.full((1, BOX // 2 + 1), 0.6)
    frc[0, [1, 5]], frc[0, 12:] = 0.0, -0.1
    passed = (ring_amplitudes(filtered(ClassAverages(images, torch.ones(1), frc=frc))) / ring_amplitudes(images))[0]
    assert float(passed[0]) > 0.99
    assert float(passed[5]) < float(passed[4]), "a ring on which nothing agrees shows least"
    torch.testing.assert_close(passed[7:11], torch.full((4,), (1.2 / 1.6) ** 0.5), rtol=0.1, atol=0)
    assert float(passed[13:15].max()) < 0.2
