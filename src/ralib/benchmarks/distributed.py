"""One iteration of multi-reference alignment on 1, 2, 4, ... ranks: seconds, efficiency, time of the sums.

Particles are made on the devices, so that no disk is involved, and stay there in half precision. All numbers of ranks
do the same work on the same particles in the same way; polar samples are computed for every batch anew, also where
several devices could keep them. Every number of ranks has to end with the averages of the first one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ralib.alignment.iteration import BATCH_BYTES, Alignment
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.stage import Stage
from ralib.alignment.state import LoopState
from ralib.benchmarks.made_images import BLOCK, MadeImages, Workload
from ralib.runtime.distributed import ProcessGroup, Ranks, SingleProcess, shard
from ralib.runtime.memory import free_memory
from ralib.simulation.simulator import simulate_particles
from ralib.types import ParticleSet, Poses, RalibError

WORKING_BYTES = {"cuda": 28 * 2**30, "cpu": 2**29}
"""What a rank needs beside its particles: cross spectra, batches, candidates."""
SAME = 1e-5
SAME_CLASSES = 1e-3


class MeasuredRanks:
    """Ranks that record the bytes they summed, the time that took, and the time spent waiting for the slowest rank.

    Parameters
    ----------
    ranks : Ranks
        The processes.
    device : torch.device
        Their device.
    """

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self._ranks, self._device = ranks, device
        self.rank, self.size = ranks.rank, ranks.size
        self.reset()

    def reset(self) -> None:
        """Set the records to zero."""
        self.bytes, self.seconds, self.waited_s = 0, 0.0, 0.0

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, and record it."""
        return self._measured(self._ranks.all_reduce_, tensor)

    def all_max_(self, tensor: Tensor) -> Tensor:
        """As `Ranks.all_max_`."""
        return self._measured(self._ranks.all_max_, tensor)

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Broadcast from rank 0."""
        return self._measured(self._ranks.broadcast_, tensor)

    def barrier(self) -> None:
        """Wait for all ranks."""
        self._ranks.barrier()

    def _measured(self, step: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
        synchronize(self._device)
        start = time.perf_counter()
        self._ranks.barrier()
        together = time.perf_counter()
        step(tensor)
        synchronize(self._device)
        self.waited_s += together - start
        self.seconds += time.perf_counter() - together
        self.bytes += tensor.numel() * tensor.element_size()
        return tensor


def run_counts(
    workload: Workload, everyone: Ranks, device: torch.device, *, say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Time 1, 2, 4, ... ranks and all of them; every rank calls this and gets the rows.

    Parameters
    ----------
    workload : Workload
        The workload.
    everyone : Ranks
        All processes.
    device : torch.device
        This process's device.
    say : callable, default print
        Is called with messages.

    Returns
    -------
    list of dict
        A row for each number of ranks.
    """
    counts = sorted({2**i for i in range(everyone.size.bit_length()) if 2**i < everyone.size} | {everyone.size})
    references = simulate_particles(
        2 * BLOCK, workload.box, device=device, n_views=workload.references, snr=workload.snr, seed=1, ctf=False
    )[2]
    batch = common_batch(workload, everyone.size, device)
    rows: list[dict[str, Any]] = []
    first: LoopState | None = None
    for count in counts:
        need = planned_bytes(workload, count, device)
        # The least of all ranks decides, so that all go the same way.
        short = torch.tensor(float(need > free_memory(device)))
        if everyone.all_reduce_(short) > 0:
            say(f"{count} ranks: left out, {need / 2**30:.0f} GiB a rank are needed")
            continue
        group = dist.new_group(list(range(count))) if everyone.size > 1 else None
        if everyone.rank < count:
            ranks = MeasuredRanks(ProcessGroup(group) if group is not None else SingleProcess(), device)
            row, state = run_count(workload, references, ranks, device, batch)
            first = state if first is None else first
            row |= compared(first, state)
            row["efficiency"] = rows[0]["ours"] * rows[0]["ranks"] / (row["ours"] * count) if rows else 1.0
            rows.append(row)
            say(row_text(row))
        if device.type == "cuda":
            torch.cuda.empty_cache()
        everyone.barrier()
    if everyone.rank == 0 and not rows:
        raise RalibError("the workload fits on no number of these devices: use fewer particles")
    return rows


