"""Aligners and the classifier as scikit-learn sees them: parameters, clones, labels, prediction."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

from ralib import Classifier, MultiReferenceAligner, ReferenceFreeAligner
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, CtfParameters, ParticleSet, RalibError

BOX, N, KNOWN = 32, 500, 300


@pytest.fixture(scope="module")
def simulated() -> Simulator:
    return Simulator(SimulationOptions(n_particles=N, box=BOX, snr=0.3, seed=3, n_views=3))


@pytest.fixture(scope="module")
def images(simulated: Simulator) -> np.ndarray:
    return torch.cat(list(simulated.blocks())).numpy()


def estimators() -> dict[str, Any]:
    mask = np.ones((BOX, BOX), np.float32)
    return {
        "mref": MultiReferenceAligner(references=3, outer_radius=12, iterations=3, seed=4, mask=mask),
        "reffree": ReferenceFreeAligner(stages=[(2.0, 2.0, None)], iterations=2, outer_radius=12),
        "classify": Classifier(n_classes=3, seed=5, plan=ScheduleSettings(exchanges=1, final=3), ctf="off"),
    }


@pytest.fixture(scope="module")
def fitted(images: np.ndarray, simulated: Simulator) -> dict[str, Any]:
    chosen = estimators()
    chosen["mref"].set_params(references=simulated.references().numpy())
    return {name: estimator.fit(images[:KNOWN]) for name, estimator in chosen.items()}


@pytest.mark.parametrize("name", ["mref", "reffree", "classify"])
def test_estimator_clone_has_its_parameters_and_no_fit(name: str, fitted: dict[str, Any]) -> None:
    copy = clone(fitted[name])
    assert copy is not fitted[name]
    before, after = fitted[name].get_params(), copy.get_params()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert np.array_equal(after[key], value) if isinstance(value, np.ndarray) else after[key] == value, key
    check_is_fitted(fitted[name])
    assert not copy.__sklearn_is_fitted__()
    with pytest.raises(RalibError, match="not fitted yet"):
        copy.predict(np.zeros((2, BOX, BOX), np.float32))


@pytest.mark.parametrize("name", ["mref", "reffree", "classify"])
def test_estimator_set_params_checks_and_changes(name: str) -> None:
    estimator = estimators()[name]
    assert estimator.set_params(seed=77) is estimator
    assert estimator.get_params()["seed"] == 77
    with pytest.raises(ValueError, match="no parameter 'sede'"):
        estimator.set_params(sede=1)
    wrong = {"mref": {"iterations": 0}, "reffree": {"iterations": -1}, "classify": {"n_classes": 0}}[name]
    with pytest.raises(RalibError):
        estimator.set_params(**wrong)
    assert estimator.get_params()["seed"] == 77


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mref", "MultiReferenceAligner(references=3, outer_radius=12, iterations=3, mask=<(32, 32) float32>, seed=4)"),
        ("reffree", "ReferenceFreeAligner(stages=[(2.0, 2.0, None)], iterations=2, outer_radius=12)"),
    ],
)
def test_estimator_repr_is_one_line(name: str, text: str) -> None:
    assert repr(estimators()[name]) == text


def test_classifier_repr_is_one_line() -> None:
    assert "\n" not in repr(estimators()["classify"])
    assert repr(Classifier(n_classes=3)) == "Classifier(n_classes=3)"


@pytest.mark.parametrize("name", ["mref", "classify"])
def test_estimator_predicts_classes_of_new_particles(
    name: str, fitted: dict[str, Any], images: np.ndarray, simulated: Simulator
) -> None:
    truth = simulated.truth.poses.class_index.numpy()
    estimator = fitted[name]
    assert estimator.labels_.shape == (KNOWN,)
    references, averages = estimator.labels_.copy(), estimator.class_averages_.images.clone()
    again, new = estimator.predict(images[:KNOWN]), estimator.predict(images[KNOWN:])
    known = adjusted_rand_score(truth[:KNOWN], estimator.labels_)
    assert adjusted_rand_score(estimator.labels_, again) > 0.9
    assert adjusted_rand_score(truth[KNOWN:], new) > known - 0.1 > 0.3
    assert np.array_equal(references, estimator.labels_)
    assert torch.equal(averages, estimator.class_averages_.images)


@pytest.mark.parametrize("name", ["mref", "reffree", "classify"])
def test_estimator_score_tells_particles_from_noise(name: str, fitted: dict[str, Any], images: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(size=(100, BOX, BOX)).astype(np.float32)
    assert fitted[name].score(images[KNOWN:]) > 1.2 * fitted[name].score(noise)


def test_reference_free_predicts_one_class_and_poses(fitted: dict[str, Any], images: np.ndarray) -> None:
    broken = images[KNOWN:].copy()
    broken[0] = np.nan
    assert fitted["reffree"].predict(broken).tolist() == [-1] + [0] * (N - KNOWN - 1)
    assert fitted["reffree"].predict_poses(broken).psi_deg.shape == (N - KNOWN,)


@pytest.mark.parametrize("name", ["mref", "reffree", "classify"])
def test_no_usable_image_is_predicted_to_be_in_no_class(name: str, fitted: dict[str, Any]) -> None:
    assert fitted[name].predict(np.zeros((5, BOX, BOX), np.float32)).tolist() == [-1] * 5


def test_aligner_refuses_new_particles_of_another_pixel_size(images: np.ndarray) -> None:
    known = estimators()["mref"].fit(ParticleSet(ArraySource(images[:60]), pixel_size_A=2.0))
    assert len(known.predict(ParticleSet(ArraySource(images[:60]), pixel_size_A=2.01))) == 60
    with pytest.raises(RalibError, match="the particles have 3 A/px, the references 2"):
        known.predict(ParticleSet(ArraySource(images[:60]), pixel_size_A=3.0))


def test_classifier_refuses_new_particles_whose_ctf_is_treated_otherwise(images: np.ndarray) -> None:
    plan = ScheduleSettings(exchanges=1, final=2)
    one = np.ones(60)
    ctf = CtfParameters(1e4 * one, 1.1e4 * one, 0 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one, 0 * one)
    whole = ParticleSet(ArraySource(images[:60]), pixel_size_A=4.0, ctf=ctf)
    known = Classifier(n_classes=3, seed=5, plan=plan).fit(whole)
    assert (known.predict(whole) >= 0).all()
    with pytest.raises(RalibError, match="these particles have none"):
        known.predict(whole.replace(ctf=None))
    known = Classifier(n_classes=3, seed=5, plan=plan).fit(whole.replace(ctf=None))
    with pytest.raises(RalibError, match="these particles have one"):
        known.predict(whole)


def test_fit_predict_in_a_pipeline_gives_labels(images: np.ndarray) -> None:
    labels = make_pipeline(estimators()["mref"]).fit_predict(images[:60])
    assert labels.shape == (60,)
    assert set(labels) == {0, 1, 2}


def test_classifier_refuses_particles_of_another_box(fitted: dict[str, Any]) -> None:
    with pytest.raises(RalibError, match="24 px, the classes 32 px"):
        fitted["classify"].predict(np.zeros((4, 24, 24), np.float32))


def test_classifier_refuses_another_pixel_size(fitted: dict[str, Any], images: np.ndarray) -> None:
    known = Classifier(n_classes=2, seed=1, plan=ScheduleSettings(exchanges=1, final=2))
    known.fit(ParticleSet(ArraySource(images[:60]), pixel_size_A=2.0))
    with pytest.raises(RalibError, match="3 A/px, the classes 2"):
        known.predict(ParticleSet(ArraySource(images[:60]), pixel_size_A=3.0))


class _OfAnotherLibrary:
    """An array of a library that is not NumPy or torch, which gives its memory by DLPack alone."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = images

    def __dlpack__(self, **options: Any) -> Any:
        return torch.from_numpy(self._images).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


