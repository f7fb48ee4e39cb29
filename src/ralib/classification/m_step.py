"""The M-step on the rings: weighted sums of posed particles, halves, and Wiener averages by their measured SSNR."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ralib.classification.e_step import STEP_BYTES, ClassPoses, Spectra, samples_at_once
from ralib.classification.ring_grid import RingGrid
from ralib.conventions import mirror_x, rotate_xy
from ralib.images.fourier import filter_images, frequency_grid


@dataclass(frozen=True)
class RingSums:
    """Sums over the members of each class, in two halves.

    numerator   (2, k, r, m) complex: sum of a CTF F / sigma^2 in the class frame, as angular orders
    weight      (2, k, r): sum of a^2 CTF^2 / sigma^2
    """

    numerator: Tensor
    weight: Tensor


@dataclass(frozen=True)
class RingAverages:
    """Class averages on the rings: orders (k, r, m), those of the halves (2, k, r, m), FRC (k, r) between them.

    gain    (k, r) what the sums were multiplied with: the share of each particle summed
    """

    orders: Tensor
    halves: Tensor
    frc: Tensor
    gain: Tensor


def sum_classes(
    grid: RingGrid,
    spectra: Spectra,
    poses: list[ClassPoses],
    class_index: list[Tensor],
    weight: list[Tensor],
    scale: list[Tensor],
    half: Tensor,
    *,
    n_classes: int,
    rings: int,
    n_orders: int,
    memory_bytes: float = STEP_BYTES,
) -> RingSums:
    """Add every particle (b) to its candidate classes: the lists hold, candidate by candidate, fields (b,).

    The sums are matrix products with a table of weights, not scattered additions: the same bits on every run.
    """
    total = torch.zeros(2 * n_classes, rings * n_orders * 2, device=grid.device)
    power = torch.zeros(2 * n_classes, rings, device=grid.device)
    chunk = samples_at_once(grid, rings, 256 if grid.device.type == "cpu" else 8192, memory_bytes)
    m = torch.arange(n_orders, device=grid.device, dtype=torch.float32)
    for first in range(0, len(spectra), chunk):
        cut = slice(first, first + chunk)
        for pose, index, w, a in zip(poses, class_index, weight, scale, strict=True):
            moved = spectra.data[cut, :rings] * grid.phase(pose.origin_xy_px[cut], rings)
            turn = -torch.deg2rad(pose.psi_deg[cut])[:, None] * m
            posed = grid.orders_of(moved, n_orders) * torch.polar(torch.ones_like(turn), turn)[:, None]
            posed = torch.where(pose.mirror[cut][:, None, None], posed.conj(), posed)
            table = torch.zeros(len(posed), 2 * n_classes, device=grid.device)
            column = (half[cut] * n_classes + index[cut])[:, None]
            table.scatter_(1, column, (w * a)[cut][:, None])
            total += table.T @ torch.view_as_real(posed.resolve_conj()).flatten(1)
            table.scatter_(1, column, (w * a * a)[cut][:, None])
            power += table.T @ spectra.power[cut, :rings]
    numerator = torch.view_as_complex(total.view(2, n_classes, rings, n_orders, 2)) / grid.weight[:rings, None]
    return RingSums(numerator, power.view(2, n_classes, rings) / (grid.weight[:rings] * grid.n_half))


def average_classes(sums: RingSums, members: Tensor) -> RingAverages:
    """Wiener averages N / (D (1 + 1 / SSNR)), with the SSNR of each class measured from its halves.

    A ring of one class holds few samples, so its FRC is smoothed over neighbouring rings and pulled half way to what
    the classes have in common: an SSNR that grows with the members.
    """
    halves = sums.numerator / sums.weight.clamp_min(1e-12)[..., None]
    frc = orders_frc(halves[0], halves[1])
    smooth = _smooth(frc).clamp(0.0, 0.995)
    own = 2 * smooth / (1 - smooth)
    share = members.clamp_min(1e-3)[:, None]
    common = own.sum(0) / share.sum()
    ssnr = (0.5 * own + 0.5 * common * share).clamp_min(1e-3)
    weight = sums.weight.sum(0) * (1 + 1 / ssnr)
    gain = 1 / (weight + 1e-6 * weight.amax())
    shrunk = halves * (ssnr / (ssnr + 2))[..., None]
    return RingAverages(sums.numerator.sum(0) * gain[..., None], shrunk, frc, gain)


def orders_frc(first: Tensor, second: Tensor) -> Tensor:
    """Fourier ring correlation (k, r) of two sets of orders (k, r, m)."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        product = (a * b.conj()).real
        return 2 * product.sum(-1) - product[..., 0]

    return dot(first, second) / torch.sqrt(dot(first, first) * dot(second, second)).clamp_min(1e-20)


def _smooth(curve: Tensor) -> Tensor:
    padded = torch.nn.functional.pad(curve[:, None], (1, 1), mode="replicate")
    kernel = torch.tensor([[[0.25, 0.5, 0.25]]], device=curve.device)
    return torch.nn.functional.conv1d(padded, kernel)[:, 0]


def signal_share(grid: RingGrid, halves: Tensor, blur_px: float) -> Tensor:
    """How much of class averages is signal, place by place, (k, n, n) from 0 to 1, as their halves (2, k, r, m) tell.

    The halves' local correlation c, in a Gaussian window, makes 2 c / (1 + c): Wiener's weight for the average of both.
    A particle fills its mask in no view; the rest is noise, which a reference is better without.
    """
    first, second = grid.image(grid.samples_of(halves.flatten(0, 1))).unflatten(0, halves.shape[:2])
    common = _blurred(first * second, blur_px)
    power = _blurred(0.5 * (first.square() + second.square()), blur_px)
    correlation = (common / power.clamp_min(1e-20)).clamp(0, 1)
    return 2 * correlation / (1 + correlation)


def _blurred(images: Tensor, sd_px: float) -> Tensor:
    kx, ky = frequency_grid(images.shape[-1], device=images.device)
    return filter_images(images, torch.exp(-2 * (math.pi * sd_px) ** 2 * (kx.square() + ky.square())))


def masked_references(grid: RingGrid, orders: Tensor, mask: Tensor, rings: int, n_orders: int) -> Tensor:
    """Class averages (k, R, m) behind their masks (k, n, n), as orders (k, rings, n_orders)."""
    images = grid.image(grid.samples_of(orders))
    masked = grid.transform(images * mask)[:, :rings]
    return grid.orders_of(masked, n_orders)


def moved_averages(grid: RingGrid, averages: RingAverages, move_xy_px: Tensor) -> RingAverages:
    """The averages and their halves moved by (k, 2)."""
    phase = grid.phase(move_xy_px, averages.orders.shape[1])

    def moved(orders: Tensor) -> Tensor:
        return grid.orders_of(grid.samples_of(orders) * phase, orders.shape[-1])

    return replace(averages, orders=moved(averages.orders), halves=moved(averages.halves))


def follow_centres(psi_deg: Tensor, origin_xy_px: Tensor, mirror: Tensor, move_xy_px: Tensor) -> Tensor:
    """Origins (b, 2) after the particles' class averages moved by (b, 2)."""
    return origin_xy_px + rotate_xy(-psi_deg, mirror_x(move_xy_px, mirror))
