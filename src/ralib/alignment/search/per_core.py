"""The pose search on the cores of a CPU: the scores of `batched`, computed in compiled loops.

Samples are thinned where an image varies slowly (`cpu_samples`); the products of the grid stay in a core's cache, and
its best poses, interpolated, are the candidates (`cpu_grid_numba`), of which only those take Newton steps whose score
may still become the highest (`cpu_refine_numba`). Each core processes its own particles, in compiled functions that
release the interpreter lock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.alignment.search import PoseSearch
from ralib.alignment.search.extent import GRID_SCORE_LOSS, grid_step_px, mean_square_frequency, natural_step_px
from ralib.alignment.search.polar_grid import PolarGrid
from ralib.alignment.search.templates import grid_shifts, out_of_range_penalty, parity_orders
from ralib.conventions import wrap_deg
from ralib.kernels.pose_search import PolarSamples
from ralib.kernels.pose_search.cpu_grid_numba import GridTables, angular_orders, best_poses, best_scores
from ralib.kernels.pose_search.cpu_refine_numba import CandidateRule, refine_candidates
from ralib.kernels.pose_search.cpu_samples import ThinGrid
from ralib.kernels.pose_search.tile_llvm import LANES
from ralib.kernels.threads import cores, on_cores, one_thread
from ralib.types import Poses

LEAST, MOST = 2 * LANES, 8 * LANES
"""Particles that a core takes at a time."""
LOSS_OF_ONE, LOSS_OF_MANY = (7e-4, 3e-7), (3e-4, 1e-7)
"""What the grid, and the last Newton steps, may leave out of one reference's power, and of several that compete.

With thirty times as much in the last steps, 0.3 % of the particles miss the best pose at SNR 0.02.
"""
PARABOLA = 0.03
"""By how much of a score the parabola through the grid's rotations may raise it."""


@dataclass(frozen=True)
class CoreTemplates:
    """Templates in the two forms that the search needs.

    Attributes
    ----------
    thin : ThinGrid
        The samples in use.
    grid : GridTables
        Templates and tables of the grid search.
    table : Tensor of shape (k * mirror, L)
        Templates for the Newton steps; see `ThinGrid.table`.
    rule : CandidateRule
        When a candidate continues.
    bound : tuple of float
        Largest change by one Newton step, degrees and pixels.
    """

    thin: ThinGrid
    grid: GridTables
    table: Tensor
    rule: CandidateRule
    bound: tuple[float, float]


