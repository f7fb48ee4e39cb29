"""`ralib analyze` on simulated particles whose classes are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ralib.analysis.run import Analysis
from ralib.cli import main
from ralib.io import open_images, open_particles, write_mrcs, write_particles_star
from ralib.simulation.simulator import simulate_particles
from ralib.types import ArraySource, ParticleSet, RalibError


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 particles of 3 views, their STAR file with true poses, and the true classes as text."""
    folder = tmp_path_factory.mktemp("simulated")
    images, truth, _ = simulate_particles(300, 32, snr=0.5, seed=3, n_views=3, pixel_size_A=5.0)
    write_mrcs(folder / "stack.mrcs", images.numpy(), 5.0)
    particles = ParticleSet(ArraySource(images.numpy()), pixel_size_A=5.0, ctf=truth.ctf, poses=truth.poses)
    stack = open_particles(folder / "stack.mrcs")
    particles = particles.replace(images=stack.images, metadata=stack.metadata)
    write_particles_star(folder / "particles.star", particles, truth.poses, n_classes=3)
    np.savetxt(folder / "truth.txt", truth.poses.class_index.numpy(), fmt="%d")
    return folder


def test_analyze_aligned_particles_fall_into_their_classes(simulated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["analyze", str(simulated), "--clusters", "3", "--components", "6", "--embed-at-most", "100"]
    assert main([*command, "--truth", str(simulated / "truth.txt"), "--device", "cpu"]) == 0
    out = simulated / "analysis"
    summary = json.loads((out / "analysis.json").read_text())
    assert summary["agreement"]["truth"]["adjusted_rand_index"] > 0.9
    assert summary["agreement"]["truth"] == summary["agreement"]["classes"]
    assert sum(summary["cluster_sizes"]) == 300
    assert open_images(out / "cluster_averages.mrcs").shape == (3, 32, 32)
    assert {p.name for p in out.glob("*.png")} >= {"embedding.png", "eigenimages.png", "poses.png", "ctf.png"}
    assert np.loadtxt(out / "clusters.txt", dtype=int).shape == (300, 2)
    assert "ARI" in capsys.readouterr().out
    assert main(command) == 2, "an existing folder is never overwritten"


def test_analyze_raw_particles_do_not_fall_into_their_classes(simulated: Path, tmp_path: Path) -> None:
    """Unaligned, the in-plane rotation hides the view: the comparison above is able to fail."""
    particles = open_particles(simulated / "particles.star")
    truth = np.loadtxt(simulated / "truth.txt", dtype=int)
    raw = Analysis(n_components=6, n_clusters=3, aligned=False, embedding="none").run(particles, truth=truth)
    assert raw.agreements["truth"]["adjusted_rand_index"] < 0.5


@pytest.mark.parametrize("method", ["pca", "mpca", "steerable"])
def test_analyze_every_method_runs_and_repeats(simulated: Path, method: str) -> None:
    particles = open_particles(simulated / "particles.star")
    options = Analysis(method=method, n_components=5, core=4, n_clusters=3, aligned=True, embedding="pca")
    first, second = options.run(particles), options.run(particles)
    np.testing.assert_array_equal(first.features, second.features)
    np.testing.assert_array_equal(first.clusters, second.clusters)
    assert first.features.shape == (300, 16 if method == "mpca" else 5)


def test_analyze_mistakes_are_refused_in_one_line(
    simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = str(simulated / "stack.mrcs")
    (tmp_path / "short.txt").write_text("1\n2\n")
    wrong = [
        (["analyze", str(tmp_path)], "no particles.star"),
        (["analyze", stack, "--method", "ica"], "method 'ica'"),
        (["analyze", stack, "--clusters", "999"], "999 clusters of 300"),
        (["analyze", stack, "--truth", str(tmp_path / "short.txt")], "2 true classes for 300"),
        (["analyze", stack, "--truth", str(tmp_path / "none.npz")], "no true classes"),
    ]
    for arguments, what in wrong:
        assert main([*arguments, "--device", "cpu"]) == 2
        said = capsys.readouterr().err
        assert what in said
        assert said.count("\n") == 1
    assert not (simulated / "stack_analysis").exists()
    with pytest.raises(RalibError, match="embedding"):
        Analysis(embedding="3d").run(open_particles(stack))
