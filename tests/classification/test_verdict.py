"""The verdict on classes and particles: junk of its kinds, clean sets, noise, automatic selection, one FRC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ralib import io
from ralib.classification.classifier import Classifier
from ralib.classification.image_statistics import IMAGE_NAMES, image_statistics
from ralib.classification.junk_model import MODEL_FILE, NAMES, BoostedTrees, load_model, with_prior_of_set
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.typical_class import weighted_median
from ralib.cli import main
from ralib.images.frc import resolution_frequency
from ralib.results.automatic_selection import automatic_selection, junk_limit
from ralib.results.run_directory import read_frc
from ralib.results.run_record import read_record
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import RunResult

QUICK = ScheduleSettings(exchanges=1, final=2)
KINDS = {1: "empty", 2: "bead", 3: "edge"}
BOX = 48


def particle_images(n: int, seed: int, *, junk: bool) -> tuple[torch.Tensor, np.ndarray]:
    """Images (n, 48, 48) of the phantom and, for a quarter of them with `junk`, what is none; which is which (n,)."""
    simulator = Simulator(SimulationOptions(n_particles=n, box=BOX, snr=0.1, seed=seed, n_views=6, ctf=False))
    images, kind = torch.cat(list(simulator.blocks())).clone(), np.zeros(n, int)
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    c = torch.arange(BOX) - BOX // 2
    for i, row in enumerate(rng.permutation(n)[: n // 4] if junk else []):
        images[row], kind[row] = torch.randn(BOX, BOX, generator=noise), 1 + i % 3
        if kind[row] == 2:
            x, y = rng.uniform(-0.2, 0.2, 2) * BOX
            images[row] += 15 * torch.sigmoid(0.12 * BOX - torch.hypot(c[:, None] - y, c[None] - x))
        elif kind[row] == 3:
            angle = rng.uniform(0, 2 * np.pi)
            images[row] += 3 * torch.sigmoid((c[:, None] * np.cos(angle) + c[None] * np.sin(angle)) / 2 - 1)
    return images, kind


def classified(images: torch.Tensor, classes: int = 8) -> RunResult:
    return Classifier(n_classes=classes, seed=1, plan=QUICK).fit(images).result_


@pytest.fixture(scope="module", params=[0, 1])
def dirty(request: pytest.FixtureRequest) -> tuple[RunResult, np.ndarray]:
    images, kind = particle_images(400, request.param, junk=True)
    return classified(images), kind


def test_no_class_of_junk_stands_above_one_of_particles(dirty: tuple[RunResult, np.ndarray]) -> None:
    result, kind = dirty
    index = result.poses.class_index.numpy()
    true = {row["class"]: (kind[index == row["class"] - 1] == 0).mean() > 0.5 for row in result.classes}
    scores = {row["class"]: row["score"] for row in result.classes}
    assert set(true.values()) == {True, False}
    assert min(scores[k] for k in true if true[k]) > max(scores[k] for k in true if not true[k])
    for row in result.classes:
        assert true[row["class"]] != row["verdict"].startswith("mostly junk")
        assert true[row["class"]] or "good" not in row["verdict"]


def test_each_kind_of_junk_is_called(dirty: tuple[RunResult, np.ndarray]) -> None:
    result, kind = dirty
    junk = result.particle_scores["junk"]
    for k, name in KINDS.items():
        assert (junk[kind == k] > 0.5).mean() > 0.9, name
    assert (junk[kind == 0] > 0.5).mean() < 0.02


def test_a_clean_set_has_no_junk() -> None:
    images, _ = particle_images(300, 2, junk=False)
    result = classified(images, 6)
    assert (result.particle_scores["junk"] > 0.5).mean() < 0.02
    assert result.particle_scores["selected"].mean() > 0.97
    assert all(row["selected"] for row in result.classes)
    assert not any("junk" in warning.what for warning in result.warnings)


def picked_noise(n: int) -> torch.Tensor:
    """Images (n, 48, 48) of noise at the places where a blurred letter, in 12 rotations, correlates best with it."""
    from scipy.ndimage import gaussian_filter, rotate

    rng, size, found = np.random.default_rng(0), 512, []
    letter = np.zeros((BOX, BOX))
    letter[12:36, 16:22], letter[12:18, 16:34], letter[22:28, 16:30] = 1, 1, 1
    templates = [rotate(gaussian_filter(letter, 1.5), a, reshape=False, order=1) for a in range(0, 360, 30)]
    spectra = [np.conj(np.fft.rfft2((t - t.mean()) / np.linalg.norm(t - t.mean()), s=(size, size))) for t in templates]
    while len(found) < n:
        field = rng.normal(size=(size, size))
        image = np.fft.rfft2(field)
        best = np.max([np.fft.irfft2(image * s, s=(size, size)) for s in spectra], axis=0)[: -BOX + 1, : -BOX + 1]
        for _ in range(30):
            y, x = np.unravel_index(np.argmax(best), best.shape)
            found.append(field[y : y + BOX, x : x + BOX])
            best[max(0, y - BOX // 2) : y + BOX // 2, max(0, x - BOX // 2) : x + BOX // 2] = -9
    return torch.from_numpy(np.stack(found[:n]).astype(np.float32))


def test_noise_that_a_template_picked_is_not_believed() -> None:
    result = classified(picked_noise(480), 6)
    assert not result.stability["believable"]
    assert all(row["score"] == 0 and not row["selected"] for row in result.classes)
    assert not result.particle_scores["selected"].any()
    assert result.particle_scores["junk"].min() > 0.9
    assert any("template" in warning.what for warning in result.warnings)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A run of the command on a set with junk, and the kinds of its images."""
    folder = tmp_path_factory.mktemp("verdict")
    images, kind = particle_images(300, 3, junk=True)
    io.write_mrcs(folder / "particles.mrcs", images.numpy(), 3.0)
    words = ["--classes", "7", "--seed", "1", "--device", "cpu", "--no-report"]
    assert main(["classify", str(folder / "particles.mrcs"), str(folder / "run"), *words]) == 0
    return folder / "run", kind


