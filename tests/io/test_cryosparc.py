"""cryoSPARC .cs files: real ones, passthrough files, exact round trips through STAR, mirrors."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.io import (
    open_images,
    open_particles,
    open_stack,
    read_star,
    take,
    write_mrcs,
    write_particles_cs,
    write_particles_star,
)
from ralib.io.cryosparc import open_cs
from ralib.io.cryosparc_table import load_cs
from ralib.io.cryosparc_write import save_cs
from ralib.types import ParticleSet, Poses, RalibError

REAL = ("real/empiar10076_7/empiar_10076_7.cs", "meta/cs/cryosparc_J2_particles_exported.cs")
ALL = (*REAL, "meta/cs/cryosparc_P12_J24_001_particles.cs")


def test_cryosparc_real_particles_are_those_of_the_star_file(shared_data: Path) -> None:
    folder = shared_data / "real/empiar10076_7"
    cs, star = (open_particles(folder / f"empiar_10076_7{s}") for s in (".cs", ".star"))
    assert np.array_equal(cs.images.read(np.arange(7)), star.images.read(np.arange(7)))
    assert cs.pixel_size_A == pytest.approx(star.pixel_size_A, rel=1e-6)
    assert cs.ctf is not None
    assert star.ctf is not None
    for name in vars(cs.ctf):
        assert np.allclose(getattr(cs.ctf, name), getattr(star.ctf, name), rtol=1e-5), name


def test_cryosparc_2d_alignments_are_read(shared_data: Path) -> None:
    particles = open_particles(shared_data / REAL[1], require_images=False)
    rows = np.load(shared_data / REAL[1])
    assert (len(particles), particles.box) == (22, 300)
    assert particles.poses is not None
    expected = np.exp(1j * rows["alignments2D/pose"])
    assert np.allclose(np.exp(1j * np.radians(particles.poses.psi_deg.numpy())), expected, atol=1e-5)
    assert np.allclose(particles.poses.origin_xy_px.numpy(), rows["alignments2D/shift"])
    assert particles.poses.class_index.tolist() == rows["alignments2D/class"].tolist()
    assert "90334788266266069_18jam15b_0345_ali_DW.mrcs" in particles.images.why  # type: ignore[attr-defined]
    assert ">" not in particles.images.why  # type: ignore[attr-defined]


@pytest.mark.parametrize("left", ["pose", "shift"])
def test_cryosparc_half_a_pose_is_said(shared_data: Path, tmp_path: Path, left: str) -> None:
    rows = np.load(shared_data / REAL[1])
    gone = f"alignments2D/{'shift' if left == 'pose' else 'pose'}"
    save_cs(tmp_path / "half.cs", rows[[name for name in rows.dtype.names if name != gone]])
    particles = open_particles(tmp_path / "half.cs", require_images=False)
    assert particles.poses is None
    assert any(f"only alignments2D/{left}:" in str(warning) for warning in particles.warnings)
    whole = open_particles(shared_data / REAL[1], require_images=False)
    assert not any("there is only" in str(warning) for warning in whole.warnings)


def test_cryosparc_shifts_count_in_their_own_pixels(shared_data: Path, tmp_path: Path) -> None:
    """A job that binned on the fly wrote its shifts in larger pixels."""
    rows = np.load(shared_data / REAL[1])
    plain = open_particles(shared_data / REAL[1], require_images=False).poses
    rows["alignments2D/psize_A"] *= 2
    save_cs(tmp_path / "binned.cs", rows)
    binned = open_particles(tmp_path / "binned.cs", require_images=False).poses
    assert plain is not None
    assert binned is not None
    assert torch.allclose(binned.origin_xy_px, plain.origin_xy_px * 2)


def test_cryosparc_3d_alignments_give_the_in_plane_part(shared_data: Path) -> None:
    """A rotation about the viewing axis alone is psi; tilted views keep RELION's third Euler angle."""
    from scipy.spatial.transform import Rotation

    from ralib.io.cryosparc import _inplane_rad

    about_z = np.array([[0, 0, 0.7], [0, 0, -2.0]])
    assert np.allclose(_inplane_rad(about_z), [0.7, -2.0])
    euler = np.array([[20.0, 65.0, 35.0], [-100.0, 120.0, -77.0]])
    vectors = Rotation.from_euler("ZYZ", euler, degrees=True).as_rotvec()
    assert np.allclose(np.degrees(_inplane_rad(vectors)), euler[:, 2])
    particles = open_particles(shared_data / ALL[2], require_images=False)
    assert len(particles) == 2019
    assert particles.poses is not None
    assert torch.allclose(particles.poses.origin_xy_px[0], torch.tensor([11.334375, -1.828125]))


