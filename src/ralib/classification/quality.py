"""What a class or a particle is worth, in numbers and in words.

Particles are judged three times. How much of what a typical class would let expect of them, under their own CTF and
noise, does their class explain? An empty patch of ice or half a particle falls short; two groups, where there are two,
are told apart by a mixture of two normal distributions. And how much of what is explained is fine detail? A speck of
dirt may resemble a class well, or get a class of its own, but all of it is coarse. And how far from the centre of its
box does it lie? Picking centres particles to within a few pixels; what only fits far from there is noise that fits
anywhere, a particle cut by the box, or dirt beside the place that was picked. Classes are judged by their members, and
by the fine detail these share with them, which blurred classes and blobs lack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.classification.e_step import ring_power
from ralib.classification.state import State
from ralib.classification.validation import Stability
from ralib.classification.whitening import Field
from ralib.images.centering import centre_of_mass
from ralib.images.frc import masked_frc, resolution_frequency, ssnr
from ralib.images.masks import soft_mask
from ralib.types import ClassAverages, Poses

FINE_DETAIL = 3.5
"""Details across the particle from which on they count as fine: coarser ones a blob has too."""

SURELY_USUAL, CLEARLY_ODD, WORST = 3.0, 6.0, 10.0
"""Robust standard deviations by which a particle's share of fine detail is too small, or its place too far off: below
the first there is nothing odd, above the second surely. No score goes beyond the last."""

CAUSES = ("fit no class", "share no fine detail with it", "lie far from the centres of their boxes")
"""What is wrong with junk, in words: the three ways in which particles are judged."""

CENTRED = 0.05
"""Of the particle's radius: places that differ by less are one place, however narrowly a set was centred."""


@dataclass(frozen=True)
class Verdict:
    """Rows of run.json for the classes, arrays (n,) for the particles, and warnings."""

    classes: list[dict[str, Any]]
    particles: dict[str, np.ndarray]
    warnings: list[dict[str, str]]


def judge(
    field: Field,
    state: State,
    references: Tensor,
    averages: ClassAverages,
    poses: Poses,
    classes: list[dict[str, Any]],
    stability: Stability,
) -> Verdict:
    """Everything the output says about quality; `classes` are the rows to add to, `references` (k, r, m)."""
    detail = detail_ratio(field, state, references).cpu().numpy().astype(np.float64)
    explained = explained_ratio(field, state, references).cpu().numpy().astype(np.float64)
    index = poses.class_index.numpy()
    away = (stability.away_px / field.particle_radius_px).cpu().numpy().astype(np.float64)
    quality, junk, cause = particle_quality(explained, detail, away, index)
    agreement = stability.agreement.cpu().numpy()
    particles = {
        "posterior": state.posterior.cpu().numpy(),
        "fit": poses.score.numpy(),
        "scale": state.scale.cpu().numpy(),
        "explained": explained,
        "quality": quality,
        "detail": detail,
        "off_centre": away,
        "agreement": agreement,
        "junk": junk,
    }
    curve = masked_frc(averages, field.radius_px / field.scale)
    resolution = 1.0 / resolution_frequency(curve.clone()).clamp_min(1e-3)
    images = averages.images
    mask = soft_mask(images.shape[-1], field.radius_px / field.scale, 4.0, "cpu")
    off = torch.linalg.vector_norm(centre_of_mass(images, mask), dim=1)
    pixel = averages.pixel_size_A or math.nan
    rows = []
    for k, row in enumerate(classes):
        member = index == k
        known = bool(member.any())
        fine = curve[k][: field.grid.n_rings]
        rows.append(
            row
            | {
                "resolution_px": float(resolution[k]),
                "resolution_A": float(resolution[k]) * pixel,
                "ssnr_mean": float(ssnr(fine).mean()),
                "sharpness": float(np.mean(detail[member])) if known else 0.0,
                "off_centre_px": float(off[k]),
                "reproducibility": float(agreement[member].mean()) if known else 0.0,
                "posterior_mean": float(particles["posterior"][member].mean()) if known else 0.0,
                "junk": float(junk[member].mean()) if known else 1.0,
            }
        )
    for k, row in enumerate(rows):
        main_cause = int(np.bincount(cause[(index == k) & (junk > 0.5)], minlength=len(CAUSES)).argmax())
        row["score"], row["verdict"] = _verdict(row, rows, stability.believable, CAUSES[main_cause])
    return Verdict(rows, particles, _warnings(rows, junk, stability))


