"""Resolution of class averages against the truth: what `ralib classify` tells, with and without what noise shows.

    PYTHONPATH=src python3 bench/frc_truth.py [--device cpu] [--snr 0.1 0.02] [--particles 1500] [--classes 15]
        [--shared ../shared] [--cases ace2 ...]

The phantom is simulated twice with the same views, shifts and CTFs, with noise and nearly without. At the poses that
were found in the noisy set, the averages of the clean one are the signal S of the half averages, and what is left is
their noise N. The true FRC is <S1, S2> / sqrt((S1^2 + N1^2) (S2^2 + N2^2)): noise that alignment made alike in both
halves does not count as agreement. Resolutions are those where the FRC falls below 0.143, mean over the classes. Of
images of noise alone (SNR 0) nothing is true. The realistic sets of `hard.py` are made twice as well, with ten thousand
times the dose; of their classes of mostly true particles the median resolution is told, and of told over true the
median, the 10th and the 90th percentile. The rows go to bench/results/frc-truth-<device>.json.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hard import SETS, hard_set
from ralib import io
from ralib.benchmarks.record import record
from ralib.classification.classifier import Classifier
from ralib.classification.loading import random_halves
from ralib.classification.results import full_averages
from ralib.classification.sharding import Shard
from ralib.cli import main as ralib
from ralib.images.fourier import ring_sums
from ralib.images.frc import masked_frc, resolution_frequency
from ralib.images.masks import soft_disc
from ralib.kernels.averages import smoothed
from ralib.kernels.complex_numbers import squared
from ralib.types import ParticleSet

CLEAN = 1000.0
CLEAN_DOSE = 400_000.0
FEW = 10
"""Members from which on a class counts."""
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run all SNRs and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--snr", type=float, nargs="*", default=[0.1, 0.05, 0.02, 0.0])
    parser.add_argument("--particles", type=int, default=1500)
    parser.add_argument("--classes", type=int, default=15)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--cases", nargs="*", choices=["ace2", "pol2", "t20s", "30S"], default=["ace2", "pol2", "30S"])
    options = parser.parse_args()
    device, rows = torch.device(options.device), []
    with tempfile.TemporaryDirectory() as scratch:
        for snr in options.snr:
            rows += told_and_true(Path(scratch), snr, options)
            print(rows[-1], flush=True)
        for name in options.cases:
            rows += realistic(Path(scratch), name, options)
            print(*rows[-6:], sep="\n", flush=True)
    result = record("frc-truth", device, rows, particles=options.particles, classes=options.classes, seed=options.seed)
    name = re.sub("[^a-z0-9]+", "-", result["device"].lower()) + (f"-{result['threads']}t" if result["threads"] else "")
    (RESULTS / f"frc-truth-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def simulated(scratch: Path, snr: float, options: argparse.Namespace) -> Path:
    """A folder of particles, made once."""
    folder = scratch / f"snr-{snr:g}"
    if not folder.exists():
        given = {"--particles": options.particles, "--snr": snr or 1e-9, "--seed": options.seed}
        given |= {"--box": 64, "--views": 0, "--shift-sd": 2, "--device": options.device}
        if ralib(["simulate", str(folder), *(str(w) for pair in given.items() for w in pair)]) != 0:
            raise SystemExit("simulate failed")
    return folder


def told_and_true(scratch: Path, snr: float, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one SNR: the mean resolution by the truth, by the halves as they are, and as the run tells it."""
    noisy, clean = (io.open_particles(simulated(scratch, s, options) / "particles.star") for s in (snr, CLEAN))
    start = time.perf_counter()
    found = Classifier(n_classes=options.classes, seed=1, device=options.device).fit(noisy)
    seconds = time.perf_counter() - start
    case = f"SNR {snr:g}: mean resolution, "
    return [
        {"case": case + name, "ours": round(float(resolutions_A(c, noisy.pixel_size_A).mean()), 2), "unit": "A",
         "frc": [round(float(v), 3) for v in c.mean(0)], "run_s": round(seconds, 1)}
        for name, c in curves(found, noisy, clean if snr > 0 else None).items()
    ]  # fmt: skip


