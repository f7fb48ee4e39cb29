"""A stack larger than memory: an iteration that reads it from disk, against what disk, bus and GPU can do alone.

    PYTHONPATH=src python3 bench/stream.py [--particles 1000000] [--float16] [--work DIR] [--device cuda]

Makes the stack (200 views in random poses, noise) on the device and writes it; then, with the page cache dropped before
each, reads part of it with nothing else to do, copies pinned memory to the device, lets ralib read without computing,
and runs iterations of multi-reference alignment: one that reads and keeps half-precision copies on the device, one
that finds them there, and one that may keep nothing. Peak main memory is told two ways: resident size of the process
(which counts mapped libraries), and what the machine had less of. Before a time is told, classes are held against the
truth. Goes to bench/results/stream-<device>.json. Where writing takes longer than --write-seconds the stack ends there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import queue
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from ralib import io
from ralib.alignment.iteration import Alignment
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.state import LoopState
from ralib.benchmarks.distributed import synchronize
from ralib.benchmarks.made_images import BLOCK, MadeImages, Workload
from ralib.benchmarks.record import record, write_record
from ralib.io.mrc import open_stack
from ralib.particles import prefetch as loading
from ralib.runtime.memory import limit_device_memory
from ralib.simulation.simulator import simulate_particles
from ralib.types import ParticleSet, Poses

HEADER_BYTES, NZ_AT = 1024, 8
MEMORY_GOAL_GIB = 16.0
GB, GIB = 1e9, 2**30


def write_stack(path: Path, source: MadeImages, dtype: np.dtype, seconds: float) -> tuple[int, float]:
    """The source's images as an MRC stack, at most for so long: images and seconds taken."""
    io.write_mrcs(path, np.zeros((1, source.box, source.box)), 1.0, dtype=dtype)
    size, at_once = source.box**2 * dtype.itemsize, 4 * BLOCK
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    on_gpu = source.references.is_cuda
    buffers: queue.Queue[torch.Tensor] = queue.Queue()
    for _ in range(4):
        buffers.put(torch.empty(at_once, source.box, source.box, dtype=kind, pin_memory=on_gpu))
    descriptor, clock, n = os.open(path, os.O_WRONLY), time.perf_counter(), 0

    def written(buffer: torch.Tensor, first: int, count: int) -> None:
        view = memoryview(buffer[:count].numpy().reshape(-1).view(np.uint8))
        done = 0
        while done < len(view):
            done += os.pwrite(descriptor, view[done : done + 2**28], HEADER_BYTES + first * size + done)
        os.fdatasync(descriptor)  # the disk's time counts, not the page cache's
        buffers.put(buffer)

    with ThreadPoolExecutor(4) as pool:
        pending = []
        while n < source.n_images and time.perf_counter() - clock < seconds:
            index = np.arange(n, min(n + at_once, source.n_images))
            buffer = buffers.get()
            buffer[: len(index)].copy_(source.read_tensor(index))
            pending.append(pool.submit(written, buffer, n, len(index)))
            n += len(index)
        for future in pending:
            future.result()
    os.pwrite(descriptor, np.int32(n).tobytes(), NZ_AT)
    os.fsync(descriptor)
    os.close(descriptor)
    return n, time.perf_counter() - clock