def explained_ratio(field: Field, state: State, references: Tensor) -> Tensor:
    """Square root of a particle's log-likelihood over that of a typical particle under its CTF, (n,): 1 is typical."""
    typical = _typical_power(state, references)
    expected = 0.5 * state.mean_scale**2 * (field.spectra.power[:, : len(typical)] @ typical)
    best = state.fit.gather(1, state.class_index[:, None])[:, 0]
    return torch.sqrt(best.clamp_min(0) / expected.clamp_min(1e-12))


def _typical_power(state: State, references: Tensor) -> Tensor:
    """Ring power (r,) of the classes, averaged over the particles."""
    share = state.members / state.members.sum().clamp_min(1)
    return share @ ring_power(references)


def detail_ratio(field: Field, state: State, references: Tensor) -> Tensor:
    """Fine detail a particle shares with its class over what a typical class would give it, (n,): 1 is typical."""
    grid, spectra = field.grid, field.spectra
    rings = references.shape[1]
    first = min(field.rings_for(FINE_DETAIL), rings - 1)
    expected = spectra.power[:, first:rings] @ _typical_power(state, references)[first:]
    m = torch.arange(references.shape[2], device=grid.device, dtype=torch.float32)
    shared = torch.empty_like(expected)
    for start in range(0, len(spectra), 512):
        cut = slice(start, start + 512)
        reference = references[state.class_index[cut]]
        reference = torch.where(state.mirror[cut][:, None, None], reference.conj(), reference)
        turn = torch.deg2rad(state.psi_deg[cut])[:, None] * m
        posed = grid.samples_of(reference * torch.polar(torch.ones_like(turn), turn)[:, None])
        moved = spectra.data[cut, :rings] * grid.phase(state.origin_xy_px[cut], rings)
        shared[cut] = (moved * posed.conj()).real.sum(2)[:, first:].sum(1)
    return shared / (expected * state.mean_scale).clamp_min(1e-12)


