"""EMAN2: HDF stacks read as EMAN2 wrote them and written as it does, LST lists, CTF headers, parameter text."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ralib import conventions as c
from ralib.io import (
    class_headers,
    kept_headers,
    open_images,
    open_particles,
    pose_headers,
    read_params,
    take,
    write_hdf,
    write_headers,
    write_mrcs,
    write_params,
    write_particles_star,
)
from ralib.io.eman_ctf import ctf_of_strings, ctf_to_strings
from ralib.io.eman_headers import align2d_to_matrix, matrix_to_align2d
from ralib.types import Poses, RalibError


def test_eman_plain_stack_is_read(golden: Path) -> None:
    particles = open_particles(golden / "stack.hdf")
    expected = np.load(golden / "stack_contents.npz")
    assert np.array_equal(particles.images.read(np.array([11, 0, 5])), expected["images"][[11, 0, 5]])
    assert particles.pixel_size_A == 5.0
    assert particles.poses is not None
    alpha, shift, mirror = c.pose_to_eman2(*_double(particles.poses))
    theirs = expected["alpha_sx_sy_mirror"]
    assert np.allclose(alpha, theirs[:, 0], atol=1e-4)
    assert np.allclose(shift, theirs[:, 1:3], atol=1e-5)
    assert np.array_equal(mirror, theirs[:, 3] != 0)
    assert np.array_equal(particles.poses.class_index, expected["assign"])
    assert particles.group is not None
    assert len(set(particles.group.tolist())) > 1


def _double(poses: Poses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return poses.psi_deg.double(), poses.origin_xy_px.double(), poses.mirror


def test_eman_compressed_stack_is_read(golden: Path) -> None:
    """Eight bits between rendermin and rendermax: right to half a step inside, cut off outside."""
    images = open_images(golden / "stack_compressed_8bit.hdf")
    exact = np.load(golden / "stack_contents.npz")["images"]
    with h5py.File(golden / "stack_compressed_8bit.hdf") as file:
        for i, image in enumerate(images):
            header = file[f"MDF/images/{i}"].attrs
            low, high = header["EMAN.stored_rendermin"][0], header["EMAN.stored_rendermax"][0]
            step = (high - low) / 255
            assert np.abs(image - np.clip(exact[i], low, high)).max() <= 0.51 * step


def test_eman_ctf_is_that_of_sparx_ctf_img(golden: Path) -> None:
    """Defocus, astigmatism and their angle, converted, give the golden CTF image by RELION's textbook formula."""
    operations = np.load(golden / "operations.npz")
    dz, cs, kv, apix, bfactor, contrast, dza, angle = operations["ctf_params"]
    ctf = ctf_of_strings([f"E{dz} {dza} {angle} {bfactor} {contrast} {kv} {cs} {apix} 0 0 0"])
    assert ctf is not None
    y, x = np.fft.fftfreq(64)[:, None], np.arange(33)[None] / 64
    s2, direction = (x**2 + y**2) / apix**2, np.arctan2(y, x)
    wavelength = 12.398 / np.sqrt(kv * (1022 + kv))
    u, v, a = ctf.defocus_u_A[0], ctf.defocus_v_A[0], np.radians(ctf.astigmatism_angle_deg[0])

    def image(angle_rad: float) -> np.ndarray:
        defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (direction - angle_rad))
        chi = np.pi * wavelength * defocus * s2 - np.pi / 2 * cs * 1e7 * wavelength**3 * s2**2
        return np.sin(chi + np.arcsin(ctf.amplitude_contrast[0])) * np.exp(-bfactor * s2 / 4)

    inside = (np.abs(y) < 0.49) & (x < 0.49)
    assert np.abs(image(a) - operations["ctf_img_re"])[inside].max() < 1e-4
    assert np.abs(image(-a) - operations["ctf_img_re"])[inside].max() > 0.01


def test_eman_ctf_text_round_trips(golden: Path) -> None:
    ctf = open_particles(golden / "stack.hdf").ctf
    assert ctf is not None
    again = ctf_of_strings(ctf_to_strings(ctf, 5.0))
    for name in vars(ctf):
        assert np.allclose(getattr(again, name), getattr(ctf, name), rtol=1e-9), name
    plate = ctf_of_strings(ctf_to_strings(ctf.__class__(**{**vars(ctf), "phase_shift_deg": np.full(12, 90.0)}), 5.0))
    assert plate is not None
    total = np.degrees(np.arcsin(plate.amplitude_contrast)) + plate.phase_shift_deg
    assert np.allclose(total, np.degrees(np.arcsin(0.1)) + 90)
    assert ctf_of_strings(["E1 2 3", "nonsense"]) is None


