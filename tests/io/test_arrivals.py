"""A stack that was taken in and changes is noticed: grown, shrunk, replaced, removed."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from ralib import io
from ralib.io import open_particles, open_stack, pose_headers, write_hdf, write_mrcs, write_particles_cs
from ralib.io.arrivals import Arrivals
from ralib.types import CtfParameters, RalibError


def _write(path: Path, n_images: int, seed: int = 1) -> None:
    path.unlink(missing_ok=True)
    write_mrcs(path, np.random.default_rng(seed).normal(size=(n_images, 16, 16)).astype(np.float32), 3.0)
    os.utime(path, (n_images, n_images))


@pytest.mark.parametrize("now", [0, 3, 5, 8])
def test_arrivals_stack_changed_after_it_was_taken_in_is_refused(tmp_path: Path, now: int) -> None:
    stack = tmp_path / "a.mrcs"
    _write(stack, 5)
    arrivals = Arrivals(tmp_path)
    assert arrivals.look() is not None
    assert open_stack(stack).n_images == 5
    assert arrivals.look() is None
    stack.unlink() if now == 0 else _write(stack, now, seed=2)
    if now == 5:
        os.utime(stack, (77, 77))
    with pytest.raises(RalibError, match="taken in"):
        arrivals.look()


def test_arrivals_stack_copied_again_is_the_same(tmp_path: Path) -> None:
    stack = tmp_path / "a.mrcs"
    _write(stack, 5)
    arrivals = Arrivals(tmp_path)
    assert arrivals.look() is not None
    _write(stack, 5)
    os.utime(stack, (77, 77))
    assert arrivals.look() is None


@pytest.mark.parametrize("now", [0, 3, 5, 8])
def test_arrivals_stack_changed_between_two_watches_is_refused(tmp_path: Path, now: int) -> None:
    stack = tmp_path / "a.mrcs"
    _write(stack, 5)
    arrivals = Arrivals(tmp_path)
    assert arrivals.look() is not None
    stack.unlink() if now == 0 else _write(stack, now, seed=2)
    with pytest.raises(RalibError, match="taken in"):
        _again(tmp_path, arrivals).look()


def _again(path: Path, arrivals: Arrivals) -> Arrivals:
    """The watch that goes on, from what its checkpoint holds."""
    arrays, meta = arrivals.state()
    return Arrivals(path, state={**arrays, **json.loads(json.dumps(meta))})


def _star(path: Path, order: list[int], note: str = "") -> Path:
    """A STAR file of images `order` of all.mrcs beside it, as if written a while ago."""
    everything = open_particles(path.with_name("all.mrcs"))
    io.write_particles_star(path, io.take(everything, np.array(order)))
    if note:
        path.write_text(path.read_text().replace("all.mrcs", note))
    os.utime(path, (len(order), len(order)))
    return path


@pytest.mark.parametrize("two_watches", [False, True])
def test_arrivals_rows_of_a_star_file_in_another_order_stay_what_they_were(tmp_path: Path, two_watches: bool) -> None:
    _write(tmp_path / "all.mrcs", 8)
    arrivals = Arrivals(_star(tmp_path / "live.star", [4, 1, 6]))
    first = arrivals.look()
    assert first is not None
    before = first.images.read(np.arange(3))
    if two_watches:
        arrivals = _again(arrivals.path, arrivals)
    _star(arrivals.path, [0, 6, 1, 4, 2])
    found = arrivals.look()
    assert found is not None
    np.testing.assert_array_equal(found.images.read(np.arange(3)), before)
    assert len(found) == 5


@pytest.mark.parametrize("two_watches", [False, True])
@pytest.mark.parametrize("rows", [[4, 1], [4, 1, 7], [4, 1, 7, 5]])
def test_arrivals_row_of_a_star_file_that_is_gone_is_refused(
    tmp_path: Path, rows: list[int], two_watches: bool
) -> None:
    _write(tmp_path / "all.mrcs", 8)
    arrivals = Arrivals(_star(tmp_path / "live.star", [4, 1, 6]))
    assert arrivals.look() is not None
    if two_watches:
        arrivals = _again(arrivals.path, arrivals)
    os.utime(_star(arrivals.path, rows), (99, 99))
    with pytest.raises(RalibError, match="1 of the 3 rows taken in are no longer"):
        arrivals.look()


@pytest.mark.parametrize("two_watches", [False, True])
@pytest.mark.parametrize("now", [0, 3, 8])
def test_arrivals_stack_of_a_star_file_that_changed_is_refused(tmp_path: Path, now: int, two_watches: bool) -> None:
    _write(tmp_path / "all.mrcs", 8)
    arrivals = Arrivals(_star(tmp_path / "live.star", [4, 1, 6]))
    assert arrivals.look() is not None
    if two_watches:
        arrivals = _again(arrivals.path, arrivals)
    (tmp_path / "all.mrcs").unlink() if now == 0 else _write(tmp_path / "all.mrcs", now, seed=2)
    if now:
        os.utime(tmp_path / "all.mrcs", (99, 99))
    with pytest.raises(RalibError, match="taken in"):
        arrivals.look()


def test_arrivals_stack_of_a_star_file_may_grow(tmp_path: Path) -> None:
    images = np.random.default_rng(1).normal(size=(8, 16, 16)).astype(np.float32)
    write_mrcs(tmp_path / "all.mrcs", images[:5], 3.0)
    arrivals = Arrivals(_star(tmp_path / "live.star", [4, 1]))
    assert arrivals.look() is not None
    (tmp_path / "all.mrcs").unlink()
    write_mrcs(tmp_path / "all.mrcs", images, 3.0)
    _star(arrivals.path, [4, 1, 7])
    found = arrivals.look()
    assert found is not None
    np.testing.assert_array_equal(found.images.read(np.arange(3)), images[[4, 1, 7]])
    assert "has grown" in arrivals.notices[0]


def test_arrivals_other_values_in_a_known_row_are_told(tmp_path: Path) -> None:
    _write(tmp_path / "all.mrcs", 8)
    arrivals = Arrivals(_star(tmp_path / "live.star", [4, 1]))
    assert arrivals.look() is not None
    text = _star(arrivals.path, [4, 1, 5]).read_text()
    arrivals.path.write_text(text.replace("2@", "0002@"))
    os.utime(arrivals.path, (98, 98))
    with pytest.raises(RalibError, match="no longer"):  # another name is another row
        arrivals.look()
    lines = [line + "  7.5" if "@" in line else line for line in text.splitlines()]
    place = max(i for i, line in enumerate(lines) if line.startswith("_rln"))
    lines.insert(place + 1, "_rlnNote #99")
    arrivals.path.write_text("\n".join(lines) + "\n")
    os.utime(arrivals.path, (99, 99))
    assert arrivals.look() is not None
    assert "2 rows" in arrivals.notices[0]


def test_arrivals_stack_of_another_pixel_size_is_left_out(tmp_path: Path) -> None:
    _write(tmp_path / "a.mrcs", 5)
    write_mrcs(tmp_path / "b.mrcs", np.random.default_rng(3).normal(size=(4, 16, 16)).astype(np.float32), 1.5)
    os.utime(tmp_path / "b.mrcs", (9, 9))
    arrivals = Arrivals(tmp_path)
    found = arrivals.look()
    assert found is not None
    assert len(found) == 5
    assert "1.5 A/px" in arrivals.left_out["b.mrcs"]


def test_arrivals_files_that_vanish_or_are_no_stacks_end_no_watch(tmp_path: Path) -> None:
    """A link to nothing, a folder and a pipe with a stack's name; other particle files are named, not dropped."""
    _write(tmp_path / "a.mrcs", 5)
    (tmp_path / "dead.mrcs").symlink_to(tmp_path / "nothing")
    (tmp_path / "folder.mrcs").mkdir()
    os.mkfifo(tmp_path / "pipe.mrcs")
    (tmp_path / "b.hdf").write_bytes(b"")
    arrivals = Arrivals(tmp_path)
    particles = arrivals.look()
    assert particles is not None
    assert len(particles) == 5
    assert list(arrivals.left_out) == ["b.hdf"]