@pytest.mark.parametrize("name", ALL)
def test_cryosparc_star_file_between_loses_nothing(shared_data: Path, tmp_path: Path, name: str) -> None:
    """.cs -> STAR -> .cs gives the same bytes in every field, and so does .cs -> .cs."""
    original = np.load(shared_data / name)
    particles = open_particles(shared_data / name, require_images=False)
    write_particles_cs(tmp_path / "direct.cs", particles)
    write_particles_star(tmp_path / "by.star", particles)
    write_particles_cs(tmp_path / "through.cs", open_particles(tmp_path / "by.star", require_images=False))
    for written in ("direct.cs", "through.cs"):
        again = np.load(tmp_path / written)
        assert again.dtype == original.dtype
        assert again.tobytes() == original.tobytes()


def test_cryosparc_changed_star_columns_win(shared_data: Path, tmp_path: Path) -> None:
    """RELION, or we, gave five particles new poses and one a new defocus: only those rows change."""
    from ralib.io import write_star

    particles = open_particles(shared_data / REAL[1], require_images=False)
    write_particles_star(tmp_path / "by.star", particles)
    tables = read_star(tmp_path / "by.star")
    tables["particles"].loc[:4, "rlnAnglePsi"] += 10.0
    tables["particles"].loc[7, "rlnDefocusU"] += 100.0
    write_star(tmp_path / "by.star", tables)
    write_particles_cs(tmp_path / "out.cs", open_particles(tmp_path / "by.star", require_images=False))
    before, after = np.load(shared_data / REAL[1]), np.load(tmp_path / "out.cs")
    turned = np.angle(np.exp(1j * (after["alignments2D/pose"] - before["alignments2D/pose"]).astype(float)))
    assert np.allclose(np.degrees(turned[:5]), 10, atol=1e-3)
    assert (turned[5:] == 0).all()
    changed = after["ctf/df1_A"] - before["ctf/df1_A"]
    assert changed[7] == pytest.approx(100, abs=0.01)
    assert np.delete(changed, 7).any() == np.False_


def test_cryosparc_passthrough_is_joined_by_uid(shared_data: Path, tmp_path: Path) -> None:
    """In another order and with more rows; found by its name, or given."""
    rows = np.load(shared_data / REAL[0])
    later = [n for n in rows.dtype.names if n.startswith("ctf/")]
    main = rows[[n for n in rows.dtype.names if n not in later]]
    extra = np.concatenate([rows[["uid", *later]]] * 2)[::-1].copy()
    extra["uid"][:7] += 1
    save_cs(tmp_path / "P1_J2_particles.cs", np.ascontiguousarray(main.astype(main.dtype.descr and _packed(main))))
    save_cs(tmp_path / "P1_J2_passthrough_particles.cs", extra.astype(_packed(extra)))
    folder = shared_data / "real/empiar10076_7"
    found = open_particles(tmp_path / "P1_J2_particles.cs", datadir=folder)
    direct = open_particles(shared_data / REAL[0])
    assert found.ctf is not None
    assert direct.ctf is not None
    assert np.array_equal(found.ctf.defocus_u_A, direct.ctf.defocus_u_A)
    (tmp_path / "P1_J2_passthrough_particles.cs").rename(tmp_path / "other.cs")
    assert open_particles(tmp_path / "P1_J2_particles.cs", datadir=folder).ctf is None
    from ralib.io import open_stack

    given = open_cs(tmp_path / "P1_J2_particles.cs", open_stack, datadir=folder, passthrough=[tmp_path / "other.cs"])
    assert given.ctf is not None
    extra["uid"] += 5
    save_cs(tmp_path / "other.cs", extra.astype(_packed(extra)))
    with pytest.raises(RalibError, match="another job"):
        open_cs(tmp_path / "P1_J2_particles.cs", open_stack, datadir=folder, passthrough=[tmp_path / "other.cs"])


def _packed(rows: np.ndarray) -> np.dtype:
    from numpy.lib.recfunctions import repack_fields

    return repack_fields(rows.dtype)


