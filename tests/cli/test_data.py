"""Commands on particle files, from the command line's own entry point: what they write, and how they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from ralib.cli import common, main
from ralib.io import open_images, open_particles, read_params, write_hdf, write_mrcs, write_particles_star
from ralib.types import ArraySource, ParticleSet, Poses, RalibError
from star_files import OPTICS, rows, write
from star_files import stack as write_stack


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 particles of 3 views at SNR 2, 48 px."""
    folder = tmp_path_factory.mktemp("simulated") / "sim"
    status = main(["simulate", str(folder), "--particles", "200", "--box", "48", "--views", "3", "--snr", "2",
                   "--device", "cpu"])  # fmt: skip
    assert status == 0
    return folder


@pytest.fixture(scope="module")
def posed(simulated: Path) -> Path:
    """The same particles with their true poses, as a STAR file."""
    truth = np.load(simulated / "truth.npz")
    poses = Poses(
        psi_deg=torch.as_tensor(truth["psi_deg"]),
        origin_xy_px=torch.as_tensor(truth["origin_xy_px"]),
        mirror=torch.as_tensor(truth["mirror"]),
        class_index=torch.as_tensor(truth["class_index"]),
        score=torch.full((200,), float("nan")),
    )
    particles = open_particles(simulated / "particles.star", datadir=simulated)
    write_particles_star(simulated / "posed.star", particles, poses, n_classes=3)
    return simulated / "posed.star"


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def fails(argv: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """The command exits with 2 and one line on stderr that holds all the words."""
    capsys.readouterr()
    assert main(argv) == 2
    lines = capsys.readouterr().err.strip().split("\n")
    assert len(lines) == 1, lines
    assert lines[0].startswith("ralib: ")
    for word in words:
        assert word in lines[0]


def test_simulate_command_writes_particles_truth_and_references(simulated: Path) -> None:
    particles = open_particles(simulated / "particles.star", datadir=simulated)
    assert (len(particles), particles.box) == (200, 48)
    assert particles.pixel_size_A == pytest.approx(400 / 48)
    assert particles.poses is None  # the truth stays in truth.npz
    truth = np.load(simulated / "truth.npz")
    assert particles.ctf is not None
    np.testing.assert_allclose(particles.ctf.defocus_u_A, truth["defocus_u_A"], atol=0.01)
    assert open_images(simulated / "references.mrcs").shape == (3, 48, 48)


def test_simulate_command_same_seed_gives_the_same_bits(simulated: Path, tmp_path: Path) -> None:
    options = ["--particles", "200", "--box", "48", "--views", "3", "--snr", "2", "--device", "cpu"]
    assert main(["simulate", str(tmp_path / "again"), *options]) == 0
    assert main(["simulate", str(tmp_path / "other"), *options, "--seed", "1"]) == 0
    for name in ("particles.mrcs", "references.mrcs", "truth.npz"):
        assert (simulated / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    assert (simulated / "particles.mrcs").read_bytes() != (tmp_path / "other" / "particles.mrcs").read_bytes()


def test_simulate_command_volumes_make_species(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        write_mrcs(tmp_path / f"{name}.mrc", rng.random((24, 24, 24), dtype=np.float32), 6.0)
    volumes = ["--volume", str(tmp_path / "a.mrc"), "--volume2", str(tmp_path / "b.mrc")]
    argv = ["simulate", str(tmp_path / "out"), *volumes,
            "--particles", "20", "--box", "32", "--views", "0", "--references", "4", "--device", "cpu"]  # fmt: skip
    assert main(argv) == 0
    particles = open_particles(tmp_path / "out" / "particles.star", datadir=tmp_path / "out")
    assert particles.pixel_size_A == pytest.approx(6.0)
    truth = np.load(tmp_path / "out" / "truth.npz")
    assert set(truth["species"]) == {0, 1}
    assert (truth["class_index"] == -1).all()
    assert len(open_images(tmp_path / "out" / "references.mrcs")) == 8


def test_prepare_command_writes_images_and_metadata(posed: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.star"
    argv = ["prepare", str(posed), str(out), "--box", "32", "--normalise", "background", "--invert", "--device", "cpu"]
    assert main(argv) == 0
    before, after = open_particles(posed), open_particles(out)
    assert (after.box, len(after)) == (32, 200)
    assert after.pixel_size_A == pytest.approx(400 / 32)
    assert before.poses is not None
    assert after.poses is not None
    torch.testing.assert_close(after.poses.origin_xy_px, before.poses.origin_xy_px * 32 / 48, atol=1e-4, rtol=0)
    text = out.read_text()
    old_origins = [line.split()[-6:-4] for line in posed.read_text().splitlines() if "@" in line]
    new_origins = [line.split()[-6:-4] for line in text.splitlines() if "@" in line]
    np.testing.assert_allclose(np.array(old_origins, float), np.array(new_origins, float), atol=1e-3)
    images = before.images.read(np.arange(3))
    assert correlation(images[:, 8:40, 8:40].mean(0), -after.images.read(np.arange(3)).mean(0)) > 0.1


def test_prepare_command_radii_in_angstrom_are_those_of_the_result(posed: Path, tmp_path: Path) -> None:
    """400 A on 32 px: 12.5 A/px, whatever the pixel size of the input."""
    images = {}
    for name, radius, edge in (("px", "10", "4px"), ("A", "125A", "50A"), ("other", "15", "4")):
        out = tmp_path / f"{name}.star"
        lengths = ["--mask-radius", radius, "--mask-edge", edge, "--normalise", "background"]
        assert main(["prepare", str(posed), str(out), "--box", "32", *lengths, "--device", "cpu"]) == 0
        images[name] = open_particles(out).images.read(np.arange(3))
    np.testing.assert_allclose(images["A"], images["px"], atol=1e-5)
    assert np.abs(images["other"] - images["px"]).max() > 0.1


def test_prepare_command_angstrom_without_pixel_size_names_its_own_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mrcs(tmp_path / "s.mrcs", np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32), None)
    assert main(["prepare", str(tmp_path / "s.mrcs"), str(tmp_path / "o.mrcs"), "--mask-radius", "30A"]) == 2
    assert "--input-pixel-size" in capsys.readouterr().err
    assert not (tmp_path / "o.mrcs").exists()


def test_transform_command_puts_particles_onto_their_views(posed: Path, simulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "aligned.star"
    assert main(["transform", str(posed), str(out), "--device", "cpu"]) == 0
    aligned = open_particles(out)
    assert aligned.poses is not None
    assert not aligned.poses.mirror.any()
    assert aligned.poses.psi_deg.abs().max() == 0
    views = open_images(simulated / "references.mrcs")
    classes = aligned.poses.class_index.numpy()
    images = aligned.images.read(np.arange(200))
    for k in range(3):
        assert correlation(images[classes == k].mean(0), views[k]) > 0.6
        assert correlation(images[classes == k].mean(0), views[k][::-1]) < 0.6


def test_average_command_agrees_with_the_views_and_ctf_correction_helps(
    posed: Path, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["average", str(posed), str(tmp_path / "plain.mrcs"), "--device", "cpu"]) == 0
    assert "class 3:" in capsys.readouterr().out
    assert main(["average", str(posed), str(tmp_path / "ctf.hdf"), "--CTF", "--device", "cpu"]) == 0
    views = open_images(simulated / "references.mrcs")
    plain, corrected = open_images(tmp_path / "plain.mrcs"), open_images(tmp_path / "ctf.hdf")
    for k in range(3):
        assert correlation(corrected[k], views[k]) > 0.9
        assert correlation(corrected[k], views[k]) > correlation(plain[k], views[k])


@pytest.mark.parametrize("form", ["class", "sxheader"])
def test_params_command_poses_go_out_and_in(posed: Path, tmp_path: Path, form: str) -> None:
    text, star = tmp_path / "params.txt", tmp_path / "back.star"
    assert main(["params", str(posed), "--export", str(text), "--form", form]) == 0
    assert main(["params", str(posed), "--import", str(text), "--out", str(star)]) == 0
    before, after = open_particles(posed).poses, open_particles(star).poses
    assert before is not None
    assert after is not None
    torch.testing.assert_close(after.origin_xy_px, before.origin_xy_px, atol=1e-4, rtol=0)
    assert torch.equal(after.mirror, before.mirror)
    assert torch.equal(after.class_index, before.class_index), "sxheader's text has no classes: the file's own stay"


def test_params_command_headers_change_only_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack, text = tmp_path / "stack.hdf", tmp_path / "params.txt"
    write_hdf(stack, np.random.default_rng(0).random((3, 16, 16), dtype=np.float32))
    text.write_text("10 1 2 0\n20 -1 0.5 1\n300 0 0 0\n")
    before = stack.read_bytes()
    fails(["params", str(stack), "--import", str(text)], capsys, "--write-headers")
    assert stack.read_bytes() == before
    assert main(["params", str(stack), "--import", str(text), "--write-headers"]) == 0
    poses, wanted = open_particles(stack).poses, read_params(text)
    assert poses is not None
    torch.testing.assert_close(poses.psi_deg, wanted.psi_deg, atol=1e-3, rtol=0)
    torch.testing.assert_close(poses.origin_xy_px, wanted.origin_xy_px, atol=1e-4, rtol=0)


def test_prepare_command_unusable_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).random((4, 16, 16), dtype=np.float32)
    images[2] = np.nan
    write_mrcs(tmp_path / "s.mrcs", images, 2.0)
    assert main(["prepare", str(tmp_path / "s.mrcs"), str(tmp_path / "o.mrcs"), "--device", "cpu"]) == 0
    assert "1 images are not finite" in capsys.readouterr().err


def test_info_command_says_what_will_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["--device auto"] == ("cuda:0" if torch.cuda.is_available() else "cpu")
    assert main(["info"]) == 0
    assert "torch" in capsys.readouterr().out


MISTAKES: list[tuple[Callable[[Path], list[str]], tuple[str, ...]]] = [
    (lambda d: ["nonsense"], ("No such command",)),
    (lambda d: ["prepare", str(d / "no.star"), str(d / "o.star")], ("no.star",)),
    (lambda d: ["prepare", str(d), str(d / "o.star")], ("image file",)),
    (lambda d: ["prepare", str(d / "s.mrcs"), str(d / "o.png")], (".star",)),
    (lambda d: ["prepare", str(d / "s.mrcs"), str(d / "s.mrcs")], ("exists",)),
    (lambda d: ["prepare", str(d / "s.mrcs"), str(d / "none" / "o.mrcs")], ("o.mrcs",)),
    (lambda d: ["prepare", str(d / "s.mrcs"), str(d / "o.mrcs"), "--normalise", "x"], ("background",)),
    (lambda d: ["prepare", str(d / "s.mrcs"), str(d / "o.mrcs"), "--box", "two"], ("--box",)),
    (lambda d: ["prepare", str(d / "s.mrcs"), str(d / "o.mrcs"), "--device", "gpu7"], ("--device",)),
    (lambda d: ["prepare", str(d / "s.mrcs"), str(d / "o.mrcs"), "--phase-flip"], ("CTF",)),
    (lambda d: ["transform", str(d / "s.mrcs"), str(d / "o.mrcs")], ("poses",)),
    (lambda d: ["average", str(d / "s.mrcs"), str(d / "o.mrcs")], ("poses",)),
    (lambda d: ["average", str(d / "s.mrcs"), str(d / "o.txt")], (".mrcs",)),
    (lambda d: ["params", str(d / "s.mrcs")], ("--export",)),
    (lambda d: ["simulate", str(d)], ("exists",)),
    (lambda d: ["simulate", str(d / "new"), "--particles", "0"], ("particles",)),
    (lambda d: ["simulate", str(d / "new"), "--volume", str(d / "s.mrcs")], ("cube",)),
    (lambda d: ["simulate", str(d / "new"), "--views", "2", "--view-frequencies", "a b"], ("numbers",)),
]


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_command_mistake_is_one_line_and_leaves_nothing(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mrcs(tmp_path / "s.mrcs", np.random.default_rng(0).random((4, 16, 16), dtype=np.float32), 2.0)
    command, words = MISTAKES[number]
    argv = command(tmp_path)
    fails(argv + (["--device", "cpu"] if "--device" not in argv and len(argv) > 2 else []), capsys, *words)
    assert [p.name for p in tmp_path.iterdir()] == ["s.mrcs"]


@pytest.mark.slow
def test_command_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A file size limit stands in for the full disk: the kernel refuses the write in the middle."""
    stack, out = tmp_path / "s.mrcs", tmp_path / "o.star"
    write_mrcs(stack, np.random.default_rng(0).random((50, 32, 32), dtype=np.float32), 2.0)
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); " \
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50000, 50000)); " \
        "from ralib.cli import main; sys.exit(main(sys.argv[1:]))"  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, "prepare", str(stack), str(out), "--device", "cpu"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert "o.mrcs" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["s.mrcs"]


def test_run_each_kind_of_error_has_its_status(capsys: pytest.CaptureFixture[str]) -> None:
    def status_of(error: BaseException) -> int:
        def app(**_: object) -> None:
            raise error

        return common.run(app, [])

    assert status_of(RalibError("what,\n  where")) == 2
    assert capsys.readouterr().err == "ralib: what, where\n"
    assert status_of(OSError(28, "No space left on device", "x.mrcs")) == 2
    assert "x.mrcs" in capsys.readouterr().err
    assert status_of(KeyboardInterrupt()) == 130
    assert status_of(torch.OutOfMemoryError("CUDA out of memory")) == 2
    assert "smaller" in capsys.readouterr().err
    assert status_of(typer.Exit(0)) == 0
    assert status_of(ZeroDivisionError("bug")) == 1
    assert "internal error" in capsys.readouterr().err
    assert common.run(lambda **_: None, []) == 0


def test_resolve_device_names_mean_devices(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert common.resolve_device("cpu") == torch.device("cpu")
    assert "device: cpu" in capsys.readouterr().out
    assert common._parse_device("auto", 0) == torch.device("cpu")
    assert common._parse_device("auto", 2) == torch.device("cuda", 0)
    assert common._parse_device("cuda:1", 2) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert common._parse_device("auto", 2) == torch.device("cuda", 1)
    for text, n_gpus in (("cuda", 0), ("cuda:2", 2), ("cuda:x", 2), ("tpu", 2)):
        with pytest.raises(RalibError, match="--device"):
            common._parse_device(text, n_gpus)


def test_module_runs_as_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ralib", "--version"], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.startswith("ralib ")


def test_in_batches_covers_everything_once() -> None:
    seen = np.concatenate(list(common.in_batches(1000, 64, "x", batch_bytes=64 * 64 * 4 * 7)))
    np.testing.assert_array_equal(seen, np.arange(1000))


def test_array_source_is_no_file() -> None:
    with pytest.raises(RalibError):
        write_particles_star("x.star", ParticleSet(ArraySource(np.zeros((2, 8, 8), np.float32))))


def test_average_command_class_numbers_of_a_damaged_file_are_refused(tmp_path: Path, capsys) -> None:
    """Sums for 90,000 classes of 40 particles took 7 GB."""
    write_mrcs(tmp_path / "p.mrcs", np.random.default_rng(0).random((40, 32, 32), dtype=np.float32), 2.0)
    poses = Poses.identity(40).replace(class_index=torch.tensor([0] * 39 + [89_999]))
    write_particles_star(tmp_path / "p.star", open_particles(tmp_path / "p.mrcs"), poses)
    fails(["average", str(tmp_path / "p.star"), str(tmp_path / "a.mrcs")], capsys, "90000 for 40 particles")
    assert not (tmp_path / "a.mrcs").exists()


@pytest.mark.parametrize("pixels", [np.nan, 7.0])
def test_sets_without_one_usable_image_are_refused_and_nothing_is_written(
    pixels: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mrcs(tmp_path / "p.mrcs", np.full((5, 32, 32), pixels, dtype=np.float32), 4.0)
    star = write(tmp_path / "p.star", rows(5, rlnAnglePsi=3.0, rlnClassNumber=1))
    before = {path.name for path in tmp_path.iterdir()}
    for command, out in (("prepare", "o.star"), ("prepare", "o.hdf"), ("transform", "o.star"), ("average", "o.mrcs")):
        blank_is_an_image = command != "prepare" and np.isfinite(pixels)
        assert main([command, str(star), str(tmp_path / out)]) == (0 if blank_is_an_image else 2), command
        if blank_is_an_image:
            for made in ("o.star", "o.mrcs"):
                (tmp_path / made).unlink(missing_ok=True)
        else:
            (line,) = capsys.readouterr().err.strip().splitlines()
            assert "none of the 5 images can be used" in line
        assert {path.name for path in tmp_path.iterdir()} == before


def test_average_of_particles_in_no_class_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stack(tmp_path / "p.mrcs", 5)
    star = write(tmp_path / "p.star", rows(5, rlnAnglePsi=3.0, rlnClassNumber=0))
    assert main(["average", str(star), str(tmp_path / "o.mrcs")]) == 2
    assert "no particle is in a class" in capsys.readouterr().err


def test_classify_too_few_usable_images_for_the_classes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A CTF that can be meant for three of twelve particles: a division by zero once no class was left."""
    write_stack(tmp_path / "p.mrcs", 12)
    star = write(tmp_path / "p.star", rows(12, rlnDefocusU=[12000.0] * 3 + ["nan"] * 9))
    run = ["classify", str(star), str(tmp_path / "run"), "--classes=2", "--quick", "--no-report", "--device=cpu"]
    assert main(run) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error == ["ralib: 3 of 12 images can be used, too few for 2 classes: ask for at most 1"]


@pytest.mark.parametrize("box", [1, 2, 3, 4])
def test_denoise_refuses_boxes_that_are_too_small(box: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).normal(size=(12, box, box)).astype(np.float32)
    write_mrcs(tmp_path / "p.mrcs", images, 4.0)
    star = write(tmp_path / "p.star", rows(12), OPTICS | {"rlnImageSize": box})
    for command, out in (("denoise", "o.star"), ("neighbours", "o")):
        assert main([command, str(star), str(tmp_path / out), *["--count=3"] * (out == "o")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"images of {box} px are too small" in line
