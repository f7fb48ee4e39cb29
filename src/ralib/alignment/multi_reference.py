"""Multi-reference alignment: every particle against every reference, class averages as the next references.

Follows SPARX's `mref_ali2d` (method of Penczek, Radermacher and Frank 1992), with three changes: references of equal
norm, poses off the grid, and small classes are reseeded with a warning.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ralib.alignment.aligner import Aligner, starting_poses
from ralib.alignment.iteration import Alignment
from ralib.alignment.options import check_shifts
from ralib.alignment.references import given_references
from ralib.alignment.state import LoopState
from ralib.runtime.distributed import Ranks
from ralib.types import ParticleSet, Poses, RalibError, check_whole_number


class MultiReferenceAligner(Aligner):
    """Align particles to several references and average them class by class, iteratively.

    After `fit`, the attributes of `ralib.alignment.aligner.Aligner` are set.

    Parameters
    ----------
    references : int or array_like of shape (k, n, n)
        Initial references; or their number k, for averages of random particles.
    outer_radius, inner_radius : float or None
        Radii of the area compared, pixels; an outer radius of None is box // 2 - 2.
    shift_range_xy_px : tuple of float, default (3.0, 3.0)
        How far a particle may move from its last centre in one iteration along x and y, pixels. It is cut to
        max(1, box // 2 - 1 - outer_radius), so that the disc compared stays inside the box: to 1 px with an
        `outer_radius` of None, which leaves no more room. `warnings_` tells where this happened.
    shift_step_px : float, optional
        Step of the shift grid, pixels; by default as the templates need.
    iterations : int, default 10
        Number of iterations, at least 1.
    mirror : bool, default True
        Whether mirrored poses are searched.
    center : int, default 1
        SPARX's method to centre averages, -1 to 7; see `ralib.images.centering`.
    mask : ndarray or Tensor of shape (n, n), optional
        Mask of the averages; by default a soft disc.
    min_members : int, optional
        Smaller classes are reseeded with the worst-fitting members of the largest one. None is a twentieth of an equal
        share, at least 4; 0 reseeds none.
    equal_sizes : bool, default False
        Whether class sizes may differ by at most one.
    ctf : str, default 'off'
        CTF correction: 'off', 'wiener' or 'flip'.
    snr : float, optional
        Signal to noise ratio of one particle for the Wiener average; by default measured.
    user_function : Any, optional
        Function (average, mask, frc) -> reference or (reference, (dx, dy)), in place of low-pass, centring and mask.
    seed : int, default 1000
        Of the random start, 0 or more.
    strict : bool, default False
        Whether an unusable image raises an error.
    device : torch.device or str, default 'cpu'
        Where to compute.
    batch_size : int, optional
        Particles processed at a time.
    resident_bytes : int, optional
        Bytes of particles kept on the device between iterations; by default 0.45 of its free memory.
    ranks : Ranks, optional
        The processes of the run; by default only this one.

    References
    ----------
    Penczek, Radermacher and Frank 1992, "Three-dimensional reconstruction of single particles embedded in ice",
    Ultramicroscopy 40, 33-53.
    """

    _kind = "mref"

    def __init__(
        self,
        *,
        references: int | np.ndarray | Tensor,
        outer_radius: float | None = None,
        inner_radius: float = 1,
        shift_range_xy_px: tuple[float, float] = (3.0, 3.0),
        shift_step_px: float | None = None,
        iterations: int = 10,
        mirror: bool = True,
        center: int = 1,
        mask: np.ndarray | Tensor | None = None,
        min_members: int | None = None,
        equal_sizes: bool = False,
        ctf: str = "off",
        snr: float | None = None,
        user_function: Any = None,
        seed: int = 1000,
        strict: bool = False,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        resident_bytes: int | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        check_shifts(shift_range_xy_px, shift_step_px)
        check_whole_number("iterations", iterations, 1)
        check_whole_number("seed", seed, 0)
        self.references, self.iterations, self.seed, self.ranks = references, iterations, seed, ranks
        self.shift_range_xy_px, self.shift_step_px = shift_range_xy_px, shift_step_px
        self.outer_radius, self.inner_radius, self.mirror, self.center = outer_radius, inner_radius, mirror, center
        self.mask, self.min_members, self.equal_sizes = mask, min_members, equal_sizes
        self.ctf, self.snr, self.user_function, self.strict = ctf, snr, user_function, strict
        self.device, self.batch_size, self.resident_bytes = device, batch_size, resident_bytes

    def predict_poses(self, particles: ParticleSet | np.ndarray | Tensor) -> Poses:
        """Poses of new particles against the references that `fit` found, which stay as they are.

        Parameters
        ----------
        particles : ParticleSet or array (n, box, box)
            In the box of those that were fitted; searched around the poses they come with, as in `fit`.

        Returns
        -------
        Poses
            Of each particle onto its best reference; class -1 where the image cannot be used. No particle joins a class
            that `fit` left empty.
        """
        return self._posed(particles, [(self.shift_range_xy_px, self.shift_step_px)], self.iterations)

    def _start(self, run: Alignment) -> LoopState:
        poses = starting_poses(run.particles)
        if isinstance(self.references, int | np.integer):
            references = random_averages(run, poses, int(self.references), self.seed, max(self.shift_range_xy_px))
        else:
            references = given_references(self.references, run.box, run.device)
        return LoopState(0, references, poses.to(run.device))

    def _iterate(self, run: Alignment, state: LoopState) -> LoopState:
        stage = run.stage(self.shift_range_xy_px, self.shift_step_px)
        while state.iteration < self.iterations:
            state = run.iterate(stage, state, last=state.iteration + 1 == self.iterations)
        return state


def random_averages(run: Alignment, poses: Poses, n_classes: int, seed: int, shift_range_px: float) -> Tensor:
    """Average equal random parts of the particles as first references, as SPARX's `generate_random_averages`.

    Parameters
    ----------
    run : Alignment
        The particles.
    poses : Poses
        Their initial poses.
    n_classes : int
        Number of references k.
    seed : int
        Of the random partition.
    shift_range_px : float
        Shift range of the search, pixels.

    Returns
    -------
    Tensor of shape (k, n, n)
        References.
    """
    n = len(poses)
    if not 1 <= n_classes <= n:
        few = "1 particle: ask for 1" if n == 1 else f"{n} particles: ask for 1 to {n}"
        raise RalibError(f"{n_classes} references cannot be made from {few}")
    order = np.random.default_rng(seed).permutation(n)
    label = np.empty(n, dtype=np.int64)
    label[order] = np.arange(n) % n_classes
    poses = poses.replace(class_index=torch.from_numpy(label))
    averages = run.average(poses, n_classes)
    return run.references_from(averages, poses, shift_range_px)[0]