def planned_bytes(workload: Workload, count: int, device: torch.device) -> int:
    """Return the device memory that a rank needs.

    Parameters
    ----------
    workload : Workload
        The workload.
    count : int
        Number of ranks.
    device : torch.device
        This process's device.

    Returns
    -------
    int
        Bytes.
    """
    return 2 * workload.box**2 * -(-workload.particles // count) + WORKING_BYTES.get(device.type, 0)


def common_batch(workload: Workload, most: int, device: torch.device) -> int:
    """Return a batch size with which all numbers of ranks divide the particles into the same batches.

    Which of two poses of equal score wins may depend on the batch that a particle is in.

    Parameters
    ----------
    workload : Workload
        The workload.
    most : int
        Largest number of ranks.
    device : torch.device
        This process's device.

    Returns
    -------
    int
        Particles in a batch.
    """
    mine = -(-workload.particles // most)
    limit = max(64, BATCH_BYTES[device.type] // (4 * workload.box**2))
    fewest = -(-mine // limit)
    return next((mine // b for b in range(fewest, 4 * fewest) if mine % b == 0), -(-mine // fewest))


@torch.inference_mode()
def run_count(
    workload: Workload, references: Tensor, ranks: MeasuredRanks, device: torch.device, batch_size: int
) -> tuple[dict[str, Any], LoopState]:
    """Time an iteration of some ranks, after one that makes the particles.

    Parameters
    ----------
    workload : Workload
        The workload.
    references : Tensor of shape (k, n, n)
        References.
    ranks : MeasuredRanks
        The processes.
    device : torch.device
        This process's device.
    batch_size : int
        Particles in a batch.

    Returns
    -------
    dict
        A row for the result file.
    LoopState
        State after the iteration.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    n, mine = workload.particles, len(shard(workload.particles, ranks))
    run = Alignment(
        ParticleSet(MadeImages(references, workload)),
        AlignmentOptions(
            outer_radius=workload.outer_radius,
            center=0,
            device=device,
            batch_size=batch_size,
            resident_bytes=2 * workload.box**2 * mine,
        ),
        ranks=ranks,
    )
    stage = run.stage((workload.shift_range_px, workload.shift_range_px))
    start = time.perf_counter()
    state = run.iterate(stage, LoopState(0, references, Poses.identity(n, device)), last=True)
    synchronize(device)
    first_s = time.perf_counter() - start
    # The same references each time, so that every repeat does the same work.
    done, seconds, worked = _timed(run, stage, replace(state, references=references), ranks, workload.repeats)
    processor = torch.zeros(ranks.size, dtype=torch.float64)
    processor[ranks.rank] = statistics.median(worked)
    ranks.all_reduce_(processor)
    seen = torch.arange(n, device=device) % workload.references
    case = f"mref-{workload.references}-box{workload.box}, {workload.particles:,} particles"
    return {
        "case": f"{case}, an iteration on {ranks.size}",
        "ranks": ranks.size,
        "ours": statistics.median(seconds),
        "unit": "s",
        "spread": {"min": min(seconds), "max": max(seconds), "repeats": workload.repeats},
        "first_iteration_s": first_s,
        "processor_s": float(processor.max()),
        "us_a_particle_and_rank": 1e6 * statistics.median(seconds) * ranks.size / n,
        "resident": run.batches.resident,
        "batch_size": batch_size,
        "summed_bytes": ranks.bytes // workload.repeats,
        "summing_s": ranks.seconds / workload.repeats,
        "waited_for_the_slowest_s": ranks.waited_s / workload.repeats,
        "right_class": float((done.poses.class_index == seen).double().mean()),
        "planned_device_bytes": planned_bytes(workload, ranks.size, device),
        "peak_device_memory_bytes": torch.cuda.max_memory_allocated(device) if on_gpu else None,
    }, done


def _timed(
    run: Alignment, stage: Stage, state: LoopState, ranks: MeasuredRanks, repeats: int
) -> tuple[LoopState, list[float], list[float]]:
    """State after an iteration, and seconds and processor seconds of this process in each repeat of it."""
    seconds, worked = [], []
    ranks.reset()
    for _ in range(repeats):
        synchronize(run.device)
        ranks.barrier()
        start, work = time.perf_counter(), time.process_time()
        done = run.iterate(stage, state, last=True)
        synchronize(run.device)
        seconds.append(time.perf_counter() - start)
        worked.append(time.process_time() - work)
    return done, seconds, worked


def compared(first: LoopState, state: LoopState) -> dict[str, Any]:
    """Return how far averages, classes and scores of a state are from those of the first one.

    Parameters
    ----------
    first : LoopState
        State of the first number of ranks.
    state : LoopState
        State to compare.

    Returns
    -------
    dict
        Differences by name.
    """
    assert first.averages is not None
    assert state.averages is not None
    scale = first.averages.images.abs().max()
    averages = float((state.averages.images - first.averages.images).abs().max() / scale)
    classes = float((state.poses.class_index != first.poses.class_index).double().mean())
    scores = float((state.poses.score - first.poses.score).abs().max() / first.poses.score.abs().max())
    return {
        "averages_differ": averages,
        "classes_differ": classes,
        "scores_differ": scores,
        "same": averages <= SAME and classes <= SAME_CLASSES,
        "parity": f"averages to {averages:.0e} and {100 * (1 - classes):.3f} % of the classes as on the fewest",
    }


def efficiency_rows(rows: list[dict[str, Any]], *, on_gpu: bool) -> list[dict[str, Any]]:
    """Return the efficiencies with their goals, which are set for GPUs.

    Parameters
    ----------
    rows : list of dict
        Rows of all numbers of ranks.
    on_gpu : bool
        Whether the ranks ran on GPUs.

    Returns
    -------
    list of dict
        Rows for a result file.
    """
    goals = {2: 0.95, 8: 0.93} if on_gpu else {2: 0.9}
    found = [
        {
            "case": f"efficiency of {row['ranks']} over {rows[0]['ranks']}",
            "ours": row["efficiency"],
            "unit": "",
            "goal": goals.get(row["ranks"]),
            "better": "higher",
            "parity": row["parity"],
        }
        for row in rows[1:]
    ]
    if on_gpu:
        return found
    # On a shared machine only a process's own time shows how well the work is distributed.
    return found + [
        {
            "case": f"processor time of {rows[0]['ranks']} over the busiest of {row['ranks']}",
            "ours": rows[0]["processor_s"] / row["processor_s"],
            "unit": "",
            "goal": goals.get(row["ranks"], 0.0) * row["ranks"] or None,
            "better": "higher",
            "parity": row["parity"],
        }
        for row in rows[1:]
    ]


def row_text(row: dict[str, Any]) -> str:
    """Format a row as one line."""
    return (
        f"{row['ranks']} ranks: {row['ours']:.2f} s an iteration, efficiency {row['efficiency']:.3f}; "
        f"{row['summed_bytes'] / 1e6:.0f} MB summed in {row['summing_s']:.3f} s, "
        f"{row['waited_for_the_slowest_s']:.3f} s waited; averages differ by {row['averages_differ']:.1e}, "
        f"classes by {100 * row['classes_differ']:.3f} %; {100 * row['right_class']:.1f} % in the right class"
    )


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