def test_eman_written_headers_are_those_of_eman2(golden: Path, tmp_path: Path) -> None:
    """Attribute by attribute, in name, type and shape, against a stack that EMAN2 wrote."""
    particles = open_particles(golden / "stack.hdf")
    images = particles.images.read(np.arange(12))
    assert particles.poses is not None
    headers = pose_headers(particles.poses, particles.ctf, 5.0)
    members = class_headers(particles.poses.class_index, 3)
    for header in headers:
        header |= {"ptcl_source_image": "mic000.mrc", "members": members[0]["members"]}
    write_hdf(tmp_path / "ours.hdf", images, headers, pixel_size_A=5.0)
    with h5py.File(tmp_path / "ours.hdf") as ours, h5py.File(golden / "stack.hdf") as theirs:
        assert ours["MDF/images"].attrs["imageid_max"].tolist() == [11]
        for i in (0, 7):
            a, b = (f[f"MDF/images/{i}"] for f in (ours, theirs))
            assert set(a.attrs) == set(b.attrs) | {"EMAN.ctf_applied"}  # SPARX's, which EMAN2 does not need
            for name in b.attrs:
                x, y = np.asarray(a.attrs[name]), np.asarray(b.attrs[name])
                assert x.dtype.kind == y.dtype.kind, name
                if y.dtype.kind not in "SV" and not name.startswith(("EMAN.members", "EMAN.change", "EMAN.apix_z")):
                    assert x.dtype == y.dtype, name
                    assert np.allclose(x, y, rtol=1e-4), name
            matrix = [np.array(list(f.attrs["EMAN.xform.align2d"][0])) for f in (a, b)]
            assert a.attrs["EMAN.xform.align2d"].dtype == b.attrs["EMAN.xform.align2d"].dtype
            assert np.allclose(*matrix, atol=1e-5)
            assert a["image"].dtype == b["image"].dtype
    assert np.array_equal(open_images(tmp_path / "ours.hdf"), images)


def test_eman_selection_keeps_its_headers(golden: Path, tmp_path: Path) -> None:
    """From a compressed stack to a plain one: nothing of how pixels were stored is carried along."""
    particles = open_particles(golden / "stack_compressed_8bit.hdf")
    some = take(particles, np.array([7, 2]))
    assert some.poses is not None
    kept = kept_headers(some)
    headers = [{**k, **h} for k, h in zip(kept, pose_headers(some.poses), strict=True)]
    write_hdf(tmp_path / "some.hdf", some.images.read(np.arange(2)), headers, pixel_size_A=5.0)
    with h5py.File(tmp_path / "some.hdf") as ours, h5py.File(golden / "stack_compressed_8bit.hdf") as theirs:
        a, b = ours["MDF/images/0"].attrs, theirs["MDF/images/7"].attrs
        assert a["EMAN.ptcl_source_image"] == b["EMAN.ptcl_source_image"]
        assert a["EMAN.ctf"] == b["EMAN.ctf"]
        assert a["EMAN.members"].tolist() == b["EMAN.members"].tolist()
        assert np.allclose(list(a["EMAN.xform.align2d"][0]), list(b["EMAN.xform.align2d"][0]), atol=1e-5)
        assert "EMAN.stored_renderbits" not in a
    assert np.array_equal(open_images(tmp_path / "some.hdf"), particles.images.read(np.array([7, 2])))
    assert kept_headers(open_particles(tmp_path / "some.hdf"))[1]["ptcl_source_image"] == kept[1]["ptcl_source_image"]


def test_eman_class_headers_are_written() -> None:
    headers = class_headers(torch.tensor([0, 2, 2, -1, 0]), 4)
    assert [h["ptcl_repr"] for h in headers] == [2, 0, 2, 0]
    assert [h["ave_n"] for h in headers] == [2, 0, 2, 0]
    assert headers[2]["members"] == [1, 2]
    assert "members" not in headers[1]


