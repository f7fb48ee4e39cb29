"""RELION particle files: both column generations, real data, paths, optics groups, RELION itself on ours."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ralib.cli import main
from ralib.conventions import invert
from ralib.io import (
    open_images,
    open_particles,
    open_references,
    read_star,
    take,
    write_class_stack,
    write_job_exit,
    write_model_star,
    write_mrcs,
    write_optimiser_star,
    write_output_nodes,
    write_particles_star,
    write_star,
)
from ralib.io.relion import split_image_names
from ralib.kernels import rotate_shift_images, rotate_shift_sum
from ralib.types import ClassAverages, CtfParameters, Poses, RalibError
from star_files import OPTICS, rows, stack, write


def test_relion_3_0_real_particles(shared_data: Path) -> None:
    """Seven particles of EMPIAR-10076: pixel size from the magnification, a .mrc stack, unpadded 1@."""
    particles = open_particles(shared_data / "real/empiar10076_7/empiar_10076_7.star")
    assert (len(particles), particles.box) == (7, 320)
    assert particles.pixel_size_A == pytest.approx(1.31, abs=1e-4)
    assert particles.poses is None
    assert particles.ctf is not None
    assert particles.ctf.defocus_u_A[0] == 15301.1
    assert particles.ctf.voltage_kV[6] == 300
    assert particles.group is not None
    assert particles.group.tolist() == list(range(7))
    expected = open_images(shared_data / "real/empiar10076_7/empiar_10076_7.mrc")
    assert np.array_equal(particles.images.read(np.array([6, 0])), expected[[6, 0]])


def test_relion_3_0_poses_are_pixels(shared_data: Path) -> None:
    particles = open_particles(shared_data / "real/aspire_sample17/sample_relion_data.star")
    assert particles.pixel_size_A == pytest.approx(1.338)
    assert particles.poses is not None
    assert particles.poses.psi_deg[0] == pytest.approx(71.118492)
    assert particles.poses.origin_xy_px[0].tolist() == pytest.approx([0.1996, 0.1996], abs=1e-4)
    assert particles.ctf is not None
    assert particles.ctf.astigmatism_angle_deg[0] == pytest.approx(7.476096)


def test_relion_3_1_either_order_of_blocks(shared_data: Path) -> None:
    """Five real particles; the STAR file's pixel size wins over the header's."""
    folder = shared_data / "real/cryodrgn_relion31"
    assert open_particles(folder / "relion31.mrcs").pixel_size_A == 1.0
    for name in ("relion31.star", "relion31.v2.star"):
        particles = open_particles(folder / name)
        assert particles.pixel_size_A == pytest.approx(2.806)
        assert particles.poses is not None
        assert particles.poses.origin_xy_px[1, 1] == pytest.approx(0.14378, abs=1e-4)
        assert particles.images.read(np.arange(5)).shape == (5, 256, 256)


def test_relion_datadir_finds_the_images(shared_data: Path, tmp_path: Path) -> None:
    """By the whole name or the base name; it goes before every other place."""
    write_mrcs(tmp_path / "toy_images_a.mrcs", np.zeros((20, 8, 8)), 1.0)
    (tmp_path / "deep").mkdir()
    write_mrcs(tmp_path / "deep/toy_images_b.mrcs", np.ones((20, 8, 8)), 1.0)
    tables = read_star(shared_data / "meta/star5/relion5.star")
    names = tables["particles"]["rlnImageName"]
    tables["particles"]["rlnImageName"] = [n.replace("toy_images_b", "deep/toy_images_b") for n in names]
    (tmp_path / "job").mkdir()
    write_mrcs(tmp_path / "job/toy_images_a.mrcs", np.full((20, 8, 8), 5.0), 1.0)
    write_star(tmp_path / "job/p.star", tables)
    beside = open_particles(tmp_path / "job/p.star").images.read(np.arange(17))[:, 0, 0]
    assert set(beside.tolist()) == {5.0, 1.0}
    found = open_particles(tmp_path / "job/p.star", datadir=tmp_path)
    expected = [float("_b." in n) for n in names]
    assert found.images.read(np.arange(17))[:, 0, 0].tolist() == expected


def test_relion_3_1_header_with_pixel_origins_is_read(shared_data: Path) -> None:
    particles = open_particles(shared_data / "sim/aspire_rln_proj/rln_proj_64_shifted.star")
    assert particles.poses is not None
    assert particles.poses.origin_xy_px.tolist() == [[6, 10], [10, -5], [-8, 11], [-13, -3]]


@pytest.mark.parametrize(
    ("name", "n", "box", "pixel_size_A"),
    [
        ("star30/lqhuang_images_data_images.star", 6496, 0, 3.54),
        ("star31/relion31.6opticsgroups.star", 139, 196, 1.25),
        ("star5/relion5.star", 17, 448, 0.89),
    ],
)
def test_relion_metadata_without_images_is_read(
    shared_data: Path, name: str, n: int, box: int, pixel_size_A: float
) -> None:
    particles = open_particles(shared_data / "meta" / name, require_images=False)
    assert (len(particles), particles.box) == (n, box)
    assert particles.pixel_size_A == pytest.approx(pixel_size_A, rel=1e-4)
    with pytest.raises(RalibError, match="not there"):
        particles.images.read(np.array([0]))
    with pytest.raises(RalibError, match="not there"):
        open_particles(shared_data / "meta" / name)


def test_relion_each_optics_group_counts(shared_data: Path) -> None:
    path = shared_data / "meta/star31/relion31.6opticsgroups.star"
    particles = open_particles(path, require_images=False)
    table, optics = read_star(path)["particles"], read_star(path)["optics"].set_index("rlnOpticsGroup")
    assert particles.ctf is not None
    assert particles.poses is not None
    cs = optics["rlnSphericalAberration"].loc[table["rlnOpticsGroup"]].to_numpy()
    assert len(set(cs)) == 2
    assert np.array_equal(particles.ctf.spherical_aberration_mm, cs)
    pixel = optics["rlnImagePixelSize"].loc[table["rlnOpticsGroup"]].to_numpy()
    expected = table["rlnOriginXAngst"] / pixel
    assert np.allclose(particles.poses.origin_xy_px[:, 0], expected, atol=1e-4)
    assert not np.allclose(particles.poses.origin_xy_px[:, 0], table["rlnOriginXAngst"] / 1.25, atol=1e-4)


def test_relion_unknown_columns_and_blocks_survive(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "meta/star31/relion31.6opticsgroups.star"
    tables = read_star(path)
    tables["particles"]["myColumn"] = [f"x {i}" for i in range(139)]
    tables["mine"] = pd.DataFrame({"a": [1, 2]})
    tables["single"] = {"b": "3"}
    write_star(tmp_path / "in.star", tables)
    particles = open_particles(tmp_path / "in.star", require_images=False)
    write_particles_star(tmp_path / "out.star", particles, Poses.identity(139))
    again = read_star(tmp_path / "out.star")
    assert again["mine"]["a"].tolist() == ["1", "2"]  # a label of another program: text, as it stands
    assert again["single"] == {"b": "3"}
    assert again["optics"].equals(tables["optics"])
    kept = [c for c in tables["particles"].columns if c not in {"rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"}]
    for column in kept:
        assert again["particles"][column].tolist() == tables["particles"][column].tolist(), column
    assert (again["particles"]["rlnAnglePsi"] == 0).all()


def test_relion_3_0_is_written_as_3_1(shared_data: Path, tmp_path: Path) -> None:
    """Nothing that was understood is lost, and the origins' unit is right."""
    before = open_particles(shared_data / "real/aspire_sample17/sample_relion_data.star")
    write_particles_star(tmp_path / "out.star", before)
    tables = read_star(tmp_path / "out.star")
    assert tables["optics"]["rlnImageSize"].tolist() == [200]
    assert tables["optics"]["rlnImageDimensionality"].tolist() == [2]
    assert "rlnOriginX" not in tables["particles"].columns
    assert "rlnVoltage" not in tables["particles"].columns
    after = open_particles(tmp_path / "out.star")
    assert before.poses is not None
    assert after.poses is not None
    assert torch.allclose(after.poses.origin_xy_px, before.poses.origin_xy_px, atol=1e-5)
    for name in vars(before.ctf):
        assert np.allclose(getattr(after.ctf, name), getattr(before.ctf, name)), name
    assert np.array_equal(after.images.read(np.arange(3)), before.images.read(np.arange(3)))


