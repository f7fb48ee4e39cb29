"""PCA, MPCA, 2SDR and steerable PCA against scikit-learn, against their definitions, and against known ranks."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.decomposition
import torch
from sklearn.base import clone
from sklearn.utils.estimator_checks import estimator_checks_generator

from ralib.analysis import MPCA, PCA, ProbabilisticPCA, SteerablePCA, TwoSDR
from ralib.analysis import rows as rows_module
from ralib.analysis.clusters import embed, gamma_sup
from ralib.kernels import rotate_shift_images
from ralib.types import ArraySource, ParticleSet, RalibError

BOX = 16


def low_rank_images(n: int = 600, *, rank: int = 5, noise: float = 0.3, seed: int = 0) -> np.ndarray:
    """Images (n, BOX, BOX) on a mean, of `rank` smooth components with falling variance, in white noise."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, BOX)
    smooth = np.stack([np.cos(k * np.pi * axis / 2 + k) for k in range(4)])
    shapes = rng.standard_normal((rank, 4, 4))
    components = np.einsum("rab,ai,bj->rij", shapes, smooth, smooth)
    scores = rng.standard_normal((n, rank)) * np.linspace(4, 2, rank)
    images = 3.0 + np.einsum("nr,rij->nij", scores, components) + noise * rng.standard_normal((n, BOX, BOX))
    return images.astype(np.float32)


def subspace_gap(a: np.ndarray, b: np.ndarray) -> float:
    """Sine of the largest angle between two row spaces with orthonormal rows."""
    smallest = np.linalg.svd(a @ b.T, compute_uv=False)[-1]
    return float(np.sqrt(max(0.0, 1.0 - smallest**2)))


@pytest.mark.parametrize("solver", ["exact", "randomized"])
def test_pca_equals_scikit_learn(solver: str) -> None:
    images = low_rank_images()
    ours = PCA(5, solver=solver, random_state=0).fit(images)
    theirs = sklearn.decomposition.PCA(5, svd_solver="full").fit(images.reshape(len(images), -1).astype(float))
    assert subspace_gap(ours.components_, theirs.components_) < 1e-3
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(ours.explained_variance_ratio_, theirs.explained_variance_ratio_, rtol=1e-4)
    np.testing.assert_allclose(ours.singular_values_, theirs.singular_values_, rtol=1e-4)
    np.testing.assert_allclose(ours.noise_variance_, theirs.noise_variance_, rtol=1e-3)
    scores = ours.transform(images)
    expected = theirs.transform(images.reshape(len(images), -1))
    signs = np.sign((scores * expected).sum(axis=0))
    np.testing.assert_allclose(scores * signs, expected, atol=2e-2)
    shuffled = theirs.components_[:, np.random.default_rng(1).permutation(BOX * BOX)]
    assert subspace_gap(ours.components_, shuffled) > 0.5, "the comparison must be able to fail"


def test_pca_randomized_solver_is_accurate_on_a_flat_spectrum() -> None:
    """Noisy images have hardly any gap behind the signal: the captured variance must still be the best possible."""
    images = low_rank_images(800, noise=3.0)
    ours = PCA(20, solver="randomized", random_state=3).fit(images)
    theirs = sklearn.decomposition.PCA(20, svd_solver="full").fit(images.reshape(len(images), -1))
    np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=0.01)


def test_pca_sources_chunks_and_seeds_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = low_rank_images(200)
    whole = PCA(4, solver="randomized", random_state=7).fit_transform(images)
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", 37 * BOX * BOX * 4)
    monkeypatch.setattr(rows_module, "CPU_CACHE_BYTES", 0)
    particles = ParticleSet(images=ArraySource(images))
    chunked = PCA(4, solver="randomized", random_state=7).fit_transform(particles)
    np.testing.assert_allclose(chunked, whole, atol=2e-3 * np.abs(whole).max())
    again = PCA(4, solver="randomized", random_state=7).fit_transform(particles)
    np.testing.assert_array_equal(again, chunked)
    read_only = images.copy()
    read_only.setflags(write=False)
    np.testing.assert_array_equal(PCA(4, solver="randomized", random_state=7).fit_transform(read_only), chunked)
    from_tensor = PCA(4, solver="randomized", random_state=7).fit_transform(torch.from_numpy(images))
    np.testing.assert_array_equal(from_tensor, chunked)


