"""The E-step of classification, its parity first: every class and pose, then Newton steps of the best three classes.

    PYTHONPATH=src python3 bench/estep.py [--particles 5000 --classes 50]     (a GPU)

The oracle has products, rotation maxima and Newton steps in single precision, as plain operations, and as many steps as
lead to the maxima. The fast form has half-precision products that rank, cross terms in single precision that tell which
class is the third, one kernel for all Newton steps, and cross terms of the winners in single precision. Plain
operations with three steps are held against both.
Against the oracle, at least 99.9 % of the particles must get the same class, and the log-likelihood of the best class,
over all particles, must not be lower by more than 1e-4 of it; without that no time is told. Of the particles that get
another class it is told how many have the higher log-likelihood there: the oracle's steps may end beside a maximum.
Both refine the three classes that the grid has as the best; how often one of eight is better is told as well.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ralib.benchmarks.engine import Case, make_particles
from ralib.benchmarks.record import record, write_record
from ralib.classification.e_step import score_classes
from ralib.classification.likelihood import ClassPoses, Spectra
from ralib.classification.pose_refinement import refine_poses, without_last
from ralib.classification.ring_grid import RingGrid
from ralib.classification.templates import disc_of_shifts
from ralib.cli.common import resolve_device
from ralib.kernels.likelihood import log_likelihood

RESULTS = Path(__file__).parent / "results"
SAME_CLASS, SAME_LIKELIHOOD = 0.999, 1e-4
BEST, STEPS, ORACLE_STEPS = 3, 3, 12
MANY = 8
"""Classes refined to see how often the best of BEST is not the best there is."""

BOX, RADIUS_PX, SNR = 90, 34.0, 0.05


class Problem:
    """Particles on rings under random CTFs, the true views as class references, and the shifts of one iteration.

    Noise is white, of the variance that the model is given, and the contrast of every particle is 1, so that
    log-likelihoods are in nats, as in a run. What the CTF takes from the noise of the images is added again.
    """

    def __init__(self, n: int, classes: int, rings: int, wide: bool, device: torch.device, seed: int) -> None:
        case = Case("e-step", classes, 2.0, BOX)
        images, views = make_particles(case, n, SNR, device, seed)
        generator = torch.Generator().manual_seed(seed)
        self.grid = RingGrid.create(BOX, radius_px=44.0, partner_radius_px=RADIUS_PX, n_rings=rings, device=device)
        phase = 2 * torch.pi * torch.rand(n, 1, generator=generator).to(device)
        ctf = torch.sin(phase + 900 * self.grid.frequency**2)
        variance = images.var() - views.var()
        added = variance.sqrt().cpu() * torch.randn(images.shape, generator=generator)
        data = ctf[..., None] * self._transform(images)
        data += (1 - ctf**2).sqrt()[..., None] * self._transform(added.to(device))
        weighted = self.grid.weight * ctf / variance
        self.spectra = Spectra(data * weighted[..., None], weighted * ctf * self.grid.n_half)
        m = self.grid.orders(rings, RADIUS_PX)
        self.references = self.grid.orders_of(self.grid.transform(views), m)
        self.origin = torch.zeros(n, 2, device=device)
        self.shifts = disc_of_shifts(5.0, 1.5, device)
        if not wide:
            found = self.search(torch.float32)
            self.origin = found.pick(found.cross.argmax(1)).origin_xy_px
            self.shifts = disc_of_shifts(1.5, 1.0, device)

    def _transform(self, images: Tensor) -> Tensor:
        return torch.cat([self.grid.transform(part) for part in images.split(2048)])

    def search(self, dtype: torch.dtype) -> ClassPoses:
        """The best pose in every class."""
        return score_classes(self.grid, self.spectra, self.origin, self.references, self.shifts, dtype=dtype)

    def refine(self, found: ClassPoses, index: Tensor, fused: bool, steps: int = STEPS) -> ClassPoses:
        """Newton steps of the poses in one class of each particle."""
        limits = {"limit_deg": 60.0 / self.references.shape[2], "limit_px": 0.9}
        given = (self.grid, self.spectra, self.references, found.pick(index), index)
        return refine_poses(*given, steps=steps, fused=fused, **limits)

    def whole(self, dtype: torch.dtype, fused: bool, steps: int = STEPS, best: int = BEST) -> tuple[Tensor, Tensor]:
        """Class (n,) and log-likelihood (n,) of the best of those classes, refined, that the grid has as the best."""
        found, unsure = self.search(dtype), dtype == torch.float16
        index = self.fit(found).topk(best + unsure, dim=1).indices.T.contiguous()
        if unsure:
            last = [self.refine(found, column, fused=True, steps=0) for column in index[-2:]]
            index = without_last(found.pick(index), index, torch.stack([self.fit(pose) for pose in last]))[1]
        fits = torch.stack([self.fit(self.refine(found, column, fused, steps)) for column in index])
        highest, at = fits.max(dim=0)
        return index.gather(0, at[None])[0], highest

    def fit(self, poses: ClassPoses) -> Tensor:
        """Log-likelihood of poses."""
        return log_likelihood(poses.cross, poses.norm, torch.ones((), device=self.grid.device))


def seconds(work: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Of each of several runs, after one that is not counted."""
    took = []
    for _ in range(repeats + 1):
        _wait(device)
        clock = time.perf_counter()
        work()
        _wait(device)
        took.append(time.perf_counter() - clock)
    return took[1:]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def oracle(problem: Problem) -> tuple[Tensor, Tensor]:
    """The whole E-step in single precision, rotation maxima included."""
    return problem.whole(torch.float32, fused=False, steps=ORACLE_STEPS)


