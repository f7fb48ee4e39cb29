"""From RELION's tables to cryoSPARC's fields and EMAN2's headers: what has a place goes along, the rest is said."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from make_run import make_run
from ralib.cli import main
from ralib.io import left_behind, open_particles, open_stack, read_star, write_particles_cs, write_particles_star
from ralib.io.cryosparc import open_cs
from ralib.io.cryosparc_write import _with_fields, save_cs
from ralib.results.particle_rules import recentred
from ralib.types import RalibError
from star_files import OPTICS, rows, stack, write

TWO = (OPTICS | {"rlnOpticsGroup": 3}, OPTICS | {"rlnOpticsGroup": 7, "rlnOpticsGroupName": "two", "rlnVoltage": 200})


def particle_file(folder: Path) -> Path:
    stack(folder / "p.mrcs", 12)
    columns = {
        "rlnOpticsGroup": [3] * 6 + [7] * 6, "rlnRandomSubset": [1 + i % 2 for i in range(12)],
        "rlnCoordinateX": [100.5 + i for i in range(12)], "rlnCoordinateY": 40, "rlnCtfScalefactor": 0.5,
        "rlnClassNumber": [1 + i % 3 for i in range(12)], "rlnAnglePsi": 10, "rlnGroupName": "g",
    }  # fmt: skip
    return write(folder / "p.star", rows(12, **columns), *TWO)


def test_cs_writer_star_columns_with_a_field_go_along(tmp_path: Path) -> None:
    particles = open_particles(particle_file(tmp_path))
    write_particles_cs(tmp_path / "p.cs", particles)
    table = np.load(tmp_path / "p.cs")
    assert table["ctf/exp_group_id"].tolist() == [3] * 6 + [7] * 6
    assert table["ctf/accel_kv"].tolist() == [300] * 6 + [200] * 6
    assert table["alignments2D/split"].tolist() == [0, 1] * 6
    assert table["location/micrograph_path"].tolist() == [b"m0.mrc"] * 12
    assert np.all(table["ctf/scale"] == 0.5)
    assert left_behind(particles, tmp_path / "p.cs") == ["rlnCoordinateX", "rlnCoordinateY", "rlnGroupName"]
    assert left_behind(particles, tmp_path / "p.hdf") == ["rlnRandomSubset", "rlnCtfScalefactor", "rlnGroupName"]
    assert left_behind(particles, tmp_path / "p.star") == []
    again = open_particles(tmp_path / "p.cs")
    assert left_behind(again, tmp_path / "x.cs") == []


def test_hdf_writer_micrograph_and_place_go_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(particle_file(tmp_path)), str(tmp_path / "o.hdf")]) == 0
    assert "no place for rlnRandomSubset, rlnCtfScalefactor, rlnGroupName" in capsys.readouterr().err
    with h5py.File(tmp_path / "o.hdf") as file:
        header = file["MDF/images/2"].attrs
        assert header["EMAN.ptcl_source_coord"].tolist() == [102.5, 40]
        assert header["EMAN.ptcl_source_image"] == b"m0.mrc"
    assert open_particles(tmp_path / "o.hdf").group is not None


def test_select_into_another_format_says_what_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, n_classes=3, n_particles=12, box=16, n_iterations=1)
    text = (run / "particles.star").read_text().replace("_rlnMicrographName", "_rlnGroupName")
    (run / "particles.star").write_text(text)
    for name, said in (("s.cs", True), ("s.star", False)):
        assert main(["select", str(run), "--classes=1", "--out", str(tmp_path / name)]) == 0
        assert ("no place for rlnGroupName" in capsys.readouterr().out) == said, name


@pytest.mark.parametrize("kind", ["<i8", ">u8", "<u8"])
def test_cryosparc_uids_are_joined_as_64_bits_whatever_their_sign(kind: str, tmp_path: Path) -> None:
    """As float64, in which signed and unsigned numbers met, uids that differ by 7 were one."""
    stack(tmp_path / "p.mrcs", 12)
    write_particles_cs(tmp_path / "all.cs", open_particles(write(tmp_path / "p.star", rows(12))))
    table = np.load(tmp_path / "all.cs")
    table["uid"] = 2**63 - 40 + 7 * np.arange(12, dtype=np.uint64)  # beyond 2**63, too
    blob, ctf = (["uid", *(n for n in table.dtype.names if n.startswith(p))] for p in ("blob/", "ctf/"))
    save_cs(tmp_path / "J1_particles.cs", np.array(table[blob].tolist(), dtype=[(n, table.dtype[n]) for n in blob]))
    shuffled = table[np.random.default_rng(0).permutation(12)]
    passed = np.zeros(12, dtype=[("uid", kind), *((n, table.dtype[n]) for n in ctf[1:])])
    for name in ctf:
        passed[name] = shuffled[name].astype(kind) if name == "uid" else shuffled[name]
    save_cs(tmp_path / "J1_passthrough_particles.cs", passed)
    particles = open_particles(tmp_path / "J1_particles.cs")
    assert particles.ctf is not None
    assert np.array_equal(particles.ctf.defocus_u_A, table["ctf/df1_A"])
    save_cs(tmp_path / "J1_passthrough_particles.cs", passed.astype([("uid", "f8"), *passed.dtype.descr[1:]]))
    with pytest.raises(RalibError, match="uid holds no whole numbers"):
        open_cs(tmp_path / "J1_particles.cs", open_stack, passthrough=[tmp_path / "J1_passthrough_particles.cs"])


def test_cryosparc_image_number_that_is_a_fraction_is_refused(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 12)
    write_particles_cs(tmp_path / "p.cs", open_particles(write(tmp_path / "p.star", rows(12))))
    table = np.load(tmp_path / "p.cs")
    number = table["blob/idx"].astype("f4")
    number[4] = 3.5
    fields = [(n, "f4") if n == "blob/idx" else (n, table.dtype[n]) for n in table.dtype.names]
    changed = np.zeros(12, dtype=fields)
    for name in table.dtype.names:
        changed[name] = number if name == "blob/idx" else table[name]
    save_cs(tmp_path / "p.cs", changed)
    with pytest.raises(RalibError, match=r"blob/idx 3\.5 of particle 5"):
        open_particles(tmp_path / "p.cs")


def test_star_writer_places_of_a_cs_file_go_along_and_move_together(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 12)
    write_particles_cs(tmp_path / "p.cs", open_particles(write(tmp_path / "p.star", rows(12, rlnAnglePsi=0))))
    table = np.load(tmp_path / "p.cs")
    names = ("center_x_frac", "center_y_frac", "micrograph_psize_A")
    added = [*((f"location/{n}", "f4") for n in names), ("location/micrograph_shape", "u4", (2,))]
    table = _with_fields(table, added)
    table["location/center_x_frac"], table["location/center_y_frac"] = 0.25, np.linspace(0.1, 0.9, 12)
    table["location/micrograph_psize_A"], table["location/micrograph_shape"] = 2.0, (4000, 3000)  # rows, columns
    table["alignments2D/shift"] = (3.0, -1.0)
    save_cs(tmp_path / "p.cs", table)
    write_particles_star(tmp_path / "o.star", open_particles(tmp_path / "p.cs"))
    particles = open_particles(tmp_path / "o.star")
    found = particles.metadata.tables["particles"]
    assert np.allclose(found["rlnCoordinateX"], 750)
    assert np.allclose(found["rlnCoordinateY"], np.linspace(400, 3600, 12), atol=1e-3)
    assert set(found["rlnMicrographPixelSize"]) == {2.0}
    moved = recentred(particles)
    assert moved.poses is not None
    assert not moved.poses.origin_xy_px.abs().max() > 0.5
    write_particles_cs(tmp_path / "q.cs", moved)
    again = np.load(tmp_path / "q.cs")
    after = moved.metadata.tables["particles"]
    assert np.abs(after["rlnCoordinateX"] - 750).min() > 1
    assert np.allclose(again["location/center_x_frac"] * 3000, after["rlnCoordinateX"], atol=1e-2)
    assert np.allclose(again["location/center_y_frac"] * 4000, after["rlnCoordinateY"], atol=1e-2)


def test_star_writer_exposure_groups_and_half_sets_of_a_cs_file_go_along(tmp_path: Path) -> None:
    write_particles_cs(tmp_path / "p.cs", open_particles(particle_file(tmp_path)))
    table = np.load(tmp_path / "p.cs")
    table["ctf/accel_kv"] = 300  # the groups differ in nothing but their numbers
    save_cs(tmp_path / "p.cs", table)
    write_particles_star(tmp_path / "o.star", open_particles(tmp_path / "p.cs"))
    blocks = read_star(tmp_path / "o.star")
    particles, optics = blocks["particles"], blocks["optics"]
    assert isinstance(optics, pd.DataFrame)
    assert optics["rlnOpticsGroup"].tolist() == [1, 2]
    assert particles["rlnOpticsGroup"].tolist() == [1] * 6 + [2] * 6
    assert particles["rlnRandomSubset"].tolist() == [1, 2] * 6
    write_particles_cs(tmp_path / "q.cs", open_particles(tmp_path / "o.star"))
    assert np.array_equal(np.load(tmp_path / "q.cs")["ctf/exp_group_id"], table["ctf/exp_group_id"])


def test_cs_writer_names_images_so_that_they_are_found_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of images counted from the folder in which the command ran, wherever the file was written."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        stack(Path("p.mrcs"), 12, seed=len(folder))
    monkeypatch.chdir(tmp_path / "here")
    particles = open_particles(Path("p.mrcs"))
    for out, name in (("q.cs", b"p.mrcs"), ("../there/q.cs", str(tmp_path / "here" / "p.mrcs").encode())):
        write_particles_cs(out, particles)
        assert set(np.load(out)["blob/path"].tolist()) == {name}
    monkeypatch.chdir("/")
    found = open_particles(tmp_path / "there" / "q.cs").images.read(np.arange(12))
    assert np.array_equal(found, open_particles(tmp_path / "here" / "p.mrcs").images.read(np.arange(12)))
