"""Few particles for many classes, images that cannot be used, and poses that cannot be meant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ralib.classification.classifier import Classifier
from ralib.classification.loading import held_out
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.state import State
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet, RalibError

SHORT = ScheduleSettings(exchanges=1, final=3)


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(SimulationOptions(n_particles=180, box=32, snr=0.2, seed=3, n_views=4))


@pytest.fixture(scope="module")
def images(simulator: Simulator) -> np.ndarray:
    return torch.cat(list(simulator.blocks())).numpy()


def test_state_of_classes_moves_no_particle() -> None:
    state = State.blank(5, torch.tensor(1.0))
    fit = torch.arange(15.0).reshape(5, 3).flip(1)
    state = state.part(slice(0, 5))
    state = State(**{**vars(state), "fit": fit, "class_index": torch.tensor([2, 0, 2, 0, 2])})
    state = State(**{**vars(state), "members": torch.tensor([2.0, 0.0, 3.0])})
    left = state.of_classes(torch.tensor([0, 2]))
    assert left.class_index.tolist() == [1, 0, 1, 0, 1], "though all fit class 0 best"
    assert left.members.tolist() == [2.0, 3.0]
    assert torch.equal(left.fit, fit[:, [0, 2]])


@pytest.mark.parametrize(("n", "k"), [(60, 28), (24, 12)])
def test_classifier_hardly_more_particles_than_classes_leaves_no_class_empty(
    images: np.ndarray, n: int, k: int
) -> None:
    found = Classifier(n_classes=k, seed=1, plan=SHORT).fit(images[:n])
    members = torch.bincount(found.poses_.class_index[found.poses_.class_index >= 0])
    assert int(members.min()) > 0
    assert len(members) == len(found.class_averages_.images) == len(found.classes_)
    told = [w.what for w in found.warnings_ if "in place of" in w.what]
    assert len(told) == (len(members) < k)
    assert all(what.startswith(f"{len(members)} classes in place of {k}") for what in told)


def test_classifier_classes_of_equal_size_are_so_without_unusable_images(images: np.ndarray) -> None:
    broken = images.copy()
    broken[5:20] = np.nan
    found = Classifier(n_classes=3, seed=1, plan=SHORT, equal_sizes=True).fit(broken)
    members = torch.bincount(found.poses_.class_index[found.poses_.class_index >= 0])
    assert members.tolist() == [55, 55, 55]
    assert found.class_averages_.members is not None
    assert found.class_averages_.members.tolist() == [55, 55, 55]


def test_classifier_given_pose_that_is_no_number_leaves_out_that_particle_alone(
    images: np.ndarray, simulator: Simulator
) -> None:
    truth = simulator.truth
    psi = truth.poses.psi_deg.clone()
    psi[7] = torch.nan
    particles = ParticleSet(ArraySource(images), simulator.pixel_size_A, truth.ctf, poses=truth.poses)
    found = Classifier(n_classes=3, seed=1, plan=SHORT, skip_align=True).fit(
        particles.replace(poses=truth.poses.replace(psi_deg=psi))
    )
    assert torch.nonzero(found.poses_.class_index < 0).tolist() == [[7]]
    assert int(torch.bincount(found.poses_.class_index[found.poses_.class_index >= 0]).max()) < 150
    assert any("angle or origin is no number" in w.what for w in found.warnings_)


def test_classifier_small_set_with_an_unusable_image_is_still_tested_against_noise(images: np.ndarray) -> None:
    broken = images.copy()
    broken[::6] = np.nan
    summary = Classifier(n_classes=2, seed=1, plan=SHORT).fit(broken).result_.stability
    assert 10 <= summary["held_out_particles"] < 20
    assert np.isfinite(summary["fit_better_than_noise"])


def test_held_out_repeated_images_are_held_out_together() -> None:
    particles = ParticleSet(ArraySource(np.zeros((400, 8, 8), np.float32)), same_as=np.arange(400) // 2 * 2)
    held = held_out(particles, torch.Generator().manual_seed(0))
    assert torch.equal(held[::2], held[1::2])
    assert 10 <= int(held.sum()) <= 40


def test_classifier_fit_that_fails_leaves_what_was_fitted(images: np.ndarray) -> None:
    fitted = Classifier(n_classes=3, seed=1, plan=SHORT).fit(images)
    before = fitted.predict(images)
    with pytest.raises(RalibError, match="can be used"):
        fitted.set_params(n_classes=12).fit(0 * images)
    assert fitted.n_classes_ == 3
    assert np.array_equal(fitted.predict(images), before)
    with pytest.raises(RalibError, match="no particles"):
        fitted.predict(images[:0])


@pytest.mark.parametrize("sign", [1, -1])
def test_classifier_dark_protein_is_told(images: np.ndarray, sign: int) -> None:
    found = Classifier(n_classes=3, seed=1, plan=SHORT).fit(sign * images)
    told = [w for w in found.warnings_ if w.what.startswith("protein is dark in these images")]
    assert len(told) == (sign < 0)


def test_classifier_greys_too_small_for_single_precision_are_refused(images: np.ndarray) -> None:
    with pytest.raises(RalibError, match="0 of 180 images can be used"):
        Classifier(n_classes=3, seed=1, plan=SHORT).fit(images * np.float32(1e-30))
    assert Classifier(n_classes=3, seed=1, plan=SHORT).fit(images * np.float32(1e-12)).result_.bad_particles == []
