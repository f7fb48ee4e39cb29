"""Triton forms of the functions of `reference`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# Triton compiles the kernels from their source: annotations would be types of its own language, not Python's.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ralib.kernels.blocks import ceil_div
from ralib.kernels.figures.reference import PoseFields

__all__ = ["pose_sums", "ring_correlation"]

PARTICLES = 512
"""Particles of a program of `pose_sums`."""

RINGS, SAMPLES = 4, 512
"""Rings of a program of `ring_correlation`, and samples that it looks at at a time."""

FIGURES = 8
"""Four sums, and of how many particles each is."""


@triton.jit(
    do_not_specialize=["n", "n_classes", "radius", "has_before", "has_counted"],
    do_not_specialize_on_alignment=[
        "psi", "origin", "mirror", "index", "score", "old_psi", "old_origin", "old_mirror", "old_index", "counted",
    ],
)  # fmt: skip
def _pose_sums(
    psi, origin, mirror, index, score, old_psi, old_origin, old_mirror, old_index, counted, sums, members,
    n, n_classes, radius, has_before, has_counted,
    FIGURES: tl.constexpr, PARTICLES: tl.constexpr,
):  # fmt: skip
    """The figures of some particles, a row of `sums`."""
    i = tl.program_id(0) * PARTICLES + tl.arange(0, PARTICLES)
    here = i < n
    k = tl.load(index + i, mask=here, other=-1)
    k0 = tl.load(old_index + i, mask=here, other=-1)
    assigned = k >= 0
    scored = assigned
    if has_counted != 0:
        scored = scored & (tl.load(counted + i, mask=here, other=0) != 0)
    both = assigned & (k0 >= 0) & (has_before != 0)
    kept = both & (k == k0)
    turned = tl.load(mirror + i, mask=here, other=0) != tl.load(old_mirror + i, mask=here, other=0)
    angle = tl.load(psi + i, mask=here, other=0.0) - tl.load(old_psi + i, mask=here, other=0.0)
    x = tl.load(origin + 2 * i, mask=here, other=0.0) - tl.load(old_origin + 2 * i, mask=here, other=0.0)
    y = tl.load(origin + 2 * i + 1, mask=here, other=0.0) - tl.load(old_origin + 2 * i + 1, mask=here, other=0.0)
    error = tl.sqrt(x * x + y * y + radius * radius * (1.0 - tl.cos(angle * 0.017453292519943295)))
    row = sums + tl.program_id(0) * FIGURES
    value = tl.load(score + i, mask=here, other=0.0).to(tl.float64)
    tl.store(row, tl.sum(tl.where(scored, value, 0.0), axis=0))
    still = kept & (turned == 0)
    tl.store(row + 1, tl.sum(tl.where(still, error.to(tl.float64), 0.0), axis=0))
    tl.store(row + 2, tl.sum((both & (k != k0)).to(tl.float64), axis=0))
    tl.store(row + 3, tl.sum((kept & turned).to(tl.float64), axis=0))
    tl.store(row + 4, tl.sum(scored.to(tl.float64), axis=0))
    tl.store(row + 5, tl.sum(still.to(tl.float64), axis=0))
    tl.store(row + 6, tl.sum(both.to(tl.float64), axis=0))
    tl.store(row + 7, tl.sum(kept.to(tl.float64), axis=0))
    if n_classes == 1:
        tl.atomic_add(members, tl.sum(assigned.to(tl.float64), axis=0))
    else:
        tl.atomic_add(members + k, tl.full((PARTICLES,), 1.0, tl.float64), mask=assigned)


def pose_sums(
    now: PoseFields, before: PoseFields | None, counted: Tensor | None, radius_px: float, n_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the scores and what changed between two iterations; see `reference.pose_sums`."""
    psi, origin, mirror, index, score = (field.contiguous() for field in now)
    old_psi, old_origin, old_mirror, old_index, _ = now if before is None else (f.contiguous() for f in before)
    n, programs = len(score), max(1, ceil_div(len(score), PARTICLES))
    out = torch.zeros(programs * FIGURES + n_classes, dtype=torch.float64, device=score.device)
    rows, members = out[: programs * FIGURES].view(programs, FIGURES), out[programs * FIGURES :]
    _pose_sums[(programs,)](
        psi, origin, mirror.view(torch.int8), index, score,
        old_psi.contiguous(), old_origin.contiguous(), old_mirror.contiguous().view(torch.int8), old_index.contiguous(),
        (mirror if counted is None else counted.contiguous()).view(torch.int8), rows, members,
        n, n_classes, float(radius_px), int(before is not None), int(counted is not None),
        FIGURES=FIGURES, PARTICLES=PARTICLES,
    )  # fmt: skip
    sums, numbers = rows.sum(0).split(FIGURES // 2)
    return sums, numbers, members


@triton.jit(do_not_specialize=["n_samples", "n_rings", "other"])
def _ring_correlation(
    spectra, ring, weight, curve, n_samples, n_rings, other, RINGS: tl.constexpr, SAMPLES: tl.constexpr
):
    """Some rings of one class: every program looks at all samples, and counts those on its rings."""
    k = tl.program_id(0).to(tl.int64)
    r = tl.program_id(1) * RINGS + tl.arange(0, RINGS)
    cross = tl.zeros((RINGS,), tl.float64)
    first = tl.zeros((RINGS,), tl.float64)
    second = tl.zeros((RINGS,), tl.float64)
    start = spectra + 2 * k * n_samples
    for begin in range(0, n_samples, SAMPLES):
        i = begin + tl.arange(0, SAMPLES)
        here = i < n_samples
        a = tl.load(start + 2 * i, mask=here, other=0.0)
        b = tl.load(start + 2 * i + 1, mask=here, other=0.0)
        c = tl.load(start + other + 2 * i, mask=here, other=0.0)
        d = tl.load(start + other + 2 * i + 1, mask=here, other=0.0)
        times = tl.load(weight + i % n_rings, mask=here, other=0.0)
        on = tl.load(ring + i, mask=here, other=-1)[None, :] == r[:, None]
        cross += tl.sum(tl.where(on, (times * (a * c + b * d).to(tl.float64))[None, :], 0.0), axis=1)
        first += tl.sum(tl.where(on, (times * (a * a + b * b).to(tl.float64))[None, :], 0.0), axis=1)
        second += tl.sum(tl.where(on, (times * (c * c + d * d).to(tl.float64))[None, :], 0.0), axis=1)
    power = first * second
    found = tl.where(power > 0, cross / tl.sqrt(tl.where(power > 0, power, 1.0)), 0.0)
    tl.store(curve + k * n_rings + r, found.to(curve.dtype.element_ty), mask=r < n_rings)


def ring_correlation(spectra: Tensor, ring: Tensor, weight: Tensor) -> Tensor:
    """Correlate two sets of half transforms ring by ring; see `reference.ring_correlation`."""
    spectra = torch.view_as_real(spectra.contiguous())
    _, k, n, m, _ = spectra.shape
    curve = torch.empty(k, m, dtype=spectra.dtype, device=spectra.device)
    _ring_correlation[(k, ceil_div(m, RINGS))](
        spectra, ring, weight, curve, n * m, m, spectra.stride(0), RINGS=RINGS, SAMPLES=SAMPLES
    )
    return curve