def compare(expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor]) -> tuple[float, float, float]:
    """Share of the same class, fraction by which log-likelihoods are lower, share of the others that are higher."""
    other = expected[0] != found[0]
    total = expected[1].double().sum()
    off = (total - found[1].double().sum()) / total
    higher = (found[1] > expected[1])[other].double().mean()
    return 1 - float(other.double().mean()), float(off), float(higher)


def measure(n: int, classes: int, rings: int, wide: bool, repeats: int, device: torch.device) -> dict[str, Any]:
    """One row: parity, then the times of the fast form and of its parts."""
    problem = Problem(n, classes, rings, wide, device, seed=5)
    half = torch.float16 if device.type == "cuda" else torch.float32
    expected, found = oracle(problem), problem.whole(half, fused=True)
    same, off, higher = compare(expected, found)
    three_steps = problem.whole(torch.float32, fused=False)
    plain, precision = compare(expected, three_steps), compare(three_steps, found)
    many = compare(problem.whole(torch.float32, fused=True, best=MANY), found)
    wrong = compare(expected, (expected[0].roll(1), expected[1] * 0.999))
    assert wrong[0] < SAME_CLASS, "the comparison sees no wrong class"
    assert wrong[1] > SAME_LIKELIHOOD, "the comparison sees no wrong likelihood"
    area = "all shifts" if wide else "next shifts"
    row: dict[str, Any] = {
        "case": f"E-step, {n:,} particles, {classes} classes, {rings} rings, {area}",
        "ours": None,
        "unit": "us a particle and iteration",
        "other": "",
        "parity": f"{100 * same:.2f} % the same class, log-likelihood lower by {off:.1e}; of the others "
        f"{100 * higher:.0f} % have a higher one",
        "parity_plain": f"{100 * plain[0]:.2f} % the same class, lower by {plain[1]:.1e}",
        "parity_of_equal_steps": f"{100 * precision[0]:.2f} % the same class, lower by {precision[1]:.1e}",
        "of_eight_refined": f"{100 * many[0]:.2f} % the same class, lower by {many[1]:.1e}",
    }
    if same < SAME_CLASS or off > SAME_LIKELIHOOD:
        return row
    top = problem.search(half)
    index = top.cross.argmax(1)
    parts: dict[str, Callable[[], object]] = {
        "whole": lambda: problem.whole(half, fused=True),
        "search": lambda: problem.search(half),
        "refinement": lambda: problem.refine(top, index, fused=True),
    }
    took = {name: [1e6 * s / n for s in seconds(work, repeats, device)] for name, work in parts.items()}
    median = {name: statistics.median(values) for name, values in took.items()}
    row |= {
        "ours": median["whole"],
        "other": f"search {median['search']:.2f}, one refinement {median['refinement']:.2f}",
    }
    return row | {"spread": {"min": min(took["whole"]), "max": max(took["whole"]), "repeats": repeats}, "us": median}


def main() -> int:
    """Run the cases; 0 when every one has a time."""
    parser = argparse.ArgumentParser(description="The E-step of classification: parity, then time.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--particles", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--rings", type=int, nargs="+", default=[12, 28])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    device, rows = resolve_device(options.device), []
    for rings in options.rings:
        for wide in (False, True):
            row = measure(options.particles, options.classes, rings, wide, options.repeats, device)
            print(
                row["case"],
                "|",
                row["ours"],
                row.get("us"),
                "|",
                row["parity"],
                "| three plain steps:",
                row["parity_plain"],
                "| of eight refined:",
                row["of_eight_refined"],
                flush=True,
            )
            rows.append(row)
    print("wrote", write_record(options.out, record("estep", device, rows)))
    return 0 if all(row["ours"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
