"""The FRC behind a mask is that of the class alone, without what the mask spreads, and steady from ring to ring."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ralib.images.fourier import ring_index
from ralib.images.frc import frc, masked_frc, resolution_frequency
from ralib.images.masks import soft_disc
from ralib.types import ClassAverages

BOX, RADIUS_PX = 64, 14.0


def curve(halves: Tensor) -> Tensor:
    return masked_frc(ClassAverages(halves.mean(0), torch.ones(halves.shape[1]), halves), RADIUS_PX)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, BOX, BOX, generator=torch.Generator().manual_seed(seed))


def within(images: Tensor, rings: int) -> Tensor:
    """Images with nothing from a ring on."""
    return torch.fft.irfft2(torch.fft.rfft2(images) * (ring_index(BOX, images.device) < rings), s=(BOX, BOX))


def test_masked_frc_is_that_of_the_class_alone() -> None:
    halves = noise(2, 5, seed=1) + noise(5, seed=2)
    whole = curve(halves)
    for k in (1, 3, 5):
        torch.testing.assert_close(curve(halves[:, :k]), whole[:k], rtol=0, atol=1e-6)


def test_masked_frc_strong_coarse_signal_is_not_spread_by_the_mask() -> None:
    halves = noise(2, 40, seed=1) + 300 * within(noise(40, seed=2), 5)
    spread = frc(*halves, soft_disc(BOX, RADIUS_PX, 1.0)).mean(0)
    found = curve(halves).mean(0)
    assert float(spread[8:].mean()) > 0.4, "else there is nothing to take away"
    assert float(found[8:].abs().max()) < 0.12
    assert float(found[:5].min()) > 0.99


def test_masked_frc_one_ring_of_noise_does_not_decide_on_the_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    halves = noise(2, 200, seed=4) + 0.9 * within(noise(200, seed=3), 20) + 20 * within(noise(200, seed=5), 6)
    early = [curve(halves)]
    monkeypatch.setattr("ralib.images.frc.smoothed", lambda rings: rings)
    early = [float((resolution_frequency(c) * BOX < 18).double().mean()) for c in (*early, curve(halves))]
    assert early[1] > 0.1
    assert early[0] < 0.5 * early[1]


def test_masked_frc_background_of_other_brightness_in_either_half_is_no_lack_of_resolution() -> None:
    mask = soft_disc(BOX, RADIUS_PX, 4.0)
    halves = 0.2 * noise(2, 20, seed=6) + within(noise(20, seed=7), 16) * mask
    halves += torch.tensor([0.1, -0.1])[:, None, None, None] - halves.mean((-2, -1), keepdim=True)
    bare = frc(*halves, mask)
    assert float(bare[:, 0].max()) < 0, "else nothing is wrong with it"
    assert float(bare[:, 4:14].min()) > 0.5
    assert float(resolution_frequency(curve(halves)).min()) * BOX > 14
