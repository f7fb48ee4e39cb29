"""The FRC behind a mask: random phases are those of the class, whatever classes are beside it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ralib.images import frc
from ralib.types import ClassAverages

BOX = 32


def curve(halves: Tensor) -> Tensor:
    averages = ClassAverages(halves.mean(0), torch.ones(halves.shape[1]), halves)
    return frc.masked_frc(averages, 8.0)


@pytest.mark.parametrize("kept", [0, frc.KEPT])
def test_masked_frc_is_that_of_the_class_alone(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.Generator().manual_seed(1)
    halves = torch.randn(2, 5, BOX, BOX, generator=random) + torch.randn(5, BOX, BOX, generator=random)
    whole = curve(halves)
    monkeypatch.setattr(frc, "KEPT", kept)
    for k in (1, 3, 5):
        torch.testing.assert_close(curve(halves[:, :k]), whole[:k], rtol=0, atol=1e-6)
    assert not torch.allclose(curve(halves[:, 1:2]), whole[1:2], atol=1e-3), "of another class phases are others"
