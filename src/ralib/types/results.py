"""What a run yields: class averages, and the result of alignment or classification."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from ralib.types.notices import Notice
from ralib.types.poses import Poses

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class ClassAverages:
    """Averages of k classes.

    Attributes
    ----------
    images : Tensor of shape (k, n, n)
        The averages.
    members : Tensor of shape (k,)
        Number of particles in each class.
    half_images : Tensor | None of shape (2, k, n, n), optional
        Averages of the even and the odd members.
    frc : Tensor | None of shape (k, n // 2 + 1), optional
        Fourier ring correlation of the half averages.
    pixel_size_A : float | None, optional
        Pixel size, Angstrom.
    """

    images: Tensor
    members: Tensor
    half_images: Tensor | None = None
    frc: Tensor | None = None
    pixel_size_A: float | None = None

    def to_xarray(self) -> xarray.Dataset:
        """The averages with named axes, as an xarray Dataset (`pip install 'cryo-ralib[xarray]'`).

        Returns
        -------
        Dataset
            `average` (class, y, x), `members` (class), and where they are known `half_average` (half, class, y, x) and
            `frc` (class, frequency). Classes count from 1; y and x are Angstrom from the centre pixel, pixels without
            a pixel size; frequency is in 1/Angstrom.
        """
        from ralib.interop.arrays import dataset_of

        return dataset_of(self)

    def to_napari(self, viewer: Any = None, name: str = "class averages") -> Any:
        """The averages as an image layer in napari (`pip install 'cryo-ralib[napari]'`), one class a slider step.

        Parameters
        ----------
        viewer : napari.Viewer or None
            Where to; None opens a new one.
        name : str
            Of the layer.

        Returns
        -------
        napari.Viewer
            With the layer, scaled in Angstrom.
        """
        from ralib.interop.arrays import layer_of

        return layer_of(self, viewer, name)

    def _repr_html_(self) -> str:
        """The gallery a notebook shows."""
        from ralib.report.jupyter import class_averages_html

        return class_averages_html(self)

    def to(self, device: torch.device | str) -> ClassAverages:
        """Return the averages on a device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **cast("dict[str, Any]", tensors))


@dataclass(frozen=True)
class RunResult:
    """Result of an alignment or classification.

    Attributes
    ----------
    kind : str
        Name of the command.
    poses : Poses
        Pose of each particle.
    averages : ClassAverages
        Class averages.
    iterations : list of dict
        Figures of each iteration.
    options : dict
        Options of the run.
    warnings : list of Notice
        What a user should know.
    classes : list of dict
        Figures of each class (`classes.iteration_figures.class_figures`), and the verdict where one is given.
    references : Tensor of shape (k, n, n), optional
        The averages filtered to their resolution: what a next iteration would search.
    bad_particles : list of int
        Particles, from 0, whose images could not be used.
    timings : dict of float
        Where the time went, seconds by part.
    particle_scores : dict of ndarray of shape (n,)
        What the method judges of each particle, by name (`results.particle_scores`); empty where it judges none.
    log : list of str
        What was found out on the way, in words.
    """

    kind: str
    poses: Poses
    averages: ClassAverages
    iterations: list[dict[str, Any]]
    options: dict[str, Any]
    warnings: list[Notice] = field(default_factory=list)
    classes: list[dict[str, Any]] = field(default_factory=list)
    references: Tensor | None = None
    bad_particles: list[int] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    particle_scores: dict[str, np.ndarray] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The result as run.json holds it, but for the timings; particles are counted from 1 there."""
        return {
            "iterations": self.iterations,
            "classes": self.classes,
            "warnings": [notice.record() for notice in self.warnings],
            "bad_particles": [i + 1 for i in self.bad_particles],
        }

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures and the class averages."""
        from ralib.report.jupyter import run_result_html

        return run_result_html(self)


@dataclass(frozen=True)
class ClassificationResult(RunResult):
    """Result of a classification from scratch.

    Attributes
    ----------
    stability : dict
        Whether the data support the classes: figures of averages without the particle, `believable` among them.
    diameter_A : float
        Diameter of the mask, Angstrom; pixels where the pixel size is not known.
    """

    stability: dict[str, Any] = field(default_factory=dict)
    diameter_A: float = float("nan")

    def record(self) -> dict[str, Any]:
        """The result as run.json holds it, but for the timings."""
        return super().record() | {"stability": self.stability, "log": self.log, "diameter_A": self.diameter_A}
