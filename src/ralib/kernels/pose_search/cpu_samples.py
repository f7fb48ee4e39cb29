"""Polar samples for a CPU: fewer angles at the inner radii, where an image varies slowly; in a layout for vectors.

Samples F(k, phi) of an image of radius R have angular orders up to 2 pi k R. Against a template of orders up to M, a
sum over n angles of the circle is exact while n exceeds both together: near the centre every second or fourth angle
suffices, and about half of the samples remain. Adjacent radii of one spacing form a group, stored angle by angle with
the radii side by side: a rotation is an offset in memory, and all inner loops are long and contiguous.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from torch import Tensor

from ralib.kernels.numba_cache import kept
from ralib.kernels.pose_search.fine_templates import FINE_ROTATIONS
from ralib.kernels.trig_numba import cos_sin

POINTS_MULTIPLE = 64
"""Groups are padded to a multiple of so many points, so that unrolled vector loops leave no rest."""
TAIL = 8
"""Orders by which a disc's Fourier transform outlasts 2 pi k R before it vanishes."""
STRIDES = (1, 2, 4)


@dataclass(frozen=True)
class Group:
    """Radii [first, first + count) at every `stride`-th angle, `n_angles` of the half circle.

    Attributes
    ----------
    first, count : int
        First radius, and number of radii.
    stride : int
        Spacing of the angles used.
    n_angles : int
        Angles of the half circle.
    start : int
        First point in the thinned samples.
    base : int
        Offset in a row of the template table: real, then imaginary parts, each `turns` rows of `lanes`.
    """

    first: int
    count: int
    stride: int
    n_angles: int
    start: int
    base: int

    @property
    def points(self) -> int:
        """Number of points, with the padding."""
        return POINTS_MULTIPLE * math.ceil(self.n_angles * self.count / POINTS_MULTIPLE)

    @property
    def turns(self) -> int:
        """Number of fine rotations from one of its angles to the next."""
        return FINE_ROTATIONS * self.stride

    @property
    def lanes(self) -> int:
        """Entries of the table at one fine rotation: angles -1 to 2 n_angles, and the padding."""
        return (2 * self.n_angles + 2) * self.count + POINTS_MULTIPLE

    @property
    def radii(self) -> slice:
        """Its radii."""
        return slice(self.first, self.first + self.count)

    def of(self, points: Tensor) -> Tensor:
        """Select the group's part (..., n_angles, count) of all points (..., P)."""
        return points[..., self.start : self.start + self.n_angles * self.count].unflatten(-1, (self.n_angles, -1))


