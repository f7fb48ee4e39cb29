"""What cannot be used is said: repeats, helical segments, passthrough files, cut options, large offsets, lost CTFs."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ralib.classification.classifier import Classifier
from ralib.cli import main
from ralib.cli.commands.analyze import read_truth
from ralib.images.normalise import normalise_background, without_offset
from ralib.io import open_images, open_particles, take, write_hdf, write_mrcs, write_particles_cs
from ralib.io.cryosparc_write import save_cs
from ralib.particles.batches import ParticleBatches
from ralib.results.run_directory import read_frc
from ralib.types import RalibError
from star_files import OPTICS, rows, stack, write


def test_open_particles_rows_of_one_image_are_counted_and_kept_in_one_half(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack(tmp_path / "p.mrcs")
    twice = [row for row in rows(20, rlnClassNumber=1) for _ in range(2)]
    star = write(tmp_path / "p.star", twice)
    particles = open_particles(star)
    assert particles.same_as is not None
    assert particles.same_as.tolist() == [i - i % 2 for i in range(40)]
    assert "20 of 40 rows name an image that is listed before" in particles.warnings[0].what
    batches = ParticleBatches(
        particles, range(40), batch_size=7, device=torch.device("cpu"), background_radius=12, resident_bytes=0
    )
    half = torch.cat([batch.half for batch in batches])
    assert torch.equal(half[::2], half[1::2])
    assert main(["average", str(star), str(tmp_path / "a.mrcs")]) == 0
    assert "listed before" in capsys.readouterr().out
    assert take(particles, np.arange(0, 40, 2)).same_as is None
    assert main(["prepare", str(star), str(tmp_path / "once.star"), "--remove-duplicates", "0"]) == 0
    assert len(open_particles(tmp_path / "once.star")) == 20


def test_open_particles_links_to_one_file_are_one_image(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs")
    (tmp_path / "q.mrcs").symlink_to(tmp_path / "p.mrcs")
    particles = open_particles(write(tmp_path / "p.star", rows(5) + rows(5, "q.mrcs")))
    assert particles.same_as is not None
    assert particles.same_as.tolist() == [0, 1, 2, 3, 4] * 2


def test_without_repeats_close_picks_are_one_particle(tmp_path: Path) -> None:
    """In Angstrom, within a micrograph, with the origins taken off: of picks at 0, 30 and 60 A the middle one goes."""
    stack(tmp_path / "p.mrcs", 6)
    x = [0, 15, 30, 0, 200, 210]
    columns = {"rlnCoordinateX": x, "rlnCoordinateY": 0, "rlnOriginXAngst": [0, 0, 0, 0, 0, 10], "rlnOriginYAngst": 0}
    table = rows(6, **columns, rlnMicrographName=["a", "a", "a", "b", "b", "b"])  # type: ignore[arg-type]
    star = write(tmp_path / "p.star", table, OPTICS | {"rlnMicrographOriginalPixelSize": 2.0})
    for distance, left in (("40", [0, 2, 3, 4]), ("11", [0, 1, 2, 3, 4]), ("0", list(range(6)))):
        out = tmp_path / f"o{distance}.star"
        assert main(["prepare", str(star), str(out), "--remove-duplicates", distance]) == 0
        found = open_particles(out).metadata.tables["particles"]["rlnCoordinateX"].tolist()
        assert found == [x[i] for i in left], distance
    assert main(["prepare", str(tmp_path / "p.mrcs"), str(tmp_path / "x.mrcs"), "--remove-duplicates", "9"]) == 2


def test_open_particles_helical_segments_are_said(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    assert "helices" in open_particles(write(tmp_path / "p.star", rows(6, rlnHelicalTubeID=1))).warnings[0].what
    assert not open_particles(write(tmp_path / "p.star", rows(6, rlnHelicalTubeID=0))).warnings


def test_cs_reader_passthrough_that_does_not_fit_is_said_and_spoils_nothing(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    write_particles_cs(tmp_path / "all.cs", open_particles(write(tmp_path / "p.star", rows(6))))
    table = np.load(tmp_path / "all.cs")
    (tmp_path / "job").mkdir()
    main_fields = [n for n in table.dtype.names if not n.startswith("ctf/")]
    save_cs(tmp_path / "job/p.cs", np.ascontiguousarray(_packed(table[main_fields])))
    beside = tmp_path / "job/p_passthrough.cs"
    others = _packed(table[["uid", *(n for n in table.dtype.names if n.startswith("ctf/"))]])
    save_cs(beside, others)
    assert open_particles(tmp_path / "job/p.cs").ctf is not None
    save_cs(beside, others[:4])
    found = open_particles(tmp_path / "job/p.cs")
    assert found.ctf is None
    assert "lacks 2 of the 6 particles" in found.warnings[0].what
    assert "no CTF" in found.warnings[0].what
    beside.write_bytes(beside.read_bytes()[:200])
    assert "was not used" in open_particles(tmp_path / "job/p.cs").warnings[0].what
    beside.unlink()
    os.mkfifo(beside)
    assert "no ordinary file" in open_particles(tmp_path / "job/p.cs").warnings[0].what


def _packed(rows_: np.ndarray) -> np.ndarray:
    out = np.zeros(len(rows_), dtype=[(n, rows_.dtype[n]) for n in rows_.dtype.names])
    for name in rows_.dtype.names:
        out[name] = rows_[name]
    return out


def test_cs_reader_hundreds_of_fields_are_read(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    write_particles_cs(tmp_path / "a.cs", open_particles(tmp_path / "p.mrcs"))
    table = np.load(tmp_path / "a.cs")
    extra = [(f"alignments_class_{i}/a_rather_long_name_of_a_field", "f4") for i in range(1000)]
    wide = np.zeros(6, dtype=table.dtype.descr + extra)
    for name in table.dtype.names:
        wide[name] = table[name]
    save_cs(tmp_path / "b.cs", wide)
    assert int.from_bytes((tmp_path / "b.cs").read_bytes()[8:12], "little") > 50_000
    assert len(open_particles(tmp_path / "b.cs")) == 6


def test_hdf_writer_ctf_without_poses_is_kept(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 6)
    star = write(tmp_path / "p.star", rows(6))
    assert main(["prepare", str(star), str(tmp_path / "p.hdf")]) == 0
    found, given = open_particles(tmp_path / "p.hdf"), open_particles(star)
    assert found.poses is None
    assert found.ctf is not None
    assert given.ctf is not None
    assert np.allclose(found.ctf.defocus_u_A, given.ctf.defocus_u_A)
    (tmp_path / "p.lst").write_text("#LST\n3\tp.hdf\n")
    listed = open_particles(tmp_path / "p.lst").ctf
    assert listed is not None
    assert np.allclose(listed.defocus_u_A, given.ctf.defocus_u_A[3])


def test_classifier_options_that_do_not_fit_are_cut_with_a_word_or_refused(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs")
    particles = open_particles(tmp_path / "p.mrcs")
    cut = Classifier(n_classes=2, diameter_A=5000, resolution_A=1).fit(particles)
    told = " ".join(w.what for w in cut.warnings_)
    assert "`diameter_A` 5000 A was cut" in told
    assert "`resolution_A` 1 A was cut" in told
    with pytest.raises(RalibError, match="`search_px` 40 px"):
        Classifier(n_classes=2, search_px=40).fit(particles)
    with pytest.raises(RalibError, match="1 particle cannot be classified"):
        Classifier(n_classes=1).fit(open_images(tmp_path / "p.mrcs")[:1])


def test_classifier_unusable_images_are_named(tmp_path: Path) -> None:
    images = stack(tmp_path / "p.mrcs")
    images[3], images[7] = 5.0, np.nan
    warnings = Classifier(n_classes=2).fit(images).warnings_
    assert any("2 of 40 particles (4, 8) are left out" in w.what for w in warnings)


@pytest.mark.parametrize("offset", [0.0, 1e7, -1e7])
def test_classifier_large_offsets_are_taken_off_before_anything_is_computed(offset: float, tmp_path: Path) -> None:
    images = torch.from_numpy(stack(tmp_path / "p.mrcs"))
    shifted = (images.double() + offset).float()  # rounds to whole numbers at 1e7
    small, taken = without_offset(shifted)
    assert torch.equal(small.double() + taken.double(), shifted.double())
    plain, wide = normalise_background(images, 12.0), normalise_background(shifted, 12.0)
    assert np.corrcoef(plain.numpy().ravel(), wide.numpy().ravel())[0, 1] > 0.95
    write_mrcs(tmp_path / "o.mrcs", shifted, 4.0)
    write(tmp_path / "o.star", rows(40, "o.mrcs", rlnClassNumber=[1 + i % 2 for i in range(40)], rlnAnglePsi=30))
    for name in ("p", "o"):
        write(tmp_path / f"{name}.star", rows(40, f"{name}.mrcs", rlnClassNumber=[1 + i % 2 for i in range(40)]))
        assert main(["average", str(tmp_path / f"{name}.star"), str(tmp_path / f"{name}a.mrcs")]) == 0
    a, b = open_images(tmp_path / "pa.mrcs").astype(float), open_images(tmp_path / "oa.mrcs").astype(float) - offset
    assert np.abs(a - b).max() < 1.01  # one rounding of single precision at 1e7
    labels = Classifier(n_classes=2).fit(shifted.numpy()).poses_.class_index.numpy()
    assert max((labels == np.arange(40) % 2).mean(), (labels != np.arange(40) % 2).mean()) > 0.9


@pytest.mark.parametrize("offset", [5.0, 100.0])
def test_average_of_images_with_a_background_has_no_frame_of_zeros(offset: float, tmp_path: Path) -> None:
    """What turned and moved images do not cover counted as 0: at a mean of 100 the frame was all that halves shared."""
    images = stack(tmp_path / "p.mrcs")
    write_mrcs(tmp_path / "o.mrcs", images + offset, 4.0)
    pose = {"rlnAnglePsi": [9.0 * i for i in range(40)], "rlnOriginXAngst": 12.0, "rlnOriginYAngst": -8.0}
    averages = []
    for name in ("p", "o"):
        write(tmp_path / f"{name}.star", rows(40, f"{name}.mrcs", rlnClassNumber=1, **pose))
        assert main(["average", str(tmp_path / f"{name}.star"), str(tmp_path / f"{name}a.mrcs")]) == 0
        averages.append(open_images(tmp_path / f"{name}a.mrcs")[0])
    assert np.corrcoef(averages[0].ravel(), averages[1].ravel())[0, 1] > 0.98
    assert averages[1].min() > offset - 2


def test_hdf_reads_nothing_but_its_own_bytes(tmp_path: Path) -> None:
    images = stack(tmp_path / "p.mrcs", 3)
    os.mkfifo(tmp_path / "fifo")

    def fresh(name: str) -> h5py.File:
        write_hdf(tmp_path / name, images)
        return h5py.File(tmp_path / name, "r+")

    with fresh("external.hdf") as file:
        del file["MDF/images/0/image"]
        secret = [("/etc/hostname", 0, 1024)]
        file["MDF/images/0"].create_dataset("image", (32, 32), "u1", external=secret)
    with fresh("virtual.hdf") as file:
        del file["MDF/images/0/image"]
        layout = h5py.VirtualLayout((32, 32), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "p.hdf"), "x", (32, 32))
        file["MDF/images/0"].create_virtual_dataset("image", layout)
    for number, (where, link) in enumerate(
        (("0/image", h5py.ExternalLink(str(tmp_path / "fifo"), "/x")), ("1", h5py.SoftLink("/MDF/images/0")))
    ):
        with fresh(f"link{number}.hdf") as file:
            del file[f"MDF/images/{where}"]
            file[f"MDF/images/{where}"] = link
    with fresh("bomb.hdf") as file:
        del file["MDF/images/0/image"]
        pixels = file["MDF/images/0"].create_dataset(
            "image", (20000, 20000), "f4", chunks=(256, 256), compression="gzip"
        )
        pixels[:256, :256] = 1
    messages = {
        "external": "another file",
        "virtual": "another file",
        "link0": "link",
        "link1": "link",
        "bomb": "claims",
    }
    for name, message in messages.items():
        with pytest.raises(RalibError, match=message):
            open_particles(tmp_path / f"{name}.hdf").images.read(np.arange(3))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 junk", b"\x00\x01", b"1 x\n", b"1e400\n2\n", b"nan\n1\n"])
def test_read_truth_damaged_table_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    for name in ("truth.npz", "truth.txt"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RalibError) as told:
            read_truth(tmp_path / name, 2)
        assert "\n" not in str(told.value)
    (tmp_path / "frc.txt").write_bytes(content)
    if content not in (b"1e400\n2\n", b"nan\n1\n"):
        with pytest.raises(RalibError):
            read_frc(tmp_path / "frc.txt")


@pytest.mark.parametrize("label", ["rlnVoltage", "rlnSphericalAberration", "rlnDefocusU"])
def test_star_reader_incomplete_ctf_is_said(label: str, tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 4)
    table = [{k: v for k, v in row.items() if k != label} for row in rows(4)]
    particles = open_particles(write(tmp_path / "p.star", table, {k: v for k, v in OPTICS.items() if k != label}))
    assert particles.ctf is None
    (warning,) = particles.warnings
    assert "the CTF is incomplete and not used: there is" in warning.what
    assert label in warning.what.split("but no")[1]


def test_cs_reader_incomplete_ctf_is_said_and_two_contrasts_are_refused(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 4)
    star = open_particles(write(tmp_path / "p.star", rows(4)))
    write_particles_cs(tmp_path / "p.cs", star)
    table = np.load(tmp_path / "p.cs")
    save_cs(tmp_path / "part.cs", table[[n for n in table.dtype.names if n != "ctf/cs_mm"]].copy())
    (warning,) = open_particles(tmp_path / "part.cs").warnings
    assert "the CTF is incomplete and not used" in warning.what
    assert warning.what.endswith("but no ctf/cs_mm")
    table["blob/sign"] = -1
    save_cs(tmp_path / "dark.cs", table)
    assert not open_particles(tmp_path / "dark.cs").warnings
    assert main(["prepare", str(tmp_path / "dark.cs"), str(tmp_path / "bright.star"), "--invert"]) == 0
    write_particles_cs(tmp_path / "bright.cs", open_particles(tmp_path / "bright.star"))
    assert set(np.load(tmp_path / "bright.cs")["blob/sign"]) == {1}
    table["blob/sign"][1] = 1
    save_cs(tmp_path / "both.cs", table)
    with pytest.raises(RalibError, match="3 of 4 images are dark on light"):
        open_particles(tmp_path / "both.cs")
    assert len(open_particles(tmp_path / "both.cs", require_images=False)) == 4
