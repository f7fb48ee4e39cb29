"""What is done with class averages after they were summed, in plain PyTorch: the oracle of the Triton forms.

Averages are angular orders on rings, F(k, phi) = sum_m F_m exp(i m phi) with F_-m = (-1)^m conj(F_m): in a sum over
the circle every order but the first counts twice.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import Tensor

from ralib.conventions import mirror_x, rotate_xy
from ralib.kernels.complex_numbers import squared


def ring_power(orders: Tensor) -> Tensor:
    """Compute the mean over angles of |A|^2.

    Parameters
    ----------
    orders : Tensor of shape (k, r, m)
        Angular orders.

    Returns
    -------
    Tensor of shape (k, r)
        Power.
    """
    power = squared(orders)
    return 2 * power.sum(-1) - power[..., 0]


def wiener_averages(
    numerator: Tensor, weight: Tensor, members: Tensor, ring_weight: Tensor, half_weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute Wiener averages N / (D (1 + 1 / SSNR)), regularised by the SSNR of each class measured from its halves.

    A ring of one class has few samples, so that its FRC is smoothed over neighbouring rings and moved half way to what
    the classes have in common: an SSNR that grows with the members.

    Parameters
    ----------
    numerator : Tensor of shape (2, k, r, m, 2)
        Float64 sums of the halves, as angular orders times the weights of the rings.
    weight : Tensor of shape (2, k, r)
        Float64 sums of the weights, times those of the half circles.
    members : Tensor of shape (k,)
        Number of members.
    ring_weight, half_weight : Tensor of shape (r,)
        Weights of a sample, and of a half circle, in sums over the plane.

    Returns
    -------
    Tensor of shape (k, r, m)
        Angular orders of the averages.
    Tensor of shape (2, k, r, m)
        Angular orders of the half averages.
    Tensor of shape (k, r)
        FRC of the halves.
    Tensor of shape (k, r)
        Factor of the sums.
    """
    sums = torch.view_as_complex(numerator.float()) / ring_weight[:, None]
    power = weight.float() / half_weight
    halves = sums / power.clamp_min(1e-12)[..., None]
    frc = orders_frc(halves)
    smooth = smoothed(frc).clamp(0.0, 0.995)
    own = 2 * smooth / (1 - smooth)
    share = members.clamp_min(1e-3)[:, None]
    common = own.sum(0) / share.sum()
    ssnr = (0.5 * own + 0.5 * common * share).clamp_min(1e-3)
    weight = power.sum(0) * (1 + 1 / ssnr)
    gain = 1 / (weight + 1e-6 * weight.amax())
    shrunk = halves * (ssnr / (ssnr + 2))[..., None]
    return sums.sum(0) * gain[..., None], shrunk, frc, gain


def orders_frc(halves: Tensor) -> Tensor:
    """Compute the Fourier ring correlation of half averages.

    Parameters
    ----------
    halves : Tensor of shape (2, k, r, m)
        Angular orders.

    Returns
    -------
    Tensor of shape (k, r)
        FRC.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        product = (a * b.conj()).real
        return 2 * product.sum(-1) - product[..., 0]

    power = dot(halves, halves)
    return dot(halves[0], halves[1]) / torch.sqrt(power[0] * power[1]).clamp_min(1e-20)


def smoothed(curve: Tensor) -> Tensor:
    """Return curves (k, r) smoothed over neighbouring rings."""
    beside = torch.nn.functional.pad(curve[:, None], (1, 1), mode="replicate")[:, 0]
    return 0.5 * curve + 0.25 * (beside[:, :-2] + beside[:, 2:])


def half_products(first: Tensor, second: Tensor) -> Tensor:
    """Multiply half averages, pixel by pixel.

    Parameters
    ----------
    first, second : Tensor of shape (k, n, n)
        Half averages.

    Returns
    -------
    Tensor of shape (2, k, n, n)
        Their product, and the mean of their squares.
    """
    return torch.stack([first * second, 0.5 * (first.square() + second.square())])


def correlated_share(common: Tensor, power: Tensor) -> Tensor:
    """Compute the Wiener weight 2 c / (1 + c) of the average of two halves that correlate by c.

    Parameters
    ----------
    common, power : Tensor of shape (k, n, n)
        Covariance of the halves and their mean variance, around each pixel.

    Returns
    -------
    Tensor of shape (k, n, n)
        Weight, 0 to 1.
    """
    correlation = (common / power.clamp_min(1e-20)).clamp(0, 1)
    return 2 * correlation / (1 + correlation)


class AllParticles(Protocol):
    """Sums and maxima over the particles of all ranks, as `ralib.classification.sharding.Shard` computes them."""

    @property
    def n(self) -> int:
        """Number of all particles."""
        ...

    def largest(self, values: Tensor) -> Tensor:
        """Return the maximum (...) over all particles of non-negative values (b, ...)."""
        ...

    def sum_by(self, group: Tensor, values: Tensor, n_groups: int) -> Tensor:
        """Sum over the particles of each group; see `ralib.classification.sharding.Shard.sum_by`."""
        ...

    def add_up(self, part: Tensor) -> Tensor:
        """Sum, in place, what every rank has summed in quanta."""
        ...


def centred_origins(
    pose: tuple[Tensor, Tensor, Tensor], usable: Tensor, class_index: Tensor, members: Tensor, particles: AllParticles
) -> tuple[Tensor, Tensor]:
    """Compute the shifts of classes to where their members' boxes have their centres on average, and origins after it.

    Parameters
    ----------
    pose : tuple of Tensor
        (psi_deg, origin_xy_px, mirror) of b particles.
    usable : Tensor of shape (b,)
        True for particles that count.
    class_index : Tensor of shape (b,)
        Classes.
    members : Tensor of shape (k,)
        Number of usable members of all ranks.
    particles : AllParticles
        Adds up over all ranks.

    Returns
    -------
    Tensor of shape (b, 2)
        Origins, pixels.
    Tensor of shape (k, 2)
        Shift of each class, pixels.
    """
    psi_deg, origin_xy_px, mirror = pose
    there = mirror_x(rotate_xy(psi_deg, origin_xy_px), mirror)
    total = particles.sum_by(class_index, there * usable[:, None], len(members)).float()
    move = -total / members.clamp_min(1)[:, None]
    return follow_centres(psi_deg, origin_xy_px, mirror, move[class_index]), move


def follow_centres(psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, move_xy_px: Tensor) -> Tensor:
    """Return the origins of particles whose class averages were shifted.

    Parameters
    ----------
    psi_deg : Tensor of shape (b,)
        In-plane rotation, degrees.
    origin_xy_px : Tensor of shape (b, 2)
        Origins, pixels.
    mirror : Tensor of shape (b,)
        True where mirrored.
    move_xy_px : Tensor of shape (b, 2)
        Shift of each particle's class average, pixels.

    Returns
    -------
    Tensor of shape (b, 2)
        Origins, pixels.
    """
    return origin_xy_px + rotate_xy(-psi_deg, mirror_x(move_xy_px, mirror))


def circle_spectra(orders: Tensor, n_half: int) -> Tensor:
    """Compute the Fourier coefficients of whole circles.

    Parameters
    ----------
    orders : Tensor of shape (b, m)
        Angular orders of real images.
    n_half : int
        Number of samples of half a circle H.

    Returns
    -------
    Tensor of shape (b, 2 H)
        Coefficients in the order of `torch.fft.fft`; those beyond the orders given are 0.
    """
    order, factor = _circle(orders.shape[-1], n_half, orders.device)
    return torch.view_as_complex(torch.view_as_real(orders[..., order]) * factor)


@functools.lru_cache(maxsize=64)
def _circle(n_orders: int, n_half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The order (2 H,) that each coefficient of a circle is made of, and factors (2 H, 2) of its two parts."""
    m = torch.arange(2 * n_half, device=device)
    negative = m > n_half
    m = torch.where(negative, 2 * n_half - m, m)
    # F_-m = (-1)^m conj(F_m), and 0 beyond the orders given.
    factor = torch.where(negative & (m % 2 == 1), -1.0, 1.0) * (m < n_orders)
    order = torch.where(m < n_orders, m, 0)
    return order, torch.stack([factor, torch.where(negative, -factor, factor)], dim=1)


