"""The functions of the pose search in plain PyTorch: their definition, and the oracle of the Triton forms.

The score of a pose is S = sum w Re[F exp(-i r (x cos a + y sin a)) conj(T)] over polar samples of radius r and angle a:
F of the particle, T of the rotated template, (x, y) the particle's shift. `rotational_max` finds the maxima on a grid
of rotations, `shortlist` selects the best few candidates of each particle, and `newton` (of `reference_newton`) refines
them off the grid: exact in the shift, quadratic in the rotation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ralib.conventions import rotate_xy, wrap_deg
from ralib.kernels.pose_search.fine_templates import PolarSamples, root_mean_square
from ralib.kernels.pose_search.reference_newton import newton

__all__ = [
    "angle_deg",
    "angular_tables",
    "gather_taps",
    "grid_candidates",
    "newton",
    "rotational_max",
    "shifted_parts",
    "shortlist",
]


def gather_taps(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Compute weighted sums of a few samples of a Hermitian half transform: the gridding step of `PolarGrid`.

    Parameters
    ----------
    values : Tensor of shape (b, f)
        Half transforms, complex64.
    index : Tensor of shape (p, t)
        Indices into `values`, int32; a negative index i reads conj(values[b, -1 - i]).
    weight : Tensor of shape (p, t)
        Weights, float32.

    Returns
    -------
    Tensor of shape (b, p)
        out[b, p] = sum_t weight[p, t] * values[b, index[p, t]], complex64.
    """
    sign = index >> 31  # -1 where the conjugate is meant, else 0
    row, signed = index ^ sign, weight * (1 + 2 * sign)
    table = values.T
    real, imag = (
        embedding_bag(row, part.contiguous(), mode="sum", per_sample_weights=w)
        for part, w in ((table.real, weight), (table.imag, signed))
    )
    return torch.complex(real, imag).T.contiguous()


