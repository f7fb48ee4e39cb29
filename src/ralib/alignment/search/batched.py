"""The pose search in large matrix products: the form for a GPU.

In polar Fourier samples (see `polar_grid`), with angular orders a_m of the particle and b_m of the template shifted by
s in its own frame,

    S(psi) = sum_k w_k Re sum_m a_m(k) conj(b_m(k)) exp(-i m psi)        (mirrored: b_m in place of its conjugate).

1. Grid: the sums over k are one matrix product for each order, for all (reference, shift, mirror) and particles
   together; the sum over m and the maximum over psi are `rotational_max`. The templates are shifted, not the particles:
   once for all particles, wherever each of them is centred.
2. The best few (reference, shift, mirror, psi) of each particle take Newton steps in (psi, x, y); fewer continue after
   each step, the last two or so until they converge, and the best one is returned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, wait

import torch
from torch import Tensor

from ralib.alignment.search import PoseSearch
from ralib.alignment.search.extent import Extent, grid_step_px
from ralib.alignment.search.templates import PoseGrid, TemplateBank
from ralib.conventions import wrap_deg
from ralib.kernels.pose_search import (
    NewtonRule,
    PolarSamples,
    grid_candidates,
    newton,
    root_mean_square,
    rotational_max,
    shifted_parts,
    shortlist,
)
from ralib.kernels.threads import on_cores
from ralib.runtime.ahead import begin_calls
from ralib.runtime.memory import free_memory
from ralib.types import Poses

LEAST_PRODUCT_BYTES, MOST_PRODUCT_BYTES = 2**24, 2**32
"""Cross spectra that a GPU works on at a time."""
SAME_DEG, SAME_PX = 1.5, 0.4
"""Candidates of one template closer than this, after a Newton step, are taken to converge to the same maximum."""
SLACK = (0.1, 0.03, 0.01)
"""So far, as a fraction of a particle's best score, a candidate may lie behind before its first, second, ... step."""
LAST_STEPS = 6
"""The last candidates take as many steps as they need to settle, but no more than this."""

Candidates = tuple[Tensor, Tensor]
"""Poses under refinement, c of each of b particles: which template (c, b) (the reference, plus the number of references
where mirrored), and (c, b, 4) psi in degrees, offset x and y from the particle's centre in pixels, score."""


Chunk = tuple[PolarSamples, Tensor | None, Tensor | None]
"""Samples of some particles, where each is centred, and the class that it is held to."""


