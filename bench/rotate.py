"""Rotate, shift, mirror and average a whole stack into classes: parity first, then times beside the floor of bytes.

    PYTHONPATH=src python3 bench/rotate.py --device cuda [--sweep]

Every timed form is first compared with the plain form in float64 on fresh random input; a form that fails has no
time, and the exit status is 1. Times are medians after warm-up, on random data. The floor is the time to read every
particle once and write every result once at --bandwidth. Results go to bench/results/rotate-<device>.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ralib.benchmarks.record import record, write_record
from ralib.kernels import implementation, interpolation_samples, rotate_shift_images, rotate_shift_sum
from ralib.kernels.interpolation import reference as oracle

# Float32 coordinates of 100 px carry 1e-5 px; white noise, which has every frequency, feels each of them. EMAN2's
# quadratic form jumps where a coordinate passes an integer, so that rounding moves a few pixels across a jump.
TOLERANCE = {"cubic": 2e-5, "linear": 2e-5, "quadratic": 3e-3}
PARITY_PARTICLES = 1500
GPU_PARTICLES, GOAL_MS = 105_247, 30.0


class Stack(NamedTuple):
    """Random particles with random poses and classes."""

    images: Tensor
    psi_deg: Tensor
    origin_xy_px: Tensor
    mirror: Tensor
    class_index: Tensor

    @property
    def pose(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.psi_deg, self.origin_xy_px, self.mirror


def random_stack(n: int, box: int, n_classes: int, device: torch.device, seed: int) -> Stack:
    """n particles of white noise, on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    draw = {"generator": generator, "device": device}
    return Stack(
        torch.randn(n, box, box, **draw),
        torch.rand(n, **draw) * 360,
        torch.randn(n, 2, **draw) * 3,
        torch.rand(n, **draw) > 0.5,
        torch.randint(0, n_classes, (n,), **draw),
    )


def relative_error(out: Tensor, reference: Tensor) -> float:
    """|out - reference| / |reference|; NaN where anything was left unwritten."""
    return float(torch.linalg.vector_norm(out.double() - reference) / torch.linalg.vector_norm(reference))


def poison(device: torch.device) -> None:
    """Leaves NaN in memory that the next allocations get, so that an unwritten output shows."""
    for size in (1 << 16, 1 << 20, 1 << 24, 1 << 26):
        torch.full((size,), float("nan"), device=device)