def particle_quality(
    explained: np.ndarray, detail: np.ndarray, away: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Quality (n,), the higher the better and about 0 for a typical particle; junk probability (n,); which of CAUSES.

    What is explained, how much of that is fine detail, and how far `away` from the centre of the box a particle lies
    (particle radii) count in their own robust standard deviations, and the worst decides. The last two count for less,
    since some views have little detail and some picks are poor. A single particle's are noisy, so half of each is its
    class's: junk of a kind shares a class. index (n,) is the class, -1 for images that are none: these are junk.
    """
    usable = index >= 0
    log = np.log(np.maximum(explained, 0.02))
    fine = detail / np.maximum(explained**2, 0.05)  # both over what is expected; the square is a share of likelihood
    low = _deviation(log, usable)
    coarse = _deviation(_half_of_class(fine, index), usable)
    far = _deviation(_half_of_class(away, index), usable, floor=CENTRED)
    judged = np.stack([low, 0.7 * coarse, -0.5 * far])
    quality = np.where(usable, np.clip(judged.min(0), -WORST, WORST), -WORST)
    junk = np.clip((np.maximum(-coarse, far) - SURELY_USUAL) / (CLEARLY_ODD - SURELY_USUAL), 0, 1)
    regular = usable & (junk < 0.5)  # dirt may lie far above all others, and would widen the upper group
    if regular.sum() > 1:
        junk[regular] = np.maximum(junk[regular], junk_probability(log[regular]))
    junk[~usable] = 1.0
    return quality, junk, judged.argmin(0)


def _half_of_class(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Mean (n,) of each particle's value and the median of its class."""
    known = [index == k for k in range(index.max() + 1)]
    median = np.array([np.median(values[member]) if member.any() else 0.0 for member in known])
    return 0.5 * (values + np.where(index >= 0, median[index], 0.0)) if known else values


def _deviation(values: np.ndarray, usable: np.ndarray, floor: float = 1e-12) -> np.ndarray:
    """(values - median) in standard deviations, told from the half of the data nearest to the median."""
    known = values[usable] if usable.any() else values
    middle = np.median(known)
    deviation: np.ndarray = (values - middle) / max(1.4826 * float(np.median(np.abs(known - middle))), floor)
    return deviation


def junk_probability(values: np.ndarray, *, iterations: int = 60) -> np.ndarray:
    """Probability (n,) that a particle belongs to the lower of two normal groups; 0 for all where there is one.

    values are logarithms of what is explained. Expectation maximisation from the lower and the upper part of the range.
    Two groups are only believed where they stand apart (Ashman's D above 2) with fewer particles between them than in
    either (else it is the tail of one group), and the lower is neither a few outliers nor two fifths of the data (then
    it is another species, not junk).
    """
    low, high = np.percentile(values, [5, 60])
    mean = np.array([min(low, high - 1.0), high])
    sd, share = np.full(2, max(values.std() / 2, 1e-6)), np.array([0.2, 0.8])
    for _ in range(iterations):
        log = np.log(share) - np.log(sd) - 0.5 * ((values[:, None] - mean) / sd) ** 2
        weight = np.exp(log - log.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        total = weight.sum(0) + 1e-9
        share = total / total.sum()
        mean = (weight * values[:, None]).sum(0) / total
        sd = np.sqrt((weight * (values[:, None] - mean) ** 2).sum(0) / total) + 1e-6
    apart = (mean[1] - mean[0]) * math.sqrt(2 / (sd**2).sum())
    between = np.linspace(mean[0], mean[1], 60)[:, None]
    density = (share / sd * np.exp(-0.5 * ((between - mean) / sd) ** 2)).sum(1)
    valley = density.min() < 0.9 * density[0]
    if apart < 2 or not valley or not 0.01 < share[0] < 0.4:
        return np.zeros(len(values))
    # A wide group must not claim what lies beyond the other one.
    return np.where(values < mean[0], 1.0, np.where(values > mean[1], 0.0, weight[:, 0]))


def _verdict(row: dict[str, Any], rows: list[dict[str, Any]], believable: bool, cause: str) -> tuple[float, str]:
    """A score between 0 and 1, and the sentence that says where it comes from."""
    sharp = max(r["sharpness"] for r in rows) or 1.0
    parts = (1 - row["junk"], min(1.0, row["reproducibility"] / 0.6), min(1.0, max(0.0, row["sharpness"] / sharp)))
    score = float(np.prod(parts) ** (1 / 3))
    if not believable:
        return 0.0, "unstable: particles kept out of the averages fit no better than pure noise"
    words = []
    if row["members"] == 0:
        return 0.0, "empty: its average is all zero"
    if not math.isfinite(score):
        return 0.0, "unusable: its figures are no numbers"
    if row["junk"] > 0.5:
        words.append(f"{100 * row['junk']:.0f}% of its members are probably junk: most {cause}")
    if row["reproducibility"] < 0.3:
        words.append(f"only {100 * row['reproducibility']:.0f}% return from the other half's averages: unstable")
    if row["sharpness"] < 0.5 * sharp:
        words.append("blurred next to the best class")
    if row["off_centre_px"] > 5:
        words.append(f"its mass lies {row['off_centre_px']:.0f} px off the centre")
    return score, "; ".join(words) or "good: detailed, reproducible, well centred"


def _warnings(rows: list[dict[str, Any]], junk: np.ndarray, stability: Stability) -> list[dict[str, str]]:
    warnings = []
    if not stability.believable:
        share = 100 * stability.summary["fit_better_than_noise"]
        warnings.append(
            {
                "what": "the data do not support these classes: a particle kept out of the averages fits them "
                f"better than an image of pure noise in {share:.0f}% of cases (noise itself: 50%)",
                "where": "classes",
                "do": "do not use them; check the picking, the contrast and the CTF, or ask for fewer classes",
            }
        )
    empty = sum(r["members"] == 0 for r in rows)
    if empty:
        warnings.append(
            {
                "what": f"{empty} classes are empty, their averages are all zero",
                "where": "classes",
                "do": "ask for fewer classes",
            }
        )
    bad = int((junk > 0.5).sum())
    if bad > 0.02 * len(junk):
        share = 100 * bad / len(junk)
        warnings.append(
            {
                "what": f"{bad} particles ({share:.0f}%) are probably junk: they fit no class, share no fine detail "
                "with it, or lie far from the centres of their boxes",
                "where": "particles",
                "do": "select the good classes in the report and classify them again with --from; particle_scores.txt "
                "has the junk score of each particle",
            }
        )
    return warnings
