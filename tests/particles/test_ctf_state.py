"""What was done to the CTF of images already: read, kept, respected by every average, and written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ralib.alignment.multi_reference import MultiReferenceAligner
from ralib.classification.classifier import Classifier
from ralib.cli import main
from ralib.images.ctf import apply_ctf, ctf_2d, matched_filter, phase_flip, remaining_flip
from ralib.io import (
    open_images,
    open_particles,
    pose_headers,
    write_hdf,
    write_mrcs,
    write_particles_cs,
    write_particles_star,
)
from ralib.sparx.mref import mref_ali2d
from ralib.types import CtfState, ParticleSet, RalibError
from star_files import OPTICS, rows, stack, write

FLIPPED, MULTIPLIED = ({"rlnCtfDataArePhaseFlipped": 1}, {"rlnCtfDataAreCtfPremultiplied": 1})


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A STAR file of particles as they were taken, and beside it the same flipped, and multiplied by their CTF."""
    folder = tmp_path_factory.mktemp("states")
    images = stack(folder / "p.mrcs")
    star = write(folder / "raw.star", rows(rlnClassNumber=1))
    ctf = open_particles(star).ctf
    assert ctf is not None
    transfer = ctf_2d(ctf, 32, 4.0)
    given = torch.from_numpy(images)
    write_mrcs(folder / "f.mrcs", phase_flip(given, transfer), 4.0)
    write_mrcs(folder / "m.mrcs", apply_ctf(given, transfer), 4.0)
    write(folder / "flipped.star", rows(file="f.mrcs", rlnClassNumber=1), OPTICS | FLIPPED)
    write(folder / "multiplied.star", rows(file="m.mrcs", rlnClassNumber=1), OPTICS | MULTIPLIED)
    mixed = rows(20, rlnClassNumber=1) + rows(40, "f.mrcs", rlnOpticsGroup=2, rlnClassNumber=1)[20:]
    write(
        folder / "mixed.star",
        mixed,
        OPTICS | {"rlnCtfDataArePhaseFlipped": 0},
        OPTICS | {"rlnOpticsGroup": 2} | FLIPPED,
    )
    return star


def of(raw: Path, name: str) -> ParticleSet:
    return open_particles(raw.with_name(name))


def test_ctf_state_relion_flags_are_read_for_each_group(raw: Path) -> None:
    for name, state in (("raw", 0), ("flipped", 1), ("multiplied", 2)):
        ctf = of(raw, f"{name}.star").ctf
        assert ctf is not None
        assert set(ctf.state.tolist()) == {state}
    mixed = of(raw, "mixed.star").ctf
    assert mixed is not None
    assert mixed.state.tolist() == [0] * 20 + [1] * 20


@pytest.mark.parametrize("name", ["flipped", "multiplied", "mixed"])
def test_ctf_state_wiener_average_does_not_depend_on_it(raw: Path, name: str, tmp_path: Path) -> None:
    """sum(CTF F) over sum(CTF^2), where CTF F is what the images are, or CTF times them, or |CTF| times them."""
    for which in ("raw", name):
        assert main(["average", str(raw.with_name(f"{which}.star")), str(tmp_path / f"{which}.mrcs"), "--CTF"]) == 0
    a, b = open_images(tmp_path / "raw.mrcs"), open_images(tmp_path / f"{name}.mrcs")
    assert np.abs(a - b).max() < 1e-4 * np.abs(a).max()


@pytest.mark.parametrize("name", ["flipped", "mixed"])
def test_ctf_state_alignment_result_does_not_depend_on_it(raw: Path, name: str) -> None:
    both = open_images(raw.with_name("p.mrcs"))[4:6]  # one of each shape: begun at random, classes could swap

    def aligned(particles: ParticleSet, ctf: str) -> np.ndarray:
        aligner = MultiReferenceAligner(references=both, iterations=1, outer_radius=12, ctf=ctf)
        return aligner.fit(particles).class_averages_.images.numpy()

    for ctf in ("wiener", "flip"):
        expected, told = aligned(of(raw, "raw.star"), ctf), of(raw, f"{name}.star")
        assert told.ctf is not None
        unmarked = told.replace(ctf=told.ctf.with_state(CtfState.NONE))
        alike, twice = (np.corrcoef(expected.ravel(), aligned(given, ctf).ravel())[0, 1] for given in (told, unmarked))
        assert alike > 0.97  # the planes fitted to the backgrounds differ a little
        assert twice < alike - 0.02, (twice, alike)


