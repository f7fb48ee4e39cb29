"""What the verdict needs of a final state: how stable it is, what speaks for junk, and which particles surely are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ralib.classification.image_statistics import StatisticsTable
from ralib.classification.junk_evidence import PROBABLY, SURELY, junk_odds, measure, taken_for_junk
from ralib.classification.junk_model import Evidence
from ralib.classification.results import state_poses
from ralib.classification.schedule import ClassificationSchedule
from ralib.classification.state import State
from ralib.classification.validation import Stability, quick_estimate
from ralib.particles.batches import ParticleBatches


@dataclass(frozen=True)
class Examination:
    """What was found out about a final state.

    Attributes
    ----------
    state : State
        The state.
    stability : Stability
        How stable its classes are.
    evidence : Evidence
        What the junk model judges.
    figures : dict of ndarray of shape (n,)
        Figures of each particle, by name.
    odds : Tensor of shape (n,)
        Log-odds of each particle being junk.
    """

    state: State
    stability: Stability
    evidence: Evidence
    figures: dict[str, np.ndarray]
    odds: Tensor

    @property
    def probably_junk(self) -> Tensor:
        """Whether each particle (n,) is junk rather than not."""
        return taken_for_junk(self.evidence, self.stability, self.odds, PROBABLY)

    @property
    def surely_junk(self) -> Tensor:
        """Whether each particle (n,) is junk without doubt."""
        return taken_for_junk(self.evidence, self.stability, self.odds, SURELY)

    @classmethod
    def of(
        cls,
        batches: ParticleBatches,
        schedule: ClassificationSchedule,
        state: State,
        *,
        image: StatisticsTable | None,
        seed: int,
    ) -> Examination:
        """Examine the final state of a schedule.

        Parameters
        ----------
        batches : ParticleBatches
            Its particles.
        schedule : ClassificationSchedule
            The schedule at its end.
        state : State
            Its state.
        image : StatisticsTable or None
            Statistics of the images; without them they are computed.
        seed : int
            Of the noise that stability is tried with.

        Returns
        -------
        Examination
            What was found.
        """
        model = schedule.model
        if image is None:
            image = StatisticsTable(batches, model.particles.particle_radius_px / model.particles.scale)
            for batch in batches:
                image.add(batch)
        stability = quick_estimate(model, schedule, state, torch.Generator().manual_seed(seed))
        poses = state_poses(state, model.particles, model.shard)
        assert schedule.references is not None
        evidence, figures = measure(model, state, schedule.references, poses, stability, image.values)
        return cls(state, stability, evidence, figures, junk_odds(evidence, stability, model.shard))


class Examiner:
    """Examines final states, the same one only once.

    Parameters
    ----------
    seed : int
        Of the noise that stability is tried with.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._last: Examination | None = None

    def knows(self, state: State) -> bool:
        """Return whether `examined` was called with this state last."""
        return self._last is not None and self._last.state is state

    def examined(
        self,
        batches: ParticleBatches,
        schedule: ClassificationSchedule,
        state: State,
        image: StatisticsTable | None = None,
    ) -> Examination:
        """Return the examination of a final state; see `Examination.of`."""
        if self._last is None or self._last.state is not state:
            self._last = Examination.of(batches, schedule, state, image=image, seed=self.seed)
        return self._last
