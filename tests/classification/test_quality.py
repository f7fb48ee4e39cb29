"""Noise is not believed, junk is told apart, and stability means the same company in the same pose."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ralib.classification.classifier import Classifier
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.validation import compare_runs
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import Poses

QUICK = ScheduleSettings(exchanges=0, final=2)


@pytest.mark.slow
@pytest.mark.parametrize("n", [120, 200, 600])  # of 120 none are kept out of the averages
def test_pure_noise_yields_no_convincing_classes(n: int) -> None:
    noise = np.random.default_rng(0).standard_normal((n, 32, 32)).astype(np.float32)
    result = Classifier(n_classes=4, seed=1, plan=QUICK).fit(noise).result_
    assert not result.stability["believable"]
    (warning,) = (w.what for w in result.warnings if "pure noise" in w.what)
    assert "nan" not in warning
    assert ("kept out of the averages" in warning) == (n > 120)
    assert all(row["score"] == 0.0 and "unstable" in row["verdict"] for row in result.classes)


def test_weak_particles_are_not_taken_for_noise() -> None:
    weak = Simulator(SimulationOptions(n_particles=500, box=40, snr=0.02, seed=2, n_views=4, ctf=False))
    result = Classifier(n_classes=4, seed=1, plan=QUICK).fit(torch.cat(list(weak.blocks()))).result_
    assert result.stability["believable"]


def random_poses(n: int, seed: int, classes: int = 5) -> Poses:
    g = torch.Generator().manual_seed(seed)
    return Poses(
        torch.rand(n, generator=g) * 360 - 180,
        torch.randn(n, 2, generator=g),
        torch.rand(n, generator=g) > 0.5,
        torch.randint(0, classes, (n,), generator=g),
        torch.zeros(n),
    )


def test_stable_is_the_same_company_in_the_same_relative_pose() -> None:
    from ralib.conventions import compose

    first = random_poses(500, 0)
    # Another run that found the same, with every class turned, moved, mirrored and numbered otherwise.
    turn = torch.tensor([10.0, 50.0, -80.0, 120.0, 170.0])[first.class_index]
    move = torch.tensor([[1.0, 0.5], [0, 0], [-1, 2], [0.3, 0.1], [2, -2]])[first.class_index]
    flip = torch.tensor([True, False, True, False, False])[first.class_index]
    psi, origin, mirror = compose((first.psi_deg, first.origin_xy_px, first.mirror), (turn, move, flip))
    same = Poses(psi, origin, mirror, (first.class_index + 2) % 5, first.score)
    assert float(compare_runs(first, [same], 20.0, 2.0).min()) == 1.0
    other = compare_runs(first, [random_poses(500, 1), random_poses(500, 2)], 20.0, 2.0)
    assert float(other.mean()) < 0.1


def test_what_fits_anywhere_is_found_away_from_the_centre() -> None:
    """A sixth of the images is noise, and what is known of other particles must not draw it to the centre."""
    simulator = Simulator(SimulationOptions(n_particles=300, box=48, snr=0.1, seed=3, n_views=3, ctf=False))
    images = torch.cat(list(simulator.blocks()))
    images[::6] = torch.randn(50, 48, 48, generator=torch.Generator().manual_seed(0))
    result = Classifier(n_classes=3, seed=1, plan=QUICK).fit(images).result_
    noise = np.arange(300) % 6 == 0
    away = result.particle_scores["off_centre"]
    assert np.median(away[noise]) > 1.5 * np.median(away[~noise])
