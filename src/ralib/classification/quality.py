"""The verdict: quality of classes and particles, in numbers and in words.

The probability that a particle is junk comes from `junk_evidence`. The score of a class is the share of true particles
among its members, and above one half how well it shows them. A run whose particles fit no better than noise is not
believed (`validation`).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.classification.examination import Examination
from ralib.classification.exchange import counted
from ralib.classification.junk_evidence import class_causes
from ralib.classification.junk_model import Evidence
from ralib.classification.pose_support import PoseSupport
from ralib.classification.validation import Stability
from ralib.classification.whitening import WhitenedParticles
from ralib.images.centering import centre_of_outline
from ralib.images.frc import ssnr
from ralib.images.masks import centre_distance, soft_disc
from ralib.results.automatic_selection import automatic_selection
from ralib.types import ClassAverages, Notice

OFF_CENTRE = 0.25, 0.6
"""Particle radii by which an average may lie off the centre, and from which on the class shows nothing."""

OUTLINE = 1 / 9
"""Smoothing of the outline that is centred, particle radii."""

TOLD_APART = 3.5
"""Standard deviations of `pose_support` from which on the views of a class count as told apart. Noise has 3, because
class and place come from all rings. Below lie 66% of the classes whose members' views are as far apart as by chance,
90% where the molecule is compact, and 2% of those within 25 degrees: docs/howto/classify.md."""

ROUND = 2.5
"""Standard deviations of `round_support` from which on such a class shows a round particle, and no blob. None of 143
classes of blobs and other particles below TOLD_APART has more than 2.4."""

NOT_TOLD_APART = "its views were probably not told apart: it shows shape, no detail"
GOOD = "good: detailed, reproducible, well centred"
GOOD_BUT_ROUND = "good, but round: detailed, reproducible, well centred; its views and rotations are uncertain"

LITTLE_DETAIL = 0.5
"""Share of the median class's fine detail below which a class is said to have little. The best class is no measure: one
view along a long axis has four to ten times the detail of others that are as well told apart."""

DARK_SHARE = 0.9
"""Share of the members of dark classes from which on protein is told to be dark."""

FEW_MEMBERS = 10
"""Members below which a class is not told to be good: halves of a few particles agree on anything."""

BLURRED = 0.3
"""Factor on what a class of blurred views seems to show of its particles."""

CLASS_MEANS = "detail", "agreement", "posterior", "junk"
"""Figures of particles of which a class tells the mean over its members."""

MANY_BLURRED = 1 / 3
"""Share of such classes from which on the run says so."""


@dataclass(frozen=True)
class Verdict:
    """Quality of classes and particles.

    Attributes
    ----------
    classes : list of dict
        Rows of run.json for the classes.
    particles : dict of shape (n,)
        Figures of the particles by name.
    warnings : list of Notice
        What a user should know.
    """

    classes: list[dict[str, Any]]
    particles: dict[str, np.ndarray]
    warnings: list[Notice]


def judge(
    found: Examination,
    whitened: WhitenedParticles,
    averages: ClassAverages,
    classes: list[dict[str, Any]],
    class_index: np.ndarray,
    support: PoseSupport,
) -> Verdict:
    """Compute everything that the output says about quality.

    Parameters
    ----------
    found : Examination
        What was found out about the final state.
    whitened : WhitenedParticles
        The particles.
    averages : ClassAverages
        Class averages at full size with their FRC.
    classes : list of dict
        Rows of run.json to add to, one for each class.
    class_index : ndarray of shape (n,)
        Classes as they are written: those of the evidence, or one for junk.
    support : PoseSupport
        Result of `pose_support`; nothing is known of a class of junk beyond.

    Returns
    -------
    Verdict
        The verdict.
    """
    odds = found.odds.cpu().numpy()
    judged = found.figures | {"quality": -odds, "junk": 1 / (1 + np.exp(-odds))}
    rows = _rows(averages, whitened, judged, class_index, classes, support)
    verdict = _with_verdicts(found.evidence, judged, rows, class_index, found.stability)
    if not found.stability.believable:
        return verdict
    dark = _darker_than_background(averages, whitened.particle_radius_px / whitened.scale).tolist()
    return replace(verdict, warnings=[*verdict.warnings, *_dark_protein(rows, dark)])


def _with_verdicts(
    evidence: Evidence,
    particles: dict[str, np.ndarray],
    rows: list[dict[str, Any]],
    index: np.ndarray,
    stability: Stability,
) -> Verdict:
    """The verdict in words, and what the automatic selection makes of it."""
    junk = particles["junk"]
    causes = class_causes(evidence, junk, index, len(rows))
    usual = typical_detail(rows)
    for row, cause in zip(rows, causes, strict=True):
        row["score"], row["verdict"] = _verdict(row, usual, stability.believable, cause)
    automatic = automatic_selection(junk, index, rows, causes, believable=stability.believable)
    particles["selected"] = automatic.kept.astype(np.float64)
    for row, choice in zip(rows, automatic.classes, strict=True):
        row |= {"selected": choice.selected, "kept": choice.kept, "reason": choice.reason}
    return Verdict(rows, particles, _warnings(rows, junk, stability))


def _darker_than_background(averages: ClassAverages, radius_px: float) -> Tensor:
    """Which averages (k,) are darker within most of the particle's radius than beyond it."""
    distance = centre_distance(averages.images.shape[-1], averages.images.device)
    within, beyond = distance < 0.7 * radius_px, distance > 1.2 * radius_px
    return averages.images[:, within].mean(1) < averages.images[:, beyond if beyond.any() else ~within].mean(1)


