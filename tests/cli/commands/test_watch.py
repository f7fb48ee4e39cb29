"""`ralib watch`: particles join, classes grow, what cannot be read is left out, and a signal ends it well."""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blobs import Truth, make
from ralib import io
from ralib.classes.evaluation import purity
from ralib.classification.classifier import Classifier
from ralib.classification.earlier_classes import EarlierClasses
from ralib.classification.growing import GrowingClassification, Grown
from ralib.classification.particle_extent import ParticleExtent
from ralib.cli import main
from ralib.conventions import pose_error
from ralib.io import arrivals
from ralib.io.arrivals import Arrivals
from ralib.results.checkpoint import Checkpoint, newest, save
from ralib.results.run_directory import RunDirectory, load_run
from ralib.results.run_record import read_record
from ralib.types import ArraySource, ParticleSet, Poses, RalibError, RunResult


@pytest.fixture(scope="module")
def truth() -> Truth:
    return make(120, box=32, n_views=2, snr=2.0, shift_px=1.0, seed=4)


def old(path: Path, seconds: float) -> Path:
    """The file as if it had been written so many seconds ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def stack(folder: Path, name: str, images: np.ndarray, age_s: float = 100) -> None:
    io.write_mrcs(folder / name, images, 3.0)
    old(folder / name, age_s)


def growing(classes: int, per_class: int) -> GrowingClassification:
    return GrowingClassification(Classifier(n_classes=1), lambda n: max(1, min(classes, n // per_class)))


@pytest.fixture(scope="module")
def joined(truth: Truth) -> tuple[RunResult, Checkpoint, RunResult]:
    """A hundred particles, the checkpoint after them, and all particles, of which the others joined."""
    grown = growing(classes=2, per_class=40)
    before = grown.take(ParticleSet(ArraySource(truth.images[:100])))
    assert grown.grown is not None
    saved = grown.grown.checkpoint()
    return before, saved, grown.take(ParticleSet(ArraySource(truth.images)), search=False)


def test_growing_classification_new_particles_join_and_classes_grow(truth: Truth) -> None:
    grown = growing(classes=2, per_class=40)
    sizes, searched = [], []
    for n in (50, 60, 120):
        searched.append(grown.searches(n))
        result = grown.take(ParticleSet(ArraySource(truth.images[:n])))
        sizes.append(len(result.averages.images))
        assert len(result.poses) == n
        assert int(result.averages.members.sum()) == n
        assert len(result.particle_scores["posterior"]) == n
        assert all(row["verdict"] for row in result.classes)
    assert searched == [True, False, True]
    assert sizes == [1, 1, 2]
    assert purity(result.poses.class_index, truth.poses.class_index) > 0.9
    with pytest.raises(RalibError, match="may only grow"):
        grown.take(ParticleSet(ArraySource(truth.images[:5])))


def test_growing_classification_particles_that_join_keep_the_others_class_and_pose(
    truth: Truth, joined: tuple[RunResult, Checkpoint, RunResult]
) -> None:
    before, _, after = joined
    kept = after.poses.class_index[:100] == before.poses.class_index
    assert float(kept.double().mean()) > 0.95
    angle, shift = pose_error(pose(after.poses[:100]), pose(before.poses))
    assert float(angle[kept].median()) < 3
    assert float(shift[kept].median()) < 0.3
    assert purity(after.poses.class_index, truth.poses.class_index) > 0.9
    joining = [row["iteration"] for row in after.iterations[len(before.iterations) :]]
    assert joining[0] == len(before.iterations) + 1
    assert len(joining) < 6, "they joined, and were not searched for"


def pose(poses: Poses) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return poses.psi_deg, poses.origin_xy_px, poses.mirror


def test_growing_classification_goes_on_from_a_checkpoint(
    truth: Truth, joined: tuple[RunResult, Checkpoint, RunResult]
) -> None:
    _, saved, whole = joined
    again = growing(classes=2, per_class=40)
    again.grown = Grown.from_checkpoint(saved)
    resumed = again.take(ParticleSet(ArraySource(truth.images)), search=False)
    assert torch.equal(resumed.poses.psi_deg, whole.poses.psi_deg)
    assert torch.equal(resumed.poses.class_index, whole.poses.class_index)
    assert len(resumed.iterations) == len(whole.iterations)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: replace(c, arrays=c.arrays | {"poses.mirror": c.arrays["poses.mirror"][1:]}), "not what the run"),
        (lambda c: replace(c, meta={**c.meta, "n_classes": 1}), "not what the run"),
    ],
)
def test_growing_classification_refuses_another_checkpoint(truth: Truth, change, told: str) -> None:
    poses = truth.poses.replace(
        psi_deg=truth.poses.psi_deg.float(), origin_xy_px=truth.poses.origin_xy_px.float(),
        score=truth.poses.score.float(),
    )  # fmt: skip
    saved = Grown(EarlierClasses(poses, 2, ParticleExtent(9.0, 9.0, False), 0.1, (9.0, 4), []), 120, 1).checkpoint()
    Grown.from_checkpoint(saved)
    with pytest.raises(RalibError, match=told):
        Grown.from_checkpoint(change(saved))


def test_arrivals_folder_keeps_its_order_and_leaves_out_what_it_cannot_read(truth: Truth, tmp_path: Path) -> None:
    arrivals = Arrivals(tmp_path)
    assert arrivals.look() is None
    stack(tmp_path, "b.mrcs", truth.images[:10], 300)
    stack(tmp_path, "a.mrcs", truth.images[10:15], 200)
    stack(tmp_path, "fresh.mrcs", truth.images[:3], 0)
    first = arrivals.look()
    assert first is not None
    assert arrivals.names == ["b.mrcs", "a.mrcs"]
    np.testing.assert_array_equal(first.images.read(np.arange(15)), truth.images[:15])
    assert arrivals.look() is None
    stack(tmp_path, "0.mrcs", truth.images[15:20])
    stack(tmp_path, "box.mrcs", truth.images[:2, :16, :16])
    old(tmp_path / "fresh.mrcs", 50)
    (tmp_path / "torn.mrcs").write_bytes((tmp_path / "b.mrcs").read_bytes()[:3000])
    old(tmp_path / "torn.mrcs", 50)
    second = arrivals.look()
    assert second is not None
    assert arrivals.names == ["b.mrcs", "a.mrcs", "0.mrcs", "fresh.mrcs"]
    assert set(arrivals.left_out) == {"box.mrcs", "torn.mrcs"}
    again = Arrivals(tmp_path, state={"stacks": arrivals.names[:2]}).look()
    assert again is not None
    np.testing.assert_array_equal(again.images.read(np.arange(15)), truth.images[:15])


def test_arrivals_growing_star_file_is_read_once_it_settles(truth: Truth, tmp_path: Path) -> None:
    io.write_mrcs(tmp_path / "all.mrcs", truth.images, 3.0)
    everything, star = io.open_particles(tmp_path / "all.mrcs"), tmp_path / "live.star"

    def grown(n: int, age_s: float) -> None:
        io.write_particles_star(star, io.take(everything, np.arange(n)))
        old(star, age_s)

    grown(10, 300)
    arrivals = Arrivals(star)
    sizes = [len(found) if (found := arrivals.look()) is not None else 0 for _ in range(2)]
    assert sizes == [10, 0]
    grown(25, 0)
    assert arrivals.look() is None, "it is still being written"
    old(star, 200)
    found = arrivals.look()
    assert found is not None
    assert len(found) == 25
    star.write_text(star.read_text()[:200])
    old(star, 100)
    assert arrivals.look() is None
    assert list(arrivals.left_out) == ["live.star"]


def test_watch_command_takes_arrivals_until_a_signal(
    truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(arrivals, "SETTLED_S", -1.0)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    stack(folder, "1.mrcs", truth.images[:50], 0)

    def later() -> None:
        # By their names: NumPy reads a file's header by `ast`, which Python 3.11 cannot do in two threads at a time.
        while not (out / "checkpoints" / "checkpoint_0001.ralib").is_file():
            time.sleep(0.05)
        io.write_mrcs(folder / "2.mrcs", truth.images[50:], 3.0)
        while not (out / "checkpoints" / "checkpoint_0002.ralib").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=later)
    thread.start()
    options = ["--K=2", "--per-class=40", "--poll-seconds=0.1", "--device=cpu"]
    assert main(["watch", str(folder), str(out), *options]) == 0
    thread.join()
    run, saved = load_run(out), newest(out / "checkpoints")
    assert len(run.poses) == 120
    assert saved is not None
    assert len(saved.arrays["poses.psi_deg"]) == 120
    assert len(run.averages.images) == 2
    assert "<html" in (out / "report.html").read_text()
    shown, log = capsys.readouterr().out.splitlines(), (out / "log.txt").read_text().splitlines()
    assert sum(line.startswith("particles: ") for line in shown) == 1, "one header"
    assert sum("particles came" in line for line in shown) == 2
    assert not [line for line in shown if line.startswith("iteration ")], "nobody looks"
    assert [line for line in log if line.startswith("iteration ")]
    before = run.poses
    stack(folder, "3.mrcs", truth.images[:4], 0)
    more = [*options, "--continue", "--idle-minutes=0.001", "--no-report"]
    assert main(["watch", str(folder), str(out), *more]) == 0
    run = load_run(out)
    assert len(run.poses) == 124
    same = (run.poses.class_index[:120] == before.class_index).double().mean()
    assert same > 0.9, "the run was begun anew"
    assert torch.isfinite(run.averages.images).all()


@pytest.mark.parametrize(
    ("command", "arrays", "meta", "told"),
    [
        ("watch", {"references": np.zeros(1)}, {"arrivals": {}}, "earlier version of 'ralib watch'"),
        ("watch", {}, {}, "another command"),
        ("classify", {}, {"arrivals": {}}, "is one of 'ralib watch'"),
    ],
)
def test_watch_and_classify_do_not_go_on_with_each_others_runs(
    truth: Truth, tmp_path: Path, capsys, command: str, arrays: dict, meta: dict, told: str
) -> None:
    stack(tmp_path, "1.mrcs", truth.images[:50])
    (tmp_path / "out" / "checkpoints").mkdir(parents=True)
    save(tmp_path / "out" / "checkpoints", Checkpoint(1, arrays, meta))
    source = tmp_path if command == "watch" else tmp_path / "1.mrcs"
    assert main([command, str(source), str(tmp_path / "out"), "--continue", "--classes=1", "--device=cpu"]) == 2
    assert told in capsys.readouterr().err


def test_watch_command_without_a_source_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["watch", str(tmp_path / "none"), str(tmp_path / "out"), "--device=cpu"]) == 2
    assert "there is no" in capsys.readouterr().err
    stack(tmp_path, "1.mrcs", np.zeros((2, 8, 8), np.float32))
    elsewhere = ["--datadir", str(tmp_path / "nowhere"), "--device=cpu"]
    assert main(["watch", str(tmp_path), str(tmp_path / "out"), *elsewhere]) == 2, "it waited for ever, with a warning"
    assert "nowhere: there is no such folder" in capsys.readouterr().err


def watch_of_stack(folder: Path, out: Path, images: np.ndarray, *options: str) -> list[str]:
    """A command that watches a new folder of one stack and ends where nothing more arrives."""
    folder.mkdir()
    stack(folder, "1.mrcs", images)
    usual = ["--poll-seconds=0.1", "--idle-minutes=0.001", "--device=cpu", "--no-report"]
    return ["watch", str(folder), str(out), *options, *usual]


def test_watch_command_continued_notices_another_input_and_other_options(
    truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(arrivals, "SETTLED_S", -1.0)
    folder, out = tmp_path / "in", tmp_path / "out"
    command = watch_of_stack(folder, out, truth.images[:50], "--classes=1", "--per-class=40")
    assert main(command) == 0
    capsys.readouterr()
    assert main([*command, "--per-class=30", "--continue"]) == 2
    assert "per_class was 40, is 30" in capsys.readouterr().err
    (folder / "1.mrcs").unlink()
    stack(folder, "1.mrcs", truth.images[50:100])
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert main([*command, "--continue"]) == 2
    assert "has changed" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_watch_command_continued_without_arrivals_changes_nothing(
    truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """It joined all particles to their own classes once more, and so gave other classes than an uninterrupted watch."""
    monkeypatch.setattr(arrivals, "SETTLED_S", -1.0)
    folder, out = tmp_path / "in", tmp_path / "out"
    command = watch_of_stack(folder, out, truth.images[:60], "--classes=2", "--per-class=30")
    assert main(command) == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert main([*command, "--continue"]) == 0
    assert "60 particles, as before" in capsys.readouterr().out
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for checkpoint in (out / "checkpoints").glob("*.ralib"):
        checkpoint.unlink()  # killed after the result and before its checkpoint: taken in again, with the same result
    assert main([*command, "--continue"]) == 0
    for name in ("class_averages.mrcs", "params.txt", "particle_scores.txt"):
        assert (out / name).read_bytes() == before[out / name], name


def test_watch_command_killed_while_the_last_search_is_written_ends_the_same(
    truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on, it joined all particles to their own classes before it searched: other averages than uninterrupted."""
    monkeypatch.setattr(arrivals, "SETTLED_S", -1.0)
    ends = {}
    for name in ("whole", "killed"):
        folder, out = tmp_path / f"in-{name}", tmp_path / name
        command = watch_of_stack(folder, out, truth.images[:60], "--classes=2", "--per-class=30")
        assert main(command) == 0
        stack(folder, "2.mrcs", truth.images[60:75])  # fewer than begin a search, more than the last can be without
        with monkeypatch.context() as patch:
            if name == "killed":
                patch.setattr(RunDirectory, "write_result", _killed_at_the_second(RunDirectory.write_result))
                assert main([*command, "--continue"]) == 130
                assert read_record(out)["state"] == "running"
        assert main([*command, "--continue"]) == 0
        ends[name] = {n: (out / n).read_bytes() for n in ("class_averages.mrcs", "params.txt", "particle_scores.txt")}
        saved = newest(out / "checkpoints")
        assert saved is not None
        assert saved.meta["searched"] == 75
    assert ends["whole"] == ends["killed"]


def _killed_at_the_second(write: Callable[..., None]) -> Callable[..., None]:
    """`write`, but the second call only begins."""
    calls: list[int] = []

    def begun(directory: RunDirectory, result: RunResult, particles: ParticleSet, record: dict, **kwargs: Any) -> None:
        calls.append(1)
        if len(calls) < 2:
            return write(directory, result, particles, record, **kwargs)
        directory.write_record({**record, "state": "running"})
        raise KeyboardInterrupt

    return begun
