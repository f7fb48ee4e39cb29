"""A run as RELION's Class2D job: the files, one numbering of classes, RELION's own reading, and `ralib relion`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from ralib.cli import main
from ralib.cli.commands.relion import OPTIONS, parse
from ralib.conventions import invert
from ralib.io import count_optics_groups, open_images, open_particles, read_star, write_mrcs, write_particles_star
from ralib.kernels import rotate_shift_images
from ralib.results.relion_files import noise_power, write_relion_files
from ralib.results.summary.runs import open_run
from ralib.types import ClassAverages, CtfParameters, ParticleSet, Poses, RalibError, as_particles

BOX, N, K = 24, 60, 2

ASKED_BY_RELION_5 = {
    "optimiser_general": """OutputRootName ModelStarFile ExperimentalDataStarFile OrientSamplingStarFile
        CurrentIteration NumberOfIterations DoSplitRandomHalves JoinHalvesUntilThisResolution AdaptiveOversampleOrder
        AdaptiveOversampleFraction RandomSeed ParticleDiameter WidthMaskEdge DoZeroMask DoSolventFlattening
        SolventMaskName SolventMask2Name TauSpectrumName MaximumCoarseImageSize HighresLimitExpectation
        IncrementImageSize DoMapEstimation DoAutoRefine AutoLocalSearchesHealpixOrder
        NumberOfIterWithoutResolutionGain BestResolutionThusFar NumberOfIterWithoutChangingAssignments DoSkipAlign
        OverallAccuracyRotations OverallAccuracyTranslationsAngst ChangesOptimalOrientations ChangesOptimalOffsets
        ChangesOptimalClasses SmallestChangesOrientations SmallestChangesOffsets SmallestChangesClasses HasConverged
        HasHighFscAtResolLimit HasLargeSizeIncreaseIterationsAgo DoCorrectNorm DoCorrectScale DoCorrectCtf
        DoIgnoreCtfUntilFirstPeak CtfDataArePhaseFlipped DoOnlyFlipCtfPhases RefsAreCtfCorrected
        FixSigmaNoiseEstimates FixSigmaOffsetEstimates MaxNumberOfPooledParticles""",
    "model_general": """ReferenceDimensionality OriginalImageSize CurrentResolution CurrentImageSize PaddingFactor
        FourierSpaceInterpolator MinRadiusNnInterpolation PixelSize NrClasses NrGroups NrOpticsGroups Tau2FudgeFactor
        NormCorrectionAverage OrientationalPriorMode SigmaPriorRotAngle SigmaPriorTiltAngle SigmaPriorPsiAngle
        SigmaOffsetsAngst LogLikelihood AveragePmax""",
}
"""Fields without which RELION 5 refuses these tables (its MlOptimiser::read and MlModel::read)."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with particles of two views in three micrographs."""
    folder = tmp_path_factory.mktemp("project")
    g = torch.Generator().manual_seed(2)
    y, x = (t - BOX / 2 for t in torch.meshgrid(torch.arange(BOX), torch.arange(BOX), indexing="ij"))
    views = torch.stack(
        [
            torch.exp(-((x - 5) ** 2 + y**2) / 8) + torch.exp(-((x + 3) ** 2 + (y - 4) ** 2) / 6),
            torch.exp(-(x**2) / 6 - (y + 2) ** 2 / 40),
        ]
    )
    poses = poses_of(g)
    images = rotate_shift_images(
        3 * views[poses.class_index], *invert((poses.psi_deg, poses.origin_xy_px, poses.mirror))
    )
    write_mrcs(folder / "p.mrcs", (images + torch.randn(N, BOX, BOX, generator=g)).numpy(), 4.0)
    particles = open_particles(folder / "p.mrcs").replace(group=np.arange(N) // 20)
    write_particles_star(folder / "p.star", particles, project=folder)
    return folder


def poses_of(g: torch.Generator) -> Poses:
    return Poses.identity(N).replace(
        psi_deg=torch.rand(N, generator=g) * 360 - 180,
        origin_xy_px=torch.rand(N, 2, generator=g) * 2 - 1,
        mirror=torch.rand(N, generator=g) < 0.5,
        class_index=torch.arange(N) % K,
        score=torch.rand(N, generator=g),
    )


def job_of(project: Path) -> Path:
    """The files of a job in `project`/job, from known poses; returns the folder."""
    folder = project / "job"
    folder.mkdir(exist_ok=True)
    particles, poses = open_particles(project / "p.star"), poses_of(torch.Generator().manual_seed(2))
    turned = rotate_shift_images(
        torch.from_numpy(particles.images.read(np.arange(N))), poses.psi_deg, poses.origin_xy_px, poses.mirror
    )
    averages = torch.stack([turned[poses.class_index == k].mean(0) for k in range(K)])
    write_mrcs(folder / "averages.mrcs", averages.numpy(), 4.0)
    write_particles_star(folder / "particles.star", particles, poses, mirror_as_class=False, project=project)
    classes = [{"class": k + 1, "resolution_A": [12.0, None][k], "shift_spread_px": 0.5} for k in range(K)]
    record = {"options": {"ctf": "off", "seed": 7}, "search_range_px": 1.0, "classes": classes, "diameter_A": 70.0}
    write_relion_files(
        folder / "run_it005",
        ClassAverages(averages, torch.bincount(poses.class_index), pixel_size_A=4.0),
        poses,
        particles,
        record,
        particle_file=folder / "particles.star",
        average_file=folder / "averages.mrcs",
        posterior=np.full(N, 0.75),
        iteration=5,
    )
    return folder


def test_a_job_names_its_files_and_numbers_its_classes_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    folder = job_of(project)
    optimiser = read_star(folder / "run_it005_optimiser.star")["optimiser_general"]
    for name, part in (("rlnModelStarFile", "model"), ("rlnExperimentalDataStarFile", "data")):
        assert optimiser[name] == f"job/run_it005_{part}.star"
        assert (project / optimiser[name]).is_file()
    assert optimiser["rlnOutputRootName"] == "job/run"
    assert float(optimiser["rlnParticleDiameter"]) == 70
    model = read_star(folder / "run_it005_model.star")
    classes = model["model_classes"]
    assert len(classes) == K  # not 2 K
    assert classes["rlnEstimatedResolution"].tolist() == [12, 999]
    assert classes["rlnAccuracyTranslationsAngst"].tolist() == [2, 2]
    assert float(model["model_general"]["rlnAveragePmax"]) == 0.75
    assert model["model_groups"]["rlnGroupNrParticles"].tolist() == [20, 20, 20]
    assert np.array_equal(open_images(folder / "run_it005_model.star"), open_images(folder / "averages.mrcs"))
    table = read_star(folder / "run_it005_data.star")["particles"]
    assert set(table["rlnClassNumber"]) == {1, 2}
    assert set(table["rlnAngleTilt"].astype(float)) == {0.0, 180.0}
    assert (folder / "run_it005_data.star").is_symlink()  # no file twice


def test_a_job_has_every_field_that_relion_5_asks_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    folder = job_of(project)
    for table, fields in ASKED_BY_RELION_5.items():
        part = table.removesuffix("_general")
        assert {f"rln{name}" for name in fields.split()} <= set(read_star(folder / f"run_it005_{part}.star")[table])


def test_a_model_counts_the_optics_groups_that_the_data_list(tmp_path: Path) -> None:
    """Phase-flipped particles of one group become a group of their own."""
    write_mrcs(tmp_path / "p.mrcs", np.random.default_rng(0).normal(size=(6, 16, 16)).astype(np.float32), 2.0)
    one = np.ones(6)
    ctf = CtfParameters(9000 * one, 9000 * one, 0 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one, 0 * one)
    particles = open_particles(tmp_path / "p.mrcs").replace(ctf=ctf.with_state(np.array([0, 0, 1, 1, 0, 0])))
    for source in (particles, None):
        particles = particles if source is not None else open_particles(tmp_path / "p.star")
        expected = count_optics_groups(particles)
        write_particles_star(tmp_path / "p.star", particles)
        assert len(read_star(tmp_path / "p.star")["optics"]) == expected == 2


def test_a_job_opens_by_any_of_its_files(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    folder = job_of(project)
    shutil.copyfile(folder / "averages.mrcs", folder / "run_it005_classes.mrcs")
    runs = [open_run(folder / f"run_it005_{part}.star") for part in ("data", "model", "optimiser")]
    assert [run.members.tolist() for run in runs] == [runs[0].members.tolist()] * 3
    (folder / "run_it005_optimiser.star").rename(folder / "chosen_optimiser.star")
    assert open_run(folder / "chosen_optimiser.star").path.name == "run_it005_data.star"  # as the file itself says
    with pytest.raises(RalibError, match="is no run"):
        open_run(folder / "run_it005_sampling.star")


def test_the_mirror_survives_a_program_that_drops_our_columns(project: Path, tmp_path: Path) -> None:
    """By the tilt alone; a tilt of another angle is no mirror."""
    from ralib.io import write_star

    tables = read_star(job_of(project) / "particles.star")
    table = tables["particles"]
    tables["particles"] = table.drop(columns=[c for c in table.columns if c.startswith("ralib")])
    write_star(tmp_path / "plain.star", tables)
    poses = poses_of(torch.Generator().manual_seed(2))
    back = open_particles(tmp_path / "plain.star", require_images=False).poses
    assert back is not None
    assert back.mirror.tolist() == poses.mirror.tolist()
    assert back.class_index.tolist() == poses.class_index.tolist()
    tables["particles"] = tables["particles"].assign(rlnAngleTilt=np.linspace(0, 180, N))
    write_star(tmp_path / "three_d.star", tables)
    other = open_particles(tmp_path / "three_d.star", require_images=False).poses
    assert other is not None
    assert not other.mirror.any()


def test_noise_power_is_in_relions_scale() -> None:
    """White noise of variance v: |F|^2 / (2 n^4) = v / (2 n^2) in every ring."""
    rng = np.random.default_rng(0)
    from ralib.types import ArraySource

    images = rng.normal(0, 3, (150, 32, 32)).astype(np.float32)
    power = noise_power(ParticleSet(ArraySource(images)), 32)
    assert power is not None
    np.testing.assert_allclose(power[2:], 9 / (2 * 32**2), rtol=0.08)


def test_relion_goes_on_from_our_optimiser(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """relion_refine --continue reads optimiser, data, model and sampling, and takes one more step."""
    if shutil.which("relion_refine") is None:
        pytest.skip("RELION is not installed: no relion_refine (Debian: apt install relion)")
    monkeypatch.chdir(project)
    job_of(project)
    command = "relion_refine --continue job/run_it005_optimiser.star --o next/run --iter 6 --j 1 --skip_align"
    (project / "next").mkdir(exist_ok=True)
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-600:] + done.stderr[-600:]
    theirs = read_star(project / "next" / "run_it006_model.star")
    assert len(theirs["model_classes"]) == K
    table = read_star(project / "next" / "run_it006_data.star")["particles"]
    assert table["ralibMirror"].astype(int).tolist() == poses_of(torch.Generator().manual_seed(2)).mirror.int().tolist()


def test_every_option_is_used_named_or_refused() -> None:
    line = "--i p.star --o Class2D/job7/run --K 50 --particle_diameter 200 --iter 30 --tau2_fudge 2 --ctf --gpu 1:2"
    job = parse(f"{line} --j 4 --offset_range 5 --random_seed 9 --zero_mask --pool 30 --pipeline_control x/".split())
    assert (job.stack, job.root, job.iteration, job.threads, job.ctf) == ("p.star", "Class2D/job7/run", 30, 4, "on")
    pairs = dict(zip(job.arguments[::2], job.arguments[1::2], strict=True))
    wanted = {"--classes": "50", "--diameter": "200", "--search": "5", "--seed": "9", "--device": "cuda:1"}
    assert pairs == wanted
    told = " ".join(job.notes)
    assert all(option in told for option in ("--tau2_fudge 2", "--zero_mask", "--pool 30", "one GPU"))
    assert parse(["--ctf", "--ctf_phase_flipped"]).ctf == parse(["--ctf_phase_flipped", "--ctf"]).ctf == "flipped"
    assert parse(["--gpu", "--j", "2"]).arguments == ["--device", "cuda"]
    for wrong in (
        "--auto_refine",
        "--skip_rotate",
        "--helix",
        "--nonsense 3",
        "stray",
        "--K",
        "--iter x",
    ):
        with pytest.raises(RalibError) as error:
            parse(wrong.split())
        assert wrong.split()[0] in str(error.value)
        assert "\n" not in str(error.value)
    assert len(OPTIONS) > 60


@pytest.mark.parametrize(
    "line",
    [
        "relion_refine --o C/run --grad --class_inactivity_threshold 0.1 --grad_write_iter 10 --iter 200 --i p.star "
        "--dont_combine_weights_via_disc --preread_images --pool 30 --pad 2 --ctf --tau2_fudge 2 "
        "--particle_diameter 200 --K 40 --flatten_solvent --zero_mask --center_classes --oversampling 1 --psi_step 12 "
        "--offset_range 5 --offset_step 2 --allow_coarser_sampling --norm --scale --j 10 --gpu '' "
        "--pipeline_control C/",
        "/opt/bin/relion_refine_mpi --o C/run --iter 25 --i p.star --scratch_dir /tmp --pool 3 --pad 1 --skip_gridding "
        "--ctf --ctf_corrected_ref --tau2_fudge 2 --particle_diameter 200 --K 40 --flatten_solvent --zero_mask "
        "--strict_highres_exp 12 --oversampling 1 --psi_step 12 --offset_range 5 --offset_step 2 --norm --scale --j 1 "
        "--gpu ''",
    ],
    ids=["RELION 5, VDAM", "RELION 3.1, EM"],
)
def test_command_lines_of_relions_window_are_taken_whole(line: str) -> None:
    job = parse(shlex.split(line))
    given = [word for word in shlex.split(line) if word.startswith("--")]
    used = ("--o", "--i", "--iter", "--j", "--pipeline_control", "--ctf")
    ours = {"--particle_diameter", "--K", "--strict_highres_exp", "--offset_range", "--gpu"}
    named = {note.split()[0].rstrip(":") for note in job.notes}
    assert set(given) == named | ours.intersection(given) | set(used).intersection(given)
    pairs = dict(zip(job.arguments[::2], job.arguments[1::2], strict=True))
    assert (pairs["--classes"], pairs["--diameter"], pairs["--search"], pairs["--device"]) == ("40", "200", "5", "cuda")
    assert (job.stack, job.root, job.ctf) == ("p.star", "C/run", "on")


def test_references_and_continue_of_relions_command_line_become_those_of_classify() -> None:
    assert parse(["--ref", "classes.mrcs"]).arguments == ["--references", "classes.mrcs"]
    assert parse(["--ref", "None"]).arguments == []
    assert parse(["--continue", "--K", "3"]).arguments == ["--continue", "--classes", "3"]


def test_the_front_end_leaves_what_a_class2d_job_leaves(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    (project / "Class2D/job001").mkdir(parents=True)
    words = "relion --i p.star --o Class2D/job001/run --K 2 --particle_diameter 80 --iter 25 --tau2_fudge 2 --j 1"
    assert main([*words.split(), "--pipeline_control", "Class2D/job001/"]) == 0
    assert "--tau2_fudge 2: not needed" in capsys.readouterr().out
    folder = project / "Class2D/job001"
    for part in ("data.star", "model.star", "optimiser.star", "sampling.star", "classes.mrcs"):
        assert (folder / f"run_it025_{part}").is_file()
    assert (folder / "RELION_JOB_EXIT_SUCCESS").exists()
    nodes = read_star(folder / "RELION_OUTPUT_NODES.star")["output_nodes"]
    named = dict(zip(nodes["rlnPipeLineNodeName"], nodes["rlnPipeLineNodeTypeLabel"], strict=True))
    assert named["Class2D/job001/run_it025_data.star"] == "ParticlesData.star.relion.class2d"
    assert named["Class2D/job001/run_it025_optimiser.star"] == "ProcessData.star.relion.optimiser.class2d"
    optimiser = read_star(folder / "run_it025_optimiser.star")["optimiser_general"]
    assert optimiser["rlnModelStarFile"] == "Class2D/job001/run_it025_model.star"
    table = read_star(folder / "run_it025_data.star")["particles"]
    assert {"rlnMaxValueProbDistribution", "rlnLogLikeliContribution", "rlnNrOfSignificantSamples"} <= set(
        table.columns
    )
    assert table["rlnMaxValueProbDistribution"].astype(float).between(0, 1).all()
    assert (table["rlnNrOfSignificantSamples"].astype(int) >= 1).all()
    assert set(table["rlnClassNumber"]) <= {1, 2}
    assert main([*words.split(), "--dry-run", "--pipeline_control", "Class2D/job001/"]) == 0
    assert main(["relion", "--i", "p.star"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    # RELION's window continues a job by its optimiser file alone, under another root.
    words = (
        "relion --continue Class2D/job001/run_it025_optimiser.star --o Class2D/job001/run_ct25 --iter 30 --K 7 --j 1"
    )
    assert main(words.split()) == 0
    assert "goes on with its own options" in capsys.readouterr().out
    assert (folder / "run_ct25_it030_data.star").read_bytes() == (folder / "run_it025_data.star").read_bytes()
    (folder / "ralib" / "run.yaml").unlink()
    assert main(words.split()) == 2
    assert "--i Class2D/job001/run_it025_data.star --ref Class2D" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--iter -1", "--iter -1: give a whole number"), ("--iter 1e3", "--iter 1e3"), ("--iter 99999", "--iter 99999"),
        ("--j 0", "--j 0: give a whole number"), ("stray", "'stray' belongs to no option"), ("--bogus 1", "--bogus"),
        ("--i", "--i needs a value"),
    ],
)  # fmt: skip
def test_relion_command_refuses_numbers_out_of_range(words: str, said: str) -> None:
    with pytest.raises(RalibError, match=re.escape(said)):
        parse(words.split())


def test_relion_command_takes_minus_one_for_relions_default() -> None:
    """RELION's own defaults: no limit of resolution, the box as diameter, a seed of its own."""
    words = "--particle_diameter -1 --strict_highres_exp -1 --strict_lowres_exp -1 --random_seed -1 --angpix -1"
    job = parse(words.split())
    assert job.arguments == []
    assert len(job.notes) == 5
    assert parse(["--cpu"]).arguments == ["--device", "cpu"]


def test_noise_power_ignores_images_that_are_not_finite_or_far_brighter() -> None:
    images = np.random.default_rng(0).normal(size=(40, 32, 32)).astype(np.float32)
    expected = noise_power(as_particles(images), 32)
    images[3, 5, 5], images[7], images[9, 16, 16] = np.inf, np.nan, 1e38
    found = noise_power(as_particles(images), 32)
    assert expected is not None
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=0.3)
    assert noise_power(as_particles(np.full((3, 32, 32), np.nan, dtype=np.float32)), 32) is None