def _dark_protein(rows: list[dict[str, Any]], dark: list[bool]) -> list[Notice]:
    """The notice that protein is dark in these images, by their classes of particles."""
    of_particles = [(row["members"], is_dark) for row, is_dark in zip(rows, dark, strict=True) if row["junk"] <= 0.5]
    members = sum(n for n, _ in of_particles)
    if members == 0 or sum(n for n, is_dark in of_particles if is_dark) < DARK_SHARE * members:
        return []
    what = "protein is dark in these images: nearly all class averages are darker than their background"
    remedy = "classes and poses hold; 'ralib prepare --invert' makes protein bright, as RELION and cryoSPARC have it"
    return [Notice(what=what, where="contrast", remedy=remedy)]


def _rows(
    averages: ClassAverages,
    whitened: WhitenedParticles,
    particles: dict[str, np.ndarray],
    index: np.ndarray,
    rows: list[dict[str, Any]],
    support: PoseSupport,
) -> list[dict[str, Any]]:
    """The classes' rows with what their averages and members add to them."""
    assert averages.frc is not None
    radius = whitened.radius_px / whitened.scale
    mask = soft_disc(averages.images.shape[-1], radius, 4.0)
    outline = centre_of_outline(averages.images, mask, whitened.particle_radius_px / whitened.scale * OUTLINE)
    off = torch.linalg.vector_norm(outline, dim=1)
    fine = averages.frc[:, 1 : round(whitened.grid.n_rings * whitened.grid.spacing * whitened.grid.box)]
    member, added = index >= 0, []
    count = np.bincount(index[member], minlength=len(rows))
    sums = {name: np.bincount(index[member], particles[name][member], len(rows)) for name in CLASS_MEANS}
    for k, row in enumerate(rows):
        mean = {name: float(sums[name][k] / max(count[k], 1)) for name in CLASS_MEANS}
        added.append(
            row
            | {
                "ssnr_mean": float(ssnr(fine[k]).mean()),
                "sharpness": mean["detail"],
                "off_centre_px": float(off[k]),
                "off_centre": float(off[k]) * whitened.scale / whitened.particle_radius_px,
                "reproducibility": mean["agreement"],
                "pose_support": float(support.turned[k]) if k < len(support.turned) else math.nan,
                "round_support": float(support.round[k]) if k < len(support.round) else math.nan,
                "posterior_mean": mean["posterior"],
                "junk": mean["junk"] if count[k] else 1.0,
            }
        )
    return added


def typical_detail(rows: list[dict[str, Any]]) -> float:
    """Return the detail of the median class, by their rows, of those that are not mostly junk."""
    return statistics.median([row["sharpness"] for row in rows if row["junk"] < 0.5] or [0.0]) or 1.0