def drop_cache(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def disk_rate(path: Path, most_bytes: int, *, direct: bool) -> float:
    """Bytes a second of plain reads by as many threads as ralib has; 0 where the file system does not take O_DIRECT."""
    try:
        descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    except OSError:
        return 0.0
    size = loading.BUFFER_BYTES
    starts = range(0, max(1, min(most_bytes, path.stat().st_size) - size), size)
    local = threading.local()

    def read(start: int) -> int:
        if not hasattr(local, "buffer"):
            local.buffer = mmap.mmap(-1, size)  # aligned, as O_DIRECT wants it
        return os.preadv(descriptor, [local.buffer], start)

    drop_cache(path)
    clock = time.perf_counter()
    try:
        with ThreadPoolExecutor(loading.READERS) as pool:
            done = sum(pool.map(read, starts))
    except OSError:
        return 0.0
    finally:
        os.close(descriptor)
    return done / (time.perf_counter() - clock)


def bus_rate(device: torch.device, repeats: int = 40) -> float:
    """Bytes a second from pinned memory to the device; without a GPU, of a copy in main memory."""
    pinned = torch.empty(2**26, dtype=torch.uint8, pin_memory=device.type == "cuda").zero_()
    there = torch.empty(2**26, dtype=torch.uint8, device=device)
    for part in (2, repeats):
        synchronize(device)
        clock = time.perf_counter()
        for _ in range(part):
            there.copy_(pinned, non_blocking=True)
        synchronize(device)
    return repeats * 2**26 / (time.perf_counter() - clock)


def reading_rate(stack: Any, device: torch.device, batch: int, most_bytes: int) -> float:
    """Bytes a second that arrive on the device where nobody computes."""
    loader = loading.Loader(stack, device)
    n = max(batch, min(stack.n_images, most_bytes // (stack.box**2 * stack.raw_dtype.itemsize)))
    blocks = [np.arange(i, min(i + batch, stack.n_images)) for i in range(0, min(n, stack.n_images), batch)]
    drop_cache(stack.path)
    clock = time.perf_counter()
    for _, arrived in loader.blocks(blocks):
        if arrived is not None:
            arrived.synchronize()
    return loader.reading.bytes / (time.perf_counter() - clock)


@contextlib.contextmanager
def watched_memory() -> Iterator[Callable[[], int]]:
    """Bytes by which the machine's available memory was lower than at the beginning, at most."""
    before, stop, least = psutil.virtual_memory().available, threading.Event(), [2**62]

    def watch() -> None:
        while not stop.wait(0.05):
            least[0] = min(least[0], psutil.virtual_memory().available)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(0, before - least[0])
    finally:
        stop.set()
        thread.join()


class Iterations:
    """Iterations over one particle set, all from the true references."""

    def __init__(self, path: Path, references: torch.Tensor, workload: Workload, device: torch.device, **options: Any):
        self.path, self.references, self.device = path, references, device
        self.workload, self.options = workload, options

    def run(self, times: int, first: int | None = None) -> list[dict[str, Any]]:
        """What each of so many iterations took, over all particles or the first few; the page cache is dropped."""
        particles = io.open_particles(self.path)
        particles = ParticleSet(particles.images) if first is None else io.take(particles, np.arange(first))
        common = AlignmentOptions(outer_radius=self.workload.outer_radius, center=0, device=self.device, **self.options)
        run = Alignment(particles, common)
        stage = run.stage((self.workload.shift_range_px, self.workload.shift_range_px))
        state = LoopState(0, self.references, Poses.identity(len(particles), self.device))
        return [self._once(run, stage, state) for _ in range(times)]

    def _once(self, run: Alignment, stage: Any, state: LoopState) -> dict[str, Any]:
        reading = run.batches.reading
        reading.bytes, reading.waited_s = 0, 0.0
        drop_cache(self.path)
        synchronize(self.device)
        clock = time.perf_counter()
        done = run.iterate(stage, state, last=True)
        synchronize(self.device)
        seconds = time.perf_counter() - clock
        seen = torch.arange(len(done.poses), device=self.device) % self.workload.references
        return {
            "seconds": seconds,
            "resident": run.batches.resident,
            "batch_size": run.batches.batch_size,
            "read_bytes": reading.bytes,
            "bytes_per_s": reading.bytes / seconds,
            "waited_for_reading_s": reading.waited_s,
            "right_class": float((done.poses.class_index == seen).double().mean()),
            "warnings": [w.what for w in done.warnings],
        }


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures by name."""
    device = torch.device(options.device)
    workload = Workload(particles=options.particles, box=options.box, references=options.references)
    references = simulate_particles(
        2 * BLOCK, workload.box, device=device, n_views=workload.references, snr=workload.snr, seed=1, ctf=False
    )[2]
    path, dtype = folder / "stack.mrcs", np.dtype(np.float16 if options.float16 else np.float32)
    n, write_s = write_stack(path, MadeImages(references, workload), dtype, options.write_seconds)
    size = path.stat().st_size
    print(f"{n:,} particles, {size / GB:.1f} GB written in {write_s:.1f} s", flush=True)
    told: dict[str, Any] = {"particles": n, "box": workload.box, "references": workload.references, "stack_bytes": size}
    told["written_bytes_per_s"] = size / write_s
    part = int(options.part_gb * GB)
    told["disk_bytes_per_s"] = disk_rate(path, part, direct=False)
    told["disk_direct_bytes_per_s"] = disk_rate(path, part, direct=True)
    told["bus_bytes_per_s"] = bus_rate(device)
    print(json.dumps(told), flush=True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with watched_memory() as taken:
        keeping = Iterations(path, references, workload, device)
        batch = keeping.run(1, first=min(n, 4096))[0]["batch_size"]  # compiles the kernels
        told["reading_bytes_per_s"] = reading_rate(open_stack(path), device, batch, part)
        print(f"reading: {told['reading_bytes_per_s'] / GB:.2f} GB/s", flush=True)
        told["iterations"] = dict(zip(("reading and keeping", "nothing to read"), keeping.run(2), strict=True))
        print(json.dumps(told["iterations"]), flush=True)
        again = Iterations(path, references, workload, device, resident_bytes=0)
        told["iterations"]["reading, nothing kept"] = again.run(1)[0]
        told["main_memory_taken_bytes"] = taken()
    told["peak_rss_bytes"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told["pinned_bytes"] = loading.BUFFERS * loading.BUFFER_BYTES
    told["peak_device_bytes"] = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return told


def rows(told: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures as a result file holds them."""
    case = f"{told['particles']:,} x {told['box']} px, {told['stack_bytes'] / GB:.0f} GB on disk"
    slower = min(max(told["disk_bytes_per_s"], told["disk_direct_bytes_per_s"]), told["bus_bytes_per_s"])
    right = min(row["right_class"] for row in told["iterations"].values())
    parity = f"{100 * right:.2f} % in their true class"
    alone = told["iterations"]["nothing to read"]["seconds"]
    found: list[dict[str, Any]] = [
        {"case": f"{case}: reading, nothing else to do", "ours": told["reading_bytes_per_s"] / GB,
         "other": slower / GB, "other_is": "the slower of plain disk reads and the bus", "unit": "GB/s"},
    ]  # fmt: skip
    for name, row in told["iterations"].items():
        reads = row["read_bytes"] > 0
        bound = max(alone, row["read_bytes"] / slower)
        found.append(
            {"case": f"{case}: iteration with {told['references']} references, {name}", "ours": row["seconds"],
             "other": bound if reads else None, "other_is": "the slower of reading and computing", "unit": "s"} | row
        )  # fmt: skip
    taken = max(told["peak_rss_bytes"], told["main_memory_taken_bytes"]) / GIB
    found.append({"case": f"{case}: main memory, peak", "ours": taken, "goal": MEMORY_GOAL_GIB, "unit": "GiB"})
    if told["peak_device_bytes"]:
        found.append({"case": f"{case}: GPU memory, peak", "ours": told["peak_device_bytes"] / GIB, "unit": "GiB"})
    good = right > 0.95
    return [row | {"parity": parity} | ({} if good else {"ours": None}) for row in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--particles", type=int, default=1_000_000)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--references", type=int, default=200)
    parser.add_argument("--float16", action="store_true", help="a stack in half precision (MRC mode 12)")
    parser.add_argument("--part-gb", type=float, default=16.0, help="of the stack read to measure plain rates")
    parser.add_argument("--write-seconds", type=float, default=120.0, help="the stack ends where writing takes longer")
    parser.add_argument("--device-gib", type=float, help="use no more GPU memory than this")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(0 if device.index is None else device.index)
        if options.device_gib:
            limit_device_memory(device, int(options.device_gib * GIB))
    with tempfile.TemporaryDirectory(dir=options.work, prefix="ralib-stream-") as folder:
        told = measure(Path(folder), options)
    found = rows(told)
    path = write_record(options.out, record("stream", device, found, device_limit_gib=options.device_gib, **told))
    print(json.dumps({k: v for k, v in told.items() if k != "iterations"}))
    for row in found:
        print(json.dumps(row))
    print(f"wrote {path}")
    return 0 if all(row["ours"] is not None for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
