"""`ralib mref` and `ralib reffree` from a stack to a run directory, and every way they refuse."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from blobs import Truth, make
from ralib import io
from ralib.classes.evaluation import purity
from ralib.cli import main
from ralib.cli.interrupts import SignalFlag
from ralib.cli.parsing import ctf_choice, shift_ranges, user_function
from ralib.cli.timing import began, process_age_s, references_s, time_line
from ralib.results.run_directory import load_run
from ralib.types import RalibError


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Truth]:
    """particles.mrcs, references.mrcs and mask.mrcs of 60 particles of 2 views."""
    folder = tmp_path_factory.mktemp("data")
    truth = make(60, box=32, n_views=2, snr=1.0, shift_px=1.0, seed=4)
    io.write_mrcs(folder / "particles.mrcs", truth.images, 3.0)
    io.write_mrcs(folder / "references.mrcs", truth.references.numpy(), 3.0)
    io.write_mrcs(folder / "mask.mrcs", np.ones((1, 32, 32), np.float32), 3.0)
    return folder, truth


def mref(folder: Path, out: Path, *options: str, references: str | None = None) -> int:
    where = references or str(folder / "references.mrcs")
    common = ["--ou", "12", "--xr", "2", "--maxit", "2", "--device", "cpu", "--no-report"]
    return main(["mref", str(folder / "particles.mrcs"), where, str(out), *common, *options])


def same_run(a: Path, b: Path) -> bool:
    names = [
        "class_averages.mrcs",
        "class_averages_half1.mrcs",
        "params.txt",
        "frc.txt",
        "class_averages_filtered.mrcs",
    ]
    return all((a / n).read_bytes() == (b / n).read_bytes() for n in names)


def test_mref_command_writes_every_file(data, tmp_path, capsys) -> None:
    folder, truth = data
    before = (folder / "particles.mrcs").read_bytes()
    assert mref(folder, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "device: cpu" in told
    assert told.count("iteration ") == 2
    run = load_run(tmp_path / "out")
    assert purity(run.poses.class_index, truth.poses.class_index) == 1.0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["state"] == "finished"
    assert record["options"]["xr"] == 2
    assert record["input"].pop("fingerprint")["particles"] == 60
    assert record["input"] == {"path": str(folder / "particles.mrcs"), "particles": 60, "box": 32, "pixel_size_A": 3.0}
    assert len(record["iterations"]) == 2
    timings = record["timings"]
    assert timings["total_s"] > timings["start_s"] + timings["search_s"] + timings["references_s"] > 0
    assert f"time: {timings['total_s']:.1f} s: start-up {timings['start_s']:.1f}, reading" in told
    assert (folder / "particles.mrcs").read_bytes() == before
    assert mref(folder, tmp_path / "out") == 2, "OUTDIR exists"
    assert "exists and is not empty" in capsys.readouterr().err


def test_reffree_command_writes_every_file_and_a_report(data, tmp_path, capsys) -> None:
    folder, _ = data
    stack, out = str(folder / "particles.mrcs"), str(tmp_path / "out")
    status = main(["reffree", stack, out, str(folder / "mask.mrcs"), "--ou=12", "--xr=2 1", "--ts=1 0.5", "--maxit=1",
                   "--Fourvar", "--randomize", "--center=1", "--hdf", "--device=cpu"])  # fmt: skip
    assert status == 0, capsys.readouterr().err
    run = load_run(out)
    assert run.kind == "reffree"
    assert [f["stage"] for f in run.iterations] == [1, 2]
    assert (tmp_path / "out" / "report.html").stat().st_size > 1000
    assert (tmp_path / "out" / "class_averages.hdf").is_file()


def test_report_made_in_memory_is_that_of_the_files(data, tmp_path) -> None:
    from ralib.report.payload import figures
    from ralib.results.summary import finished_run, open_run, report_json, summarise

    folder, _ = data
    out = tmp_path / "out"
    assert mref(folder, out) == 0
    result, particles = load_run(out), io.open_particles(folder / "particles.mrcs")
    memory = figures(summarise(finished_run(out, open_run(out).record, result, particles)))
    files = report_json(out)
    for part in ("title", "fingerprint", "classes", "warnings", "iterations", "histograms", "hexagon_maps"):
        assert memory[part] == files[part], part
    assert memory["members"]["row"] == files["members"]["row"]
    np.testing.assert_allclose(memory["embedding"]["xy"], files["embedding"]["xy"], atol=1e-3)
    np.testing.assert_allclose(memory["frc"]["values"], files["frc"]["values"], atol=1e-6)


def test_mref_command_file_that_cannot_be_written_ends_the_run(data, tmp_path, capsys, monkeypatch) -> None:
    """They are written by a thread beside the next iteration; its error is the run's."""
    from ralib.results.run_directory import RunDirectory

    def full(self: RunDirectory, number: int, arrays: object, meta: object) -> None:
        if number == 2:
            raise RalibError("cannot write checkpoint_0002.ralib: No space left on device")

    monkeypatch.setattr(RunDirectory, "save_checkpoint", full)
    assert mref(data[0], tmp_path / "out", "--maxit=4") == 2
    told = capsys.readouterr()
    assert "No space left on device" in told.err
    assert "iteration 4" not in told.out
    assert not (tmp_path / "out" / "class_averages.mrcs").exists()