def test_cryosparc_new_file_mirrors_become_classes(tmp_path: Path) -> None:
    """From an MRC stack: class K + k for mirrored members, the originals in fields of our own."""
    images = np.random.default_rng(0).normal(size=(3, 8, 8))
    write_mrcs(tmp_path / "a.mrcs", images, 1.5)
    poses = Poses.identity(3).replace(
        psi_deg=torch.tensor([-90.0, 10.0, 20.0]),
        origin_xy_px=torch.tensor([[1.0, 2], [3, 4], [5, 6]]),
        mirror=torch.tensor([False, True, False]),
        class_index=torch.tensor([0, 1, 1]),
    )
    write_particles_cs(tmp_path / "p.cs", open_particles(tmp_path / "a.mrcs"), poses, n_classes=2)
    rows = load_cs(tmp_path / "p.cs")
    assert rows["alignments2D/class"].tolist() == [0, 3, 1]
    assert np.degrees(rows["alignments2D/pose"]).tolist() == pytest.approx([270, 10, 20])
    assert len(set(rows["uid"])) == 3
    back = open_particles(tmp_path / "p.cs")
    assert back.poses is not None
    assert back.poses.mirror.tolist() == [False, True, False]
    assert back.poses.class_index.tolist() == [0, 1, 1]
    assert np.array_equal(back.images.read(np.arange(3)), open_images(tmp_path / "a.mrcs"))
    some = take(back, np.array([2]))
    write_particles_cs(tmp_path / "some.cs", some)
    assert load_cs(tmp_path / "some.cs")["uid"].tolist() == [rows["uid"][2]]


def test_cryosparc_tools_and_package_read_each_other(tmp_path: Path) -> None:
    """Every field of a .cs of ours loads with the values we meant; what cryosparc-tools saves opens here."""
    dataset = pytest.importorskip("cryosparc.dataset", reason="needs cryosparc-tools: pip install cryosparc-tools")
    rng = np.random.default_rng(5)
    write_mrcs(tmp_path / "a.mrcs", rng.normal(size=(9, 16, 16)).astype(np.float32), 1.5)
    poses = Poses.identity(9).replace(
        psi_deg=torch.linspace(-170, 170, 9),
        origin_xy_px=torch.tensor([[1.5, -0.25]]).repeat(9, 1),
        class_index=torch.arange(9) % 3,
    )
    write_particles_cs(tmp_path / "ours.cs", open_particles(tmp_path / "a.mrcs"), poses)
    loaded = dataset.Dataset.load(str(tmp_path / "ours.cs"))
    assert len(loaded) == 9
    assert list(loaded["blob/idx"]) == list(range(9))
    assert Path(str(loaded["blob/path"][0])).name == "a.mrcs"
    assert np.allclose(loaded["blob/psize_A"], 1.5)
    assert loaded["blob/shape"].tolist() == [[16, 16]] * 9
    assert loaded["alignments2D/class"].tolist() == poses.class_index.tolist()
    assert np.allclose(
        np.exp(1j * loaded["alignments2D/pose"]), np.exp(1j * np.radians(poses.psi_deg.numpy())), atol=1e-6
    )
    assert np.allclose(loaded["alignments2D/shift"], [1.5, -0.25])
    kept = loaded.query({"alignments2D/class": 1})
    kept["alignments2D/shift"] += np.float32(1)
    kept.save(str(tmp_path / "theirs.cs"))
    back = open_particles(tmp_path / "theirs.cs", datadir=tmp_path)
    assert back.poses is not None
    assert back.poses.class_index.tolist() == [1, 1, 1]
    assert torch.allclose(back.poses.origin_xy_px, poses.origin_xy_px[1::3] + 1)
    assert torch.allclose(back.poses.psi_deg, poses.psi_deg[1::3], atol=1e-3)
    assert np.array_equal(back.images.read(np.arange(3)), open_images(tmp_path / "a.mrcs")[1::3])


def test_cryosparc_tools_loads_real_fields_as_written(shared_data: Path, tmp_path: Path) -> None:
    dataset = pytest.importorskip("cryosparc.dataset", reason="needs cryosparc-tools: pip install cryosparc-tools")
    write_particles_cs(tmp_path / "p.cs", open_particles(shared_data / REAL[0]), Poses.identity(7))
    loaded, original = (dataset.Dataset.load(str(p)) for p in (tmp_path / "p.cs", shared_data / REAL[0]))
    assert (np.asarray(loaded["alignments2D/class"]) == 0).all()
    for name in original.fields():
        if not name.startswith("alignments2D/"):
            assert np.array_equal(loaded[name], original[name]), name


