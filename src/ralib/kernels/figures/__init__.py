"""Figures that an iteration is told by, dispatched to the form for the device of their arguments; see `reference`."""

from __future__ import annotations

from torch import Tensor

from ralib.kernels import implementation
from ralib.kernels.figures.reference import PoseFields, pixel_error, ring_sums

__all__ = ["PoseFields", "pixel_error", "pose_sums", "ring_correlation", "ring_sums"]


def pose_sums(
    now: PoseFields, before: PoseFields | None, counted: Tensor | None, radius_px: float, n_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the scores and what changed between two iterations; see `reference.pose_sums`."""
    form = implementation("figures", now[-1])
    sums: tuple[Tensor, Tensor, Tensor] = form.pose_sums(now, before, counted, radius_px, n_classes)
    return sums


def ring_correlation(spectra: Tensor, ring: Tensor, weight: Tensor) -> Tensor:
    """Correlate two sets of half transforms ring by ring; see `reference.ring_correlation`."""
    curve: Tensor = implementation("figures", spectra).ring_correlation(spectra, ring, weight)
    return curve
