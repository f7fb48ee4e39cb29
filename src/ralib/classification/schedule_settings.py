"""Lengths of the stages of a classification, and the progress of a schedule through them."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace

from ralib.classification.em import BEYOND

WORTH = 1.5
"""A sample is taken where there are this many times more particles."""

GROWTH = 2
"""Rings by which the resolution grows in an iteration of sharpening, at most."""

EXCHANGE_ITERATIONS = 3
"""Iterations of a round of exchange."""


def default_classes(n_particles: int) -> int:
    """Return the number of classes for so many particles: one for each 100 up to 50, then for each 400 up to 100."""
    return max(1, min(n_particles // 100, 50), min(n_particles // 400, 100))


@dataclass(frozen=True)
class ScheduleSettings:
    """Settings of a schedule; resolutions are numbers of details (full periods) across a particle.

    Attributes
    ----------
    start_details, exchange_details : float
        Resolution of the first stages: at 6 a particle has its shape but no detail that a single noisy particle could
        not show; at 10 views a few degrees from a mirror image of each other are distinguished.
    surplus : float, default 2.5
        Initial particles for every class wanted: each class needs one of its members among them.
    thinning : float, default 0.75
        Share of the classes that each step of thinning keeps, down to the number wanted.
    temperatures : tuple[float, float], default (4.0, 1.0)
        Temperature of the responsibilities at the start, and afterwards (annealing).
    exchanges : int, default 3
        Number of rounds of exchange.
    split_share : float, default 0.3
        Times K: classes split in each round, the largest ones.
    outlying_share : float, default 0.4
        Times K: candidate classes formed by the worst explained particles among themselves; they compete too, so that a
        rare view or species can get a class that no initial particle gave it.
    wide : int, default 1
        Rounds of exchange that begin with a search over all shifts; with 0 sharpening does not either.
    agreement : float, default 0.2
        Rings are added while the mean FRC of the halves exceeds this.
    final : int, default 6
        Iterations of the last stage, and one more.
    cleaned_exchanges : int, default 2
        Rounds of exchange without the junk, before the last stage is run again; with 0 junk stays.
    start_sample : int, default 150
        Particles a class of which classes are initialised and exchanged where there are many more. Noisy particles need
        more, see `ClassificationSchedule.sample_size`.
    sample : int, default 300
        Particles a class of which classes are sharpened, and cleaned of junk, before all others join them.
    least_sample : int, default 10000
        Particles of a sample, at least.
    joint : int, default 3
        Iterations of the last stage that are for all particles. With 0 they join in a single one after all stages.
    sample_nats : float, default 3600
        Log-likelihood beyond what noise reaches, of all members of a class together: what a sample is to have.
    measured : int, default 1000
        Particles on which the diameter is measured before.
    substituted : int, default 100
        Particles a class whose detail is replaced by noise, for what alignment makes of that.
    """

    start_details: float = 6.6
    exchange_details: float = 10.5
    surplus: float = 2.5
    thinning: float = 0.75
    temperatures: tuple[float, float] = (4.0, 1.0)
    exchanges: int = 3
    split_share: float = 0.3
    outlying_share: float = 0.4
    wide: int = 1
    agreement: float = 0.2
    final: int = 6
    cleaned_exchanges: int = 2
    start_sample: int = 150
    sample: int = 300
    least_sample: int = 10_000
    joint: int = 3
    sample_nats: float = 3600.0
    measured: int = 1000
    substituted: int = 100

    @classmethod
    def quick(cls) -> ScheduleSettings:
        """Return the numbers of a first look: few particles, less detail, one exchange."""
        return cls(
            exchange_details=8.5,
            surplus=1.5,
            thinning=0.5,
            exchanges=1,
            outlying_share=0.0,
            final=1,
            cleaned_exchanges=0,
            sample=20,
            least_sample=400,
            joint=0,
            sample_nats=0.0,
            measured=500,
            substituted=30,
        )

    @classmethod
    def thorough(cls) -> ScheduleSettings:
        """Return the numbers of a longer search: more seeds, thinned more slowly, more exchanges, a larger sample."""
        return cls(surplus=4.0, thinning=0.85, exchanges=6, wide=2, final=8, start_sample=300)

    def takes_sample(self, n: int, n_classes: int) -> bool:
        """Return whether classes are made of a sample.

        Parameters
        ----------
        n : int
            Number of particles.
        n_classes : int
            Number of classes.

        Returns
        -------
        bool
            Whether there are so many more particles than a sample needs.
        """
        return n > WORTH * self.first_sample(n_classes)

    def first_sample(self, n_classes: int) -> int:
        """Return the number of particles of the first sample, of which classes are initialised and exchanged."""
        return max(self.least_sample, min(self.start_sample, self.sample) * n_classes)

    def least_of_sample(self, n_classes: int) -> int:
        """Return the number of particles of which classes are sharpened, at least."""
        return max(self.least_sample, self.sample * n_classes)

    @property
    def most_detail(self) -> tuple[float, int]:
        """Details across the particle, and rings beyond, that the stages compare at most."""
        return self.exchange_details, GROWTH * self.final + BEYOND

    def joining(self) -> ScheduleSettings:
        """Return the numbers by which particles join classes that there are: no exchange, a few iterations."""
        return replace(self, exchanges=0, wide=0, final=2, least_sample=sys.maxsize, joint=1)

    def planned_iterations(self, n_classes: int, *, given: bool = False) -> int:
        """Return the usual number of iterations: of the start, of each exchange, and of sharpening.

        Parameters
        ----------
        n_classes : int
            Number of classes.
        given : bool, default False
            Whether there are classes to begin with.

        Returns
        -------
        int
            Number of iterations.
        """
        rest = self.remaining_iterations(ScheduleProgress(), n_classes)
        if given:
            return 1 + rest
        seeds, thinning = max(n_classes + 1, round(self.surplus * n_classes)), 0
        while seeds > n_classes:
            seeds, thinning = max(n_classes, int(self.thinning * seeds)), thinning + 1
        return 3 + thinning + 2 + rest

    def remaining_iterations(self, at: ScheduleProgress, n_classes: int) -> int:
        """Return the usual number of iterations that follow the first stage.

        Parameters
        ----------
        at : ScheduleProgress
            Progress, at the end of a step.
        n_classes : int
            Number of classes.

        Returns
        -------
        int
            Number of iterations.
        """
        rounds = self.exchanges - at.exchanged if n_classes > 1 else 0
        return EXCHANGE_ITERATIONS * rounds + self.final + 1 - at.sharpened + (self.joint == 0)


@dataclass
class ScheduleProgress:
    """Progress of a schedule; with the state, all that is needed to continue.

    Attributes
    ----------
    begun : bool, default False
        Whether the initialisation is done.
    exchanged : int, default 0
        Rounds of exchange done.
    sharpened : int, default 0
        Iterations of the last stage done.
    rings : int, default 0
        Number of rings reached.
    cleaned : bool, default False
        Whether junk was looked for.
    steps : int, default 0
        Number of steps done, after each of which a run can be continued.
    """

    begun: bool = False
    exchanged: int = 0
    sharpened: int = 0
    rings: int = 0
    cleaned: bool = False
    steps: int = 0


def members_wanted(fit: float, n_poses: int, nats: float) -> int:
    """Return how many members a class needs so that its average is much better than one of its particles.

    The SSNR of an average is the sum of its members'. A particle's is measured by its log-likelihood, less what noise
    reaches by chance: the best of N poses, the logarithm of N.

    Parameters
    ----------
    fit : float
        Log-likelihood of the usual particle in its class.
    n_poses : int
        Number of poses compared, in all classes.
    nats : float
        What the members are to have together.

    Returns
    -------
    int
        Number of members.
    """
    return math.ceil(nats / max(fit - math.log(n_poses), 1.0))