def test_automatic_selection_keeps_particles_and_says_why(
    run: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, kind = run
    assert main(["select", str(folder), "--auto", str(tmp_path / "kept.star")]) == 0
    told = capsys.readouterr().out
    rows = read_record(folder)["classes"]
    assert all(f"class {row['class']:3d}: {row['reason']}" in told for row in rows)
    kept = io.open_particles(tmp_path / "kept.star", require_images=False)
    names = kept.metadata.tables["particles"]["rlnImageName"]
    number = np.array([int(name.split("@")[0]) - 1 for name in names])
    assert len(number) == sum(row["kept"] for row in rows)
    assert np.isin(np.flatnonzero(kind == 0), number).mean() >= 0.95
    assert (kind[number] > 0).mean() <= (kind > 0).mean() / 3


def test_automatic_selection_needs_scores(
    run: tuple[Path, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = run
    files = [folder / "particle_scores.txt", folder / "particles.star"]  # either tells what the run proposes
    before = [file.read_text() for file in files]
    for file, text in zip(files, before, strict=True):
        file.write_text(text.replace(" selected", " chosen", 1).replace("ralibSelected", "ralibChosen", 1))
    assert main(["select", str(folder), "--auto", str(tmp_path / "kept.star")]) == 2
    assert "selected" in capsys.readouterr().err
    assert not (tmp_path / "kept.star").exists()
    for file, text in zip(files, before, strict=True):
        file.write_text(text)


def test_the_frc_is_the_same_wherever_it_is_told(run: tuple[Path, np.ndarray]) -> None:
    folder, _ = run
    curves = torch.from_numpy(read_frc(folder / "frc.txt")).float()
    written = 1 / resolution_frequency(curves.clone())
    recorded = [row["resolution_px"] for row in read_record(folder)["classes"]]
    for row, (a, b) in enumerate(zip(written.tolist(), recorded, strict=True)):
        if b is not None:
            assert a == pytest.approx(b, rel=1e-3), f"class {row + 1}"


def test_automatic_selection_of_certain_particles_keeps_all_of_them() -> None:
    junk, index = np.r_[np.full(90, 0.02), np.full(10, 0.97)], np.r_[np.arange(90) % 2, np.full(10, 2)]
    rows = [{"class": k + 1, "junk": float(junk[index == k].mean())} for k in range(3)]
    found = automatic_selection(junk, index, rows, ["", "", "bead"])
    assert found.kept.tolist() == [True] * 90 + [False] * 10
    assert [c.selected for c in found.classes] == [True, True, False]
    assert "bead" in found.classes[2].reason
    assert not automatic_selection(junk, index, rows, ["", "", "bead"], believable=False).kept.any()


def test_junk_limit_gives_up_no_more_than_a_few_true_particles() -> None:
    rng = np.random.default_rng(0)
    junk = rng.beta(0.4, 1.2, 5000)
    lost = (1 - junk[junk > junk_limit(junk)]).sum() / (1 - junk).sum()
    assert 0.02 < lost <= 0.0301
    assert junk_limit(np.full(100, 0.1)) >= 0.25


def test_trees_follow_their_thresholds() -> None:
    feature, threshold = np.array([[0, -1, 1, -1, -1]]), np.array([[0.5, 0, -1.0, 0, 0]])
    left, right = np.array([[1, 0, 3, 0, 0]]), np.array([[2, 0, 4, 0, 0]])
    trees = BoostedTrees(feature, threshold, left, right, np.array([[0, 1.0, 0, 2.0, 4.0]]), 0.5, 0.2, ("a", "b"))
    x = torch.tensor([[0.5, 9.0], [0.6, -1.0], [0.6, -0.9]], dtype=torch.float64)
    assert trees.log_odds(x).tolist() == [1.5, 2.5, 4.5]


def test_the_packaged_model_asks_for_known_features_and_is_small() -> None:
    model = load_model()
    assert set(model.names) <= set(NAMES)
    assert MODEL_FILE.stat().st_size < 40_000


def test_the_share_of_junk_falls_where_odds_are_low_and_never_rises() -> None:
    usable = torch.ones(1000, dtype=torch.bool)
    few = torch.tensor([-3.0] * 990 + [5.0] * 10)
    assert (with_prior_of_set(few, usable, 0.25) < few).all()
    many = torch.full((1000,), 3.0)
    assert torch.allclose(with_prior_of_set(many, usable, 0.25), many)


def test_typical_power_does_not_follow_strong_junk() -> None:
    power = torch.tensor([[1.0], [1.2], [500.0]])
    assert weighted_median(power, torch.tensor([50.0, 40.0, 10.0])).item() == pytest.approx(1.0)


def test_image_statistics_do_not_depend_on_the_size_of_the_box() -> None:
    """The same picture on another grid has about the same numbers (without noise, which changes with the grid)."""
    column = [i for i, name in enumerate(IMAGE_NAMES) if name.startswith(("bright", "dark")) and "fine" not in name]
    values = []
    for box in (48, 96):
        c = (torch.arange(box) - box // 2) / box
        blob = 5 * torch.exp(-(c[:, None] ** 2 + c[None] ** 2) / 0.0128)
        blob = blob - torch.exp(-((c[None] - 0.3) ** 2) / 0.02)
        values.append(image_statistics(blob[None].float(), 0.3 * box)[0, column])
    assert (values[0] - values[1]).abs().max() < 0.15
