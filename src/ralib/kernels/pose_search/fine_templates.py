"""Templates at fine rotations, and samples of particles, as the Newton steps read them: one layout for each form.

The plain and the Numba form read a table in single precision and the samples as they are. The Triton form reads both in
half precision, real and imaginary part as one word. Eight radii of an angle lie side by side, so that a thread takes
four with one load; then come the same radii a quarter of the half circle further on, which other threads take at the
same time, so that together they read one line of memory; then other radii, and last the next angle.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

FINE_ROTATIONS = 2
"""Fine rotations per angular sample of the polar grid, at which templates are tabulated."""
TABLE_BYTES = 2**25
"""Templates tabulated at a time, as complex numbers: what that needs besides is several times as much."""
WIDE = 8
"""Packed radii come in multiples of so many, a sector of a GPU's memory; those beyond the last are zero."""
QUARTERS = 4
"""Parts of the half circle whose words lie side by side."""
MOST_HALF = 6e4
"""Largest part of a packed sample: half precision ends at 65,504."""


@dataclass(frozen=True)
class FineTemplates:
    """Templates tabulated at fine rotations, with their polar samples.

    Attributes
    ----------
    table : Tensor of shape (t, F, 2, K, A + H + 2)
        Real and imaginary parts of templates at angles (a + f / F), float32; column 0 is angle -1, columns beyond A + 1
        repeat the first.
    radius : Tensor of shape (K,)
        Radii, radians per pixel.
    angle : Tensor of shape (H,)
        Angles of the half circle, radians.
    weight : Tensor of shape (K,)
        Quadrature weights of the radii.
    """

    table: Tensor
    radius: Tensor
    angle: Tensor
    weight: Tensor

    @property
    def step_deg(self) -> float:
        """Degrees between two fine rotations."""
        return 180.0 / (self.table.shape[1] * len(self.angle))

    def packed(self, unit: float) -> PackedTemplates:
        """Return the same templates for the Triton form; see `fine_templates`."""
        weighted = self.table * (self.weight / unit)[:, None]
        words = _template_words(weighted.movedim(2, -1), len(self.angle) // QUARTERS)
        return PackedTemplates(words, filled_radii(self.radius), unit)


@dataclass(frozen=True)
class PackedTemplates:
    """Templates for the Triton form, scaled by their quadrature weights.

    Attributes
    ----------
    table : Tensor of shape (t, F, P + 2, W, 13, WIDE)
        Pairs of half-precision numbers, int32: column c of `FineTemplates.table` at c mod P and c / P, of P angles in a
        quarter of the half circle. Two rows are there twice: after a column come the next two, wherever it is.
    radius : Tensor of shape (W * WIDE,)
        Radii, radians per pixel; zero beyond the last.
    unit : float
        A score is the sum over the table's entries times this.
    """

    table: Tensor
    radius: Tensor
    unit: float


@dataclass(frozen=True)
class PackedSamples:
    """Samples of particles for the Triton form; rounding them changes a score by some 10^-5 of it.

    Attributes
    ----------
    words : Tensor of shape (b, P, W, QUARTERS, WIDE)
        Pairs of half-precision numbers, int32: angle h at h mod P and h / P.
    scale : Tensor of shape (b,)
        A sample is its word times this: the particle's root mean square.
    """

    words: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, some: slice | Tensor) -> PackedSamples:
        return PackedSamples(self.words[some], self.scale[some])

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.words.nbytes + self.scale.nbytes


PolarSamples = Tensor | PackedSamples
"""Samples of particles (b, K, H), complex64, as they are or packed."""


def packed_words(parts: Tensor, n_quarter: int) -> Tensor:
    """Pack real and imaginary parts into words, in the order of the Triton form.

    Parameters
    ----------
    parts : Tensor of shape (..., K, C, 2)
        Real and imaginary parts at K radii and C angles.
    n_quarter : int
        Angles P of a quarter of the half circle.

    Returns
    -------
    Tensor of shape (..., P, W, C / P, WIDE)
        Words, int32; zero from radius K and from angle C on.
    """
    n_radii, n_columns, _ = parts.shape[-3:]
    half = parts.clamp(-MOST_HALF, MOST_HALF).half()
    half = torch.nn.functional.pad(half, (0, 0, 0, -n_columns % n_quarter, 0, -n_radii % WIDE))
    blocks = half.unflatten(-3, (-1, WIDE)).unflatten(-2, (-1, n_quarter))
    ordered = blocks.movedim((-2, -5, -3, -4), (-5, -4, -3, -2))
    return ordered.contiguous().view(torch.int32)[..., 0]


def root_mean_square(samples: PolarSamples) -> Tensor:
    """Return the root mean square of each particle's samples (b,)."""
    if isinstance(samples, PackedSamples):
        return samples.scale
    return torch.linalg.vector_norm(samples.flatten(1), dim=1).div(samples[0].numel() ** 0.5).clamp_min(1e-30)