class BatchedSearch(PoseSearch):
    """`PoseSearch` in large matrix products."""

    def _set_up(self, candidates: tuple[int, ...] | None, grid_loss: float, dtype: torch.dtype | None) -> None:
        self.dtype = dtype or (torch.float16 if self.device.type == "cuda" else torch.float32)
        self._given_candidates, self.grid_loss = candidates, grid_loss
        self._bank: TemplateBank | None = None
        self._expected: tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None = None
        self.product_bytes = MOST_PRODUCT_BYTES
        self._refinement: list[Future[None]] = []
        if self.device.type == "cuda":
            # A power of two: a few bytes more or less that are free change no plan, and so no bit.
            eighth = max(1, free_memory(self.device) // 8)
            self.product_bytes = min(max(2 ** (eighth.bit_length() - 1), LEAST_PRODUCT_BYTES), MOST_PRODUCT_BYTES)
            # What they call is not needed on a CPU.
            from ralib.alignment.kernels_ahead import calls_ahead, refinement_calls

            self._refinement = begin_calls(refinement_calls(), self.device, maybe=calls_ahead(self.grid))

    def shrink(self) -> bool:
        """Plan for half the memory from now on, and return whether that was possible."""
        self.product_bytes //= 2
        return self.product_bytes >= LEAST_PRODUCT_BYTES

    def expect_references(self, references: Tensor) -> None:
        """Start to prepare references for `set_references` while earlier work continues on the device."""
        self._expected = (references, self._measured(self._templates(references)))

    def set_references(self, references: Tensor) -> None:
        """Set the references (k, n, n): masked to the ring area, mean 0 and norm 1 there."""
        expected, self._expected = self._expected, None
        if expected and expected[0] is references:
            self._build(*expected[1])
        else:
            super().set_references(references)

    def set_template_samples(self, samples: Tensor) -> None:
        """Set templates by their polar Fourier samples (k, K, H), unchanged."""
        self._build(*self._measured(samples))

    def _measured(self, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Samples of templates, their angular spectrum, and how far that reaches: see `Extent.measure`."""
        spectrum = self.grid.angular_spectrum(samples, self.grid.n_angles // 2)
        return samples, spectrum, Extent.measure(self.grid, spectrum, self.grid_loss)

    def _build(self, samples: Tensor, spectrum: Tensor, measured: Tensor) -> None:
        """The bank of the templates, on a new grid of poses if they need another."""
        extent = Extent.of(self.grid, measured)
        step_px = self.shift_step_px or grid_step_px(extent.step_px, self._limit_xy_px)
        poses = self._bank.poses if self._bank else None
        if poses is None or (len(poses.orders), poses.step_px) != (extent.n_orders, step_px):
            given = (self._limit_xy_px, self.mirror, self.dtype)
            poses = PoseGrid.create(self.grid, extent.n_orders, step_px, *given)
        self._bank = TemplateBank(self.grid, samples, spectrum, self.mirror, poses, extent)

    def _scores(self, samples: PolarSamples, centre_xy_px: Tensor | None) -> Tensor:
        """Best score on the grid of each particle against each reference, (b, k), up to one factor for all."""
        bank = self.bank
        out = []
        for part, centre, _ in self._chunks(samples, centre_xy_px, None):
            best = torch.full((len(part), bank.n_references), -math.inf, device=self.device)
            for value, _, first in self._grid_values(part, centre):
                here = best[:, first : first + len(value)]
                torch.maximum(here, value.amax(1).T, out=here)
            out.append(best * root_mean_square(part)[:, None])
        return torch.cat(out)

    @property
    def candidates(self) -> tuple[int, ...]:
        """Number of grid poses that take each Newton step: at SNR 0.02 they include 99.9 % of the best poses."""
        if self._given_candidates is not None:
            return self._given_candidates
        k = self.bank.n_references
        # Poses on a ridge of the score take several steps to its top: few candidates, but to the end.
        if k == 1:
            return (min(max(len(self.bank.poses.pairings) // 9, 4), 8), 4, 2)
        # On a grid finer than need be, more of its poses belong to one maximum.
        density = min(self.bank.extent.step_px / self.bank.poses.step_px, 2.0)
        # Among many references, more of them look alike.
        first, second = 16 + 2 * math.sqrt(k) + k / 20, min(7 + k // 20, 10 + k // 100)
        # Kernels take fours.
        return (4 * round(density * first / 4), 4 * round(density * second / 4), 4 + k // 500, 2)

    # -- the grid ----------------------------------------------------------------------------------------------------

    def _search(self, samples: PolarSamples, centre_xy_px: Tensor | None, class_index: Tensor | None) -> Poses:
        def one(chunk: Chunk) -> Poses:
            part, centre, classes = chunk
            return self._refine(part, centre, self._grid_candidates(part, centre, classes))

        chunks = list(self._chunks(samples, centre_xy_px, class_index))
        if self.device.type != "cpu":
            return Poses.cat([one(chunk) for chunk in chunks])
        return Poses.cat(on_cores(one, chunks))

    def _chunks(self, samples: PolarSamples, centre: Tensor | None, class_index: Tensor | None) -> Iterator[Chunk]:
        """Particles, few enough at a time that the grid's cross spectra fit their share of memory."""
        size = self.plan()[0]
        centre = None if centre is None else centre.to(self.device, torch.float32)
        for i in range(0, len(samples), size):
            cut = slice(i, i + size)
            yield (
                samples[cut],
                None if centre is None else centre[cut],
                None if class_index is None else class_index[cut],
            )

    def plan(self) -> tuple[int, int]:
        """Return particles and references of one matrix product, for a CPU's cache or a GPU's matrix units."""
        bank = self.bank
        on_gpu = self.device.type == "cuda"
        budget, least = (self.product_bytes, 512) if on_gpu else (8 * 2**20, 16)
        per_reference = len(bank.poses.orders) * len(bank.poses.pairings) * self.dtype.itemsize
        references = max(1, min(bank.n_references, budget // (per_reference * least)))
        particles = max(least, budget // (per_reference * references) // least * least)
        return min(particles, 32_768 if on_gpu else 64), references

    def _grid_values(self, samples: PolarSamples, centre: Tensor | None) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Per group of references: best value and its angle, both (r, s * mirror * sign of psi, b), and its first."""
        bank, poses = self.bank, self.bank.poses
        parts = shifted_parts(samples, centre, self.grid.radius_rad_per_px, bank.n_radii, self.dtype)
        # Matrix units need rows whose length is a round number; the rest of a row is never read.
        columns = poses.angular_orders(parts, len(samples) + -len(samples) % 64).flatten(1, 2)
        _, group = self.plan()
        per_reference = len(poses.pairings)
        for first in range(0, bank.n_references, group):
            block = bank.rows[:, first * per_reference : (first + group) * per_reference]
            spectra = torch.bmm(block, columns).view(len(poses.orders), -1, 2, columns.shape[-1])
            best = rotational_max(spectra, poses.cosine, poses.sine, poses.penalty)
            value, index = (part.view(-1, per_reference, columns.shape[-1])[..., : len(samples)] for part in best)
            yield value, index, first

    def _grid_candidates(self, samples: PolarSamples, centre: Tensor | None, class_index: Tensor | None) -> Candidates:
        """The best grid poses of each particle."""
        poses, n, found = self.bank.poses, self.candidates[0], []
        for value, index, first in self._grid_values(samples, centre):
            if class_index is not None:
                reference = torch.arange(first, first + len(value), device=self.device)
                value = value.masked_fill((reference[:, None] != class_index)[:, None], -math.inf)
            place = {"n_half": poses.n_half, "first": first, "n_references": self.bank.n_references}
            found.append(grid_candidates(value, index, poses.pairings, n, **place))
        row, pose = found[0] if len(found) == 1 else (torch.cat(parts) for parts in zip(*found, strict=True))
        return shortlist(row, pose, n)

    # -- off the grid ------------------------------------------------------------------------------------------------

    def _refine(self, samples: PolarSamples, centre: Tensor | None, candidates: Candidates) -> Poses:
        """Newton steps of ever fewer candidates; the one with the highest score expected is the pose."""
        bank = self.bank
        wait(self._refinement)
        if centre is None:
            centre = torch.zeros(len(samples), 2, device=self.device)
        row, pose = candidates
        # How far the local quadratic of a score can be trusted.
        reach = (max(1.0, 90.0 / bank.poses.n_half), 0.4 * bank.extent.step_px)
        for i, n in enumerate(self.candidates):
            if i > 0:
                row, pose = shortlist(row, pose, n, (SAME_DEG, SAME_PX))
            slack = SLACK[min(i, len(SLACK) - 1)] if self._given_candidates is None else math.inf
            steps = LAST_STEPS if i == len(self.candidates) - 1 else 1
            rule = NewtonRule(self.stops(i), self._limit_xy_px, *reach, slack, steps)
            pose = newton(samples, centre, row, pose, bank.fine, rule)
        row, pose = shortlist(row, pose, 1)
        psi, x, y, score = pose[0].unbind(-1)
        return Poses(
            psi_deg=wrap_deg(psi),
            origin_xy_px=centre + torch.stack([x, y], dim=-1),
            mirror=row[0] >= bank.n_references,
            class_index=row[0] % bank.n_references,
            score=score,
        )

    def stops(self, step: int) -> tuple[int, int, int]:
        """Return the samples used by a Newton step, counted from 0; see `NewtonRule`."""
        if step == len(self.candidates) - 1:
            return self.bank.full
        # The first steps only have to rank: what the grid search used of the samples will do.
        return self.bank.rough if step < 2 else self.bank.close

    @property
    def bank(self) -> TemplateBank:
        """The templates in use."""
        if self._bank is None:
            raise RuntimeError("no references yet: call set_references first")
        return self._bank
