"""The functions of the pose search in plain PyTorch: what each computes, and the oracle of its Triton form.

The score of a pose is S = sum w Re[F exp(-i r (x cos a + y sin a)) conj(T)] over polar samples of radius r and angle
a: F the particle's, T the rotated template's, (x, y) the particle's shift. `rotational_max` finds its maxima on a grid
of rotations, `shortlist` the best few candidates of each particle, and `newton` follows them off the grid: exact in
the shift, quadratic in the rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from ralib.conventions import wrap_deg

N_MOMENTS = 12
FINE_ROTATIONS = 2
"""Fine rotations per angular sample of the polar grid, at which templates are tabulated."""
TABLE_BYTES = 2**25
"""Templates tabulated at a time, as complex numbers: what that needs besides is several times as much."""
SETTLED = 3e-5
"""A step that changes the score by less, by its quadratic form and as a fraction of the score, is a pose's last."""


@dataclass(frozen=True)
class FineTemplates:
    """Templates tabulated at fine rotations, and the polar samples they stand on.

    Attributes
    ----------
    table : Tensor
        (t, F, 2, K, A + H + 2) float32: real and imaginary parts of templates at angles (a + f / F); column 0 is angle
        -1, columns past A + 1 repeat the first. For the Triton form its `half_pairs`.
    radius : Tensor
        (K,) radii, radians per pixel.
    angle : Tensor
        (H,) angles of the half circle, radians.
    weight : Tensor
        (K,) quadrature weights of the radii.
    """

    table: Tensor
    radius: Tensor
    angle: Tensor
    weight: Tensor

    @property
    def step_deg(self) -> float:
        """Degrees between two fine rotations."""
        return 180.0 / (self.table.shape[1] * len(self.angle))


@dataclass(frozen=True)
class NewtonRule:
    """Which samples a Newton step uses, how far it may go, and which candidates take how many.

    Attributes
    ----------
    stops : tuple of int
        Below the first of these radii every third angle is used, from there to the second every second one, from there
        to the last all; none beyond. See `ralib.alignment.search.templates.angle_stops`.
    limit_xy_px : tuple of float
        How far offsets may go, pixels.
    most_deg, most_px : float
        How far one step may go.
    slack : float
        A pose whose score lies behind the particle's first one's by more than this fraction takes no step.
    steps : int
        Steps at most. One step ends at the score that it promises; with more, a pose goes on until a step changes next
        to nothing.
    """

    stops: tuple[int, int, int]
    limit_xy_px: tuple[float, float]
    most_deg: float
    most_px: float
    slack: float = math.inf
    steps: int = 1


NewtonStep = tuple[Tensor, Tensor, Tensor]
"""Poses (c, b, 4) after a step, by how much it changes the score (c, b), and the score before it (c, b)."""


def gather_taps(values: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of a few samples of a Hermitian half transform, at fixed places: the gridding step of `PolarGrid`.

    Parameters
    ----------
    values : Tensor
        (b, f) complex64.
    index : Tensor
        (p, t) int32 into values; a negative index i reads conj(values[b, -1 - i]).
    weight : Tensor
        (p, t) float32.

    Returns
    -------
    Tensor
        (b, p) complex64: out[b, p] = sum_t weight[p, t] * values[b, index[p, t]].
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
    samples: Tensor, shift_xy_px: Tensor | None, basis: Tensor, n_radii: int, dtype: torch.dtype
) -> Tensor:
    """Real and imaginary parts of the innermost radii, moved by a shift and scaled to unit norm.

    The scale of each particle, its root sum of squares, is `part_norm`; without it half precision could overflow.

    Parameters
    ----------
    samples : Tensor
        (b, K, H) complex64 polar Fourier samples.
    shift_xy_px : Tensor or None
        (b, 2), pixels.
    basis : Tensor
        (2, K, H): x and y component of each sample's frequency, radians per pixel.
    n_radii : int
        How many radii, from the innermost.
    dtype : torch.dtype
        Of the result.

    Returns
    -------
    Tensor
        (2, b, n_radii, H).
    """
    inner = samples[:, :n_radii] / part_norm(samples, n_radii)[:, None, None]
    if shift_xy_px is not None:
        turn = torch.tensordot(shift_xy_px, basis[:2, :n_radii], dims=1)
        co, si = torch.cos(turn), torch.sin(turn)
        real = inner.real * co + inner.imag * si
        imag = inner.imag * co - inner.real * si
    else:
        real, imag = inner.real, inner.imag
    return torch.stack([real, imag]).to(dtype)


