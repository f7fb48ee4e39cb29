"""The search that a GPU makes, in half precision and in chunks of one size, on a CPU with the kernels' plain forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ralib.classification import em, pose_search
from ralib.classification.classifier import Classifier
from ralib.classification.e_step import score_classes
from ralib.classification.half_precision_search import OWN_AT_ONCE, _groups_of_own, places_in_own_class
from ralib.classification.likelihood import ClassPoses, Spectra
from ralib.classification.memory_plan import particles_at_once
from ralib.classification.model import Model
from ralib.classification.pose_refinement import without_last
from ralib.classification.ring_grid import RingGrid
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.state import IterationSettings, State
from ralib.classification.templates import disc_of_shifts
from ralib.classification.thinning import keep_most_useful
from ralib.runtime.chunks import row_chunks
from ralib.simulation.simulator import SimulationOptions, Simulator

N, K = 150, 4
Given = tuple[RingGrid, Spectra, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def given() -> Given:
    """Particles of noise, their origins, references, and shifts."""
    random = torch.Generator().manual_seed(0)
    grid = RingGrid.create(24, radius_px=11, partner_radius_px=9, n_rings=6, device="cpu")
    images, views = torch.randn(N, 24, 24, generator=random), torch.randn(K, 24, 24, generator=random)
    power = (grid.weight * grid.n_half).expand(N, -1).contiguous()
    spectra = Spectra(grid.transform(images) * grid.weight[:, None], power)
    references = grid.orders_of(grid.transform(views), grid.orders(6, 9.0))
    return grid, spectra, torch.randn(N, 2, generator=random), references, disc_of_shifts(3.0, 1.5, "cpu")


@pytest.mark.parametrize("liked", [False, True])
def test_score_classes_half_precision_finds_the_poses_of_single(given: Given, liked: bool) -> None:
    shifts = given[-1]
    favour = -torch.linspace(0, 20, len(shifts)) if liked else None
    single = score_classes(*given, favour=favour, dtype=torch.float32)
    half = score_classes(*given, favour=favour, dtype=torch.float16, at_once=64)
    same = (single.psi_deg == half.psi_deg) & (single.mirror == half.mirror)
    same &= (single.origin_xy_px - half.origin_xy_px).norm(dim=2) < 1e-3
    assert same.float().mean() > 0.99
    assert float((single.cross - half.cross).abs().max()) < 1e-3 * float(single.cross.max())


def test_score_classes_half_precision_neither_chunk_nor_memory_changes_a_bit(given: Given) -> None:
    grid, spectra, origin, *rest = given
    whole = score_classes(*given, dtype=torch.float16, at_once=64)
    little = score_classes(*given, dtype=torch.float16, at_once=64, memory_bytes=2e5)
    rows = torch.arange(77, N)  # as another rank holds them: at other places of their chunks
    part = score_classes(grid, spectra[rows], origin[rows], *rest, dtype=torch.float16, at_once=64)
    for all_of_them, parted, own in zip(whole.fields(), little.fields(), part.fields(), strict=True):
        assert torch.equal(all_of_them, parted)
        assert torch.equal(all_of_them[rows], own)


def test_places_in_own_class_are_those_of_the_search_in_all_classes(given: Given) -> None:
    grid, spectra, _, references, shifts = given
    index = torch.arange(N) % 3  # class 3 has no member
    place = places_in_own_class(grid, spectra, index, references, shifts, mirror=True, memory_bytes=1e9, at_once=64)
    everywhere = score_classes(grid, spectra, torch.zeros(N, 2), references, shifts, dtype=torch.float16)
    torch.testing.assert_close(place, everywhere.pick(index).origin_xy_px)
    assert not torch.allclose(place, everywhere.pick(index.roll(1)).origin_xy_px)


def test_groups_of_own_hold_every_particle_with_its_class() -> None:
    index = torch.tensor([2] * (OWN_AT_ONCE + 1) + [0] * 5)
    row, of = _groups_of_own(index, 4)
    assert of.tolist() == [0, 2, 2]
    assert torch.equal(index[row], of[:, None].expand_as(row))
    assert row.unique().tolist() == list(range(len(index)))


@pytest.mark.parametrize("n", [1, 128, 129, 4096, 4097, 20_000, 100_000, 1_000_000])
def test_particles_at_once_are_few_more_than_needed(n: int) -> None:
    size = particles_at_once(n)
    assert size <= 4096
    assert size % 128 == 0
    assert len(row_chunks(n, size, torch.device("cpu"))) * size < n + 128 * -(-n // 4096) + 1


def test_single_precision_tells_which_class_is_the_last_refined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross terms are wrong by 3e-3, so that the third class and the fourth change places."""
    seen: list[tuple[Model, Tensor, State, IterationSettings]] = []

    def kept(*given: Any) -> em.Expectation:
        seen.append(given)  # type: ignore[arg-type]
        return e_step(*given)

    e_step = em.e_step
    monkeypatch.setattr(em, "e_step", kept)
    simulator = Simulator(SimulationOptions(n_particles=200, box=32, snr=0.1, seed=2, n_views=0))
    Classifier(n_classes=8, seed=1, plan=ScheduleSettings(exchanges=0, final=1)).fit(
        torch.cat(list(simulator.blocks()))
    )
    given = seen[-1]
    assert given[-1].newton
    right = e_step(*given).class_index.sort(dim=0).values
    search = pose_search.search_poses

    def rounded(*args: Any, **named: Any) -> ClassPoses:
        found = search(*args, **named)
        error = 1 + 3e-3 * torch.randn(found.cross.shape, generator=torch.Generator().manual_seed(3))
        return replace(found, cross=found.cross * error)

    monkeypatch.setattr(pose_search, "search_poses", rounded)
    same = []
    for known in (False, True):
        monkeypatch.setattr(em, "ranks_in_half", lambda _, known=known: known)
        same.append(float((e_step(*given).class_index.sort(dim=0).values == right).all(0).float().mean()))
    assert same[0] < 0.99
    assert 1 - same[1] < 0.4 * (1 - same[0])


def test_without_last_keeps_the_better_of_two() -> None:
    index = torch.tensor([[5, 5], [4, 4], [3, 3], [2, 2]])
    number = torch.arange(8.0).view(4, 2)
    poses = ClassPoses(number, number, number, torch.stack([number, number], dim=2), number > 3)
    kept, classes = without_last(poses, index, torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    assert classes.tolist() == [[5, 5], [4, 4], [2, 3]]
    assert kept.cross.tolist() == [[0, 1], [2, 3], [6, 5]]


def test_thinning_of_a_gpu_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop is part of the kernel there; the plain form of that repeats what a CPU does."""
    random = torch.Generator().manual_seed(4)
    fit = 20 * torch.rand(300, 12, generator=random)
    kept = keep_most_useful(fit, 5)
    monkeypatch.setattr("ralib.classification.thinning.on_gpu", lambda _: True)
    assert torch.equal(keep_most_useful(fit, 5), kept)
    assert len(kept) == 5
