"""Functions of the pose search, each dispatched to the form for the device of its arguments.

`reference` describes them; the names below run the Triton form on a GPU, and on a CPU what `cpu_numba` has compiled, or
the plain form. The alignment's whole search on a CPU is compiled (`cpu_samples`, `cpu_grid_numba`, `cpu_refine_numba`),
with functions of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ralib.kernels import implementation, in_gpu_form
from ralib.kernels.pose_search.fine_templates import (
    FINE_ROTATIONS,
    FineTemplates,
    PackedSamples,
    PackedTemplates,
    PolarSamples,
    fine_templates,
    packed_zeros,
    root_mean_square,
)
from ralib.kernels.pose_search.reference import angle_deg, angular_tables
from ralib.kernels.pose_search.reference_newton import NewtonRule

__all__ = [
    "FINE_ROTATIONS",
    "FineTemplates",
    "NewtonRule",
    "PackedSamples",
    "PackedTemplates",
    "PolarSamples",
    "angle_deg",
    "angular_tables",
    "gather_taps",
    "grid_candidates",
    "newton",
    "newton_templates",
    "packed_zeros",
    "polar_samples",
    "root_mean_square",
    "rotational_max",
    "shifted_parts",
    "shortlist",
]


def gather_taps(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Compute weighted sums of a few samples of a half transform; see `reference.gather_taps`."""
    out: Tensor = implementation("pose_search", values).gather_taps(values, index, weight)
    return out


def shifted_parts(
    samples: PolarSamples, shift_xy_px: Tensor | None, radius: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """Compute real and imaginary parts of shifted samples, of unit norm; see `reference.shifted_parts`."""
    out: Tensor = _form_for(samples).shifted_parts(samples, shift_xy_px, radius, n_radii, dtype)
    return out


def rotational_max(
    spectra: Tensor, cosine: Tensor, sine: Tensor, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the maximum over rotations of cross spectra; see `reference.rotational_max`."""
    form = implementation("pose_search", spectra)
    best: tuple[Tensor, Tensor] = form.rotational_max(spectra, cosine, sine, penalty)
    return best


def grid_candidates(
    value: Tensor, index: Tensor, pairings: Tensor, n: int, *, n_half: int, first: int, n_references: int
) -> tuple[Tensor, Tensor]:
    """Select the best grid poses of every particle; see `reference.grid_candidates`."""
    found: tuple[Tensor, Tensor] = implementation("pose_search", value).grid_candidates(
        value, index, pairings, n, n_half=n_half, first=first, n_references=n_references
    )
    return found


def shortlist(row: Tensor, pose: Tensor, n: int, same: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """Select the best few of every particle's candidate poses; see `reference.shortlist`."""
    kept: tuple[Tensor, Tensor] = implementation("pose_search", pose).shortlist(row, pose, n, same)
    return kept


def newton_templates(
    spectrum: Tensor, radius: Tensor, angle: Tensor, weight: Tensor, *, mirror: bool, unit: float
) -> FineTemplates | PackedTemplates:
    """Tabulate templates as `newton` reads them on their device; see `fine_templates.fine_templates`."""
    given = spectrum, radius, angle, weight
    if not in_gpu_form(spectrum):
        return fine_templates(*given, mirror=mirror, unit=unit, packed=False)
    packed: PackedTemplates = implementation("pose_search", spectrum).packed_templates(*given, mirror=mirror, unit=unit)
    return packed


def polar_samples(samples: Tensor) -> PolarSamples:
    """Return samples (b, K, H) in the form that is searched on their device: packed on a GPU."""
    if not in_gpu_form(samples):
        return samples
    packed: PackedSamples = implementation("pose_search", samples).packed_samples(samples)
    return packed


def newton(
    samples: PolarSamples,
    centre: Tensor,
    row: Tensor,
    pose: Tensor,
    templates: FineTemplates | PackedTemplates,
    rule: NewtonRule,
    particle: Tensor | None = None,
) -> Tensor:
    """Refine candidate poses by Newton steps; see `reference.newton`."""
    out: Tensor = _form_for(samples).newton(samples, centre, row, pose, templates, rule, particle)
    return out


def _form_for(samples: PolarSamples) -> Any:
    return implementation("pose_search", samples.words if isinstance(samples, PackedSamples) else samples)