def test_relion_image_names_are_relative_to_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the project folder, from another folder, and for a job folder inside the project."""
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (project / "Extract/job1").mkdir(parents=True)
    (project / "Class2D/job2").mkdir(parents=True)
    elsewhere.mkdir()
    images = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    write_mrcs(project / "Extract/job1/a.mrcs", images, 1.5)
    monkeypatch.chdir(project)
    particles = open_particles("Extract/job1/a.mrcs")
    write_particles_star("Class2D/job2/particles.star", particles, Poses.identity(3))
    names = read_star("Class2D/job2/particles.star")["particles"]["rlnImageName"].tolist()
    assert names == [f"{i:06d}@Extract/job1/a.mrcs" for i in (1, 2, 3)]
    monkeypatch.chdir(elsewhere)
    found = open_particles(project / "Class2D/job2/particles.star")
    assert np.array_equal(found.images.read(np.arange(3)), images)
    write_particles_star("far.star", found)
    assert read_star("far.star")["particles"]["rlnImageName"][0] == f"000001@{project}/Extract/job1/a.mrcs"


def test_relion_image_names_are_split() -> None:
    names = pd.Series(["000001@a.mrcs", "12@b/c.mrcs", "single.mrc", "3@a.mrcs", "7@mail@host.mrcs"])
    file_index, files, slices = split_image_names(names)
    assert files == ["a.mrcs", "b/c.mrcs", "single.mrc", "mail@host.mrcs"]
    assert file_index.tolist() == [0, 1, 2, 0, 3]
    assert slices.tolist() == [0, 11, -1, 2, 6]  # -1: the only image of its file


def test_relion_mirror_is_kept_in_place_where_asked(tmp_path: Path) -> None:
    write_mrcs(tmp_path / "a.mrcs", np.ones((2, 8, 8)), 1.0)
    poses = Poses.identity(2).replace(mirror=torch.tensor([True, False]), class_index=torch.tensor([1, -1]))
    particles = open_particles(tmp_path / "a.mrcs")
    for as_class, expected in ((True, [6, 0]), (False, [2, 0])):
        write_particles_star(tmp_path / "p.star", particles, poses, n_classes=4, mirror_as_class=as_class)
        assert read_star(tmp_path / "p.star")["particles"]["rlnClassNumber"].tolist() == expected
        back = open_particles(tmp_path / "p.star").poses
        assert back is not None
        assert back.class_index.tolist() == [1, -1]
        assert back.mirror.tolist() == [True, False]


def test_relion_selection_takes_its_rows(shared_data: Path, tmp_path: Path) -> None:
    particles = open_particles(shared_data / "real/aspire_sample17/sample_relion_data.star")
    write_particles_star(tmp_path / "some.star", take(particles, np.array([16, 2])))
    table = read_star(tmp_path / "some.star")["particles"]
    assert table["rlnCoordinateX"].tolist() == [916.590156, 1324.729083]
    some = open_particles(tmp_path / "some.star")
    assert np.array_equal(some.images.read(np.arange(2)), particles.images.read(np.array([16, 2])))


def test_relion_model_star_and_output_nodes_are_written(shared_data: Path, tmp_path: Path) -> None:
    """Our model file has the tables and columns of RELION's own; its class averages open."""
    averages = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    frc = torch.linspace(1, 0, 9).expand(2, 9)
    result = ClassAverages(averages, torch.tensor([3, 1]), frc=frc, pixel_size_A=2.0)
    poses = Poses.identity(4).replace(
        class_index=torch.tensor([0, 0, 0, 1]), mirror=torch.tensor([False, True, False, False])
    )
    write_class_stack(tmp_path / "classes.mrcs", averages, 2.0)
    write_model_star(
        tmp_path / "run_model.star", result, averages_path=tmp_path / "classes.mrcs", poses=poses, project=tmp_path
    )
    ours = read_star(tmp_path / "run_model.star")
    theirs = read_star(shared_data / "sets/relion5_vdam_k50_n5000_model.star")
    assert set(ours["model_general"]) <= set(theirs["model_general"])
    assert set(ours["model_class_1"].columns) == set(theirs["model_class_1"].columns)
    assert set(ours["model_classes"].columns) <= set(theirs["model_classes"].columns)
    assert ours["model_general"]["rlnNrClasses"] == "4"
    assert ours["model_classes"]["rlnClassDistribution"].tolist() == [0.5, 0.25, 0.25, 0]
    assert len(ours["model_class_4"]) == 9
    opened = open_images(tmp_path / "run_model.star")
    assert np.array_equal(opened[:2], averages.numpy())
    assert np.array_equal(opened[2, :, 1:], averages[0].numpy()[:, :0:-1])
    assert np.array_equal(opened[2, :, 0], averages[0].numpy()[:, 0])
    write_output_nodes(tmp_path, {"External/job1/particles.star": "ParticlesData.star.relion"})
    write_job_exit(tmp_path, ok=True)
    nodes = read_star(tmp_path / "RELION_OUTPUT_NODES.star")["output_nodes"]
    assert nodes["rlnPipeLineNodeName"].tolist() == ["External/job1/particles.star"]
    assert (tmp_path / "RELION_JOB_EXIT_SUCCESS").exists()