def test_mref_command_shift_range_too_wide_is_told_at_once(data, tmp_path, capsys) -> None:
    assert mref(data[0], tmp_path / "cut", "--xr=9") == 0
    told = capsys.readouterr().out
    assert told.index("note: shifts are searched to 3 px only, not 9") < told.index("iteration 1")
    assert mref(data[0], tmp_path / "fits", "--xr=3") == 0
    assert "note:" not in capsys.readouterr().out


def test_time_line_parts_add_up() -> None:
    timings = {"start_s": 2.0, "waited_for_reading_s": 1.0, "prepare_s": 1.5, "search_s": 3.0, "write_s": 0.5}
    line = time_line(timings | {"total_s": 10.0, "read_s": 9.0})
    assert line == "time: 10.0 s: start-up 2.0, reading 1.0, preparing 0.5, search 3.0, files 0.5, other 3.0"
    line = time_line(timings | {"search_s": 300.2, "report_s": 0.04, "total_s": 310.4})
    assert line == "time: 310 s: start-up 2, reading 1, search 300, other 6", "parts below half a second are left out"
    assert references_s(timings | {"average_s": 0.5}, [{"seconds": 4.0}, {"seconds": 2.0}]) == 1.0
    assert 0 < process_age_s() < 7 * 86400
    here = time.perf_counter()
    assert began(["info"]) == pytest.approx(here, abs=1)
    assert began(None) < here - 0.1


def test_mref_command_older_spellings_mean_the_same(data, tmp_path) -> None:
    folder, _ = data
    terse = ["--ir=2", "--yr=1", "--ts=1", "--center=-1", "--nomirror", "--EQ", "--rand_seed=7"]
    long = ["--inner-radius=2", "--shift-range-y=1", "--shift-step=1", "--centring=-1", "--no-mirror", "--equal-sizes",
            "--seed=7"]  # fmt: skip
    assert mref(folder, tmp_path / "a", *terse, references="3") == 0
    assert mref(folder, tmp_path / "b", *long, references="3") == 0
    assert same_run(tmp_path / "a", tmp_path / "b")
    assert load_run(tmp_path / "a").averages.members.tolist() == [20, 20, 20]
    assert mref(folder, tmp_path / "c", *terse[:-1], "--rand_seed=8", references="3") == 0
    assert not same_run(tmp_path / "a", tmp_path / "c")


def test_mref_command_hdf_headers_change_only_on_request(golden, tmp_path) -> None:
    stack = tmp_path / "stack.hdf"
    shutil.copy(golden / "stack.hdf", stack)
    before = stack.read_bytes()
    n = len(io.open_particles(stack))
    command = ["mref", str(stack), "2", str(tmp_path / "a"), "--maxit=1", "--xr=1", "--no-report", "--device=cpu"]
    assert main(command) == 0
    assert stack.read_bytes() == before
    assert (tmp_path / "a" / "class_averages.hdf").is_file()
    command[3] = str(tmp_path / "b")
    assert main([*command, "--write-headers"]) == 0
    poses = io.open_particles(stack).poses
    assert poses is not None
    assert len(poses) == n
    assert torch.equal(poses.class_index, load_run(tmp_path / "b").poses.class_index)