def test_eman_matrices_with_mirror_and_scale_round_trip() -> None:
    rng = np.random.default_rng(0)
    alpha, shift, mirror = rng.uniform(0, 360, 50), rng.normal(0, 9, (50, 2)), rng.random(50) < 0.5
    matrix = align2d_to_matrix(alpha, shift, mirror)
    for scale in (1.0, 1.7):
        scaled = matrix.reshape(-1, 3, 4).copy()
        scaled[:, :2, :2] *= scale
        back = matrix_to_align2d(scaled.reshape(-1, 12))
        assert np.allclose(back[0], alpha, atol=1e-4)
        assert np.allclose(back[1], shift, atol=1e-5)
        assert np.array_equal(back[2], mirror)


def test_eman_headers_are_written_into_a_stack_only_when_asked(golden: Path, tmp_path: Path) -> None:
    path = tmp_path / "stack.hdf"
    path.write_bytes((golden / "stack.hdf").read_bytes())
    before = open_particles(path)
    images = before.images.read(np.arange(12))
    poses = Poses.identity(12).replace(psi_deg=torch.arange(12.0), class_index=torch.arange(12) % 4)
    write_headers(path, poses)
    after = open_particles(path)
    assert after.poses is not None
    assert torch.allclose(after.poses.psi_deg, poses.psi_deg, atol=1e-4)
    assert torch.equal(after.poses.class_index, poses.class_index)
    assert np.array_equal(after.images.read(np.arange(12)), images)
    with h5py.File(path) as file:
        assert file["MDF/images/3"].attrs["EMAN.ID"].tolist() == [3]
        assert file["MDF/images/3"].attrs["EMAN.ptcl_source_image"].startswith(b"mic")
    with pytest.raises(RalibError, match="12 images"):
        write_headers(path, Poses.identity(3))


@pytest.mark.parametrize("kind", ["#LST", "#LSX"])
def test_eman_lists_are_read(tmp_path: Path, kind: str) -> None:
    images = np.random.default_rng(0).normal(size=(5, 8, 8)).astype(np.float32)
    write_mrcs(tmp_path / "a.mrcs", images, 2.0)
    write_hdf(tmp_path / "b.hdf", images[::-1], pixel_size_A=2.0)
    matrix = align2d_to_matrix(np.array([30.0]), np.array([[1.0, -2.0]]), np.array([True]))[0].tolist()
    extra = json.dumps({"xform.align2d": {"__class__": "Transform", "matrix": json.dumps(matrix)}, "class": 3})
    lines = [kind, "# comment", "# 120"] if kind == "#LSX" else [kind]
    lines += [f"{i}\t{f}\t{extra}".ljust(119) for i, f in ((4, "a.mrcs"), (0, "b.hdf"), (1, "a.mrcs"))]
    (tmp_path / "some.lst").write_text("\n".join(lines) + "\n")
    particles = open_particles(tmp_path / "some.lst")
    assert np.array_equal(particles.images.read(np.arange(3)), images[[4, 4, 1]])
    assert particles.pixel_size_A == 2.0
    assert particles.poses is not None
    assert particles.poses.psi_deg.tolist() == pytest.approx([-30] * 3)
    assert particles.poses.mirror.all()
    assert particles.poses.class_index.tolist() == [3] * 3
    (tmp_path / "plain.lst").write_text(f"{kind}\n2\ta.mrcs\n0 a.mrcs\n")
    assert open_particles(tmp_path / "plain.lst").poses is None
    (tmp_path / "bad.lst").write_text(f"{kind}\n2\ta.mrcs\nx a.mrcs\n")
    with pytest.raises(RalibError, match="line 3"):
        open_particles(tmp_path / "bad.lst")


