"""Particle sets and class averages as pandas, xarray and napari take them; slices of particle sets."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ralib import ClassAverages, ParticleSet, RalibError
from ralib.io import open_particles, read_star, write_hdf, write_mrcs, write_particles_star
from ralib.io.stacks import file_references
from ralib.types import ArraySource, CtfParameters, Metadata, Poses
from star_files import rows, stack, write

N, BOX = 6, 16


def particle_set() -> ParticleSet:
    """Six particles of which everything differs."""
    number = np.arange(N, dtype=np.float64)
    ctf = CtfParameters(1e4 + number, 1e4 - number, number, 300 + 0 * number, 2.7 + 0 * number, 0.1 + 0 * number,
                        0 * number, 0 * number)  # fmt: skip
    poses = Poses(
        psi_deg=torch.arange(N).float() * 10,
        origin_xy_px=torch.arange(2 * N).float().reshape(N, 2),
        mirror=torch.arange(N) % 2 == 1,
        class_index=torch.arange(N) % 3,
        score=torch.arange(N).float(),
    )
    images = np.random.default_rng(0).normal(size=(N, BOX, BOX)).astype(np.float32)
    return ParticleSet(
        ArraySource(images), 2.5, ctf, poses, group=np.arange(N) // 2, same_as=np.array([0, 1, 0, 3, 1, 5]),
        usable=np.array([True] * 5 + [False]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [5, 3, 1]),
        (np.array([True, False, True, False, False, True]), [0, 2, 5]),
        (torch.tensor([4, 0]), [4, 0]),
        ([-1, 2], [5, 2]),
        (3, [3]),
    ],
)
def test_particle_set_index_takes_everything_along(rows: Any, expected: list[int]) -> None:
    whole = particle_set()
    some = whole[rows]
    assert len(some) == len(expected)
    assert np.array_equal(some.images.read(np.arange(len(some))), whole.images.read(np.array(expected)))
    assert some.poses is not None
    assert some.poses.score.tolist() == expected
    assert some.ctf is not None
    assert some.ctf.astigmatism_angle_deg.tolist() == expected
    assert some.group is not None
    assert some.group.tolist() == [i // 2 for i in expected]
    assert some.usable is not None
    assert some.usable.tolist() == [i != 5 for i in expected]
    assert some.pixel_size_A == 2.5


def test_particle_set_slice_of_a_slice_and_its_repeats() -> None:
    twice = particle_set()[1:][::2]  # particles 1, 3, 5
    assert twice.same_as is None
    assert twice.poses is not None
    assert twice.poses.score.tolist() == [1, 3, 5]
    again = particle_set()[[2, 0, 4]]
    assert again.same_as is not None
    assert again.same_as.tolist() == [0, 0, 2]


@pytest.mark.parametrize(
    "rows", [slice(6, 9), [6], [-7], np.zeros(N, bool), np.ones(5, bool), [1.5], np.eye(2, dtype=int)]
)
def test_particle_set_index_out_of_range_is_told(rows: Any) -> None:
    with pytest.raises(RalibError):
        particle_set()[rows]


@pytest.mark.parametrize("suffix", [".mrcs", ".hdf"])
def test_slice_of_a_file_stays_unread_and_knows_its_file(suffix: str, tmp_path: Path) -> None:
    images = particle_set().images.read(np.arange(N))
    path = tmp_path / f"p{suffix}"
    if suffix == ".hdf":
        write_hdf(path, images)
    else:
        write_mrcs(path, images, 2.5)
    some = open_particles(path)[np.array([5, 1])]
    found = file_references(some.images)
    assert found is not None
    assert (found[0], found[2].tolist()) == ([path], [5, 1])
    assert np.array_equal(some.images.read(np.arange(2)), images[[5, 1]])


def test_pandas_round_trip_keeps_every_value() -> None:
    whole = particle_set()
    frame = whole.to_pandas()
    assert frame.index.tolist() == list(range(N))
    assert {"psi_deg", "origin_x_px", "mirror", "defocus_u_A", "pixel_size_A", "group", "usable"} <= set(frame.columns)
    back = ParticleSet.from_dataframe(frame, whole)
    pd.testing.assert_frame_equal(back.to_pandas(), frame)
    fresh = ParticleSet.from_dataframe(frame, whole.images)
    pd.testing.assert_frame_equal(fresh.to_pandas(), frame)


def test_pandas_filter_sort_and_change() -> None:
    whole = particle_set()
    frame = whole.to_pandas().query("class_index == 2").sort_values("psi_deg", ascending=False)
    frame["psi_deg"] += 1
    chosen = ParticleSet.from_dataframe(frame, whole)
    assert chosen.poses is not None
    assert chosen.poses.psi_deg.tolist() == [51, 21]
    assert np.array_equal(chosen.images.read(np.arange(2)), whole.images.read(np.array([5, 2])))
    assert chosen.same_as is None
    two = whole.to_pandas().assign(pixel_size_A=[1, 1, 1, 1, 2, 2])
    sizes = ParticleSet.from_dataframe(two, whole)
    assert sizes.pixel_size_A == 1
    assert sizes.pixel_sizes_A is not None
    assert sizes.pixel_sizes_A.tolist() == [1, 1, 1, 1, 2, 2]


def test_pandas_refuses_what_nothing_would_keep() -> None:
    whole = particle_set()
    with pytest.raises(RalibError, match="columns rating mean nothing"):
        ParticleSet.from_dataframe(whole.to_pandas().assign(rating=1), whole)
    with pytest.raises(RalibError, match="psi_deg but not class_index"):
        ParticleSet.from_dataframe(whole.to_pandas().drop(columns="class_index"), whole)
    with pytest.raises(RalibError, match="5 rows for 6 images"):
        ParticleSet.from_dataframe(whole.to_pandas()[:5], whole.images)


def test_pandas_of_a_relion_file_has_its_columns_and_writes_new_ones(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    particles = open_particles(write(tmp_path / "p.star", rows(6)))
    frame = particles.to_pandas()
    assert "rlnImageName" in frame.columns
    chosen = ParticleSet.from_dataframe(frame[::2].assign(rating=[3, 2, 1]), particles)
    write_particles_star(tmp_path / "out.star", chosen)
    table = read_star(tmp_path / "out.star")["particles"]
    assert isinstance(table, pd.DataFrame)
    assert table["rating"].astype(int).tolist() == [3, 2, 1]
    assert [name[:6] for name in table["rlnImageName"]] == ["000001", "000003", "000005"]


def averages(pixel_size_A: float | None = 2.0) -> ClassAverages:
    images = torch.arange(3 * BOX * BOX, dtype=torch.float32).reshape(3, BOX, BOX)
    return ClassAverages(images, torch.tensor([5, 4, 3]), torch.stack([images, images]), torch.ones(3, 9), pixel_size_A)


def test_xarray_axes_have_names_and_units() -> None:
    found = averages().to_xarray()
    assert found["average"].dims == ("class", "y", "x")
    assert found["class"].values.tolist() == [1, 2, 3]
    assert found["x"].values[[0, BOX // 2, -1]].tolist() == [-16, 0, 14]
    assert found["x"].attrs["units"] == "angstrom"
    assert found.attrs["pixel_size_A"] == 2.0
    assert found["frc"].dims == ("class", "frequency")
    assert float(found["frequency"][-1]) == 0.25  # Nyquist of 2 A pixels
    assert found["half_average"].dims == ("half", "class", "y", "x")
    one = found["average"].sel({"class": 2}).sel(x=0, y=-16)
    assert float(one) == float(averages().images[1, 0, BOX // 2])
    plain = averages(None).to_xarray()
    assert plain["x"].attrs["units"] == "pixel"
    assert plain["x"].values[-1] == 7


def test_napari_layer_is_scaled_in_angstrom(monkeypatch: pytest.MonkeyPatch) -> None:
    """A viewer that notes what it is given: the library needs a screen."""
    given: dict[str, Any] = {}
    viewer = SimpleNamespace(add_image=lambda images, **options: given.update(images=images, **options))
    assert averages().to_napari(viewer) is viewer
    assert given["images"].shape == (3, BOX, BOX)
    assert given["scale"] == (1.0, 2.0, 2.0)
    assert given["translate"] == (0.0, -16.0, -16.0)
    assert given["contrast_limits"][0] < given["contrast_limits"][1]


@pytest.mark.parametrize(("library", "method"), [("xarray", "to_xarray"), ("napari", "to_napari")])
def test_missing_library_names_its_extra(library: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"cryo-ralib\[{library}\]"):
        getattr(averages(), method)()


def test_pandas_table_turned_around_is_taken() -> None:
    """Columns of negative strides, which torch does not take."""
    whole = particle_set()
    back = ParticleSet.from_dataframe(whole.to_pandas()[::-1], whole)
    assert back.poses is not None
    assert back.poses.score.tolist() == [5, 4, 3, 2, 1, 0]
    assert back.ctf is not None
    assert torch.from_numpy(back.ctf.astigmatism_angle_deg).tolist() == [5, 4, 3, 2, 1, 0]
    assert back.usable is not None
    assert torch.from_numpy(back.usable).tolist() == [False, True, True, True, True, True]


def test_pandas_change_of_a_column_that_ours_would_replace_is_refused(tmp_path: Path) -> None:
    """It was written with the old values, without a word."""
    stack(tmp_path / "p.mrcs", 6)
    particles = open_particles(write(tmp_path / "p.star", rows(6, rlnAnglePsi=10, rlnClassNumber=1)))
    frame = particles.to_pandas()
    for label, own in (("rlnDefocusU", "defocus_u_A"), ("rlnAnglePsi", "psi_deg"), ("rlnClassNumber", "class_index")):
        changed = frame.assign(**{label: 9})
        for table in (changed, changed.drop(columns=own)):
            with pytest.raises(RalibError, match=f"{label} was changed in 6 rows .*change `{own}`"):
                ParticleSet.from_dataframe(table, particles)
    one = frame.assign(rlnImageName=["000003@p.mrcs", *frame["rlnImageName"][1:]])
    with pytest.raises(RalibError, match=r"rlnImageName was changed in 1 rows .*change `images`"):
        ParticleSet.from_dataframe(one, particles)
    both = frame[::-1].assign(rlnDefocusU=2e4, defocus_u_A=2e4, rlnMicrographName="other.mrc")
    write_particles_star(tmp_path / "out.star", ParticleSet.from_dataframe(both, particles))
    table = read_star(tmp_path / "out.star")["particles"]
    assert isinstance(table, pd.DataFrame)
    assert table["rlnDefocusU"].astype(float).tolist() == [2e4] * 6
    assert set(table["rlnMicrographName"]) == {"other.mrc"}  # ours alone are protected


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ctf.defocus_u_A", lambda s: {"ctf": s.ctf[:4]}),
        ("ctf.voltage_kV", lambda s: {"ctf": dataclasses.replace(s.ctf, voltage_kV=s.ctf.voltage_kV[:4])}),
        ("poses.psi_deg", lambda s: {"poses": s.poses[:4]}),
        ("poses.mirror", lambda s: {"poses": s.poses.replace(mirror=s.poses.mirror[:4])}),
        ("group", lambda s: {"group": s.group[:4]}),
        ("usable", lambda s: {"usable": s.usable[:4]}),
        ("same_as", lambda s: {"same_as": s.same_as[:4]}),
        ("pixel_sizes_A", lambda s: {"pixel_sizes_A": np.ones(4)}),
        ("metadata.tables['cs']", lambda s: {"metadata": Metadata("cryosparc", tables={"cs": np.zeros(4, "u8,f4")})}),
        (
            "metadata.tables['particles']",
            lambda s: {"metadata": Metadata("relion", tables={"particles": pd.DataFrame({"rlnImageName": ["a"] * 4})})},
        ),
    ],
)
def test_particle_set_every_table_has_a_row_for_each_image(name: str, change: Any) -> None:
    """A slice forgotten on one side gave each particle the values of another."""
    whole = particle_set()
    with pytest.raises(RalibError, match=re.escape(f"`{name}` has 4 rows for 6 images")):
        whole.replace(**change(whole))
    more = ArraySource(np.zeros((3, BOX, BOX), np.float32))
    with pytest.raises(RalibError, match="has 6 rows for 3 images"):
        whole.replace(images=more)


def test_particle_set_other_tables_may_have_any_length() -> None:
    tables = {
        "optics": pd.DataFrame({"rlnOpticsGroup": [1]}),
        "micrographs": pd.DataFrame({"rlnImageName": ["a"] * 3}),
        "particles": pd.DataFrame({"rlnImageName": ["a"] * N}),
    }
    assert len(particle_set().replace(metadata=Metadata("relion", tables=tables))) == N


def test_particle_set_of_an_array_or_of_what_is_none() -> None:
    images = particle_set().images.read(np.arange(N))
    for given in (images, torch.tensor(images)):
        made = ParticleSet(given)  # type: ignore[arg-type]
        assert (len(made), made.box) == (N, BOX)
        assert np.array_equal(made.images.read(np.arange(N)), images)
    for wrong, why in ((images[0], "square images"), (images + 1j, "real numbers"), (particle_set(), "already")):
        with pytest.raises(RalibError, match=why):
            ParticleSet(wrong)  # type: ignore[arg-type]


def test_particle_set_is_walked_particle_by_particle() -> None:
    """Python's own way, by index until an IndexError, ended in a RalibError."""
    each = list(particle_set())
    assert [len(one) for one in each] == [1] * N
    assert [float(one.poses.score) for one in each if one.poses is not None] == [0, 1, 2, 3, 4, 5]