class PerCoreSearch(PoseSearch):
    """`PoseSearch` on the cores of a CPU."""

    def _set_up(self, candidates: tuple[int, ...] | None, grid_loss: float, dtype: torch.dtype | None) -> None:
        self._core_templates: CoreTemplates | None = None

    def shrink(self) -> bool:
        """Return True: the search itself needs little memory, so that only smaller batches help."""
        return True

    def set_template_samples(self, samples: Tensor) -> None:
        """Set templates by their polar Fourier samples (k, K, H)."""
        grid, mirror = self.grid, self.mirror
        with one_thread():
            spectrum = grid.angular_spectrum(samples, grid.n_angles // 2)
            power = (spectrum.abs().square().sum(0) * grid.weight[:, None]).double()
            power /= power.sum().clamp(min=1e-30)
            natural = natural_step_px(grid, float(mean_square_frequency(grid, power.sum(1))))
            step = self.shift_step_px or grid_step_px(natural, self._limit_xy_px)
            shifts = grid_shifts(self._limit_xy_px, step, grid.device)
            grid_loss, close_loss = LOSS_OF_ONE if len(samples) == 1 else LOSS_OF_MANY
            n_orders = 4 * math.ceil(_holding(power.sum(0), grid_loss) / 4)
            thin = _thinned(grid, power, n_orders, _holding(power.sum(1), grid_loss), close_loss)
            # At least 3.6 angles to the shortest angular wave: a parabola finds what lies between.
            orders, n_half = parity_orders(n_orders, grid.device), 8 * math.ceil(1.8 * n_orders / 8)
            penalty = out_of_range_penalty(shifts, torch.tensor(self._limit_xy_px) + 0.5 * step, mirror, n_half)
        weighted = _weighted(thin, samples, shifts, orders)
        with one_thread():
            tables = GridTables.create(thin, orders, torch.cat(weighted), penalty, shifts, len(samples))
        self._core_templates = CoreTemplates(
            thin,
            tables,
            _tabulated(thin, spectrum[:, : len(thin.weight)], mirror),
            CandidateRule.after_grid(GRID_SCORE_LOSS * min(step / natural, 1.0) ** 2),
            (max(1.0, 90.0 / n_half), 0.4 * natural),
        )

    @property
    def templates(self) -> CoreTemplates:
        """The templates in use."""
        if self._core_templates is None:
            raise RuntimeError("no references yet: call set_references first")
        return self._core_templates

    @property
    def candidates(self) -> int:
        """Number of grid poses kept; few of them take a step."""
        k = self.templates.grid.n_references
        return 16 if k == 1 else min(24 + k // 4, 48)

    def _search(self, samples: PolarSamples, centre_xy_px: Tensor | None, class_index: Tensor | None) -> Poses:
        assert isinstance(samples, Tensor)
        centre = torch.zeros(len(samples), 2) if centre_xy_px is None else centre_xy_px.float()
        wanted = torch.full((len(samples),), -1) if class_index is None else class_index
        t = self.templates

        def one(cut: slice) -> tuple[Tensor, Tensor]:
            parts = t.thin.parts(samples[cut], centre[cut])
            row, pose = best_poses(parts, t.grid, wanted[cut], self.candidates, t.rule.slack[0] + PARABOLA)
            return refine_candidates(parts, t.thin, t.table, row, pose, t.rule, self._limit_xy_px, t.bound)

        row, pose = (torch.cat(part) for part in zip(*on_cores(one, shrinking(len(samples))), strict=True))
        psi, x, y, score = pose.unbind(-1)
        return Poses(
            psi_deg=wrap_deg(psi),
            origin_xy_px=centre + torch.stack([x, y], dim=-1),
            mirror=row >= t.grid.n_references,
            class_index=row % t.grid.n_references,
            score=score,
        )

    def _scores(self, samples: PolarSamples, centre_xy_px: Tensor | None) -> Tensor:
        """Best score on the grid of each particle against each reference, (b, k)."""
        assert isinstance(samples, Tensor)
        centre = torch.zeros(len(samples), 2) if centre_xy_px is None else centre_xy_px.float()
        t = self.templates

        def one(cut: slice) -> Tensor:
            return best_scores(t.thin.parts(samples[cut], centre[cut]), t.grid)

        return torch.cat(on_cores(one, shrinking(len(samples))))


def shrinking(n: int) -> list[slice]:
    """Divide 0..n into ever smaller parts, at least one, so that the cores finish at about the same time."""
    cuts: list[slice] = []
    first, share = 0, 2 * cores() * LANES
    while first < n or not cuts:
        size = min(max(LEAST, LANES * ((n - first) // share)), MOST)
        cuts.append(slice(first, min(first + size, n)))
        first += size
    return cuts


def _holding(power: Tensor, loss: float) -> int:
    """How many entries of a distribution, from the first, hold all but half the loss."""
    return min(int((power.cumsum(0) < 1 - 0.5 * loss).sum()) + 1, len(power))


def _thinned(grid: PolarGrid, power: Tensor, n_orders: int, n_radii: int, loss: float) -> ThinGrid:
    """The samples that hold all but the loss of templates of such power (K, m), and orders and radii of the grid."""
    n_all = _holding(power.sum(1), loss)
    # Of each radius, the orders without which it loses that much.
    beyond = power.flip(1).cumsum(1).flip(1) > loss
    return ThinGrid.create(
        grid.radius_per_px[:n_all],
        grid.angle_rad,
        grid.weight[:n_all],
        box=grid.box,
        n_orders=beyond.sum(1).clamp(min=n_orders)[:n_all].tolist(),
        n_radii=n_radii,
    )


def _weighted(thin: ThinGrid, samples: Tensor, shifts: Tensor, orders: Tensor) -> list[Tensor]:
    """Orders (s, m, 2, radii) of each template (k, K, H) at all shifts (s, 2), with the weights of the grid's sums."""
    # Both halves of the circle, and orders +m and -m, count; order 0 stands alone.
    scale = 2 * thin.n_half * torch.where(orders == 0, 0.5, 1.0)[:, None, None] * thin.weight[: thin.n_radii]
    return on_cores(
        lambda sample: angular_orders(thin.parts(sample.expand(len(shifts), -1, -1), -shifts), thin, orders) * scale,
        list(samples),
    )


def _tabulated(thin: ThinGrid, spectrum: Tensor, mirror: bool) -> Tensor:
    """`ThinGrid.table` of spectra (k, K, m)."""
    k = len(spectrum)
    table = torch.empty((1 + mirror) * k, thin.table_length)

    def fill(i: int) -> None:
        table[i::k] = thin.table(spectrum[i : i + 1], mirror)

    on_cores(fill, range(k))
    return table
