"""A classification by several processes over gloo is that of one: the same classes, poses and verdicts to the bit.

Also on a GPU, which the processes share.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from devices import DEVICES
from ralib.classification import memory_plan, sharding
from ralib.classification.classifier import Classifier
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.classification.sharding import Shard, in_quanta
from ralib.cli import main
from ralib.simulation.simulator import SimulationOptions, Simulator
from ralib.types import ArraySource, ParticleSet

SOURCE = Path(__file__).resolve().parents[2] / "src"
PATHS = os.pathsep.join([str(SOURCE), str(Path(__file__).resolve().parents[1])])
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}
SIZES = (1, 2, 3)


def particle_set() -> ParticleSet:
    """So few that ranks hold less than a matrix product's least rows, and parts of uneven length."""
    simulator = Simulator(SimulationOptions(n_particles=191, box=32, snr=0.3, seed=3, n_views=3))
    images = torch.cat(list(simulator.blocks())).numpy()
    images[11] = 7.0  # cannot be used
    truth = simulator.truth
    return ParticleSet(ArraySource(images), simulator.pixel_size_A, truth.ctf, group=truth.micrograph)


def work(out: Path, device: str) -> None:
    """What each of three processes does: classify among 1, 2 and all 3 of them; each keeps what came out.

    Where they are two, each is given whole tables of fits, as on GPUs.
    """
    from torch import distributed as dist

    from ralib.runtime.distributed import ProcessGroup, join

    everyone, found = join(), {}
    memory_plan.PARTICLES_AT_ONCE = 128  # on a GPU one process then has chunks that are full and one that is not
    for size in SIZES:
        group = dist.new_group(list(range(size)), backend="gloo")
        sharding.on_gpu = lambda _, size=size: size == 2
        if everyone.rank < size:
            plan = ScheduleSettings(exchanges=1, final=2)
            given = {"n_classes": 4, "seed": 5, "ranks": ProcessGroup(group), "device": device}
            run = Classifier(plan=plan, **given).fit(particle_set())
            part = replace(plan, least_sample=80, sample=20, joint=1, sample_nats=0.0)
            sampled = Classifier(plan=part, **given).fit(particle_set())
            assert sum(sampled.result_.iterations[0]["class_sizes"]) == 80
            found[size] = {
                "sampled": sampled.poses_.psi_deg,
                "class": run.poses_.class_index,
                "psi": run.poses_.psi_deg,
                "origin": run.poses_.origin_xy_px,
                "score": run.poses_.score,
                "averages": run.class_averages_.images,
                "junk": torch.from_numpy(run.result_.particle_scores["junk"]),
                "agreement": torch.from_numpy(run.result_.particle_scores["agreement"]),
                "bad": torch.tensor(run.result_.bad_particles),
            }
        everyone.barrier()
    torch.save(found, out / f"found-{everyone.rank}.pt")


def torchrun(n: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"]


@pytest.fixture(scope="module", params=DEVICES)
def found(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[int, dict[str, torch.Tensor]]]:
    out = tmp_path_factory.mktemp("ranks")
    words = [*torchrun(SIZES[-1]), __file__, str(out), request.param]
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"found-{rank}.pt", weights_only=True) for rank in range(SIZES[-1])]


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("name", ["class", "psi", "origin", "score", "bad", "sampled"])
def test_classifier_several_ranks_same_bits(
    found: list[dict[int, dict[str, torch.Tensor]]], name: str, size: int
) -> None:
    assert torch.equal(found[0][size][name], found[0][1][name])


@pytest.mark.parametrize("size", SIZES[1:])
def test_classifier_several_ranks_same_averages_and_verdict(
    found: list[dict[int, dict[str, torch.Tensor]]], size: int
) -> None:
    for name in ("averages", "junk", "agreement"):
        expected = found[0][1][name]
        torch.testing.assert_close(found[0][size][name], expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    for rank in range(1, size):
        for name, value in found[0][size].items():
            assert torch.equal(found[rank][size][name], value), f"rank {rank} went on with another {name}"


def command(n: int, folder: Path, out: Path, *options: str) -> list[str]:
    words = ["-m", "ralib", "classify", str(folder / "particles.star"), str(out), "--classes=3", "--device=cpu"]
    return [*torchrun(n), *words, "--no-report", *options]


def test_classify_a_killed_rank_ends_the_others_and_one_process_goes_on(tmp_path: Path) -> None:
    data, out, whole = tmp_path / "data", tmp_path / "out", tmp_path / "whole"
    words = ["--particles=200", "--box=32", "--views=3", "--snr=0.3", "--seed=1"]
    assert main(["simulate", str(data), *words]) == 0
    run = subprocess.Popen(
        command(2, data, out), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    for line in run.stdout:
        if "exchange" in line and line.startswith("iteration") and list((out / "checkpoints").glob("*.ralib")):
            break
    ranks = [p for p in psutil.Process(run.pid).children() if "ralib" in p.cmdline()]
    assert len(ranks) == 2
    ranks[1].kill()
    since = time.monotonic()
    _, told = run.communicate(timeout=60)
    assert time.monotonic() - since < 30
    assert run.returncode != 0
    assert "another process of this run has ended" in told or "Signal 9" in told
    assert not (out / "class_averages.mrcs").exists()
    goes_on = ["classify", str(data / "particles.star"), str(out), "--classes=3", "--device=cpu", "--no-report"]
    for words in ([*goes_on, "--continue"], [*goes_on[:2], str(whole), *goes_on[3:]]):
        # With as many threads as the ranks had: these move the last bits.
        subprocess.run([sys.executable, "-m", "ralib", *words], env=ENVIRONMENT, check=True, capture_output=True)
    scores = [np.loadtxt(folder / "particle_scores.txt") for folder in (out, whole)]
    assert np.array_equal(scores[0][:, :2], scores[1][:, :2])
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-4)


def test_shard_parts_cover_everything_and_find_their_rows() -> None:
    class Of:
        def __init__(self, rank: int) -> None:
            self.rank, self.size = rank, 3

    rows = torch.tensor([0, 4, 5, 9])
    shards = [Shard.of_all(10, Of(rank)) for rank in range(3)]  # type: ignore[arg-type]
    assert [list(range(10))[s.rows] for s in shards] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert [s.held(rows).tolist() for s in shards] == [[0], [1, 2], [3]]
    assert [len(s.of(rows)) for s in shards] == [1, 2, 1]


def test_in_quanta_sums_do_not_depend_on_the_order() -> None:
    random = np.random.default_rng(1)
    values = torch.from_numpy(
        random.normal(size=(10_000, 3)) * [1e-9, 1.0, 1e9] * 10.0 ** random.uniform(-9, 0, (10_000, 1))
    )
    limit = values.abs().amax(0) * len(values)
    terms = in_quanta(values, limit)
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    parts = torch.stack([part.sum(0) for part in terms[order].split(777)]).sum(0)
    assert torch.equal(parts, terms.sum(0))
    torch.testing.assert_close(parts, values.double().sum(0), rtol=1e-8, atol=0)
    plain = values.double()
    assert not torch.equal(torch.stack([p.sum(0) for p in plain[order].split(777)]).sum(0), plain.sum(0))


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