def part_norm(samples: Tensor, n_radii: int) -> Tensor:
    """Root sum of squares (b,) of the innermost radii of each particle; shifts do not change it."""
    inner = torch.view_as_real(samples[:, :n_radii]).flatten(1)
    return torch.linalg.vector_norm(inner, dim=1).clamp(min=1e-30)


def angular_tables(orders: Tensor, n_half: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos(m psi_j) and sin(m psi_j), each (n_half, m), for psi_j = pi (j + 1/2) / n_half."""
    psi = (torch.arange(n_half, device=orders.device, dtype=torch.float64) + 0.5) * (math.pi / n_half)
    turn = psi[:, None] * orders
    return torch.cos(turn).to(dtype), torch.sin(turn).to(dtype)


def rotational_max(
    spectra: Tensor, cosine: Tensor, sine: Tensor, penalty: Tensor | None = None, *, rough: bool = False
) -> tuple[Tensor, Tensor]:
    """Best value over positive, and over negative, rotations of each cross spectrum, and where.

    With S(psi) = sum_m X_m cos(m psi) + Y_m sin(m psi), E the cosine and O the sine sum at psi >= 0,
    S(+-psi) = E +- O: half the angles give all. In chunks that stay in a core's cache.

    Parameters
    ----------
    spectra : Tensor
        (m, g, 2, b): X and Y of order m, for g pairings of b particles.
    cosine, sine : Tensor
        (n_half, m), see `angular_tables`.
    penalty : Tensor or None
        (p, 2, n_half) added to S(+psi) and S(-psi) of pairing g from row g mod p: minus infinity forbids.
    rough : bool
        Products may round their factors to 11 bits (TF32) where the device has units for that.

    Returns
    -------
    value : Tensor
        (g, 2, b) float32.
    index : Tensor
        (g, 2, b) int32: j of the rotations +psi_j and -psi_j; see `angle_deg`.
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
    """The rotation that entry `index` of `rotational_max` stands for, degrees; sign 0 means +psi, 1 means -psi."""
    angle = (index + 0.5) * (180.0 / n_half)
    return torch.where(sign == 1, -angle, angle)


def shortlist(row: Tensor, pose: Tensor, n: int, same: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """The best few of every particle's candidate poses, those on their way to one maximum counted once.

    Parameters
    ----------
    row : Tensor
        (c, b) which template.
    pose : Tensor
        (c, b, 4): psi in degrees, x and y in pixels, score.
    n : int
        How many candidates stay.
    same : tuple of float or None
        Degrees and pixels: of candidates of one template closer than this only the best keeps its score; the others
        come last, at minus infinity.

    Returns
    -------
    tuple of Tensor
        Row (n, b) and pose (n, b, 4), the highest score first.
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


def half_pairs(table: Tensor) -> Tensor:
    """A table (t, F, 2, K, C) with both parts of an entry in one word: (t, F, K, C) int32, each part half precision.

    Templates have unit norm, so that no entry overflows; rounding moves a score by less than 10^-4 of it.
    """
    return table.movedim(2, -1).half().contiguous().view(torch.int32)[..., 0]


def rotated_table(spectrum: Tensor, n_half: int, *, mirror: bool, packed: bool = False) -> Tensor:
    """Templates at fine rotations, as `newton` reads them.

    Parameters
    ----------
    spectrum : Tensor
        (k, K, m) complex64: the templates' angular orders from 0, at most `n_half`.
    n_half : int
        Angles H of the half circle; the full one has A = 2 H.
    mirror : bool
        Their mirror images follow the templates.
    packed : bool
        As `half_pairs`.

    Returns
    -------
    Tensor
        (k, or 2 k with mirror images, F, 2, K, A + H + 2) float32, F = FINE_ROTATIONS; packed (..., F, K, A + H + 2).
    """
    n_angles, n_radii, device = 2 * n_half, spectrum.shape[1], spectrum.device
    spectrum = torch.nn.functional.pad(spectrum, (0, n_half - spectrum.shape[2]))
    m = torch.arange(n_half, device=device)
    fraction = torch.arange(FINE_ROTATIONS, device=device) * (2 * math.pi / (FINE_ROTATIONS * n_angles))
    turn = torch.polar(torch.ones(FINE_ROTATIONS, n_half, device=device), fraction[:, None] * m)[:, None]
    sign = 1.0 - 2.0 * (m[1:] % 2)
    planes, dtype = ((), torch.int32) if packed else ((2,), torch.float32)
    shape = ((1 + mirror) * len(spectrum), FINE_ROTATIONS, *planes, n_radii, n_angles + n_half + 2)
    table = torch.empty(shape, dtype=dtype, device=device)
    both = torch.cat([spectrum, spectrum.conj()]) if mirror else spectrum
    group = max(1, TABLE_BYTES // (FINE_ROTATIONS * n_radii * n_angles * 8))
    for i in range(0, len(both), group):
        positive = both[i : i + group, None] * turn
        # A real image: order -m is (-1)^m times the conjugate of order m.
        negative = (positive[..., 1:].conj() * sign).flip(-1)
        full = torch.cat([positive, torch.zeros_like(positive[..., :1]), negative], dim=-1)
        circle = torch.fft.ifft(full, dim=-1, norm="forward")
        wrapped = torch.cat([circle[..., -1:], circle, circle[..., : n_half + 1]], dim=-1)
        parts = torch.view_as_real(wrapped).movedim(-1, 2)
        table[i : i + group] = half_pairs(parts) if packed else parts
    return table


def newton(
    samples: Tensor, centre: Tensor, row: Tensor, pose: Tensor, templates: FineTemplates, rule: NewtonRule
) -> Tensor:
    """Poses after one or several Newton steps in (psi, x, y), off the grid.

    With several steps, those that lost score are halved; a pose that does not settle ends where its score was highest,
    with what that was. A pose too far behind (`NewtonRule.slack`) keeps its place and loses its score, to minus
    infinity.

    Parameters
    ----------
    samples : Tensor
        (b, K, H) complex64 polar Fourier samples of the particles.
    centre : Tensor
        (b, 2) origin the offsets x, y count from, pixels.
    row : Tensor
        (c, b) which template of the table.
    pose : Tensor
        (c, b, 4): psi in degrees, x and y in pixels, score.
    templates : FineTemplates
    rule : NewtonRule

    Returns
    -------
    Tensor
        (c, b, 4) poses.
    """
    particle = torch.arange(len(samples), device=samples.device).expand_as(row).flatten()

    def one_step(pose: Tensor) -> NewtonStep:
        position = torch.floor(pose[..., 0] / templates.step_deg + 0.5).long()
        shift = (centre + pose[..., 1:3]).flatten(0, 1)
        moments = pose_moments(samples, particle, shift, row.flatten(), position.flatten(), templates, rule.stops)
        return stepped(moments.view(*position.shape, -1), pose, position, templates, rule)

    return repeated_steps(one_step, pose, rule.slack, rule.steps)


def repeated_steps(one_step: Callable[[Tensor], NewtonStep], pose: Tensor, slack: float, steps: int) -> Tensor:
    """Poses (c, b, 4) after the steps of `newton`; the hopeless keep their place."""
    if steps == 1:
        return _only_hopeful(one_step(pose)[0], pose, slack)
    going, now = torch.ones_like(pose[..., 3], dtype=torch.bool), pose
    highest = torch.cat([pose[..., :3], torch.full_like(pose[..., 3:], -math.inf)], dim=-1)
    for _ in range(steps):
        after, change, score = one_step(now)
        lost = score < highest[..., 3]
        settled = ~lost & (change <= SETTLED * score.abs())
        risen = torch.where(settled[..., None], after, torch.cat([now[..., :3], score[..., None]], dim=-1))
        now = torch.where(lost[..., None], 0.5 * (highest + now), after)
        highest = torch.where((going & ~lost)[..., None], risen, highest)
        going &= ~settled
        if not going.any():
            break
    return _only_hopeful(highest, pose, slack)


def _only_hopeful(stepped: Tensor, pose: Tensor, slack: float) -> Tensor:
    """Stepped poses; where the score before lay too far behind the first one's, the pose before, without a score."""
    score = pose[..., 3]
    behind = (score < score[0] - slack * score[0].abs())[..., None]
    return torch.where(behind, torch.cat([pose[..., :3], torch.full_like(pose[..., 3:], -math.inf)], dim=-1), stepped)


def stepped(moments: Tensor, pose: Tensor, position: Tensor, templates: FineTemplates, rule: NewtonRule) -> NewtonStep:
    """The step that moments (c, b, 12) at the fine angular positions (c, b) next to poses (c, b, 4) call for."""
    step_deg = templates.step_deg
    gradient, curvature = derivatives(moments, templates.table.shape[1] * step_deg)
    limit = pose.new_tensor(rule.limit_xy_px)
    gradient, curvature = held_at_limit(gradient, curvature, pose[..., 1:3], limit)
    step = newton_step(gradient, curvature)
    most = step.new_tensor([rule.most_deg, rule.most_px, rule.most_px])
    step = step * (most / step.abs().clamp(min=1e-12)).amin(-1, keepdim=True).clamp(max=1.0)
    offset = torch.clamp(pose[..., 1:3] + step[..., 1:], -limit, limit)
    step = torch.cat([step[..., :1], offset - pose[..., 1:3]], dim=-1)
    score = moments[..., 3] + expected_gain(gradient, curvature, step)
    after = torch.cat([(position * step_deg + step[..., 0])[..., None], offset, score[..., None]], dim=-1)
    # By the diagonal of the quadratic form, also where that is no maximum's.
    bend = torch.stack([curvature[0], curvature[3], curvature[5]], dim=-1).abs()
    change = 0.5 * (bend * (after - pose)[..., :3].square()).sum(-1)
    off = pose[..., 0] - position * step_deg
    return after, change, moments[..., 3] + off * (gradient[..., 0] + 0.5 * off * curvature[0])


def derivatives(moments: Tensor, h_deg: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Gradient (..., 3) in (psi, x, y), and second derivatives psi psi, psi x, psi y, x x, x y, y y, from moments."""
    below, here, above, second = moments.split(3, dim=-1)
    per_deg = 1.0 / h_deg
    gradient = torch.stack([0.5 * per_deg * (above[..., 0] - below[..., 0]), here[..., 1], here[..., 2]], dim=-1)
    psi_psi = per_deg**2 * (above[..., 0] - 2 * here[..., 0] + below[..., 0])
    psi_x = 0.5 * per_deg * (above[..., 1] - below[..., 1])
    psi_y = 0.5 * per_deg * (above[..., 2] - below[..., 2])
    return gradient, (psi_psi, psi_x, psi_y, *second.unbind(-1))


def held_at_limit(
    gradient: Tensor, curvature: tuple[Tensor, ...], offset: Tensor, limit: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same where an offset at its limit would go on outwards: that coordinate is out of the problem."""
    free = ((offset.abs() < limit) | (offset * gradient[..., 1:] < 0)).to(gradient.dtype)
    x, y = free.unbind(-1)
    pp, px, py, xx, xy, yy = curvature
    gradient = torch.cat([gradient[..., :1], gradient[..., 1:] * free], dim=-1)
    return gradient, (pp, px * x, py * y, xx, xy * x * y, yy)


def newton_step(gradient: Tensor, curvature: tuple[Tensor, ...]) -> Tensor:
    """-H^-1 g by cofactors where H is negative definite; elsewhere each coordinate steps by itself."""
    a, b, c, d, e, f = (-h for h in curvature)
    c00, c01, c02 = d * f - e * e, c * e - b * f, b * e - c * d
    c11, c12, c22 = a * f - c * c, b * c - a * e, a * d - b * b
    det = a * c00 + b * c01 + c * c02
    x, y, z = gradient.unbind(-1)
    adjugate = torch.stack([c00 * x + c01 * y + c02 * z, c01 * x + c11 * y + c12 * z, c02 * x + c12 * y + c22 * z], -1)
    diagonal = torch.stack([a, d, f], dim=-1).abs().clamp(min=1e-12)
    definite = (a > 0) & (c22 > 0) & (det > 1e-6 * diagonal.prod(-1))
    full = adjugate / torch.where(definite, det, 1.0)[..., None]
    return torch.where(definite[..., None], full, gradient / diagonal)


def expected_gain(gradient: Tensor, curvature: tuple[Tensor, ...], step: Tensor) -> Tensor:
    """What the local quadratic promises for a step."""
    pp, px, py, xx, xy, yy = curvature
    p, x, y = step.unbind(-1)
    bent = 0.5 * (pp * p * p + xx * x * x + yy * y * y) + px * p * x + py * p * y + xy * x * y
    return (gradient * step).sum(-1) + bent


def pose_moments(
    samples: Tensor,
    particle: Tensor,
    shift_xy_px: Tensor,
    row: Tensor,
    position: Tensor,
    templates: FineTemplates,
    stops: tuple[int, int, int],
) -> Tensor:
    """Moments (c, 12) of c candidates: (S, dS/dx, dS/dy) at three rotations, then d2S/dx2, d2S/dxdy, d2S/dy2.

    particle (c,), shift_xy_px (c, 2), row (c,) of the table, position (c,) in fine steps: the rotations are one whole
    angular sample below it, at it, and one above. The rest as in `newton`.
    """
    table, radius, angle, weight = templates.table, templates.radius, templates.angle, templates.weight
    n_half, n_fine = samples.shape[-1], table.shape[1]
    k, h, stride = used_samples(stops, n_half, samples.device)
    fx, fy = radius[k] * torch.cos(angle[h]), radius[k] * torch.sin(angle[h])
    w = weight[k] * stride
    even_basis = torch.stack([w, -w * fx * fx, -w * fx * fy, -w * fy * fy], dim=1)
    odd_basis = torch.stack([w * fx, w * fy], dim=1)
    out = weight.new_empty(len(particle), N_MOMENTS)
    chunk = max(1, 400_000 // samples[0].numel())
    for c in range(0, len(particle), chunk):
        cut = slice(c, c + chunk)
        turn = shift_xy_px[cut, :1] * fx + shift_xy_px[cut, 1:] * fy
        mine = samples[particle[cut]][:, k, h]
        co, si = torch.cos(turn), torch.sin(turn)
        moved_re, moved_im = mine.real * co + mine.imag * si, mine.imag * co - mine.real * si
        fine = position[cut] % (2 * n_half * n_fine)
        template = table[row[cut], fine % n_fine]
        one = torch.arange(len(fine), device=fine.device)[:, None]
        for i in range(3):
            re, im = template[one, :, k, (fine // n_fine + i)[:, None] + h].unbind(-1)
            # d/dx of Re[P exp(-i fx x)] is fx Im[P], the second derivative -fx fx Re[P].
            even = (moved_re * re + moved_im * im) @ even_basis
            odd = (moved_im * re - moved_re * im) @ odd_basis
            out[cut, 3 * i] = even[:, 0]
            out[cut, 3 * i + 1 : 3 * i + 3] = odd
            if i == 1:
                out[cut, 9:] = even[:, 1:]
    return out


def used_samples(stops: tuple[int, int, int], n_half: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Radius and angle index of the samples used, and how many each stands for: (p,) each. `stops`: see `newton`."""
    parts = []
    for step, (first, stop) in zip((3, 2, 1), pairwise((0, *stops)), strict=True):
        k, h = torch.arange(first, stop, device=device), torch.arange(0, n_half, step, device=device)
        grid = torch.cartesian_prod(k, h)
        parts.append(torch.cat([grid, torch.full_like(grid[:, :1], step)], dim=1))
    k, h, stride = torch.cat(parts).unbind(1)
    return k, h, stride
