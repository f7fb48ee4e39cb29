"""Optics beyond the CTF: kept in the files, not corrected, and said; MRC headers with other axes and pixels."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from ralib.io import open_particles, read_star, write_particles_cs, write_particles_star
from ralib.io.cryosparc_write import _with_fields, save_cs
from ralib.types import RalibError
from star_files import OPTICS, rows, stack, write

MATRIX = {"rlnMagMat00": 1.03, "rlnMagMat01": 0.01, "rlnMagMat10": 0.01, "rlnMagMat11": 0.97}


@pytest.mark.parametrize(
    ("optics", "words"),
    [
        (MATRIX, "anisotropic magnification (rlnMagMat, up to 3 %)"),
        (dict.fromkeys(MATRIX, 0) | {"rlnMagMat00": 1, "rlnMagMat11": 1}, ""),
        ({"rlnBeamTiltX": 30.0, "rlnBeamTiltY": -40.0}, "beam tilt (rlnBeamTiltX/Y) turns phases by up to 368 degrees"),
        ({"rlnBeamTiltX": 0.3, "rlnBeamTiltY": -0.2}, ""),
        ({"rlnEvenZernike": "[0,0,12.5]", "rlnOddZernike": "[0,0]"}, "aberrations (rlnEvenZernike)"),
        ({"rlnCtfScalefactor": 0.5}, "rlnCtfScalefactor is not 1 for 12 of 12 particles"),
        ({"rlnCtfScalefactor": 1.0}, ""),
    ],
)
def test_star_reader_optics_that_are_not_corrected_are_said_and_kept(
    optics: dict[str, object], words: str, tmp_path: Path
) -> None:
    stack(tmp_path / "p.mrcs", 12)
    particles = open_particles(write(tmp_path / "p.star", rows(12), OPTICS | optics))
    assert words in " | ".join(w.what for w in particles.warnings)
    assert len(particles.warnings) == bool(words)
    write_particles_star(tmp_path / "o.star", particles)
    kept = read_star(tmp_path / "o.star")["optics"]
    assert {label: kept[label][0] for label in optics} == optics


def test_star_reader_beam_tilt_is_the_phase_of_its_formula(tmp_path: Path) -> None:
    """2 pi Cs lambda^2 k^3 tilt: 2.7 mm, 0.019687 A, 1/8 A, 50 mrad."""
    stack(tmp_path / "p.mrcs", 12)
    star = write(tmp_path / "p.star", rows(12), OPTICS | {"rlnBeamTiltX": 30.0, "rlnBeamTiltY": -40.0})
    degrees = 360 * 2.7e7 * 0.0196875**2 * 0.05 / 8**3
    assert f"{degrees:.0f} degrees at Nyquist" in open_particles(star).warnings[0].what


@pytest.mark.parametrize(("matrix", "words"), [([0.02, 0, 0, -0.02], "2 %"), ([1.02, 0, 0, 1], "2 %"), ([0] * 4, "")])
def test_cs_reader_anisotropic_magnification_is_said(matrix: list[float], words: str, tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 12)
    write_particles_cs(tmp_path / "p.cs", open_particles(write(tmp_path / "p.star", rows(12))))
    table = _with_fields(np.load(tmp_path / "p.cs"), [("ctf/anisomag", "f4", (4,))])
    table["ctf/anisomag"] = matrix
    save_cs(tmp_path / "p.cs", table)
    warnings = open_particles(tmp_path / "p.cs").warnings
    assert [f"ctf/anisomag, up to {words}" in w.what for w in warnings] == [True] * bool(words)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("ctf/shift_A", [0, 1.2], "ctf/shift_A shifts images by up to 0.3 px"),
        ("ctf/shift_A", [0.1, 0], ""),
        ("ctf/trefoil_A", [0, 900], "higher-order aberrations (ctf/trefoil_A) are kept"),
        ("ctf/tetra_A", [0, 0, 0, 3], "higher-order aberrations (ctf/tetra_A) are kept"),
        ("ctf/tilt_A", [2e6, 0], "beam tilt (ctf/tilt_A) turns phases by up to 545 degrees"),
        ("ctf/scale", 0.5, "ctf/scale is not 1 for 12 of 12 particles"),
        ("ctf/scale", 0, ""),
        ("ctf/scale_const", 0.25, "ctf/scale_const is not 0 for 12 of 12 particles"),
    ],
)
def test_cs_reader_what_is_not_corrected_is_said_once_and_kept(
    field: str, value: list[float] | float, words: str, tmp_path: Path
) -> None:
    stack(tmp_path / "p.mrcs", 12)
    write_particles_cs(tmp_path / "p.cs", open_particles(write(tmp_path / "p.star", rows(12))))
    table = _with_fields(np.load(tmp_path / "p.cs"), [(field, "f4", np.shape(value))])
    table[field] = value
    save_cs(tmp_path / "p.cs", table)
    particles = open_particles(tmp_path / "p.cs")
    assert [words in w.what for w in particles.warnings] == [True] * bool(words)
    write_particles_cs(tmp_path / "o.cs", particles)
    assert np.array_equal(np.load(tmp_path / "o.cs")[field], table[field])


def test_star_reader_particles_that_contradict_their_optics_group_are_said(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 12)
    particles = open_particles(write(tmp_path / "p.star", rows(12, rlnVoltage=200, rlnAmplitudeContrast=0.1)))
    assert particles.ctf is not None
    assert set(particles.ctf.voltage_kV.tolist()) == {200}
    (warning,) = particles.warnings
    assert warning.what.startswith("rlnVoltage of the particles differ")


def test_star_reader_second_table_of_images_is_said(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 12)
    text = write(tmp_path / "p.star", rows(12)).read_text()
    (tmp_path / "p.star").write_text(text + text[text.index("data_particles") :].replace("data_particles", "data_old"))
    particles = open_particles(tmp_path / "p.star")
    assert len(particles) == 12
    assert "data_old lists images too" in particles.warnings[0].what


def changed_header(path: Path, **values: object) -> Path:
    with mrcfile.open(path, "r+", permissive=True) as file:
        for name, value in values.items():
            file.header[name] = value
    return path


def test_mrc_pixels_that_are_not_square_are_said(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 12)
    star = write(tmp_path / "p.star", rows(12))
    changed_header(tmp_path / "p.mrcs", cella=(128, 160, 4))
    for path in (tmp_path / "p.mrcs", star):
        (warning,) = open_particles(path).warnings
        assert "4 A along x and 5 A along y" in warning.what
    changed_header(tmp_path / "p.mrcs", cella=(128, 128.05, 77))  # rounded; sections have no thickness
    assert not open_particles(tmp_path / "p.mrcs").warnings


def test_mrc_cell_of_the_smallest_numbers_says_no_pixel_size(tmp_path: Path) -> None:
    """Found by mutation: the pixel size along x became 0, and y was divided by it."""
    stack(tmp_path / "p.mrcs", 12)
    changed_header(tmp_path / "p.mrcs", cella=(1e-44, 160, 4))
    assert open_particles(tmp_path / "p.mrcs").pixel_size_A is None


def test_mrc_columns_along_y_are_turned_and_other_sections_refused(tmp_path: Path) -> None:
    images = stack(tmp_path / "p.mrcs", 12)
    star = write(tmp_path / "p.star", rows(12))
    for axes, turned in (((2, 1, 3), True), ((0, 0, 0), False), ((1, 2, 3), False)):
        changed_header(tmp_path / "p.mrcs", **dict(zip(("mapc", "mapr", "maps"), axes, strict=True)))
        expected = images.swapaxes(1, 2) if turned else images
        for path in (tmp_path / "p.mrcs", star):
            source = open_particles(path).images
            assert np.array_equal(source.read(np.array([3, 1])), expected[[3, 1]])
            out = np.empty((2, 32, 32), dtype=source.raw_dtype)  # type: ignore[attr-defined]
            source.read_raw(np.array([3, 1]), out)  # type: ignore[attr-defined]
            assert np.array_equal(out, expected[[3, 1]])
    changed_header(tmp_path / "p.mrcs", mapc=3, mapr=2, maps=1)
    with pytest.raises(RalibError, match="sections are stacked along x"):
        open_particles(tmp_path / "p.mrcs")


@pytest.mark.parametrize(("lowest", "highest", "unsigned"), [(0, 255, True), (-128, 127, False), (0, 0, False)])
def test_mrc_bytes_whose_header_says_values_above_127_are_unsigned(
    lowest: int, highest: int, unsigned: bool, tmp_path: Path
) -> None:
    header = np.zeros((), dtype=HEADER_DTYPE)
    sizes = {"nx": 8, "ny": 8, "nz": 2, "mode": 0, "mx": 8, "my": 8, "mz": 1, "dmin": lowest, "dmax": highest}
    for name, value in sizes.items():
        header[name] = value
    pixels = np.arange(128, dtype=np.uint8).reshape(2, 8, 8) * 2
    (tmp_path / "p.mrcs").write_bytes(header.tobytes() + pixels.tobytes())
    found = open_particles(tmp_path / "p.mrcs").images.read(np.arange(2))
    assert np.array_equal(found, pixels if unsigned else pixels.view(np.int8))
