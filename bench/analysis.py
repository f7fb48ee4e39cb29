"""Components of 105,247 particles of 90 px: PCA and 2SDR, first parity with scikit-learn, then seconds and memory; the
covariance Wiener filter and the probabilistic PCA with 1,000 CTFs in the model (right or not: bench/analysis_truth.py).

    python bench/analysis.py --device cuda              # the whole set; writes bench/results/analysis-<device>.json
    python bench/analysis.py --device cpu --particles 10000
    python bench/analysis.py --ctfs --particles 3000    # CWF with one CTF to 1,000: analysis-ctfs-<device>.json

The images (low-rank views in noise, float32, 3.4 GB) are made once into a memory-mapped file under --work, so that
reading them counts as it does for a real stack.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import sklearn.decomposition
import torch

from ralib.analysis import PCA, CovarianceWienerFilter, ProbabilisticPCA, TwoSDR
from ralib.benchmarks.record import commit, record, write_record
from ralib.types import ArraySource, CtfParameters, ParticleSet, Poses

BOX = 90
GOALS = {"PCA": 10.0, "2SDR": 30.0, "CWF": 60.0, "PPCA": 60.0}
MEMORY_GOAL_GIB = 16.0
CTF_GROWTH_GOAL = 1.2


def make_images(path: Path, n: int, seed: int = 0) -> np.ndarray:
    """A memory-mapped (n, BOX, BOX) float32 stack: 40 smooth components of falling variance in unit noise."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, BOX)
    waves = np.stack([np.cos(np.pi * k * (axis + 1) / 2) for k in range(12)])
    waves *= np.sqrt(2 / BOX)
    components = np.einsum("rab,ai,bj->rij", rng.standard_normal((40, 12, 12)) / 12, waves, waves)
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, BOX, BOX))
    spread = np.linspace(8, 3, 40)
    for start in range(0, n, 4096):
        stop = min(start + 4096, n)
        scores = (rng.standard_normal((stop - start, 40)) * spread).astype(np.float32)
        signal = scores @ components.reshape(40, -1).astype(np.float32)
        noise = rng.standard_normal((stop - start, BOX * BOX), dtype=np.float32)
        images[start:stop] = (signal + noise).reshape(-1, BOX, BOX)
    images.flush()
    return np.load(path, mmap_mode="r")


def parity(images: np.ndarray, device: str) -> dict[str, float]:
    """Largest relative differences of the explained variances from exact ones, on 3,000 images of 45 px."""
    some = np.ascontiguousarray(images[:3000, ::2, ::2])
    exact = sklearn.decomposition.PCA(50, svd_solver="covariance_eigh").fit(some.reshape(len(some), -1))
    ours = PCA(50, solver="randomized", random_state=0, device=device).fit(some)
    two = TwoSDR(50, core_shape=(20, 20), random_state=0, device=device).fit(some)
    plain = plain_twosdr_variances(some.astype(np.float64), 20, 50)
    found = {
        "PCA": float(np.abs(ours.explained_variance_ / exact.explained_variance_ - 1).max()),
        "2SDR": float(np.abs(two.explained_variance_ / plain - 1).max()),
    }
    shuffled = np.roll(exact.explained_variance_, 1)
    assert np.abs(ours.explained_variance_ / shuffled - 1).max() > 0.02, "the comparison cannot fail"
    assert found["PCA"] < 0.005, f"PCA differs from scikit-learn by {found['PCA']:.3%}"
    assert found["2SDR"] < 0.01, f"2SDR differs from its definition in float64 NumPy by {found['2SDR']:.3%}"
    return found


def plain_twosdr_variances(images: np.ndarray, core: int, k: int) -> np.ndarray:
    """2SDR written down once more, without chunks: alternating eigenproblems, then scikit-learn's PCA of the cores."""
    centred = images - images.mean(axis=0)
    columns = np.eye(centred.shape[2])
    for _ in range(10):
        rows = np.linalg.eigh(np.einsum("nij,nkj->ik", centred @ columns, centred @ columns))[1][:, -core:]
        columns = np.linalg.eigh(np.einsum("nij,nik->jk", rows.T @ centred, rows.T @ centred))[1][:, -core:]
    cores = (rows.T @ centred @ columns).reshape(len(centred), -1)
    return sklearn.decomposition.PCA(k, svd_solver="full").fit(cores).explained_variance_