def test_arrivals_stack_from_a_disk_whose_clock_is_ahead_is_taken(tmp_path: Path) -> None:
    _write(tmp_path / "a.mrcs", 5)
    later = time.time() + 3600
    os.utime(tmp_path / "a.mrcs", (later, later))
    assert Arrivals(tmp_path).look() is not None


@pytest.mark.parametrize("suffix", [".cs", ".hdf"])
def test_arrivals_other_ctf_in_any_format_is_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    write_mrcs(tmp_path / "a.mrcs", np.random.default_rng(0).normal(size=(5, 16, 16)).astype(np.float32), 3.0)

    def write(defocus_A: float) -> None:
        path.unlink(missing_ok=True)
        ctf = CtfParameters(*(np.full(5, v) for v in (defocus_A, defocus_A, 0.0, 300.0, 2.7, 0.1, 0.0, 0.0)))
        particles = open_particles(tmp_path / "a.mrcs").replace(ctf=ctf)
        if suffix == ".cs":
            write_particles_cs(path, particles)
        else:
            write_hdf(path, particles.images.read(np.arange(5)), pose_headers(None, ctf, 3.0), pixel_size_A=3.0)
        os.utime(path, (defocus_A, defocus_A))

    write(15000)
    arrivals = Arrivals(path)
    assert arrivals.look() is not None
    assert arrivals.notices == []
    write(16000)
    particles = arrivals.look()
    assert particles is not None
    assert particles.ctf is not None
    assert particles.ctf.defocus_u_A == pytest.approx(16000)
    assert any("5 rows of" in notice for notice in arrivals.notices)
