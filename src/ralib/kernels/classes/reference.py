"""The functions of the classification in plain PyTorch: their definition, and the oracle of the Triton forms.

With S(psi) = sum_m X_m cos(m psi) + Y_m sin(m psi), E the cosine and O the sine sum at psi >= 0, the best of +psi and
-psi is E + |O|: one sum serves both, and the sign of O tells which of them it is.

Sums over particles are of multiples of one quantum, and so the same in any order (`ralib.classification.sharding`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ralib.conventions import mirror_x, rotate_xy
from ralib.kernels.likelihood.reference import FITS_AT_ONCE
from ralib.kernels.pose_search.reference import angle_deg, angular_tables, rotational_max

AddUp = Callable[[Tensor], Tensor]
"""Adds up, in place, the sums of all ranks."""


@dataclass(frozen=True)
class PoseGrid:
    """Rotations, shifts and mirrors among which the best pose is sought.

    Attributes
    ----------
    cosine, sine : Tensor of shape (n_half, m)
        Of the angular orders at the positive rotations; see `ralib.kernels.pose_search.angular_tables`.
    shifts_xy_px : Tensor of shape (S, 2)
        Shifts of the class, pixels.
    mirror : bool
        Whether mirrored poses are among them.
    """

    cosine: Tensor
    sine: Tensor
    shifts_xy_px: Tensor
    mirror: bool

    @property
    def flips(self) -> int:
        """Number of mirrors."""
        return 2 if self.mirror else 1

    @property
    def n_pairs(self) -> int:
        """Number of shifts times mirrors: pairs of rows of a class in the cross spectra, shift by shift."""
        return len(self.shifts_xy_px) * self.flips


@dataclass(frozen=True)
class GridPoses:
    """The best pose on a grid of each of b particles in each of k classes, every field (b, k).

    Attributes
    ----------
    cross : Tensor of shape (b, k)
        Cross term.
    psi_deg : Tensor of shape (b, k)
        In-plane rotation, degrees.
    shift : Tensor of shape (b, k)
        Which shift of the class.
    mirror : Tensor of shape (b, k)
        True where mirrored.
    """

    cross: Tensor
    psi_deg: Tensor
    shift: Tensor
    mirror: Tensor


@dataclass(frozen=True)
class Rings:
    """Rings of the Fourier plane, on which samples lie at H angles of a half circle.

    Attributes
    ----------
    frequency : Tensor of shape (r,)
        Radii, cycles per pixel.
    angle_rad : Tensor of shape (H,)
        Angles from 0 up to (not including) pi; the rest of the circle is the conjugate. H is even.
    """

    frequency: Tensor
    angle_rad: Tensor

    @property
    def n_rings(self) -> int:
        """Number of rings r."""
        return len(self.frequency)

    def phase(self, shift_xy_px: Tensor) -> Tensor:
        """Return exp(-2 pi i k.s), (b, r, H): multiplied to samples it shifts the image by s.

        Parameters
        ----------
        shift_xy_px : Tensor of shape (b, 2)
            Shift s, pixels.

        Returns
        -------
        Tensor of shape (b, r, H)
            Phase factors.
        """
        cosine, sine = self.directions
        along = shift_xy_px[:, :1] * cosine + shift_xy_px[:, 1:] * sine
        return phase_factor(-2 * math.pi * along[:, None, :] * self.frequency[:, None])

    @cached_property
    def directions(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines (H,) of the angles."""
        return torch.cos(self.angle_rad), torch.sin(self.angle_rad)


def phase_factor(turn_rad: Tensor) -> Tensor:
    """Return exp(i a) of angles a (...), in radians."""
    return torch.polar(_one(turn_rad.device, turn_rad.dtype), turn_rad)