@pytest.mark.slow
def test_mref_command_cryosparc_input_comes_back_as_cs(shared_data, tmp_path) -> None:
    folder = shared_data / "real" / "empiar10076_7"
    command = ["mref", str(next(folder.glob("*.cs"))), "2", str(tmp_path / "out"), "--datadir", str(folder)]
    assert main([*command, "--maxit=1", "--ou=40", "--no-report", "--device=cpu"]) == 0
    back = io.open_particles(tmp_path / "out" / "particles.cs", require_images=False).poses
    assert back is not None
    assert torch.equal(back.class_index, load_run(tmp_path / "out").poses.class_index)


def test_alignment_commands_sparx_mode_runs(data, tmp_path) -> None:
    """tests/test_sparx_*.py compare its answer with EMAN2's; here it only has to arrive in the files."""
    folder, _ = data
    assert mref(folder, tmp_path / "out", "--sparx") == 0
    run = load_run(tmp_path / "out")
    assert int(run.averages.members.sum()) == 60
    assert run.options["sparx"] is True
    stack, out = str(folder / "particles.mrcs"), str(tmp_path / "free")
    command = ["reffree", stack, out, "--sparx", "--ou=12", "--xr=1", "--ts=1", "--maxit=1", "--dst=90", "--no-report"]
    assert main([*command, "--device=cpu"]) == 0
    assert load_run(out).kind == "reffree"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rs=2"], "--rs 2 thins out SPARX's polar rings"),
        (["--write-headers"], "is no EMAN2 HDF file"),
        (["--sparx", "--continue"], "the parity mode keeps no checkpoints"),
        (["--sparx", "--min-members=9"], "SPARX gives a class below 4"),
        (["--sparx", "--EQ"], "no classes of equal size"),
        (["--sparx", "--ctf=flip"], "--ctf flip is not SPARX's"),
        (["--CTF"], "no CTF parameters"),
        (["--CTF", "--ctf=flip"], "contradict each other"),
        (["--ctf=maybe"], "choose off, wiener or flip"),
        (["--function=nowhere:f"], "cannot be loaded"),
        (["--function=json"], "MODULE:CALLABLE"),
        (["--function=math:pi"], "not callable"),
        (["--xr=-1"], "must not be below 0"),
        (["--ts=0"], "must be above 0"),
        (["--maxit=0"], "--maxit 1 or more"),
        (["--ou=40"], "do not fit in a box of 32 px"),
        (["--continue"], "there is no run in"),
        (["--pixel-size=0"], "must be above 0"),
        (["--gpu_devices=x"], "no list of GPU numbers"),
        (["--device=tpu"], "is not a device"),
        (["--snr=0"], "must be above 0"),
    ],
)
def test_alignment_commands_wrong_options_are_refused_in_one_line(data, tmp_path, capsys, options, message) -> None:
    folder, _ = data
    status = mref(folder, tmp_path / "out", *options)
    told = capsys.readouterr().err.strip()
    assert status == 2, told
    assert message in told
    assert told.count("\n") == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--dst=90", "--mode=H", "--random_method=SHC"])
def test_reffree_command_ring_options_are_refused_with_the_reason(data, tmp_path, capsys, option) -> None:
    status = main(["reffree", str(data[0] / "particles.mrcs"), str(tmp_path / "out"), option, "--device=cpu"])
    assert status == 2
    assert "add --sparx" in capsys.readouterr().err