@dataclass(frozen=True)
class ThinGrid:
    """A subset of the samples of a polar grid.

    Attributes
    ----------
    n_half : int
        Angles of the full half circle.
    groups : tuple of Group
        Groups of radii, innermost first.
    inner : int
        Number of groups that hold the radii of the grid search.
    frequency : Tensor of shape (2, P)
        Frequency of each point along x and y, cycles per pixel; 0 where padded.
    weight : Tensor of shape (K,)
        Quadrature weights of the radii.
    layout : ndarray of shape (groups, 8)
        The groups as compiled loops read them, int64.
    """

    n_half: int
    groups: tuple[Group, ...]
    inner: int
    frequency: Tensor
    weight: Tensor
    layout: np.ndarray

    @classmethod
    def create(
        cls,
        radius_per_px: Tensor,
        angle_rad: Tensor,
        weight: Tensor,
        *,
        box: int,
        n_orders: list[int],
        n_radii: int,
    ) -> ThinGrid:
        """Choose the samples needed for particles of a box against templates of limited angular order.

        Parameters
        ----------
        radius_per_px : Tensor of shape (K,)
            Radii, cycles per pixel.
        angle_rad : Tensor of shape (H,)
            Angles of the half circle, radians.
        weight : Tensor of shape (K,)
            Quadrature weights of the radii.
        box : int
            Size of the particle images, pixels.
        n_orders : list of int
            Number of angular orders of the templates at each radius.
        n_radii : int
            Radii of the grid search.

        Returns
        -------
        ThinGrid
            The thinned grid.
        """
        n_half = len(angle_rad)
        needs = (m + TAIL + math.pi * box * k for m, k in zip(n_orders, radius_per_px.tolist(), strict=True))
        # A radius may not be sparser than one further in: then the groups are few.
        strides = np.minimum.accumulate([_stride(n_half, need) for need in needs]).tolist()
        groups: list[Group] = []
        first = start = base = 0
        for k in range(1, len(strides) + 1):
            if k in (n_radii, len(strides)) or strides[k] != strides[first]:
                group = Group(first, k - first, strides[first], n_half // strides[first], start, base)
                groups.append(group)
                first, start, base = k, start + group.points, base + 2 * group.turns * group.lanes
        frequency = torch.zeros(2, start)
        for g in groups:
            angle = angle_rad[:: g.stride, None]
            g.of(frequency)[:] = torch.stack([torch.cos(angle), torch.sin(angle)]) * radius_per_px[g.radii]
        layout = [(g.first, g.count, g.stride, g.n_angles, g.start, g.points, g.base, g.lanes) for g in groups]
        inner = sum(g.first < n_radii for g in groups)
        return cls(n_half, tuple(groups), inner, frequency, weight, np.array(layout, np.int64))

    def parts(self, samples: Tensor, shift_xy_px: Tensor) -> Tensor:
        """Select the samples of shifted images.

        Parameters
        ----------
        samples : Tensor of shape (b, K, H)
            Polar Fourier samples, complex64.
        shift_xy_px : Tensor of shape (b, 2)
            Shift of the images, pixels.

        Returns
        -------
        Tensor of shape (b, 2, P)
            Real and imaginary parts.
        """
        out = torch.empty(len(samples), 2, self.frequency.shape[1])
        given = (torch.view_as_real(samples), shift_xy_px.float().contiguous())
        _gather(*(t.numpy() for t in given), self.layout, self.frequency.numpy(), out.numpy())
        return out

    @property
    def n_radii(self) -> int:
        """Radii of the grid search."""
        return self.groups[self.inner - 1].radii.stop

    def analysis(self, orders: Tensor) -> np.ndarray:
        """Return the transform of the grid search's samples to angular orders.

        Flat, for each group (2, m / 2, 2, n_angles): first for real, then for imaginary parts; real, then imaginary
        part of each order. F(k, phi + pi) is the conjugate of F(k, phi), so that with sums over the half circle F_m =
        (2 / A) sum Re F exp(-i m phi) for even m, and (2 i / A) sum Im F exp(-i m phi) for odd m.

        Parameters
        ----------
        orders : Tensor of shape (m,)
            Angular orders, even ones first, then as many odd ones.

        Returns
        -------
        ndarray
            Coefficients.
        """
        even, odd = orders.view(2, -1, 1)
        tables = []
        for g in self.groups[: self.inner]:
            phi = torch.arange(g.n_angles, dtype=torch.float64) * (math.pi / g.n_angles)
            of_real = torch.stack([torch.cos(even * phi), -torch.sin(even * phi)], dim=1)
            of_imag = torch.stack([torch.sin(odd * phi), torch.cos(odd * phi)], dim=1)
            tables += [of_real.ravel() / g.n_angles, of_imag.ravel() / g.n_angles]
        return torch.cat(tables).float().numpy()

    @property
    def table_length(self) -> int:
        """Entries L of a template's row of the table."""
        return self.groups[-1].base + 2 * self.groups[-1].turns * self.groups[-1].lanes

    def table(self, spectrum: Tensor, mirror: bool) -> Tensor:
        """Tabulate templates at all fine rotations, with the weights of the samples.

        Parameters
        ----------
        spectrum : Tensor of shape (t, K, m)
            Complex angular orders of the templates from 0.
        mirror : bool
            Whether the mirror images of all templates follow.

        Returns
        -------
        Tensor of shape (t, L), or (2 t, L) with mirror images
            The table.
        """
        if mirror:
            spectrum = torch.cat([spectrum, spectrum.conj()])
        m = torch.arange(1, spectrum.shape[-1])
        table = torch.zeros(len(spectrum), self.table_length)
        for g in self.groups:
            inner = spectrum[:, g.radii] * (g.stride * self.weight[g.radii, None])
            full = torch.zeros(*inner.shape[:2], 2 * self.n_half * FINE_ROTATIONS, dtype=torch.complex64)
            full[..., : inner.shape[-1]] = inner
            # A real image: order -m is (-1)^m times the conjugate of order m.
            full[..., -m] = inner[..., 1:].conj() * (1.0 - 2.0 * (m % 2))
            circle = torch.fft.ifft(full, dim=-1, norm="forward").unflatten(-1, (-1, g.turns))
            circle = torch.cat([circle[:, :, -1:], circle, circle[:, :, :1]], dim=2)
            place = table[:, g.base : g.base + 2 * g.turns * g.lanes].view(len(table), 2, g.turns, g.lanes)
            # (t, k, angle, turn, part) -> (t, part, turn, angle, k)
            place[..., :-POINTS_MULTIPLE] = torch.view_as_real(circle).permute(0, 4, 3, 2, 1).flatten(3)
        return table


def _stride(n_half: int, n_angles: float) -> int:
    """The largest by which the half circle divides and which leaves more than so many angles of the full one."""
    return max(s for s in STRIDES if n_half % s == 0 and (s == 1 or 2 * n_half > s * n_angles))


@kept
@numba.njit(fastmath=True, nogil=True)
@no_type_check
def _gather(samples: Any, shift: Any, layout: Any, frequency: Any, out: Any) -> None:
    """See `ThinGrid.parts`."""
    for b in range(len(out)):
        real, imag = out[b, 0], out[b, 1]
        for g in range(len(layout)):
            first, count, stride, n_angles, start, points = layout[g, :6]
            for k in range(count):
                mine = samples[b, first + k]
                for h in range(n_angles):
                    real[start + h * count + k] = mine[h * stride, 0]
                    imag[start + h * count + k] = mine[h * stride, 1]
            for p in range(start + n_angles * count, start + points):
                real[p] = imag[p] = np.float32(0.0)
        x, y = shift[b, 0], shift[b, 1]
        for p in range(out.shape[2]):
            co, si = cos_sin(x * frequency[0, p] + y * frequency[1, p])
            re, im = real[p], imag[p]
            real[p] = re * co + im * si
            imag[p] = im * co - re * si
