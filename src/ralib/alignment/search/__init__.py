"""The pose search: every particle against every reference over rotations, mirror and shifts, refined off the grid.

A reference, masked to the search's disc and scaled to unit norm, is the template T. The score of a pose is the inner
product of the particle with the posed template,

    S(psi, origin, mirror) = sum_p I(p) T(M(R(psi)(p + origin))),

band-limited to `max_frequency_per_px`. `PoseSearch` is the interface of both forms of the search, and makes the one for
the device: `batched` in large matrix products on a GPU, `per_core` in compiled loops on the cores of a CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ralib.alignment.search.polar_grid import PolarGrid
from ralib.images.masks import soft_disc
from ralib.kernels.pose_search import PolarSamples, polar_samples
from ralib.kernels.references import masked_unit_norm
from ralib.kernels.threads import on_cores, one_thread
from ralib.types import Poses

MASK_EDGE_PX = 3.0
"""The templates fall to zero over this width inside their outer radius."""

AT_ONCE = 64
"""Particles whose transforms a core works on at a time."""


class PoseSearch:
    """Find the best reference, rotation, mirror and shift of particles.

    Parameters
    ----------
    box : int
        Image size, pixels.
    outer_radius : float
        Radius of the templates' disc, pixels.
    inner_radius : float, default 1
        Radius of a hole in it, pixels; 1 or less means none.
    shift_range_xy_px : tuple of float, default (3.0, 3.0)
        How far a particle may move from its centre along x and y, pixels; 0 keeps it fixed.
    shift_step_px : float, optional
        Step of the shift grid, pixels, before shifts are refined; by default as the templates need.
    mirror : bool, default True
        Whether mirrored poses are searched.
    max_frequency_per_px : float, default 0.5
        Band limit of the score, cycles per pixel.
    candidates : tuple of int, optional
        Number of grid poses that take the first, second, ... Newton step; the last take as many steps as they need. By
        default from the number of references. Given on a CPU, it selects the form of the search for a GPU.
    grid_loss : float, default 0.0001
        Fraction of the templates' power that the grid search may leave out, in the form for a GPU.
    dtype : torch.dtype, optional
        Type of that grid search's products; by default half precision on a GPU, single on a CPU.
    device : torch.device or str, default 'cpu'
        Where particles and references are.
    """

    def __new__(
        cls, *, candidates: tuple[int, ...] | None = None, device: torch.device | str = "cpu", **_: object
    ) -> PoseSearch:
        """The form of the search for a device."""
        if cls is not PoseSearch:
            return super().__new__(cls)
        if torch.device(device).type == "cpu" and candidates is None:
            from ralib.alignment.search.per_core import PerCoreSearch  # Numba takes its time to load: only where needed

            return super().__new__(PerCoreSearch)
        from ralib.alignment.search.batched import BatchedSearch

        return super().__new__(BatchedSearch)

    def __init__(
        self,
        *,
        box: int,
        outer_radius: float,
        inner_radius: float = 1,
        shift_range_xy_px: tuple[float, float] = (3.0, 3.0),
        shift_step_px: float | None = None,
        mirror: bool = True,
        max_frequency_per_px: float = 0.5,
        candidates: tuple[int, ...] | None = None,
        grid_loss: float = 1e-4,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.shift_range_xy_px, self.shift_step_px, self.mirror = shift_range_xy_px, shift_step_px, mirror
        self.outer_radius = outer_radius
        reach = min(math.hypot(*shift_range_xy_px), max(0.0, box / 2 - outer_radius))
        self.grid = PolarGrid.create(
            box,
            support_radius_px=outer_radius + reach + 1,
            max_frequency_per_px=max_frequency_per_px,
            device=self.device,
        )
        hole_px = inner_radius if inner_radius > 1 else 0.0
        self.mask = soft_disc(
            box, outer_radius - MASK_EDGE_PX, MASK_EDGE_PX, hole_radius_px=hole_px, device=self.device
        )
        # A pose may leave the range by the half pixel that a whole-pixel grid would have rounded away.
        x, y = (span + 0.5 if span > 0 else 0.0 for span in shift_range_xy_px)
        self._limit_xy_px = (x, y)
        self._set_up(candidates, grid_loss, dtype)

    def prepare(self, images: Tensor) -> PolarSamples:
        """Compute the polar Fourier samples of particle images, once for many searches.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images.

        Returns
        -------
        PolarSamples of shape (b, K, H)
            Samples, complex64; packed in half precision on a GPU.
        """
        images = images.to(self.device, torch.float32)
        if self.device.type != "cpu":
            return polar_samples(self.grid.transform(images))
        samples = torch.empty(len(images), self.grid.n_radii, self.grid.n_angles // 2, dtype=torch.complex64)

        def one(chunk: tuple[Tensor, Tensor]) -> None:
            chunk[1].copy_(self.grid.transform(chunk[0]))

        # Few at a time, so that their padded transforms stay in a core's cache.
        on_cores(one, list(zip(images.split(AT_ONCE), samples.split(AT_ONCE), strict=True)))
        return samples

    def expect_references(self, references: Tensor) -> None:
        """Start to prepare references for `set_references` while earlier work continues.

        Does nothing on a CPU.
        """

    def set_references(self, references: Tensor) -> None:
        """Set the references (k, n, n): masked to the ring area, mean 0 and norm 1 there."""
        self.set_template_samples(self._templates(references))

    def search(self, samples: PolarSamples, centre_xy_px: Tensor | None = None) -> Poses:
        """Find the best class and pose of each particle.

        Parameters
        ----------
        samples : PolarSamples of shape (b, K, H)
            Polar samples; see `prepare`.
        centre_xy_px : Tensor of shape (b, 2), optional
            Origin around which shifts are searched, pixels; by default 0.

        Returns
        -------
        Poses
            The poses, with class and score.
        """
        return self._search(samples, centre_xy_px, None)

    def search_within(self, samples: PolarSamples, class_index: Tensor, centre_xy_px: Tensor | None = None) -> Poses:
        """Find the best pose of each particle in a given class.

        Parameters
        ----------
        samples : PolarSamples of shape (b, K, H)
            Polar samples; see `prepare`.
        class_index : Tensor of shape (b,)
            The class.
        centre_xy_px : Tensor of shape (b, 2), optional
            Origin around which shifts are searched, pixels; by default 0.

        Returns
        -------
        Poses
            The poses, with class and score.
        """
        return self._search(samples, centre_xy_px, class_index)

    def _templates(self, references: Tensor) -> Tensor:
        """Polar samples of references, masked and of unit norm."""
        with one_thread():
            return self.grid.transform(masked_unit_norm(references.to(self.device, torch.float32), self.mask))

    def scores(self, samples: PolarSamples, centre_xy_px: Tensor | None = None) -> Tensor:
        """Find the best score on the grid of each particle with each reference.

        Parameters
        ----------
        samples : PolarSamples of shape (b, K, H)
            Polar samples; see `prepare`.
        centre_xy_px : Tensor of shape (b, 2), optional
            Origin around which shifts are searched, pixels; by default 0.

        Returns
        -------
        Tensor of shape (b, k)
            Scores, up to one factor for all.
        """
        return self._scores(samples, centre_xy_px)

    # -- what a form of the search does --------------------------------------------------------------------------------

    def shrink(self) -> bool:
        """Plan for less memory from now on, and return whether that was possible."""
        raise NotImplementedError

    def set_template_samples(self, samples: Tensor) -> None:
        """Set templates by their polar Fourier samples (k, K, H), unchanged."""
        raise NotImplementedError

    def _set_up(self, candidates: tuple[int, ...] | None, grid_loss: float, dtype: torch.dtype | None) -> None:
        raise NotImplementedError

    def _scores(self, samples: PolarSamples, centre_xy_px: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _search(self, samples: PolarSamples, centre_xy_px: Tensor | None, class_index: Tensor | None) -> Poses:
        raise NotImplementedError