@pytest.mark.slow
def test_ctf_state_classification_result_does_not_depend_on_it(raw: Path) -> None:
    def classified(name: str, **options: str) -> np.ndarray:
        return Classifier(n_classes=2, **options).fit(of(raw, name)).class_averages_.images.numpy()  # type: ignore[arg-type]

    flipped = classified("flipped.star")
    told = of(raw, "flipped.star")
    assert told.ctf is not None
    unmarked = told.replace(ctf=told.ctf.with_state(CtfState.NONE))
    by_option = Classifier(n_classes=2, ctf="flipped").fit(unmarked).class_averages_.images.numpy()
    assert np.array_equal(flipped, by_option)
    twice = Classifier(n_classes=2).fit(unmarked).class_averages_.images.numpy()
    assert not np.allclose(flipped, twice)  # the comparison can fail
    multiplied = classified("multiplied.star")
    assert np.isfinite(multiplied).all()
    assert np.corrcoef(np.sort(multiplied.ravel()), np.sort(flipped.ravel()))[0, 1] > 0.97


def test_prepare_phase_flip_is_recorded_and_not_repeated(raw: Path, tmp_path: Path) -> None:
    assert main(["prepare", str(raw), str(tmp_path / "f.star"), "--phase-flip"]) == 0
    prepared, by_hand = open_particles(tmp_path / "f.star"), of(raw, "flipped.star")
    index = np.arange(40)
    assert np.allclose(prepared.images.read(index), by_hand.images.read(index), atol=1e-4)
    assert prepared.ctf is not None
    assert set(prepared.ctf.state.tolist()) == {CtfState.PHASE_FLIPPED}
    assert main(["prepare", str(tmp_path / "f.star"), str(tmp_path / "ff.star"), "--phase-flip"]) == 2
    assert main(["prepare", str(raw.with_name("mixed.star")), str(tmp_path / "m.star"), "--phase-flip"]) == 0
    both = open_particles(tmp_path / "m.star")
    assert np.allclose(both.images.read(index), by_hand.images.read(index), atol=1e-4)
    assert both.ctf is not None
    assert set(both.ctf.state.tolist()) == {CtfState.PHASE_FLIPPED}


@pytest.mark.parametrize("name", ["flipped", "multiplied", "mixed", "raw"])
def test_ctf_state_every_format_round_trips(raw: Path, name: str, tmp_path: Path) -> None:
    particles = of(raw, f"{name}.star")
    assert particles.ctf is not None
    state = particles.ctf.state.tolist()
    write_particles_star(tmp_path / "a.star", particles)
    write_particles_cs(tmp_path / "a.cs", particles)
    images = particles.images.read(np.arange(40))
    write_hdf(tmp_path / "a.hdf", images, pose_headers(None, particles.ctf, 4.0), pixel_size_A=4.0)
    for file in ("a.star", "a.cs", "a.hdf"):
        found = open_particles(tmp_path / file)
        assert found.ctf is not None, file
        assert found.ctf.state.tolist() == state, file
    write_particles_star(tmp_path / "b.star", open_particles(tmp_path / "a.cs"))
    again = open_particles(tmp_path / "b.star").ctf
    assert again is not None
    assert again.state.tolist() == state


@pytest.mark.parametrize("label", [*FLIPPED, *MULTIPLIED])
@pytest.mark.parametrize("value", ["nan", "2", "-1", "0.5", "yes"])
def test_ctf_state_flag_that_is_neither_yes_nor_no_is_refused(raw: Path, label: str, value: str) -> None:
    star = write(raw.with_name("odd.star"), rows(), OPTICS | {label: value})
    with pytest.raises(RalibError, match=label):
        open_particles(star)