def test_mpca_captures_what_separable_images_hold() -> None:
    """Images A Z B^T: the axes found span those of A and B, and the captured variance is everything but noise."""
    rng = np.random.default_rng(0)
    a, b = np.linalg.qr(rng.standard_normal((12, 3)))[0], np.linalg.qr(rng.standard_normal((20, 2)))[0]
    cores = rng.standard_normal((500, 3, 2))
    images = a @ cores @ b.T + 0.01 * rng.standard_normal((500, 12, 20))
    model = MPCA((3, 2)).fit(images)
    assert subspace_gap(model.row_axes_.T, a.T) < 0.01
    assert subspace_gap(model.column_axes_.T, b.T) < 0.01
    assert model.explained_variance_ratio_ > 0.99
    assert model.transform(images).shape == (500, 6)
    back = model.inverse_transform(model.transform(images)).reshape(images.shape)
    assert np.abs(back - images).max() < 0.1
    assert MPCA((2, 2)).fit(images).explained_variance_ratio_ < 0.9


def test_mpca_iterations_never_lose_variance() -> None:
    images = low_rank_images(150, noise=2.0).astype(np.float64)
    captured = [MPCA((3, 3), max_iter=i, tol=-1.0).fit(images).explained_variance_ratio_ for i in (1, 2, 5)]
    assert np.diff(captured).min() > -1e-12
    assert captured[2] > captured[0]


def test_twosdr_equals_pca_when_the_first_stage_keeps_everything() -> None:
    images = low_rank_images()
    two = TwoSDR(5, core_shape=(BOX, BOX)).fit(images)
    one = PCA(5, solver="exact").fit(images)
    assert subspace_gap(two.components_, one.components_) < 1e-3
    np.testing.assert_allclose(two.explained_variance_, one.explained_variance_, rtol=1e-4)
    np.testing.assert_allclose(two.explained_variance_ratio_, one.explained_variance_ratio_, rtol=1e-3)


def test_twosdr_finds_rank_and_denoises() -> None:
    images = low_rank_images(noise=1.0)
    clean = low_rank_images(noise=0.0)
    model = TwoSDR().fit(images)
    assert model.n_components_ == 5
    scores = model.transform(images)
    correlation = np.corrcoef(scores.T)
    assert np.abs(correlation - np.eye(5)).max() < 1e-3, "2SDR's scores are uncorrelated"
    denoised = model.inverse_transform(scores).reshape(images.shape)
    assert np.square(denoised - clean).mean() < 0.1 * np.square(images - clean).mean()


def test_pca_without_count_finds_the_rank() -> None:
    assert PCA(solver="exact").fit(low_rank_images(2000, noise=1.0)).n_components_ == 5
    assert PCA(solver="exact").fit(low_rank_images(2000, noise=1.0, rank=3)).n_components_ == 3


def disc_images(n: int = 60, seed: int = 0) -> torch.Tensor:
    """Smooth random images (n, 33, 33) that vanish near the edge."""
    rng = np.random.default_rng(seed)
    axis = torch.arange(33) - 16.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    images = torch.zeros(n, 33, 33)
    for i in range(n):
        for _ in range(5):
            cx, cy = rng.uniform(-6, 6, 2)
            images[i] += float(rng.standard_normal()) * torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 12)
    return images


def test_steerable_pca_rotated_images_rotate_scores_and_keep_invariants() -> None:
    images = disc_images()
    psi = torch.linspace(-170, 170, len(images))
    mirror = torch.arange(len(images)) % 2 == 1
    still = torch.zeros(len(images), 2)
    turned = rotate_shift_images(images, psi, still, torch.zeros_like(mirror))
    mirrored = rotate_shift_images(images, psi, still, mirror)
    model = SteerablePCA(20).fit(images)
    scores = model.transform(images)
    scale = np.abs(scores).max()
    assert np.abs(model.transform(turned) - model.rotate(scores, psi.numpy())).max() < 0.03 * scale
    assert np.abs(model.transform(turned) - model.rotate(scores, -psi.numpy())).max() > 0.3 * scale
    assert np.abs(model.invariants(mirrored) - np.abs(scores)).max() < 0.03 * scale
    back = model.inverse_transform(scores).reshape(images.shape)
    assert np.square(back - images.numpy()).sum() < 0.02 * float(images.square().sum())


def test_steerable_pca_rotated_data_give_the_same_components() -> None:
    images = disc_images(40)
    psi = torch.linspace(0, 350, 40)
    turned = rotate_shift_images(images, psi, torch.zeros(40, 2), torch.zeros(40, dtype=torch.bool))
    first, second = SteerablePCA(10).fit(images), SteerablePCA(10).fit(turned)
    np.testing.assert_allclose(first.explained_variance_, second.explained_variance_, rtol=0.03)