def test_cryosparc_pickle_is_never_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "trap.cs").write_bytes((tmp_path / "trap.npy").read_bytes())
    (tmp_path / "pickle.cs").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.cs", "pickle.cs", "trap.npy"):
        with pytest.raises(RalibError):
            open_particles(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_text_that_holds_no_characters_is_refused(tmp_path: Path) -> None:
    """Python would make a broken string of it, and fail somewhere else."""
    write_mrcs(tmp_path / "a.mrcs", np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32), 1.5)
    rows = np.zeros(2, dtype=[("uid", "u8"), ("blob/path", "<U6"), ("blob/idx", "u4")])
    rows["blob/path"], rows["blob/idx"] = "a.mrcs", [0, 1]
    with (tmp_path / "p.cs").open("wb") as file:
        np.save(file, rows)
    assert len(open_particles(tmp_path / "p.cs")) == 2
    raw = (tmp_path / "p.cs").read_bytes()
    (tmp_path / "p.cs").write_bytes(raw.replace("a.".encode("utf-32-le"), b"\xff\xff\xff\x7f.\0\0\0"))
    with pytest.raises(RalibError, match="holds no text"):
        open_particles(tmp_path / "p.cs")


def split_job(folder: Path, uids: list[int], passed: list[int], defocus_A: list[float]) -> Path:
    """A job's .cs without CTF, and the passthrough file that holds the CTF."""
    write_mrcs(folder / "p.mrcs", np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32), 2.0)
    rows = np.zeros(4, dtype=[("uid", "u8"), ("blob/path", "S40"), ("blob/idx", "u4"), ("blob/psize_A", "f4")])
    rows["uid"], rows["blob/path"], rows["blob/idx"], rows["blob/psize_A"] = uids, b"p.mrcs", np.arange(4), 2.0
    save_cs(folder / "J1_particles.cs", rows)
    names = ["ctf/df1_A", "ctf/df2_A", "ctf/accel_kv", "ctf/cs_mm"]
    extra = np.zeros(len(passed), dtype=[("uid", "u8"), *((n, "f4") for n in names)])
    extra["uid"], extra["ctf/df1_A"], extra["ctf/df2_A"], extra["ctf/accel_kv"] = passed, defocus_A, defocus_A, 300
    save_cs(folder / "J1_passthrough_particles.cs", extra)
    return folder / "J1_particles.cs"


def test_cryosparc_repeated_uids_are_not_joined_by_chance(tmp_path: Path) -> None:
    again = [12000.0, 13000, 14000, 15000, 29000]  # the uid 5 has two rows of different values
    for uids, passed, defocus in (([5, 6, 7, 8], [5, 6, 7, 8, 5], again), ([5, 5, 7, 8], [5, 6, 7, 8], again[:4])):
        particles = open_particles(split_job(tmp_path, uids, passed, defocus))
        assert particles.ctf is None
        assert "the uid 5 stands for" in particles.warnings[0].what
        with pytest.raises(RalibError, match="the uid 5 stands for"):
            open_cs(tmp_path / "J1_particles.cs", open_stack, passthrough=[tmp_path / "J1_passthrough_particles.cs"])


def test_cryosparc_rows_written_twice_alike_are_joined(tmp_path: Path) -> None:
    particles = open_particles(split_job(tmp_path, [5, 6, 7, 8], [5, 8, 7, 6, 5], [1000, 4000, 3000, 2000, 1000]))
    assert particles.ctf is not None
    assert particles.ctf.defocus_u_A.tolist() == [1000, 2000, 3000, 4000]


def test_cryosparc_new_uids_are_of_the_images(tmp_path: Path) -> None:
    """Parts of one stack, of the same size, share none; an image that is listed twice is two particles."""
    write_mrcs(tmp_path / "p.mrcs", np.zeros((8, 8, 8), dtype=np.float32), 2.0)
    particles = open_particles(tmp_path / "p.mrcs")
    found = []
    for i, chosen in enumerate(([0, 1, 2, 3], [4, 5, 6, 7], [3, 3, 2, 1])):
        write_particles_cs(tmp_path / f"{i}.cs", take(particles, np.array(chosen)))
        found.append(np.load(tmp_path / f"{i}.cs")["uid"])
    assert len(np.unique(np.concatenate(found[:2]))) == 8
    assert found[2][[0, 2, 3]].tolist() == found[0][[3, 2, 1]].tolist()
    assert found[2][1] not in np.concatenate(found[:2])