def test_relion_2d_results_are_opened(shared_data: Path) -> None:
    particles = open_particles(shared_data / "sets/relion5_vdam_k50_n5000_data.star", require_images=False)
    assert particles.poses is not None
    assert int(particles.poses.class_index.max()) < 50
    assert particles.poses.origin_xy_px[0, 0] == pytest.approx(5.291497 / 5)


def test_relion_reproduces_the_averages(tmp_path: Path) -> None:
    """relion_refine --skip_align goes on from our particle file and class averages: one step of it gives the same
    averages (correlation >= 0.98 in the mask) and the same classes, those of mirrored members among them."""
    if shutil.which("relion_refine") is None:
        pytest.skip("RELION is not installed: no relion_refine (Debian: apt install relion)")
    images, poses, averages = _noisy_particles()
    write_mrcs(tmp_path / "a.mrcs", images, 3.0)
    write_particles_star(tmp_path / "p.star", open_particles(tmp_path / "a.mrcs"), poses, n_classes=3, project=tmp_path)
    write_class_stack(tmp_path / "classes.mrcs", averages, 3.0)
    result = ClassAverages(averages, torch.bincount(poses.class_index), pixel_size_A=3.0)
    ours = {"averages_path": tmp_path / "classes.mrcs", "poses": poses, "project": tmp_path}
    write_model_star(tmp_path / "model.star", result, **ours)
    references = read_star(tmp_path / "model.star")["model_classes"][["rlnReferenceImage"]]
    write_star(tmp_path / "references.star", {"": references})
    command = "relion_refine --i p.star --ref references.star --firstiter_cc --o ./run --K 6 --iter 1 --skip_align"
    options = "--particle_diameter 160 --tau2_fudge 2 --pad 1 --norm --scale --random_seed 1 --j 1"
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(
        [*command.split(), *options.split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-800:] + done.stderr[-800:]
    theirs, mine = open_images(tmp_path / "run_it001_model.star"), open_images(tmp_path / "classes.mrcs")
    inside = np.hypot(*(np.mgrid[:64, :64] - 32)) < 26
    correlation = np.corrcoef(np.concatenate([theirs, mine])[:, inside])[:6, 6:]
    assert correlation.diagonal().min() >= 0.98
    assert (correlation - np.eye(6)).max() < 0.95  # another class, or the mirror image, would not do
    back = open_particles(tmp_path / "run_it001_data.star")
    assert back.poses is not None
    assert back.poses.mirror.tolist() == poses.mirror.tolist()  # RELION kept the columns it does not know
    classes = [read_star(tmp_path / f)["particles"]["rlnClassNumber"] for f in ("run_it001_data.star", "p.star")]
    assert (classes[0] == classes[1]).mean() > 0.98


def _noisy_particles() -> tuple[np.ndarray, Poses, torch.Tensor]:
    """240 particles (64 px) of three views, normalised as RELION wants them, with poses and class averages."""
    g = torch.Generator().manual_seed(0)
    n = 240
    poses = Poses.identity(n).replace(
        psi_deg=torch.rand(n, generator=g) * 360 - 180,
        origin_xy_px=torch.rand(n, 2, generator=g) * 8 - 4,
        mirror=torch.rand(n, generator=g) < 0.5,
        class_index=torch.arange(n) % 3,
    )
    y, x = (t - 32.0 for t in torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij"))
    spots = torch.rand(3, 7, 3, generator=g) * torch.tensor([28.0, 28.0, 1.5]) - torch.tensor([14.0, 14.0, -0.5])
    views = [sum(a * torch.exp(-((x - u) ** 2 + (y - v) ** 2) / 12) for u, v, a in s.tolist()) for s in spots]
    psi, origin, mirror = invert((poses.psi_deg, poses.origin_xy_px, poses.mirror))
    images = rotate_shift_images(torch.stack(views)[poses.class_index], psi, origin, mirror)
    images += 0.5 * torch.randn(n, 64, 64, generator=g)
    background = images[:, torch.hypot(x, y) > 28]
    images = (images - background.mean(1)[:, None, None]) / background.std(1)[:, None, None]
    sums = rotate_shift_sum(images, poses.psi_deg, poses.origin_xy_px, poses.mirror, poses.class_index, 3)
    return images.numpy(), poses, sums / torch.bincount(poses.class_index)[:, None, None]


def test_star_mirrors_as_classes_leave_no_tilt_that_mirrors_again(tmp_path: Path) -> None:
    """A file with rlnAngleTilt 180, written with classes K + k, then stripped of our columns as RELION 3 does."""
    write_mrcs(tmp_path / "a.mrcs", np.zeros((4, 8, 8), dtype=np.float32), 2.0)
    poses = Poses.identity(4).replace(mirror=torch.tensor([True, False, True, False]), class_index=torch.arange(4) % 2)
    write_particles_star(tmp_path / "t.star", open_particles(tmp_path / "a.mrcs"), poses, mirror_as_class=False)
    write_particles_star(tmp_path / "k.star", open_particles(tmp_path / "t.star"), n_classes=2)
    tables = read_star(tmp_path / "k.star")
    assert tables["particles"]["rlnClassNumber"].tolist() == [3, 2, 3, 2]
    tables["particles"] = tables["particles"].drop(columns=["ralibClass", "ralibMirror"])
    write_star(tmp_path / "k.star", tables)
    read = open_particles(tmp_path / "k.star").poses
    assert read is not None
    assert not read.mirror.any()
    assert read.class_index.tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize("own_column", [False, True])
def test_star_a_ctf_that_was_changed_is_written(tmp_path: Path, own_column: bool) -> None:
    """Voltage, Cs and amplitude contrast stand in data_optics, which is kept: the old values came back."""
    stack(tmp_path / "p.mrcs", 4)
    columns = {"rlnVoltage": 300} if own_column else {}
    optics = {k: v for k, v in OPTICS.items() if k not in columns}
    particles = open_particles(write(tmp_path / "p.star", rows(4, **columns), optics))
    ctf = particles.ctf
    assert ctf is not None
    changed = dataclasses.replace(ctf, voltage_kV=np.array([200.0, 300, 200, 300]), amplitude_contrast=np.full(4, 0.07))
    write_particles_star(tmp_path / "out.star", particles.replace(ctf=changed))
    back = open_particles(tmp_path / "out.star").ctf
    assert back is not None
    assert back.voltage_kV.tolist() == [200, 300, 200, 300]
    assert back.amplitude_contrast.tolist() == [0.07] * 4
    assert len(read_star(tmp_path / "out.star")["optics"]) == (1 if own_column else 2)


def test_star_particles_without_a_ctf_are_one_optics_group(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 40)
    values = (12000.0, 12000.0, 0.0, 300.0, 2.7, 0.1, 0.0, 0.0)
    columns = [np.where(np.arange(40) < 30, np.nan, v) for v in values]
    write_particles_star(
        tmp_path / "out.star", open_particles(tmp_path / "p.mrcs").replace(ctf=CtfParameters(*columns))
    )
    assert len(read_star(tmp_path / "out.star")["optics"]) == 2


def test_star_micrograph_pixels_are_not_made_up(tmp_path: Path) -> None:
    """RELION 3.0 does not say in which pixels its coordinates count; the image's, after cropping, they are not."""
    stack(tmp_path / "p.mrcs", 4)
    names = {"rlnMagnification": 10000, "rlnDetectorPixelSize": 4, "rlnCoordinateX": 10, "rlnCoordinateY": 20}
    table = [{k: v for k, v in row.items() if k != "rlnOpticsGroup"} for row in rows(4, **names)]
    columns = "".join(f"_{label} #{i}\n" for i, label in enumerate(table[0], 1))
    lines = "".join(" ".join(map(str, row.values())) + "\n" for row in table)
    (tmp_path / "old.star").write_text(f"data_\n\nloop_\n{columns}{lines}")
    assert main(["prepare", str(tmp_path / "old.star"), str(tmp_path / "new.star"), "--box=16"]) == 0
    optics = read_star(tmp_path / "new.star")["optics"]
    assert optics["rlnImagePixelSize"].tolist() == [8.0]
    assert "rlnMicrographOriginalPixelSize" not in optics.columns
    assert main(["prepare", str(tmp_path / "new.star"), str(tmp_path / "x.star"), "--remove-duplicates=5"]) == 2


def test_star_a_file_of_ours_without_a_ctf_raises_no_alarm(tmp_path: Path) -> None:
    """RELION refuses optics groups without voltage and Cs, so that every file has them; a defocus alone does tell."""
    stack(tmp_path / "p.mrcs", 4)
    write_particles_star(tmp_path / "q.star", open_particles(tmp_path / "p.mrcs"))
    assert open_particles(tmp_path / "q.star").warnings == ()
    table = [{k: v for k, v in row.items() if k != "rlnDefocusU"} for row in rows(4)]
    assert "but no rlnDefocusU" in open_particles(write(tmp_path / "v.star", table)).warnings[0].what


def _class2d_job(project: Path) -> Path:
    """A Class2D job's model and optimiser, which name their files from the project's folder."""
    job = project / "Class2D" / "job007"
    job.mkdir(parents=True)
    _, _, averages = _noisy_particles()
    write_mrcs(job / "run_it025_classes.mrcs", averages, 3.0)
    result = ClassAverages(averages, torch.tensor([2, 1, 1]), pixel_size_A=3.0)
    named = {"averages_path": job / "run_it025_classes.mrcs", "project": project}
    write_model_star(job / "run_it025_model.star", result, **named)
    write_optimiser_star(
        job / "run_it025_optimiser.star", root=job / "run", model=job / "run_it025_model.star",
        data=job / "run_it025_data.star", sampling=job / "run_it025_sampling.star", iteration=25,
        particle_diameter_A=100, ctf=False, project=project,
    )  # fmt: skip
    return job


def test_references_of_an_optimiser_are_its_models_class_averages(tmp_path: Path) -> None:
    job = _class2d_job(tmp_path)
    averages = open_images(job / "run_it025_classes.mrcs")
    for part in ("model", "optimiser"):
        images, size_A = open_references(job / f"run_it025_{part}.star")
        assert np.array_equal(images, averages)
        assert size_A == 3.0


def test_references_whose_stack_is_missing_say_who_names_it_and_what_to_do(tmp_path: Path) -> None:
    job = _class2d_job(tmp_path)
    (job / "run_it025_classes.mrcs").unlink()
    told = r"run_it025_model\.star names its class averages 'Class2D/job007/run_it025_classes\.mrcs'.* copy the file"
    with pytest.raises(RalibError, match=told):
        open_references(job / "run_it025_optimiser.star")
    (job / "run_it025_model.star").unlink()
    with pytest.raises(RalibError, match=r"run_it025_optimiser\.star names rlnModelStarFile"):
        open_references(job / "run_it025_optimiser.star")


def test_particles_of_an_optimiser_file_name_the_file_that_lists_them(tmp_path: Path) -> None:
    with pytest.raises(RalibError, match=r"is the optimiser file of a job and lists no particles: give .*_data\.star"):
        open_particles(_class2d_job(tmp_path) / "run_it025_optimiser.star")


@pytest.mark.parametrize("as_class", [True, False])
def test_star_too_few_classes_are_refused(tmp_path: Path, as_class: bool) -> None:
    """Class 2 and the mirrored members of class 0 were one, and every mirror was lost."""
    stack(tmp_path / "p.mrcs", 6)
    poses = Poses.identity(6).replace(class_index=torch.arange(6) % 3, mirror=torch.arange(6) >= 3)
    particles = open_particles(tmp_path / "p.mrcs")
    with pytest.raises(RalibError, match=r"`n_classes` 2: particles are in classes 0 to 2"):
        write_particles_star(tmp_path / "p.star", particles, poses, n_classes=2, mirror_as_class=as_class)
    assert not (tmp_path / "p.star").exists()


def test_star_further_columns_are_one_value_a_particle(tmp_path: Path) -> None:
    stack(tmp_path / "p.mrcs", 4)
    particles = open_particles(tmp_path / "p.mrcs")
    with pytest.raises(RalibError, match=r"`columns`: rating has shape \(3,\) for 4 particles"):
        write_particles_star(tmp_path / "p.star", particles, columns={"rating": np.zeros(3)})
    ordered = pd.Series([5, 6, 7, 8], index=[3, 2, 1, 0])  # pandas would sort it by its index
    write_particles_star(tmp_path / "p.star", particles, columns={"rating": ordered})
    table = read_star(tmp_path / "p.star")["particles"]
    assert isinstance(table, pd.DataFrame)
    assert table["rating"].astype(int).tolist() == [5, 6, 7, 8]
