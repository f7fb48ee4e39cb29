"""Classification of particles that are still arriving; after each arrival there are classes of all particles so far.

The first particles are searched for classes as by `Classifier.fit`. Those that arrive later join: each is placed by a
search over all shifts, and a few iterations of all particles follow, so that classes, posteriors and verdicts are those
of the whole set. When the set has grown by half since the last search, it is searched anew: with as many classes as it
is enough for by then, from the present classes, whose exchange with split and outlying ones can leave a poorer local
optimum; or from single particles, where the present classes are fewer than half of those wanted. As the searches'
sizes form a geometric series, all together take three times as long as the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch

from ralib.classification.classifier import Classifier
from ralib.classification.earlier_classes import EarlierClasses
from ralib.classification.particle_extent import ParticleExtent
from ralib.classification.schedule_settings import ScheduleSettings
from ralib.results.checkpoint import Checkpoint, check_arrays, unpacking
from ralib.results.observer import Observer
from ralib.types import ClassificationResult, ParticleSet, Poses, RalibError

GROWTH = 1.5
"""Particles of the next search over those of the last."""

LAST_GROWTH = 1.1
"""The same for the final search, when no more particles are expected."""

FEWEST = 50
"""Particles of the first search, at least: diameter and noise cannot be measured on fewer."""


@dataclass(frozen=True)
class Grown:
    """Result of a classification of arriving particles so far, from which it is continued.

    Attributes
    ----------
    earlier : EarlierClasses
        Poses and classes of the particles so far.
    searched : int
        How many of them the last search had.
    arrivals : int
        Number of times that particles have been taken in.
    """

    earlier: EarlierClasses
    searched: int
    arrivals: int

    def begins(self, *, search: bool) -> tuple[int, int]:
        """Return the number of iterations that the next ones are counted after, and of the particles so far."""
        return 0 if search else len(self.earlier.figures), len(self.earlier.poses)

    def checkpoint(self) -> Checkpoint:
        """Return a checkpoint, from which `from_checkpoint` restores it."""
        earlier = self.earlier
        arrays = {f"poses.{f.name}": getattr(earlier.poses, f.name).cpu().numpy() for f in fields(Poses)}
        size = earlier.size
        meta = {
            "n_classes": earlier.n_classes,
            "size": [size.radius_px, size.rim_px, size.crowded, size.recorded_per_px],
            "finest_per_px": earlier.finest_per_px,
            "most_detail": earlier.most_detail,
            "searched": self.searched,
            "figures": earlier.figures,
        }
        return Checkpoint(self.arrivals, arrays, meta)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Grown:
        """Restore what a checkpoint was made of.

        Parameters
        ----------
        checkpoint : Checkpoint
            Result of `checkpoint`.

        Returns
        -------
        Grown
            The same.

        Raises
        ------
        RalibError
            If the checkpoint holds something else.
        """
        arrays, meta = checkpoint.arrays, checkpoint.meta
        layout = {"psi_deg": "float32 n", "origin_xy_px": "float32 n 2", "mirror": "bool n"}
        layout |= {"class_index": "int64 n", "score": "float32? n"}
        check_arrays(arrays, {f"poses.{name}": kind for name, kind in layout.items()})
        with unpacking():
            poses = Poses(**{name: torch.from_numpy(arrays[f"poses.{name}"].copy()) for name in layout})
            radius_px, rim_px, crowded, *recorded = meta["size"]
            size = ParticleExtent(float(radius_px), float(rim_px), bool(crowded), *map(float, recorded))
            finest, figures = float(meta["finest_per_px"]), list(meta["figures"])
            detail = None if (most := meta["most_detail"]) is None else (float(most[0]), int(most[1]))
            earlier = EarlierClasses(poses, int(meta["n_classes"]), size, finest, detail, figures)
            if not 0 <= int(poses.class_index.max()) < earlier.n_classes:
                raise ValueError(f"{earlier.n_classes} classes")
            return cls(earlier, int(meta["searched"]), checkpoint.number)


class GrowingClassification:
    """A classification that goes on whenever more particles are given to `take`.

    Parameters
    ----------
    classifier : Classifier
        Options of the classification; its number of classes is set here, and its `references` begin the first search.
    classes_for : Callable[[int], int]
        Number of classes for a number of particles.
    observer : Observer, optional
        Is called after every iteration.
    grown : Grown, optional
        What to go on from.

    Attributes
    ----------
    grown : Grown or None
        What was found so far, None before the first particles.
    """

    def __init__(
        self,
        classifier: Classifier,
        classes_for: Callable[[int], int],
        *,
        observer: Observer | None = None,
        grown: Grown | None = None,
    ) -> None:
        self.classifier, self.observer, self.grown = classifier, observer, grown
        self._wanted, self._references = classes_for, classifier.references
        # Junk is not set aside: it would be recognised at one arrival and not at the next, and classes change with it.
        self._plan = replace(classifier.plan or ScheduleSettings(), cleaned_exchanges=0)

    def fewest(self, n_particles: int) -> int:
        """Return how many particles the first search needs, where there are so many."""
        return max(FEWEST, 2 * self._wanted(n_particles))

    def searches(self, n_particles: int, *, last: bool = False) -> bool:
        """Return whether classes are searched anew, rather than joined.

        Parameters
        ----------
        n_particles : int
            Number of particles.
        last : bool, default False
            Whether no more are expected.

        Returns
        -------
        bool
            Whether they are.
        """
        return self.grown is None or n_particles >= (LAST_GROWTH if last else GROWTH) * self.grown.searched

    def classes_for(self, n_particles: int, *, search: bool) -> int:
        """Return the number of classes that particles will be in.

        Parameters
        ----------
        n_particles : int
            Number of particles.
        search : bool
            Whether classes are searched anew.

        Returns
        -------
        int
            Number of classes.
        """
        return self._wanted(n_particles) if search or self.grown is None else self.grown.earlier.n_classes

    def planned_iterations(self, n_particles: int, *, search: bool) -> int:
        """Return the usual number of iterations.

        Parameters
        ----------
        n_particles : int
            Number of particles.
        search : bool
            Whether classes are searched anew.

        Returns
        -------
        int
            Number of iterations.
        """
        k, plan = self.classes_for(n_particles, search=search), self._plan
        earlier = self._begins_with(k, search=search)
        return (plan if search else plan.joining()).planned_iterations(k, given=earlier is not None)

    def take(self, particles: ParticleSet, *, search: bool | None = None) -> ClassificationResult:
        """Classify all particles, of which those taken before come first, in the same order.

        Parameters
        ----------
        particles : ParticleSet
            The particles.
        search : bool, optional
            Whether classes are searched, or the particles join those there are; by default as `searches` has it.

        Returns
        -------
        ClassificationResult
            The result, as if the run ended here.

        Raises
        ------
        RalibError
            If particles are missing that were there before.
        """
        n, before = len(particles), self.grown
        if before is not None and n < len(before.earlier.poses):
            raise RalibError(
                f"{len(before.earlier.poses)} particles were there, {n} are left: what is watched may only grow"
            )
        search = before is None or (self.searches(n) if search is None else search)
        k, plan = self.classes_for(n, search=search), self._plan
        earlier = self._begins_with(k, search=search)
        self.classifier.set_params(
            n_classes=k,
            plan=plan if search else plan.joining(),
            references=self._references if earlier is None else None,
        )
        self.classifier.fit(particles, observer=self.observer, earlier=earlier)
        searched = n if before is None or search else before.searched
        arrivals = 1 if before is None else before.arrivals + 1
        self.grown = Grown(self.classifier.earlier_, searched, arrivals)
        return self.classifier.result_

    def _begins_with(self, n_classes: int, *, search: bool) -> EarlierClasses | None:
        """The present classes, unless a search is for more than twice as many."""
        if self.grown is None or (search and n_classes > 2 * self.grown.earlier.n_classes):
            return None
        return replace(self.grown.earlier, figures=[]) if search else self.grown.earlier
