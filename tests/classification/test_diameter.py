"""Which measurement of the diameter counts."""

from __future__ import annotations

import pytest

from ralib.classification.diameter import FAINT, MEASUREMENTS, _trusted
from ralib.classification.particle_extent import ParticleExtent

NEAR, FAR = 1.0, FAINT + 0.1


@pytest.mark.parametrize(
    ("rims", "counts"),
    [([NEAR], 0), ([FAR, NEAR], 1), ([FAR, FAR, FAR, FAR, NEAR], 4), ([FAR] * MEASUREMENTS, 2)],
    ids=["the first", "the second", "the last", "the middle one where all rims are far"],
)
def test_trusted_measurement(rims: list[float], counts: int) -> None:
    radii = [10.0 + seed for seed in range(len(rims))]
    made = [ParticleExtent(radius, radius * rim, crowded=False) for radius, rim in zip(radii, rims, strict=True)]
    assert _trusted(made.__getitem__) is made[counts]
