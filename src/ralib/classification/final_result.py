"""The outcome of a classification: the final classes are averaged, examined and judged, and become a result."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ralib.classes.iteration_figures import class_figures
from ralib.classification.earlier_classes import EarlierClasses
from ralib.classification.examination import Examination, Examiner
from ralib.classification.final_classes import (
    equalised,
    fewer_classes,
    final_averages,
    unusable_images,
    with_class_of_junk,
)
from ralib.classification.image_statistics import StatisticsTable
from ralib.classification.junk_model import Evidence
from ralib.classification.options import ClassificationOptions
from ralib.classification.particle_extent import ParticleExtent
from ralib.classification.pose_support import pose_support
from ralib.classification.prediction import FittedClasses
from ralib.classification.quality import judge
from ralib.classification.results import filtered, state_poses
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.state import State
from ralib.particles.batches import ParticleBatches
from ralib.types import ClassificationResult, ParticleSet, Poses


@dataclass(frozen=True)
class FinalResult:
    """A classification's result, and what later fits and predictions begin with.

    Attributes
    ----------
    result : ClassificationResult
        The result.
    evidence : Evidence
        What the junk model judged.
    fitted : FittedClasses
        The classes, for particles that are assigned to them later.
    earlier : EarlierClasses
        The classes, for a fit of a larger set.
    """

    result: ClassificationResult
    evidence: Evidence
    fitted: FittedClasses
    earlier: EarlierClasses


def final_result(
    particles: ParticleSet,
    batches: ParticleBatches,
    schedule: ClassificationSchedule,
    state: State,
    figures: list[dict[str, Any]],
    *,
    options: ClassificationOptions,
    n_classes: int,
    extent: ParticleExtent,
    most_detail: tuple[float, int] | None,
    examiner: Examiner,
    timings: dict[str, float],
) -> FinalResult:
    """Make the result of a schedule that has run.

    Parameters
    ----------
    particles : ParticleSet
        All particles.
    batches : ParticleBatches
        This rank's particles.
    schedule : ClassificationSchedule
        The schedule at its end.
    state : State
        Its last state.
    figures : list of dict
        Figures of its iterations.
    options : ClassificationOptions
        Options of the classification.
    n_classes : int
        Number of classes asked for.
    extent : ParticleExtent
        Extent of the particle, pixels.
    most_detail : tuple of float and int, or None
        Details across the particle, and rings beyond, to which the grid was limited.
    examiner : Examiner
        Examines final states.
    timings : dict
        Seconds by step; the result refers to it.

    Returns
    -------
    FinalResult
        The result.
    """
    model, whitened, shard = schedule.model, schedule.model.particles, schedule.model.shard
    state = _final_state(schedule, state, equal_sizes=options.equal_sizes)
    poses = state_poses(state, whitened, shard).to("cpu")
    image = StatisticsTable(batches, whitened.particle_radius_px / whitened.scale)
    shown, left_out = poses, shard.gather(whitened.outliers.found).cpu()
    n_shown = len(state.members)
    if schedule.k < n_classes:  # one is left to junk
        found = examiner.examined(batches, schedule, state)
        shown, n_shown, junk = _junk_in_its_class(poses, found, n_shown)
        left_out |= junk
    averages = final_averages(
        particles, batches, schedule, state, shown, left_out,
        ctf=options.ctf_mode(particles), n_classes=n_shown, seed=options.seed, recorded_per_px=extent.recorded_per_px,
        look=(lambda _: None) if examiner.knows(state) else image.add,
    )  # fmt: skip
    classes = class_figures(averages, shown, None)
    found = examiner.examined(batches, schedule, state, image)
    assert schedule.references is not None
    rings = schedule.references.shape[1]
    support = pose_support(model, state, rings, found.odds < 0, torch.Generator().manual_seed(options.seed))
    verdict = judge(found, whitened, averages, classes, shown.class_index.numpy(), support)
    bad = torch.nonzero(~shard.gather(whitened.usable))[:, 0].tolist()
    result = ClassificationResult(
        "classify",
        shown,
        averages,
        figures,
        asdict(options),
        [*particles.warnings, *fewer_classes(n_classes, n_shown), *unusable_images(particles, bad), *verdict.warnings],
        classes=verdict.classes,
        references=filtered(averages),
        bad_particles=bad,
        timings=timings,
        particle_scores=verdict.particles,
        log=schedule.log,
        stability=found.stability.summary,
        diameter_A=2 * whitened.radius_px / whitened.scale * (particles.pixel_size_A or 1.0),
    )
    finest = float(rings * whitened.grid.spacing * whitened.scale)
    earlier = EarlierClasses(poses, len(state.members), extent, finest, most_detail, figures)
    fitted = FittedClasses.of(schedule, state, particles, options.ctf_mode(particles))
    return FinalResult(result, found.evidence, fitted, earlier)


def _final_state(schedule: ClassificationSchedule, state: State, *, equal_sizes: bool) -> State:
    """The state with classes of equal size if asked for, else without empty ones."""
    state = equalised(schedule.model, schedule, state) if equal_sizes else schedule.filled(state)
    return schedule.without_empty(state) if (state.members < 1).any() else state


def _junk_in_its_class(poses: Poses, found: Examination, n_classes: int) -> tuple[Poses, int, Tensor]:
    """Poses with junk in a class of its own; the number of classes; the junk of other classes (n,), in no average."""
    shown, of_junk = with_class_of_junk(poses, found.surely_junk.cpu(), n_classes)
    return shown, len(of_junk), found.probably_junk.cpu() & ~of_junk[shown.class_index]