@functools.lru_cache(maxsize=16)
def _one(device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.ones((), device=device, dtype=dtype)


def turned_orders(orders: Tensor, psi_deg: Tensor) -> Tensor:
    """Rotate images, given as angular orders.

    Parameters
    ----------
    orders : Tensor of shape (b, r, m)
        Angular orders.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.

    Returns
    -------
    Tensor of shape (b, r, m)
        Angular orders times exp(i m psi).
    """
    turn = torch.deg2rad(psi_deg)[:, None] * order_numbers(orders.shape[-1], orders.device)
    return orders * phase_factor(turn)[:, None]


def posed_orders(orders: Tensor, psi_deg: Tensor, mirror: Tensor) -> Tensor:
    """Bring particles into the frame of their classes; their origins are there already.

    Parameters
    ----------
    orders : Tensor of shape (b, r, m)
        Angular orders.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    mirror : Tensor of shape (b,)
        True where mirrored.

    Returns
    -------
    Tensor of shape (b, r, m)
        Angular orders.
    """
    posed = turned_orders(orders, -psi_deg)
    return torch.where(mirror[:, None, None], posed.conj(), posed).resolve_conj()


@functools.lru_cache(maxsize=64)
def order_numbers(n_orders: int, device: torch.device) -> Tensor:
    """Return the numbers of angular orders.

    Parameters
    ----------
    n_orders : int
        How many there are.
    device : torch.device
        Where the result is.

    Returns
    -------
    Tensor of shape (n_orders,)
        0, 1 and so on, as floating point.
    """
    return torch.arange(n_orders, device=device, dtype=torch.float32)


def angular_orders(samples: Tensor, n_orders: int) -> Tensor:
    """Return the coefficients F_m, m = 0..n_orders-1, of F(phi) = sum_m F_m exp(i m phi).

    Parameters
    ----------
    samples : Tensor of shape (..., H)
        Samples of a half circle.
    n_orders : int
        Number of angular orders.

    Returns
    -------
    Tensor of shape (..., n_orders)
        Angular orders.
    """
    circle = torch.cat([samples, samples.conj()], dim=-1)
    if not circle.numel():  # of the particles looked at, a rank may hold none, and cuFFT takes no empty batch
        return circle[..., :n_orders]
    return torch.fft.fft(circle, dim=-1, norm="forward")[..., :n_orders]


def moved_orders(
    samples: Tensor, shift_xy_px: Tensor, rings: Rings, n_orders: int, row: Tensor | None = None
) -> Tensor:
    """Compute the angular orders of shifted samples.

    Parameters
    ----------
    samples : Tensor of shape (n, R, H)
        Samples on at least these rings, complex64.
    shift_xy_px : Tensor of shape (b, 2)
        Shifts, pixels.
    rings : Rings
        Radii and angles.
    n_orders : int
        Number of angular orders m.
    row : Tensor of shape (b,), optional
        Which of the samples are shifted; by default the first, the second and so on.

    Returns
    -------
    Tensor of shape (b, r, m)
        Angular orders.
    """
    chosen = samples[:, : rings.n_rings] if row is None else samples[row, : rings.n_rings]
    return angular_orders(chosen * rings.phase(shift_xy_px), n_orders)


@dataclass(frozen=True)
class PosedParticles:
    """Particles, each at a pose in a class, every field (b,).

    Attributes
    ----------
    row : Tensor of shape (b,)
        Which of the particles.
    shift_xy_px : Tensor of shape (b, 2)
        Origin shift, pixels.
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    mirror : Tensor of shape (b,)
        True where mirrored.
    to : Tensor of shape (b,)
        Number of the class.
    """

    row: Tensor
    shift_xy_px: Tensor
    psi_deg: Tensor
    mirror: Tensor
    to: Tensor

    def fields(self) -> tuple[Tensor, ...]:
        """Return all fields."""
        return self.row, self.shift_xy_px, self.psi_deg, self.mirror, self.to

    def part(self, some: slice) -> PosedParticles:
        """Return some of them."""
        return PosedParticles(*(f[some] for f in self.fields()))

    def orders(self, samples: Tensor, rings: Rings, n_orders: int) -> Tensor:
        """Return the angular orders in the frame of the class.

        Parameters
        ----------
        samples : Tensor of shape (n, R, H)
            Samples of all particles on at least these rings.
        rings : Rings
            Radii and angles.
        n_orders : int
            Number of angular orders m.

        Returns
        -------
        Tensor of shape (b, r, m)
            Angular orders.
        """
        orders = moved_orders(samples, self.shift_xy_px, rings, n_orders, self.row)
        return posed_orders(orders, self.psi_deg, self.mirror)


def ring_crosses(samples: Tensor, places: PosedParticles, references: Tensor, rings: Rings) -> Tensor:
    """Compute the cross terms of particles with their classes on each ring.

    Parameters
    ----------
    samples : Tensor of shape (n, R, H)
        Samples on at least these rings, complex64.
    places : PosedParticles
        The particles b and their poses.
    references : Tensor of shape (k, r, m)
        Angular orders of the class averages.
    rings : Rings
        Radii and angles.

    Returns
    -------
    Tensor of shape (b, r)
        Cross terms: sums over the angles of Re[F conj(A)].
    """
    product = (places.orders(samples, rings, references.shape[2]) * references[places.to].conj()).real
    return len(rings.angle_rad) * (2 * product.sum(2) - product[..., 0])


@dataclass(frozen=True)
class PosedTerms:
    """Particles to be added to averages.

    Attributes
    ----------
    places : PosedParticles
        The particles b and their poses; the class is the number of the average.
    weight, scale : Tensor of shape (b,)
        Responsibility and contrast.
    anchors : Tensor of shape (2, r)
        Of the numerators' and of the weights' quanta on each ring, float64; see
        `ralib.classification.sharding.quantum_anchor`.
    """

    places: PosedParticles
    weight: Tensor
    scale: Tensor
    anchors: Tensor

    def part(self, some: slice) -> PosedTerms:
        """Return some of the terms."""
        return PosedTerms(self.places.part(some), self.weight[some], self.scale[some], self.anchors)


def add_posed(
    samples: Tensor, power: Tensor, terms: PosedTerms, rings: Rings, sums: tuple[Tensor, Tensor], at_once: int
) -> None:
    """Add posed particles to sums of their angular orders and of their power.

    Parameters
    ----------
    samples : Tensor of shape (n, R, H)
        Samples on at least these rings, complex64.
    power : Tensor of shape (n, R)
        Factor of a template's ring power in the norm.
    terms : PosedTerms
        What is added.
    rings : Rings
        Radii and angles.
    sums : tuple of Tensor
        Numerators (c, r, m, 2) and weights (c, r), float64, changed in place; they are multiples of a quantum, and so
        the same in any order.
    at_once : int
        Terms whose samples are held at a time.
    """
    (numerator, total), (own, of_power) = sums, terms.anchors
    for first in range(0, len(terms.weight), at_once):
        part = terms.part(slice(first, first + at_once))
        places, w, a = part.places, part.weight, part.scale
        posed = torch.view_as_real(places.orders(samples, rings, numerator.shape[2]))
        values = (posed * (w * a)[:, None, None, None]).double()
        numerator.index_add_(0, places.to, values + own[:, None, None] - own[:, None, None])
        values = (power[places.row, : rings.n_rings] * (w * a * a)[:, None]).double()
        total.index_add_(0, places.to, values + of_power - of_power)


def sum_bounds(energy: Tensor, power: Tensor, weight: Tensor, scale: Tensor, n_half: int) -> Tensor:
    """Return upper bounds, on each ring, of what `add_posed` adds for one particle of one class.

    Parameters
    ----------
    energy : Tensor of shape (b, R)
        Sum over the angles of a particle's squared samples.
    power : Tensor of shape (b, R)
        Factor of a template's ring power in the norm.
    weight, scale : Tensor of shape (c, b)
        Responsibilities of c classes, and contrasts; neither is negative.
    n_half : int
        Number of angles H.

    Returns
    -------
    Tensor of shape (2, R)
        Bounds of the numerators, and of the weights; 0 where there is no particle.
    """
    if not len(energy):
        return energy.new_zeros(2, energy.shape[1])
    factor = weight * scale
    heaviest, largest = factor.amax(0)[:, None], (factor * scale).amax(0)[:, None]
    # An angular order is a mean over angles: no larger than the root of the mean square.
    amplitude = torch.sqrt(energy / n_half) * heaviest
    return torch.stack([amplitude, power * largest], dim=1).amax(0)


def half_columns(
    samples: Tensor, shift_xy_px: Tensor, rings: Rings, n_orders: int, multiple: int
) -> tuple[Tensor, Tensor]:
    """Compute the angular orders of shifted samples in half precision, each particle's scaled to unit norm.

    Parameters
    ----------
    samples : Tensor of shape (b, R, H)
        Samples on at least these rings, complex64.
    shift_xy_px : Tensor of shape (b, 2)
        Shifts, pixels.
    rings : Rings
        Radii and angles.
    n_orders : int
        Number of angular orders m.
    multiple : int
        What c is a multiple of.

    Returns
    -------
    Tensor of shape (m, c, b)
        Real parts on all rings, imaginary parts, and zeros; half precision.
    Tensor of shape (b,)
        What the norms were.
    """
    parts = torch.view_as_real(moved_orders(samples, shift_xy_px, rings, n_orders))
    count = 2 * rings.n_rings
    strength = torch.sqrt(parts.flatten(1).square().mean(1) * (count * n_orders)).clamp_min(1e-30)
    columns = torch.zeros(n_orders, count + -count % multiple, len(parts), dtype=torch.float16, device=samples.device)
    columns[:, :count].unflatten(1, (2, -1)).copy_(parts.permute(2, 3, 1, 0) / strength)
    return columns, strength


def half_rows(orders: Tensor, mirror: bool, multiple: int) -> tuple[Tensor, Tensor]:
    """Make the rows of the scoring product in half precision, whose columns are `half_columns`.

    Pairs of rows are the real and the imaginary part of sum_k conj(T) X (mirrored: T X), with columns Re X and Im X.
    Half precision holds nothing above 65,504: each class is scaled to about 1, whatever the units.

    Parameters
    ----------
    orders : Tensor of shape (k, S, r, m)
        Angular orders of the shifted classes, with all weights of the sum over orders, complex64.
    mirror : bool
        Whether mirrored poses are searched.
    multiple : int
        What c is a multiple of.

    Returns
    -------
    Tensor of shape (m, k * S * 4 or k * S * 2, c)
        Rows over the height of their class, the larger number with mirrored poses, filled up with zeros.
    Tensor of shape (k,)
        Heights: the largest part of an angular order of each class.
    """
    height = torch.view_as_real(orders).flatten(1).abs().amax(1).clamp_min(1e-30)
    a, b = (part / height[:, None, None, None] for part in (orders.real, orders.imag))
    plain, mirrored = (a, b, -b, a), (a, -b, b, a)
    rows = torch.stack([*plain, *mirrored] if mirror else plain, dim=2)
    # Two columns follow each other in a row, and rows in pairs.
    rows = rows.unflatten(2, (-1, 2)).flatten(3, 4).flatten(0, 2).permute(2, 0, 1).half()
    return torch.nn.functional.pad(rows, (0, -rows.shape[2] % multiple)).contiguous(), height


def best_poses(
    particles: Tensor,
    templates: Tensor,
    n_half: int,
    *,
    mirror: bool,
    favour: Tensor | None = None,
    from_ring: Tensor | None = None,
) -> GridPoses:
    """Find the best rotation, mirror and shift of every particle in every class, in single precision.

    Parameters
    ----------
    particles : Tensor of shape (b, r, m)
        Angular orders of the particles, complex64.
    templates : Tensor of shape (k, S, r, m)
        Angular orders of the shifted classes, with all weights of the sum over orders, complex64.
    n_half : int
        Rotations of the half circle, a multiple of 8; see `ralib.kernels.pose_search.angular_tables`.
    mirror : bool
        Whether mirrored poses are among them.
    favour : Tensor of shape (S,), optional
        Added to the cross terms of each shift while poses are compared.
    from_ring : Tensor of shape (m,), optional
        First ring on which each order counts: on those before a class has nothing of it. By default all do.

    Returns
    -------
    GridPoses
        Poses; of equal ones the first.
    """
    k, n_shifts, rings, n_orders = templates.shape
    if from_ring is not None:
        templates = templates * (torch.arange(rings, device=templates.device)[:, None] >= from_ring)
    orders = torch.arange(n_orders, device=templates.device, dtype=torch.float64)
    tables = angular_tables(orders, n_half, dtype=torch.float32)
    flips = (templates.conj(), templates) if mirror else (templates.conj(),)
    pairs = [torch.einsum("ksrm,brm->mksb", t.resolve_conj(), particles) for t in flips]
    # Within a class the order is shift, mirror, sign of the rotation.
    spectra = torch.view_as_real(torch.stack(pairs, dim=3)).permute(0, 1, 2, 3, 5, 4).flatten(1, 3)
    value, turn = rotational_max(spectra, *tables)
    value, turn = (f.view(k, n_shifts, len(flips), 2, -1) for f in (value, turn))
    compared = value if favour is None else value + favour[:, None, None, None]
    at = compared.flatten(1, 3).argmax(dim=1)
    cross, turn = (f.flatten(1, 3).gather(1, at[:, None])[:, 0].T for f in (value, turn))
    at = at.T
    return GridPoses(cross, angle_deg(turn, at % 2, n_half), at // (2 * len(flips)), at // 2 % len(flips) == 1)


def best_in_classes(
    cross: Tensor,
    height: Tensor,
    strength: Tensor,
    origin_xy_px: Tensor,
    grid: PoseGrid,
    out: tuple[Tensor, ...],
    favour: Tensor | None = None,
) -> None:
    """Find the best pose of particles in every class: the maximum over rotations, mirrors and shifts.

    Parameters
    ----------
    cross : Tensor of shape (m, k * P * 2, b)
        Cross spectra X and Y of each order, for the P pairs of each class, half precision.
    height : Tensor of shape (k,)
        What those of a class are to be multiplied by.
    strength : Tensor of shape (b,) or (k, b)
        What those of a particle are to be multiplied by; (k, b) where each class has b particles of its own.
    origin_xy_px : Tensor of shape (b, 2) or (k * b, 2)
        Origin of each particle so far, pixels.
    grid : PoseGrid
        The poses.
    out : tuple of Tensor
        Where the result is written: values (b, k) of the maxima, in-plane rotations (b, k) in degrees, origin shifts
        (b, k, 2) in pixels, and mirrors (b, k); of equal poses the first. Rows may be parts of longer ones. With
        particles of their own k * b in place of b, and 1 in place of k.
    favour : Tensor, optional
        Added to the value of each shift, (S,), while poses are compared, but not to what is written.
    """
    if strength.ndim == 2:
        for number, (own, part) in enumerate(zip(strength, cross.split(2 * grid.n_pairs, dim=1), strict=True)):
            rows = slice(number * len(own), (number + 1) * len(own))
            given = part, height[number : number + 1], own, origin_xy_px[rows], grid, tuple(f[rows] for f in out)
            best_in_classes(*given, favour)
        return
    n_half, k, pairs = len(grid.cosine), len(height), grid.n_pairs
    spectra = cross.float().reshape((len(cross), k, pairs, 2, -1))
    even = torch.einsum("am,mkpb->kpab", grid.cosine.float(), spectra[:, :, :, 0])
    odd = torch.einsum("am,mkpb->kpab", grid.sine.float(), spectra[:, :, :, 1])
    value, scale = even + odd.abs(), (height[:, None] * strength).clamp_min(1e-30)
    if favour is not None:
        added = favour.repeat_interleave(grid.flips)
        value = value + added[:, None, None] / scale[:, None, None]
    best, at = value.flatten(1, 2).max(dim=1)
    minus = odd.flatten(1, 2).gather(1, at[:, None])[:, 0] < 0
    best, pair, turn = best * scale, at // n_half, at % n_half
    if favour is not None:
        best = best - added[pair]
    angle = (turn + 0.5) * (180.0 / n_half)
    psi, flipped = torch.where(minus, -angle, angle).T, (pair % grid.flips == 1).T
    moved_by = -mirror_x(grid.shifts_xy_px[(pair // grid.flips).T], flipped)
    result = best.T, psi, origin_xy_px[:, None] + rotate_xy(-psi, moved_by), flipped
    for into, values in zip(out, result, strict=True):
        into.copy_(values)


@dataclass(frozen=True)
class PriceRule:
    """How prices of classes are approached.

    Attributes
    ----------
    temperature : float
        Of the responsibilities.
    factor : float
        Of the map whose fixed point the prices are; see `class_prices`.
    steps : tuple of (float, float, float)
        Of each step, weights of the map's value, of the prices and of those before them: the next prices are their sum.
    capped : bool
        Whether no price is above 0.
    particles : Tensor of shape ()
        Number of all particles.
    """

    temperature: float
    factor: float
    steps: tuple[tuple[float, float, float], ...]
    capped: bool
    particles: Tensor


def padded_classes(k: int) -> int:
    """Return 64, 256, 1024 ...: as few numbers of classes as possible, for each of which a GPU's kernel is compiled.

    Parameters
    ----------
    k : int
        Number of classes.

    Returns
    -------
    int
        The next of these numbers.
    """
    return max(64, 4 ** (((k - 1).bit_length() + 1) // 2))


def class_prices(fit: Tensor, rule: PriceRule, add_up: AddUp) -> Tensor:
    """Approach the fixed point of price = factor * (price - temperature * log(share of the class / fair share)).

    Parameters
    ----------
    fit : Tensor of shape (n, k)
        Log-likelihood of each class.
    rule : PriceRule
        The rule.
    add_up : callable
        Adds up the members (k,) of all ranks.

    Returns
    -------
    Tensor of shape (k,)
        Prices.
    """
    k = fit.shape[1]
    price = before = torch.zeros(k, device=fit.device)
    for of_map, of_price, of_before in rule.steps:
        members = torch.zeros(k, dtype=torch.float64, device=fit.device)
        for part in fit.split(max(1, FITS_AT_ONCE // k)):
            posterior = torch.softmax((part + price) / rule.temperature, dim=1)
            # As multiples of 2^-23, which they are once 1 was added, probabilities add up exactly in any order.
            members += posterior.add_(1.0).sub_(1.0).sum(0, dtype=torch.float64)
        share = (add_up(members) * k / rule.particles).float()
        paid = rule.factor * (price - rule.temperature * torch.log(share.clamp_min(1e-4)))
        price, before = of_map * paid + of_price * price + of_before * before, price
        if rule.capped:
            price = price.clamp_max(0.0)
    return price


@dataclass(frozen=True)
class ThinningRule:
    """Which class is the least useful.

    Attributes
    ----------
    anchor : Tensor of shape (2,)
        What is added to losses, and to losses in nats, and subtracted again, so that they become multiples of a
        quantum; float64.
    members : int
        Members of a class that may be an exception, at least.
    times : float
        Times the usual loss in nats a member from which on it is one.
    worth : float
        What is added to the loss of an exception.
    """

    anchor: Tensor
    members: int
    times: float
    worth: float


def thin(fit: Tensor, nats: Tensor, keep: int, rule: ThinningRule, add_up: AddUp) -> Tensor:
    """Drop classes one by one, each time the one whose particles lose least by going to their second best.

    Parameters
    ----------
    fit : Tensor of shape (n, k)
        Fit of each class, in units of the particle's spread.
    nats : Tensor of shape (n,)
        The spread in nats, of a particle of typical strength.
    keep : int
        Number of classes to keep.
    rule : ThinningRule
        The rule.
    add_up : callable
        Adds up the losses (k, 3) of all ranks: of each class's members, in nats, and how many these are.

    Returns
    -------
    Tensor of shape (k,)
        True for classes to keep.
    """
    fit, k = fit.clone(), fit.shape[1]
    alive = torch.ones(k, dtype=torch.bool, device=fit.device)
    for left in range(k, keep, -1):
        two, owner = fit.topk(2, dim=1)
        lost = two[:, 0] - two[:, 1]
        terms = torch.stack([lost, lost * nats], dim=1).double().add_(rule.anchor).sub_(rule.anchor)
        sums = torch.zeros(k, 3, dtype=torch.float64, device=fit.device)
        sums.index_add_(0, owner[:, 0], torch.cat([terms, torch.ones_like(terms[:, :1])], dim=1))
        loss, lost_nats, members = add_up(sums).float().unbind(1)
        each = lost_nats / members.clamp_min(1)
        known = torch.where(alive, each, -torch.inf).sort(descending=True).values
        # What more than a third of all classes have is no exception.
        special = torch.maximum(rule.times * known[left // 2], known[keep // 3])
        loss = loss + torch.where((members >= rule.members) & (each > special), rule.worth, 0.0)
        drop = torch.where(alive, loss, torch.inf).argmin()
        alive[drop] = False
        fit[:, drop] = -torch.inf
    return alive