def shifted_parts(
    samples: PolarSamples, shift_xy_px: Tensor | None, radius: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """Compute real and imaginary parts of the innermost radii of shifted images, scaled to about unit norm.

    The scale of each particle is its `root_mean_square`; without it half precision could overflow.

    Parameters
    ----------
    samples : PolarSamples of shape (b, K, H)
        Polar Fourier samples.
    shift_xy_px : Tensor of shape (b, 2) or None
        Shift, pixels.
    radius : Tensor of shape (K,)
        Radii, radians per pixel.
    n_radii : int
        Number of radii, from the innermost.
    dtype : torch.dtype
        Type of the result.

    Returns
    -------
    Tensor of shape (2, b, n_radii, H)
        The parts.
    """
    assert isinstance(samples, Tensor)
    n_half = samples.shape[2]
    scale = root_mean_square(samples) * (n_radii * n_half) ** 0.5
    inner = samples[:, :n_radii] / scale[:, None, None]
    if shift_xy_px is not None:
        angle = torch.arange(n_half, device=radius.device) * (math.pi / n_half)
        along = shift_xy_px[:, :1] * torch.cos(angle) + shift_xy_px[:, 1:] * torch.sin(angle)
        turn = radius[:n_radii, None] * along[:, None]
        co, si = torch.cos(turn), torch.sin(turn)
        real = inner.real * co + inner.imag * si
        imag = inner.imag * co - inner.real * si
    else:
        real, imag = inner.real, inner.imag
    return torch.stack([real, imag]).to(dtype)


def angular_tables(orders: Tensor, n_half: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tabulate cos(m psi_j) and sin(m psi_j) for psi_j = pi (j + 1/2) / n_half.

    Parameters
    ----------
    orders : Tensor of shape (m,)
        Angular orders.
    n_half : int
        Rotations of the half circle.
    dtype : torch.dtype
        Type of the result.

    Returns
    -------
    Tensor of shape (n_half, m)
        Cosines.
    Tensor of shape (n_half, m)
        Sines.
    """
    psi = (torch.arange(n_half, device=orders.device, dtype=torch.float64) + 0.5) * (math.pi / n_half)
    turn = psi[:, None] * orders
    return torch.cos(turn).to(dtype), torch.sin(turn).to(dtype)


def rotational_max(
    spectra: Tensor, cosine: Tensor, sine: Tensor, penalty: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Find the maximum over positive and over negative rotations of each cross spectrum.

    With S(psi) = sum_m X_m cos(m psi) + Y_m sin(m psi), E the cosine and O the sine sum at psi >= 0, S(+-psi) = E +- O,
    so that half of the angles suffice. Computed in chunks that fit a core's cache.

    Parameters
    ----------
    spectra : Tensor of shape (m, g, 2, b)
        X and Y of order m, for g pairings of b particles.
    cosine, sine : Tensor of shape (n_half, m)
        See `angular_tables`.
    penalty : Tensor of shape (p, 2, n_half), optional
        Added to S(+psi) and S(-psi) of pairing g from row g mod p; minus infinity excludes a rotation.

    Returns
    -------
    value : Tensor of shape (g, 2, b)
        Maxima, float32.
    index : Tensor of shape (g, 2, b)
        j of the rotations +psi_j and -psi_j, int32; see `angle_deg`.
    """
    n_orders, n_pairs, _, n_particles = spectra.shape
    dtype = torch.promote_types(spectra.dtype, torch.float32)
    value = torch.empty(n_pairs, 2, n_particles, dtype=dtype, device=spectra.device)
    index = torch.empty(n_pairs, 2, n_particles, dtype=torch.int32, device=spectra.device)
    chunk = max(1, 200_000 // (len(cosine) * n_particles))
    for g in range(0, n_pairs, chunk):
        part = spectra[:, g : g + chunk]
        even = cosine @ part[:, :, 0].reshape(n_orders, -1)
        odd = sine @ part[:, :, 1].reshape(n_orders, -1)
        row = torch.arange(g, g + part.shape[1], device=spectra.device)
        for sign, score in enumerate((even + odd, even - odd)):
            score = score.view(len(cosine), -1, n_particles)
            if penalty is not None:
                score = score + penalty[row % len(penalty), sign].T[..., None]
            best, at = score.max(dim=0)
            value[g : g + chunk, sign] = best
            index[g : g + chunk, sign] = at.to(torch.int32)
    return value, index


def angle_deg(index: Tensor, sign: Tensor, n_half: int) -> Tensor:
    """Return the rotation that an index of `rotational_max` stands for.

    Parameters
    ----------
    index : Tensor
        Indices j.
    sign : Tensor
        0 for +psi_j, 1 for -psi_j.
    n_half : int
        Rotations of the half circle.

    Returns
    -------
    Tensor
        Degrees.
    """
    angle = (index + 0.5) * (180.0 / n_half)
    return torch.where(sign == 1, -angle, angle)


def grid_candidates(
    value: Tensor, index: Tensor, pairings: Tensor, n: int, *, n_half: int, first: int, n_references: int
) -> tuple[Tensor, Tensor]:
    """Select the best grid poses of every particle, in any order.

    Parameters
    ----------
    value, index : Tensor of shape (r, p, b)
        Results of `rotational_max` of r references in p pairings with b particles.
    pairings : Tensor of shape (p, 4)
        Shift x and y of the particle in pixels, mirror, and sign of psi: 1 for -psi.
    n : int
        Number of poses of a particle.
    n_half : int
        Rotations over half a turn.
    first : int
        Number of the first reference.
    n_references : int
        Number of all references, after which the templates of mirrored particles are counted.

    Returns
    -------
    Tensor of shape (n, b)
        Template of each pose; fewer than n where there are no more.
    Tensor of shape (n, b, 4)
        psi in degrees, offset x and y from the particle's centre in pixels, score.
    """
    flat = value.flatten(0, 1)
    score, at = flat.topk(min(n, len(flat)), dim=0)
    x, y, mirror, sign = pairings[at % len(pairings)].unbind(-1)
    psi = angle_deg(index.flatten(0, 1).gather(0, at), sign, n_half)
    offset = rotate_xy(-psi, torch.stack([x, y], dim=-1))
    row = first + at // len(pairings) + n_references * mirror.long()
    return row, torch.cat([psi[..., None], offset, score[..., None]], dim=-1)


def shortlist(row: Tensor, pose: Tensor, n: int, same: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """Select the best few of every particle's candidate poses, counting those near one maximum once.

    Parameters
    ----------
    row : Tensor of shape (c, b)
        Template of each candidate.
    pose : Tensor of shape (c, b, 4)
        psi in degrees, x and y in pixels, score.
    n : int
        Number of candidates that stay.
    same : tuple of float, optional
        Degrees and pixels: of candidates of one template closer than this only the best keeps its score; the others
        come last, at minus infinity.

    Returns
    -------
    Tensor of shape (n, b)
        Templates, the highest score first.
    Tensor of shape (n, b, 4)
        Their poses.
    """
    psi, x, y, score = pose.unbind(-1)
    score = torch.where(score.isnan(), -math.inf, score)
    if same is not None:
        near = row[:, None] == row
        near &= wrap_deg(psi[:, None] - psi).abs() < same[0]
        near &= ((x[:, None] - x).abs() < same[1]) & ((y[:, None] - y).abs() < same[1])
        number = torch.arange(len(score), device=score.device)[:, None, None]
        better = (score > score[:, None]) | ((score == score[:, None]) & (number.transpose(0, 1) < number))
        score = torch.where((near & better).any(1), -math.inf, score)
    score, at = (part[:n] for part in score.sort(dim=0, descending=True, stable=True))
    kept = pose.gather(0, at[..., None].expand(-1, -1, 4))
    return row.gather(0, at), torch.cat([kept[..., :3], score[..., None]], dim=-1)
