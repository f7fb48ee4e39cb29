"""Polar rings as SPARX samples, transforms and weights them; batches of images and shifts.

Follows alignment.Numrinit / ringwe and Util::Polar2Dm (bilinear since 2014), Frngs, Applyws (EMAN2 2.99). A set of
rings is stored as full half-spectra (r, m), shorter rings filled with zeros, so that a correlation over all rings is
one matrix product for each frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ralib.types import RalibError

LONGEST_RING = 32768


@dataclass(frozen=True)
class Rings:
    """The rings of one search.

    Attributes
    ----------
    radius_px : tuple of int
        Radii, pixels.
    length : tuple of int
        Samples of each ring.
    weight : tuple of float
        Weight of each ring.
    mode : str
        'F' for full or 'H' for half circles.
    """

    radius_px: tuple[int, ...]
    length: tuple[int, ...]
    weight: tuple[float, ...]
    mode: str

    @property
    def longest(self) -> int:
        """Samples of the longest ring."""
        return self.length[-1]

    @property
    def period_deg(self) -> float:
        """Angle covered by a ring, degrees."""
        return 360.0 if self.mode == "F" else 180.0


def make_rings(first_px: int, last_px: int, step_px: int = 1, mode: str = "F") -> Rings:
    """Make rings with SPARX's lengths and weights.

    Parameters
    ----------
    first_px : int
        Radius of the first ring, pixels.
    last_px : int
        Radius of the last ring, pixels.
    step_px : int, default 1
        Step of the radii, pixels.
    mode : str, default 'F'
        'F' for full or 'H' for half circles.

    Returns
    -------
    Rings
        The rings.
    """
    if not (0 < first_px <= last_px and step_px > 0):
        raise RalibError(f"rings run from `ir` > 0 to `ou` by `rs` > 0, got {first_px}, {last_px}, {step_px}")
    if mode not in ("F", "H"):
        raise RalibError(f"`mode` is F (full rings) or H (half rings), not {mode!r}")
    table = numrinit(first_px, last_px, step_px, mode)
    return Rings(tuple(t[0] for t in table), tuple(t[2] for t in table), tuple(ringwe(table, mode)), mode)


def numrinit(first_px: int, last_px: int, step_px: int = 1, mode: str = "F") -> list[tuple[int, int, int]]:
    """Return the layout of rings (alignment.Numrinit).

    Parameters
    ----------
    first_px : int
        Radius of the first ring, pixels.
    last_px : int
        Radius of the last ring, pixels.
    step_px : int, default 1
        Step of the radii, pixels.
    mode : str, default 'F'
        'F' for full or 'H' for half circles.

    Returns
    -------
    list of tuple of int
        Radius, place of the first sample (from 1) and length of each ring.
    """
    circle = 2.0 * math.pi if mode == "F" else math.pi
    table, begin = [], 1
    for radius in range(first_px, last_px + 1, step_px):
        samples = int(circle * radius + 0.5)
        length = 2 ** samples.bit_length()  # the power of two above, hence at least twice oversampled ...
        spare = 2 if radius + step_px <= last_px else 5
        if samples > length + length // spare:  # ... so this never doubles it; kept as SPARX has it
            length = min(LONGEST_RING, 2 * length)
        table.append((radius, begin, length))
        begin += length
    return table


def ringwe(table: list[tuple[int, int, int]], mode: str = "F") -> list[float]:
    """Return the weight of each ring, r dr dphi times longest / length (alignment.ringwe).

    Parameters
    ----------
    table : list of tuple of int
        Result of `numrinit`.
    mode : str, default 'F'
        'F' for full or 'H' for half circles.

    Returns
    -------
    list of float
        Weights.
    """
    circle = 2.0 * math.pi if mode == "F" else math.pi
    longest = table[-1][2]
    return [radius * circle / length * longest / length for radius, _, length in table]


def sample_rings(images: Tensor, centre_xy_px: Tensor, rings: Rings) -> list[Tensor]:
    """Sample images on rings around centres, bilinearly.

    Sample j lies at angle 2 pi j / length (pi for half rings) from the y axis towards x. A ring that leaves the image
    reads its edge pixels, where EMAN2 reads beyond the row.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    centre_xy_px : Tensor of shape (b, s, 2)
        Centres, pixel coordinates from 0.
    rings : Rings
        The rings.

    Returns
    -------
    list of Tensor
        Samples (b, s, length) of each ring.
    """
    n = images.shape[-1]
    flat, centre = images.flatten(1), centre_xy_px.float()[:, :, None, :]
    sampled = []
    for radius, length in zip(rings.radius_px, rings.length, strict=True):
        # Ring by ring stays in the cache; coordinates in float32, as EMAN2 has them.
        xy = centre + circle_points(radius, length, rings.period_deg).to(images.device, torch.float32)
        sampled.append(_bilinear(flat, xy.clamp_(0, n - 1), n))
    return sampled


def circle_points(radius_px: int, length: int, period_deg: float) -> Tensor:
    """Return the points of a ring about its centre.

    Parameters
    ----------
    radius_px : int
        Radius, pixels.
    length : int
        Samples.
    period_deg : float
        Angle covered, degrees.

    Returns
    -------
    Tensor of shape (length, 2)
        Points, pixels, float64.
    """
    angle = math.radians(period_deg) / length * torch.arange(length, dtype=torch.float64)
    return torch.stack([radius_px * torch.sin(angle), radius_px * torch.cos(angle)], dim=-1)


def _bilinear(flat: Tensor, xy: Tensor, n: int) -> Tensor:
    """Values at xy (b, s, l, 2) of images given as rows (b, n * n)."""
    x, y = xy.unbind(dim=-1)
    column, row = x.long().clamp_max_(n - 2), y.long().clamp_max_(n - 2)
    dx, dy = (x - column).to(flat.dtype), (y - row).to(flat.dtype)
    index = (row * n + column).flatten(1)

    def pixel(step: int) -> Tensor:
        return flat.gather(1, index + step).view(x.shape)

    p00, p10, p01, p11 = pixel(0), pixel(1), pixel(n), pixel(n + 1)
    return p00 + dy * (p01 - p00) + dx * (p10 - p00 + dy * (p11 - p10 - p01 + p00))


def normalise_rings(sampled: list[Tensor], rings: Rings) -> list[Tensor]:
    """Normalise samples to mean 0 and standard deviation 1 under the area weight r dphi (Util::Normalize_ring).

    Parameters
    ----------
    sampled : list of Tensor
        Samples (b, s, length) of each ring.
    rings : Rings
        The rings.

    Returns
    -------
    list of Tensor
        Normalised samples.
    """
    area = [r * 2.0 * math.pi / length for r, length in zip(rings.radius_px, rings.length, strict=True)]
    total = sum(a * length for a, length in zip(area, rings.length, strict=True))
    first = torch.stack([a * s.sum(-1) for a, s in zip(area, sampled, strict=True)]).sum(0) / total
    second = torch.stack([a * (s * s).sum(-1) for a, s in zip(area, sampled, strict=True)]).sum(0) / total
    spread = (second - first**2).clamp_min(0).sqrt()
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))  # an empty image stays zero
    return [(s - first[..., None]) / spread[..., None] for s in sampled]


def ring_spectra(sampled: list[Tensor], rings: Rings, *, weighted: bool = False) -> Tensor:
    """Compute half-spectra of ring samples.

    Parameters
    ----------
    sampled : list of Tensor
        Samples (b, s, length) of each ring.
    rings : Rings
        The rings.
    weighted : bool, default False
        Whether to multiply by the ring weights (for references).

    Returns
    -------
    Tensor of shape (b, s, r, longest // 2 + 1)
        Half-spectra.
    """
    shape = (*sampled[0].shape[:-1], len(sampled), rings.longest // 2 + 1)
    dtype = torch.complex128 if sampled[0].dtype == torch.float64 else torch.complex64
    spectra = torch.zeros(shape, dtype=dtype, device=sampled[0].device)
    for i, samples in enumerate(sampled):
        length = rings.length[i]
        spectrum = torch.fft.rfft(samples)
        if weighted:
            spectrum = spectrum * rings.weight[i]
            if length != rings.longest:
                # A short ring's Nyquist term lands inside the long spectrum, where it counts for both signs.
                spectrum[..., -1] *= 0.5
        spectra[..., i, : length // 2 + 1] = spectrum
    return spectra
