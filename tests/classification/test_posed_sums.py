"""Sums of posed particles: those of all terms, as a GPU adds them, are those of the terms of any weight, to the bit."""

from __future__ import annotations

import pytest
import torch

from ralib.classification import m_step
from ralib.classification.likelihood import ClassPoses, Spectra
from ralib.classification.m_step import RingSums, sum_anchors, sum_classes
from ralib.classification.ring_grid import RingGrid
from ralib.classification.sharding import Shard, quantum_anchor


@pytest.mark.parametrize("empty", [False, True])
def test_sum_classes_all_terms_or_some_same_bits(monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    """Also of particles that all have no weight, and of parts of the particles."""
    random, n, k, count, rings = torch.Generator().manual_seed(1), 23, 4, 3, 5
    grid = RingGrid.create(24, radius_px=9.0, partner_radius_px=9.0, n_rings=7, device="cpu")
    data = torch.randn(n, 7, grid.n_half, dtype=torch.complex64, generator=random)
    spectra = Spectra(data, torch.rand(n, 7, generator=random))
    zero, psi = torch.zeros(count, n), 360 * torch.rand(count, n, generator=random)
    origin, mirror = torch.randn(count, n, 2, generator=random), torch.rand(count, n, generator=random) < 0.5
    poses = ClassPoses(zero, zero, psi, origin, mirror)
    index, half = torch.randint(0, k, (count, n), generator=random), torch.randint(0, 2, (n,), generator=random)
    weight, scale = torch.rand(2, count, n, generator=random)
    weight = weight * (weight > (1.0 if empty else 0.5))
    anchors = sum_anchors(grid, spectra, weight, scale, Shard.of_all(n))

    def sums(rows: slice) -> RingSums:
        given = (table[:, rows] for table in (index, weight, scale))
        return sum_classes(
            grid, spectra[rows], poses.columns(rows), *given, half[rows],
            n_classes=k, rings=rings, n_orders=9, anchors=anchors,
        )  # fmt: skip

    some, parts = sums(slice(n)), sums(slice(9)).plus(sums(slice(9, n)))
    monkeypatch.setattr(m_step, "on_gpu", lambda _: True)
    every = sums(slice(n))
    assert some.numerator.shape == (2, k, rings, 9, 2)
    assert bool(some.numerator.any()) != empty
    for found in (parts, every):
        assert torch.equal(found.numerator, some.numerator)
        assert torch.equal(found.weight, some.weight)
    assert (some.numerator.abs() <= anchors[0, :rings, None, None]).all()


def test_quantum_anchor_is_three_halves_of_the_next_power_of_two() -> None:
    limit = torch.tensor([1.0, 1.5, 3.99, 4.0, 1e-30, 7e20])
    power = torch.exp2(torch.floor(torch.log2(limit.double())) + 1)
    assert torch.equal(quantum_anchor(limit), 3 * power)
    assert quantum_anchor(torch.tensor(5.0)) == 24.0
    assert quantum_anchor(torch.zeros(2)).tolist() == [0.0, 0.0]