def packed_samples(samples: Tensor) -> PackedSamples:
    """Pack the samples (b, K, H), complex64, of particles."""
    parts = torch.view_as_real(samples)
    scale = root_mean_square(samples)
    return PackedSamples(packed_words(parts / scale[:, None, None, None], samples.shape[2] // QUARTERS), scale)


def packed_zeros(n_radii: int, n_angles: int, device: torch.device) -> tuple[PackedSamples, PackedTemplates]:
    """Return samples of one particle and one template, of zeros, as the Triton form takes them.

    Parameters
    ----------
    n_radii : int
        Number of radii, a multiple of WIDE.
    n_angles : int
        Angles of the half circle, a multiple of QUARTERS.
    device : torch.device
        The GPU.

    Returns
    -------
    PackedSamples
        The samples.
    PackedTemplates
        The template.
    """
    n_quarter, n_wide = n_angles // QUARTERS, n_radii // WIDE
    layout = n_quarter + 2, n_wide, 3 * QUARTERS + 1, WIDE
    words = torch.zeros(1, n_quarter, n_wide, QUARTERS, WIDE, dtype=torch.int32, device=device)
    table = torch.zeros(1, FINE_ROTATIONS, *layout, dtype=torch.int32, device=device)
    samples = PackedSamples(words, torch.ones(1, device=device))
    return samples, PackedTemplates(table, torch.zeros(n_radii, device=device), 1.0)


def fine_templates(
    spectrum: Tensor, radius: Tensor, angle: Tensor, weight: Tensor, *, mirror: bool, unit: float, packed: bool
) -> FineTemplates | PackedTemplates:
    """Tabulate templates at fine rotations.

    Parameters
    ----------
    spectrum : Tensor of shape (k, K, m)
        Angular orders of the templates from 0, at most as many as angles, complex64.
    radius : Tensor of shape (K,)
        Radii, radians per pixel.
    angle : Tensor of shape (H,)
        Angles of the half circle, radians.
    weight : Tensor of shape (K,)
        Quadrature weights of the radii.
    mirror : bool
        Whether the mirror images of all templates follow.
    unit : float
        About the mean of the weights: in half precision they are divided by it, so that neither large nor small entries
        are lost.
    packed : bool
        Whether for the Triton form.

    Returns
    -------
    FineTemplates or PackedTemplates
        The templates, then their mirror images.
    """
    n_half, n_radii = len(angle), spectrum.shape[1]
    shape = ((1 + mirror) * len(spectrum), FINE_ROTATIONS)
    if not packed:
        table = torch.empty(*shape, 2, n_radii, 3 * n_half + 2, device=spectrum.device)
        for cut, circles in _circles(spectrum, n_half, mirror):
            table[cut] = torch.view_as_real(circles).movedim(-1, 2)
        return FineTemplates(table, radius, angle, weight)
    weighted = spectrum * (weight / unit)[:, None]
    filled, n_quarter = filled_radii(radius), n_half // QUARTERS
    layout = n_quarter + 2, len(filled) // WIDE, 3 * QUARTERS + 1, WIDE
    words = torch.empty(*shape, *layout, dtype=torch.int32, device=spectrum.device)
    for cut, circles in _circles(weighted, n_half, mirror):
        words[cut] = _template_words(torch.view_as_real(circles), n_quarter)
    return PackedTemplates(words, filled, unit)


def _template_words(parts: Tensor, n_quarter: int) -> Tensor:
    """`packed_words` of templates (..., P + 2, W, 13, WIDE): after the last row the first two of each next quarter."""
    words = packed_words(parts, n_quarter)
    return torch.cat([words, torch.nn.functional.pad(words[..., :2, :, 1:, :], (0, 0, 0, 1))], dim=-4)


def filled_radii(radius: Tensor) -> Tensor:
    """Return radii, with zeros up to a multiple of WIDE."""
    return torch.nn.functional.pad(radius, (0, -len(radius) % WIDE))


def _circles(spectrum: Tensor, n_half: int, mirror: bool) -> Iterator[tuple[slice, Tensor]]:
    """Templates of the angular orders (k, K, m), then their mirror images: a few (g, F, K, A + H + 2) at a time."""
    n_angles, n_radii, device = 2 * n_half, spectrum.shape[1], spectrum.device
    spectrum = torch.nn.functional.pad(spectrum, (0, n_half - spectrum.shape[2]))
    turn, sign = _fine_turns(n_half, device)
    both = torch.cat([spectrum, spectrum.conj()]) if mirror else spectrum
    group = max(1, TABLE_BYTES // (FINE_ROTATIONS * n_radii * n_angles * 8))
    for i in range(0, len(both), group):
        positive = both[i : i + group, None] * turn
        # A real image: order -m is (-1)^m times the conjugate of order m.
        negative = (positive[..., 1:].conj() * sign).flip(-1)
        full = torch.cat([positive, torch.zeros_like(positive[..., :1]), negative], dim=-1)
        circle = torch.fft.ifft(full, dim=-1, norm="forward")
        yield slice(i, i + group), torch.cat([circle[..., -1:], circle, circle[..., : n_half + 1]], dim=-1)


@functools.lru_cache(maxsize=8)
def _fine_turns(n_half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Phase factors (F, 1, H) of the fine rotations at each angular order, and (-1)^m (H - 1,) of the orders m > 0."""
    m = torch.arange(n_half, device=device)
    fraction = torch.arange(FINE_ROTATIONS, device=device) * (math.pi / (FINE_ROTATIONS * n_half))
    turn = torch.polar(torch.ones(FINE_ROTATIONS, n_half, device=device), fraction[:, None] * m)
    return turn[:, None], 1.0 - 2.0 * (m[1:] % 2)
