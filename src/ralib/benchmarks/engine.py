"""Timing of one iteration of alignment: search, assignment, half averages, new references; particles on the device.

Before a case is timed its poses are compared with an exhaustive double precision search, at two noise levels; a case
that fails has no time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ralib.alignment.iteration import Alignment
from ralib.alignment.options import AlignmentOptions
from ralib.alignment.search import PoseSearch
from ralib.alignment.search.batched import BatchedSearch
from ralib.alignment.stage import Stage
from ralib.alignment.state import LoopState
from ralib.benchmarks.oracle import Oracle, dense_search
from ralib.kernels.pose_search.reference_newton import used_samples
from ralib.kernels.threads import all_on_cores
from ralib.simulation.simulator import simulate_particles
from ralib.types import Poses, as_particles

PARITY_SNR = (0.05, 0.02)
TOLERANCE = 1e-4
REQUIRED = 0.999
COPY_BYTES_PER_S, HALF_FLOPS, SINGLE_FLOPS = 3.0e12, 770e12, 51e12
"""Ceilings measured on an H100; the floors of other cards are only indications."""


@dataclass(frozen=True)
class Case:
    """A workload.

    Attributes
    ----------
    name : str
        Name of the case.
    references : int
        Number of references; 1 is reference-free alignment.
    shift_range_px : float
        Shift range, pixels.
    box : int, default 90
        Image size, pixels.
    outer_radius : int, default 36
        Radius of the disc compared, pixels.
    gpu_goal, cpu_goal : float, optional
        Time wanted, us a particle.
    gpu_other, cpu_other : str, default ''
        What others need, for the table.
    """

    name: str
    references: int
    shift_range_px: float
    box: int = 90
    outer_radius: int = 36
    gpu_goal: float | None = None
    gpu_other: str = ""
    cpu_goal: float | None = None
    cpu_other: str = ""


CASES = [
    Case(
        "mref-10",
        10,
        3,
        gpu_goal=0.6,
        gpu_other="original CUDA 43, naive PyTorch 17",
        cpu_goal=800,
        cpu_other="EMAN2 6400",
    ),
    Case(
        "mref-50",
        50,
        3,
        gpu_goal=1.2,
        gpu_other="original CUDA 85, naive PyTorch 31",
        cpu_goal=2875,
        cpu_other="EMAN2 23000",
    ),
    Case("mref-200", 200, 3, gpu_goal=2.5, gpu_other="original CUDA 290, naive PyTorch 99"),
    Case("mref-1000", 1000, 3),
    Case("reffree-xr1", 1, 1, gpu_goal=0.3, gpu_other="original CUDA 6.4", cpu_goal=81, cpu_other="EMAN2 650"),
    Case(
        "reffree-xr3",
        1,
        3,
        gpu_goal=0.4,
        gpu_other="original CUDA 30, naive PyTorch 16",
        cpu_goal=400,
        cpu_other="EMAN2 3200",
    ),
    Case("reffree-xr7", 1, 7, gpu_goal=0.5, gpu_other="original CUDA 70, naive PyTorch 75"),
    Case("mref-50-box128", 50, 3, box=128, outer_radius=52),
    Case("mref-50-box256", 50, 3, box=256, outer_radius=104, gpu_goal=4),
]


def run_cases(
    cases: Iterable[Case],
    device: torch.device,
    *,
    n_particles: int,
    n_parity: int = 2000,
    repeats: int = 5,
    say: Callable[[str], None] = print,
) -> Iterator[dict[str, Any]]:
    """Check parity, then time each case.

    Parameters
    ----------
    cases : iterator
        The cases.
    device : torch.device
        Where to compute.
    n_particles : int
        Particles timed.
    n_parity : int, default 2000
        Particles of the parity check.
    repeats : int, default 5
        Timed iterations.
    say : callable, default print
        Is called with messages.

    Yields
    ------
    dict
        Rows for a result file.
    """
    for case in cases:
        row = run_case(case, device, n_particles=n_particles, n_parity=n_parity, repeats=repeats)
        measured = f"{row['ours']:.2f} us a particle" if row["ours"] is not None else "no time: parity failed"
        goal = f" (goal {row['goal']:g})" if row["goal"] else ""
        floor = f", floor {row['floor_us']:.2f}" if row.get("floor_us") else ""
        say(f"{case.name}: {measured}{goal}{floor}; parity {row['parity']}")
        yield row


def run_case(case: Case, device: torch.device, *, n_particles: int, n_parity: int, repeats: int) -> dict[str, Any]:
    """Check parity at each noise level and time a case.

    Parameters
    ----------
    case : Case
        The case.
    device : torch.device
        Where to compute.
    n_particles : int
        Particles timed.
    n_parity : int
        Particles of the parity check.
    repeats : int
        Timed iterations.

    Returns
    -------
    dict
        A row with parity, median time of an iteration, its lower bound and peak memory.
    """
    references = make_particles(case, 1, 1.0, device, seed=1)[1]
    search = make_search(case, device)
    search.set_references(references)
    parity = {snr: parity_fraction(case, search, references, snr, n_parity) for snr in PARITY_SNR}
    on_gpu = device.type == "cuda"
    row: dict[str, Any] = {
        "case": case.name,
        "ours": None,
        "unit": "us a particle and iteration",
        # The CPU's goals are for one core.
        "goal": case.gpu_goal if on_gpu else case.cpu_goal if torch.get_num_threads() == 1 else None,
        "other": case.gpu_other if on_gpu else case.cpu_other,
        "parity": ", ".join(f"{100 * f:.2f} % at SNR {snr}" for snr, f in parity.items()),
        "particles": n_particles,
        "box": case.box,
        "references": case.references,
        "shift_range_px": case.shift_range_px,
    }
    if min(parity.values()) < REQUIRED:
        return row
    if on_gpu and isinstance(search, BatchedSearch):
        row["floor_us"] = floor_us(search)
    return row | time_iteration(case, references, device, n_particles, repeats)


def make_particles(case: Case, n: int, snr: float, device: torch.device, seed: int) -> tuple[Tensor, Tensor]:
    """Make particles of the case's views, off centre within its shift range.

    Parameters
    ----------
    case : Case
        The case.
    n : int
        Number of particles.
    snr : float
        Signal to noise ratio.
    device : torch.device
        Where to compute.
    seed : int
        Of all random numbers.

    Returns
    -------
    Tensor of shape (n, box, box)
        Particles.
    Tensor of shape (k, box, box)
        Views.
    """
    images, _, references = simulate_particles(
        n,
        case.box,
        device=device,
        n_views=case.references,
        n_references=case.references,
        shift_sd_px=case.shift_range_px / 2,
        snr=snr,
        seed=seed,
        ctf=False,
    )
    return images, references


def make_search(case: Case, device: torch.device, **changes: Any) -> PoseSearch:
    """Make the search that the loops would use for this case.

    Parameters
    ----------
    case : Case
        The case.
    device : torch.device
        Where to compute.
    **changes : Any
        Further options of `PoseSearch`.

    Returns
    -------
    PoseSearch
        The search.
    """
    span = (float(case.shift_range_px), float(case.shift_range_px))
    return PoseSearch(box=case.box, outer_radius=case.outer_radius, shift_range_xy_px=span, device=device, **changes)


def parity_fraction(case: Case, search: PoseSearch, references: Tensor, snr: float, n: int) -> float:
    """Return the fraction of particles whose pose scores within TOLERANCE of the best known, in double precision.

    Parameters
    ----------
    case : Case
        The case.
    search : PoseSearch
        The search.
    references : Tensor of shape (k, n, n)
        References.
    snr : float
        Signal to noise ratio.
    n : int
        Number of particles.

    Returns
    -------
    float
        0 to 1.
    """
    images, _ = make_particles(case, n, snr, search.device, seed=2)
    dense, oracle = dense_search(search, references), Oracle(search, references)
    good = 0
    chunk = max(1, 2**24 // case.box**2)
    for part in images.split(chunk):
        exact, samples = search.grid.transform(part), search.prepare(part)
        best = torch.maximum(oracle.achieved(exact, dense.search(samples)), oracle.exhaustive(exact))
        found = oracle.achieved(exact, search.search(samples))
        good += int((found >= best - TOLERANCE * best.abs()).sum())
    return good / n


def make_run(
    case: Case, images: Tensor, references: Tensor, device: torch.device
) -> tuple[Alignment, Stage, LoopState]:
    """Make an alignment of the case's particles, its stage, and its initial state.

    Parameters
    ----------
    case : Case
        The case.
    images : Tensor of shape (n, box, box)
        Particles.
    references : Tensor of shape (k, box, box)
        References.
    device : torch.device
        Where to compute.

    Returns
    -------
    Alignment
        The alignment.
    Stage
        Its stage.
    LoopState
        Its initial state.
    """
    run = Alignment(as_particles(images), AlignmentOptions(outer_radius=case.outer_radius, center=0, device=device))
    stage = run.stage((float(case.shift_range_px), float(case.shift_range_px)))
    return run, stage, LoopState(0, references, Poses.identity(len(images), device))


@torch.inference_mode()
def time_iteration(
    case: Case, references: Tensor, device: torch.device, n_particles: int, repeats: int
) -> dict[str, Any]:
    """Time an iteration of the real loop, after a warm-up, in the mode in which the commands run.

    Parameters
    ----------
    case : Case
        The case.
    references : Tensor of shape (k, box, box)
        References.
    device : torch.device
        Where to compute.
    n_particles : int
        Number of particles.
    repeats : int
        Timed iterations.

    Returns
    -------
    dict
        Median seconds, per particle and by part.
    """
    images, _ = make_particles(case, n_particles, 0.1, device, seed=3)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    run, stage, state = make_run(case, images, references, device)
    del images
    seconds = []
    with all_on_cores(device):
        state = run.iterate(stage, state, last=True)
        for _ in range(repeats):
            _synchronize(device)
            clock = time.perf_counter()
            state = run.iterate(stage, state, last=True)
            _synchronize(device)
            seconds.append(time.perf_counter() - clock)
    per_particle = [1e6 * s / n_particles for s in seconds]
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    return {
        "ours": statistics.median(per_particle),
        "spread": {"min": min(per_particle), "max": max(per_particle), "repeats": repeats},
        "peak_device_memory_bytes": peak,
    }


def floor_us(search: BatchedSearch) -> float:
    """Return the time that the plan's own operations and bytes need at the card's peak rates, us a particle.

    Half precision: the grid's matrix products and the rotations' sums. Single: Newton steps, 60 operations a sample.
    Bytes: cross spectra written and read, the particle's samples once a step, its image once for the average.
    """
    bank, grid = search.bank, search.grid
    pairings = bank.n_references * len(bank.poses.pairings) // 2
    n_orders = len(bank.poses.orders)
    half = pairings * n_orders * (2 * 2 * 2 * bank.n_radii + 2 * 2 * bank.poses.n_half)
    half_circle = grid.n_angles // 2
    steps = [len(used_samples(search.stops(i), half_circle, grid.device)[0]) for i in range(len(search.candidates))]
    single = 60 * sum(n * points for n, points in zip(search.candidates, steps, strict=True))
    moved = 2 * 2 * 2 * pairings * n_orders + 4 * max(steps) * (1 + len(steps)) + 4 * grid.box**2
    return 1e6 * max(half / HALF_FLOPS + single / SINGLE_FLOPS, moved / COPY_BYTES_PER_S)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
