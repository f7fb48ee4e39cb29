"""Numbers that cannot be meant: the particle is named, counted and left out, or the file is refused in one line."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.classes.averages import ClassSums, class_averages
from ralib.classification.classifier import Classifier
from ralib.cli import main
from ralib.io import for_computing, open_images, open_particles, pose_headers, write_hdf, write_mrcs
from ralib.io.plausible import implausible_ctf
from ralib.types import CtfParameters, Poses, RalibError
from star_files import OPTICS, rows, stack, write

ODD = [
    ("rlnDefocusU", "nan"), ("rlnDefocusV", "inf"), ("rlnDefocusU", 1.2), ("rlnDefocusU", "<NA>"), ("rlnVoltage", 0),
    ("rlnVoltage", 300000), ("rlnAmplitudeContrast", 10), ("rlnAmplitudeContrast", -0.1), ("rlnDefocusAngle", "nan"),
    ("rlnSphericalAberration", 2.7e7), ("rlnPhaseShift", "nan"), ("rlnDefocusV", -1e9), ("rlnCtfBfactor", "-inf"),
    ("rlnDefocusV", 0), ("rlnDefocusU", 0),
]  # fmt: skip


@pytest.mark.parametrize(("label", "value"), ODD)
def test_implausible_ctf_particle_is_named_and_left_out(label: str, value: object, tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    usual = {**OPTICS, "rlnDefocusU": 12000, "rlnDefocusV": 11900, "rlnDefocusAngle": 0, "rlnPhaseShift": 0}
    values = [value if i == 3 else usual.get(label, 0) for i in range(6)]
    if label == "rlnDefocusU" and value == 1.2:
        table = rows(6, rlnDefocusU=values, rlnDefocusV=values)
    else:
        table = rows(6, **{label: values})
    particles = for_computing(open_particles(write(tmp_path / "p.star", table)), ctf=True)
    assert particles.usable is not None
    assert np.flatnonzero(~particles.usable).tolist() == [3]
    (warning,) = particles.warnings
    assert "1 of 6 particles (4) is left out" in warning.what
    again = for_computing(particles, ctf=True)
    assert len(again.warnings) == 1


@pytest.mark.parametrize(
    ("label", "value"), [("rlnVoltage", 300000), ("rlnAmplitudeContrast", 10), ("rlnVoltage", "nan")]
)
def test_implausible_ctf_of_all_particles_is_refused(label: str, value: object, tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    particles = open_particles(write(tmp_path / "p.star", rows(6), OPTICS | {label: value}))
    with pytest.raises(RalibError, match="the CTF of all particles cannot be meant"):
        for_computing(particles, ctf=True)
    assert for_computing(particles, ctf=False).usable is None  # without the CTF nothing is wrong with them


def test_implausible_ctf_limits_keep_extreme_values() -> None:
    one = np.ones(4)
    ctf = CtfParameters(
        one * [-12000, 500, 12000, 12000], one * [-12000, 500, 12000, 12000], 0 * one, one * [300, 120, 200, 80],
        one * [0, 2.7, 0.01, 2], one * [0, 1, 0.07, 0.1], one * [0, 90, 175, -30], 0 * one,
    )  # fmt: skip
    assert not implausible_ctf(ctf)[0].any()


@pytest.mark.parametrize(
    ("label", "value"), [("rlnAnglePsi", "nan"), ("rlnOriginXAngst", "inf"), ("rlnOriginYAngst", 1e9)]
)
def test_implausible_pose_leaves_the_particle_out(label: str, value: object, tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    columns = {"rlnAnglePsi": [0] * 6, "rlnOriginXAngst": [0] * 6, "rlnOriginYAngst": [0] * 6}
    columns[label] = [value if i == 2 else 0 for i in range(6)]  # type: ignore[misc]
    star = write(tmp_path / "p.star", rows(6, **columns))
    particles = open_particles(star)
    assert particles.poses is not None
    assert particles.usable is not None
    assert particles.poses.class_index.tolist() == [0, 0, -1, 0, 0, 0]
    assert particles.usable.tolist() == [True, True, False, True, True, True]
    assert main(["average", str(star), str(tmp_path / "a.mrcs")]) == 0
    assert np.isfinite(open_images(tmp_path / "a.mrcs")).all()


def test_implausible_ctf_particle_is_in_no_class_and_averages_are_finite(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs")
    defocus = [("nan" if i == 5 else 12000) for i in range(40)]
    particles = open_particles(write(tmp_path / "p.star", rows(rlnDefocusU=defocus)))
    classified = Classifier(n_classes=2).fit(particles)
    aligned = MultiReferenceAligner(references=2, iterations=2, outer_radius=12, ctf="wiener").fit(particles)
    for result in (classified.result_, aligned.result_):
        assert torch.isfinite(result.averages.images).all()
        assert result.poses.class_index[5] == -1
        assert any("(6) is left out" in w.what for w in result.warnings)
    assert all("nan" not in row["verdict"] and np.isfinite(row["score"]) for row in classified.classes_)


def test_averages_ctf_zero_at_zero_frequency_and_empty_class_are_finite() -> None:
    g = torch.Generator().manual_seed(0)
    sums = ClassSums.empty(2, 16, torch.device("cpu"), ctf=True)
    assert sums.ctf_power is not None
    sums.images[:, 0] = torch.randn(2, 16, 16, generator=g, dtype=torch.float64)
    sums.ctf_power[:, 0] = torch.rand(2, 16, 9, generator=g, dtype=torch.float64) * 20
    sums.ctf_power[:, 0, 0, 0] = 1e-30  # amplitude contrast 0: rounding errors
    sums.members[:, 0] = 20
    for snr in (None, 1.0):
        averages = class_averages(sums, snr=snr)
        assert torch.isfinite(averages.images).all()
        assert averages.images.abs().max() < 100
        assert not averages.images[1].any()
    assert class_averages(sums).images[0].mean().abs() < 1e-6


def test_implausible_pixel_sizes_are_refused_and_named(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    for value in ("nan", 0, -1, 1e-300, 1e6):
        star = write(tmp_path / "p.star", rows(6), OPTICS | {"rlnImagePixelSize": value})
        with pytest.raises(RalibError, match=r"pixel size .* particle 1"):
            open_particles(star)


def test_implausible_ctf_missing_for_one_eman2_image_is_named(tmp_path: Path) -> None:
    images = stack(tmp_path / "p.mrcs", 6)
    particles = open_particles(write(tmp_path / "p.star", rows(6)))
    headers = pose_headers(Poses.identity(6), particles.ctf, 4.0)
    del headers[4]["ctf"]
    write_hdf(tmp_path / "p.hdf", images, headers, pixel_size_A=4.0)
    found = open_particles(tmp_path / "p.hdf")
    assert found.ctf is not None
    assert "1 of 6 particles (5)" in found.warnings[0].what
    usable = for_computing(found, ctf=True).usable
    assert usable is not None
    assert np.flatnonzero(~usable).tolist() == [4]


def test_implausible_class_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack(tmp_path / "p.mrcs", 6)
    star = write(tmp_path / "p.star", rows(6, rlnClassNumber=2147483647))
    assert main(["average", str(star), str(tmp_path / "a.mrcs")]) == 2
    assert "class numbers up to 2147483647" in capsys.readouterr().err


def test_commands_name_images_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = stack(tmp_path / "p.mrcs", 6)
    images[3] = np.nan
    write_mrcs(tmp_path / "p.mrcs", images, 4.0)
    star = write(tmp_path / "p.star", rows(6, rlnClassNumber=1, rlnAnglePsi=0.0))
    for command, made in (("average", "a.mrcs"), ("transform", "t.star"), ("prepare", "b.star")):
        assert main([command, str(star), str(tmp_path / made), "--device", "cpu"]) == 0
        assert "1 images are not finite" in capsys.readouterr().err, command
        assert np.isfinite(open_images(tmp_path / made)).all(), command


@pytest.mark.parametrize(
    "options",
    [["average", "--ctf=wiener", "--snr=0"], ["average", "--ctf=wiener", "--snr=nan"],
     ["prepare", "--mask-radius=8", "--mask-edge=nan"]],
)  # fmt: skip
def test_options_that_are_no_numbers_are_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack(tmp_path / "p.mrcs", 6)
    star = write(tmp_path / "p.star", rows(6, rlnClassNumber=1, rlnAnglePsi=0.0))
    assert main([options[0], str(star), str(tmp_path / "o.mrcs"), *options[1:]]) == 2
    assert options[-1].split("=")[0] in capsys.readouterr().err


def test_implausible_ctf_prints_no_warning_of_numpy(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    odd = [10 if i == 3 else 0.1 for i in range(6)]
    star = write(tmp_path / "p.star", rows(6, rlnClassNumber=1, rlnAnglePsi=0.0, rlnAmplitudeContrast=odd,
                                           rlnVoltage=[0 if i == 4 else 300 for i in range(6)]))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["average", str(star), str(tmp_path / "o.mrcs"), "--ctf=wiener", "--device", "cpu"]) == 0


def test_fractions_are_no_class_numbers(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    with pytest.raises(RalibError, match="rlnClassNumber should hold class numbers"):
        open_particles(write(tmp_path / "p.star", rows(6, rlnClassNumber=[1, 1, 1.5, 1, 1, 1])))


def test_prepare_into_images_alone_says_what_they_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack(tmp_path / "p.mrcs", 6)
    star = write(tmp_path / "p.star", rows(6, rlnClassNumber=1, rlnAnglePsi=0.0))
    assert main(["prepare", str(star), str(tmp_path / "o.mrcs")]) == 0
    assert "o.mrcs holds images alone, without CTF and poses" in capsys.readouterr().err