def test_cryosparc_an_unsigned_minus_one_is_no_class(tmp_path: Path) -> None:
    """It was class 2,147,483,649."""
    write_mrcs(tmp_path / "p.mrcs", np.zeros((3, 8, 8), dtype=np.float32), 2.0)
    poses = Poses.identity(3).replace(class_index=torch.tensor([0, 1, 1]))
    write_particles_cs(tmp_path / "p.cs", open_particles(tmp_path / "p.mrcs"), poses)
    table = np.load(tmp_path / "p.cs")
    table["alignments2D/class"][1] = np.uint32(2**32 - 1)
    save_cs(tmp_path / "p.cs", table)
    read = open_particles(tmp_path / "p.cs").poses
    assert read is not None
    assert read.class_index.tolist() == [0, -1, 1]


def test_cryosparc_poses_that_are_no_radians_are_said(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "p.mrcs", np.zeros((3, 8, 8), dtype=np.float32), 2.0)
    write_particles_cs(tmp_path / "p.cs", open_particles(tmp_path / "p.mrcs"), Poses.identity(3))
    table = np.load(tmp_path / "p.cs")
    table["alignments2D/pose"] = [-6.3, 90, 180]
    save_cs(tmp_path / "p.cs", table)
    particles = open_particles(tmp_path / "p.cs")
    assert particles.usable is not None
    assert particles.usable.tolist() == [True, False, False]
    assert "2 of 3 particles (2, 3) are left out: angle" in particles.warnings[0].what