Waves = tuple[Tensor, ...]
"""The four parts of a transform, for products with the waves cos cos, sin sin, sin cos and cos sin of x and y."""


def quarter_pixels(images: Tensor, pixel: Tensor, share: Tensor) -> Waves:
    """Add up the pixels that share their waves; see `ralib.classification.quarter_waves`.

    Parameters
    ----------
    images : Tensor of shape (b, n, n)
        Images.
    pixel : Tensor of shape (4, Q)
        Flat indices of (x, y), (-x, y), (x, -y) and (-x, -y).
    share : Tensor of shape (Q,)
        Weights.

    Returns
    -------
    tuple of Tensor
        Sums (b, Q).
    """
    a, b, c, d = (images.flatten(1).index_select(1, at) * share for at in pixel)
    return a + b + c + d, a - b - c + d, a - b + c - d, a + b - c - d


def half_circle(waves: Waves, rings: int) -> Tensor:
    """Compute samples of the half circle from the waves' parts at angles up to pi / 2.

    Parameters
    ----------
    waves : tuple of Tensor
        Parts (b, r * (H / 2 + 1)).
    rings : int
        Number of rings r.

    Returns
    -------
    Tensor of shape (b, r, H)
        Samples.
    """
    even, odd, along_x, along_y = waves
    near, far = torch.complex(even - odd, -along_x - along_y), torch.complex(even + odd, along_x - along_y)
    near, far = (s.unflatten(1, (rings, -1)) for s in (near, far))
    return torch.cat([near, far[..., 1:-1].flip(-1)], dim=-1)


def quarter_circle(samples: Tensor) -> Waves:
    """Add up samples at the angles phi and pi - phi, which share their waves.

    Parameters
    ----------
    samples : Tensor of shape (b, r, H)
        Samples of the half circle.

    Returns
    -------
    tuple of Tensor
        Parts (b, r * (H / 2 + 1)).
    """
    middle = samples.shape[2] // 2
    first = samples[..., : middle + 1]
    second = torch.nn.functional.pad(samples[..., middle + 1 :].flip(-1), (1, 1))  # at pi - phi
    both, apart = (first + second).flatten(1), (first - second).flatten(1)
    return both.real, apart.real, apart.imag, both.imag


def whole_images(waves: Waves, pixel: Tensor, box: int) -> Tensor:
    """Compute images from the waves' parts at a quarter of their pixels.

    Parameters
    ----------
    waves : tuple of Tensor
        Parts (b, Q).
    pixel : Tensor of shape (4, Q)
        Flat indices of (x, y), (-x, y), (x, -y) and (-x, -y).
    box : int
        Image size n, pixels.

    Returns
    -------
    Tensor of shape (b, n, n)
        Images, zero elsewhere.
    """
    even, odd, along_x, along_y = waves
    out = even.new_zeros(len(even), box * box)
    out[:, pixel[0]] = even - odd - along_x - along_y
    out[:, pixel[1]] = even + odd + along_x - along_y
    out[:, pixel[2]] = even + odd - along_x + along_y
    out[:, pixel[3]] = even - odd + along_x + along_y
    return out.unflatten(1, (box, box))
