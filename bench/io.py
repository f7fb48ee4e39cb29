"""Reading and writing particle files: a STAR file of a million rows, and images against what the disk gives.

    python bench/io.py                    # writes bench/results/io-cpu.json
    python bench/io.py --rows 100000 --gib 0.2

Parity first: what is written reads back equal. Image reads are compared with plain reads of the same file; both come
from the page cache once the file has been read, and the disk's own rate is told where the cache can be dropped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ralib.io import open_particles, read_star, stack_writer, write_particles_star, write_star


def seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    """Wall times of `repeats` runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def star_rows(folder: Path, n: int, repeats: int) -> list[dict[str, Any]]:
    """A STAR file of n particles with 26 columns, as RELION's Refine3D leaves them."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({f"rlnColumn{i}": rng.normal(size=n).round(6) for i in range(18)})
    for name in ("rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnDefocusU"):
        table[name] = rng.normal(size=n).round(6)
    table["rlnClassNumber"] = rng.integers(1, 51, n)
    table["rlnOpticsGroup"] = 1
    table["rlnImageName"] = [f"{i % 300 + 1:06d}@Extract/job007/Micrographs/mic{i // 300:05d}.mrcs" for i in range(n)]
    table["rlnMicrographName"] = [f"MotionCorr/job002/Micrographs/mic{i // 300:05d}.mrc" for i in range(n)]
    optics = pd.DataFrame({"rlnOpticsGroup": [1], "rlnImagePixelSize": [1.1], "rlnImageSize": [128]})
    path = folder / "particles.star"
    write_star(path, {"optics": optics, "particles": table})
    assert read_star(path)["particles"].equals(table), "the STAR file does not go round"
    particles = open_particles(path, require_images=False)
    size = f"{path.stat().st_size / 1e6:.0f} MB"
    reading = seconds(lambda: open_particles(path, require_images=False), repeats)
    writing = seconds(lambda: write_particles_star(folder / "out.star", particles), max(1, repeats // 2))
    return [
        row(f"open a STAR file of {n:,} rows ({size})", reading, goal=10.0),
        row(f"write it with new poses ({size})", writing),
    ]


def image_rows(folder: Path, gib: float, repeats: int) -> list[dict[str, Any]]:
    """A stack of 128 px images, read in batches of 1,000, in order and shuffled."""
    n = max(2000, int(gib * 2**30 / (128 * 128 * 4)))
    rng = np.random.default_rng(0)
    path = folder / "stack.mrcs"
    batch = rng.normal(size=(1000, 128, 128)).astype(np.float32)
    with stack_writer(path, 1.1) as stack:
        for start in range(0, n, 1000):
            stack.append(batch[: n - start])
    source = open_particles(path).images
    assert np.array_equal(source.read(np.array([1, n - 1])), batch[[1, (n - 1) % 1000]]), "images do not go round"
    shuffled = rng.permutation(n)

    def read(order: np.ndarray) -> None:
        for start in range(0, n, 1000):
            source.read(order[start : start + 1000])

    def plain() -> None:
        with path.open("rb", buffering=0) as file:
            while file.readinto(batch.data.cast("B")):
                pass

    floor = seconds(plain, repeats)
    mb = n * 128 * 128 * 4 / 1e6
    cases = (("in order", np.arange(n)), ("shuffled", shuffled))
    rows = [
        rate(f"read images of 128 px {name}", mb, seconds(lambda o=o: read(o), repeats), floor) for name, o in cases
    ]
    cold = cold_seconds(path, lambda: read(np.arange(n)))
    return rows + ([rate("read images in order, cold cache", mb, [cold], [cold_seconds(path, plain)])] if cold else [])


def cold_seconds(path: Path, work: Callable[[], None]) -> float:
    """Seconds with the file dropped from the page cache; 0 where the system cannot do that."""
    if not hasattr(os, "posix_fadvise"):
        return 0.0
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return seconds(work, 1)[0]


def row(case: str, times: list[float], **more: Any) -> dict[str, Any]:
    spread = {"ours": float(np.median(times)), "unit": "s", "min": min(times), "max": max(times)}
    return {"case": case, **spread, "parity": "reads back equal", **more}


def rate(case: str, mb: float, times: list[float], floor: list[float]) -> dict[str, Any]:
    ours, best = mb / float(np.median(times)), mb / float(np.median(floor))
    return {
        "case": case,
        "ours": ours,
        "unit": "MB/s",
        "other": best,
        "parity": "reads back equal",
        "other_is": "plain read",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="particles of the STAR file")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the image stack")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "io-cpu.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ralib-bench-") as name:
        folder = Path(name)
        rows = star_rows(folder, options.rows, options.repeats) + image_rows(folder, options.gib, options.repeats)
    versions = {name: metadata.version(name) for name in ("numpy", "pandas")}
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {"bench": "reading and writing", "device": f"CPU, {platform.machine()}, {os.cpu_count()} cores"}
    result |= {"versions": {"python": platform.python_version(), **versions}, "peak_memory_GiB": peak_gib, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
