"""Several pixel sizes and boxes in one file: each particle its own, one scale where they are averaged."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.classification.classifier import Classifier
from ralib.cli import main
from ralib.images.ctf import ctf_2d, phase_flip
from ralib.images.fourier import fourier_resize, resample
from ralib.io import (
    for_computing,
    open_particles,
    read_star,
    take,
    write_particles_cs,
    write_particles_star,
)
from ralib.io.cryosparc_write import save_cs
from ralib.types import RalibError
from star_files import OPTICS, rows, stack, write

SECOND = OPTICS | {"rlnOpticsGroup": 2, "rlnOpticsGroupName": "two"}


@pytest.fixture
def two_sizes(tmp_path: Path) -> Path:
    """40 particles of 32 px: 20 of 12.5 A/px, 20 of 8 A/px, origins (10, -5) A."""
    a = stack(tmp_path / "a.mrcs", 20)
    stack(tmp_path / "b.mrcs", 20, seed=1)
    assert a.shape == (20, 32, 32)
    origin = {"rlnAnglePsi": 0, "rlnOriginXAngst": 10, "rlnOriginYAngst": -5}
    table = rows(20, "a.mrcs", **origin) + rows(20, "b.mrcs", **origin, rlnOpticsGroup=2)
    return write(
        tmp_path / "two.star", table, OPTICS | {"rlnImagePixelSize": 12.5}, SECOND | {"rlnImagePixelSize": 8.0}
    )


def test_scales_origins_and_ctf_use_each_pixel_size(two_sizes: Path, tmp_path: Path) -> None:
    particles = open_particles(two_sizes)
    assert particles.poses is not None
    assert particles.pixel_sizes_A is not None
    expected = np.array([[0.8, -0.4], [1.25, -0.625]])
    assert particles.poses.origin_xy_px[[0, 20]].numpy() == pytest.approx(expected)
    assert main(["prepare", str(two_sizes), str(tmp_path / "f.star"), "--phase-flip"]) == 0
    flipped = open_particles(tmp_path / "f.star").images.read(np.arange(40))
    assert particles.ctf is not None
    for cut, size_A in ((slice(0, 20), 12.5), (slice(20, 40), 8.0)):
        raw = torch.from_numpy(particles.images.read(np.arange(40)[cut]))
        expected = phase_flip(raw, ctf_2d(particles.ctf[cut], 32, size_A))
        assert np.allclose(flipped[cut], expected.numpy(), atol=1e-4)


def test_scales_prepare_writes_sizes_and_origins_of_each_group(two_sizes: Path, tmp_path: Path) -> None:
    assert main(["prepare", str(two_sizes), str(tmp_path / "small.star"), "--box", "16"]) == 0
    tables = read_star(tmp_path / "small.star")
    assert tables["optics"]["rlnImagePixelSize"].tolist() == [25.0, 16.0]
    assert tables["optics"]["rlnImageSize"].tolist() == [16, 16]
    assert tables["particles"]["rlnOriginXAngst"].to_numpy() == pytest.approx(10, abs=1e-4)
    assert tables["particles"]["rlnOpticsGroup"].tolist() == [1] * 20 + [2] * 20


def test_scales_averages_of_two_scales_are_refused_with_advice_that_works(two_sizes: Path, tmp_path: Path) -> None:
    with pytest.raises(RalibError, match=r"--to-pixel-size 12\.5") as told:
        Classifier(n_classes=2).fit(open_particles(two_sizes))
    assert "8 and 12.5 A/px" in str(told.value)
    for command in (
        ["mref", str(two_sizes), "2", str(tmp_path / "r")],
        ["average", str(two_sizes), str(tmp_path / "a.mrcs")],
    ):
        assert main(command) == 2
    out = tmp_path / "one.star"
    assert main(["prepare", str(two_sizes), str(out), "--to-pixel-size", "12.5"]) == 0
    one = open_particles(out)
    assert (one.box, one.pixel_size_A, one.pixel_sizes_A) == (20, 12.5, None)
    assert one.poses is not None
    assert one.poses.origin_xy_px.numpy() == pytest.approx(np.tile([0.8, -0.4], (40, 1)), abs=1e-4)
    Classifier(n_classes=2).fit(one)


def test_resample_any_ratio_is_exact() -> None:
    """A smooth image drawn at both scales; and the Fourier crop where the ratio allows one."""

    def drawn(n: int, size_A: float) -> torch.Tensor:
        y, x = np.mgrid[:n, :n] - n // 2
        blob = np.exp(-(((x * size_A - 7) ** 2 + (y * size_A + 11) ** 2) / (2 * 30.0**2)))
        return torch.from_numpy(blob[None].astype(np.float32))

    for n, m, old, new in ((64, 40, 8.0, 12.5), (63, 50, 8.0, 9.1), (64, 60, 8.0, 6.3)):
        assert (resample(drawn(n, old), m, new / old) - drawn(m, new)).abs().max() < 2e-3
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 48, 48, generator=g)
    assert torch.allclose(resample(noise, 24, 2.0), fourier_resize(noise, 24), atol=1e-5)


def test_scales_two_boxes_are_brought_to_one_as_the_advice_says(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrcs", 20)
    stack(tmp_path / "b.mrcs", 20, 24, seed=1)
    table = rows(20, "a.mrcs") + rows(20, "b.mrcs", rlnOpticsGroup=2)
    star = write(tmp_path / "p.star", table, OPTICS, SECOND | {"rlnImageSize": 24})
    with pytest.raises(RalibError, match=r"prepare STACK OUT\.star --clip 24"):
        for_computing(open_particles(star), ctf=False)
    assert main(["prepare", str(star), str(tmp_path / "none.star")]) == 2  # nothing says which box
    assert main(["prepare", str(star), str(tmp_path / "one.star"), "--clip", "24"]) == 0
    one = open_particles(tmp_path / "one.star")
    assert (one.box, one.pixel_size_A) == (24, 4.0)
    assert np.array_equal(
        one.images.read(np.array([25])), open_particles(tmp_path / "b.mrcs").images.read(np.array([5]))
    )
    assert np.array_equal(
        one.images.read(np.array([5]))[0], open_particles(tmp_path / "a.mrcs").images.read(np.array([5]))[0, 4:28, 4:28]
    )
    assert main(["prepare", str(star), str(tmp_path / "b24.star"), "--box", "24"]) == 0
    sizes = read_star(tmp_path / "b24.star")["optics"]["rlnImagePixelSize"].tolist()
    assert sizes == pytest.approx([4 * 32 / 24, 4.0])


def test_scales_relion_3_0_magnifications_are_read_for_each_particle(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    table = [
        {"rlnImageName": f"{i + 1}@p.mrcs", "rlnDetectorPixelSize": 5, "rlnMagnification": 50000 if i < 4 else 40000,
         "rlnOriginX": 2, "rlnOriginY": 0}
        for i in range(6)
    ]  # fmt: skip
    text = (
        "data_\n\nloop_\n"
        + "".join(f"_{k}\n" for k in table[0])
        + "".join(" ".join(map(str, row.values())) + "\n" for row in table)
    )
    (tmp_path / "p.star").write_text(text)
    particles = open_particles(tmp_path / "p.star")
    assert particles.pixel_sizes_A is not None
    assert particles.pixel_sizes_A.tolist() == [1.0] * 4 + [1.25] * 2
    write_particles_star(tmp_path / "q.star", particles)
    tables = read_star(tmp_path / "q.star")
    assert tables["optics"]["rlnImagePixelSize"].tolist() == [1.0, 1.25]
    assert tables["particles"]["rlnOriginXAngst"].tolist() == [2.0] * 4 + [2.5] * 2
    write_particles_cs(tmp_path / "q.cs", particles)
    again = open_particles(tmp_path / "q.cs")
    assert again.pixel_sizes_A is not None
    assert again.pixel_sizes_A.tolist() == [1.0] * 4 + [1.25] * 2
    assert again.poses is not None
    assert again.poses.origin_xy_px[:, 0].tolist() == pytest.approx([2.0] * 6)
    assert take(again, np.arange(3)).pixel_sizes_A is not None


def test_scales_difference_below_a_pixel_over_the_box_is_one_scale(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 40)
    table = rows(rlnOpticsGroup=[1 + (i >= 20) for i in range(40)])
    star = write(tmp_path / "p.star", table, OPTICS, SECOND | {"rlnImagePixelSize": 4.004})
    particles = open_particles(star)
    computed = for_computing(particles, ctf=True)
    assert particles.ctf is not None
    assert computed.ctf is not None
    own = ctf_2d(particles.ctf[20:], 32, 4.004)
    assert torch.allclose(ctf_2d(computed.ctf[20:], 32, 4.0), own, atol=1e-4)


def test_scales_references_of_another_pixel_size_are_refused(two_sizes: Path, tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 40)
    stack(tmp_path / "refs.mrcs", 2, pixel_size_A=2.0)
    assert (
        main(["mref", str(tmp_path / "p.mrcs"), str(tmp_path / "refs.mrcs"), str(tmp_path / "run"), "--ou", "12"]) == 2
    )
    assert not (tmp_path / "run" / "particles.star").exists()


def test_scales_one_pixel_size_given_for_several_is_refused(two_sizes: Path, tmp_path: Path) -> None:
    for command in (
        ["classify", str(two_sizes), str(tmp_path / "r")],
        ["mref", str(two_sizes), "2", str(tmp_path / "m")],
    ):
        assert main([*command, "--pixel-size", "10"]) == 2


def test_scales_cs_file_of_prepared_particles_names_the_prepared_images(tmp_path: Path) -> None:
    """The .cs fields that a STAR file carries name the images they came with; those of now are what is written."""
    stack(tmp_path / "p.mrcs", 6)
    write_particles_cs(tmp_path / "p.cs", open_particles(tmp_path / "p.mrcs"))
    assert main(["prepare", str(tmp_path / "p.cs"), str(tmp_path / "half.star"), "--box", "16"]) == 0
    half = open_particles(tmp_path / "half.star")
    write_particles_cs(tmp_path / "half.cs", half)
    again = open_particles(tmp_path / "half.cs")
    assert (again.box, again.pixel_size_A) == (16, 8.0)
    assert np.array_equal(again.images.read(np.arange(6)), half.images.read(np.arange(6)))
    assert again.metadata.tables["cs"]["uid"].tolist() == np.load(tmp_path / "p.cs")["uid"].tolist()


def whats(path: Path) -> str:
    return "; ".join(notice.what for notice in open_particles(path).warnings)


def test_scales_headers_without_a_pixel_size_take_that_of_the_others_and_it_is_said(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrcs", 20, pixel_size_A=3.0)
    stack(tmp_path / "b.mrcs", 10, pixel_size_A=None)
    table = rows(20, "a.mrcs") + rows(10, "b.mrcs")
    silent = {k: v for k, v in OPTICS.items() if k != "rlnImagePixelSize"}
    write(tmp_path / "p.star", table, silent)
    assert open_particles(tmp_path / "p.star").pixel_size_A == pytest.approx(3.0)
    assert "10 of 30 particles (21, 22, 23, 24, 25, ...) are in files whose headers say no" in whats(
        tmp_path / "p.star"
    )
    write(tmp_path / "p.star", table, OPTICS | {"rlnImagePixelSize": 3.0})
    assert whats(tmp_path / "p.star") == ""


@pytest.mark.parametrize(("header_A", "said"), [(2.0, True), (1.0, False), (4.02, False), (None, False)])
def test_scales_headers_that_contradict_the_particle_file_are_named(
    tmp_path: Path, header_A: float | None, said: bool
) -> None:
    """A header's 1 A/px is no statement: programs write it that know none."""
    stack(tmp_path / "p.mrcs", 40, pixel_size_A=header_A)
    write(tmp_path / "p.star", rows())
    assert open_particles(tmp_path / "p.star").pixel_size_A == 4.0
    assert ("headers say another pixel size (2 A/px)" in whats(tmp_path / "p.star")) == said
    particles = open_particles(tmp_path / "p.star")
    write_particles_cs(tmp_path / "p.cs", particles)
    assert ("headers say another pixel size (2 A/px)" in whats(tmp_path / "p.cs")) == said


