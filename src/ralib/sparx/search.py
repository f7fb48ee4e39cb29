"""SPARX's exhaustive search over shifts, angles, mirror and references, on batches of particles.

Follows Util::multiref_polar_ali_2d, alignment.ormq / ornq, Crosrng_ms and search_range (EMAN2 2.99): the best point of
the shift grid wins, and only the angle is refined, by a parabola through seven points. Of equal scores the last wins,
in the order of SPARX's loops (y, then x, then reference, then angle).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.sparx.rings import Rings, normalise_rings, ring_spectra, sample_rings
from ralib.sparx.search_numba import CompiledSearch
from ralib.sparx.transforms import Params, combine_params2, params_rows

MEMORY_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Found:
    """The best alignment of each particle.

    Attributes
    ----------
    params : Params of shape (b, 4)
        Rows.
    reference : Tensor of shape (b,)
        Reference.
    peak : Tensor of shape (b,)
        Score.
    """

    params: Params
    reference: Tensor
    peak: Tensor

    @staticmethod
    def cat(parts: list[Found]) -> Found:
        """Concatenate parts."""
        return Found(*(torch.cat([getattr(p, f) for p in parts]) for f in ("params", "reference", "peak")))


@dataclass(frozen=True)
class ShiftGrid:
    """Shifts searched for the particles of a batch.

    Attributes
    ----------
    offsets_xy_px : Tensor of shape (s, 2)
        Shifts common to all, pixels.
    allowed : Tensor of shape (b, s)
        Whether a particle may take each.
    """

    offsets_xy_px: Tensor
    allowed: Tensor


def search_range(n: int, radius_px: float, shift_px: Tensor, range_px: float) -> tuple[Tensor, Tensor]:
    """Return how far centres may move so that the rings stay inside the image.

    Parameters
    ----------
    n : int
        Image size, pixels.
    radius_px : float
        Radius of the last ring, pixels.
    shift_px : Tensor of shape (b,)
        Present offset of the centre along one axis, pixels.
    range_px : float
        Range wanted, pixels.

    Returns
    -------
    Tensor of shape (b,)
        Range downwards, pixels.
    Tensor of shape (b,)
        Range upwards, pixels.
    """
    centre = n // 2 + 1
    down = (centre + shift_px - radius_px - 2).clamp(0.0, range_px)
    up = (n - centre - shift_px - radius_px).clamp(0.0, range_px)
    return down, up


def shift_grid(
    n: int, rings: Rings, centre_xy_px: Tensor, range_xy_px: tuple[float, float], step_px: float
) -> ShiftGrid:
    """Make the grid of shifts within the range around each centre, y slowest.

    Parameters
    ----------
    n : int
        Image size, pixels.
    rings : Rings
        The rings.
    centre_xy_px : Tensor of shape (b, 2)
        Centres from the image's centre, pixels.
    range_xy_px : tuple of float
        Range along x and y, pixels.
    step_px : float
        Step, pixels.

    Returns
    -------
    ShiftGrid
        The grid.
    """
    steps, allowed = [], []
    for axis, range_px in enumerate(range_xy_px):
        down, up = search_range(n, rings.radius_px[-1], centre_xy_px[:, axis], range_px)
        reach = int(range_px / step_px)
        index = torch.arange(-reach, reach + 1, device=centre_xy_px.device)
        lowest, highest = -(down / step_px).long(), (up / step_px).long()
        steps.append(index * step_px)
        allowed.append((index >= lowest[:, None]) & (index <= highest[:, None]))
    y, x = torch.meshgrid(steps[1], steps[0], indexing="ij")
    return ShiftGrid(
        torch.stack([x.flatten(), y.flatten()], dim=-1).double(),
        (allowed[1][:, :, None] & allowed[0][:, None, :]).flatten(1),
    )


class ReferenceRings:
    """References as weighted ring spectra, to be searched.

    Parameters
    ----------
    references : Tensor of shape (k, n, n)
        References.
    rings : Rings
        The rings.
    normalise : bool
        Whether ring samples of the particle have mean 0 and standard deviation 1 at every shift (mref, not ali2d).
    mirror : bool, default True
        Whether to search the mirrored particle too.
    delta_deg : float, default 0.0
        Above 0, search only angles on this grid, without refinement (--dst), degrees.
    """

    def __init__(
        self, references: Tensor, rings: Rings, *, normalise: bool, mirror: bool = True, delta_deg: float = 0.0
    ) -> None:
        centre = torch.full((len(references), 1, 2), references.shape[-1] // 2, device=references.device)
        self.rings, self.normalise, self.mirror, self.delta_deg = rings, normalise, mirror, delta_deg
        self.spectra = ring_spectra(sample_rings(references, centre, rings), rings, weighted=True)[:, 0]
        on_cpu = references.device.type == "cpu" and self.spectra.dtype == torch.complex64
        self.compiled = CompiledSearch(self.spectra, rings, normalise=normalise, mirror=mirror) if on_cpu else None

    def search(self, images: Tensor, centre_xy_px: Tensor, range_xy_px: tuple[float, float], step_px: float) -> Found:
        """Find the best shift, angle, mirror and reference.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images.
        centre_xy_px : Tensor of shape (b, 2)
            Origin of each particle from the image's centre, pixels.
        range_xy_px : tuple of float
            Range along x and y, pixels.
        step_px : float
            Step, pixels.

        Returns
        -------
        Found
            Rows, absolute rather than from the centre, and scores.
        """
        parts = []
        for at in torch.arange(len(images), device=images.device).split(self._particles_at_once()):
            grid = shift_grid(images.shape[-1], self.rings, centre_xy_px[at], range_xy_px, step_px)
            search = (
                self._search_batch if self.compiled is None or images.dtype != torch.float32 else self._search_on_cores
            )
            parts.append(search(images[at], centre_xy_px[at], grid))
        return Found.cat(parts)

    def correlations(self, images: Tensor, centre_xy_px: Tensor, offsets_xy_px: Tensor) -> Tensor:
        """Compute rotational correlations.

        Parameters
        ----------
        images : Tensor of shape (b, n, n)
            Images.
        centre_xy_px : Tensor of shape (b, 2)
            Origin of each particle from the image's centre, pixels.
        offsets_xy_px : Tensor of shape (s, 2)
            Shifts, pixels.

        Returns
        -------
        Tensor of shape (b, s, k, 1 or 2, longest)
            Unmirrored, and mirrored if searched.
        """
        sampled = sample_rings(images, _ring_centres(images, centre_xy_px, offsets_xy_px), self.rings)
        if self.normalise:
            sampled = normalise_rings(sampled, self.rings)
        conj = ring_spectra(sampled, self.rings).conj().flatten(0, 1)
        both = torch.stack([self.spectra, self.spectra.conj()]) if self.mirror else self.spectra[None]
        product = torch.einsum("vkrm,xrm->xkvm", both.to(conj.dtype), conj)
        # EMAN2's transforms are scaled so that the score is the sum over ring samples.
        curves = torch.fft.irfft(product, n=self.rings.longest)
        return curves.view(len(images), len(offsets_xy_px), *curves.shape[1:])

    def _particles_at_once(self) -> int:
        bytes_of_one = 16 * (self.spectra[0].numel() + 4 * self.spectra.shape[0] * self.rings.longest)
        return max(1, MEMORY_BYTES // (bytes_of_one * 16))

    def _shifts_at_once(self, particles: int) -> int:
        bytes_of_one = 16 * (2 * self.spectra[0].numel() + 4 * self.spectra.shape[0] * self.rings.longest)
        return max(1, MEMORY_BYTES // (bytes_of_one * particles))

    def _search_batch(self, images: Tensor, centre_xy_px: Tensor, grid: ShiftGrid) -> Found:
        best: _Best | None = None
        every = torch.arange(len(grid.offsets_xy_px), device=images.device)
        for some in every.split(self._shifts_at_once(len(images))):
            curves = self.correlations(images, centre_xy_px, grid.offsets_xy_px[some])
            candidate = _best_of(curves, grid.offsets_xy_px[some], grid.allowed[:, some], self._angle_step())
            best = candidate if best is None else _last_best(best, candidate)
        assert best is not None
        return self._as_found(best, centre_xy_px)

    def _search_on_cores(self, images: Tensor, centre_xy_px: Tensor, grid: ShiftGrid) -> Found:
        assert self.compiled is not None
        where = _ring_centres(images, centre_xy_px, grid.offsets_xy_px)
        peak, angle, shift, mirror, reference, around = self.compiled.search(
            images, where, grid.allowed, self._angle_step() or 1
        )
        best = _Best(peak, angle, around, grid.offsets_xy_px[shift], mirror, reference)
        return self._as_found(best, centre_xy_px)

    def _angle_step(self) -> int:
        return max(1, int(self.delta_deg / 360.0 * self.rings.longest)) if self.delta_deg else 0

    def _as_found(self, best: _Best, centre_xy_px: Tensor) -> Found:
        refined = best.angle_index + (0.0 if self.delta_deg else parabola_peak(best.around))
        alpha = torch.remainder(refined / self.rings.longest + 1.0, 1.0) * self.rings.period_deg
        params = absolute_params(alpha, best.offset_xy_px, best.mirror, centre_xy_px)
        return Found(params, best.reference, best.peak)


def _ring_centres(images: Tensor, centre_xy_px: Tensor, offsets_xy_px: Tensor) -> Tensor:
    """Pixel coordinates (b, s, 2) of the centres of the rings, rounded as EMAN2 rounds them."""
    return images.shape[-1] // 2 + (centre_xy_px.float()[:, None] + offsets_xy_px.float()[None])


def absolute_params(alpha_deg: Tensor, offset_xy_px: Tensor, mirror: Tensor, centre_xy_px: Tensor) -> Params:
    """Return rows of particles whose rings were sampled at centre + offset and matched at angle alpha.

    Parameters
    ----------
    alpha_deg : Tensor of shape (b,)
        Angle, degrees.
    offset_xy_px : Tensor of shape (b, 2)
        Offset, pixels.
    mirror : Tensor of shape (b,)
        Whether mirrored.
    centre_xy_px : Tensor of shape (b, 2)
        Centre, pixels.

    Returns
    -------
    Params of shape (b, 4)
        Rows.
    """
    zero = torch.zeros_like(alpha_deg)
    to_centre = params_rows(zero, -centre_xy_px, zero)
    onto = params_rows(zero, -offset_xy_px, zero)
    turned = params_rows(alpha_deg, torch.zeros_like(offset_xy_px), mirror)
    # One shift of both, then the rotation: SPARX rotates the offset itself, which is the same.
    return combine_params2(combine_params2(to_centre, onto), turned)


@dataclass(frozen=True)
class _Best:
    """The best so far of each particle: score, angle sample, seven scores around it, offset, mirror, reference."""

    peak: Tensor
    angle_index: Tensor
    around: Tensor
    offset_xy_px: Tensor
    mirror: Tensor
    reference: Tensor


def _best_of(curves: Tensor, offsets_xy_px: Tensor, allowed: Tensor, angle_step: int) -> _Best:
    """The best of correlations (b, s, k, v, l) over everything but the particle."""
    b, _, k, _, length = curves.shape
    tried = torch.arange(0, length, angle_step or 1, device=curves.device)
    value, index = _last_max(curves[..., tried])  # over angles
    index = tried[index]
    mirror = value[..., -1] > value[..., 0]  # equal scores stay straight
    value = torch.where(mirror, value[..., -1], value[..., 0])
    value = value.masked_fill(~allowed[:, :, None], -torch.inf)
    peak, place = _last_max(value.flatten(1))  # over shifts, then references
    row = torch.arange(b, device=curves.device)
    shift, reference = torch.div(place, k, rounding_mode="floor"), place % k
    chosen_mirror = mirror[row, shift, reference]
    variant = chosen_mirror.long().clamp_max(curves.shape[3] - 1)
    curve = curves[row, shift, reference, variant]
    angle = index[row, shift, reference, variant]
    near = (angle[:, None] + torch.arange(-3, 4, device=curves.device)) % length
    return _Best(peak, angle, curve.gather(1, near), offsets_xy_px[shift], chosen_mirror, reference)


def _last_max(values: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over the last dimension and the last place that has it."""
    best, place = values.flip(-1).max(dim=-1)
    return best, values.shape[-1] - 1 - place


def _last_best(first: _Best, second: _Best) -> _Best:
    """Per particle the better of two, the second where equal."""
    take = second.peak >= first.peak

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(take if a.ndim == 1 else take[:, None], b, a)

    return _Best(*(choose(getattr(first, f), getattr(second, f)) for f in _Best.__dataclass_fields__))


def parabola_peak(around: Tensor) -> Tensor:
    """Return the vertex (b,), from the middle, of the parabola fitted to seven values (b, 7) (Util::prb1d)."""
    a = around.double()
    slope = a @ a.new_tensor([49.0, 6.0, -21.0, -32.0, -27.0, -6.0, 31.0])
    bend = a @ a.new_tensor([5.0, 0.0, -3.0, -4.0, -3.0, 0.0, 5.0])
    flat = bend == 0
    return torch.where(flat, torch.zeros_like(bend), slope / (2.0 * torch.where(flat, 1.0, bend)) - 4.0)
