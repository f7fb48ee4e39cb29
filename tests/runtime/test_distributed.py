"""Several processes end as one does, over gloo; and one that dies takes the others with it, saying why."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from blobs import make
from ralib import io
from ralib.cli import main
from ralib.runtime.distributed import ProcessGroup, SingleProcess, shard

SOURCE = Path(__file__).resolve().parents[2] / "src"
ENVIRONMENT = os.environ | {"PYTHONPATH": f"{SOURCE}{os.pathsep}{SOURCE.parent / 'tests'}", "OMP_NUM_THREADS": "1"}
N = 120


def work(out: Path) -> None:
    """What each of four processes does: each loop among 1, 2 and all 4 of them; rank 0 keeps what came out."""
    from torch import distributed as dist

    from ralib.alignment.multi_reference import MultiReferenceAligner
    from ralib.alignment.reference_free import ReferenceFreeAligner
    from ralib.runtime.distributed import join

    everyone = join()
    truth = make(N, box=32, n_views=3, snr=0.5, shift_px=1.0, seed=3)
    found = {}
    for size in (1, 2, 4):
        group = dist.new_group(list(range(size)))
        if everyone.rank < size:
            common = {"outer_radius": 12, "ranks": ProcessGroup(group)}
            mref = {"references": 3, "iterations": 3, "shift_range_xy_px": (2.0, 2.0), "min_members": 20} | common
            runs = {
                "mref": MultiReferenceAligner(**mref),
                "equal": MultiReferenceAligner(**mref, equal_sizes=True),
                "reffree": ReferenceFreeAligner(stages=[(2.0, 2.0, None)], iterations=2, randomize=True, **common),
            }
            for name, run in runs.items():
                result = run.fit(truth.images).result_
                found[name, size] = (result.averages.images, result.poses.class_index, result.references)
        everyone.barrier()
    torch.save(found, out / f"found-{everyone.rank}.pt")


def torchrun(n: int, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}", *arguments]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    out = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(torchrun(4, __file__, str(out)), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"found-{rank}.pt", weights_only=True) for rank in range(4)]


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ["mref", "equal", "reffree"])
def test_the_same_result_on_1_2_and_4_ranks(found: list[dict], name: str, size: int) -> None:
    averages, classes, _ = found[0][name, 1]
    torch.testing.assert_close(found[0][name, size][0], averages, rtol=0, atol=1e-5 * float(averages.abs().max()))
    assert torch.equal(found[0][name, size][1], classes)
    if name == "equal":
        assert torch.equal(torch.bincount(classes), torch.tensor([N // 3] * 3))
    for rank in range(1, size):
        assert torch.equal(found[rank][name, size][2], found[0][name, size][2]), "ranks went on with other references"


def test_the_comparison_can_fail(found: list[dict]) -> None:
    averages = [found[0][name, 4][0] for name in ("mref", "equal")]
    assert (averages[0] - averages[1]).abs().max() > 1e-3 * averages[0].abs().max()


def test_shards_cover_everything_once() -> None:
    class Of(SingleProcess):
        def __init__(self, rank: int, size: int) -> None:
            self.rank, self.size = rank, size

    for n, size in ((0, 1), (3, 4), (10, 4), (17, 3)):
        parts = [shard(n, Of(rank, size)) for rank in range(size)]
        assert [i for part in parts for i in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "particles.mrcs"
    io.write_mrcs(path, make(N, box=32, n_views=2, snr=1.0, shift_px=1.0, seed=4).images, 3.0)
    return path


def mref(stack: Path, out: Path, *options: str) -> list[str]:
    return ["-m", "ralib", "mref", str(stack), "2", str(out), "--ou=12", "--xr=2", "--device=cpu", "--no-report",
            *options]  # fmt: skip


def children(pid: int) -> list[int]:
    import psutil

    return [p.pid for p in psutil.Process(pid).children() if "ralib" in p.cmdline()]


def start(n: int, *arguments: str) -> subprocess.Popen:
    command = torchrun(n, *arguments)
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_killed_rank_takes_the_others_down_and_the_run_goes_on(stack: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = start(2, *mref(stack, out, "--maxit=100000"))
    assert run.stdout is not None
    for line in run.stdout:
        if line.startswith("iteration 2"):
            break
    ranks = children(run.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    since = time.monotonic()
    _, told = run.communicate(timeout=60)
    assert time.monotonic() - since < 30
    assert run.returncode != 0
    assert "SIGKILL" in told
    assert "another process of this run has ended" in told or "Signal 9" in told
    last = max(int(p.name[-10:-6]) for p in (out / "checkpoints").iterdir() if p.suffix == ".ralib")
    again = subprocess.run(
        torchrun(2, *mref(stack, out, f"--maxit={last + 1}", "--continue")),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("going on after iteration") == 1, "only rank 0 speaks"
    assert (out / "class_averages.mrcs").exists()


def test_a_rank_with_an_error_shows_it_once(stack: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        torchrun(2, *mref(stack, tmp_path / "out", "--ou=40")), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert len(re.findall("^ralib: .*do not fit in a box of 32 px", done.stderr, re.MULTILINE)) == 1
    assert not (tmp_path / "out").exists()


def test_the_scaling_bench_starts_its_own_processes(tmp_path: Path) -> None:
    options = ["--device=cpu", "--ranks=2", "--particles=150", "--references=2", "--repeats=1", f"--out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "ralib", "bench", "--distributed", *options],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("distributed-2-*.json")
    *rows, efficiency, processor = json.loads(path.read_text())["rows"]
    assert [row["ranks"] for row in rows] == [1, 2]
    assert efficiency["ours"] == rows[1]["efficiency"]
    assert processor["ours"] == rows[0]["processor_s"] / rows[1]["processor_s"]
    assert all(row["same"] and row["resident"] == "half" for row in rows)
    sums = 2 * 2 * (32 * 32 + 1) * 8
    assert rows[1]["summed_bytes"] > sums
    assert rows[1]["right_class"] > 0.7


def test_many_gpus_are_asked_for_where_there_are_none(stack: Path, tmp_path: Path, capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    arguments = mref(stack, tmp_path / "out", "--gpu_devices=0,1", "--device=auto")[2:]
    assert main([a for a in arguments if a != "--device=cpu"]) == 2
    assert "PyTorch finds no GPU" in capsys.readouterr().err


if __name__ == "__main__":
    work(Path(sys.argv[1]))