def test_mref_command_malformed_input_is_refused_in_one_line(data, tmp_path, capsys) -> None:
    folder, truth = data
    (tmp_path / "short.mrcs").write_bytes((folder / "particles.mrcs").read_bytes()[:5000])
    io.write_mrcs(tmp_path / "other.mrcs", np.ones((2, 24, 24), np.float32), 3.0)
    nan = truth.images.copy()
    nan[5] = np.nan
    io.write_mrcs(tmp_path / "nan.mrcs", nan, 3.0)
    good, references = str(folder / "particles.mrcs"), str(folder / "references.mrcs")
    cases = [
        ([str(tmp_path / "short.mrcs"), references], ""),
        ([str(tmp_path / "missing.mrcs"), references], "missing.mrcs"),
        ([good, str(tmp_path / "other.mrcs")], "particles are 32 px, references 24 px"),
        ([good, str(tmp_path / "missing.mrcs")], "missing.mrcs"),
        ([good, "0"], "0 references"),
        ([str(tmp_path / "nan.mrcs"), references, "--strict"], "particle 6 is not a usable image"),
    ]
    for (stack, where, *options), message in cases:
        out = tmp_path / "out"
        status = main(["mref", stack, where, str(out), "--ou=12", "--device=cpu", *options])
        told = capsys.readouterr().err.strip()
        assert (status, told.count("\n")) == (2, 0), told
        assert message in told
        assert not out.exists()


def test_shift_ranges_stages_are_those_of_sxali2d() -> None:
    assert shift_ranges("4 2 1", "-1", "2 1 0.5") == [(4, 4, 2), (2, 2, 1), (1, 1, 0.5)]
    assert shift_ranges("4,2", "1", "1") == [(4, 1, 1), (2, 1, 1)]
    for wrong in (("4 2", "-1", "1 1 1"), ("", "-1", "1"), ("a", "-1", "1"), ("nan", "-1", "1")):
        with pytest.raises(RalibError):
            shift_ranges(*wrong)
    assert ctf_choice(True, None) == "wiener"
    assert ctf_choice(False, "flip") == "flip"


def test_user_function_module_of_the_current_folder_is_found(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_reference_function.py").write_text("def prepare(average, mask, frc):\n    return average * mask\n")
    monkeypatch.chdir(tmp_path)
    assert user_function("my_reference_function:prepare")(2, 3, None) == 6
    assert user_function("ref_ali2d") is None


def test_mref_command_signal_saves_and_says_how_to_go_on(data, tmp_path, monkeypatch, capsys) -> None:
    folder, _ = data
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert mref(folder, whole, references="2") == 0
    calls = []

    def after_one_iteration(flag: SignalFlag) -> None:
        calls.append(1)
        if (cut / "checkpoints" / "checkpoint_0001.ralib").exists():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
        original(flag)

    original = SignalFlag.raise_if_set
    monkeypatch.setattr(SignalFlag, "raise_if_set", after_one_iteration)
    assert mref(folder, cut, references="2") == 143
    assert "go on with: ralib" in capsys.readouterr().err
    monkeypatch.setattr(SignalFlag, "raise_if_set", original)
    assert mref(folder, cut, "--continue", "--ir=2", references="2") == 2, "other options are not continued"
    assert "ir was 1, is 2" in capsys.readouterr().err
    assert mref(folder, cut, "--continue", references="2") == 0
    assert same_run(whole, cut)


@pytest.mark.slow
def test_mref_command_killed_at_random_moments_ends_the_same(data, tmp_path) -> None:
    """bench/kill_resume.py does this fifty times."""
    folder, _ = data
    assert mref(folder, tmp_path / "whole", "--maxit=6", references="2") == 0
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "ralib", "mref", str(folder / "particles.mrcs"), "2", str(out), "--ou=12",
               "--xr=2", "--maxit=6", "--device=cpu", "--no-report"]  # fmt: skip
    rng = random.Random(1)
    for _ in range(2):
        resume = ["--continue"] if out.exists() else []
        threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums depend on how many there are
        process = subprocess.Popen(
            [*command, *resume], env=threads, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while not (out / "run.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
    assert mref(folder, out, "--maxit=6", "--continue", references="2") == 0
    assert same_run(tmp_path / "whole", out)
    assert not list(out.rglob(".tmp*")), "half-written files are removed"


@pytest.mark.parametrize(("option", "instead"), [("--MPI", "--gpu_devices"), ("--gpu_info", "ralib info")])
def test_command_replaced_option_points_to_what_replaces_it(option: str, instead: str, capsys) -> None:
    assert main(["mref", "p.mrcs", "2", "out", option]) == 2
    assert instead in capsys.readouterr().err
