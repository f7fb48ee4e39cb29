"""Every malformed file gives one clear line, and every failed write leaves what was there and nothing else."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from make_run import make_run
from ralib.cli import common, main
from ralib.io import (
    atomic_path,
    open_images,
    open_particles,
    read_star,
    write_hdf,
    write_json,
    write_mrcs,
    write_params,
    write_particles_cs,
    write_particles_star,
    write_star,
    write_text,
)
from ralib.types import Poses, RalibError

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)


def told(message: str, path: Path, **options: object) -> None:
    """Opening `path` and reading it raises one line with `message` in it."""

    def read_all() -> None:
        particles = open_particles(path, **options)  # type: ignore[arg-type]
        particles.images.read(np.arange(len(particles)))

    with pytest.raises(RalibError, match=message) as caught:
        read_all()
    assert "\n" not in str(caught.value)


def changed(path: Path, offset: int, value: int, *, dtype: str = "<i4") -> Path:
    raw = bytearray(path.read_bytes())
    new = np.array(value, dtype=dtype).tobytes()
    raw[offset : offset + len(new)] = new
    path.write_bytes(bytes(raw))
    return path


@pytest.fixture
def mrcs(tmp_path: Path) -> Path:
    write_mrcs(tmp_path / "a.mrcs", IMAGES, 1.5)
    return tmp_path / "a.mrcs"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "truncated.*4 images.*has 3"),
        (lambda p: p.write_bytes(p.read_bytes()[:500]), "no MRC file"),
        (lambda p: p.write_bytes(b""), "no MRC file"),
        (lambda p: changed(p, 8, 10**9), "truncated"),
        (lambda p: changed(p, 8, 0), "holds no images"),
        (lambda p: changed(p, 8, -3), "no MRC stack"),
        (lambda p: changed(p, 0, 7), "8 x 7 px|must be square|7 x 8 px"),
        (lambda p: changed(p, 12, 4), "mode 4"),
        (lambda p: changed(p, 12, 77), "mode 77"),
        (lambda p: changed(p, 92, 2**30), "truncated"),
        (lambda p: p.unlink(), "no such file"),
        (lambda p: (p.unlink(), p.mkdir()), "is a folder"),
        (lambda p: p.write_text("hello " * 1000), "no MRC stack|truncated"),
    ],
)
def test_mrc_reader_malformed_file_is_refused(mrcs: Path, damage: Callable, message: str) -> None:
    damage(mrcs)
    told(message, mrcs)


def test_open_images_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    told("knows no image file .txt", tmp_path / "a.txt")
    (tmp_path / "nosuffix").write_text("x")
    told("without a suffix", tmp_path / "nosuffix")


@pytest.fixture
def star(mrcs: Path) -> Path:
    write_particles_star(mrcs.parent / "p.star", open_particles(mrcs), Poses.identity(4), project=mrcs.parent)
    return mrcs.parent / "p.star"


def edited(path: Path, change: Callable[[dict], object]) -> None:
    tables = read_star(path)
    change(tables)
    write_star(path, tables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["particles"].pop("rlnImageName"), "no table with the column rlnImageName"),
        (lambda t: t.__setitem__("particles", t["particles"][:0]), "empty, there are no particles"),
        (lambda t: t["particles"].insert(0, "rlnDefocusU", ["x"] * 4), "no table|numbers"),
        (lambda t: t["particles"].__setitem__("rlnImageName", ["9@a.mrcs"] * 4), "image 9 of .* holds 4"),
        (lambda t: t["particles"].__setitem__("rlnImageName", ["0@a.mrcs"] * 4), "from 1 is needed"),
        (lambda t: t["particles"].__setitem__("rlnImageName", ["x@a.mrcs"] * 4), "from 1 is needed"),
        (lambda t: t["particles"].__setitem__("rlnImageName", ["1@b.mrcs"] * 4), "b.mrcs.*`datadir`"),
        (lambda t: t["particles"].__setitem__("rlnImageName", ["1@/etc"] * 4), "is not there"),
        (lambda t: t["particles"].__setitem__("rlnOpticsGroup", [7] * 4), "optics group 7"),
        (lambda t: t["particles"].__setitem__("rlnAnglePsi", ["a"] * 4), "rlnAnglePsi should hold numbers"),
        (lambda t: t["optics"].__setitem__("rlnImagePixelSize", [-1.0]), "pixel size -1"),
        (lambda t: t["optics"].__setitem__("rlnImagePixelSize", ["nan"]), "pixel size"),
    ],
)
def test_star_reader_malformed_file_is_refused(star: Path, change: Callable, message: str) -> None:
    edited(star, change)
    told(message, star)


def test_star_reader_defocus_without_numbers_is_refused(star: Path) -> None:
    edited(star, lambda t: t["particles"].insert(0, "rlnDefocusU", ["x"] * 4))
    told("rlnDefocusU should hold numbers", star)


def test_star_reader_malformed_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    for text, message in (
        ("", "no line beginning with data_"),
        ("not a star file", "no line beginning with data_"),
        ("data_\n\nloop_\n", "without column names"),
        ("data_x\nloop_\n_rlnImageName\n1@a.mrcs extra\n", "line 4: 2 values"),
    ):
        path.write_text(text)
        told(message, path)
    path.write_bytes(b"data_\0\0")
    told("binary", path)


def test_open_particles_stacks_of_two_boxes_are_refused(star: Path) -> None:
    write_mrcs(star.parent / "b.mrcs", np.zeros((4, 6, 6)), 1.5)
    edited(star, lambda t: t["particles"].__setitem__("rlnImageName", ["1@a.mrcs", "1@b.mrcs"] * 2))
    told("ralib prepare STACK OUT.star --clip 6", star)


def test_cs_reader_malformed_file_is_refused(star: Path) -> None:
    path = star.parent / "p.cs"
    write_particles_cs(path, open_particles(star))
    raw = path.read_bytes()
    for damaged, message in (
        (raw[:-10], "truncated"),
        (raw[:40], "no NumPy array"),
        (b"", "no NumPy array"),
        (raw.replace(b"(4,)", b"(9999999999,)", 1), "truncated|no NumPy"),
        (b"\x94CSDAT" + raw, "compressed cryoSPARC stream"),
        (raw.replace(b"blob/path", b"blob/pxth"), "no field blob/path"),
        (raw.replace(b"a.mrcs", b"b.mrcs"), "b.mrcs.*`datadir`"),
    ):
        path.write_bytes(damaged)
        told(message, path)


def test_hdf_reader_malformed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"

    def fresh() -> h5py.File:
        write_hdf(path, IMAGES)
        return h5py.File(path, "r+")

    with fresh() as file:
        del file["MDF/images/2/image"]
    told("image 2 .* no pixels", path)
    with fresh() as file:
        del file["MDF/images/1/image"]
        file["MDF/images/1/image"] = np.zeros((3, 3), dtype=np.float32)
    told("image 2 of", path)
    with fresh() as file:
        del file["MDF"]
    told("no group /MDF/images", path)
    with fresh() as file:
        for i in range(4):
            del file[f"MDF/images/{i}"]
    told("holds no images", path)
    with fresh() as file:
        del file["MDF/images/0/image"]
        file.create_dataset("MDF/images/0/image", shape=(20000, 20000), dtype="f4")  # a claim, nothing behind it
    told("never written", path)
    fresh().close()
    path.write_bytes(path.read_bytes()[:3000])
    told("damaged", path)
    path.write_bytes(b"plain text")
    told("no HDF5 file", path)


def test_imagic_spider_npy_readers_malformed_file_is_refused(shared_data: Path, tmp_path: Path) -> None:
    for name in ("smallStack.hed", "smallStack.img", "smallStack.stk"):
        (tmp_path / name).write_bytes((shared_data / "formats" / name).read_bytes())
    changed(tmp_path / "smallStack.stk", 25 * 4, 1000, dtype="<f4")
    told("truncated", tmp_path / "smallStack.stk")
    changed(tmp_path / "smallStack.hed", 52, 63)
    told("must be square", tmp_path / "smallStack.hed")
    (tmp_path / "smallStack.img").unlink()
    told("no such file|is missing", tmp_path / "smallStack.hed")
    np.save(tmp_path / "flat.npy", np.zeros(5))
    told(r"images \(k, n, n\)", tmp_path / "flat.npy")


def test_open_particles_unreadable_folder_is_refused(star: Path) -> None:
    blocked = star.parent / "blocked"
    blocked.mkdir()
    (blocked / "a.mrcs").write_bytes((star.parent / "a.mrcs").read_bytes())
    edited(star, lambda t: t["particles"].__setitem__("rlnImageName", ["1@blocked/a.mrcs"] * 4))
    blocked.chmod(0)
    try:
        if os.access(blocked, os.X_OK):
            pytest.skip("this user may read everything (root): nothing is unreadable here")
        told("is not there", star)
    finally:
        blocked.chmod(0o755)


def test_open_images_pixels_that_are_no_numbers_are_passed_on(tmp_path: Path) -> None:
    """A reader does not judge pixels: NaN reaches the loops, which name and leave out such images."""
    images = IMAGES.copy()
    images[2, 3, 3] = np.nan
    write_mrcs(tmp_path / "a.mrcs", images, 1.0)
    assert np.isnan(open_images(tmp_path / "a.mrcs")[2, 3, 3])


WRITERS = {
    "a.mrcs": lambda p, s: write_mrcs(p, IMAGES, 1.0),
    "a.hdf": lambda p, s: write_hdf(p, IMAGES),
    "a.star": lambda p, s: write_particles_star(p, open_particles(s), Poses.identity(4)),
    "a.cs": lambda p, s: write_particles_cs(p, open_particles(s), Poses.identity(4)),
    "a.txt": lambda p, s: write_params(p, Poses.identity(4)),
    "a.json": lambda p, s: write_json(p, {"a": [1, float("nan")]}),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_writers_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    write_mrcs(tmp_path / "source.mrcs", IMAGES, 1.0)
    target = tmp_path / "out" / name
    target.parent.mkdir()
    target.write_bytes(b"what the user had")

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RalibError, match=r"cannot write .*nothing was changed"):
        WRITERS[name](target, tmp_path / "source.mrcs")
    assert target.read_bytes() == b"what the user had"
    assert list(target.parent.iterdir()) == [target]


def test_writers_limit_hit_in_mid_write_leaves_nothing(tmp_path: Path) -> None:
    """A true write error (the file size limit), in the middle of an MRC, an HDF and a STAR file."""
    script = """
        import resource, signal, sys
        import numpy as np
        import pandas as pd
        from ralib.io import write_hdf, write_mrcs, write_star
        from ralib.types import RalibError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        images = np.ones((100, 32, 32), np.float32)
        table = {"x": pd.DataFrame({"a": np.arange(50_000)})}
        for write in (
            lambda: write_mrcs("a.mrcs", images, 1.0),
            lambda: write_hdf("a.hdf", images),
            lambda: write_star("a.star", table),
        ):
            try:
                write()
            except RalibError as error:
                print("told:", error)
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("told: cannot write") == 3, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_writers_error_in_between_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    def half() -> None:
        with atomic_path(tmp_path / "x") as temporary:
            temporary.write_text("half")
            assert temporary.parent == tmp_path
            raise kind

    with pytest.raises(kind):
        half()
    assert not list(tmp_path.iterdir())


