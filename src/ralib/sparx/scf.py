"""Alignment by self-correlation functions: the angle first, independent of the shift, then the shift.

SPARX's option --random_method SCF. Follows alignment.multalign2d_scf and parabl (EMAN2 2.99). A self-correlation is the
same for 0 and 180 degrees, so that its half rings give the angle up to half a turn, which the cross-correlation
decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ralib.images.centering import ccf, scf, window
from ralib.sparx.resample import mirror_images, rot_shift2D
from ralib.sparx.rings import Rings
from ralib.sparx.search import Found, ReferenceRings
from ralib.sparx.transforms import params_rows


class SelfCorrelationSearch:
    """Alignment of particles to one reference by self-correlation functions.

    Parameters
    ----------
    reference : Tensor of shape (n, n)
        The reference.
    rings : Rings
        The rings.
    """

    def __init__(self, reference: Tensor, rings: Rings) -> None:
        self.reference = reference
        self.target = ReferenceRings(scf(reference[None]), rings, normalise=False, mirror=False)

    def search(self, images: Tensor, range_xy_px: tuple[float, float]) -> Found:
        """Find angle, mirror and shift of particles.

        SPARX adds the particle's previous shift to the one found, although it correlates the unshifted particle: its
        average blurs from the second iteration on. Here the shift counts once. Where the correlation has no local
        maximum within the range, SPARX's `peak_search` falls back on no shift, with a peak of 1 and a parabola at the
        window's corner; here the highest value within the range is taken.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images.
        range_xy_px : tuple of float
            Range of whole-pixel shifts, refined by a parabola, pixels.

        Returns
        -------
        Found
            Rows (b, 4) and peaks.
        """
        reach = (int(range_xy_px[0] + 0.5), int(range_xy_px[1] + 0.5))
        alpha, mirror = self._angle_and_mirror(scf(images))
        first = self._shift(images, alpha, mirror, reach)
        second = self._shift(images, alpha + 180.0, mirror, reach)
        turn = second[1] >= first[1]
        alpha = torch.where(turn, alpha + 180.0, alpha)
        offset = torch.where(turn[:, None], second[0], first[0])
        peak = torch.where(turn, second[2], first[2])
        shift = torch.stack([torch.where(mirror, offset[:, 0], -offset[:, 0]), -offset[:, 1]], dim=-1)
        return Found(params_rows(alpha, shift, mirror), torch.zeros_like(mirror, dtype=torch.int64), peak.double())

    def _angle_and_mirror(self, correlations: Tensor) -> tuple[Tensor, Tensor]:
        still = torch.zeros(len(correlations), 2, dtype=torch.float64, device=correlations.device)
        every = torch.ones(len(correlations), dtype=torch.bool, device=correlations.device)
        straight = self.target.search(correlations, still, (0.0, 0.0), 1.0)
        mirrored = self.target.search(mirror_images(correlations, every), still, (0.0, 0.0), 1.0)
        mirror = ~(straight.peak > mirrored.peak)
        return torch.where(mirror, -mirrored.params[:, 0], straight.params[:, 0]), mirror

    def _shift(
        self, images: Tensor, alpha: Tensor, mirror: Tensor, reach: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the offset (b, 2) of the rotated image from the reference, and the peak before and after refinement.

        SPARX's window is a pixel wider than the range so that the parabola has neighbours; only the range is searched.
        """
        turned = rot_shift2D(images, params_rows(alpha, torch.zeros_like(alpha)[:, None].expand(-1, 2), mirror))
        n = images.shape[-1]
        margin = n // 2 - 1
        x, y = min(reach[0], margin - 1), min(reach[1], margin - 1)
        size = 2 * max(x, y) + 3
        near = window(ccf(turned, self.reference[None]), size)
        middle = size // 2
        inner = near[:, middle - y : middle + y + 1, middle - x : middle + x + 1]
        peak, place = inner.flatten(1).max(dim=1)
        column, row = place % (2 * x + 1) - x, torch.div(place, 2 * x + 1, rounding_mode="floor") - y
        step = torch.arange(-1, 2, device=images.device)
        index = (middle + row[:, None, None] + step[:, None]) * size + middle + column[:, None, None] + step
        around = near.flatten(1).gather(1, index.flatten(1)).view(-1, 3, 3)
        moved, height = parabola_peak_2d(around)
        return torch.stack([column, row], dim=-1) + moved, peak, height


def parabola_peak_2d(around: Tensor) -> tuple[Tensor, Tensor]:
    """Return place (b, 2) and height (b,) of the vertex of the paraboloid fitted to 3 x 3 values (b, y, x)."""
    z = around.double()
    step = torch.arange(-1.0, 2.0, dtype=torch.float64, device=z.device)
    bx, by = (z * step).sum(dim=(1, 2)) / 6, (z * step[:, None]).sum(dim=(1, 2)) / 6
    bend = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64, device=z.device)
    cx, cy = (z * bend).sum(dim=(1, 2)) / 6, (z * bend[:, None]).sum(dim=(1, 2)) / 6
    cxy = (z * step * step[:, None]).sum(dim=(1, 2)) / 4
    level = z.sum(dim=(1, 2)) / 9 - (cx + cy) * 2 / 3
    bottom = 4 * cx * cy - cxy**2
    flat = bottom == 0
    bottom = torch.where(flat, torch.ones_like(bottom), bottom)
    x, y = (cxy * by - 2 * cy * bx) / bottom, (cxy * bx - 2 * cx * by) / bottom
    height = level + 0.5 * (bx * x + by * y)
    place = torch.stack([x, y], dim=-1).clamp(-1.0, 1.0)
    return torch.where(flat[:, None], torch.zeros_like(place), place), torch.where(
        flat, torch.zeros_like(height), height
    )