def realistic(scratch: Path, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of a realistic set: its median resolution by each curve, and how told and true ones compare."""
    folder = hard_set(name, scratch, options)
    bright = hard_set(name, scratch, options, more=f"--dose {CLEAN_DOSE:g}", called=f"{name}-bright")
    if folder is None or bright is None:
        print(f"{name}: left out, no data for it under {options.shared}")
        return []
    noisy, clean = (io.open_particles(f / "particles.star") for f in (folder, bright))
    found = Classifier(n_classes=SETS[name]["classes"], seed=1, device=options.device).fit(noisy)
    of = [k for k, row in enumerate(found.classes_) if row["junk"] < 0.5 and row["members"] >= FEW]
    told = {what: resolutions_A(c[of], noisy.pixel_size_A) for what, c in curves(found, noisy, clean).items()}
    ratio = told["as it is told"] / told["truth"]
    case = f"{name}, {SETS[name]['what']}: "
    return [
        *({"case": f"{case}median resolution, {what}", "ours": round(float(np.median(a)), 2), "unit": "A"}
          for what, a in told.items()),
        {"case": f"{case}told over true, median", "ours": round(float(np.median(ratio)), 2), "unit": "times"},
        *({"case": f"{case}told over true, {100 * q:.0f}th percentile", "ours": round(float(np.quantile(ratio, q)), 2),
           "unit": "times"} for q in (0.1, 0.9)),
    ]  # fmt: skip


def curves(found: Classifier, noisy: ParticleSet, clean: ParticleSet | None) -> dict[str, Tensor]:
    """FRC curves (k, r) of a run by what they are: told, uncorrected, and true where clean particles are known."""
    averages, radius_px = found.class_averages_, 0.5 * found.result_.diameter_A / noisy.pixel_size_A
    assert averages.half_images is not None
    assert averages.frc is not None
    of = {"as it is told": averages.frc, "halves as they are": masked_frc(averages, radius_px)}
    return of if clean is None else of | {"truth": smoothed(true_frc(found, noisy, clean, radius_px))}


def resolutions_A(frc: Tensor, pixel_size_A: float) -> np.ndarray:
    """Resolution of each class, of its curve (k, r)."""
    return (pixel_size_A / resolution_frequency(frc.clone()).clamp_min(1 / (2 * frc.shape[1]))).numpy()


def true_frc(found: Classifier, noisy: ParticleSet, clean: ParticleSet, radius_px: float) -> Tensor:
    """FRC (k, r) of signal and noise that are known, behind the run's mask."""
    shard = Shard.of_all(len(noisy), found.ranks)
    half = random_halves(noisy, torch.Generator().manual_seed(found.seed))
    sums = []
    for particles in (noisy, clean):
        sums.append(
            full_averages(
                particles, found._batches(particles, shard), found.poses_.to(found._device), half, ctf="on",
                n_classes=len(found.class_averages_.members), ranks=found._ranks,
            ).half_images
        )  # fmt: skip
    images, pure = (p.images.read(np.arange(len(p))) for p in (noisy, clean))
    pure = pure - pure.mean((1, 2), keepdims=True)
    scale = float(np.median((images * pure).sum((1, 2)) / np.square(pure).sum((1, 2))))
    mask = soft_disc(noisy.box, radius_px, 4.0, device=sums[0].device)
    signal = torch.fft.rfft2(sums[1] * scale * mask)
    noise = torch.fft.rfft2(sums[0] * mask) - signal
    power = ring_sums(squared(signal)) + ring_sums(squared(noise))
    return (ring_sums((signal[0] * signal[1].conj()).real) / torch.sqrt(power[0] * power[1])).cpu()


if __name__ == "__main__":
    raise SystemExit(main())