def test_writers_impossible_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RalibError, match="a folder of that name"):
        write_text(tmp_path, "x")
    with pytest.raises(RalibError, match="cannot write"):
        write_text(tmp_path / "no" / "such" / "x", "x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(RalibError, match="cannot write"):
        write_text(tmp_path / "file" / "x", "x")
    with pytest.raises(RalibError, match="cannot write"):
        write_text(tmp_path / ("n" * 300), "x")


def test_writers_wrong_arguments_are_refused(mrcs: Path) -> None:
    particles = open_particles(mrcs)
    for call, message in (
        (lambda: write_mrcs(mrcs, np.zeros((2, 3, 4)), 1.0), "cannot go into a stack"),
        (lambda: write_mrcs(mrcs, IMAGES, 1.0, dtype=np.int16), "float32 or float16"),
        (lambda: write_particles_star(mrcs, particles, Poses.identity(3)), "3 poses for 4 particles"),
        (lambda: write_particles_cs(mrcs, particles, Poses.identity(3)), "3 poses for 4 particles"),
        (lambda: write_hdf(mrcs, IMAGES, [{}]), "1 headers for 4 images"),
        (lambda: write_hdf(mrcs, IMAGES[0]), "cannot go into a stack"),
        (lambda: write_params(mrcs, Poses.identity(2), form="x"), "no parameter file of the form"),
    ):
        with pytest.raises(RalibError, match=message):
            call()
    assert np.array_equal(open_images(mrcs), IMAGES)
    assert len(list(mrcs.parent.iterdir())) == 1


def test_star_writer_names_cannot_break_out_of_a_row(tmp_path: Path) -> None:
    """A label with a line break or a quote stays one value of one row."""
    evil = "x\ndata_evil\n\nloop_\n_a\n1"
    write_star(tmp_path / "p.star", {"particles": pd.DataFrame({"rlnMicrographName": [evil, "y"]})})
    tables = read_star(tmp_path / "p.star")
    assert list(tables) == ["particles"]
    assert len(tables["particles"]) == 2


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("text", ["", "x", "-1"])
def test_environment_of_a_launcher_that_holds_no_number_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str, text: str
) -> None:
    monkeypatch.setenv(name, text)
    assert main(["mref", str(tmp_path / "none.star"), "2", str(tmp_path / "out"), "--device=cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert name in line or "none.star" in line


def test_memory_that_is_refused_is_told_with_what_is_free(capsys) -> None:
    for error in (MemoryError("Unable to allocate 9 GiB"), RuntimeError("[enforce fail] can't allocate memory: 9")):

        def fail(error: Exception = error, **_: object) -> None:
            raise error

        assert common.run(fail) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "out of memory" in line
        assert "MiB of main memory" in line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("transform STAR OUT.star --method=sinc", "--method 'sinc'|no interpolation"),
        ("prepare STAR OUT.star --normalise=background --background-radius=nan", "background-radius': 'nan' is no"),
        ("prepare STAR OUT.star --background-radius=3", "--background-radius is of --normalise background"),
        ("prepare STAR OUT.star --mask-edge=3", "--mask-edge is of --mask-radius"),
        ("prepare STAR OUT.star --mask-radius=12", "--mask-radius 12: nothing lies beyond"),
        ("average STAR OUT.mrcs --snr=3", "--snr 3 is of --ctf wiener"),
        ("prepare STAR OUT.star --mask-radius=inf", "mask-radius': 'inf' is no"),
        ("classify STAR OUT --classes=-1", "--classes -1: ask for at least 1"),
        ("watch STAR OUT --classes=-1", "--classes -1"),
        ("relion --i STAR --o OUT --K -1", "classes -1"),
        ("classify STAR OUT --classes=1 --search=-1", "--search -1 px"),
        ("classify STAR OUT --classes=1 --batch=-1", "--batch"),
        ("classify STAR OUT --classes=1 --resolution=inf", "--resolution inf"),
        ("classify STAR OUT --classes=1 --resolution=1e9", "leaves nothing to compare"),
        ("classify STAR OUT --classes=1 --seed=99999999999999999999", "--seed"),
        ("mref STAR 1 OUT --seed=-1", "--seed"), ("reffree STAR OUT --memory=nan", "--memory nan"),
        ("mref STAR 1 OUT --snr=inf", "--snr inf"), ("mref STAR 1 OUT --min-members=-1", "--min-members -1"),
        ("analyze STAR --out=OUT --rand_seed=-1", "--rand_seed|--seed"),
        ("bench --repeats=-1", "--repeats"), ("bench --particles=-1", "--particles"), ("bench --ranks=-2", "--ranks"),
        ("simulate OUT --voltage=0", "--voltage"), ("select RUN OUT.star --split=99999999999999", "--split"),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_meant_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    made = make_run(tmp_path, n_classes=3, n_particles=12, box=16, n_iterations=1)
    put = {"STAR": str(made / "particles.star"), "RUN": str(made), "OUT": str(tmp_path / "out")}
    words_given = [put.get(w, w.replace("OUT", put["OUT"])) for w in command.split()]
    assert main(words_given) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert re.search(words, error), error
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("command", ["classify FILE OUT --classes=1", "mref FILE 1 OUT", "reffree FILE OUT"])
def test_images_too_small_to_be_aligned_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write_mrcs(tmp_path / "p.mrcs", np.random.default_rng(0).normal(size=(40, 4, 4)).astype(np.float32), 3.0)
    put = {"FILE": str(tmp_path / "p.mrcs"), "OUT": str(tmp_path / "out")}
    assert main([put.get(w, w) for w in command.split()]) == 2
    error = capsys.readouterr().err
    assert "images of 4 px are too small to be aligned: 8 px are needed" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\x1f\x8b\x08\x00", "compressed by gzip: unpack it first"),
        (b"BZh9", "compressed by bzip2"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html>\n<html>", "a page of the web"),
    ],
)
@pytest.mark.parametrize("suffix", [".mrcs", ".star"])
def test_readers_say_what_a_packed_file_is(start: bytes, words: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"p{suffix}"
    for content in (start, start + bytes(range(256)) * 8):
        path.write_bytes(content)
        with pytest.raises(RalibError, match=words):
            open_particles(path)


def test_star_reader_names_cistem_and_blanks_without_quotes(star: Path, tmp_path: Path) -> None:
    (tmp_path / "c.star").write_text("data_\n\nloop_\n_cisTEMPositionInStack #1\n_cisTEMAnglePsi #2\n 1 0.5\n")
    with pytest.raises(RalibError, match="a file of cisTEM"):
        open_particles(tmp_path / "c.star")
    star.write_text(star.read_text().replace("@", "@my "))
    with pytest.raises(RalibError, match="quote names that hold blanks"):
        open_particles(star)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{} 0 0 0 0 1.5", "whole number"), ("{} 0 0 0 0 -7", "whole number"), ("{} 0 1e30 0 0 0", "cannot be meant"),
        ("{} 1e300 0 0 0 0", "cannot be meant"), ("{} 0 70 0 0 0", "cannot be meant"), ("{} 0 0 0 0 -1", ""),
    ],
)  # fmt: skip
def test_params_import_of_poses_that_cannot_be_meant_is_refused(
    row: str, words: str, star: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n, box = len(open_particles(star)), open_particles(star).box
    assert box < 35
    (tmp_path / "x.txt").write_text("".join(row.format(i) + "\n" for i in range(n)))
    done = main(["params", str(star), "--import", str(tmp_path / "x.txt"), "--out", str(tmp_path / "o.star")])
    assert done == (2 if words else 0)
    assert words in capsys.readouterr().err