def _read_only(images: np.ndarray) -> np.ndarray:
    images = images.copy()
    images.flags.writeable = False
    return images


FORMS: dict[str, Any] = {
    "float64": lambda images: images.astype(np.float64),
    "read-only": _read_only,
    "not contiguous": lambda images: np.ascontiguousarray(images.transpose(2, 1, 0)).transpose(2, 1, 0),
    "torch": lambda images: torch.from_numpy(images).double().requires_grad_(),
    "list": list,
    "DLPack": _OfAnotherLibrary,
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("name", ["mref", "reffree", "classify"])
def test_estimator_predicts_the_same_of_images_in_any_form(
    name: str, form: str, fitted: dict[str, Any], images: np.ndarray
) -> None:
    few = images[KNOWN : KNOWN + 40]
    assert np.array_equal(fitted[name].predict(FORMS[form](few)), fitted[name].predict(few))


@pytest.mark.parametrize("name", ["mref", "reffree", "classify"])
def test_fitted_estimator_survives_pickling(name: str, fitted: dict[str, Any], images: np.ndarray) -> None:
    again = pickle.loads(pickle.dumps(fitted[name]))
    assert np.array_equal(again.predict(images[KNOWN:]), fitted[name].predict(images[KNOWN:]))
    assert np.array_equal(again.labels_, fitted[name].labels_)


def test_classifier_takes_its_number_of_classes_from_the_particles_or_the_references(
    images: np.ndarray, simulated: Simulator
) -> None:
    short = ScheduleSettings(exchanges=0, final=1)
    assert repr(Classifier()) == "Classifier()"
    assert Classifier(plan=short).fit(images[:200]).n_classes_ == 2
    assert Classifier(plan=short, references=simulated.references().numpy()).fit(images[:60]).n_classes_ == 3
    with pytest.raises(RalibError, match="not 2"):
        Classifier(n_classes=2, references=simulated.references().numpy())


def test_classifier_refuses_complex_images(images: np.ndarray) -> None:
    with pytest.raises(RalibError, match="real numbers, not complex64"):
        Classifier(n_classes=2).fit(images[:20] + np.complex64(0))
