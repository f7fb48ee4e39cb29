"""The best possible score, in double precision, and the score of a given pose: the oracle of the search."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ralib.alignment.search import PoseSearch
from ralib.kernels.references import masked_unit_norm
from ralib.types import Poses

ANGLES = 512


class Oracle:
    """Scores of references under a search's own definition, computed in double precision without approximations.

    Parameters
    ----------
    search : PoseSearch
        The search.
    references : Tensor of shape (k, n, n)
        References.
    """

    def __init__(self, search: PoseSearch, references: Tensor) -> None:
        self.search, self.grid = search, search.grid
        templates = masked_unit_norm(references.to(search.device, torch.float32), search.mask)
        samples = self.grid.transform(templates).to(torch.complex128)
        self.orders = torch.arange(self.grid.n_angles // 2, device=search.device)
        self.spectrum = self.grid.angular_spectrum(samples, len(self.orders))
        half = torch.where(self.orders == 0, 0.5, 1.0).double()
        self.weight = self.grid.n_angles * self.grid.weight.double()[:, None] * half

    def achieved(self, samples: Tensor, poses: Poses) -> Tensor:
        """Return the score of each particle at its pose.

        Parameters
        ----------
        samples : Tensor of shape (b, K, H)
            Polar samples of the particles.
        poses : Poses
            Their poses.

        Returns
        -------
        Tensor of shape (b,)
            Scores.
        """
        out = []
        for i in range(0, len(samples), 256):
            part, pose = samples[i : i + 256], poses[slice(i, i + 256)]
            a = self._moved_spectrum(part, pose.origin_xy_px)
            b = self.spectrum[pose.class_index]
            b = torch.where(pose.mirror[:, None, None], b.conj(), b)
            turn = torch.deg2rad(pose.psi_deg.double())[:, None] * self.orders
            cross = (a * b.conj() * self.weight).sum(1)
            out.append((cross * torch.polar(torch.ones_like(turn), -turn)).real.sum(1))
        return torch.cat(out)

    def exhaustive(self, samples: Tensor, step_px: float = 1.0) -> Tensor:
        """Return the highest score over all references, mirrors, 512 rotations and every shift of a grid in range.

        Parameters
        ----------
        samples : Tensor of shape (b, K, H)
            Polar samples of the particles.
        step_px : float, default 1.0
            Step of the shifts, pixels.

        Returns
        -------
        Tensor of shape (b,)
            Scores.
        """
        x_range, y_range = self.search.shift_range_xy_px
        axes = [
            torch.arange(-math.floor(r / step_px), math.floor(r / step_px) + 1) * step_px for r in (x_range, y_range)
        ]
        shifts = torch.cartesian_prod(*axes).to(samples.device)
        best = torch.full((len(samples),), -math.inf, dtype=torch.float64, device=samples.device)
        chunk = max(1, 2**21 // (len(self.spectrum) * ANGLES))
        for i in range(0, len(samples), chunk):
            part = samples[i : i + chunk]
            for shift in shifts:
                a = (self._moved_spectrum(part, shift.expand(len(part), 2)) * self.weight).permute(2, 0, 1)
                for b in (self.spectrum.conj(), self.spectrum) if self.search.mirror else (self.spectrum.conj(),):
                    cross = torch.bmm(a, b.permute(2, 1, 0)).permute(1, 2, 0)
                    top = torch.fft.fft(cross, n=ANGLES).real.amax((1, 2))
                    torch.maximum(best[i : i + chunk], top, out=best[i : i + chunk])
        return best

    def _moved_spectrum(self, samples: Tensor, shift_xy_px: Tensor) -> Tensor:
        """Angular orders (b, K, m), complex128, of particles moved by shifts (b, 2)."""
        fx, fy = (f.double() for f in self.grid.frequency_xy())
        shift = shift_xy_px.double()
        turn = 2 * math.pi * (shift[:, 0, None, None] * fx + shift[:, 1, None, None] * fy)
        moved = samples.to(torch.complex128) * torch.polar(torch.ones_like(turn), -turn)
        return self.grid.angular_spectrum(moved, len(self.orders))


def dense_search(search: PoseSearch, references: Tensor) -> PoseSearch:
    """Return the same search without approximations: single precision, shifts a pixel apart, 64 candidates refined.

    Parameters
    ----------
    search : PoseSearch
        The search.
    references : Tensor of shape (k, n, n)
        References.

    Returns
    -------
    PoseSearch
        The dense search.
    """
    x_range, y_range = search.shift_range_xy_px
    dense = PoseSearch(
        box=search.grid.box,
        outer_radius=search.outer_radius,
        shift_range_xy_px=(x_range, y_range),
        shift_step_px=1.0,
        mirror=search.mirror,
        candidates=(64, 32, 16, 8, 8, 8),
        grid_loss=1e-5,
        dtype=torch.float32,
        device=search.device,
    )
    dense.set_references(references)
    return dense