@pytest.mark.parametrize(
    ("estimator", "images", "what"),
    [
        (PCA(99), low_rank_images(20), "n_components=99 of 20 images"),
        (PCA(2, solver="lapack"), low_rank_images(20), "solver 'lapack'"),
        (MPCA((17, 2)), low_rank_images(20), "core_shape"),
        (TwoSDR(9, core_shape=(2, 2)), low_rank_images(20), "larger core_shape"),
        (MPCA((2, 2), image_shape=(5, 5)), low_rank_images(20).reshape(20, -1), "fitting image_shape"),
        (PCA(2, solver="randomized"), np.full((9, 40, 40), np.nan, np.float32), "NaN"),
        (SteerablePCA(2), np.zeros((9, 4, 6), np.float32), "square"),
        (PCA(1), low_rank_images(1), "at least 2"),
    ],
)
def test_estimators_mistakes_are_refused_in_one_line(estimator, images: np.ndarray, what: str) -> None:
    with pytest.raises(RalibError, match=what):
        estimator.fit(images)


ESTIMATORS = (PCA(2), MPCA((2, 2)), TwoSDR(2, core_shape=(3, 3)), SteerablePCA(2))

FORMS = {
    "negative strides": lambda images: images[::-1].copy()[::-1],
    "foreign byte order": lambda images: images.astype(">f4"),
    "tensor with gradient": lambda images: torch.from_numpy(images).requires_grad_(),
    "rows with gradient": lambda images: torch.from_numpy(images).flatten(1).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)
def test_estimators_learn_the_same_of_images_in_any_form(estimator, form: str) -> None:
    images = low_rank_images(40)
    given = FORMS[form](images)
    expected = clone(estimator).fit(images).transform(images)
    np.testing.assert_allclose(clone(estimator).fit(given).transform(given), expected, atol=1e-4)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, ProbabilisticPCA(2)], ids=lambda e: type(e).__name__)
def test_estimators_what_are_no_real_images_is_refused_in_one_line(estimator) -> None:
    images = low_rank_images(60)
    for complex_images in (images + 0j, torch.from_numpy(images) + 0j):
        with pytest.raises(RalibError, match="real numbers, not complex"):
            clone(estimator).fit(complex_images)
    with pytest.raises(RalibError, match="`device` 'gpu' is not a device"):
        clone(estimator).set_params(device="gpu").fit(images)
    fitted = clone(estimator).fit(images)
    for nothing in (images[:0], ParticleSet(ArraySource(images[:0]))):
        with pytest.raises(RalibError, match="give at least one"):
            fitted.transform(nothing)


def test_estimators_bfloat16_is_read_as_float32() -> None:
    coarse = torch.from_numpy(low_rank_images(60)).bfloat16()
    for estimator in (PCA(2), ProbabilisticPCA(2, random_state=0)):
        np.testing.assert_array_equal(estimator.fit_transform(coarse), estimator.fit_transform(coarse.float()))
    np.testing.assert_allclose(PCA(2).fit_transform(coarse.flatten(1)), PCA(2).fit_transform(coarse), atol=1e-4)


def test_estimators_images_of_another_size_are_refused() -> None:
    model = PCA(2).fit(low_rank_images(20))
    with pytest.raises(RalibError, match="learnt from"):
        model.transform(np.zeros((3, 8, 8), np.float32))


def _checks():
    for estimator in (PCA(), MPCA(), TwoSDR()):
        for made, check in estimator_checks_generator(estimator):
            yield pytest.param(made, check, id=f"{type(estimator).__name__}-{check.func.__name__}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("estimator", "check"), list(_checks()))
def test_estimators_are_accepted_by_scikit_learn(estimator, check) -> None:
    check(estimator)


def test_embed_identical_particles_gives_one_point() -> None:
    place = embed(np.full((40, 5), 3.0), "tsne")
    assert place.shape == (40, 2)
    assert (place == 0).all()


def test_embed_unknown_method_is_refused_with_few_features_too() -> None:
    with pytest.raises(RalibError, match="no embedding 'sne'"):
        embed(np.zeros((5, 1)), "sne")
    np.testing.assert_array_equal(embed(np.ones((5, 1)), "tsne"), [[1, 0]] * 5)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_gamma_sup_scale_must_be_above_zero(scale: float) -> None:
    with pytest.raises(RalibError, match="must be above 0"):
        gamma_sup(np.zeros((5, 2)), scale=scale)