@pytest.mark.parametrize("astigmatism_A", [0.0, 500.0])
def test_missing_direction_of_astigmatism_is_told(raw: Path, astigmatism_A: float) -> None:
    table = rows(rlnDefocusU=12000, rlnDefocusV=12000 + astigmatism_A)
    for row in table:
        row.pop("rlnDefocusAngle")
    said = [w.what for w in open_particles(write(raw.with_name("angle.star"), table)).warnings]
    assert any("rlnDefocusAngle" in what for what in said) == bool(astigmatism_A)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("ctf_applied", "yes", "1 for yes"), ("ctf_applied", np.nan, "1 for yes"), ("assign", 2.5, "number of a class")],
)
def test_headers_of_values_that_cannot_be_meant_are_refused(
    raw: Path, tmp_path: Path, name: str, value: object, said: str
) -> None:
    with pytest.raises(RalibError, match=f"{name} is .* in image 3.*{said}"):
        open_particles(with_attribute(raw, tmp_path, name, value))


def test_numbers_written_as_text_in_headers_are_read(raw: Path, tmp_path: Path) -> None:
    found = open_particles(with_attribute(raw, tmp_path, "ctf_applied", "1"))
    assert found.ctf is not None
    assert np.flatnonzero(found.ctf.state).tolist() == [2]
    sizes = open_particles(with_attribute(raw, tmp_path, "apix_x", "5.0")).pixel_sizes_A
    assert sizes is not None
    assert sizes[:4].tolist() == [4, 4, 5, 4]
    odd = open_particles(with_attribute(raw, tmp_path, "apix_x", -4.0))
    assert odd.pixel_size_A == 4
    assert any("1 of 40 particles (3) is of a pixel size" in w.what for w in odd.warnings)


def with_attribute(raw: Path, folder: Path, name: str, value: object) -> Path:
    """A stack whose third image has another attribute."""
    particles, path = of(raw, "raw.star"), folder / f"{name}.hdf"
    path.unlink(missing_ok=True)
    headers = pose_headers(None, particles.ctf, 4.0)
    write_hdf(path, particles.images.read(np.arange(40)), headers, pixel_size_A=4.0)
    with h5py.File(path, "r+") as file:
        attributes = file["MDF/images/2"].attrs
        attributes.pop(f"EMAN.{name}", None)
        attributes[f"EMAN.{name}"] = value
    return path


def test_ctf_state_sparx_ctf_applied_round_trips(raw: Path, tmp_path: Path) -> None:
    particles = of(raw, "multiplied.star")
    headers = pose_headers(None, particles.ctf, 4.0)
    assert [h["ctf_applied"] for h in headers] == [1] * 40
    assert [h["ctf_applied"] for h in pose_headers(None, of(raw, "raw.star").ctf, 4.0)] == [0] * 40
    for header in headers:
        header.pop("ralib_ctf_state")
    write_hdf(tmp_path / "a.hdf", particles.images.read(np.arange(40)), headers, pixel_size_A=4.0)
    found = open_particles(tmp_path / "a.hdf")
    assert found.ctf is not None
    assert set(found.ctf.state.tolist()) == {CtfState.PREMULTIPLIED}
    with pytest.raises(RalibError, match="leave `CTF` out"):
        mref_ali2d(found, 2, ou=12, maxit=1, CTF=True)


def test_matched_filter_and_remaining_flip_depend_on_the_state() -> None:
    particles_ctf = torch.tensor([[[0.5, -0.5]]] * 3)
    from ralib.types import CtfParameters

    one = np.ones(3)
    ctf = CtfParameters(one, one, one, one, one, one, one, one, np.array([0, 1, 2]))
    assert matched_filter(ctf, particles_ctf)[:, 0].tolist() == [[0.5, -0.5], [0.5, 0.5], [1.0, 1.0]]
    assert remaining_flip(ctf, particles_ctf)[:, 0].tolist() == [[0.5, -0.5], [1.0, 1.0], [1.0, 1.0]]


def test_classify_ctf_without_a_pixel_size_is_refused_and_auto_warns(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", pixel_size_A=None)
    optics = {k: v for k, v in OPTICS.items() if k != "rlnImagePixelSize"}
    particles = open_particles(write(tmp_path / "p.star", rows(), optics))
    assert particles.pixel_size_A is None
    with pytest.raises(RalibError, match="pixel_size_A"):
        Classifier(n_classes=2, ctf="on").fit(particles)
    warnings = Classifier(n_classes=2).fit(particles).warnings_
    assert any("pixel size is not known" in w.what for w in warnings)
