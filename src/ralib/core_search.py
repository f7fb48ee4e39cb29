"""The pose search on the cores of a CPU: the scores of `search`, found in the way that a core likes.

Samples are thinned where an image turns slowly (`ops.thin`); the products of the grid stay in a core's cache; the
best of its poses, interpolated (`ops.peaks_numba`), are candidates of which only those take Newton steps that may yet
become the best (`ops.climb_numba`). Each core takes chunks of particles of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ralib.conventions import wrap_deg
from ralib.ops.climb_numba import Climb, climb
from ralib.ops.peaks_numba import Peaks, rotation_maxima
from ralib.ops.rotational_score import angular_tables
from ralib.ops.thin import ThinGrid
from ralib.polar import PolarGrid
from ralib.templates import (
    GRID_SCORE_LOSS,
    leaving,
    mean_square_frequency,
    natural_step_px,
    parity_orders,
    shift_rings,
)
from ralib.types import Poses

T = TypeVar("T")
R = TypeVar("R")

CHUNK = 64
"""Particles that a core takes at a time."""
BLOCK_BYTES = 2**21
"""Cross spectra of a chunk with as many references as fit: they stay in the cache."""
LOSS_OF_ONE, LOSS_OF_MANY = 1e-3, 3e-4
"""What the grid may leave out of one reference's power, and of several that compete."""
PARABOLA = 0.03
"""By how much of a score the parabola through the grid's rotations may raise it."""
ALL_LOSS = 1e-7
"""The fraction of the templates' power that the last Newton steps may leave out: parity does not notice."""


@dataclass(frozen=True)
class CoreTemplates:
    """Templates in the two forms the search needs.

    thin      the samples in use
    shifts    (s, 2) grid of the templates' shifts in their own frame
    penalty   (s * mirror, 2, n_half): minus infinity where the particle would leave its shift range
    cosine, sine, analysis  tables of the grid's rotations and orders: see `rotational_score` and `ThinGrid.analysis`
    rows      (m, k * s * mirror * 2, 2 radii): left factors of the grid's products
    table     (k * mirror, L) for the Newton steps: see `ThinGrid.table`
    bound     degrees and pixels that one Newton step may go; rule: when a candidate goes on
    """

    n_references: int
    thin: ThinGrid
    shifts: Tensor
    penalty: Tensor
    cosine: Tensor
    sine: Tensor
    analysis: list[tuple[Tensor, Tensor]]
    rows: Tensor
    table: Tensor
    bound: tuple[float, float]
    rule: Climb