def test_params_text_round_trips(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    poses = Poses.identity(9).replace(
        psi_deg=torch.rand(9, generator=g) * 360 - 180,
        origin_xy_px=torch.randn(9, 2, generator=g),
        mirror=torch.rand(9, generator=g) < 0.5,
        class_index=torch.arange(9) % 4,
    )
    write_params(tmp_path / "params.txt", poses)
    write_params(tmp_path / "sx.txt", poses, form="sxheader")
    for name, digits in (("params.txt", 1e-4), ("sx.txt", 1e-3)):
        back = read_params(tmp_path / name)
        assert torch.allclose(back.psi_deg, poses.psi_deg, atol=digits)
        assert torch.allclose(back.origin_xy_px, poses.origin_xy_px, atol=digits)
        assert torch.equal(back.mirror, poses.mirror)
    assert torch.equal(read_params(tmp_path / "params.txt").class_index, poses.class_index)
    rows = (tmp_path / "params.txt").read_text().splitlines()
    (tmp_path / "params.txt").write_text("\n".join(rows[::-1]))
    assert torch.equal(read_params(tmp_path / "params.txt").class_index, poses.class_index)
    (tmp_path / "params.txt").write_text("\n".join(rows[1:]))
    with pytest.raises(RalibError, match="count the particles"):
        read_params(tmp_path / "params.txt")


@pytest.mark.parametrize("text", ["", "1 2 3", "1 2 3 0\nx y z w", "1 2 3 0\n1 2 3", "1 2 3 7", "nan 1 1 0"])
def test_params_text_malformed_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.txt").write_text(text)
    with pytest.raises(RalibError):
        read_params(tmp_path / "p.txt")


def alignments(path: Path, odd: object) -> Path:
    """An HDF stack, or a list, of six aligned images, of which the fourth has another alignment, or none."""
    images = np.random.default_rng(0).normal(size=(6, 8, 8)).astype(np.float32)
    whole = [align2d_to_matrix(np.array([30.0]), np.array([[1.0, 2.0]]), np.array([False]))[0] for _ in range(6)]
    if path.suffix == ".hdf":
        headers: list[dict[str, object]] = [{"xform.align2d": m, "assign": 1} for m in whole]
        headers[3] = {"assign": 1} if odd is None else {"xform.align2d": odd, "assign": 1}
        write_hdf(path, images, headers)
        return path
    write_mrcs(path.with_suffix(".mrcs"), images, 2.0)
    matrices: list[object] = [m.tolist() for m in whole]
    matrices[3] = odd.tolist() if isinstance(odd, np.ndarray) else odd
    extras = ["{}" if m is None else json.dumps({"xform.align2d": json.dumps(m), "class": 1}) for m in matrices]
    path.write_text("#LSX\n# x\n# 90\n" + "".join(f"{i}\t{path.stem}.mrcs\t{x}\n" for i, x in enumerate(extras)))
    return path


@pytest.mark.parametrize("suffix", ["hdf", "lst"])
def test_eman_image_without_an_alignment_is_named_and_the_others_keep_theirs(suffix: str, tmp_path: Path) -> None:
    particles = open_particles(alignments(tmp_path / f"a.{suffix}", None))
    assert particles.poses is not None
    assert particles.poses.class_index.tolist() == [1, 1, 1, -1, 1, 1]
    assert any("1 of 6 particles (4) is without an alignment" in w.what for w in particles.warnings)


@pytest.mark.parametrize("suffix", ["hdf", "lst"])
def test_eman_alignment_that_is_no_number_is_named_and_left_out(suffix: str, tmp_path: Path) -> None:
    odd = np.eye(3, 4).ravel()
    odd[0] = np.nan
    particles = open_particles(alignments(tmp_path / f"a.{suffix}", odd))
    assert particles.usable is not None
    assert np.flatnonzero(~particles.usable).tolist() == [3]
    assert any("1 of 6 particles (4) is left out" in w.what for w in particles.warnings)


def test_eman_pixel_size_of_each_image_counts(tmp_path: Path) -> None:
    images = np.zeros((4, 8, 8), dtype=np.float32)
    write_hdf(tmp_path / "a.hdf", images, [{"apix_x": 2.0}, {"apix_x": 2.0}, {"apix_x": 3.0}, {"apix_x": 2.0}])
    (tmp_path / "a.lst").write_text("#LST\n0\ta.hdf\n2\ta.hdf\n")
    for name, sizes in (("a.hdf", [2, 2, 3, 2]), ("a.lst", [2, 3])):
        found = open_particles(tmp_path / name).pixel_sizes_A
        assert found is not None
        assert found.tolist() == sizes


def test_eman_pixels_that_are_not_square_are_said(tmp_path: Path) -> None:
    write_hdf(tmp_path / "a.hdf", np.zeros((2, 8, 8)), pixel_size_A=2.0)
    assert not open_particles(tmp_path / "a.hdf").warnings
    with h5py.File(tmp_path / "a.hdf", "r+") as file:
        file["MDF/images/1"].attrs["EMAN.apix_y"] = 2.5
    (tmp_path / "a.lst").write_text("#LSX\n# a list\n# 15\n" + "".join(f"{i} a.hdf   \n" for i in (0, 1)))
    for name in ("a.hdf", "a.lst"):
        (warning,) = open_particles(tmp_path / name).warnings
        assert warning.what.startswith("1 of 2 particles (2) is of pixels of 2 A along x (apix_x) and 2.5 A along y")


@pytest.mark.parametrize(("apix", "taken"), [(1.0, 2.5), (4.0, 4.0)])
def test_eman_pixel_size_of_the_ctf_is_compared_with_the_images(apix: float, taken: float, tmp_path: Path) -> None:
    """1 A/px is what EMAN2 writes where it knows none."""
    ctf = "E1.2 0 0 0 10 300 2.7 2.5 0 0 0"
    write_hdf(tmp_path / "a.hdf", np.zeros((2, 8, 8)), [{"ctf": ctf}] * 2, pixel_size_A=apix)
    particles = open_particles(tmp_path / "a.hdf")
    assert particles.pixel_size_A == taken
    (warning,) = particles.warnings
    assert f"apix_x {apix:g} A/px, the CTF's 2.5 A/px; {taken:g} is taken" in warning.what


@pytest.mark.parametrize(
    ("percent", "known"), [(10, True), (0, True), (200, True), (-150, True), (201, False), (1000, False)]
)
def test_eman_amplitude_contrast_beyond_any_phase_is_no_ctf(percent: float, known: bool) -> None:
    """EMAN2 writes a phase plate as a contrast of up to 200 %; 1000 % is ten, taken for a per cent."""
    ctf = ctf_of_strings([f"E1.5 0 0 0 {percent} 300 2.7 3 0 0 0"])
    assert ctf is not None
    assert bool(np.isfinite(ctf.amplitude_contrast).all()) == known


@pytest.mark.parametrize("suffix", [".hdf", ".lst"])
def test_eman_phases_flipped_by_the_name_of_the_file_are_not_flipped_again(suffix: str, tmp_path: Path) -> None:
    """E2ctf leaves no attribute: m__ctf_flip.hdf, m__ctf_flip_lp7.hdf, m__ctf_wiener.hdf."""
    images = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    headers = [{"ctf": "E1.5 0 0 30 10 300 2.7 2 0 0 0"} for _ in images]
    for name, state in (("m__ctf_flip", 1), ("m__ctf_flip_lp7", 1), ("m__ctf_wiener", None), ("m__ctf_flips", 0)):
        write_hdf(tmp_path / f"{name}.hdf", images, headers, pixel_size_A=2.0)
        listed = "#LST\n" + "".join(f"{i}\t{name}.hdf\n" for i in range(4))
        (tmp_path / f"{name}.lst").write_text(listed)
        particles = open_particles(tmp_path / (name + suffix))
        assert (particles.ctf is None) == (state is None)
        assert particles.ctf is None or particles.ctf.state.tolist() == [state] * 4
        said = [w.what.split(" in files named ")[-1].split(":")[0] for w in particles.warnings]
        assert said == ([] if state == 0 else ["__ctf_flip" if state else "__ctf_wiener"])
    star = tmp_path / "p.star"
    write_particles_star(star, open_particles(tmp_path / "m__ctf_flips.hdf"))
    assert not open_particles(star).warnings
    star.write_text(star.read_text().replace("__ctf_flips", "__ctf_flip"))
    assert "files are named __ctf_flip" in open_particles(star).warnings[0].what


def test_eman_ctf_that_no_header_holds_in_full_is_said(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8), dtype=np.float32)
    write_hdf(tmp_path / "p.hdf", images, [{"ctf": "E1.5 garbage"}, {"ctf": "?"}, {}], pixel_size_A=2.0)
    particles = open_particles(tmp_path / "p.hdf")
    assert particles.ctf is None
    assert "2 of 3 particles (1, 2) are with a CTF in the header that is none" in particles.warnings[0].what