@pytest.mark.parametrize("size_A", [1e-10, 5e5])
def test_scales_a_header_in_metres_is_not_taken_for_angstrom(tmp_path: Path, size_A: float) -> None:
    stack(tmp_path / "p.mrcs", 4, pixel_size_A=size_A)
    silent = {k: v for k, v in OPTICS.items() if k != "rlnImagePixelSize"}
    for path in (tmp_path / "p.mrcs", write(tmp_path / "p.star", rows(4), silent)):
        assert open_particles(path).pixel_size_A is None
        assert f"pixel size of {size_A:g} A/px cannot be meant" in whats(path)


def test_scales_optics_groups_that_are_divided_have_names_of_their_own(tmp_path: Path) -> None:
    """RELION takes groups of one name for one group when it joins files."""
    stack(tmp_path / "p.mrcs", 40, pixel_size_A=None)
    write(tmp_path / "p.star", rows(rlnImagePixelSize=[2.0, 4.0] * 20))
    assert main(["prepare", str(tmp_path / "p.star"), str(tmp_path / "o.star"), "--box=16"]) == 0
    optics = read_star(tmp_path / "o.star")["optics"]
    assert dict(zip(optics["rlnOpticsGroupName"], optics["rlnImagePixelSize"], strict=True)) == {"one": 4, "one_2": 8}
    assert whats(tmp_path / "o.star") == ""


