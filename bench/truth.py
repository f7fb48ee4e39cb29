"""Pose accuracy against the truth and against the Cramer-Rao bound: true references, one iteration, discrete views.

    PYTHONPATH=src python3 bench/truth.py --device cpu [--particles 2000] [--box 90] [--seeds 3]

White noise, no CTF, no contrast spread, so that the bound is exact. For SNR 0.1 and 1 and each seed: the share of
particles with the right reference and mirror, and the median errors in angle and shift over what an estimator at the
bound would have. The aims are >= 99.9 % at SNR 0.1 and <= 1.15. Goes to bench/results/truth-<device>.json; the exit
status is 1 where an aim is missed.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ralib.conventions import pose_error
from ralib.metrics import median_of_bound, pose_bound
from ralib.multireference import MultiReferenceAligner
from ralib.simulate import SimulationOptions, Simulator
from ralib.types import Poses

SNRS = (0.1, 1.0)
AIM_RIGHT, AIM_RATIO = 0.999, 1.15


def measure(n: int, box: int, snr: float, seed: int, device: torch.device) -> dict[str, Any]:
    """One set: share right, and median errors as absolute numbers and over the bound."""
    options = SimulationOptions(
        n_particles=n, box=box, snr=snr, seed=seed, n_views=10, ctf=False, contrast_sd=0.0, shift_sd_px=1.2
    )
    simulator = Simulator(options, device=device)
    images = torch.cat(list(simulator.blocks())).cpu()
    references, truth = simulator.references().cpu(), simulator.truth.poses
    radius = box // 2 - 6
    start = time.perf_counter()
    aligner = MultiReferenceAligner(
        references=references, outer_radius=radius, shift_range_xy_px=(4, 4), iterations=1, center=0, device=device
    )
    found = aligner.fit(images).poses_
    seconds = time.perf_counter() - start
    right = (found.class_index == truth.class_index) & (found.mirror == truth.mirror)
    angle, shift = errors(found, truth)
    bounds = [median_of_bound(pose_bound(r, 1.0, radius)) for r in references]
    angle_bound, shift_bound = (torch.tensor([b[i] for b in bounds])[truth.class_index] for i in (0, 1))
    return {
        "snr": snr,
        "seed": seed,
        "right": float(right.double().mean()),
        "median_angle_deg": float(angle[right].median()),
        "median_shift_px": float(shift[right].median()),
        "angle_over_bound": float((angle / angle_bound)[right].median()),
        "shift_over_bound": float((shift / shift_bound)[right].median()),
        "seconds": seconds,
    }


def errors(found: Poses, truth: Poses) -> tuple[torch.Tensor, torch.Tensor]:
    """Angle (deg) and shift (px) errors of each particle."""
    pair = [(p.psi_deg.double(), p.origin_xy_px.double(), p.mirror) for p in (found, truth)]
    return pose_error(*pair)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--particles", type=int, default=2000)
    parser.add_argument("--box", type=int, default=90)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu-{platform.machine()}"
    sets = [measure(args.particles, args.box, snr, seed, device) for snr in SNRS for seed in range(args.seeds)]
    summary = {}
    met = True
    for snr in SNRS:
        rows = [s for s in sets if s["snr"] == snr]
        middle = {k: statistics.median(r[k] for r in rows) for k in rows[0] if k not in ("snr", "seed")}
        summary[str(snr)] = middle
        met &= max(middle["angle_over_bound"], middle["shift_over_bound"]) <= AIM_RATIO
        met &= snr != 0.1 or middle["right"] >= AIM_RIGHT
        print(f"SNR {snr}: " + ", ".join(f"{k} {v:.4f}" for k, v in middle.items()))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"truth-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    record = {"what": __doc__.splitlines()[0], "device": name, "versions": versions, "particles": args.particles,
              "box": args.box, "aims": {"right": AIM_RIGHT, "over_bound": AIM_RATIO}, "met": met,
              "summary": summary, "sets": sets}  # fmt: skip
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {path}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
