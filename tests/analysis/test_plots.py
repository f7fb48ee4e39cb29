"""Clusters, agreement, tables, Euler matrices and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import torch

from ralib import conventions
from ralib.analysis import (
    agreement,
    class_purity,
    ctf_table,
    embed,
    euler_eman2_to_relion,
    euler_matrix_eman2,
    euler_matrix_relion,
    euler_relion_to_eman2,
    has_umap,
    kmeans,
    plots,
    pose_table,
    poses_from_table,
)
from ralib.types import CtfParameters, Poses, RalibError


def blobs(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    return np.array([[0, 0], [9, 0], [0, 9]])[truth] + rng.standard_normal((n, 2)), truth


def random_poses(n: int = 50, seed: int = 0) -> Poses:
    generator = torch.Generator().manual_seed(seed)
    return Poses(
        psi_deg=torch.rand(n, generator=generator) * 360 - 180,
        origin_xy_px=torch.randn(n, 2, generator=generator),
        mirror=torch.rand(n, generator=generator) > 0.5,
        class_index=torch.randint(0, 4, (n,), generator=generator),
        score=torch.rand(n, generator=generator),
    )


def some_ctf(n: int = 20) -> CtfParameters:
    rng = np.random.default_rng(0)
    one = np.ones(n)
    u = rng.uniform(8e3, 2.5e4, n)
    return CtfParameters(
        u, u - rng.uniform(0, 900, n), rng.uniform(0, 180, n), 300 * one, 2.7 * one, 0.1 * one, 0 * one, 0 * one
    )


def test_kmeans_finds_blobs_and_numbers_them_by_size() -> None:
    points, truth = blobs()
    labels = kmeans(points, 3)
    assert (labels == truth).all()
    with pytest.raises(RalibError, match="500 clusters of 120"):
        kmeans(points, 500)


def test_agreement_equals_scikit_learn_and_can_be_low() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 400)
    labels = np.where(rng.random(400) < 0.7, truth, rng.integers(0, 5, 400)) * 10 + 3
    found = agreement(labels, truth)
    assert found["adjusted_rand_index"] == pytest.approx(sklearn.metrics.adjusted_rand_score(truth, labels))
    expected = sklearn.metrics.normalized_mutual_info_score(truth, labels)
    assert found["normalised_mutual_information"] == pytest.approx(expected)
    assert agreement(truth, truth) == pytest.approx(dict.fromkeys(found, 1.0))
    assert agreement(rng.permutation(truth), truth)["adjusted_rand_index"] < 0.05
    with pytest.raises(RalibError, match="one label per particle"):
        agreement(truth[:3], truth)


def test_class_purity_agrees_with_a_hand_count() -> None:
    truth = np.array(["a", "a", "b", "b", "b", "c"])
    labels = np.array([1, 1, 1, 7, 7, 7])
    assert class_purity(labels, truth) == pytest.approx({1: 2 / 3, 7: 2 / 3})
    assert agreement(labels, truth)["purity"] == pytest.approx(4 / 6)


@pytest.mark.filterwarnings("ignore")
def test_embed_keeps_blobs_apart() -> None:
    points, truth = blobs(60)
    for method in ("pca", "tsne"):
        drawn = embed(points, method, seed=1)
        assert drawn.shape == (60, 2)
        assert sklearn.metrics.silhouette_score(drawn, truth) > 0.3
    with pytest.raises(RalibError, match="no embedding 'ica'"):
        embed(points, "ica")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_embed_umap_keeps_blobs_apart() -> None:
    points, truth = blobs(60)
    if has_umap():
        assert sklearn.metrics.silhouette_score(embed(points, "umap"), truth) > 0.3
    else:
        with pytest.raises(RalibError, match="not installed"):
            embed(points, "umap")


@pytest.mark.parametrize("convention", ["relion", "eman2", "cryosparc"])
def test_pose_table_every_convention_round_trips(convention: str) -> None:
    poses = random_poses()
    back = poses_from_table(pose_table(poses, convention, pixel_size_A=1.7), pixel_size_A=1.7)
    as_triple = [(p.psi_deg, p.origin_xy_px, p.mirror) for p in (back, poses)]
    angle, distance = conventions.pose_error(*as_triple)
    assert float(angle.max()) < 1e-3
    assert float(distance.max()) < 1e-4
    assert bool((back.mirror == poses.mirror).all())
    assert bool((back.class_index == poses.class_index).all())


def test_poses_from_table_unknown_columns_are_refused() -> None:
    with pytest.raises(RalibError, match="pixel_size_A"):
        pose_table(random_poses(), "relion")
    with pytest.raises(RalibError, match="convention"):
        pose_table(random_poses(), "imagic")
    with pytest.raises(RalibError, match="no poses"):
        poses_from_table(pd.DataFrame({"rlnCoordinateX": [1.0]}))


def test_poses_from_table_old_relion_origins_are_pixels() -> None:
    table = pd.DataFrame({"rlnAnglePsi": [30.0], "rlnOriginX": [2.0], "rlnOriginY": [-1.0]})
    assert poses_from_table(table).origin_xy_px.tolist() == [[2.0, -1.0]]


def test_euler_matrices_of_relion_and_eman2_agree() -> None:
    rng = np.random.default_rng(0)
    rot, tilt, psi = rng.uniform(-180, 180, 30), rng.uniform(0, 180, 30), rng.uniform(-180, 180, 30)
    relion = euler_matrix_relion(rot, tilt, psi)
    converted = euler_relion_to_eman2(rot, tilt, psi)
    np.testing.assert_allclose(euler_matrix_eman2(*converted), relion, atol=1e-12)
    np.testing.assert_allclose(np.stack(euler_eman2_to_relion(*converted)), np.stack([rot, tilt, psi]))
    np.testing.assert_allclose(relion @ relion.swapaxes(1, 2), np.broadcast_to(np.eye(3), (30, 3, 3)), atol=1e-12)
    assert np.abs(euler_matrix_eman2(rot, tilt, psi) - relion).max() > 0.5
    # RELION's last row is the viewing direction (cos rot sin tilt, sin rot sin tilt, cos tilt).
    r, t = np.deg2rad(rot), np.deg2rad(tilt)
    view = np.stack([np.cos(r) * np.sin(t), np.sin(r) * np.sin(t), np.cos(t)], axis=1)
    np.testing.assert_allclose(relion[:, 2], view, atol=1e-12)


def test_ctf_table_names_units() -> None:
    table = ctf_table(some_ctf())
    assert table.shape == (20, 9)
    assert {"state", "defocus_u_A", "voltage_kV", "spherical_aberration_mm"} <= set(table.columns)


def test_figures_of_every_kind_draw(tmp_path) -> None:
    images = np.random.default_rng(0).standard_normal((7, 16, 16))
    points, truth = blobs()
    figures = {
        "gallery": plots.gallery(images, columns=4),
        "classes": plots.class_gallery(images, np.arange(7)),
        "clusters": plots.scatter_by_cluster(points, truth, title="blobs"),
        "scale": plots.scatter_by_cluster(points, np.arange(len(points))),
        "histogram": plots.class_histogram(np.array([0, 0, 2, -1])),
        "poses": plots.pose_figure(random_poses()),
        "defocus": plots.defocus_figure(some_ctf()),
        "ctf": plots.ctf_figure(some_ctf(), 3, pixel_size_A=1.5),
        "scree": plots.scree_figure(np.array([0.5, 0.2, 0.1])),
    }
    for name, figure in figures.items():
        path = tmp_path / f"{name}.png"
        figure.savefig(path, dpi=50)
        assert path.stat().st_size > 1000
    assert [ax.get_title() for ax in figures["classes"].axes][:2] == ["7: 6", "6: 5"]
    bars = figures["histogram"].axes[0].patches
    assert [bar.get_height() for bar in bars] == [2, 0, 1]
    with pytest.raises(RalibError, match="gallery"):
        plots.gallery(images[0])


def test_ctf_figure_shows_the_whole_plane() -> None:
    """The half plane of rfft2 unfolds to a plane that is even about its centre."""
    plane = plots.ctf_figure(some_ctf(), 0, pixel_size_A=2.0, box=32).axes[1].images[0].get_array()
    inner = np.asarray(plane)[1:, 1:]
    np.testing.assert_allclose(inner, inner[::-1, ::-1], atol=1e-5)
    full = np.fft.fft2(np.random.default_rng(0).standard_normal((8, 8))).real
    np.testing.assert_allclose(plots._whole_plane(full[:, :5], 8), np.fft.fftshift(full), atol=1e-9)


def test_spectrum_and_view_figures_draw_every_point() -> None:
    spectrum = plots.spectrum_figure(np.array([9.0, 3.0, 2.0]), 4.0, np.zeros((3, 8, 8)))
    heights = [bar.get_height() for bar in spectrum.axes[0].patches]
    assert heights == [9.0, 3.0, 2.0]
    assert spectrum.axes[0].patches[0].get_facecolor() != spectrum.axes[0].patches[1].get_facecolor()
    rng = np.random.default_rng(0)
    views = plots.view_figure(rng.uniform(-180, 180, 500), rng.uniform(0, 180, 500))
    assert views.axes[0].collections[0].get_array().sum() == 500
    assert sum(bar.get_height() for bar in views.axes[1].patches) == 500
    with pytest.raises(RalibError, match="of both"):
        plots.hexbin_figure(np.zeros(3), np.zeros(4))