def test_scales_images_of_another_box_than_stated_are_named(tmp_path: Path) -> None:
    """They were binned since, and the pixel size that the file states is that of the former images."""
    stack(tmp_path / "p.mrcs", 40, box=16, pixel_size_A=None)
    write(tmp_path / "p.star", rows())
    assert "40 of 40 particles (1, 2, 3, 4, 5, ...) are of 16 px, where" in whats(tmp_path / "p.star")
    particles = open_particles(tmp_path / "p.star")
    write_particles_cs(tmp_path / "p.cs", particles)
    assert whats(tmp_path / "p.cs") == ""
    table = np.load(tmp_path / "p.cs")
    table["blob/shape"][3] = 32
    save_cs(tmp_path / "p.cs", table)
    assert "1 of 40 particles (4) is of 16 px, where" in whats(tmp_path / "p.cs")


def test_scales_two_boxes_of_two_pixel_sizes_are_brought_to_one_by_the_command_that_is_advised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The advice was --clip first, after which the pixel sizes were refused."""
    stack(tmp_path / "a.mrcs", 20)
    stack(tmp_path / "b.mrcs", 20, box=40, pixel_size_A=3.2)
    two = OPTICS | {"rlnOpticsGroup": 2, "rlnOpticsGroupName": "two", "rlnImagePixelSize": 3.2, "rlnImageSize": 40}
    table = rows(20, file="a.mrcs", rlnAnglePsi=1) + rows(20, file="b.mrcs", rlnOpticsGroup=2, rlnAnglePsi=1)
    star, out = write(tmp_path / "p.star", table, OPTICS, two), tmp_path / "o.star"
    assert main(["average", str(star), str(tmp_path / "a2.mrcs")]) == 2
    advice = re.search(r"'ralib (prepare) STACK OUT.star (--\S+) (\S+)'", capsys.readouterr().err)
    assert advice is not None
    assert main([advice[1], str(star), str(out), advice[2], advice[3]]) == 0
    assert main(["average", str(out), str(tmp_path / "a2.mrcs")]) == 0


def test_scales_relion_3_0_priors_of_origins_become_angstrom_before_binning(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 4)
    head = "data_\n\nloop_\n_rlnImageName\n_rlnMagnification\n_rlnDetectorPixelSize\n_rlnOriginX\n_rlnOriginXPrior\n"
    lines = "".join(f"{i + 1}@p.mrcs 12500 5.0 2.0 1.5\n" for i in range(4))
    (tmp_path / "p.star").write_text(head + lines)
    assert main(["prepare", str(tmp_path / "p.star"), str(tmp_path / "o.star"), "--box", "16"]) == 0
    found = read_star(tmp_path / "o.star")["particles"]
    assert "rlnOriginXPrior" not in found
    assert found["rlnOriginXPriorAngst"].tolist() == [6.0] * 4
    assert found["rlnOriginXAngst"].tolist() == [8.0] * 4
