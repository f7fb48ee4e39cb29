"""Components, neighbours and states with the CTF in the model, on small simulated sets whose truth is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.analysis import (
    CovarianceWienerFilter,
    ProbabilisticPCA,
    find_neighbours,
    gamma_sup,
    hdbscan,
    split_states,
    standardised_scores,
)
from ralib.analysis.background import BackgroundNormalisation
from ralib.analysis.fourier_bessel import FourierBesselBasis
from ralib.analysis.half_plane import HalfPlane
from ralib.analysis.matched import MatchedParticles
from ralib.analysis.shrinkage import noise_edge, shrink_eigenvalues
from ralib.analysis.states_of_run import split_run
from ralib.cli import main
from ralib.images.ctf import apply_ctf, ctf_2d
from ralib.io import open_images, open_particles, read_star, write_mrcs, write_particles_star, write_star
from ralib.types import ArraySource, CtfParameters, ParticleSet, Poses, RalibError

BOX, PIXEL_A = 40, 4.0


def blob(x: float, y: float, sd: float = 2.5) -> torch.Tensor:
    axis = torch.arange(BOX).float() - BOX // 2
    return torch.exp(-((axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sd**2))


def some_ctf(n: int, seed: int) -> CtfParameters:
    """Twenty defoci, 1 to 2.5 um."""
    defocus = np.random.default_rng(seed).uniform(10_000, 25_000, 20)[np.arange(n) % 20]
    one = np.ones(n)
    return CtfParameters(defocus + 200, defocus - 200, 30 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one, 0 * one)


def planted(n: int, *, moved: float, noise: float = 1.0, seed: int = 0) -> tuple[ParticleSet, np.ndarray, np.ndarray]:
    """Particles of one view in which a domain moves by `moved` px in half of them; their states and contrasts."""
    rng = np.random.default_rng(seed)
    state = rng.integers(0, 2, n)
    body = blob(-4, -2, 4.0) + blob(3, 5)
    images = torch.stack([body + blob(6.0, -6.0 + moved * s) for s in state])
    contrast = np.clip(rng.normal(1, 0.15, n), 0.5, 1.5)
    images = images * torch.from_numpy(contrast).float()[:, None, None]
    ctf = some_ctf(n, seed)
    images = apply_ctf(images, ctf_2d(ctf, BOX, PIXEL_A))
    images += noise * 0.25 * torch.from_numpy(rng.standard_normal(images.shape)).float()
    particles = ParticleSet(ArraySource(images.numpy()), pixel_size_A=PIXEL_A, ctf=ctf, poses=Poses.identity(n))
    return particles, state, contrast


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return abs(float(np.corrcoef(a, b)[0, 1]))


def test_probabilistic_pca_planted_movement_is_first_and_defocus_in_none() -> None:
    particles, state, contrast = planted(400, moved=4.0)
    model = ProbabilisticPCA(3, random_state=0)
    scores = model.fit_transform(particles)
    assert particles.ctf is not None
    assert correlation(scores[:, 0], state) > 0.9
    assert max(correlation(scores[:, k], particles.ctf.defocus_u_A) for k in range(3)) < 0.2
    assert correlation(model.contrast_, contrast) > 0.7
    assert model.n_above_noise_ == 1
    np.testing.assert_allclose(model.transform(particles), scores, atol=1e-4)
    assert model.trajectory(0, steps=5).shape == (5, BOX, BOX)


def test_probabilistic_pca_same_particles_have_no_component_above_noise() -> None:
    particles, _, _ = planted(300, moved=0.0)
    model = ProbabilisticPCA(random_state=0).fit(particles)
    assert model.n_above_noise_ == 0
    assert model.n_components_ == 1
    assert model.signal_to_noise_[0] < 1.0


def test_probabilistic_pca_turned_particles_give_the_same_component() -> None:
    """Poses are applied within the model: psi, origin and mirror, and the CTF turns along."""
    particles, state, _ = planted(300, moved=4.0, noise=0.5)
    images = torch.from_numpy(particles.images.read(np.arange(300)))
    poses = particles.poses
    assert poses is not None
    turned = particles.replace(
        images=ArraySource(torch.rot90(images, 1, (1, 2)).roll(1, 1).numpy()),
        poses=poses.replace(psi_deg=torch.full((300,), 90.0)),
    )
    scores = ProbabilisticPCA(1, random_state=0).fit_transform(turned)
    assert correlation(scores[:, 0], state) > 0.85


def test_covariance_wiener_filter_denoises_below_the_mean_and_the_flip() -> None:
    particles, truth = turned_views(600, noise=1.0)
    model = CovarianceWienerFilter().fit(particles)
    restored = model.denoise(particles) * model.normalisation_.scale
    error = ((restored - truth) ** 2).sum() / (truth**2).sum()
    only_mean = ((truth.mean(0) - truth) ** 2).sum() / (truth**2).sum()
    assert error < 0.25
    assert error < 0.5 * only_mean


def turned_views(n: int, *, noise: float, seed: int = 1) -> tuple[ParticleSet, np.ndarray]:
    """Two views, each turned at random, with CTF and noise; and the undistorted images."""
    rng = np.random.default_rng(seed)
    psi, view = rng.uniform(0, 2 * np.pi, n), rng.integers(0, 2, n)
    points = [[(6.0, 0.0), (-5.0, 3.0)], [(8.0, 2.0), (-3.0, -7.0), (0.0, 5.0)]]
    clean = torch.zeros(n, BOX, BOX)
    for i in range(n):
        c, s = np.cos(psi[i]), np.sin(psi[i])
        for x, y in points[view[i]]:
            clean[i] += blob(c * x - s * y, s * x + c * y)
    ctf = some_ctf(n, seed)
    images = apply_ctf(clean, ctf_2d(ctf, BOX, PIXEL_A))
    images += noise * 0.25 * torch.from_numpy(rng.standard_normal(images.shape)).float()
    return ParticleSet(ArraySource(images.numpy()), pixel_size_A=PIXEL_A, ctf=ctf), clean.numpy()


def test_neighbours_of_turned_views_show_the_same_view() -> None:
    particles, clean = turned_views(300, noise=1.0)
    model = CovarianceWienerFilter()
    scores = standardised_scores(model, model.fit_transform(particles))
    found = find_neighbours(scores, model.order_, 10, rounds=1)
    brightness = clean.sum((1, 2))
    view = brightness > (brightness.min() + brightness.max()) / 2
    assert (view[found.index] == view[:, None]).mean() > 0.95
    assert not (found.index == np.arange(300)[:, None]).any()


def test_neighbours_pose_brings_the_neighbour_onto_the_particle() -> None:
    """An image, the image turned by 90 degrees, and mirrored: exact operations on the grid."""
    image = blob(6, 2) + 0.7 * blob(-4, 5) + 0.5 * blob(1, -7)
    turned, mirrored = torch.rot90(image, 1, (0, 1)).roll(1, 0), image.flip(1).roll(1, 1)
    basis = FourierBesselBasis.create(BOX, radius_px=18, max_frequency_per_px=0.3)
    scores = basis.coefficients(torch.stack([image, turned, mirrored])).numpy()
    found = find_neighbours(scores, basis.order, 2, rounds=1)
    for j in range(2):
        other = scores[found.index[0, j]] * np.exp(-1j * np.deg2rad(found.psi_deg[0, j]) * basis.order)
        if found.mirror[0, j]:
            other = np.where(basis.order % 2 == 0, 1, -1) * other.conj()
        assert np.abs(other - scores[0]).max() < 0.05 * np.abs(scores[0]).max()
        assert np.abs(scores[found.index[0, j]] - scores[0]).max() > 0.2 * np.abs(scores[0]).max()


@pytest.mark.slow
def test_states_planted_movement_is_split_and_its_absence_is_not() -> None:
    particles, state, _ = planted(250, moved=4.0)
    split = split_states(particles, 2, seed=0)
    assert split.n_states == 2
    assert max((split.labels == state).mean(), (split.labels != state).mean()) > 0.9
    assert split.halves.shape == (2, 2, BOX, BOX)
    for seed in range(3):
        same, _, _ = planted(150, moved=0.0, seed=10 + seed)
        assert split_states(same, seed=seed).n_states == 1


def test_states_continuous_movement_stays_whole() -> None:
    """A domain anywhere along its way: a component, but no states."""
    n, rng = 400, np.random.default_rng(3)
    at = rng.uniform(-4, 4, n)
    ctf = some_ctf(n, 3)
    images = torch.stack([blob(-4, -2, 4.0) + blob(3, 5) + blob(6.0, -4.0 + a) for a in at.tolist()])
    images = (
        apply_ctf(images, ctf_2d(ctf, BOX, PIXEL_A))
        + 0.25 * torch.from_numpy(rng.standard_normal(images.shape)).float()
    )
    particles = ParticleSet(ArraySource(images.numpy()), pixel_size_A=PIXEL_A, ctf=ctf, poses=Poses.identity(n))
    split = split_states(particles, 2, seed=0)
    assert split.n_above_noise >= 1
    assert split.n_states == 1


def test_states_wrong_requests_are_refused() -> None:
    particles, _, _ = planted(80, moved=4.0)
    with pytest.raises(RalibError, match="give 2 to 4"):
        split_states(particles, 9)
    few, _, _ = planted(20, moved=4.0)
    with pytest.raises(RalibError, match="20 members are too few"):
        split_states(few)


def test_fourier_bessel_is_orthonormal_and_its_radial_spectra_filter_exactly() -> None:
    basis = FourierBesselBasis.create(BOX, radius_px=12, max_frequency_per_px=0.3)
    unit = torch.eye(len(basis), dtype=torch.complex64)[[0, 3, len(basis) // 2]]
    again = basis.coefficients(basis.images(unit))
    np.testing.assert_allclose(again.numpy(), unit.numpy(), atol=2e-3)
    for spectra in basis.hankel[:5]:
        gram = (spectra.T @ spectra).numpy()
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=0.08)


def test_half_plane_keeps_lengths_and_images() -> None:
    plane = HalfPlane.create(BOX, max_frequency_per_px=0.35, radius_px=14)
    vector = torch.randn(2, 2, len(plane.index), generator=torch.Generator().manual_seed(0))
    image = plane.images(vector)
    np.testing.assert_allclose(image.square().sum((1, 2)), vector.square().sum((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(plane.from_images(image), vector, atol=1e-4)


def test_shrink_eigenvalues_removes_noise_and_keeps_strong_signal() -> None:
    aspect = 0.25
    values = torch.tensor([noise_edge(aspect) * 0.99, 50.0])
    shrunk = shrink_eigenvalues(values, aspect)
    assert float(shrunk[0]) == 0.0
    assert 47.0 < float(shrunk[1]) < 49.5


def test_background_normalisation_is_measured_on_each_image_only_where_images_differ() -> None:
    noise = torch.randn(200, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = BackgroundNormalisation.measure(3 + 2 * noise)
    assert not plain.each_plane
    assert not plain.each_scale
    assert abs(plain.scale - 2) < 0.1
    level = torch.randn(200, 1, 1, generator=torch.Generator().manual_seed(1))
    counts = BackgroundNormalisation.measure((noise + 5 * level) * (1 + 0.3 * level.abs()))
    assert counts.each_plane
    assert counts.each_scale
    done = counts.apply((noise + 5 * level) * (1 + 0.3 * level.abs()))
    np.testing.assert_allclose(done.mean((1, 2)), torch.zeros(200), atol=0.25)


def test_matched_particles_premultiplied_images_are_refused() -> None:
    from ralib.types import CtfState

    particles, _, _ = planted(20, moved=0.0)
    assert particles.ctf is not None
    with pytest.raises(RalibError, match="multiplied by their CTF"):
        MatchedParticles(particles.replace(ctf=particles.ctf.with_state(CtfState.PREMULTIPLIED)))


@pytest.mark.parametrize("method", [hdbscan, gamma_sup])
def test_hdbscan_and_gamma_sup_leave_outliers_out(method: object) -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0]])
    points = np.concatenate([c + 0.5 * rng.standard_normal((60, 2)) for c in centres] + [rng.uniform(-30, 30, (20, 2))])
    labels = method(points)  # type: ignore[operator]
    sizes = np.bincount(labels[labels >= 0])
    for k in range(3):
        inside = labels[60 * k : 60 * (k + 1)]
        assert (inside == np.bincount(inside[inside >= 0]).argmax()).mean() > 0.9
    far = labels[180:]
    assert ((far < 0) | (sizes[far.clip(0)] < 10)).mean() > 0.7


@pytest.fixture(scope="module")
def on_disc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    particles, _, _ = planted(200, moved=4.0)
    write_mrcs(folder / "stack.mrcs", particles.images.read(np.arange(200)), PIXEL_A)
    stack = open_particles(folder / "stack.mrcs")
    written = particles.replace(images=stack.images, metadata=stack.metadata)
    assert particles.poses is not None
    write_particles_star(folder / "particles.star", written, particles.poses, n_classes=1)
    return folder


@pytest.mark.slow
def test_classify_split_states_writes_states(on_disc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = on_disc / "states"
    assert main(["classify", str(on_disc), str(out), "--split-states", "auto", "--device", "cpu"]) == 0
    record = json.loads((out / "states.json").read_text())
    assert record["classes"][0]["states"] == [1, 2]
    assert open_particles(out / "states.star").poses is not None
    assert "2 states" in capsys.readouterr().out
    assert main(["classify", str(on_disc), str(out), "--split-states", "auto"]) == 2, "nothing is overwritten"
    assert main(["classify", str(on_disc), str(on_disc / "no"), "--split-states", "many"]) == 2


def test_split_states_leaves_out_and_names_particles_that_cannot_be_used(
    on_disc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Constant images made averages of NaN; a CTF that cannot be meant was refused without a number."""
    given = open_particles(on_disc / "particles.star")
    images = given.images.read(np.arange(200))
    images[3], images[6] = 0.0, np.nan
    write_mrcs(tmp_path / "stack.mrcs", images, PIXEL_A)
    stack = open_particles(tmp_path / "stack.mrcs")
    assert given.ctf is not None
    defocus_A = given.ctf.defocus_u_A.copy()
    defocus_A[8] = np.nan
    ctf = dataclasses.replace(given.ctf, defocus_u_A=defocus_A)
    odd = given.replace(images=stack.images, metadata=stack.metadata, ctf=ctf)
    write_particles_star(tmp_path / "particles.star", odd)
    assert main(["classify", str(tmp_path), str(tmp_path / "out"), "--split-states=2", "--device=cpu"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 200 particles (9) is left out: the CTF" in said
    assert "2 of 200 particles (4, 7) are left out: the image" in said
    assert np.isfinite(open_images(tmp_path / "out" / "state_averages.mrcs")).all()
    write_mrcs(tmp_path / "stack.mrcs", 0 * images, PIXEL_A)
    with pytest.raises(RalibError, match="60 members"):
        split_run(tmp_path, tmp_path / "none", 2)


def test_denoise_and_neighbours_write_files(on_disc: Path) -> None:
    star = str(on_disc / "particles.star")
    assert main(["denoise", star, str(on_disc / "clean.star"), "--device", "cpu"]) == 0
    made = open_particles(on_disc / "clean.star")
    assert made.ctf is not None
    assert made.images.read(np.arange(5)).std() < open_particles(star).images.read(np.arange(5)).std()
    assert main(["denoise", star, str(on_disc / "plain.star"), "--ctf", "corrected", "--device", "cpu"]) == 0
    assert open_particles(on_disc / "plain.star").ctf is None
    assert main(["neighbours", star, str(on_disc / "near"), "--count", "5", "--averages", "3", "--device", "cpu"]) == 0
    with np.load(on_disc / "near" / "neighbours.npz") as found:
        assert found["index"].shape == (200, 5)
    assert main(["neighbours", star, str(on_disc / "near")]) == 2, "nothing is overwritten"


@pytest.mark.slow
def test_analyze_ctf_finds_the_movement(on_disc: Path) -> None:
    out = on_disc / "a"
    assert main(["analyze", str(on_disc), "--out", str(out), "--ctf", "--embedding", "pca", "--device", "cpu"]) == 0
    summary = json.loads((out / "analysis.json").read_text())
    assert summary["options"]["method"] == "ctf"
    assert summary["spectrum"][0] > summary["noise_edge"]
    assert {p.name for p in out.glob("*.png")} >= {"spectrum.png", "trajectory.png"}
    assert main(["analyze", str(on_disc), "--out", str(on_disc / "b"), "--ctf", "--method", "pca"]) == 2


def test_analysis_commands_leave_out_an_implausible_ctf_and_say_so(
    on_disc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = read_star(on_disc / "particles.star")
    defocus = tables["particles"]["rlnDefocusU"].astype(float)
    defocus[7] = np.nan
    tables["particles"]["rlnDefocusU"] = defocus
    write_star(on_disc / "odd.star", tables)
    star, out = str(on_disc / "odd.star"), str(tmp_path)
    assert main(["denoise", star, f"{out}/clean.star", "--device", "cpu"]) == 0
    made = open_particles(f"{out}/clean.star")
    assert len(made) == 199
    assert np.isfinite(made.images.read(np.arange(199))).all()
    assert main(["neighbours", star, f"{out}/near", "-k", "5", "--averages", "3", "--device", "cpu"]) == 0
    with np.load(f"{out}/near/neighbours.npz") as found:
        assert (found["index"][7] == -1).all()
        others = np.delete(found["index"], 7, axis=0)
        assert others.min() >= 0
        assert not (others == 7).any()
    assert main(["analyze", star, "--out", f"{out}/a", "--embedding", "none", "--components", "5"]) == 0
    assert np.loadtxt(f"{out}/a/clusters.txt")[:, 0].tolist() == [i for i in range(200) if i != 7]
    assert capsys.readouterr().out.count("1 of 200 particles (8) is left out") == 3
