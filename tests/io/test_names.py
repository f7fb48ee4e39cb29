"""The named image or an error: names in two folders, formats, links, gaps, bytes that are no UTF-8, names to write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ralib.cli import main
from ralib.io import open_particles, write_hdf, write_mrcs, write_particles_star
from ralib.types import RalibError
from star_files import OPTICS, rows, stack, write


def test_image_names_of_equal_base_name_never_share_a_file(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    stack(tmp_path / "flat/p.mrcs", 6)
    stack(tmp_path / "flat/q.mrcs", 6)
    two = write(tmp_path / "two.star", rows(3, "a/p.mrcs") + rows(3, "b/p.mrcs"))
    for folder in ({"datadir": tmp_path / "flat"}, {}):
        if not folder:
            stack(tmp_path / "p.mrcs", 6)
        with pytest.raises(RalibError, match=r"a/p\.mrcs.*b/p\.mrcs"):
            open_particles(two, **folder)
    alone = write(tmp_path / "one.star", rows(3, "a/p.mrcs") + rows(3, "b/q.mrcs"))
    assert len(open_particles(alone, datadir=tmp_path / "flat")) == 6


def test_image_names_found_as_written_exclude_a_base_name_search(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    stack(tmp_path / "a/p.mrcs", 6)
    stack(tmp_path / "q.mrcs", 6)  # another q than b/q.mrcs
    star = write(tmp_path / "p.star", rows(3, "a/p.mrcs") + rows(3, "b/q.mrcs"))
    with pytest.raises(RalibError, match=r"b/q\.mrcs.*not there"):
        open_particles(star)


def test_image_names_format_after_a_colon_is_removed(tmp_path: Path) -> None:
    images = stack(tmp_path / "p.mrc", 6)
    found = open_particles(write(tmp_path / "p.star", rows(6, "p.mrc:mrcs")))
    assert np.array_equal(found.images.read(np.array([4])), images[[4]])
    stack(tmp_path / "odd.mrc:mrcs", 6, seed=1)  # a file that is really called so goes first
    with pytest.raises(RalibError, match="knows no image file"):
        open_particles(write(tmp_path / "o.star", rows(6, "odd.mrc:mrcs")))


def test_image_names_volume_or_tilt_series_is_refused(tmp_path: Path) -> None:
    stack(tmp_path / "v.mrc", 32)
    write_mrcs(tmp_path / "one.mrc", stack(tmp_path / "p.mrcs", 1), 4.0)
    one = [rows(1)[0] | {"rlnImageName": "one.mrc"}]
    assert len(open_particles(write(tmp_path / "one.star", one))) == 1
    volume = [rows(1)[0] | {"rlnImageName": "v.mrc"}]
    with pytest.raises(RalibError, match="without a number before @"):
        open_particles(write(tmp_path / "v.star", volume))
    with pytest.raises(RalibError, match="three-dimensional"):
        open_particles(write(tmp_path / "d.star", rows(1), OPTICS | {"rlnImageDimensionality": 3}))


def test_image_names_linked_star_file_finds_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project/job").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    stack(tmp_path / "project/p.mrcs", 6)
    star = write(tmp_path / "project/job/p.star", rows(6))
    (tmp_path / "elsewhere/link.star").symlink_to(star)
    monkeypatch.chdir("/")
    assert len(open_particles(tmp_path / "elsewhere/link.star")) == 6


@pytest.mark.parametrize("on_disk", ["utf-8", "latin-1"])
@pytest.mark.parametrize("in_file", ["utf-8", "latin-1"])
def test_image_names_in_latin_1_and_utf_8_find_each_other(on_disk: str, in_file: str, tmp_path: Path) -> None:
    images = stack(tmp_path / "p.mrcs", 6)
    os.rename(tmp_path / "p.mrcs", os.fsencode(tmp_path) + b"/" + "grün.mrcs".encode(on_disk))
    star = write(tmp_path / "p.star", rows(6))
    star.write_bytes(star.read_bytes().replace(b"@p.mrcs", b"@" + "grün.mrcs".encode(in_file)))
    found = open_particles(star)
    assert np.array_equal(found.images.read(np.array([4])), images[[4]])
    write_particles_star(tmp_path / "again.star", found)
    assert np.array_equal(open_particles(tmp_path / "again.star").images.read(np.array([4])), images[[4]])


def test_image_names_locale_without_utf_8_changes_nothing(tmp_path: Path) -> None:
    stack(tmp_path / "grün.mrcs", 6)
    star = write(tmp_path / "p.star", rows(6))
    star.write_bytes(star.read_bytes().replace(b"@p.mrcs", "@grün.mrcs".encode()))
    for options in ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {"LC_ALL": "POSIX"}):
        command = [sys.executable, "-m", "ralib", "prepare", str(star), str(tmp_path / f"o{len(options)}.star")]
        done = subprocess.run(command, env={**os.environ, **options}, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(open_particles(tmp_path / f"o{len(options)}.star")) == 6


def test_image_names_gap_in_an_hdf_stack_gives_the_image_or_an_error(tmp_path: Path) -> None:
    images = stack(tmp_path / "p.mrcs", 6)
    write_hdf(tmp_path / "p.hdf", images, pixel_size_A=4.0)
    with h5py.File(tmp_path / "p.hdf", "r+") as file:
        del file["MDF/images/2"]
    direct = open_particles(tmp_path / "p.hdf")
    assert np.array_equal(direct.images.read(np.arange(5)), images[[0, 1, 3, 4, 5]])
    (tmp_path / "p.lst").write_text("#LST\n4\tp.hdf\n0\tp.hdf\n")
    assert np.array_equal(open_particles(tmp_path / "p.lst").images.read(np.arange(2)), images[[4, 0]])
    (tmp_path / "gap.lst").write_text("#LST\n2\tp.hdf\n")
    with pytest.raises(RalibError, match=r"image 3 .* is not there"):
        open_particles(tmp_path / "gap.lst").images.read(np.arange(1))


def test_image_names_written_outside_the_project_can_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("project/Extract", "other", "project/run"):
        (tmp_path / name).mkdir(parents=True)
    stack(tmp_path / "project/Extract/p.mrcs", 6)
    monkeypatch.chdir(tmp_path / "project")
    particles = open_particles(write(Path("p.star"), rows(6, "Extract/p.mrcs")))
    write_particles_star("../other/p.star", particles)
    write_particles_star("run/p.star", particles)
    (tmp_path / "project/linked").symlink_to(tmp_path / "other")
    write_particles_star("linked/q.star", particles)
    assert "@Extract/p.mrcs" in Path("run/p.star").read_text()  # RELION's way, where that can be found
    monkeypatch.chdir("/")
    for star in ("other/p.star", "project/run/p.star", "other/q.star"):
        assert len(open_particles(tmp_path / star)) == 6


@pytest.mark.parametrize("name", ["a\nb.mrcs", "a' \"b.mrcs", "a\rb.mrcs"])
def test_image_names_that_no_star_file_can_hold_are_refused_before_work(name: str, tmp_path: Path) -> None:
    stack(tmp_path / name, 6)
    assert main(["mref", str(tmp_path / name), "2", str(tmp_path / "run"), "--maxit", "1"]) == 2
    assert not (tmp_path / "run").exists()
    stack(tmp_path / "p.mrcs", 6)
    assert main(["prepare", str(tmp_path / "p.mrcs"), str(tmp_path / name).replace(".mrcs", ".star")]) == 2


def test_star_one_particle_as_single_values_is_read(tmp_path: Path) -> None:
    images = stack(tmp_path / "p.mrcs", 6)
    text = "data_optics\n\n" + "".join(f"_{k} {v}\n" for k, v in OPTICS.items()) + "\ndata_particles\n\n"
    row = rows(6)[4]
    (tmp_path / "p.star").write_text(text + "".join(f"_{k} {v}\n" for k, v in row.items()))
    found = open_particles(tmp_path / "p.star")
    assert (len(found), found.pixel_size_A) == (1, 4.0)
    assert found.ctf is not None
    assert np.array_equal(found.images.read(np.arange(1)), images[[4]])
    write_particles_star(tmp_path / "q.star", found)
    assert len(open_particles(tmp_path / "q.star")) == 1


def test_image_names_that_two_projects_hold_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for project in ("a", "b"):
        (tmp_path / project / "Extract").mkdir(parents=True)
        stack(tmp_path / project / "Extract" / "p.mrcs", 4, seed=ord(project))
    star = write(tmp_path / "b" / "p.star", rows(4, file="Extract/p.mrcs"))
    monkeypatch.chdir(tmp_path / "b")
    assert not open_particles(star).warnings
    monkeypatch.chdir(tmp_path / "a")
    (warning,) = open_particles(star).warnings
    assert "is there twice: the one of the current folder is taken" in warning.what
    assert str(tmp_path / "b" / "Extract" / "p.mrcs") in warning.what


def test_image_names_that_a_job_and_its_project_hold_are_said(tmp_path: Path) -> None:
    """From elsewhere, the images beside the particle file were taken without a word, RELION's are the project's."""
    for folder in ("Extract", "job/Extract"):
        (tmp_path / folder).mkdir(parents=True)
        stack(tmp_path / folder / "p.mrcs", 4, seed=len(folder))
    star = write(tmp_path / "job" / "p.star", rows(4, file="Extract/p.mrcs"))
    (warning,) = open_particles(star).warnings
    assert f"{tmp_path}/job/Extract/p.mrcs is there twice: the one nearest to the particle file" in warning.what
    assert str(tmp_path / "Extract" / "p.mrcs") in warning.what
    write(star, rows(4, file=f"{tmp_path}/job/Extract/p.mrcs"))
    assert not open_particles(star).warnings, "a full path leaves no doubt"


def test_image_names_datadir_that_holds_none_of_them_is_refused(tmp_path: Path) -> None:
    """It was left aside without a word where the names led to images elsewhere."""
    stack(tmp_path / "p.mrcs", 4)
    star = write(tmp_path / "p.star", rows(4))
    (tmp_path / "other").mkdir()
    for datadir, words in (
        (tmp_path / "gone", "there is no such folder"),
        (tmp_path / "p.mrcs", "it is no folder"),
        (tmp_path / "other", "does not hold the image files"),
    ):
        with pytest.raises(RalibError, match=words):
            open_particles(star, datadir=datadir)
    stack(tmp_path / "other" / "p.mrcs", 4, seed=7)
    found = open_particles(star, datadir=tmp_path / "other").images.read(np.arange(4))
    assert np.array_equal(found, open_particles(tmp_path / "other" / "p.mrcs").images.read(np.arange(4)))
