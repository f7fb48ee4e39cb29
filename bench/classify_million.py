"""A million particles in 200 classes: on a card as it is, held to 16 GiB of its memory, and on several cards.

    PYTHONPATH=src python3 bench/classify_million.py --work DIR [--particles 1000000 --box 128 --classes 200]
        [--limits 0,16] [--ranks 1,4] [--seconds 560] [--device cuda]

Simulates the particles on the device (the phantom in continuous views, CTF, SNR 0.1) and writes them to DIR as an MRC
stack of float16, unless they are there already; then a process of its own for each limit (GiB of GPU memory, 0 is none)
and each count of ranks (one a GPU, started by torchrun) runs `Classifier.fit` on them, from the file to the verdict.
Told are the seconds of every stage and iteration, the most of either memory (of the first rank), and what the truth
says. What does not end within --seconds, the making included, is stopped, and what is known of it until then is
written. Goes to bench/results/classify-million-<device>.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from classify_scores import ideal_deg, scores
from ralib import io
from ralib.benchmarks.record import record, write_record
from ralib.classification import classifier, examination, final_classes, final_result, loading
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.cli.common import resolve_device
from ralib.results.observer import IterationDone, SilentObserver
from ralib.runtime.distributed import join
from ralib.runtime.memory import limit_device_memory
from ralib.simulation.simulator import BLOCK, SimulationOptions, Simulator
from ralib.types import CtfParameters, ParticleSet
from stream import write_stack

RESULTS = Path(__file__).parent / "results"
GIB = 2**30
EVERY_S = 0.05
GOALS_S = {1: 180.0, 4: 60.0}
"""Goals of a million particles of 128 px in 200 classes, by the number of cards."""
TIMES_THE_WHOLE_CARD = 3.0
"""Goal of a run that is held to less memory."""


class Simulated:
    """Images of a simulator as `stream.write_stack` takes them: whole blocks, on the device."""

    def __init__(self, simulator: Simulator) -> None:
        self.simulator, self.references = simulator, simulator.references()[:1]
        self.n_images, self.box = simulator.options.n_particles, simulator.options.box

    def read_tensor(self, index: np.ndarray) -> torch.Tensor:
        blocks = range(int(index[0]) // BLOCK, int(index[-1]) // BLOCK + 1)
        return torch.cat([self.simulator.block(number) for number in blocks])


def make(options: argparse.Namespace, device: torch.device, seconds: float) -> dict[str, Any]:
    """The stack and its truth, as many as can be made in the time."""
    clock = time.perf_counter()
    given = SimulationOptions(
        n_particles=options.particles, box=options.box, snr=options.snr, seed=options.seed, n_views=0
    )
    simulator = Simulator(given, device=device)
    drawn = time.perf_counter() - clock
    n, taken = write_stack(options.work / "particles.mrcs", Simulated(simulator), np.dtype(np.float16), seconds)
    known = {name: values[:n] for name, values in simulator.truth.arrays().items()}
    np.savez(options.work / "truth.npz", pixel_size_A=simulator.pixel_size_A, **known)
    told = {"particles": n, "truth_s": drawn, "seconds": taken, "bytes": n * 2 * options.box**2}
    (options.work / "made.json").write_text(json.dumps(told | {"asked": asked(options)}))
    return told


def asked(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("particles", "box", "snr", "seed")}


def made(options: argparse.Namespace) -> dict[str, Any] | None:
    """What was made before, if it is what is asked for."""
    path = options.work / "made.json"
    told = json.loads(path.read_text()) if path.exists() else None
    return told if told is not None and told.pop("asked") == asked(options) else None


def particle_set(work: Path) -> tuple[ParticleSet, dict[str, np.ndarray]]:
    with np.load(work / "truth.npz") as saved:
        known = dict(saved)
    names = CtfParameters.__dataclass_fields__
    ctf = CtfParameters(**{name: known[name] for name in names if name in known})
    stack = io.open_stack(work / "particles.mrcs")
    particles = ParticleSet(stack, float(known["pixel_size_A"]), ctf, group=known["micrograph"])
    return particles, {name: known[name] for name in ("R", "shift", "junk", "species")}


class Memory(threading.Thread):
    """Watches main memory: of this process, and how much less the machine has."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before, self.taken, self.resident = psutil.virtual_memory().available, 0, 0

    def run(self) -> None:
        process = psutil.Process()
        while True:
            self.taken = max(self.taken, self.before - psutil.virtual_memory().available)
            self.resident = max(self.resident, process.memory_info().rss)
            time.sleep(EVERY_S)

    def told(self, device: torch.device) -> dict[str, Any]:
        row = {
            "main_rss_gib": max(self.resident, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / GIB,
            "main_taken_gib": self.taken / GIB,
        }
        if device.type == "cuda":
            row |= {
                "device_gib": torch.cuda.max_memory_allocated(device) / GIB,
                "device_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
            }
        return row


class Progress(SilentObserver):
    """Writes down every iteration at once: a run that is stopped has told what it did."""

    def __init__(self, path: Path, memory: Memory, device: torch.device) -> None:
        self.path, self.memory, self.device = path, memory, device
        self.clock, self.told = time.perf_counter(), {"stages": {}, "iterations": []}

    def iteration(self, done: IterationDone) -> None:
        row = done.figures[-1]
        size, stage = sum(row["class_sizes"]), row["stage"]
        name = f"{stage}, {size} particles"
        stages = self.told["stages"]
        stages[name] = stages.get(name, 0.0) + row["seconds"]
        self.told["iterations"].append([stage, size, round(row["seconds"], 3), row["median_resolution_A"]])
        self.write()

    def write(self, **more: Any) -> None:
        self.told |= more | {"seconds": time.perf_counter() - self.clock} | self.memory.told(self.device)
        self.path.write_text(json.dumps(self.told))


def timed(module: Any, name: str, told: dict[str, float], device: torch.device) -> None:
    """Add up what the calls of a function take, under its name."""
    function = getattr(module, name)

    def run(*arguments: Any, **named: Any) -> Any:
        clock = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            told[name] = told.get(name, 0.0) + time.perf_counter() - clock

    setattr(module, name, run)


@torch.inference_mode()
def child(options: argparse.Namespace) -> None:
    """One classification in this process, or the part of this rank; the first one writes what came out."""
    ranks, device = join(), resolve_device(options.device)
    particles, truth = particle_set(options.work)
    if device.type == "cuda":
        torch.zeros(1, device=device)
        if options.child:
            limit_device_memory(device, int(options.child * GIB))
    memory = Memory()
    memory.start()
    name = f"{options.child:g}-{ranks.size}" if ranks.rank == 0 else f"rank-{ranks.rank}"
    progress = Progress(options.work / f"told-{name}.json", memory, device)
    parts = progress.told["parts"] = {}
    timed(loading, "measure_radius", parts, device)
    timed(classifier, "whiten_particles", parts, device)
    timed(examination, "quick_estimate", parts, device)
    timed(final_result, "judge", parts, device)
    timed(final_classes, "full_averages", parts, device)
    progress.write()
    plan = ScheduleSettings(least_sample=options.least_sample)
    run = classifier.Classifier(n_classes=options.classes, seed=1000, device=device, plan=plan, ranks=ranks)
    ranks.barrier()
    run.fit(particles, observer=progress)
    progress.write(timings=run.result_.timings, log=run.result_.log, finished=True)
    if ranks.rank > 0:
        return
    stability = {key: run.result_.stability[key] for key in ("believable", "same_class_from_other_half")}
    found = scores(run.poses_, truth)
    np.save(options.work / f"class-{name}.npy", run.poses_.class_index.numpy())
    progress.told |= {"ideal_deg": ideal_deg(options.classes)} | found | stability
    progress.path.write_text(json.dumps(progress.told))


def classified(limit: float, n_ranks: int, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The row of one limit and count of ranks; what is known of it where it fails or takes too long."""
    path = options.work / f"told-{limit:g}-{n_ranks}.json"
    path.unlink(missing_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
    command = [sys.executable, *(torchrun if n_ranks > 1 else []), __file__, *sys.argv[1:], f"--child={limit:g}"]
    run = subprocess.Popen(command, start_new_session=True)
    try:
        failed = f"exit status {run.returncode}" if run.wait(max(1.0, seconds)) else None
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)  # torchrun and its ranks
        run.wait()
        failed = f"stopped after {seconds:.0f} s"
    told = json.loads(path.read_text()) if path.exists() else {}
    case = f"{limit:g} GiB of GPU memory" if limit else "the whole card"
    case += f", {n_ranks} ranks" if n_ranks > 1 else ""
    ours = told.get("seconds") if told.get("finished") and not failed else None
    return {"case": case, "limit_gib": limit, "ranks": n_ranks, "ours": ours, "unit": "s", "failed": failed} | told


def compared(rows: list[dict[str, Any]], work: Path) -> None:
    """Adds to later rows how they compare with the first, and to those held to less memory their goal."""

    def classes(row: dict[str, Any]) -> Path:
        return work / f"class-{row['limit_gib']:g}-{row['ranks']}.npy"

    first = classes(rows[0])
    for row in rows[1:]:
        own = classes(row)
        if row["ours"] and rows[0]["ours"] and own.exists() and first.exists():
            row["times_the_first"] = row["ours"] / rows[0]["ours"]
            row["same_class"] = float((np.load(own) == np.load(first)).mean())
        if row["limit_gib"] and rows[0]["ours"] and not rows[0]["limit_gib"]:
            row["goal"] = TIMES_THE_WHOLE_CARD * rows[0]["ours"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the stack: 33 GB for a million of 128 px")
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--snr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--limits", default="0,16", help="GiB of GPU memory, 0 is none; '' makes the stack only")
    parser.add_argument("--ranks", default="1", help="counts of processes, one a GPU")
    parser.add_argument("--least-sample", type=int, default=ScheduleSettings().least_sample, help="for a small try")
    parser.add_argument("--seconds", type=float, default=560.0, help="of all together")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        try:
            child(options)
        except BaseException:
            traceback.print_exc()
            return 1
        return 0
    end = time.monotonic() + options.seconds
    options.work.mkdir(parents=True, exist_ok=True)
    device = resolve_device(options.device)
    workload: dict[str, Any] = asked(options) | {"classes": options.classes}
    workload["made"] = made(options) or make(options, device, 0.4 * options.seconds)
    print("stack:", json.dumps(workload["made"]), flush=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    rows: list[dict[str, Any]] = []
    limits, counts = map(float, filter(None, options.limits.split(","))), map(int, options.ranks.split(","))
    for limit, n_ranks in itertools.product(limits, counts):
        rows.append(classified(limit, n_ranks, options, end - time.monotonic() - 2))
        if not limit and (options.particles, options.box, options.classes) == (1_000_000, 128, 200):
            rows[-1]["goal"] = GOALS_S.get(n_ranks)
        compared(rows, options.work)
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "iterations"}), flush=True)
        path = write_record(options.out, record("classify-million", device, rows, workload=workload))
        print("wrote", path, flush=True)
    return 0 if all(row["ours"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