def sums_error(form: Callable[..., Tensor], box: int, n_classes: int, device: torch.device, **options: Any) -> float:
    """Error of a form of `rotate_shift_sum`, with weights, halves, an empty class and unassigned particles."""
    seed = int(time.time() * 1000) % (1 << 31)
    stack = random_stack(PARITY_PARTICLES, box, n_classes, device, seed)
    index = torch.where(stack.class_index == n_classes // 2, -1, stack.class_index)
    weights = torch.rand(PARITY_PARTICLES, device=device)
    halves = torch.arange(PARITY_PARTICLES, device=device) % 2
    poison(device)
    out = form(stack.images, *stack.pose, index, n_classes, weights=weights, half_index=halves, **options)
    plain = {name: options[name] for name in ("method", "boundary") if name in options}
    reference = oracle.rotate_shift_sum(
        stack.images.double(), *stack.pose, index, n_classes, weights=weights, half_index=halves, **plain
    )
    return relative_error(out, reference)


def images_error(form: Callable[..., Tensor], box: int, device: torch.device, **options: Any) -> float:
    """Error of a form of `rotate_shift_images`."""
    seed = int(time.time() * 1000) % (1 << 31)
    stack = random_stack(PARITY_PARTICLES, box, 1, device, seed)
    poison(device)
    out = form(stack.images, *stack.pose, **options)
    return relative_error(out, oracle.rotate_shift_images(stack.images.double(), *stack.pose, **options))


def milliseconds(run: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Times of `repeats` runs after two warm-up runs: device events on a GPU, the clock elsewhere."""
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        else:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
    return times


def naive_sum(stack: Stack, n_classes: int, step: int = 8192) -> Tensor:
    """What one writes first: affine_grid, grid_sample (Keys' cubic with a = -3/4), index_add."""
    n = stack.images.shape[-1]
    sums = torch.zeros(n_classes, n, n, device=stack.images.device)
    for start in range(0, len(stack.images), step):
        part = slice(start, start + step)
        psi = torch.deg2rad(stack.psi_deg[part])
        cos, sin, sign = psi.cos(), psi.sin(), torch.where(stack.mirror[part], -1.0, 1.0)
        shift = -2 * stack.origin_xy_px[part] / (n - 1)
        theta = torch.stack([sign * cos, sin, shift[:, 0], -sign * sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
        grid = torch.nn.functional.affine_grid(theta, [len(psi), 1, n, n], align_corners=True)
        turned = torch.nn.functional.grid_sample(stack.images[part, None], grid, mode="bicubic", align_corners=True)
        sums.index_add_(0, stack.class_index[part], turned[:, 0])
    return sums


def sums_of_samples(images: Tensor, *rest: Any, **options: Any) -> Tensor:
    """Class sums by way of samples, as a loop keeps them."""
    return rotate_shift_sum(interpolation_samples(images), *rest, **options)


class Bench:
    """Runs cases, keeps their rows."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.args = args
        self.rows: list[dict[str, Any]] = []
        self.failed = False
        self.stack = random_stack(args.particles, args.box, args.classes, self.device, seed=1)

    def case(self, name: str, error: float | None, run: Callable[[], Any], written: int, **about: Any) -> float:
        """Times a case if its error passes, prints and keeps the row; returns the median in milliseconds."""
        passed = error is None or error < TOLERANCE[about.get("method", "cubic")]
        row: dict[str, Any] = {"case": name, "relative_error": error, "passed": passed, **about}
        floor = (self.stack.images.nbytes + written) / self.args.bandwidth / 1e9
        text = "no time: parity failed"
        if passed:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
            times = milliseconds(run, self.device, self.args.repeats)
            row |= {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times)}
            row |= {"floor_ms": floor, "us_per_particle": row["median_ms"] * 1e3 / self.args.particles}
            text = f"{row['median_ms']:9.3f} ms ({min(times):.3f}..{max(times):.3f})  floor {floor:.3f}"
            if self.device.type == "cuda":
                row["extra_memory_MiB"] = (torch.cuda.max_memory_allocated() - held) / 2**20
                text += f"  +{row['extra_memory_MiB']:.0f} MiB"
        self.failed |= not passed
        shown = "not compared" if error is None else f"error {error:.1e}"
        print(f"{name:56s} {shown:15s} {text}", flush=True)
        self.rows.append(row)
        return float(row.get("median_ms", float("inf")))

    def sum_case(self, name: str, **options: Any) -> float:
        """A form of the class sums; options beyond the shared signature go to the Triton twin."""
        own = set(options) - {"method", "boundary"}
        form = implementation("interpolation", self.stack.images).rotate_shift_sum if own else rotate_shift_sum
        k, stack = self.args.classes, self.stack
        about = {key: asdict(value) if key == "tiling" else value for key, value in options.items()}
        return self.case(
            name,
            sums_error(form, self.args.box, k, self.device, **options),
            lambda: form(stack.images, *stack.pose, stack.class_index, k, **options),
            4 * k * self.args.box**2,
            **about,
        )

    def run(self) -> None:
        """The standard cases."""
        args = self.args
        for method in oracle.METHODS:
            name = f"rotate, shift and average {args.particles:,} x {args.box} px into {args.classes}, {method}"
            self.sum_case(name, method=method)
            if method == "cubic" and self.device.type == "cuda" and args.particles == GPU_PARTICLES:
                self.rows[-1]["goal"] = GOAL_MS
        self.sum_case("average, quadratic, EMAN2's background", method="quadratic", boundary="background")
        for method in oracle.METHODS:
            self.case(
                f"images, {method}",
                images_error(rotate_shift_images, self.args.box, self.device, method=method),
                lambda method=method: rotate_shift_images(self.stack.images, *self.stack.pose, method=method),
                self.stack.images.nbytes,
                method=method,
            )
        samples = interpolation_samples(self.stack.images)
        self.case(
            "average, cubic, prefiltered before",
            sums_error(sums_of_samples, self.args.box, self.args.classes, self.device),
            lambda: rotate_shift_sum(samples, *self.stack.pose, self.stack.class_index, self.args.classes),
            4 * self.args.classes * self.args.box**2,
        )
        del samples
        self.case("average, affine_grid + grid_sample", None, lambda: naive_sum(self.stack, self.args.classes), 0)
        self.stages()

    def stages(self) -> None:
        """Where the time of the cubic average goes."""
        batch = max(1, (1 << 27) // self.args.box**2)
        parts = [self.stack.images[i : i + batch] for i in range(0, len(self.stack.images), batch)]
        matrix = oracle.prefilter_matrix(self.stack.images, "zero")
        solved = implementation("interpolation", self.stack.images).solved
        run = {
            "stage: padding only": lambda: [oracle.padded(p, None, "zero") for p in parts],
            "stage: prefilter by matrix products": lambda: [oracle.padded(p, matrix, "zero") for p in parts],
            "stage: prefilter by elimination": lambda: [solved(p, matrix, "zero") for p in parts],
            "stage: copy of the stack": lambda: [p.clone() for p in parts],
        }
        for name, form in run.items():
            self.case(name, None, form, self.stack.images.nbytes)

    def sweep(self) -> None:
        """Tilings, run lengths and batches of the Triton form: one run decides the defaults."""
        from ralib.kernels.interpolation.gpu_triton import DEFAULT_TILING, Tiling

        shapes = [
            (16, 32, 4, 4), (16, 32, 4, 2), (16, 16, 4, 2), (8, 32, 4, 2), (8, 16, 4, 1), (16, 64, 4, 8),
            (32, 32, 4, 4), (32, 32, 8, 4), (16, 16, 8, 2), (32, 32, 32, 4),
        ]  # fmt: skip
        best, best_ms = DEFAULT_TILING, float("inf")
        for shape in shapes:
            tiling = Tiling(*shape)
            took = self.sum_case(f"tile {shape[0]}x{shape[1]} patch {shape[2]} warps {shape[3]}", tiling=tiling)
            if took < best_ms:
                best, best_ms = tiling, took
        print(f"best tiling: {best}")
        for length in (32, 64, 128):
            for batch in (1 << 25, 1 << 26, 1 << 27, 1 << 28, 1 << 29):
                options = {"tiling": best, "run_length": length, "batch_pixels": batch}
                self.sum_case(f"run {length}, batch of 2^{batch.bit_length() - 1} pixels", **options)
        self.sum_case("best tiling, linear", tiling=best, method="linear")
        torch.set_float32_matmul_precision("high")
        self.stages()
        torch.set_float32_matmul_precision("highest")


def negative_control(box: int, n_classes: int, device: torch.device) -> bool:
    """The comparison sees an error of 0.01 degrees."""

    def wrong(images: Tensor, psi_deg: Tensor, *rest: Any, **options: Any) -> Tensor:
        return rotate_shift_sum(images, psi_deg + 0.01, *rest, **options)

    return sums_error(wrong, box, n_classes, device) > 2 * TOLERANCE["cubic"]


def parse() -> argparse.Namespace:
    """The command line, with particle numbers that suit the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--particles", type=int, help="default: 105247 on a GPU, 2000 on a CPU")
    parser.add_argument("--box", type=int, default=90, help="pixels")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bandwidth", type=float, help="bytes moved, TB/s; default: 3.0 on a GPU, 0.01 on a CPU")
    parser.add_argument("--sweep", action="store_true", help="also time tilings, run lengths and batches (GPU)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    on_gpu = torch.device(args.device).type == "cuda"
    defaults = {"particles": GPU_PARTICLES if on_gpu else 2000, "bandwidth": 3.0 if on_gpu else 0.01}
    given = {key: value for key, value in vars(args).items() if value is not None}
    return argparse.Namespace(**{**defaults, **given})


def main() -> int:
    """Parity, times, JSON."""
    args = parse()
    bench = Bench(args)
    if not negative_control(args.box, args.classes, bench.device):
        print("the comparison does not see an error of 0.01 degrees: no times")
        return 1
    bench.run()
    if args.sweep:
        bench.sweep()
    path = write_record(args.out, record("rotate", bench.device, bench.rows, tolerance=TOLERANCE))
    print(f"wrote {path.name}")
    return 1 if bench.failed else 0


if __name__ == "__main__":
    sys.exit(main())