def with_ctf(source: ArraySource, n_ctfs: int = 1000) -> ParticleSet:
    """The particles in micrographs of different defocus, as they lie."""
    n = source.n_images
    defocus = np.random.default_rng(0).uniform(8000, 26_000, n_ctfs)[np.arange(n) * n_ctfs // n]
    one = np.ones(n)
    ctf = CtfParameters(defocus, defocus - 200, 40 * one, 300 * one, 2.7 * one, 0.1 * one, 0 * one, 0 * one)
    return ParticleSet(source, pixel_size_A=3.0, ctf=ctf, poses=Poses.identity(n))


def timed(call: Callable[[], Any], repeats: int, device: str) -> dict[str, float]:
    seconds = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"median_s": float(np.median(seconds)), "min_s": min(seconds), "max_s": max(seconds), "repeats": repeats}


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def rows_of(
    name: str, n: int, seconds: dict[str, float], differs: float, peak_gib: float, device_gib: float
) -> list[dict[str, Any]]:
    """Seconds, whose goal is a GPU's, and on a CPU the host memory, whose goal is a CPU's."""
    components = {"CWF": "all components above the noise", "PPCA": "10 components"}.get(name, "50 components")
    case = f"{name}, {n:,} x {BOX} px to {components}"
    whole, on_gpu = n >= 105_247, device_gib > 0
    parity = (
        ""
        if np.isnan(differs)
        else f"variances within {differs:.2%} of {'scikit-learn' if name == 'PCA' else 'float64 NumPy'}"
    )
    timing = {
        "case": case,
        "ours": round(seconds["median_s"], 3),
        "unit": "s",
        "goal": GOALS[name] if whole and on_gpu else None,
        "other": "",
        "parity": parity,
        "spread": seconds,
        "peak_host_memory_gib": round(peak_gib, 2),
        "peak_device_memory_gib": round(device_gib, 2),
    }
    memory = {
        "case": f"{case}, peak memory",
        "ours": round(peak_gib, 2),
        "unit": "GiB",
        "goal": MEMORY_GOAL_GIB if whole else None,
        "other": "",
        "parity": parity,
    }
    return [timing] if on_gpu else [timing, memory]


def ctf_counts(source: ArraySource, options: argparse.Namespace) -> None:
    """Time CWF with one CTF to as many as there are particles: its cost is not to grow with their number."""
    counts = [count for count in (1, 10, 100, 1000, 10_000, 100_000) if count <= source.n_images]
    sets = [with_ctf(source, count) for count in counts]
    seconds: list[list[float]] = [[] for _ in counts]
    for _ in range(options.repeats + 1):  # in turn, so that a busy minute is shared; the first call is not counted
        for spent, particles in zip(seconds, sets, strict=True):
            model = CovarianceWienerFilter(device=options.device)
            spent.append(timed(lambda m=model, p=particles: m.fit_transform(p), 1, options.device)["median_s"])
    case = f"CWF, {source.n_images:,} x {BOX} px"
    rows = [
        {
            "case": f"{case}, {count:,} CTF{'s' * (count > 1)}",
            "ours": statistics.median(spent[1:]),
            "unit": "s",
            "all_s": spent[1:],
        }
        for count, spent in zip(counts, seconds, strict=True)
    ]
    growth = rows[-1]["ours"] / rows[0]["ours"]
    goal = {"ours": growth, "unit": "times", "goal": CTF_GROWTH_GOAL, "better": "lower"}
    rows.append({"case": f"{case}: time with {counts[-1]:,} CTFs over that with one", **goal})
    print(*(f"{row['case']}: {row['ours']:.3g} {row['unit']}" for row in rows), sep="\n")
    write_record(options.out, record("analysis-ctfs", torch.device(options.device), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--particles", type=int, default=105_247)
    parser.add_argument("--models", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ctfs", action="store_true", help="CWF with one CTF to many, instead of the models")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    path = options.work / f"ralib_bench_analysis_{options.particles}.npy"
    images = np.load(path, mmap_mode="r") if path.exists() else make_images(path, options.particles)
    source = ArraySource(images)
    if options.ctfs:
        ctf_counts(source, options)
        return
    differs = parity(images, options.device)
    models = {
        "PCA": lambda: PCA(50, random_state=0, device=options.device).fit_transform(source),
        "2SDR": lambda: TwoSDR(50, core_shape=(20, 20), random_state=0, device=options.device).fit_transform(source),
    }
    seen = with_ctf(source)
    models["CWF"] = lambda: CovarianceWienerFilter(device=options.device).fit_transform(seen)
    models["PPCA"] = lambda: ProbabilisticPCA(10, random_state=0, device=options.device).fit_transform(seen)
    models = {name: models[name] for name in options.models}
    rows = []
    for name, call in models.items():
        call() if options.device.startswith("cuda") else None  # the first call also starts CUDA's libraries
        seconds = timed(call, options.repeats, options.device)
        device_gib = torch.cuda.max_memory_allocated() / 2**30 if options.device.startswith("cuda") else 0.0
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        rows += rows_of(name, options.particles, seconds, differs.get(name, float("nan")), peak_gib, device_gib)
        print(json.dumps(rows[-1]), flush=True)
    name = device_name(options.device)
    result = {
        "bench": "analysis",
        "device": name,
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "sklearn": sklearn.__version__},
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    slug = "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())
    (options.out / f"analysis-{slug}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