class CoreSearch:
    """Searches particles given as polar samples; `search.PoseSearch` describes the arguments."""

    def __init__(
        self,
        grid: PolarGrid,
        limit_xy_px: tuple[float, float],
        *,
        shift_step_px: float | None = None,
        mirror: bool = True,
    ) -> None:
        self.grid, self.limit_xy_px = grid, limit_xy_px
        self.shift_step_px, self.mirror = shift_step_px, mirror
        self._templates: CoreTemplates | None = None

    def set_templates(self, samples: Tensor) -> None:
        """Take templates as polar Fourier samples (k, K, H)."""
        grid, mirror = self.grid, self.mirror
        spectrum = grid.angular_spectrum(samples, grid.n_angles // 2)
        power = (spectrum.abs().square().sum(0) * grid.weight[:, None]).double()
        power /= power.sum().clamp(min=1e-30)
        natural = natural_step_px(grid, float(mean_square_frequency(grid, power.sum(1))))
        step = self.shift_step_px or min(natural, max(*self.limit_xy_px, 0.5))
        shifts = torch.cat(shift_rings(self.limit_xy_px, step, grid.device))
        loss = LOSS_OF_ONE if len(samples) == 1 else LOSS_OF_MANY
        n_orders = 4 * math.ceil(_holding(power.sum(0), loss) / 4)
        thin = _thinned(grid, power, n_orders, _holding(power.sum(1), loss))
        # At least 3.6 angles to the shortest angular wave: a parabola finds what lies between.
        orders, n_half = parity_orders(n_orders, grid.device), 8 * math.ceil(1.8 * n_orders / 8)
        analysis = thin.analysis(orders)
        self._templates = CoreTemplates(
            len(samples),
            thin,
            shifts,
            leaving(shifts, torch.tensor(self.limit_xy_px) + 0.5 * step, mirror, n_half),
            *angular_tables(orders, n_half, dtype=torch.float32),
            analysis,
            _rows(thin, samples, shifts, orders, analysis, mirror),
            thin.table(spectrum[:, : len(thin.weight)], mirror),
            (max(1.0, 90.0 / n_half), 0.4 * natural),
            Climb.after_grid(GRID_SCORE_LOSS * min(step / natural, 1.0) ** 2),
        )

    @property
    def templates(self) -> CoreTemplates:
        """The templates in use."""
        if self._templates is None:
            raise RuntimeError("no references yet: call set_references first")
        return self._templates

    @property
    def candidates(self) -> int:
        """How many poses of the grid are kept: few of them take a step."""
        k = self.templates.n_references
        return 16 if k == 1 else min(24 + k // 4, 48)

    def search(self, samples: Tensor, centre_xy_px: Tensor | None, class_index: Tensor | None) -> Poses:
        """Best pose of each particle; samples (b, K, H), the origin (b, 2) to search around, class (b,) if known."""
        centre = torch.zeros(len(samples), 2) if centre_xy_px is None else centre_xy_px.float()
        wanted = torch.full((len(samples),), -1) if class_index is None else class_index
        cuts = [slice(i, i + CHUNK) for i in range(0, len(samples), CHUNK)]

        return Poses.cat(on_cores(lambda cut: self._search(samples[cut], centre[cut], wanted[cut]), cuts))

    def scores(self, samples: Tensor, centre_xy_px: Tensor | None) -> Tensor:
        """Best score on the grid of each particle against each reference, (b, k)."""
        centre = torch.zeros(len(samples), 2) if centre_xy_px is None else centre_xy_px.float()
        out = []
        for i in range(0, len(samples), CHUNK):
            parts = self.templates.thin.parts(samples[i : i + CHUNK], centre[i : i + CHUNK])
            best = [
                value.unflatten(0, (-1, len(self.templates.penalty))).amax((1, 2))
                for _, value, _, _ in self._grid_values(parts)
            ]
            out.append(torch.cat(best).T)
        return torch.cat(out)

    def _search(self, samples: Tensor, centre: Tensor, wanted: Tensor) -> Poses:
        t = self.templates
        parts = t.thin.parts(samples, centre)
        peaks = Peaks.none(len(samples), self.candidates)
        for first, value, even, odd in self._grid_values(parts):
            peaks.merge_(
                value, even, odd, t.penalty, t.shifts, first, t.n_references, wanted, t.rule.slack[0] + PARABOLA
            )
        row, pose = climb(parts, t.thin, t.table, peaks.row, peaks.pose, t.rule, self.limit_xy_px, t.bound)
        psi, x, y, score = pose.unbind(-1)
        return Poses(
            psi_deg=wrap_deg(psi),
            origin_xy_px=centre + torch.stack([x, y], dim=-1),
            mirror=row >= t.n_references,
            class_index=row % t.n_references,
            score=score,
        )

    def _grid_values(self, parts: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Per group of references: its first, the maxima (g, 2, b), and the cosine and sine sums (g, n_half, b)."""
        t = self.templates
        columns = t.thin.angular_orders(parts, t.analysis).flatten(2).permute(1, 2, 0)
        per_reference = 2 * len(t.penalty)
        group = max(1, BLOCK_BYTES // (4 * per_reference * len(columns) * len(parts)))
        for first in range(0, t.n_references, group):
            block = t.rows[:, first * per_reference : (first + group) * per_reference]
            spectra = torch.bmm(block, columns).unflatten(1, (-1, 2)).permute(2, 1, 0, 3)
            even, odd = (
                torch.bmm(table.expand(len(part), -1, -1), part)
                for table, part in zip((t.cosine, t.sine), spectra, strict=True)
            )
            yield first, rotation_maxima(even, odd, t.penalty), even, odd


def on_cores(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """work(part) of each part, on a core of its own: products this small gain nothing from being shared."""
    threads = torch.get_num_threads()
    if min(threads, len(parts)) < 2:
        return [work(part) for part in parts]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, parts))
    finally:
        torch.set_num_threads(threads)


def _holding(power: Tensor, loss: float) -> int:
    """How many entries of a distribution, from the first, hold all but half the loss."""
    return min(int((power.cumsum(0) < 1 - 0.5 * loss).sum()) + 1, len(power))


def _thinned(grid: PolarGrid, power: Tensor, n_orders: int, n_radii: int) -> ThinGrid:
    """The samples that templates of such power (K, m) need; `n_orders` and `n_radii` are the grid search's."""
    n_all = _holding(power.sum(1), ALL_LOSS)
    # Of each radius, the orders without which it loses that much.
    beyond = power.flip(1).cumsum(1).flip(1) > ALL_LOSS
    return ThinGrid.create(
        grid.radius_per_px[:n_all],
        grid.angle_rad,
        grid.weight[:n_all],
        box=grid.box,
        n_orders=beyond.sum(1).clamp(min=n_orders)[:n_all].tolist(),
        n_radii=n_radii,
    )


def _rows(
    thin: ThinGrid,
    samples: Tensor,
    shifts: Tensor,
    orders: Tensor,
    analysis: list[tuple[Tensor, Tensor]],
    mirror: bool,
) -> Tensor:
    """Left factors (m, k * s * mirror * 2, 2 radii) of the grid's products, from templates (k, K, H)."""
    # Both halves of the circle, and orders +m and -m, count; order 0 stands alone.
    scale = 2 * thin.n_half * torch.where(orders == 0, 0.5, 1.0)[:, None, None]
    out = []
    for sample in samples:
        moved = thin.angular_orders(thin.parts(sample.expand(len(shifts), -1, -1), -shifts), analysis)
        re, im = (moved.transpose(0, 1) * (scale * thin.weight[: moved.shape[-1]])[:, :, None]).unbind(2)
        # Each row meets real, then imaginary parts: for the cosine sum, for the sine sum; then both mirrored.
        views = [re, im, -im, re] + ([re, -im, im, re] if mirror else [])
        out.append(torch.stack(views, dim=2).view(len(orders), -1, 2 * moved.shape[-1]))
    return torch.cat(out, dim=1)