def _verdict(row: dict[str, Any], usual_detail: float, believable: bool, cause: str) -> tuple[float, str]:
    """Return a score between 0 and 1, and the sentence that explains it; its detail is held against `typical_detail`.

    Up to one half the score is the share of true particles among the members; above, the excess over one half is
    weighted by how well the class shows them, by its weakest side: detail, members that return, place, number. So a
    class of mostly junk ranks below all classes of mostly true particles, and one with a fault below the good ones.
    """
    if not believable:
        return 0.0, "unstable, not believed: the particles fit no better than noise, or noise that a template picked"
    if row["members"] == 0:
        return 0.0, "empty: its average is all zero"
    true = 1 - row["junk"]
    centred = (OFF_CENTRE[1] - row["off_centre"]) / (OFF_CENTRE[1] - OFF_CENTRE[0])
    parts = [row["sharpness"] / usual_detail, row["reproducibility"] / 0.6, centred, row["members"] / FEW_MEMBERS]
    shown = float(np.clip(parts, 0, 1).min())
    if blurs_views(row):
        shown *= BLURRED
    score = true if true <= 0.5 else 0.5 + (true - 0.5) * shown
    if not np.isfinite(score):
        return 0.0, "unusable: its figures are no numbers"
    words = []
    if true <= 0.5:
        words.append(f"mostly junk: {100 * row['junk']:.0f}% of its members probably are; {cause}")
    elif row["junk"] > 0.2:
        words.append(f"{100 * row['junk']:.0f}% of its members are probably junk: {cause}" if cause else
                     f"{100 * row['junk']:.0f}% of its members are probably junk")  # fmt: skip
    if row["members"] < FEW_MEMBERS:
        words.append(f"only {row['members']} particles: too few to tell")
    if row["reproducibility"] < 0.3:
        words.append(f"only {100 * row['reproducibility']:.0f}% return from the other half's averages: unstable")
    if blurs_views(row) and true > 0.5:
        words.append(NOT_TOLD_APART)
    if row["sharpness"] < LITTLE_DETAIL * usual_detail:
        words.append("less detail than most classes")
    if row["off_centre"] > OFF_CENTRE[0]:
        words.append(f"it lies {row['off_centre_px']:.0f} px off the centre")
    return score, "; ".join(words) or (GOOD_BUT_ROUND if is_round(row) else GOOD)


def blurs_views(row: dict[str, Any]) -> bool:
    """Whether the views of a class, by its row, were probably not told apart: neither what turns nor a round part."""
    return bool(row["pose_support"] < TOLD_APART and not row["round_support"] >= ROUND)


def is_round(row: dict[str, Any]) -> bool:
    """Whether a class, by its row, shows a particle so round that nothing tells how it is turned."""
    return bool(row["pose_support"] < TOLD_APART and row["round_support"] >= ROUND)


def _warnings(rows: list[dict[str, Any]], junk: np.ndarray, stability: Stability) -> list[Notice]:
    warnings = []
    if not stability.believable:
        warnings.append(
            Notice(
                what="the data do not support these classes: their particles look like pure noise, or noise that a "
                f"template picked ({_why_noise(stability.summary)})",
                where="classes",
                remedy="do not use them; check the picking, the contrast and the CTF, or ask for fewer classes",
            )
        )
    if empty := sum(r["members"] == 0 for r in rows):
        warnings.append(
            Notice(
                what=f"{counted(empty)} without particles: an average of zeros",
                where="classes",
                remedy="ask for fewer classes",
            )
        )
    shown = [row for row in rows if row["junk"] <= 0.5 and math.isfinite(row["pose_support"])]
    blurred = [row for row in shown if blurs_views(row)]
    if stability.believable and len(blurred) > MANY_BLURRED * len(shown):
        warnings.append(_blurred_views(len(blurred), len(shown)))
    bad = int((junk > 0.5).sum())
    if stability.believable and bad > 0.02 * len(junk):
        warnings.append(
            Notice(
                what=f"{bad} particles ({100 * bad / len(junk):.0f}%) are probably junk",
                where="particles",
                remedy="'ralib select RUN --auto OUT' leaves them out and says why, class by class; "
                "particle_scores.txt has the junk probability of each particle",
            )
        )
    return warnings


def _blurred_views(blurred: int, of: int) -> Notice:
    """The notice that the views of many classes were not told apart."""
    return Notice(
        what=f"the views of {blurred} of the {of} classes of particles were not told apart: their averages show shape, "
        "no detail, though their halves agree",
        where="classes",
        remedy="the selection of particles still holds, but do not build on these averages: give more particles or ask "
        "for fewer classes, extract with smaller pixels or a larger box, check picking and defocus",
    )


def _why_noise(summary: dict[str, Any]) -> str:
    """The figures for which particles count as noise; small sets have none to keep out of the averages."""
    spread = f"the fits spread by {summary['fit_spread']:.2f} standard deviations, signal in noise by more than 1"
    if not math.isfinite(better := summary["fit_better_than_noise"]):
        return spread
    return (
        f"a particle kept out of the averages fits them better than an image of noise in {100 * better:.0f}% of cases, "
        f"noise itself in 50%; {spread}"
    )