def test_cryosparc_signalling_nan_gives_no_warning_of_numpy(tmp_path: Path) -> None:
    """Found by mutation: its conversion to double precision is an invalid operation."""
    write_mrcs(tmp_path / "p.mrcs", np.zeros((3, 8, 8), dtype=np.float32), 2.0)
    write_particles_cs(tmp_path / "p.cs", open_particles(tmp_path / "p.mrcs"), Poses.identity(3))
    table = np.load(tmp_path / "p.cs")
    for name in ("blob/sign", "alignments2D/pose"):
        table[name].view(np.uint32)[1] = 0x7FA00000
    save_cs(tmp_path / "p.cs", table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        particles = open_particles(tmp_path / "p.cs")
    assert particles.usable is not None
    assert particles.usable.tolist() == [True, False, True]


def three_classes(folder: Path) -> tuple[ParticleSet, Poses]:
    """Six particles in three classes, of which each has a mirrored member."""
    write_mrcs(folder / "p.mrcs", np.random.default_rng(0).normal(size=(6, 8, 8)).astype(np.float32), 2.0)
    poses = Poses.identity(6).replace(
        psi_deg=torch.arange(6.0) * 10, class_index=torch.arange(6) % 3, mirror=torch.arange(6) >= 3
    )
    return open_particles(folder / "p.mrcs"), poses


def test_cryosparc_too_few_classes_are_refused(tmp_path: Path) -> None:
    """Class 2 and the mirrored members of class 0 were one, and every mirror was lost."""
    particles, poses = three_classes(tmp_path)
    with pytest.raises(RalibError, match=r"`n_classes` 2: particles are in classes 0 to 2"):
        write_particles_cs(tmp_path / "p.cs", particles, poses, n_classes=2)
    write_particles_cs(tmp_path / "p.cs", particles, poses, n_classes=4)
    back = open_particles(tmp_path / "p.cs").poses
    assert back is not None
    assert back.mirror.equal(poses.mirror)
    assert back.class_index.equal(poses.class_index)


@pytest.mark.parametrize("through", ["cs", "star"])
def test_cryosparc_mirrored_members_left_in_their_class_are_read_back(tmp_path: Path, through: str) -> None:
    particles, poses = three_classes(tmp_path)
    write_particles_cs(tmp_path / "p.cs", particles, poses, mirror_as_class=False)
    assert load_cs(tmp_path / "p.cs")["alignments2D/class"].tolist() == poses.class_index.tolist()
    if through == "star":
        write_particles_star(tmp_path / "p.star", open_particles(tmp_path / "p.cs"))
        write_particles_cs(tmp_path / "p.cs", open_particles(tmp_path / "p.star"), mirror_as_class=False)
    back = open_particles(tmp_path / "p.cs")
    assert back.poses is not None
    assert back.poses.mirror.equal(poses.mirror)
    assert back.poses.class_index.equal(poses.class_index)
    for as_class, expected in ((True, [0, 1, 2, 3, 4, 5]), (False, [0, 1, 2, 0, 1, 2])):
        write_particles_cs(tmp_path / "again.cs", back, mirror_as_class=as_class)
        assert load_cs(tmp_path / "again.cs")["alignments2D/class"].tolist() == expected
        again = open_particles(tmp_path / "again.cs")
        assert again.poses is not None
        assert again.poses.mirror.equal(poses.mirror)


def test_cryosparc_one_class_aligned_again_is_not_mirrored(tmp_path: Path) -> None:
    """Another program has put all into one class since, with angles of its own: our mirrors are of the old ones."""
    particles, poses = three_classes(tmp_path)
    write_particles_cs(tmp_path / "p.cs", particles, poses.replace(class_index=torch.zeros(6).long()))
    table = load_cs(tmp_path / "p.cs")
    table["alignments2D/class"] = 0
    table["alignments2D/pose"] += 0.5
    save_cs(tmp_path / "p.cs", table)
    back = open_particles(tmp_path / "p.cs").poses
    assert back is not None
    assert not back.mirror.any()


def test_cryosparc_some_new_poses_leave_one_number_of_classes(tmp_path: Path) -> None:
    """Of a selection that lacks the last class, changed and unchanged members had mirrors by two numbers K."""
    particles, poses = three_classes(tmp_path)
    write_particles_cs(tmp_path / "p.cs", particles, poses)
    some = open_particles(tmp_path / "p.cs")[[0, 1, 3, 4]]
    assert some.poses is not None
    psi = some.poses.psi_deg.clone()
    psi[2] += 5
    write_particles_cs(tmp_path / "some.cs", some.replace(poses=some.poses.replace(psi_deg=psi)))
    back = open_particles(tmp_path / "some.cs").poses
    assert back is not None
    assert back.mirror.tolist() == [False, False, True, True]
    assert back.class_index.tolist() == [0, 1, 0, 1]


def test_cryosparc_particles_of_no_class_have_posterior_0(tmp_path: Path) -> None:
    """There is no mark for them: class 0, of which they are told apart by posterior and ralib/class."""
    particles, poses = three_classes(tmp_path)
    write_particles_cs(tmp_path / "p.cs", particles, poses)
    again = poses.replace(class_index=torch.tensor([0, 1, 2, 0, -1, -1]))
    for source, name in ((particles, "new.cs"), (open_particles(tmp_path / "p.cs"), "changed.cs")):
        write_particles_cs(tmp_path / name, source, again)
        table = load_cs(tmp_path / name)
        assert table["alignments2D/class"][4:].tolist() == [0, 0]
        assert table["alignments2D/class_posterior"].tolist() == [1, 1, 1, 1, 0, 0]
        assert table["ralib/class"].tolist() == [0, 1, 2, 0, -1, -1]
        back = open_particles(tmp_path / name).poses
        assert back is not None
        assert back.class_index.equal(again.class_index)


def test_cryosparc_scores_of_another_length_are_refused(tmp_path: Path) -> None:
    particles, _ = three_classes(tmp_path)
    with pytest.raises(RalibError, match=r"`scores`: fit has shape \(5,\) for 6 particles"):
        write_particles_cs(tmp_path / "p.cs", particles, scores={"fit": np.zeros(5)})


def test_cryosparc_groups_that_a_star_file_names_are_no_micrographs(tmp_path: Path) -> None:
    """A STAR file of particles whose micrographs are not known names their groups; a .cs file gets no such path."""
    write_mrcs(tmp_path / "stack.mrcs", np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32), 2.0)
    particles = open_particles(tmp_path / "stack.mrcs").replace(group=np.array([0, 0, 1, 1]))
    write_particles_star(tmp_path / "by.star", particles)
    by = open_particles(tmp_path / "by.star")
    assert by.group is not None
    assert by.group.tolist() == [0, 0, 1, 1]
    write_particles_cs(tmp_path / "out.cs", by)
    assert "location/micrograph_path" not in (load_cs(tmp_path / "out.cs").dtype.names or ())
